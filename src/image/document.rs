//! Manifests and indexes: the documents that lead from a name to layers, and the ones that are written here.
//!
//! Source: OCI image specification, manifest.md, image-index.md, image-layout.md; Docker image specification v1.2,
//! `manifest.json`; containerd `core/images/archive/importer.go`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{error::ImageError, json, platform::Platform};
use crate::{
    codec::Coding,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Result},
    limits,
};

/// Media types of documents.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
}

/// Annotation with the full name of an image.
pub(super) const NAME: &str = "io.containerd.image.name";
/// Annotation with the full name of an image, or its tag alone.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Name of the file that marks an OCI layout.
pub(super) const OCI_LAYOUT: &str = "oci-layout";
/// Name of the index of an OCI layout.
pub(super) const INDEX_JSON: &str = "index.json";
/// Name of the list of images of a docker-archive.
pub(super) const MANIFEST_JSON: &str = "manifest.json";

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several documents, mostly one for each platform.
    Index(Vec<Entry>),
}

/// One image, or something else that is kept like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// One line of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The document it leads to.
    pub descriptor: Descriptor,
    /// Platform, where the index says it.
    pub platform: Option<Platform>,
}

/// One image of a docker-archive: the names of its members.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Packed {
    pub(super) config: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) layers: Vec<String>,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

impl Document {
    /// Reads a document of this media type. Errors: `image.format`, also when the bytes are a manifest and an index at
    /// the same time, or not what the media type says; `image.limit`.
    pub fn decode(media_type: &str, bytes: &[u8]) -> Result<Self> {
        let refuse = |problem: &str| -> Error {
            ImageError::Format {
                what: format!("document of type {media_type:?}"),
                problem: problem.to_owned(),
            }
            .into()
        };
        let Raw { media_type: inner, config, layers, manifests } = parse("document", bytes)?;
        let is_index = is_index(media_type);
        // A document that two readers may take for different things: CVE-2021-41190.
        if inner.is_some_and(|inner| inner != media_type) {
            return Err(refuse("says that it is of another type"));
        }
        match (config, layers, manifests) {
            (None, None, manifests) if is_index => {
                let manifests = manifests.unwrap_or_default();
                if manifests.len() > limits::INDEX_ENTRIES {
                    return Err(too_many("manifests of an index", limits::INDEX_ENTRIES).into());
                }
                let entries = manifests.into_iter().map(RawDescriptor::entry).collect::<Result<_>>()?;
                Ok(Self::Index(entries))
            }
            (Some(config), layers, None) if !is_index => {
                let layers = layers.unwrap_or_default();
                if layers.len() > limits::IMAGE_LAYERS {
                    return Err(too_many_layers().into());
                }
                let layers = layers.into_iter().map(RawDescriptor::descriptor).collect::<Result<_>>()?;
                Ok(Self::Manifest(Manifest { config: config.descriptor()?, layers }))
            }
            _ => Err(refuse("does not have the fields of its type, or has those of another")),
        }
    }
}

impl RawDescriptor {
    fn descriptor(self) -> Result<Descriptor> {
        let digest: Digest = self.digest.parse()?;
        Ok(Descriptor::new(&self.media_type, digest, self.size)?.annotated(self.annotations)?)
    }

    fn entry(mut self) -> Result<Entry> {
        let platform = self.platform.take();
        Ok(Entry { descriptor: self.descriptor()?, platform })
    }
}

/// Whether documents of this type lead to further ones.
pub fn is_index(media_type: &str) -> bool {
    [media_type::OCI_INDEX, media_type::DOCKER_LIST].contains(&media_type)
}

/// Whether documents of this type are manifests.
pub fn is_manifest(media_type: &str) -> bool {
    [media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST].contains(&media_type)
}

/// Whether this is the type of the configuration of an image, and not of something else.
pub fn is_config(media_type: &str) -> bool {
    [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG].contains(&media_type)
}

/// Whether this is the type of a layer of a root file system, be it one that we can apply or not.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
        || media_type.starts_with("application/vnd.erofs.layer.")
}

/// Reads the list of images of a docker-archive.
pub(super) fn packed(bytes: &[u8]) -> Result<Vec<Packed>> {
    let images: Vec<Packed> = parse(MANIFEST_JSON, bytes)?;
    if images.len() > limits::INDEX_ENTRIES {
        return Err(too_many("images of manifest.json", limits::INDEX_ENTRIES).into());
    }
    if images.iter().any(|image| image.layers.len() > limits::IMAGE_LAYERS) {
        return Err(too_many_layers().into());
    }
    Ok(images)
}

/// Checks the file that marks an OCI layout.
pub(super) fn check_marker(bytes: &[u8]) -> Result<()> {
    let Marker { image_layout_version } = parse(OCI_LAYOUT, bytes)?;
    if image_layout_version != "1.0.0" {
        let problem = format!("has version {image_layout_version:?}, not \"1.0.0\"");
        return Err(ImageError::Format { what: OCI_LAYOUT.to_owned(), problem }.into());
    }
    Ok(())
}

