//! The build itself: which stages are needed, what each instruction becomes, and who works on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsFd as _;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sha2::{Digest as _, Sha256};

use super::cache::{self, Imported, StepDone};
use super::copy::{CopyJob, missing_directories, owner, stream};
use super::digests::FileDigests;
use super::error::{BuildError, Problem};
use super::progress::Progress;
use super::request::{Built, Fetch, NamedContext, Request};
use super::run::RunJob;
use super::scratch::Scratch;
use super::state::{PROXIES, State, instruction_word, written};
use super::tree::Tree;
use super::worker::{Given, Said, Worker};
use crate::id::Digest;
use crate::image::{self, Platform};
use crate::plan::dockerfile::expand::Scope;
use crate::plan::dockerfile::{self, Dockerfile, Instruction, Kind, Place};
use crate::store::{CachedStep, StepTurn, Store};

mod steps;

/// Part of every key: raised when the same step would give something else than before.
const KEY_VERSION: &str = "3";
/// How deep ONBUILD triggers may bring instructions.
const MAX_TRIGGERS: usize = 1000;

/// Builds.
///
/// The caller holds the content lock, has one thread, and has SIGINT and SIGTERM as they were.
///
/// # Errors
/// [`BuildError`]. Steps that were done stay in the cache.
pub fn build(
    store: &Store,
    request: &Request,
    fetch: &Fetch<'_>,
    progress: &mut Progress,
) -> Result<Built, BuildError> {
    let file = dockerfile::parse(&request.text)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    let io = |action| move |errno: Errno| BuildError::Io { action, source: errno.into() };
    signals.thread_block().map_err(io("block signals"))?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(io("watch for signals"))?;
    let scratch = Scratch::new(store)?;
    let mut solver = Solver::new(store, request, fetch, progress, &file, &scratch)?;
    let result = solver.run(&signal_fd);
    solver.stop();
    let digests = std::mem::take(&mut solver.digests);
    let unused = solver.unused_arguments();
    let target = solver.target;
    let steps = solver.steps_done();
    let finished = result.and_then(|()| {
        solver.stages[target]
            .state
            .take()
            .ok_or_else(|| BuildError::Other(Problem::new("the target stage has no result")))
    });
    digests.save(store);
    drop(solver);
    let state = finished?;
    let epoch = request.epoch_s.and_then(|epoch| Timestamp::from_second(epoch).ok()).map(written);
    let now = written(Timestamp::now());
    let mut config = state.finished(epoch.as_deref(), &request.labels, &now);
    let layers = state.layers.clone();
    if request.inline_cache {
        config[cache::INLINE] = cache::inline(&steps, &layers);
    }
    drop(scratch);
    Ok(Built { image: None, config, layers, steps, unused_arguments: unused })
}

/// Makes an image of what was built, and names it, where the request wants that. Apart from [`build`], so that
/// of several platforms none is named before all are built.
///
/// # Errors
/// The store fails.
pub fn keep_image(
    store: &Store,
    request: &Request,
    built: &mut Built,
    progress: &mut Progress,
) -> Result<(), BuildError> {
    if !request.store_image {
        return Ok(());
    }
    let number = progress.start("exporting to image");
    progress.status(number, "exporting layers done");
    let added = image::make_image(
        store,
        built.config.clone(),
        built.layers.clone(),
        request.names.clone(),
        "the build's result",
    )?;
    image::annotate(store, &added.id, &request.annotations)?;
    progress.status(number, &format!("writing image {} done", added.id));
    for name in &request.names {
        image::tell_tag(store, &added.id, name);
        progress.status(number, &format!("naming to {name} done"));
    }
    progress.done(number);
    built.image = Some(added);
    Ok(())
}

/// Has names stand for the images that were built for several platforms, `own` for those who ask for none.
///
/// # Errors
/// The store fails.
pub fn name_several(
    store: &Store,
    names: &[image::Reference],
    several: &image::Several,
    own: &Digest,
    progress: &mut Progress,
) -> Result<(), BuildError> {
    if names.is_empty() {
        return Ok(());
    }
    let number = progress.start("exporting manifest list");
    image::name_several(store, names, several, own)?;
    for name in names {
        progress.status(number, &format!("naming to {name} done"));
    }
    progress.done(number);
    Ok(())
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start {
    Scratch,
    Stage(usize),
    Image(String),
    Directory(std::path::PathBuf),
}

struct StageRun<'a> {
    name: String,
    start: Start,
    place: Place,
    platform: Option<String>,
    instructions: VecDeque<(Instruction, bool)>,
    state: Option<State>,
    begun: bool,
    done: bool,
    /// Steps that are shown, and how many of them have been.
    total: usize,
    shown: usize,
    worker: Option<Running>,
    /// The front instruction's work, while it waits for a process to be free.
    waiting: Option<Work>,
    no_cache: bool,
    source: &'a dockerfile::Stage,
}

