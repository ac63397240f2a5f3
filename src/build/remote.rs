//! ADD of what is elsewhere: a file by HTTP.

use std::fs::File;
use std::io::{self, Read, Write as _};

use sha2::{Digest as _, Sha256};

use super::copy::{Given, GivenContent};
use super::error::Problem;
use super::scratch::Scratch;
use crate::id::Digest;
use crate::image::registry;

/// Bytes of a file that is fetched.
const MAX_BYTES: u64 = 64 << 30;

/// Fetches a file into the build's directory.
pub(super) fn fetch(url: &str, checksum: Option<&str>, scratch: &Scratch) -> Result<Given, Problem> {
    let wanted = checksum
        .map(|text| {
            text.parse::<Digest>()
                .map_err(|_| Problem::new(format!("invalid checksum {text:?}: it is sha256:HEX")))
        })
        .transpose()?;
    let fetched = registry::download(url)
        .map_err(|error| Problem::new(format!("cannot fetch {url}: {}", crate::sandbox::chain(&error))))?;
    let number = u64::from_ne_bytes(crate::sys::process::random_bytes()?);
    let path = scratch.directory("remote")?.join(format!("{number:x}"));
    let mut file = File::create(&path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut body = fetched.body.take(MAX_BYTES + 1);
    let mut total = 0_u64;
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                file.write_all(&buffer[..count])?;
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Problem::new(format!("cannot fetch {url}: {error}"))),
        }
    }
    if total > MAX_BYTES {
        return Err(Problem::new(format!("{url} has more than {MAX_BYTES} bytes")));
    }
    let found = Digest::from_bytes(&hash.finalize().into());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
        return Err(Problem::new(format!("digest mismatch {found}: {wanted}")));
    }
    let name = url.split(['?', '#']).next().unwrap_or(url);
    let name = name.splitn(4, '/').nth(3).unwrap_or_default().rsplit('/').next().unwrap_or_default();
    // BuildKit's word for a file whose address has no name.
    let name = if name.is_empty() { "__unnamed__" } else { name };
    Ok(Given {
        name: name.to_owned(),
        content: GivenContent::File(path),
        mode: 0o600,
        mtime_s: Some(fetched.modified_s.unwrap_or(0)),
    })
}
