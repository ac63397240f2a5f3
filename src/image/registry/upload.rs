//! A blob's way to a registry (distribution spec, "Pushing blobs").
//!
//! In one piece (POST, then PUT) where that works. A registry, or a proxy before it, that does not take so
//! much at once gets it in several (PATCH), and so does one to which the connection broke: what has arrived
//! then need not go again, as far as the registry says that it has it.

use std::io::{self, Read};

use ureq::http::Method;

use super::auth::form;
use super::client::Client;
use super::error::{RegistryError, Result};
use super::http::{Pauses, Request, Response, resolve};
use super::secret::Secret;
use crate::id::Digest;

/// Bytes of a piece: more than object stores want of all but the last one (5 MiB).
const PIECE_BYTES: u64 = 8 << 20;
/// No piece is made smaller than this, however little a registry takes at once.
const MIN_PIECE_BYTES: u64 = 1 << 20;
/// A registry that wants larger pieces (`OCI-Chunk-Min-Length`) gets them up to this size.
const MAX_PIECE_BYTES: u64 = 1 << 30;

/// What is uploaded.
pub(super) struct Upload<'a, 'b> {
    pub(super) client: &'a Client<'a>,
    pub(super) digest: &'a Digest,
    pub(super) length: u64,
    /// Opens the blob at a position.
    pub(super) open: &'a mut dyn FnMut(u64) -> Result<Box<dyn Read + 'b>>,
}

/// An upload in pieces, as far as it has come.
struct Pieces {
    location: String,
    at: u64,
    size: u64,
}

impl Upload<'_, '_> {
    /// Uploads the blob, in several attempts where one fails.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut pauses = Pauses::default();
        let (mut in_pieces, mut under_way) = (false, None);
        loop {
            let result = if in_pieces { self.in_pieces(&mut under_way) } else { self.whole() };
            let Err(error) = result else { return Ok(()) };
            match &error {
                // It does not take so much at once, or nothing this way.
                RegistryError::Status { status: 405 | 411 | 413 | 415 | 501, .. } if !in_pieces => {
                    in_pieces = true;
                    continue;
                }
                RegistryError::Transport { .. } if self.length > PIECE_BYTES => in_pieces = true,
                _ => {}
            }
            pauses.after(error)?;
        }
    }

    fn what(&self) -> String {
        format!("blob {}", self.digest.short())
    }

    fn begin(&self) -> Result<Response> {
        let url = self.client.url("blobs/uploads/");
        let begin = Request { method: Method::POST, ..Request::get(url, self.what()) };
        self.client.send_for_push(&begin.header("content-length", "0"))
    }

    /// The address that ends an upload.
    fn end_of(&self, location: &str) -> String {
        let separator = if location.contains('?') { '&' } else { '?' };
        format!("{location}{separator}{}", form(&[("digest", self.digest.as_str())]))
    }

    fn whole(&mut self) -> Result<()> {
        let begun = self.begin()?;
        let url = self.end_of(&self.client.location(&begun, &self.what())?);
        self.send(Method::PUT, url, None, 0, self.length).map(drop)
    }

    fn in_pieces(&mut self, under_way: &mut Option<Pieces>) -> Result<()> {
        let mut pieces = match under_way.take().and_then(|pieces| self.resumed(pieces)) {
            Some(pieces) => pieces,
            None => {
                let begun = self.begin()?;
                let wanted = begun.header("oci-chunk-min-length").and_then(|text| text.trim().parse().ok());
                let size = wanted.unwrap_or(0).clamp(PIECE_BYTES, MAX_PIECE_BYTES);
                Pieces { location: self.client.location(&begun, &self.what())?, at: 0, size }
            }
        };
        while pieces.at < self.length {
            if let Err(error) = self.piece(&mut pieces) {
                // Half of it may be what it takes at once.
                let is_too_large = matches!(error, RegistryError::Status { status: 413, .. });
                if is_too_large && pieces.size > MIN_PIECE_BYTES {
                    pieces.size = (pieces.size / 2).max(MIN_PIECE_BYTES);
                    continue;
                }
                *under_way = Some(pieces);
                return Err(error);
            }
        }
        let url = self.end_of(&pieces.location);
        let result = self.send(Method::PUT, url, None, 0, 0);
        if result.is_err() {
            *under_way = Some(pieces);
        }
        result.map(drop)
    }

    fn piece(&mut self, pieces: &mut Pieces) -> Result<()> {
        let count = pieces.size.min(self.length - pieces.at);
        let range = format!("{}-{}", pieces.at, pieces.at + count - 1);
        let response = self.send(Method::PATCH, pieces.location.clone(), Some(range), pieces.at, count)?;
        let taken = response.header("range").and_then(end_of_range).unwrap_or(pieces.at + count);
        if taken <= pieces.at || taken > pieces.at + count {
            return Err(RegistryError::Invalid {
                what: self.what(),
                host: response.host(),
                reason: format!("of bytes {} to {} it says to have {taken}", pieces.at, pieces.at + count),
            });
        }
        pieces.location = self.client.location(&response, &self.what())?;
        pieces.at = taken;
        Ok(())
    }

    /// Asks how far an upload has come; `None` where the registry does not know it any more.
    fn resumed(&self, mut pieces: Pieces) -> Option<Pieces> {
        let request = Request::get(pieces.location.clone(), self.what());
        let credential = self.credential(&request.url).ok()?;
        let response = self.client.http().send(&request, credential.as_ref()).ok()?;
        if !response.is_success() {
            return None;
        }
        // Of an upload without a byte some say 0-0, as of one with a single byte.
        let taken = response.header("range").and_then(end_of_range)?;
        pieces.at = if taken == 1 { 0 } else { taken };
        if let Some(location) = response.header("location") {
            pieces.location = resolve(&response.url, location).ok()?;
        }
        (pieces.at <= self.length).then_some(pieces)
    }

    fn send(
        &mut self,
        method: Method,
        url: String,
        range: Option<String>,
        at: u64,
        count: u64,
    ) -> Result<Response> {
        let mut request = Request { method, ..Request::get(url, self.what()) };
        request = request.header("content-type", "application/octet-stream");
        if let Some(range) = range {
            request = request.header("content-range", range);
        }
        let credential = self.credential(&request.url)?;
        let mut body: Box<dyn Read + '_> =
            if count == 0 { Box::new(io::empty()) } else { Box::new((self.open)(at)?.take(count)) };
        let response = self.client.http().send_reader(&request, count, &mut *body, credential.as_ref())?;
        if response.is_success() {
            Ok(response)
        } else {
            Err(self.client.push_error(response, &request.what))
        }
    }

    /// What an upload's requests are sent with: it may go on at another host, which gets no credentials,
    /// and for longer than a token holds.
    fn credential(&self, url: &str) -> Result<Option<Secret>> {
        if !self.client.is_own(url) {
            return Ok(None);
        }
        if let Some(header) = self.client.push_header() {
            return Ok(Some(header));
        }
        self.client.has_blob(self.digest)?;
        Ok(self.client.push_header())
    }
}

/// `0-99` is a hundred bytes.
fn end_of_range(header: &str) -> Option<u64> {
    let (start, end) = header.trim().trim_start_matches("bytes=").split_once('-')?;
    (start.trim() == "0").then(|| end.trim().parse::<u64>().ok()?.checked_add(1)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_uploads() {
        for (header, wanted) in [
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("0-0", Some(1)),
            ("5-99", None),
            ("0-18446744073709551615", None),
            ("0", None),
        ] {
            assert_eq!(end_of_range(header), wanted, "{header}");
        }
    }
}