/// A step at work.
struct Running {
    worker: Worker,
    vertex: usize,
    keys: Vec<Digest>,
    description: String,
    history: String,
    place: Place,
    given: Option<Given>,
    /// The right to do the step; with `--no-cache`, of those who want it at once, one has it and all do it.
    turn: Option<StepTurn>,
    /// The work, where the process only waits for another build that does the step.
    waiting: Option<Box<(Instruction, Work)>>,
}

/// What an instruction asks to be done.
struct Work {
    job: Job,
    /// Any of these keys stands for it; the first is what it is kept under, too.
    keys: Vec<Digest>,
    history: String,
    /// What it has already, where it waited for another build: its step as it is shown, with its title, and its turn.
    begun: Option<Begun>,
}

struct Begun {
    vertex: usize,
    title: String,
    turn: Option<StepTurn>,
}

enum Job {
    Run(Box<RunJob>),
    Copy(Box<CopyJob>),
    /// A layer that is made already, or none.
    Layer(Option<Vec<u8>>),
}

struct Solver<'a> {
    store: &'a Store,
    request: &'a Request,
    fetch: &'a Fetch<'a>,
    progress: &'a mut Progress,
    file: &'a Dockerfile,
    scratch: &'a Scratch,
    stages: Vec<StageRun<'a>>,
    target: usize,
    needed: BTreeSet<usize>,
    /// ARGs in front of the first FROM, with their values.
    globals: Vec<(String, Option<String>)>,
    used_arguments: BTreeSet<String>,
    images: BTreeMap<String, State>,
    digests: FileDigests,
    imported: Imported,
    /// Steps that were done or found done, and whose they are.
    steps: Vec<(usize, Vec<Digest>, CachedStep)>,
    limit: usize,
    now: Timestamp,
    /// Processes of steps that are done and take their containers away.
    tidying: Vec<Worker>,
}

impl<'a> Solver<'a> {
    fn new(
        store: &'a Store,
        request: &'a Request,
        fetch: &'a Fetch<'a>,
        progress: &'a mut Progress,
        file: &'a Dockerfile,
        scratch: &'a Scratch,
    ) -> Result<Self, BuildError> {
        let now = match request.epoch_s {
            Some(epoch) => Timestamp::from_second(epoch).unwrap_or_else(|_| Timestamp::now()),
            None => Timestamp::now(),
        };
        let mut solver = Self {
            store,
            request,
            fetch,
            progress,
            file,
            scratch,
            stages: Vec::new(),
            target: 0,
            needed: BTreeSet::new(),
            globals: Vec::new(),
            used_arguments: BTreeSet::new(),
            images: BTreeMap::new(),
            digests: FileDigests::open(store),
            imported: Imported::default(),
            steps: Vec::new(),
            limit: std::thread::available_parallelism().map_or(1, usize::from),
            now,
            tidying: Vec::new(),
        };
        let number =
            solver.progress.start(&format!("[internal] load build definition from {}", request.file_name));
        solver.progress.status(number, &format!("transferring dockerfile: {}B done", request.text.len()));
        solver.progress.done(number);
        if !request.cache_from.is_empty() {
            solver.imported = Imported::read(&request.cache_from, solver.progress);
        }
        solver.read_globals()?;
        solver.read_stages()?;
        solver.choose_target()?;
        solver.find_needed(solver.target)?;
        Ok(solver)
    }

    fn escape(&self) -> char {
        self.file.directives.escape
    }

