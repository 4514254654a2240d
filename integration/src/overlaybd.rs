//! A stand-in for the overlaybd snapshotter: a proxy plugin that makes its directories, labels and mounts, and decides at
//! commit what a snapshot is, as the real one does. It attaches no device, but notes when the real one would.
//!
//! Source: accelerated-container-image `pkg/snapshot/overlay.go`, `pkg/snapshot/storage.go`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use containerd_client::types::Mount;
use serde_json::{Value, json};
use testkit::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use testkit::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// Asks for the local conversion of a layer.
pub const CONVERT: &str = "containerd.io/snapshot/overlaybd/convert2turbo-oci";
/// A writable device: `dir` for one that is mounted.
pub const WRITABLE: &str = "containerd.io/snapshot/overlaybd.writable";
/// `image`: the snapshot is for an image, and its device is not attached.
const KIND: &str = "containerd.io/snapshot/type";
/// The snapshot is for a layer that is being unpacked, and will have this name.
pub const UNPACKED: &str = "containerd.io/snapshot.ref";
const TARGET: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
const TARGET_TYPE: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type";

/// Class of a committed snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A layer of a device, in the snapshot.
    LocalBlock,
    /// An archive that the snapshotter would convert itself.
    LocalLayer,
    /// A published turboOCI layer.
    Turbo,
    /// A directory.
    Normal,
}

#[derive(Clone, Debug)]
struct Snapshot {
    id: u64,
    kind: Kind,
    parent: String,
    labels: HashMap<String, String>,
    created: SystemTime,
    class: Option<Class>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    snapshots: BTreeMap<String, Snapshot>,
    /// Snapshots whose devices would be attached.
    attached: BTreeSet<u64>,
}

/// The snapshotter; it stops when it is dropped.
#[derive(Debug)]
pub struct Snapshotter {
    service: Service,
    runtime: Option<Runtime>,
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone, Debug)]
struct Service {
    root: PathBuf,
    /// Where the original layers of turboOCI layers are, by digest: the real one would fetch them.
    targets: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Snapshotter {
    /// Serves snapshots below `root` on `socket`.
    pub fn start(root: &Path, targets: &Path, socket: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root.join("snapshots"))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))?;
        let service = Service { root: root.to_owned(), targets: targets.to_owned(), state: Arc::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(socket)?
        };
        let server = tonic::transport::Server::builder().add_service(SnapshotsServer::new(service.clone()));
        runtime.spawn(async move {
            let served = server.serve_with_incoming(UnixListenerStream::new(listener)).await;
            if let Err(error) = served {
                eprintln!("the snapshotter ended: {error}");
            }
        });
        Ok(Self { service, runtime: Some(runtime) })
    }

    /// The committed snapshots, in the order in which they were made: their directories, and what they are.
    pub fn committed(&self) -> Vec<(PathBuf, Class)> {
        let state = self.service.lock();
        let mut found: Vec<_> =
            state.snapshots.values().filter(|snapshot| snapshot.class.is_some()).collect();
        found.sort_by_key(|snapshot| snapshot.id);
        let each = |snapshot: &&Snapshot| Some((self.service.directory(snapshot.id), snapshot.class?));
        found.iter().filter_map(each).collect()
    }

    /// Number of snapshots whose devices the real one would have attached.
    pub fn attached(&self) -> usize {
        self.service.lock().attached.len()
    }

    /// The directory of the snapshot whose key ends in `/key`, as containerd's own names do.
    pub fn directory(&self, key: &str) -> Option<PathBuf> {
        let state = self.service.lock();
        let ending = format!("/{key}");
        let found = state.snapshots.iter().find(|(name, _)| name.ends_with(&ending));
        found.map(|(_, snapshot)| self.service.directory(snapshot.id))
    }
}

