//! Dockerfile instructions that change an image's configuration alone: those of a build, and those of
//! `--change`, without one.
//!
//! The grammar is that of Dockerfiles (dockerfile reference, "Shell and exec form", "Environment
//! replacement"). They act on the configuration's JSON, so that fields this engine does not know
//! survive.

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::dockerfile::expand::ExpandError;
pub use super::dockerfile::expand::Scope;
use super::dockerfile::lines;
use super::port::parse_range;
use super::{mount, signal};

/// A configuration: the `config` object of an image's JSON (image-spec, config.md).
pub type Config = Map<String, Value>;

/// What is wrong with an instruction.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InstructionError {
    /// Not one of those that can be given. The words are Docker's.
    #[error(
        "{0} is not a valid change command: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR are"
    )]
    Unknown(String),
    /// Nothing behind the instruction's name.
    #[error("{0} requires at least one argument")]
    NoArgument(&'static str),
    /// More than one word where one is allowed.
    #[error("{0} requires exactly one argument")]
    OneArgument(&'static str),
    /// Not `name=value`.
    #[error("Syntax error - can't find = in {word:?}. Must be of the form: name=value")]
    NoEquals {
        /// The word.
        word: String,
    },
    /// A value without a name.
    #[error("{0} names can not be blank")]
    BlankName(&'static str),
    /// A quote that is not closed.
    #[error("unexpected end of statement while looking for matching quote in {0:?}")]
    Quote(String),
    /// A word that cannot be expanded.
    #[error("failed to process: {0}")]
    Expand(#[from] ExpandError),
    /// SHELL of what is no JSON array.
    #[error("SHELL requires the arguments to be in JSON form")]
    Shell,
    /// EXPOSE of what is no port.
    #[error("Invalid containerPort: {0}")]
    Port(String),
    /// STOPSIGNAL of what is no signal.
    #[error("Invalid signal: {0}")]
    Signal(String),
    /// ONBUILD of an instruction that cannot wait.
    #[error("{0} isn't allowed as an ONBUILD trigger")]
    Trigger(String),
    /// HEALTHCHECK with something else.
    #[error("HEALTHCHECK: {0}")]
    HealthCheck(String),
}

type Result<T> = std::result::Result<T, InstructionError>;

impl InstructionError {
    /// Whether the text is wrong whatever its variables stand for.
    #[must_use]
    pub fn is_of_form(&self) -> bool {
        match self {
            Self::Expand(error) => !matches!(error, ExpandError::Required { .. } | ExpandError::Limit),
            Self::OneArgument(_)
            | Self::NoArgument(_)
            | Self::Port(_)
            | Self::Signal(_)
            | Self::BlankName(_) => false,
            _ => true,
        }
    }
}

/// Applies instructions in order. A text may have several lines, each an instruction.
///
/// # Errors
/// The first instruction that is wrong; the configuration may have changed then.
pub fn apply(config: &mut Config, changes: &[String]) -> Result<()> {
    const CHANGES: [&str; 11] = [
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "LABEL",
        "ONBUILD",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ];
    let mut cmd_is_set = false;
    for text in changes {
        for line in logical_lines(text) {
            let (name, rest) = line.split_once([' ', '\t']).unwrap_or((&line, ""));
            let (name, rest) = (name.to_ascii_uppercase(), rest.trim());
            if !CHANGES.contains(&name.as_str()) {
                return Err(InstructionError::Unknown(name));
            }
            // Docker's rule: the image's command belonged to the old entrypoint.
            if name == "ENTRYPOINT" && !cmd_is_set {
                config.remove("Cmd");
            }
            cmd_is_set |= name == "CMD";
            let env = config.get("Env").cloned().unwrap_or_default();
            let scope = Scope { variable: &|name| variable(&env, name), escape: '\\' };
            apply_one(config, &name, rest, scope)?;
        }
    }
    Ok(())
}

/// Applies one instruction, its name in capitals. ENTRYPOINT leaves the command alone.
///
/// # Errors
/// It is wrong, or none of those that change a configuration.
pub fn apply_one(config: &mut Config, name: &str, rest: &str, scope: Scope<'_>) -> Result<()> {
    match name {
        "CMD" => set(config, "Cmd", command(config, rest)),
        "ENTRYPOINT" => set(config, "Entrypoint", command(config, rest)),
        "ENV" => env(config, scope, rest)?,
        "EXPOSE" => expose(config, scope, rest)?,
        "HEALTHCHECK" => health_check(config, rest)?,
        "LABEL" => label(config, scope, rest)?,
        "ONBUILD" => on_build(config, rest)?,
        "SHELL" => {
            let words = exec_form(rest).filter(|words| !words.is_empty()).ok_or(InstructionError::Shell)?;
            set(config, "Shell", json!(words));
        }
        // An image's author, which is no part of this.
        "MAINTAINER" => drop(one_word(scope, "MAINTAINER", rest)?),
        "STOPSIGNAL" => {
            let text = one_word(scope, "STOPSIGNAL", rest)?;
            signal::parse(&text).map_err(|_| InstructionError::Signal(text.clone()))?;
            set(config, "StopSignal", json!(text));
        }
        "USER" => {
            let user = one_word(scope, "USER", rest)?;
            set(config, "User", json!(user));
        }
        "VOLUME" => volume(config, scope, rest)?,
        "WORKDIR" => work_dir(config, scope, rest)?,
        _ => return Err(InstructionError::Unknown(name.to_owned())),
    }
    Ok(())
}

fn set(config: &mut Config, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

/// Lines with their continuations, without comments and empty ones.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        match trimmed.strip_suffix('\\') {
            Some(start) => current.push_str(start),
            None => {
                current.push_str(trimmed);
                lines.push(std::mem::take(&mut current));
            }
        }
    }
    if !current.trim().is_empty() {
        lines.push(current);
    }
    lines
}

/// A JSON array of strings, if it is one.
fn exec_form(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

/// The exec form as it is, the shell form behind the configuration's shell.
fn command(config: &Config, text: &str) -> Value {
    match exec_form(text) {
        Some(words) => json!(words),
        None if text.is_empty() => json!([]),
        None => {
            let shell = config.get("Shell").and_then(Value::as_array).filter(|shell| !shell.is_empty());
            let mut words = shell.cloned().unwrap_or_else(|| vec![json!("/bin/sh"), json!("-c")]);
            words.push(json!(text));
            Value::Array(words)
        }
    }
}

/// Adds to the object under a key, which is made where there is none.
fn insert(config: &mut Config, key: &str, name: String, value: Value) {
    match config.entry(key.to_owned()).or_insert_with(|| json!({})) {
        Value::Object(object) => drop(object.insert(name, value)),
        other => *other = json!({ name: value }),
    }
}

/// `name=value` words, or the old form: a name, and the rest of the line.
pub(crate) fn pairs(scope: Scope<'_>, what: &'static str, text: &str) -> Result<Vec<(String, String)>> {
    let raw = split_words(text, scope.escape)?;
    let first = raw.first().ok_or(InstructionError::NoArgument(what))?;
    if !first.contains('=') {
        let (name, value) =
            text.split_once([' ', '\t']).ok_or_else(|| InstructionError::NoEquals { word: first.clone() })?;
        return Ok(vec![(expand(scope, name)?, expand(scope, value.trim())?)]);
    }
    raw.iter()
        .map(|word| {
            let (name, value) =
                word.split_once('=').ok_or_else(|| InstructionError::NoEquals { word: word.clone() })?;
            if name.is_empty() {
                return Err(InstructionError::BlankName(what));
            }
            Ok((expand(scope, name)?, expand(scope, value)?))
        })
        .collect()
}

fn env(config: &mut Config, scope: Scope<'_>, text: &str) -> Result<()> {
    let pairs = pairs(scope, "ENV", text)?;
    let entry = config.entry("Env").or_insert_with(|| json!([]));
    if !entry.is_array() {
        *entry = json!([]);
    }
    let Value::Array(list) = entry else { return Ok(()) };
    for (name, value) in pairs {
        let is_same = |entry: &Value| {
            entry.as_str().and_then(|text| text.split_once('=')).is_some_and(|(known, _)| known == name)
        };
        let new = json!(format!("{name}={value}"));
        match list.iter_mut().find(|entry| is_same(entry)) {
            Some(old) => *old = new,
            None => list.push(new),
        }
    }
    Ok(())
}

fn label(config: &mut Config, scope: Scope<'_>, text: &str) -> Result<()> {
    for (name, value) in pairs(scope, "LABEL", text)? {
        insert(config, "Labels", name, json!(value));
    }
    Ok(())
}

fn expose(config: &mut Config, scope: Scope<'_>, text: &str) -> Result<()> {
    let words = words(scope, text)?;
    if words.is_empty() {
        return Err(InstructionError::NoArgument("EXPOSE"));
    }
    for word in words {
        let wrong = || InstructionError::Port(word.clone());
        let (ports, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
        let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(wrong());
        }
        // Docker takes what `run -p` takes, and keeps the container's port of it.
        let (published, ports) = ports.rsplit_once(':').unwrap_or(("", ports));
        let (address, host) = match published.rsplit_once(':') {
            _ if published.ends_with(']') => (published, ""),
            Some((address, host)) => (address, host),
            None => ("", published),
        };
        let address = address.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(address);
        let is_address = address.is_empty() || address.parse::<std::net::IpAddr>().is_ok();
        if !is_address || !(host.is_empty() || parse_range(host).is_ok()) {
            return Err(wrong());
        }
        let range = parse_range(ports).map_err(|_| wrong())?;
        for port in range {
            insert(config, "ExposedPorts", format!("{port}/{protocol}"), json!({}));
        }
    }
    Ok(())
}

fn volume(config: &mut Config, scope: Scope<'_>, text: &str) -> Result<()> {
    let paths = match exec_form(text) {
        Some(paths) => paths.iter().map(|path| expand(scope, path)).collect::<Result<Vec<_>>>()?,
        None => words(scope, text)?,
    };
    if paths.is_empty() || paths.iter().any(String::is_empty) {
        return Err(InstructionError::NoArgument("VOLUME"));
    }
    for path in paths {
        insert(config, "Volumes", path, json!({}));
    }
    Ok(())
}

fn work_dir(config: &mut Config, scope: Scope<'_>, text: &str) -> Result<()> {
    let asked = one_word(scope, "WORKDIR", text)?;
    let current = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
    let path = if asked.starts_with('/') { asked } else { format!("/{current}/{asked}") };
    let clean = mount::clean_destination(&path).map_or(path, |path| path.display().to_string());
    set(config, "WorkingDir", json!(clean));
    Ok(())
}

fn on_build(config: &mut Config, text: &str) -> Result<()> {
    let trigger = text.split_ascii_whitespace().next().ok_or(InstructionError::NoArgument("ONBUILD"))?;
    let trigger = trigger.to_ascii_uppercase();
    if matches!(trigger.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
        return Err(InstructionError::Trigger(trigger));
    }
    let entry = config.entry("OnBuild").or_insert_with(|| json!([]));
    if !entry.is_array() {
        *entry = json!([]);
    }
    if let Value::Array(list) = entry {
        list.push(json!(text));
    }
    Ok(())
}

/// `HEALTHCHECK [--interval=..] [--timeout=..] [--start-period=..] [--start-interval=..] [--retries=..] CMD command`,
/// or `HEALTHCHECK NONE`. Times are kept in nanoseconds.
fn health_check(config: &mut Config, text: &str) -> Result<()> {
    let wrong = |what: String| InstructionError::HealthCheck(what);
    let mut check = Map::new();
    let mut rest = text.trim_start();
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once([' ', '\t']).unwrap_or((option, ""));
        let (name, value) =
            option.split_once('=').ok_or_else(|| wrong(format!("--{option} needs a value")))?;
        let key = match name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => "Retries",
            _ => return Err(wrong(format!("unknown flag --{name}"))),
        };
        let number =
            if key == "Retries" { value.parse::<u32>().ok().map(i64::from) } else { nanoseconds(value) };
        let number = number.ok_or_else(|| wrong(format!("{value:?} is no value for --{name}")))?;
        check.insert(key.to_owned(), json!(number));
        rest = after.trim_start();
    }
    let (kind, arguments) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
    let arguments = arguments.trim();
    let test = match kind.to_ascii_uppercase().as_str() {
        "NONE" if arguments.is_empty() => json!(["NONE"]),
        "NONE" => return Err(wrong("NONE takes no arguments".to_owned())),
        "CMD" if arguments.is_empty() => return Err(wrong("missing command after CMD".to_owned())),
        "CMD" => match exec_form(arguments) {
            Some(mut words) => {
                words.insert(0, "CMD".to_owned());
                json!(words)
            }
            None => json!(["CMD-SHELL", arguments]),
        },
        "" => return Err(InstructionError::NoArgument("HEALTHCHECK")),
        other => return Err(wrong(format!("unknown type {other:?}, try CMD"))),
    };
    check.insert("Test".to_owned(), test);
    set(config, "Healthcheck", Value::Object(check));
    Ok(())
}

