//! Archives and layouts, good and bad, into a store and out again.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{Seek as _, Write as _};
use std::path::Path;

use fuse_overlay::index::MergedIndex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;

/// Files of an archive or a layout: name, content.
type Members = Vec<(String, Vec<u8>)>;
/// How a layer is compressed.
type Pack = fn(&[u8]) -> Vec<u8>;

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes).into())
}

/// A layer's tar of regular files.
fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let members: Vec<_> =
        files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
    archive(&members)
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config_of(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

fn host() -> String {
    Platform::host().architecture().to_string()
}

/// What `docker save` writes for one image.
fn docker_archive(layers: &[Vec<u8>], tags: &[&str]) -> Members {
    let config = config_of(layers, &host());
    let config_name = format!("{}.json", digest(&config).hex());
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    let mut members: Members = names.into_iter().zip(layers.iter().cloned()).collect();
    members.push((config_name, config));
    members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    members
}

/// An OCI layout of one image, its layers packed by `pack`.
fn layout(layers: &[Vec<u8>], architecture: &str, tag: Option<&str>, pack: Pack) -> Members {
    let mut members = Members::new();
    let mut add = |bytes: Vec<u8>, media_type: &str| -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        members.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        descriptor
    };
    let config = add(config_of(layers, architecture), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> =
        layers.iter().map(|layer| add(pack(layer), "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut descriptor = add(manifest.to_string().into_bytes(), "application/vnd.oci.image.manifest.v1+json");
    if let Some(tag) = tag {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    }
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    members.push(("index.json".to_owned(), index.to_string().into_bytes()));
    members.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    members
}

fn write_members(directory: &Path, members: &Members) {
    for (name, content) in members {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// A store in a temporary directory.
struct World {
    dir: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// Loads an archive as it is, and in another store compressed: that one is read as a stream.
    fn load(&self, bytes: &[u8]) -> Result<Vec<Added>> {
        let placed = self.load_once(bytes);
        let other = World::new();
        match (&placed, other.load_once(&gzip(bytes))) {
            (Ok(placed), Ok(streamed)) => assert_eq!(
                placed.iter().map(|added| (&added.id, names(added))).collect::<Vec<_>>(),
                streamed.iter().map(|added| (&added.id, names(added))).collect::<Vec<_>>()
            ),
            (Err(placed), Err(streamed)) => {
                let [placed, streamed] = [placed as &dyn std::error::Error, &streamed].map(chain);
                assert!(streamed.contains(&placed), "{placed} / {streamed}");
                other.assert_empty();
            }
            (placed, streamed) => unreachable!("{placed:?} / {streamed:?}"),
        }
        placed
    }

    fn load_once(&self, bytes: &[u8]) -> Result<Vec<Added>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        load(&self.store, file, Path::new("image.tar"), None)
    }

    fn load_members(&self, members: &Members) -> Result<Vec<Added>> {
        self.load(&archive(members))
    }

    fn resolve(&self, name: &str) -> Result<ResolvedImage> {
        resolve(&self.store, name, PullPolicy::Missing, None, &nothing_fetched)
    }

    /// Names in the store's directory.
    fn count(&self, name: &str) -> usize {
        fs::read_dir(self.store.root().join(name)).unwrap().count()
    }

    fn assert_empty(&self) {
        assert_eq!(self.store.catalog().unwrap(), Catalog::default());
        for directory in ["layers", "blobs/sha256", "merged", "tmp"] {
            assert_eq!(self.count(directory), 0, "{directory}");
        }
    }

    /// The content of a file of an image.
    fn read(&self, name: &str, path: &str) -> String {
        let (index, layers) = match self.resolve(name).unwrap().root {
            RootSource::Packed { index, layers } => (index, layers),
            other => unreachable!("{other:?}"),
        };
        let index = MergedIndex::open(&File::open(index).unwrap()).unwrap();
        let layers: Vec<File> = layers.iter().map(|layer| File::open(layer).unwrap()).collect();
        String::from_utf8(index.read_file(Path::new(path), &layers, 1000).unwrap()).unwrap()
    }
}

fn names(added: &Added) -> Vec<String> {
    added.names.iter().map(|(name, _)| name.familiar()).collect()
}

#[test]
fn a_docker_archive_is_loaded_and_found() {
    let world = World::new();
    let layers = [layer(&[("a", "lower"), ("b", "kept")]), layer(&[("a", "upper")])];
    let members = docker_archive(&layers, &["docker.io/team/app:1", "other"]);
    let added = world.load_members(&members).unwrap();
    assert_eq!(names(&added[0]), ["team/app:1", "other:latest"]);
    assert!(added[0].is_new);
    let id = added[0].id.clone();
    for name in ["team/app:1", "docker.io/team/app:1", "other", id.as_str(), id.hex(), id.short(), "sha256:"]
    {
        let found = find(&world.store.catalog().unwrap(), name);
        match name {
            "sha256:" => assert!(found.is_err()),
            _ => assert_eq!(found.unwrap(), id, "{name}"),
        }
    }
    assert_eq!(world.read("other", "/a"), "upper");
    assert_eq!(world.read("other", "/b"), "kept");
    let resolved = world.resolve("other").unwrap();
    assert_eq!(resolved.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["sh".to_owned()][..]));
    assert_eq!((resolved.name.as_str(), resolved.id), ("other", Some(id)));

    let again = world.load_members(&members).unwrap();
    assert!(!again[0].is_new);
    assert_eq!(world.count("layers"), 2);
    assert_eq!(world.count("tmp"), 0);
}

#[test]
fn a_layout_is_pulled_whatever_its_compression() {
    let packs: [Pack; 3] = [gzip, |bytes| zstd::encode_all(bytes, 1).unwrap(), <[u8]>::to_vec];
    for pack in packs {
        let world = World::new();
        let members = layout(&[layer(&[("a", "text")])], &host(), Some("v1"), pack);
        let directory = world.dir.path().join("Img");
        write_members(&directory, &members);
        let name = format!("oci:{}:v1", directory.display());
        assert_eq!(world.read(&name, "/a"), "text");
        assert_eq!(world.read("img:v1", "/a"), "text");
        let archive_path = world.dir.path().join("img.tar");
        fs::write(&archive_path, gzip(&archive(&members))).unwrap();
        let added = pull_source(
            &world.store,
            &Source::OciArchive { file: archive_path, tag: None },
            Choice::One,
            None,
        )
        .unwrap();
        assert!(!added[0].is_new);
        assert!(added[0].digest.is_some());
    }
}

#[test]
fn several_gzip_members_and_blobs_behind_symlinks_are_read() {
    let world = World::new();
    let members = layout(&[layer(&[("a", "text")])], &host(), None, |bytes| {
        let (head, tail) = bytes.split_at(700);
        [gzip(head), gzip(tail)].concat()
    });
    let (directory, blobs) = (world.dir.path().join("img"), world.dir.path().join("elsewhere"));
    write_members(&directory, &members);
    fs::rename(directory.join("blobs/sha256"), &blobs).unwrap();
    fs::create_dir(directory.join("blobs/sha256")).unwrap();
    for entry in fs::read_dir(&blobs).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), directory.join("blobs/sha256").join(entry.file_name()))
            .unwrap();
    }
    assert_eq!(world.read(&format!("oci:{}", directory.display()), "/a"), "text");
}

