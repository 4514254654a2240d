//! Images made on the spot: layers of any media type and coding, written as an OCI layout.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer's tar or image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it is.
    Plain,
    /// One gzip member.
    Gzip,
    /// One zstd frame.
    Zstd,
}

impl Coding {
    /// `bytes` in this coding.
    pub fn encode(self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes)?;
                encoder.finish()?
            }
            Self::Zstd => zstd::encode_all(bytes, 1)?,
        })
    }
}

/// One layer: a blob, what it is called, and the digest of what it decodes to.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The media type in the manifest.
    pub media_type: String,
    /// The bytes in the registry.
    pub blob: Vec<u8>,
    /// The entry of `rootfs.diff_ids`, `sha256:HEX`.
    pub diff_id: String,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

impl Layer {
    /// A tar layer under OCI's name for its coding.
    pub fn oci(tar: &[u8], coding: Coding) -> anyhow::Result<Self> {
        let suffix = match coding {
            Coding::Plain => "",
            Coding::Gzip => "+gzip",
            Coding::Zstd => "+zstd",
        };
        Self::coded(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), tar, coding)
    }

    /// A tar layer under Docker's name for its coding.
    pub fn docker(tar: &[u8], coding: Coding) -> anyhow::Result<Self> {
        let suffix = match coding {
            Coding::Plain => "",
            Coding::Gzip => ".gzip",
            Coding::Zstd => ".zstd",
        };
        Self::coded(&format!("application/vnd.docker.image.rootfs.diff.tar{suffix}"), tar, coding)
    }

    /// `bytes` in a coding, under any name.
    pub fn coded(media_type: &str, bytes: &[u8], coding: Coding) -> anyhow::Result<Self> {
        Ok(Self {
            media_type: media_type.into(),
            blob: coding.encode(bytes)?,
            diff_id: digest(bytes),
            annotations: BTreeMap::new(),
        })
    }

    /// An EROFS image as a layer, under any name; the coding is plain or zstd.
    pub fn native(media_type: &str, image: &[u8]) -> anyhow::Result<Self> {
        let coding = if media_type.ends_with("+zstd") { Coding::Zstd } else { Coding::Plain };
        Self::coded(media_type, image, coding)
    }

    /// The layer with an annotation more.
    #[must_use]
    pub fn annotated(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The digest of the blob, `sha256:HEX`.
    pub fn digest(&self) -> String {
        digest(&self.blob)
    }

    /// The length of the blob in bytes, as descriptors spell it.
    pub fn size_bytes(&self) -> i64 {
        i64::try_from(self.blob.len()).unwrap_or(i64::MAX)
    }

    fn descriptor(&self) -> Value {
        let (digest, size) = (self.digest(), self.blob.len());
        let mut descriptor = json!({"mediaType": self.media_type, "digest": digest, "size": size});
        if !self.annotations.is_empty() {
            descriptor["annotations"] = json!(self.annotations);
        }
        descriptor
    }
}

/// An image for this machine's architecture.
#[derive(Clone, Debug)]
pub struct Image {
    /// The lowest layer first.
    pub layers: Vec<Layer>,
    /// Whether manifest and configuration carry Docker's media types.
    pub docker: bool,
}

impl Image {
    /// An image with OCI's media types.
    pub fn oci(layers: Vec<Layer>) -> Self {
        Self { layers, docker: false }
    }

    /// The architecture of this machine in the words of image configurations.
    pub fn architecture() -> &'static str {
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }

    /// The name of the snapshot of all layers.
    pub fn chain_id(&self) -> String {
        chain_id(self.layers.iter().map(|layer| layer.diff_id.as_str()))
    }

    /// Writes an OCI layout whose only image is tagged `latest`.
    pub fn write_layout(&self, directory: &Path) -> anyhow::Result<()> {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let store = |bytes: &[u8]| -> anyhow::Result<String> {
            let digest = digest(bytes);
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
            Ok(digest)
        };
        for layer in &self.layers {
            store(&layer.blob)?;
        }
        let (manifest_type, config_type) = if self.docker {
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            )
        } else {
            ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
        };
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": Self::architecture(),
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let layers: Vec<Value> = self.layers.iter().map(Layer::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": store(config.as_bytes())?, "size": config.len()},
            "layers": layers,
        })
        .to_string();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": manifest_type,
                "digest": store(manifest.as_bytes())?,
                "size": manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }],
        });
        std::fs::write(directory.join("index.json"), index.to_string())?;
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }
}

/// The name of the snapshot of a stack of layers, the lowest first: the digest of the name below it and the layer's
/// diffID.
pub fn chain_id<'d>(diff_ids: impl IntoIterator<Item = &'d str>) -> String {
    diff_ids.into_iter().fold(String::new(), |chain, diff_id| match chain.is_empty() {
        true => diff_id.to_owned(),
        false => digest(format!("{chain} {diff_id}").as_bytes()),
    })
}

/// SHA-256 as containerd spells it.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
