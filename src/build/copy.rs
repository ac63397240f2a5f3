//! COPY and ADD: a layer written straight into the store, without a container.
//!
//! A source is matched in its tree ([`super::tree`]), a destination in the merged index of the image so
//! far, where symlinks lead as they do in a container. Both are walked once to know what the copy
//! depends on ([`CopyJob::digest`]) and once more to write it. The same sources give the same bytes:
//! names are sorted, times are whole seconds and the sources' own, and what is made on the way has the
//! build's time.
//!
//! What must stay true: nothing but what was matched is read; directories of the image that are only
//! passed through are not in the layer, so that they stay as they are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Write};
use std::sync::mpsc;

use fuse_overlay::archive::{Content, Entry, Kind as EntryKind, Writer};
use fuse_overlay::index::Timestamp;
use sha2::{Digest as _, Sha256};

use super::digests::FileDigests;
use super::error::Problem;
use super::tree::{Facts, Files, Kind, Node, Tree, split};
use super::unpack::InImage;
use crate::id::Digest;
use crate::plan::dockerfile::ignore::{Ignore, Matched, glob};
use crate::plan::user;
use crate::store::Store;

/// Bytes of an image's passwd and group files.
const MAX_ACCOUNTS_BYTES: u64 = 4 << 20;
/// How deep directories of a source lie in each other: as deep as a path is long.
const MAX_DEPTH: usize = 2048;
/// Files and directories of one copy.
const MAX_ENTRIES: u64 = 10_000_000;
/// What a walk is ahead of whoever reads the files. Each entry may hold its directory open, and a process has a
/// thousand descriptors where nothing else is said.
const AHEAD_ENTRIES: usize = 64;
const AHEAD_BATCHES: usize = 2;
/// Bytes hashed at once.
const HASH_BYTES: usize = 1 << 18;

/// Where sources are.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A directory of the machine, less what is left out.
    Directory { path: std::path::PathBuf, ignore: Ignore },
    /// An image of these layers.
    Image { layers: Vec<Digest> },
}

impl Origin {
    fn open(&self, store: &Store) -> io::Result<Tree> {
        match self {
            Self::Directory { path, .. } => Tree::directory(path),
            Self::Image { layers } => Tree::image(store, layers),
        }
    }

    fn ignore(&self) -> Option<&Ignore> {
        match self {
            Self::Directory { ignore, .. } if !ignore.is_empty() => Some(ignore),
            _ => None,
        }
    }
}

/// A file that comes with the instruction, or from elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) name: String,
    pub(super) content: GivenContent,
    pub(super) mode: u32,
    /// None for the build's own time.
    pub(super) mtime_s: Option<i64>,
}

#[derive(Clone, Debug)]
pub(super) enum GivenContent {
    /// A here-document.
    Bytes(Vec<u8>),
    /// A file of the build's own directory.
    File(std::path::PathBuf),
}

/// One COPY or ADD, all variables expanded.
#[derive(Clone, Debug)]
pub(super) struct CopyJob {
    pub(super) origin: Origin,
    pub(super) sources: Vec<String>,
    pub(super) given: Vec<Given>,
    /// Absolute, maybe with a slash behind.
    pub(super) destination: String,
    /// ADD: archives among the sources are unpacked.
    pub(super) unpack: bool,
    /// Of what was given by URL too.
    pub(super) unpack_given: bool,
    pub(super) chown: Option<String>,
    pub(super) chmod: Option<String>,
    pub(super) link: bool,
    pub(super) parents: bool,
    pub(super) exclude: Vec<String>,
    /// The image so far.
    pub(super) layers: Vec<Digest>,
    /// Of what is made here.
    pub(super) now_s: i64,
    /// No file is younger.
    pub(super) clamp_s: Option<i64>,
}

/// A source that was matched.
struct Match {
    /// Its path in the tree, symlinks resolved.
    path: Vec<u8>,
    /// What it is called at the destination.
    name: Vec<u8>,
    /// `--parents`: the directories in front, to be made too.
    parents: Vec<u8>,
    node: Node,
}

/// What a walk tells of each entry, in order.
struct Walked<'a> {
    /// Below the source, empty for the source itself.
    relative: &'a [u8],
    node: &'a Node,
}

impl CopyJob {
    /// Everything of an image, as a layer over nothing.
    pub(super) fn of_everything(layers: &[Digest]) -> Self {
        Self::as_it_is(Origin::Image { layers: layers.to_vec() }, "/")
    }

