//! The configuration of an image: its platform, and the diffIDs of its layers.
//!
//! Source: OCI image specification, config.md.

use serde::Deserialize;

use super::{error::ImageError, json, platform::Platform};
use crate::{digest::Digest, error::Result, limits};

/// The part of a configuration that unpacking needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Platform of the image.
    pub platform: Platform,
    /// Digest of each uncompressed layer, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default, rename = "type")]
    kind: String,
    // Go writes null for an image without layers.
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl Config {
    /// Reads a configuration. Errors: `image.format`; `image.limit` for too many layers.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let refuse = |problem| ImageError::Format { what: "image configuration".to_owned(), problem };
        let Raw { os, architecture, variant, rootfs } = json::parse(bytes).map_err(refuse)?;
        if !matches!(rootfs.kind.as_str(), "layers" | "") {
            return Err(refuse(format!("rootfs is of type {:?}, not \"layers\"", rootfs.kind)).into());
        }
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > limits::IMAGE_LAYERS {
            return Err(super::document::too_many_layers().into());
        }
        let diff_ids = diff_ids.iter().map(|text| text.parse().map_err(Into::into)).collect::<Result<_>>()?;
        Ok(Self { platform: Platform::new(os, architecture, variant), diff_ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_gives_platform_and_diff_ids() {
        let id = Digest::sha256(b"layer");
        let text = format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        );
        let config = Config::decode(text.as_bytes()).unwrap();
        assert_eq!((config.platform.to_string(), config.diff_ids), ("linux/arm64".to_owned(), vec![id]));
        let empty = Config::decode(br#"{"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
        assert!(empty.diff_ids.is_empty());
    }

    #[test]
    fn a_configuration_of_another_kind_is_refused() {
        for (text, reason) in [
            (r#"{"rootfs":{"type":"windows"}}"#, "image.format"),
            (r#"{"os":"linux"}"#, "image.format"),
            (r#"{"rootfs":{"diff_ids":["sha256:00"]}}"#, "request.digest"),
            (r#"{"rootfs":{"diff_ids":[],"diff_ids":[]}}"#, "image.format"),
        ] {
            assert_eq!(Config::decode(text.as_bytes()).unwrap_err().reason(), reason, "{text}");
        }
        let id = format!("\"{}\"", Digest::sha256(b""));
        let ids = vec![id.as_str(); limits::IMAGE_LAYERS + 1].join(",");
        let many = format!(r#"{{"rootfs":{{"diff_ids":[{ids}]}}}}"#);
        assert_eq!(Config::decode(many.as_bytes()).unwrap_err().reason(), "image.limit");
    }
}
