//! Checks of what a Dockerfile names: arguments in FROM, ports, files that the context leaves out.

use super::expand::{self, Scope};
use super::ignore::Ignore;
use super::lines::BLANKS;
use super::{Copy, Dockerfile, Kind, Place, Stage, Warning, did_you_mean};
use crate::image::Reference;

/// What every FROM may use without an ARG.
const PREDEFINED: [&str; 11] = [
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
];

/// The variables that are used without a default of their own: `$NAME` and `${NAME}`.
fn plain_variables(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for part in text.split('$').skip(1) {
        let rest = part.strip_prefix('{').unwrap_or(part);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if !name.is_empty() && (rest.len() == part.len() || after.starts_with('}')) {
            found.push(name);
        }
    }
    found
}

/// What ARGs in front of the first FROM are where nothing is given.
fn defaults(file: &Dockerfile) -> Vec<(&str, String)> {
    let mut known: Vec<(&str, String)> = Vec::new();
    for instruction in &file.arguments {
        let Kind::Arg(arguments) = &instruction.kind else { continue };
        for (name, default) in arguments {
            let value = expanded(file, &known, default.as_deref().unwrap_or_default());
            known.push((name, value.unwrap_or_default()));
        }
    }
    known
}

fn expanded(file: &Dockerfile, known: &[(&str, String)], text: &str) -> Option<String> {
    let variable = |name: &str| {
        let mut found = known.iter().rev().filter(|(known, _)| *known == name);
        let predefined = || PREDEFINED.contains(&name).then(|| "linux".to_owned());
        found.next().map(|(_, value)| value.clone()).or_else(predefined)
    };
    expand::word(text, Scope { variable: &variable, escape: file.directives.escape }).ok()
}

/// FROM: arguments that are not declared, or that give no name where nobody gives them a value.
pub(super) fn bases(file: &Dockerfile) -> Vec<Warning> {
    let known = defaults(file);
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).chain(PREDEFINED).collect();
    let mut found = Vec::new();
    for Stage { base, platform, place, .. } in &file.stages {
        let mut is_declared = true;
        for name in
            [Some(base), platform.as_ref()].into_iter().flatten().flat_map(|text| plain_variables(text))
        {
            if names.contains(&name) {
                continue;
            }
            is_declared = false;
            let hint = did_you_mean(name, &names).map(|known| format!(" (did you mean {known}?)"));
            let message = format!("FROM argument '{name}' is not declared{}", hint.unwrap_or_default());
            found.push(Warning::new("UndefinedArgInFrom", message, *place));
        }
        if !base.contains('$') || !is_declared {
            continue;
        }
        let name = expanded(file, &known, base).unwrap_or_default();
        if name.parse::<Reference>().is_err() {
            let message = format!("Default value for ARG {base} results in empty or invalid base image name");
            found.push(Warning::new("InvalidDefaultArgInFrom", message, *place));
        }
    }
    found
}

/// EXPOSE: protocols in capitals, and what belongs to `run -p`.
pub(super) fn ports(rest: &str, place: Place) -> Vec<Warning> {
    let mut found = Vec::new();
    for port in rest.split(BLANKS).filter(|port| !port.is_empty() && !port.contains('$')) {
        let (number, protocol) = port.split_once('/').unwrap_or((port, ""));
        if protocol.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            found.push(Warning::new("ExposeProtoCasing", message, place));
        }
        if number.contains(':') {
            let message = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
            );
            found.push(Warning::new("ExposeInvalidFormat", message, place));
        }
    }
    found
}

/// COPY and ADD of what the context leaves out. With exceptions in the ignore file that cannot be told by a name.
pub(super) fn ignored(copy: &Copy, ignore: &Ignore, place: Place) -> Vec<Warning> {
    let mut found = Vec::new();
    if copy.from.is_some() || ignore.is_empty() || ignore.has_exceptions() {
        return found;
    }
    let command = if copy.is_add { "Add" } else { "Copy" };
    for source in &copy.sources {
        let is_name = !source.contains(['$', '*', '?', '[', '\\']) && !source.contains("://");
        let parts: Vec<&str> = source.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if !is_name || parts.is_empty() || parts.contains(&"..") {
            continue;
        }
        let mut path = Vec::new();
        let mut matched = None;
        for part in &parts {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(part.bytes());
            matched = Some(ignore.matches(&path, matched.as_ref()));
        }
        if matched.is_some_and(|matched| matched.excluded()) {
            let path = parts.join("/");
            let message = format!("Attempting to {command} file {path:?} that is excluded by .dockerignore");
            found.push(Warning::new("CopyIgnoredFile", message, place));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::{check, parse};
    use super::*;

    fn told(text: &str, ignore: &str) -> Vec<String> {
        let (file, ignore) = (parse(text).unwrap(), Ignore::parse(ignore).unwrap());
        let line = |warning: Warning| format!("{}: {}", warning.rule, warning.message);
        check::warnings(&file, &ignore).into_iter().map(line).collect()
    }

    #[test]
    fn names_are_checked() {
        let table: [(&str, &str, &[&str]); 12] = [
            ("FROM a:$VERSOIN\n", "", &["UndefinedArgInFrom: FROM argument 'VERSOIN' is not declared"]),
            (
                "ARG VERSION=1\nFROM a:${VERSOIN}\n",
                "",
                &["UndefinedArgInFrom: FROM argument 'VERSOIN' is not declared (did you mean VERSION?)"],
            ),
            ("ARG V\nFROM a:${V:-1}\nFROM --platform=$BUILDPLATFORM b\n", "", &[]),
            (
                "ARG V\nFROM a:$V\n",
                "",
                &[
                    "InvalidDefaultArgInFrom: Default value for ARG a:$V results in empty or invalid base image name",
                ],
            ),
            ("ARG B=a\nARG V=${B}:1\nFROM $V\n", "", &[]),
            (
                "FROM a\nEXPOSE 80/TCP 90\n",
                "",
                &["ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"],
            ),
            (
                "FROM a\nEXPOSE 127.0.0.1:80:80\n",
                "",
                &[
                    "ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'",
                ],
            ),
            (
                "FROM a\nCOPY ./out/x y /\n",
                "out\n",
                &["CopyIgnoredFile: Attempting to Copy file \"out/x\" that is excluded by .dockerignore"],
            ),
            ("FROM a\nCOPY out/x /\n", "out\n!out/x\n", &[]),
            ("FROM a AS b\nFROM a\nCOPY --from=b out /\n", "out\n", &[]),
            ("FROM a\nCOPY . /\nADD http://x/out /\nCOPY out* $X /\n", "out\n", &[]),
            ("# check=skip=CopyIgnoredFile\nFROM a\nCOPY out /\n", "out\n", &[]),
        ];
        for (text, ignore, expected) in table {
            assert_eq!(told(text, ignore), expected, "{text}");
        }
    }
}