/// A duration as Go writes it: `1m30s`, `500ms`.
fn nanoseconds(text: &str) -> Option<i64> {
    let mut total: f64 = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3_600e9,
                "m" => 60e9,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty() && total < i64::MAX as f64).then_some(total as i64)
}

fn one_word(scope: Scope<'_>, what: &'static str, text: &str) -> Result<String> {
    if text.is_empty() {
        return Err(InstructionError::NoArgument(what));
    }
    // WORKDIR and USER take the whole line as one word.
    let word = expand(scope, text)?;
    if word.is_empty() { Err(InstructionError::OneArgument(what)) } else { Ok(word) }
}

fn words(scope: Scope<'_>, text: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for word in split_words(text, scope.escape)? {
        all.extend(super::dockerfile::expand::words(&word, scope)?);
    }
    Ok(all)
}

/// Splits at blanks outside of quotes; quotes and escapes stay for [`expand`].
fn split_words(text: &str, escape: char) -> Result<Vec<String>> {
    let (words, is_closed) = lines::split(text, &[' ', '\t'], escape);
    if is_closed { Ok(words) } else { Err(InstructionError::Quote(text.to_owned())) }
}

fn expand(scope: Scope<'_>, text: &str) -> Result<String> {
    Ok(super::dockerfile::expand::word(text, scope)?)
}

