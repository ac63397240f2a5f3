//! Build an image from a Dockerfile

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::commit::parse_name;
use super::{CliError, Context, Exit, Outcome};
use crate::build::cache::CachePlace;
use crate::build::progress::{Look, Progress};
use crate::build::{
    self, Asked, BuildError, Built, NamedContext, Request, RunOptions, Secret, SecretSource, Ssh,
};
use crate::image::{self, Annotations, Member, Platform, PullPolicy, Reason, Reference, Several};
use crate::plan::NetworkMode;
use crate::plan::dockerfile::ignore::Ignore;
use crate::plan::dockerfile::{self, check};
use crate::plan::request::Limits;
use crate::store::{OCI_MANIFEST, Store};

mod annotation;
mod cache;
mod call;
mod output;

use call::{Call, Method};
use output::{Output, Written};

/// Build an image from a Dockerfile
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name and optionally a tag (format: "name:tag")
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
    /// Name of the Dockerfile (default: "PATH/Dockerfile")
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Set build-time variables
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Additional build contexts (e.g., name=path)
    #[arg(long, value_name = "NAME=PATH")]
    build_context: Vec<String>,
    /// Set the target build stage to build
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set target platform for build
    #[arg(long, value_name = "OS/ARCH")]
    platform: Vec<String>,
    /// Do not use cache when building the image
    #[arg(long)]
    no_cache: bool,
    /// Do not cache specified stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Always attempt to pull all referenced images
    #[arg(long, value_name = "POLICY", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pull: Option<String>,
    /// Suppress the build output and print image ID on success
    #[arg(short, long)]
    quiet: bool,
    /// Set type of progress output ("auto", "plain", "tty", "quiet", "rawjson")
    #[arg(long, default_value = "auto", value_parser = ["auto", "plain", "tty", "quiet", "rawjson", "none"])]
    progress: String,
    /// Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")
    #[arg(long, value_name = "SPEC")]
    secret: Vec<String>,
    /// SSH agent socket to expose to the build (format: "default|ID[=SOCKET]")
    #[arg(long, value_name = "SPEC")]
    ssh: Vec<String>,
    /// Set metadata for an image
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Add annotation to the image
    #[arg(long, value_name = "[TYPE:]NAME=VALUE")]
    annotation: Vec<String>,
    /// Set the networking mode for the "RUN" instructions during build
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// Add a custom host-to-IP mapping (format: "host:ip")
    #[arg(long, value_name = "HOST:IP")]
    add_host: Vec<String>,
    /// Ulimit options
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Shared memory size for build containers
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Memory limit of the "RUN" instructions
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// External cache sources
    #[arg(long, value_name = "SPEC")]
    cache_from: Vec<String>,
    /// Cache export destinations
    #[arg(long, value_name = "SPEC")]
    cache_to: Vec<String>,
    /// Output destination (format: "type=local,dest=path")
    #[arg(short, long, value_name = "SPEC")]
    output: Vec<String>,
    /// Shorthand for "--output=type=docker": the image is stored, as it always is
    #[arg(long)]
    load: bool,
    /// Shorthand for "--output=type=registry"
    #[arg(long)]
    push: bool,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write build result metadata to a file
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Shorthand for "--call=check"
    #[arg(long)]
    check: bool,
    /// Set method for evaluating build ("build", "check", "outline", "targets"; with ",format=json")
    #[arg(long, value_name = "METHOD", default_value = "build")]
    call: String,
    /// Allow extra privileged entitlement ("network.host", which needs no leave; others cannot be granted)
    #[arg(long, value_name = "ENTITLEMENT", hide = true)]
    allow: Vec<String>,
    /// Attestation for software bill of materials (not made)
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    sbom: Option<String>,
    /// Attestation for provenance (not made)
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    provenance: Option<String>,
    /// Attestation parameters (not made)
    #[arg(long, value_name = "SPEC", hide = true)]
    attest: Vec<String>,
    /// Accepted for Docker's sake: there is one builder
    #[arg(long, hide = true)]
    builder: Option<String>,
    /// Accepted for Docker's sake: intermediate containers never stay
    #[arg(long, hide = true)]
    rm: bool,
    /// Accepted for Docker's sake: intermediate containers never stay
    #[arg(long, hide = true)]
    force_rm: bool,
    /// Accepted for Docker's sake: the context is read where it is, and never sent
    #[arg(long, hide = true)]
    compress: bool,
    /// Accepted for Docker's sake: there is no more to tell
    #[arg(short = 'D', long, hide = true)]
    debug: bool,
    /// Accepted for podman's sake: layers are always made and kept
    #[arg(long, hide = true)]
    layers: bool,
    /// PATH, URL or "-"
    #[arg(value_name = "PATH | URL | -")]
    context: String,
}

