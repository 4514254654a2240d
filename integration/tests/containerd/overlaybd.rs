//! Images under the overlaybd snapshotter, or a stand-in for it: what becomes of their layers, and that the device they make
//! holds the tree that the layers describe.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use containerd_client::services::v1::DiffRequest;
use containerd_client::types::Mount;
use plywood_integration::archive::{self, Sparse};
use plywood_integration::calls::Differ;
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer, digest};
use plywood_integration::overlaybd::{CONVERT, Class, UNPACKED, WRITABLE};
use plywood_integration::tree;

use crate::Suite;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
const BLOB_SIZE: &str = "containerd.io/snapshot/overlaybd/blob-size";
const TARGET: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
const TARGET_TYPE: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type";

pub fn add(suite: &mut Suite) {
    for (layers, transfer) in [("turbo", true), ("turbo", false), ("native", true), ("native", false)] {
        let service = if transfer { "transfer" } else { "diff" };
        suite.with_env(
            format!("a_{layers}_device_made_of_layers_through_the_{service}_service_equals_them"),
            setup(&format!("layers = {layers:?}\nkernel_index = true")),
            move |env| ordinary_layers(env, layers == "turbo", if transfer { &[] } else { &["--local"] }),
        );
    }
    suite.with_env("ordinary_layers_are_unpacked_unless_they_are_asked_for", setup(""), unpacked);
    suite.with_env("a_label_asks_for_the_conversion_of_one_layer", setup(""), labelled);
    suite.with_env("a_turbo_image_is_unpacked_and_its_device_is_right", setup(""), turbo_image);
    suite.with_env("a_published_turbo_image_of_three_layers_has_their_tree", setup(""), published_turbo);
    suite.with_env("a_writable_device_becomes_a_layer_that_pulls_again", setup(""), writable_device);
    suite.with_env(
        "a_writable_device_above_an_image_becomes_a_layer_with_its_tree",
        setup("layers = \"native\""),
        writable_above,
    );
    suite.with_env("a_container_above_a_device_becomes_a_layer", setup("layers = \"native\""), container);
}

/// A set-up with these settings for devices, small enough to be read whole.
fn setup(overlaybd: &str) -> Setup {
    let plywood_tables =
        format!("[overlaybd]\nvirtual_gib = 1\n{overlaybd}\n[limits]\nreserve_percent = 0\n");
    Setup { overlaybd: true, plywood_tables, differs: &["plywood", "walking"], ..Setup::default() }
}

/// The feature layers: a scratch directory that keeps the files, their paths, and their bytes.
fn layers() -> anyhow::Result<(tempfile::TempDir, Vec<PathBuf>, Vec<Vec<u8>>)> {
    let scratch = tempfile::tempdir()?;
    let files = archive::feature_layers(scratch.path(), Sparse::With)?;
    let tars = files.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    Ok((scratch, files, tars))
}

fn image_of(tars: &[Vec<u8>]) -> anyhow::Result<Image> {
    let codings = [Coding::Gzip, Coding::Zstd, Coding::Plain];
    let layers = tars.iter().zip(codings).map(|(tar, coding)| Layer::oci(tar, coding));
    Ok(Image::oci(layers.collect::<anyhow::Result<_>>()?))
}

fn ordinary_layers(env: &mut Env, keeps_archives: bool, arguments: &[&str]) -> anyhow::Result<()> {
    let (scratch, files, tars) = layers()?;
    let reference = env.push("features", &image_of(&tars)?)?;
    env.pull(&reference, "overlaybd", arguments)?;

    let committed = env.overlaybd()?.committed();
    anyhow::ensure!(committed.len() == 3, "{committed:?}");
    for ((directory, class), tar) in committed.iter().zip(&tars) {
        anyhow::ensure!(*class == Class::LocalBlock, "{directory:?} is a {class:?}");
        let kept = std::fs::read(directory.join("layer.tar")).ok();
        anyhow::ensure!(kept.as_ref() == keeps_archives.then_some(tar), "{directory:?}: another archive");
        let index = directory.join("layer.tar.erofs");
        anyhow::ensure!(index.exists() == keeps_archives, "{directory:?}: {index:?}");
        anyhow::ensure!(leftovers(directory)?.is_empty(), "{:?}", leftovers(directory)?);
    }
    let (top, _) = committed.last().context("no layers")?;
    let want = scratch.path().join("want");
    tree::stack(&files, &want)?;
    let mounted = mount(env, top)?;
    tree::ensure_equal(&tree::scan(&want)?, &tree::scan(mounted.path())?)?;
    if keeps_archives {
        let (bottom, _) = committed.first().context("no layers")?;
        kernel_mounts_the_index(env, bottom, &files)?;
    }
    Ok(())
}

