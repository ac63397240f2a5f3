//! Get real time events from the journal of the store

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::filter::Filters;
use super::format::{Template, TemplateError};
use super::{CliError, Context, Exit, Outcome};
use crate::image::Reference;
use crate::store::events::{Event, Events};

/// Get real time events from the journal of the store
///
/// Events are kept until the journal has grown to some two megabytes.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show all events created since timestamp
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// How often the journal is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// The keys of `--filter`.
const FILTERS: [&str; 14] = [
    "type",
    "event",
    "container",
    "image",
    "volume",
    "network",
    "label",
    "scope",
    "daemon",
    // Of these there are none.
    "config",
    "node",
    "plugin",
    "secret",
    "service",
];

/// Prints events: those of the past with `--since` or `--until`, and those to come until `--until`.
///
/// # Errors
/// A filter, a template or a time that is none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let filters = Filters::parse(&args.filter, &FILTERS)?;
    let template = match args.format.as_str() {
        "" | "json" => None,
        text => Some(Template::parse(text).map_err(|error| wrong(&error))?),
    };
    let time = |flag: &str, text: Option<&String>| {
        let parse = |text: &String| {
            moment(text).ok_or_else(|| {
                CliError::new(format!(
                    "invalid value for {flag:?}: {text:?} is neither a time nor a duration"
                ))
            })
        };
        text.map(parse).transpose()
    };
    let (since, until) = (time("since", args.since.as_ref())?, time("until", args.until.as_ref())?);
    let mut reader = Events::new(&ctx.root).read();
    if since.is_none() && until.is_none() {
        reader.skip_to_end()?;
    }
    loop {
        // Asked before reading, so that nothing that came in time is missed.
        let over = until.is_some_and(|until| Timestamp::now() >= until);
        for event in reader.take_new()? {
            let in_time = since.is_none_or(|since| event.time >= since)
                && until.is_none_or(|until| event.time <= until);
            if !in_time || !matches(&event, &filters) {
                continue;
            }
            let line = match (&template, args.format.as_str()) {
                (Some(template), _) => template.render(&object(&event)).map_err(|error| wrong(&error))?,
                (None, "json") => object(&event).to_string(),
                (None, _) => text(&event),
            };
            writeln!(std::io::stdout().lock(), "{line}")?;
        }
        std::io::stdout().flush()?;
        if over {
            return Ok(Exit::Success);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn wrong(error: &TemplateError) -> CliError {
    error.told_as("Error parsing format").with_exit(Exit::Usage)
}

/// As elsewhere; with `+`, a duration from now, which Docker takes as well.
fn moment(text: &str) -> Option<Timestamp> {
    match text.strip_prefix('+') {
        Some(ahead) => Timestamp::now().checked_add(super::run_args::health::parse_duration(ahead)?).ok(),
        None => super::until(text),
    }
}

/// Values of one key are joined by or, keys by and; labels by and.
fn matches(event: &Event, filters: &Filters) -> bool {
    filters.labels(&event.attributes)
        && FILTERS
            .iter()
            .filter(|key| **key != "label")
            .all(|key| filters.any(key, |value| matches_one(event, key, value)))
}

fn matches_one(event: &Event, key: &str, value: &str) -> bool {
    let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
    // As moby's FuzzyMatch: what an id or a name begins with is enough.
    let begins =
        |found: Option<&str>| !value.is_empty() && found.is_some_and(|found| found.starts_with(value));
    let is = |kind: &str| event.kind == kind && (begins(Some(&event.id)) || begins(attribute("name")));
    match key {
        "type" => event.kind == value,
        // `exec_create: ls` is an exec_create.
        "event" => event.action == value || event.action.split(':').next() == Some(value),
        "container" => is("container") || attribute("container") == Some(value),
        "image" => {
            let name = attribute(if event.kind == "image" { "name" } else { "image" });
            [Some(event.id.as_str()), name].into_iter().flatten().any(|found| {
                let repository = || found.parse::<Reference>().ok().map(|name| name.familiar_repository());
                found == value || repository().as_deref() == Some(value)
            })
        }
        "volume" => is("volume"),
        "network" => is("network"),
        "scope" => value == "local",
        _ => false,
    }
}

/// Docker's JSON of an event (Engine API, EventMessage), with the older fields that it still has.
fn object(event: &Event) -> Value {
    let mut object = json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local",
        "time": event.time.as_second(),
        "timeNano": i64::try_from(event.time.as_nanosecond()).unwrap_or(i64::MAX),
    });
    if let (Some(map), "container" | "image") = (object.as_object_mut(), event.kind.as_str()) {
        map.insert("status".into(), event.action.clone().into());
        map.insert("id".into(), event.id.clone().into());
        map.insert("ID".into(), event.id.clone().into());
        map.insert("Status".into(), event.action.clone().into());
        if let Some(image) = event.attributes.get("image") {
            map.insert("from".into(), image.clone().into());
        }
    }
    object
}