    fn build_argument(&self, name: &str) -> Option<&str> {
        let mut found = self.request.arguments.iter().rev().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// `BUILDPLATFORM`, `TARGETARCH` and their kin.
    fn platform_argument(&self, name: &str) -> Option<String> {
        let host = Platform::host().to_string();
        let target = self.request.platform.clone().unwrap_or_else(|| host.clone());
        let (platform, rest) = match (name.strip_prefix("BUILD"), name.strip_prefix("TARGET")) {
            (Some(rest), _) => (host, rest),
            (_, Some(rest)) => (target, rest),
            _ => return None,
        };
        let mut parts = platform.split('/').map(str::to_owned);
        let (os, architecture, variant) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        match rest {
            "PLATFORM" => Some(platform),
            "OS" => Some(os),
            "ARCH" => Some(architecture),
            "VARIANT" => Some(variant),
            "STAGE" if name == "TARGETSTAGE" => {
                Some(self.request.target.clone().unwrap_or_else(|| "default".to_owned()))
            }
            _ => None,
        }
    }

    fn global(&self, name: &str) -> Option<String> {
        match self.globals.iter().rev().find(|(known, _)| known == name) {
            Some((_, value)) => value.clone(),
            None => self.platform_argument(name),
        }
    }

    fn expand_global(&self, text: &str, place: Place) -> Result<String, BuildError> {
        let variable = |name: &str| self.global(name);
        instruction_word(text, Scope { variable: &variable, escape: self.escape() })
            .map_err(|problem| BuildError::Step { problem, place })
    }

    fn read_globals(&mut self) -> Result<(), BuildError> {
        for instruction in &self.file.arguments {
            let Kind::Arg(arguments) = &instruction.kind else { continue };
            for (name, default) in arguments {
                self.used_arguments.insert(name.clone());
                let value = match (self.build_argument(name), default) {
                    (Some(value), _) => Some(value.to_owned()),
                    (None, Some(default)) => Some(self.expand_global(default, instruction.place)?),
                    (None, None) => self.platform_argument(name),
                };
                self.globals.push((name.clone(), value));
            }
        }
        Ok(())
    }

    fn read_stages(&mut self) -> Result<(), BuildError> {
        for (number, stage) in self.file.stages.iter().enumerate() {
            let base = self.expand_global(&stage.base, stage.place)?;
            if base.is_empty() {
                let problem = Problem::new(format!("base name ({}) should not be blank", stage.base));
                return Err(BuildError::Step { problem, place: stage.place });
            }
            let platform =
                stage.platform.as_deref().map(|text| self.expand_global(text, stage.place)).transpose()?;
            let platform = platform.filter(|platform| !platform.is_empty());
            if let Some(platform) = &platform {
                platform.parse::<Platform>().map_err(|message| BuildError::Step {
                    problem: Problem::new(message),
                    place: stage.place,
                })?;
            }
            let start = match self.earlier_stage(&base, number) {
                Some(earlier) => Start::Stage(earlier),
                None => match self.request.contexts.get(&base) {
                    Some(NamedContext::Image(reference)) => Start::Image(reference.clone()),
                    Some(NamedContext::Directory(path)) => Start::Directory(path.clone()),
                    None if base.eq_ignore_ascii_case("scratch") => Start::Scratch,
                    None => Start::Image(base),
                },
            };
            let is_shown = |instruction: &Instruction| match &instruction.kind {
                Kind::Run(_) | Kind::Copy(_) => true,
                Kind::Config { name, .. } => name == "WORKDIR",
                Kind::Arg(_) => false,
            };
            let name = stage.name.clone().unwrap_or_else(|| format!("stage-{number}"));
            // Only an image's FROM is a step of its own.
            let is_image = matches!(start, Start::Image(_));
            self.stages.push(StageRun {
                no_cache: self.request.no_cache
                    || self.request.no_cache_stages.iter().any(|known| known.eq_ignore_ascii_case(&name)),
                name,
                start,
                place: stage.place,
                platform: platform.or_else(|| self.request.platform.clone()),
                instructions: stage
                    .instructions
                    .iter()
                    .cloned()
                    .map(|instruction| (instruction, false))
                    .collect(),
                state: None,
                begun: false,
                done: false,
                total: usize::from(is_image) + stage.instructions.iter().filter(|one| is_shown(one)).count(),
                shown: 0,
                worker: None,
                waiting: None,
                source: stage,
            });
        }
        Ok(())
    }

    /// A stage before `before`, by its name: the last of several.
    fn earlier_stage(&self, name: &str, before: usize) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        (0..before.min(self.file.stages.len()))
            .rev()
            .find(|number| self.file.stages[*number].name.as_ref() == Some(&lower))
    }

    /// What `--from` and `from=` name: a stage before this one, by name or number.
    fn referred_stage(&self, name: &str, before: usize) -> Option<usize> {
        self.earlier_stage(name, before)
            .or_else(|| name.parse::<usize>().ok().filter(|number| *number < before))
    }

