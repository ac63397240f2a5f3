//! What a stage has come to: its configuration, its layers, and the variables that its instructions see.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::Problem;
use crate::id::Digest;
use crate::image::{self, Base};
use crate::plan::dockerfile::expand::Scope;
use crate::plan::instruction::{self, Config};
use crate::store::Store;

/// What BuildKit writes into an image's history.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// PATH where an image sets none: Docker's.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Build arguments that need no ARG, and that no cache key and no history shows.
pub(super) const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// An ARG of a stage.
#[derive(Clone, Debug)]
struct Argument {
    name: String,
    value: Option<String>,
    /// Whether an ENV of the same name came later. As with BuildKit, whichever came last is seen.
    is_hidden: bool,
}

/// A stage so far.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// The image's configuration, whole.
    image: Value,
    pub(super) layers: Vec<Digest>,
    /// ARGs of this stage, in order.
    arguments: Vec<Argument>,
    pub(super) cmd_is_set: bool,
    /// The last time that something of the image was made.
    created: Option<String>,
}

impl State {
    /// Of an image.
    pub(super) fn of(base: Base) -> Self {
        let created = base.config["created"].as_str().map(str::to_owned);
        let mut state = Self {
            image: base.config,
            layers: base.layers,
            arguments: Vec::new(),
            cmd_is_set: false,
            created,
        };
        state.ensure_path();
        state.complete_history();
        state
    }

    /// Gives each of the layers an entry: tools count one by the other, and an image may come with a
    /// history that is short of some. BuildKit's words.
    fn complete_history(&mut self) {
        let history = &mut self.image["history"];
        if !history.is_array() {
            *history = json!([]);
        }
        let Value::Array(list) = history else { return };
        let known = list.iter().filter(|entry| entry["empty_layer"] != json!(true)).count();
        for _ in known..self.layers.len() {
            let mut entry = json!({ "comment": "buildkit.exporter.image.v0" });
            if let Some(created) = &self.created {
                entry["created"] = json!(created);
            }
            list.push(entry);
        }
    }

    /// Of nothing.
    pub(super) fn scratch(platform: Option<&str>) -> Result<Self, Problem> {
        let mut image = image::scratch(platform)?;
        image["config"] = json!({ "Env": [format!("PATH={DEFAULT_PATH}")], "WorkingDir": "/" });
        Ok(Self { image, layers: Vec::new(), arguments: Vec::new(), cmd_is_set: false, created: None })
    }

    /// Of another stage of this build, with its ARGs.
    pub(super) fn after(other: &Self) -> Self {
        Self { cmd_is_set: false, ..other.clone() }
    }

    fn ensure_path(&mut self) {
        let env = self.config_mut().entry("Env").or_insert_with(|| json!([]));
        if !env.is_array() {
            *env = json!([]);
        }
        if let Value::Array(list) = env
            && !list.iter().filter_map(Value::as_str).any(|entry| entry.starts_with("PATH="))
        {
            list.push(json!(format!("PATH={DEFAULT_PATH}")));
        }
    }

    pub(super) fn image(&self) -> &Value {
        &self.image
    }

    pub(super) fn config(&self) -> &Value {
        &self.image["config"]
    }

    pub(super) fn config_mut(&mut self) -> &mut Config {
        let config = &mut self.image["config"];
        if !config.is_object() {
            *config = json!({});
        }
        config.as_object_mut().expect("it has just been made an object where it was none")
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.config()[key].as_str().unwrap_or_default()
    }

    /// The platform, as images and ARGs name it.
    pub(super) fn platform(&self) -> String {
        let text = |key: &str| self.image[key].as_str().unwrap_or_default();
        let mut platform = format!("{}/{}", text("os"), text("architecture"));
        if !text("variant").is_empty() {
            platform.push('/');
            platform.push_str(text("variant"));
        }
        platform
    }

    /// A variable's value: of ENV and ARG, which of them came last.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let argument = self.arguments.iter().find(|argument| argument.name == name && !argument.is_hidden);
        if let Some(value) = argument.and_then(|argument| argument.value.clone()) {
            return Some(value);
        }
        let env = self.config()["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let found = env.filter_map(|entry| entry.split_once('=')).find(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_owned())
    }

    pub(super) fn expand(&self, text: &str, escape: char) -> Result<String, Problem> {
        let variable = |name: &str| self.variable(name);
        instruction_word(text, Scope { variable: &variable, escape })
    }

