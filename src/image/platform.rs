//! Operating systems and processors, in Go's words as images have them.

use std::fmt;

use oci_spec::image::{Arch, Os};

/// What an image is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Platform {
    os: String,
    architecture: String,
}

impl Platform {
    /// This machine.
    pub(super) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned() }
    }

    pub(super) fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned() }
    }

    pub(super) fn of_descriptor(platform: &oci_spec::image::Platform) -> Self {
        Self::of(platform.os(), platform.architecture())
    }

    pub(super) fn of(os: &Os, architecture: &Arch) -> Self {
        Self { os: os.to_string(), architecture: architecture.to_string() }
    }

    pub(super) fn architecture(&self) -> Arch {
        Arch::from(self.architecture.as_str())
    }

    /// Whether a kernel of this platform runs programs of `image`: its own, and the 32-bit ones that
    /// such processors have. An image that does not say what it is for is taken at its word.
    pub(super) fn runs(&self, image: &Self) -> bool {
        let same_os = image.os == self.os || image.os.is_empty();
        let pair = (self.architecture.as_str(), image.architecture.as_str());
        same_os && (pair.0 == pair.1 || matches!(pair, (_, "") | ("amd64", "386") | ("arm64", "arm")))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_runs_its_own_and_its_32_bit_images() {
        let table = [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/386", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/arm64", "linux/arm", true),
            ("linux/arm64", "linux/amd64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "/", true),
        ];
        for (host, image, runs) in table {
            let [host, image] = [host, image].map(|text| {
                let (os, architecture) = text.split_once('/').expect("two words");
                Platform::new(os, architecture)
            });
            assert_eq!(host.runs(&image), runs, "{host} {image}");
        }
    }
}
