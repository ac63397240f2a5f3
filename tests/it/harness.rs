//! A private `hostel` for each test, and the proof that nothing is left of it.
//!
//! [`Hostel`] owns a store, a runtime directory and an environment of its own. Images are loaded once per
//! binary into a seed store that later tests copy (large files by hard link). When a `Hostel` is dropped it
//! removes its containers and fails the test if a process, a mount or a file of it is still there.
//!
//! Under nextest each test is a process; it makes itself the reaper of its orphans, so that a keeper or
//! container that outlives its `hostel` command is found by parentage, whatever it calls itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::fixtures;

/// How long a command may take before it counts as hung; generous, for a loaded machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long what should happen soon may take.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// Files above this size are hard-linked into a test's store instead of copied.
const LINK_FROM_BYTES: u64 = 64 * 1024;

/// Which images a test's store begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Images {
    None,
    Busybox,
    Debian,
}

/// A private engine: store, runtime directory, environment.
pub(crate) struct Hostel {
    store: TempDir,
    runtime: TempDir,
    env: BTreeMap<String, OsString>,
    flags: Vec<String>,
}

impl Hostel {
    /// With the busybox images; `None` (and a loud skip) where the machine cannot make them.
    pub(crate) fn new() -> Option<Self> {
        Self::with(Images::Busybox)
    }

    /// With the Debian image as well.
    pub(crate) fn debian() -> Option<Self> {
        Self::with(Images::Debian)
    }

    /// With an empty store.
    pub(crate) fn empty() -> Self {
        adopt_orphans();
        let place = fixtures::dir().join("t");
        fs::create_dir_all(&place).unwrap();
        // Socket paths have 108 bytes: the runtime directory's name is kept short.
        let store = tempfile::Builder::new().prefix("s").tempdir_in(place).unwrap();
        let runtime = tempfile::Builder::new().prefix("ht").tempdir_in("/tmp").unwrap();
        fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut env = BTreeMap::new();
        for name in ["HOME", "USER", "LOGNAME", "PATH", "LANG"] {
            if let Some(value) = std::env::var_os(name) {
                env.insert(name.to_owned(), value);
            }
        }
        env.insert("HOSTEL_ROOT".to_owned(), store.path().join("root").into());
        // Tests know no network: what is at no registry of their own is refused at once.
        let registries = store.path().join("registries.conf");
        fs::write(&registries, "[[registry]]\nprefix = \"docker.io\"\nlocation = \"127.0.0.1:1\"\n").unwrap();
        env.insert("CONTAINERS_REGISTRIES_CONF".to_owned(), registries.into());
        env.insert("XDG_CONFIG_HOME".to_owned(), store.path().join("config").into());
        env.insert("DOCKER_CONFIG".to_owned(), store.path().join("docker").into());
        env.insert("XDG_DATA_HOME".to_owned(), store.path().join("data").into());
        env.insert("XDG_RUNTIME_DIR".to_owned(), runtime.path().into());
        Self { store, runtime, env, flags: Vec::new() }
    }

    fn with(images: Images) -> Option<Self> {
        let seed = seed(images)?;
        let hostel = Self::empty();
        copy_store(&seed, &hostel.root());
        Some(hostel)
    }

    /// The same engine with flags that go before every verb.
    pub(crate) fn global(mut self, flags: &str) -> Self {
        self.flags.extend(words(flags));
        self
    }

