//! The filesystem on the real kernel, as an ordinary user sees it.
//!
//! A test describes a mount and names a scenario. Three processes run it: the test; a server,
//! which is this binary again, outside the namespaces; and the scenario, this binary once more,
//! inside a user and mount namespace with the filesystem mounted. Which one a process is says the
//! environment; see [`role`]. Where /dev/fuse or user namespaces are closed, tests are skipped
//! with a message.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::panic, reason = "a test that cannot go on fails")]

mod features;
mod harness;
mod random;
mod scenarios;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use fuse_overlay::serve::Quota;
use harness::{Lower, Mount, Write};

/// Not a test: where the other processes of a test begin.
#[test]
fn role() {
    harness::role();
}

fn layers(directory: &Path) -> Vec<PathBuf> {
    let layers = tree::layers();
    let paths = layers.iter().enumerate().map(|(number, bytes)| {
        let path = directory.join(format!("layer{number}.tar"));
        fs::write(&path, bytes).unwrap();
        path
    });
    paths.collect()
}

/// Runs scenarios one after the other on one upper, each with a server of its own.
fn run(write: fn(&Path) -> Write, scenarios: &[&str]) {
    let place = tempfile::tempdir().unwrap();
    let lower = Lower::Layers(layers(place.path()));
    for scenario in scenarios {
        let mount = Mount { lower: lower.clone(), write: write(place.path()), place: place.path().into() };
        mount.run(scenario);
    }
}

fn pure(place: &Path) -> Write {
    Write::Pure(place.join("upper"))
}

fn hybrid(place: &Path) -> Write {
    Write::Hybrid(place.join("upper"))
}

#[test]
fn read_only() {
    run(|_| Write::No, &["sees_the_merged_tree", "refuses_writes", "lists_and_seeks"]);
}

#[test]
fn hybrid_reads_writes_and_executes() {
    run(hybrid, &["sees_the_merged_tree", "executes", "ordinary_changes", "ordinary_changes_are_kept"]);
}

#[test]
fn pure_sees_the_merged_tree() {
    run(pure, &["sees_the_merged_tree", "lists_and_seeks", "executes"]);
}

#[test]
fn pure_keeps_ordinary_changes() {
    run(pure, &["ordinary_changes", "ordinary_changes_are_kept"]);
}

#[test]
fn pure_names() {
    run(pure, &["renames", "renames_are_kept", "directories", "long_names"]);
}

#[test]
fn pure_links() {
    run(pure, &["hard_links_stay_together", "hard_links_are_kept"]);
}

#[test]
fn pure_data() {
    run(pure, &["data", "open_files_outlive_their_names", "shared_mappings", "locks"]);
}

#[test]
fn pure_modern_calls() {
    run(pure, &["unnamed_files", "unnamed_files_are_kept", "allocation_modes", "whiteouts", "deep_paths"]);
}

#[test]
fn pure_acls() {
    run(pure, &["acls", "acls_are_kept", "names_of_its_own"]);
}

/// The same limits in two sessions: what was written in the first counts in the second.
#[test]
fn quota() {
    let limited = |place: &Path| Write::Limited {
        upper: place.join("upper"),
        quota: Quota { bytes: Some(4 << 20), inodes: Some(100) },
    };
    run(limited, &["quota_bytes", "quota_is_kept", "quota_inodes"]);
}

#[test]
fn pure_attributes() {
    run(pure, &["attributes", "attributes_are_kept", "privileged_bits", "xattrs", "xattrs_are_kept"]);
}

#[test]
fn pure_listings_survive_removals() {
    run(pure, &["large_directory"]);
}

#[test]
fn pure_random_operations() {
    for seed in 1..=4 {
        run(pure, &[&format!("random {seed} 1500"), &format!("random {} 700", seed + 100), "compare"]);
    }
}

#[test]
fn hybrid_random_operations() {
    for seed in 41..=42 {
        let random = |seed| format!("random_beside_a_directory {seed} 1000");
        run(|place| Write::Hybrid(place.join("upper")), &[&random(seed), &random(seed + 100)]);
    }
}

/// A directory of 100,000 entries, most of them the image's.
#[test]
fn pure_huge_directory() {
    let place = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..scenarios::HUGE_LOWER {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("huge/lower{number:06}")).unwrap();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
    }
    let layer = place.path().join("layer.tar");
    fs::write(&layer, tar.into_inner().unwrap()).unwrap();
    let write = pure(place.path());
    let mount = Mount { lower: Lower::Layers(vec![layer]), write, place: place.path().into() };
    mount.run("huge_directory");
}