/// The lowest layer, which has no whiteouts, by the kernel and without a device driver.
fn kernel_mounts_the_index(env: &Env, snapshot: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let want = env.path("want-lowest");
    tree::stack(files.get(..1).context("no layers")?, &want)?;
    let target = env.path("indexed");
    std::fs::create_dir(&target)?;
    let devices = attach(&snapshot.join("layer.tar"))?;
    let outcome = (|| {
        host::run(
            Command::new("mount")
                .args(["-t", "erofs", "-o", &format!("ro,loop,device={}", devices.0)])
                .arg(snapshot.join("layer.tar.erofs"))
                .arg(&target),
        )?;
        tree::ensure_equal(&tree::scan(&want)?, &tree::scan(&target)?)
    })();
    let _ = Command::new("umount").arg("--lazy").arg(&target).output();
    outcome
}

/// A loop device, which goes when it is dropped.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

fn attach(file: &Path) -> anyhow::Result<Loop> {
    let name = host::run(Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file))?;
    Ok(Loop(name.trim().to_owned()))
}

/// A mounted device; dropping it unmounts.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

/// Flattens the device of a committed snapshot, and mounts it.
fn mount(env: &Env, snapshot: &Path) -> anyhow::Result<Mounted> {
    let flat = flatten(env, snapshot)?;
    let target = Mounted(tempfile::Builder::new().prefix("mnt-").tempdir_in(env.path(""))?);
    host::run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(&flat).arg(target.path()))?;
    Ok(target)
}

/// Everything that a stack of layers makes of its device, in one file with holes.
fn flatten(env: &Env, snapshot: &Path) -> anyhow::Result<PathBuf> {
    let name = snapshot.file_name().context("no name")?.to_string_lossy().into_owned();
    let flat = env.path(&format!("flat-{name}"));
    let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
    command.args(["overlaybd", "flatten", "--config"]).arg(snapshot.join("block/config.v1.json"));
    host::run(command.arg("-o").arg(&flat))?;
    Ok(flat)
}