    /// What is at one path, unchanged, as a layer over nothing.
    pub(super) fn as_it_is(origin: Origin, path: &str) -> Self {
        Self {
            origin,
            sources: vec![path.to_owned()],
            given: Vec::new(),
            destination: "/".to_owned(),
            unpack: false,
            unpack_given: false,
            chown: None,
            chmod: None,
            link: false,
            parents: false,
            exclude: Vec::new(),
            layers: Vec::new(),
            now_s: 0,
            clamp_s: None,
        }
    }

    /// The digest of everything that is copied: names, kinds, modes, contents, and owners where they are
    /// kept. Not times, as with BuildKit.
    pub(super) fn digest(&self, store: &Store, digests: &mut FileDigests) -> Result<Digest, Problem> {
        let mut hash = Sha256::new();
        for given in &self.given {
            field(&mut hash, given.name.as_bytes());
            match &given.content {
                GivenContent::Bytes(bytes) => field(&mut hash, bytes),
                GivenContent::File(path) => {
                    let file = std::fs::File::open(path)?;
                    field(&mut hash, &hash_content(&file, file.metadata()?.len())?);
                }
            }
        }
        if !self.sources.is_empty() {
            let tree = self.origin.open(store)?;
            for found in self.matches(&tree)? {
                field(&mut hash, &found.name);
                field(&mut hash, &found.parents);
                self.walk_ahead(&tree, &found, &mut |walked| {
                    let Facts { kind, mode, uid, gid, size, .. } = walked.node.facts;
                    field(&mut hash, walked.relative);
                    let mode = if self.chmod.is_some() && kind != Kind::Directory { 0 } else { mode };
                    hash.update([kind as u8]);
                    hash.update(mode.to_le_bytes());
                    if self.keeps_owners() {
                        hash.update(uid.to_le_bytes());
                        hash.update(gid.to_le_bytes());
                    }
                    match kind {
                        Kind::File => {
                            let known = digests.get(&walked.node.facts);
                            let content = match known {
                                Some(content) => content,
                                None => {
                                    let content = hash_content(&*tree.content(walked.node)?, size)?;
                                    digests.put(&walked.node.facts, content);
                                    content
                                }
                            };
                            hash.update(content);
                        }
                        Kind::Symlink => field(&mut hash, &tree.target(walked.node)?),
                        Kind::Char | Kind::Block => {
                            let (major, minor) = tree.device(walked.node)?;
                            hash.update(major.to_le_bytes());
                            hash.update(minor.to_le_bytes());
                        }
                        Kind::Directory | Kind::Fifo | Kind::Socket => {}
                    }
                    for (name, value) in tree.xattrs(walked.node)? {
                        field(&mut hash, &name);
                        field(&mut hash, &value);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(Digest::from_bytes(&hash.finalize().into()))
    }

    /// Files of an image keep their owners; those of a context are root's.
    fn keeps_owners(&self) -> bool {
        matches!(self.origin, Origin::Image { .. }) && self.chown.is_none()
    }

    /// The sources that there are, in order.
    fn matches(&self, tree: &Tree) -> Result<Vec<Match>, Problem> {
        let mut found = Vec::new();
        for source in &self.sources {
            // As with BuildKit, a pattern that nothing matches is no error, a name that is not there is.
            if source.contains(['*', '?', '[']) {
                self.wildcard(tree, source, &mut found)?;
                continue;
            }
            let missing =
                || Problem::new(format!("failed to compute cache key: {:?}: not found", absolute(source)));
            let (path, node) = tree.find(source.as_bytes())?.ok_or_else(missing)?;
            if !path.is_empty() && self.is_left_out(&path) && !self.keeps_below(tree, &path, &node)? {
                return Err(missing());
            }
            found.push(self.matched(source.as_bytes(), path, node));
        }
        Ok(found)
    }

    fn matched(&self, written: &[u8], path: Vec<u8>, node: Node) -> Match {
        let names: Vec<&[u8]> = split(written).filter(|name| *name != b"." && *name != b"..").collect();
        let name = names.last().copied().unwrap_or_default().to_vec();
        let parents = if self.parents {
            // `./` in the middle marks where the directories that are kept begin.
            let pivot = written.windows(3).position(|part| part == b"/./").map(|at| at + 3);
            let kept: Vec<&[u8]> = split(&written[pivot.unwrap_or(0)..])
                .filter(|name| *name != b"." && *name != b"..")
                .collect();
            let count =
                if node.facts.kind == Kind::Directory { kept.len() } else { kept.len().saturating_sub(1) };
            kept[..count].join(&b'/')
        } else {
            Vec::new()
        };
        Match { path, name, parents, node }
    }

    /// `a/*.c`: each name of the pattern matches names of one directory.
    fn wildcard(&self, tree: &Tree, pattern: &str, found: &mut Vec<Match>) -> Result<(), Problem> {
        let names: Vec<&str> = pattern.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        let mut level: Vec<(Vec<u8>, Node)> = vec![(Vec::new(), tree.root()?)];
        for (number, name) in names.iter().enumerate() {
            let is_last = number + 1 == names.len();
            let mut next = Vec::new();
            for (path, node) in &level {
                let entries = if name.contains(['*', '?', '[', '\\']) {
                    tree.children(node, Files::Seen)?
                } else {
                    tree.child(node, name.as_bytes())?
                        .map(|node| (name.as_bytes().to_vec(), node))
                        .into_iter()
                        .collect()
                };
                for (entry, node) in entries {
                    if !glob(name, &entry).map_err(Problem::new)? {
                        continue;
                    }
                    let mut at = path.clone();
                    if !at.is_empty() {
                        at.push(b'/');
                    }
                    at.extend_from_slice(&entry);
                    let resolved = if node.facts.kind == Kind::Symlink {
                        tree.find(&at)?
                    } else {
                        Some((at.clone(), node))
                    };
                    let Some((real, node)) = resolved else { continue };
                    if is_last {
                        if self.is_left_out(&real) && !self.keeps_below(tree, &real, &node)? {
                            continue;
                        }
                        found.push(self.matched(&at, real, node));
                    } else if node.facts.kind == Kind::Directory {
                        next.push((at, node));
                    }
                }
            }
            level = next;
        }
        Ok(())
    }

    fn is_left_out(&self, path: &[u8]) -> bool {
        self.origin.ignore().is_some_and(|ignore| matched_along(ignore, path).excluded())
    }

    /// Whether a directory that is left out holds something that is not.
    fn keeps_below(&self, tree: &Tree, path: &[u8], node: &Node) -> Result<bool, Problem> {
        let Some(ignore) = self.origin.ignore() else { return Ok(false) };
        if node.facts.kind != Kind::Directory || !ignore.may_keep_below(path) {
            return Ok(false);
        }
        let matched = matched_along(ignore, path);
        let mut nothing = |_: &Walked<'_>| Ok(());
        let mut walk = Walk {
            tree,
            files: Files::Unseen,
            ignore: Some(ignore),
            exclude: None,
            each: &mut nothing,
            count: 0,
        };
        walk.has_kept(path, b"", node, Some(&matched), None, 0)
    }

    /// As [`Self::walk`], with a thread that walks ahead of `each`: looking at files takes as long as reading small
    /// ones, or comparing them with what is remembered.
    fn walk_ahead(
        &self,
        tree: &Tree,
        source: &Match,
        each: &mut dyn FnMut(&Walked<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if source.node.facts.kind != Kind::Directory {
            return self.walk(tree, source, Files::Seen, each);
        }
        let (sender, batches) = mpsc::sync_channel::<Vec<(Vec<u8>, Node)>>(AHEAD_BATCHES);
        std::thread::scope(|scope| {
            let walker = scope.spawn(move || {
                // Whoever takes no more has failed, and says why.
                let gone = |_| Problem::new("nobody takes what is walked");
                let mut batch = Vec::with_capacity(AHEAD_ENTRIES);
                self.walk(tree, source, Files::Seen, &mut |walked| {
                    batch.push((walked.relative.to_vec(), walked.node.clone()));
                    if batch.len() == AHEAD_ENTRIES {
                        let full = std::mem::replace(&mut batch, Vec::with_capacity(AHEAD_ENTRIES));
                        sender.send(full).map_err(gone)?;
                    }
                    Ok(())
                })?;
                sender.send(batch).map_err(gone)
            });
            for (relative, node) in batches.into_iter().flatten() {
                each(&Walked { relative: &relative, node: &node })?;
            }
            walker.join().unwrap_or_else(|_| Err(Problem::new("the walk of a source ended early")))
        })
    }

    /// Calls `each` for a source and everything in it that is not left out, directories first.
    fn walk(
        &self,
        tree: &Tree,
        source: &Match,
        files: Files,
        each: &mut dyn FnMut(&Walked<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let exclude = Ignore::new(self.exclude.iter().map(String::as_str)).map_err(Problem::new)?;
        let exclude = (!exclude.is_empty()).then_some(&exclude);
        let ignore = self.origin.ignore();
        let mut walk = Walk { tree, files, ignore, exclude, each, count: 0 };
        let of_ignore =
            ignore.filter(|_| !source.path.is_empty()).map(|ignore| matched_along(ignore, &source.path));
        if source.node.facts.kind == Kind::Directory {
            (walk.each)(&Walked { relative: b"", node: &source.node })?;
            walk.directory(&source.path, b"", &source.node, of_ignore.as_ref(), None, 0)
        } else {
            // A single file's own name is what --exclude is compared with.
            if exclude.is_some_and(|exclude| exclude.matches(&source.name, None).excluded()) {
                return Ok(());
            }
            (walk.each)(&Walked { relative: b"", node: &source.node })
        }
    }

    /// Writes the layer's tar.
    pub(super) fn write<W: Write>(&self, store: &Store, out: W) -> Result<(), Problem> {
        let image = Tree::image(store, if self.link { &[] } else { &self.layers })?;
        let owner = match &self.chown {
            Some(text) => Some(owner(text, &Tree::image(store, &self.layers)?)?),
            None => None,
        };
        let mode = self.chmod.as_deref().map(ModeChange::parse).transpose()?;
        let mut layer = Layer {
            job: self,
            image,
            writer: Writer::new(out),
            made: HashSet::new(),
            owner,
            mode,
            links: HashMap::new(),
        };
        let into_directory = self.destination.ends_with('/')
            || self.destination.ends_with("/.")
            || self.sources.len() + self.given.len() > 1;
        if !self.sources.is_empty() {
            let tree = self.origin.open(store)?;
            let matches = self.matches(&tree)?;
            let into_directory = into_directory || matches.len() > 1;
            for found in &matches {
                layer.links.clear();
                layer.source(&tree, found, into_directory)?;
            }
        }
        for given in &self.given {
            layer.given(given, into_directory)?;
        }
        layer.writer.finish()?;
        Ok(())
    }
}

fn absolute(source: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in source.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// The answer for a path by way of each directory above it.
fn matched_along(ignore: &Ignore, path: &[u8]) -> Matched {
    let ends =
        path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
    let mut matched: Option<Matched> = None;
    for end in ends {
        matched = Some(ignore.matches(&path[..end], matched.as_ref()));
    }
    matched.unwrap_or_default()
}

struct Walk<'a> {
    tree: &'a Tree,
    files: Files,
    ignore: Option<&'a Ignore>,
    exclude: Option<&'a Ignore>,
    each: &'a mut dyn FnMut(&Walked<'_>) -> Result<(), Problem>,
    count: u64,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        path: &[u8],
        relative: &[u8],
        node: &Node,
        ignored: Option<&Matched>,
        excluded: Option<&Matched>,
        depth: usize,
    ) -> Result<(), Problem> {
        if depth > MAX_DEPTH {
            return Err(Problem::new("the directories lie in each other too deeply"));
        }
        for (name, child) in self.tree.children(node, self.files)? {
            self.count += 1;
            if self.count > MAX_ENTRIES {
                return Err(Problem::new(format!("more than {MAX_ENTRIES} files are copied at once")));
            }
            let join =
                |front: &[u8]| if front.is_empty() { name.clone() } else { [front, &name].join(&b'/') };
            let (path, relative) = (join(path), join(relative));
            let by_ignore = self.ignore.map(|ignore| ignore.matches(&path, ignored));
            let by_exclude = self.exclude.map(|exclude| exclude.matches(&relative, excluded));
            let is_out = [&by_ignore, &by_exclude].into_iter().flatten().any(Matched::excluded);
            let is_directory = child.facts.kind == Kind::Directory;
            if is_out {
                // Left out, but something in it may not be: then the directory comes with that.
                let kept = by_ignore.as_ref().is_none_or(|matched| !matched.excluded())
                    || self.ignore.is_some_and(|ignore| ignore.may_keep_below(&path));
                let kept = kept
                    && (by_exclude.as_ref().is_none_or(|matched| !matched.excluded())
                        || self.exclude.is_some_and(|exclude| exclude.may_keep_below(&relative)));
                if !is_directory
                    || !kept
                    || !self.has_kept(
                        &path,
                        &relative,
                        &child,
                        by_ignore.as_ref(),
                        by_exclude.as_ref(),
                        depth + 1,
                    )?
                {
                    continue;
                }
            }
            // A socket is nothing without who listens.
            if child.facts.kind == Kind::Socket {
                continue;
            }
            (self.each)(&Walked { relative: &relative, node: &child })?;
            if is_directory {
                self.directory(&path, &relative, &child, by_ignore.as_ref(), by_exclude.as_ref(), depth + 1)?;
            }
        }
        Ok(())
    }

    /// Whether anything below an excluded directory is taken back.
    fn has_kept(
        &mut self,
        path: &[u8],
        relative: &[u8],
        node: &Node,
        ignored: Option<&Matched>,
        excluded: Option<&Matched>,
        depth: usize,
    ) -> Result<bool, Problem> {
        let mut found = false;
        let mut each = |_: &Walked<'_>| {
            found = true;
            Ok(())
        };
        let mut walk = Walk {
            tree: self.tree,
            files: Files::Unseen,
            ignore: self.ignore,
            exclude: self.exclude,
            each: &mut each,
            count: self.count,
        };
        walk.directory(path, relative, node, ignored, excluded, depth)?;
        Ok(found)
    }
}

fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn hash_content(content: &dyn Content, size: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES.min(usize::try_from(size).unwrap_or(HASH_BYTES).max(1))];
    let mut at = 0;
    while at < size {
        match content.read_at(&mut buffer, at)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                at += count as u64;
            }
        }
    }
    Ok(hash.finalize().into())
}

/// Whom `--chown` means, by the image's own accounts.
pub(super) fn owner(text: &str, image: &Tree) -> Result<(u32, u32), Problem> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let passwd = image.read_small(b"etc/passwd", MAX_ACCOUNTS_BYTES)?;
    let groups = image.read_small(b"etc/group", MAX_ACCOUNTS_BYTES)?;
    let found = user::resolve(text, &passwd, &groups, &[]).map_err(Problem::new)?;
    // A number alone is the group's too.
    let gid = match (group, user.parse::<u32>()) {
        (None, Ok(number)) => number,
        _ => found.gid,
    };
    Ok((found.uid, gid))
}

