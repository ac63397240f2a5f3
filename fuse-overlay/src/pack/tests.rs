//! The traps of the tar format and of layers, one by one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Cursor;
use std::path::Path;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::{LayerIndex, Limits, PackError, index_tar};
use crate::index::{Base, MergeError, MergedIndex, ReadError, merge};

/// Archives are built by hand: a library would not write what these tests need.
#[derive(Clone, Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn header(mut self, header: &mut Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, kind: u8, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = header(kind, path, link);
        header.set_size(data.len() as u64);
        self.header(&mut header, data)
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path, "", data)
    }

    fn directory(self, path: &str) -> Self {
        self.entry(b'5', path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, b"")
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, b"")
    }

    fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length =
                (1..8).map(|digits| body + digits).find(|length| length.to_string().len() + body == *length);
            data.extend_from_slice(format!("{} {key}=", length.unwrap()).as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(kind, "PaxHeaders/x", "", &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn header(kind: u8, path: &str, link: &str) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::new(kind));
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header.set_size(0);
    header
}

fn index(archive: Archive) -> Result<LayerIndex, PackError> {
    index_tar(Cursor::new(archive.end()), &Limits::default())
}

/// The merged image of layers, with the means to read its files.
struct Image {
    merged: MergedIndex,
    layers: Vec<std::fs::File>,
}

impl Image {
    fn new(archives: Vec<Archive>) -> Self {
        Self::try_new(archives).unwrap()
    }

    fn try_new(archives: Vec<Archive>) -> Result<Self, MergeError> {
        let indexes: Vec<LayerIndex> =
            archives.iter().map(|archive| index(archive.clone()).unwrap()).collect();
        let merged = merge(&indexes)?.into_index().unwrap();
        // However many layers were merged before: the rest laid over them gives the same bytes.
        for below in 0..=indexes.len() {
            let (below, above) = indexes.split_at(below);
            // A link into a layer that is missing is one that the whole image may well have.
            let Ok(base) = merge(below) else { continue };
            let base = Base::of(&base.into_index().unwrap()).unwrap();
            let again = base.lay(&above.iter().collect::<Vec<_>>())?.into_index().unwrap();
            assert_eq!(again.image().bytes(), merged.image().bytes());
        }
        let layers = archives.into_iter().map(|archive| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &archive.end()).unwrap();
            file
        });
        Ok(Self { merged, layers: layers.collect() })
    }

    /// What is at a path: `-` nothing, `d` a directory, else the file's data.
    fn at(&self, path: &str) -> String {
        match self.merged.read_file(Path::new(path), &self.layers, 1 << 20) {
            Ok(data) => String::from_utf8_lossy(&data).into_owned(),
            Err(ReadError::NotFound { .. }) => "-".into(),
            Err(ReadError::NotAFile { .. }) => {
                match self.merged.lookup(Path::new(path)).unwrap().mode & libc::S_IFMT {
                    libc::S_IFDIR => "d".into(),
                    kind => format!("{kind:o}"),
                }
            }
            Err(error) => panic_with(&error),
        }
    }

    fn all(&self, paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| self.at(path)).collect()
    }
}

#[expect(clippy::panic, reason = "a test that cannot go on fails")]
fn panic_with(error: &dyn std::error::Error) -> String {
    panic!("{error}")
}

fn archive() -> Archive {
    Archive::default()
}

#[test]
fn the_last_of_several_entries_of_one_name_wins() {
    let image = Image::new(vec![
        archive()
            .file("a", b"1")
            .file("a", b"2")
            .directory("d/")
            .file("d/x", b"x")
            .directory("d/")
            .file("b", b"3")
            .symlink("b", "a"),
    ]);
    assert_eq!(image.all(&["a", "b", "d/x"]), ["2", "2", "x"]);
}