/// Names in a snapshot's directory that belong neither to the snapshotter nor to a layer.
fn leftovers(snapshot: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let known = [
        "fs",
        "work",
        "block",
        "layer.tar",
        "layer.tar.erofs",
        "mountpoint",
        "init-debug.log",
        "config.v1.json",
        "overlaybd.commit",
        "target",
    ];
    let mut found = Vec::new();
    for directory in [snapshot.to_owned(), snapshot.join("fs"), snapshot.join("block")] {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if !known.iter().any(|name| path.ends_with(name)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The next differ of containerd's list unpacks them, as it did before there was us.
fn unpacked(env: &mut Env) -> anyhow::Result<()> {
    let (_scratch, _, tars) = layers()?;
    let reference = env.push("features", &image_of(&tars)?)?;
    env.pull(&reference, "overlaybd", &["--local"])?;
    let committed = env.overlaybd()?.committed();
    let classes: Vec<_> = committed.iter().map(|(_, class)| *class).collect();
    anyhow::ensure!(classes == [Class::Normal; 3], "{committed:?}");
    let error = env.pull(&reference, "overlaybd", &[]);
    anyhow::ensure!(error.is_ok(), "the layers are there: {error:?}");
    Ok(())
}

/// The mounts of a snapshot with the label do not show the layers below: they are found through containerd.
fn labelled(env: &mut Env) -> anyhow::Result<()> {
    let (scratch, files, tars) = layers()?;
    let caller = env.caller()?;
    let mut parent = String::new();
    for (number, tar) in tars.iter().enumerate() {
        let layer = Layer::oci(tar, Coding::Gzip)?;
        caller.ingest(&layer)?;
        let key = format!("active-{number}");
        let target = format!("layer-{number}");
        let labels = [(CONVERT, ""), (UNPACKED, &target)];
        let mounts = caller.prepare_labelled("overlaybd", &key, &parent, &labels)?;
        anyhow::ensure!(mounts.len() == 1 && mounts[0].r#type == "bind", "{mounts:?}");
        let applied = caller.apply(&layer, &mounts)?;
        anyhow::ensure!(applied.digest == layer.diff_id, "{applied:?}");
        parent = format!("committed-{number}");
        caller.commit("overlaybd", &parent, &key)?;
    }
    let committed = env.overlaybd()?.committed();
    anyhow::ensure!(committed.iter().all(|(_, class)| *class == Class::LocalBlock), "{committed:?}");
    let (top, _) = committed.last().context("no layers")?;
    let want = scratch.path().join("want");
    tree::stack(&files, &want)?;
    let mounted = mount(env, top)?;
    tree::ensure_equal(&tree::scan(&want)?, &tree::scan(mounted.path())?)?;
    // No view of ours is left.
    let listed = host::run(&mut env.ctr(&["snapshots", "--snapshotter", "overlaybd", "list"]))?;
    anyhow::ensure!(!listed.contains("plywood-view"), "{listed}");
    let attached = env.overlaybd()?.attached();
    anyhow::ensure!(attached == 0, "{attached} devices were attached to find the layers below");
    Ok(())
}

/// Two layers that the upstream tools made, over gzip blobs.
fn turbo_image(env: &mut Env) -> anyhow::Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let read = |name: &str| {
        let directory =
            if ["base.tar.gz", "base.gzip.meta"].contains(&name) { "gzindex" } else { "overlaybd/turbo" };
        std::fs::read(fixtures.join(directory).join(name)).with_context(|| name.to_owned())
    };
    let mut layers = Vec::new();
    for name in ["base", "top"] {
        let original = read(&format!("{name}.tar.gz"))?;
        std::fs::write(env.overlaybd_targets().join(digest(&original).replace(':', "-")), &original)?;
        let mut builder = tar::Builder::new(Vec::new());
        for (member, bytes) in [
            ("erofs.fs.meta", read(&format!("{name}.erofs.fs.meta"))?),
            (".turbo.ociv1", Vec::new()),
            ("gzip.meta", read(&format!("{name}.gzip.meta"))?),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, member, &bytes[..])?;
        }
        let layer = Layer::oci(&builder.into_inner()?, Coding::Gzip)?;
        let (blob, size) = (layer.digest(), layer.blob.len().to_string());
        layers.push(
            layer
                .annotated(BLOB_DIGEST, &blob)
                .annotated(BLOB_SIZE, &size)
                .annotated(TARGET, &digest(&original))
                .annotated(TARGET_TYPE, GZIP),
        );
    }
    let reference = env.push("turbo", &Image::oci(layers))?;
    env.pull(&reference, "overlaybd", &[])?;
    let committed = env.overlaybd()?.committed();
    let classes: Vec<_> = committed.iter().map(|(_, class)| *class).collect();
    anyhow::ensure!(classes == [Class::Turbo; 2], "{committed:?}");
    let (top, _) = committed.last().context("no layers")?;
    let flat = std::fs::read(flatten(env, top)?)?;
    let expected: serde_json::Value = serde_json::from_slice(&read("expected-device.json")?)?;
    let text = expected.to_string();
    let found = digest(&flat).replace("sha256:", "");
    anyhow::ensure!(text.contains(&found), "device {found} is none of {text}");
    Ok(())
}

/// The layers that `plywood overlaybd turbo-export` makes of an image, each above the ones before it.
fn published_turbo(env: &mut Env) -> anyhow::Result<()> {
    let (scratch, files, tars) = layers()?;
    let (mut layers, mut lowers) = (Vec::new(), Vec::new());
    for (number, tar) in tars.iter().enumerate() {
        let at = |name: &str| scratch.path().join(format!("{name}-{number}"));
        let original = Layer::oci(tar, Coding::Gzip)?;
        let target = env.overlaybd_targets().join(original.digest().replace(':', "-"));
        std::fs::write(&target, &original.blob)?;
        let config = at("config");
        std::fs::write(&config, serde_json::json!({ "lowers": lowers }).to_string())?;
        let mut export = Command::new(host::plywood_binary().context("no plywood binary")?);
        export.args(["overlaybd", "turbo-export", "--vsize", "1"]).arg(&target).arg("-o").arg(at("layer"));
        if number > 0 {
            export.arg("--config").arg(&config);
        }
        let printed: serde_json::Value = serde_json::from_str(&host::run(&mut export)?)?;
        let blob = std::fs::read(at("layer"))?;
        let mut layer = Layer {
            media_type: GZIP.to_owned(),
            diff_id: printed["diffID"].as_str().context("no diffID")?.to_owned(),
            blob,
            annotations: BTreeMap::new(),
        };
        let annotations = printed["descriptor"]["annotations"].as_object().context("no annotations")?;
        for (name, value) in annotations {
            layer = layer.annotated(name, value.as_str().unwrap_or_default());
        }
        layers.push(layer);
        let members = at("members");
        std::fs::create_dir(&members)?;
        host::run(Command::new("tar").arg("-C").arg(&members).arg("-xzf").arg(at("layer")))?;
        lowers.push(serde_json::json!({
            "file": members.join("erofs.fs.meta"),
            "targetFile": target,
            "gzipIndex": members.join("gzip.meta"),
        }));
    }
    let reference = env.push("turbo", &Image::oci(layers))?;
    env.pull(&reference, "overlaybd", &[])?;
    let committed = env.overlaybd()?.committed();
    let classes: Vec<_> = committed.iter().map(|(_, class)| *class).collect();
    anyhow::ensure!(classes == [Class::Turbo; 3], "{committed:?}");
    let (top, _) = committed.last().context("no layers")?;
    let want = scratch.path().join("want");
    tree::stack(&files, &want)?;
    let mounted = mount(env, top)?;
    tree::ensure_equal(&tree::scan(&want)?, &tree::scan(mounted.path())?)
}

/// Makes a layer of a container's writes to the device of an image. They are an archive here, applied by hand.
fn writable_above(env: &mut Env) -> anyhow::Result<()> {
    let (scratch, mut files, tars) = layers()?;
    let mut image = image_of(&tars)?;
    let reference = env.push("features", &image)?;
    env.pull(&reference, "overlaybd", &[])?;
    let caller = env.caller()?;
    let chain_id = image.chain_id();
    let left = caller.view("overlaybd", "below", &chain_id)?;
    let right = caller.prepare_labelled("overlaybd", "writable", &chain_id, &[(WRITABLE, "dir")])?;
    let block = env.overlaybd()?.directory("writable").context("no snapshot")?.join("block");
    let written = archive::one_file("etc/written/by-the-container", &archive::noise(300_000, 9))?;
    let tar = scratch.path().join("written.tar");
    std::fs::write(&tar, written)?;
    let tool = |name: &str| -> anyhow::Result<Command> {
        let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
        command.arg0(name).current_dir(&block);
        Ok(command)
    };
    host::run(tool("overlaybd-create")?.args(["writable_data", "writable_index", "0"]))?;
    host::run(tool("overlaybd-apply")?.arg(&tar).arg("config.v1.json"))?;
    // From nothing, and from what is not right below it, leads another layer.
    let error = caller.diff(Differ::Plywood, request(&[], &right), None).err().context("a wrong layer")?;
    anyhow::ensure!(error.code() == tonic::Code::FailedPrecondition, "{error:?}");
    image.layers.push(exported(env, &left, &right)?);
    let reference = env.push("written", &image)?;
    env.pull(&reference, "overlaybd", &[])?;
    let committed = env.overlaybd()?.committed();
    anyhow::ensure!(committed.len() == 4, "{committed:?}");
    let (top, class) = committed.last().context("no layers")?;
    anyhow::ensure!(*class == Class::LocalBlock, "{class:?}");
    files.push(tar);
    let want = scratch.path().join("want");
    tree::stack(&files, &want)?;
    let mounted = mount(env, top)?;
    tree::ensure_equal(&tree::scan(&want)?, &tree::scan(mounted.path())?)
}

/// The writable pair that containers left, as a layer, and its device after a pull.
fn writable_device(env: &mut Env) -> anyhow::Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd/lsmt");
    let caller = env.caller()?;
    let mounts = caller.prepare_labelled("overlaybd", "writable", "", &[(WRITABLE, "dir")])?;
    let directory = env.overlaybd()?.directory("writable").context("no snapshot")?;
    for (from, to) in [("ops2.rw.data", "writable_data"), ("ops2.rw.index", "writable_index")] {
        std::fs::copy(fixtures.join(from), directory.join("block").join(to))?;
    }
    let layer = exported(env, &[], &mounts)?;
    let name = layer.annotations.get(BLOB_DIGEST).cloned();
    anyhow::ensure!(name.as_deref() == Some(layer.digest().as_str()), "{:?}", layer.annotations);
    let reference = env.push("writable", &Image::oci(vec![layer]))?;
    env.pull(&reference, "overlaybd", &[])?;
    let committed = env.overlaybd()?.committed();
    let [(snapshot, Class::LocalBlock)] = committed.as_slice() else { anyhow::bail!("{committed:?}") };
    let flat = digest(&std::fs::read(flatten(env, snapshot)?)?).replace("sha256:", "");
    let expected = std::fs::read_to_string(fixtures.join("expected.json"))?;
    anyhow::ensure!(expected.contains(&flat), "device {flat} is none of {expected}");

    // A device in use changes under our hands.
    let point = directory.join("block/mountpoint");
    host::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&point))?;
    let error = caller.diff(Differ::Plywood, request(&[], &mounts), None);
    host::run(Command::new("umount").arg(&point))?;
    let status = error.err().context("a mounted device was read")?;
    anyhow::ensure!(status.code() == tonic::Code::FailedPrecondition, "{status:?}");
    Ok(())
}