    /// XDG_RUNTIME_DIR of everything that runs in this environment.
    pub(crate) fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.store.path().join("root")
    }

    /// A path beside the store: `docker` and `config` are the engine's directories of settings.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.store.path().join(name)
    }

    /// A directory of the test's own that goes away with it.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let dir = self.store.path().join("scratch").join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Runs a command line to its end; see [`words`] for its quoting.
    pub(crate) fn run(&self, line: &str) -> Done {
        self.cmd(line).run()
    }

    /// Runs `hostel` with these very arguments.
    pub(crate) fn args<S: AsRef<str>>(&self, arguments: &[S]) -> Done {
        self.cmd_args(arguments).run()
    }

    /// A command line to be run with more: standard input, directory, environment.
    pub(crate) fn cmd(&self, line: &str) -> Cmd {
        self.cmd_args(&words(line))
    }

    pub(crate) fn cmd_args<S: AsRef<str>>(&self, arguments: &[S]) -> Cmd {
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = Command::new(binary());
        command.env_clear().envs(&self.env).args(&self.flags).args(&arguments);
        command.current_dir(self.store.path());
        Cmd { command, shown: format!("hostel {}", arguments.join(" ")), stdin: None, limit: COMMAND_LIMIT }
    }

    /// Any program in this engine's environment, for wrapping `hostel` in `setsid`, `sh` and the like.
    pub(crate) fn program(&self, program: &str, arguments: &[&str]) -> Cmd {
        let mut command = Command::new(program);
        command.env_clear().envs(&self.env).env("HOSTEL", binary()).args(arguments);
        command.current_dir(self.store.path());
        let shown = format!("{program} {}", arguments.join(" "));
        Cmd { command, shown, stdin: None, limit: COMMAND_LIMIT }
    }

    /// Starts a container in the background and returns its id.
    pub(crate) fn detached(&self, line: &str) -> String {
        let id = self.run(&format!("run -d {line}")).ok().out();
        assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "not an id: {id:?}");
        id
    }

    /// Waits until a container's log has `text`.
    pub(crate) fn wait_for_log(&self, container: &str, text: &str) {
        eventually(&format!("{text:?} in the log of {container}"), || {
            self.run(&format!("logs {container}")).stdout.contains(text)
        });
    }

    /// Processes that belong to this engine: orphans of the test, and any that name its directories.
    pub(crate) fn processes(&self) -> Vec<String> {
        let ours = [self.store.path(), self.runtime.path()].map(|path| path.to_string_lossy().into_owned());
        let table = process_table();
        let me = std::process::id();
        let registered = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = Vec::new();
        for (pid, process) in &table {
            if *pid == me || process.state == 'Z' || registered.contains(pid) {
                continue;
            }
            let orphan = std::env::var_os("NEXTEST").is_some() && is_orphan(*pid, me, &table, &registered);
            if orphan || ours.iter().any(|path| process.names(path)) {
                found.push(format!(
                    "{pid} (parent {}, {}) {}",
                    process.parent,
                    process.state,
                    process.title()
                ));
            }
        }
        found
    }

    /// Mounts of this mount namespace that lie in, or come from, the engine's directories.
    fn mounts(&self) -> Vec<String> {
        let ours = [self.store.path(), self.runtime.path()].map(|path| path.to_string_lossy().into_owned());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| ours.iter().any(|path| line.contains(path))).map(str::to_owned).collect()
    }

    /// Removes every container and fails if anything of the engine is left.
    pub(crate) fn check_clean(&self) {
        let ids = self.run("ps -a -q --no-trunc").ok().out();
        if !ids.is_empty() {
            let arguments: Vec<_> = ["rm", "-f"].into_iter().chain(ids.lines()).collect();
            self.args(&arguments).ok();
        }
        self.run("ps -a -q").ok().stdout("");
        eventually_or(|| self.processes().is_empty(), || panic!("processes left: {:#?}", self.processes()));
        let mounts = self.mounts();
        assert!(mounts.is_empty(), "mounts left: {mounts:#?}");
        let containers = || files_below(&self.root().join("containers"));
        eventually_or(|| containers().is_empty(), || panic!("files of containers left: {:#?}", containers()));
        let sockets = files_below(self.runtime.path());
        let sockets: Vec<_> = sockets.iter().filter(|path| !path.ends_with("lock")).collect();
        assert!(sockets.is_empty(), "files in the runtime directory left: {sockets:#?}");
    }
}

