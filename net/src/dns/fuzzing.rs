//! The name server's part of [`crate::fuzzing`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::conversation::Conversation;
use super::message::{self, HEADER_BYTES, Kind, Response, ResponseCode};
use super::system::{Hosts, ResolvConf};

/// See [`crate::fuzzing::dns_message`].
pub(crate) fn message(bytes: &[u8]) {
    let id = message::id_of(bytes).unwrap_or_default();
    if message::judge_response(bytes, id) != Response::Foreign {
        assert!(bytes.len() >= HEADER_BYTES);
        assert!(message::parse_query(bytes).is_none(), "a message is a query or a response");
    }
    let query = match message::parse_query(bytes) {
        None => return,
        Some(Err(())) => {
            let answer = message::answer_format_error(bytes);
            assert!(answer.is_some_and(|answer| message::judge_response(&answer, id) == Response::Answer));
            return;
        }
        Some(Ok(query)) => query,
    };
    assert_eq!(query.id, id);
    let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let long_name = "a-rather-long-label.".repeat(12) + "example";
    let answers = [
        query.answer_empty(bytes, ResponseCode::NoError),
        query.answer_addresses(bytes, &loopbacks),
        query.answer_name(bytes, "host.example"),
        query.answer_name(bytes, &long_name),
    ];
    for answer in answers {
        assert_eq!(message::judge_response(&answer, id), Response::Answer);
        // The question comes back as it was asked.
        let question_end = answer.len().min(bytes.len()).min(query.question_bytes());
        assert_eq!(answer[HEADER_BYTES..question_end], bytes[HEADER_BYTES..question_end]);
    }
    if query.reverse_address().is_some() {
        assert_eq!(query.kind, Kind::Ptr);
    }
    let mut other = bytes.to_vec();
    message::set_id(&mut other, !id);
    assert!(message::parse_query(&other).is_some_and(|parsed| parsed.is_ok_and(|q| q.name == query.name)));
}

/// See [`crate::fuzzing::dns_conversation`]. A step is a byte that says what is done, and one that
/// says how much; what is written are the bytes after it.
pub(crate) fn conversation(mut bytes: &[u8]) {
    let mut conversation = Conversation::default();
    let mut unanswered = 0_usize;
    let mut buffer = [0; 64];
    while let [what, count, rest @ ..] = bytes {
        bytes = rest;
        match what % 5 {
            0 => {
                let (chunk, rest) = bytes.split_at(bytes.len().min(usize::from(*count)));
                bytes = rest;
                if let Ok(taken) = conversation.write(chunk) {
                    assert!(taken <= chunk.len());
                }
            }
            1 => {
                if let Some(query) = conversation.next_query() {
                    assert!(query.len() <= super::MESSAGE_BYTES_MAX);
                    unanswered += 1;
                }
            }
            2 if unanswered > 0 => {
                unanswered -= 1;
                conversation.answer(&[7; 255][..usize::from(*count)]);
            }
            3 => {
                let room = buffer.len().min(usize::from(*count));
                if let Ok(read) = conversation.read(&mut buffer[..room]) {
                    assert!(read <= room);
                }
            }
            4 => {
                conversation.end();
                if conversation.take_over() {
                    assert_eq!(unanswered, 0);
                }
            }
            _ => {}
        }
    }
}

/// See [`crate::fuzzing::system_files`].
pub(crate) fn system_files(text: &str) {
    let conf = ResolvConf::parse(text);
    assert!(!conf.servers.is_empty());
    let words = conf.search.iter().chain(&conf.options);
    assert!(words.into_iter().all(|word| !word.is_empty() && !word.contains(char::is_whitespace)));
    let hosts = Hosts::parse(text);
    for word in text.split_ascii_whitespace() {
        if let Ok(address) = word.parse::<IpAddr>()
            && let Some(name) = hosts.name(address)
        {
            assert!(hosts.addresses(name).is_some_and(|all| all.contains(&address)), "{name}");
        }
    }
}