#[test]
fn a_directory_in_a_files_place_and_the_reverse() {
    let image = Image::new(vec![
        archive().file("a", b"1").directory("a/").file("a/x", b"x").file("b/y", b"y").file("b", b"2"),
    ]);
    assert_eq!(image.all(&["a/x", "b", "b/y"]), ["x", "2", "-"]);
}

#[test]
fn children_may_come_before_their_directory() {
    let mut late = header(b'5', "d/", "");
    late.set_mode(0o700);
    let image = Image::new(vec![archive().file("d/e/f", b"1").header(&mut late, b"")]);
    let mode = |path: &str| image.merged.lookup(Path::new(path)).unwrap().mode;
    assert_eq!((mode("d"), mode("d/e"), mode("/")), (0o40700, 0o40755, 0o40755));
}

#[test]
fn hard_links_share_a_node_wherever_they_stand() {
    let image = Image::new(vec![
        archive()
            .link("early", "a")
            .file("a", b"1")
            .link("late", "a")
            .link("chain1", "chain2")
            .link("chain2", "late")
            .link("./dots", "./x/../a".replace("x/../", "").as_str()),
        archive().link("upper", "a").link("upper2", "upper").file("a", b"2"),
    ]);
    assert_eq!(image.all(&["early", "late", "chain1", "chain2", "dots"]), ["1"; 5]);
    // A later entry of the link's own layer comes before the lower layers' file.
    assert_eq!(image.all(&["upper", "upper2", "a"]), ["2"; 3]);
    let node = |path: &str| image.merged.lookup(Path::new(path)).unwrap();
    assert_eq!((node("early").inode, node("early").nlink), (node("chain1").inode, 5));
    assert_eq!((node("upper").inode, node("upper").nlink), (node("a").inode, 3));
}

#[test]
fn a_hard_link_may_lead_to_a_lower_layer() {
    let image = Image::new(vec![archive().file("a", b"1"), archive().link("b", "/a").link("c", "b")]);
    assert_eq!(image.all(&["a", "b", "c"]), ["1"; 3]);
    assert_eq!(image.merged.lookup(Path::new("a")).unwrap().nlink, 3);
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    for upper in [
        archive().link("b", "missing"),
        archive().link("b", "b"),
        archive().link("b", "c").link("c", "b"),
        archive().file(".wh.a", b"").link("b", "a"),
        archive().link("b", "d"),
    ] {
        let outcome = Image::try_new(vec![archive().file("a", b"1").directory("d"), upper]);
        assert!(matches!(outcome, Err(MergeError::LinkTarget { layer: 1, .. })));
    }
}

#[test]
fn a_link_to_itself_keeps_the_lower_file() {
    let image = Image::new(vec![archive().file("a", b"1"), archive().link("a", "a")]);
    assert_eq!(image.at("a"), "1");
}

#[test]
fn whiteouts_act_on_lower_layers_only() {
    let lower = archive().file("a", b"1").file("d/x", b"1").file("d/y", b"1").file("e/z", b"1");
    let image = Image::new(vec![
        lower.clone(),
        archive()
            .file("a", b"2")
            .file(".wh.a", b"")
            .file("d/y", b"2")
            .file("d/.wh..wh..opq", b"")
            .file(".wh.e", b"")
            .file("e/new", b"2"),
    ]);
    assert_eq!(image.all(&["a", "d/x", "d/y", "e/z", "e/new"]), ["2", "-", "2", "-", "2"]);
    let gone = Image::new(vec![lower, archive().file(".wh.d", b"").file(".wh.a", b"").file(".wh.none", b"")]);
    assert_eq!(gone.all(&["a", "d", "e/z"]), ["-", "-", "1"]);
}

#[test]
fn a_whiteout_below_nothing_makes_nothing() {
    let image = Image::new(vec![
        archive().symlink("l", "t").file("t/x", b"1"),
        archive().file("m/n/.wh.x", b"").file("l/.wh.x", b""),
    ]);
    assert_eq!(image.all(&["m", "l/x", "t/x"]), ["-", "1", "1"]);
}