#[test]
fn a_multi_platform_index_gives_the_image_for_this_machine() {
    let world = World::new();
    let foreign = if host() == "arm64" { "riscv64" } else { "arm64" };
    let mut members = Members::new();
    let mut descriptors = Vec::new();
    for architecture in [foreign, &host()] {
        let mut one = layout(&[layer(&[("arch", architecture)])], architecture, None, gzip);
        let index: Value =
            serde_json::from_slice(&one.iter().find(|(name, _)| name == "index.json").unwrap().1).unwrap();
        let mut descriptor = index["manifests"][0].clone();
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptors.push(descriptor);
        one.retain(|(name, _)| name.starts_with("blobs/"));
        members.extend(one);
    }
    let foreign_only = json!({ "schemaVersion": 2, "manifests": [descriptors[0]] });
    let inner = json!({ "schemaVersion": 2, "manifests": descriptors }).to_string().into_bytes();
    let index = |inner: &[u8]| {
        let descriptor = json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(inner), "size": inner.len(),
            "annotations": { "org.opencontainers.image.ref.name": "reg.example/app:2" },
        });
        json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string().into_bytes()
    };
    members.push((format!("blobs/sha256/{}", digest(&inner).hex()), inner.clone()));
    members.push(("index.json".to_owned(), index(&inner)));
    assert_eq!(names(&world.load_members(&members).unwrap()[0]), ["reg.example/app:2"]);
    assert_eq!(world.read("reg.example/app:2", "/arch"), host());
    let asked: Platform = foreign.parse().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive(&members)).unwrap();
    file.rewind().unwrap();
    load(&world.store, file, Path::new("image.tar"), Some(&asked)).unwrap();
    let found = world.resolve("reg.example/app:2").unwrap();
    assert_eq!(foreign_platform(&found.config), Some(asked));

    let inner = foreign_only.to_string().into_bytes();
    members.push((format!("blobs/sha256/{}", digest(&inner).hex()), inner.clone()));
    members.push(("index.json".to_owned(), index(&inner)));
    assert!(matches!(world.load_members(&members), Err(ImageError::NoPlatform { .. })));
}

