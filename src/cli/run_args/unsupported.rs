//! Flags of Docker's that this version cannot honour. Each is known, so that it is refused by name
//! and with the reason, and never taken for the image.

use clap::Args;

use super::{not_supported, refused};
use crate::cli::CliError;

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct UnsupportedArgs {
    /// CPU count (Windows only)
    #[arg(long, hide = true)]
    cpu_count: Option<String>,
    /// CPU percent (Windows only)
    #[arg(long, hide = true)]
    cpu_percent: Option<String>,
    /// Add a rule to the cgroup allowed devices list (not yet)
    #[arg(long, hide = true)]
    device_cgroup_rule: Vec<String>,
    /// Maximum IO bandwidth limit for the system drive (Windows only)
    #[arg(long, hide = true)]
    io_maxbandwidth: Option<String>,
    /// Maximum IOps limit for the system drive (Windows only)
    #[arg(long, hide = true)]
    io_maxiops: Option<String>,
    /// Container isolation technology
    #[arg(long, hide = true)]
    isolation: Option<String>,
    /// Add link to another container (not yet)
    #[arg(long, hide = true)]
    link: Vec<String>,
    /// Container IPv4/IPv6 link-local addresses (not yet)
    #[arg(long, hide = true)]
    link_local_ip: Vec<String>,
    /// Container MAC address (not yet)
    #[arg(long, hide = true)]
    mac_address: Option<String>,
    /// Add network-scoped alias for the container (not yet)
    #[arg(long, alias = "net-alias", hide = true)]
    network_alias: Vec<String>,
    /// Runtime to use for this container
    #[arg(long, hide = true)]
    runtime: Option<String>,
    /// Bind mount the API socket (there is none)
    #[arg(long, hide = true)]
    use_api_socket: bool,
}

impl UnsupportedArgs {
    /// Refuses the first flag that was given.
    pub(super) fn check(&self) -> Result<(), CliError> {
        const WINDOWS: &str = "it limits containers on Windows";
        const ADDRESS: &str = "the interface has no link layer; choose addresses with --ip and --ip6";
        if self.isolation.as_deref().is_some_and(|isolation| !matches!(isolation, "" | "default")) {
            return Err(refused("invalid isolation: on Linux it is \"default\""));
        }
        let runtime = self.runtime.as_deref().unwrap_or_default();
        let flags = [
            (self.cpu_count.is_some(), "--cpu-count", WINDOWS),
            (self.cpu_percent.is_some(), "--cpu-percent", WINDOWS),
            (self.io_maxbandwidth.is_some(), "--io-maxbandwidth", WINDOWS),
            (self.io_maxiops.is_some(), "--io-maxiops", WINDOWS),
            (
                !self.device_cgroup_rule.is_empty(),
                "--device-cgroup-rule",
                "no cgroup rules over devices without root; a node's own permissions count",
            ),
            (!self.link_local_ip.is_empty(), "--link-local-ip", ADDRESS),
            (self.mac_address.is_some(), "--mac-address", "the interface has no link layer"),
            (!self.link.is_empty(), "--link", "containers do not share a network yet; publish a port"),
            (!self.network_alias.is_empty(), "--network-alias", super::network::attachment::NO_ALIAS),
            (!matches!(runtime, "" | "hostel"), "--runtime", "hostel is the runtime itself"),
            (self.use_api_socket, "--use-api-socket", "there is no daemon to talk to"),
        ];
        match flags.into_iter().find(|(given, ..)| *given) {
            Some((_, flag, reason)) => Err(not_supported(flag, reason)),
            None => Ok(()),
        }
    }
}
