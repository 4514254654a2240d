//! Content descriptors: media type, size, digest and annotations of a blob.
//!
//! Source: OCI image specification, descriptor.md.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    error::{Classify, Kind},
    limits,
};

/// A descriptor whose parts are within their limits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Media type: 1 to 255 bytes of printable ASCII.
    pub media_type: String,
    /// Digest of the blob's bytes.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// Annotations of the image's manifest, or of a reply: at most [`limits::ANNOTATIONS`], together at most
    /// [`limits::ANNOTATION_BYTES`].
    pub annotations: BTreeMap<String, String>,
}

/// Fault in a descriptor.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The media type is not a name by RFC 6838: printable ASCII, and short.
    #[error("media type {0:?} is not 1 to 255 bytes of printable ASCII")]
    MediaType(String),
    /// The size is negative.
    #[error("size {0} is negative")]
    Size(i64),
    /// There are more annotations, or longer ones, than any image has.
    #[error(
        "{count} annotations of {bytes} bytes; {} of {} bytes are allowed",
        limits::ANNOTATIONS,
        limits::ANNOTATION_BYTES
    )]
    Annotations {
        /// Number of annotations.
        count: usize,
        /// Length of all keys and values in bytes.
        bytes: usize,
    },
}

impl Classify for DescriptorError {
    fn kind(&self) -> Kind {
        match self {
            Self::MediaType(_) | Self::Size(_) => Kind::Malformed,
            Self::Annotations { .. } => Kind::Exhausted,
        }
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::MediaType(_) | Self::Size(_) => "request.descriptor",
            Self::Annotations { .. } => "limit.annotations",
        }
    }
}

impl Descriptor {
    /// Descriptor of a blob that was made here, without annotations.
    pub fn of(media_type: &str, digest: Digest, size_bytes: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size_bytes, annotations: BTreeMap::new() }
    }

    /// Checks the parts of a wire descriptor. Errors: [`DescriptorError::MediaType`], [`DescriptorError::Size`].
    pub fn new(media_type: &str, digest: Digest, size_bytes: i64) -> Result<Self, DescriptorError> {
        let printable = media_type.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        if media_type.is_empty() || media_type.len() > 255 || !printable {
            return Err(DescriptorError::MediaType(media_type.chars().take(255).collect()));
        }
        let size_bytes = u64::try_from(size_bytes).map_err(|_negative| DescriptorError::Size(size_bytes))?;
        Ok(Self::of(media_type, digest, size_bytes))
    }

    /// Adds annotations. Errors: [`DescriptorError::Annotations`] when there are too many.
    pub fn annotated(self, annotations: BTreeMap<String, String>) -> Result<Self, DescriptorError> {
        let bytes = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        let count = annotations.len();
        if count > limits::ANNOTATIONS || bytes > limits::ANNOTATION_BYTES {
            return Err(DescriptorError::Annotations { count, bytes });
        }
        Ok(Self { annotations, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_outside_their_range_are_refused() {
        let digest = Digest::sha256(b"");
        assert!(Descriptor::new("application/x", digest.clone(), 0).is_ok());
        assert_eq!(Descriptor::new("a/b", digest.clone(), -1), Err(DescriptorError::Size(-1)));
        for media_type in ["", "a b", "a\n", "é", &"a".repeat(256)] {
            assert!(Descriptor::new(media_type, digest.clone(), 0).is_err(), "{media_type:?}");
        }
    }

    #[test]
    fn the_last_annotation_that_fits_is_taken_and_the_next_one_is_not() {
        let annotated = |count: usize, bytes: usize| {
            let each = (0..count).map(|number| (format!("{number:04}"), "v".repeat(bytes / count - 4)));
            let descriptor = Descriptor::new("a/b", Digest::sha256(b""), 0).unwrap();
            descriptor.annotated(each.collect()).map(|descriptor| descriptor.annotations.len())
        };
        assert_eq!(annotated(limits::ANNOTATIONS, 8 * limits::ANNOTATIONS), Ok(limits::ANNOTATIONS));
        let count = limits::ANNOTATIONS + 1;
        assert_eq!(
            annotated(count, 4 * count),
            Err(DescriptorError::Annotations { count, bytes: 4 * count })
        );
        assert_eq!(annotated(1, limits::ANNOTATION_BYTES), Ok(1));
        let bytes = limits::ANNOTATION_BYTES + 1;
        let error = annotated(1, bytes).unwrap_err();
        assert_eq!(error, DescriptorError::Annotations { count: 1, bytes });
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.annotations"));
    }
}
