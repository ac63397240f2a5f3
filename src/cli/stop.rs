//! Stop one or more running containers

use super::{CliError, Context, Outcome, each};
use crate::plan::signal;
use crate::store::containers::{Containers, Record, Status};
use crate::supervisor::client::Client;
use crate::supervisor::control::{Reply, Request};
use crate::supervisor::{self, Saved};

/// Stop one or more running containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Signal to send to the container
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_hyphen_values = true)]
    timeout: Option<i64>,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Stops each and waits for its end; one that does not run is stopped already.
///
/// # Errors
/// No such container; a signal that is none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let asked = args.signal.as_deref().map(signal::parse).transpose()?;
    each(&args.containers, |reference| {
        let record = containers.find(reference)?;
        stop(&containers, &record, asked, args.timeout)?;
        println!("{reference}");
        Ok(())
    })
}

/// Stops one container and waits until it has ended.
///
/// # Errors
/// When its files cannot be read.
pub fn stop(
    containers: &Containers,
    record: &Record,
    signal: Option<i32>,
    timeout_s: Option<i64>,
) -> Result<(), CliError> {
    let client = match reach(containers, record) {
        Ok(Some(client)) => client,
        Ok(None) => return Ok(()),
        // A start may take as long as an image makes it, and must be ended all the same.
        Err(error) => match starting(containers, record) {
            Some(client) => client,
            None => return Err(error),
        },
    };
    let saved: Saved = containers.plan(&record.id)?;
    let request = Request::Stop {
        signal: signal.unwrap_or(saved.plan.stop_signal),
        timeout_s: timeout_s.unwrap_or(saved.plan.stop_timeout_s),
    };
    client.send(&request, &[])?;
    loop {
        match client.receive()? {
            Some(Reply::Exited { .. } | Reply::Failed(_)) | None => return Ok(()),
            Some(Reply::Ok | Reply::Started { .. } | Reply::Namespaces { .. } | Reply::Refused(_)) => {}
        }
    }
}

/// How long a keeper that is starting its container may take to end it.
const START_LIMIT_S: i64 = 20;

/// A connection to the keeper of a container whose start is under way.
fn starting(containers: &Containers, record: &Record) -> Option<Client> {
    match containers.status(&record.id) {
        Ok(Status::Starting) => {
            let client = Client::connect(&supervisor::socket_path(&record.id).ok()?).ok()?;
            // It may itself wait for something else, such as newuidmap.
            client.set_receive_limit(START_LIMIT_S).ok()?;
            Some(client)
        }
        _ => None,
    }
}

/// A connection to the keeper of a container that runs; `None` when it does not.
///
/// # Errors
/// When its files cannot be read, or the keeper does not answer.
pub fn reach(containers: &Containers, record: &Record) -> Result<Option<Client>, CliError> {
    /// A keeper that has its lock but not its socket's last step yet, or that is about to go.
    const ATTEMPTS: u32 = 200;
    const WAIT: std::time::Duration = std::time::Duration::from_millis(10);
    for _ in 0..ATTEMPTS {
        match containers.status(&record.id) {
            Ok(Status::Running(state) | Status::Restarting(state, _)) => match Client::connect(&state.socket)
            {
                Ok(client) => return Ok(Some(client)),
                Err(_) => std::thread::sleep(WAIT),
            },
            Ok(Status::Starting) => std::thread::sleep(WAIT),
            Ok(Status::Created | Status::Exited(..)) => return Ok(None),
            Ok(Status::Elsewhere(machine)) => {
                let id = record.id.clone();
                return Err(crate::store::containers::ContainerError::Elsewhere { id, machine }.into());
            }
            // A --rm container that has just gone.
            Err(crate::store::containers::ContainerError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Err(CliError::new(format!("the supervisor of container {} does not answer", record.id.short()))
        .with_hint("kill it (hostel-keeper in `ps`; its pid is keeper_pid in the container's state.json, once that is there); then `hostel rm -f`"))
}