/// The value of a variable of an image's list.
fn variable(env: &Value, name: &str) -> Option<String> {
    let mut entries = env.as_array()?.iter().filter_map(Value::as_str);
    entries.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(base: Value, changes: &[&str]) -> Result<Value> {
        let Value::Object(mut config) = base else { return Ok(Value::Null) };
        let changes: Vec<String> = changes.iter().map(|text| (*text).to_owned()).collect();
        apply(&mut config, &changes).map(|()| Value::Object(config))
    }

    #[test]
    fn instructions_change_the_configuration_as_dockers_do() {
        let table: &[(Value, &[&str], Value)] = &[
            (json!({}), &[r#"CMD ["a", "b c"]"#], json!({"Cmd": ["a", "b c"]})),
            (json!({}), &["cmd echo $X  y"], json!({"Cmd": ["/bin/sh", "-c", "echo $X  y"]})),
            (json!({"Shell": ["bash"]}), &["CMD x"], json!({"Shell": ["bash"], "Cmd": ["bash", "x"]})),
            (json!({"Cmd": ["old"]}), &[r#"ENTRYPOINT ["e"]"#], json!({"Entrypoint": ["e"]})),
            (
                json!({"Cmd": ["old"]}),
                &["CMD new", "ENTRYPOINT []"],
                json!({"Cmd": ["/bin/sh", "-c", "new"], "Entrypoint": []}),
            ),
            (
                json!({"Env": ["A=1"]}),
                &[r#"ENV A=2 B="x y" C=$A-${A}"#],
                json!({"Env": ["A=2", "B=x y", "C=1-1"]}),
            ),
            (
                json!({}),
                &["ENV NAME some value with  blanks"],
                json!({"Env": ["NAME=some value with  blanks"]}),
            ),
            (
                json!({"Env": ["E="]}),
                &["ENV D=${E:-d} P=${E:+p} Q=${D:-q} S='$E' T=\\$E"],
                json!({"Env": ["E=", "D=d", "P=", "Q=q", "S=$E", "T=$E"]}),
            ),
            (
                json!({}),
                &["EXPOSE 80 53/udp 8000-8002/tcp"],
                json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}}),
            ),
            (
                json!({}),
                &["EXPOSE 127.0.0.1:8080:81/TCP [::1]:82 8000-8001:90-91/sctp"],
                json!({"ExposedPorts": {"81/tcp": {}, "82/tcp": {}, "90/sctp": {}, "91/sctp": {}}}),
            ),
            (
                json!({"Labels": null}),
                &["LABEL a=1 \"b c\"='d e'"],
                json!({"Labels": {"a": "1", "b c": "d e"}}),
            ),
            (json!({"OnBuild": ["RUN a"]}), &["ONBUILD RUN b c"], json!({"OnBuild": ["RUN a", "RUN b c"]})),
            (json!({}), &["STOPSIGNAL SIGQUIT"], json!({"StopSignal": "SIGQUIT"})),
            (json!({"Env": ["U=app"]}), &["USER $U:7"], json!({"Env": ["U=app"], "User": "app:7"})),
            (
                json!({}),
                &[r#"VOLUME ["/a", "/b"]"#, "VOLUME /c"],
                json!({"Volumes": {"/a": {}, "/b": {}, "/c": {}}}),
            ),
            (json!({"WorkingDir": "/a"}), &["WORKDIR b/../c"], json!({"WorkingDir": "/a/c"})),
            (json!({"WorkingDir": "/a"}), &["WORKDIR /x"], json!({"WorkingDir": "/x"})),
            (
                json!({}),
                &["HEALTHCHECK --interval=1m30s --retries=3 CMD curl x"],
                json!({"Healthcheck": {"Interval": 90_000_000_000_i64, "Retries": 3, "Test": ["CMD-SHELL", "curl x"]}}),
            ),
            (json!({}), &[r#"HEALTHCHECK CMD ["a"]"#], json!({"Healthcheck": {"Test": ["CMD", "a"]}})),
            (json!({"Healthcheck": {}}), &["HEALTHCHECK NONE"], json!({"Healthcheck": {"Test": ["NONE"]}})),
            (
                json!({"Unknown": 1}),
                &["# nothing\nUSER a\nWORKDIR \\\n  /w"],
                json!({"Unknown": 1, "User": "a", "WorkingDir": "/w"}),
            ),
        ];
        for (base, changes, expected) in table {
            assert_eq!(changed(base.clone(), changes), Ok(expected.clone()), "{changes:?}");
        }
    }

    #[test]
    fn wrong_instructions_are_named() {
        let table = [
            ("FROM x", "FROM is not a valid change command"),
            ("RUN x", "RUN is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV A", "Syntax error - can't find = in \"A\""),
            ("ENV A=1 B", "Syntax error - can't find = in \"B\""),
            ("LABEL =x", "LABEL names can not be blank"),
            ("ENV A=\"x", "unexpected end of statement"),
            ("ENV A=${", "failed to process: syntax error"),
            ("EXPOSE x", "Invalid containerPort: x"),
            ("EXPOSE x:80:80", "Invalid containerPort: x:80:80"),
            ("EXPOSE 80/what", "Invalid containerPort: 80/what"),
            ("STOPSIGNAL NOPE", "Invalid signal: NOPE"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("HEALTHCHECK CMD", "HEALTHCHECK: missing command after CMD"),
            ("HEALTHCHECK --interval=x CMD y", "HEALTHCHECK: \"x\" is no value for --interval"),
            ("USER", "USER requires at least one argument"),
        ];
        for (change, expected) in table {
            let error = changed(json!({}), &[change]).expect_err(change).to_string();
            assert!(error.starts_with(expected), "{change}: {error}");
        }
    }
}