/// `--chmod`: bits, or letters as chmod(1) takes them.
#[derive(Clone, Debug)]
enum ModeChange {
    Bits(u32),
    Letters(Vec<(u32, char, String)>),
}

impl ModeChange {
    fn parse(text: &str) -> Result<Self, Problem> {
        let wrong = || {
            Problem::new(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, or letters such as u=rwX,go=rX"
            ))
        };
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return u32::from_str_radix(text, 8)
                .ok()
                .filter(|bits| *bits <= 0o7777)
                .map(Self::Bits)
                .ok_or_else(wrong);
        }
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            let at = clause.find(['+', '-', '=']).ok_or_else(wrong)?;
            let (who, rest) = clause.split_at(at);
            let mut mask = 0;
            for c in who.chars() {
                mask |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o1007,
                    'a' => 0o7777,
                    _ => return Err(wrong()),
                };
            }
            let mask = if who.is_empty() { 0o7777 } else { mask };
            let mut chars = rest.chars();
            let operator = chars.next().ok_or_else(wrong)?;
            let letters = chars.as_str();
            if !letters.chars().all(|c| "rwxXst".contains(c)) {
                return Err(wrong());
            }
            clauses.push((mask, operator, letters.to_owned()));
        }
        Ok(Self::Letters(clauses))
    }

    fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Self::Bits(bits) => *bits,
            Self::Letters(clauses) => clauses.iter().fold(mode, |mode, (mask, operator, letters)| {
                let bits = letters.chars().fold(0, |bits, c| {
                    bits | match c {
                        'r' => 0o444,
                        'w' => 0o222,
                        'x' => 0o111,
                        'X' if is_directory || mode & 0o111 != 0 => 0o111,
                        's' => 0o6000,
                        't' => 0o1000,
                        _ => 0,
                    }
                }) & mask;
                match operator {
                    '+' => mode | bits,
                    '-' => mode & !bits,
                    _ => (mode & !(mask & 0o777)) | bits,
                }
            }),
        }
    }
}

