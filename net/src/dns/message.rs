//! Reads DNS questions and writes answers to them (RFC 1035). Everything else in a message passes
//! through the forwarder as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const HEADER_BYTES: usize = 12;

/// RFC 1035, 2.3.4.
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
/// Opcode and "recursion desired", which an answer repeats.
const FLAGS_REPEATED: u16 = 0x7900;
const OPCODE: u16 = 0x7800;
const RESPONSE_CODE: u16 = 0x000f;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// How long an answer from a table here may be kept: the table can change at any time.
const TIME_TO_LIVE_S: u32 = 5;

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseCode {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    Refused = 5,
}

/// What a question is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    Aaaa,
    Ptr,
    Other,
}

/// A query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    flags: u16,
    /// In lower case, without a dot at its end; empty for the root.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Header and question end here.
    question_end: usize,
}

/// The identification, if there is a header.
pub(crate) fn id_of(message: &[u8]) -> Option<u16> {
    word(message, 0)
}

/// Replaces the identification of a message that has a header.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

/// Reads a query. None is a message that no answer can be given to: too short, or an answer
/// itself. An error is one that deserves "format error".
pub(crate) fn parse_query(message: &[u8]) -> Option<Result<Query, ()>> {
    if message.len() < HEADER_BYTES {
        return None;
    }
    let flags = word(message, 2)?;
    if flags & FLAG_RESPONSE != 0 {
        return None;
    }
    if flags & OPCODE != 0 || word(message, 4)? != 1 {
        return Some(Err(()));
    }
    Some(parse_question(message, flags).ok_or(()))
}

fn parse_question(message: &[u8], flags: u16) -> Option<Query> {
    let (name, end) = parse_name(message, HEADER_BYTES)?;
    let kind = word(message, end)?;
    let class = word(message, end + 2)?;
    Some(Query {
        id: id_of(message)?,
        flags,
        name,
        kind: match (class, kind) {
            (CLASS_IN, TYPE_A) => Kind::A,
            (CLASS_IN, TYPE_AAAA) => Kind::Aaaa,
            (CLASS_IN, TYPE_PTR) => Kind::Ptr,
            _ => Kind::Other,
        },
        question_end: end + 4,
    })
}

/// A name and where it ends. Questions come first, so there is nothing that compression could
/// point to.
fn parse_name(message: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > LABEL_BYTES_MAX || at + length - start > NAME_BYTES_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // Bytes that are no text are kept apart from every name in a table.
        for &byte in message.get(at..at + length)? {
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        at += length;
    }
}

impl Query {
    /// Header and question, in bytes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn question_bytes(&self) -> usize {
        self.question_end
    }

    /// An answer without records.
    pub(crate) fn answer_empty(&self, message: &[u8], code: ResponseCode) -> Vec<u8> {
        self.answer_header(message, code, FLAG_RECURSION_AVAILABLE, 0)
    }

    /// An answer with those of the addresses that were asked for.
    pub(crate) fn answer_addresses(&self, message: &[u8], addresses: &[IpAddr]) -> Vec<u8> {
        let wanted: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|address| match self.kind {
                Kind::A => address.is_ipv4(),
                Kind::Aaaa => address.is_ipv6(),
                Kind::Ptr | Kind::Other => false,
            })
            .collect();
        let flags = FLAG_RECURSION_AVAILABLE | FLAG_AUTHORITATIVE;
        let count = wanted.len() as u16;
        let mut answer = self.answer_header(message, ResponseCode::NoError, flags, count);
        for address in wanted {
            match address {
                IpAddr::V4(v4) => record(&mut answer, TYPE_A, &v4.octets()),
                IpAddr::V6(v6) => record(&mut answer, TYPE_AAAA, &v6.octets()),
            }
        }
        answer
    }

    /// An answer with the name of an address.
    pub(crate) fn answer_name(&self, message: &[u8], name: &str) -> Vec<u8> {
        let flags = FLAG_RECURSION_AVAILABLE | FLAG_AUTHORITATIVE;
        let mut data = Vec::with_capacity(name.len() + 2);
        for label in name.split('.') {
            let label = &label.as_bytes()[..label.len().min(LABEL_BYTES_MAX)];
            data.push(label.len() as u8);
            data.extend(label);
        }
        data.push(0);
        let mut answer = self.answer_header(message, ResponseCode::NoError, flags, 1);
        record(&mut answer, TYPE_PTR, &data);
        answer
    }

    /// The address that a question of the form 4.3.2.1.in-addr.arpa is about (RFC 1035, 3.5;
    /// RFC 3596, 2.5).
    pub(crate) fn reverse_address(&self) -> Option<IpAddr> {
        if self.kind != Kind::Ptr {
            return None;
        }
        if let Some(labels) = self.name.strip_suffix(".in-addr.arpa") {
            let mut octets = [0; 4];
            let mut parts = labels.split('.');
            for octet in octets.iter_mut().rev() {
                *octet = parts.next()?.parse().ok()?;
            }
            return parts.next().is_none().then(|| Ipv4Addr::from(octets).into());
        }
        let labels = self.name.strip_suffix(".ip6.arpa")?;
        let mut bits = 0_u128;
        let mut count = 0;
        for label in labels.split('.') {
            let nibble = u128::from(u8::from_str_radix(label, 16).ok().filter(|&n| n < 16)?);
            bits |= nibble.checked_shl(count * 4)?;
            count += 1;
        }
        (count == 32).then(|| Ipv6Addr::from(bits).into())
    }

    fn answer_header(&self, message: &[u8], code: ResponseCode, flags: u16, answers: u16) -> Vec<u8> {
        let flags = FLAG_RESPONSE | flags | self.flags & FLAGS_REPEATED | code as u16;
        let mut answer = Vec::with_capacity(self.question_end + 64);
        for field in [self.id, flags, 1, answers, 0, 0] {
            answer.extend(field.to_be_bytes());
        }
        answer.extend(message.get(HEADER_BYTES..self.question_end).unwrap_or_default());
        answer
    }
}

