//! Operating systems and processors, in Go's words as images have them.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Os};
use serde::{Deserialize, Serialize};

/// What an image is made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Of the processor, where images of several are told apart (`v7`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

impl FromStr for Platform {
    type Err = String;

    /// Reads `OS`, `ARCH`, `OS/ARCH` or `OS/ARCH/VARIANT` with the other names that containerd takes
    /// (its platforms package). The words of the error are Docker's.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_word = |word: &&str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        let words: Vec<String> = text.split('/').filter(is_word).map(str::to_ascii_lowercase).collect();
        if words.is_empty() || words.len() > 3 || words.len() != text.split('/').count() {
            return Err(format!("{text:?}: invalid platform, it is OS/ARCH such as linux/amd64"));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (os, architecture, variant) = match words[..] {
            ["linux" | "windows" | "darwin" | "freebsd"] => (words[0], None, None),
            [architecture] => ("linux", Some(architecture), None),
            [os, architecture] => (os, Some(architecture), None),
            [os, architecture, variant] => (os, Some(architecture), Some(variant)),
            _ => return Err(format!("{text:?}: invalid platform, it is OS/ARCH such as linux/amd64")),
        };
        let host = Self::host();
        let (architecture, implied) = match architecture.unwrap_or(&host.architecture) {
            "x86_64" | "x86-64" => ("amd64", None),
            "i386" | "i686" => ("386", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            other => (other, None),
        };
        // arm64 has the variant v8 only, which images may name or not.
        let variant = variant.or(implied).filter(|variant| (architecture, *variant) != ("arm64", "v8"));
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl Platform {
    /// This machine.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    pub(super) fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    pub(super) fn of_descriptor(platform: &oci_spec::image::Platform) -> Self {
        let variant = platform.variant().clone();
        Self { variant, ..Self::of(platform.os(), platform.architecture()) }
    }

    pub(super) fn of(os: &Os, architecture: &Arch) -> Self {
        Self { os: os.to_string(), architecture: architecture.to_string(), variant: None }
    }

    pub(super) fn architecture(&self) -> Arch {
        Arch::from(self.architecture.as_str())
    }

    /// Which of several images is the one for `asked`; where nothing was asked for, for this machine: its
    /// own before those that it runs too. One that does not say what it is for fits everything.
    pub(super) fn choose(asked: Option<&Self>, found: &[Option<Self>]) -> Option<usize> {
        let first = |fits: &dyn Fn(&Self) -> bool, unknown: bool| {
            found.iter().position(|found| found.as_ref().map_or(unknown, fits))
        };
        let host = Self::host();
        match asked {
            Some(asked) => first(&|found| asked.is_met_by(found), true),
            None => first(&|found| host.is_met_by(found), false)
                .or_else(|| first(&|found| host.runs(found), true)),
        }
    }

    /// Whether a kernel of this platform runs programs of `image`: its own, and the 32-bit ones that
    /// such processors have. An image that does not say what it is for is taken at its word.
    pub fn runs(&self, image: &Self) -> bool {
        let same_os = self.has_os_of(image);
        let pair = (self.architecture.as_str(), image.architecture.as_str());
        same_os && (pair.0 == pair.1 || matches!(pair, (_, "") | ("amd64", "386") | ("arm64", "arm")))
    }

    /// Whether an image's programs are for this kind of kernel, whatever processor they need.
    pub(super) fn has_os_of(&self, image: &Self) -> bool {
        image.os == self.os || image.os.is_empty()
    }

    /// The platform that an image's config names.
    pub(super) fn of_config(config: &serde_json::Value) -> Self {
        let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
        let variant = Some(text("variant")).filter(|variant| !variant.is_empty());
        Self { os: text("os"), architecture: text("architecture"), variant }
    }

    /// Whether an image is for this very platform, whatever variant it has where none was asked for.
    pub(super) fn is_met_by(&self, image: &Self) -> bool {
        let variant = image
            .variant
            .as_deref()
            .filter(|variant| (self.architecture.as_str(), *variant) != ("arm64", "v8"));
        self.os == image.os
            && self.architecture == image.architecture
            && (self.variant.is_none() || variant.is_none() || self.variant.as_deref() == variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
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

    #[test]
    fn of_several_images_the_asked_for_or_the_own_is_chosen() {
        let parse = |text: &&str| text.parse::<Platform>().ok();
        let found: Vec<_> =
            ["linux/s390x", "linux/386", "linux/amd64", "linux/arm64"].iter().map(parse).collect();
        let asked = |text: &str| Platform::choose(parse(&text).as_ref(), &found);
        assert_eq!((asked("linux/arm64"), asked("linux/riscv64")), (Some(3), None));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(Platform::choose(None, &found), Some(2));
            assert_eq!(Platform::choose(None, &found[..2]), Some(1), "what it runs too");
        }
        assert_eq!(Platform::choose(None, &found[..1]), None);
        assert_eq!(Platform::choose(None, &[None]), Some(0));
    }

    #[test]
    fn platforms_are_read_as_containerd_reads_them() {
        let table = [
            ("linux/amd64", "linux/amd64"),
            ("LINUX/x86_64", "linux/amd64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("armhf", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
        ];
        for (text, wanted) in table {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), wanted);
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        let is_met = |wanted: &str, image: &str| {
            let [wanted, image] = [wanted, image].map(|text| text.parse::<Platform>().expect(text));
            wanted.is_met_by(&image)
        };
        assert!(is_met("linux/arm", "linux/arm/v7") && is_met("linux/arm/v7", "linux/arm/v7"));
        assert!(!is_met("linux/arm/v6", "linux/arm/v7") && !is_met("linux/amd64", "linux/386"));
    }
}
