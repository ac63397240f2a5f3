//! Which files of an image every start reads: its command, the shell, the dynamic loader and the
//! libraries that these need.
//!
//! Found by looking, not by running: the command as PATH has it, the interpreter that its ELF
//! header or its `#!` line names, and `DT_NEEDED` down the line. Everything read is the image's,
//! hence hostile: offsets are checked, sizes and counts are bounded, and what cannot be made sense
//! of is left out. A wrong guess costs some requests at the start, nothing else.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use fuse_overlay::index::MergedIndex;
use oci_spec::image::ImageConfiguration;

/// Files looked at: a program with more libraries than this spends its start elsewhere.
const MAX_FILES: usize = 128;
/// Bytes of all hot files: what is beyond takes space for little.
const MAX_BYTES: u64 = 48 << 20;
/// Bytes of one file that is looked into.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Read at every start: accounts by the engine, the loader's cache by each program.
const ALWAYS: [&str; 5] = ["/etc/passwd", "/etc/group", "/etc/ld.so.cache", "/bin/sh", "/usr/bin/env"];

/// Where loaders look, glibc's and musl's, without their configuration; `{}` is the architecture.
const LIBRARY_DIRS: [&str; 8] = [
    "/lib/{}",
    "/usr/lib/{}",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib/{}",
    "/usr/local/lib",
];

/// Finds the inodes.
pub(super) fn find(index: &MergedIndex, layers: &[File], config: &ImageConfiguration) -> HashSet<u64> {
    let mut found = HashSet::new();
    let mut bytes = 0;
    let mut seen = BTreeSet::new();
    let mut queue: VecDeque<PathBuf> = ALWAYS.iter().map(PathBuf::from).collect();
    // The command first: it is the one that counts.
    if let Some(command) = command(index, config) {
        queue.push_front(command);
    }
    while let Some(path) = queue.pop_front() {
        if seen.len() == MAX_FILES {
            break;
        }
        let Ok(metadata) = index.lookup(&path) else { continue };
        let is_file = metadata.mode & libc::S_IFMT == libc::S_IFREG;
        if !is_file || !seen.insert(metadata.inode) || bytes + metadata.size > MAX_BYTES {
            continue;
        }
        bytes += metadata.size;
        found.insert(metadata.inode);
        if metadata.mode & 0o111 == 0 && !is_library(&path) {
            continue;
        }
        let Ok(content) = index.read_file(&path, layers, MAX_FILE_BYTES) else { continue };
        queue.extend(interpreter_of_script(&content));
        if let Some(elf) = Elf::parse(&content) {
            queue.extend(elf.interpreter.map(|path| PathBuf::from(OsStr::from_bytes(path))));
            queue.extend(elf.needed.iter().filter_map(|name| library(index, name, elf.architecture)));
        }
    }
    found
}

fn is_library(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().windows(3).any(|part| part == b".so"))
}

/// The file that the image's own command executes.
fn command(index: &MergedIndex, config: &ImageConfiguration) -> Option<PathBuf> {
    let config = config.config().as_ref()?;
    let entry = config.entrypoint().iter().flatten().chain(config.cmd().iter().flatten()).next()?;
    if entry.contains('/') {
        return Some(Path::new("/").join(entry));
    }
    let path = config.env().iter().flatten().find_map(|entry| entry.strip_prefix("PATH="));
    let path = path.or(super::DEFAULT_PATH.strip_prefix("PATH="))?;
    let candidates = path.split(':').map(|dir| Path::new("/").join(dir).join(entry));
    candidates.into_iter().find(|path| index.lookup(path).is_ok())
}

/// The program of a `#!` line.
fn interpreter_of_script(content: &[u8]) -> Option<PathBuf> {
    let line = content.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    words.next().map(|word| PathBuf::from(OsStr::from_bytes(word)))
}

fn library(index: &MergedIndex, name: &[u8], architecture: &str) -> Option<PathBuf> {
    let name = OsStr::from_bytes(name);
    if name.as_bytes().contains(&b'/') {
        return Some(name.into());
    }
    let mut places = LIBRARY_DIRS.iter().map(|dir| Path::new(&dir.replace("{}", architecture)).join(name));
    places.find(|path| index.lookup(path).is_ok())
}

/// What of an ELF file says what it needs. Only 64-bit little-endian ones: all that hostel runs on.
#[derive(Debug, PartialEq, Eq)]
struct Elf<'a> {
    /// Debian's name of it, which is part of its library paths.
    architecture: &'static str,
    interpreter: Option<&'a [u8]>,
    needed: Vec<&'a [u8]>,
}

