//! `--secret NAME[,type=mount|env][,target=PATH|VARIABLE][,mode=0444]`.

use super::{CliError, not_supported, refused};
use crate::plan::request::{SecretRequest, SecretTarget};

/// podman's.
const DEFAULT_MODE: u32 = 0o444;
const DEFAULT_DIR: &str = "/run/secrets";

/// One flag.
pub(super) fn parse(text: &str) -> Result<SecretRequest, CliError> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    // Docker's `source=`, podman's bare name.
    let mut source =
        first.strip_prefix("source=").or_else(|| first.strip_prefix("src=")).unwrap_or(first).to_owned();
    let (mut kind, mut target, mut mode) = ("mount", None, DEFAULT_MODE);
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| refused(format!("secret option {part} must be in form option=value")))?;
        match key {
            "source" | "src" => source = value.to_owned(),
            "type" if value == "mount" || value == "env" => kind = value,
            "type" => return Err(refused(format!("type {value} is invalid for secrets"))),
            "target" => target = Some(value.to_owned()),
            "mode" => {
                mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o777)
                    .ok_or_else(|| refused(format!("mode {value} invalid for secrets")))?;
            }
            "uid" | "gid" if value == "0" => {}
            "uid" | "gid" => {
                return Err(not_supported(
                    &format!("--secret {key}={value}"),
                    "the file belongs to the container's root; mode=0444 lets others read it",
                ));
            }
            _ => return Err(refused(format!("secret option {key} is invalid"))),
        }
    }
    if source.is_empty() || source.contains('=') {
        return Err(refused(format!("no secret found in {text:?}: NAME[,OPTION=VALUE...]")));
    }
    let target = match kind {
        "env" => SecretTarget::Variable(target.unwrap_or_else(|| source.clone())),
        _ => {
            let path = target.unwrap_or_else(|| source.clone());
            let path = if path.starts_with('/') { path } else { format!("{DEFAULT_DIR}/{path}") };
            SecretTarget::File { path: path.into(), mode }
        }
    };
    Ok(SecretRequest { source, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read() {
        let file = |path: &str, mode| SecretTarget::File { path: path.into(), mode };
        for (text, source, target) in [
            ("s", "s", file("/run/secrets/s", 0o444)),
            ("s,mode=400,target=key", "s", file("/run/secrets/key", 0o400)),
            ("source=s,target=/etc/key,uid=0", "s", file("/etc/key", 0o444)),
            ("s,type=env", "s", SecretTarget::Variable("s".into())),
            ("s,type=env,target=KEY", "s", SecretTarget::Variable("KEY".into())),
        ] {
            assert_eq!(parse(text).ok(), Some(SecretRequest { source: source.into(), target }), "{text}");
        }
        for (text, message) in [
            ("", "no secret found in \"\": NAME[,OPTION=VALUE...]"),
            ("s,type=x", "type x is invalid for secrets"),
            ("s,mode=9", "mode 9 invalid for secrets"),
            ("s,nope=1", "secret option nope is invalid"),
            ("s,x", "secret option x must be in form option=value"),
        ] {
            assert_eq!(
                parse(text).map_err(|error| error.message().to_owned()),
                Err(message.to_owned()),
                "{text}"
            );
        }
        assert!(parse("s,uid=5").is_err());
    }
}
