//! Extended attributes: those of the lower layer until the first change, then the overlay's own.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::Overlay;
use super::acl::{self, Acl};
use super::change::{Change, Meta};
use super::journal::Need;
use super::state::Inode;
use crate::index::tree::Name;
use crate::serve::backend::{Answer, XattrFlags};

/// Bytes in all names and values of one inode: several times what ext4 takes, so that no program
/// that works there fails here, and yet nobody can fill the memory with them.
const LIMIT_BYTES: usize = 256 << 10;

/// Namespaces that a container may use; others do not exist on Linux.
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];

/// The ACLs that a new inode gets from its directory, as values of xattrs.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    access: Option<Box<[u8]>>,
    default: Option<Box<[u8]>>,
}

impl Inherited {
    pub(super) fn is_empty(&self) -> bool {
        self.access.is_none() && self.default.is_none()
    }

    pub(super) fn changes(self, ino: u64) -> Vec<Change> {
        let acls = [(acl::ACCESS, self.access), (acl::DEFAULT, self.default)];
        let set = |(name, value): (&[u8], Option<Box<[u8]>>)| {
            value.map(|value| Change::Xattr(ino, name.into(), Some(value)))
        };
        acls.into_iter().filter_map(set).collect()
    }
}

/// How what is taken up changes, in bytes.
#[derive(Clone, Copy, Debug)]
enum Charge {
    More(u64),
    Less(u64),
}

impl Overlay {
    pub(super) fn xattr(&self, ino: u64, name: &[u8]) -> Answer<Vec<u8>> {
        let own = self.own(ino, |xattrs| xattrs.get(name).map(|value| value.to_vec()));
        match own {
            Some(value) => value.ok_or(Errno::ENODATA),
            None if self.is_lower(ino) => self.lower.xattr(ino, name),
            None => Err(Errno::ENODATA),
        }
    }