/// A layer on its way.
struct Layer<'a, W> {
    job: &'a CopyJob,
    image: Tree,
    writer: Writer<W>,
    /// Directories that are in the layer already.
    made: HashSet<Vec<u8>>,
    owner: Option<(u32, u32)>,
    mode: Option<ModeChange>,
    /// Hard links of a source: the first name's path in the layer.
    links: HashMap<u64, Vec<u8>>,
}

/// Where something goes.
struct Target {
    path: Vec<u8>,
    /// What the image has there.
    existing: Option<Kind>,
}

impl<W: Write> Layer<'_, W> {
    fn now(&self) -> Timestamp {
        Timestamp {
            seconds: self.job.clamp_s.map_or(self.job.now_s, |clamp| clamp.min(self.job.now_s)),
            nanoseconds: 0,
        }
    }

    fn time(&self, time: Timestamp) -> Timestamp {
        let seconds = self.job.clamp_s.map_or(time.seconds, |clamp| clamp.min(time.seconds));
        Timestamp { seconds, nanoseconds: 0 }
    }

    /// Resolves a destination in the image; what is above it is made where it is missing.
    fn target(&mut self, path: &[u8], is_directory: bool) -> Result<Target, Problem> {
        let mut names: Vec<Vec<u8>> = split(path).map(<[u8]>::to_vec).collect();
        // The last name of a file is itself, even where it is a symlink: that is replaced.
        let last = if is_directory { None } else { names.pop() };
        let ((mut at, node), missing) = self.image.walk(&names.join(&b'/'))?;
        if node.facts.kind != Kind::Directory {
            return Err(Problem::new(format!(
                "cannot copy to non-directory: /{}",
                String::from_utf8_lossy(&at)
            )));
        }
        let has_missing = !missing.is_empty();
        for (number, name) in missing.iter().enumerate() {
            push(&mut at, name);
            // The directory itself is the caller's to make.
            if !(is_directory && number + 1 == missing.len()) {
                self.make_directory(&at, self.now())?;
            }
        }
        let existing = match &last {
            None if has_missing => None,
            None => Some(Kind::Directory),
            Some(_) if has_missing => None,
            Some(name) => self.image.child(&node, name)?.map(|node| node.facts.kind),
        };
        if let Some(name) = &last {
            push(&mut at, name);
        }
        Ok(Target { path: at, existing })
    }

    /// Resolves the destination of one file as it was written, where a symlink is followed, too.
    fn followed(&mut self, path: &[u8]) -> Result<Target, Problem> {
        let ((mut at, node), missing) = self.image.walk(path)?;
        if missing.is_empty() {
            return Ok(Target { path: at, existing: Some(node.facts.kind) });
        }
        if node.facts.kind != Kind::Directory {
            return Err(Problem::new(format!(
                "cannot copy to non-directory: /{}",
                String::from_utf8_lossy(&at)
            )));
        }
        for (number, name) in missing.iter().enumerate() {
            push(&mut at, name);
            if number + 1 < missing.len() {
                self.make_directory(&at, self.now())?;
            }
        }
        Ok(Target { path: at, existing: None })
    }

    /// Makes a directory on the way to the destination, as BuildKit does: with the bits that `--chmod`
    /// gives, whatever the source's are.
    fn make_directory(&mut self, path: &[u8], mtime: Timestamp) -> Result<(), Problem> {
        if !self.made.insert(path.to_vec()) {
            return Ok(());
        }
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let mode = match self.mode {
            Some(ModeChange::Bits(bits)) => bits,
            _ => 0o755,
        };
        self.writer.entry(&Entry { path, kind: EntryKind::Directory, mode, uid, gid, mtime, xattrs: &[] })?;
        Ok(())
    }

    /// Whether the destination is a directory of the image, or one that is made already.
    fn is_directory(&self, path: &[u8]) -> Result<bool, Problem> {
        if self.made.contains(&split(path).collect::<Vec<_>>().join(&b'/')) {
            return Ok(true);
        }
        Ok(self.image.find(path)?.is_some_and(|(_, node)| node.facts.kind == Kind::Directory))
    }

    fn source(&mut self, tree: &Tree, found: &Match, into_directory: bool) -> Result<(), Problem> {
        let mut destination = self.job.destination.as_bytes().to_vec();
        if !found.parents.is_empty() {
            destination.push(b'/');
            destination.extend_from_slice(&found.parents);
        }
        if found.node.facts.kind == Kind::Directory {
            return self.tree(tree, found, &destination);
        }
        if self.job.unpack
            && found.node.facts.kind == Kind::File
            && super::unpack::is_archive(&*tree.content(&found.node)?)?
        {
            let content = tree.content(&found.node)?;
            return self.archive(&*content, found.node.facts.size, &destination);
        }
        let target = if into_directory || self.job.parents || self.is_directory(&destination)? {
            destination.push(b'/');
            destination.extend_from_slice(&found.name);
            self.target(&destination, false)?
        } else {
            self.followed(&destination)?
        };
        if target.existing == Some(Kind::Directory) {
            return Err(Problem::new(format!(
                "cannot replace to directory /{} with file",
                String::from_utf8_lossy(&target.path)
            )));
        }
        let mut nothing = true;
        let path = target.path;
        let mut nodes = Vec::new();
        self.job.walk(tree, found, Files::Seen, &mut |walked| {
            nothing = false;
            nodes.push(walked.node.clone());
            Ok(())
        })?;
        for node in nodes {
            self.node(tree, &path, &node)?;
        }
        Ok(())
    }

    /// The contents of a directory.
    fn tree(&mut self, tree: &Tree, found: &Match, destination: &[u8]) -> Result<(), Problem> {
        let target = self.target(destination, true)?;
        let root = target.path;
        // The image's directories below: existing ones are merged with, anything else is in the way.
        let mut below: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        below.insert(root.clone(), target.existing.is_some());
        if target.existing.is_none() && !root.is_empty() {
            self.make_directory(&root, self.time(found.node.facts.mtime))?;
        }
        let job = self.job;
        let mut failed = None;
        job.walk(tree, found, Files::Unseen, &mut |walked| {
            if walked.relative.is_empty() {
                return Ok(());
            }
            let mut path = root.clone();
            push(&mut path, walked.relative);
            let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &path[..at]);
            let in_image = below.get(parent).copied().unwrap_or(false);
            let existing = if in_image { self.kind_at(&path)? } else { None };
            let is_directory = walked.node.facts.kind == Kind::Directory;
            match existing {
                // As with BuildKit it becomes what the source's is; what else is in it stays.
                Some(Kind::Directory) if is_directory => {
                    below.insert(path.clone(), true);
                }
                Some(Kind::Directory) => {
                    failed = Some(Problem::new(format!(
                        "cannot replace to directory /{} with file",
                        String::from_utf8_lossy(&path)
                    )));
                }
                Some(_) if is_directory => {
                    failed = Some(Problem::new(format!(
                        "cannot copy to non-directory: /{}",
                        String::from_utf8_lossy(&path)
                    )));
                }
                _ => {}
            }
            if let Some(problem) = failed.take() {
                return Err(problem);
            }
            self.node(tree, &path, walked.node)
        })
    }

    fn kind_at(&self, path: &[u8]) -> Result<Option<Kind>, Problem> {
        let mut node = self.image.root()?;
        for name in split(path) {
            match self.image.child(&node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node.facts.kind))
    }

    /// Writes one node as it is, with the owner and mode that were asked for.
    fn node(&mut self, tree: &Tree, path: &[u8], node: &Node) -> Result<(), Problem> {
        let (facts, content) = match node.facts.kind {
            Kind::File => match tree.open(node) {
                Ok((facts, content)) => (facts, Some(content)),
                // It went away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !node.facts.is_seen() => {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            },
            _ => (node.facts, None),
        };
        if facts.kind == Kind::Directory && !self.made.insert(path.to_vec()) {
            return Ok(());
        }
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None if self.job.keeps_owners() => (facts.uid, facts.gid),
            None => (0, 0),
        };
        let mut mode = facts.mode;
        if let Some(change) = &self.mode
            && facts.kind != Kind::Symlink
        {
            mode = change.apply(mode, facts.kind == Kind::Directory);
        }
        let xattrs = tree.xattrs(node)?;
        let mtime = self.time(facts.mtime);
        let entry = |kind| Entry { path, kind, mode, uid, gid, mtime, xattrs: &xattrs };
        match facts.kind {
            Kind::Directory => self.writer.entry(&entry(EntryKind::Directory))?,
            Kind::Symlink => {
                let target = tree.target(node)?;
                self.writer.entry(&Entry { mode: 0o777, ..entry(EntryKind::Symlink(&target)) })?;
            }
            Kind::Fifo => self.writer.entry(&entry(EntryKind::Fifo))?,
            Kind::Char | Kind::Block => {
                let (major, minor) = tree.device(node)?;
                let kind = if facts.kind == Kind::Char {
                    EntryKind::CharDevice(major, minor)
                } else {
                    EntryKind::BlockDevice(major, minor)
                };
                self.writer.entry(&entry(kind))?;
            }
            Kind::File => {
                if facts.links > 1 {
                    if let Some(first) = self.links.get(&facts.inode) {
                        let kind = EntryKind::Link(first);
                        self.writer.entry(&Entry { path, kind, mode, uid, gid, mtime, xattrs: &[] })?;
                        return Ok(());
                    }
                    self.links.insert(facts.inode, path.to_vec());
                }
                if let Some(content) = content {
                    self.writer.file(&entry(EntryKind::File), facts.size, &*content)?;
                }
            }
            Kind::Socket => {}
        }
        Ok(())
    }

    fn given(&mut self, given: &Given, into_directory: bool) -> Result<(), Problem> {
        let mut destination = self.job.destination.as_bytes().to_vec();
        let file = match &given.content {
            GivenContent::File(path) => Some(std::fs::File::open(path)?),
            GivenContent::Bytes(_) => None,
        };
        if let Some(file) = file.as_ref().filter(|_| self.job.unpack_given)
            && super::unpack::is_archive(file)?
        {
            return self.archive(file, file.metadata()?.len(), &destination);
        }
        let target = if into_directory || self.is_directory(&destination)? {
            destination.push(b'/');
            destination.extend_from_slice(given.name.as_bytes());
            self.target(&destination, false)?
        } else {
            self.followed(&destination)?
        };
        if target.existing == Some(Kind::Directory) {
            return Err(Problem::new(format!(
                "cannot replace to directory /{} with file",
                String::from_utf8_lossy(&target.path)
            )));
        }
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let mode = self.mode.as_ref().map_or(given.mode, |change| change.apply(given.mode, false));
        let mtime = match given.mtime_s {
            Some(seconds) => self.time(Timestamp { seconds, nanoseconds: 0 }),
            None => self.now(),
        };
        let entry = Entry { path: &target.path, kind: EntryKind::File, mode, uid, gid, mtime, xattrs: &[] };
        match (&given.content, &file) {
            (GivenContent::Bytes(bytes), _) => {
                self.writer.file(&entry, bytes.len() as u64, &InMemory(bytes))?;
            }
            (_, Some(file)) => self.writer.file(&entry, file.metadata()?.len(), file)?,
            (GivenContent::File(_), None) => {}
        }
        Ok(())
    }

    /// The files of an archive, below the destination.
    fn archive(&mut self, content: &dyn Content, size: u64, destination: &[u8]) -> Result<(), Problem> {
        let target = self.target(destination, true)?;
        if target.existing.is_none() && !target.path.is_empty() {
            self.make_directory(&target.path, self.now())?;
        }
        let owner = self.owner;
        let clamp_s = self.job.clamp_s;
        let image = &self.image;
        let in_image = |path: &[u8]| in_image(image, path);
        let times = (self.job.now_s, clamp_s);
        super::unpack::copy(content, size, &target.path, owner, times, &in_image, &mut self.writer)
    }
}

