//! Runs the committed corpora of a package's fuzz targets: what the ordinary test of each `fuzzing` module
//! does. It is a module of several crates (`#[path]`), because tests cannot be exported.

#![expect(clippy::unwrap_used, reason = "a corpus that cannot be read is a failed test")]

use std::collections::BTreeSet;
use std::path::Path;

/// What a fuzz target calls.
pub(crate) type Target = fn(&[u8]);

/// Gives each target nothing, and then every file of its corpus. `corpora` is a path below the package, which
/// lies at `package` where no test runner says. A corpus without a target is an error, as is one without files.
pub(crate) fn replay(package: &str, corpora: &str, targets: &[(&str, Target)]) {
    // Where they lie at run time: the test may run on a copy of the sources.
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| package.to_owned());
    let corpora = Path::new(&package).join(corpora);
    let names = std::fs::read_dir(&corpora).unwrap();
    let names: BTreeSet<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let known: BTreeSet<_> = targets.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, known, "a corpus for each target in {}", corpora.display());
    for (name, target) in targets {
        target(&[]);
        let files: Vec<_> = std::fs::read_dir(corpora.join(name)).unwrap().collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
}