#[test]
fn an_image_for_another_machine_is_found_unless_another_is_asked_for() {
    let world = World::new();
    let foreign = if host() == "s390x" { "ppc64le" } else { "s390x" };
    let members = layout(&[layer(&[("a", "b")])], foreign, Some("x:1"), gzip);
    world.load_members(&members).unwrap();
    let found = world.resolve("x:1").unwrap();
    let platform = foreign_platform(&found.config).map(|platform| platform.to_string());
    assert_eq!(platform, Some(format!("linux/{foreign}")));
    let asked = |platform: &str, pull| {
        let platform = platform.parse().unwrap();
        resolve(&world.store, "x:1", pull, Some(&platform), &nothing_fetched)
    };
    assert_eq!(asked(foreign, PullPolicy::Missing).unwrap().id, found.id);
    let message = asked("linux/arm/v7", PullPolicy::Never).unwrap_err().to_string();
    let wanted =
        "image with reference x:1 was found but does not match the specified platform: wanted linux/arm/v7";
    assert_eq!(message, format!("{wanted}, actual: linux/{foreign}"));
    let message = asked("linux/arm/v7", PullPolicy::Missing).unwrap_err().to_string();
    assert_eq!(message, "No such image: fetched x:1, Missing");
}

#[test]
fn wrong_digests_are_named_and_nothing_stays() {
    let good = layer(&[("a", "text")]);
    let other = layer(&[("a", "evil")]);
    // The layer's file, then its content, is another than the config says.
    let mut swapped = docker_archive(std::slice::from_ref(&good), &["x"]);
    swapped[0].1.clone_from(&other);
    let mut packed = layout(std::slice::from_ref(&good), &host(), None, gzip);
    let place = packed.iter().position(|(name, _)| name.ends_with(digest(&gzip(&good)).hex())).unwrap();
    packed[place].1 = gzip(&other);
    let mut config = docker_archive(std::slice::from_ref(&good), &["x"]);
    config[1].1.push(b' ');
    for (members, wanted, found) in [
        (swapped, digest(&good), digest(&other)),
        (packed.clone(), digest(&gzip(&good)), digest(&gzip(&other))),
        (config.clone(), digest(&config_of(std::slice::from_ref(&good), &host())), digest(&config[1].1)),
    ] {
        let world = World::new();
        let error = world.load_members(&members).unwrap_err();
        let message = error.to_string();
        assert!(
            matches!(error, ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. }),
            "{message}"
        );
        if matches!(error, ImageError::DigestMismatch { .. }) {
            assert!(message.contains(wanted.as_str()) && message.contains(found.as_str()), "{message}");
        }
        world.assert_empty();
    }
}

