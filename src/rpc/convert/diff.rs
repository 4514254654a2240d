//! Converts requests and replies of Diff, for both wires.

use std::collections::HashMap;

use containerd_client::services::v1 as wire;
use protobuf::{MessageField, well_known_types::timestamp::Timestamp as TtrpcTimestamp};

use super::{ConvertError, check_mounts, grpc, ttrpc};
use crate::{
    compare::{Compared, Request},
    descriptor::DescriptorError,
    error::Error,
    limits,
    rpc::proto::ttrpc::diff,
    store::check_labels,
    tree::Timestamp,
};

/// Converts a gRPC message. Errors: mounts, labels, reference or epoch are refused.
pub fn from_grpc(message: wire::DiffRequest) -> Result<Request, Error> {
    check(Request {
        left: grpc::mounts(message.left),
        right: grpc::mounts(message.right),
        media_type: message.media_type,
        reference: message.r#ref,
        labels: message.labels.into_iter().collect(),
        source_date_epoch: message
            .source_date_epoch
            .map(|time| timestamp(time.seconds, time.nanos))
            .transpose()?,
    })
}

/// Converts a ttrpc message. Errors: mounts, labels, reference or epoch are refused.
pub fn from_ttrpc(message: diff::DiffRequest) -> Result<Request, Error> {
    check(Request {
        left: ttrpc::mounts(message.left),
        right: ttrpc::mounts(message.right),
        media_type: message.media_type,
        reference: message.ref_,
        labels: message.labels.into_iter().collect(),
        source_date_epoch: message
            .source_date_epoch
            .into_option()
            .map(|time| timestamp(time.seconds, time.nanos))
            .transpose()?,
    })
}

/// Converts a reply to its gRPC message.
pub fn to_grpc(compared: &Compared) -> wire::DiffResponse {
    wire::DiffResponse { diff: Some(grpc::to_descriptor(&compared.descriptor)) }
}

/// Converts a reply to its ttrpc message.
pub fn to_ttrpc(compared: &Compared) -> diff::DiffResponse {
    let mut message = diff::DiffResponse::new();
    message.diff = MessageField::some(ttrpc::to_descriptor(&compared.descriptor));
    message
}

/// Builds the gRPC message of `request`, for clients.
pub fn request_to_grpc(request: &Request) -> wire::DiffRequest {
    wire::DiffRequest {
        left: grpc::to_mounts(&request.left),
        right: grpc::to_mounts(&request.right),
        media_type: request.media_type.clone(),
        r#ref: request.reference.clone(),
        labels: labels(request),
        source_date_epoch: request
            .source_date_epoch
            .map(|time| prost_types::Timestamp { seconds: time.seconds, nanos: nanos(time) }),
    }
}

/// Builds the ttrpc message of `request`, for clients.
pub fn request_to_ttrpc(request: &Request) -> diff::DiffRequest {
    let mut message = diff::DiffRequest::new();
    message.left = ttrpc::to_mounts(&request.left);
    message.right = ttrpc::to_mounts(&request.right);
    message.media_type = request.media_type.clone();
    message.ref_ = request.reference.clone();
    message.labels = labels(request);
    if let Some(time) = request.source_date_epoch {
        let mut epoch = TtrpcTimestamp::new();
        (epoch.seconds, epoch.nanos) = (time.seconds, nanos(time));
        message.source_date_epoch = MessageField::some(epoch);
    }
    message
}

