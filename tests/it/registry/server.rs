//! Servers for the tests of registries, all on loopback: Debian's docker-registry, a registry in Rust that
//! does wrong what it is told to, a proxy.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::{digest, gzip};
use crate::harness::{eventually, output, spawn_registered, unregister};

/// The password that [`HTPASSWD`] has for the user `me`.
pub(crate) const PASSWORD: &str = "hunter2";
/// docker-registry takes bcrypt only.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";
const REGISTRY: &str = "/usr/bin/docker-registry";

/// A docker-registry with an empty store.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) port: u16,
}

impl DockerRegistry {
    /// Starts one; `extra` goes into its configuration. `None` (and a loud skip) where it is not installed.
    pub(crate) fn start(dir: &Path, extra: &str) -> Option<Self> {
        if !Path::new(REGISTRY).exists() {
            crate::harness::skip("docker-registry is not installed");
            return None;
        }
        fs::create_dir_all(dir.join("data")).unwrap();
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: s\n{extra}\n",
            dir.join("data").display()
        );
        fs::write(dir.join("config.yml"), config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(REGISTRY);
        command.arg("serve").arg(dir.join("config.yml")).stdin(Stdio::null());
        command.env_clear().stdout(log.try_clone().unwrap()).stderr(log);
        let child = spawn_registered(&mut command, "docker-registry");
        eventually("docker-registry listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self { child, port })
    }

    pub(crate) fn with_passwords(dir: &Path) -> Option<Self> {
        fs::create_dir_all(dir).unwrap();
        let file = dir.join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        Self::start(dir, &format!("auth:\n  htpasswd: {{realm: r, path: {}}}", file.display()))
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        unregister(self.child.id());
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Ends the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Sends no more after the cut, and does not end either.
    pub(crate) stall: bool,
    /// Sends the body over and over, chunked.
    pub(crate) endless: bool,
}

/// The status of a reply that is none: the connection ends.
pub(crate) const HANG_UP: u16 = 0;

/// Hands a request on to a server on this machine, and gives its reply.
pub(crate) fn forward(seen: &Seen, port: u16) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut head = format!("{} {} HTTP/1.1\r\n", seen.method, seen.path);
    for (name, value) in seen.headers.iter().filter(|(name, _)| *name != "connection") {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    stream.write_all(&seen.body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut reply = Reply::status(line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(502));
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            let name = name.to_lowercase();
            // The whole body is read below, whatever its form.
            if !["connection", "transfer-encoding"].contains(&&*name) {
                reply = reply.header(&name, value.trim());
            }
        }
    }
    if seen.method != "HEAD" {
        reader.read_to_end(&mut reply.body)?;
    }
    Ok(reply)
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// An HTTP server of the test's own.
pub(crate) struct Server {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Handler> = Arc::new(handler);
        let (requests, stopping) = (Arc::clone(&seen), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let (handler, seen, stop) =
                    (Arc::clone(&handler), Arc::clone(&requests), Arc::clone(&stopping));
                thread::spawn(move || {
                    // A client that goes away is none of the server's business.
                    let _ = serve(stream, &*handler, &seen, &stop);
                });
            }
        });
        Self { port, seen, stop }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    stream: TcpStream,
    handler: &Handler,
    seen: &Mutex<Vec<Seen>>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        seen.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        if reply.status == HANG_UP {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        let own_length = reply.headers.iter().any(|(name, _)| name == "content-length");
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if reply.endless {
            head += "transfer-encoding: chunked\r\n";
        } else if !own_length {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        writer.write_all(format!("{head}\r\n").as_bytes())?;
        if reply.endless {
            while !stop.load(Ordering::Relaxed) {
                writer.write_all(format!("{:x}\r\n", reply.body.len()).as_bytes())?;
                writer.write_all(&reply.body)?;
                writer.write_all(b"\r\n")?;
            }
            return Ok(());
        }
        if request.method == "HEAD" {
            continue;
        }
        let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        writer.write_all(&reply.body[..end])?;
        while reply.stall && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        if reply.cut.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads a request; `None` at the connection's end or where it is no HTTP (a TLS handshake).
fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    // A TLS handshake has no line's end that could be waited for.
    if reader.fill_buf()?.first().is_none_or(|byte| !byte.is_ascii_alphabetic()) {
        return Ok(None);
    }
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line).into_owned();
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    if !line.contains("HTTP/1.") {
        return Ok(None);
    }
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Seen { method: method.to_owned(), path: path.to_owned(), headers, body }))
}