#[test]
fn pure_survives_a_killed_server() {
    for seed in 11..=13 {
        run(pure, &[&format!("random_then_kill {seed} 400"), "compare", &format!("random {seed} 200")]);
    }
}

#[test]
fn volatile_differs_in_nothing_else() {
    run(|place| Write::Volatile(place.join("upper")), &["random 21 800", "compare"]);
}

/// A directory of the machine, with everything in it that the layers have.
fn directory(place: &Path) -> PathBuf {
    let root = place.join("lower");
    fs::create_dir(&root).unwrap();
    tree::create(&root);
    root
}

#[test]
fn directory_read_only_follows_changes_underneath() {
    let place = tempfile::tempdir().unwrap();
    let root = directory(place.path());
    let lower =
        Lower::Directory { root, hide: vec!["d/hidden".into()], expose: vec!["d/hidden/shown".into()] };
    let mount = Mount { lower, write: Write::No, place: place.path().into() };
    mount.run("directory_rules");
    mount.run("directory_changes_underneath");
}

#[test]
fn directory_pure_random_operations() {
    for seed in 31..=32 {
        let place = tempfile::tempdir().unwrap();
        let root = directory(place.path());
        let before = tree::snapshot(&root, &[]);
        let lower = Lower::Directory { root: root.clone(), hide: vec![], expose: vec![] };
        let mount = Mount { lower, write: pure(place.path()), place: place.path().into() };
        mount.run(&format!("random {seed} 800"));
        mount.run(&format!("random {} 400", seed + 100));
        mount.run("compare");
        assert_eq!(tree::snapshot(&root, &[]), before, "the lower directory has been written to");
    }
}

#[test]
fn an_upper_belongs_to_one_server_and_one_lower() {
    use fuse_overlay::serve::{ServeError, UpperError};
    let place = tempfile::tempdir().unwrap();
    let both = layers(place.path());
    let upper = place.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let open =
        |layers: &[PathBuf]| harness::server(&Lower::Layers(layers.to_vec()), &Write::Pure(upper.clone()));
    let first = open(&both).unwrap();
    assert!(matches!(open(&both), Err(ServeError::Upper(UpperError::InUse))));
    drop(first);
    assert!(matches!(open(&both[..1]), Err(ServeError::Upper(UpperError::OtherLower))));
    fs::write(upper.join("journal"), "something of somebody else's, longer than a header").unwrap();
    assert!(matches!(open(&both), Err(ServeError::Upper(UpperError::NotAnUpper))));
}

/// At each place between two steps the server is killed; the next one finds an upper that works,
/// with everything that was synced, each change whole or absent, and nothing left over.
#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features hostel-fuse-overlay/fault-points")]
fn pure_survives_a_kill_at_each_step() {
    const POINTS: [&str; 9] = [
        "RecordHalf",
        "RecordWritten",
        "ObjectCreated",
        "ObjectFilled",
        "ObjectCommitted",
        "InodeDropped",
        "RewriteBegun",
        "RewriteFilled",
        "RewriteRenamed",
    ];
    for point in POINTS {
        let place = tempfile::tempdir().unwrap();
        let lower = Lower::Layers(layers(place.path()));
        let mount = Mount { lower: lower.clone(), write: pure(place.path()), place: place.path().into() };
        if !mount.run_with_fault("changes_until_killed", point) {
            return;
        }
        let upper = place.path().join("upper");
        drop(harness::server(&lower, &pure(place.path())).unwrap());
        let names: Vec<_> = fs::read_dir(&upper).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{point}: {names:?}");
        mount.run("whole_or_absent");
    }
}

/// Whatever was being written when the machine stopped, the upper opens again.
#[test]
fn a_journal_may_end_anywhere() {
    let place = tempfile::tempdir().unwrap();
    let lower = Lower::Layers(layers(place.path()));
    let write = pure(place.path());
    let mount = Mount { lower: lower.clone(), write: write.clone(), place: place.path().into() };
    if !mount.run("ordinary_changes") {
        return;
    }
    let path = place.path().join("upper/journal");
    let whole = fs::read(&path).unwrap();
    for end in (32..whole.len()).rev().step_by(7) {
        fs::write(&path, &whole[..end]).unwrap();
        drop(harness::server(&lower, &write).unwrap());
        assert!(fs::metadata(&path).unwrap().len() <= end as u64);
    }
}
