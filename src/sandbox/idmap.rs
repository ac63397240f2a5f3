//! Which user and group ids the container has, and writing them for a new user namespace.
//!
//! Three ways, tried in this order: the caller's subordinate ranges through newuidmap and
//! newgidmap; a direct map where the caller has capabilities (started by root); one single id.
//! Everything above works with each of them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::unistd::{Gid, Pid, Uid};
use serde::{Deserialize, Serialize};

use super::{Context as _, Failure, Stage, Staged};

/// `(first id inside, first id outside, count)`.
pub type Extent = (u32, u32, u32);

/// A container gets at most this many ids: what images use (0-65535, with nobody at 65534).
const MAX_IDS: u32 = 65_536;

/// The maps of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<Extent>,
    /// Group ids.
    pub gids: Vec<Extent>,
    /// How they are written.
    pub method: Method,
}

/// How a map is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// By the set-uid helpers, with the ranges of /etc/subuid and /etc/subgid.
    Helpers {
        /// Path of newuidmap.
        newuidmap: PathBuf,
        /// Path of newgidmap.
        newgidmap: PathBuf,
    },
    /// By this process, which has the capability for it.
    Direct,
    /// By this process: the caller's own id and no other, supplementary groups given up.
    SingleId {
        /// Why there is no range, for `info` and for hints.
        reason: String,
    },
}

impl IdMaps {
    /// Whether the container's root is the user, as usual: what the user owns is root's inside.
    #[must_use]
    pub fn root_is(&self, uid: u32, gid: u32) -> bool {
        self.host_uid(0) == Some(uid) && self.host_gid(0) == Some(gid)
    }

    /// The user's ids inside, where others are root's: what the user has on the machine is reached as this.
    #[must_use]
    pub fn kept(&self) -> Option<(u32, u32)> {
        let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
        let kept = self.inside_uid(uid).zip(self.inside_gid(gid))?;
        (!self.is_single() && !self.root_is(uid, gid)).then_some(kept)
    }

    /// How many user ids the container has, counted from 0 without a gap.
    #[must_use]
    pub fn uid_count(&self) -> u32 {
        count(&self.uids)
    }

    /// How many group ids.
    #[must_use]
    pub fn gid_count(&self) -> u32 {
        count(&self.gids)
    }

    /// Whether only one id is mapped.
    #[must_use]
    pub fn is_single(&self) -> bool {
        matches!(self.method, Method::SingleId { .. })
    }

    /// The id on the machine behind one of the container's.
    #[must_use]
    pub fn host_uid(&self, inside: u32) -> Option<u32> {
        translate(&self.uids, inside)
    }

    /// As [`Self::host_uid`], for groups.
    #[must_use]
    pub fn host_gid(&self, inside: u32) -> Option<u32> {
        translate(&self.gids, inside)
    }

    /// The container's id for one on the machine.
    #[must_use]
    pub fn inside_uid(&self, host: u32) -> Option<u32> {
        translate(&turned(&self.uids), host)
    }

    /// As [`Self::inside_uid`], for groups.
    #[must_use]
    pub fn inside_gid(&self, host: u32) -> Option<u32> {
        translate(&turned(&self.gids), host)
    }

    /// The first user id that is mapped: what the container's set-up runs as.
    #[must_use]
    pub fn first_uid(&self) -> u32 {
        self.uids.first().map_or(0, |extent| extent.0)
    }

    /// As [`Self::first_uid`], for groups.
    #[must_use]
    pub fn first_gid(&self) -> u32 {
        self.gids.first().map_or(0, |extent| extent.0)
    }
}

fn count(map: &[Extent]) -> u32 {
    map.iter().fold(0, |end, (first, _, count)| if *first == end { end.saturating_add(*count) } else { end })
}

fn translate(map: &[Extent], inside: u32) -> Option<u32> {
    map.iter().find_map(|(first, host, count)| {
        let offset = inside.checked_sub(*first).filter(|offset| offset < count)?;
        host.checked_add(offset)
    })
}

fn turned(map: &[Extent]) -> Vec<Extent> {
    map.iter().map(|(inside, host, count)| (*host, *inside, *count)).collect()
}

