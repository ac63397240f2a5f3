//! `--cache-from` and `--cache-to`.

use std::path::PathBuf;

use crate::build::cache::{CachePlace, CacheSource, CacheTarget};
use crate::cli::{CliError, Exit};
use crate::image::Reference;
use crate::image::registry::Format;

/// The kinds that BuildKit knows beside those that there are here.
const SERVICES: [&str; 3] = ["gha", "s3", "azblob"];

struct Fields<'a> {
    text: &'a str,
    flag: &'static str,
    fields: Vec<(String, &'a str)>,
}

impl<'a> Fields<'a> {
    fn read(flag: &'static str, text: &'a str) -> Result<Self, CliError> {
        let mut fields = Vec::new();
        for field in text.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(|| {
                CliError::new(format!(
                    "invalid argument {text:?} for {flag:?} flag: {field:?} is no key=value pair"
                ))
                .with_exit(Exit::Engine)
            })?;
            fields.push((key.to_ascii_lowercase(), value));
        }
        Ok(Self { text, flag, fields })
    }

    fn wrong(&self, reason: &str) -> CliError {
        CliError::new(format!("invalid argument {:?} for {:?} flag: {reason}", self.text, self.flag))
            .with_exit(Exit::Engine)
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().rev().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    fn required(&self, name: &str) -> Result<&'a str, CliError> {
        self.get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| self.wrong(&format!("{name} is required")))
    }

    fn reference(&self) -> Result<Reference, CliError> {
        let text = self.required("ref")?;
        let parsed: Reference = text.parse().map_err(|_| self.wrong("ref is no image's name"))?;
        Ok(parsed.with_default_tag())
    }

    /// Keys that there are none of, so that a slip is no other cache.
    fn check(&self, known: &[&str]) -> Result<(), CliError> {
        match self.fields.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(self.wrong(&format!("unknown key {key:?}"))),
            None => Ok(()),
        }
    }

    fn kind(&self) -> Result<&'a str, CliError> {
        let kind = self.required("type")?;
        if SERVICES.contains(&kind) {
            return Err(self
                .wrong(&format!("caches of the type {kind} are not built; local, registry and inline are")));
        }
        Ok(kind)
    }
}

/// Reads `--cache-from`: a name alone is a registry's.
pub(super) fn source(text: &str) -> Result<CacheSource, CliError> {
    const FLAG: &str = "--cache-from";
    let whole;
    let text = if text.contains('=') {
        text
    } else {
        whole = format!("type=registry,ref={text}");
        &whole
    };
    let fields = Fields::read(FLAG, text)?;
    match fields.kind()? {
        "local" => {
            fields.check(&["type", "src", "source", "tag", "digest"])?;
            let directory = fields.get("src").or_else(|| fields.get("source"));
            let directory = directory.ok_or_else(|| fields.wrong("src is required"))?;
            let digest = fields.get("digest").map(str::parse).transpose();
            Ok(CacheSource::Local {
                directory: PathBuf::from(directory),
                tag: fields.get("tag").unwrap_or("latest").to_owned(),
                digest: digest.map_err(|_| fields.wrong("digest is sha256:HEX"))?,
            })
        }
        "registry" => {
            fields.check(&["type", "ref"])?;
            Ok(CacheSource::Registry(fields.reference()?))
        }
        other => Err(fields.wrong(&format!("the type {other:?} is neither local nor registry"))),
    }
}

/// Reads `--cache-to`: a name alone is a registry's.
pub(super) fn target(text: &str) -> Result<CacheTarget, CliError> {
    const FLAG: &str = "--cache-to";
    let whole;
    let text = match text {
        "inline" => "type=inline",
        text if text.contains('=') => text,
        name => {
            whole = format!("type=registry,ref={name}");
            &whole
        }
    };
    let fields = Fields::read(FLAG, text)?;
    // How a manifest is written is not chosen: it is an OCI image manifest.
    const COMMON: [&str; 8] = [
        "type",
        "mode",
        "compression",
        "force-compression",
        "compression-level",
        "oci-mediatypes",
        "image-manifest",
        "ignore-error",
    ];
    let all = match fields.get("mode") {
        None | Some("min") => false,
        Some("max") => true,
        Some(other) => return Err(fields.wrong(&format!("mode is min or max, not {other:?}"))),
    };
    let format = match fields.get("compression") {
        None | Some("gzip") => Format::Gzip,
        Some("zstd") => Format::Zstd,
        Some(other) => return Err(fields.wrong(&format!("compression is gzip or zstd, not {other:?}"))),
    };
    let ignore_error = match fields.get("ignore-error") {
        None | Some("false" | "0") => false,
        Some("true" | "1") => true,
        Some(_) => return Err(fields.wrong("ignore-error is true or false")),
    };
    let place = match fields.kind()? {
        "local" => {
            fields.check(&[&COMMON[..], &["dest", "tag"]].concat())?;
            CachePlace::Local {
                directory: PathBuf::from(fields.required("dest")?),
                tag: fields.get("tag").unwrap_or("latest").to_owned(),
            }
        }
        "registry" => {
            fields.check(&[&COMMON[..], &["ref"]].concat())?;
            CachePlace::Registry(fields.reference()?)
        }
        "inline" => {
            fields.check(&COMMON)?;
            CachePlace::Inline
        }
        other => {
            return Err(fields.wrong(&format!("the type {other:?} is none of local, registry and inline")));
        }
    };
    Ok(CacheTarget { place, all, format, ignore_error })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn places_of_caches_are_read() {
        let local =
            |tag: &str| CacheSource::Local { directory: "d".into(), tag: tag.to_owned(), digest: None };
        let name: Reference = "host:5000/c:x".parse().unwrap();
        for (text, expected) in [
            ("type=local,src=d", local("latest")),
            ("type=local,src=d,tag=t", local("t")),
            ("type=registry,ref=host:5000/c:x", CacheSource::Registry(name.clone())),
            ("host:5000/c:x", CacheSource::Registry(name.clone())),
        ] {
            assert_eq!(source(text).unwrap(), expected, "{text}");
        }
        let to = |place, all| CacheTarget { place, all, format: Format::Gzip, ignore_error: false };
        let directory = CachePlace::Local { directory: "d".into(), tag: "latest".to_owned() };
        for (text, expected) in [
            ("type=inline", to(CachePlace::Inline, false)),
            ("type=local,dest=d,mode=max", to(directory, true)),
            ("type=registry,ref=host:5000/c:x,mode=min", to(CachePlace::Registry(name.clone()), false)),
        ] {
            assert_eq!(target(text).unwrap(), expected, "{text}");
        }
        for text in
            ["type=local", "type=gha", "type=s3,bucket=b", "type=registry", "type=x", "type=local,src=d,x=y"]
        {
            assert!(source(text).is_err(), "{text}");
        }
        for text in [
            "type=local",
            "type=local,dest=d,mode=most",
            "type=registry,ref=A",
            "type=local,dest=d,compression=x",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
    }
}
