//! Refusals of inputs that carry images.
//!
//! Source: docs/formats/archives.md, "What is refused".

use crate::{
    digest::Digest,
    error::{Classify, Kind, Quoted},
};

/// Rule that an input breaks. The caller adds the name of the file as context.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The manifest of a separated set is not of its form.
    #[error("the set's manifest {0}")]
    SetManifest(String),
    /// The set has no such image, or several that the name fits.
    #[error("the set has {found} image {}; it has: {}", Quoted(.asked.as_bytes()), listed(.keys))]
    NotInSet {
        /// Name that was asked for.
        asked: String,
        /// `no` or `more than one`.
        found: &'static str,
        /// Names that the set has.
        keys: Vec<String>,
    },
    /// A file name is not plain, or what it names is not a regular file.
    #[error("{} {problem}", Quoted(.name.as_bytes()))]
    FileName {
        /// The name.
        name: String,
        /// Why it is refused.
        problem: String,
    },
    /// A file, a member or a blob is not there.
    #[error("{0} is missing")]
    Missing(String),
    /// A layer that is to be unpacked is not in the content store.
    #[error("{digest} is not in the content store{}", fetched_by(.fetch.as_deref()))]
    NotFetched {
        /// Digest of its blob.
        digest: Digest,
        /// Command that brings it.
        fetch: Option<String>,
    },
    /// A file of a set has another SHA-256 than the set's manifest says.
    #[error("the file's SHA-256 is {found}, the set's manifest says {}", Quoted(.expected.as_bytes()))]
    Hash {
        /// Text of the manifest.
        expected: String,
        /// Digits of the file's bytes.
        found: String,
    },
    /// A document inside is not what its place asks for.
    #[error("{what}: {problem}")]
    Format {
        /// The document.
        what: String,
        /// Rule that the document breaks.
        problem: String,
    },
    /// A member of an archive is not allowed.
    #[error("member {}: {problem}", Quoted(.name))]
    Member {
        /// Name of the member as the archive spells it.
        name: Vec<u8>,
        /// The rule.
        problem: String,
    },
    /// A configuration or layer has another digest than the image says.
    #[error("{what} has digest {found} instead of {expected}")]
    Digest {
        /// The layer or the configuration.
        what: String,
        /// Digest that the image says.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// An image has more or fewer layers than diffIDs.
    #[error("the image has {layers} layers and {diff_ids} diffIDs")]
    Count {
        /// Number of layers.
        layers: usize,
        /// Number of entries of `rootfs.diff_ids`.
        diff_ids: usize,
    },
    /// The archive of a set does not hold the image under the name asked for.
    #[error("manifest.json {problem} {}", Quoted(.asked.as_bytes()))]
    Tag {
        /// Name that was asked for.
        asked: String,
        /// `has no image` or `has more than one image`.
        problem: &'static str,
    },
    /// Something is larger than any image needs.
    #[error("{what}: more than {limit} {unit}")]
    Limit {
        /// The thing that is too large.
        what: String,
        /// The largest value.
        limit: u64,
        /// Unit of the limit.
        unit: &'static str,
    },
    /// A name is not one of an image, or an image has none.
    #[error("{0}")]
    Reference(String),
    /// No image fits what was asked for.
    #[error("{0}")]
    Nothing(String),
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() {
        return "none".to_owned();
    }
    let shown = keys.iter().take(16).map(|key| Quoted(key.as_bytes()).to_string());
    let more = keys.len().saturating_sub(16);
    let rest = (more > 0).then(|| format!("{more} more"));
    shown.chain(rest).collect::<Vec<_>>().join(", ")
}

fn fetched_by(command: Option<&str>) -> String {
    command.map(|command| format!("; this brings it: {command}")).unwrap_or_default()
}

impl Classify for ImageError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotInSet { .. } | Self::Missing(_) | Self::NotFetched { .. } | Self::Nothing(_) => {
                Kind::NotFound
            }
            Self::Hash { .. } | Self::Digest { .. } => Kind::DataLoss,
            Self::Limit { .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::SetManifest(_) => "image.manifest",
            Self::NotInSet { .. } => "image.not-found",
            Self::FileName { .. } => "image.name",
            Self::Missing(_) | Self::NotFetched { .. } => "image.missing",
            Self::Hash { .. } => "image.hash",
            Self::Format { .. } => "image.format",
            Self::Member { .. } => "image.member",
            Self::Digest { .. } => "image.digest",
            Self::Count { .. } => "image.count",
            Self::Tag { .. } => "image.tag",
            Self::Limit { .. } => "image.limit",
            Self::Reference(_) => "image.reference",
            Self::Nothing(_) => "image.nothing",
        }
    }
}