    pub(super) fn set_argument(&mut self, name: &str, value: Option<String>) {
        match self.arguments.iter_mut().find(|known| known.name == name) {
            // One without a value leaves what is there.
            Some(known) if value.is_some() => {
                known.value = value;
                known.is_hidden = false;
            }
            Some(_) => {}
            None => self.arguments.push(Argument { name: name.to_owned(), value, is_hidden: false }),
        }
    }

    /// ENV hides ARGs of these names.
    fn hide(&mut self, pairs: &[(String, String)]) {
        for argument in &mut self.arguments {
            argument.is_hidden |= pairs.iter().any(|(name, _)| *name == argument.name);
        }
    }

    /// What the history says that a RUN was given: every ARG, in order, as it was seen.
    pub(super) fn told_arguments(&self) -> Vec<(String, String)> {
        let told =
            |argument: &Argument| (argument.name.clone(), self.variable(&argument.name).unwrap_or_default());
        self.arguments.iter().map(told).collect()
    }

    /// The ARGs that a RUN sees: those with a value that no ENV overrides.
    pub(super) fn arguments(&self) -> Vec<(String, String)> {
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        for argument in self.arguments.iter().filter(|argument| !argument.is_hidden) {
            if let Some(value) = &argument.value {
                found.insert(argument.name.clone(), value.clone());
            }
        }
        found.into_iter().collect()
    }

    /// The words that a shell's text is run with.
    pub(super) fn shell(&self) -> Vec<String> {
        let shell = self.config()["Shell"].as_array().filter(|shell| !shell.is_empty());
        match shell {
            Some(shell) => shell.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            None => ["/bin/sh", "-c"].map(str::to_owned).into(),
        }
    }

    /// Applies an instruction that changes the configuration, and gives what the history says of it.
    pub(super) fn configure(&mut self, name: &str, rest: &str, escape: char) -> Result<String, Problem> {
        let seen = self.clone();
        let variable = |name: &str| seen.variable(name);
        let scope = Scope { variable: &variable, escape };
        if name == "ENTRYPOINT" && !self.cmd_is_set {
            self.config_mut().remove("Cmd");
        }
        self.cmd_is_set |= name == "CMD";
        instruction::apply_one(self.config_mut(), name, rest, scope).map_err(Problem::new)?;
        if name == "ENV" {
            let pairs = instruction::pairs(scope, "", rest).unwrap_or_default();
            self.hide(&pairs);
        }
        if name == "MAINTAINER" {
            self.image["author"] = json!(instruction_word(rest, scope)?);
        }
        self.config_mut().shift_remove("ArgsEscaped");
        Ok(told(name, rest, self.config(), scope))
    }

    /// Adds to the history. A layer's own time is told; what only changes the configuration has that of
    /// what came before it, so that the same build gives the same image.
    pub(super) fn remember(&mut self, text: &str, layer: Option<&str>, is_empty: bool, fallback: &str) {
        let created = match layer {
            Some(created) => {
                self.created = Some(created.to_owned());
                created.to_owned()
            }
            None => self.created.get_or_insert_with(|| fallback.to_owned()).clone(),
        };
        let mut entry = json!({ "created": created, "created_by": text, "comment": COMMENT });
        if is_empty {
            entry["empty_layer"] = json!(true);
        }
        match &mut self.image["history"] {
            Value::Array(list) => list.push(entry),
            other => *other = json!([entry]),
        }
    }

    /// The whole configuration as the image's, made at `now` or as late as its last layer.
    pub(super) fn finished(&self, epoch: Option<&str>, labels: &[(String, String)], now: &str) -> Value {
        let mut image = self.image.clone();
        let created = epoch.or(self.created.as_deref()).unwrap_or(now);
        image["created"] = json!(created);
        if let Value::Object(object) = &mut image {
            for key in ["container", "container_config", "docker_version", "id", "parent"] {
                object.shift_remove(key);
            }
        }
        if !labels.is_empty() {
            let entry = &mut image["config"]["Labels"];
            if !entry.is_object() {
                *entry = json!({});
            }
            for (name, value) in labels {
                entry[name] = json!(value);
            }
        }
        if let (Some(epoch), Value::Array(history)) = (epoch, &mut image["history"]) {
            for entry in history.iter_mut().filter(|entry| entry["comment"] == json!(COMMENT)) {
                entry["created"] = json!(epoch);
            }
        }
        image
    }

