//! What has passed and what was dropped: the one place for figures about the whole gateway.

/// Totals since the gateway started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets sent into the namespace.
    pub packets_inward: u64,
    /// Their bytes, IP headers included.
    pub bytes_inward: u64,
    /// Packets for the namespace that the device refused.
    pub dropped_inward: u64,
    /// Packets that came out of the namespace.
    pub packets_outward: u64,
    /// Their bytes, IP headers included.
    pub bytes_outward: u64,
    /// Of those, dropped because they were malformed.
    pub malformed: u64,
    /// Of those, dropped because they are of a kind that is not forwarded.
    pub unforwardable: u64,
    /// Connections, mappings and queries refused by policy.
    pub prohibited: u64,
    /// Connections, mappings and queries refused because a limit was reached.
    pub limited: u64,
    /// TCP connections that came to exist, both directions.
    pub tcp_flows: u64,
    /// UDP mappings that came to exist.
    pub udp_mappings: u64,
    /// DNS queries answered or forwarded.
    pub dns_queries: u64,
}
