//! `--filter KEY=VALUE`: read and joined in one way by every verb that has it.
//!
//! As in Docker, values of one key are alternatives, keys must all hold, and of labels every one must.

use std::collections::{BTreeMap, HashMap};

use regex::Regex;

use super::{CliError, Exit};

/// The flags of one command line, understood as far as every verb's are alike.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<(String, String)>);

impl Filters {
    /// Reads the flags; `known` are the keys of the verb. The words of the errors are Docker's.
    ///
    /// # Errors
    /// A text without `=` (125, as a flag that is wrong), a key that is not known (1).
    pub fn parse(texts: &[String], known: &[&str]) -> Result<Self, CliError> {
        let mut pairs = Vec::new();
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                CliError::new(format!(
                    "invalid argument {text:?} for \"-f, --filter\" flag: bad format of filter (expected name=value)"
                ))
                .with_exit(Exit::Engine)
            })?;
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            if !known.contains(&key.as_str()) {
                let hint = format!("filters are {}", known.join(", "));
                return Err(CliError::new(format!("invalid filter '{key}'")).with_hint(hint));
            }
            pairs.push((key, value.to_owned()));
        }
        Ok(Self(pairs))
    }

    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values of a key, in the order in which they were given.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == key).map(|(_, value)| value.as_str())
    }

    /// Whether a key was given.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// The truth value of a key.
    ///
    /// # Errors
    /// Another value, or both of them.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, CliError> {
        let mut found = None;
        for value in self.values(key) {
            let truth = match value {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => return Err(wrong(key, value).with_hint(format!("{key} is true or false"))),
            };
            if found.is_some_and(|found| found != truth) {
                return Err(wrong(key, "true false").with_hint(format!("{key} is true or false")));
            }
            found = Some(truth);
        }
        Ok(found)
    }

    /// Whether one of a key's values holds, or none was given.
    pub fn any(&self, key: &str, mut holds: impl FnMut(&str) -> bool) -> bool {
        let mut values = self.values(key).peekable();
        values.peek().is_none() || values.any(&mut holds)
    }

    /// The values of a key as patterns, as Docker takes names and ids.
    #[must_use]
    pub fn patterns(&self, key: &str) -> Patterns {
        let pattern = |text: &str| (text.to_owned(), Regex::new(text).ok());
        Patterns(self.0.iter().filter(|(found, _)| found == key).map(|(_, value)| pattern(value)).collect())
    }

    /// Whether every `label` is there, and no `label!`.
    #[must_use]
    pub fn labels<M: Labels>(&self, labels: &M) -> bool {
        let has = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => labels.value(key) == Some(value),
            None => labels.value(wanted).is_some(),
        };
        self.values("label").all(has) && !self.values("label!").any(has)
    }
}

/// Regular expressions, each of which may also be the text itself.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Vec<(String, Option<Regex>)>);

impl Patterns {
    /// Whether one of the patterns is, or matches, one of these texts, or there is no pattern. One that is no regular
    /// expression matches nothing but itself.
    #[must_use]
    pub fn any(&self, texts: &[&str]) -> bool {
        let fits = |(exact, pattern): &(String, Option<Regex>)| {
            texts
                .iter()
                .any(|text| exact == text || pattern.as_ref().is_some_and(|pattern| pattern.is_match(text)))
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

/// A value that its key cannot have.
pub fn wrong(key: &str, value: &str) -> CliError {
    CliError::new(format!("invalid filter '{key}=[{value}]'"))
}

/// Labels as the two kinds of object keep them.
pub trait Labels {
    /// The value of a label, if it is there.
    fn value(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn value(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for HashMap<String, String> {
    fn value(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["dangling", "name", "label", "label!"];

    fn filters(texts: &[&str]) -> Result<Filters, CliError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Filters::parse(&texts, KNOWN)
    }

    #[test]
    fn what_is_no_filter_is_refused_in_dockers_words() {
        let table = [
            (
                "name",
                125,
                "invalid argument \"name\" for \"-f, --filter\" flag: bad format of filter (expected name=value)",
            ),
            ("nosuch=1", 1, "invalid filter 'nosuch'"),
        ];
        for (text, code, message) in table {
            let error = filters(&[text]).expect_err("refused");
            assert_eq!((error.exit.code(), error.message()), (code, message));
        }
        assert!(filters(&[""]).is_ok_and(|filters| filters.is_empty()));
    }

    #[test]
    fn values_are_alternatives_and_labels_are_not() {
        let found = filters(&["NAME = a", "name=b", "label=x=1", "label=y", "label!=z"]).expect("valid");
        assert!(found.any("name", |value| value == "b") && !found.any("name", |value| value == "c"));
        assert!(found.any("dangling", |_| false), "not given, nothing to hold");
        for (labels, fits) in [
            (&[("x", "1"), ("y", "")][..], true),
            (&[("x", "2"), ("y", "")], false),
            (&[("x", "1")], false),
            (&[("x", "1"), ("y", ""), ("z", "")], false),
        ] {
            let labels: BTreeMap<String, String> =
                labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            assert_eq!(found.labels(&labels), fits, "{labels:?}");
        }
    }

    #[test]
    fn names_are_regular_expressions() {
        let table = [
            ("web", "web", true),
            ("web", "my-web-1", true),
            ("^web$", "my-web-1", false),
            ("^/web$", "web", true),
            ("w.b", "web", true),
            ("^(web|db)$", "db", true),
            ("WEB", "web", false),
            ("", "web", true),
            ("[", "web", false),
            ("\\d", "web1", true),
        ];
        for (pattern, name, fits) in table {
            let found = filters(&[&format!("name={pattern}")]).expect("valid").patterns("name");
            assert_eq!(found.any(&[name, &format!("/{name}")]), fits, "{pattern} {name}");
        }
        assert!(filters(&[]).expect("valid").patterns("name").any(&["x"]));
    }

    #[test]
    fn truth_values() {
        let flag = |texts: &[&str]| filters(texts).and_then(|filters| filters.flag("dangling"));
        assert_eq!(flag(&[]).ok(), Some(None));
        assert_eq!(flag(&["dangling=1", "dangling=true"]).ok(), Some(Some(true)));
        assert_eq!(flag(&["dangling=false"]).ok(), Some(Some(false)));
        let error = flag(&["dangling=maybe"]).expect_err("refused");
        assert_eq!(error.message(), "invalid filter 'dangling=[maybe]'");
        assert!(flag(&["dangling=1", "dangling=0"]).is_err());
    }
}
