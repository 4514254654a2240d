//! docker and BuildKit with containerd's images and snapshots: what they build, commit and carry about is what they
//! were given.
//!
//! Every build is compared with what BuildKit exports of the same stage: that is read from the stage's snapshot, while
//! the image went through Diff and Apply.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use plywood_integration::archive::{self, Sparse, Tree};
use plywood_integration::docker::{Docker, Layers};
use plywood_integration::env::{wait_until, wait_within};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer};
use plywood_integration::tree::{self, Kind};

use crate::Suite;
use crate::diff::{CHANGES, is_written};

type Test = fn(&Docker) -> anyhow::Result<()>;

pub fn add(suite: &mut Suite) {
    let tests: [(&str, Layers, Test); 10] = [
        ("docker_runs_what_it_pulled", Layers::ByBuildKit, pulled),
        ("docker_commits_what_a_container_changed", Layers::ByBuildKit, committed),
        ("docker_builds_hold_the_files_of_every_stage", Layers::ByDiff, stages),
        ("docker_builds_hold_what_was_copied_with_link", Layers::ByDiff, linked),
        ("docker_builds_from_scratch", Layers::ByDiff, from_scratch),
        ("docker_builds_with_its_classic_builder", Layers::ByBuildKit, classic),
        ("docker_runs_what_it_imported", Layers::ByBuildKit, imported),
        ("docker_loads_what_it_saved", Layers::ByBuildKit, saved),
        ("docker_pulls_what_it_pushed_in_every_compression", Layers::ByBuildKit, pushed),
        ("docker_prunes_all_that_was_built", Layers::ByBuildKit, pruned),
    ];
    for snapshotter in ["erofs", "overlayfs"] {
        for (name, layers, test) in tests {
            suite.with_docker(format!("{name}_on_{snapshotter}"), snapshotter, layers, test);
        }
    }
}

/// The image of every feature, in the registry, and the directory that holds its layers as tar files.
struct Base {
    reference: String,
    files: Vec<PathBuf>,
    scratch: tempfile::TempDir,
}

impl Base {
    fn push(docker: &Docker) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let files = archive::feature_layers(scratch.path(), Sparse::With)?;
        let layers = files.iter().map(|file| Layer::oci(&std::fs::read(file)?, Coding::Gzip));
        let image = Image::oci(layers.collect::<anyhow::Result<_>>()?);
        let reference = docker.env().push("base", &image)?;
        Ok(Self { reference, files, scratch })
    }
}

/// A directory to build from, with a few files, a program and an archive.
struct Context {
    base: Base,
}

impl Context {
    fn new(docker: &Docker) -> anyhow::Result<Self> {
        let base = Base::push(docker)?;
        let context = Self { base };
        let tree = Tree::create(&context.path(""))?;
        tree.file("source/one", b"one of the context\n")?;
        tree.file("source/deep/two", b"two of the context\n")?;
        tree.symlink("source/link", "deep/two")?;
        tree.file("source/large", &archive::noise(300_000, 5))?;
        tree.dir("empty")?;
        let busybox = host::program("busybox").context("busybox is missing")?;
        tree.program("busybox", &std::fs::read(busybox)?)?;
        std::fs::write(
            context.path("archive.tar"),
            archive::one_file("packed/three", b"three of the archive\n")?,
        )?;
        Ok(context)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.scratch.path().join("context").join(name)
    }

    /// `docker build` of a stage.
    fn command(
        &self,
        docker: &Docker,
        dockerfile: &str,
        stage: &str,
        extra: &[&str],
    ) -> anyhow::Result<Command> {
        let file = self.base.scratch.path().join("Dockerfile");
        std::fs::write(&file, dockerfile)?;
        let base = format!("BASE={}", self.base.reference);
        // BuildKit would use docker's bridge, which there is none of.
        let mut command =
            docker.command(&["build", "--network", "none", "--target", stage, "--build-arg", &base]);
        command.args(extra).arg("--file").arg(file).arg(self.path(""));
        Ok(command)
    }

    fn build(&self, docker: &Docker, dockerfile: &str, stage: &str, extra: &[&str]) -> anyhow::Result<()> {
        host::run(&mut self.command(docker, dockerfile, stage, extra)?)?;
        Ok(())
    }

