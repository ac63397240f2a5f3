//! Update configuration of one or more containers

use super::run_args::ResourceArgs;
use super::{CliError, Context, Outcome, each};
use crate::plan::request::Limits;
use crate::plan::restart::RestartPolicy;
use crate::store::containers::{ContainerError, Containers, Record, Status};
use crate::supervisor::Saved;
use crate::supervisor::cgroup::{self, Group};

/// Update configuration of one or more containers
///
/// A restart policy counts from the container's next end on. Limits that nothing enforces here are refused.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    limits: ResourceArgs,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Changes each.
///
/// # Errors
/// No such container, a policy that is none, a limit that cannot hold.
pub fn run(ctx: &Context, args: Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let limits = args.limits.parse()?;
    let restart = args.restart.as_deref().map(RestartPolicy::parse).transpose()?;
    if restart.is_none() && limits == Limits::default() {
        return Err(CliError::new("you must provide one or more flags when using this command"));
    }
    each(&args.containers, |reference| {
        let record = containers.find(reference)?;
        let mut saved: Saved = containers.plan(&record.id)?;
        if let Some(policy) = restart {
            if saved.plan.auto_remove && policy != RestartPolicy::No {
                return Err(CliError::new(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container",
                ));
            }
            saved.request.restart = policy;
        }
        if limits != Limits::default() {
            change_limits(&containers, &record, &limits)?;
            merge(&mut saved.request.limits, &limits);
        }
        match containers.replace_plan(&record.id, &saved) {
            Err(ContainerError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(ContainerError::NotFound(reference.to_owned()).into());
            }
            other => other?,
        }
        containers.tell(&record, "update", &[]);
        println!("{reference}");
        Ok(())
    })
}

/// Of one that runs at once; of one that does not, at its next start.
fn change_limits(containers: &Containers, record: &Record, limits: &Limits) -> Result<(), CliError> {
    let none = || {
        CliError::new("cannot update limits: no control group is delegated to this user")
            .with_hint("`hostel doctor` says what would give you one")
    };
    match containers.status(&record.id)? {
        Status::Running(state) => {
            let dir = state.cgroup.ok_or_else(none)?;
            Group::at(&dir).update(limits)?;
        }
        _ => drop(cgroup::obtainable().ok_or_else(none)?),
    }
    Ok(())
}

/// What was given takes the place of what was there.
fn merge(old: &mut Limits, new: &Limits) {
    fn take<T: Clone + Default + PartialEq>(old: &mut T, new: &T) {
        if *new != T::default() {
            old.clone_from(new);
        }
    }
    take(&mut old.memory_bytes, &new.memory_bytes);
    take(&mut old.memory_swap_bytes, &new.memory_swap_bytes);
    take(&mut old.memory_reservation_bytes, &new.memory_reservation_bytes);
    take(&mut old.memory_swappiness, &new.memory_swappiness);
    take(&mut old.cpu_nanos, &new.cpu_nanos);
    take(&mut old.cpu_shares, &new.cpu_shares);
    take(&mut old.cpu_period_us, &new.cpu_period_us);
    take(&mut old.cpu_quota_us, &new.cpu_quota_us);
    take(&mut old.cpuset_cpus, &new.cpuset_cpus);
    take(&mut old.cpuset_mems, &new.cpuset_mems);
    take(&mut old.pids, &new.pids);
    take(&mut old.blkio_weight, &new.blkio_weight);
    take(&mut old.blkio_devices, &new.blkio_devices);
}
