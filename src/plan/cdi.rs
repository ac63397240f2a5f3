//! Devices by their CDI names (Container Device Interface specification, cncf-tags/container-device-interface): what a
//! specification says, and what a device of it changes in a request.
//!
//! What a container engine without root cannot do is refused by name: hooks (programs of the machine that would
//! run with the engine's rights), network devices, Intel's RDT. Device nodes are binds of the machine's own, as with
//! `--device`; their owners and modes are the machine's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;

use super::mount::clean_destination;
use super::request::{Access, BindMount, EnvSetting, MountKind, MountRequest, Propagation};

/// A specification: one file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Specification {
    /// The version of the format.
    pub cdi_version: String,
    /// `vendor.example/class`.
    pub kind: String,
    /// Its devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// What any of them needs.
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its name in its kind.
    pub name: String,
    /// What it needs.
    #[serde(default)]
    pub container_edits: Edits,
}

/// What a device changes in a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Nodes.
    pub device_nodes: Vec<Node>,
    /// Files and directories.
    pub mounts: Vec<EditMount>,
    /// Programs to run.
    pub hooks: Vec<Hook>,
    /// Network devices to move.
    pub net_devices: Vec<serde_json::Value>,
    /// Groups of the process.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    /// Resources of the processor.
    pub intel_rdt: Option<serde_json::Value>,
}

/// A device node.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// In the container.
    pub path: String,
    /// On the machine; the same without.
    pub host_path: Option<String>,
    /// `rwm`, or less.
    pub permissions: Option<String>,
}

/// A mount.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EditMount {
    /// On the machine.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// Options, as mount(8) has them.
    #[serde(default)]
    pub options: Vec<String>,
    /// A bind, where it says anything.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// A hook.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// When it would run.
    pub hook_name: String,
    /// What.
    pub path: String,
}

/// Why a device cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CdiError {
    /// Not a name.
    #[error("invalid CDI device name {0:?}: it is vendor.example/class=name")]
    Name(String),
    /// Nothing has it.
    #[error("unresolvable CDI device {0}")]
    Unknown(String),
    /// Two files of one directory have it.
    #[error("the CDI device {0} is in more than one specification of one directory")]
    Ambiguous(String),
    /// It takes more than this engine does.
    #[error(
        "the CDI device {device} is not supported in this version: its specification has {what}, and {reason}"
    )]
    Unsupported {
        /// Which.
        device: String,
        /// What of it.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// A specification that contradicts itself.
    #[error("the CDI device {device} cannot be used: {what}")]
    Wrong {
        /// Which.
        device: String,
        /// What is wrong.
        what: String,
    },
}

/// A device's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceName {
    /// `vendor.example/class`.
    pub kind: String,
    /// Of that kind; `all` is a name like others, which specifications have.
    pub name: String,
}

impl DeviceName {
    /// Whether a `--device` names a device and no node.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        Self::parse(text).is_ok()
    }

    /// Reads `vendor.example/class=name`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, CdiError> {
        let wrong = || CdiError::Name(text.to_owned());
        let (kind, name) = text.split_once('=').ok_or_else(wrong)?;
        let (vendor, class) = kind.split_once('/').ok_or_else(wrong)?;
        let part = |part: &str, others: &[u8]| {
            let bytes = part.as_bytes();
            let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            ends(bytes.first())
                && ends(bytes.last())
                && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || others.contains(byte))
        };
        if part(vendor, b"_-.") && part(class, b"_-") && part(name, b"_-.:") {
            Ok(Self { kind: kind.to_owned(), name: name.to_owned() })
        } else {
            Err(wrong())
        }
    }
}

/// What devices add to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    /// Nodes and binds.
    pub mounts: Vec<MountRequest>,
    /// Variables.
    pub env: Vec<EnvSetting>,
    /// Groups.
    pub groups: Vec<u32>,
}