    /// Builds an image of a stage, which must hold all that the stage holds.
    fn build_image(&self, docker: &Docker, dockerfile: &str, stage: &str) -> anyhow::Result<()> {
        self.build(docker, dockerfile, stage, &["--tag", stage])?;
        let exported = self.base.scratch.path().join("exported.tar");
        let output = format!("type=tar,dest={}", exported.display());
        self.build(docker, dockerfile, stage, &["--output", &output])?;
        let (mut want, found) = (stacked(&[exported])?, docker.tree(stage)?);
        for (name, node) in &mut want {
            let Some(found) = found.get(name) else { continue };
            // The archive's times are rounded to the nearest second, those of layers are cut.
            let rounded = node.mtime.0 == found.mtime.0 + 1;
            // Directories of which the time alone is new are left out of the layers that BuildKit makes itself, and
            // those that come with a link have another time in its own snapshots than in the link's layer.
            let untimed = node.kind == Kind::Directory
                && (docker.layers() == Layers::ByBuildKit || dockerfile.contains("--link"));
            if rounded || untimed {
                node.mtime = found.mtime;
            }
        }
        tree::ensure_equal(&want, &found).with_context(|| stage.to_owned())
    }
}

/// The tree that these layers give, the lowest first.
fn stacked(layers: &[PathBuf]) -> anyhow::Result<tree::Tree> {
    let root = tempfile::tempdir()?;
    tree::stack(layers, root.path())?;
    tree::carried(root.path())
}

/// An error unless the image shows the tree that these layers give, the lowest first.
fn ensure_holds(docker: &Docker, image: &str, layers: &[PathBuf]) -> anyhow::Result<()> {
    let mut want = stacked(layers)?;
    if !is_erofs(docker) {
        // containerd's own differ leaves them out.
        for node in want.values_mut() {
            node.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
        }
    }
    tree::ensure_equal(&want, &docker.tree(image)?).with_context(|| image.to_owned())
}

/// An error unless a shell in the image prints this.
fn ensure_says(docker: &Docker, image: &str, script: &str, want: &str) -> anyhow::Result<()> {
    let said = docker.run_image(image, &["/bin/sh", "-c", script])?;
    anyhow::ensure!(said == want, "{image}: {script:?} says {said:?}");
    Ok(())
}

/// An error unless Plywood, and not the differ after it, has given this many answers at least.
fn ensure_answered(docker: &Docker, method: &str, least: usize) -> anyhow::Result<()> {
    let answered = docker.answered(method)?;
    anyhow::ensure!(answered >= least, "plywood answered {method} {answered} times, not {least}");
    Ok(())
}

/// Likewise for layers, of which containerd's own differ applies those on overlayfs.
fn ensure_applied(docker: &Docker, least: usize) -> anyhow::Result<()> {
    if is_erofs(docker) { ensure_answered(docker, "Apply", least) } else { Ok(()) }
}

fn is_erofs(docker: &Docker) -> bool {
    docker.snapshotter() == "erofs"
}

