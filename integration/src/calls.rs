//! Services of containerd and of Plywood called directly, as clients other than `ctr` would.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, ApplyResponse, DiffRequest, DiffResponse, WriteAction, WriteContentRequest,
};
use containerd_client::types::{Descriptor, Mount};
use testkit::grpc::channel;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::image::Layer;

/// The largest message either side takes, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 16 << 20;

/// Channels to both daemons and a runtime for them.
#[derive(Debug)]
pub struct Caller {
    pub(crate) runtime: Runtime,
    pub(crate) containerd: Channel,
    plywood: Channel,
    pub(crate) namespace: String,
}

/// An Apply under way. Dropping it cancels the call.
#[derive(Debug)]
pub struct Running(Option<JoinHandle<Result<ApplyResponse, Status>>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call.abort();
        }
    }
}

/// Which daemon answers a Diff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differ {
    /// Plywood, asked directly.
    Plywood,
    /// containerd's diff service, which asks the differs of its list.
    Service,
}

/// A snapshot as containerd lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether it is committed, and neither active nor a view.
    pub is_committed: bool,
    /// Name of the snapshot below it.
    pub parent: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A Diff under way. Dropping it cancels the call.
#[derive(Debug)]
pub struct Comparing(Option<JoinHandle<Result<DiffResponse, Status>>>);

impl Comparing {
    /// Whether the answer has come.
    pub fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Comparing {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call.abort();
        }
    }
}

/// Everything the collector keeps things alive by is set by hand here.
fn kept() -> HashMap<String, String> {
    [("containerd.io/gc.root".to_owned(), "test".to_owned())].into()
}

impl Caller {
    /// Connects to both sockets.
    pub fn connect(containerd: &Path, plywood: &Path, namespace: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (containerd, plywood) = {
            let _entered = runtime.enter();
            (channel(containerd), channel(plywood))
        };
        Ok(Self { runtime, containerd, plywood, namespace: namespace.into() })
    }

