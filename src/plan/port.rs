//! Ports as images and flags write them: `80`, `80/tcp`, `8000-8010/udp`.

use std::num::IntErrorKind;
use std::ops::RangeInclusive;

use thiserror::Error;

use super::Protocol;

/// What is wrong with a port. The wordings are Docker's where it has one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PortError {
    /// Empty where a port is needed.
    #[error("empty string specified for ports")]
    Empty,
    /// Not a number from 0 to 65535.
    #[error("invalid port {0:?}: a port is a number from 0 to 65535")]
    Number(String),
    /// The end is below the start.
    #[error("invalid port range: {0}")]
    Range(String),
    /// A protocol that does not exist.
    #[error("invalid proto: {0}")]
    Protocol(String),
    /// A protocol that the userspace network does not carry.
    #[error("protocol sctp is not supported: the userspace network carries tcp and udp")]
    Sctp,
}

/// Splits `port/proto` and reads the protocol; tcp when there is none.
///
/// # Errors
/// An unknown protocol, or sctp.
pub fn split_protocol(text: &str) -> Result<(&str, Protocol), PortError> {
    let Some((port, protocol)) = text.split_once('/') else { return Ok((text, Protocol::Tcp)) };
    match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok((port, Protocol::Tcp)),
        "udp" => Ok((port, Protocol::Udp)),
        "sctp" => Err(PortError::Sctp),
        _ => Err(PortError::Protocol(protocol.into())),
    }
}

/// Reads `80` or `8000-8010`.
///
/// # Errors
/// No numbers, numbers above 65535, an end below the start.
pub fn parse_range(text: &str) -> Result<RangeInclusive<u16>, PortError> {
    if text.is_empty() {
        return Err(PortError::Empty);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    if last < first {
        return Err(PortError::Range(text.into()));
    }
    Ok(first..=last)
}

fn parse_number(text: &str) -> Result<u16, PortError> {
    match text.parse() {
        // Rust takes a leading plus, Docker does not.
        Ok(port) if !text.starts_with('+') => Ok(port),
        Err(error) if *error.kind() == IntErrorKind::Empty => Err(PortError::Empty),
        _ => Err(PortError::Number(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("80"), Ok(80..=80));
        assert_eq!(parse_range("0"), Ok(0..=0));
        assert_eq!(parse_range("8000-8010"), Ok(8000..=8010));
        assert_eq!(parse_range(""), Err(PortError::Empty));
        assert_eq!(parse_range("-"), Err(PortError::Empty));
        assert_eq!(parse_range("90-80"), Err(PortError::Range("90-80".into())));
        for bad in ["65536", "x", "+80", "8 0", "99999999999"] {
            assert_eq!(parse_range(bad), Err(PortError::Number(bad.into())));
        }
    }

    #[test]
    fn protocols() {
        assert_eq!(split_protocol("80"), Ok(("80", Protocol::Tcp)));
        assert_eq!(split_protocol("80/TCP"), Ok(("80", Protocol::Tcp)));
        assert_eq!(split_protocol("80/udp"), Ok(("80", Protocol::Udp)));
        assert_eq!(split_protocol("80/sctp"), Err(PortError::Sctp));
        assert_eq!(split_protocol("80/x").map_err(|e| e.to_string()), Err("invalid proto: x".into()));
    }
}
