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
    let tests: [(&str, &'static str, Test); 2] = [
        ("tables_of_a_diff_are_those_that_the_stargz_tools_write", "ctr-remote", stargz_tools),
        ("containers_storage_fetches_an_estargz_layer_file_by_file", "skopeo", containers_storage),
    ];
    for (name, program, test) in tests {
        suite.test(name, &[Need::Tool(program)], move || {
            let mut env = Env::start(&Setup::default())?;
            test(&mut env).map_err(|error| error.context(env.logs()))
        });
    }
}

/// The answer to `asked` as an indexed layer.
fn indexed(caller: &Caller, asked: &DiffRequest, media_type: &str) -> anyhow::Result<Layer> {
    let labels: HashMap<_, _> = [("containerd.io/snapshot/stargz".to_owned(), "true".to_owned())].into();
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
        let layer = indexed(&caller, &asked, media_type)?;
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

/// The regular files of a tree. That reader of eStargz makes no devices and pipes, and sets the times of files alone.
fn files(mut tree: Tree) -> Tree {
    tree.retain(|_, node| matches!(node.kind, Kind::Regular { .. }));
    for node in tree.values_mut() {
        // Counted among all.
        node.link_group = 0;
    }
    tree
}

/// A store that fetches the files of a layer that it lacks, by the table: the tree is that of the container.
fn containers_storage(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let container = changed(env, &pulled, "erofs", "changing")?;
    // A table cannot spell such a name.
    for entry in fs::read_dir(container.root().join("names"))? {
        let entry = entry?;
        if entry.file_name().to_str().is_none() {
            fs::remove_file(entry.path())?;
        }
    }
    let want = carried(&container.root())?;
    let caller = env.caller()?;
    let whole = DiffRequest { left: Vec::new(), ..on_top(&caller, &pulled, "changing")? };
    let reference = env.push("estargz", &Image::oci(vec![indexed(&caller, &whole, GZIP)?]))?;

    let (graph, run) = (env.path("graph"), env.path("run"));
    // Without the option such a store fetches eStargz layers as a whole: their archive cannot be made again from the
    // files, and so its digest is not known.
    let config = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = {graph:?}\nrunroot = {run:?}\n[storage.options]\n\
         pull_options = {{enable_partial_images = \"true\", insecure_allow_unpredictable_image_contents = \"true\"}}\n"
    );
    fs::write(env.path("storage.conf"), config)?;
    fs::write(env.path("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    let mut skopeo = host::command("skopeo");
    skopeo
        .env("CONTAINERS_STORAGE_CONF", env.path("storage.conf"))
        .arg("--policy")
        .arg(env.path("policy.json"));
    skopeo.args(["--debug", "copy", "--src-tls-verify=false"]);
    let output =
        skopeo.args([&format!("docker://{reference}"), "containers-storage:localhost/made:1"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let layers = graph.join("overlay");
    let outcome = (|| {
        anyhow::ensure!(output.status.success() && said.contains("Retrieved partial blob"), "{said}");
        let mut trees = Vec::new();
        for entry in fs::read_dir(&layers).with_context(|| said.to_string())? {
            let tree = entry?.path().join("diff");
            if tree.is_dir() {
                trees.push(tree);
            }
        }
        let [found] = &trees[..] else { anyhow::bail!("one layer was made: {trees:?}") };
        tree::ensure_equal(&files(want), &files(carried(found)?))
    })();
    for mount in host::mounts_below(&graph) {
        host::run(host::command("umount").arg(mount))?;
    }
    outcome
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
