//! Differs: whoever applies a layer, be it containerd's Diff service or a differ on a socket of its own.
//!
//! Source: docs/formats/unpack.md; containerd `api/services/diff/v1/diff.proto`.

use std::{path::Path, time::Duration};

use containerd_client::{
    services::v1::{ApplyRequest, diff_client::DiffClient},
    types,
};
use tokio::{runtime::Handle, task::AbortHandle};
use tonic::Code;

use super::{
    client::{Client, MESSAGE_BYTES, from_status, request, text_of},
    content::Containerd,
    layers::to_wire,
    name::random,
    progress::{HEADER, follow},
};
use crate::{
    call::Call,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
    snapshot::Mount,
    store::reason,
};

/// Reason id of a layer that a differ does not apply.
const REFUSED: &str = "unpack.apply";

/// A server of the Diff service.
#[derive(Clone)]
pub struct Differ {
    client: Client,
    /// Whether it may report progress.
    is_direct: bool,
}

impl Containerd {
    /// containerd's Diff service, which asks the differs of its configuration one after the other.
    pub fn differ(&self) -> Differ {
        Differ { client: self.client.clone(), is_direct: false }
    }
}

/// A layer that is being applied. Dropping it cancels that.
#[derive(Debug)]
pub struct Applying(AbortHandle);

impl Drop for Applying {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Differ {
    /// The differ that listens on `socket`. Nothing is sent yet.
    pub fn at(socket: &Path, runtime: Handle, stall: Duration) -> Self {
        Self { client: Client::new(socket, runtime, stall), is_direct: true }
    }

    /// Begins to apply a layer to what `mounts` mount. Calls `done` with the diffID that the differ found, on the runtime,
    /// unless the answer is dropped before. A layer takes the time that it takes: there is no limit. A daemon of ours sets the
    /// progress of the call meanwhile.
    pub fn begin(
        &self,
        call: &Call,
        layer: &Descriptor,
        mounts: &[Mount],
        done: impl FnOnce(Result<Digest>) + Send + 'static,
    ) -> Result<Applying> {
        let size = i64::try_from(layer.size_bytes).map_err(|_wide| {
            Error::new(Kind::Malformed, reason::SIZE, format!("{} bytes are no size", layer.size_bytes))
        })?;
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size,
            annotations: layer.annotations.clone().into_iter().collect(),
        };
        let mounts = mounts.iter().map(to_wire).collect();
        let message = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
        let mut message = request(call, message)?;
        let id = if self.is_direct { Some(random()?) } else { None };
        if let Some(id) = id.as_ref().and_then(|id| id.parse().ok()) {
            message.metadata_mut().insert(HEADER, id);
        }
        let mut service = DiffClient::new(self.client.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let address = self.client.address.clone();
        let (channel, progress) = (self.client.channel.clone(), call.progress.clone());
        let watch = async move {
            if let Some(id) = id {
                follow(channel, id, &progress).await;
            }
            std::future::pending::<()>().await;
        };
        let task = self.client.runtime.spawn(async move {
            let answer = tokio::select! {
                answer = service.apply(message) => answer,
                () = watch => return,
            };
            let outcome = match answer {
                Ok(response) => applied(response.into_inner().applied),
                Err(status) => {
                    let message = format!("differ at {}: {}", address.display(), text_of(&status));
                    let kind = match status.code() {
                        Code::Unimplemented => Kind::NotImplemented,
                        _ => from_status(status).kind(),
                    };
                    Err(Error::new(kind, REFUSED, message))
                }
            };
            done(outcome);
        });
        Ok(Applying(task.abort_handle()))
    }
}

fn applied(descriptor: Option<types::Descriptor>) -> Result<Digest> {
    let digest = descriptor.map(|descriptor| descriptor.digest).unwrap_or_default();
    digest.parse().map_err(|error| {
        let message = format!("the differ answered with {digest:?} instead of a digest: {error}");
        Error::new(Kind::DataLoss, REFUSED, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_digest_is_an_error() {
        assert_eq!(applied(None).unwrap_err().reason(), REFUSED);
        let answer = types::Descriptor { digest: "sha256:1".to_owned(), ..types::Descriptor::default() };
        assert_eq!(applied(Some(answer)).unwrap_err().reason(), REFUSED);
        let digest = Digest::sha256(b"x");
        let answer = types::Descriptor { digest: digest.to_string(), ..types::Descriptor::default() };
        assert_eq!(applied(Some(answer)).unwrap(), digest);
    }
}
