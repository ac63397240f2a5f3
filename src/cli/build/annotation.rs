//! `--annotation`: `[TYPE[,TYPE...][[PLATFORM]]:]KEY=VALUE`.

use crate::cli::{CliError, Exit};
use crate::image::{Annotations, Platform};

/// What an annotation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Manifest,
    ManifestDescriptor,
    Index,
    IndexDescriptor,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "manifest" => Self::Manifest,
            "manifest-descriptor" => Self::ManifestDescriptor,
            "index" => Self::Index,
            "index-descriptor" => Self::IndexDescriptor,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Annotation {
    level: Level,
    /// Of one platform's image only.
    platform: Option<Platform>,
    key: String,
    value: String,
}

/// All that were asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Vec<Annotation>);

impl Asked {
    /// Reads `--annotation`s.
    pub(super) fn parse(texts: &[String]) -> Result<Self, CliError> {
        let mut all = Self::default();
        for text in texts {
            all.add(text)?;
        }
        Ok(all)
    }

    /// Reads one.
    pub(super) fn add(&mut self, text: &str) -> Result<(), CliError> {
        let wrong = |reason: &str| {
            CliError::new(format!("invalid argument {text:?} for \"--annotation\" flag: {reason}"))
                .with_exit(Exit::Engine)
        };
        let (name, value) = text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE"))?;
        // Keys have no brackets; what is in front of the first colon is a type if it reads like one.
        let (levels, key) = match name.split_once(':') {
            Some((levels, key)) if !levels.contains('.') => (levels, key),
            _ => ("manifest", name),
        };
        if key.is_empty() {
            return Err(wrong("the key is empty"));
        }
        let (levels, platform) = match levels.strip_suffix(']').and_then(|levels| levels.split_once('[')) {
            Some((levels, platform)) => (levels, Some(platform.parse::<Platform>().map_err(|e| wrong(&e))?)),
            None => (levels, None),
        };
        for level in levels.split(',') {
            let level = Level::parse(level).ok_or_else(|| {
                wrong(&format!(
                    "unknown annotation type {level:?}: it is manifest, manifest-descriptor, index or index-descriptor"
                ))
            })?;
            if platform.is_some() && matches!(level, Level::Index | Level::IndexDescriptor) {
                return Err(wrong("an index is of all platforms"));
            }
            self.0.push(Annotation {
                level,
                platform: platform.clone(),
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        Ok(())
    }

    fn of(&self, level: Level, platform: Option<&Platform>) -> Annotations {
        let fits = |one: &&Annotation| {
            one.level == level && one.platform.as_ref().is_none_or(|asked| Some(asked) == platform)
        };
        self.0.iter().filter(fits).map(|one| (one.key.clone(), one.value.clone())).collect()
    }

    /// Of one platform's manifest.
    pub(super) fn manifest(&self, platform: &Platform) -> Annotations {
        self.of(Level::Manifest, Some(platform))
    }

    /// Of that manifest's descriptor.
    pub(super) fn manifest_descriptor(&self, platform: &Platform) -> Annotations {
        self.of(Level::ManifestDescriptor, Some(platform))
    }

    /// Of the index.
    pub(super) fn index(&self) -> Annotations {
        self.of(Level::Index, None)
    }

    /// Of the index's descriptor.
    pub(super) fn index_descriptor(&self) -> Annotations {
        self.of(Level::IndexDescriptor, None)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn annotations_have_levels_and_platforms() {
        let texts = [
            "a=1",
            "org.example:b=2",
            "index:c=3=4",
            "manifest[linux/arm64]:d=5",
            "index,manifest-descriptor:e=6",
            "index-descriptor:f=7",
        ];
        let asked = Asked::parse(&texts.map(str::to_owned)).unwrap();
        let of = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Annotations>()
        };
        let amd: Platform = "linux/amd64".parse().unwrap();
        let arm: Platform = "linux/arm64".parse().unwrap();
        assert_eq!(asked.manifest(&amd), of(&[("a", "1"), ("org.example:b", "2")]));
        assert_eq!(asked.manifest(&arm), of(&[("a", "1"), ("d", "5"), ("org.example:b", "2")]));
        assert_eq!(asked.manifest_descriptor(&arm), of(&[("e", "6")]));
        assert_eq!(asked.index(), of(&[("c", "3=4"), ("e", "6")]));
        assert_eq!(asked.index_descriptor(), of(&[("f", "7")]));
        for text in ["a", "x:a=1", "index[linux/amd64]:a=1", "manifest:=1", "manifest[/]:a=1"] {
            assert!(Asked::parse(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
