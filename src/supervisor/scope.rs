//! A control group from systemd, where none is delegated to the caller.
//!
//! A login session's processes are outside what systemd gives to a user (`user@UID.service`), and only systemd can
//! move them there. It is asked over the user's message bus for a scope of the container's own, which is
//! delegated: as `systemd-run --user --scope --property=Delegate=yes` does, and the keeper is what goes into it.
//! Its groups are then made below ([`super::cgroup`]).
//!
//! This is done for containers with limits only: in a scope of the user's they end with the user's last session,
//! unless the user lingers, and in the session's they do not have to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, getpid};

use super::cgroup;
use super::dbus::{Body, Connection, DbusError, Method};

const START: Method<'_> = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    name: "StartTransientUnit",
    signature: "ssa(sv)a(sa(sv))",
};
/// How often and how long to look whether systemd has moved this process: it does within milliseconds, later
/// where the machine is starved.
const ATTEMPTS: u32 = 5000;
const WAIT: Duration = Duration::from_millis(2);

/// A manager of the user's that can be asked.
#[derive(Debug)]
pub struct Manager {
    bus: PathBuf,
    /// The controllers that it has been given, and so can give.
    pub controllers: Vec<String>,
}

impl Manager {
    /// Looks for it; `None` where there is no systemd, no bus, or no control group of version 2.
    #[must_use]
    pub fn find() -> Option<Self> {
        let uid = Uid::effective().as_raw();
        let service = format!("/user.slice/user-{uid}.slice/user@{uid}.service");
        let controllers = cgroup::controllers_of(&service)?;
        let bus = bus(uid)?;
        (!controllers.is_empty()).then_some(Self { bus, controllers })
    }

    /// Has this process, and what it starts, put into a scope for the container; returns when it is there.
    ///
    /// # Errors
    /// systemd refuses, or takes too long.
    pub fn enter_scope(&self, id: &str) -> io::Result<()> {
        let unit = format!("hostel-{id}.scope");
        let failed = |error: DbusError| {
            io::Error::other(format!("systemd made no scope: {}", crate::sandbox::chain(&error)))
        };
        let mut connection = Connection::to_bus(&self.bus, Uid::effective().as_raw()).map_err(failed)?;
        connection.call(&START, &request(&unit, id)).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            if fs::read_to_string("/proc/self/cgroup")?.lines().any(|line| line.ends_with(&unit)) {
                return Ok(());
            }
            std::thread::sleep(WAIT);
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("systemd has not moved this process to {unit}")))
    }
}

/// The user's message bus: $DBUS_SESSION_BUS_ADDRESS, where it is a socket's path, else the usual place.
fn bus(uid: u32) -> Option<PathBuf> {
    let address = std::env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = runtime.unwrap_or_else(|| PathBuf::from(format!("/run/user/{uid}"))).join("bus");
    let path = socket_of(&address).unwrap_or(usual);
    // Somebody else's would be told to move our processes.
    fs::metadata(&path).is_ok_and(|meta| meta.uid() == uid).then_some(path)
}

/// The socket's path in a bus address (D-Bus Specification, "Server Addresses"); `%` escapes are left alone, since
/// no usual place has any.
fn socket_of(address: &str) -> Option<PathBuf> {
    let mut keys =
        address.split(';').filter_map(|part| part.strip_prefix("unix:")).flat_map(|part| part.split(','));
    keys.find_map(|key| key.strip_prefix("path="))
        .filter(|path| Path::new(path).is_absolute())
        .map(PathBuf::from)
}

/// What StartTransientUnit is asked (org.freedesktop.systemd1(5)).
fn request(unit: &str, id: &str) -> Body {
    let mut body = Body::default();
    body.text(unit);
    body.text("fail");
    body.array(8, |properties| {
        let mut property = |name: &str, signature: &str, write: &dyn Fn(&mut Body)| {
            properties.structure(|entry| {
                entry.text(name);
                entry.variant(signature, |value| write(value));
            });
        };
        property("Description", "s", &|value| value.text(&format!("hostel container {id}")));
        property("PIDs", "au", &|value| value.array(4, |pids| pids.number(getpid().as_raw().unsigned_abs())));
        property("Delegate", "b", &|value| value.number(1));
        // A scope whose processes have failed is forgotten like any other.
        property("CollectMode", "s", &|value| value.text("inactive-or-failed"));
    });
    body.array(8, |_| {});
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_where_its_address_says() {
        for (address, path) in [
            ("unix:path=/run/user/1000/bus", Some("/run/user/1000/bus")),
            ("unix:abstract=/x,guid=1;unix:path=/b,guid=2", Some("/b")),
            ("tcp:host=x", None),
            ("unix:path=relative", None),
            ("", None),
        ] {
            assert_eq!(socket_of(address), path.map(PathBuf::from), "{address}");
        }
    }
}
