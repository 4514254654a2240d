//! The gRPC half: the Diff service over HTTP/2, with the health service and the progress of its requests beside it.

use std::{io, sync::Arc, time::Duration};

use containerd_client::services::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::server::HealthReporter;

use super::{
    DIFF_SERVICE, convert,
    listener::Connection,
    metadata,
    progress::Watched,
    proto::{
        grpc::diff_server::{Diff, DiffServer},
        progress::progress_server::ProgressServer,
    },
    status,
};
use crate::{
    call::{Caller, Method, Wire},
    error::Error,
    limits,
    service::{Job, Service},
};

/// Time after an unanswered ping until the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two pings. A unix socket shows the end of a peer by itself, but not that it hangs.
const PING_INTERVAL: Duration = Duration::from_secs(300);
/// Streams per connection that a client may reset before they were accepted; beyond, the connection
/// is closed (rapid reset). `LOCAL_RESETS` bounds those that the server resets.
const PENDING_RESETS: usize = 32;
const LOCAL_RESETS: usize = 256;

/// The Diff service of all gRPC connections.
struct Handler {
    service: Arc<Service>,
    watched: Watched,
}

#[tonic::async_trait]
impl Diff for Handler {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let applied = self.serve(Method::Apply, request, convert::apply::from_grpc).await?;
        Ok(Response::new(convert::apply::to_grpc(&applied)))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let compared = self.serve(Method::Diff, request, convert::diff::from_grpc).await?;
        Ok(Response::new(convert::diff::to_grpc(&compared)))
    }
}

impl Handler {
    /// Converts the message and calls the service once.
    async fn serve<M, J: Job>(
        &self,
        method: Method,
        request: Request<M>,
        convert: fn(M) -> Result<J, Error>,
    ) -> Result<J::Done, Status> {
        let caller = Caller::new(Wire::Grpc, method, request.extensions().get().copied());
        let headers = request.metadata().clone();
        let parsed =
            metadata::grpc_call(&headers).and_then(|call| Ok((call, convert(request.into_inner())?)));
        let (call, job) = parsed.map_err(|error| status::grpc(&self.service.refuse(&caller, error)))?;
        let _watching = self.watched.begin(&headers, &call.progress);
        self.service.run(&caller, call, job).await.map_err(|error| status::grpc(&error))
    }
}

/// Serves the connections that come in. When no more can come, sends `GOAWAY` on each, serves the
/// requests that its client sent before receiving that, and returns when the last one is closed.
/// The health service reports from `health`.
pub async fn serve(
    service: Arc<Service>,
    health: HealthReporter,
    connections: tokio::sync::mpsc::Receiver<Connection>,
    max_streams: u32,
) -> Result<(), tonic::transport::Error> {
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    health.set_service_status(DIFF_SERVICE, tonic_health::ServingStatus::Serving).await;
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health),
    );
    let watched = Watched::default();
    let progress = ProgressServer::new(watched.clone());
    let diff = DiffServer::new(Handler { service, watched })
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES);
    Server::builder()
        .max_concurrent_streams(max_streams)
        .http2_max_header_list_size(limits::GRPC_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS))
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(diff)
        .add_service(progress)
        .add_service(health)
        .serve_with_incoming_shutdown(
            tokio_stream::StreamExt::map(ReceiverStream::new(connections), Ok::<_, io::Error>),
            // A signal would drop connections that are still in the channel. The end of the channel
            // stops the server too, without dropping any; but the server waits for connections only
            // when it has a signal.
            std::future::pending(),
        )
        .await
}
