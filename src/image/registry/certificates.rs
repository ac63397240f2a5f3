//! Whom a registry's TLS certificate may be signed by, and what this machine shows in return.
//!
//! The system's certificates always count. `certs.d/HOST[:PORT]` below /etc/docker, /etc/containers and
//! ~/.config/containers may add more: `*.crt` are CAs, `NAME.cert` with `NAME.key` is a certificate of
//! the client (docs.docker.com, "Verify repository client with certificates").

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::error::{RegistryError, Result};

/// Bytes of a certificate file; whole bundles have some hundred KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A TLS configuration of rustls and ring; the rest is the caller's.
pub(super) fn builder() -> ureq::tls::TlsConfigBuilder {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(provider)
}

/// The configuration for a host, given with its port where it has one.
pub(super) fn of(host: &str) -> Result<TlsConfig> {
    let mut roots: Vec<Certificate<'static>> = system();
    let mut client = None;
    for directory in directories(host) {
        read_directory(&directory, &mut roots, &mut client)?;
    }
    Ok(builder().root_certs(RootCerts::Specific(Arc::new(roots))).client_cert(client).build())
}

/// The system's certificates, `$SSL_CERT_FILE` and `$SSL_CERT_DIR` honoured. One that cannot be read is
/// of no use, and the registry's certificate then fails with its own message.
fn system() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs();
    found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

fn directories(host: &str) -> Vec<PathBuf> {
    // A host that could leave the directory is none.
    if host.contains('/') || host.starts_with('.') {
        return Vec::new();
    }
    let home = super::settings::config_home().map(|home| home.join("containers"));
    let bases = ["/etc/docker", "/etc/containers"].map(PathBuf::from).into_iter().chain(home);
    bases.map(|base| base.join("certs.d").join(host)).filter(|directory| directory.is_dir()).collect()
}

fn read_directory(
    directory: &Path,
    roots: &mut Vec<Certificate<'static>>,
    client: &mut Option<ClientCert>,
) -> Result<()> {
    let unreadable = |source| RegistryError::File { action: "read", path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    let has = |path: &Path, extension| path.extension().is_some_and(|found| found == extension);
    for path in &paths {
        if has(path, "crt") {
            roots.extend(certificates(path)?);
        } else if has(path, "cert") {
            let key = path.with_extension("key");
            let reason = format!("there is no key {} for it", key.display());
            if !key.exists() {
                return Err(RegistryError::Settings { path: path.clone(), reason });
            }
            *client = Some(ClientCert::new_with_certs(&certificates(path)?, private_key(&key)?));
        } else if has(path, "key") && !path.with_extension("cert").exists() {
            let reason = format!("there is no certificate {} for it", path.with_extension("cert").display());
            return Err(RegistryError::Settings { path: path.clone(), reason });
        }
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let found: Vec<_> = items(path)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    let reason = || "there is no PEM certificate in it".to_owned();
    if found.is_empty() {
        Err(RegistryError::Settings { path: path.to_owned(), reason: reason() })
    } else {
        Ok(found)
    }
}

fn private_key(path: &Path) -> Result<PrivateKey<'static>> {
    let key = items(path)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let reason = "there is no PEM private key in it".to_owned();
    key.ok_or_else(|| RegistryError::Settings { path: path.to_owned(), reason })
}

fn items(path: &Path) -> Result<Vec<PemItem<'static>>> {
    let bytes = super::settings::read_limited(path, MAX_FILE_BYTES)?;
    let damaged =
        |error: ureq::Error| RegistryError::Settings { path: path.to_owned(), reason: error.to_string() };
    parse_pem(&bytes).collect::<Result<_, _>>().map_err(damaged)
}
