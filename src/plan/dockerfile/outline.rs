//! What a Dockerfile offers, without building it: its targets (`--call=targets`), and what one of them takes
//! (`--call=outline`). The fields' names are BuildKit's, whose JSON this gives.

use std::collections::BTreeSet;

use serde::Serialize;

use super::expand::{self, Scope};
use super::{Dockerfile, Instruction, Kind, MountKind, RunMount, Stage};

/// A stage that can be built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name; empty where it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whether it is built where none is named.
    #[serde(rename = "default", skip_serializing_if = "std::ops::Not::not")]
    pub is_default: bool,
    /// The comment above it that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its FROM, as written.
    pub base: String,
    /// Its `--platform`, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// What a target takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outline {
    /// Its name; empty where it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// As a target's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Arguments of it and of the stages that it needs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// Secrets of its steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Wanted>,
    /// Agents of its steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Wanted>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// The comment above it that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it would be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// A secret or an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Its id.
    pub name: String,
    /// Whether the build fails without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
}

/// The text behind a name, in the comments above it.
fn described(comments: &[String], name: &str) -> String {
    let behind = |comment: &String| Some(comment.strip_prefix(name)?.strip_prefix(' ')?.trim().to_owned());
    if name.is_empty() { String::new() } else { comments.iter().find_map(behind).unwrap_or_default() }
}

/// All stages of a file.
#[must_use]
pub fn targets(file: &Dockerfile) -> Vec<Target> {
    let last = file.stages.len().saturating_sub(1);
    let target = |(number, stage): (usize, &Stage)| {
        let name = stage.name.clone().unwrap_or_default();
        Target {
            is_default: number == last,
            description: described(&stage.comments, &name),
            base: stage.base.clone(),
            platform: stage.platform.clone(),
            name,
        }
    };
    file.stages.iter().enumerate().map(target).collect()
}

/// A stage by its name or number.
fn stage_number(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    let named = (0..before).rev().find(|number| file.stages[*number].name.as_ref() == Some(&lower));
    named.or_else(|| name.parse().ok().filter(|number| *number < before))
}

/// What a target takes: the last stage where none is named.
///
/// # Errors
/// There is no such target; a default cannot be expanded.
pub fn outline(
    file: &Dockerfile,
    target: Option<&str>,
    given: &[(String, String)],
) -> Result<Outline, String> {
    let count = file.stages.len();
    let number = match target {
        None => count.checked_sub(1),
        Some(name) => stage_number(file, name, count),
    };
    let missing = || format!("target stage {:?} could not be found", target.unwrap_or_default());
    let number = number.ok_or_else(missing)?;
    let mut collected = Collected { file, given, globals: Vec::new(), outline: Outline::default() };
    let stage = &file.stages[number];
    collected.outline.name = stage.name.clone().unwrap_or_default();
    collected.outline.description = described(&stage.comments, &collected.outline.name);
    for instruction in &file.arguments {
        collected.global(instruction)?;
    }
    let mut needed = BTreeSet::new();
    collected.need(number, &mut needed)?;
    let bases: Vec<&str> = needed.iter().map(|number| file.stages[*number].base.as_str()).collect();
    for Argument { name, description, value } in collected.globals.clone() {
        let uses = [format!("${name}"), format!("${{{name}")];
        if bases.iter().any(|base| uses.iter().any(|used| base.contains(used))) {
            collected.argument(name, description, value);
        }
    }
    for number in needed {
        for instruction in &file.stages[number].instructions {
            collected.instruction(instruction)?;
        }
    }
    Ok(collected.outline)
}

struct Collected<'a> {
    file: &'a Dockerfile,
    given: &'a [(String, String)],
    globals: Vec<Argument>,
    outline: Outline,
}