/// Builds; `-q` prints the image's id.
///
/// # Errors
/// The Dockerfile is wrong, a step fails, the result cannot be written: exit code 1.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    refuse(args)?;
    let call = Call::parse(if args.check { "check" } else { &args.call })?;
    let store = Store::open(&ctx.root)?;
    let outputs = Output::parse_all(args.push, &args.output, args.tag.first().map(String::as_str))?;
    build::sweep(&store);
    let keep_git_dir = args
        .build_arg
        .iter()
        .filter_map(|text| text.strip_prefix("BUILDKIT_CONTEXT_KEEP_GIT_DIR="))
        .any(|value| matches!(value, "1" | "true"));
    let asked = Asked { context: &args.context, file: args.file.as_deref(), keep_git_dir };
    let found = build::Context::open(&store, &asked)
        .map_err(|problem| CliError::new(format!("failed to build: {problem}")))?;
    if call.method != Method::Build {
        return call.answer(&found, args.target.as_deref(), &arguments(&args.build_arg));
    }
    let cache_to = args.cache_to.iter().map(|text| cache::target(text)).collect::<Result<Vec<_>, _>>()?;
    // What was fetched for them goes at the end.
    let (contexts, _fetched) = contexts(&store, &args.build_context, keep_git_dir)?;
    let mut request = request(args, &found, contexts, &outputs)?;
    request.inline_cache = cache_to.iter().any(|target| target.place == CachePlace::Inline);
    let mut annotations = annotation::Asked::parse(&args.annotation)?;
    for text in outputs.iter().flat_map(Output::annotations) {
        annotations.add(text)?;
    }
    let platforms = platforms(args)?;
    let plans = plans(&request, &platforms, &annotations)?;
    if let [_, _, ..] = &plans[..] {
        outputs.iter().try_for_each(Output::check_several)?;
    }
    if let Ok(file) = dockerfile::parse(&found.text)
        && check::is_error(&file)
        && !check::warnings(&file, &found.ignore).is_empty()
    {
        tell_warnings(&found.text, &found.ignore);
        return Err(CliError::new(
            "failed to build: failed to solve: lint violation found for rules: see above",
        ));
    }
    // Layers and records stay while the build relies on them.
    let content = store.lock_content()?;
    let quiet = args.quiet || args.progress == "quiet";
    let mut progress = Progress::new(look(args));
    let mut all = Vec::new();
    for plan in &plans {
        let fetch = |name: &str, reason: Reason| {
            super::pull::for_build(&store, name, reason, plan.platform.as_deref(), quiet)
        };
        match build::build(&store, plan, &fetch, &mut progress) {
            Ok(built) => all.push(built),
            Err(error) => return Err(failed(&error, plan)),
        }
    }
    for (plan, built) in plans.iter().zip(&mut all) {
        build::keep_image(&store, plan, built, &mut progress).map_err(|error| failed(&error, plan))?;
    }
    let steps: Vec<_> = all.iter().flat_map(|built| built.steps.iter().cloned()).collect();
    let unused: BTreeSet<String> = all.iter().flat_map(|built| built.unused_arguments.clone()).collect();
    let result = result(&request, &plans, all, &annotations)?;
    if plans.len() > 1
        && let Some(own) = &result.own().image
    {
        build::name_several(&store, &result.names, &result.several, &own.id, &mut progress)
            .map_err(|error| failed(&error, &request))?;
    }
    let exported = build::cache::export(&store, &cache_to, &steps, &mut progress);
    progress.finish();
    if !matches!(look(args), Look::Quiet | Look::RawJson) {
        tell_warnings(&request.text, &request.ignore);
    }
    for name in unused {
        eprintln!("[Warning] One or more build-args [{name}] were not consumed");
    }
    finish(&store, args, &outputs, &result, quiet)?;
    exported.map_err(|problem| CliError::new(format!("failed to build: failed to solve: {problem}")))?;
    drop(content);
    Ok(Exit::Success)
}

