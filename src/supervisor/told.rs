//! Events of what a container uses while it runs, its network and its volumes, in Docker's words.

use crate::plan::{ContainerPlan, NetworkMode, network_id};
use crate::store::containers::{Containers, Record};

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Its command runs.
    Begins,
    /// It has died.
    Ends,
}

/// Tells the journal, after whoever waits for the container has been told.
pub(super) fn tell(containers: &Containers, record: &Record, plan: &ContainerPlan, what: Use) {
    let (events, container) = (containers.events(), ("container", record.id.as_str()));
    let network = match &plan.network.mode {
        NetworkMode::Bridge => Some(("bridge", "bridge")),
        NetworkMode::Host => Some(("host", "host")),
        NetworkMode::None => Some(("none", "null")),
        // The other container's.
        NetworkMode::Container(_) => None,
    };
    if let Some((name, driver)) = network {
        let action = if what == Use::Begins { "connect" } else { "disconnect" };
        events.tell("network", action, &network_id(name), &[container, ("name", name), ("type", driver)]);
    }
    for volume in &plan.volumes {
        let destination = volume.destination.to_string_lossy();
        let driver = ("driver", "local");
        match what {
            Use::Begins => {
                let attributes = [container, ("destination", &*destination), driver, ("propagation", "")];
                events.tell("volume", "mount", &volume.name, &attributes);
            }
            Use::Ends => events.tell("volume", "unmount", &volume.name, &[container, driver]),
        }
    }
}