/// A run of bytes of the file, where it has them.
fn slice(file: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    file.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn number<const N: usize>(file: &[u8], offset: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(slice(file, offset, N as u64)?);
    Some(u64::from_le_bytes(bytes))
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

impl<'a> Elf<'a> {
    /// elf(5).
    fn parse(file: &'a [u8]) -> Option<Self> {
        const LOAD: u64 = 1;
        const DYNAMIC: u64 = 2;
        const INTERPRETER: u64 = 3;
        if !file.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let architecture = match number::<2>(file, 18)? {
            62 => "x86_64-linux-gnu",
            183 => "aarch64-linux-gnu",
            _ => return None,
        };
        let (table, size, count) = (number::<8>(file, 32)?, number::<2>(file, 54)?, number::<2>(file, 56)?);
        let mut elf = Self { architecture, interpreter: None, needed: Vec::new() };
        let mut segments = Vec::new();
        let mut dynamic = None;
        for index in 0..count.min(256) {
            let header = table.checked_add(index * size)?;
            let field = |place: u64| number::<8>(file, header.checked_add(place)?);
            let (offset, address, length) = (field(8)?, field(16)?, field(32)?);
            match number::<4>(file, header)? {
                LOAD => segments.push((offset, address, length)),
                DYNAMIC => dynamic = Some((offset, length)),
                INTERPRETER => elf.interpreter = Some(text(slice(file, offset, length)?)),
                _ => {}
            }
        }
        if let Some((offset, length)) = dynamic {
            elf.needed = needed(file, slice(file, offset, length)?, &segments).unwrap_or_default();
        }
        Some(elf)
    }
}

/// The names of `DT_NEEDED`, which are offsets into the table that `DT_STRTAB` gives by address.
fn needed<'a>(file: &'a [u8], dynamic: &[u8], segments: &[(u64, u64, u64)]) -> Option<Vec<&'a [u8]>> {
    const NEEDED: u64 = 1;
    const STRINGS: u64 = 5;
    let entries = dynamic.chunks_exact(16).map(|entry| (number::<8>(entry, 0), number::<8>(entry, 8)));
    let entries: Vec<_> = entries.map_while(|(tag, value)| Some((tag?, value?))).collect();
    let address = entries.iter().find(|(tag, _)| *tag == STRINGS)?.1;
    let strings = segments.iter().find_map(|(offset, start, length)| {
        let into = address.checked_sub(*start).filter(|into| into < length)?;
        file.get(usize::try_from(offset.checked_add(into)?).ok()?..)
    })?;
    let names = entries.iter().filter(|(tag, _)| *tag == NEEDED).take(MAX_FILES);
    Some(
        names
            .filter_map(|(_, offset)| Some(text(strings.get(usize::try_from(*offset).ok()?..)?)))
            .filter(|name| !name.is_empty())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use fuse_overlay::index::merge;
    use fuse_overlay::pack::{Limits, index_tar};

    use super::*;

    /// An ELF file with one segment that is the file, an interpreter and needed libraries.
    fn elf(interpreter: &str, needed: &[&str]) -> Vec<u8> {
        let mut file = vec![0; 64 + 3 * 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |place: usize, bytes: &[u8]| file[place..place + bytes.len()].copy_from_slice(bytes);
        put(18, &62_u16.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &3_u16.to_le_bytes());
        let strings_at = file.len() as u64;
        let mut names = vec![0];
        let mut dynamic = Vec::new();
        for name in needed {
            dynamic.extend([1_u64, names.len() as u64]);
            names.extend(name.bytes().chain([0]));
        }
        let interpreter_at = strings_at + names.len() as u64;
        names.extend(interpreter.bytes().chain([0]));
        let base = 0x40_0000;
        dynamic.extend([5, base + strings_at, 0, 0]);
        file.extend(names);
        let dynamic_at = file.len() as u64;
        file.extend(dynamic.iter().flat_map(|word| word.to_le_bytes()));
        let length = file.len() as u64;
        let headers = [
            (1_u32, 0, base, length),
            (2, dynamic_at, base + dynamic_at, length - dynamic_at),
            (3, interpreter_at, base + interpreter_at, dynamic_at - interpreter_at),
        ];
        for (index, (kind, offset, address, length)) in headers.into_iter().enumerate() {
            let place = 64 + index * 56;
            file[place..place + 4].copy_from_slice(&kind.to_le_bytes());
            for (at, value) in [(8, offset), (16, address), (32, length)] {
                file[place + at..place + at + 8].copy_from_slice(&u64::to_le_bytes(value));
            }
        }
        file
    }

    #[test]
    fn a_command_brings_its_interpreters_and_libraries() {
        let shell = elf("/lib64/ld.so", &["libc.so.6"]);
        let files: [(&str, u32, Vec<u8>); 8] = [
            ("usr/local/bin/serve", 0o755, b"#! /usr/bin/dash -e\nexec x\n".to_vec()),
            ("usr/bin/dash", 0o755, shell.clone()),
            ("usr/bin/other", 0o755, shell),
            ("lib64/ld.so", 0o755, elf("", &[])),
            ("usr/lib/x86_64-linux-gnu/libc.so.6", 0o644, elf("", &["libm.so.6"])),
            ("usr/lib/x86_64-linux-gnu/libm.so.6", 0o644, elf("", &["libc.so.6", "absent.so"])),
            ("usr/lib/x86_64-linux-gnu/libz.so.1", 0o644, elf("", &[])),
            ("etc/passwd", 0o644, b"root:x:0:0::/:".to_vec()),
        ];
        let mut builder = tar::Builder::new(Vec::new());
        for (path, mode, content) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(*mode);
            header.set_cksum();
            builder.append_data(&mut header, path, content.as_slice()).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let index =
            merge(&[index_tar(bytes.as_slice(), &Limits::default()).unwrap()]).unwrap().into_index().unwrap();
        let mut tar = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut tar, &bytes).unwrap();
        let json = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Entrypoint":["serve"],"Cmd":["other"],"Env":["PATH=/bin:/usr/local/bin"]}}"#;
        let config: ImageConfiguration = serde_json::from_str(json).unwrap();
        let found = find(&index, &[tar], &config);
        let hot = [0, 1, 3, 4, 5, 7].map(|number| index.lookup(Path::new(files[number].0)).unwrap().inode);
        assert_eq!(found, HashSet::from(hot));
    }

    #[test]
    fn damaged_programs_are_passed_over() {
        let good = elf("/lib/ld.so", &["liba.so", "libb.so"]);
        let parsed = Elf::parse(&good).unwrap();
        assert_eq!((parsed.interpreter, parsed.needed.len()), (Some(b"/lib/ld.so".as_slice()), 2));
        for place in 0..good.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[place] = value;
                let _ = Elf::parse(&bad);
            }
            let _ = Elf::parse(&good[..place]);
        }
    }
}
