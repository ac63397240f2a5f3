//! SECURITY.md against the tests that it names.

use std::fs;
use std::path::Path;

/// Every function of the repository's tests and unit tests.
fn functions(dir: &Path, found: &mut String) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(text) = fs::read_to_string(root.join("SECURITY.md")) else {
        return crate::harness::skip("the sources are not where the tests were built");
    };
    let mut sources = String::new();
    for dir in ["src", "tests/it", "net/src", "net/tests", "fuse-overlay/src", "fuse-overlay/tests"] {
        functions(&root.join(dir), &mut sources);
    }
    let mut count = 0;
    for name in text.split('`').skip(1).step_by(2).filter(|name| name.contains("::")) {
        let function = name.rsplit("::").next().unwrap();
        assert!(sources.contains(&format!("fn {function}(")), "SECURITY.md names `{name}`, which is no test");
        count += 1;
    }
    assert!(count > 30, "only {count} tests are named");
    for path in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
        assert!(root.join(path).exists(), "SECURITY.md names {path}");
    }
}
