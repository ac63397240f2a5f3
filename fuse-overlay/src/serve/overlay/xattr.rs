//! Extended attributes: those of the lower layer until the first change, then the overlay's own.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::Overlay;
use super::change::Change;
use super::journal::Need;
use crate::index::tree::Name;
use crate::serve::backend::Answer;

/// Bytes in all names and values of one inode: several times what ext4 takes, so that no program
/// that works there fails here, and yet nobody can fill the memory with them.
const LIMIT_BYTES: usize = 256 << 10;

/// Namespaces that a container may use; others do not exist on Linux.
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];

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

    pub(super) fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Answer<()> {
        if !NAMESPACES.iter().any(|namespace| name.starts_with(namespace)) {
            return Err(Errno::EOPNOTSUPP);
        }
        let exists = match self.xattr(ino, name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(errno) => return Err(errno),
        };
        if exists && flags & libc::XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA);
        }
        if self.xattr_bytes(ino)? + name.len() + value.len() > LIMIT_BYTES {
            return Err(Errno::ENOSPC);
        }
        self.change_xattr(ino, name, Some(value.into()), Need::Space)
    }

    pub(super) fn remove_xattr(&self, ino: u64, name: &[u8]) -> Answer<()> {
        self.xattr(ino, name)?;
        self.change_xattr(ino, name, None, Need::Release)
    }

    fn change_xattr(&self, ino: u64, name: &[u8], value: Option<Box<[u8]>>, need: Need) -> Answer<()> {
        let base = self.meta(ino)?;
        let own = self.own_xattrs(ino)?;
        self.commit(need, |edit| {
            edit.inode(ino, base, |meta| meta.ctime = super::now());
            edit.extend(own);
            edit.push(Change::Xattr(ino, name.into(), value));
            Ok(())
        })
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
        let own = self
            .own(ino, |xattrs| xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>());
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