fn request(left: &[Mount], right: &[Mount]) -> DiffRequest {
    DiffRequest {
        left: left.to_vec(),
        right: right.to_vec(),
        media_type: TAR.to_owned(),
        ..DiffRequest::default()
    }
}

/// The layer that Diff makes of `right`, as a registry would have it.
fn exported(env: &Env, left: &[Mount], right: &[Mount]) -> anyhow::Result<Layer> {
    let caller = env.caller()?;
    let found = caller.diff(Differ::Plywood, request(left, right), None)?;
    let blob = std::fs::read(env.blob(&found.digest))?;
    let annotations = found.annotations.into_iter().collect();
    Ok(Layer { media_type: found.media_type, diff_id: digest(&blob), blob, annotations })
}

/// Changes of a container above a device, as an ordinary layer and as one of the device.
fn container(env: &mut Env) -> anyhow::Result<()> {
    let (scratch, files, tars) = layers()?;
    let image = image_of(&tars)?;
    let reference = env.push("features", &image)?;
    env.pull(&reference, "overlaybd", &[])?;
    let caller = env.caller()?;
    let left = caller.view("overlaybd", "below", &image.chain_id())?;
    let right = caller.prepare_in("overlaybd", "above", &image.chain_id())?;
    let upper = env.overlaybd()?.directory("above").context("no snapshot")?.join("fs");
    std::fs::write(upper.join("new"), b"written by a container")?;
    std::fs::create_dir(upper.join("directory"))?;
    std::fs::write(upper.join("directory/file"), vec![7; 100_000])?;

    let ordinary = exported(env, &left, &right)?;
    anyhow::ensure!(ordinary.annotations.is_empty(), "{:?}", ordinary.annotations);
    let tar = scratch.path().join("ordinary.tar");
    std::fs::write(&tar, &ordinary.blob)?;
    let want = scratch.path().join("want");
    tree::stack(&[files, vec![tar]].concat(), &want)?;
    for layer in [ordinary, {
        let mut message = request(&left, &right);
        message.labels.insert("containerd.io/snapshot/overlaybd/version".to_owned(), "0.1.0".to_owned());
        let found = caller.diff(Differ::Plywood, message, None)?;
        let blob = std::fs::read(env.blob(&found.digest))?;
        anyhow::ensure!(found.annotations.contains_key(BLOB_DIGEST), "{found:?}");
        let annotations = found.annotations.into_iter().collect();
        Layer { media_type: found.media_type, diff_id: digest(&blob), blob, annotations }
    }] {
        let mut image = image.clone();
        image.layers.push(layer);
        let reference = env.push("changed", &image)?;
        env.pull(&reference, "overlaybd", &[])?;
        let committed = env.overlaybd()?.committed();
        let (top, _) = committed.last().context("no layers")?;
        let mounted = mount(env, top)?;
        // A layer lists the root only when more of it changes than its time.
        tree::ensure_equal(&tree::carried(&want)?, &tree::carried(mounted.path())?)?;
    }
    Ok(())
}