/// Finds the devices in `directories`, each a list of specifications, the later ones before the earlier ones, and
/// gives what they add. The edits of a specification count once.
///
/// # Errors
/// A device that is nowhere, or that asks for what cannot be done.
pub fn resolve(directories: &[Vec<Specification>], devices: &[DeviceName]) -> Result<Additions, CdiError> {
    let mut additions = Additions::default();
    let mut used: Vec<*const Specification> = Vec::new();
    for wanted in devices {
        let full = || format!("{}={}", wanted.kind, wanted.name);
        let (specification, device) = find(directories, wanted)?;
        additions.add(&full(), &device.container_edits)?;
        // Told apart by where they are: there is nothing else that two of them could not share.
        if !used.contains(&std::ptr::from_ref(specification)) {
            used.push(specification);
            additions.add(&full(), &specification.container_edits)?;
        }
    }
    Ok(additions)
}

fn find<'a>(
    directories: &'a [Vec<Specification>],
    wanted: &DeviceName,
) -> Result<(&'a Specification, &'a Device), CdiError> {
    let full = || format!("{}={}", wanted.kind, wanted.name);
    for directory in directories.iter().rev() {
        let mut found = directory.iter().filter(|specification| specification.kind == wanted.kind).flat_map(
            |specification| specification.devices.iter().map(move |device| (specification, device)),
        );
        let mut found = found.by_ref().filter(|(_, device)| device.name == wanted.name);
        match (found.next(), found.next()) {
            (Some(one), None) => return Ok(one),
            (Some(_), Some(_)) => return Err(CdiError::Ambiguous(full())),
            (None, _) => {}
        }
    }
    Err(CdiError::Unknown(full()))
}

impl Additions {
    fn add(&mut self, device: &str, edits: &Edits) -> Result<(), CdiError> {
        let unsupported =
            |what: String, reason| Err(CdiError::Unsupported { device: device.to_owned(), what, reason });
        let wrong = |what: String| CdiError::Wrong { device: device.to_owned(), what };
        if let Some(hook) = edits.hooks.first() {
            let what = format!("the {} hook {}", hook.hook_name, hook.path);
            return unsupported(what, "no program of the machine is run for a container");
        }
        if !edits.net_devices.is_empty() {
            return unsupported("netDevices".to_owned(), "a network device is moved by root alone");
        }
        if edits.intel_rdt.is_some() {
            return unsupported("intelRdt".to_owned(), "its resources are root's to give");
        }
        let destination = |path: &str| {
            clean_destination(path)
                .filter(|clean| clean.parent().is_some())
                .ok_or_else(|| wrong(format!("{path:?} is no absolute path of a container")))
        };
        for node in &edits.device_nodes {
            let source = node.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&node.path);
            let permissions = node.permissions.as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm");
            if !(permissions.contains('r') && permissions.contains('w')) {
                return unsupported(
                    format!("the permissions {permissions:?} for {source}"),
                    "without a device cgroup the node's own count",
                );
            }
            self.mount(
                destination(&node.path)?,
                Access::ReadWrite,
                MountKind::Device { source: absolute(source, &wrong)? },
            );
        }
        for mount in &edits.mounts {
            if !matches!(mount.kind.as_deref(), None | Some("" | "bind" | "none")) {
                let kind = mount.kind.clone().unwrap_or_default();
                return unsupported(format!("a mount of type {kind:?}"), "only binds are made");
            }
            let has = |option: &str| mount.options.iter().any(|known| known == option);
            let access = if has("ro") { Access::ReadOnly } else { Access::ReadWrite };
            let bind = BindMount {
                source: absolute(&mount.host_path, &wrong)?,
                create_source: false,
                recursive: has("rbind"),
                propagation: mount
                    .options
                    .iter()
                    .find_map(|text| Propagation::parse(text))
                    .unwrap_or_default(),
                relabel: None,
            };
            self.mount(destination(&mount.container_path)?, access, MountKind::Bind(bind));
        }
        for setting in &edits.env {
            let (name, value) = setting
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| wrong(format!("{setting:?} is no variable")))?;
            self.env.push(EnvSetting { name: name.to_owned(), value: Some(value.to_owned()) });
        }
        self.groups.extend(&edits.additional_gids);
        Ok(())
    }

    /// Two devices may bring the same file.
    fn mount(&mut self, destination: PathBuf, access: Access, kind: MountKind) {
        let request = MountRequest { destination, access, kind };
        if !self.mounts.contains(&request) {
            self.mounts.push(request);
        }
    }
}

