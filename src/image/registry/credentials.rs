//! Where passwords and tokens are kept: the files and helpers that docker, podman and skopeo share.
//!
//! Read, in this order: `$REGISTRY_AUTH_FILE` alone where it is set; else `$DOCKER_CONFIG/config.json`
//! (~/.docker/config.json), `$XDG_RUNTIME_DIR/containers/auth.json` and
//! ~/.config/containers/auth.json. All have `auths`, `credHelpers` and `credsStore`
//! (containers-auth.json(5); docker's cli reference, "Configuration files"). Written is the first of
//! them, as docker does, or what `$REGISTRY_AUTH_FILE` names.
//!
//! What must stay true: a file is replaced whole, with mode 0600, and keeps what is not ours in it; a
//! secret reaches a helper over its standard input and nothing else, never as an argument.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{RegistryError, Result};
use super::secret::Secret;
use super::settings::{config_home, home, read_limited, variable};

/// Bytes of a file of credentials; one with hundreds of entries has some ten KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Bytes that a helper may answer.
const MAX_HELPER_BYTES: u64 = 1 << 20;
/// The user name that marks an identity token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";
/// What Docker's registry is called in config.json, for ever.
pub(super) const DOCKER_SERVER: &str = "https://index.docker.io/v1/";

/// How a person or a machine proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: Secret,
    },
    /// Exchanged for short-lived tokens at the registry's token server (OAuth2, refresh_token).
    IdentityToken(Secret),
}

impl Credentials {
    /// The value of a Basic `Authorization` header.
    pub(super) fn basic(&self) -> Option<Secret> {
        match self {
            Self::Password { user, password } => {
                let text = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
                Some(Secret::new(format!("Basic {text}")))
            }
            Self::IdentityToken(_) => None,
        }
    }
}

/// What is stored for a repository, the most specific first.
pub(super) fn find(registry: &str, path: &str) -> Result<Option<Credentials>> {
    for file in files() {
        let Some(config) = read(&file)? else { continue };
        if let Some(found) = find_in(&config, registry, path, &file)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Stores credentials. Gives the file, if that is where they now lie unencrypted.
pub(super) fn store(registry: &str, credentials: &Credentials) -> Result<Option<PathBuf>> {
    let file = file_to_write()?;
    let mut config = read(&file)?.unwrap_or_else(|| json!({}));
    let (user, secret) = match credentials {
        Credentials::Password { user, password } => (user.as_str(), password),
        Credentials::IdentityToken(token) => (TOKEN_USER, token),
    };
    let server = server_name(registry);
    if let Some(helper) = helper_of(&config, registry) {
        let message = json!({ "ServerURL": server, "Username": user, "Secret": secret.expose() });
        run_helper(&helper, "store", message.to_string().as_bytes())?;
        // docker keeps an empty entry, which says that there is one elsewhere.
        set(&mut config, &file, &server, json!({}))?;
        write(&file, &config)?;
        return Ok(None);
    }
    let entry = match credentials {
        Credentials::Password { user, password } => {
            json!({ "auth": BASE64_STANDARD.encode(format!("{user}:{}", password.expose())) })
        }
        Credentials::IdentityToken(token) => json!({
            "auth": BASE64_STANDARD.encode(format!("{TOKEN_USER}:")), "identitytoken": token.expose(),
        }),
    };
    set(&mut config, &file, &server, entry)?;
    write(&file, &config)?;
    Ok(Some(file))
}

/// Forgets what is stored for a registry; `false` if there was nothing.
pub(super) fn erase(registry: &str) -> Result<bool> {
    let mut found = false;
    let server = server_name(registry);
    let file = file_to_write()?;
    let Some(mut config) = read(&file)? else { return Ok(false) };
    if let Some(helper) = helper_of(&config, registry) {
        found |= ask_helper(&helper, &server)?.is_some();
        if found {
            run_helper(&helper, "erase", server.as_bytes())?;
        }
    }
    if let Some(Value::Object(auths)) = config.get_mut("auths") {
        let before = auths.len();
        auths.retain(|key, _| normalised(key) != registry);
        if auths.len() != before {
            found = true;
            write(&file, &config)?;
        }
    }
    Ok(found)
}

/// The files that are read, in their order.
fn files() -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file.into()];
    }
    let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let containers =
        [runtime, config_home()].into_iter().flatten().map(|dir| dir.join("containers/auth.json"));
    docker_file().into_iter().chain(containers).collect()
}