/// What is known and cannot be done.
fn refuse(args: &Args) -> Result<(), CliError> {
    let refused = |flag: &str, reason: &str| {
        Err(CliError::new(format!("{flag} is not supported in this version: {reason}"))
            .with_exit(Exit::Engine))
    };
    let wants = |value: &Option<String>| {
        value.as_deref().is_some_and(|value| !matches!(value, "false" | "0" | "disabled=true"))
    };
    if wants(&args.sbom) || args.attest.iter().any(|text| text.starts_with("type=sbom")) {
        return refused("--sbom", "no bill of materials is made; give the image to syft or trivy");
    }
    if wants(&args.provenance) || args.attest.iter().any(|text| text.starts_with("type=provenance")) {
        return refused("--provenance", "no attestation is made");
    }
    // `--network host` is everybody's to ask for.
    if let Some(allowed) = args.allow.iter().find(|allowed| *allowed != "network.host") {
        return refused(
            "--allow",
            &format!("a step gets no more rights than a container of `run`, so {allowed} cannot be granted"),
        );
    }
    Ok(())
}

fn look(args: &Args) -> Look {
    match args.progress.as_str() {
        _ if args.quiet => Look::Quiet,
        "plain" => Look::Plain,
        "tty" => Look::Terminal,
        "rawjson" => Look::RawJson,
        "quiet" | "none" => Look::Quiet,
        _ if std::io::stderr().is_terminal() => Look::Terminal,
        _ => Look::Plain,
    }
}

/// `--build-arg`; one without a value has that of the environment, if there is one.
fn arguments(texts: &[String]) -> Vec<(String, String)> {
    let argument = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(text).ok().map(|value| (text.clone(), value)),
    };
    texts.iter().filter_map(argument).collect()
}

