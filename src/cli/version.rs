//! Show the version information

use serde_json::json;

use super::format::Template;
use super::{Context, Exit, Outcome};

/// Show the version information
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
}

/// Prints it.
///
/// # Errors
/// A template that is wrong.
pub fn run(_: &Context, args: &Args) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned())?;
    let architecture = super::info::go_architecture();
    // Client and server are one: scripts that ask for either get the same.
    let side = json!({
        "Version": version, "ApiVersion": "1.47", "Os": "linux", "Arch": architecture, "KernelVersion": kernel,
    });
    let object = json!({ "Client": side, "Server": side });
    match args.format.as_str() {
        "" => {
            println!("hostel version {version}");
            println!(" OS/Arch:         linux/{architecture}");
            println!(" Kernel:          {kernel}");
        }
        "json" => println!("{object}"),
        template => println!("{}", Template::render_one(template, &object)?),
    }
    Ok(Exit::Success)
}
