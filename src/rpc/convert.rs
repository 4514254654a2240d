//! Messages to domain values and back, with the checks that need no file.
//!
//! Everything a message can get wrong on its own is found here: missing parts, digests and media types
//! that are none, mount lists beyond all measure. What a mount list means is decided by
//! [`crate::snapshot`].

use std::collections::HashMap;

use containerd_client::{services::v1 as wire, types};
use protobuf::MessageField;

use super::proto::ttrpc::{descriptor, diff, mount};
use crate::{
    apply::{Applied, Request},
    descriptor::Descriptor,
    digest::Digest,
    error::{Classify, Error, Kind},
    limits,
    snapshot::{Mount, MountError},
};

/// Why a message is not a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// `ApplyRequest.diff` is not set.
    #[error("the request names no blob")]
    NoDescriptor,
    /// A NUL would cut the string short in the kernel.
    #[error("mount {index} holds a NUL byte")]
    Nul {
        /// Position in the list.
        index: usize,
    },
}

impl Classify for ConvertError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoDescriptor => "request.descriptor",
            Self::Nul { .. } => "request.mounts",
        }
    }
}

/// The request of a gRPC message. Payloads are for stream processors; clients send them along with layers
/// that need none, so they mean nothing here.
pub fn from_grpc(message: wire::ApplyRequest) -> Result<Request, Error> {
    let blob = message.diff.ok_or(ConvertError::NoDescriptor)?;
    let mounts = message.mounts.into_iter().map(|mount| Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    });
    request(&blob.media_type, &blob.digest, blob.size, mounts.collect(), message.sync_fs)
}

/// The request of a ttrpc message.
pub fn from_ttrpc(message: diff::ApplyRequest) -> Result<Request, Error> {
    let blob = message.diff.into_option().ok_or(ConvertError::NoDescriptor)?;
    let mounts = message.mounts.into_iter().map(|mount| Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    });
    request(&blob.media_type, &blob.digest, blob.size, mounts.collect(), message.sync_fs)
}

/// The reply as a gRPC message.
pub fn to_grpc(applied: &Applied) -> wire::ApplyResponse {
    wire::ApplyResponse {
        applied: Some(types::Descriptor {
            media_type: applied.media_type.to_owned(),
            digest: applied.digest.to_string(),
            size: wire_size(applied.size_bytes),
            annotations: HashMap::new(),
        }),
    }
}

/// The reply as a ttrpc message.
pub fn to_ttrpc(applied: &Applied) -> diff::ApplyResponse {
    let mut blob = descriptor::Descriptor::new();
    blob.media_type = applied.media_type.to_owned();
    blob.digest = applied.digest.to_string();
    blob.size = wire_size(applied.size_bytes);
    let mut message = diff::ApplyResponse::new();
    message.applied = MessageField::some(blob);
    message
}