fn request(
    args: &Args,
    found: &build::Context,
    contexts: BTreeMap<String, NamedContext>,
    outputs: &[Output],
) -> Result<Request, CliError> {
    let wrong = |flag: &str, text: &str, reason: &str| {
        CliError::new(format!("invalid argument {text:?} for {flag:?} flag: {reason}"))
            .with_exit(Exit::Engine)
    };
    let arguments = arguments(&args.build_arg);
    let epoch =
        arguments.iter().rev().find(|(name, _)| name == "SOURCE_DATE_EPOCH").map(|(_, value)| value.clone());
    let epoch = epoch.or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok()).filter(|text| !text.is_empty());
    let epoch_s = epoch
        .map(|text| {
            text.parse::<i64>()
                .map_err(|_| wrong("--build-arg", &text, "SOURCE_DATE_EPOCH is seconds since 1970"))
        })
        .transpose()?;
    let mut names: Vec<Reference> = Vec::new();
    let of_outputs = outputs.iter().flat_map(Output::names).collect::<Vec<_>>();
    for text in args.tag.iter().chain(of_outputs.iter()) {
        let name =
            parse_name(Some(text)).map_err(|_| wrong("-t, --tag", text, "invalid reference format"))?;
        names.extend(name.filter(|name| !names.contains(name)));
    }
    let labels = args.label.iter().map(|text| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    });
    let pull = match args.pull.as_deref() {
        None | Some("false" | "missing") => PullPolicy::Missing,
        Some("true" | "always") => PullPolicy::Always,
        Some("never") => PullPolicy::Never,
        Some(other) => return Err(wrong("--pull", other, "it is true, false, always, missing or never")),
    };
    let bytes = |flag: &str, text: &Option<String>| {
        let parsed = text.as_deref().map(super::run_args::size::parse_bytes).transpose();
        parsed.map_err(|reason| wrong(flag, text.as_deref().unwrap_or_default(), &reason))
    };
    let network = match args.network.as_deref() {
        None | Some("default") => None,
        Some("none") => Some(NetworkMode::None),
        Some("host") => Some(NetworkMode::Host),
        Some("bridge") => Some(NetworkMode::Bridge),
        Some(other) => return Err(wrong("--network", other, "it is default, none or host")),
    };
    let extra_hosts = args
        .add_host
        .iter()
        .map(|text| {
            super::run_args::network::parse_extra_host(text)
                .map_err(|reason| wrong("--add-host", text, &reason))
        })
        .collect::<Result<_, _>>()?;
    Ok(Request {
        file_name: found.file_name.clone(),
        text: found.text.clone(),
        context: found.directory.clone(),
        ignore: found.ignore.clone(),
        contexts,
        target: args.target.clone(),
        arguments,
        platform: None,
        tell_platform: false,
        annotations: Annotations::default(),
        no_cache: args.no_cache,
        no_cache_stages: args.no_cache_filter.clone(),
        pull,
        secrets: args.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        ssh: args.ssh.iter().map(|text| ssh(text)).collect::<Result<_, _>>()?,
        labels: labels.collect(),
        run: RunOptions {
            network,
            extra_hosts,
            rlimits: args
                .ulimit
                .iter()
                .map(|text| super::run_args::process::parse_ulimit(text))
                .collect::<Result<_, _>>()?,
            shm_size_bytes: bytes("--shm-size", &args.shm_size)?,
            limits: Limits {
                memory_bytes: bytes("-m, --memory", &args.memory)?.unwrap_or(0),
                ..Limits::default()
            },
        },
        names,
        epoch_s,
        rewrite_timestamps: outputs.iter().any(Output::rewrites_timestamps),
        cache_from: args.cache_from.iter().map(|text| cache::source(text)).collect::<Result<_, _>>()?,
        inline_cache: false,
        store_image: outputs.is_empty() || outputs.iter().any(Output::needs_image),
    })
}

/// `--build-context`, and what keeps those that come from elsewhere.
fn contexts(
    store: &Store,
    texts: &[String],
    keep_git_dir: bool,
) -> Result<(BTreeMap<String, NamedContext>, Vec<build::Fetched>), CliError> {
    let (mut found, mut kept) = (BTreeMap::new(), Vec::new());
    for text in texts {
        let wrong =
            |reason: &str| CliError::new(format!("invalid context {text}: {reason}")).with_exit(Exit::Engine);
        let (name, value) = text.split_once('=').ok_or_else(|| wrong("expected name=value"))?;
        let context = if let Some(image) = value.strip_prefix("docker-image://") {
            NamedContext::Image(image.to_owned())
        } else if let Some(layout) = value.strip_prefix("oci-layout://") {
            NamedContext::Image(format!("oci:{layout}"))
        } else if value.contains("://") || (value.starts_with("git@") && !Path::new(value).exists()) {
            let fetched = build::Fetched::fetch(store, value, keep_git_dir)
                .map_err(|problem| CliError::new(format!("failed to build: context {name}: {problem}")))?;
            let directory = fetched.directory.clone();
            kept.push(fetched);
            NamedContext::Directory(directory)
        } else {
            let path =
                fs::canonicalize(value).map_err(|error| wrong(&format!("cannot use {value}: {error}")))?;
            if !path.is_dir() {
                return Err(wrong(&format!("{value} is no directory")));
            }
            NamedContext::Directory(path)
        };
        found.insert(name.to_owned(), context);
    }
    Ok((found, kept))
}

