//! `--log-opt`.

use std::collections::BTreeMap;

use super::{CliError, not_supported, refused, size};
use crate::plan::Labels;
use crate::plan::request::{EnvSetting, LogDriver, LogRequest};

/// Docker's limits of the driver `local`: 20 MB a file, five files.
const LOCAL_MAX_SIZE_BYTES: u64 = 20_000_000;
const LOCAL_MAX_FILES: u32 = 5;

/// `name=value` of every flag; the last of a name counts.
pub(super) fn options(texts: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let pair = |text: &String| {
        let (name, value) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| refused(format!("invalid logging opts format: {text:?}, expected NAME=VALUE")))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

/// What they mean for a driver.
pub(super) fn parse(
    driver: LogDriver,
    options: BTreeMap<String, String>,
    labels: &Labels,
    env: &[EnvSetting],
) -> Result<LogRequest, CliError> {
    let word = match driver {
        LogDriver::JsonFile => "json-file",
        LogDriver::Local => "local",
        LogDriver::Journald => "journald",
        LogDriver::None => "none",
    };
    let mut log = LogRequest { max_files: 1, ..LogRequest::default() };
    if driver == LogDriver::Local {
        (log.max_size_bytes, log.max_files) = (Some(LOCAL_MAX_SIZE_BYTES), LOCAL_MAX_FILES);
    }
    for (name, value) in &options {
        let names = || value.split(',').map(str::trim).filter(|name| !name.is_empty());
        let environment = env.iter().filter_map(|setting| Some((&setting.name, setting.value.as_ref()?)));
        match name.as_str() {
            // The journal has limits of its own, for all that it keeps.
            "max-size" | "max-file" | "compress" if driver == LogDriver::Journald => {
                return Err(refused(format!("unknown log opt '{name}' for {word} log driver")));
            }
            "tag" => log.tag = Some(value.clone()),
            "max-size" if value == "-1" => log.max_size_bytes = None,
            "max-size" => {
                let bytes = size::parse_bytes(value)
                    .map_err(|reason| refused(format!("invalid max-size: {reason}")))?;
                log.max_size_bytes = Some(bytes.max(1));
            }
            "max-file" => {
                log.max_files = value
                    .parse()
                    .ok()
                    .filter(|count| *count > 0)
                    .ok_or_else(|| refused("max-file cannot be less than 1"))?;
            }
            "labels" => {
                let found = names().filter_map(|name| labels.get_key_value(name));
                log.details.extend(found.map(|(name, value)| (name.clone(), value.clone())));
            }
            "env" => {
                let wanted: Vec<&str> = names().collect();
                let found = environment.filter(|(name, _)| wanted.contains(&name.as_str()));
                log.details.extend(found.map(|(name, value)| (name.clone(), value.clone())));
            }
            // Delivery is what the log's writer does either way; nothing is compressed.
            "mode" if value == "blocking" => {}
            "compress" if value == "false" => {}
            "mode" => {
                return Err(not_supported(
                    "--log-opt mode",
                    "the log is written as the output comes (blocking)",
                ));
            }
            "compress" => {
                return Err(not_supported("--log-opt compress", "parts put aside stay plain files"));
            }
            "labels-regex" | "env-regex" | "max-buffer-size" => {
                return Err(not_supported(
                    &format!("--log-opt {name}"),
                    "only max-size, max-file, labels, env and tag are",
                ));
            }
            _ => return Err(refused(format!("unknown log opt '{name}' for {word} log driver"))),
        }
    }
    if log.max_files > 1 && log.max_size_bytes.is_none() {
        return Err(refused("max-size must be set when max-file is greater than 1"));
    }
    log.options = options;
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(driver: LogDriver, texts: &[&str]) -> Result<(Option<u64>, u32, String), String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let labels = Labels::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        let env = [EnvSetting { name: "E".into(), value: Some("3".into()) }];
        let log = options(&texts).and_then(|options| parse(driver, options, &labels, &env));
        log.map(|log| {
            let details: Vec<_> = log.details.iter().map(|(key, value)| format!("{key}={value}")).collect();
            (log.max_size_bytes, log.max_files, details.join(","))
        })
        .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn options_are_dockers() {
        let none = String::new;
        use LogDriver::{JsonFile, Local};
        assert_eq!(read(JsonFile, &[]), Ok((None, 1, none())));
        assert_eq!(read(JsonFile, &["max-size=10k", "max-file=3"]), Ok((Some(10 << 10), 3, none())));
        assert_eq!(read(JsonFile, &["labels=b,x", "env=E"]), Ok((None, 1, "E=3,b=2".into())));
        assert_eq!(read(Local, &[]), Ok((Some(LOCAL_MAX_SIZE_BYTES), 5, none())));
        for (texts, message) in [
            (&["max-file=3"][..], "max-size must be set when max-file is greater than 1"),
            (&["max-file=0"], "max-file cannot be less than 1"),
            (&["size=1"], "unknown log opt 'size' for json-file log driver"),
            (&["max-size"], "invalid logging opts format: \"max-size\", expected NAME=VALUE"),
            (&["max-size=x"], "invalid max-size: invalid size: 'x'"),
        ] {
            assert_eq!(read(JsonFile, texts), Err(message.to_owned()));
        }
    }
}