/// What decides about the maps; gathered by [`Facts::gather`], so that the decision is testable.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// The caller's login name, when it is known.
    pub user: Option<String>,
    /// Text of /etc/subuid.
    pub subuid: String,
    /// Text of /etc/subgid.
    pub subgid: String,
    /// The helpers, when both were found with the privilege that they need.
    pub helpers: Option<(PathBuf, PathBuf)>,
    /// Whether the caller may write any map (root).
    pub privileged: bool,
    /// How many ids the caller's own user namespace has from 0 on.
    pub own_ids: u32,
}

impl Facts {
    /// Looks at this machine.
    #[must_use]
    pub fn gather() -> Self {
        let uid = Uid::effective().as_raw();
        let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let needs_name = uid != 0 && !subuid.is_empty();
        let helper = |name: &str| find_helper(name);
        Self {
            uid,
            gid: Gid::effective().as_raw(),
            user: if needs_name { own_login_name(uid) } else { None },
            subgid: fs::read_to_string("/etc/subgid").unwrap_or_default(),
            helpers: if uid == 0 || subuid.is_empty() {
                None
            } else {
                helper("newuidmap").zip(helper("newgidmap"))
            },
            subuid,
            privileged: uid == 0,
            own_ids: own_id_count(),
        }
    }
}

/// What is asked of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The user is the container's root.
    Usual,
    /// As [`Self::Usual`]; but where there is one id only, it is this user's and group's, so that an image
    /// whose USER is not root still runs.
    Only(u32, u32),
    /// The user has these ids inside (`--userns keep-id`).
    KeepId(u32, u32),
}

impl Wanted {
    /// What a plan asks for.
    #[must_use]
    pub fn of(plan: &crate::plan::ContainerPlan) -> Self {
        match &plan.keep_id {
            Some(keep) => Self::KeepId(keep.uid, keep.gid),
            None => numeric_user(&plan.user).map_or(Self::Usual, |(uid, gid)| Self::Only(uid, gid)),
        }
    }
}

/// `-u 1000` or `-u 1000:1000`.
fn numeric_user(user: &str) -> Option<(u32, u32)> {
    let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
    let uid = uid.parse().ok()?;
    Some((uid, if gid.is_empty() { 0 } else { gid.parse().ok()? }))
}

/// Decides the maps.
#[must_use]
pub fn choose(facts: &Facts, wanted: Wanted) -> IdMaps {
    let single = |reason: &str| {
        let (uid, gid) = match wanted {
            Wanted::Usual => (0, 0),
            Wanted::Only(uid, gid) | Wanted::KeepId(uid, gid) => (uid, gid),
        };
        IdMaps {
            uids: vec![(uid, facts.uid, 1)],
            gids: vec![(gid, facts.gid, 1)],
            method: Method::SingleId { reason: reason.to_owned() },
        }
    };
    if facts.privileged && facts.own_ids == 1 {
        // Root of a user namespace of one id, where setgroups(2) is refused as well.
        return single("the user namespace that this runs in has one id");
    }
    if facts.privileged {
        let count = facts.own_ids.min(MAX_IDS);
        return IdMaps { uids: vec![(0, 0, count)], gids: vec![(0, 0, count)], method: Method::Direct };
    }
    let range = |text: &str| subordinate_range(text, facts.user.as_deref(), facts.uid);
    match (range(&facts.subuid), range(&facts.subgid), &facts.helpers) {
        (Some(uids), Some(gids), Some((newuidmap, newgidmap))) => {
            let (inside_uid, inside_gid) = match wanted {
                Wanted::KeepId(uid, gid) => (uid, gid),
                Wanted::Usual | Wanted::Only(..) => (0, 0),
            };
            IdMaps {
                uids: around(inside_uid, facts.uid, uids),
                gids: around(inside_gid, facts.gid, gids),
                method: Method::Helpers { newuidmap: newuidmap.clone(), newgidmap: newgidmap.clone() },
            }
        }
        (Some(_), Some(_), None) => {
            single("newuidmap or newgidmap is not installed set-uid (Debian: package uidmap)")
        }
        _ => single("this account has no range in /etc/subuid and /etc/subgid"),
    }
}