impl Collected<'_> {
    fn given(&self, name: &str) -> Option<String> {
        self.given.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn expanded(&self, text: &str) -> Result<String, String> {
        let known = |list: &[Argument], name: &str| {
            list.iter().rev().find(|argument| argument.name == name).map(|argument| argument.value.clone())
        };
        let variable = |name: &str| known(&self.outline.args, name).or_else(|| known(&self.globals, name));
        let scope = Scope { variable: &variable, escape: self.file.directives.escape };
        expand::word(text, scope).map_err(|error| error.to_string())
    }

    fn global(&mut self, instruction: &Instruction) -> Result<(), String> {
        let Kind::Arg(arguments) = &instruction.kind else { return Ok(()) };
        for (name, default) in arguments {
            let value = match (self.given(name), default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.expanded(default)?,
                (None, None) => String::new(),
            };
            let description = described(&instruction.comments, name);
            self.globals.push(Argument { name: name.clone(), description, value });
        }
        Ok(())
    }

    /// The first of a name is told.
    fn argument(&mut self, name: String, description: String, value: String) {
        if !self.outline.args.iter().any(|argument| argument.name == name) {
            self.outline.args.push(Argument { name, description, value });
        }
    }

    /// Marks a stage and all that it takes files from.
    fn need(&self, number: usize, needed: &mut BTreeSet<usize>) -> Result<(), String> {
        if !needed.insert(number) {
            return Ok(());
        }
        let stage = &self.file.stages[number];
        let mut from = vec![self.expanded(&stage.base)?];
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Copy(copy) => from.extend(copy.from.clone()),
                Kind::Run(run) => {
                    let mounts = run.mounts.iter().filter_map(|text| RunMount::parse(text).ok());
                    from.extend(mounts.filter_map(|mount| mount.from));
                }
                _ => {}
            }
        }
        for name in from {
            if let Some(other) = stage_number(self.file, &name, number) {
                self.need(other, needed)?;
            }
        }
        Ok(())
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), String> {
        match &instruction.kind {
            Kind::Arg(arguments) => {
                for (name, default) in arguments {
                    let global = self.globals.iter().find(|global| global.name == *name).cloned();
                    let value = match (self.given(name), default, &global) {
                        (Some(value), ..) => value,
                        (None, Some(default), _) => self.expanded(default)?,
                        (None, None, Some(global)) => global.value.clone(),
                        (None, None, None) => String::new(),
                    };
                    let mut description = described(&instruction.comments, name);
                    if let (true, Some(global)) = (description.is_empty(), global) {
                        description = global.description;
                    }
                    self.argument(name.clone(), description, value);
                }
            }
            Kind::Run(run) => {
                for mount in run.mounts.iter().filter_map(|text| RunMount::parse(text).ok()) {
                    let (list, name, required) = match mount.kind {
                        MountKind::Secret { id, required, .. } => (&mut self.outline.secrets, id, required),
                        MountKind::Ssh { id, required } => (&mut self.outline.ssh, id, required),
                        _ => continue,
                    };
                    match list.iter_mut().find(|wanted| wanted.name == name) {
                        Some(wanted) => wanted.required |= required,
                        None => list.push(Wanted { name, required }),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::parse;
    use super::*;

    const TEXT: &str = "# BASE where it begins\nARG BASE=one\nARG UNUSED=1\nFROM $BASE AS base\n\
        # MODE how it is made\nARG MODE=fast\nRUN --mount=type=secret,id=s true\n\
        FROM other AS tools\nARG ELSEWHERE=1\nRUN --mount=type=ssh true\n\
        # app all of it\nFROM base AS app\nARG BASE\nARG WHAT=$MODE-$BASE\n\
        RUN --mount=type=secret,id=s,required --mount=type=ssh,id=git,required true\nFROM app\nCOPY --from=tools /a /b\n";

    #[test]
    fn targets_are_listed_with_what_is_said_of_them() {
        let listed: Vec<_> = targets(&parse(TEXT).unwrap())
            .into_iter()
            .map(|target| (target.name, target.is_default, target.description, target.base))
            .collect();
        let row = |name: &str, is_default, description: &str, base: &str| {
            (name.to_owned(), is_default, description.to_owned(), base.to_owned())
        };
        assert_eq!(
            listed,
            [
                row("base", false, "", "$BASE"),
                row("tools", false, "", "other"),
                row("app", false, "all of it", "base"),
                row("", true, "", "app"),
            ]
        );
    }

    #[test]
    fn an_outline_has_what_the_target_and_the_stages_below_take() {
        let file = parse(TEXT).unwrap();
        let given = [("MODE".to_owned(), "slow".to_owned())];
        let found = outline(&file, Some("app"), &given).unwrap();
        assert_eq!((found.name.as_str(), found.description.as_str()), ("app", "all of it"));
        let args: Vec<_> = found
            .args
            .iter()
            .map(|found| (found.name.as_str(), found.value.as_str(), found.description.as_str()))
            .collect();
        assert_eq!(
            args,
            [
                ("BASE", "one", "where it begins"),
                ("MODE", "slow", "how it is made"),
                ("WHAT", "slow-one", "")
            ]
        );
        assert_eq!(found.secrets, [Wanted { name: "s".to_owned(), required: true }]);
        assert_eq!(found.ssh, [Wanted { name: "git".to_owned(), required: true }]);
        let whole = outline(&file, None, &[]).unwrap();
        assert!(whole.args.iter().any(|argument| argument.name == "ELSEWHERE"));
        assert_eq!(whole.ssh.len(), 2);
        assert!(outline(&file, Some("nope"), &[]).unwrap_err().contains("\"nope\" could not be found"));
    }
}