fn absolute(path: &str, wrong: &dyn Fn(String) -> CdiError) -> Result<PathBuf, CdiError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(path.into())
    } else {
        Err(wrong(format!("{path:?} is no absolute path of this machine")))
    }
}

/// The devices that `--gpus` means: `all`, a count, `device=0,1` (quoted where there is more), as GPUs of a kind that
/// the specifications have. `driver=` and `capabilities=` choose among what NVIDIA's own hook does, and change nothing.
///
/// # Errors
/// What is wrong with the text.
pub fn gpus(text: &str, kinds: &BTreeMap<String, Vec<String>>) -> Result<Vec<DeviceName>, String> {
    const KINDS: [&str; 2] = ["nvidia.com/gpu", "amd.com/gpu"];
    let (mut count, mut names) = (None, None);
    let text = text.trim_matches('"');
    let mut fields = text.split(',').peekable();
    while let Some(field) = fields.next() {
        match field.trim_matches('"').split_once('=') {
            None if field == "all" => count = Some(usize::MAX),
            None => count = Some(field.parse().map_err(|_| format!("count must be an integer: {field:?}"))?),
            Some(("count", "all" | "-1")) => count = Some(usize::MAX),
            Some(("count", value)) => {
                count = Some(value.parse().map_err(|_| format!("count must be an integer: {value:?}"))?);
            }
            Some(("device", value)) => {
                let mut list = vec![value.to_owned()];
                // `"device=0,1"`: what follows belongs to it until the next key.
                while let Some(more) = fields.next_if(|next| !next.contains('=')) {
                    list.push(more.trim_matches('"').to_owned());
                }
                names = Some(list);
            }
            Some(("driver" | "capabilities" | "options", _)) => {
                while fields.next_if(|next| !next.contains('=')).is_some() {}
            }
            Some((key, _)) => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if count.is_some() && names.is_some() {
        return Err("cannot set both Count and DeviceIDs on device request".to_owned());
    }
    let (kind, known) = KINDS
        .iter()
        .find_map(|kind| Some((*kind, kinds.get(*kind)?)))
        .ok_or("no CDI specification of this machine has GPUs (`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` writes NVIDIA's)")?;
    let device = |name: &str| DeviceName { kind: kind.to_owned(), name: name.to_owned() };
    let wanted = match (names, count) {
        (Some(names), _) => names.iter().map(|name| device(name)).collect(),
        (None, Some(usize::MAX)) if known.iter().any(|name| name == "all") => vec![device("all")],
        (None, count) => {
            let count = count.unwrap_or(1);
            let single: Vec<_> = known.iter().filter(|name| name.parse::<u32>().is_ok()).collect();
            if count != usize::MAX && count > single.len() {
                return Err(format!("{count} GPUs were asked for, and {kind} has {}", single.len()));
            }
            single.into_iter().take(count).map(|name| device(name)).collect()
        }
    };
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specification(json: &serde_json::Value) -> Specification {
        serde_json::from_value(json.clone()).expect("a specification")
    }

    fn example() -> Vec<Vec<Specification>> {
        let first = serde_json::json!({
            "cdiVersion": "0.6.0", "kind": "example.com/gpu",
            "containerEdits": { "env": ["ALL=1"], "mounts": [
                { "hostPath": "/usr/lib/x.so", "containerPath": "/usr/lib/x.so", "options": ["ro", "nosuid", "rbind"] }] },
            "devices": [
                { "name": "0", "containerEdits": { "deviceNodes": [{ "path": "/dev/x0" }], "additionalGids": [44] } },
                { "name": "1", "containerEdits": { "deviceNodes": [{ "path": "/dev/x1", "hostPath": "/dev/y1" }] } },
            ]
        });
        let later = serde_json::json!({
            "cdiVersion": "0.6.0", "kind": "example.com/gpu",
            "devices": [
                { "name": "1", "containerEdits": { "env": ["LATER=1"] } },
                { "name": "hooked", "containerEdits": { "hooks": [{ "hookName": "createContainer", "path": "/usr/bin/h" }] } },
                { "name": "readable", "containerEdits": { "deviceNodes": [{ "path": "/dev/x", "permissions": "r" }] } },
            ]
        });
        vec![vec![specification(&first)], vec![specification(&later)]]
    }

    fn names(texts: &[&str]) -> Vec<DeviceName> {
        texts.iter().map(|text| DeviceName::parse(text).expect(text)).collect()
    }

    #[test]
    fn device_names() {
        for good in ["vendor.com/class=name", "a/b=0", "nvidia.com/gpu=GPU-1:2"] {
            assert!(DeviceName::is_one(good), "{good}");
        }
        for bad in ["/dev/x=y", "a/b", "a=b", "a/b=", "/b=c", "a/b=c/d", "-a/b=c", "a/b=c-", "a b/c=d"] {
            assert_eq!(DeviceName::parse(bad), Err(CdiError::Name(bad.to_owned())));
        }
    }

    #[test]
    fn edits_come_once_and_later_directories_first() {
        let added =
            resolve(&example(), &names(&["example.com/gpu=0", "example.com/gpu=1"])).expect("devices");
        let env: Vec<_> = added.env.iter().map(|setting| setting.name.as_str()).collect();
        assert_eq!((env, added.groups.as_slice()), (vec!["ALL", "LATER"], &[44][..]));
        let mounts: Vec<_> = added.mounts.iter().map(|mount| mount.destination.to_string_lossy()).collect();
        assert_eq!(mounts, ["/dev/x0", "/usr/lib/x.so"]);
        assert_eq!(added.mounts[1].access, Access::ReadOnly);
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (name, message) in [
            ("example.com/gpu=9", "unresolvable CDI device example.com/gpu=9"),
            (
                "example.com/gpu=hooked",
                "the CDI device example.com/gpu=hooked is not supported in this version: its specification has the createContainer hook /usr/bin/h, and no program of the machine is run for a container",
            ),
            (
                "example.com/gpu=readable",
                "the CDI device example.com/gpu=readable is not supported in this version: its specification has the permissions \"r\" for /dev/x, and without a device cgroup the node's own count",
            ),
        ] {
            let error = resolve(&example(), &names(&[name])).expect_err(name);
            assert_eq!(error.to_string(), message);
        }
        let mut twice = example();
        let again = twice[0][0].clone();
        twice[0].push(again);
        let error = resolve(&twice, &names(&["example.com/gpu=0"])).expect_err("twice");
        assert_eq!(error, CdiError::Ambiguous("example.com/gpu=0".into()));
    }

    #[test]
    fn gpus_are_devices() {
        let kinds =
            BTreeMap::from([("nvidia.com/gpu".to_owned(), vec!["0".to_owned(), "1".into(), "all".into()])]);
        let named = |text: &str| -> Result<Vec<String>, String> {
            Ok(gpus(text, &kinds)?.into_iter().map(|device| device.name).collect())
        };
        let table: [(&str, &[&str]); 7] = [
            ("all", &["all"]),
            ("1", &["0"]),
            ("count=2", &["0", "1"]),
            ("device=1", &["1"]),
            ("\"device=0,1\"", &["0", "1"]),
            ("all,capabilities=utility", &["all"]),
            ("driver=nvidia,count=all,\"capabilities=gpu,utility\"", &["all"]),
        ];
        for (text, devices) in table {
            assert_eq!(named(text), Ok(devices.iter().map(|name| (*name).to_owned()).collect()), "{text}");
        }
        for (text, message) in [
            ("3", "3 GPUs were asked for, and nvidia.com/gpu has 2"),
            ("some", "count must be an integer: \"some\""),
            ("nope=1", "unexpected key 'nope' in 'nope=1'"),
            ("count=1,device=0", "cannot set both Count and DeviceIDs on device request"),
        ] {
            assert_eq!(named(text), Err(message.to_owned()));
        }
        assert!(gpus("all", &BTreeMap::new()).is_err());
    }
}
