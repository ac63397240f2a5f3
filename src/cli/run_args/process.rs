//! The command, its identity, its streams and its limits that are no cgroup's.

use clap::Args;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};

use super::{invalid_argument, refused};
use crate::cli::{CliError, Exit};
use crate::plan::request::{EnvSetting, ProcessRequest, StdioRequest, Stream};
use crate::plan::{KEEP_GROUPS, signal};

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct ProcessArgs {
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long, value_name = "STREAM")]
    attach: Vec<String>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Add additional groups to join
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    oom_score_adj: Option<String>,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    stop_timeout: Option<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Ulimit options
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
}

impl ProcessArgs {
    pub(super) fn parse(
        self,
        env: Vec<EnvSetting>,
        command: Vec<String>,
    ) -> Result<(ProcessRequest, StdioRequest), CliError> {
        if let Some(dir) = self.workdir.as_deref().filter(|dir| !dir.is_empty() && !dir.starts_with('/')) {
            return Err(refused(format!(
                "the working directory '{dir}' is invalid, it needs to be an absolute path"
            )));
        }
        if self.group_add.len() > 1 && self.group_add.iter().any(|group| group == KEEP_GROUPS) {
            return Err(refused(
                "the '--group-add keep-groups' option is not allowed with any other --group-add options",
            ));
        }
        let stop_signal = self.stop_signal.as_deref().filter(|text| !text.is_empty()).map(signal::parse);
        let process = ProcessRequest {
            command,
            entrypoint: self.entrypoint,
            env,
            working_dir: self.workdir.filter(|dir| !dir.is_empty()),
            user: self.user.filter(|user| !user.is_empty()),
            group_add: self.group_add,
            init: self.init,
            rlimits: self.ulimit.iter().map(|text| parse_ulimit(text)).collect::<Result<_, _>>()?,
            oom_score_adj: self.oom_score_adj.as_deref().map(parse_oom_score).transpose()?,
            stop_signal: stop_signal
                .transpose()
                .map_err(|error| CliError::from(error).with_exit(Exit::Engine))?,
            stop_timeout_s: self
                .stop_timeout
                .as_deref()
                .map(|text| parse_int("--stop-timeout", text))
                .transpose()?,
        };
        let stdio = StdioRequest {
            interactive: self.interactive,
            tty: self.tty,
            attach: parse_attach(&self.attach)?,
            sig_proxy: true,
            ..StdioRequest::default()
        };
        Ok((process, stdio))
    }
}

/// A whole number, or the flag parser's complaint.
pub(super) fn parse_int(flag: &str, text: &str) -> Result<i64, CliError> {
    text.parse().map_err(|_| {
        invalid_argument(flag, text, format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
    })
}

fn parse_attach(texts: &[String]) -> Result<Vec<Stream>, CliError> {
    let mut streams = texts
        .iter()
        .map(|text| match text.to_ascii_lowercase().as_str() {
            "stdin" => Ok(Stream::Stdin),
            "stdout" => Ok(Stream::Stdout),
            "stderr" => Ok(Stream::Stderr),
            _ => Err(invalid_argument("-a, --attach", text, "valid streams are STDIN, STDOUT and STDERR")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    streams.sort_unstable();
    streams.dedup();
    Ok(streams)
}

fn parse_oom_score(text: &str) -> Result<i32, CliError> {
    let score = parse_int("--oom-score-adj", text)?;
    i32::try_from(score)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| refused(format!("Invalid value {score}, range for oom score adj is [-1000, 1000]")))
}

/// `NAME=SOFT[:HARD]`, -1 for no limit.
pub(in crate::cli) fn parse_ulimit(text: &str) -> Result<PosixRlimit, CliError> {
    let invalid = |reason: String| invalid_argument("--ulimit", text, reason);
    let (name, limits) =
        text.split_once('=').ok_or_else(|| invalid(format!("invalid ulimit argument: {text}")))?;
    let kind = ulimit_kind(name).ok_or_else(|| invalid(format!("invalid ulimit type: {name}")))?;
    let number = |digits: &str| {
        digits
            .parse::<i64>()
            .map_err(|_| invalid(format!("strconv.ParseInt: parsing {digits:?}: invalid syntax")))
    };
    let mut parts = limits.split(':');
    let soft = number(parts.next().unwrap_or_default())?;
    let hard = parts.next().map_or(Ok(soft), number)?;
    if parts.next().is_some() {
        return Err(invalid(format!(
            "too many limit values - {limits}, can only have up to two, `soft[:hard]`"
        )));
    }
    if hard != -1 && (soft == -1 || soft > hard) {
        let soft = if soft == -1 { "soft: -1 (unlimited), hard:".into() } else { format!("{soft} >") };
        return Err(invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} {hard}"
        )));
    }
    let limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    PosixRlimitBuilder::default()
        .typ(kind)
        .soft(limit(soft))
        .hard(limit(hard))
        .build()
        .map_err(|error| invalid(error.to_string()))
}

fn ulimit_kind(name: &str) -> Option<PosixRlimitType> {
    Some(match name {
        "as" => PosixRlimitType::RlimitAs,
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        let table = [
            ("nofile=1024", 1024, 1024),
            ("nofile=1024:2048", 1024, 2048),
            ("core=-1", u64::MAX, u64::MAX),
            ("core=0:-1", 0, u64::MAX),
        ];
        for (text, soft, hard) in table {
            let limit = parse_ulimit(text).expect(text);
            assert_eq!((limit.soft(), limit.hard()), (soft, hard), "{text}");
        }
        let table = [
            ("nofile", "invalid ulimit argument: nofile"),
            ("files=1", "invalid ulimit type: files"),
            ("nofile=x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
            ("nofile=1:2:3", "too many limit values - 1:2:3, can only have up to two, `soft[:hard]`"),
            ("nofile=2:1", "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
            (
                "nofile=-1:1",
                "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: 1",
            ),
        ];
        for (text, reason) in table {
            let error = parse_ulimit(text).expect_err(text);
            assert_eq!(error.message(), format!("invalid argument {text:?} for \"--ulimit\" flag: {reason}"));
            assert_eq!(error.exit, Exit::Engine);
        }
    }

    #[test]
    fn scores_and_streams() {
        assert_eq!(parse_oom_score("-500").ok(), Some(-500));
        assert_eq!(
            parse_oom_score("1001").map_err(|e| e.message().to_owned()),
            Err("Invalid value 1001, range for oom score adj is [-1000, 1000]".into())
        );
        let streams = ["STDERR".to_owned(), "stdin".into(), "stderr".into()];
        assert_eq!(parse_attach(&streams).ok(), Some(vec![Stream::Stdin, Stream::Stderr]));
        assert_eq!(
            parse_attach(&["tty".into()]).map_err(|e| e.message().to_owned()),
            Err("invalid argument \"tty\" for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
                .into())
        );
    }
}
