//! One whole set-up per test: a registry on loopback, containerd, and Plywood as its differ, each with directories
//! and sockets of its own.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::calls::Caller;
use crate::daemon::{Daemon, SocketUnit};
use crate::host;
use crate::image::Image;
use crate::overlaybd::Snapshotter;

/// Settings in which a set-up differs from the default.
#[derive(Debug)]
pub struct Setup {
    /// Where containerd keeps its data; the test's scratch directory when `None`.
    pub containerd_root: Option<PathBuf>,
    /// The differs of containerd's diff service, in their order.
    pub differs: &'static [&'static str],
    /// Whether Plywood may read blobs from the content store's directory.
    pub direct_content: bool,
    /// Makes of Plywood's command the one that is run.
    pub wrap: fn(Command) -> Command,
    /// More lines of Plywood's configuration: whole tables other than `server`, `containerd` and `snapshots`.
    pub plywood_tables: String,
    /// More tables of containerd's configuration.
    pub containerd_tables: String,
    /// Whether containerd has a stand-in for the overlaybd snapshotter.
    pub overlaybd: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            containerd_root: None,
            differs: &["plywood"],
            direct_content: true,
            wrap: |command| command,
            plywood_tables: String::new(),
            containerd_tables: String::new(),
            overlaybd: false,
        }
    }
}

/// A registry, containerd and Plywood, up and running. Dropping it ends and unmounts everything.
#[derive(Debug)]
pub struct Env {
    // In the order in which they end: containerd asks Plywood, both use the directory.
    containerd: Option<Daemon>,
    plywood: Option<Daemon>,
    registry: Option<Daemon>,
    overlaybd: Option<Snapshotter>,
    registry_address: String,
    containerd_root: PathBuf,
    namespace: String,
    wrap: fn(Command) -> Command,
    dir: TempDir,
}

