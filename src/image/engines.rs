//! Images of other engines on this machine: `containers-storage:NAME` and `docker-daemon:NAME`.
//!
//! Each becomes a stream that is read as an archive is, so all that is checked there is checked here.
//! The store of podman and buildah has formats and locks of its own, which change; so one of its own
//! programs reads it, whichever is installed. A Docker daemon is asked over its socket, as its client
//! does (Engine API, ImageGet).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use serde::Deserialize;

use super::archive::Files;
use super::error::{ImageError, Result};
use crate::store::Store;

/// An answer's head: Docker's has some 300 bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// What a program or daemon says that it cannot do; more of it helps nobody.
const MAX_MESSAGE_BYTES: u64 = 64 << 10;
const SOCKET: &str = "/var/run/docker.sock";

/// Arguments for reading an image of this name.
type ArgumentsFor = fn(&str) -> Vec<String>;

/// Programs that read a containers-storage, with what makes them write an archive to stdout.
const READERS: [(&str, ArgumentsFor); 3] = [
    ("podman", |name| strings(&["save", "--quiet", "--format", "docker-archive", name])),
    ("skopeo", |name| {
        strings(&["copy", "--quiet", &format!("containers-storage:{name}"), "docker-archive:/dev/stdout"])
    }),
    ("buildah", |name| strings(&["push", "--quiet", name, "docker-archive:/dev/stdout"])),
];

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Reads an image of podman's and buildah's store. The caller holds the content lock.
pub(super) fn containers_storage(store: &Store, name: &str) -> Result<Files> {
    let source = format!("containers-storage:{name}");
    let refused = |reason: String| ImageError::Engine { source_name: source.clone(), reason };
    // A name that begins with a hyphen would be an option.
    if name.is_empty() || name.starts_with('-') {
        return Err(refused("this is not an image's name".to_owned()));
    }
    let (program, arguments) =
        READERS.iter().find(|(program, _)| is_installed(program)).ok_or_else(|| {
            refused(
                "none of podman, skopeo and buildah is installed, and one of them has to read it".to_owned(),
            )
        })?;
    let mut child = Command::new(program)
        .args(arguments(name))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| refused(format!("cannot run {program}: {error}")))?;
    let stream = child.stdout.take().map(OwnedFd::from).map(File::from);
    let said = child.stderr.take().map(collect);
    let mut reader = Reader { child };
    let files = match stream {
        Some(stream) => Files::archive(store, stream, Path::new(&source)),
        None => Err(refused(format!("{program} has no output"))),
    };
    // Its own reason is the cause of whatever is wrong with the stream.
    match reader.child.wait() {
        Ok(status) if status.success() => files,
        Ok(status) => {
            let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
            Err(refused(format!("{program} ended with {status}: {}", last.trim_start_matches("Error: "))))
        }
        Err(error) => Err(refused(format!("cannot wait for {program}: {error}"))),
    }
}

/// Ends the program if nobody waits for it any more.
struct Reader {
    child: Child,
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| {
        nix::unistd::access(&directory.join(program), nix::unistd::AccessFlags::X_OK).is_ok()
    })
}

fn collect(stream: impl io::Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        let mut stream = stream;
        // Whatever came before an error is the better message.
        let _ = stream.by_ref().take(MAX_MESSAGE_BYTES).read_to_end(&mut text);
        let _ = io::copy(&mut stream, &mut io::sink());
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Reads an image of a Docker daemon. The caller holds the content lock.
pub(super) fn docker_daemon(store: &Store, name: &str) -> Result<Files> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("docker.sock"));
    let source = format!("docker-daemon:{name}");
    let refused = |reason: String| ImageError::Engine { source_name: source.clone(), reason };
    let socket = match host.as_str() {
        "" => runtime.filter(|path| path.exists()).unwrap_or_else(|| SOCKET.into()),
        host => match host.strip_prefix("unix://") {
            Some(path) => path.into(),
            None => {
                return Err(refused(format!(
                    "DOCKER_HOST is {host}, and only unix:// sockets are supported"
                )));
            }
        },
    };
    let stream = fetch(&socket, name).map_err(refused)?;
    Files::archive(store, stream, Path::new(&source))
}