impl Service {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    fn create(
        &self,
        kind: Kind,
        key: String,
        parent: String,
        labels: HashMap<String, String>,
    ) -> Answer<Vec<Mount>> {
        let mut state = self.lock();
        if state.snapshots.contains_key(&key) {
            return Err(Status::already_exists(key));
        }
        if !parent.is_empty() && !state.snapshots.contains_key(&parent) {
            return Err(Status::not_found(parent));
        }
        state.last += 1;
        let id = state.last;
        let directory = self.directory(id);
        for name in ["fs", "work", "block/mountpoint"] {
            fs::create_dir_all(directory.join(name)).map_err(io)?;
        }
        fs::write(directory.join("block/init-debug.log"), "").map_err(io)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).map_err(io)?;
        let snapshot = Snapshot { id, kind, parent, labels, created: SystemTime::now(), class: None };
        if snapshot.is_writable() {
            self.describe(&state, &snapshot, None)?;
        }
        let mounts = match snapshot.is_for_image() {
            true => self.mounts_of(&state, &snapshot),
            false => self.attached_or(&mut state, &snapshot),
        };
        state.snapshots.insert(key, snapshot);
        Ok(mounts)
    }

    /// The mounts of a snapshot for a container: on a device, that is attached for it.
    fn attached_or(&self, state: &mut State, snapshot: &Snapshot) -> Vec<Mount> {
        let parent = state.snapshots.get(&snapshot.parent);
        let device = parent.filter(|parent| !matches!(parent.class, None | Some(Class::Normal)));
        let Some(device) = device.filter(|_| !snapshot.is_writable()).map(|device| device.id) else {
            return self.mounts_of(state, snapshot);
        };
        state.attached.insert(device);
        let point = text(&self.directory(device).join("block/mountpoint"));
        match snapshot.kind {
            Kind::Active => overlay(Some(&self.directory(snapshot.id)), &[point]),
            _ => bind(Path::new(&point), ["ro", "rbind"]),
        }
    }

    /// The directories of the snapshots below, the nearest first.
    fn below(&self, state: &State, snapshot: &Snapshot) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut next = snapshot.parent.as_str();
        while let Some(parent) = state.snapshots.get(next) {
            found.push(self.directory(parent.id));
            next = &parent.parent;
        }
        found
    }

    /// The mounts of a snapshot for a layer, or on layers that are directories.
    fn mounts_of(&self, state: &State, snapshot: &Snapshot) -> Vec<Mount> {
        let directory = self.directory(snapshot.id);
        let below = self.below(state, snapshot);
        let is_active = snapshot.kind == Kind::Active;
        if snapshot.is_writable() {
            return bind(&directory.join("block/mountpoint"), ["rw", "rbind"]);
        }
        let lower: Vec<_> = below.iter().map(|directory| text(&directory.join("fs"))).collect();
        match below.as_slice() {
            _ if is_active && snapshot.labels.contains_key(CONVERT) => {
                bind(&directory.join("fs"), ["rw", "rbind"])
            }
            [] => bind(&directory.join("fs"), [if is_active { "rw" } else { "ro" }, "rbind"]),
            [only] if !is_active => bind(&only.join("fs"), ["ro", "rbind"]),
            _ => overlay(is_active.then_some(&directory), &lower),
        }
    }

    /// Decides what a snapshot is; returns its entry among the lowers of its device as well.
    fn classify(&self, snapshot: &Snapshot) -> Answer<(Class, Option<Value>)> {
        let directory = self.directory(snapshot.id);
        let at = |name: &str| directory.join(name).display().to_string();
        let is_block = |name: &str| {
            let head = fs::read(directory.join(name)).unwrap_or_default();
            head.starts_with(b"ZFile\0\x01\0tuji.yyf@Alibaba")
                || head.starts_with(
                    b"LSMT\0\x01\x02\0\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a",
                )
        };
        if let Some(target) = snapshot.labels.get(TARGET) {
            let mut lower = json!({"dir": at("fs"), "file": at("fs/erofs.fs.meta"), "targetDigest": target});
            if snapshot.labels.get(TARGET_TYPE).is_some_and(|kind| kind.contains("gzip")) {
                lower["gzipIndex"] = json!(at("fs/gzip.meta"));
            }
            // The real one reads it from the registry.
            let copy = directory.join("block/target");
            fs::copy(self.targets.join(target.replace(':', "-")), &copy).map_err(io)?;
            lower["targetFile"] = json!(copy.display().to_string());
            return Ok((Class::Turbo, Some(lower)));
        }
        if directory.join("fs/overlaybd.commit").exists() {
            return Ok(match is_block("fs/overlaybd.commit") {
                true if directory.join("layer.tar").exists() => {
                    let lower = json!({"targetFile": at("layer.tar"), "file": at("fs/overlaybd.commit")});
                    (Class::LocalBlock, Some(lower))
                }
                true => (Class::LocalBlock, Some(json!({"dir": at("fs")}))),
                false => (Class::Normal, None),
            });
        }
        if is_block("fs/overlaybd.sealed") || is_block("block/writable_data") {
            return Ok((Class::LocalBlock, Some(json!({"dir": at("fs")}))));
        }
        if directory.join("layer.tar").exists() {
            return Ok((Class::LocalLayer, None));
        }
        Ok((Class::Normal, None))
    }

    /// Writes the description of a device: the lowers of the one below, and its own, which is a writable layer if none is
    /// given.
    fn describe(&self, state: &State, snapshot: &Snapshot, lower: Option<Value>) -> Answer<()> {
        let mut config = match state.snapshots.get(&snapshot.parent) {
            Some(parent) => {
                let text = fs::read(self.directory(parent.id).join("block/config.v1.json")).map_err(io)?;
                serde_json::from_slice::<Value>(&text).map_err(|error| Status::internal(error.to_string()))?
            }
            None => json!({"repoBlobUrl": "", "lowers": []}),
        };
        let directory = self.directory(snapshot.id);
        config["resultFile"] = json!(directory.join("block/init-debug.log").display().to_string());
        match (lower, config["lowers"].as_array_mut()) {
            (Some(lower), Some(lowers)) => lowers.push(lower),
            _ => {
                let at = |name: &str| directory.join("block").join(name).display().to_string();
                config["upper"] =
                    json!({"data": at("writable_data"), "index": at("writable_index"), "vsize": 1});
            }
        }
        fs::write(directory.join("block/config.v1.json"), config.to_string()).map_err(io)
    }
}