impl Env {
    /// Starts all of it.
    pub fn start(setup: &Setup) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Socket paths end at 107 bytes, and containerd appends to them.
        let dir = tempfile::Builder::new().prefix("plywood-").tempdir_in("/tmp")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = dir.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let containerd_root = setup.containerd_root.clone().unwrap_or_else(|| dir.path().join("containerd"));
        let mut env = Self {
            containerd: None,
            plywood: None,
            registry: None,
            overlaybd: None,
            registry_address: String::new(),
            containerd_root,
            namespace: format!("{}-{number}", name.replace('.', "")),
            wrap: setup.wrap,
            dir,
        };
        for directory in [env.path("registry"), env.path("logs")] {
            std::fs::create_dir_all(&directory)?;
        }
        // containerd makes them when it starts, which is after Plywood here.
        // Directories that do not exist when Plywood starts are out of its reach.
        for root in [env.snapshots(), env.overlayfs_snapshots(), env.content(), env.path("state")] {
            std::fs::create_dir_all(&root)?;
            std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))?;
        }
        if setup.overlaybd {
            std::fs::create_dir(env.overlaybd_targets())?;
            let (root, socket) = (env.overlaybd_snapshots(), env.path("overlaybd.sock"));
            env.overlaybd = Some(Snapshotter::start(&root, &env.overlaybd_targets(), &socket)?);
        }
        env.start_registry()?;
        std::fs::write(env.path("plywood.toml"), env.plywood_config(setup))?;
        env.start_plywood()?;
        std::fs::write(env.path("containerd.toml"), env.containerd_config(setup))?;
        env.start_containerd()?;
        Ok(env)
    }

    /// A file or directory of this set-up.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where containerd keeps its data.
    pub fn containerd_root(&self) -> &Path {
        &self.containerd_root
    }

    /// The directory of the EROFS snapshotter, which is Plywood's configured root.
    pub fn snapshots(&self) -> PathBuf {
        self.containerd_root.join("io.containerd.snapshotter.v1.erofs")
    }

    /// The directory of the overlayfs snapshotter, which Plywood only reads.
    pub fn overlayfs_snapshots(&self) -> PathBuf {
        self.containerd_root.join("io.containerd.snapshotter.v1.overlayfs")
    }

    /// The directory of the stand-in for the overlaybd snapshotter.
    pub fn overlaybd_snapshots(&self) -> PathBuf {
        self.containerd_root.join("io.containerd.snapshotter.v1.overlaybd")
    }

    /// Where it finds the original layers of turboOCI layers, under their digests with a dash for the colon.
    pub fn overlaybd_targets(&self) -> PathBuf {
        self.path("targets")
    }

    /// The stand-in for the overlaybd snapshotter. An error in a set-up without.
    pub fn overlaybd(&self) -> anyhow::Result<&Snapshotter> {
        self.overlaybd.as_ref().context("no overlaybd snapshotter in this set-up")
    }

    /// The file of a blob in containerd's content store; `digest` is `sha256:HEX`.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.content().join("blobs").join(digest.replace(':', "/"))
    }

    /// The directory of containerd's content store.
    fn content(&self) -> PathBuf {
        self.containerd_root.join("io.containerd.content.v1.content")
    }

    /// containerd's gRPC socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Plywood's socket, gRPC and ttrpc.
    pub fn plywood_socket(&self) -> PathBuf {
        self.path("plywood.sock")
    }

    /// The containerd namespace of this set-up's images and containers.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The running Plywood. An error after it was killed.
    pub fn plywood(&mut self) -> anyhow::Result<&mut Daemon> {
        self.plywood.as_mut().context("plywood was killed")
    }

    /// User and system time that containerd and Plywood have taken together so far.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        let daemons = [&self.containerd, &self.plywood];
        daemons.into_iter().flatten().map(|daemon| daemon.processor_time()).sum()
    }

    /// Ends Plywood without warning.
    pub fn kill_plywood(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.plywood.take().context("plywood was killed")?;
        daemon.kill()?;
        Ok(())
    }

    /// Lets a socket unit take the place of the running Plywood.
    pub fn start_socket_unit(&mut self) -> anyhow::Result<SocketUnit> {
        self.plywood()?.terminate()?;
        self.plywood = None;
        let command = self.serve_command()?;
        SocketUnit::start(&command, &self.plywood_socket(), &self.path("logs/plywood.log"))
    }

    /// Resets containerd: ends it, removes its data and its state, and starts it again.
    pub fn reset_containerd(&mut self) -> anyhow::Result<()> {
        self.containerd = None;
        for target in host::mounts_below(self.dir.path()) {
            host::run(Command::new("umount").arg("--lazy").arg(target))?;
        }
        for directory in [self.containerd_root.clone(), self.path("state")] {
            std::fs::remove_dir_all(directory)?;
        }
        self.start_containerd()
    }

    fn serve_command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
        command.arg("serve").arg("--config").arg(self.path("plywood.toml"));
        Ok((self.wrap)(command))
    }

    /// Starts Plywood with the configuration written before, and waits until its socket takes connections.
    pub fn start_plywood(&mut self) -> anyhow::Result<()> {
        let mut command = self.serve_command()?;
        let mut daemon = Daemon::start("plywood", &mut command, &self.path("logs/plywood.log"))?;
        let socket = self.plywood_socket();
        daemon.wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        self.plywood = Some(daemon);
        Ok(())
    }

    /// `ctr` for this containerd and namespace.
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = host::command("ctr");
        command
            .arg("--address")
            .arg(self.containerd_socket())
            .args(["--namespace", &self.namespace])
            .args(arguments);
        command
    }

    /// The command that pulls an image; `extra` are arguments of `ctr image pull`.
    pub fn pull_command(&self, reference: &str, snapshotter: &str, extra: &[&str]) -> Command {
        let mut command = self.ctr(&["image", "pull", "--plain-http", "--snapshotter", snapshotter]);
        command.args(extra).arg(reference);
        command
    }

    /// Pulls an image; `extra` are arguments of `ctr image pull`.
    pub fn pull(&self, reference: &str, snapshotter: &str, extra: &[&str]) -> anyhow::Result<String> {
        host::run(&mut self.pull_command(reference, snapshotter, extra))
    }

    /// Runs a command in a new container of an image and returns what it prints.
    pub fn run(&self, reference: &str, snapshotter: &str, arguments: &[&str]) -> anyhow::Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("c{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let runc_root = self.path("runc");
        let mut command = self.ctr(&["run", "--rm", "--snapshotter", snapshotter, "--runc-root"]);
        command.arg(runc_root).args([reference, &id]).args(arguments);
        host::run(&mut command)
    }

    /// Starts a container that goes on after `ctr` has returned. It ends with the answer.
    pub fn start_container(
        &self,
        reference: &str,
        snapshotter: &str,
        id: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Container<'_>> {
        let runc_root = self.path("runc");
        let mut command = self.ctr(&["run", "--detach", "--snapshotter", snapshotter, "--runc-root"]);
        command.arg(runc_root).args([reference, id]).args(arguments);
        // The container's output goes to a file: it would keep the pipes of a command that is waited for open.
        let log = std::fs::File::create(self.path(&format!("logs/{id}.log")))?;
        command.stdout(log.try_clone()?).stderr(log);
        let status = command.status()?;
        anyhow::ensure!(
            status.success(),
            "{}",
            std::fs::read_to_string(self.path(&format!("logs/{id}.log")))?
        );
        Ok(Container { env: self, id: id.into() })
    }

    /// Mounts what `mounts` of the snapshot `key` name for as long as the answer lives.
    pub fn mount_snapshot(&self, snapshotter: &str, key: &str) -> anyhow::Result<ImageMount> {
        let target = tempfile::Builder::new().prefix("mnt-").tempdir_in(self.dir.path())?;
        let path = target.path().to_string_lossy().into_owned();
        let script =
            host::run(&mut self.ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", &path, key]))?;
        host::run(Command::new("sh").args(["-ec", &script]))?;
        Ok(ImageMount { target })
    }

    /// The reference of an image in this set-up's registry, pushed or not.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/plywood/{name}:latest", self.registry_address)
    }

    /// Pushes an image to the registry; its reference there.
    pub fn push(&self, name: &str, image: &Image) -> anyhow::Result<String> {
        let layout = self.path(&format!("oci-{name}"));
        image.write_layout(&layout)?;
        let reference = self.reference(name);
        let mut command = host::command("oras");
        command.arg("cp").arg("--from-oci-layout").arg(format!("{}:latest", layout.display()));
        command.arg("--to-plain-http").arg(&reference).env("HOME", self.dir.path());
        host::run(&mut command)?;
        std::fs::remove_dir_all(&layout)?;
        Ok(reference)
    }

    /// Mounts the tree of a pulled image for as long as the answer lives.
    pub fn mount(&self, image: &Image) -> anyhow::Result<ImageMount> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // `ctr image mount` refuses images whose layers it does not know; the snapshots are there all the same.
        let key = format!("view-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        // Nor does `ctr snapshots view` keep its view from the collector, which runs whenever it likes.
        self.caller()?.view("erofs", &key, &image.chain_id())?;
        self.mount_snapshot("erofs", &key)
    }

    /// Calls services of containerd and of Plywood directly.
    pub fn caller(&self) -> anyhow::Result<Caller> {
        Caller::connect(&self.containerd_socket(), &self.plywood_socket(), &self.namespace)
    }

    /// The `layer.erofs` of every snapshot that has one, by directory name.
    pub fn layer_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files = self.snapshot_files()?;
        Ok(files.into_iter().filter(|file| file.ends_with("layer.erofs")).collect())
    }

    /// Waits until no snapshot has a `layer.erofs`, or anything containerd did not put there.
    pub fn wait_until_clean(&self) -> anyhow::Result<()> {
        // containerd removes the snapshot of a failed layer after it has answered.
        wait_until("the snapshot directories are clean", || {
            Ok(self.layer_files()?.is_empty() && self.leftovers()?.is_empty())
        })
    }

    /// Everything directly in snapshot directories that neither containerd nor a complete layer accounts for.
    pub fn leftovers(&self) -> anyhow::Result<Vec<PathBuf>> {
        let known = [".erofslayer", "fs", "work", "layer.erofs"];
        let files = self.snapshot_files()?;
        Ok(files.into_iter().filter(|file| !known.iter().any(|name| file.ends_with(name))).collect())
    }

    fn snapshot_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let Ok(snapshots) = std::fs::read_dir(self.snapshots().join("snapshots")) else { return Ok(found) };
        for snapshot in snapshots {
            // containerd may remove a snapshot at any moment.
            for file in std::fs::read_dir(snapshot?.path()).into_iter().flatten() {
                found.push(file?.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// The ends of all logs, for the message of a failed test.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for name in ["plywood", "containerd"] {
            let log = std::fs::read(self.path(&format!("logs/{name}.log"))).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("loading plugin")).collect();
            let tail = lines[lines.len().saturating_sub(12)..].join("\n");
            let _ = write!(text, "\n--- {name}.log\n{tail}");
        }
        text
    }

    fn start_registry(&mut self) -> anyhow::Result<()> {
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            self.path("registry").display()
        );
        std::fs::write(self.path("registry.yml"), config)?;
        let log = self.path("logs/registry.log");
        let mut command = host::command("docker-registry");
        command.arg("serve").arg(self.path("registry.yml"));
        let mut daemon = Daemon::start("registry", &mut command, &log)?;
        let address = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let (_, rest) = text.split_once("listening on ")?;
            let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())?;
            rest.get(..end).map(str::to_owned)
        };
        daemon.wait_until(|| address().is_some())?;
        self.registry_address = address().context("the registry tells no address")?;
        self.registry = Some(daemon);
        Ok(())
    }

    fn start_containerd(&mut self) -> anyhow::Result<()> {
        let mut command = host::command("containerd");
        command.arg("--config").arg(self.path("containerd.toml"));
        let mut daemon = Daemon::start("containerd", &mut command, &self.path("logs/containerd.log"))?;
        daemon.wait_until(|| host::run(&mut self.ctr(&["version"])).is_ok())?;
        self.containerd = Some(daemon);
        Ok(())
    }

    fn plywood_config(&self, setup: &Setup) -> String {
        format!(
            r#"
[server]
socket = "{socket}"
metrics_socket = "{metrics}"
[containerd]
address = "{containerd}"
direct_content = {direct}
state_dir = "{state}"
[snapshots]
roots = ["{snapshots}"]
overlayfs_roots = ["{overlayfs}"]
overlaybd_roots = ["{overlaybd}"]
{tables}
"#,
            socket = self.plywood_socket().display(),
            metrics = self.path("metrics.sock").display(),
            containerd = self.containerd_socket().display(),
            snapshots = self.snapshots().display(),
            overlayfs = self.overlayfs_snapshots().display(),
            overlaybd = self.overlaybd_snapshots().display(),
            state = self.path("state").display(),
            direct = setup.direct_content,
            tables = setup.plywood_tables,
        )
    }

    fn containerd_config(&self, setup: &Setup) -> String {
        let differs = setup.differs;
        let arch = Image::architecture();
        let overlaybd = match &self.overlaybd {
            Some(_) => format!(
                r#"[proxy_plugins.overlaybd]
type = "snapshot"
address = "{socket}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/{arch}"
snapshotter = "overlaybd"
differ = "plywood"
"#,
                socket = self.path("overlaybd.sock").display(),
            ),
            None => String::new(),
        };
        format!(
            r#"
version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
    "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[proxy_plugins.plywood]
type = "diff"
address = "{plywood}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.service.v1.diff-service"]
default = {differs:?}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/{arch}"
snapshotter = "erofs"
differ = "plywood"
layer_types = ["application/vnd.erofs.layer.v1", "application/vnd.erofs.layer.v1+zstd"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/{arch}"
snapshotter = "overlayfs"
differ = "walking"
{tables}
{overlaybd}"#,
            root = self.containerd_root.display(),
            state = self.path("state").display(),
            socket = self.containerd_socket().display(),
            plywood = self.plywood_socket().display(),
            opt = self.path("opt").display(),
            tables = setup.containerd_tables,
        )
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        self.containerd = None;
        self.plywood = None;
        self.registry = None;
        // containerd leaves EROFS images mounted below its snapshot directories.
        for top in [self.dir.path(), &self.containerd_root] {
            for target in host::mounts_below(top) {
                let _ = Command::new("umount").arg("--lazy").arg(target).output();
            }
        }
        remove_cgroups(&self.namespace);
    }
}

