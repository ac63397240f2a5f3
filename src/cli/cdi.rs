//! CDI specifications of this machine: where they are, and what devices of theirs add to a request.
//!
//! JSON or YAML files of /etc/cdi, /var/run/cdi and the user's own `cdi` beside config.toml's directory, the later
//! before the earlier; $CDI_SPEC_DIRS names others instead. They are files of the administrator's and the user's:
//! what they name is opened as the user, like everything that is bound.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Map, Number, Value};

use super::{CliError, Exit};
use crate::plan::RunRequest;
use crate::plan::cdi::{self, DeviceName, Specification};

/// The largest file that is read; NVIDIA's have some tens of kilobytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// How deep one may nest: the format itself goes to six.
const MAX_DEPTH: usize = 32;
/// Values of one file, those behind YAML's aliases counted each time.
const MAX_VALUES: usize = 100_000;

/// Puts what `--device` and `--gpus` name into the request.
///
/// # Errors
/// Exit 125: a device that no specification has, or that asks for what cannot be done.
pub fn apply(request: &mut RunRequest) -> Result<(), CliError> {
    if request.storage.cdi_devices.is_empty() && request.storage.gpus.is_empty() {
        return Ok(());
    }
    let refused = |message: String| CliError::new(message).with_exit(Exit::Engine);
    let mut complaints = Vec::new();
    let directories: Vec<_> = directories().iter().map(|dir| read_all(dir, &mut complaints)).collect();
    let mut wanted = Vec::new();
    for text in &request.storage.cdi_devices {
        wanted.push(DeviceName::parse(text).map_err(|error| refused(error.to_string()))?);
    }
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for specification in directories.iter().flatten() {
        let names = specification.devices.iter().map(|device| device.name.clone());
        kinds.entry(specification.kind.clone()).or_default().extend(names);
    }
    for text in &request.storage.gpus {
        let invalid = |reason| refused(format!("invalid argument {text:?} for \"--gpus\" flag: {reason}"));
        wanted.extend(cdi::gpus(text, &kinds).map_err(invalid)?);
    }
    let added = cdi::resolve(&directories, &wanted).map_err(|error| {
        let error = refused(error.to_string());
        // A file that could not be read may be the one that has it.
        match complaints.is_empty() {
            true => error,
            false => error.with_hint(complaints.join("; ")),
        }
    })?;
    for mount in added.mounts {
        if !request.storage.mounts.iter().any(|known| known.destination == mount.destination) {
            request.storage.mounts.push(mount);
        }
    }
    request.process.env.splice(0..0, added.env);
    let keeps = request.process.group_add.iter().any(|group| group == "keep-groups");
    if !added.groups.is_empty() && !keeps {
        // Numbers of the machine's groups, of which a container without root has none.
        let groups: Vec<_> = added.groups.iter().map(ToString::to_string).collect();
        eprintln!(
            "WARNING: the CDI device wants the machine's group {}: --group-add keep-groups keeps those that are yours",
            groups.join(", ")
        );
    }
    Ok(())
}

/// Where specifications are looked for, the later before the earlier.
pub(super) fn directories() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("CDI_SPEC_DIRS").filter(|list| !list.is_empty()) {
        return std::env::split_paths(&list).collect();
    }
    let own = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let own = own.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let fixed = ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from);
    fixed.into_iter().chain(own.map(|dir| dir.join("cdi"))).collect()
}

/// The specifications of a directory by their names. One that cannot be read must not stop work with the others.
fn read_all(directory: &Path, complaints: &mut Vec<String>) -> Vec<Specification> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let read = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => {
                read(&path).and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()))
            }
            Some("yaml" | "yml") => read(&path).and_then(|text| from_yaml(&text)),
            _ => continue,
        };
        match read {
            Ok(specification) => found.push(specification),
            Err(reason) => complaints.push(format!("{} cannot be read: {reason}", path.display())),
        }
    }
    found
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn from_yaml(text: &str) -> Result<Specification, String> {
    let documents = Yaml::load_from_str(text).map_err(|error| error.to_string())?;
    let [document] = documents.as_slice() else { return Err("it is not one YAML document".into()) };
    let mut left = MAX_VALUES;
    let value = to_json(document, MAX_DEPTH, &mut left).ok_or("it has what JSON has not, or too much")?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn to_json(node: &Yaml<'_>, depth: usize, left: &mut usize) -> Option<Value> {
    *left = left.checked_sub(1)?;
    let depth = depth.checked_sub(1)?;
    Some(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(truth)) => Value::Bool(*truth),
        Yaml::Value(Scalar::Integer(number)) => Value::Number((*number).into()),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::Number(Number::from_f64(**number)?),
        Yaml::Value(Scalar::String(text)) => Value::String(text.to_string()),
        Yaml::Sequence(list) => {
            Value::Array(list.iter().map(|item| to_json(item, depth, left)).collect::<Option<_>>()?)
        }
        Yaml::Mapping(map) => {
            let mut object = Map::new();
            for (key, value) in map {
                let Yaml::Value(Scalar::String(key)) = key else { return None };
                object.insert(key.to_string(), to_json(value, depth, left)?);
            }
            Value::Object(object)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_as_json() {
        let text = "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env:\n  - A=b\n  mounts:\n  - hostPath: /lib/x\n    containerPath: /lib/x\n    options: [ro, nosuid]\ndevices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n      major: 195\n      fileMode: 438\n";
        let specification = from_yaml(text).expect("a specification");
        assert_eq!(
            (specification.kind.as_str(), specification.devices[0].name.as_str()),
            ("nvidia.com/gpu", "0")
        );
        assert_eq!(specification.container_edits.mounts[0].options, ["ro", "nosuid"]);
        assert_eq!(specification.devices[0].container_edits.device_nodes[0].path, "/dev/nvidia0");
        for bad in ["", "a: [", "- 1", "kind: x", "? [a]\n: b"] {
            assert!(from_yaml(bad).is_err(), "{bad:?}");
        }
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
        assert!(from_yaml(bomb).is_err());
    }
}
