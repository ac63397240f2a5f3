//! The numeric identity behind `-u` and USER, from the bytes of the container's own /etc/passwd and
//! /etc/group.
//!
//! The rules are those of Docker (the user package of runc's libcontainer). Both files belong to the
//! image: whatever they hold, resolving ends, in time linear in their length, with an answer or an
//! error. Unlike there, an entry whose id is not a number is skipped instead of read as 0, so that
//! a damaged file cannot make a user root. The caller cuts the files to a sensible size.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use thiserror::Error;

/// The highest id that may be asked for by number, as in Docker.
const MAX_ID: i64 = i32::MAX as i64;

/// The kernel's NGROUPS_MAX (limits.h): more supplementary groups than this cannot be set.
const MAX_GROUPS: usize = 65_536;

/// Why a user or group has no number. The wordings are Docker's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// A name that the passwd file does not have.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// A name that the group file does not have.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number that cannot be an id.
    #[error("uids and gids must be in range 0-2147483647")]
    Range,
}

/// Who the container's process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups: the primary one first (CVE-2022-36109), then those of the group file
    /// or `--group-add`, each once. Ids outside the container's map are still among them.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` for a user without an entry.
    pub home: PathBuf,
    /// The account's name, when it has an entry in UTF-8.
    pub name: Option<String>,
}

/// Resolves `[user][:group]`, each a name or a number; empty means uid 0.
///
/// A number needs no entry. Without an explicit group the entry's own counts, and the groups that
/// list the user are added. `group_add` takes names and numbers.
///
/// # Errors
/// A name without an entry, a number out of range.
pub fn resolve(
    spec: &str,
    passwd: &[u8],
    group: &[u8],
    group_add: &[String],
) -> Result<ResolvedUser, UserError> {
    let mut fields = spec.split(':');
    let (user, group_name) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
    let account = find_account(user, passwd)?;

    let mut gid = account.gid;
    let mut supplementary = Vec::new();
    if !group_name.is_empty() {
        gid = find_group(group_name, group)?;
    } else if let Some(name) = account.name {
        supplementary.extend(groups_of(name, group));
    }
    for name in group_add {
        supplementary.push(find_group(name, group)?);
    }

    let mut seen = BTreeSet::new();
    let additional_gids =
        std::iter::once(gid).chain(supplementary).filter(|gid| seen.insert(*gid)).take(MAX_GROUPS).collect();
    Ok(ResolvedUser {
        uid: account.uid,
        gid,
        additional_gids,
        home: PathBuf::from(OsStr::from_bytes(account.home)),
        name: account.name.and_then(|name| std::str::from_utf8(name).ok()).map(str::to_owned),
    })
}

struct Account<'a> {
    name: Option<&'a [u8]>,
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

const ROOT_DIRECTORY: &[u8] = b"/";

fn find_account<'a>(user: &str, passwd: &'a [u8]) -> Result<Account<'a>, UserError> {
    let number: Option<i64> = if user.is_empty() { Some(0) } else { user.parse().ok() };
    // A text that is a number is always taken as one, even where an account has it as its name.
    let found = entries(passwd).find_map(|mut fields| {
        let name = fields.next()?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let wanted = number.map_or(name == user.as_bytes(), |number| number == i64::from(uid));
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or(ROOT_DIRECTORY);
        wanted.then_some(Account { name: Some(name), uid, gid, home })
    });
    match (found, number) {
        (Some(account), _) => Ok(account),
        (None, None) => Err(UserError::NoUser(user.to_owned())),
        (None, Some(number)) => {
            Ok(Account { name: None, uid: checked_id(number)?, gid: 0, home: ROOT_DIRECTORY })
        }
    }
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Ok(number) = wanted.parse() {
        return checked_id(number);
    }
    entries(group)
        .find_map(|mut fields| {
            let name = fields.next()?;
            let gid = id(fields.nth(1)?)?;
            (name == wanted.as_bytes()).then_some(gid)
        })
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn groups_of<'a>(user: &'a [u8], group: &'a [u8]) -> impl Iterator<Item = u32> {
    entries(group).filter_map(move |mut fields| {
        let gid = id(fields.nth(2)?)?;
        fields.next()?.split(|byte| *byte == b',').any(|member| member == user).then_some(gid)
    })
}

/// The lines of an account file as fields between colons. A line with a NUL is no entry: neither a
/// name nor a path can hold one.
fn entries(file: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
    file.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.contains(&0))
        .map(|line| line.split(|byte| *byte == b':'))
}

/// An id in an account file. The highest number means "no change" to the kernel (chown(2)) and is
/// no id.
fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