#[test]
fn a_whiteout_at_the_root_hides_only_there() {
    let image = Image::new(vec![archive().file("x", b"1").file("d/x", b"1"), archive().file(".wh.x", b"")]);
    assert_eq!(image.all(&["x", "d/x"]), ["-", "1"]);
}

#[test]
fn names_reserved_by_old_engines_are_passed_over() {
    let image =
        Image::new(vec![archive().file(".wh..wh.plnk/1", b"").file(".wh..wh.aufs", b"").file("a", b"1")]);
    assert_eq!(image.merged.entry_count(), 2, "the root and a");
}

#[test]
fn an_upper_directory_keeps_and_replaces() {
    let mut new = header(b'5', "d", "");
    new.set_mode(0o711);
    let image = Image::new(vec![
        archive().file("d/x", b"1").symlink("l", "d").file("f", b"1"),
        archive().header(&mut new, b"").file("l/y", b"2").file("f/z", b"2"),
    ]);
    assert_eq!(image.all(&["d/x", "l/y", "d/y", "f/z"]), ["1", "2", "-", "2"]);
    assert_eq!(image.merged.lookup(Path::new("d")).unwrap().mode, 0o40711);
    // Named only as part of a path, a directory keeps what the lower layer says about it.
    let mut strict = header(b'5', "d", "");
    strict.set_mode(0o700);
    let kept = Image::new(vec![archive().header(&mut strict, b""), archive().file("d/x", b"")]);
    assert_eq!(kept.merged.lookup(Path::new("d")).unwrap().mode, 0o40700);
}

#[test]
fn what_is_refused() {
    let nul = archive().pax(b'x', &[("path", b"a\0b")]).file("x", b"");
    let long = "n".repeat(256);
    let deep = "d/".repeat(2050);
    type Expected = fn(&PackError) -> bool;
    let cases: Vec<(Archive, Expected)> = vec![
        (archive().file("a/../b", b""), |e| matches!(e, PackError::ParentPath { .. })),
        (archive().file("..", b""), |e| matches!(e, PackError::ParentPath { .. })),
        (archive().link("a", "../b"), |e| matches!(e, PackError::ParentPath { .. })),
        (archive().symlink("l", "/").file("l/x", b""), |e| matches!(e, PackError::BelowSymlink { .. })),
        (archive().symlink("l", "/").file("l/x/y", b""), |e| matches!(e, PackError::BelowSymlink { .. })),
        (archive().file("f", b"").file("f/x", b""), |e| matches!(e, PackError::BelowFile { .. })),
        (archive().directory("d").link("l", "d"), |e| matches!(e, PackError::LinkToDirectory { .. })),
        (archive().link("l", "d").directory("d"), |e| matches!(e, PackError::LinkToDirectory { .. })),
        (archive().file("/", b""), |e| matches!(e, PackError::Name { .. })),
        (archive().file(".wh.", b""), |e| matches!(e, PackError::Name { .. })),
        (archive().file(".wh..", b""), |e| matches!(e, PackError::Name { .. })),
        (archive().link("a", ""), |e| matches!(e, PackError::Name { .. })),
        (nul, |e| matches!(e, PackError::Name { .. })),
        (archive().symlink("a", ""), |e| matches!(e, PackError::Field { field: "link target", .. })),
        (archive().entry(b'M', "a", "", b""), |e| matches!(e, PackError::Kind { kind: 'M', .. })),
        (archive().pax(b'x', &[("path", long.as_bytes())]).file("x", b""), |e| {
            matches!(e, PackError::Limit { limit: 255, .. })
        }),
        (archive().pax(b'x', &[("path", deep.as_bytes())]).file("x", b""), |e| {
            matches!(e, PackError::Limit { limit: 4096, .. })
        }),
        (archive().pax(b'x', &[("size", b"-1")]).file("x", b""), |e| {
            matches!(e, PackError::Field { field: "size", .. })
        }),
        (archive().pax(b'x', &[("uid", b"4294967295")]).file("x", b""), |e| {
            matches!(e, PackError::Field { field: "uid", .. })
        }),
        (archive().pax(b'x', &[("mtime", b"soon")]).file("x", b""), |e| {
            matches!(e, PackError::Field { field: "mtime", .. })
        }),
        (archive().pax(b'x', &[("SCHILY.xattr.user.a", &[b'x'; 65537])]).file("x", b""), |e| {
            matches!(e, PackError::Field { .. })
        }),
        (archive().pax(b'x', &[("comment", &vec![b'x'; 1 << 20])]).file("x", b""), |e| {
            matches!(e, PackError::Limit { .. })
        }),
        (archive().pax(b'x', &[("size", b"99999999999999999")]).file("x", b""), |e| {
            matches!(e, PackError::Limit { .. })
        }),
    ];
    for (number, (archive, expected)) in cases.into_iter().enumerate() {
        let error = index(archive).err();
        assert!(error.as_ref().is_some_and(expected), "case {number}: {error:?}");
    }
}