    /// The names, each ended by a NUL.
    pub(super) fn xattr_list(&self, ino: u64) -> Answer<Vec<u8>> {
        let mut list = Vec::new();
        for name in self.xattr_names(ino)? {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    pub(super) fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], how: XattrFlags) -> Answer<()> {
        if !NAMESPACES.iter().any(|namespace| name.starts_with(namespace)) {
            return Err(Errno::EOPNOTSUPP);
        }
        let exists = match self.xattr(ino, name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(errno) => return Err(errno),
        };
        if exists && how.flags & libc::XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !exists && how.flags & libc::XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA);
        }
        if self.xattr_bytes(ino)? + name.len() + value.len() > LIMIT_BYTES {
            return Err(Errno::ENOSPC);
        }
        match name {
            acl::ACCESS => self.set_access_acl(ino, value, how.clear_setgid),
            acl::DEFAULT => {
                Acl::decode(value)?;
                if !self.meta(ino)?.is_directory() {
                    return Err(Errno::EACCES);
                }
                self.change_xattr(ino, name, Some(value.into()), |_| {})
            }
            _ => self.change_xattr(ino, name, Some(value.into()), |_| {}),
        }
    }

    /// An access ACL says what the mode says, and more: the mode follows it, and one that says no
    /// more is the mode.
    fn set_access_acl(&self, ino: u64, value: &[u8], clear_setgid: bool) -> Answer<()> {
        let acl = Acl::decode(value)?;
        let value = (!acl.is_mode_alone()).then(|| value.into());
        self.change_xattr(ino, acl::ACCESS, value, |meta| {
            meta.mode = acl.mode(meta.mode);
            if clear_setgid {
                meta.mode &= !libc::S_ISGID;
            }
        })
    }

    pub(super) fn remove_xattr(&self, ino: u64, name: &[u8]) -> Answer<()> {
        self.xattr(ino, name)?;
        self.change_xattr(ino, name, None, |_| {})
    }

    fn change_xattr(
        &self,
        ino: u64,
        name: &[u8],
        value: Option<Box<[u8]>>,
        edit_meta: impl FnOnce(&mut Meta),
    ) -> Answer<()> {
        let base = self.meta(ino)?;
        let own = self.own_xattrs(ino)?;
        let charge = self.xattr_charge(ino, name, value.as_deref())?;
        let need = if value.is_some() { Need::Space } else { Need::Release };
        let account = &self.upper()?.account;
        if let Charge::More(bytes) = charge {
            self.patiently(|| account.add_bytes(bytes))?;
        }
        let changed = self.commit(need, |edit| {
            edit.inode(ino, base, |meta| {
                meta.ctime = super::now();
                edit_meta(meta);
            });
            edit.extend(own);
            edit.push(Change::Xattr(ino, name.into(), value));
            Ok(())
        });
        match (charge, changed) {
            (Charge::More(bytes), Err(_)) | (Charge::Less(bytes), Ok(())) => account.remove_bytes(bytes),
            _ => {}
        }
        changed
    }

    /// How what an inode's xattrs take up changes.
    fn xattr_charge(&self, ino: u64, name: &[u8], value: Option<&[u8]>) -> Answer<Charge> {
        let before = self.read_state().get(ino).map_or(0, Inode::xattr_bytes);
        let all = self.xattr_bytes(ino)?;
        let old = self.xattr(ino, name).map_or(0, |old| old.len() + name.len());
        let after = all.saturating_sub(old) + value.map_or(0, |value| value.len() + name.len());
        Ok(if after >= before {
            Charge::More((after - before) as u64)
        } else {
            Charge::Less((before - after) as u64)
        })
    }

    /// What a new node in a directory inherits from its default ACL; without one, the umask counts.
    pub(super) fn inherit(&self, parent: u64, mode: u32, umask: u32) -> Answer<(u32, Inherited)> {
        let Some(value) = self.default_acl(parent)? else {
            return Ok((mode & !(umask & 0o777), Inherited::default()));
        };
        let is_directory = mode & libc::S_IFMT == libc::S_IFDIR;
        let (access, mode) = Acl::decode(&value)?.inherited(mode);
        let inherited = Inherited {
            access: (!access.is_mode_alone()).then(|| access.encode()),
            default: is_directory.then(|| value.into()),
        };
        Ok((mode, inherited))
    }

    fn default_acl(&self, ino: u64) -> Answer<Option<Vec<u8>>> {
        // Most filesystems have none: the lower layer is asked only where it could.
        if self.own(ino, |_| ()).is_none() && !self.lower.has_xattrs() {
            return Ok(None);
        }
        match self.xattr(ino, acl::DEFAULT) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The access ACL after a change of mode, as a change; none where there is no ACL.
    pub(super) fn acl_after_chmod(&self, ino: u64, mode: u32) -> Answer<Option<Change>> {
        if self.own(ino, |_| ()).is_none() && !self.lower.has_xattrs() {
            return Ok(None);
        }
        let value = match self.xattr(ino, acl::ACCESS) {
            Ok(value) => value,
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let value = Acl::decode(&value)?.with_mode(mode).encode();
        Ok(Some(Change::Xattr(ino, acl::ACCESS.into(), Some(value))))
    }

    /// The changes after which an inode's xattrs are the overlay's own: none if they are.
    pub(super) fn own_xattrs(&self, ino: u64) -> Answer<Vec<Change>> {
        if self.own(ino, |_| ()).is_some() {
            return Ok(Vec::new());
        }
        let mut changes = vec![Change::OwnXattrs(ino)];
        for name in self.xattr_names(ino)? {
            let value = self.xattr(ino, &name)?;
            changes.push(Change::Xattr(ino, name, Some(value.into())));
        }
        Ok(changes)
    }

    fn xattr_names(&self, ino: u64) -> Answer<Vec<Name>> {
        match self.own(ino, |xattrs| xattrs.keys().cloned().collect()) {
            Some(names) => Ok(names),
            None if self.is_lower(ino) => self.lower.xattr_names(ino),
            None => Ok(Vec::new()),
        }
    }

    fn xattr_bytes(&self, ino: u64) -> Answer<usize> {
        let own = self.read_state().get(ino).filter(|inode| inode.xattrs.is_some()).map(Inode::xattr_bytes);
        match own {
            Some(bytes) => Ok(bytes),
            None => {
                let mut bytes = 0;
                for name in self.xattr_names(ino)? {
                    bytes += name.len() + self.xattr(ino, &name)?.len();
                }
                Ok(bytes)
            }
        }
    }

    fn own<R>(&self, ino: u64, then: impl FnOnce(&BTreeMap<Name, Box<[u8]>>) -> R) -> Option<R> {
        self.read_state().get(ino).and_then(|inode| inode.xattrs.as_ref()).map(then)
    }

    fn is_lower(&self, ino: u64) -> bool {
        self.read_state().get(ino).is_none_or(|inode| inode.meta.lower)
    }
}
