//! The command line: Docker's verbs and flags, one file a verb.
//!
//! A verb's file has its `Args` (clap) and a `run` that takes the [`Context`]; it turns what was
//! typed into a request, calls the modules below, and prints. Data goes to stdout, everything else
//! to stderr. `clap` types stay in this module.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use jiff::Timestamp;

use crate::sandbox::ahead::Ahead;
use crate::store::Store;
use crate::store::containers::{Containers, Record, State, Status};
use crate::sys;

pub mod attach;
pub mod build;
pub mod builder;
pub mod cdi;
pub mod client_config;
pub mod commit;
pub mod complete;
pub(crate) mod config;
pub mod cp;
pub mod create;
pub mod df;
pub mod diff;
pub mod doctor;
pub mod error;
pub mod events;
pub mod exec;
pub mod export;
pub mod filter;
pub mod flag_errors;
pub mod format;
pub mod harmless;
pub mod help;
pub mod images;
pub mod import;
pub mod info;
pub mod inspect;
pub mod kill;
mod known_elsewhere;
pub mod load;
pub mod login;
pub mod logs;
pub mod mount;
pub mod network;
pub mod pause;
pub mod port;
pub mod progress;
pub mod prune;
pub mod ps;
pub mod pull;
pub mod push;
pub mod relay;
pub mod rename;
pub mod restart;
pub mod revive;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod run_args;
pub mod save;
pub mod search;
pub mod secret;
pub mod start;
pub mod stats;
pub mod stop;
pub mod switches;
pub mod system;
pub mod tag;
pub mod top;
pub mod unshare;
pub mod update;
pub mod verify;
pub mod version;
pub mod volume;
pub mod wait;

pub use error::{CliError, Exit};

/// What every verb gets: the global flags, decided.
#[derive(Debug)]
pub struct Context {
    /// The store's directory (`--root`, `$HOSTEL_ROOT`, config.toml, `$XDG_DATA_HOME/hostel`).
    pub root: PathBuf,
}

/// What a verb's `run` returns.
pub type Outcome = Result<Exit, CliError>;

/// A rootless container engine in one binary
#[derive(Parser, Debug)]
#[command(name = "hostel", version, max_term_width = 100)]
struct Cli {
    /// Directory of images, containers and volumes [default: $HOSTEL_ROOT, else config.toml's root, else $XDG_DATA_HOME/hostel]
    #[arg(long, global = false, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Set the logging level
    #[arg(short, long, value_name = "LEVEL", default_value = "warn", value_parser = ["trace", "debug", "info", "warn", "error", "fatal"])]
    log_level: String,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    debug: bool,
    #[command(subcommand)]
    verb: Verb,
}

// Deferred: only the verb that was typed is built, which saves a millisecond of each command.
#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum Verb {
    Run(Box<run::Args>),
    Create(Box<create::Args>),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Kill(kill::Args),
    Rm(rm::Args),
    Ps(ps::Args),
    Exec(exec::Args),
    Attach(attach::Args),
    Build(Box<build::Args>),
    Logs(logs::Args),
    Wait(wait::Args),
    Port(port::Args),
    Pause(pause::PauseArgs),
    Unpause(pause::UnpauseArgs),
    Top(top::Args),
    Stats(stats::Args),
    Update(Box<update::Args>),
    Rename(rename::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Commit(commit::Args),
    Cp(cp::Args),
    Export(export::Args),
    Mount(mount::Args),
    #[command(visible_alias = "umount")]
    Unmount(mount::UnmountArgs),
    Unshare(unshare::Args),
    Import(import::Args),
    Events(events::Args),
    Images(images::Args),
    Load(load::Args),
    Save(save::Args),
    Pull(pull::Args),
    Push(push::Args),
    Rmi(rmi::Args),
    Tag(tag::Args),
    History(images::HistoryArgs),
    /// Build images
    #[command(subcommand)]
    Buildx(BuildxVerb),
    /// Manage builds
    #[command(subcommand)]
    Builder(BuildxVerb),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerVerb),
    /// Manage images
    #[command(subcommand)]
    Image(ImageVerb),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Verb),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volume::Verb),
    Login(login::Args),
    Logout(login::LogoutArgs),
    Search(search::Args),
    /// Manage image manifests and manifest lists
    #[command(subcommand)]
    Manifest(search::ManifestVerb),
    /// Manage secrets
    #[command(subcommand)]
    Secret(secret::Verb),
    /// Manage what the engine keeps on disk
    #[command(subcommand)]
    System(system::Verb),
    /// Generate units for systemd
    #[command(subcommand)]
    Generate(GenerateVerb),
    Version(version::Args),
    Info(info::Args),
    Doctor(doctor::Args),
    Completion(complete::Args),
    /// Write a manual page for every command into a directory
    #[command(hide = true)]
    Man(help::ManArgs),
    #[command(name = "__complete", hide = true)]
    Query(complete::QueryArgs),
}