fn docker_file() -> Option<PathBuf> {
    let directory =
        variable("DOCKER_CONFIG").map(PathBuf::from).or_else(|| home().map(|home| home.join(".docker")));
    directory.map(|directory| directory.join("config.json"))
}

fn file_to_write() -> Result<PathBuf> {
    let file = variable("REGISTRY_AUTH_FILE").map(PathBuf::from).or_else(docker_file);
    file.ok_or_else(|| {
        RegistryError::Login(
            "there is no place for credentials: set HOME, DOCKER_CONFIG or REGISTRY_AUTH_FILE".into(),
        )
    })
}

/// A file of credentials; `None` where there is none.
fn read(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_limited(path, MAX_FILE_BYTES)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // The reader's message would quote what it found, which may be a secret.
    let wrong = |at: String| RegistryError::Settings {
        path: path.to_owned(),
        reason: format!("it is not valid JSON{at}"),
    };
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!(" (line {}, column {})", error.line(), error.column())))?;
    if value.is_object() { Ok(Some(value)) } else { Err(wrong(": it is no object".to_owned())) }
}

fn find_in(config: &Value, registry: &str, path: &str, file: &Path) -> Result<Option<Credentials>> {
    if let Some(helper) = helper_of(config, registry)
        && let Some(found) = ask_helper(&helper, &server_name(registry))?
    {
        return Ok(Some(found));
    }
    let Some(Value::Object(auths)) = config.get("auths") else { return Ok(None) };
    let mut place = format!("{registry}/{path}");
    loop {
        let entries = auths.iter().filter(|(key, _)| normalised(key) == place);
        for (_, entry) in entries {
            if let Some(found) = entry_credentials(entry, file)? {
                return Ok(Some(found));
            }
        }
        match place.rfind('/') {
            Some(end) => place.truncate(end),
            None => return Ok(None),
        }
    }
}

fn entry_credentials(entry: &Value, file: &Path) -> Result<Option<Credentials>> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
    }
    if let Some(auth) = text("auth") {
        let wrong = || RegistryError::Settings {
            path: file.to_owned(),
            reason: "an \"auth\" in it is not base64 of USER:PASSWORD".to_owned(),
        };
        let decoded = BASE64_STANDARD.decode(auth).map_err(|_| wrong())?;
        let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
        let (user, password) = decoded.split_once(':').ok_or_else(wrong)?;
        let password = Secret::new(password.trim_end_matches('\0'));
        return Ok(Some(Credentials::Password { user: user.to_owned(), password }));
    }
    Ok(match (text("username"), text("password")) {
        (Some(user), Some(password)) => {
            Some(Credentials::Password { user: user.to_owned(), password: Secret::new(password) })
        }
        _ => None,
    })
}

/// A key of `auths` as a registry or a repository: old ones are whole addresses.
fn normalised(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let name = match rest {
        // Of an address only the host counts, as for docker.
        Some(rest) => rest.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    };
    match name {
        "index.docker.io" | "registry-1.docker.io" | "index.docker.io/v1" => "docker.io".to_owned(),
        name => name.to_owned(),
    }
}

/// What a registry is called in a file that docker reads too.
fn server_name(registry: &str) -> String {
    if registry == "docker.io" { DOCKER_SERVER.to_owned() } else { registry.to_owned() }
}

/// The helper that keeps a registry's credentials, if one does.
fn helper_of(config: &Value, registry: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(Value::as_object);
    let own = own.and_then(|helpers| helpers.iter().find(|(key, _)| normalised(key) == registry));
    let helper = own.map(|(_, helper)| helper).or_else(|| config.get("credsStore"));
    helper.and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// What a helper has for a server.
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let Some(bytes) = run_helper(helper, "get", server.as_bytes())? else { return Ok(None) };
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| RegistryError::Helper {
        program: program(helper),
        reason: "answers something that is not what helpers answer".to_owned(),
    })?;
    let secret = Secret::new(answer.secret);
    Ok(match answer.username.as_str() {
        TOKEN_USER => Some(Credentials::IdentityToken(secret)),
        user => Some(Credentials::Password { user: user.to_owned(), password: secret }),
    })
}

fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// Runs a helper; `None` where it says that it has nothing.
fn run_helper(helper: &str, action: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let program = program(helper);
    let failed = |reason: String| RegistryError::Helper { program: program.clone(), reason };
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(failed("has a name that no helper has".to_owned()));
    }
    let broken = |error: io::Error| failed(format!("cannot be run: {error}"));
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(input_file(input).map_err(broken)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(broken)?;
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_HELPER_BYTES).read_to_end(&mut output).map_err(broken)?;
    }
    let status = child.wait().map_err(broken)?;
    if status.success() {
        return Ok(Some(output));
    }
    let said: String =
        String::from_utf8_lossy(&output).chars().filter(|c| !c.is_control()).take(300).collect();
    if action == "get" && said.contains("credentials not found") {
        return Ok(None);
    }
    Err(failed(format!("failed at {action}: {}", if said.is_empty() { status.to_string() } else { said })))
}

/// A file in memory with the input in it: a pipe could break, and a file on the disk be read.
fn input_file(input: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"credential", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file)
}

/// Puts an entry into `auths`, in the place of whatever stood for the same registry.
fn set(config: &mut Value, file: &Path, server: &str, entry: Value) -> Result<()> {
    let wrong = || RegistryError::Settings {
        path: file.to_owned(),
        reason: "\"auths\" in it is no object".to_owned(),
    };
    let object = config.as_object_mut().ok_or_else(wrong)?;
    let auths = object.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    let auths = auths.as_object_mut().ok_or_else(wrong)?;
    auths.retain(|key, _| key == server || normalised(key) != normalised(server));
    auths.insert(server.to_owned(), entry);
    Ok(())
}

/// Replaces a file of credentials as a whole. A symbolic link stays one.
fn write(path: &Path, config: &Value) -> Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let failed = |source| RegistryError::File { action: "write", path: path.clone(), source };
    let mut bytes = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    serde::Serialize::serialize(config, &mut serde_json::Serializer::with_formatter(&mut bytes, tabs))
        .map_err(|error| failed(error.into()))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).create(directory).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the error that counts is the first
    }
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: Secret::new(password) }
    }

    #[test]
    fn the_most_specific_entry_counts() {
        let auth = |text: &str| json!({ "auth": BASE64_STANDARD.encode(text) });
        let config = json!({ "auths": {
            "q.io": auth("host:1"), "q.io/a": auth("space:2"), "q.io/a/b": auth("repo:p:w"),
            "https://old.example/v1/": auth("old:3"), "https://index.docker.io/v1/": auth("hub:4"),
            "t.example": { "identitytoken": "tok", "auth": "ignored" }, "empty.example": {},
        }});
        let find = |registry: &str, path: &str| find_in(&config, registry, path, Path::new("c")).unwrap();
        assert_eq!(find("q.io", "x"), Some(password("host", "1")));
        assert_eq!(find("q.io", "a/x"), Some(password("space", "2")));
        assert_eq!(find("q.io", "a/b"), Some(password("repo", "p:w")));
        assert_eq!(find("q.io", "ab"), Some(password("host", "1")));
        assert_eq!(find("old.example", "x"), Some(password("old", "3")));
        assert_eq!(find("docker.io", "library/x"), Some(password("hub", "4")));
        assert_eq!(find("t.example", "x"), Some(Credentials::IdentityToken(Secret::new("tok"))));
        assert_eq!(find("empty.example", "x"), None);
        assert_eq!(find("other.example", "x"), None);
    }

    #[test]
    fn damaged_files_are_named_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["{\"auths\": hunter2", "[\"hunter2\"]"] {
            fs::write(&path, text).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains("config.json") && !message.contains("hunter2"), "{message}");
        }
        let config = json!({ "auths": { "a.example": { "auth": "hunter2!" } } });
        let message = find_in(&config, "a.example", "x", &path).unwrap_err().to_string();
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn writing_keeps_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.json"), dir.path().join("config.json"));
        fs::write(&real, r#"{"HttpHeaders":{"X":"y"},"auths":{"b":{"auth":"Yjpi"}},"psFormat":"z"}"#)
            .unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut config = read(&link).unwrap().unwrap();
        set(&mut config, &link, "a.example", json!({ "auth": "YTpi" })).unwrap();
        write(&link, &config).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&real).unwrap();
        assert!(text.starts_with("{\n\t\"HttpHeaders\": {\n"), "{text}");
        let config = read(&real).unwrap().unwrap();
        let keys: Vec<_> = config.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["HttpHeaders", "auths", "psFormat"]);
        assert_eq!(find_in(&config, "a.example", "", &real).unwrap(), Some(password("a", "b")));
        assert_eq!(find_in(&config, "b", "", &real).unwrap(), Some(password("b", "b")));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let shown =
            format!("{:?}", (password("me", "hunter2"), Credentials::IdentityToken(Secret::new("hunter2"))));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