    fn choose_target(&mut self) -> Result<(), BuildError> {
        let last = self.stages.len() - 1;
        self.target = match &self.request.target {
            None => last,
            Some(name) => self
                .earlier_stage(name, self.stages.len())
                .or_else(|| name.parse::<usize>().ok().filter(|number| *number <= last))
                .ok_or_else(|| {
                    let names: Vec<&str> =
                        self.file.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
                    let hint = dockerfile::did_you_mean(name, &names)
                        .map(|known| format!(" (did you mean {known}?)"));
                    Problem::new(format!(
                        "target stage {name:?} could not be found{}",
                        hint.unwrap_or_default()
                    ))
                })?,
        };
        Ok(())
    }

    /// Marks a stage and all that it waits for.
    fn find_needed(&mut self, number: usize) -> Result<(), BuildError> {
        if !self.needed.insert(number) {
            return Ok(());
        }
        if let Start::Stage(base) = self.stages[number].start {
            self.find_needed(base)?;
        }
        let instructions: Vec<Instruction> =
            self.stages[number].instructions.iter().map(|(instruction, _)| instruction.clone()).collect();
        for instruction in &instructions {
            for waited in self.waits_for(instruction, number)? {
                self.find_needed(waited)?;
            }
        }
        Ok(())
    }

    /// The stages whose files an instruction takes.
    fn waits_for(&self, instruction: &Instruction, number: usize) -> Result<Vec<usize>, BuildError> {
        let refer = |name: &str| {
            if name.eq_ignore_ascii_case(&self.stages[number].name)
                && self.stages[number].source.name.is_some()
                && self.earlier_stage(name, number).is_none()
            {
                return Err(Problem::new(format!("circular dependency detected on stage: {name}")));
            }
            Ok(self.referred_stage(name, number))
        };
        let found: Result<Vec<Option<usize>>, Problem> = match &instruction.kind {
            Kind::Copy(copy) => copy.from.iter().map(|from| refer(from)).collect(),
            Kind::Run(run) => {
                run.mounts.iter().filter_map(|text| mount_from(text)).map(|from| refer(&from)).collect()
            }
            Kind::Arg(_) | Kind::Config { .. } => Ok(Vec::new()),
        };
        let found = found.map_err(|problem| BuildError::Step { problem, place: instruction.place })?;
        Ok(found.into_iter().flatten().collect())
    }

    fn run(&mut self, signals: &SignalFd) -> Result<(), BuildError> {
        loop {
            let order: Vec<usize> = self.needed.iter().copied().collect();
            let mut moved = false;
            for number in order {
                moved |= self.advance(number)?;
            }
            if self.stages[self.target].done {
                return Ok(());
            }
            if moved {
                continue;
            }
            if self.stages.iter().all(|stage| stage.worker.is_none()) {
                return Err(Problem::new("the stages wait for each other").into());
            }
            self.listen(signals)?;
        }
    }