fn checked_id(number: i64) -> Result<u32, UserError> {
    if (0..=MAX_ID).contains(&number) {
        u32::try_from(number).map_err(|_| UserError::Range)
    } else {
        Err(UserError::Range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        app:x:1000:1001:An app,,,:/srv/app:/bin/sh\n\
        4242:x:7:7::/home/number:/bin/sh\n\
        nohome:x:8:8\n";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:app,daemon\nvideo:x:44:app\napp:x:1001:\nbig:x:99:app,app\n";

    type Row = (&'static str, u32, u32, &'static [u32], &'static str, Option<&'static str>);

    #[test]
    fn users_and_groups() {
        let table: [Row; 13] = [
            ("", 0, 0, &[0], "/root", Some("root")),
            ("root", 0, 0, &[0], "/root", Some("root")),
            ("0", 0, 0, &[0], "/root", Some("root")),
            ("app", 1000, 1001, &[1001, 4, 44, 99], "/srv/app", Some("app")),
            ("1000", 1000, 1001, &[1001, 4, 44, 99], "/srv/app", Some("app")),
            ("app:", 1000, 1001, &[1001, 4, 44, 99], "/srv/app", Some("app")),
            ("app:video", 1000, 44, &[44], "/srv/app", Some("app")),
            ("app:5000", 1000, 5000, &[5000], "/srv/app", Some("app")),
            ("5000", 5000, 0, &[0], "/", None),
            ("5000:adm", 5000, 4, &[4], "/", None),
            (":adm", 0, 4, &[4], "/root", Some("root")),
            ("7", 7, 7, &[7], "/home/number", Some("4242")),
            ("nohome", 8, 8, &[8], "/", Some("nohome")),
        ];
        for (spec, uid, gid, groups, home, name) in table {
            let user = resolve(spec, PASSWD, GROUP, &[]).expect(spec);
            assert_eq!((user.uid, user.gid), (uid, gid), "{spec}");
            assert_eq!(user.additional_gids, groups, "{spec}");
            assert_eq!(user.home, PathBuf::from(home), "{spec}");
            assert_eq!(user.name.as_deref(), name, "{spec}");
        }
    }

    #[test]
    fn a_number_is_never_a_name() {
        assert_eq!(resolve("4242", PASSWD, GROUP, &[]).map(|user| user.uid), Ok(4242));
    }

    #[test]
    fn errors_have_dockers_words() {
        let table = [
            ("nobody", "unable to find user nobody: no matching entries in passwd file"),
            ("app:nogroup", "unable to find group nogroup: no matching entries in group file"),
            ("-1", "uids and gids must be in range 0-2147483647"),
            ("2147483648", "uids and gids must be in range 0-2147483647"),
            ("app:2147483648", "uids and gids must be in range 0-2147483647"),
            (
                "99999999999999999999",
                "unable to find user 99999999999999999999: no matching entries in passwd file",
            ),
        ];
        for (spec, message) in table {
            assert_eq!(resolve(spec, PASSWD, GROUP, &[]).map_err(|e| e.to_string()), Err(message.into()));
        }
    }

    #[test]
    fn added_groups_come_last_and_once() {
        let add = ["video".to_owned(), "7".to_owned(), "4".to_owned()];
        let user = resolve("app:adm", PASSWD, GROUP, &add).expect("known");
        assert_eq!(user.additional_gids, [4, 44, 7]);
        let unknown = resolve("", PASSWD, GROUP, &["nope".to_owned()]);
        assert_eq!(unknown, Err(UserError::NoGroup("nope".into())));
    }

    #[test]
    fn hostile_files_give_an_answer_or_an_error() {
        // Ids that are no numbers, too large or "no change" never become root's.
        let bad = b"a::x:0::/:\nb::4294967295:0::/:\nc::4294967296:0::/:\nd::-1:0::/:\ne:::::/:\nf\ng:x\n";
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            assert_eq!(resolve(name, bad, b"", &[]), Err(UserError::NoUser(name.into())));
        }
        // A NUL, no newline at the end, carriage returns, empty lines, bytes that are no text.
        let odd = b"\n\n  \r\nz\0z:x:1:1::/:\nz:x:2:2::/z\0:\n\xff\xfe:x:3:3::/\xff:\r\nz:x:5:6::/z:/s";
        assert_eq!(resolve("z", odd, b"", &[]).map(|user| (user.uid, user.gid)), Ok((5, 6)));
        let user = resolve("3", odd, b"", &[]).expect("an entry without a printable name");
        assert_eq!(user.name, None);
        assert_eq!(user.home.as_os_str().as_bytes(), b"/\xff");
        // A line of a million fields, and more groups than can be set.
        let long = [b":".repeat(1_000_000), b"\nz:x:1:1::/:\n".to_vec()].concat();
        assert_eq!(resolve("z", &long, &long, &[]).map(|user| user.uid), Ok(1));
        let many: String = (2..100_000).map(|gid| format!("g{gid}:x:{gid}:z\n")).collect();
        let user = resolve("z", b"z:x:1:1::/:", many.as_bytes(), &[]).expect("known");
        assert_eq!(user.additional_gids.len(), MAX_GROUPS);
    }
}
