//! Indexed layers: Diff to eStargz and zstd:chunked, read by the tools for which they are (`ctr-remote` of the stargz
//! snapshotter, and containers/storage, the store of podman, buildah and skopeo), and metadata of layers in a content store.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context as _;
use containerd_client::services::v1::DiffRequest;
use containerd_client::types::Descriptor;
use plywood_integration::calls::{Caller, Differ};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Image, Layer};
use plywood_integration::tree::{self, Kind, Tree, carried};
use serde_json::Value;
use testkit::Need;

use crate::Suite;
use crate::diff::{GZIP, Pulled, UNCOMPRESSED, changed, on_top};

const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

pub fn add(suite: &mut Suite) {
    let setup = Setup::default();
    suite.with_env("stargz_makes_the_metadata_of_a_layer_in_the_content_store", setup, of_content_store);
    type Test = fn(&mut Env) -> anyhow::Result<()>;
    let tests: [(&str, &'static str, Test); 3] = [
        ("tables_of_a_diff_are_those_that_the_stargz_tools_write", "ctr-remote", stargz_tools),
        ("containers_storage_fetches_an_estargz_layer_file_by_file", "skopeo", estargz_in_a_store),
        (
            "containers_storage_fetches_a_zstd_chunked_layer_file_by_file_and_makes_its_archive_again",
            "skopeo",
            chunked_in_a_store,
        ),
    ];
    for (name, program, test) in tests {
        suite.test(name, &[Need::Tool(program)], move || {
            let mut env = Env::start(&Setup::default())?;
            test(&mut env).map_err(|error| error.context(env.logs()))
        });
    }
}

/// Label of a request for the tables of the stargz tools, and for those of the containers tools.
const STARGZ: &str = "containerd.io/snapshot/stargz";
const CHUNKED: &str = "io.github.containers.zstd-chunked";

/// The answer to `asked` as an indexed layer.
fn indexed(caller: &Caller, asked: &DiffRequest, media_type: &str, label: &str) -> anyhow::Result<Layer> {
    let labels: HashMap<_, _> = [(label.to_owned(), "true".to_owned())].into();
    let message = DiffRequest { media_type: media_type.into(), labels, ..asked.clone() };
    let found: Descriptor = caller.diff(Differ::Plywood, message, None)?;
    let (_, labels) = caller.content(&found.digest)?.context("the blob is not in the store")?;
    Ok(Layer {
        media_type: found.media_type.clone(),
        blob: caller.read(&found.digest)?,
        diff_id: labels.get(UNCOMPRESSED).context("no label")?.clone(),
        annotations: found.annotations.into_iter().collect::<BTreeMap<_, _>>(),
    })
}

/// The tools read our layer, and write one from it with a table that differs in offsets alone.
fn stargz_tools(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let _container = changed(env, &pulled, "erofs", "changing")?;
    let caller = env.caller()?;
    let asked = on_top(&caller, &pulled, "changing")?;
    for (media_type, name, flags) in [(GZIP, "estargz", &[][..]), (ZSTD, "chunked", &["--zstdchunked"])] {
        let layer = indexed(&caller, &asked, media_type, STARGZ)?;
        let ctr_remote = |arguments: &[&str]| {
            let mut command = host::command("ctr-remote");
            command.arg("--address").arg(env.containerd_socket()).args(["--namespace", env.namespace()]);
            host::run(command.arg("images").args(arguments))
        };
        let read =
            |blob: &str, more: &[&str]| ctr_remote(&[&["get-toc-digest"], flags, more, &[blob]].concat());
        let digest = read(&layer.digest(), &[])?;
        anyhow::ensure!(
            layer.annotations.get(TOC_DIGEST).is_some_and(|want| want == digest.trim()),
            "{digest}"
        );

        let image = Image::oci(vec![layer.clone()]);
        let reference = env.push(name, &image)?;
        env.pull(&reference, "erofs", &[])?;
        let before = caller.blobs()?;
        let converted = format!("{reference}-converted");
        let platform = format!("linux/{}", Image::architecture());
        let optimize = ["optimize", "--no-optimize", "--oci", "--platform", &platform];
        ctr_remote(&[&optimize[..], flags, &[&reference, &converted]].concat())?;
        let blobs = caller.blobs()?;
        let mut written = Vec::new();
        for blob in blobs.iter().filter(|blob| !before.contains(blob)) {
            // The others are documents.
            if caller.read(blob)?.first() != Some(&b'{') {
                written.push(blob);
            }
        }
        let [theirs] = written[..] else { anyhow::bail!("one layer was converted: {written:?}") };
        let entries = |blob: &str| -> anyhow::Result<Vec<Value>> {
            let mut table: Value = serde_json::from_str(&read(blob, &["--dump-toc"])?)?;
            let mut entries = std::mem::take(table["entries"].as_array_mut().context("no entries")?);
            for entry in &mut entries {
                entry.as_object_mut().context("no object")?.remove("offset");
            }
            Ok(entries)
        };
        let (ours, theirs) = (entries(&layer.digest())?, entries(theirs)?);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            anyhow::ensure!(ours == theirs, "{name}: {ours} instead of {theirs}");
        }
        anyhow::ensure!(ours.len() == theirs.len(), "{name}: {} and {} entries", ours.len(), theirs.len());
        anyhow::ensure!(ours.iter().any(|entry| entry["name"] == ".wh.many"), "{name}: no whiteout");
    }
    Ok(())
}

