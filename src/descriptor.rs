//! A content descriptor: what a blob is, how large, and under which digest.
//!
//! Source: OCI image specification, descriptor.md.

use crate::{
    digest::Digest,
    error::{Classify, Kind},
};

/// A descriptor whose parts have been checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Printable ASCII, at most 255 bytes.
    pub media_type: String,
    /// Digest of the blob's bytes.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
}

/// Why a descriptor is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// RFC 6838 names are printable ASCII and short.
    #[error("media type {0:?} is not 1 to 255 bytes of printable ASCII")]
    MediaType(String),
    /// Sizes are not negative.
    #[error("size {0} is negative")]
    Size(i64),
}

impl Classify for DescriptorError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        "request.descriptor"
    }
}

impl Descriptor {
    /// Checks the parts of a wire descriptor.
    pub fn new(media_type: &str, digest: Digest, size_bytes: i64) -> Result<Self, DescriptorError> {
        let printable = media_type.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        if media_type.is_empty() || media_type.len() > 255 || !printable {
            return Err(DescriptorError::MediaType(media_type.chars().take(255).collect()));
        }
        let size_bytes = u64::try_from(size_bytes).map_err(|_negative| DescriptorError::Size(size_bytes))?;
        Ok(Self { media_type: media_type.to_owned(), digest, size_bytes })
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
}