impl Drop for Hostel {
    fn drop(&mut self) {
        if thread::panicking() {
            // The test's own failure is the message; what it left is only tidied away.
            let ids = self.cmd("ps -a -q --no-trunc").try_run().map(|done| done.out()).unwrap_or_default();
            for id in ids.lines() {
                let _ = self.cmd(&format!("rm -f {id}")).try_run();
            }
            for line in self.processes() {
                eprintln!("left by the failed test: {line}");
                if let Some(pid) = line.split(' ').next().and_then(|pid| pid.parse().ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            return;
        }
        self.check_clean();
        let store = std::mem::replace(&mut self.store, tempfile::tempdir_in("/tmp").unwrap());
        let path = store.path().to_owned();
        store.close().unwrap_or_else(|error| {
            panic!("{} cannot be removed: {error}: {:#?}", path.display(), files_below(&path))
        });
    }
}

/// One command about to run.
pub(crate) struct Cmd {
    command: Command,
    shown: String,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Cmd {
    pub(crate) fn stdin(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(data.into());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn cwd(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command for whoever needs to arrange its standard streams.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Starts it; its output is collected while it runs.
    pub(crate) fn spawn(mut self) -> Running {
        let stdin = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn_registered(&mut self.command, &self.shown);
        if let (Some(mut pipe), Some(data)) = (child.stdin.take(), self.stdin) {
            // A command may end without reading its input: a broken pipe is its right.
            thread::spawn(move || drop(pipe.write_all(&data)));
        }
        let stdout = Collector::new(child.stdout.take().unwrap());
        let stderr = Collector::new(child.stderr.take().unwrap());
        Running { child, stdout, stderr, shown: self.shown, limit: self.limit }
    }

    pub(crate) fn run(self) -> Done {
        self.spawn().wait()
    }

    /// As [`run`](Self::run), but a hang is an error for the caller.
    pub(crate) fn try_run(self) -> Result<Done, String> {
        self.spawn().try_wait()
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    shown: String,
    limit: Duration,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits until stdout has `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        eventually_or(
            || self.stdout.text().contains(text),
            || {
                let (out, err) = (self.stdout.text(), self.stderr.text());
                panic!("`{}` did not print {text:?}\nstdout: {out}\nstderr: {err}", self.shown)
            },
        );
    }

    pub(crate) fn wait(self) -> Done {
        self.try_wait().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_wait(mut self) -> Result<Done, String> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > self.limit {
                let _ = self.child.kill();
                let _ = self.child.wait();
                unregister(self.child.id());
                let (out, err) = (self.stdout.text(), self.stderr.text());
                return Err(format!("`{}` hung\nstdout: {out}\nstderr: {err}", self.shown));
            }
            thread::sleep(Duration::from_millis(2));
        };
        unregister(self.child.id());
        let held = |stream: &str| format!("`{}` ended, but a process holds its {stream} open", self.shown);
        let stdout = self.stdout.end().ok_or_else(|| held("stdout"))?;
        let stderr = self.stderr.end().ok_or_else(|| held("stderr"))?;
        Ok(Done { shown: self.shown, status, stdout, stderr })
    }
}

/// Reads a stream to its end in a thread of its own.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Collector {
    fn new(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(n) = stream.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// The whole text once the stream has ended; `None` if somebody keeps it open.
    fn end(&self) -> Option<String> {
        let start = Instant::now();
        while !self.reader.is_finished() {
            if start.elapsed() > SOON {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Some(self.text())
    }
}

/// A command that has ended, with assertions that show all of it when they fail.
pub(crate) struct Done {
    shown: String,
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The exit code as a shell shows it.
    pub(crate) fn exit_code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    fn check(&self, holds: bool, expected: &str) -> &Self {
        assert!(
            holds,
            "`{}` should {expected}\nexit code: {}\nstdout: {}\nstderr: {}",
            self.shown,
            self.exit_code(),
            self.stdout,
            self.stderr
        );
        self
    }

    pub(crate) fn ok(&self) -> &Self {
        self.code(0)
    }

    pub(crate) fn code(&self, code: i32) -> &Self {
        self.check(self.exit_code() == code, &format!("exit with {code}"))
    }

    pub(crate) fn stdout(&self, text: &str) -> &Self {
        self.check(self.stdout == text, &format!("print {text:?}"))
    }

    pub(crate) fn stderr(&self, text: &str) -> &Self {
        self.check(self.stderr == text, &format!("print {text:?} on stderr"))
    }

    pub(crate) fn has(&self, text: &str) -> &Self {
        self.check(self.stdout.contains(text), &format!("print something with {text:?}"))
    }

    pub(crate) fn lacks(&self, text: &str) -> &Self {
        self.check(!self.stdout.contains(text), &format!("not print {text:?}"))
    }

    pub(crate) fn stderr_has(&self, text: &str) -> &Self {
        self.check(self.stderr.contains(text), &format!("say {text:?} on stderr"))
    }

    /// An error of the engine: `code`, nothing on stdout, and a message with each of `parts`.
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) -> &Self {
        self.code(code).stdout("");
        for part in parts {
            self.stderr_has(part);
        }
        self.check(!self.stderr.contains("panicked"), "not panic")
    }

    /// Stdout without its last newline.
    pub(crate) fn out(&self) -> String {
        self.stdout.trim_end_matches('\n').to_owned()
    }
}

/// Splits a command line: spaces separate, `'...'` and `"..."` keep what is in them as it is.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ' | '\n', None) => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is not closed in {line}");
    words.extend(word);
    words
}

/// The engine under test: `$HOSTEL_TEST_BIN`, else what was built beside these tests.
pub(crate) fn binary() -> PathBuf {
    ["HOSTEL_TEST_BIN", "NEXTEST_BIN_EXE_hostel"]
        .into_iter()
        .find_map(std::env::var_os)
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_hostel")), PathBuf::from)
}

/// Waits for `condition`, failing after [`SOON`] with what was waited for.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_or(condition, || panic!("did not happen: {what}"));
}

fn eventually_or(mut condition: impl FnMut() -> bool, otherwise: impl FnOnce()) {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > SOON {
            return otherwise();
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Says on stderr and in the run's list that a test did not run, and why; an error where all must run.
pub(crate) fn skip(reason: &str) {
    let name = skip_for_this_kernel(reason);
    assert!(std::env::var_os("HOSTEL_TEST_STRICT").is_none_or(|value| value.is_empty()), "{name}: {reason}");
}

/// As [`skip`], for what no set-up can give: how the machine was booted decides.
pub(crate) fn skip_for_this_kernel(reason: &str) -> String {
    let name = std::env::var("NEXTEST_TEST_NAME")
        .unwrap_or_else(|_| thread::current().name().unwrap_or("a test").to_owned());
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(list) = std::env::var_os("HOSTEL_TEST_SKIPS") {
        let mut list = fs::File::options().append(true).open(list).unwrap();
        list.write_all(format!("{name}: {reason}\n").as_bytes()).unwrap();
    }
    name
}

/// A store with `images` loaded by the engine itself, made once per build of the binary.
fn seed(images: Images) -> Option<PathBuf> {
    let archive = fixtures::busybox_archive();
    if images != Images::None && archive.is_none() {
        skip("busybox-static is not installed");
        return None;
    }
    let layout = if images == Images::Debian {
        let layout = fixtures::debian_layout();
        if layout.is_none() {
            skip("no Debian tar from scripts/fixtures");
            return None;
        }
        layout
    } else {
        None
    };
    let binary = fs::metadata(binary()).unwrap();
    let recipe = format!("{} {:?}", binary.len(), binary.modified().unwrap());
    // Named for the build as well: another run, of another build, may be using its own.
    let name = format!("seed-{images:?}-{}", &fixtures::digest(recipe.as_bytes())[..12]).to_lowercase();
    let place = fixtures::once(&name, &recipe, |place| {
        fixtures::remove_old("seed-");
        let mut loader = Hostel::empty();
        loader.env.insert("HOSTEL_ROOT".to_owned(), place.as_os_str().to_owned());
        for archive in archive.into_iter().chain(fixtures::layers_archive()) {
            loader.args(&["load", "-i", &archive.to_string_lossy()]).ok();
        }
        if let Some(layout) = layout {
            for tag in ["debian", "debian-app"] {
                let source = format!("oci:{}:{tag}", layout.display());
                let pulled = loader.args(&["pull", "-q", &source]).ok().out();
                loader.args(&["tag", &pulled, tag]).ok();
            }
        }
    });
    Some(place)
}

/// Copies a store: directories and small files for real, large files (never written again) by hard link.
fn copy_store(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&source).unwrap();
        if metadata.is_dir() {
            copy_store(&source, &target);
        } else if metadata.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else if metadata.is_file() && metadata.len() > LINK_FROM_BYTES {
            fs::hard_link(&source, &target).unwrap();
        } else if metadata.is_file() {
            fs::copy(&source, &target).unwrap();
            copy_time(&source, &target);
        }
    }
    // Last: every entry changed it. The store checks times of what it keeps as plain files.
    copy_time(from, to);
}

fn copy_time(from: &Path, to: &Path) {
    let times = fs::FileTimes::new().set_modified(fs::metadata(from).unwrap().modified().unwrap());
    fs::File::open(to).unwrap().set_times(times).unwrap();
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Children that somebody here waits for; every other child is an orphan that was handed to us.
static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

pub(crate) fn spawn_registered(command: &mut Command, shown: &str) -> Child {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
    children.insert(child.id());
    child
}

/// As `Command::output`, with empty input, for a program that is no engine.
pub(crate) fn output(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = {
        let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        children.insert(child.id());
        child
    };
    let pid = child.id();
    let output = child.wait_with_output();
    unregister(pid);
    output
}

/// Whether /etc/subuid has a range for the user that runs the tests.
pub(crate) fn has_subordinate_ids() -> bool {
    let user = std::env::var("USER").unwrap_or_default();
    let text = fs::read_to_string("/etc/subuid").unwrap_or_default();
    nix::unistd::getuid().is_root() || text.lines().any(|line| line.starts_with(&format!("{user}:")))
}

pub(crate) fn unregister(pid: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
}

/// Under nextest: become the parent of what the engine leaves behind, and reap it as init would.
fn adopt_orphans() {
    static ONCE: Once = Once::new();
    if std::env::var_os("NEXTEST").is_none() {
        return;
    }
    ONCE.call_once(|| {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        thread::spawn(|| {
            loop {
                reap();
                thread::sleep(Duration::from_millis(5));
            }
        });
    });
}

fn reap() {
    let me = std::process::id();
    let children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut mine = String::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        mine.push_str(&fs::read_to_string(task.path().join("children")).unwrap_or_default());
        mine.push(' ');
    }
    for pid in mine.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()) {
        if pid != me && !children.contains(&pid) {
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
        }
    }
}

struct Process {
    parent: u32,
    state: char,
    name: String,
    cmdline: String,
    environ: String,
}

impl Process {
    fn names(&self, path: &str) -> bool {
        self.cmdline.contains(path) || self.environ.contains(path)
    }

    fn title(&self) -> &str {
        if self.cmdline.is_empty() { &self.name } else { &self.cmdline }
    }
}

fn process_table() -> BTreeMap<u32, Process> {
    let text = |pid: u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let mut table = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = text(pid, "stat");
        // The name is in parentheses and may hold anything (proc_pid_stat(5)): look from its end.
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let mut fields = tail.split_whitespace();
        let (Some(state), Some(parent)) = (fields.next(), fields.next()) else { continue };
        let name = head.split_once('(').map_or("", |(_, name)| name).to_owned();
        let process = Process {
            parent: parent.parse().unwrap_or(0),
            state: state.chars().next().unwrap_or('?'),
            name,
            cmdline: text(pid, "cmdline"),
            environ: text(pid, "environ"),
        };
        table.insert(pid, process);
    }
    table
}

/// A process of this name that descends from another.
pub(crate) fn descendant(of: Pid, name: &str) -> Option<Pid> {
    let table = process_table();
    let mut named = table.iter().filter(|(_, process)| process.name == name);
    named.find_map(|(pid, process)| {
        let mut at = process.parent;
        while let Some(process) = table.get(&at) {
            if at == of.as_raw().unsigned_abs() {
                return Some(Pid::from_raw(pid.cast_signed()));
            }
            at = process.parent;
        }
        None
    })
}

/// Whether `pid` descends from `me` through a child that nobody waits for.
fn is_orphan(pid: u32, me: u32, table: &BTreeMap<u32, Process>, registered: &BTreeSet<u32>) -> bool {
    let mut at = pid;
    while let Some(process) = table.get(&at) {
        if registered.contains(&at) {
            return false;
        }
        if process.parent == me {
            return true;
        }
        at = process.parent;
    }
    false
}

#[test]
fn words_are_split_as_in_a_shell() {
    let table: [(&str, &[&str]); 5] = [
        ("a b  c", &["a", "b", "c"]),
        ("sh -c 'echo $0 \"x\"'", &["sh", "-c", "echo $0 \"x\""]),
        ("-e A=\"b c\" ''", &["-e", "A=b c", ""]),
        ("", &[]),
        ("a'b'c", &["abc"]),
    ];
    for (line, expected) in table {
        assert_eq!(words(line), expected, "{line}");
    }
}