/// A store of containers/storage, which skopeo fills. Dropping it unmounts what is mounted in it.
struct Store<'e> {
    env: &'e Env,
    graph: PathBuf,
}

impl<'e> Store<'e> {
    /// An empty store with these `pull_options`.
    fn new(env: &'e Env, options: &str) -> anyhow::Result<Self> {
        let (graph, run) = (env.path("graph"), env.path("run"));
        let config = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {graph:?}\nrunroot = {run:?}\n[storage.options]\n\
             pull_options = {{{options}}}\n"
        );
        fs::write(env.path("storage.conf"), config)?;
        fs::write(env.path("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        Ok(Self { env, graph })
    }

    /// Copies an image, and returns what skopeo says to that.
    fn copy(&self, from: &str, to: &str) -> anyhow::Result<String> {
        let mut skopeo = host::command("skopeo");
        skopeo.env("CONTAINERS_STORAGE_CONF", self.env.path("storage.conf"));
        skopeo.arg("--policy").arg(self.env.path("policy.json"));
        let output = skopeo.args(["--debug", "copy", "--src-tls-verify=false", from, to]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "{said}");
        Ok(said)
    }

    /// Directories of the layers, the highest first.
    fn layers(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.graph.join("overlay"))? {
            let directory = entry?.path();
            if directory.join("diff").is_dir() {
                // Links to all layers below.
                let lower = fs::read_to_string(directory.join("lower")).unwrap_or_default();
                layers
                    .push((lower.split(':').filter(|link| !link.is_empty()).count(), directory.join("diff")));
            }
        }
        layers.sort();
        Ok(layers.into_iter().rev().map(|(_, directory)| directory).collect())
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        for mount in host::mounts_below(&self.graph) {
            let _left = host::run(host::command("umount").arg(mount));
        }
    }
}

/// The part of a tree that such a store makes when it fetches files by themselves: no devices and pipes, no owners of symlinks, and
/// no times but those of files.
fn files(mut tree: Tree) -> Tree {
    let is_made = |kind: &Kind| matches!(kind, Kind::Regular { .. } | Kind::Directory | Kind::Symlink { .. });
    tree.retain(|_, node| is_made(&node.kind));
    for node in tree.values_mut() {
        // Counted among all.
        node.link_group = 0;
        if !matches!(node.kind, Kind::Regular { .. }) {
            node.mtime = (0, 0);
        }
        if matches!(node.kind, Kind::Symlink { .. }) {
            (node.uid, node.gid) = (0, 0);
        }
    }
    tree
}