fn pulled(docker: &Docker) -> anyhow::Result<()> {
    let base = Base::push(docker)?;
    docker.run(&["pull", "--quiet", &base.reference])?;
    ensure_holds(docker, &base.reference, &base.files)?;
    let said = docker.run_image(&base.reference, &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    ensure_applied(docker, 3)
}

fn committed(docker: &Docker) -> anyhow::Result<()> {
    let base = Base::push(docker)?;
    docker.run(&["pull", "--quiet", &base.reference])?;
    let run = ["run", "--detach", "--network", "none", &base.reference, "/bin/sh", "-c", CHANGES];
    let id = docker.run(&run)?.trim().to_owned();
    let root = docker.container_root(&id);
    wait_until("the container has changed its tree", || Ok(is_written(&root.join("a/done"))))
        .with_context(|| docker.run(&["logs", &id]).unwrap_or_default())?;
    docker.run(&["commit", &id, "changed"])?;
    tree::ensure_equal(&tree::carried(&root)?, &docker.tree("changed")?)?;
    docker.run(&["rm", "--force", &id])?;
    ensure_says(docker, "changed", "cat /etc/added /opaque/* /links/below", "new\nfresh\na file now\n")?;

    // Nothing changed, not even by the start of a container.
    let id = docker.run(&["create", "changed"])?.trim().to_owned();
    docker.run(&["commit", &id, "unchanged"])?;
    docker.run(&["rm", &id])?;
    tree::ensure_equal(&docker.tree("changed")?, &docker.tree("unchanged")?)?;
    ensure_answered(docker, "Diff", 2)
}

fn stages(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile = r#"
ARG BASE
FROM $BASE AS base
FROM base AS builder
COPY source /source
RUN /bin/busybox mkdir -p /made/deep && cat /source/one /source/deep/two > /made/sum
RUN /bin/busybox ln /made/sum /made/deep/linked && /bin/busybox mkfifo -m 0600 /made/fifo && echo x >> /made/sum
RUN /bin/busybox rm -r /source /many && /bin/busybox mkdir /many && echo fresh > /many/fresh
RUN true
FROM scratch AS data
COPY source/one /data/one
COPY --chown=7:8 source /data/all
FROM data AS more-data
COPY --from=builder /made/sum /data/sum
FROM base AS final
COPY --from=builder /made /made
COPY --from=data /data /data
COPY --from=more-data /data/sum /data/one
RUN cat /made/sum /data/all/one > /both && /bin/busybox rm /etc/kept
"#;
    for stage in ["final", "builder", "data", "more-data"] {
        context.build_image(docker, dockerfile, stage)?;
    }
    let sum = "one of the context\ntwo of the context\nx\n";
    ensure_says(docker, "final", "cat /both", &format!("{sum}one of the context\n"))?;
    ensure_says(
        docker,
        "final",
        "cat /made/deep/linked /data/all/link",
        &format!("{sum}two of the context\n"),
    )?;
    ensure_says(
        docker,
        "final",
        "cat /data/one; ls /etc",
        &format!("{sum}changed\nhostname\nhosts\nmtab\nresolv.conf\n"),
    )?;
    ensure_says(docker, "builder", "cat /made/deep/linked; ls /many", &format!("{sum}fresh\n"))?;
    ensure_answered(docker, "Diff", 10)
}

fn linked(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile = r#"
ARG BASE
FROM $BASE AS base
FROM base AS builder
RUN /bin/busybox mkdir -p /made/deep && echo linked > /made/deep/file && /bin/busybox ln -s deep/file /made/link
FROM base AS final
COPY --link source /copied
COPY --link --chown=7:8 --chmod=0640 source/one /owned/one
COPY --link --from=builder /made /made
ADD --link archive.tar /
COPY --link source/deep/two /etc/kept
RUN cat /copied/one /made/link /packed/three /etc/kept > /sum
COPY --link source/one /copied/deep/two
FROM scratch AS only-links
COPY --link busybox /bin/sh
COPY --link --from=final /sum /sum
"#;
    for stage in ["final", "only-links"] {
        context.build_image(docker, dockerfile, stage)?;
    }
    let sum = "one of the context\nlinked\nthree of the archive\ntwo of the context\n";
    ensure_says(docker, "final", "cat /sum /copied/deep/two", &format!("{sum}one of the context\n"))?;
    ensure_says(docker, "final", "stat -c '%a %u %g' /owned/one", "640 7 8\n")?;
    ensure_says(docker, "only-links", "while read line; do echo $line; done < /sum", sum)?;
    ensure_answered(docker, "Diff", 8)
}

fn from_scratch(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile = r#"
FROM scratch AS one
COPY busybox /bin/sh
FROM scratch AS two
COPY busybox /bin/sh
COPY --chown=1000:100000 source /home
FROM scratch AS nothing
COPY empty /
"#;
    for stage in ["one", "two", "nothing"] {
        context.build_image(docker, dockerfile, stage)?;
    }
    ensure_says(docker, "one", "echo hello", "hello\n")?;
    ensure_says(docker, "two", "while read line; do echo $line; done < /home/link", "two of the context\n")?;
    ensure_answered(docker, "Diff", 2)
}

fn classic(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile = r#"
ARG BASE
FROM $BASE AS builder
COPY --chown=7:8 source /source
RUN cat /source/one /source/deep/two > /made && /bin/busybox rm /etc/kept
FROM scratch AS data
COPY source /data
FROM builder AS classic
COPY --from=data /data/large /large
COPY --from=data /data/one /etc/kept
"#;
    let mut command = context.command(docker, dockerfile, "classic", &["--tag", "classic"])?;
    host::run(command.env("DOCKER_BUILDKIT", "0"))?;
    let sum = "one of the context\ntwo of the context\n";
    ensure_says(docker, "classic", "cat /made /etc/kept", &format!("{sum}one of the context\n"))?;
    ensure_says(docker, "classic", "stat -c '%u %g' /source/one", "7 8\n")?;
    let (want, found) = (tree::carried(&context.path("source"))?, docker.tree("classic")?);
    let contents = |tree: &tree::Tree| tree.get(&b"large"[..]).map(|node| node.kind.clone());
    anyhow::ensure!(contents(&found) == contents(&want), "/large has other bytes");
    ensure_answered(docker, "Diff", 3)
}

fn imported(docker: &Docker) -> anyhow::Result<()> {
    let base = Base::push(docker)?;
    let lowest = &base.files[..1];
    docker.run(&["import", &lowest[0].to_string_lossy(), "imported"])?;
    ensure_holds(docker, "imported", lowest)?;
    ensure_says(docker, "imported", "cat /etc/kept", "of the first layer")?;
    ensure_applied(docker, 1)
}

fn saved(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile =
        "ARG BASE\nFROM $BASE AS saved\nCOPY --link source /source\nRUN /bin/busybox rm /etc/changed\n";
    context.build_image(docker, dockerfile, "saved")?;
    let before = docker.tree("saved")?;
    let file = context.base.scratch.path().join("saved.tar");
    docker.run(&["save", "--output", &file.to_string_lossy(), "saved"])?;
    docker.run(&["system", "prune", "--all", "--force"])?;
    anyhow::ensure!(docker.tree("saved").is_err(), "the image is still there");
    docker.run(&["load", "--input", &file.to_string_lossy()])?;
    ensure_is_saved_image(docker, &before)?;
    docker.run(&["system", "prune", "--all", "--force"])?;
    let mut load = Command::new(host::plywood_binary().context("no plywood binary")?);
    load.args(["load", "--json", "--progress", "none", "--namespace", docker.env().namespace()]);
    load.arg("--address").arg(docker.env().containerd_socket()).arg(&file);
    let loaded: serde_json::Value = serde_json::from_str(&host::run(&mut load)?)?;
    let [name, digest] = ["name", "digest"].map(|key| loaded["images"][0][key].as_str().unwrap_or_default());
    anyhow::ensure!(name == "docker.io/library/saved:latest", "{loaded}");
    // Docker unpacks what it loads itself, and nothing else.
    let unpack = ["snapshots", "unpack", "--snapshotter", docker.snapshotter(), digest];
    host::run(&mut docker.env().ctr(&unpack))?;
    ensure_is_saved_image(docker, &before)
}

fn ensure_is_saved_image(docker: &Docker, want: &tree::Tree) -> anyhow::Result<()> {
    tree::ensure_equal(want, &docker.tree("saved")?)?;
    ensure_says(
        docker,
        "saved",
        "cat /source/one; test ! -e /etc/changed && echo gone",
        "one of the context\ngone\n",
    )
}

fn pushed(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile = "ARG BASE\nFROM $BASE AS pushed\nCOPY --link source /source\nRUN echo made > /made\n";
    for compression in ["gzip", "zstd", "uncompressed"] {
        let reference = docker.env().reference(compression);
        let output = format!("type=image,name={reference},compression={compression},force-compression=true");
        context.build(docker, dockerfile, "pushed", &["--output", &output])?;
        let before = docker.tree(&reference)?;
        docker.run(&["push", "--quiet", &reference])?;
        docker.run(&["system", "prune", "--all", "--force"])?;
        docker.run(&["pull", "--quiet", &reference])?;
        tree::ensure_equal(&before, &docker.tree(&reference)?).context(compression)?;
        ensure_says(docker, &reference, "cat /source/one /made", "one of the context\nmade\n")?;
    }
    Ok(())
}

fn pruned(docker: &Docker) -> anyhow::Result<()> {
    let context = Context::new(docker)?;
    let dockerfile = "ARG BASE\nFROM scratch AS data\nCOPY source /data\nFROM $BASE AS built\nCOPY --link --from=data /data /data\n\
        RUN echo made > /made\n";
    context.build_image(docker, dockerfile, "built")?;
    // Without a change docker would not use the layer, which then stays until our lease ends.
    docker.run(&[
        "run",
        "--network",
        "none",
        "--name",
        "changed",
        "built",
        "/bin/sh",
        "-c",
        "echo new > /new",
    ])?;
    docker.run(&["commit", "changed", "committed"])?;
    docker.run(&["rm", "changed"])?;
    // Images hold the layers now. A lease of ours that outlived them would stay until it ends as well.
    let caller = docker.env().caller()?;
    wait_within(Duration::from_secs(40), "no lease of ours is left", || {
        Ok(caller.leases()?.keys().all(|id| !id.starts_with("plywood-")))
    })?;
    docker.run(&["system", "prune", "--all", "--force"])?;
    docker.wait_until_empty()
}