    /// Waits for what the steps say.
    fn listen(&mut self, signals: &SignalFd) -> Result<(), BuildError> {
        let working: Vec<usize> =
            (0..self.stages.len()).filter(|number| self.stages[*number].worker.is_some()).collect();
        let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        for number in &working {
            if let Some(running) = &self.stages[*number].worker {
                polled.push(PollFd::new(running.worker.as_fd(), PollFlags::POLLIN));
            }
        }
        let timeout = if self.progress.is_live() { PollTimeout::from(100_u8) } else { PollTimeout::NONE };
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(BuildError::Io { action: "wait for the steps", source: errno.into() }),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|flags| !flags.is_empty());
        let ready: Vec<bool> = polled.iter().map(is_ready).collect();
        drop(polled);
        if ready[0] && matches!(signals.read_signal(), Ok(Some(_))) {
            return Err(BuildError::Cancelled);
        }
        for (number, is_ready) in working.into_iter().zip(&ready[1..]) {
            if *is_ready {
                self.hear(number)?;
            }
        }
        self.progress.tick();
        Ok(())
    }

    fn hear(&mut self, number: usize) -> Result<(), BuildError> {
        let Some(running) = &mut self.stages[number].worker else { return Ok(()) };
        let (vertex, place) = (running.vertex, running.place);
        let said = running.worker.hear();
        let said = match said {
            Ok(said) => said,
            Err(problem) => vec![Said::Failed(problem)],
        };
        for said in said {
            match said {
                Said::Output { is_error, bytes } => self.progress.output(vertex, is_error, &bytes),
                Said::Done(given) => {
                    if let Some(running) = &mut self.stages[number].worker {
                        running.given = Some(given);
                    }
                    return self.complete(number);
                }
                Said::Failed(problem) => {
                    if let Some(running) = self.stages[number].worker.take() {
                        running.worker.wait();
                    }
                    self.progress.failed(vertex, &problem.to_string());
                    return Err(BuildError::Step { problem, place });
                }
            }
        }
        Ok(())
    }

    /// A step has given its layer.
    fn complete(&mut self, number: usize) -> Result<(), BuildError> {
        let Some(mut running) = self.stages[number].worker.take() else { return Ok(()) };
        if let Some(waiting) = running.waiting.take() {
            let (instruction, mut work) = *waiting;
            // The other build has done it, or failed: taking it on tells which.
            running.worker.wait();
            let turn = running.turn.take().and_then(StepTurn::after_waiting);
            work.begun = Some(Begun { vertex: running.vertex, title: running.description, turn });
            self.stages[number].waiting = Some(work);
            self.stages[number].instructions.push_front((instruction, false));
            return Ok(());
        }
        let given = running.given.unwrap_or(Given { layer: None, bytes: 0 });
        let step = CachedStep {
            layer: given.layer.clone(),
            bytes: given.bytes,
            created: if self.request.epoch_s.is_some() { self.now } else { Timestamp::now() },
            description: running.description,
        };
        for key in &running.keys {
            self.store.keep_step(key, &step)?;
        }
        drop(running.turn.take());
        self.progress.done(running.vertex);
        // Its container is taken away meanwhile; its end is waited for when the build's is.
        self.tidying.push(running.worker);
        self.steps.push((number, running.keys, step.clone()));
        self.apply(number, &step, &running.history);
        Ok(())
    }

    fn apply(&mut self, number: usize, step: &CachedStep, history: &str) {
        let now = written(self.now);
        if let Some(state) = &mut self.stages[number].state {
            state.layers.extend(step.layer.clone());
            state.remember(history, Some(&written(step.created)), step.layer.is_none(), &now);
        }
    }

    /// Ends what still runs.
    fn stop(&mut self) {
        for stage in &mut self.stages {
            if let Some(running) = stage.worker.take() {
                running.worker.kill();
                self.progress.cancelled(running.vertex);
                running.worker.wait();
            }
        }
        for worker in self.tidying.drain(..) {
            worker.wait();
        }
    }

    fn working(&self) -> usize {
        let is_working = |running: &Running| running.waiting.is_none();
        self.stages.iter().filter(|stage| stage.worker.as_ref().is_some_and(is_working)).count()
    }

    /// Works through a stage as far as it goes without waiting. Whether anything was done.
    fn advance(&mut self, number: usize) -> Result<bool, BuildError> {
        let mut moved = false;
        loop {
            let stage = &self.stages[number];
            if stage.done || stage.worker.is_some() {
                return Ok(moved);
            }
            if !stage.begun {
                if let Start::Stage(base) = stage.start
                    && !self.stages[base].done
                {
                    return Ok(moved);
                }
                self.begin(number)?;
                moved = true;
                continue;
            }
            let Some((instruction, _)) = stage.instructions.front().cloned() else {
                self.stages[number].done = true;
                return Ok(true);
            };
            let waits = self.waits_for(&instruction, number)?;
            if waits.iter().any(|waited| !self.stages[*waited].done) {
                return Ok(moved);
            }
            let place = instruction.place;
            let at = |problem| BuildError::Step { problem, place };
            let waiting = self.stages[number].waiting.take();
            let work = match &instruction.kind {
                _ if waiting.is_some() => waiting,
                Kind::Arg(arguments) => {
                    self.argument(number, arguments).map_err(at)?;
                    None
                }
                Kind::Config { name, rest } => self.configure(number, name, rest).map_err(at)?,
                Kind::Run(run) => {
                    let work = self.run_work(number, run);
                    Some(work.map_err(|problem| at(self.unready(number, &instruction, problem)))?)
                }
                Kind::Copy(copy) => {
                    let work = self.copy_work(number, copy);
                    Some(work.map_err(|problem| at(self.unready(number, &instruction, problem)))?)
                }
            };
            let Some(work) = work else {
                self.stages[number].instructions.pop_front();
                moved = true;
                continue;
            };
            if let Some(work) = self.take_on(number, &instruction, work)? {
                self.stages[number].waiting = Some(work);
                return Ok(moved);
            }
            self.stages[number].instructions.pop_front();
            moved = true;
        }
    }

    /// Shows a step that fails before it begins.
    fn unready(&mut self, number: usize, instruction: &Instruction, problem: Problem) -> Problem {
        if self.progress.has_failed() {
            // What it needs was shown.
            return problem;
        }
        self.stages[number].shown += 1;
        let vertex = self.progress.start(&self.title_of(number, instruction));
        self.progress.failed(vertex, &problem.to_string());
        problem
    }

    fn title_of(&self, number: usize, instruction: &Instruction) -> String {
        self.title(number, &instruction.text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn title(&self, number: usize, text: &str) -> String {
        let stage = &self.stages[number];
        let mut label = match &self.request.platform {
            Some(platform) if self.request.tell_platform => format!("{platform} "),
            _ => String::new(),
        };
        if self.file.stages.len() > 1 {
            label.push_str(&format!("{} ", stage.name));
        }
        format!("[{label}{}/{}] {text}", stage.shown, stage.total)
    }

    /// Finds the stage's base.
    fn begin(&mut self, number: usize) -> Result<(), BuildError> {
        let place = self.stages[number].place;
        let at = |problem: Problem| BuildError::Step { problem, place };
        let (start, platform) = (self.stages[number].start.clone(), self.stages[number].platform.clone());
        let mut state = match &start {
            Start::Scratch => State::scratch(platform.as_deref()).map_err(at)?,
            Start::Directory(path) => {
                let problem = format!("a directory cannot be a stage's base: {}", path.display());
                return Err(at(Problem::new(problem)));
            }
            Start::Stage(base) => {
                let base = self.stages[*base].state.as_ref();
                State::after(base.ok_or_else(|| at(Problem::new("a stage has no result")))?)
            }
            Start::Image(reference) => self.base_image(reference, platform.as_deref()).map_err(at)?,
        };
        if let Start::Image(reference) = &start {
            self.stages[number].shown = 1;
            let title = self.title(number, &format!("FROM {}", shown_name(reference)));
            let vertex = self.progress.start(&title);
            self.progress.cached(vertex);
        }
        let triggers = if matches!(start, Start::Image(_)) { state.take_triggers() } else { Vec::new() };
        if triggers.len() > MAX_TRIGGERS {
            return Err(at(Problem::new(format!("the image has more than {MAX_TRIGGERS} ONBUILD triggers"))));
        }
        for trigger in triggers.iter().rev() {
            let instruction = dockerfile::instruction(trigger, place)?;
            let is_shown = matches!(&instruction.kind, Kind::Run(_) | Kind::Copy(_))
                || matches!(&instruction.kind, Kind::Config { name, .. } if name == "WORKDIR");
            for waited in self.waits_for(&instruction, number)? {
                self.find_needed(waited)?;
            }
            let stage = &mut self.stages[number];
            stage.total += usize::from(is_shown);
            stage.instructions.push_front((instruction, true));
        }
        self.stages[number].state = Some(state);
        self.stages[number].begun = true;
        Ok(())
    }

    fn base_image(&mut self, reference: &str, platform: Option<&str>) -> Result<State, Problem> {
        let key = format!("{reference} {}", platform.unwrap_or_default());
        if let Some(known) = self.images.get(&key) {
            return Ok(known.clone());
        }
        let vertex = self.progress.start(&format!("[internal] load metadata for {}", shown_name(reference)));
        let asked = platform.map(str::parse::<Platform>).transpose().map_err(Problem::new)?;
        let found = image::base(self.store, reference, self.request.pull, asked.as_ref(), self.fetch);
        let base = match found {
            Ok(base) => base,
            Err(error) => {
                let problem = Problem::chain(&error);
                let problem = Problem::new(format!("{}: {problem}", shown_name(reference)));
                self.progress.failed(vertex, &problem.to_string());
                return Err(problem);
            }
        };
        self.progress.done(vertex);
        let state = State::of(base);
        let wanted: Platform = match platform {
            Some(text) => text.parse().map_err(Problem::new)?,
            None => Platform::host(),
        };
        let found: Platform = state.platform().parse().map_err(Problem::new)?;
        if wanted != found && !wanted.runs(&found) {
            return Err(Problem::new(format!(
                "{}: no match for platform in manifest: the image is for {found}, {wanted} is wanted; pull it with --platform {wanted}",
                shown_name(reference)
            )));
        }
        self.images.insert(key, state.clone());
        Ok(state)
    }

    fn state(&self, number: usize) -> Result<&State, Problem> {
        self.stages[number].state.as_ref().ok_or_else(|| Problem::new("a stage has not begun"))
    }

    fn argument(&mut self, number: usize, arguments: &[(String, Option<String>)]) -> Result<(), Problem> {
        let escape = self.escape();
        let mut told = String::from("ARG");
        for (name, default) in arguments {
            self.used_arguments.insert(name.clone());
            let default = match default {
                Some(default) => Some(self.state(number)?.expand(default, escape)?),
                None => None,
            };
            told.push_str(&format!(" {name}"));
            let value = match self.build_argument(name) {
                Some(value) => Some(value.to_owned()),
                None => match default {
                    Some(default) => Some(default),
                    None => self.global(name),
                },
            };
            if let Some(value) = &value {
                told.push_str(&format!("={value}"));
            }
            if let Some(state) = &mut self.stages[number].state {
                state.set_argument(name, value);
            }
        }
        let now = written(self.now);
        if let Some(state) = &mut self.stages[number].state {
            state.remember(&told, None, true, &now);
        }
        Ok(())
    }

    /// Changes the configuration; WORKDIR may need a directory, too.
    fn configure(&mut self, number: usize, name: &str, rest: &str) -> Result<Option<Work>, Problem> {
        let (escape, now) = (self.escape(), written(self.now));
        let is_onbuild = name == "ONBUILD";
        let Some(state) = &mut self.stages[number].state else { return Ok(None) };
        let told = state.configure(name, rest, escape)?;
        if name == "WORKDIR" {
            let directory = state.text("WorkingDir").to_owned();
            let owner = state.text("User").to_owned();
            return self.directory_work(number, &directory, &owner, &told).map(Some);
        }
        if !is_onbuild {
            state.remember(&told, None, true, &now);
        }
        Ok(None)
    }

    fn directory_work(&mut self, number: usize, path: &str, user: &str, told: &str) -> Result<Work, Problem> {
        let state = self.state(number)?;
        let owner_text = user.to_owned();
        let key = key(&["workdir", &state.layers_key(), path, user, &self.time_key()]);
        let layers = state.layers.clone();
        let made = if path == "/" || self.known(number, std::slice::from_ref(&key))?.is_some() {
            None
        } else {
            let image = Tree::image(self.store, &layers)?;
            // A user that the image does not know is root's here, as with BuildKit; RUN tells.
            let owner = owner(&owner_text, &image).unwrap_or((0, 0));
            missing_directories(self.store, &layers, path, owner, self.now.as_second())?
        };
        Ok(Work { job: Job::Layer(made), keys: vec![key], history: told.to_owned(), begun: None })
    }

    /// With SOURCE_DATE_EPOCH what is made has its time, so that it is part of the key.
    fn time_key(&self) -> String {
        match self.request.epoch_s {
            Some(epoch) => format!("{epoch} {}", self.request.rewrite_timestamps),
            None => String::new(),
        }
    }

    fn clamp_s(&self) -> Option<i64> {
        self.request.epoch_s.filter(|_| self.request.rewrite_timestamps)
    }

    fn known(&self, number: usize, keys: &[Digest]) -> Result<Option<CachedStep>, Problem> {
        if self.stages[number].no_cache {
            return Ok(None);
        }
        for key in keys {
            if let Some(step) = self.store.cached_step(key)? {
                return Ok(Some(step));
            }
        }
        for key in keys {
            if let Some(step) = self.imported.find(self.store, key)? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    /// Does the work, or finds that it was done. Gives it back where no process is free.
    fn take_on(
        &mut self,
        number: usize,
        instruction: &Instruction,
        work: Work,
    ) -> Result<Option<Work>, BuildError> {
        let place = instruction.place;
        let at = |problem| BuildError::Step { problem, place };
        let known = self.known(number, &work.keys)?;
        if known.is_none() && !matches!(work.job, Job::Layer(_)) && self.working() >= self.limit {
            return Ok(Some(work));
        }
        let Work { job, keys, history, begun } = work;
        let Begun { vertex, title, turn } = begun.unwrap_or_else(|| {
            self.stages[number].shown += 1;
            let title = self.title_of(number, instruction);
            Begun { vertex: self.progress.start(&title), title, turn: None }
        });
        if let Some(step) = known {
            for key in &keys {
                // Whichever found it: all of them stand for it now.
                if self.store.cached_step(key)?.is_none() {
                    self.store.keep_step(key, &step)?;
                }
            }
            self.progress.cached(vertex);
            self.steps.push((number, keys, step.clone()));
            self.apply(number, &step, &history);
            return Ok(None);
        }
        let mut turn = match (&job, turn, keys.first()) {
            (Job::Layer(_), ..) | (_, None, None) => None,
            (_, Some(turn), _) => Some(turn),
            (_, None, Some(key)) => Some(self.store.step_turn(key)?),
        };
        let no_cache = self.stages[number].no_cache;
        if let Some(turn) = turn.take_if(|turn| !turn.is_ours() && !no_cache) {
            self.progress.status(vertex, "waiting for another build that does this step");
            let worker = Worker::start(|mouth| {
                turn.wait()?;
                Ok(mouth.done(&Given { layer: None, bytes: 0 })?)
            });
            self.stages[number].worker = Some(Running {
                worker: worker.map_err(at)?,
                vertex,
                keys: Vec::new(),
                description: title,
                history: String::new(),
                place,
                given: None,
                turn: Some(turn),
                waiting: Some(Box::new((instruction.clone(), Work { job, keys, history, begun: None }))),
            });
            return Ok(None);
        }
        let (store, scratch) = (self.store, self.scratch.path().to_owned());
        let worker = match job {
            Job::Layer(layer) => {
                let added = match layer {
                    Some(bytes) => image::add_layer(store, Box::new(&bytes[..]), "a directory")?,
                    None => None,
                };
                let step = CachedStep {
                    layer: added.as_ref().map(|layer| layer.diff_id.clone()),
                    bytes: added.map_or(0, |layer| layer.tar_bytes),
                    created: if self.request.epoch_s.is_some() { self.now } else { Timestamp::now() },
                    description: title,
                };
                for key in &keys {
                    self.store.keep_step(key, &step)?;
                }
                self.progress.done(vertex);
                self.steps.push((number, keys, step.clone()));
                self.apply(number, &step, &history);
                return Ok(None);
            }
            Job::Run(job) => Worker::start(move |mouth| job.work(store, &scratch, mouth)),
            Job::Copy(job) => Worker::start(move |mouth| {
                let added = std::thread::scope(|scope| {
                    let stream = stream(scope, |out| job.write(store, out))?;
                    image::add_layer(store, Box::new(stream), "the files to copy")
                        .map_err(|error| innermost(&error))
                })?;
                Ok(mouth.done(&match added {
                    Some(layer) => Given { layer: Some(layer.diff_id), bytes: layer.tar_bytes },
                    None => Given { layer: None, bytes: 0 },
                })?)
            }),
        };
        let worker = worker.map_err(at)?;
        self.stages[number].worker = Some(Running {
            worker,
            vertex,
            keys,
            description: title,
            history,
            place,
            given: None,
            turn,
            waiting: None,
        });
        Ok(None)
    }

    /// The steps so far; of the result's are those of the target's stage and of the stages below it.
    fn steps_done(&self) -> Vec<StepDone> {
        let mut below = BTreeSet::from([self.target]);
        let mut at = self.target;
        while let Start::Stage(base) = self.stages[at].start {
            at = base;
            below.insert(at);
        }
        let done = |(number, keys, step): &(usize, Vec<Digest>, CachedStep)| StepDone {
            keys: keys.clone(),
            step: step.clone(),
            of_result: below.contains(number),
        };
        self.steps.iter().map(done).collect()
    }

    fn unused_arguments(&self) -> Vec<String> {
        let names = self.request.arguments.iter().map(|(name, _)| name);
        let known = |name: &str| {
            self.used_arguments.contains(name)
                || PROXIES.contains(&name)
                || name.starts_with("BUILDKIT_")
                || name == "SOURCE_DATE_EPOCH"
        };
        names.filter(|name| !known(name)).cloned().collect()
    }
}

/// The problem that a layer's stream ended with, without what was made of it on the way.
fn innermost(error: &image::ImageError) -> Problem {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(problem) = error.downcast_ref::<Problem>() {
            return problem.clone();
        }
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref())
            && let Some(problem) = inner.downcast_ref::<Problem>()
        {
            return problem.clone();
        }
        source = error.source();
    }
    Problem::chain(error)
}

fn key(parts: &[&str]) -> Digest {
    let mut hash = Sha256::new();
    for part in [KEY_VERSION].iter().chain(parts) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    Digest::from_bytes(&hash.finalize().into())
}

/// The `from` of a mount, as far as it has one that can be told without variables.
fn mount_from(text: &str) -> Option<String> {
    text.split(',').find_map(|field| field.trim_matches('"').strip_prefix("from=").map(str::to_owned))
}

/// An image's name as BuildKit shows it: whole.
fn shown_name(reference: &str) -> String {
    match reference.parse::<image::Reference>() {
        Ok(parsed) => parsed.with_default_tag().to_string(),
        Err(_) => reference.to_owned(),
    }
}
