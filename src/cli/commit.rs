//! Create a new image from a container's changes

use jiff::Timestamp;
use serde_json::{Value, json};

use super::images::image_error;
use super::inspect::{entrypoint_and_command, protocol_name};
use super::{CliError, Context, Exit, Outcome};
use crate::id::Digest;
use crate::image::{self, Draft, Reference};
use crate::plan::instruction::{self, Config};
use crate::store::Store;
use crate::store::containers::{Containers, Record, Status};
use crate::supervisor::processes;
use crate::supervisor::{Saved, changes};

/// Create a new image from a container's changes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Commit message
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Pause container during commit
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Accepted for podman's sake: nothing but the id is printed anyway
    #[arg(short, long, hide = true)]
    quiet: bool,
    /// CONTAINER
    container: String,
    /// [REPOSITORY[:TAG]]
    name: Option<String>,
}

/// Makes the image and prints its id.
///
/// # Errors
/// No such container, a wrong name or instruction, a container without an image, files that cannot
/// be read, a full disk.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let name = parse_name(args.name.as_deref())?;
    let saved: Saved = containers.plan(&record.id)?;
    let store = Store::open(&ctx.root)?;
    let draft = draft(&store, args, &record, &saved, name)?;
    let status = containers.status(&record.id)?;
    let paused = match &status {
        Status::Running(state) if args.pause => {
            Some(processes::hold(state.keeper_pid, &[state.server_pid]).map_err(|error| {
                CliError::new(format!("cannot pause container {}: {error}", record.id.short()))
                    .with_hint("commit it as it runs with --pause=false")
            })?)
        }
        _ => None,
    };
    let layer = changes::layer(&record, &saved, &status)?;
    let what = format!("the changes of container {}", record.id.short());
    let added = image::commit(&store, draft, Box::new(layer), &what).map_err(image_error)?;
    drop(paused);
    let name = added.names.first().map(|(name, _)| name.familiar()).unwrap_or_default();
    let attributes = [("comment", &*args.message), ("imageID", added.id.as_str()), ("imageRef", &*name)];
    containers.tell(&record, "commit", &attributes);
    println!("{}", added.id);
    Ok(Exit::Success)
}

/// A name with a tag, without a digest.
///
/// # Errors
/// Docker's words.
pub fn parse_name(text: Option<&str>) -> Result<Option<Reference>, CliError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let name: Reference = text.parse()?;
    if name.digest().is_some() {
        return Err(CliError::new("cannot commit to digest reference"));
    }
    Ok(Some(name.with_default_tag()))
}

fn draft(
    store: &Store,
    args: &Args,
    record: &Record,
    saved: &Saved,
    name: Option<Reference>,
) -> Result<Draft, CliError> {
    let id: Digest = record
        .image_id
        .as_deref()
        .ok_or_else(|| {
            CliError::new(format!(
                "container {} was started from {}, which is no image to build on",
                record.id.short(),
                record.image
            ))
            .with_hint(format!(
                "`hostel export {0} | hostel import - NAME` makes an image of all files that it sees (of host:/ that is \
                 the whole machine); `hostel diff {0}` lists what it has changed, `hostel cp` takes it out",
                record.name
            ))
        })?
        .parse()?;
    let base = image::base_config(store, &id).map_err(image_error)?;
    let mut config = container_config(&base, record, saved);
    instruction::apply(&mut config, &args.change)?;
    let (_, command) = entrypoint_and_command(saved);
    Ok(Draft {
        base,
        config,
        author: args.author.clone(),
        comment: args.message.clone(),
        created_by: command.unwrap_or_default().join(" "),
        created: Timestamp::now().to_string(),
        name,
    })
}

/// The image's configuration with what the container was created with, by Docker's rules of merging.
fn container_config(base: &Value, record: &Record, saved: &Saved) -> Config {
    let mut config = base["config"].as_object().cloned().unwrap_or_default();
    let request = &saved.request;
    let (entrypoint, command) = entrypoint_and_command(saved);
    let mut set = |key: &str, value: Option<Value>| match value {
        Some(value) => drop(config.insert(key.to_owned(), value)),
        None => drop(config.shift_remove(key)),
    };
    set("Entrypoint", entrypoint.map(|words| json!(words)));
    set("Cmd", command.map(|words| json!(words)));

    let asked = &request.process.env;
    let last = |name: &str| asked.iter().rev().find(|setting| setting.name == name);
    let mut env: Vec<String> = Vec::new();
    for (place, setting) in asked.iter().enumerate() {
        let is_first = asked.iter().position(|other| other.name == setting.name) == Some(place);
        let value = last(&setting.name).and_then(|setting| setting.value.as_deref());
        env.extend(value.filter(|_| is_first).map(|value| format!("{}={value}", setting.name)));
    }
    for entry in base["config"]["Env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let name = entry.split_once('=').map_or(entry, |(name, _)| name);
        if last(name).is_none() {
            env.push(entry.to_owned());
        }
    }
    set("Env", (!env.is_empty()).then(|| json!(env)));
    set("User", Some(&saved.plan.user).filter(|user| !user.is_empty()).map(|user| json!(user)));
    if let Some(dir) = &request.process.working_dir {
        set("WorkingDir", Some(json!(dir)));
    }
    if request.process.stop_signal.is_some() {
        set("StopSignal", Some(json!(crate::plan::signal::name(saved.plan.stop_signal))));
    }
    set("Labels", (!record.labels.is_empty()).then(|| json!(record.labels)));
    for (port, protocol) in &saved.plan.network.expose {
        add(&mut config, "ExposedPorts", format!("{port}/{}", protocol_name(*protocol)));
    }
    for volume in saved.plan.volumes.iter().filter(|volume| volume.anonymous) {
        add(&mut config, "Volumes", volume.destination.display().to_string());
    }
    config
}

/// Adds a member to a set, as images write them: an object of empty objects.
fn add(config: &mut Config, key: &str, member: String) {
    match config.entry(key.to_owned()).or_insert_with(|| json!({})) {
        Value::Object(set) => drop(set.entry(member).or_insert_with(|| json!({}))),
        other => *other = json!({ member: {} }),
    }
}
