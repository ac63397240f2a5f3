//! The tables of the address translation: what of the host stands for what of the inside.
//!
//! Two promises hold whatever the inside and its peers do. A table never has more entries than its
//! limit: the newest is refused, and the rest goes on. And what is looked up is what was put in:
//! no two clients of published ports look alike to the inside, so an answer cannot reach another.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use crate::slab::{EntryId, Slab};
use crate::wheel::{Tick, Wheel};

/// How long a published port's client is remembered after its last datagram.
const CLIENT_MS: Tick = 180_000;

/// Clients of published ports that are remembered at once.
const CLIENTS_MAX: usize = 8_192;

/// Source ports that are tried for a client that looks like another.
const PORT_TRIES: u16 = 64;

/// Something of the host for each key of the inside, forgotten after a silence.
pub(crate) struct Mappings<K, V> {
    entries: Slab<Entry<K, V>>,
    by_key: HashMap<K, EntryId>,
    wheel: Wheel,
    most: usize,
}

struct Entry<K, V> {
    key: K,
    value: V,
    last_active: Tick,
    lifetime_ms: Tick,
}

impl<K: Copy + Eq + Hash, V> Mappings<K, V> {
    /// An empty table for at most so many entries.
    pub(crate) fn new(most: usize) -> Self {
        Self { entries: Slab::new(), by_key: HashMap::new(), wheel: Wheel::new(), most }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.most
    }

    /// The entry of this key.
    pub(crate) fn find(&self, key: &K) -> Option<EntryId> {
        self.by_key.get(key).copied()
    }

    /// The name that the next entry will have.
    pub(crate) fn next_id(&self) -> EntryId {
        self.entries.next_id()
    }

    /// Adds an entry under [`next_id`](Self::next_id). The caller has seen that the key has none
    /// and that the table [is not full](Self::is_full).
    pub(crate) fn insert(&mut self, now: Tick, key: K, value: V, lifetime_ms: Tick) -> EntryId {
        debug_assert!(!self.is_full() && self.find(&key).is_none());
        let id = self.entries.insert(Entry { key, value, last_active: now, lifetime_ms });
        self.by_key.insert(key, id);
        self.wheel.set(id.index, now + lifetime_ms);
        id
    }

    pub(crate) fn get_mut(&mut self, id: EntryId) -> Option<(K, &mut V)> {
        self.entries.get_mut(id).map(|entry| (entry.key, &mut entry.value))
    }

    /// Notes that something has passed. The entry's time starts anew.
    pub(crate) fn touch(&mut self, now: Tick, id: EntryId) {
        // The wheel is set when the old time is over: not with each datagram.
        if let Some(entry) = self.entries.get_mut(id) {
            entry.last_active = now;
        }
    }

    /// Gives the entry another lifetime, counted from its last activity.
    pub(crate) fn set_lifetime(&mut self, id: EntryId, lifetime_ms: Tick) {
        if let Some(entry) = self.entries.get_mut(id)
            && entry.lifetime_ms != lifetime_ms
        {
            entry.lifetime_ms = lifetime_ms;
            self.wheel.set(id.index, entry.last_active + lifetime_ms);
        }
    }

    pub(crate) fn remove(&mut self, id: EntryId) -> Option<V> {
        let entry = self.entries.remove(id)?;
        self.by_key.remove(&entry.key);
        self.wheel.cancel(id.index);
        Some(entry.value)
    }

    /// Forgets what has been silent for its lifetime.
    pub(crate) fn expire(&mut self, now: Tick) {
        let mut due = Vec::new();
        self.wheel.advance(now, |index| due.push(index));
        for index in due {
            let Some((id, entry)) = self.entries.at_mut(index) else { continue };
            let end = entry.last_active + entry.lifetime_ms;
            if end > now {
                self.wheel.set(index, end);
            } else {
                self.remove(id);
            }
        }
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.wheel.next()
    }
}

/// A client of a published port as the inside sees it, and the container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ClientKey {
    inside: SocketAddr,
    outside: SocketAddr,
}