/// `id=NAME[,src=FILE|,env=VARIABLE]`.
fn secret(text: &str) -> Result<Secret, CliError> {
    let wrong =
        |reason: &str| CliError::new(format!("invalid secret {text}: {reason}")).with_exit(Exit::Engine);
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) =
            field.split_once('=').ok_or_else(|| wrong("invalid field, it must be a key=value pair"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => file = Some(value.to_owned()),
            "env" => variable = Some(value.to_owned()),
            "type" if matches!(value, "file" | "env") => kind = Some(value.to_owned()),
            "type" => return Err(wrong("its type is file or env")),
            _ => return Err(wrong(&format!("unexpected key '{key}'"))),
        }
    }
    let id =
        id.or_else(|| variable.clone()).filter(|id| !id.is_empty()).ok_or_else(|| wrong("it has no id"))?;
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    let value = |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
    let source = match (file, variable) {
        (Some(path), _) => SecretSource::File(path.into()),
        (None, Some(name)) => SecretSource::Value(
            value(&name).ok_or_else(|| wrong(&format!("the variable {name} is not set")))?,
        ),
        (None, None) => match value(&id) {
            Some(bytes) => SecretSource::Value(bytes),
            None => SecretSource::File((&id).into()),
        },
    };
    if let SecretSource::File(path) = &source
        && !path.is_file()
    {
        return Err(wrong(&format!("failed to stat {}: no such file", path.display())));
    }
    Ok(Secret { id, source })
}

/// `default`, or `ID=SOCKET`.
fn ssh(text: &str) -> Result<Ssh, CliError> {
    let wrong = |reason: &str| CliError::new(format!("invalid ssh {text}: {reason}")).with_exit(Exit::Engine);
    let (id, path) = text.split_once('=').map_or((text, None), |(id, path)| (id, Some(path)));
    let path = match path {
        Some(path) => PathBuf::from(path),
        None => std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).ok_or_else(|| {
            wrong("SSH_AUTH_SOCK is not set: start an agent (ssh-agent) and add keys to it")
        })?,
    };
    let socket =
        fs::canonicalize(&path).map_err(|error| wrong(&format!("cannot use {}: {error}", path.display())))?;
    let is_socket =
        fs::metadata(&socket).is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
    if !is_socket {
        return Err(wrong("only an agent's socket can be forwarded: add the key to ssh-agent"));
    }
    Ok(Ssh { id: id.to_owned(), socket })
}

/// What `--check` would tell, a line each.
fn tell_warnings(text: &str, ignore: &Ignore) {
    let Ok(file) = dockerfile::parse(text) else { return };
    let warnings = check::warnings(&file, ignore);
    if warnings.is_empty() {
        return;
    }
    let plural = if warnings.len() == 1 { "warning" } else { "warnings" };
    eprintln!("\n {} {plural} found (use --check to expand):", warnings.len());
    for warning in &warnings {
        eprintln!(" - {}: {} (line {})", warning.rule, warning.message, warning.place.first);
    }
}

fn failed(error: &BuildError, request: &Request) -> CliError {
    eprint!("{}", dockerfile::picture(&request.file_name, &request.text, error.place()));
    let text = crate::sandbox::chain(error);
    CliError::new(format!("failed to build: failed to solve: {text}"))
}

/// `--platform`, each once, in order.
fn platforms(args: &Args) -> Result<Vec<Platform>, CliError> {
    let mut found: Vec<Platform> = Vec::new();
    for text in args.platform.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty()) {
        let platform = text.parse::<Platform>().map_err(CliError::new)?;
        if !found.contains(&platform) {
            found.push(platform);
        }
    }
    Ok(found)
}