    /// What this state is, for the keys of caches: everything that a RUN depends on.
    pub(super) fn layers_key(&self) -> String {
        crate::store::chain_id(&self.layers).map_or_else(|| "scratch".to_owned(), |chain| chain.to_string())
    }

    /// Takes the ONBUILD triggers, which run now.
    pub(super) fn take_triggers(&mut self) -> Vec<String> {
        match self.config_mut().shift_remove("OnBuild") {
            Some(Value::Array(list)) => {
                list.into_iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Makes sure that its layers are there for a container.
    pub(super) fn root(&self, store: &Store) -> Result<image::RootSource, Problem> {
        Ok(image::RootSource::Packed {
            index: store.merged_index(&self.layers)?,
            layers: self.layers.iter().map(|layer| store.layer_tar(layer)).collect(),
        })
    }
}

pub(super) fn instruction_word(text: &str, scope: Scope<'_>) -> Result<String, Problem> {
    crate::plan::dockerfile::expand::word(text, scope)
        .map_err(|error| Problem::new(format!("failed to process {text:?}: {error}")))
}

/// What BuildKit's history says of an instruction: its values, as they came to be.
fn told(name: &str, rest: &str, config: &Value, scope: Scope<'_>) -> String {
    let words = |key: &str| {
        let list = config[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        list.map(str::to_owned).collect::<Vec<_>>()
    };
    let quoted = |words: Vec<String>| {
        format!("[{}]", words.iter().map(|word| go_quoted(word)).collect::<Vec<_>>().join(" "))
    };
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    // What this instruction alone names.
    let own = |key: &str| {
        let mut alone = Config::new();
        let _ = instruction::apply_one(&mut alone, name, rest, scope); // it has been applied before
        let names = alone.get(key).and_then(Value::as_object).into_iter().flatten();
        format!("[{}]", names.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" "))
    };
    let pairs = || {
        let pairs = instruction::pairs(scope, "", rest).unwrap_or_default();
        pairs.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>()
    };
    match name {
        "CMD" => format!("CMD {}", quoted(words("Cmd"))),
        "ENTRYPOINT" => format!("ENTRYPOINT {}", quoted(words("Entrypoint"))),
        "SHELL" => format!("SHELL [{}]", words("Shell").join(" ")),
        "ENV" | "LABEL" => format!("{name}{}", pairs()),
        "EXPOSE" => format!("EXPOSE {}", own("ExposedPorts")),
        "VOLUME" => format!("VOLUME {}", own("Volumes")),
        "HEALTHCHECK" => health_check(&config["Healthcheck"]),
        "USER" => format!("USER {}", text("User")),
        "STOPSIGNAL" => format!("STOPSIGNAL {}", text("StopSignal")),
        "WORKDIR" => format!("WORKDIR {}", text("WorkingDir")),
        _ => format!("{name} {rest}"),
    }
}

/// A health check as Go's `%+v` writes it.
fn health_check(check: &Value) -> String {
    let words = check["Test"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let time = |key: &str| go_duration(check[key].as_i64().unwrap_or(0));
    format!(
        "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        words.collect::<Vec<_>>().join(" "),
        time("Interval"),
        time("Timeout"),
        time("StartPeriod"),
        time("StartInterval"),
        check["Retries"].as_i64().unwrap_or(0),
    )
}

/// Nanoseconds as Go writes a duration: `1m30s`, `100ms`, `0s`.
fn go_duration(nanoseconds: i64) -> String {
    const SECOND: i64 = 1_000_000_000;
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    if nanoseconds < SECOND {
        for (unit, name) in [(1_000_000, "ms"), (1_000, "µs")] {
            if nanoseconds >= unit {
                return format!("{}{name}", nanoseconds as f64 / unit as f64);
            }
        }
        return format!("{nanoseconds}ns");
    }
    let (minutes, seconds) =
        (nanoseconds / (60 * SECOND), (nanoseconds % (60 * SECOND)) as f64 / SECOND as f64);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// A text as Go's `%q` writes it, for what occurs.
fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The present, or what SOURCE_DATE_EPOCH says, as configurations write it.
pub(super) fn written(time: Timestamp) -> String {
    time.to_string()
}