impl Snapshot {
    fn is_for_image(&self) -> bool {
        self.labels.contains_key(UNPACKED) || self.labels.get(KIND).is_some_and(|kind| kind == "image")
    }

    fn is_writable(&self) -> bool {
        self.labels.get(WRITABLE).is_some_and(|value| value == "dir")
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn bind(source: &Path, options: [&str; 2]) -> Vec<Mount> {
    let options = options.map(str::to_owned).into();
    vec![Mount { r#type: "bind".into(), source: text(source), target: String::new(), options }]
}

/// An overlay of `lower` directories, with the upper one of the snapshot in `active`.
fn overlay(active: Option<&PathBuf>, lower: &[String]) -> Vec<Mount> {
    let own = active.map(|directory| {
        [("workdir", "work"), ("upperdir", "fs")]
            .map(|(option, name)| format!("{option}={}", text(&directory.join(name))))
    });
    let lower = format!("lowerdir={}", lower.join(":"));
    let options = own.into_iter().flatten().chain([lower]).collect();
    vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
}

type Answer<T> = Result<T, Status>;

fn io(error: std::io::Error) -> Status {
    Status::internal(error.to_string())
}

fn info(name: &str, snapshot: &Snapshot) -> Info {
    let time = Some(prost_types::Timestamp::from(snapshot.created));
    Info {
        name: name.to_owned(),
        parent: snapshot.parent.clone(),
        kind: snapshot.kind.into(),
        created_at: time,
        updated_at: time,
        labels: snapshot.labels.clone(),
    }
}

fn found<'s>(state: &'s State, key: &str) -> Answer<&'s Snapshot> {
    state.snapshots.get(key).ok_or_else(|| Status::not_found(key.to_owned()))
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Answer<Response<PrepareSnapshotResponse>> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.create(Kind::Active, key, parent, labels)?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<Response<ViewSnapshotResponse>> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.create(Kind::View, key, parent, labels)?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<Response<MountsResponse>> {
        let mut state = self.lock();
        let snapshot = found(&state, &request.get_ref().key)?.clone();
        if snapshot.kind == Kind::Committed {
            return Err(Status::failed_precondition("committed"));
        }
        // Whatever it was prepared for.
        Ok(Response::new(MountsResponse { mounts: self.attached_or(&mut state, &snapshot) }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<Response<()>> {
        let CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let mut state = self.lock();
        let mut snapshot = found(&state, &key)?.clone();
        if state.snapshots.contains_key(&name) {
            return Err(Status::already_exists(name));
        }
        snapshot.labels.extend(labels);
        let (class, lower) = self.classify(&snapshot)?;
        if let Some(lower) = lower {
            self.describe(&state, &snapshot, Some(lower))?;
        }
        (snapshot.kind, snapshot.class) = (Kind::Committed, Some(class));
        state.snapshots.remove(&key);
        state.snapshots.insert(name, snapshot);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<Response<()>> {
        let mut state = self.lock();
        let key = request.get_ref().key.as_str();
        let id = found(&state, key)?.id;
        if state.snapshots.values().any(|snapshot| snapshot.parent == key) {
            return Err(Status::failed_precondition("has children"));
        }
        state.snapshots.remove(key);
        fs::remove_dir_all(self.directory(id)).map_err(io)?;
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<Response<StatSnapshotResponse>> {
        let state = self.lock();
        let key = request.get_ref().key.as_str();
        Ok(Response::new(StatSnapshotResponse { info: Some(info(key, found(&state, key)?)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Answer<Response<UpdateSnapshotResponse>> {
        let wanted = request.into_inner().info.unwrap_or_default();
        let mut state = self.lock();
        let snapshot = state.snapshots.get_mut(&wanted.name);
        let snapshot = snapshot.ok_or_else(|| Status::not_found(wanted.name.clone()))?;
        snapshot.labels.extend(wanted.labels);
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(&wanted.name, snapshot)) }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Answer<ListSnapshotsResponse>>>;

    async fn list(&self, _: Request<ListSnapshotsRequest>) -> Answer<Response<Self::ListStream>> {
        let state = self.lock();
        let info = state.snapshots.iter().map(|(name, snapshot)| info(name, snapshot)).collect();
        Ok(Response::new(tokio_stream::iter(vec![Ok(ListSnapshotsResponse { info })])))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<Response<UsageResponse>> {
        found(&self.lock(), &request.get_ref().key)?;
        Ok(Response::new(UsageResponse { size: 0, inodes: 0 }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<Response<()>> {
        Ok(Response::new(()))
    }
}