/// A client of a published port as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    /// The listener that it had sent to.
    pub(crate) listener: u32,
    pub(crate) address: SocketAddr,
    /// The host's address that it had sent to.
    pub(crate) sent_to: Option<IpAddr>,
}

struct Remembered {
    client: Client,
    last_active: Tick,
}

/// The clients of published UDP ports.
#[derive(Default)]
pub(crate) struct Clients {
    by_key: HashMap<ClientKey, Remembered>,
    swept_at: Tick,
}

impl Clients {
    /// Notes a client that wants to look like `outside`, so that answers find it. Returns what it
    /// looks like: its port is another where two clients would look alike. None if there are too
    /// many.
    pub(crate) fn remember(
        &mut self,
        now: Tick,
        inside: SocketAddr,
        mut outside: SocketAddr,
        client: Client,
    ) -> Option<SocketAddr> {
        for _ in 0..PORT_TRIES {
            let key = ClientKey { inside, outside };
            match self.by_key.get_mut(&key) {
                Some(known) if known.client.is_same(&client) => {
                    *known = Remembered { client, last_active: now };
                    return Some(outside);
                }
                Some(_) => outside.set_port(port_before(outside.port())),
                None => {
                    self.sweep(now);
                    if self.by_key.len() >= CLIENTS_MAX {
                        return None;
                    }
                    self.by_key.insert(key, Remembered { client, last_active: now });
                    return Some(outside);
                }
            }
        }
        None
    }

    /// Whom the inside means by this address, if it is a client's.
    pub(crate) fn find(&mut self, now: Tick, inside: SocketAddr, outside: SocketAddr) -> Option<Client> {
        let known = self.by_key.get_mut(&ClientKey { inside, outside })?;
        known.last_active = now;
        Some(known.client)
    }

    /// What a client looks like that wanted to look like `outside`.
    pub(crate) fn appearance(
        &self,
        inside: SocketAddr,
        mut outside: SocketAddr,
        listener: u32,
        address: SocketAddr,
    ) -> Option<SocketAddr> {
        for _ in 0..PORT_TRIES {
            let known = self.by_key.get(&ClientKey { inside, outside })?;
            if known.client.listener == listener && known.client.address == address {
                return Some(outside);
            }
            outside.set_port(port_before(outside.port()));
        }
        None
    }

    /// Forgets silent clients, once in their lifetime, or each second when there are too many.
    fn sweep(&mut self, now: Tick) {
        const FULL_SWEEP_MS: Tick = 1_000;
        let pause = if self.by_key.len() >= CLIENTS_MAX { FULL_SWEEP_MS } else { CLIENT_MS };
        if now < self.swept_at + pause {
            return;
        }
        self.swept_at = now;
        self.by_key.retain(|_, known| now < known.last_active + CLIENT_MS);
    }
}

impl Client {
    /// Whether it is the same client, even if it had sent to another address.
    fn is_same(&self, other: &Self) -> bool {
        self.listener == other.listener && self.address == other.address
    }
}