#[test]
fn damaged_and_hostile_input_is_refused() {
    let good = layer(&[("a", "text")]);
    let base = || docker_archive(std::slice::from_ref(&good), &["x"]);
    let with = |name: &str, content: &[u8]| {
        let mut members = base();
        members.retain(|(known, _)| known != name);
        members.push((name.to_owned(), content.to_vec()));
        members
    };
    let without = |name: &str| {
        let mut members = base();
        members.retain(|(known, _)| known != name);
        members
    };
    let image = |layer: &[u8]| docker_archive(&[layer.to_vec()], &["x"]);
    let many = vec![good.clone(); 128];
    let parent = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..7].copy_from_slice(b"../evil");
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &[][..]).unwrap();
        builder.into_inner().unwrap()
    };
    let cases: Vec<(&str, Members, &str)> = vec![
        ("no manifest", without("manifest.json"), "holds no image"),
        ("manifest is not JSON", with("manifest.json", b"{"), "manifest.json in image.tar is not valid"),
        ("no images", with("manifest.json", b"[]"), "holds no image"),
        ("layer is missing", without("0/layer.tar"), "0/layer.tar is missing"),
        (
            "bad tag",
            with("manifest.json", br#"[{"Config":"c","RepoTags":["A B"],"Layers":[]}]"#),
            "c is missing",
        ),
        ("a path that leads out", image(&parent), "paths with \"..\" are refused"),
        ("a layer that is text", image(&[b'x'; 1024]), "no tar header"),
        ("a layer cut short", image(&good[..514]), "cut short"),
        ("lz4", image(b"\x04\x22\x4d\x18rest of it"), "compressed with lz4"),
        ("damaged xz", image(b"\xfd7zXZ\0rest of it"), "damaged or cut short"),
        ("too many layers", docker_archive(&many, &["x"]), "has 128 layers, more than the 127"),
        (
            "more diff ids than layers",
            {
                let mut members = base();
                let config = config_of(&[good.clone(), good.clone()], &host());
                let name = format!("{}.json", digest(&config).hex());
                let manifest = json!([{ "Config": name, "RepoTags": ["x"], "Layers": ["0/layer.tar"] }]);
                members.retain(|(known, _)| known != "manifest.json");
                members.push((name, config));
                members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
                members
            },
            "has 1 layers but its config 2",
        ),
    ];
    for (case, members, wanted) in cases {
        let world = World::new();
        let error = world.load_members(&members).unwrap_err();
        let message = chain(&error);
        assert!(message.contains(wanted), "{case}: {message}");
        world.assert_empty();
    }
    let world = World::new();
    let cut = gzip(&good);
    let members = layout(std::slice::from_ref(&good), &host(), None, |bytes| {
        let packed = gzip(bytes);
        packed[..packed.len() / 2].to_vec()
    });
    assert!(matches!(world.load_members(&members), Err(ImageError::LayerStream { .. })), "{}", cut.len());
    world.assert_empty();
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn a_layout_of_several_images_wants_a_tag() {
    let world = World::new();
    let mut descriptors = Vec::new();
    let mut members = Members::new();
    for tag in ["one", "two"] {
        let one = layout(&[layer(&[("tag", tag)])], &host(), Some(tag), gzip);
        let index: Value =
            serde_json::from_slice(&one.iter().find(|(name, _)| name == "index.json").unwrap().1).unwrap();
        descriptors.push(index["manifests"][0].clone());
        members.extend(one.into_iter().filter(|(name, _)| name != "index.json"));
    }
    let index = json!({ "schemaVersion": 2, "manifests": descriptors });
    members.push(("index.json".to_owned(), index.to_string().into_bytes()));
    let directory = world.dir.path().join("img");
    write_members(&directory, &members);
    let source =
        |tag: Option<&str>| Source::OciLayout { directory: directory.clone(), tag: tag.map(str::to_owned) };
    let message =
        |tag, choice| pull_source(&world.store, &source(tag), choice, None).unwrap_err().to_string();
    assert!(message(None, Choice::One).contains("name one of them"));
    assert!(message(Some("three"), Choice::One).contains("it has: one, two"));
    let all = pull_source(&world.store, &source(None), Choice::All, None).unwrap();
    assert_eq!(all.iter().flat_map(names).collect::<Vec<_>>(), ["img:one", "img:two"]);
}

/// Says what it was asked to fetch.
fn nothing_fetched(name: &str, reason: Reason) -> Result<Vec<Added>> {
    Err(ImageError::NotFound(format!("fetched {name}, {reason:?}")))
}

#[test]
fn unknown_images_are_told_in_dockers_words() {
    let world = World::new();
    let resolve = |name, policy| resolve(&world.store, name, policy, None, &nothing_fetched);
    let never = resolve("nope", PullPolicy::Never).unwrap_err().to_string();
    assert_eq!(never, "No such image: nope:latest");
    assert_eq!(world.resolve("nope").unwrap_err().to_string(), "No such image: fetched nope, Missing");
    assert!(matches!(world.resolve("A B"), Err(ImageError::Reference(_))));
    let always = resolve("x", PullPolicy::Always).unwrap_err().to_string();
    assert_eq!(always, "No such image: fetched x, Always");
    assert!(matches!(world.resolve("rootfs:/nope/nope"), Err(ImageError::Rootfs { .. })));
    assert!(matches!(world.resolve("oci:/nope/nope"), Err(ImageError::Read { .. })));
}

#[test]
fn directories_are_used_where_they_are() {
    let world = World::new();
    let name = format!("rootfs:{}", world.dir.path().display());
    let resolved = world.resolve(&name).unwrap();
    assert_eq!(resolved.root, RootSource::Directory { path: fs::canonicalize(world.dir.path()).unwrap() });
    assert_eq!(resolved.id, None);
    let host = world.resolve("host:/").unwrap();
    assert_eq!(host.root, RootSource::Host);
    assert_eq!(host.config.config().as_ref().unwrap().env().as_deref(), Some(&[DEFAULT_PATH.to_owned()][..]));
    world.assert_empty();
}

#[test]
fn removal_follows_dockers_rules() {
    let world = World::new();
    let added = world.load_members(&docker_archive(&[layer(&[("a", "b")])], &["x:1", "y:1"])).unwrap();
    let (id, chain) = (added[0].id.clone(), digest(&layer(&[("a", "b")])));
    let user = |is_running| [ContainerUse { container: "c0ffee".to_owned(), image: id.clone(), is_running }];
    let refused = |text: &str, force, uses: &[ContainerUse]| {
        remove(&world.store, text, force, uses).unwrap_err().to_string()
    };
    let short = id.short();
    assert_eq!(refused("nope", false, &[]), "No such image: nope:latest");
    assert_eq!(
        refused(short, false, &[]),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    let untagged = remove(&world.store, "x:1", false, &user(false)).unwrap();
    assert_eq!(
        untagged,
        Removal { image: Some(id.clone()), untagged: vec!["x:1".to_owned()], ..Removal::default() }
    );
    assert_eq!(
        refused("y:1", false, &user(false)),
        format!(
            "conflict: unable to remove repository reference \"y:1\" (must force) - container c0ffee is using its referenced image {short}"
        )
    );
    assert_eq!(
        refused(short, false, &user(false)),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is being used by stopped container c0ffee"
        )
    );
    assert_eq!(
        refused(short, true, &user(true)),
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by running container c0ffee"
        )
    );
    let forced = remove(&world.store, "y:1", true, &user(false)).unwrap();
    assert_eq!(
        forced,
        Removal {
            image: Some(id.clone()),
            untagged: vec!["y:1".to_owned()],
            deleted: vec![id.clone(), chain.clone()],
            gone: vec![id.clone()],
        }
    );

    world.load_members(&docker_archive(&[layer(&[("a", "b")])], &["x:1"])).unwrap();
    let removed = remove(&world.store, short, false, &[]).unwrap();
    assert_eq!(
        removed,
        Removal {
            image: Some(id.clone()),
            untagged: vec!["x:1".to_owned()],
            gone: vec![id.clone()],
            deleted: vec![id, chain],
        }
    );
    for directory in ["layers", "merged", "blobs/sha256", "tmp"] {
        assert_eq!(world.count(directory), 0, "{directory}");
    }
}

