//! The command's side of the control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::control::{self, Reply, Request};
use crate::sandbox::namespaces::Namespaces;
use crate::store::containers::State;

/// A connection to a keeper.
#[derive(Debug)]
pub struct Client(OwnedFd);

impl Client {
    /// Connects to a control socket.
    ///
    /// # Errors
    /// ECONNREFUSED or ENOENT when the keeper is gone.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // By way of the directory, so that a path of any length fits (unix(7), 108 bytes).
        let dir = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let address = UnixAddr::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).as_str())?;
        loop {
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => return Ok(Self(fd)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// From the connection that [`super::launch`] returned.
    #[must_use]
    pub fn from_launch(keeper: OwnedFd) -> Self {
        Self(keeper)
    }

    /// Sends a request with descriptors. To a keeper that has just ended it is sent in vain: the
    /// next [`Self::receive`] tells.
    ///
    /// # Errors
    /// As sendmsg(2), or a request that is too long.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        match control::send(&self.0, request, fds) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// The namespaces of a running container, from its keeper; `None` when it is ending.
    ///
    /// # Errors
    /// As connect(2), sendmsg(2) and recvmsg(2), or InvalidData.
    pub fn namespaces(state: &State) -> io::Result<Option<Namespaces>> {
        let keeper = match Self::connect(&state.socket) {
            // It is gone.
            Err(error) if [libc::ECONNREFUSED, libc::ENOENT].map(Some).contains(&error.raw_os_error()) => {
                return Ok(None);
            }
            other => other?,
        };
        keeper.send(&Request::Namespaces, &[])?;
        match control::receive(&keeper.0) {
            Ok(Some((Reply::Namespaces { kinds }, files))) => Ok(Some(Namespaces::received(&kinds, files))),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From here on [`Self::receive`] fails with EAGAIN when nothing comes for so long.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_receive_limit(&self, seconds: i64) -> io::Result<()> {
        let limit = nix::sys::time::TimeVal::new(seconds, 0);
        Ok(nix::sys::socket::setsockopt(&self.0, nix::sys::socket::sockopt::ReceiveTimeout, &limit)?)
    }

    /// Waits for the next answer; `None` when the keeper went away without one.
    ///
    /// # Errors
    /// As recvmsg(2), or InvalidData.
    pub fn receive(&self) -> io::Result<Option<Reply>> {
        match control::receive(&self.0) {
            Ok(message) => Ok(message.map(|(reply, _)| reply)),
            // A keeper that was killed.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