/// `2024-01-02T03:04:05.000000000Z container die ID (exitCode=3, image=busybox, name=x)`.
fn text(event: &Event) -> String {
    let attributes: BTreeMap<_, _> = event.attributes.iter().collect();
    let attributes: Vec<String> =
        attributes.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let tail = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!("{:.9} {} {} {}{tail}", event.time, event.kind, event.action, event.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, action: &str, attributes: &[(&str, &str)]) -> Event {
        Event {
            time: "2024-01-02T03:04:05.5Z".parse().expect("a time"),
            kind: kind.into(),
            action: action.into(),
            id: "abcdef".into(),
            attributes: attributes.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        }
    }

    #[test]
    fn an_event_is_a_line_of_dockers() {
        let die = event("container", "die", &[("name", "x"), ("exitCode", "3"), ("image", "busybox")]);
        assert_eq!(
            text(&die),
            "2024-01-02T03:04:05.500000000Z container die abcdef (exitCode=3, image=busybox, name=x)"
        );
        let object = object(&die);
        assert_eq!(object["status"], "die");
        assert_eq!(object["Actor"]["Attributes"]["exitCode"], "3");
        assert_eq!(
            (&object["time"], &object["timeNano"]),
            (&json!(1_704_164_645), &json!(1_704_164_645_500_000_000_i64))
        );
    }

    #[test]
    fn images_and_volumes_are_chosen_by_name() {
        let pull =
            Event { id: "reg.example/a:1".into(), ..event("image", "pull", &[("name", "reg.example/a")]) };
        let run = event("container", "create", &[("image", "reg.example/a:1"), ("name", "x")]);
        let volume = Event { id: "data".into(), ..event("volume", "create", &[("driver", "local")]) };
        for (filter, fits) in [
            ("image=reg.example/a", [true, true, false]),
            ("image=reg.example/a:1", [true, true, false]),
            ("image=reg.example/a:2", [false, false, false]),
            ("image=a", [false, false, false]),
            ("volume=data", [false, false, true]),
            ("volume=da", [false, false, true]),
            ("type=image", [true, false, false]),
        ] {
            let filters = Filters::parse(&[filter.to_owned()], &FILTERS).expect("valid");
            assert_eq!([&pull, &run, &volume].map(|event| matches(event, &filters)), fits, "{filter}");
        }
    }

    #[test]
    fn filters_choose() {
        let labelled =
            event("container", "exec_create: ls -l", &[("name", "x"), ("image", "busybox:1"), ("tier", "a")]);
        for (filters, fits) in [
            (&["type=container"][..], true),
            (&["type=image"], false),
            (&["type=image", "type=container"], true),
            (&["event=exec_create", "container=x"], true),
            (&["container=abcd"], true),
            (&["container=y"], false),
            (&["image=busybox"], true),
            (&["label=tier=a", "label=name"], true),
            (&["label=tier=a", "label=tier=b"], false),
            (&["scope=swarm"], false),
        ] {
            let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            let parsed = Filters::parse(&texts, &FILTERS).expect("valid");
            assert_eq!(matches(&labelled, &parsed), fits, "{filters:?}");
        }
    }
}