#[test]
fn streams_that_end_early_or_are_no_tar() {
    let whole = archive().file("a", &[1; 700]).0;
    let truncated = |length: usize| index_tar(&whole[..length], &Limits::default());
    for length in [1, 511, 513, 1024, 1211] {
        assert!(matches!(truncated(length), Err(PackError::Truncated { .. })), "{length}");
    }
    // Without a marker, after a whole entry, with or without its padding.
    for length in [0, 1212, 1535, 1536] {
        assert!(truncated(length).is_ok(), "{length}");
    }
    assert!(matches!(index_tar(&[b'x'; 512][..], &Limits::default()), Err(PackError::Header { .. })));
    let lone = [archive().file("a", b"").0, vec![0; 512], archive().file("b", b"").0].concat();
    assert!(matches!(index_tar(&lone[..], &Limits::default()), Err(PackError::Header { .. })));
    // Extensions that belong to no entry.
    let dangling = archive().pax(b'x', &[("path", b"a")]).end();
    assert!(matches!(index_tar(&dangling[..], &Limits::default()), Err(PackError::Truncated { .. })));
}

#[test]
fn what_follows_the_marker_is_left_to_the_caller() {
    let mut bytes = archive().file("a", b"1").end();
    bytes.extend_from_slice(b"trailing");
    let mut cursor = Cursor::new(bytes.as_slice());
    index_tar(&mut cursor, &Limits::default()).unwrap();
    assert_eq!(bytes[cursor.position() as usize..], *b"trailing");
}

#[test]
fn absolute_names_and_dots_are_normalised() {
    let image = Image::new(vec![archive().file("/abs", b"1").file("././/dot", b"2").file("x//y/./z", b"3")]);
    assert_eq!(image.all(&["abs", "dot", "x/y/z"]), ["1", "2", "3"]);
}

#[test]
fn long_names_of_every_kind() {
    let name = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let gnu =
        archive().entry(b'L', "././@LongLink", "", format!("{name}\0").as_bytes()).file("short", b"gnu");
    assert_eq!(Image::new(vec![gnu]).at(&name), "gnu");
    let pax = archive().pax(b'x', &[("path", name.as_bytes())]).file("short", b"pax");
    assert_eq!(Image::new(vec![pax]).at(&name), "pax");
    let target = "t".repeat(300);
    let link = archive()
        .pax(b'x', &[("linkpath", target.as_bytes())])
        .symlink("l", "short")
        .entry(b'K', "././@LongLink", "", target.as_bytes())
        .symlink("m", "short");
    let merged = Image::new(vec![link]).merged;
    let size = |path: &str| {
        merged
            .image()
            .node(merged.image().lookup(&merged.image().node(1).unwrap(), path.as_bytes()).unwrap().unwrap())
            .unwrap()
            .size
    };
    assert_eq!((size("l"), size("m")), (300, 300));
    let mut ustar = header(b'0', "f", "");
    ustar.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"p/q");
    assert_eq!(Image::new(vec![archive().header(&mut ustar, b"")]).at("p/q/f"), "");
}

