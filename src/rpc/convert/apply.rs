//! Apply: its request and its reply, on both wires.

use std::collections::HashMap;

use containerd_client::services::v1 as wire;
use protobuf::MessageField;

use super::{ConvertError, check_mounts, grpc, ttrpc};
use crate::{
    apply::{Applied, Request},
    descriptor::Descriptor,
    digest::Digest,
    error::Error,
    rpc::proto::ttrpc::diff,
    snapshot::Mount,
};

/// The request of a gRPC message. Payloads are for stream processors; clients send them along with layers
/// that need none, so they mean nothing here.
pub fn from_grpc(message: wire::ApplyRequest) -> Result<Request, Error> {
    let blob = message.diff.ok_or(ConvertError::NoDescriptor)?;
    let mounts = grpc::mounts(message.mounts);
    request(&blob.media_type, &blob.digest, blob.size, mounts, message.sync_fs)
}

/// The request of a ttrpc message.
pub fn from_ttrpc(message: diff::ApplyRequest) -> Result<Request, Error> {
    let blob = message.diff.into_option().ok_or(ConvertError::NoDescriptor)?;
    let mounts = ttrpc::mounts(message.mounts);
    request(&blob.media_type, &blob.digest, blob.size, mounts, message.sync_fs)
}

/// The reply as a gRPC message.
pub fn to_grpc(applied: &Applied) -> wire::ApplyResponse {
    let blob = grpc::descriptor(applied.media_type, &applied.digest, applied.size_bytes);
    wire::ApplyResponse { applied: Some(blob) }
}

/// The reply as a ttrpc message.
pub fn to_ttrpc(applied: &Applied) -> diff::ApplyResponse {
    let mut message = diff::ApplyResponse::new();
    let blob = ttrpc::descriptor(applied.media_type, &applied.digest, applied.size_bytes);
    message.applied = MessageField::some(blob);
    message
}

/// A gRPC message of `request`, for clients.
pub fn request_to_grpc(request: &Request) -> wire::ApplyRequest {
    let Descriptor { media_type, digest, size_bytes } = &request.diff;
    wire::ApplyRequest {
        diff: Some(grpc::descriptor(media_type, digest, *size_bytes)),
        mounts: grpc::to_mounts(&request.mounts),
        payloads: HashMap::new(),
        sync_fs: request.sync_fs,
    }
}

/// A ttrpc message of `request`, for clients.
pub fn request_to_ttrpc(request: &Request) -> diff::ApplyRequest {
    let Descriptor { media_type, digest, size_bytes } = &request.diff;
    let mut message = diff::ApplyRequest::new();
    message.diff = MessageField::some(ttrpc::descriptor(media_type, digest, *size_bytes));
    message.mounts = ttrpc::to_mounts(&request.mounts);
    message.sync_fs = request.sync_fs;
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

#[cfg(test)]
mod tests {
    use containerd_client::types;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        error::Kind,
        rpc::proto::ttrpc::{descriptor, mount},
    };

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
