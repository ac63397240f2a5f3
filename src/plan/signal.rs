//! Signals by name and number, as `--stop-signal`, STOPSIGNAL and `kill -s` write them.

use thiserror::Error;

/// A text that names no signal. The wording is Docker's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("invalid signal: {0}")]
pub struct InvalidSignal(pub String);

/// The first real-time signal that a C library leaves to programs: both glibc and musl keep those
/// below for themselves.
const SIGRTMIN: i32 = 34;
/// The last signal of Linux on every architecture that hostel runs on.
const SIGRTMAX: i32 = 64;

/// Names without `SIG`; the first of two names for a number is the one that is shown.
const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The number of a signal: `15`, `TERM`, `SIGTERM`, `sigterm`, `RTMIN+3`, `SIGRTMAX-1`.
///
/// # Errors
/// Anything else, and numbers outside 1 to 64.
pub fn parse(text: &str) -> Result<i32, InvalidSignal> {
    number_of(text).filter(|number| (1..=SIGRTMAX).contains(number)).ok_or_else(|| InvalidSignal(text.into()))
}

/// The name of a signal, with `SIG`; real-time signals count from SIGRTMIN.
#[must_use]
pub fn name(number: i32) -> Option<String> {
    if let Some((name, _)) = NAMES.iter().find(|(_, value)| *value == number) {
        return Some(format!("SIG{name}"));
    }
    match number {
        SIGRTMIN => Some("SIGRTMIN".into()),
        SIGRTMAX => Some("SIGRTMAX".into()),
        35..=63 => Some(format!("SIGRTMIN+{}", number - SIGRTMIN)),
        _ => None,
    }
}

fn number_of(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |digits: &str| -> Option<i32> {
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
    };
    match name {
        "RTMIN" => Some(SIGRTMIN),
        "RTMAX" => Some(SIGRTMAX),
        _ => {
            if let Some(up) = name.strip_prefix("RTMIN+") {
                offset(up).and_then(|up| SIGRTMIN.checked_add(up))
            } else {
                let down = offset(name.strip_prefix("RTMAX-")?)?;
                SIGRTMAX.checked_sub(down).filter(|number| *number >= SIGRTMIN)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let table = [
            ("15", 15),
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("kill", 9),
            ("SIGWINCH", 28),
            ("CLD", 17),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("64", 64),
        ];
        for (text, number) in table {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_signal() {
        let bad = [
            "",
            "0",
            "-1",
            "65",
            "SIG",
            "FOO",
            "RTMIN+31",
            "RTMIN+",
            "RTMAX-31",
            "RTMIN+99999999999",
            "RTMIN+-1",
        ];
        for text in bad {
            assert_eq!(parse(text), Err(InvalidSignal(text.into())));
        }
        assert_eq!(InvalidSignal("FOO".into()).to_string(), "invalid signal: FOO");
    }

    #[test]
    fn a_number_shows_its_first_name() {
        assert_eq!(name(6).as_deref(), Some("SIGABRT"));
        assert_eq!(name(17).as_deref(), Some("SIGCHLD"));
        assert_eq!(name(37).as_deref(), Some("SIGRTMIN+3"));
        assert_eq!(name(32), None);
        assert_eq!(name(65), None);
        for number in 1..=64 {
            if let Some(name) = name(number) {
                assert_eq!(parse(&name), Ok(number));
            }
        }
    }
}