/// One build a platform. Of several none has a name of its own: the names stand for all of them.
fn plans(
    request: &Request,
    platforms: &[Platform],
    annotations: &annotation::Asked,
) -> Result<Vec<Request>, CliError> {
    let several = platforms.len() > 1;
    let of_index = !annotations.index().is_empty() || !annotations.index_descriptor().is_empty();
    if of_index && !several {
        return Err(CliError::new(
            "failed to build: index annotations not supported for single platform export",
        ));
    }
    let host = Platform::host();
    if !several {
        let of = platforms.first().unwrap_or(&host);
        return Ok(vec![Request {
            platform: platforms.first().map(ToString::to_string),
            annotations: annotations.manifest(of),
            ..request.clone()
        }]);
    }
    let plan = |platform: &Platform| Request {
        platform: Some(platform.to_string()),
        tell_platform: true,
        annotations: annotations.manifest(platform),
        names: Vec::new(),
        ..request.clone()
    };
    Ok(platforms.iter().map(plan).collect())
}

/// What was built, and how it is told.
struct Finished {
    builds: Vec<(Option<String>, Built)>,
    names: Vec<Reference>,
    /// Which of them the names stand for where no platform is asked for: this machine's, or else the first.
    own: usize,
    several: Several,
}

impl Finished {
    fn own(&self) -> &Built {
        &self.builds[self.own].1
    }
}

fn result(
    request: &Request,
    plans: &[Request],
    all: Vec<Built>,
    annotations: &annotation::Asked,
) -> Result<Finished, CliError> {
    let platform = |plan: &Request| match &plan.platform {
        Some(text) => text.parse::<Platform>().map_err(CliError::new),
        None => Ok(Platform::host()),
    };
    let mut members = Vec::new();
    let mut own = 0;
    for (number, (plan, built)) in plans.iter().zip(&all).enumerate() {
        if platform(plan)? == Platform::host() {
            own = number;
        }
        let Some(added) = &built.image else { continue };
        members.push(Member {
            id: added.id.clone(),
            annotations: annotations.manifest_descriptor(&platform(plan)?),
        });
    }
    let several =
        Several { members, annotations: annotations.index(), descriptor: annotations.index_descriptor() };
    let builds = plans.iter().map(|plan| plan.platform.clone()).zip(all).collect();
    Ok(Finished { builds, names: request.names.clone(), own, several })
}

fn finish(
    store: &Store,
    args: &Args,
    outputs: &[Output],
    result: &Finished,
    quiet: bool,
) -> Result<(), CliError> {
    let mut pushed = None;
    for output in outputs {
        pushed = output.write(store, result, quiet)?.or(pushed);
    }
    let Some(added) = &result.own().image else { return Ok(()) };
    if let Some(path) = &args.iidfile {
        write(path, added.id.to_string().as_bytes())?;
    }
    if let Some(path) = &args.metadata_file {
        let entry = store.catalog()?.images.get(&added.id).cloned();
        let names: Vec<String> = result.names.iter().map(ToString::to_string).collect();
        let pushed = pushed.or_else(|| {
            let entry = entry?;
            let (digest, size) = (entry.manifest, entry.manifest_bytes);
            Some(Written { digest, size, is_index: false })
        });
        let descriptor = pushed.as_ref().map(|pushed| {
            serde_json::json!({
                "mediaType": if pushed.is_index { image::OCI_INDEX } else { OCI_MANIFEST },
                "digest": pushed.digest, "size": pushed.size,
            })
        });
        let metadata = serde_json::json!({
            "containerimage.config.digest": added.id,
            "containerimage.descriptor": descriptor,
            "containerimage.digest": pushed.map(|pushed| pushed.digest),
            "image.name": names.join(","),
        });
        write(path, format!("{metadata:#}\n").as_bytes())?;
    }
    if args.quiet {
        println!("{}", added.id);
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    fs::write(path, bytes).map_err(|error| CliError::new(format!("cannot write {}: {error}", path.display())))
}

fn image_problem(error: image::ImageError) -> CliError {
    super::images::image_error(error)
}
