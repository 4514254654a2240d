//! Platforms: operating system, architecture and variant of an image.
//!
//! Source: OCI image specification, image-index.md, "platform"; containerd `platforms/database.go`.

use std::{env::consts, fmt, str::FromStr};

use serde::Deserialize;

/// A platform in the words of image indexes. `amd64` and `arm64` have no variant where it is the usual one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Raw")]
pub struct Platform {
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture, such as `arm64`.
    pub architecture: String,
    /// Variant of the architecture, such as `v7`; empty for none.
    pub variant: String,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl From<Raw> for Platform {
    fn from(Raw { os, architecture, variant }: Raw) -> Self {
        Self::new(os, architecture, variant)
    }
}

impl Platform {
    /// A platform in its usual spelling.
    pub(super) fn new(os: String, architecture: String, variant: String) -> Self {
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            _ => architecture,
        };
        let variant = match (architecture.as_str(), variant.as_str()) {
            ("arm64", "8" | "v8") | ("amd64", "v1") => String::new(),
            // An arm without variant is a v7 for every client.
            ("arm", "") => "v7".to_owned(),
            _ => variant,
        };
        Self { os, architecture, variant }
    }

    /// The platform of this machine.
    pub fn of_this_machine() -> Self {
        let (os, architecture) = (consts::OS.to_owned(), consts::ARCH.to_owned());
        Self::new(os, architecture, String::new())
    }
}

/// Parses `os/architecture[/variant]`. Errors, in words.
impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, &""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return Err("not of the form os/architecture[/variant]".to_owned()),
        };
        let [os, architecture, variant] = [os, architecture, variant].map(|part| part.to_lowercase());
        Ok(Self::new(os, architecture, variant))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_platform_are_equal() {
        for (one, other) in [
            ("linux/amd64", "linux/x86_64/v1"),
            ("linux/arm64", "Linux/aarch64/v8"),
            ("linux/arm", "linux/arm/v7"),
        ] {
            assert_eq!(one.parse::<Platform>(), other.parse::<Platform>(), "{one}");
        }
        assert_ne!("linux/arm/v6".parse::<Platform>(), "linux/arm".parse::<Platform>());
        assert!("linux".parse::<Platform>().is_err());
        assert_eq!("linux/arm64/v8".parse::<Platform>().unwrap().to_string(), "linux/arm64");
    }
}