/// One own id at `inside`, and a subordinate range below and above it. An id beyond the range's end has none
/// above, and a gap below.
fn around(inside: u32, own: u32, (first, count): (u32, u32)) -> Vec<Extent> {
    let count = count.min(MAX_IDS - 1);
    let below = inside.min(count);
    let mut map = Vec::new();
    if below > 0 {
        map.push((0, first, below));
    }
    map.push((inside, own, 1));
    if count > below {
        map.push((inside + 1, first + below, count - below));
    }
    map
}

/// The first range of a user in the text of /etc/subuid: `name-or-uid:first:count` (subuid(5)).
fn subordinate_range(text: &str, user: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if Some(owner) != user && owner.parse() != Ok(uid) {
            return None;
        }
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        (count > 0).then_some((first, count))
    })
}

/// Finds a helper that has the privilege it needs: set-uid root, or a file capability.
fn find_helper(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]).map(|dir| dir.join(name)).find(|path| {
        fs::metadata(path).is_ok_and(|meta| {
            let executable = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
            let set_uid = meta.permissions().mode() & 0o4000 != 0 && meta.uid() == 0;
            executable && (set_uid || has_file_capability(path))
        })
    })
}

fn has_file_capability(path: &Path) -> bool {
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    path.is_ok_and(|path| crate::sys::fd::has_xattr(&path, c"security.capability"))
}

/// As [`login_name`], asked once in a process: a start looks at the machine several times, and getent may have to
/// ask a server.
fn own_login_name(uid: u32) -> Option<String> {
    static KNOWN: OnceLock<(u32, Option<String>)> = OnceLock::new();
    match KNOWN.get_or_init(|| (uid, login_name(uid))) {
        (known, name) if *known == uid => name.clone(),
        _ => login_name(uid), // a child with other ids
    }
}

/// The caller's login name: /etc/passwd first; then getent, because a static binary cannot load the
/// NSS modules through which accounts of LDAP or sssd are known.
#[must_use]
pub fn login_name(uid: u32) -> Option<String> {
    let from_passwd = |text: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    from_passwd(&passwd).or_else(|| {
        let output =
            Command::new("getent").args(["passwd", &uid.to_string()]).stderr(Stdio::null()).output().ok()?;
        from_passwd(&String::from_utf8_lossy(&output.stdout))
    })
}

fn own_id_count() -> u32 {
    let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let first: u32 = fields.next()?.parse().ok()?;
            let count = fields.nth(1)?.parse().ok()?;
            (first == 0).then_some(count)
        })
        .unwrap_or(1)
}