/// "Format error" to a message that has a header but no question that could be read.
pub(crate) fn answer_format_error(message: &[u8]) -> Option<Vec<u8>> {
    let id = id_of(message)?;
    let flags = FLAG_RESPONSE | word(message, 2)? & FLAGS_REPEATED | ResponseCode::FormatError as u16;
    Some([id, flags, 0, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect())
}

/// Whether a message from a server answers this query, and is not the server's way of saying
/// that another should be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Response {
    /// Not an answer to this.
    Foreign,
    /// The server cannot or will not.
    Failure,
    /// An answer, perhaps "no such name".
    Answer,
}

pub(crate) fn judge_response(message: &[u8], id: u16) -> Response {
    let (Some(own), Some(flags)) = (id_of(message), word(message, 2)) else {
        return Response::Foreign;
    };
    if message.len() < HEADER_BYTES || own != id || flags & FLAG_RESPONSE == 0 {
        return Response::Foreign;
    }
    const NOT_IMPLEMENTED: u16 = 4;
    match flags & RESPONSE_CODE {
        code if code == ResponseCode::ServerFailure as u16
            || code == ResponseCode::Refused as u16
            || code == NOT_IMPLEMENTED =>
        {
            Response::Failure
        }
        _ => Response::Answer,
    }
}

/// Appends a record about the question's name.
fn record(answer: &mut Vec<u8>, kind: u16, data: &[u8]) {
    const POINTER_TO_QUESTION: u16 = 0xc000 | HEADER_BYTES as u16;
    for field in [POINTER_TO_QUESTION, kind, CLASS_IN] {
        answer.extend(field.to_be_bytes());
    }
    answer.extend(TIME_TO_LIVE_S.to_be_bytes());
    answer.extend((data.len() as u16).to_be_bytes());
    answer.extend(data);
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "the messages are made here")]

    use super::*;
    use proptest::prelude::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let message = query("Host.Docker.Internal", TYPE_A);
        let parsed = parse_query(&message).unwrap().unwrap();
        assert_eq!(parsed.name, "host.docker.internal");
        assert_eq!(parsed.kind, Kind::A);
        let addresses = ["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let answer = parsed.answer_addresses(&message, &addresses);
        // Header: same id, response with RD and RA and AA, one question, one answer.
        assert_eq!(answer[..HEADER_BYTES], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[HEADER_BYTES..message.len()], message[HEADER_BYTES..]);
        assert_eq!(answer[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 2, 2]);
    }

    #[test]
    fn a_known_name_without_the_type_has_an_empty_answer() {
        let message = query("a.b", TYPE_AAAA);
        let parsed = parse_query(&message).unwrap().unwrap();
        let answer = parsed.answer_addresses(&message, &["10.0.2.2".parse().unwrap()]);
        assert_eq!(answer.len(), message.len());
        assert_eq!(answer[3] & 0x0f, 0);
    }

    #[test]
    fn reverse_names_give_their_address() {
        for (name, expected) in [
            ("2.2.0.10.in-addr.arpa", Some("10.0.2.2")),
            ("2.0.10.in-addr.arpa", None),
            ("1.2.2.0.10.in-addr.arpa", None),
            ("999.2.0.10.in-addr.arpa", None),
            ("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", Some("fd00::2")),
            ("2.d.f.ip6.arpa", None),
            ("example.com", None),
        ] {
            let parsed = parse_query(&query(name, TYPE_PTR)).unwrap().unwrap();
            let expected = expected.map(|address| address.parse::<IpAddr>().unwrap());
            assert_eq!(parsed.reverse_address(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_query_is_told_apart() {
        let good = query("a", TYPE_A);
        assert_eq!(parse_query(&good[..11]), None);
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(parse_query(&response), None);
        let mut two_questions = good.clone();
        two_questions[5] = 2;
        assert_eq!(parse_query(&two_questions), Some(Err(())));
        let mut compressed = good.clone();
        compressed[12] = 0xc0;
        assert_eq!(parse_query(&compressed), Some(Err(())));
        assert_eq!(parse_query(&good[..good.len() - 1]), Some(Err(())));
    }

    #[test]
    fn servers_that_decline_are_told_from_answers() {
        let mut message = query("a", TYPE_A);
        assert_eq!(judge_response(&message, 0x1234), Response::Foreign);
        message[2] |= 0x80;
        for (code, expected) in
            [(0, Response::Answer), (2, Response::Failure), (3, Response::Answer), (5, Response::Failure)]
        {
            message[3] = code;
            assert_eq!(judge_response(&message, 0x1234), expected, "{code}");
        }
        assert_eq!(judge_response(&message, 1), Response::Foreign);
        assert_eq!(judge_response(&message[..5], 0x1234), Response::Foreign);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(message in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(Ok(query)) = parse_query(&message) {
                query.reverse_address();
                query.answer_addresses(&message, &["10.0.2.2".parse().unwrap()]);
                query.answer_name(&message, "a.b");
            }
            answer_format_error(&message);
            judge_response(&message, 0);
        }

        #[test]
        fn damaged_queries_never_panic(at in 0_usize..40, byte in any::<u8>()) {
            let mut message = query("some.longer.name.example.com", TYPE_A);
            let at = at % message.len();
            message[at] = byte;
            if let Some(Ok(query)) = parse_query(&message) {
                query.answer_addresses(&message, &["10.0.2.2".parse().unwrap()]);
            }
        }
    }
}
