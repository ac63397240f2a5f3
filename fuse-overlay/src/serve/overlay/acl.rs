//! POSIX ACLs: kept as the xattrs in which the kernel sends them, and checked by the kernel.
//!
//! What the kernel leaves to a filesystem is here: what a new file inherits, and that the mode
//! and the access ACL of a file say the same (acl(5), "correspondence between ACL entries and
//! file permission bits").

use nix::errno::Errno;

use crate::serve::backend::Answer;

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Bits of one class of permissions.
const ALL: u32 = 0o7;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u32,
    id: u32,
}

impl Acl {
    /// Reads an xattr's value. The kernel has checked it; one from an image it has not.
    pub(super) fn decode(value: &[u8]) -> Answer<Self> {
        let (version, rest) = value.split_first_chunk::<HEADER_BYTES>().ok_or(Errno::EINVAL)?;
        let (entries, rest) = rest.as_chunks::<ENTRY_BYTES>();
        if *version != VERSION.to_le_bytes() || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        let entries = entries.iter().map(|[t0, t1, p0, p1, id @ ..]| Entry {
            tag: u16::from_le_bytes([*t0, *t1]),
            permissions: u32::from(u16::from_le_bytes([*p0, *p1])) & ALL,
            id: u32::from_le_bytes(*id),
        });
        let acl = Self(entries.collect());
        let has_all = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| acl.find(*tag).is_some());
        if has_all { Ok(acl) } else { Err(Errno::EINVAL) }
    }

    pub(super) fn encode(&self) -> Box<[u8]> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&(entry.permissions as u16).to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value.into()
    }

    fn find(&self, tag: u16) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.tag == tag)
    }

    fn set(&mut self, tag: u16, permissions: u32) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.tag == tag) {
            entry.permissions = permissions & ALL;
        }
    }

    fn permissions(&self, tag: u16) -> u32 {
        self.find(tag).map_or(0, |entry| entry.permissions)
    }

    /// Which entry the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        if self.find(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    /// The mode that says the same, as far as a mode can, with the other bits of `mode`.
    pub(super) fn mode(&self, mode: u32) -> u32 {
        let group = self.permissions(self.group_class());
        mode & !0o777 | self.permissions(USER_OBJ) << 6 | group << 3 | self.permissions(OTHER)
    }

    /// Whether a mode says everything: then there is nothing to be kept.
    pub(super) fn is_mode_alone(&self) -> bool {
        !self.0.iter().any(|entry| matches!(entry.tag, USER | GROUP | MASK))
    }

    /// What this ACL becomes where the mode is changed.
    pub(super) fn with_mode(mut self, mode: u32) -> Self {
        self.set(USER_OBJ, mode >> 6);
        self.set(self.group_class(), mode >> 3);
        self.set(OTHER, mode);
        self
    }

    /// Of a default ACL: the access ACL of a file made with `mode`, and the mode it then has.
    pub(super) fn inherited(self, mode: u32) -> (Self, u32) {
        let limit = self.mode(0) & mode;
        let acl = self.with_mode(limit);
        (acl, mode & !0o777 | limit & 0o777)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u32, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|(tag, permissions, id)| Entry { tag: *tag, permissions: *permissions, id: *id })
            .collect())
    }

    const NONE: u32 = u32::MAX;

    #[test]
    fn survives_its_encoding_and_refuses_what_is_none() {
        let full = acl(&[
            (USER_OBJ, 6, NONE),
            (USER, 7, 1000),
            (GROUP_OBJ, 5, NONE),
            (MASK, 4, NONE),
            (OTHER, 0, NONE),
        ]);
        let value = full.encode();
        assert_eq!(Acl::decode(&value), Ok(full));
        for bad in [&value[..3], &value[..value.len() - 1], &value[..12], &[1, 0, 0, 0], &[]] {
            assert_eq!(Acl::decode(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn mode_and_acl_say_the_same() {
        let minimal = acl(&[(USER_OBJ, 6, NONE), (GROUP_OBJ, 4, NONE), (OTHER, 1, NONE)]);
        assert!(minimal.is_mode_alone());
        assert_eq!(minimal.mode(0o104777), 0o104641);
        assert_eq!(minimal.with_mode(0o750).mode(0), 0o750);
        let full = acl(&[
            (USER_OBJ, 7, NONE),
            (USER, 7, 5),
            (GROUP_OBJ, 7, NONE),
            (MASK, 5, NONE),
            (OTHER, 5, NONE),
        ]);
        assert!(!full.is_mode_alone());
        assert_eq!(full.mode(0), 0o755);
        // The mask, not the group's own entry, follows the mode.
        let narrowed = full.clone().with_mode(0o700);
        assert_eq!((narrowed.permissions(GROUP_OBJ), narrowed.permissions(MASK)), (7, 0));
        // The umask does not count, and nothing is given that was not asked for.
        let (access, mode) = full.inherited(0o100_660);
        assert_eq!(mode, 0o100_640);
        assert_eq!(
            (access.permissions(USER_OBJ), access.permissions(MASK), access.permissions(OTHER)),
            (6, 4, 0)
        );
        assert_eq!(access.permissions(USER), 7);
    }
}
