//! Puts fragments of IP packets together again.
//!
//! The kernel inside cuts datagrams that are longer than the MTU; the host's sockets want them
//! whole. Everything is bounded: how many datagrams are under way, how long they may take, how
//! large they get. A fragment that overlaps another condemns its datagram (RFC 5722 for IPv6;
//! for IPv4 it is an attack as well): there is no honest reason for one.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::device::PACKET_BYTES_MAX;
use crate::frame::Fragment;
use crate::wheel::Tick;

/// Datagrams under way at once; each holds up to 64 KiB.
const DATAGRAMS_MAX: usize = 64;

/// How long the last fragment may take (Linux's default for both families).
const LIFETIME_MS: Tick = 30_000;

/// Fragments of one datagram: 64 KiB in IPv6's least MTU are 53.
const FRAGMENTS_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    identification: u32,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Ranges that have come, in no order, none overlapping another.
    ranges: Vec<(usize, usize)>,
    /// The length of the whole, once the last fragment has come.
    total: Option<usize>,
    /// An overlap was seen; what comes is thrown away until the time is over.
    condemned: bool,
    started: Tick,
}

/// A datagram that is whole again: the IP payload and its protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) protocol: u8,
    pub(crate) payload: Vec<u8>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    partials: HashMap<Key, Partial>,
}

impl Reassembly {
    /// Takes a fragment. Returns the datagram that it completes.
    pub(crate) fn add(
        &mut self,
        now: Tick,
        source: IpAddr,
        destination: IpAddr,
        fragment: &Fragment<'_>,
    ) -> Option<Whole> {
        let key =
            Key { source, destination, protocol: fragment.protocol, identification: fragment.identification };
        let is_new = !self.partials.contains_key(&key);
        if is_new && self.partials.len() >= DATAGRAMS_MAX {
            self.partials.retain(|_, partial| now < partial.started + LIFETIME_MS);
            if self.partials.len() >= DATAGRAMS_MAX {
                return None;
            }
        }
        let partial = self.partials.entry(key).or_default();
        if is_new || now >= partial.started + LIFETIME_MS {
            *partial = Partial { started: now, ..Partial::default() };
        }
        if partial.add(fragment).is_none() {
            *partial = Partial { started: partial.started, condemned: true, ..Partial::default() };
        }
        if !partial.is_whole() {
            return None;
        }
        let payload = self.partials.remove(&key)?.bytes;
        Some(Whole { protocol: key.protocol, payload })
    }
}

impl Partial {
    /// Puts the fragment in its place; none if it cannot have one.
    fn add(&mut self, fragment: &Fragment<'_>) -> Option<()> {
        let start = fragment.offset;
        let end = start + fragment.payload.len();
        let is_cut_well = !fragment.more || fragment.payload.len().is_multiple_of(8);
        let fits = end <= PACKET_BYTES_MAX && self.total.is_none_or(|total| end <= total);
        if self.condemned || fragment.payload.is_empty() || !is_cut_well || !fits {
            return None;
        }
        if self.ranges.contains(&(start, end)) && self.bytes[start..end] == *fragment.payload {
            // The same again: duplication is no attack.
            return Some(());
        }
        let overlaps = self.ranges.iter().any(|&(from, to)| start < to && from < end);
        if overlaps || self.ranges.len() >= FRAGMENTS_MAX {
            return None;
        }
        if !fragment.more {
            let beyond = self.ranges.iter().any(|&(_, to)| to > end);
            if self.total.is_some() || beyond {
                return None;
            }
            self.total = Some(end);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(fragment.payload);
        self.ranges.push((start, end));
        Some(())
    }

    fn is_whole(&self) -> bool {
        let received: usize = self.ranges.iter().map(|&(from, to)| to - from).sum();
        self.total == Some(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn cut(payload: &[u8], size: usize, identification: u32) -> Vec<Fragment<'_>> {
        payload
            .chunks(size)
            .enumerate()
            .map(|(index, part)| Fragment {
                identification,
                protocol: 17,
                offset: index * size,
                more: index * size + part.len() < payload.len(),
                payload: part,
            })
            .collect()
    }

    fn add(reassembly: &mut Reassembly, now: Tick, fragment: &Fragment<'_>) -> Option<Vec<u8>> {
        reassembly.add(now, A, B, fragment).map(|whole| whole.payload)
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_gives_the_whole(
            payload in prop::collection::vec(any::<u8>(), 1..FRAGMENTS_MAX * 32),
            size in 2_usize..40,
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let fragments = cut(&payload, size * 16, 1);
            let mut reassembly = Reassembly::default();
            let mut sequence: Vec<_> = order.iter().map(|index| index.index(fragments.len())).collect();
            sequence.extend(0..fragments.len());
            let mut seen = std::collections::BTreeSet::new();
            for index in sequence {
                seen.insert(index);
                let whole = add(&mut reassembly, 0, &fragments[index]);
                if seen.len() == fragments.len() {
                    prop_assert!(whole == Some(payload));
                    return Ok(());
                }
                prop_assert!(whole.is_none());
            }
        }

        #[test]
        fn garbage_never_panics(
            pieces in prop::collection::vec((0_usize..8_192, 0_usize..100, any::<bool>(), 0_u32..3), 0..200),
        ) {
            let mut reassembly = Reassembly::default();
            let bytes = [7; 100];
            for (index, (offset, length, more, identification)) in pieces.into_iter().enumerate() {
                let fragment = Fragment {
                    identification,
                    protocol: 17,
                    offset: offset * 8,
                    more,
                    payload: &bytes[..length],
                };
                add(&mut reassembly, index as Tick * 1_000, &fragment);
            }
        }
    }

    #[test]
    fn an_overlap_condemns_the_datagram() {
        let payload = [1_u8; 64];
        let fragments = cut(&payload, 16, 1);
        let mut reassembly = Reassembly::default();
        add(&mut reassembly, 0, &fragments[0]);
        let overlapping = Fragment { offset: 8, ..fragments[1] };
        assert_eq!(add(&mut reassembly, 0, &overlapping), None);
        for fragment in &fragments {
            assert_eq!(add(&mut reassembly, 0, fragment), None);
        }
        // After its time the same identification may be used again.
        let late: Vec<_> =
            fragments.iter().filter_map(|one| add(&mut reassembly, LIFETIME_MS, one)).collect();
        assert_eq!(late, [payload]);
    }

    #[test]
    fn the_number_of_datagrams_under_way_is_bounded() {
        let payload = [1_u8; 64];
        let mut reassembly = Reassembly::default();
        for identification in 0..1_000 {
            add(&mut reassembly, 0, &cut(&payload, 16, identification)[0]);
        }
        assert_eq!(reassembly.partials.len(), DATAGRAMS_MAX);
        let newest: Vec<_> = cut(&payload, 16, 5_000)
            .iter()
            .filter_map(|one| add(&mut reassembly, LIFETIME_MS, one))
            .collect();
        assert_eq!(newest, [payload]);
    }
}
