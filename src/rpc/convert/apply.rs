//! Converts requests and replies of Apply, for both wires.

use containerd_client::services::v1 as wire;
use protobuf::{MessageField, well_known_types::any::Any};

use super::{ConvertError, check_mounts, grpc, ttrpc};
use crate::{
    apply::{Applied, Payload, Request},
    error::Error,
    limits,
    rpc::proto::ttrpc::diff,
};

/// Converts a gRPC message. Errors: the descriptor, the mounts or the payloads are refused.
pub fn from_grpc(message: wire::ApplyRequest) -> Result<Request, Error> {
    let diff = grpc::descriptor(message.diff.ok_or(ConvertError::NoDescriptor)?)?;
    let payload = |(name, any): (String, prost_types::Any)| {
        (name, Payload { type_url: any.type_url, value: any.value })
    };
    check(Request {
        diff,
        mounts: grpc::mounts(message.mounts),
        payloads: message.payloads.into_iter().map(payload).collect(),
        sync_fs: message.sync_fs,
    })
}

/// Converts a ttrpc message. Errors: the descriptor, the mounts or the payloads are refused.
pub fn from_ttrpc(message: diff::ApplyRequest) -> Result<Request, Error> {
    let diff = ttrpc::descriptor(message.diff.into_option().ok_or(ConvertError::NoDescriptor)?)?;
    let payload = |(name, any): (String, Any)| (name, Payload { type_url: any.type_url, value: any.value });
    check(Request {
        diff,
        mounts: ttrpc::mounts(message.mounts),
        payloads: message.payloads.into_iter().map(payload).collect(),
        sync_fs: message.sync_fs,
    })
}

/// Converts a reply to its gRPC message.
pub fn to_grpc(applied: &Applied) -> wire::ApplyResponse {
    wire::ApplyResponse { applied: Some(grpc::to_descriptor(&applied.descriptor)) }
}

/// Converts a reply to its ttrpc message.
pub fn to_ttrpc(applied: &Applied) -> diff::ApplyResponse {
    let mut message = diff::ApplyResponse::new();
    message.applied = MessageField::some(ttrpc::to_descriptor(&applied.descriptor));
    message
}

/// Builds the gRPC message of `request`, for clients.
pub fn request_to_grpc(request: &Request) -> wire::ApplyRequest {
    let any = |payload: &Payload| prost_types::Any {
        type_url: payload.type_url.clone(),
        value: payload.value.clone(),
    };
    wire::ApplyRequest {
        diff: Some(grpc::to_descriptor(&request.diff)),
        mounts: grpc::to_mounts(&request.mounts),
        payloads: request.payloads.iter().map(|(name, payload)| (name.clone(), any(payload))).collect(),
        sync_fs: request.sync_fs,
    }
}

/// Builds the ttrpc message of `request`, for clients.
pub fn request_to_ttrpc(request: &Request) -> diff::ApplyRequest {
    let any = |payload: &Payload| {
        let mut any = Any::new();
        any.type_url = payload.type_url.clone();
        any.value = payload.value.clone();
        any
    };
    let mut message = diff::ApplyRequest::new();
    message.diff = MessageField::some(ttrpc::to_descriptor(&request.diff));
    message.mounts = ttrpc::to_mounts(&request.mounts);
    message.payloads = request.payloads.iter().map(|(name, payload)| (name.clone(), any(payload))).collect();
    message.sync_fs = request.sync_fs;
    message
}

/// Bounds the memory that a waiting request holds.
fn check(request: Request) -> Result<Request, Error> {
    let context = |error: Error| error.context(format!("apply {}", request.diff.digest));
    check_mounts(&request.mounts).map_err(context)?;
    let len =
        |(name, payload): (&String, &Payload)| name.len() + payload.type_url.len() + payload.value.len();
    let (count, bytes) = (request.payloads.len(), request.payloads.iter().map(len).sum());
    if count > limits::PAYLOADS || bytes > limits::PAYLOAD_BYTES {
        return Err(context(ConvertError::Payloads { count, bytes }.into()));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashMap},
        time::Duration,
    };

    use containerd_client::types;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        apply::{Contents, Stats},
        codec::Coding,
        descriptor::Descriptor,
        digest::Digest,
        error::Kind,
        pipeline::{AheadFacts, StageTimes},
        rpc::proto::ttrpc::{descriptor, mount},
        snapshot::Mount,
    };

    fn payload(len: usize) -> Payload {
        Payload { type_url: "types/x".into(), value: vec![7; len] }
    }

    fn sample() -> Request {
        Request {
            diff: Descriptor::new("application/vnd.oci.image.layer.v1.tar", Digest::sha256(b"x"), 1)
                .and_then(|diff| diff.annotated(BTreeMap::from([("key".into(), "value".into())])))
                .unwrap(),
            payloads: BTreeMap::from([("processor".into(), payload(3))]),
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
    fn the_last_payload_that_fits_is_taken_and_the_next_one_is_not() {
        let taken = |count: usize, bytes: usize| {
            let each = (0..count).map(|number| (format!("{number:04}"), payload(bytes / count - 11)));
            let error = from_grpc(request_to_grpc(&Request { payloads: each.collect(), ..sample() })).err();
            error.map(|error| (error.kind(), error.reason()))
        };
        let refused = Some((Kind::Exhausted, "limit.payloads"));
        assert_eq!(taken(limits::PAYLOADS, 11 * limits::PAYLOADS), None);
        assert_eq!(taken(limits::PAYLOADS + 1, 11 * (limits::PAYLOADS + 1)), refused);
        assert_eq!(taken(1, limits::PAYLOAD_BYTES), None);
        assert_eq!(taken(1, limits::PAYLOAD_BYTES + 1), refused);
    }

    #[test]
    fn the_reply_carries_annotations() {
        let stats = Stats {
            blob: Digest::sha256(b""),
            blob_bytes: 0,
            coding: Coding::Plain,
            image_bytes: 0,
            contents: Contents::default(),
            times: StageTimes::default(),
            ahead: AheadFacts::default(),
            total: Duration::ZERO,
        };
        let applied = Applied { descriptor: sample().diff, stats };
        let (grpc, ttrpc) = (to_grpc(&applied).applied.unwrap(), to_ttrpc(&applied).applied.unwrap());
        assert_eq!(grpc.annotations.get("key").map(String::as_str), Some("value"));
        assert_eq!(grpc.annotations, ttrpc.annotations);
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