/// Waits until something holds, ten seconds at most.
pub fn wait_until(what: &str, holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_within(Duration::from_secs(10), what, holds)
}

/// Waits until something holds.
pub fn wait_within(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !holds()? {
        anyhow::ensure!(start.elapsed() < limit, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// containerd removes a container's cgroup but not its namespace's above it.
fn remove_cgroups(namespace: &str) {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([top.to_owned()]) {
        let group = hierarchy.join(namespace);
        remove_group(&group);
    }
}

fn remove_group(group: &Path) {
    for inner in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&inner.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// A container that runs.
#[derive(Debug)]
pub struct Container<'e> {
    env: &'e Env,
    id: String,
}

impl Container<'_> {
    /// Root of the container's tree, as containerd's shim has mounted it.
    pub fn root(&self) -> PathBuf {
        let tasks = self.env.path("state").join("io.containerd.runtime.v2.task");
        tasks.join(&self.env.namespace).join(&self.id).join("rootfs")
    }

    /// Ends its process; the snapshot stays.
    pub fn kill(&self) -> anyhow::Result<()> {
        host::run(&mut self.env.ctr(&["task", "delete", "--force", &self.id]))?;
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = host::run(&mut self.env.ctr(&["container", "delete", "--keep-snapshot", &self.id]));
    }
}

/// A mounted image; dropping it unmounts.
#[derive(Debug)]
pub struct ImageMount {
    target: TempDir,
}

impl ImageMount {
    /// The root of the tree.
    pub fn path(&self) -> &Path {
        self.target.path()
    }
}

impl Drop for ImageMount {
    fn drop(&mut self) {
        let _ = host::run(Command::new("umount").arg(self.target.path()));
    }
}
