//! Channels to servers on unix sockets.

use std::{
    io,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// A channel that connects to the socket at `path` when it is first used. To be called on a runtime.
pub fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| connect(path.clone())))
}

/// A channel that is connected to the socket at `path`.
pub async fn connected(path: &Path) -> Result<Channel, Error> {
    let path = path.to_owned();
    endpoint().connect_with_connector(tower::service_fn(move |_: Uri| connect(path.clone()))).await
}

fn endpoint() -> Endpoint {
    // The name is needed and not used.
    Endpoint::from_static("http://unix")
}

async fn connect(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}
