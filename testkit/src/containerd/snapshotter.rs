//! Snapshots as containerd keeps them since 2.2, with the directories of its EROFS snapshotter.
//!
//! Source: containerd `core/metadata/snapshot.go`, `core/snapshots/storage/bolt.go`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use containerd_client::{
    services::v1::{Plugin, VersionResponse},
    types::Mount,
};
use tonic::{Request, Response, Status};

use super::{FakeContainerd, Seen, Service, State, namespace};
use crate::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
    snapshots_server::{self, SnapshotsServer},
};
use api::version_server::{self, VersionServer};

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.version.v1.rs"));
}

/// A snapshotter, and the containerd around it.
#[derive(Clone, Debug)]
pub struct Snapshotter<'a> {
    pub name: &'a str,
    /// Whether it announces that it takes parents at the commit.
    pub rebases: bool,
    /// Version that containerd answers with.
    pub version: &'a str,
    /// Directory that it keeps its snapshots in.
    pub root: &'a Path,
}

/// A snapshot as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub parent: String,
    pub is_committed: bool,
    pub labels: BTreeMap<String, String>,
    pub directory: PathBuf,
}

/// All snapshots.
#[derive(Default)]
pub(super) struct Snapshots {
    version: String,
    root: PathBuf,
    last: u64,
    all: BTreeMap<Key, Snapshot>,
    /// Names whose snapshots come ready-made.
    staged: Vec<String>,
    /// Times that a key is taken, whatever it is.
    taken: usize,
    /// Snapshots that another client commits as soon as one is prepared for them.
    raced: Vec<String>,
}

/// Namespace, snapshotter, name.
type Key = (String, String, String);

#[derive(Clone)]
struct Snapshot {
    id: u64,
    kind: Kind,
    parent: String,
    labels: HashMap<String, String>,
    staged: bool,
}

impl FakeContainerd {
    /// Adds a snapshotter.
    pub fn add_snapshotter(&self, snapshotter: &Snapshotter<'_>) {
        let Snapshotter { name, rebases, version, root } = snapshotter;
        let mut state = self.state.lock().unwrap();
        state.snapshots.version = (*version).to_owned();
        state.snapshots.root = root.to_path_buf();
        state.plugins.push(Plugin {
            r#type: "io.containerd.snapshotter.v1".to_owned(),
            id: (*name).to_owned(),
            capabilities: if *rebases { vec!["rebase".to_owned()] } else { Vec::new() },
            ..Plugin::default()
        });
    }

    /// All snapshots by name.
    pub fn snapshots(&self) -> BTreeMap<String, View> {
        let state = self.state.lock().unwrap();
        let view = |((_, _, name), snapshot): (&Key, &Snapshot)| {
            let view = View {
                parent: snapshot.parent.clone(),
                is_committed: snapshot.kind == Kind::Committed,
                labels: snapshot.labels.clone().into_iter().collect(),
                directory: state.snapshots.directory(snapshot.id),
            };
            (name.clone(), view)
        };
        state.snapshots.all.iter().map(view).collect()
    }

    /// Forgets all snapshots.
    pub fn forget_snapshots(&self) {
        let mut state = self.state.lock().unwrap();
        for snapshot in std::mem::take(&mut state.snapshots.all).into_values() {
            let _ = fs::remove_dir_all(state.snapshots.directory(snapshot.id));
        }
    }

    /// Lets the snapshotter have the layer for this snapshot already.
    pub fn stage(&self, name: &str) {
        self.state.lock().unwrap().snapshots.staged.push(name.to_owned());
    }

    /// Lets the next keys be taken by somebody else.
    pub fn take_keys(&self, count: usize) {
        self.state.lock().unwrap().snapshots.taken = count;
    }

    /// Lets another client be faster with this snapshot.
    pub fn race(&self, name: &str) {
        self.state.lock().unwrap().snapshots.raced.push(name.to_owned());
    }
}

