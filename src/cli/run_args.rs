//! The flags of `run` and `create`: Docker's, with Docker's meaning, and what becomes of each.
//!
//! [`CreateArgs`] is what both verbs share, [`RunArgs`] adds what only `run` has. A flag is declared
//! with its kin in one of the files below, beside the function that turns the kin into a part of
//! the [`RunRequest`]. Values stay text until then, so that a wrong one is reported in Docker's
//! words and with exit code 125.
//!
//! Every flag of `docker run` is known. One that this version cannot honour is refused by name with
//! the reason (`unsupported`), unless ignoring it changes nothing that anybody could notice. The
//! one exception is Docker's own: limits that a host without the cgroup controllers cannot enforce
//! are warned about and discarded (the plan's warnings).
//!
//! What must stay true: nothing but the files that flags name is read here (env files, label files,
//! seccomp profiles); the working directory and the environment come in with [`Caller`].

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{CliError, Exit};
use crate::plan::RunRequest;

pub mod env;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(in crate::cli) mod health;
mod labels;
mod log;
mod mount_flag;
pub(in crate::cli) mod network;
mod options;
mod ports;
pub(in crate::cli) mod process;
mod resources;
mod secret;
mod security;
pub(in crate::cli) mod size;
mod storage;
mod unsupported;
mod volume_flag;

pub use env::EnvArgs;
pub use resources::ResourceArgs;

/// The flags and arguments of `create`, all of which `run` has too.
#[derive(Args, Clone, Debug, Default)]
#[command(
    disable_help_flag = true,
    next_display_order = None,
    override_usage = "hostel create [OPTIONS] IMAGE [COMMAND] [ARG...]"
)]
pub struct CreateArgs {
    #[command(flatten)]
    options: options::OptionArgs,
    #[command(flatten)]
    process: process::ProcessArgs,
    #[command(flatten)]
    env: EnvArgs,
    #[command(flatten)]
    labels: labels::LabelArgs,
    #[command(flatten)]
    storage: storage::StorageArgs,
    #[command(flatten)]
    network: network::NetworkArgs,
    #[command(flatten)]
    security: security::SecurityArgs,
    #[command(flatten)]
    resources: ResourceArgs,
    #[command(flatten)]
    health: health::HealthArgs,
    #[command(flatten)]
    unsupported: unsupported::UnsupportedArgs,

    /// Print usage
    // Docker gives -h to the host name, so clap's own help flag is off.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// IMAGE [COMMAND] [ARG...]
    // One list: what follows the image belongs to the command, flags included, and clap stops
    // reading flags at the first value of a trailing list only.
    #[arg(hide = true, trailing_var_arg = true, value_name = "IMAGE")]
    arguments: Vec<String>,
}

/// The flags and arguments of `run`.
#[derive(Args, Clone, Debug, Default)]
#[command(override_usage = "hostel run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub struct RunArgs {
    #[command(flatten)]
    create: CreateArgs,

    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Proxy received signals to the process
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    sig_proxy: Option<bool>,
}

/// What the flags need to know of whoever typed them.
pub struct Caller<'a> {
    /// The verb, for messages.
    pub verb: &'static str,
    /// The working directory, which relative sources of binds start from.
    pub working_dir: PathBuf,
    /// The environment, for `-e NAME`.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Caller<'static> {
    /// This process.
    ///
    /// # Errors
    /// The working directory is gone or out of reach.
    pub fn current(verb: &'static str) -> std::io::Result<Self> {
        // A variable that is not UTF-8 counts as unset: a plan is JSON and could not hold it.
        Ok(Self { verb, working_dir: std::env::current_dir()?, variable: &|name| std::env::var(name).ok() })
    }
}

impl CreateArgs {
    /// Checks everything and makes it a request.
    ///
    /// # Errors
    /// A flag that is wrong, refused or in conflict with another: exit 125. No image: exit 1, as in
    /// Docker.
    pub fn into_request(self, caller: &Caller<'_>) -> Result<RunRequest, CliError> {
        let mut arguments = self.arguments.into_iter();
        let Some(image) = arguments.next() else {
            let verb = caller.verb;
            return Err(CliError::new(format!("'hostel {verb}' requires at least 1 argument"))
                .with_hint(format!("hostel {verb} [OPTIONS] IMAGE [COMMAND] [ARG...]")));
        };
        self.unsupported.check()?;
        let options = self.options.parse()?;
        let (labels, annotations) = self.labels.parse()?;
        let security = self.security.parse()?;
        let network = self.network.parse(&security)?;
        let (process, stdio) = self.process.parse(self.env.parse(caller)?, arguments.collect())?;
        Ok(RunRequest {
            image,
            name: options.name,
            cidfile: options.cidfile,
            pull: options.pull,
            platform: options.platform,
            quiet: options.quiet,
            auto_remove: options.auto_remove,
            secrets: options.secrets,
            restart: options.restart,
            healthcheck: self.health.parse()?,
            log_driver: options.log_driver,
            log: log::parse(options.log_driver, options.log_options, &labels, &process.env)?,
            labels,
            annotations,
            stdio,
            process,
            storage: self.storage.parse(caller)?,
            network,
            security,
            limits: self.resources.parse()?,
        })
    }
}

impl RunArgs {
    /// As [`CreateArgs::into_request`], with what only `run` has.
    ///
    /// # Errors
    /// As there.
    pub fn into_request(self, caller: &Caller<'_>) -> Result<RunRequest, CliError> {
        let mut request = self.create.into_request(caller)?;
        if self.detach && !request.stdio.attach.is_empty() {
            return Err(refused("conflicting options: cannot specify both --attach and --detach"));
        }
        request.stdio.detach = self.detach;
        request.stdio.detach_keys = self.detach_keys;
        request.stdio.sig_proxy = self.sig_proxy.unwrap_or(true);
        Ok(request)
    }
}

/// An error that ends `run` and `create` with 125.
fn refused(message: impl Into<String>) -> CliError {
    CliError::new(message).with_exit(Exit::Engine)
}

/// A wrong value, in the words of Docker's flag parser. `flag` is written as help shows it:
/// `-e, --env`.
fn invalid_argument(flag: &str, value: &str, reason: impl Display) -> CliError {
    refused(format!("invalid argument {value:?} for {flag:?} flag: {reason}"))
}

/// A flag that does not work yet, or cannot.
fn not_supported(flag: &str, reason: &str) -> CliError {
    refused(format!("{flag} is not supported in this version: {reason}"))
}

/// A path as the caller means it.
fn absolute(path: &str, working_dir: &Path) -> PathBuf {
    // Lexical, as Docker's: the path may not exist yet.
    let joined = working_dir.join(path);
    joined.components().fold(PathBuf::new(), |mut clean, component| {
        match component {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
        clean
    })
}

#[cfg(test)]
mod tests;
