//! Authenticate to a registry, and the other way round

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;

use super::images::image_error;
use super::{CliError, Context, Exit, Outcome};
use crate::image::registry::{self, Login, RegistryError, Secret};
use crate::sys;

/// Bytes of a password or a user name.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Authenticate to a registry
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Password or Personal Access Token (PAT)
    #[arg(short, long)]
    password: Option<HiddenText>,
    /// Take the Password or Personal Access Token (PAT) from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Username
    #[arg(short, long)]
    username: Option<String>,
    /// The registry; Docker's where none is given
    server: Option<String>,
}

/// Log out from a registry
#[derive(clap::Args, Debug)]
pub struct LogoutArgs {
    /// The registry; Docker's where none is given
    server: Option<String>,
}

/// A flag's value that no debug output shows.
#[derive(Clone)]
struct HiddenText(String);

impl std::fmt::Debug for HiddenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl std::str::FromStr for HiddenText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// Tries name and password on the registry and keeps them.
///
/// # Errors
/// The registry does not take them; there is nobody to ask for them.
pub fn run(_ctx: &Context, args: &Args) -> Outcome {
    let registry = registry::registry_name(args.server.as_deref().unwrap_or_default());
    if args.password.is_some() && args.password_stdin {
        return Err(CliError::new(
            "conflicting options: cannot specify both --password and --password-stdin",
        ));
    }
    if args.password_stdin && args.username.as_ref().is_none_or(String::is_empty) {
        return Err(CliError::new("the --password-stdin option requires --username to be set"));
    }
    if args.username.is_none() && args.password.is_none() {
        // Docker tries what it has before it asks.
        if registry::stored_user(&registry).map_err(edge)?.is_some() {
            eprintln!("Authenticating with existing credentials...");
            if registry::login(&registry, Login::Stored).is_ok() {
                println!("Login Succeeded");
                return Ok(Exit::Success);
            }
            eprintln!("Login did not succeed, error: the stored credentials are not accepted any more");
        }
    }
    let user = match args.username.clone().filter(|user| !user.is_empty()) {
        Some(user) => user,
        None => ask_user()?,
    };
    let password = if args.password_stdin {
        from_stdin()?
    } else if let Some(password) = &args.password {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        Secret::new(password.0.clone())
    } else {
        ask_password()?
    };
    if password.is_empty() {
        return Err(CliError::new("password is empty"));
    }
    let file = registry::login(&registry, Login::As { user, password }).map_err(edge)?;
    if let Some(file) = file {
        eprintln!("WARNING! Your credentials are stored unencrypted in '{}'.", file.display());
        eprintln!("Configure a credential helper to remove this warning. See");
        eprintln!("https://docs.docker.com/go/credential-store/");
        eprintln!();
    }
    println!("Login Succeeded");
    Ok(Exit::Success)
}

/// Forgets name and password.
///
/// # Errors
/// The file or helper that has them fails.
pub fn logout(_ctx: &Context, args: &LogoutArgs) -> Outcome {
    let registry = registry::registry_name(args.server.as_deref().unwrap_or_default());
    let server = registry::server_name(&registry);
    if registry::logout(&registry).map_err(edge)? {
        println!("Removing login credentials for {server}");
    } else {
        println!("Not logged in to {server}");
    }
    Ok(Exit::Success)
}

fn edge(error: RegistryError) -> CliError {
    image_error(error.into())
}

fn need_terminal() -> Result<(), CliError> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(CliError::new("cannot perform an interactive login from a non-TTY device")
        .with_hint("give the name with --username and the password with --password-stdin"))
}

fn ask_user() -> Result<String, CliError> {
    need_terminal()?;
    let user = prompt("Username: ")?;
    if user.is_empty() { Err(CliError::new("username is empty")) } else { Ok(user) }
}

fn ask_password() -> Result<Secret, CliError> {
    need_terminal()?;
    let stdin = std::io::stdin();
    let password = sys::terminal::without_echo(stdin.as_fd(), || prompt("Password: "))?;
    eprintln!();
    Ok(Secret::new(password?))
}

/// Asks on standard error, so that standard output stays the result's.
fn prompt(text: &str) -> Result<String, CliError> {
    eprint!("{text}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().take(MAX_SECRET_BYTES).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// All of standard input, without the line end that `echo` puts there.
fn from_stdin() -> Result<Secret, CliError> {
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_SECRET_BYTES).read_to_string(&mut text)?;
    Ok(Secret::new(text.trim_end_matches(['\n', '\r'])))
}
