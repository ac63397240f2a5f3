//! `--check`: what is allowed in a Dockerfile, but better not done. Names and words are those of
//! BuildKit's "Build checks".

use std::collections::BTreeSet;

use super::ignore::Ignore;
use super::lines::{BLANKS, Line};
use super::{Dockerfile, Kind, Place, Warning, check_names};

/// What the text alone shows: instructions in mixed case.
pub(super) fn casing(lines: &[Line]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let name = |line: &Line| line.text.split(BLANKS).next().unwrap_or_default().to_owned();
    let upper = lines.iter().filter(|line| !name(line).bytes().any(|byte| byte.is_ascii_lowercase())).count();
    let majority_is_upper = upper * 2 >= lines.len();
    for line in lines {
        let name = name(line);
        let wanted = if majority_is_upper { name.to_ascii_uppercase() } else { name.to_ascii_lowercase() };
        if name != wanted {
            let word = if majority_is_upper { "uppercase" } else { "lowercase" };
            let message = format!("Command '{name}' should match the case of the command majority ({word})");
            warnings.push(Warning::new("ConsistentInstructionCasing", message, line.place));
        }
    }
    warnings
}

/// All that can be told without building; `ignore` is what of the context is left out.
#[must_use]
pub fn warnings(file: &Dockerfile, ignore: &Ignore) -> Vec<Warning> {
    let mut found = file.warnings.clone();
    found.extend(check_names::bases(file));
    for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
        match &instruction.kind {
            Kind::Copy(copy) => found.extend(check_names::ignored(copy, ignore, instruction.place)),
            Kind::Config { name, rest } if name == "EXPOSE" => {
                found.extend(check_names::ports(rest, instruction.place));
            }
            _ => {}
        }
    }
    let mut push = |rule, message: String, place: Place| found.push(Warning::new(rule, message, place));
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for stage in &file.stages {
        let words: Vec<&str> = stage.text.split(BLANKS).filter(|word| !word.is_empty()).collect();
        if let Some(word) = words.get(words.len().wrapping_sub(2)).filter(|_| stage.name.is_some()) {
            let is_upper = words[0].bytes().all(|byte| byte.is_ascii_uppercase());
            if word.bytes().all(|byte| byte.is_ascii_uppercase()) != is_upper {
                push(
                    "FromAsCasing",
                    format!("'{word}' and '{}' keywords' casing do not match", words[0]),
                    stage.place,
                );
            }
        }
        if let (Some(name), Some(written)) = (&stage.name, words.last()) {
            if name != written {
                push("StageNameCasing", format!("Stage name '{written}' should be lowercase"), stage.place);
            }
            if matches!(name.as_str(), "context" | "scratch") {
                push(
                    "ReservedStageName",
                    format!("Stage name should not use the same name as reserved stage {name:?}"),
                    stage.place,
                );
            }
            if !names.insert(name) {
                push(
                    "DuplicateStageName",
                    format!("Duplicate stage name {name:?}, stage names should be unique"),
                    stage.place,
                );
            }
        }
        if stage.platform.as_deref().is_some_and(|platform| !platform.contains('$')) {
            let platform = stage.platform.as_deref().unwrap_or_default();
            push(
                "FromPlatformFlagConstDisallowed",
                format!("FROM --platform flag should not use constant value {platform:?}"),
                stage.place,
            );
        }
        if matches!(stage.platform.as_deref(), Some("$TARGETPLATFORM" | "${TARGETPLATFORM}")) {
            let platform = stage.platform.as_deref().unwrap_or_default();
            push(
                "RedundantTargetPlatform",
                format!(
                    "Setting platform to predefined {platform} in FROM is redundant as this is the default behavior"
                ),
                stage.place,
            );
        }
        let mut last: Vec<(&str, Place)> = Vec::new();
        let mut work_dir_is_set = false;
        for instruction in &stage.instructions {
            let place = instruction.place;
            match &instruction.kind {
                Kind::Config { name, rest } => match name.as_str() {
                    "MAINTAINER" => push(
                        "MaintainerDeprecated",
                        "Maintainer instruction is deprecated in favor of using label".to_owned(),
                        place,
                    ),
                    "CMD" | "ENTRYPOINT" => {
                        if !rest.starts_with('[') {
                            push(
                                "JSONArgsRecommended",
                                format!(
                                    "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
                                ),
                                place,
                            );
                        }
                        if last.iter().any(|(known, _)| known == name) {
                            push(
                                "MultipleInstructionsDisallowed",
                                format!(
                                    "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
                                ),
                                place,
                            );
                        }
                        last.push((name, place));
                    }
                    "WORKDIR" => {
                        if !rest.starts_with('/') && !rest.starts_with('$') && !work_dir_is_set {
                            push(
                                "WorkdirRelativePath",
                                format!(
                                    "Relative workdir {rest:?} can have unexpected results if the base image changes"
                                ),
                                place,
                            );
                        }
                        work_dir_is_set = true;
                    }
                    "ENV" | "LABEL" if !rest.split(BLANKS).next().is_some_and(|word| word.contains('=')) => {
                        push(
                            "LegacyKeyValueFormat",
                            format!(
                                "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
                            ),
                            place,
                        );
                    }
                    _ => {}
                },
                Kind::Arg(arguments) => {
                    for (name, _) in arguments.iter().filter(|(name, _)| looks_secret(name)) {
                        push(
                            "SecretsUsedInArgOrEnv",
                            format!("Do not use ARG or ENV instructions for sensitive data (ARG {name:?})"),
                            place,
                        );
                    }
                }
                Kind::Run(_) | Kind::Copy(_) => {}
            }
            if let Kind::Config { name, rest } = &instruction.kind
                && name == "ENV"
            {
                let names = rest.split(BLANKS).filter_map(|word| word.split_once('=')).map(|(name, _)| name);
                for name in names.filter(|name| looks_secret(name)) {
                    push(
                        "SecretsUsedInArgOrEnv",
                        format!("Do not use ARG or ENV instructions for sensitive data (ENV {name:?})"),
                        place,
                    );
                }
            }
        }
    }
    let skipped = skipped(file.directives.check.as_deref());
    found.retain(|warning| {
        !skipped.iter().any(|name| name == "all" || name.eq_ignore_ascii_case(warning.rule))
    });
    found.sort_by_key(|warning| warning.place);
    found
}

fn skipped(check: Option<&str>) -> Vec<String> {
    let parts = check.unwrap_or_default().split(';');
    parts
        .filter_map(|part| part.trim().strip_prefix("skip="))
        .flat_map(|names| names.split(','))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Whether `# check=error=true` makes warnings errors.
#[must_use]
pub fn is_error(file: &Dockerfile) -> bool {
    let parts = file.directives.check.as_deref().unwrap_or_default().split(';');
    parts.map(str::trim).any(|part| part.eq_ignore_ascii_case("error=true"))
}

fn looks_secret(name: &str) -> bool {
    const WORDS: [&str; 9] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret"];
    const MORE: [&str; 1] = ["token"];
    let lower = name.to_ascii_lowercase();
    let mut words = lower.split(['_', '-']);
    !lower.contains("public") && words.any(|word| WORDS.contains(&word) || MORE.contains(&word))
}