/// An image that a server in Rust has.
#[derive(Clone)]
pub(crate) struct FakeImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) layers: Vec<String>,
}

pub(crate) const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

impl FakeImage {
    /// Of gzip layers.
    pub(crate) fn new(tars: &[Vec<u8>]) -> Self {
        let layers: Vec<_> = tars.iter().map(|tar| (gzip(tar), format!("{OCI_LAYER}+gzip"))).collect();
        Self::of(tars, &layers, "amd64", &json!({"Cmd": ["/busybox"]}))
    }

    /// Of layers as they are given, with their media types.
    pub(crate) fn of(
        tars: &[Vec<u8>],
        layers: &[(Vec<u8>, String)],
        architecture: &str,
        config: &Value,
    ) -> Self {
        let diff_ids: Vec<_> = tars.iter().map(|tar| format!("sha256:{}", digest(tar))).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": config,
                            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()});
        let descriptors: Vec<_> = layers.iter().map(|(bytes, kind)| describe(kind, bytes)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI,
                              "config": describe(OCI_CONFIG, &config), "layers": descriptors});
        let mut blobs: HashMap<_, _> =
            layers.iter().map(|(bytes, _)| (format!("sha256:{}", digest(bytes)), bytes.clone())).collect();
        blobs.insert(format!("sha256:{}", digest(&config)), config);
        let layers = layers.iter().map(|(bytes, _)| format!("sha256:{}", digest(bytes))).collect();
        Self { manifest: manifest.to_string().into_bytes(), blobs, layers }
    }

    pub(crate) fn digest(&self) -> String {
        format!("sha256:{}", digest(&self.manifest))
    }

    /// As a registry that does everything right.
    pub(crate) fn answer(&self, seen: &Seen) -> Reply {
        if seen.path == "/v2/" {
            return Reply::ok("{}");
        }
        if seen.path.contains("/manifests/") {
            return Reply::ok(self.manifest.clone()).header("content-type", OCI);
        }
        let name = seen.path.rsplit('/').next().and_then(|name| name.split('?').next()).unwrap_or_default();
        let Some(blob) = self.blobs.get(name) else { return Reply::status(404) };
        let range = seen
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match range {
            Some(start) if start < blob.len() => {
                Reply { status: 206, body: blob[start..].to_vec(), ..Reply::default() }
                    .header("content-range", format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()))
            }
            _ => Reply::ok(blob.clone()),
        }
    }
}

/// A proxy that knows CONNECT, and leads every name to this machine. Gives its port and what it was
/// asked for.
pub(crate) fn proxy() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let list = Arc::clone(&list);
            thread::spawn(move || drop(tunnel(stream, &list)));
        }
    });
    (port, asked)
}

fn tunnel(stream: TcpStream, list: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(request) = read_request(&mut reader)? else { return Ok(()) };
    list.lock().unwrap().push(format!("{} {}", request.method, request.path));
    let port = request.path.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap_or(0);
    let upstream = TcpStream::connect(("127.0.0.1", port))?;
    let mut back = stream;
    back.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from, mut to) = (upstream.try_clone()?, upstream);
    let answers = thread::spawn(move || std::io::copy(&mut from, &mut back));
    let _ = std::io::copy(&mut reader, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
    let _ = answers.join();
    Ok(())
}

/// A CA, and a certificate of it for this machine and `registry.test`, as PEM files; `None` where there
/// is no openssl.
pub(crate) fn certificates(dir: &Path) -> Option<PathBuf> {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1,DNS:registry.test\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let lines = [
        format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=test-ca -days 2"),
        format!("req {key} -keyout server.key -out server.csr -subj /CN=registry"),
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile ext".to_owned(),
    ];
    for line in lines {
        let done = output(Command::new("openssl").args(line.split(' ')).current_dir(dir)).ok()?;
        assert!(done.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Some(dir.to_owned())
}
