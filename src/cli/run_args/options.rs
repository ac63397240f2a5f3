//! What concerns the container as a whole: its name, its image's pull, its log, its end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::{invalid_argument, log, not_supported, refused, secret};
use crate::cli::{CliError, Exit};
use crate::id::Name;
use crate::image::Platform;
use crate::plan::request::{LogDriver, PullPolicy, SecretRequest};
use crate::plan::restart::RestartPolicy;

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct OptionArgs {
    /// Write the container ID to the file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Skip image verification (accepted: there is none to skip)
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Logging driver for the container (json-file, local, journald or none)
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Log driver options
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Assign a name to the container
    #[arg(long)]
    name: Option<String>,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Pull image before running ("always", "missing", "never")
    #[arg(long, value_name = "WHEN")]
    pull: Option<String>,
    /// Suppress the pull output
    #[arg(short, long)]
    quiet: bool,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Secret to hand to the container, as /run/secrets/NAME or as a variable
    #[arg(long, value_name = "NAME[,OPTION=VALUE...]")]
    secret: Vec<String>,
    /// Automatically remove the container and its associated anonymous volumes when it exits
    #[arg(long)]
    rm: bool,
}

/// What they say.
pub(super) struct Options {
    pub(super) name: Option<Name>,
    pub(super) cidfile: Option<PathBuf>,
    pub(super) pull: PullPolicy,
    pub(super) platform: Option<Platform>,
    pub(super) quiet: bool,
    pub(super) auto_remove: bool,
    pub(super) secrets: Vec<SecretRequest>,
    pub(super) restart: RestartPolicy,
    pub(super) log_driver: LogDriver,
    pub(super) log_options: BTreeMap<String, String>,
}

impl OptionArgs {
    pub(super) fn parse(self) -> Result<Options, CliError> {
        let restart = parse_restart(self.restart.as_deref(), self.rm)?;
        // The slash is Docker's own spelling of names in `inspect`.
        let name = self.name.map(|name| name.strip_prefix('/').unwrap_or(&name).parse());
        Ok(Options {
            name: name.transpose().map_err(|error| CliError::from(error).with_exit(Exit::Engine))?,
            cidfile: self.cidfile,
            platform: self.platform.as_deref().map(parse_platform).transpose()?,
            pull: self.pull.as_deref().map_or(Ok(PullPolicy::default()), parse_pull)?,
            quiet: self.quiet,
            auto_remove: self.rm,
            secrets: self.secret.iter().map(|text| secret::parse(text)).collect::<Result<_, _>>()?,
            restart,
            log_driver: parse_driver(self.log_driver.as_deref())?,
            log_options: log::options(&self.log_opt)?,
        })
    }
}

fn parse_pull(text: &str) -> Result<PullPolicy, CliError> {
    match text {
        "" => Ok(PullPolicy::Missing),
        text => text.parse().map_err(|reason: String| refused(reason)),
    }
}

fn parse_driver(driver: Option<&str>) -> Result<LogDriver, CliError> {
    match driver {
        None | Some("" | "json-file" | "k8s-file") => Ok(LogDriver::JsonFile),
        Some("local") => Ok(LogDriver::Local),
        Some("journald") => Ok(LogDriver::Journald),
        Some("none") => Ok(LogDriver::None),
        Some(other) => {
            let reason = format!(
                "the log driver {other:?} does not exist here; use json-file, local, journald or none"
            );
            Err(not_supported("--log-driver", &reason))
        }
    }
}

fn parse_restart(policy: Option<&str>, auto_remove: bool) -> Result<RestartPolicy, CliError> {
    let policy = RestartPolicy::parse(policy.unwrap_or_default())
        .map_err(|error| CliError::from(error).with_exit(Exit::Engine))?;
    if auto_remove && policy != RestartPolicy::No {
        return Err(refused("conflicting options: cannot specify both --restart and --rm"));
    }
    Ok(policy)
}

fn parse_platform(text: &str) -> Result<Platform, CliError> {
    text.parse().map_err(|reason| invalid_argument("--platform", text, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies() {
        assert_eq!(parse_restart(None, true).ok(), Some(RestartPolicy::No));
        assert_eq!(parse_restart(Some("on-failure:2"), false).ok(), Some(RestartPolicy::OnFailure(2)));
        let error = parse_restart(Some("always"), true).expect_err("conflict");
        let message = "conflicting options: cannot specify both --restart and --rm";
        assert_eq!((error.message(), error.exit), (message, Exit::Engine));
        assert_eq!(parse_restart(Some("sometimes"), false).expect_err("unknown").exit, Exit::Engine);
    }

    #[test]
    fn platforms() {
        for (text, wanted) in
            [("linux/arm64", "linux/arm64"), ("aarch64", "linux/arm64"), ("LINUX/s390x", "linux/s390x")]
        {
            assert_eq!(parse_platform(text).ok().map(|found| found.to_string()), Some(wanted.to_owned()));
        }
        for bad in ["linux/", "/", "", "a/b/c/d"] {
            assert_eq!(parse_platform(bad).expect_err(bad).exit, Exit::Engine);
        }
    }

    #[test]
    fn pulls_and_logs() {
        assert_eq!(parse_pull("never").ok(), Some(PullPolicy::Never));
        assert_eq!(
            parse_pull("maybe").map_err(|e| e.message().to_owned()),
            Err("invalid pull option: 'maybe': must be one of \"always\", \"missing\" or \"never\"".into())
        );
        assert_eq!(parse_driver(Some("none")).ok(), Some(LogDriver::None));
        assert!(parse_driver(Some("syslog")).is_err());
    }
}
