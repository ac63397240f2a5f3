//! The command line and environment of the container's process, by Docker's rules of merging.

use std::collections::HashMap;

use super::request::EnvSetting;

/// What PATH is when the image sets none: Docker's, which is Debian's for root.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment, as `NAME=value` in Docker's order: PATH, HOSTNAME, TERM with a terminal, what
/// was asked for, then what only the image has.
///
/// A later setting of a name replaces an earlier one in its place; one without a value takes the
/// name away, the image's included. An entry of the image without `=` or with a NUL is left out.
/// HOME is not here: it depends on the user's entry in the container's /etc/passwd.
#[must_use]
pub fn environment(hostname: &str, tty: bool, image: &[String], asked: &[EnvSetting]) -> Vec<String> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("HOSTNAME", hostname);
    if tty {
        env.set("TERM", "xterm");
    }
    for EnvSetting { name, value } in asked {
        env.put(name, value.as_deref());
    }
    for (name, value) in image.iter().filter_map(|entry| entry.split_once('=')) {
        if !asked.iter().any(|setting| setting.name == name) && is_name(name) && !value.contains('\0') {
            env.set(name, value);
        }
    }
    env.entries.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect()
}

/// The environment of a process that joins a container (`exec`): the container's, with TERM for a
/// terminal where it has none, and what was asked for.
#[must_use]
pub fn joined_environment(container: &[String], tty: bool, asked: &[EnvSetting]) -> Vec<String> {
    let mut env = Environment::default();
    if tty {
        env.set("TERM", "xterm");
    }
    for (name, value) in container.iter().filter_map(|entry| entry.split_once('=')) {
        env.set(name, value);
    }
    for EnvSetting { name, value } in asked {
        env.put(name, value.as_deref());
    }
    env.entries.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect()
}

/// The arguments: entrypoint, then command. An entrypoint that was asked for, even an empty one,
/// drops the image's command; a command that was asked for replaces it. `None` when nothing is
/// left to run.
#[must_use]
pub fn arguments(
    image_entrypoint: &[String],
    image_command: &[String],
    entrypoint: Option<&str>,
    command: &[String],
) -> Option<Vec<String>> {
    let (entrypoint, default_command) = match entrypoint {
        Some("") => (Vec::new(), [].as_slice()),
        Some(program) => (vec![program.to_owned()], [].as_slice()),
        None => (image_entrypoint.to_vec(), image_command),
    };
    let command = if command.is_empty() { default_command } else { command };
    let arguments = [&entrypoint, command].concat();
    (!arguments.is_empty()).then_some(arguments)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('\0')
}

/// Settings in order of first mention.
#[derive(Default)]
struct Environment<'a> {
    entries: Vec<(&'a str, Option<&'a str>)>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Environment<'a> {
    fn set(&mut self, name: &'a str, value: &'a str) {
        self.put(name, Some(value));
    }

    fn put(&mut self, name: &'a str, value: Option<&'a str>) {
        match self.places.get(name) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(name, self.entries.len());
                self.entries.push((name, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn set(name: &str, value: Option<&str>) -> EnvSetting {
        EnvSetting { name: name.into(), value: value.map(str::to_owned) }
    }

    #[test]
    fn environment_has_dockers_order() {
        let image = owned(&["PATH=/image", "LANG=C", "A=image", "=x", "nothing", "N=a\0b"]);
        let asked = [set("A", Some("1")), set("B", Some("x=y")), set("A", Some("2")), set("E", Some(""))];
        assert_eq!(
            environment("box", true, &image, &asked),
            ["PATH=/image", "HOSTNAME=box", "TERM=xterm", "A=2", "B=x=y", "E=", "LANG=C"]
        );
        assert_eq!(
            environment("box", false, &[], &[]),
            ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=box"]
        );
    }

    #[test]
    fn a_setting_without_value_takes_the_name_away() {
        let image = owned(&["LANG=C", "X=1"]);
        let asked = [set("LANG", None), set("HOSTNAME", None), set("PATH", Some("/p")), set("NEW", None)];
        assert_eq!(environment("box", false, &image, &asked), ["PATH=/p", "X=1"]);
    }

    #[test]
    fn a_joined_process_keeps_the_containers_environment() {
        let container = owned(&["PATH=/p", "TERM=vt100"]);
        let asked = [set("A", Some("1")), set("PATH", None)];
        assert_eq!(joined_environment(&container, true, &asked), ["TERM=vt100", "A=1"]);
        assert_eq!(joined_environment(&owned(&["A=b"]), true, &[]), ["TERM=xterm", "A=b"]);
    }

    #[test]
    fn entrypoint_and_command() {
        let (entry, cmd) = (owned(&["/entry", "-e"]), owned(&["cmd", "-c"]));
        let none: &[String] = &[];
        type Row<'a> = (&'a [String], &'a [String], Option<&'a str>, &'a [&'a str], Option<&'a [&'a str]>);
        let table: [Row<'_>; 11] = [
            (&entry, &cmd, None, &[], Some(&["/entry", "-e", "cmd", "-c"])),
            (&entry, &cmd, None, &["x"], Some(&["/entry", "-e", "x"])),
            (&entry, none, None, &[], Some(&["/entry", "-e"])),
            (none, &cmd, None, &[], Some(&["cmd", "-c"])),
            (none, &cmd, None, &["x", "y"], Some(&["x", "y"])),
            (&entry, &cmd, Some("sh"), &[], Some(&["sh"])),
            (&entry, &cmd, Some("sh"), &["-c", "x"], Some(&["sh", "-c", "x"])),
            (&entry, &cmd, Some(""), &["x"], Some(&["x"])),
            (&entry, &cmd, Some(""), &[], None),
            (none, none, None, &[], None),
            (none, none, None, &["x"], Some(&["x"])),
        ];
        for (entry, cmd, asked, command, expected) in table {
            let got = arguments(entry, cmd, asked, &owned(command));
            assert_eq!(got, expected.map(owned), "{asked:?} {command:?}");
        }
    }
}