/// Parses a document called `what`. Errors: `image.format`; `image.limit` if it is too long.
pub(super) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    if bytes.len() > limits::DOCUMENT_BYTES {
        return Err(too_long(what).into());
    }
    json::parse(bytes).map_err(|problem| ImageError::Format { what: what.to_owned(), problem }.into())
}

pub(super) fn too_long(what: &str) -> ImageError {
    let limit = u64::try_from(limits::DOCUMENT_BYTES).unwrap_or(u64::MAX);
    ImageError::Limit { what: what.to_owned(), limit, unit: "bytes" }
}

pub(super) fn too_many_layers() -> ImageError {
    too_many("layers of an image", limits::IMAGE_LAYERS)
}

pub(super) fn too_many(what: &str, limit: usize) -> ImageError {
    ImageError::Limit {
        what: what.to_owned(),
        limit: u64::try_from(limit).unwrap_or(u64::MAX),
        unit: "of them",
    }
}

/// Media type of a layer of a docker-archive, by the compression that was found.
pub(super) fn docker_layer(coding: Coding) -> &'static str {
    match coding {
        Coding::Plain => "application/vnd.docker.image.rootfs.diff.tar",
        Coding::Gzip => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Coding::Zstd => "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: WrittenDescriptor<'a>,
    layers: Vec<WrittenDescriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenDescriptor<'a> {
    media_type: &'a str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a Descriptor> for WrittenDescriptor<'a> {
    fn from(Descriptor { media_type, digest, size_bytes, annotations }: &'a Descriptor) -> Self {
        Self { media_type, digest: digest.to_string(), size: *size_bytes, annotations }
    }
}

/// Writes the manifest that containerd's import makes for an image of a docker-archive, byte for byte.
pub(super) fn docker_manifest(config: &Descriptor, layers: &[Descriptor]) -> Result<Vec<u8>> {
    let written = Written {
        schema_version: 2,
        media_type: media_type::DOCKER_MANIFEST,
        config: config.into(),
        layers: layers.iter().map(Into::into).collect(),
    };
    serde_json::to_vec(&written).map_err(|error| unwritten(&error))
}

/// Text of a descriptor in an index.
pub(super) fn descriptor_json(descriptor: &Descriptor) -> Result<serde_json::Value> {
    serde_json::to_value(WrittenDescriptor::from(descriptor)).map_err(|error| unwritten(&error))
}

fn unwritten(error: &serde_json::Error) -> Error {
    Error::new(crate::error::Kind::Internal, "internal.json", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(media_type: &str, text: &str) -> Result<Document> {
        Document::decode(media_type, text.as_bytes())
    }

    #[test]
    fn a_document_that_is_two_things_at_once_is_refused() {
        let digest = Digest::sha256(b"x");
        let one = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1}}"#);
        let manifest = format!(r#"{{"config":{one},"layers":[{one}]}}"#);
        let index = format!(r#"{{"manifests":[{one}]}}"#);
        let both = format!(r#"{{"config":{one},"layers":[{one}],"manifests":[{one}]}}"#);
        let lies = format!(r#"{{"mediaType":"{}","config":{one}}}"#, media_type::OCI_INDEX);
        assert!(matches!(decode(media_type::OCI_MANIFEST, &manifest), Ok(Document::Manifest(_))));
        assert!(matches!(decode(media_type::DOCKER_LIST, &index), Ok(Document::Index(_))));
        for (media_type, text) in [
            (media_type::OCI_MANIFEST, &index),
            (media_type::OCI_INDEX, &manifest),
            (media_type::OCI_MANIFEST, &both),
            (media_type::OCI_INDEX, &both),
            (media_type::OCI_MANIFEST, &lies),
        ] {
            assert_eq!(decode(media_type, text).unwrap_err().reason(), "image.format", "{media_type} {text}");
        }
    }

    #[test]
    fn numbers_and_lengths_have_an_end() {
        let digest = Digest::sha256(b"x");
        let one = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1}}"#);
        let layers = vec![one.as_str(); limits::IMAGE_LAYERS + 1].join(",");
        let manifest = format!(r#"{{"config":{one},"layers":[{layers}]}}"#);
        assert_eq!(decode(media_type::OCI_MANIFEST, &manifest).unwrap_err().reason(), "image.limit");
        let long = format!("{}{{}}", " ".repeat(limits::DOCUMENT_BYTES));
        assert_eq!(decode(media_type::OCI_INDEX, &long).unwrap_err().reason(), "image.limit");
        let negative = one.replace(":1}", ":-1}");
        let manifest = format!(r#"{{"config":{negative}}}"#);
        assert_eq!(decode(media_type::OCI_MANIFEST, &manifest).unwrap_err().reason(), "request.descriptor");
    }

    #[test]
    fn only_version_1_0_0_of_the_layout_is_known() {
        assert!(check_marker(br#"{"imageLayoutVersion":"1.0.0"}"#).is_ok());
        for text in [r#"{"imageLayoutVersion":"1.0.1"}"#, "{}", ""] {
            assert_eq!(check_marker(text.as_bytes()).unwrap_err().reason(), "image.format", "{text}");
        }
    }
}