/// A table cannot spell names that are not UTF-8.
fn remove_odd_names(root: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join("names"))? {
        let entry = entry?;
        if entry.file_name().to_str().is_none() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A store that fetches the files of a layer that it lacks, by the table: the tree is that of the container.
fn estargz_in_a_store(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let container = changed(env, &pulled, "erofs", "changing")?;
    remove_odd_names(&container.root())?;
    let want = carried(&container.root())?;
    let caller = env.caller()?;
    let whole = DiffRequest { left: Vec::new(), ..on_top(&caller, &pulled, "changing")? };
    let reference = env.push("estargz", &Image::oci(vec![indexed(&caller, &whole, GZIP, STARGZ)?]))?;

    // Without the option such a store fetches eStargz layers as a whole: their archive cannot be made again from the
    // files, and so its digest is not known.
    let options = r#"enable_partial_images = "true", insecure_allow_unpredictable_image_contents = "true""#;
    let store = Store::new(env, options)?;
    let said = store.copy(&format!("docker://{reference}"), "containers-storage:localhost/made:1")?;
    anyhow::ensure!(said.contains("Retrieved partial blob"), "{said}");
    let layers = store.layers()?;
    let [found] = &layers[..] else { anyhow::bail!("one layer was made: {layers:?}") };
    tree::ensure_equal(&files(want), &files(carried(found)?))
}

/// A store that fetches zstd:chunked, without the option that allows less, does so too. It computes the digest of the archive, which it makes again of the
/// files, and refuses a layer whose digest is not the one in the image's configuration.
fn chunked_in_a_store(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let container = changed(env, &pulled, "erofs", "changing")?;
    let caller = env.caller()?;
    let asked = on_top(&caller, &pulled, "changing")?;
    // Whiteouts, and what changed.
    let top = indexed(&caller, &asked, ZSTD, CHUNKED)?;
    let mut stacked = pulled.layers()?;
    stacked.push(top.clone());
    let stacked = (top.diff_id, env.push("stacked", &Image::oci(stacked))?, carried(&container.root())?);
    remove_odd_names(&container.root())?;
    let whole = indexed(&caller, &DiffRequest { left: Vec::new(), ..asked }, ZSTD, CHUNKED)?;
    let whole =
        (whole.diff_id.clone(), env.push("whole", &Image::oci(vec![whole]))?, carried(&container.root())?);

    for (name, (diff_id, reference, want)) in [("stacked", stacked), ("whole", whole)] {
        let store = Store::new(env, r#"enable_partial_images = "true""#)?;
        let image = format!("containers-storage:localhost/{name}:1");
        let said = store.copy(&format!("docker://{reference}"), &image)?;
        anyhow::ensure!(
            said.contains("Created zstd:chunked differ") && said.contains("Retrieved partial blob"),
            "{said}"
        );
        let layers = store.layers()?;
        let tree = env.path("tree");
        fs::create_dir_all(&tree)?;
        let joined = layers.iter().map(|layer| layer.to_string_lossy()).collect::<Vec<_>>().join(":");
        let empty = env.path("empty");
        fs::create_dir_all(&empty)?;
        let mount = format!("ro,lowerdir={joined}:{}", empty.display());
        host::run(host::command("mount").args(["-t", "overlay", "overlay", "-o", &mount]).arg(&tree))?;
        let found = carried(&tree);
        host::run(host::command("umount").arg(&tree))?;
        tree::ensure_equal(&files(want), &files(found?)).context(name)?;

        // The archive, made of the store's files. That of GNU tar with a sparse file, in the other image, cannot be.
        if name == "whole" {
            let again = env.path("again");
            store.copy(&image, &format!("dir:{}", again.display()))?;
            let archive = again.join(diff_id.trim_start_matches("sha256:"));
            anyhow::ensure!(archive.is_file(), "{diff_id} is not among the archives");
        }
        drop(store);
        fs::remove_dir_all(env.path("graph"))?;
    }
    Ok(())
}

/// The layer comes from containerd by its digest: what is made of it is what is made of the file.
fn of_content_store(env: &mut Env) -> anyhow::Result<()> {
    let fixture =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/stargz").join(name);
    let file = fixture("estargz/l1.esgz");
    let described: Value = serde_json::from_slice(&fs::read(fixture("estargz/l1.esgz.json"))?)?;
    let annotations = described["descriptor"]["annotations"].as_object().context("no annotations")?;
    let annotations =
        annotations.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    let layer = Layer {
        media_type: GZIP.to_owned(),
        blob: fs::read(&file)?,
        diff_id: described["diffID"].as_str().context("no diffID")?.to_owned(),
        annotations: annotations.collect(),
    };
    let digest = layer.digest();
    let image = Image::oci(vec![layer.clone()]);
    let reference = env.push("estargz", &image)?;
    env.pull(&reference, "erofs", &[])?;
    let diff_id = layer.diff_id.clone();
    let wrong = layer.annotated(TOC_DIGEST, &digest);
    let wrong = env.push("wrong", &Image::oci(vec![wrong]))?;
    host::run(&mut env.ctr(&["content", "fetch", "--plain-http", &wrong]))?;

    let address = env.containerd_socket().display().to_string();
    let content = ["--address", &address, "--namespace", env.namespace(), "--content"];
    let stargz = |layer: &[&str], directory: &Path| -> anyhow::Result<Output> {
        fs::create_dir_all(directory)?;
        let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
        command.arg("stargz").args(layer).args(["--data", "-o", ".", "--whole", "layer.boot"]);
        Ok(command.current_dir(directory).output()?)
    };
    let made = |layer: &[&str], name: &str| -> anyhow::Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
        let directory = env.path(name);
        let output = stargz(layer, &directory)?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        fs::read_dir(directory)?
            .map(|entry| {
                let entry = entry?;
                let mode = entry.metadata()?.permissions().mode();
                Ok((entry.file_name().into(), (mode, fs::read(entry.path())?)))
            })
            .collect()
    };
    let want = made(&[&file.display().to_string()], "of-the-file")?;
    anyhow::ensure!(want.len() == 5, "{:?}", want.keys());
    anyhow::ensure!(made(&[&content[..], &[&digest]].concat(), "of-the-digest")? == want, "other files");
    let of = [&content[..], &[&digest, "--of", &reference]].concat();
    anyhow::ensure!(made(&of, "of-the-image")? == want, "other files of an image's layer");

    // The kernel mounts it alone, with the files of the layer as a snapshot has them.
    let mounted = env.path("mounted");
    fs::create_dir(&mounted)?;
    host::run(
        Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .arg(env.path("of-the-digest/layer.boot"))
            .arg(&mounted),
    )?;
    let found = carried(&mounted);
    host::run(Command::new("umount").arg(&mounted))?;
    let without_links = |mut tree: Tree| {
        tree.retain(|path, _| ![&b"stargz.index.json"[..], b".no.prefetch.landmark"].contains(&&path[..]));
        // Counted among all.
        tree.values_mut().for_each(|node| node.link_group = 0);
        tree
    };
    let pulled = env.mount(&image)?;
    tree::ensure_equal(&without_links(carried(pulled.path())?), &without_links(found?))?;

    let none = env.path("none");
    for (layer, reason) in
        [(&[&digest, "--of", &wrong][..], "stargz.toc.digest"), (&[&diff_id], "store.not-found")]
    {
        let output = stargz(&[&content[..], layer].concat(), &none)?;
        let said = String::from_utf8(output.stderr.clone())?;
        anyhow::ensure!(said.trim_end().ends_with(&format!("[{reason}]")), "{output:?}");
    }
    anyhow::ensure!(fs::read_dir(none)?.count() == 0, "a layer that is none leaves files");
    Ok(())
}
