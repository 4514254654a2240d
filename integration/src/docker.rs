//! dockerd on top of a set-up: docker's own commands, with images in containerd's store and containerd's snapshots.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use serde_json::json;
use testkit::Need;

use crate::daemon::Daemon;
use crate::env::{Env, wait_until};
use crate::tree::{self, Tree};
use crate::{host, image};

/// Who makes the layers of builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// BuildKit itself where a stage and its parent are overlay mounts, else the diff service: the default.
    ByBuildKit,
    /// The diff service, always.
    ByDiff,
}

/// A running dockerd and its set-up. Dropping it ends both.
#[derive(Debug)]
pub struct Docker {
    // Ends before the daemons that it asks.
    dockerd: Daemon,
    env: Env,
    snapshotter: &'static str,
    layers: Layers,
    /// Bytes that Plywood had logged before: it starts before containerd, which it remarks.
    logged: usize,
}

impl Docker {
    /// Programs that it needs beside those of the set-up; `setup/tools.sh docker` unpacks them.
    pub const NEEDS: [Need; 3] = [Need::Tool("dockerd"), Need::Tool("docker"), Need::Tool("docker-buildx")];

    /// Starts dockerd with its images and containers in `env`'s containerd, in snapshots of `snapshotter`.
    pub fn start(env: Env, snapshotter: &'static str, layers: Layers) -> anyhow::Result<Self> {
        let logged = plywood_log(&env)?.len();
        let config = json!({
            "features": {"containerd-snapshotter": true},
            "storage-driver": snapshotter,
        });
        std::fs::write(env.path("daemon.json"), config.to_string())?;
        let buildx = host::program("docker-buildx").context("no docker-buildx")?;
        let plugins = buildx.parent().context("docker-buildx is in no directory")?;
        std::fs::create_dir(env.path("client"))?;
        let client = json!({"cliPluginsExtraDirs": [plugins]});
        std::fs::write(env.path("client/config.json"), client.to_string())?;

        let mut command = host::command("dockerd");
        command
            .arg("--config-file")
            .arg(env.path("daemon.json"))
            .arg("--containerd")
            .arg(env.containerd_socket())
            .args(["--containerd-namespace", env.namespace()])
            .args(["--cgroup-parent", &format!("/{}", env.namespace())])
            .arg("--data-root")
            .arg(env.path("docker"))
            .arg("--exec-root")
            .arg(env.path("docker-run"))
            .arg("--pidfile")
            .arg(env.path("docker.pid"))
            .args(["--host", &host_address(&env)])
            // Containers here have no network, and the host's is left as it is.
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false"]);
        if layers == Layers::ByDiff {
            command.env("BUILDKIT_DEBUG_FORCE_OVERLAY_DIFF", "0");
        }
        let mut dockerd = Daemon::start("dockerd", &mut command, &env.path("logs/dockerd.log"))?;
        let socket = env.path("docker.sock");
        dockerd.wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        let docker = Self { dockerd, env, snapshotter, layers, logged };
        let driver = docker.run(&["info", "--format", "{{.Driver}} {{.DriverStatus}}"])?;
        let want = format!("{snapshotter} [[driver-type io.containerd.snapshotter.v1]]");
        anyhow::ensure!(driver.trim() == want, "docker info says {driver:?}, not {want:?}");
        Ok(docker)
    }