#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum BuildxVerb {
    Build(Box<build::Args>),
    Prune(builder::PruneArgs),
    Du(builder::UsageArgs),
}

#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum GenerateVerb {
    Systemd(revive::UnitArgs),
}

#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum ContainerVerb {
    Run(Box<run::Args>),
    Create(Box<create::Args>),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Kill(kill::Args),
    #[command(visible_alias = "remove")]
    Rm(rm::Args),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Args),
    Exec(exec::Args),
    Attach(attach::Args),
    Logs(logs::Args),
    Wait(wait::Args),
    Port(port::Args),
    Pause(pause::PauseArgs),
    Unpause(pause::UnpauseArgs),
    Top(top::Args),
    Stats(stats::Args),
    Update(Box<update::Args>),
    Rename(rename::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Commit(commit::Args),
    Cp(cp::Args),
    Export(export::Args),
    Mount(mount::Args),
    #[command(visible_alias = "umount")]
    Unmount(mount::UnmountArgs),
    Prune(prune::Args),
}

#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum ImageVerb {
    Build(Box<build::Args>),
    #[command(visible_alias = "list")]
    Ls(images::Args),
    Load(load::Args),
    Save(save::Args),
    Pull(pull::Args),
    Push(push::Args),
    #[command(visible_alias = "remove")]
    Rm(rmi::Args),
    Tag(tag::Args),
    Import(import::Args),
    Inspect(images::InspectArgs),
    Prune(images::PruneArgs),
    History(images::HistoryArgs),
    Verify(verify::Args),
    Mount(mount::Args),
    #[command(visible_alias = "umount")]
    Unmount(mount::UnmountArgs),
}

impl From<ContainerVerb> for Verb {
    fn from(verb: ContainerVerb) -> Self {
        match verb {
            ContainerVerb::Run(args) => Self::Run(args),
            ContainerVerb::Create(args) => Self::Create(args),
            ContainerVerb::Start(args) => Self::Start(args),
            ContainerVerb::Stop(args) => Self::Stop(args),
            ContainerVerb::Restart(args) => Self::Restart(args),
            ContainerVerb::Kill(args) => Self::Kill(args),
            ContainerVerb::Rm(args) => Self::Rm(args),
            ContainerVerb::Ls(args) => Self::Ps(args),
            ContainerVerb::Exec(args) => Self::Exec(args),
            ContainerVerb::Attach(args) => Self::Attach(args),
            ContainerVerb::Logs(args) => Self::Logs(args),
            ContainerVerb::Wait(args) => Self::Wait(args),
            ContainerVerb::Port(args) => Self::Port(args),
            ContainerVerb::Pause(args) => Self::Pause(args),
            ContainerVerb::Unpause(args) => Self::Unpause(args),
            ContainerVerb::Top(args) => Self::Top(args),
            ContainerVerb::Stats(args) => Self::Stats(args),
            ContainerVerb::Update(args) => Self::Update(args),
            ContainerVerb::Rename(args) => Self::Rename(args),
            ContainerVerb::Diff(args) => Self::Diff(args),
            ContainerVerb::Commit(args) => Self::Commit(args),
            ContainerVerb::Cp(args) => Self::Cp(args),
            ContainerVerb::Export(args) => Self::Export(args),
            ContainerVerb::Mount(args) => Self::Mount(args),
            ContainerVerb::Unmount(args) => Self::Unmount(args),
            other @ (ContainerVerb::Inspect(_) | ContainerVerb::Prune(_)) => Self::Container(other),
        }
    }
}

