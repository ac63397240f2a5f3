//! Manage secrets

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::format::{Table, ago, check_inspect, render_inspect};
use super::{CliError, Context, Exit, Outcome, each};
use crate::store::secrets::{MAX_SECRET_BYTES, SecretMeta, Secrets};
use crate::sys;

/// Manage secrets
#[expect(missing_docs, reason = "clap takes the help of each verb from the type of its arguments")]
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    Create(CreateArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
}

/// Create a secret from a file or STDIN as content
#[derive(clap::Args, Debug)]
pub struct CreateArgs {
    /// Take the content from the environment variable that FILE names
    #[arg(long)]
    env: bool,
    /// Secret labels
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// If a secret with the same name exists, replace it
    #[arg(long)]
    replace: bool,
    /// SECRET
    name: String,
    /// file|-
    file: PathBuf,
}

/// Display detailed information on one or more secrets
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long)]
    format: Option<String>,
    /// Display the secret itself
    #[arg(long)]
    showsecret: bool,
    /// SECRET [SECRET...]
    #[arg(required = true)]
    secrets: Vec<String>,
}

/// List secrets
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Only display IDs
    #[arg(short, long)]
    quiet: bool,
}

/// Remove one or more secrets
#[derive(clap::Args, Debug)]
pub struct RemoveArgs {
    /// Remove all secrets
    #[arg(short, long)]
    all: bool,
    /// Do not complain of a secret that does not exist
    #[arg(short, long)]
    ignore: bool,
    /// SECRET [SECRET...]
    #[arg(required_unless_present = "all")]
    secrets: Vec<String>,
}

const HEADINGS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("CreatedAt", "CREATED"),
    ("UpdatedAt", "UPDATED"),
    ("Labels", "LABELS"),
];
const DEFAULT: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}";
/// Digits of an id: podman's 25.
const ID_LEN: usize = 25;

/// Does what the verb says.
///
/// # Errors
/// No such secret, a name in use, a content that cannot be read.
pub fn run(ctx: &Context, verb: Verb) -> Outcome {
    let secrets = Secrets::new(&ctx.root);
    match verb {
        Verb::Create(args) => create(&secrets, &args),
        Verb::Inspect(args) => inspect(&secrets, &args),
        Verb::Ls(args) => list(&secrets, &args),
        Verb::Rm(args) => remove(&secrets, &args),
    }
}

fn create(secrets: &Secrets, args: &CreateArgs) -> Outcome {
    let labels = args
        .label
        .iter()
        .map(|text| text.split_once('=').unwrap_or((text, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect::<BTreeMap<_, _>>();
    let data = if args.env {
        let name = args.file.to_string_lossy();
        std::env::var(name.as_ref())
            .map_err(|_| CliError::new(format!("cannot find secret data in environment variable {name}")))?
            .into_bytes()
    } else {
        read(&args.file)?
    };
    let now = Timestamp::now();
    let id: String = sys::process::random_bytes::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let meta = SecretMeta {
        id: id[..ID_LEN].to_owned(),
        name: args.name.parse()?,
        created: now,
        updated: now,
        labels,
    };
    secrets.create(&meta, &data, args.replace)?;
    println!("{}", meta.id);
    Ok(Exit::Success)
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    let mut data = Vec::new();
    let mut take =
        |from: &mut dyn std::io::Read| from.take(MAX_SECRET_BYTES).read_to_end(&mut data).map(drop);
    if file == Path::new("-") {
        take(&mut std::io::stdin())?;
    } else {
        std::fs::File::open(file)
            .and_then(|mut file| take(&mut file))
            .map_err(|error| CliError::new(format!("cannot read {}: {error}", file.display())))?;
    }
    Ok(data)
}

fn inspect(secrets: &Secrets, args: &InspectArgs) -> Outcome {
    check_inspect(args.format.as_deref())?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for reference in &args.secrets {
        match secrets.find(reference) {
            Ok(meta) => {
                let mut object = json!({
                    "ID": meta.id,
                    "CreatedAt": meta.created.to_string(),
                    "UpdatedAt": meta.updated.to_string(),
                    "Spec": { "Name": meta.name, "Driver": { "Name": "file", "Options": {} }, "Labels": meta.labels },
                });
                if let (true, Some(map)) = (args.showsecret, object.as_object_mut()) {
                    map.insert("SecretData".into(), String::from_utf8_lossy(&secrets.data(&meta)?).into());
                }
                found.push(object);
            }
            Err(error) => missing.push(error),
        }
    }
    if !found.is_empty() || args.format.is_none() {
        print!("{}", render_inspect(args.format.as_deref(), &found)?);
    }
    for error in &missing {
        eprintln!("Error: {error}");
    }
    Ok(if missing.is_empty() { Exit::Success } else { Exit::Failure })
}

fn list(secrets: &Secrets, args: &ListArgs) -> Outcome {
    let all = secrets.list()?;
    if args.quiet {
        for meta in &all {
            println!("{}", meta.id);
        }
        return Ok(Exit::Success);
    }
    let now = Timestamp::now();
    let rows: Vec<Value> = all
        .iter()
        .map(|meta| {
            let labels: Vec<String> =
                meta.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            json!({
                "ID": meta.id, "Name": meta.name, "Driver": "file", "CreatedAt": ago(meta.created, now),
                "UpdatedAt": ago(meta.updated, now), "Labels": labels.join(","),
            })
        })
        .collect();
    print!("{}", Table { headings: HEADINGS, default: DEFAULT }.render(&args.format, &rows)?);
    Ok(Exit::Success)
}

fn remove(secrets: &Secrets, args: &RemoveArgs) -> Outcome {
    let references = if args.all {
        secrets.list()?.into_iter().map(|meta| meta.id).collect()
    } else {
        args.secrets.clone()
    };
    each(&references, |reference| {
        let meta = match secrets.find(reference) {
            Err(_) if args.ignore => return Ok(()),
            other => other?,
        };
        secrets.remove(meta.name.as_str())?;
        println!("{}", meta.id);
        Ok(())
    })
}