/// Asks for an image and gives the body as it arrives.
///
/// In HTTP/1.0, so that it comes plain and ends with the connection; that it is whole the archive
/// itself tells.
fn fetch(socket: &Path, name: &str) -> Result<File, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err("this is not an image's name".to_owned());
    }
    let mut stream = UnixStream::connect(socket)
        .map_err(|error| format!("cannot reach the Docker daemon at {}: {error}", socket.display()))?;
    let broken = |error: io::Error| format!("the Docker daemon at {} broke off: {error}", socket.display());
    let request = format!("GET /images/{name}/get HTTP/1.0\r\nHost: docker\r\nUser-Agent: hostel\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(broken)?;
    let mut head = Vec::new();
    // One byte at a time: what follows belongs to the archive.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD_BYTES {
            return Err("the Docker daemon's answer has no end of its head".to_owned());
        }
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(broken)?;
        head.extend(byte);
    }
    match status_of(&head) {
        Some(200) => Ok(File::from(OwnedFd::from(stream))),
        Some(code) => {
            let mut body = Vec::new();
            stream.take(MAX_MESSAGE_BYTES).read_to_end(&mut body).map_err(broken)?;
            Err(message_of(&body).unwrap_or_else(|| format!("the Docker daemon answers with status {code}")))
        }
        None => Err(format!("what answers at {} is no Docker daemon", socket.display())),
    }
}

fn status_of(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let mut words = line.split(' ');
    words.next()?.starts_with("HTTP/1.").then_some(())?;
    words.next()?.parse().ok()
}

fn message_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        message: String,
    }
    serde_json::from_slice::<Answer>(body).ok().map(|answer| answer.message)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::net::UnixListener;

    use super::*;

    /// A daemon that gives one answer; what it was asked for, and what came of it.
    fn ask(answer: &'static [u8]) -> (String, Result<Vec<u8>, String>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 1024];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let result = fetch(&socket, "reg.example:5000/a/b:tag").map(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        });
        (daemon.join().unwrap(), result)
    }

    #[test]
    fn a_daemon_is_asked_as_dockers_client_does() {
        let (request, result) =
            ask(b"HTTP/1.0 200 OK\r\nContent-Type: application/x-tar\r\n\r\nbytes\r\n\r\nmore");
        assert!(request.starts_with("GET /images/reg.example:5000/a/b:tag/get HTTP/1.0\r\n"), "{request}");
        assert_eq!(result.unwrap(), b"bytes\r\n\r\nmore");
        let table: [(&[u8], &str); 5] = [
            (b"HTTP/1.1 404 Not Found\r\n\r\n{\"message\":\"No such image: x\"}\n", "No such image: x"),
            (b"HTTP/1.1 500 Oops\r\n\r\n<html>", "status 500"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "is no Docker daemon"),
            (b"HTTP/1.1 200 OK\r\n", "broke off"),
            (b"", "broke off"),
        ];
        for (answer, wanted) in table {
            let error = ask(answer).1.unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn names_cannot_reach_into_the_request() {
        for name in ["", "a b", "a\r\nX: y", "a?b", "a%2e"] {
            assert_eq!(
                fetch(Path::new("/no/such"), name).unwrap_err(),
                "this is not an image's name",
                "{name:?}"
            );
        }
        assert!(
            fetch(Path::new("/no/such"), "a")
                .unwrap_err()
                .contains("cannot reach the Docker daemon at /no/such")
        );
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for name in ["", "--root=/x"] {
            assert!(matches!(containers_storage(&store, name), Err(ImageError::Engine { .. })));
        }
    }
}