/// Runs the command line and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    // A reader that goes away ends a command quietly, as it does every other program of a pipeline.
    sys::process::default_sigpipe();
    sys::fd::remember_inherited();
    sys::fault::begin();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if asks_for_overview(&arguments) {
        let mut command = command();
        command.build();
        print!("{}", help::overview(&command));
        return ExitCode::SUCCESS;
    }
    let ahead = run::make_ahead(&arguments);
    let cli = match switches::try_parse_from::<Cli>(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let outcome = configure(cli.root).and_then(|ctx| dispatch(&ctx, cli.verb, ahead));
    match outcome {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            eprintln!("{}", error.render());
            ExitCode::from(error.exit.code())
        }
    }
}

/// Decides where things are, and says what was odd about it.
fn configure(root: Option<PathBuf>) -> Result<Context, CliError> {
    let mut config = config::load(root)?;
    config.settings.additional.retain(|other| match Store::check_shared(other) {
        Ok(()) => true,
        // One store that is away must not stop work with the others.
        Err(error) => {
            let reason = CliError::from(error);
            config.warnings.push(format!("additional image store not used: {}", reason.message()));
            false
        }
    });
    config.warnings.iter().for_each(|warning| eprintln!("Warning: {warning}"));
    config.settings.install();
    Ok(Context { root: config.root })
}

/// The whole command line as clap has it.
fn command() -> clap::Command {
    Cli::command()
}

/// `hostel`, `hostel help` and the like: what clap would list in one long row comes in groups.
fn asks_for_overview(arguments: &[OsString]) -> bool {
    match arguments {
        [_] => true,
        [_, word] => ["help", "--help", "-h"].iter().any(|known| word == known),
        _ => false,
    }
}

/// Help goes to stdout and is a success; a wrong flag ends with 125, as Docker's.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let mut command = Cli::command();
    command.build();
    if let Some(complaint) = flag_errors::explain(error, &command, arguments) {
        eprintln!("{}", complaint.render());
        return ExitCode::from(complaint.exit.code());
    }
    // A closed stdout or stderr leaves nobody to tell.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Exit::Engine.code() } else { Exit::Success.code() })
}

