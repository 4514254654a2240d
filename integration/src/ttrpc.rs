//! A ttrpc client of one call at a time, written from the protocol.
//!
//! Source: containerd/ttrpc, `PROTOCOL.md` and `request.proto`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use prost::Message;

/// Frame type of a request.
const REQUEST: u8 = 1;
/// Frame type of a response.
const RESPONSE: u8 = 2;

/// The envelope of a call.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    metadata: Vec<KeyValue>,
}

/// One metadata entry.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// The envelope of an answer.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// `google.rpc.Status` without its details.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Status code, by gRPC's numbers.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Message of the error.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    next_stream: u32,
}

impl Client {
    /// Connects. Every read ends after 30 seconds at the latest.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
        Ok(Self { stream, next_stream: 1 })
    }

    /// One call. The inner error is the status the service answered with.
    pub fn call<Q: Message, A: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        namespace: &str,
        message: &Q,
    ) -> anyhow::Result<Result<A, Status>> {
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload: message.encode_to_vec(),
            timeout_nano: 0,
            metadata: vec![KeyValue { key: "containerd-namespace-ttrpc".into(), value: namespace.into() }],
        };
        let body = request.encode_to_vec();
        let stream = self.next_stream;
        self.next_stream += 2;
        let mut frame = Vec::with_capacity(10 + body.len());
        frame.extend_from_slice(&u32::try_from(body.len())?.to_be_bytes());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&[REQUEST, 0]);
        frame.extend_from_slice(&body);
        self.stream.write_all(&frame)?;

        let mut header = [0; 10];
        self.stream.read_exact(&mut header)?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
        anyhow::ensure!(kind == RESPONSE, "frame type {kind} instead of a response");
        let answered = u32::from_be_bytes([s0, s1, s2, s3]);
        anyhow::ensure!(answered == stream, "an answer on stream {answered} to a call on {stream}");
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        anyhow::ensure!(len <= 4 << 20, "a frame of {len} bytes");
        let mut body = vec![0; usize::try_from(len)?];
        self.stream.read_exact(&mut body)?;
        let response = Response::decode(body.as_slice())?;
        Ok(match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(A::decode(response.payload.as_slice())?),
        })
    }
}
