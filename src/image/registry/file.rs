//! A file from any web server, for `import`: by the same way as what registries have, without credentials.

use std::io::{self, Read};

use super::Session;
use super::error::{RegistryError, Result};
use super::http::{Request, host_of, with_retries};

/// A file under way.
pub struct RemoteFile {
    /// Its address without what may be secret in it: no query.
    pub address: String,
    reader: Box<dyn Read + Send>,
    length: Option<u64>,
    come: u64,
}

/// Whether a text is an address of the web.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    scheme.is_some_and(|scheme| scheme == "http" || scheme == "https")
}

/// Asks for a file. Plain HTTP is spoken where the address says so; a redirect may not lead to it.
///
/// # Errors
/// The server cannot be reached or does not have it; the address has a password in it.
pub fn open(url: &str) -> Result<RemoteFile> {
    let address = url.split(['?', '#']).next().unwrap_or_default().to_owned();
    let authority = address.split("://").nth(1).and_then(|rest| rest.split('/').next());
    if authority.is_some_and(|authority| authority.contains('@')) {
        return Err(RegistryError::Unreachable {
            host: host_of(url),
            reason: "an address with a password in it would show it to everybody on this machine; \
                     fetch the file with another program and import that"
                .to_owned(),
        });
    }
    let session = Session::new()?;
    let request = Request::get(url.split('#').next().unwrap_or_default().to_owned(), &*address);
    let response = with_retries(|| {
        let response = session.http.send(&request, None)?;
        if response.is_success() { Ok(response) } else { Err(response.into_error(&address)) }
    })?;
    let length = response.length();
    Ok(RemoteFile { address, length, reader: Box::new(response.into_reader()), come: 0 })
}

impl Read for RemoteFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.come += count as u64;
        // A connection that ends early must not pass for the file's end.
        match self.length {
            Some(length) if count == 0 && !buffer.is_empty() && self.come < length => {
                let reason = format!("the connection was closed after {} of {length} bytes", self.come);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason))
            }
            _ => Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_an_address() {
        for text in ["http://a/b", "HTTPS://a.example/x.tar?y=z"] {
            assert!(is_address(text), "{text}");
        }
        for text in ["a.example/x.tar", "ftp://a/b", "http:/a", "./http", "-"] {
            assert!(!is_address(text), "{text}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        let error = open("https://me:hunter2@a.example/x.tar").err().unwrap().to_string();
        assert!(
            error.contains("password") && error.contains("a.example") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn an_early_end_is_no_end() {
        let file =
            |length| RemoteFile { address: String::new(), length, reader: Box::new(&b"abc"[..]), come: 0 };
        let read = |length| io::read_to_string(file(length)).map_err(|error| error.kind());
        assert_eq!(read(Some(3)).unwrap(), "abc");
        assert_eq!(read(None).unwrap(), "abc");
        assert_eq!(read(Some(4)), Err(io::ErrorKind::UnexpectedEof));
    }
}