/// The helpers at work on one process: started by [`IdMaps::begin`], awaited by [`Writing::finish`].
#[derive(Debug)]
pub struct Writing(Vec<(&'static str, Child)>);

impl IdMaps {
    /// Begins to write the maps of a process that was cloned into a new user namespace and is
    /// dumpable. Both helpers run at once.
    ///
    /// # Errors
    /// When a file cannot be written or a helper cannot be started.
    pub fn begin(&self, pid: Pid) -> Staged<Writing> {
        let write = |file: &str, text: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .during(Stage::Namespaces, || format!("cannot write {path} ({})", text.trim()))
        };
        match &self.method {
            Method::Helpers { newuidmap, newgidmap } => {
                let start = |program: &Path, map: &[Extent]| {
                    Command::new(program)
                        .arg(pid.to_string())
                        .args(map.iter().flat_map(|(inside, outside, count)| {
                            [inside.to_string(), outside.to_string(), count.to_string()]
                        }))
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .stderr(Stdio::piped())
                        .spawn()
                        .during(Stage::Namespaces, || format!("cannot run {}", program.display()))
                };
                Ok(Writing(vec![
                    ("newuidmap", start(newuidmap, &self.uids)?),
                    ("newgidmap", start(newgidmap, &self.gids)?),
                ]))
            }
            Method::Direct => {
                write("uid_map", &lines(&self.uids))?;
                write("gid_map", &lines(&self.gids))?;
                Ok(Writing(Vec::new()))
            }
            Method::SingleId { .. } => {
                // An unprivileged gid map is accepted only once setgroups(2) is given up (user_namespaces(7)).
                write("setgroups", "deny")?;
                write("uid_map", &lines(&self.uids))?;
                write("gid_map", &lines(&self.gids))?;
                Ok(Writing(Vec::new()))
            }
        }
    }
}

fn lines(map: &[Extent]) -> String {
    map.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
}

impl Writing {
    /// Waits until the maps are in force.
    ///
    /// # Errors
    /// What a helper said when it refused.
    pub fn finish(self) -> Staged<()> {
        for (name, child) in self.0 {
            let output =
                child.wait_with_output().during(Stage::Namespaces, || format!("cannot wait for {name}"))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(Failure::plain(Stage::Namespaces, format!("{name} refused: {}", said.trim()))
                    .hint("compare /etc/subuid and /etc/subgid with what it says; `hostel info` shows the ranges in use"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            uid: 1000,
            gid: 1001,
            user: Some("ann".into()),
            subuid: "bob:100000:65536\nann:165536:65536\n".into(),
            subgid: "1000:200000:1000\n".into(),
            helpers: Some(("/usr/bin/newuidmap".into(), "/usr/bin/newgidmap".into())),
            privileged: false,
            own_ids: u32::MAX,
        }
    }

    #[test]
    fn a_range_is_used_with_the_callers_own_id_as_root() {
        let maps = choose(&facts(), Wanted::Usual);
        assert_eq!(maps.uids, [(0, 1000, 1), (1, 165_536, 65_535)]);
        assert_eq!(maps.gids, [(0, 1001, 1), (1, 200_000, 1000)]);
        assert_eq!((maps.uid_count(), maps.gid_count()), (65_536, 1001));
        assert_eq!(maps.host_uid(33), Some(165_568));
        assert_eq!(maps.host_uid(65_536), None);
    }

    #[test]
    fn the_callers_ids_are_kept_inside() {
        let table = [
            ((1000, 1001), vec![(0, 165_536, 1000), (1000, 1000, 1), (1001, 166_536, 64_535)], 65_536),
            ((0, 0), vec![(0, 1000, 1), (1, 165_536, 65_535)], 65_536),
            ((65_535, 0), vec![(0, 165_536, 65_535), (65_535, 1000, 1)], 65_536),
            ((1_234_567, 0), vec![(0, 165_536, 65_535), (1_234_567, 1000, 1)], 65_535),
        ];
        for ((uid, gid), uids, count) in table {
            let maps = choose(&facts(), Wanted::KeepId(uid, gid));
            assert_eq!((&maps.uids, maps.uid_count()), (&uids, count), "{uid}");
            assert_eq!(maps.host_gid(gid), Some(1001));
            assert_eq!(maps.root_is(1000, 1001), (uid, gid) == (0, 0));
        }
    }

    #[test]
    fn without_range_or_helpers_there_is_one_id() {
        for (spoil, asked, expected) in [
            ((|facts: &mut Facts| facts.subuid.clear()) as fn(&mut Facts), Wanted::Usual, (0, 1000, 1)),
            (|facts| facts.helpers = None, Wanted::Only(33, 33), (33, 1000, 1)),
            (|facts| facts.helpers = None, Wanted::KeepId(1000, 7), (1000, 1000, 1)),
            (|facts| facts.subgid = "ann:x:y".into(), Wanted::Usual, (0, 1000, 1)),
        ] {
            let mut facts = facts();
            spoil(&mut facts);
            let maps = choose(&facts, asked);
            assert_eq!(maps.uids, [expected]);
            assert!(maps.is_single());
        }
    }

    #[test]
    fn root_maps_what_its_own_namespace_has() {
        let maps = choose(&Facts { privileged: true, uid: 0, own_ids: 10, ..facts() }, Wanted::Usual);
        assert_eq!((maps.uids, maps.method), (vec![(0, 0, 10)], Method::Direct));
    }
}
