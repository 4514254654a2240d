//! Plywood under a real containerd, with a registry, runc and the kernel's own EROFS.
//!
//! Every test starts a set-up of its own. Without root, the programs of `setup/tools.sh` or a kernel feature, each
//! test is reported as skipped, with what it needs.

mod config;
mod crash;
mod diff;
mod docker;
mod documents;
mod fallback;
mod faults;
mod indexed;
mod load;
mod native;
mod overlaybd;
mod parallel;
mod parents;
mod processors;
mod pull;
mod request;
mod reset;
mod restart;
mod scrub;
mod store;
mod unit_filter;
mod unpack;
mod wires;

use plywood_integration::disk::SmallDisk;
use plywood_integration::docker::{Docker, Layers};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use testkit::Need;

/// Programs that the set-up starts, and those that make trees.
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

/// Tests as they are collected, all of which need a set-up.
struct Suite {
    needs: Vec<Need>,
    suite: testkit::Suite,
}

impl Suite {
    /// Adds a test that runs in a set-up of its own.
    fn with_env(
        &mut self,
        name: impl Into<String>,
        setup: Setup,
        test: impl FnOnce(&mut Env) -> anyhow::Result<()> + Send + 'static,
    ) {
        self.test(name, &[], move || {
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
        self.test(name, &Docker::NEEDS, move || {
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
        self.test(name, &SmallDisk::NEEDS, test);
    }

    /// Adds a test that makes its set-up itself. It needs more than the set-up.
    fn test(
        &mut self,
        name: impl Into<String>,
        more: &[Need],
        test: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        self.suite.test(name.into(), &[&self.needs, more].concat(), test);
    }
}

fn main() -> anyhow::Result<()> {
    let needs = host::needs(&PROGRAMS);
    if needs.iter().all(|need| need.missing().is_none()) {
        host::isolate()?;
    }
    let mut suite = Suite { needs, suite: testkit::Suite::new() };
    config::add(&mut suite);
    pull::add(&mut suite);
    native::add(&mut suite);
    load::add(&mut suite);
    unpack::add(&mut suite);
    fallback::add(&mut suite);
    parallel::add(&mut suite);
    parents::add(&mut suite);
    processors::add(&mut suite);
    overlaybd::add(&mut suite);
    request::add(&mut suite);
    reset::add(&mut suite);
    diff::add(&mut suite);
    indexed::add(&mut suite);
    faults::add(&mut suite);
    crash::add(&mut suite);
    unit_filter::add(&mut suite);
    wires::add(&mut suite);
    restart::add(&mut suite);
    scrub::add(&mut suite);
    store::add(&mut suite);
    docker::add(&mut suite);
    documents::add(&mut suite);
    suite.suite.run()
}
