//! A Diff service that writes nothing: it answers with the digest of the decompressed blob.

use std::{collections::BTreeMap, io::Read as _, time::Duration};

use containerd_client::{
    services::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse},
    types::{Descriptor, Mount},
};
use tonic::{Request, Response, Status};

use super::{FakeContainerd, Held, Service};
use crate::archive::digest;
use api::diff_server::{self, DiffServer};

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.diff.v1.rs"));
}

/// What it was asked for, and how it answers.
#[derive(Default)]
pub(super) struct Differ {
    applied: Vec<(String, Vec<Mount>)>,
    pauses: BTreeMap<String, Duration>,
    refused: BTreeMap<String, Status>,
    running: usize,
    most: usize,
}

impl FakeContainerd {
    /// The digests of the layers that were applied so far, in the order in which that began, each with its mounts.
    pub fn applied(&self) -> Vec<(String, Vec<Mount>)> {
        self.state.lock().unwrap().differ.applied.clone()
    }

    /// The most layers that were applied at the same time.
    pub fn most_applied_at_once(&self) -> usize {
        self.state.lock().unwrap().differ.most
    }

    /// Lets the differ take so long for a blob.
    pub fn slow_down(&self, blob: &str, pause: Duration) {
        self.state.lock().unwrap().differ.pauses.insert(blob.to_owned(), pause);
    }

    /// Lets the differ refuse a blob, or take it again.
    pub fn refuse(&self, blob: &str, status: Option<Status>) {
        let mut state = self.state.lock().unwrap();
        match status {
            Some(status) => state.differ.refused.insert(blob.to_owned(), status),
            None => state.differ.refused.remove(blob),
        };
    }
}

pub(super) fn service(service: Service) -> DiffServer<Service> {
    DiffServer::new(service)
}

/// Counts an Apply for as long as it runs, also when its caller goes away.
struct Running(Service);

impl Running {
    fn new(service: &Service) -> Self {
        let mut state = service.state.lock().unwrap();
        state.differ.running += 1;
        state.differ.most = state.differ.most.max(state.differ.running);
        Self(service.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().differ.running -= 1;
    }
}

#[tonic::async_trait]
impl diff_server::Diff for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let ApplyRequest { diff, mounts, .. } = request.get_ref().clone();
        let diff = diff.unwrap_or_default();
        let Held { bytes, .. } = self.blob("apply", &request, &diff.digest)?;
        let _running = Running::new(self);
        let (pause, refused) = {
            let mut state = self.state.lock().unwrap();
            state.differ.applied.push((diff.digest.clone(), mounts));
            (state.differ.pauses.get(&diff.digest).copied(), state.differ.refused.get(&diff.digest).cloned())
        };
        tokio::time::sleep(pause.unwrap_or_default()).await;
        if let Some(status) = refused {
            return Err(status);
        }
        let mut tar = Vec::new();
        match diff.media_type.ends_with("gzip") {
            true => flate2::read::MultiGzDecoder::new(bytes.as_slice())
                .read_to_end(&mut tar)
                .map_err(|error| Status::data_loss(error.to_string()))
                .map(drop)?,
            false => tar.clone_from(&bytes),
        }
        let (digest, size) = (digest(&tar), i64::try_from(tar.len()).unwrap());
        let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
        let applied = Some(Descriptor { media_type, digest, size, ..Descriptor::default() });
        Ok(Response::new(ApplyResponse { applied }))
    }

    async fn diff(&self, _: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        Err(Status::unimplemented("diff"))
    }
}
