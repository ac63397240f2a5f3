//! The containers whose namespaces another one joins (`--network container:`, `--pid`, `--ipc`, `--uts` and
//! `--userns` alike).
//!
//! Every namespace belongs to the user namespace that it was made in, and only who is inside that one may
//! enter it. So whoever joins anything of a container is in its user namespace too, and all that is joined
//! must be of one.

use std::path::PathBuf;

use nix::sched::CloneFlags;

use super::client::Client;
use super::{LaunchError, Saved};
use crate::plan::{ContainerPlan, NetworkMode};
use crate::sandbox::idmap::{IdMaps, Method};
use crate::sandbox::join::Joined;
use crate::sandbox::{Context as _, Failure, Stage, exec};
use crate::store::containers::{Containers, Record, State, Status};

/// A container that joined one that joined one and so on: further than this nobody goes.
const MAX_CHAIN: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub struct Peers {
    /// The containers whose namespaces are joined.
    pub joined: Vec<Joined>,
    /// /etc/hosts and kin of the container whose network is shared: they are shared as well.
    pub etc: Option<PathBuf>,
    maps: Option<IdMaps>,
}

impl Peers {
    /// Finds the containers that a plan refers to, which must be running.
    ///
    /// # Errors
    /// One is gone or does not run; they are of several user namespaces.
    pub fn find(containers: &Containers, plan: &ContainerPlan) -> Result<Self, LaunchError> {
        let mut peers = Self::default();
        let mut first: Option<(Record, String)> = None;
        for (reference, what, flag) in references(plan) {
            let record = containers.find(&reference)?;
            let (joined, state) = open(containers, &record, what, flag)?;
            if flag == CloneFlags::CLONE_NEWNET {
                peers.etc = Some(containers.path(&record.id).join("etc"));
                // It may use the machine's own network.
                if !exec::namespaces(&plan.spec).contains(flag) {
                    continue;
                }
            }
            let owner = user_namespace(containers, &record)?;
            match &first {
                Some((other, of)) if *of != owner => {
                    let said = format!(
                        "cannot join the namespaces of {} and of {} at once: each is in a user namespace of its own",
                        other.name, record.name
                    );
                    let hint = format!("start one of them with --userns container:{}", other.name);
                    return Err(Failure::plain(Stage::Namespaces, said).hint(hint).into());
                }
                Some(_) => {}
                None => {
                    peers.maps = Some(maps(&state));
                    first = Some((record, owner));
                }
            }
            peers.joined.push(joined);
        }
        Ok(peers)
    }

    /// The maps of a container that joins: the peer's, and how this user writes such maps, for removing files
    /// that belong to them.
    #[must_use]
    pub fn maps(&self, own: IdMaps) -> IdMaps {
        match &self.maps {
            None => own,
            Some(maps) if maps.is_single() => maps.clone(),
            Some(maps) => IdMaps { method: own.method, ..maps.clone() },
        }
    }
}

/// What a plan joins: whose, Docker's word for it, which.
fn references(plan: &ContainerPlan) -> Vec<(String, &'static str, CloneFlags)> {
    let joins = &plan.joins;
    let network = match &plan.network.mode {
        NetworkMode::Container(reference) => Some(reference.clone()),
        _ => None,
    };
    [
        (network, "network", CloneFlags::CLONE_NEWNET),
        (joins.pid.clone(), "PID", CloneFlags::CLONE_NEWPID),
        (joins.ipc.clone(), "IPC", CloneFlags::CLONE_NEWIPC),
        (joins.uts.clone(), "UTS", CloneFlags::CLONE_NEWUTS),
        (joins.user.clone(), "USER", CloneFlags::CLONE_NEWUSER),
    ]
    .into_iter()
    .filter_map(|(reference, what, flag)| Some((reference?, what, flag)))
    .collect()
}

fn open(
    containers: &Containers,
    record: &Record,
    what: &str,
    flag: CloneFlags,
) -> Result<(Joined, State), LaunchError> {
    let not_running = || {
        let said = format!("cannot join {what} of a non running container: {}", record.id);
        Failure::plain(Stage::Network, said).hint(format!("start it: hostel start {}", record.name))
    };
    let Status::Running(state) = containers.status(&record.id)? else {
        return Err(not_running().into());
    };
    let asked = Client::namespaces(&state);
    let asked =
        asked.during(Stage::Network, || format!("cannot ask the keeper of container {}", record.name))?;
    let namespaces = asked.ok_or_else(not_running)?;
    Ok((Joined { namespaces, kinds: flag }, state))
}

fn maps(state: &State) -> IdMaps {
    let is_single = state.uid_map.iter().map(|extent| extent.2).sum::<u32>() == 1;
    let reason = "the container whose namespaces are shared has one id";
    IdMaps {
        uids: state.uid_map.clone(),
        gids: state.gid_map.clone(),
        method: if is_single { Method::SingleId { reason: reason.into() } } else { Method::Direct },
    }
}

/// The id of the container that a running one's user namespace was made for.
fn user_namespace(containers: &Containers, record: &Record) -> Result<String, LaunchError> {
    let mut id = record.id.clone();
    for _ in 0..MAX_CHAIN {
        let saved: Saved = containers.plan(&id)?;
        let own = exec::namespaces(&saved.plan.spec);
        let next = references(&saved.plan).into_iter().find(|(_, _, flag)| own.contains(*flag));
        let Some((reference, ..)) = next else { break };
        match containers.find(&reference) {
            Ok(record) => id = record.id,
            // Removed while others still use its namespaces: by its id it is still the same one.
            Err(_) => return Ok(reference),
        }
    }
    Ok(id.to_string())
}
