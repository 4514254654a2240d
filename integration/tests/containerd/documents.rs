//! The commands of the documents, typed line by line on a machine of their own, as a reader would.
//!
//! `PLYWOOD_SYSTEM`, when set, names a root directory with another system, such as one that `debootstrap` made, which
//! takes the place of this machine's. It is not changed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use plywood_integration::archive::{self, Spelling, Tree};
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Image, Layer};
use plywood_integration::node::{CHECKOUT, Node};
use plywood_integration::{commands, host};
use testkit::Need;

use crate::Suite;

/// The image that the documents pull. A registry on loopback has one for it.
const IMAGE: &str = "docker.io/library/alpine:latest";

/// Programs that the documents use, beside containerd's, and that the node needs.
const PROGRAMS: [&str; 6] = ["bash", "chroot", "curl", "mkfifo", "timeout", "xz"];

pub fn add(suite: &mut Suite) {
    for (name, text) in [
        ("README.md", include_str!("../../../README.md")),
        ("docs/operations.md", include_str!("../../../docs/operations.md")),
    ] {
        suite.test(format!("every_command_of_{name}_works"), &PROGRAMS.map(Need::Tool), move || {
            follow(&Env::start(&Setup::default())?, name, text)
        });
    }
}

fn follow(env: &Env, name: &str, text: &str) -> anyhow::Result<()> {
    let layers = layers()?;
    let reference = env.push("alpine", &Image::oci(layers.clone()))?;
    let steps = commands::steps(&text.replace(IMAGE, &reference))?;
    let system = std::env::var_os("PLYWOOD_SYSTEM").map(PathBuf::from);
    let mut node = Node::new(env, system.as_deref())?;
    put_files(&node, &layers)?;
    let transcript = node.follow(name, &steps)?;
    if system.is_some() {
        println!("{transcript}");
    }
    anyhow::ensure!(
        transcript.contains("\nhello from EROFS\n"),
        "no container has said hello:\n{transcript}"
    );
    let log = node.log("plywood");
    let applied =
        log.lines().filter(|line| line.contains("method=\"Apply\"") && line.contains("code=\"ok\""));
    anyhow::ensure!(applied.count() >= layers.len(), "not every layer came through Plywood:\n{log}");
    Ok(())
}

/// Layers with the programs that the documents run in containers.
fn layers() -> anyhow::Result<Vec<Layer>> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::create(&scratch.path().join("tree"))?;
    for dir in ["proc", "sys", "dev", "etc", "tmp"] {
        tree.dir(dir)?;
    }
    let busybox = host::program("busybox").context("busybox is missing")?;
    tree.program("bin/busybox", &std::fs::read(busybox)?)?;
    for applet in ["sh", "echo", "sleep", "touch"] {
        tree.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
    }
    let packed = scratch.path().join("layer.tar");
    tree.pack(Spelling::Pax, &packed)?;
    let second = archive::one_file("etc/second", b"of another layer")?;
    Ok(vec![Layer::oci(&std::fs::read(packed)?, Coding::Gzip)?, Layer::oci(&second, Coding::Gzip)?])
}

/// The files that the documents take for granted in the current directory.
fn put_files(node: &Node, layers: &[Layer]) -> anyhow::Result<()> {
    let at = |name: &str| node.path(CHECKOUT).join(name);
    std::fs::write(at("layer.tar.gz"), &layers[1].blob)?;
    for name in ["base.erofs", "old.erofs", "1.erofs", "2.erofs"] {
        let mut command = host::command(
            host::plywood_binary().context("no plywood binary")?.to_str().context("an odd path")?,
        );
        host::run(command.arg("apply").arg(at("layer.tar.gz")).arg("-o").arg(at(name)))?;
    }
    let scratch = tempfile::tempdir()?;
    Image::oci(layers.to_vec()).write_layout(scratch.path())?;
    let index = std::fs::read_to_string(scratch.path().join("index.json"))?;
    let named = index.replace("\"latest\"", "\"docker.io/library/app:1\"");
    std::fs::write(scratch.path().join("index.json"), named)?;
    host::run(Command::new("tar").arg("-C").arg(scratch.path()).arg("-cf").arg(at("image.tar")).arg("."))?;
    for name in ["upper", "new"] {
        std::fs::create_dir(at(name))?;
        std::fs::write(at(name).join("file"), name)?;
    }
    Ok(())
}
