//! Plywood under a real containerd, with a registry, runc and the kernel's own EROFS.
//!
//! Every test starts a set-up of its own. Without root, the programs of `setup/tools.sh` or a kernel feature, each
//! test is reported as skipped, with what it needs.

#[path = "containerd/config.rs"]
mod config;
#[path = "containerd/crash.rs"]
mod crash;
#[path = "containerd/diff.rs"]
mod diff;
#[path = "containerd/docker.rs"]
mod docker;
#[path = "containerd/documents.rs"]
mod documents;
#[path = "containerd/fallback.rs"]
mod fallback;
#[path = "containerd/faults.rs"]
mod faults;
#[path = "containerd/native.rs"]
mod native;
#[path = "containerd/parallel.rs"]
mod parallel;
#[path = "containerd/parents.rs"]
mod parents;
#[path = "containerd/pull.rs"]
mod pull;
#[path = "containerd/request.rs"]
mod request;
#[path = "containerd/reset.rs"]
mod reset;
#[path = "containerd/restart.rs"]
mod restart;
#[path = "containerd/store.rs"]
mod store;
#[path = "containerd/unit_filter.rs"]
mod unit_filter;
#[path = "containerd/wires.rs"]
mod wires;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use plywood_integration::disk::SmallDisk;
use plywood_integration::docker::{Docker, Layers};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;

/// What the set-up starts, and what trees are made with.
const PROGRAMS: [&str; 11] = [
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "docker-registry",
    "oras",
    "busybox",
    "mkfs.erofs",
    "tar",
    "unshare",
    "umount",
];

/// Tests as they are collected.
struct Suite {
    missing: Option<String>,
    trials: Vec<Trial>,
}

impl Suite {
    /// Adds a test that runs in a set-up of its own.
    fn with_env(
        &mut self,
        name: impl Into<String>,
        setup: Setup,
        test: impl FnOnce(&mut Env) -> anyhow::Result<()> + Send + 'static,
    ) {
        self.test(name, self.missing.clone(), move || {
            let mut env = Env::start(&setup)?;
            test(&mut env).map_err(|error| error.context(env.logs()))
        });
    }

    /// Adds a test that runs in a set-up of its own with dockerd on top, and in which nothing of Plywood's may go wrong.
    fn with_docker(
        &mut self,
        name: impl Into<String>,
        snapshotter: &'static str,
        layers: Layers,
        test: impl FnOnce(&Docker) -> anyhow::Result<()> + Send + 'static,
    ) {
        let missing = self.missing.clone().or_else(Docker::missing);
        self.test(name, missing, move || {
            let setup = Setup { differs: &["plywood", "walking"], ..Setup::default() };
            let docker = Docker::start(Env::start(&setup)?, snapshotter, layers)?;
            test(&docker)
                .and_then(|()| docker.ensure_nothing_went_wrong())
                .map_err(|error| error.context(docker.logs()))
        });
    }

    /// Adds a test that makes its set-up itself, on a small disk.
    fn with_disk(
        &mut self,
        name: impl Into<String>,
        test: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        let missing = self.missing.clone().or_else(SmallDisk::missing);
        self.test(name, missing, test);
    }

    fn test(
        &mut self,
        name: impl Into<String>,
        missing: Option<String>,
        test: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        self.trials.push(Trial::ignorable_test(name, move || match missing {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => match test() {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => {
                    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
                    Err(Failed::from(chain.join("\n")))
                }
            },
        }));
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::from_args();
    let missing = host::missing(&PROGRAMS);
    if missing.is_none() && !arguments.list {
        host::isolate()?;
    }
    let mut suite = Suite { missing, trials: Vec::new() };
    config::add(&mut suite);
    pull::add(&mut suite);
    native::add(&mut suite);
    fallback::add(&mut suite);
    parallel::add(&mut suite);
    parents::add(&mut suite);
    request::add(&mut suite);
    reset::add(&mut suite);
    diff::add(&mut suite);
    faults::add(&mut suite);
    crash::add(&mut suite);
    unit_filter::add(&mut suite);
    wires::add(&mut suite);
    restart::add(&mut suite);
    store::add(&mut suite);
    docker::add(&mut suite);
    documents::add(&mut suite);
    libtest_mimic::run(&arguments, suite.trials).exit()
}
