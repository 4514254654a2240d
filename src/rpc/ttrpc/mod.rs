//! The ttrpc half: containerd's framing around the same Diff service.
//!
//! The ttrpc crate's own server bounds neither the requests of a connection nor the time to its
//! first frame, and lets ids repeat. So this module has its own loop over frames, and uses the
//! crate's messages, codec and generated dispatch.
//!
//! Source: containerd/ttrpc `PROTOCOL.md` and `channel.go`.

mod frames;

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use ::ttrpc::{
    Code, MessageHeader, Request, Response,
    r#async::TtrpcContext,
    get_status,
    proto::{Codec as _, ResponseInit as _},
};
use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{RecvFlags, Shutdown},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{UnixStream, unix::WriteHalf},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use frames::{Frames, Verdict};

use super::{
    convert, metadata,
    proto::ttrpc::{
        diff,
        diff_ttrpc::{Diff, create_diff},
    },
    status,
};
use crate::{
    call::Cancel,
    call::{Caller, Method, Peer, Wire},
    error::Error,
    limits,
    service::{Job, Service},
};

/// Longest time that a peer may take to receive one response.
const WRITE: Duration = Duration::from_secs(30);

/// The Diff service of one connection.
struct Handler {
    service: Arc<Service>,
    peer: Peer,
}

#[async_trait::async_trait]
impl Diff for Handler {
    async fn apply(
        &self,
        context: &TtrpcContext,
        message: diff::ApplyRequest,
    ) -> ::ttrpc::Result<diff::ApplyResponse> {
        let applied = self.serve(Method::Apply, context, message, convert::apply::from_ttrpc).await?;
        Ok(convert::apply::to_ttrpc(&applied))
    }

    async fn diff(
        &self,
        context: &TtrpcContext,
        message: diff::DiffRequest,
    ) -> ::ttrpc::Result<diff::DiffResponse> {
        let compared = self.serve(Method::Diff, context, message, convert::diff::from_ttrpc).await?;
        Ok(convert::diff::to_ttrpc(&compared))
    }
}

impl Handler {
    /// Converts the message and calls the service once.
    async fn serve<M, J: Job>(
        &self,
        method: Method,
        context: &TtrpcContext,
        message: M,
        convert: fn(M) -> Result<J, Error>,
    ) -> ::ttrpc::Result<J::Done> {
        let caller = Caller::new(Wire::Ttrpc, method, Some(self.peer));
        let parsed = metadata::ttrpc_call(&context.metadata, context.timeout_nano)
            .and_then(|call| Ok((call, convert(message)?)));
        let (call, job) = parsed.map_err(|error| refusal(&self.service.refuse(&caller, error)))?;
        self.service.run(&caller, call, job).await.map_err(|error| refusal(&error))
    }
}

fn refusal(error: &Error) -> ::ttrpc::Error {
    ::ttrpc::Error::RpcStatus(status::ttrpc(error))
}

type Services = Arc<HashMap<String, ::ttrpc::r#async::Service>>;

