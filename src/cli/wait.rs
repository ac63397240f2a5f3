//! Block until one or more containers stop, then print their exit codes

use std::time::Duration;

use super::stop::reach;
use super::{CliError, Context, Outcome, each};
use crate::plan::health::HealthStatus;
use crate::store::containers::{ContainerError, Containers, Record, Status};
use crate::supervisor::control::{Reply, Request};

/// Block until one or more containers stop, then print their exit codes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to wait for: not-running, next-exit or removed; or, as podman has it, one of a container's states
    #[arg(long, value_name = "CONDITION", default_value = "not-running")]
    condition: Vec<String>,
    /// A container that does not exist is no error: its exit code is -1
    #[arg(long)]
    ignore: bool,
    /// Time between two looks at a condition that nothing announces (e.g. "250ms")
    #[arg(short = 'i', long, value_name = "DURATION", default_value = "100ms")]
    interval: String,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
    Running,
    Created,
    Paused,
    Healthy,
    Unhealthy,
}

impl Condition {
    fn parse(text: &str) -> Result<Self, CliError> {
        Ok(match text {
            "not-running" | "" | "stopped" | "exited" | "stopping" => Self::NotRunning,
            "next-exit" => Self::NextExit,
            "removed" | "removing" => Self::Removed,
            "running" => Self::Running,
            "created" | "configured" | "initialized" => Self::Created,
            "paused" => Self::Paused,
            "healthy" => Self::Healthy,
            "unhealthy" => Self::Unhealthy,
            _ => return Err(CliError::new(format!("invalid condition: {text:?}"))),
        })
    }
}

/// Prints the exit code of each, in the order given.
///
/// # Errors
/// No such container; a condition that is none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let conditions =
        args.condition.iter().map(|text| Condition::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let interval = super::run_args::health::parse_duration(&args.interval)
        .or_else(|| args.interval.parse().ok().map(Duration::from_millis)) // podman: a bare number is ms
        .ok_or_else(|| CliError::new(format!("time: invalid duration {:?}", args.interval)))?;
    each(&args.containers, |reference| {
        let record = match containers.find(reference) {
            Err(ContainerError::NotFound(_)) if args.ignore => {
                println!("-1");
                return Ok(());
            }
            other => other?,
        };
        println!("{}", wait_for(&containers, &record, &conditions, interval)?);
        Ok(())
    })
}

/// Waits until one of the conditions holds; the last exit code, -1 where there is none.
fn wait_for(
    containers: &Containers,
    record: &Record,
    conditions: &[Condition],
    interval: Duration,
) -> Result<i32, CliError> {
    if conditions == [Condition::NotRunning] {
        return wait(containers, record).map(i32::from);
    }
    let exit_of = |status: &Status| match status {
        Status::Exited(_, exit) | Status::Restarting(_, exit) => Some((exit.finished, i32::from(exit.code))),
        _ => None,
    };
    let mut status = containers.status(&record.id)?;
    let first_exit = exit_of(&status);
    let mut code = first_exit.map_or(-1, |(_, code)| code);
    loop {
        for condition in conditions {
            let holds = match condition {
                Condition::NotRunning => !status.is_live(),
                Condition::NextExit => exit_of(&status).is_some() && exit_of(&status) != first_exit,
                Condition::Removed => false,
                Condition::Running => status.word() == "running",
                Condition::Created => status.word() == "created",
                Condition::Paused => status.word() == "paused",
                Condition::Healthy => has_health(containers, record, &status, HealthStatus::Healthy),
                Condition::Unhealthy => has_health(containers, record, &status, HealthStatus::Unhealthy),
            };
            if holds {
                return Ok(code);
            }
        }
        // The end of one that runs is announced, and only so seen when it is removed right after.
        let only_ends = conditions.iter().all(|condition| {
            matches!(condition, Condition::NextExit | Condition::NotRunning | Condition::Removed)
        });
        if only_ends && matches!(status, Status::Running(_)) {
            code = i32::from(wait(containers, record)?);
            if conditions.contains(&Condition::NextExit) {
                return Ok(code);
            }
        } else {
            std::thread::sleep(interval);
        }
        status = match containers.status(&record.id) {
            Err(ContainerError::NotFound(_)) => return Ok(code),
            other => other?,
        };
        if let Some((_, last)) = exit_of(&status) {
            code = last;
        }
    }
}

fn has_health(containers: &Containers, record: &Record, status: &Status, wanted: HealthStatus) -> bool {
    matches!(status, Status::Running(_))
        && super::ps::health(containers, record).is_some_and(|health| health.status == wanted)
}

/// Waits for one container's end.
///
/// # Errors
/// When its files cannot be read.
pub fn wait(containers: &Containers, record: &Record) -> Result<u8, CliError> {
    if let Some(client) = reach(containers, record)? {
        client.send(&Request::Wait, &[])?;
        loop {
            match client.receive()? {
                Some(Reply::Exited { code }) => return Ok(code),
                Some(Reply::Failed(failure)) => return Ok(crate::supervisor::exit_code(&failure)),
                Some(_) => {}
                None => break,
            }
        }
    }
    match containers.status(&record.id) {
        Ok(Status::Exited(_, exit) | Status::Restarting(_, exit)) => Ok(exit.code),
        Ok(_) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