#[test]
fn pax_headers_override_and_global_ones_last() {
    let image = Image::new(vec![
        archive()
            .pax(b'g', &[("uid", b"1000"), ("mtime", b"5.5"), ("comment", b"abc")])
            .file("a", b"1")
            .pax(b'x', &[("uid", b"3000000000"), ("mtime", b"-1.25")])
            .file("b", b"2")
            .file("c", b"3")
            .pax(b'x', &[("uid", b"")])
            .file("d", b"4")
            .pax(b'g', &[("uid", b"")])
            .file("e", b"5"),
    ]);
    let stat = |path: &str| {
        let node = image.merged.lookup(Path::new(path)).unwrap();
        (node.uid, node.mtime.seconds, node.mtime.nanoseconds)
    };
    assert_eq!(stat("a"), (1000, 5, 500_000_000));
    assert_eq!(stat("b"), (3_000_000_000, -2, 750_000_000));
    assert_eq!(stat("c"), (1000, 5, 500_000_000));
    assert_eq!(stat("d"), (0, 5, 500_000_000));
    assert_eq!(stat("e"), (0, 5, 500_000_000));
}

#[test]
fn binary_numbers_and_sizes_of_nothing() {
    let mut large = header(b'0', "a", "");
    large.as_old_mut().uid = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff];
    large.as_old_mut().mtime = [0xff; 12];
    // Links have no data, whatever their size field says.
    let mut link = header(b'1', "b", "a");
    link.set_size(5000);
    let image = Image::new(vec![archive().header(&mut large, b"").header(&mut link, b"").file("c", b"3")]);
    let node = image.merged.lookup(Path::new("b")).unwrap();
    assert_eq!((node.uid, node.mtime.seconds, image.at("c")), (0x7fff_ffff, -1, "3".into()));
}

