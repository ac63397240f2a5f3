//! A store on a filesystem as homes have them: no xattrs, no hard links, locks that fail, owners that
//! cannot be changed, and every request takes a while.
//!
//! The filesystem is a FUSE server of this file over an ordinary directory, mounted in a user
//! namespace of its own, so that nothing is left when the test ends. It speaks the kernel's protocol
//! itself (include/uapi/linux/fuse.h), some thirty requests, because no filesystem at hand refuses
//! what an NFS server does.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use nix::libc;

use crate::fixtures;
use crate::harness::{Hostel, skip};

/// What a round trip to a server takes, about.
const LATENCY: Duration = Duration::from_micros(200);
const BUFFER_BYTES: usize = (1 << 20) + 4096;
const SERVE: &str = "HOSTEL_TEST_REMOTE";

#[test]
fn a_store_on_a_remote_filesystem_keeps_its_locks_and_uppers_elsewhere() {
    let Some(archive) = fixtures::busybox_archive() else { return skip("no busybox-static") };
    let h = Hostel::empty();
    if h.program("unshare", &["-Um", "--map-current-user", "--keep-caps", "true"]).run().exit_code() != 0 {
        return skip("unshare -Um is not allowed here");
    }
    let (behind, mount, local) = (h.scratch("behind"), h.scratch("mount"), h.scratch("local"));
    fs::set_permissions(&local, fs::Permissions::from_mode(0o700)).unwrap();
    let script = format!(
        "set -e
        export HOSTEL_ROOT={mount}/root HOSTEL_LOCAL_DIR={local}
        ln {mount}/a {mount}/b 2>/dev/null && exit 90
        touch {mount}/probe; flock {mount}/probe true 2>/dev/null && exit 91
        $HOSTEL load -q -i {archive}
        $HOSTEL run --rm busybox sh -c 'echo changed > /etc/passwd; cat /etc/passwd'
        $HOSTEL run -d --name stays busybox sh -c 'echo kept > /kept; trap exit TERM; while :; do sleep 0.05; done' >/dev/null
        until $HOSTEL exec stays cat /kept 2>/dev/null; do sleep 0.05; done
        test -L {mount}/root/containers/*/lock
        ls {local}/*/*/upper >/dev/null
        $HOSTEL stop -t 5 stays >/dev/null
        $HOSTEL start stays >/dev/null
        $HOSTEL exec stays cat /kept
        test \"$(HOSTEL_ADDITIONAL_IMAGE_STORES= $HOSTEL ps -q | wc -l)\" = 1
        # Another machine's: shown, and left alone.
        $HOSTEL create --name other busybox true >/dev/null
        record=$(grep -l '\"name\":\"other\"' {mount}/root/containers/*/record.json)
        sed -i 's/\"machine_id\":\"[^\"]*\"/\"machine_id\":\"ffff\"/' $record
        rm -r $(readlink $(dirname $record)/local)
        $HOSTEL ps -a --filter name=other --format '{{{{.Status}}}}'
        $HOSTEL rm -f other 2>&1 | grep -o 'belongs to another machine' || exit 92
        # This machine's, whose local directory was wiped: it can be removed.
        sed -i 's/\"machine_id\":\"ffff\"/\"machine_id\":\"'$(cat /etc/machine-id)'\"/' $record
        $HOSTEL rm -f other stays
        $HOSTEL image verify -q
        $HOSTEL rmi -f busybox:1 >/dev/null
        $HOSTEL image prune -a -f >/dev/null
        $HOSTEL ps -a -q; ls {local}/* | grep -v lock || true
        ls {mount}/root/layers {mount}/root/tmp",
        mount = mount.display(),
        local = local.display(),
        archive = archive.display(),
    );
    let me = std::env::current_exe().unwrap().display().to_string();
    let serve = [
        "-Um",
        "--map-current-user",
        "--keep-caps",
        &me,
        "--exact",
        "--nocapture",
        "--ignored",
        "remote_fs::serve",
    ];
    let done = h
        .program("unshare", &serve)
        .env(SERVE, &format!("{}\n{}\n{script}", behind.display(), mount.display()))
        .run();
    done.ok();
    let said: Vec<&str> =
        done.stdout.lines().filter(|line| line.starts_with('/') || !line.contains("test")).collect();
    let layers = format!("{}/root/layers:", mount.display());
    let tmp = format!("{}/root/tmp:", mount.display());
    let wanted = [
        "changed",
        "kept",
        "kept",
        "On another machine (ffff)",
        "belongs to another machine",
        "other",
        "stays",
        &layers,
        "",
        &tmp,
    ];
    let said: Vec<&str> = said.into_iter().filter(|line| !line.starts_with("Loaded image")).collect();
    let start = said.iter().position(|line| *line == "changed").unwrap_or(0);
    assert_eq!(&said[start..][..wanted.len().min(said.len() - start)], wanted, "{}", done.stdout);
}

/// No test: the process that serves the filesystem and runs the script on it.
#[test]
#[ignore = "a part of the test above"]
fn serve() {
    let Ok(order) = std::env::var(SERVE) else { return };
    let mut parts = order.splitn(3, '\n');
    let (behind, place, script) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
    nix::mount::mount(Some("remote"), place, Some("fuse"), flags, Some(options.as_str())).unwrap();
    let behind = PathBuf::from(behind);
    thread::spawn(move || Server::new(behind).serve(&device));
    // The kernel knows no owner of the root until it has asked for one, and lets nobody write there.
    fs::metadata(place).unwrap();
    // newuidmap cannot work below a namespace of one id: nobody has a range here.
    for file in ["/etc/subuid", "/etc/subgid"] {
        let none: Option<&str> = None;
        if Path::new(file).exists() {
            nix::mount::mount(Some("/dev/null"), file, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        }
    }
    // Without the capabilities that the mount needed: hostel is to be an ordinary user's.
    let status = Command::new("setpriv")
        .args(["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "sh", "-c", script])
        .env_remove(SERVE)
        .status()
        .unwrap();
    std::process::exit(status.code().unwrap_or(99));
}

/// Takes numbers and names from a request.
struct Request<'a>(&'a [u8]);

impl<'a> Request<'a> {
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }

    fn name(&mut self) -> &'a OsStr {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let name = OsStr::from_bytes(self.bytes(end));
        self.bytes(1);
        name
    }
}

type Reply = Result<Vec<u8>, i32>;

struct Server {
    paths: HashMap<u64, PathBuf>,
    nodes: HashMap<PathBuf, u64>,
    files: HashMap<u64, File>,
    next: u64,
}

impl Server {
    fn new(root: PathBuf) -> Self {
        let nodes = HashMap::from([(root.clone(), 1)]);
        Self { paths: HashMap::from([(1, root)]), nodes, files: HashMap::new(), next: 2 }
    }

    fn serve(mut self, mut device: &File) {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(count) = device.read(&mut buffer) {
            let mut request = Request(&buffer[..count]);
            let (_, code, unique, node) = (request.u32(), request.u32(), request.u64(), request.u64());
            request.bytes(16);
            thread::sleep(LATENCY);
            // FORGET, BATCH_FORGET and INTERRUPT have no answer; nodes are never forgotten here.
            if matches!(code, 2 | 36 | 42) {
                continue;
            }
            let (error, body) = match self.answer(code, node, request) {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend((16 + body.len() as u32).to_le_bytes());
            reply.extend(error.to_le_bytes());
            reply.extend(unique.to_le_bytes());
            reply.extend(body);
            // A request that was interrupted meanwhile has nobody to answer.
            let _ = device.write_all(&reply);
        }
    }

    fn answer(&mut self, code: u32, node: u64, mut request: Request<'_>) -> Reply {
        if code == 26 {
            return Ok(init(&mut request));
        }
        let path = self.paths.get(&node).cloned().unwrap_or_default();
        match code {
            1 => self.entry(path.join(request.name())),
            3 => {
                let (flags, _, handle) = (request.u32(), request.u32(), request.u64());
                let file = self.files.get(&handle).filter(|_| flags & 1 != 0);
                let metadata = file.map_or_else(|| fs::symlink_metadata(&path), File::metadata);
                metadata.map(|metadata| attr_out(node, &metadata)).map_err(|error| errno(&error))
            }
            4 => self.set(node, &path, request),
            5 => fs::read_link(&path).map(|link| link.as_os_str().as_bytes().to_vec()).map_err(|e| errno(&e)),
            6 => {
                let (name, target) = (request.name(), request.name());
                done(std::os::unix::fs::symlink(target, path.join(name)))?;
                self.entry(path.join(name))
            }
            8 => {
                let (mode, _, _, _) = (request.u32(), request.u32(), request.u32(), request.u32());
                let place = path.join(request.name());
                if mode & libc::S_IFMT != libc::S_IFREG {
                    return Err(libc::EPERM);
                }
                done(OpenOptions::new().write(true).create_new(true).mode(mode).open(&place))?;
                self.entry(place)
            }
            9 => {
                let (mode, _) = (request.u32(), request.u32());
                let place = path.join(request.name());
                done(fs::create_dir(&place))?;
                done(fs::set_permissions(&place, fs::Permissions::from_mode(mode & 0o7777)))?;
                self.entry(place)
            }
            10 => done(fs::remove_file(path.join(request.name()))),
            11 => done(fs::remove_dir(path.join(request.name()))),
            12 => {
                let target = request.u64();
                self.rename(&path, target, request)
            }
            45 => {
                let (target, flags, _) = (request.u64(), request.u32(), request.u32());
                if flags != 0 { Err(libc::EINVAL) } else { self.rename(&path, target, request) }
            }
            14 | 27 => self.open(&path, request.u32(), None),
            35 => {
                let (flags, mode, _, _) = (request.u32(), request.u32(), request.u32(), request.u32());
                let place = path.join(request.name());
                let opened = self.open(&place, flags, Some(mode))?;
                let mut reply = self.entry(place)?;
                reply.extend(opened);
                Ok(reply)
            }
            15 => {
                let (handle, offset, size) = (request.u64(), request.u64(), request.u32());
                let mut data = vec![0; size as usize];
                let file = self.files.get(&handle).ok_or(libc::EBADF)?;
                let count = file.read_at(&mut data, offset).map_err(|error| errno(&error))?;
                data.truncate(count);
                Ok(data)
            }
            16 => {
                let (handle, offset, size) = (request.u64(), request.u64(), request.u32());
                request.bytes(20);
                let file = self.files.get(&handle).ok_or(libc::EBADF)?;
                done(file.write_all_at(request.bytes(size as usize), offset))?;
                Ok([size.to_le_bytes(), [0; 4]].concat())
            }
            17 => Ok(statfs()),
            18 | 29 => {
                self.files.remove(&request.u64());
                Ok(Vec::new())
            }
            20 | 25 | 30 | 34 | 38 => Ok(Vec::new()),
            28 => self.list(&path, request),
            // What this filesystem is about.
            13 => Err(libc::EPERM),
            21..=24 => Err(libc::EOPNOTSUPP),
            31..=33 => Err(libc::ENOLCK),
            _ => Err(libc::ENOSYS),
        }
    }

    fn node(&mut self, path: PathBuf) -> u64 {
        if let Some(node) = self.nodes.get(&path) {
            return *node;
        }
        let node = self.next;
        self.next += 1;
        self.nodes.insert(path.clone(), node);
        self.paths.insert(node, path);
        node
    }

    fn entry(&mut self, path: PathBuf) -> Reply {
        let metadata = fs::symlink_metadata(&path).map_err(|error| errno(&error))?;
        let node = self.node(path);
        let mut reply = Vec::new();
        reply.extend(node.to_le_bytes());
        reply.extend([0; 32]);
        reply.extend(attr(node, &metadata));
        Ok(reply)
    }

    fn set(&self, node: u64, path: &Path, mut request: Request<'_>) -> Reply {
        let (valid, _, handle, size) = (request.u32(), request.u32(), request.u64(), request.u64());
        let (_, atime, mtime, _) = (request.u64(), request.u64(), request.u64(), request.u64());
        let (atime_ns, mtime_ns, _) = (request.u32(), request.u32(), request.u32());
        let (mode, _, uid, gid) = (request.u32(), request.u32(), request.u32(), request.u32());
        let now = fs::symlink_metadata(path).map_err(|error| errno(&error))?;
        // As behind root squashing: owners are what they are.
        if (valid & 2 != 0 && uid != now.uid()) || (valid & 4 != 0 && gid != now.gid()) {
            return Err(libc::EPERM);
        }
        if valid & 1 != 0 {
            done(fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)))?;
        }
        if valid & 8 != 0 {
            match self.files.get(&handle).filter(|_| valid & 64 != 0) {
                Some(file) => done(file.set_len(size))?,
                None => done(OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(size)))?,
            };
        }
        if valid & (16 | 32) != 0 && (now.is_file() || now.is_dir()) {
            let time = |seconds, nanoseconds| UNIX_EPOCH + Duration::new(seconds, nanoseconds);
            let mut times = fs::FileTimes::new();
            if valid & (16 | 128) == 16 {
                times = times.set_accessed(time(atime, atime_ns));
            }
            if valid & (32 | 256) == 32 {
                times = times.set_modified(time(mtime, mtime_ns));
            }
            done(File::open(path).and_then(|file| file.set_times(times)))?;
        }
        let metadata = fs::symlink_metadata(path).map_err(|error| errno(&error))?;
        Ok(attr_out(node, &metadata))
    }

    fn rename(&mut self, from: &Path, target: u64, mut request: Request<'_>) -> Reply {
        let old = from.join(request.name());
        let new = self.paths.get(&target).ok_or(libc::ENOENT)?.join(request.name());
        done(fs::rename(&old, &new))?;
        if let Some(gone) = self.nodes.remove(&new) {
            self.paths.remove(&gone);
        }
        let moved: Vec<PathBuf> = self.nodes.keys().filter(|path| path.starts_with(&old)).cloned().collect();
        for path in moved {
            let Some(node) = self.nodes.remove(&path) else { continue };
            let rest = path.strip_prefix(&old).unwrap();
            let place = if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
            self.nodes.insert(place.clone(), node);
            self.paths.insert(node, place);
        }
        Ok(Vec::new())
    }

    fn open(&mut self, path: &Path, flags: u32, mode: Option<u32>) -> Reply {
        let flags = flags.cast_signed();
        let access = flags & libc::O_ACCMODE;
        let opened = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY || mode.is_some())
            .create(mode.is_some())
            .mode(mode.unwrap_or(0) & 0o7777)
            .custom_flags(flags & (libc::O_EXCL | libc::O_TRUNC | libc::O_DIRECTORY))
            .open(path)
            .map_err(|error| errno(&error))?;
        let handle = self.next;
        self.next += 1;
        self.files.insert(handle, opened);
        Ok([&handle.to_le_bytes()[..], &[0; 8]].concat())
    }

    fn list(&mut self, path: &Path, mut request: Request<'_>) -> Reply {
        let (_, offset, size) = (request.u64(), request.u64(), request.u32());
        let mut names: Vec<_> = fs::read_dir(path).map_err(|e| errno(&e))?.flatten().collect();
        names.sort_by_key(fs::DirEntry::file_name);
        let mut reply = Vec::new();
        for (place, entry) in names.iter().enumerate().skip(offset as usize) {
            let name = entry.file_name();
            let padded = name.len().next_multiple_of(8);
            if reply.len() + 24 + padded > size as usize {
                break;
            }
            let kind = entry.metadata().map_or(0, |metadata| (metadata.mode() & libc::S_IFMT) >> 12);
            reply.extend(entry.metadata().map_or(1, |metadata| metadata.ino()).to_le_bytes());
            reply.extend((place as u64 + 1).to_le_bytes());
            reply.extend((name.len() as u32).to_le_bytes());
            reply.extend(kind.to_le_bytes());
            reply.extend(name.as_bytes());
            reply.resize(reply.len() + padded - name.len(), 0);
        }
        Ok(reply)
    }
}

fn done<T>(result: io::Result<T>) -> Reply {
    result.map(|_| Vec::new()).map_err(|error| errno(&error))
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Protocol 7.31 with POSIX and BSD locks of the server's own, so that it can refuse them.
fn init(request: &mut Request<'_>) -> Vec<u8> {
    const ASYNC_READ: u32 = 1;
    const POSIX_LOCKS: u32 = 1 << 1;
    const BIG_WRITES: u32 = 1 << 5;
    const FLOCK_LOCKS: u32 = 1 << 10;
    let (_, _, read_ahead, offered) = (request.u32(), request.u32(), request.u32(), request.u32());
    let flags = offered & (ASYNC_READ | POSIX_LOCKS | BIG_WRITES | FLOCK_LOCKS);
    let mut reply = Vec::new();
    for word in [7, 31, read_ahead, flags] {
        reply.extend(word.to_le_bytes());
    }
    reply.extend([16_u16, 12].map(u16::to_le_bytes).concat());
    reply.extend([128_u32 << 10, 1].map(u32::to_le_bytes).concat());
    reply.resize(64, 0);
    reply
}

fn attr(node: u64, metadata: &fs::Metadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(88);
    for word in [node, metadata.size(), metadata.blocks()] {
        out.extend(word.to_le_bytes());
    }
    for seconds in [metadata.atime(), metadata.mtime(), metadata.ctime()] {
        out.extend(seconds.to_le_bytes());
    }
    for nanoseconds in [metadata.atime_nsec(), metadata.mtime_nsec(), metadata.ctime_nsec()] {
        out.extend((nanoseconds as u32).to_le_bytes());
    }
    let links = metadata.nlink() as u32;
    for word in [metadata.mode(), links, metadata.uid(), metadata.gid(), 0, 4096, 0] {
        out.extend(word.to_le_bytes());
    }
    out
}

/// Without a time to keep it: as a careful NFS client.
fn attr_out(node: u64, metadata: &fs::Metadata) -> Vec<u8> {
    [vec![0; 16], attr(node, metadata)].concat()
}

fn statfs() -> Vec<u8> {
    let mut out = Vec::new();
    for word in [1_u64 << 30, 1 << 29, 1 << 29, 1 << 20, 1 << 20] {
        out.extend(word.to_le_bytes());
    }
    for word in [4096_u32, 255, 4096, 0] {
        out.extend(word.to_le_bytes());
    }
    out.resize(80, 0);
    out
}
