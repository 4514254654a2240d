//! Progress of a layer that our own daemon applies: the messages of the service, and its client.
//!
//! containerd's Diff service says nothing before the end of an Apply. Our daemon has a second service beside it; a differ that
//! does not have it is as good, only silent.
//!
//! Source: protos/plywood/progress.proto; docs/formats/unpack.md, "Progress".

use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::call::Progress;

/// Header of a request that is watched: the name under which it is.
pub const HEADER: &str = "plywood-progress";
/// Longest such name, in bytes.
pub const ID_BYTES: usize = 64;

/// Names the request to watch.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WatchRequest {
    /// Value of its header.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Seen {
    /// Bytes of the blob that are applied.
    #[prost(uint64, tag = "1")]
    pub done_bytes: u64,
}

/// Copies what the server at the other end of `channel` reports to `progress`. Returns when nothing more will come.
pub(super) async fn follow(channel: Channel, id: String, progress: &Progress) {
    let mut grpc = Grpc::new(channel);
    if grpc.ready().await.is_err() {
        return;
    }
    let path = PathAndQuery::from_static("/plywood.progress.v1.Progress/Watch");
    let request = Request::new(WatchRequest { id });
    let codec = ProstCodec::<WatchRequest, Seen>::default();
    let Ok(response) = grpc.server_streaming(request, path, codec).await else { return };
    let mut stream = response.into_inner();
    while let Ok(Some(Seen { done_bytes })) = stream.message().await {
        progress.set_done(done_bytes);
    }
}
