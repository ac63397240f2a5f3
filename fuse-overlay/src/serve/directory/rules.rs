//! What of a directory lower is seen: rules on paths, the longest that fits decides.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::serve::PathRule;

/// How a path is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// As it is.
    Shown,
    /// A hidden path itself: a directory is empty, anything else is absent.
    Empty,
    /// A hidden directory on the way to something shown: it has only the next names.
    Passage,
    /// Below a hidden path: absent.
    Hidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Hide,
    Expose,
}

#[derive(Debug, Default)]
pub(super) struct Rules {
    /// By path: names joined by slashes, the root is empty.
    rules: BTreeMap<Vec<u8>, Rule>,
}

impl Rules {
    pub(super) fn new(rules: &[PathRule]) -> Self {
        let rules = rules.iter().map(|rule| match rule {
            PathRule::Hide(path) => (plain(path), Rule::Hide),
            PathRule::Expose(path) => (plain(path), Rule::Expose),
        });
        Self { rules: rules.collect() }
    }

    pub(super) fn sight(&self, path: &[u8]) -> Sight {
        if self.rules.is_empty() {
            return Sight::Shown;
        }
        let mut prefix = path;
        let rule = loop {
            match self.rules.get(prefix) {
                Some(rule) => break Some(*rule),
                None if prefix.is_empty() => break None,
                None => prefix = parent(prefix),
            }
        };
        match rule {
            None | Some(Rule::Expose) => Sight::Shown,
            Some(Rule::Hide) if self.leads_to_shown(path) => Sight::Passage,
            Some(Rule::Hide) if prefix.len() == path.len() => Sight::Empty,
            Some(Rule::Hide) => Sight::Hidden,
        }
    }

    /// Whether something below `path` is exposed.
    fn leads_to_shown(&self, path: &[u8]) -> bool {
        let below = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        self.rules
            .range((Bound::Excluded(path.to_vec()), Bound::Unbounded))
            .skip_while(|(rule, _)| rule.as_slice() < below.as_slice())
            .take_while(|(rule, _)| rule.starts_with(&below))
            .any(|(_, rule)| *rule == Rule::Expose)
    }
}

fn plain(path: &Path) -> Vec<u8> {
    let names = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    names.filter(|name| !matches!(*name, b"" | b".")).collect::<Vec<_>>().join(&b'/')
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &path[..slash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_rule_decides() {
        let hide = |path: &str| PathRule::Hide(path.into());
        let expose = |path: &str| PathRule::Expose(path.into());
        let rules = Rules::new(&[
            hide("/home"),
            expose("/home/ann/work/"),
            hide("/home/ann/work/.secret"),
            hide("/tmp"),
            hide("/etc/shadow"),
        ]);
        for (path, sight) in [
            ("", Sight::Shown),
            ("etc", Sight::Shown),
            ("etc/shadow", Sight::Empty),
            ("etc/shadow-", Sight::Shown),
            ("home", Sight::Passage),
            ("home/ann", Sight::Passage),
            ("home/ann/work", Sight::Shown),
            ("home/ann/work/a", Sight::Shown),
            ("home/ann/workshop", Sight::Hidden),
            ("home/ann/work/.secret", Sight::Empty),
            ("home/ann/work/.secret/x", Sight::Hidden),
            ("home/bob", Sight::Hidden),
            ("homes", Sight::Shown),
            ("tmp", Sight::Empty),
            ("tmp/x", Sight::Hidden),
        ] {
            assert_eq!(rules.sight(path.as_bytes()), sight, "{path}");
        }
    }

    #[test]
    fn all_but_one_path() {
        let rules = Rules::new(&[PathRule::Hide("/".into()), PathRule::Expose("/srv/a".into())]);
        for (path, sight) in
            [("", Sight::Passage), ("srv", Sight::Passage), ("srv/a/b", Sight::Shown), ("usr", Sight::Hidden)]
        {
            assert_eq!(rules.sight(path.as_bytes()), sight, "{path}");
        }
    }
}
