//! Converts errors to statuses: code, message, and the reason id in the details.
//!
//! Source: gRPC status codes; `google/rpc/status.proto` and `google/rpc/error_details.proto` for the details,
//! which both wires carry in the same form. The table of codes is in `docs/formats/containerd.md`.

use prost::Message as _;
use tonic::Code;

use crate::{
    error::{Error, Kind},
    limits,
    observe::one_line,
};

/// Code of a kind of failure, which has the same number on both wires.
fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotImplemented => Code::Unimplemented,
        Kind::Malformed => Code::InvalidArgument,
        Kind::Denied => Code::PermissionDenied,
        Kind::Conflict => Code::FailedPrecondition,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::DataLoss => Code::DataLoss,
        Kind::NotFound => Code::NotFound,
        Kind::Unavailable => Code::Unavailable,
        Kind::Cancelled => Code::Cancelled,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Changed => Code::Aborted,
        Kind::Internal => Code::Internal,
    }
}

/// Builds the status of a gRPC reply.
pub fn grpc(error: &Error) -> tonic::Status {
    let (code, message) = (code(error.kind()), message(error));
    let details = google::Status {
        code: code as i32,
        message: message.clone(),
        details: vec![google::Any { type_url: ERROR_INFO.to_owned(), value: info(error).encode_to_vec() }],
    };
    tonic::Status::with_details(code, message, details.encode_to_vec().into())
}

/// Builds the status of a ttrpc reply.
pub fn ttrpc(error: &Error) -> ttrpc::Status {
    let mut detail = ttrpc::proto::Any::new();
    detail.type_url = ERROR_INFO.to_owned();
    detail.value = info(error).encode_to_vec();
    let mut status = ttrpc::get_status(ttrpc_code(error.kind()), message(error));
    status.details.push(detail);
    status
}

/// Reads the reason id from the details of a gRPC status, for clients.
pub fn reason_of(status: &tonic::Status) -> Option<String> {
    let details = google::Status::decode(status.details()).ok()?;
    let detail = details.details.into_iter().find(|detail| detail.type_url == ERROR_INFO)?;
    google::ErrorInfo::decode(detail.value.as_slice()).ok().map(|info| info.reason)
}

/// Reads the reason id from the details of a ttrpc status, for clients.
pub fn reason_of_ttrpc(status: &ttrpc::Status) -> Option<String> {
    let detail = status.details.iter().find(|detail| detail.type_url == ERROR_INFO)?;
    google::ErrorInfo::decode(detail.value.as_slice()).ok().map(|info| info.reason)
}

fn ttrpc_code(kind: Kind) -> ttrpc::Code {
    use protobuf::Enum as _;
    ttrpc::Code::from_i32(code(kind) as i32).expect("both enumerations are google.rpc.Code")
}

/// Text of an error followed by its reason id: on one line, without control characters, and cut to
/// the length that a header may have.
fn message(error: &Error) -> String {
    let reason = format!(" [{}]", error.reason());
    let room = limits::STATUS_MESSAGE_BYTES - reason.len();
    one_line(&error.to_string(), room) + &reason
}

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

fn info(error: &Error) -> google::ErrorInfo {
    google::ErrorInfo { reason: error.reason().to_owned(), domain: "plywood".to_owned() }
}

/// The three messages of status details, with the fields in use.
mod google {
    /// `google.rpc.Status`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(int32, tag = "1")]
        pub code: i32,
        #[prost(string, tag = "2")]
        pub message: String,
        #[prost(message, repeated, tag = "3")]
        pub details: Vec<Any>,
    }

    /// `google.protobuf.Any`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Any {
        #[prost(string, tag = "1")]
        pub type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    /// `google.rpc.ErrorInfo` without its metadata.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ErrorInfo {
        #[prost(string, tag = "1")]
        pub reason: String,
        #[prost(string, tag = "2")]
        pub domain: String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [(Kind, i32); 12] = [
        (Kind::Cancelled, 1),
        (Kind::Malformed, 3),
        (Kind::DeadlineExceeded, 4),
        (Kind::NotFound, 5),
        (Kind::Denied, 7),
        (Kind::Exhausted, 8),
        (Kind::Conflict, 9),
        (Kind::Changed, 10),
        (Kind::NotImplemented, 12),
        (Kind::Internal, 13),
        (Kind::Unavailable, 14),
        (Kind::DataLoss, 15),
    ];

    #[test]
    fn every_kind_has_the_same_number_on_both_wires() {
        use protobuf::Enum as _;
        for (kind, number) in KINDS {
            assert_eq!(code(kind) as i32, number, "{kind:?}");
            assert_eq!(ttrpc_code(kind).value(), number, "{kind:?}");
            // Logs and metrics use the names of the codes.
            let name = format!("{:?}", code(kind)).to_lowercase();
            assert_eq!(kind.as_str().replace('_', ""), name);
        }
    }

    #[test]
    fn the_reason_is_in_the_text_and_in_the_details() {
        let error =
            Error::new(Kind::Malformed, "tar.checksum", "checksum 1 is not 2").context("apply sha256:00");
        let status = grpc(&error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "apply sha256:00: checksum 1 is not 2 [tar.checksum]");
        assert_eq!(reason_of(&status).as_deref(), Some("tar.checksum"));
        assert_eq!(reason_of_ttrpc(&ttrpc(&error)).as_deref(), Some("tar.checksum"));
        assert_eq!(ttrpc(&error).message, status.message());
    }

    #[test]
    fn a_message_is_one_line_and_short_whatever_a_layer_put_in_it() {
        let hostile = format!("name \"{}\u{1b}[2J\r\n\0{}\"", "é".repeat(3), "\u{1f4a9}".repeat(100_000));
        let status = grpc(&Error::new(Kind::Malformed, "tar.name", hostile));
        let message = status.message();
        assert!(message.len() <= limits::STATUS_MESSAGE_BYTES, "{}", message.len());
        assert!(!message.chars().any(char::is_control), "{message}");
        assert!(
            message.starts_with("name \"ééé\\u{1b}[2J\\r\\n\\u{0}") && message.ends_with("... [tar.name]")
        );
        // A client receives the whole status as headers.
        let headers = status.to_http_percent_encoded_len();
        assert!(headers < 16 << 10, "{headers}");
    }

    trait HeaderLen {
        fn to_http_percent_encoded_len(&self) -> usize;
    }

    impl HeaderLen for tonic::Status {
        fn to_http_percent_encoded_len(&self) -> usize {
            let mut headers = tonic::codegen::http::HeaderMap::new();
            self.add_header(&mut headers).unwrap();
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
        }
    }
}