#[test]
fn xattrs_of_both_families() {
    let value: &[u8] = b"a=\n\0b";
    let archive = archive()
        .pax(
            b'x',
            &[
                ("SCHILY.xattr.user.two", value),
                ("SCHILY.xattr.user.one=1", b""),
                ("LIBARCHIVE.xattr.user.three%3d", b"AQID"),
            ],
        )
        .file("a", b"1")
        .file("b", b"2");
    // The key ends at the first equals sign: "user.one" has the value "1=".
    let image = Image::new(vec![archive]).merged;
    let xattrs = |path: &str| {
        let image = image.image();
        let id = image.lookup(&image.node(1).unwrap(), path.as_bytes()).unwrap().unwrap();
        let node = image.node(id).unwrap();
        (0..node.xattr_count)
            .map(|at| image.xattr(&node, at).map(|(name, value)| (name.to_vec(), value.to_vec())).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        xattrs("a"),
        [
            (b"user.one".to_vec(), b"1=".to_vec()),
            (b"user.three=".to_vec(), vec![1, 2, 3]),
            (b"user.two".to_vec(), value.to_vec()),
        ]
    );
    assert_eq!(xattrs("b"), []);
}

#[test]
fn special_files() {
    let device = |kind, path: &str, major, minor| {
        let mut header = header(kind, path, "");
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header
    };
    let image = Image::new(vec![
        archive()
            .header(&mut device(b'3', "null", 1, 3), b"")
            .header(&mut device(b'4', "disk", 259, 70000), b"")
            .entry(b'6', "fifo", "", b"")
            .entry(b'7', "contiguous", "", b"7")
            .entry(b'V', "label", "", b""),
    ]);
    let root = image.merged.image().node(1).unwrap();
    let node = |name: &str| {
        let id = image.merged.image().lookup(&root, name.as_bytes()).unwrap().unwrap();
        image.merged.image().node(id).unwrap()
    };
    assert_eq!((node("null").mode & libc::S_IFMT, node("null").rdev), (libc::S_IFCHR, 0x103));
    assert_eq!(
        (node("disk").mode & libc::S_IFMT, node("disk").rdev),
        (libc::S_IFBLK, 70000 & 0xff | 259 << 8 | (70000 & !0xff) << 12)
    );
    assert_eq!(node("fifo").mode & libc::S_IFMT, libc::S_IFIFO);
    assert_eq!(image.all(&["contiguous", "label"]), ["7", "-"]);
    let mut too_large = device(b'3', "x", 4096, 0);
    assert!(matches!(index(archive().header(&mut too_large, b"")), Err(PackError::Field { .. })));
}

/// A file "..hello.....world" where dots are holes, in each of the four ways.
#[test]
fn sparse_files_of_every_version() {
    let expected = "\0\0hello\0\0\0\0\0world\0";
    let data = b"helloworld";
    let mut old = header(b'S', "old", "");
    {
        let mut gnu = Header::new_gnu();
        gnu.as_mut_bytes()[..257].copy_from_slice(&old.as_bytes()[..257]);
        let fields = gnu.as_gnu_mut().unwrap();
        fields.set_real_size(18);
        fields.sparse[0].set_offset(2);
        fields.sparse[0].set_length(5);
        fields.set_is_extended(true);
        gnu.set_size(10);
        old = gnu;
    }
    let mut extension = tar::GnuExtSparseHeader::new();
    extension.sparse_mut()[0].set_offset(12);
    extension.sparse_mut()[0].set_length(5);
    extension.sparse_mut()[1].set_offset(18);
    extension.sparse_mut()[1].set_length(0);
    let mut body = extension.as_bytes().to_vec();
    body.extend_from_slice(data);
    let v0 = [
        ("GNU.sparse.size", &b"18"[..]),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"2"),
        ("GNU.sparse.numbytes", b"5"),
        ("GNU.sparse.offset", b"12"),
        ("GNU.sparse.numbytes", b"5"),
    ];
    let v01 = [("GNU.sparse.size", &b"18"[..]), ("GNU.sparse.map", b"2,5,12,5"), ("GNU.sparse.name", b"v01")];
    let v1 = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"v1"),
        ("GNU.sparse.realsize", b"18"),
    ];
    let mut mapped = b"3\n2\n5\n12\n5\n18\n0\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(data);
    let image = Image::new(vec![
        archive()
            .header(&mut old, &body)
            .pax(b'x', &v0)
            .file("v0", data)
            .pax(b'x', &v01)
            .file("GNUSparseFile.0/v01", data)
            .pax(b'x', &v1)
            .file("GNUSparseFile.0/v1", &mapped)
            .file("after", b"fine"),
    ]);
    assert_eq!(image.all(&["old", "v0", "v01", "v1"]), [expected; 4]);
    assert_eq!(image.at("after"), "fine");
}

#[test]
fn sparse_maps_that_lie() {
    let v0 = |map: &'static [u8], size: &'static [u8]| {
        archive().pax(b'x', &[("GNU.sparse.size", size), ("GNU.sparse.map", map)]).file("a", b"0123456789")
    };
    for (map, size) in [
        (&b"0,11"[..], &b"20"[..]), // more than is stored
        (b"15,6", b"20"),           // beyond the end
        (b"5,5,0,5", b"20"),        // out of order
        (b"0,6,5,4", b"20"),        // overlapping
        (b"0", b"20"),              // half a run
        (b"18446744073709551615,1", b"20"),
        (b"x,1", b"20"),
    ] {
        assert!(matches!(index(v0(map, size)), Err(PackError::Field { .. })), "{map:?}");
    }
    let v1 = |map: &[u8]| {
        let records =
            [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"18")];
        let mut body = map.to_vec();
        body.resize(512, 0);
        archive().pax(b'x', &records).file("a", &body)
    };
    for map in [&b"99999999\n"[..], b"2\n1\n1\n", b"x\n", b"", b"111111111111111111111111\n"] {
        assert!(index(v1(map)).is_err(), "{map:?}");
    }
}