/// What the image has at a path; no symlink is followed on the way.
fn in_image(image: &Tree, path: &[u8]) -> Result<InImage, Problem> {
    let mut node = image.root()?;
    for name in split(path) {
        match image.child(&node, name)? {
            Some(child) => node = child,
            None => return Ok(InImage::Nothing),
        }
    }
    Ok(match node.facts.kind {
        Kind::Directory => InImage::Directory,
        Kind::Symlink => InImage::Link(image.target(&node)?),
        _ => InImage::Other,
    })
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// A text as a file's content.
pub(super) struct InMemory<'a>(pub(super) &'a [u8]);

impl Content for InMemory<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = (self.0.len() - start).min(buffer.len());
        buffer[..count].copy_from_slice(&self.0[start..start + count]);
        Ok(count)
    }

    fn next_run(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let end = self.0.len() as u64;
        Ok((offset < end).then_some((offset, end)))
    }
}

/// A layer's tar as a stream: `write` runs on a thread of its own. The stream ends in an error where
/// `write` fails, so that no half layer is taken for a whole one.
pub(super) fn stream<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    write: impl FnOnce(io::BufWriter<io::PipeWriter>) -> Result<(), Problem> + Send + 'scope,
) -> io::Result<Streamed> {
    let (reader, writer) = io::pipe()?;
    let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20)); // a smaller pipe works
    let (sender, outcome) = mpsc::sync_channel(1);
    scope.spawn(move || {
        let done = write(io::BufWriter::with_capacity(1 << 18, writer));
        let _ = sender.send(done); // a reader that is gone has failed by itself
    });
    Ok(Streamed { reader, outcome, ended: false })
}