impl Snapshots {
    fn directory(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    fn create(
        &mut self,
        key: &Key,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Snapshot, Status> {
        let (namespace, snapshotter, name) = key;
        if !parent.is_empty()
            && !self.all.contains_key(&(namespace.clone(), snapshotter.clone(), parent.to_owned()))
        {
            return Err(Status::not_found(format!("parent snapshot {parent} does not exist: not found")));
        }
        self.last += 1;
        let target = labels.get(REF).cloned().unwrap_or_default();
        let staged = self.staged.contains(&target);
        let snapshot =
            Snapshot { id: self.last, kind: Kind::Active, parent: parent.to_owned(), labels, staged };
        let directory = self.directory(snapshot.id);
        for inner in ["fs", "work"] {
            fs::create_dir_all(directory.join(inner))?;
        }
        fs::write(directory.join(".erofslayer"), "")?;
        self.all.insert((namespace.clone(), snapshotter.clone(), name.clone()), snapshot.clone());
        Ok(snapshot)
    }

    fn mounts(&self, key: &Key, snapshot: &Snapshot) -> Vec<Mount> {
        let fs = |id: u64| self.directory(id).join("fs").display().to_string();
        let mut lower = Vec::new();
        let mut next = snapshot.parent.clone();
        while let Some(parent) = self.all.get(&(key.0.clone(), key.1.clone(), next.clone())) {
            lower.push(fs(parent.id));
            next.clone_from(&parent.parent);
        }
        let mount = |kind: &str, source: String, options: Vec<String>| {
            vec![Mount { r#type: kind.to_owned(), source, target: String::new(), options }]
        };
        if snapshot.staged {
            let image = self.directory(snapshot.id).join("layer.erofs").display().to_string();
            return mount("erofs", image, vec!["ro".to_owned(), "loop".to_owned()]);
        }
        if lower.is_empty() {
            return mount("bind", fs(snapshot.id), vec!["rw".to_owned(), "rbind".to_owned()]);
        }
        let work = self.directory(snapshot.id).join("work");
        let options = vec![
            format!("workdir={}", work.display()),
            format!("upperdir={}", fs(snapshot.id)),
            format!("lowerdir={}", lower.join(":")),
        ];
        mount("overlay", "overlay".to_owned(), options)
    }
}

/// Label of a snapshot that is to become another.
const REF: &str = "containerd.io/snapshot.ref";

fn found<'s>(state: &'s State, key: &Key) -> Result<&'s Snapshot, Status> {
    let found = state.snapshots.all.get(key);
    found.ok_or_else(|| Status::not_found(format!("snapshot {}: not found", key.2)))
}

fn resource(snapshotter: &str) -> String {
    format!("snapshots/{snapshotter}")
}

pub(super) fn service(service: Service) -> SnapshotsServer<Service> {
    SnapshotsServer::new(service)
}

pub(super) fn version(service: Service) -> VersionServer<Service> {
    VersionServer::new(service)
}

#[tonic::async_trait]
impl version_server::Version for Service {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        let version = self.state.lock().unwrap().snapshots.version.clone();
        Ok(Response::new(VersionResponse { version, revision: String::new() }))
    }
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let Seen { lease, .. } = self.record("prepare", &request);
        let namespace = namespace(&request)?;
        let PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let at = |name: &str| (namespace.clone(), snapshotter.clone(), name.to_owned());
        let mut state = self.state.lock().unwrap();
        let target = labels.get(REF).cloned().unwrap_or_default();
        if state.snapshots.all.contains_key(&at(&target)) {
            state.leases.add(&namespace, lease.as_deref(), &resource(&snapshotter), &target)?;
            return Err(Status::already_exists(format!("target snapshot {target}: already exists")));
        }
        if state.snapshots.taken > 0 {
            state.snapshots.taken -= 1;
            return Err(Status::already_exists(format!("snapshot {key}: already exists")));
        }
        let snapshot = state.snapshots.create(&at(&key), &parent, labels.clone())?;
        state.leases.add(&namespace, lease.as_deref(), &resource(&snapshotter), &key)?;
        let mounts = state.snapshots.mounts(&at(&key), &snapshot);
        if let Some(raced) = state.snapshots.raced.iter().position(|raced| *raced == target) {
            state.snapshots.raced.remove(raced);
            let parent = labels.get("containerd.io/snapshot/parent-chain-id").cloned().unwrap_or_default();
            let mut other = state.snapshots.create(&at(&target), "", labels)?;
            (other.kind, other.parent) = (Kind::Committed, parent);
            state.snapshots.all.insert(at(&target), other);
        }
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        self.record("snapshots.view", &request);
        let mounts = self.state.lock().unwrap().made_up.view(request.into_inner())?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let namespace = namespace(&request)?;
        let made_up = self.state.lock().unwrap().made_up.mounts(&request.get_ref().key);
        if let Some(made_up) = made_up {
            self.record("snapshots.mounts", &request);
            return Ok(Response::new(MountsResponse { mounts: made_up? }));
        }
        let MountsRequest { snapshotter, key } = request.into_inner();
        let key = (namespace, snapshotter, key);
        let state = self.state.lock().unwrap();
        let mounts = state.snapshots.mounts(&key, found(&state, &key)?);
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let Seen { lease, .. } = self.record("commit", &request);
        let namespace = namespace(&request)?;
        let CommitSnapshotRequest { snapshotter, name, key, labels, parent } = request.into_inner();
        let at = |name: &str| (namespace.clone(), snapshotter.clone(), name.to_owned());
        let mut state = self.state.lock().unwrap();
        if state.snapshots.all.contains_key(&at(&name)) {
            return Err(Status::already_exists(format!("snapshot {name}: already exists")));
        }
        let mut snapshot = found(&state, &at(&key))?.clone();
        if snapshot.parent.is_empty() && !parent.is_empty() {
            found(&state, &at(&parent))?;
            snapshot.parent = parent;
        }
        (snapshot.kind, snapshot.labels) = (Kind::Committed, labels);
        state.snapshots.all.remove(&at(&key));
        state.snapshots.all.insert(at(&name), snapshot);
        state.leases.remove(&namespace, &resource(&snapshotter), &key);
        state.leases.add(&namespace, lease.as_deref(), &resource(&snapshotter), &name)?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let is_made_up = self.state.lock().unwrap().made_up.remove(&request.get_ref().key);
        if is_made_up {
            self.record("snapshots.remove", &request);
            return Ok(Response::new(()));
        }
        self.record("remove", &request);
        let namespace = namespace(&request)?;
        let RemoveSnapshotRequest { snapshotter, key } = request.into_inner();
        let key = (namespace, snapshotter, key);
        let mut state = self.state.lock().unwrap();
        let id = found(&state, &key)?.id;
        state.snapshots.all.remove(&key);
        state.leases.remove(&key.0, &resource(&key.1), &key.2);
        let _ = fs::remove_dir_all(state.snapshots.directory(id));
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let namespace = namespace(&request)?;
        let StatSnapshotRequest { snapshotter, key } = request.into_inner();
        let state = self.state.lock().unwrap();
        let snapshot = found(&state, &(namespace, snapshotter, key.clone()))?;
        let info = Info {
            name: key,
            parent: snapshot.parent.clone(),
            kind: snapshot.kind.into(),
            labels: snapshot.labels.clone(),
            ..Info::default()
        };
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        _: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        Err(Status::unimplemented("update"))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<ListSnapshotsResponse, Status>>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.record("snapshots.list", &request);
        assert_eq!(request.get_ref().filters, ["kind==active"]);
        let info = self.state.lock().unwrap().made_up.active();
        Ok(Response::new(tokio_stream::iter(vec![Ok(ListSnapshotsResponse { info })])))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        Err(Status::unimplemented("usage"))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}