#[test]
fn names_need_not_be_text() {
    let mut odd = header(b'0', "x", "");
    odd.as_old_mut().name[..3].copy_from_slice(b"\xff\xfe\n");
    let merged = Image::new(vec![archive().header(&mut odd, b"")]).merged;
    use std::os::unix::ffi::OsStrExt;
    assert!(merged.lookup(Path::new(std::ffi::OsStr::from_bytes(b"\xff\xfe\n"))).is_ok());
}

#[test]
fn symlinks_stay_inside_the_image() {
    let image = Image::new(vec![
        archive()
            .file("etc/passwd", b"inside")
            .symlink("abs", "/etc/passwd")
            .symlink("up", "../../../etc/passwd")
            .symlink("d", "etc")
            .symlink("loop", "loop"),
    ]);
    assert_eq!(
        image.all(&["abs", "up", "d/passwd", "d/../etc/./passwd", "etc/passwd/x"]),
        ["inside", "inside", "inside", "inside", "-"]
    );
    assert!(matches!(image.merged.lookup(Path::new("loop")), Err(ReadError::SymlinkLoop { .. })));
    let small = image.merged.read_file(Path::new("abs"), &image.layers, 3);
    assert!(matches!(small, Err(ReadError::TooLarge { size: 6, limit: 3, .. })));
}

#[test]
fn indexes_survive_their_files_and_damage_is_found() {
    use crate::index::IndexError;
    let layer = index(archive().file("a", b"1").file("d/.wh.x", b"").link("l", "elsewhere")).unwrap();
    let mut bytes = Vec::new();
    layer.write_to(&mut bytes).unwrap();
    let open = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        LayerIndex::open(&file)
    };
    assert_eq!(open(&bytes).unwrap().entry_count(), layer.entry_count());
    assert!(matches!(open(&bytes[..100]), Err(IndexError::Truncated)));
    assert!(matches!(open(&bytes[..bytes.len() - 1]), Err(IndexError::Truncated)));
    assert!(matches!(open(b"something else"), Err(IndexError::NotAnIndex)));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(open(&damaged).is_err(), "byte {at}");
    }
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    assert!(matches!(MergedIndex::open(&file), Err(IndexError::OtherKind)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Any bytes give an index or an error.
    #[test]
    fn hostile_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = archive()
            .pax(b'x', &[("path", b"long/path"), ("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"3")])
            .file("a", b"123")
            .link("b", "a")
            .symlink("c", "b")
            .directory("d")
            .file("d/.wh.e", b"")
            .end();
        for (at, value) in flips {
            // The header checksum would stop nearly every change: it is set right again.
            let at = at.index(bytes.len());
            bytes[at] = value;
            let block = at / 512 * 512;
            let mut header = Header::from_byte_slice(&bytes[block..block + 512]).clone();
            header.set_cksum();
            bytes[block..block + 512].copy_from_slice(header.as_bytes());
        }
        if let Ok(layer) = index_tar(bytes.as_slice(), &Limits::default()) {
            let _ = merge(&[layer]);
        }
    }

    /// A damaged body gives wrong answers or errors, never a panic.
    #[test]
    fn damaged_indexes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let layer = index(archive().file("a/b", b"1").link("c", "a/b").symlink("l", "c").pax(b'x', &[("SCHILY.xattr.user.a", b"1")]).file("d", b"2")).unwrap();
        let mut bytes = Vec::new();
        layer.write_to(&mut bytes).unwrap();
        for (at, value) in flips {
            let at = 128 + at.index(bytes.len() - 128);
            bytes[at] = value;
        }
        if let Ok(image) = crate::index::Image::from_vec(bytes, crate::index::Kind::Layer) {
            let _ = merge(&[LayerIndex { image }]);
        }
    }
}
