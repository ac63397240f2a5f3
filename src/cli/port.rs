//! List port mappings or a specific mapping for the container

use super::{CliError, Context, Exit, Outcome};
use crate::store::containers::{Containers, Status};

/// List port mappings or a specific mapping for the container
#[derive(clap::Args, Debug)]
pub struct Args {
    /// CONTAINER
    container: String,
    /// PRIVATE_PORT[/PROTO]
    port: Option<String>,
}

/// Prints the mappings.
///
/// # Errors
/// No such container; no such port.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let mut ports = match containers.status(&record.id)? {
        Status::Running(state) => state.ports,
        _ => Vec::new(),
    };
    ports.sort_by(|a, b| (a.0, &a.1, a.2, a.3).cmp(&(b.0, &b.1, b.2, b.3)));
    let address = |ip: std::net::IpAddr, port: u16| std::net::SocketAddr::new(ip, port);
    let Some(asked) = &args.port else {
        for (inner, protocol, ip, port) in ports {
            println!("{inner}/{protocol} -> {}", address(ip, port));
        }
        return Ok(Exit::Success);
    };
    let (number, protocol) = asked.split_once('/').unwrap_or((asked, "tcp"));
    let number: u16 = number.parse().map_err(|_| CliError::new(format!("invalid port '{asked}'")))?;
    let found: Vec<_> =
        ports.into_iter().filter(|(inner, kind, ..)| *inner == number && kind == protocol).collect();
    if found.is_empty() {
        return Err(CliError::new(format!(
            "no public port '{number}/{protocol}' published for {}",
            args.container
        )));
    }
    for (_, _, ip, port) in found {
        println!("{}", address(ip, port));
    }
    Ok(Exit::Success)
}
