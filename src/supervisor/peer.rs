//! The container whose network another one shares (`--network container:`).

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::LaunchError;
use crate::plan::{ContainerPlan, NetworkMode};
use crate::sandbox::idmap::{IdMaps, Method};
use crate::sandbox::{Failure, Stage, exec};
use crate::store::containers::{self, Containers, Status};
use crate::sys;

/// See the module.
#[derive(Debug)]
pub struct Peer {
    /// Its first process, if there is a namespace to join: there is none if it uses the machine's network.
    pub process: Option<OwnedFd>,
    /// Its own /etc/hosts and kin, which are shared as well.
    pub etc: PathBuf,
    maps: IdMaps,
}

impl Peer {
    /// Finds the container that a plan refers to, which must be running.
    ///
    /// # Errors
    /// It is gone or does not run.
    pub fn find(containers: &Containers, plan: &ContainerPlan) -> Result<Option<Self>, LaunchError> {
        let NetworkMode::Container(reference) = &plan.network.mode else { return Ok(None) };
        let record = containers.find(reference)?;
        let not_running = || {
            let what = format!("cannot join network of a non running container: {}", record.id);
            Failure::plain(Stage::Network, what).hint(format!("start it: hostel start {}", record.name))
        };
        let Status::Running(state) = containers.status(&record.id)? else {
            return Err(not_running().into());
        };
        let opened = sys::process::pidfd_open(Pid::from_raw(state.pid)).map_err(|_| not_running())?;
        // Opened first and compared then: the number may have gone to another process.
        if containers::process_start_ticks(state.pid) != Some(state.pid_start_ticks) {
            return Err(not_running().into());
        }
        let joins = exec::namespaces(&plan.spec).contains(nix::sched::CloneFlags::CLONE_NEWNET);
        let is_single = state.uid_map.iter().map(|extent| extent.2).sum::<u32>() == 1;
        Ok(Some(Self {
            process: joins.then_some(opened),
            etc: containers.path(&record.id).join("etc"),
            maps: IdMaps {
                uids: state.uid_map,
                gids: state.gid_map,
                method: if is_single {
                    Method::SingleId { reason: "the container whose network is shared has one id".into() }
                } else {
                    Method::Direct
                },
            },
        }))
    }

    /// The maps of a container that joins: the peer's, and how this user writes such maps, for removing files
    /// that belong to them.
    #[must_use]
    pub fn maps(&self, own: IdMaps) -> IdMaps {
        match (&self.process, self.maps.is_single()) {
            (None, _) => own,
            (Some(_), true) => self.maps.clone(),
            (Some(_), false) => IdMaps { method: own.method, ..self.maps.clone() },
        }
    }
}