/// The next port to try: downwards, into what is ephemeral for most clients; never 0.
pub(crate) fn port_before(port: u16) -> u16 {
    if port <= 1 { u16::MAX } else { port - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    #[derive(Debug, Clone)]
    enum Step {
        Send { key: u8 },
        Answer { key: u8 },
        Close { key: u8 },
        Pass { ms: Tick },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..12_u8).prop_map(|key| Step::Send { key }),
            3 => (0..12_u8).prop_map(|key| Step::Answer { key }),
            1 => (0..12_u8).prop_map(|key| Step::Close { key }),
            3 => (1..400_u64).prop_map(|ms| Step::Pass { ms }),
        ]
    }

    const MOST: usize = 8;
    const SHORT_MS: Tick = 300;
    const LONG_MS: Tick = 1_000;

    proptest! {
        /// The table against a map with a list of times.
        #[test]
        fn mappings_agree_with_a_map(steps in prop::collection::vec(step(), 1..300)) {
            let mut table = Mappings::new(MOST);
            // Value, last activity, lifetime.
            let mut model: BTreeMap<u8, (u32, Tick, Tick)> = BTreeMap::new();
            let mut now = 0;
            let mut made = 0;
            for step in steps {
                match step {
                    Step::Send { key } => match table.find(&key) {
                        Some(id) => table.touch(now, id),
                        None if table.is_full() => prop_assert_eq!(model.len(), MOST),
                        None => {
                            made += 1;
                            let promised = table.next_id();
                            prop_assert_eq!(table.insert(now, key, made, SHORT_MS), promised);
                        }
                    },
                    Step::Answer { key } => {
                        if let Some(id) = table.find(&key) {
                            table.touch(now, id);
                            table.set_lifetime(id, LONG_MS);
                        }
                    }
                    Step::Close { key } => {
                        let removed = table.find(&key).and_then(|id| table.remove(id));
                        prop_assert_eq!(removed, model.remove(&key).map(|(value, ..)| value));
                    }
                    Step::Pass { ms } => {
                        now += ms;
                        table.expire(now);
                        model.retain(|_, (_, last, lifetime)| *last + *lifetime > now);
                    }
                }
                match step {
                    Step::Send { key } if model.contains_key(&key) || model.len() < MOST => {
                        model.entry(key).or_insert((made, now, SHORT_MS)).1 = now;
                    }
                    Step::Answer { key } => {
                        if let Some(entry) = model.get_mut(&key) {
                            (entry.1, entry.2) = (now, LONG_MS);
                        }
                    }
                    _ => {}
                }
                for key in 0..12 {
                    let found = table.find(&key).and_then(|id| table.get_mut(id)).map(|(key, value)| (key, *value));
                    prop_assert_eq!(found, model.get(&key).map(|(value, ..)| (key, *value)));
                }
                let first = model.values().map(|(_, last, lifetime)| last + lifetime).min();
                prop_assert!(table.next_deadline().is_some() == first.is_some());
                prop_assert!(table.next_deadline() <= first);
            }
        }

        /// However clients crowd one apparent address, each keeps its own look, and what the inside
        /// sends to a look goes to the one who has it.
        #[test]
        fn no_two_clients_look_alike(
            arrivals in prop::collection::vec((0..2_u32, 0..3_u8, 1..5_u16, 0..2_u16), 1..300),
        ) {
            let mut clients = Clients::default();
            let mut looks: BTreeMap<(SocketAddr, SocketAddr), Client> = BTreeMap::new();
            for (now, (listener, host, port, container_port)) in (0..).zip(arrivals) {
                let inside = SocketAddr::from(([10, 0, 2, 100], 80 + container_port));
                // All of 127/8 wants to look like the gateway.
                let wanted = SocketAddr::from(([10, 0, 2, 2], port));
                let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), port));
                let client = Client { listener, address, sent_to: None };
                let Some(look) = clients.remember(now, inside, wanted, client) else {
                    prop_assert!(false, "there is room");
                    return Ok(());
                };
                prop_assert!(look.port() != 0);
                let owner = *looks.entry((inside, look)).or_insert(client);
                prop_assert_eq!(owner, client);
                prop_assert_eq!(clients.appearance(inside, wanted, listener, address), Some(look));
                for (&(inside, look), client) in &looks {
                    prop_assert_eq!(clients.find(now, inside, look), Some(*client));
                }
            }
        }
    }

    #[test]
    fn clients_are_bounded_and_forgotten() {
        let mut clients = Clients::default();
        let inside = SocketAddr::from(([10, 0, 2, 100], 80));
        let mut arrive = |now: Tick, number: u32| {
            let address = SocketAddr::from((Ipv4Addr::from(0x0a63_0000 + number), 4_000));
            clients.remember(now, inside, address, Client { listener: 0, address, sent_to: None })
        };
        for number in 0..CLIENTS_MAX as u32 {
            assert!(arrive(0, number).is_some());
        }
        assert_eq!(arrive(1, 70_000), None);
        // The known ones go on.
        assert!(arrive(2, 5).is_some());
        assert!(arrive(CLIENT_MS + 1_001, 70_000).is_some());
    }
}