#[test]
fn a_new_image_takes_the_name_and_prune_takes_the_old_one() {
    let world = World::new();
    let base = layer(&[("base", "x")]);
    let old = world.load_members(&docker_archive(&[base.clone(), layer(&[("v", "1")])], &["x"])).unwrap();
    let new = world.load_members(&docker_archive(&[base, layer(&[("v", "2")])], &["x"])).unwrap();
    assert_eq!(new[0].names[0].1.as_ref(), Some(&old[0].id));
    assert_eq!(world.read("x", "/v"), "2");
    let kept = prune(&world.store, false, &[], |_, _| true).unwrap();
    assert_eq!(kept, Pruned::default());
    let pruned = prune(&world.store, false, &[], |_, _| false).unwrap();
    assert_eq!(pruned.removals.len(), 1);
    assert_eq!(pruned.removals[0].deleted.len(), 2, "the image and its own layer, not the shared one");
    assert!(pruned.reclaimed_bytes > 0);
    assert_eq!(world.read("x", "/base"), "x");
    let all = prune(&world.store, true, &[], |_, _| false).unwrap();
    assert_eq!(all.removals[0].untagged, ["x:latest"]);
    assert_eq!(world.count("layers"), 0);
}

#[test]
fn tags_are_given_and_moved() {
    let world = World::new();
    let added = world.load_members(&docker_archive(&[layer(&[("a", "b")])], &["x:1"])).unwrap();
    tag(&world.store, "x:1", "team/y").unwrap();
    tag(&world.store, added[0].id.short(), "team/y:2").unwrap();
    assert_eq!(world.resolve("team/y:latest").unwrap().id, world.resolve("team/y:2").unwrap().id);
    let message = |source: &str, target: &str| tag(&world.store, source, target).unwrap_err().to_string();
    assert_eq!(message("nope", "z"), "No such image: nope:latest");
    assert_eq!(
        message("x:1", "Z"),
        "invalid reference format: repository name (library/Z) must be lowercase"
    );
    assert_eq!(
        message("x:1", &format!("z@{}", added[0].id)),
        "refusing to create a tag with a digest reference"
    );
}