/// A gRPC message of `request`, for clients.
pub fn request_to_grpc(request: &Request) -> wire::ApplyRequest {
    let mounts = request.mounts.iter().map(|mount| types::Mount {
        r#type: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    });
    wire::ApplyRequest {
        diff: Some(types::Descriptor {
            media_type: request.diff.media_type.clone(),
            digest: request.diff.digest.to_string(),
            size: wire_size(request.diff.size_bytes),
            annotations: HashMap::new(),
        }),
        mounts: mounts.collect(),
        payloads: HashMap::new(),
        sync_fs: request.sync_fs,
    }
}

/// A ttrpc message of `request`, for clients.
pub fn request_to_ttrpc(request: &Request) -> diff::ApplyRequest {
    let mut blob = descriptor::Descriptor::new();
    blob.media_type = request.diff.media_type.clone();
    blob.digest = request.diff.digest.to_string();
    blob.size = wire_size(request.diff.size_bytes);
    let mut message = diff::ApplyRequest::new();
    message.diff = MessageField::some(blob);
    message.sync_fs = request.sync_fs;
    for mount in &request.mounts {
        let mut entry = mount::Mount::new();
        entry.type_ = mount.kind.clone();
        entry.source = mount.source.clone();
        entry.target = mount.target.clone();
        entry.options = mount.options.clone();
        message.mounts.push(entry);
    }
    message
}

fn request(
    media_type: &str,
    digest: &str,
    size: i64,
    mounts: Vec<Mount>,
    sync_fs: bool,
) -> Result<Request, Error> {
    let digest: Digest = digest.parse()?;
    let diff = Descriptor::new(media_type, digest, size)?;
    check_mounts(&mounts).map_err(|error| error.context(format!("apply {}", diff.digest)))?;
    Ok(Request { diff, mounts, sync_fs })
}

/// Bounds what a waiting request holds in memory. What the mounts mean is looked at when its turn comes.
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

/// Sizes on the wire are signed; nothing that fits on a disk reaches the bound.
fn wire_size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Request {
        Request {
            diff: Descriptor::new("application/vnd.oci.image.layer.v1.tar", Digest::sha256(b"x"), 1).unwrap(),
            mounts: vec![Mount {
                kind: "bind".into(),
                source: "/root/snapshots/1/fs".into(),
                target: String::new(),
                options: vec!["rw".into(), "rbind".into()],
            }],
            sync_fs: true,
        }
    }

    #[test]
    fn a_request_is_the_same_over_both_wires() {
        let request = sample();
        assert_eq!(from_grpc(request_to_grpc(&request)).unwrap(), request);
        assert_eq!(from_ttrpc(request_to_ttrpc(&request)).unwrap(), request);
    }

    #[test]
    fn each_missing_or_malformed_part_is_named() {
        let change = |change: fn(&mut wire::ApplyRequest)| {
            let mut message = request_to_grpc(&sample());
            change(&mut message);
            let error = from_grpc(message).unwrap_err();
            (error.kind(), error.reason())
        };
        assert_eq!(change(|m| m.diff = None), (Kind::Malformed, "request.descriptor"));
        assert_eq!(change(|m| m.mounts[0].source.push('\0')), (Kind::Malformed, "request.mounts"));
        assert_eq!(change(|m| m.diff.as_mut().unwrap().digest.clear()), (Kind::Malformed, "request.digest"));
        assert_eq!(change(|m| m.diff.as_mut().unwrap().size = -1), (Kind::Malformed, "request.descriptor"));
        assert_eq!(
            change(|m| m.diff.as_mut().unwrap().media_type.clear()),
            (Kind::Malformed, "request.descriptor")
        );
    }

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

    proptest! {
        #[test]
        fn no_message_panics_and_both_wires_agree(
            media_type in ".{0,40}", digest in "(sha256:)?[0-9a-fg]{0,70}", size: i64,
            kinds in proptest::collection::vec(".{0,10}", 0..4), sync_fs: bool,
        ) {
            let mounts: Vec<types::Mount> =
                kinds.iter().map(|kind| types::Mount { r#type: kind.clone(), ..Default::default() }).collect();
            let blob = types::Descriptor { media_type: media_type.clone(), digest: digest.clone(), size, annotations: HashMap::new() };
            let grpc = from_grpc(wire::ApplyRequest { diff: Some(blob), mounts, payloads: HashMap::new(), sync_fs });

            let mut message = diff::ApplyRequest::new();
            let mut blob = descriptor::Descriptor::new();
            (blob.media_type, blob.digest, blob.size) = (media_type, digest, size);
            message.diff = MessageField::some(blob);
            message.sync_fs = sync_fs;
            message.mounts = kinds.into_iter().map(|kind| mount::Mount { type_: kind, ..mount::Mount::new() }).collect();
            let ttrpc = from_ttrpc(message);
            match (grpc, ttrpc) {
                (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
                (Err(a), Err(b)) => prop_assert_eq!(a.to_string(), b.to_string()),
                (a, b) => prop_assert!(false, "{:?} {:?}", a, b),
            }
        }
    }
}