    /// Puts the blob of a layer into containerd's store and keeps it from being collected.
    pub fn ingest(&self, layer: &Layer) -> anyhow::Result<()> {
        let digest = layer.digest();
        let total = layer.size_bytes();
        let mut messages = Vec::new();
        let mut offset = 0;
        for piece in layer.blob.chunks(1 << 20) {
            let len = i64::try_from(piece.len())?;
            messages.push(WriteContentRequest {
                action: WriteAction::Write.into(),
                r#ref: digest.clone(),
                total,
                offset,
                data: piece.to_vec(),
                ..WriteContentRequest::default()
            });
            offset += len;
        }
        messages.push(WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: digest.clone(),
            total,
            offset,
            expected: digest,
            // Part of the commit: the collector may run at any moment after it.
            labels: kept(),
            ..WriteContentRequest::default()
        });
        let request = in_namespace(tokio_stream::iter(messages), Some(&self.namespace))?;
        let mut client = ContentClient::new(self.containerd.clone());
        let written = self.runtime.block_on(async {
            let mut answers = client.write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Status>(())
        });
        match written {
            Err(status) if status.code() != Code::AlreadyExists => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// A new active snapshot of the EROFS snapshotter; its mounts.
    pub fn prepare(&self, key: &str, parent: &str) -> anyhow::Result<Vec<Mount>> {
        self.prepare_in("erofs", key, parent)
    }

    /// A new active snapshot of any snapshotter; its mounts.
    pub fn prepare_in(&self, snapshotter: &str, key: &str, parent: &str) -> anyhow::Result<Vec<Mount>> {
        self.prepare_labelled(snapshotter, key, parent, &[])
    }

    /// Like [`Self::prepare_in`], with more labels.
    pub fn prepare_labelled(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Vec<Mount>> {
        let more = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels: kept().into_iter().chain(more).collect(),
        };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = SnapshotsClient::new(self.containerd.clone());
        Ok(self.runtime.block_on(client.prepare(request))?.into_inner().mounts)
    }

    /// The mounts of an active snapshot.
    pub fn mounts(&self, snapshotter: &str, key: &str) -> anyhow::Result<Vec<Mount>> {
        let message = MountsRequest { snapshotter: snapshotter.into(), key: key.into() };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = SnapshotsClient::new(self.containerd.clone());
        Ok(self.runtime.block_on(client.mounts(request))?.into_inner().mounts)
    }

    /// A new view of a committed snapshot, or of nothing; its mounts.
    pub fn view(&self, snapshotter: &str, key: &str, parent: &str) -> anyhow::Result<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels: kept(),
        };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = SnapshotsClient::new(self.containerd.clone());
        Ok(self.runtime.block_on(client.view(request))?.into_inner().mounts)
    }

    /// Commits an active snapshot under a name.
    pub fn commit(&self, snapshotter: &str, name: &str, key: &str) -> anyhow::Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: snapshotter.into(),
            name: name.into(),
            key: key.into(),
            labels: kept(),
        };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = SnapshotsClient::new(self.containerd.clone());
        self.runtime.block_on(client.commit(request))?;
        Ok(())
    }

    /// All snapshots of a snapshotter, by name.
    pub fn snapshots(&self, snapshotter: &str) -> anyhow::Result<BTreeMap<String, Snapshot>> {
        let message = ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: Vec::new() };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = SnapshotsClient::new(self.containerd.clone());
        let infos: Vec<Info> = self.runtime.block_on(async {
            let mut answers = client.list(request).await?.into_inner();
            let mut infos = Vec::new();
            while let Some(answer) = answers.message().await? {
                infos.extend(answer.info);
            }
            Ok::<_, Status>(infos)
        })?;
        let each = infos.into_iter().map(|info| {
            let is_committed = info.kind() == Kind::Committed;
            (
                info.name,
                Snapshot { is_committed, parent: info.parent, labels: info.labels.into_iter().collect() },
            )
        });
        Ok(each.collect())
    }

    /// Removes a snapshot.
    pub fn remove(&self, snapshotter: &str, key: &str) -> anyhow::Result<()> {
        let message = RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = SnapshotsClient::new(self.containerd.clone());
        self.runtime.block_on(client.remove(request))?;
        Ok(())
    }

    /// Compares two snapshots. `lease` is sent along when there is one.
    pub fn diff(
        &self,
        differ: Differ,
        message: DiffRequest,
        lease: Option<&str>,
    ) -> Result<Descriptor, Status> {
        self.finish_diff(self.begin_diff(differ, Some(&self.namespace), message, lease))
    }

    /// Sends a Diff without waiting for its answer.
    pub fn begin_diff(
        &self,
        differ: Differ,
        namespace: Option<&str>,
        message: DiffRequest,
        lease: Option<&str>,
    ) -> Comparing {
        let channel = match differ {
            Differ::Plywood => &self.plywood,
            Differ::Service => &self.containerd,
        };
        let mut client = DiffClient::new(channel.clone());
        let request = in_namespace(message, namespace).and_then(|request| with_lease(request, lease));
        Comparing(Some(self.runtime.spawn(async move { Ok(client.diff(request?).await?.into_inner()) })))
    }

    /// Waits for the answer.
    pub fn finish_diff(&self, mut running: Comparing) -> Result<Descriptor, Status> {
        let Some(call) = running.0.take() else { return Err(Status::cancelled("no call")) };
        let answer = self.runtime.block_on(call).map_err(|error| Status::internal(error.to_string()))??;
        answer.diff.ok_or_else(|| Status::internal("an answer without a descriptor"))
    }

    /// Asks containerd's diff service to apply a layer that is in the store.
    pub fn apply_by_service(&self, layer: &Layer, mounts: &[Mount]) -> Result<Descriptor, Status> {
        let mut client = DiffClient::new(self.containerd.clone());
        let request = in_namespace(apply_request(layer, mounts), Some(&self.namespace))?;
        let answer = self.runtime.block_on(client.apply(request))?.into_inner();
        answer.applied.ok_or_else(|| Status::internal("an answer without a descriptor"))
    }

    /// Asks Plywood to apply a layer that is in the store.
    pub fn apply(&self, layer: &Layer, mounts: &[Mount]) -> Result<Descriptor, Status> {
        self.finish(self.begin_here(apply_request(layer, mounts)))
    }

    /// Sends an Apply without waiting for its answer.
    pub fn begin_here(&self, message: ApplyRequest) -> Running {
        self.begin(Some(&self.namespace), message)
    }

    /// Like [`Self::begin_here`], in any namespace or in none.
    pub fn begin(&self, namespace: Option<&str>, message: ApplyRequest) -> Running {
        let mut client = DiffClient::new(self.plywood.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let request = in_namespace(message, namespace);
        Running(Some(self.runtime.spawn(async move { Ok(client.apply(request?).await?.into_inner()) })))
    }

    /// Waits for the answer.
    pub fn finish(&self, mut running: Running) -> Result<Descriptor, Status> {
        let Some(call) = running.0.take() else { return Err(Status::cancelled("no call")) };
        let answer = self.runtime.block_on(call).map_err(|error| Status::internal(error.to_string()))??;
        answer.applied.ok_or_else(|| Status::internal("an answer without a descriptor"))
    }
}

/// The request that containerd would send for a layer.
pub fn apply_request(layer: &Layer, mounts: &[Mount]) -> ApplyRequest {
    let diff = Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest(),
        size: layer.size_bytes(),
        annotations: layer.annotations.clone().into_iter().collect(),
    };
    ApplyRequest { diff: Some(diff), mounts: mounts.to_vec(), ..ApplyRequest::default() }
}

/// The snapshot directory behind the mounts of a parentless snapshot.
pub fn layer_directory(mounts: &[Mount]) -> anyhow::Result<PathBuf> {
    let source = &mounts.first().context("no mount")?.source;
    Ok(Path::new(source).parent().context("a mount of the root")?.to_owned())
}

pub(crate) fn in_namespace<T>(message: T, namespace: Option<&str>) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    if let Some(namespace) = namespace {
        let value = namespace.parse().map_err(|_error| Status::internal("not a header value"))?;
        request.metadata_mut().insert("containerd-namespace", value);
    }
    Ok(request)
}

fn with_lease<T>(mut request: Request<T>, lease: Option<&str>) -> Result<Request<T>, Status> {
    if let Some(lease) = lease {
        let value = lease.parse().map_err(|_error| Status::internal("not a header value"))?;
        request.metadata_mut().insert("containerd-lease", value);
    }
    Ok(request)
}