#[test]
fn what_is_saved_loads_again_byte_for_byte() {
    let world = World::new();
    let base = layer(&[("base", "x")]);
    world.load_members(&docker_archive(&[base.clone(), layer(&[("v", "1")])], &["x:1"])).unwrap();
    world.load_members(&docker_archive(&[base, layer(&[("v", "2")])], &["x:2", "y:2"])).unwrap();
    let path = world.dir.path().join("saved.tar");
    let save_to = |path: &Path| {
        let texts = ["x:1", "x:2", "y:2"].map(str::to_owned);
        let wanted = SaveWanted { texts: &texts, format: SaveFormat::default(), platform: None };
        save(&world.store, &wanted, &mut File::create(path).unwrap(), path).unwrap();
        fs::read(path).unwrap()
    };
    let bytes = save_to(&path);
    assert_eq!(save_to(&path), bytes);
    let other = World::new();
    let added = other.load(&bytes).unwrap();
    assert_eq!(added.iter().flat_map(names).collect::<Vec<_>>(), ["x:1", "x:2", "y:2"]);
    assert_eq!(other.read("x:2", "/v"), "2");
    assert_eq!(save_to(&path), bytes);
    let as_layout = pull_source(
        &World::new().store,
        &Source::OciArchive { file: path, tag: Some("1".to_owned()) },
        Choice::One,
        None,
    )
    .unwrap();
    assert_eq!(names(&as_layout[0]), ["x:1"]);
}

#[test]
fn two_loads_at_once_are_both_right() {
    let world = World::new();
    let members = docker_archive(&[layer(&[("a", "b")]), layer(&[("c", "d")])], &["x"]);
    let bytes = [archive(&members), gzip(&archive(&members))];
    thread::scope(|scope| {
        for number in 0..6 {
            let (world, bytes) = (&world, &bytes[number % 2]);
            scope.spawn(move || world.load_once(bytes).unwrap());
        }
    });
    assert_eq!(world.read("x", "/c"), "d");
    assert_eq!((world.count("layers"), world.count("tmp")), (2, 0));
}