/// Serves one connection until its peer goes away or `stop` is ready and its requests are done.
///
/// The protocol has no GOAWAY. At `stop` the connection is closed for requests that the peer has
/// not sent yet: the next one fails at once with `EPIPE`, so the peer knows that nobody received
/// it. Requests sent before are served.
///
/// Losing the connection drops the requests, which cancels them.
pub(super) async fn serve(
    mut stream: UnixStream,
    peer: Peer,
    service: Arc<Service>,
    max_streams: u32,
    mut stop: watch::Receiver<bool>,
) {
    let services = Arc::new(create_diff(Arc::new(Handler { service, peer })));
    let max_streams = usize::try_from(max_streams).unwrap_or(usize::MAX);
    let (mut reader, mut writer) = stream.split();
    let mut frames = Frames::default();
    let mut requests: JoinSet<(u32, Response)> = JoinSet::new();
    let mut open = HashSet::new();
    let first_frame = sleep(limits::FIRST_FRAME);
    tokio::pin!(first_frame);
    let mut waits_for_first = true;
    let mut stopping = false;
    // `closed`: no further requests can arrive. `at_end`: all that were sent before have been read.
    let (mut closed, mut at_end) = (false, false);
    loop {
        while let Some(frame) = frames.next() {
            waits_for_first = false;
            let id = frame.header.stream_id;
            let answer = match frame.judge(&open) {
                Verdict::Ignore => continue,
                Verdict::Refuse(code, message) => refuse(code, &message),
                Verdict::Serve if requests.len() >= max_streams => {
                    refuse(Code::RESOURCE_EXHAUSTED, &format!("more than {max_streams} requests at a time"))
                }
                Verdict::Serve => {
                    let services = Arc::clone(&services);
                    open.insert(id);
                    requests
                        .spawn(async move { (id, dispatch(&services, frame.header, &frame.payload).await) });
                    continue;
                }
            };
            if let Err(error) = respond(&mut writer, id, &answer).await {
                return tracing::debug!(%error, ?peer, "ttrpc connection closed");
            }
        }
        // The peer may finish a request of which a part has arrived.
        if stopping && !closed && frames.is_at_boundary() {
            // The socket itself is asked: the runtime may not have been told yet of what has just arrived.
            match rustix::net::recv(reader.as_ref(), spare_capacity(frames.room()), RecvFlags::DONTWAIT) {
                Ok((0, _)) => return,
                Ok(_) => continue,
                Err(Errno::AGAIN) => closed = true,
                Err(Errno::INTR) => continue,
                Err(error) => return tracing::debug!(%error, ?peer, "ttrpc connection lost"),
            }
            if let Err(error) = rustix::net::shutdown(reader.as_ref(), Shutdown::Read) {
                return tracing::debug!(%error, ?peer, "ttrpc connection lost");
            }
        }
        if at_end && requests.is_empty() {
            return;
        }
        tokio::select! {
            read = reader.read_buf(frames.room()), if !at_end => match read {
                Ok(0) if closed => at_end = true,
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => return tracing::debug!(%error, ?peer, "ttrpc connection lost"),
            },
            Some(done) = requests.join_next() => {
                let written = match done {
                    Ok((id, response)) => {
                        open.remove(&id);
                        respond(&mut writer, id, &response).await
                    }
                    // Requests catch their own panics. A connection in an unknown state is closed.
                    Err(error) => Err(io::Error::other(error)),
                };
                if let Err(error) = written {
                    return tracing::debug!(%error, ?peer, "ttrpc connection closed");
                }
            }
            () = &mut first_frame, if waits_for_first => {
                return tracing::debug!(?peer, "ttrpc connection closed: no first frame");
            }
            () = async { drop(stop.wait_for(|stop| *stop).await) }, if !stopping => stopping = true,
            // After the end of reading, only polling shows that the peer has gone.
            () = sleep(Cancel::POLL), if at_end => {
                let state = reader.as_ref().ready(Interest::WRITABLE).await;
                if state.is_ok_and(|state| state.is_write_closed()) {
                    return tracing::debug!(?peer, "ttrpc connection lost");
                }
            }
        }
    }
}

/// Calls the method that the request names.
async fn dispatch(services: &Services, header: MessageHeader, payload: &[u8]) -> Response {
    let request = match Request::decode(payload) {
        Ok(request) => request,
        Err(error) => return refuse(Code::INVALID_ARGUMENT, &format!("not a ttrpc request: {error}")),
    };
    let service = services.get(&request.service);
    let Some(method) = service.and_then(|service| service.methods.get(&request.method)) else {
        let name = format!("{}/{}", request.service, request.method);
        let name: String = name.chars().take(256).collect();
        return refuse(Code::UNIMPLEMENTED, &format!("no method {name:?}"));
    };
    let context = TtrpcContext {
        mh: header,
        metadata: ::ttrpc::context::from_pb(&request.metadata),
        timeout_nano: request.timeout_nano,
        connection_data: Arc::default(),
    };
    // The generated dispatch turns errors of the service into responses. It fails only for a
    // message that cannot be decoded.
    method
        .handler(context, request)
        .await
        .unwrap_or_else(|error| refuse(Code::INVALID_ARGUMENT, &error.to_string()))
}

fn refuse(code: Code, message: &str) -> Response {
    Response::init_status(get_status(code, message))
}

/// Writes one response frame.
async fn respond(writer: &mut WriteHalf<'_>, stream_id: u32, response: &Response) -> io::Result<()> {
    let payload = response.encode().map_err(io::Error::other)?;
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::from(MessageHeader::new_response(stream_id, length));
    frame.extend_from_slice(&payload);
    timeout(WRITE, writer.write_all(&frame)).await?
}