/// See [`stream`].
pub(super) struct Streamed {
    reader: io::PipeReader,
    outcome: mpsc::Receiver<Result<(), Problem>>,
    ended: bool,
}

impl Read for Streamed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer)? {
            0 if !buffer.is_empty() && !self.ended => {
                self.ended = true;
                match self.outcome.recv() {
                    Ok(Ok(())) => Ok(0),
                    Ok(Err(problem)) => Err(io::Error::other(problem)),
                    Err(_) => Err(io::Error::other("the layer's writer ended early")),
                }
            }
            count => Ok(count),
        }
    }
}

/// A layer of directories that are missing, for WORKDIR; none where all are there.
pub(super) fn missing_directories(
    store: &Store,
    layers: &[Digest],
    path: &str,
    owner: (u32, u32),
    now_s: i64,
) -> Result<Option<Vec<u8>>, Problem> {
    let image = Tree::image(store, layers)?;
    let ((mut at, node), missing) = image.walk(path.as_bytes())?;
    if node.facts.kind != Kind::Directory {
        return Err(Problem::new(format!(
            "cannot make {path}: /{} is not a directory",
            String::from_utf8_lossy(&at)
        )));
    }
    if missing.is_empty() {
        return Ok(None);
    }
    let mut writer = Writer::new(Vec::new());
    for name in &missing {
        push(&mut at, name);
        let mtime = Timestamp { seconds: now_s, nanoseconds: 0 };
        let (uid, gid) = owner;
        writer.entry(&Entry {
            path: &at,
            kind: EntryKind::Directory,
            mode: 0o755,
            uid,
            gid,
            mtime,
            xattrs: &[],
        })?;
    }
    Ok(Some(writer.finish()?))
}