fn labels(request: &Request) -> HashMap<String, String> {
    request.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn nanos(time: Timestamp) -> i32 {
    i32::try_from(time.nanoseconds).unwrap_or(i32::MAX)
}

fn timestamp(seconds: i64, nanos: i32) -> Result<Timestamp, ConvertError> {
    match u32::try_from(nanos) {
        Ok(nanoseconds) if nanoseconds < 1_000_000_000 => Ok(Timestamp { seconds, nanoseconds }),
        _ => Err(ConvertError::Epoch { nanos }),
    }
}

/// Refuses requests that no later step would accept, and those that would be large while they wait.
/// Media types are checked later.
fn check(request: Request) -> Result<Request, Error> {
    let Request { left, right, media_type, reference, labels, .. } = &request;
    let side = |name: &'static str| move |error: Error| error.context(format!("diff: {name}"));
    check_mounts(left).map_err(side("left"))?;
    check_mounts(right).map_err(side("right"))?;
    let printable = media_type.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    if media_type.len() > 255 || !printable {
        return Err(DescriptorError::MediaType(media_type.chars().take(255).collect()).into());
    }
    if reference.len() > limits::REFERENCE_BYTES {
        return Err(ConvertError::Reference { len: reference.len() }.into());
    }
    if labels.len() > limits::LABELS {
        return Err(ConvertError::Labels { count: labels.len() }.into());
    }
    // The store checks labels only after all the work is done.
    check_labels(labels)?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        codec::Coding,
        compare::{Contents, Stats, Times},
        descriptor::Descriptor,
        digest::Digest,
        error::Kind,
        snapshot::Mount,
    };

    fn sample() -> Request {
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        Request {
            left: vec![mount("erofs", "/root/snapshots/1/layer.erofs", &["ro", "loop"])],
            right: vec![
                mount("erofs", "/root/snapshots/1/layer.erofs", &["ro", "loop"]),
                mount("format/mkdir/overlay", "overlay", &["upperdir=/root/snapshots/2/fs"]),
            ],
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
            reference: "commit-1".to_owned(),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            source_date_epoch: Some(Timestamp { seconds: -1, nanoseconds: 999_999_999 }),
        }
    }

    #[test]
    fn a_request_is_the_same_over_both_wires() {
        let full = sample();
        let empty = Request {
            left: Vec::new(),
            right: Vec::new(),
            media_type: String::new(),
            reference: String::new(),
            labels: BTreeMap::new(),
            source_date_epoch: None,
        };
        for request in [full, empty] {
            assert_eq!(from_grpc(request_to_grpc(&request)).unwrap(), request);
            assert_eq!(from_ttrpc(request_to_ttrpc(&request)).unwrap(), request);
        }
    }

    /// Diff's reply is the only one whose field has not number 1.
    #[test]
    fn the_reply_is_field_three() {
        use prost::Message as _;
        use protobuf::Message as _;
        let descriptor = Descriptor::of("a/b", Digest::sha256(b""), 7);
        let stats = Stats {
            diff_id: Digest::sha256(b""),
            uncompressed_bytes: 7,
            coding: Coding::Plain,
            contents: Contents::default(),
            times: Times::default(),
            total: Duration::ZERO,
        };
        let compared = Compared { descriptor, stats };
        let grpc = to_grpc(&compared).encode_to_vec();
        let ttrpc = to_ttrpc(&compared).write_to_bytes().unwrap();
        assert_eq!(grpc, ttrpc);
        assert_eq!(grpc.first(), Some(&((3 << 3) | 2)));
    }

    #[test]
    fn each_malformed_part_is_named() {
        let change = |change: &dyn Fn(&mut wire::DiffRequest)| {
            let mut message = request_to_grpc(&sample());
            change(&mut message);
            let error = from_grpc(message).unwrap_err();
            (error.kind(), error.reason(), error.to_string())
        };
        let (kind, reason, message) = change(&|m| m.right[1].options[0].push('\0'));
        assert_eq!((kind, reason), (Kind::Malformed, "request.mounts"));
        assert_eq!(message, "diff: right: mount 1 holds a NUL byte");
        let (kind, reason, _) = change(&|m| m.left = vec![m.left[0].clone(); limits::MOUNTS + 1]);
        assert_eq!((kind, reason), (Kind::Exhausted, "limit.mounts"));
        let (kind, reason, _) = change(&|m| m.media_type = "a b".to_owned());
        assert_eq!((kind, reason), (Kind::Malformed, "request.descriptor"));
        let (kind, reason, _) = change(&|m| m.media_type = "a".repeat(256));
        assert_eq!((kind, reason), (Kind::Malformed, "request.descriptor"));
        let (kind, reason, _) = change(&|m| m.r#ref = "x".repeat(limits::REFERENCE_BYTES + 1));
        assert_eq!((kind, reason), (Kind::Malformed, "request.ref"));
        let (kind, reason, _) = change(&|m| drop(m.labels.insert("key".to_owned(), "x".repeat(4094))));
        assert_eq!((kind, reason), (Kind::Malformed, "store.label"));
        for nanos in [-1, 1_000_000_000] {
            let epoch = prost_types::Timestamp { seconds: 0, nanos };
            let (kind, reason, _) = change(&|m| m.source_date_epoch = Some(epoch));
            assert_eq!((kind, reason), (Kind::Malformed, "request.source-date-epoch"));
        }
        let (kind, reason, _) = change(&|m| {
            m.labels = (0..=limits::LABELS).map(|number| (number.to_string(), String::new())).collect();
        });
        assert_eq!((kind, reason), (Kind::Exhausted, "limit.labels"));
    }

    #[test]
    fn as_much_as_is_allowed_is_taken() {
        let mut message = request_to_grpc(&sample());
        message.left = vec![message.left[0].clone(); limits::MOUNTS];
        message.media_type = "a".repeat(255);
        message.r#ref = "x".repeat(limits::REFERENCE_BYTES);
        message.labels = (0..limits::LABELS).map(|number| (number.to_string(), String::new())).collect();
        let request = from_grpc(message).unwrap();
        assert_eq!((request.left.len(), request.labels.len()), (limits::MOUNTS, limits::LABELS));
    }

    proptest! {
        #[test]
        fn both_wires_agree_on_every_message(
            media_type in ".{0,40}", reference in ".{0,20}", seconds: i64, nanos: i32,
            labels in proptest::collection::hash_map(".{0,10}", ".{0,10}", 0..4), kind in ".{0,10}",
        ) {
            let mount = Mount { kind, ..Mount::default() };
            let epoch = prost_types::Timestamp { seconds, nanos };
            let request = Request {
                left: vec![mount.clone()], right: vec![mount], media_type, reference,
                labels: labels.into_iter().collect(), source_date_epoch: None,
            };
            let mut first = request_to_grpc(&request);
            first.source_date_epoch = Some(epoch);
            let mut second = request_to_ttrpc(&request);
            let mut epoch = TtrpcTimestamp::new();
            (epoch.seconds, epoch.nanos) = (seconds, nanos);
            second.source_date_epoch = MessageField::some(epoch);
            match (from_grpc(first), from_ttrpc(second)) {
                (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
                (Err(a), Err(b)) => prop_assert_eq!(a.to_string(), b.to_string()),
                (a, b) => prop_assert!(false, "{:?} {:?}", a, b),
            }
        }
    }
}