    /// The daemons below it.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The snapshotter of its images and containers.
    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter
    }

    /// Who makes the layers of its builds.
    pub fn layers(&self) -> Layers {
        self.layers
    }

    /// Runs `docker` with these arguments; its standard output.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        host::run(&mut self.command(arguments))
    }

    /// Runs a command in a new container of an image; its standard output.
    pub fn run_image(&self, image: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(&[&["run", "--rm", "--network", "none", image], arguments].concat())
    }

    /// `docker` for this dockerd.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // One command that never ends fails its own test instead of keeping all of them waiting.
        let mut command = host::command("timeout");
        command
            .args(["--kill-after=5", "60", "docker"])
            .args(arguments)
            .env("DOCKER_HOST", host_address(&self.env))
            .env("DOCKER_CONFIG", self.env.path("client"))
            .env("HOME", self.env.path("client"));
        command
    }

    /// The tree of a running container, as dockerd has mounted it.
    pub fn container_root(&self, id: &str) -> PathBuf {
        self.env.path("docker/rootfs").join(self.snapshotter).join(id)
    }

    /// The tree of an image that is unpacked.
    pub fn tree(&self, image: &str) -> anyhow::Result<Tree> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let layers = self.run(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", image])?;
        let layers: Vec<String> = serde_json::from_str(&layers)?;
        let key = format!("tree-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let caller = self.env.caller()?;
        caller.view(self.snapshotter, &key, &image::chain_id(layers.iter().map(String::as_str)))?;
        let mounted = self.env.mount_snapshot(self.snapshotter, &key)?;
        let tree = tree::carried(mounted.path())?;
        drop(mounted);
        caller.remove(self.snapshotter, &key)?;
        Ok(tree)
    }

    /// Requests that Plywood has answered so far, without those that it left to the next differ.
    pub fn answered(&self, method: &str) -> anyhow::Result<usize> {
        let method = format!("method=\"{method}\"");
        let log = plywood_log(&self.env)?;
        let lines = log.lines().filter(|line| line.contains(REQUEST) && line.contains(&method));
        Ok(lines.filter(|line| line.contains(OK)).count())
    }

    /// An error that lists what Plywood has logged since dockerd's start beyond requests that went well.
    ///
    /// On other snapshots than those of its configured roots it declines Apply; that is expected as well.
    pub fn ensure_nothing_went_wrong(&self) -> anyhow::Result<()> {
        let declined = ["method=\"Apply\"", "code=\"unimplemented\"", "reason=\"mount.outside-root\""];
        let log = plywood_log(&self.env)?;
        let unexpected: Vec<&str> = log[self.logged..]
            .lines()
            .filter(|line| {
                let level = line.split_whitespace().nth(1).unwrap_or_default();
                let expected = !line.contains(REQUEST)
                    || line.contains(OK)
                    || (self.snapshotter != "erofs" && declined.iter().all(|part| line.contains(part)));
                !expected || !["INFO", "DEBUG", "TRACE"].contains(&level)
            })
            .collect();
        anyhow::ensure!(unexpected.is_empty(), "plywood logged:\n{}", unexpected.join("\n"));
        Ok(())
    }

    /// Waits until containerd has collected every blob, snapshot and lease of docker's.
    pub fn wait_until_empty(&self) -> anyhow::Result<()> {
        let caller = self.env.caller()?;
        let mut left = String::new();
        wait_until("nothing is left in containerd", || {
            caller.collect()?;
            let (blobs, leases) = (caller.blobs()?, caller.leases()?);
            let snapshots =
                host::run(&mut self.env.ctr(&["snapshots", "--snapshotter", self.snapshotter, "list"]))?;
            // The first line names the columns.
            let snapshots: Vec<&str> = snapshots.lines().skip(1).collect();
            left = format!("blobs {blobs:?}, snapshots {snapshots:?}, leases {leases:?}");
            Ok(blobs.is_empty() && snapshots.is_empty() && leases.is_empty())
        })
        .context(left)
    }

    /// The ends of all logs, for the message of a failed test.
    pub fn logs(&self) -> String {
        format!("{}\n--- dockerd.log\n{}", self.env.logs(), self.dockerd.log_tail(12))
    }
}

fn plywood_log(env: &Env) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(env.path("logs/plywood.log"))?)
}

/// Part of the line that Plywood logs at the end of each request.
const REQUEST: &str = " plywood::request: ";
/// Part of that line when the request went well.
const OK: &str = " code=\"ok\" ";

fn host_address(env: &Env) -> String {
    format!("unix://{}", env.path("docker.sock").display())
}