fn dispatch(ctx: &Context, verb: Verb, ahead: Option<Ahead>) -> Outcome {
    match verb {
        Verb::Run(args) => run::run(ctx, *args, ahead),
        Verb::Create(args) => create::run(ctx, *args),
        Verb::Start(args) => start::run(ctx, &args),
        Verb::Stop(args) => stop::run(ctx, &args),
        Verb::Restart(args) => restart::run(ctx, &args),
        Verb::Kill(args) => kill::run(ctx, &args),
        Verb::Rm(args) => rm::run(ctx, &args),
        Verb::Ps(args) => ps::run(ctx, &args),
        Verb::Exec(args) => exec::run(ctx, &args),
        Verb::Attach(args) => attach::run(ctx, &args),
        Verb::Build(args)
        | Verb::Image(ImageVerb::Build(args))
        | Verb::Buildx(BuildxVerb::Build(args))
        | Verb::Builder(BuildxVerb::Build(args)) => build::run(ctx, &args),
        Verb::Buildx(BuildxVerb::Prune(args)) | Verb::Builder(BuildxVerb::Prune(args)) => {
            builder::prune(ctx, &args)
        }
        Verb::Buildx(BuildxVerb::Du(args)) | Verb::Builder(BuildxVerb::Du(args)) => {
            builder::usage(ctx, &args)
        }
        Verb::Logs(args) => logs::run(ctx, &args),
        Verb::Wait(args) => wait::run(ctx, &args),
        Verb::Port(args) => port::run(ctx, &args),
        Verb::Pause(args) => pause::pause(ctx, &args),
        Verb::Unpause(args) => pause::unpause(ctx, &args),
        Verb::Events(args) => events::run(ctx, &args),
        Verb::Top(args) => top::run(ctx, &args),
        Verb::Stats(args) => stats::run(ctx, &args),
        Verb::Update(args) => update::run(ctx, *args),
        Verb::Generate(GenerateVerb::Systemd(args)) => revive::generate_systemd(ctx, &args),
        Verb::Rename(args) => rename::run(ctx, &args),
        Verb::Inspect(args) => inspect::run(ctx, &args),
        Verb::Diff(args) => diff::run(ctx, &args),
        Verb::Commit(args) => commit::run(ctx, &args),
        Verb::Cp(args) => cp::run(ctx, &args),
        Verb::Export(args) => export::run(ctx, &args),
        Verb::Mount(args) | Verb::Image(ImageVerb::Mount(args)) => mount::run(ctx, &args),
        Verb::Unmount(args) | Verb::Image(ImageVerb::Unmount(args)) => mount::unmount(ctx, &args),
        Verb::Unshare(args) => unshare::run(ctx, &args),
        Verb::Import(args) | Verb::Image(ImageVerb::Import(args)) => import::run(ctx, &args),
        Verb::Container(ContainerVerb::Inspect(args)) => inspect::run_container(ctx, &args),
        Verb::Container(ContainerVerb::Prune(args)) => prune::run(ctx, &args),
        Verb::Container(other) => dispatch(ctx, other.into(), ahead),
        Verb::Images(args) | Verb::Image(ImageVerb::Ls(args)) => images::run(ctx, &args),
        Verb::Load(args) | Verb::Image(ImageVerb::Load(args)) => load::run(ctx, &args),
        Verb::Save(args) | Verb::Image(ImageVerb::Save(args)) => save::run(ctx, &args),
        Verb::Pull(args) | Verb::Image(ImageVerb::Pull(args)) => pull::run(ctx, &args),
        Verb::Push(args) | Verb::Image(ImageVerb::Push(args)) => push::run(ctx, &args),
        Verb::Rmi(args) | Verb::Image(ImageVerb::Rm(args)) => rmi::run(ctx, &args),
        Verb::Tag(args) | Verb::Image(ImageVerb::Tag(args)) => tag::run(ctx, &args),
        Verb::Image(ImageVerb::Inspect(args)) => images::inspect(ctx, &args),
        Verb::Image(ImageVerb::Prune(args)) => images::prune(ctx, &args),
        Verb::History(args) | Verb::Image(ImageVerb::History(args)) => images::history(ctx, &args),
        Verb::Image(ImageVerb::Verify(args)) => verify::run(ctx, &args),
        Verb::Network(verb) => network::run(ctx, verb),
        Verb::Volume(verb) => volume::run(ctx, verb),
        Verb::Login(args) => login::run(ctx, &args),
        Verb::Logout(args) => login::logout(ctx, &args),
        Verb::Search(args) => search::run(ctx, &args),
        Verb::Manifest(verb) => search::manifest(ctx, &verb),
        Verb::System(verb) => system::run(ctx, verb),
        Verb::Secret(verb) => secret::run(ctx, verb),
        Verb::Version(args) => version::run(ctx, &args),
        Verb::Completion(args) => complete::script(&args),
        Verb::Query(args) => complete::answer(ctx, &args),
        Verb::Man(args) => help::write_manual(&args),
        Verb::Doctor(args) => doctor::run(ctx, &args),
        Verb::Info(args) => info::run(ctx, &args),
    }
}

/// Does something for each argument; one that fails is told and the others are done all the same.
fn each(references: &[String], mut work: impl FnMut(&str) -> Result<(), CliError>) -> Outcome {
    let mut exit = Exit::Success;
    for reference in references {
        if let Err(error) = work(reference) {
            eprintln!("{}", error.render());
            exit = if references.len() == 1 { error.exit } else { Exit::Failure };
        }
    }
    Ok(exit)
}

/// The state of a container that has to run.
fn running(containers: &Containers, record: &Record) -> Result<State, CliError> {
    match containers.status(&record.id)? {
        Status::Running(state) => Ok(state),
        Status::Restarting(..) => Err(CliError::new(format!(
            "Container {} is restarting, wait until the container is running",
            record.id
        ))),
        _ => Err(CliError::new(format!("container {} is not running", record.id))),
    }
}

/// Reads a time (RFC 3339, a date, seconds since 1970) or a duration before now (`42m`, `1h30m`).
fn until(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    if let Ok(date) = text.parse::<jiff::civil::DateTime>() {
        return jiff::tz::TimeZone::UTC.to_timestamp(date).ok();
    }
    if let Some((seconds, fraction)) = text.split_once('.').or(Some((text, "0")))
        && let (Ok(seconds), true) =
            (seconds.parse::<i64>(), fraction.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Timestamp::from_second(seconds).ok();
    }
    let ago: jiff::SignedDuration = text.parse().ok()?;
    Timestamp::now().checked_sub(ago).ok()
}
