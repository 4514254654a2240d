//! Converts messages to domain values and back, with the checks that need no file.
//!
//! Finds every fault that a message can have on its own: missing parts, malformed digests and media
//! types, mount lists without measure. [`crate::snapshot`] decides what a mount list means.

pub mod apply;
pub mod diff;
mod grpc;
mod ttrpc;

use crate::{
    error::{Classify, Error, Kind},
    limits,
    snapshot::{Mount, MountError},
};

/// Refusal of a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The field `ApplyRequest.diff` is not set.
    #[error("the request names no blob")]
    NoDescriptor,
    /// A mount holds a NUL, at which the kernel would cut the string.
    #[error("mount {index} holds a NUL byte")]
    Nul {
        /// Index of the mount in the list.
        index: usize,
    },
    /// The reference is longer than [`limits::REFERENCE_BYTES`].
    #[error("the reference has {len} bytes; {} are allowed", limits::REFERENCE_BYTES)]
    Reference {
        /// Length of the reference in bytes.
        len: usize,
    },
    /// The request has more labels than [`limits::LABELS`].
    #[error("{count} labels; {} are allowed", limits::LABELS)]
    Labels {
        /// Number of labels in the request.
        count: usize,
    },
    /// The request has more payloads, or larger ones, than allowed.
    #[error(
        "{count} payloads of {bytes} bytes; {} of {} bytes are allowed",
        limits::PAYLOADS,
        limits::PAYLOAD_BYTES
    )]
    Payloads {
        /// Number of payloads in the request.
        count: usize,
        /// Bytes of all their names, types and values.
        bytes: usize,
    },
    /// The epoch's nanoseconds are not within 0 to 999 999 999.
    #[error("source_date_epoch has {nanos} nanoseconds, which is no part of a second")]
    Epoch {
        /// Nanoseconds in the request.
        nanos: i32,
    },
}

impl Classify for ConvertError {
    fn kind(&self) -> Kind {
        match self {
            Self::Labels { .. } | Self::Payloads { .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoDescriptor => "request.descriptor",
            Self::Nul { .. } => "request.mounts",
            Self::Reference { .. } => "request.ref",
            Self::Labels { .. } => "limit.labels",
            Self::Payloads { .. } => "limit.payloads",
            Self::Epoch { .. } => "request.source-date-epoch",
        }
    }
}

/// Bounds the memory that a waiting request holds. The mounts are resolved when its turn comes.
fn check_mounts(mounts: &[Mount]) -> Result<(), Error> {
    let bytes = mounts.iter().flat_map(strings).map(str::len).sum();
    if mounts.len() > limits::MOUNTS || bytes > limits::MOUNT_BYTES {
        return Err(MountError::TooLarge { count: mounts.len(), bytes }.into());
    }
    match mounts.iter().position(|mount| strings(mount).any(|text| text.contains('\0'))) {
        Some(index) => Err(ConvertError::Nul { index }.into()),
        None => Ok(()),
    }
}

fn strings(mount: &Mount) -> impl Iterator<Item = &str> {
    let fixed = [mount.kind.as_str(), mount.source.as_str(), mount.target.as_str()];
    fixed.into_iter().chain(mount.options.iter().map(String::as_str))
}

/// Converts a size for the wire, where it is signed. No size that fits on a disk reaches the bound.
fn wire_size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_list_that_fits_is_taken_and_the_next_one_is_not() {
        let with = |count, source: usize| {
            let mount = Mount { source: "s".repeat(source), ..Mount::default() };
            check_mounts(&vec![mount; count]).err().map(|error| (error.kind(), error.reason()))
        };
        let refused = Some((Kind::Exhausted, "limit.mounts"));
        assert_eq!(with(limits::MOUNTS, 1), None);
        assert_eq!(with(limits::MOUNTS + 1, 1), refused);
        assert_eq!(with(1, limits::MOUNT_BYTES), None);
        assert_eq!(with(1, limits::MOUNT_BYTES + 1), refused);
    }
}
