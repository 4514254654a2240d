//! `plywood unpack` and `plywood load --unpack` into a real containerd: the snapshots that containerd's own clients make,
//! nothing half-made when a run fails or is killed, and nothing lost to the garbage collector.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plywood_integration::archive::{self, Sparse};
use plywood_integration::calls::{Caller, Snapshot};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer, chain_id};
use plywood_integration::tree;
use serde_json::{Value, json};
use testkit::Need;

use crate::Suite;

/// Moments at which a run is killed, evenly spread from its begin to its end.
const POINTS: u32 = 100;
/// Layers of the image that is killed, and uncompressed bytes of each.
const LAYERS: usize = 6;
const LAYER_BYTES: usize = 3 << 20;

pub fn add(suite: &mut Suite) {
    type Test = fn(&mut Env) -> anyhow::Result<()>;
    let tests: [(&str, Test); 15] = [
        ("unpack_makes_a_chain_of_snapshots_as_containerd_does", fresh),
        ("unpack_again_applies_and_commits_nothing", again),
        ("unpack_applies_common_layers_of_two_images_once", common),
        ("unpack_makes_two_snapshots_of_a_layer_that_occurs_twice", twice),
        ("unpack_refuses_a_layer_with_another_diff_id_and_keeps_those_below_only_with_the_lease", lies),
        ("unpack_killed_at_100_points_goes_on_with_the_layers_that_are_missing", killed),
        ("unpack_beside_another_client_leaves_no_active_snapshot", beside),
        ("unpack_loses_nothing_to_the_garbage_collector", collected),
        ("unpack_names_a_layer_that_is_missing_before_anything_is_prepared", missing),
        ("unpack_refuses_what_is_no_image_of_this_platform_before_anything_is_prepared", refused),
        ("unpack_through_plywoods_own_socket_gives_the_same_snapshots", directly),
        ("a_loaded_and_unpacked_image_runs", loaded),
        ("load_unpack_killed_at_100_points_leaves_no_image_or_one_that_is_unpacked", load_killed),
        ("load_unpack_that_fails_leaves_nothing", load_fails),
        ("the_example_program_unpacks_layers_one_by_one_and_all_together", example),
    ];
    for (name, test) in tests {
        suite.with_env(name, Setup::default(), test);
    }
    suite.test(
        "unpack_of_twenty_layers_at_once_makes_the_same_chain_as_one_by_one",
        &[Need::Other("containerd 2.2 or later", || {
            containerd_version().is_some_and(|version| version >= (2, 2))
        })],
        || {
            let mut env = Env::start(&Setup::default())?;
            at_once(&mut env).map_err(|error| error.context(env.logs()))
        },
    );
}

/// Major and minor version of the containerd that the tests run.
fn containerd_version() -> Option<(u32, u32)> {
    let text = host::run(host::command("containerd").arg("--version")).ok()?;
    let version = text.split_whitespace().find(|word| word.contains('.') && !word.contains('/'))?;
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[allow(dead_code, reason = "its `main` is for people")]
#[path = "../../../examples/unpack.rs"]
mod example_program;

fn command(env: &Env, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
    command.args(arguments).arg("--address").arg(env.containerd_socket());
    command.args(["--namespace", env.namespace()]).env_remove("CONTAINERD_SNAPSHOTTER");
    Ok(command)
}

/// Runs a command to its JSON object, or to its reason id and message.
fn json_of(command: &mut Command) -> anyhow::Result<Result<Value, (String, String)>> {
    let output = command.args(["--json", "--progress", "none"]).output()?;
    let object: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let text = |key: &str| object["error"][key].as_str().unwrap_or_default().to_owned();
    Ok(match object.get("error") {
        Some(_) => Err((text("reason"), text("message"))),
        None => Ok(object),
    })
}

fn try_unpack(env: &Env, name: &str, more: &[&str]) -> anyhow::Result<Result<Value, (String, String)>> {
    json_of(&mut command(env, &[&["unpack", name], more].concat())?)
}

/// Unpacks; how many layers are new.
fn unpack(env: &Env, name: &str, more: &[&str]) -> anyhow::Result<usize> {
    let object = try_unpack(env, name, more)?.map_err(|error| anyhow::anyhow!("{name}: {error:?}"))?;
    let layers = object["layers"].as_array().context("layers")?;
    Ok(layers.iter().filter(|layer| layer["new"] == true).count())
}

/// Writes an image to a layout, and loads that.
fn load(env: &Env, name: &str, image: &Image) -> anyhow::Result<()> {
    load_altered(env, name, image, |_, _| {})
}

/// Like [`load`], with a manifest and a configuration that differ.
fn load_altered(
    env: &Env,
    name: &str,
    image: &Image,
    alter: impl FnOnce(&mut Value, &mut Value),
) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let layout = scratch.path().join("layout");
    image.write_layout(&layout)?;
    let read = |path: &Path| anyhow::Ok(serde_json::from_slice::<Value>(&std::fs::read(path)?)?);
    let blob =
        |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"));
    let mut index = read(&layout.join("index.json"))?;
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]))?;
    let mut config = read(&blob(&manifest["config"]["digest"]))?;
    alter(&mut manifest, &mut config);
    let write = |document: &Value| {
        let text = document.to_string();
        let digest = plywood_integration::image::digest(text.as_bytes());
        std::fs::write(layout.join("blobs").join(digest.replace(':', "/")), &text)?;
        anyhow::Ok((json!(digest), json!(text.len())))
    };
    (manifest["config"]["digest"], manifest["config"]["size"]) = write(&config)?;
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = write(&manifest)?;
    index["manifests"][0]["annotations"] = json!({"io.containerd.image.name": name});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    // containerd's import does not compare layers with diffIDs.
    let packed = scratch.path().join("packed.tar");
    host::run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&packed).arg("."))?;
    let mut import = env.ctr(&["images", "import", "--no-unpack", "--local", "--all-platforms"]);
    host::run(import.arg(&packed))?;
    Ok(())
}

fn text_layers(numbers: impl IntoIterator<Item = u64>) -> anyhow::Result<Vec<Layer>> {
    let layer = |number: u64| {
        Layer::oci(
            &archive::one_file(&format!("dir/{number}"), &archive::text(50_000, number))?,
            Coding::Gzip,
        )
    };
    numbers.into_iter().map(layer).collect()
}

/// The chainID of every layer.
fn chain_ids(image: &Image) -> Vec<String> {
    let up_to = |top: usize| chain_id(image.layers[..=top].iter().map(|layer| layer.diff_id.as_str()));
    (0..image.layers.len()).map(up_to).collect()
}

/// An error unless the committed snapshots are the first `count` of the chain, each on top of the one before, and no
/// other is there.
fn ensure_chain(caller: &Caller, image: &Image, count: usize) -> anyhow::Result<()> {
    ensure_chain_among(&caller.snapshots("erofs")?, image, count)
}

fn ensure_chain_among(
    snapshots: &BTreeMap<String, Snapshot>,
    image: &Image,
    count: usize,
) -> anyhow::Result<()> {
    let chain = chain_ids(image);
    anyhow::ensure!(snapshots.len() == count, "{count} snapshots were to be there: {snapshots:#?}");
    for (number, name) in chain.iter().enumerate().take(count) {
        let Snapshot { is_committed, parent, .. } =
            snapshots.get(name).with_context(|| format!("layer {number} is not in {snapshots:#?}"))?;
        let below = number.checked_sub(1).map(|below| chain[below].as_str()).unwrap_or_default();
        anyhow::ensure!(*is_committed && parent == below, "{name} on {parent}");
    }
    Ok(())
}

/// Removes all snapshots, the highest first.
fn forget(caller: &Caller) -> anyhow::Result<()> {
    let mut left = caller.snapshots("erofs")?;
    while !left.is_empty() {
        for name in left.keys().filter(|name| left.values().all(|other| other.parent != **name)) {
            // Once the highest is gone nothing keeps the others, and the collector may be faster.
            let _gone = caller.remove("erofs", name);
        }
        left = caller.snapshots("erofs")?;
    }
    Ok(())
}

fn applies(env: &mut Env) -> anyhow::Result<usize> {
    let log = env.plywood()?.log();
    let applied =
        log.lines().filter(|line| line.contains("method=\"Apply\"") && line.contains("code=\"ok\""));
    Ok(applied.count())
}

/// Configuration of the only image that is there.
fn config_of(env: &Env, caller: &Caller, name: &str) -> anyhow::Result<String> {
    let listed = host::run(&mut env.ctr(&["images", "ls", &format!("name=={name}")]))?;
    let digest = listed.lines().nth(1).and_then(|line| line.split_whitespace().nth(2)).context("an image")?;
    let manifest: Value = serde_json::from_slice(&caller.read(digest)?)?;
    Ok(manifest["config"]["digest"].as_str().context("a configuration")?.to_owned())
}

fn features() -> anyhow::Result<Image> {
    let scratch = tempfile::tempdir()?;
    let files = archive::feature_layers(scratch.path(), Sparse::With)?;
    let layer = |file: &std::path::PathBuf| Layer::oci(&std::fs::read(file)?, Coding::Gzip);
    Ok(Image::oci(files.iter().map(layer).collect::<anyhow::Result<_>>()?))
}

fn fresh(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = features()?;
    let name = "example.test/features:1";
    load(env, name, &image)?;
    anyhow::ensure!(unpack(env, name, &[])? == 3, "all layers were to be new");
    ensure_chain(&caller, &image, 3)?;
    let ours = caller.snapshots("erofs")?;
    let chain = chain_ids(&image);
    for (number, layer) in image.layers.iter().enumerate() {
        let mut want = BTreeMap::from([
            ("containerd.io/snapshot.ref".to_owned(), chain[number].clone()),
            ("containerd.io/snapshot/diff-id".to_owned(), layer.diff_id.clone()),
        ]);
        if number > 0 {
            want.insert("containerd.io/snapshot/parent-chain-id".to_owned(), chain[number - 1].clone());
        }
        anyhow::ensure!(ours[&chain[number]].labels == want, "{:?}", ours[&chain[number]].labels);
        let (_, labels) = caller.content(&layer.digest())?.context("a layer")?;
        anyhow::ensure!(labels.get("containerd.io/uncompressed") == Some(&layer.diff_id), "{labels:?}");
    }
    let (_, labels) = caller.content(&config_of(env, &caller, name)?)?.context("the configuration")?;
    anyhow::ensure!(labels.get("containerd.io/gc.ref.snapshot.erofs") == chain.last(), "{labels:?}");
    anyhow::ensure!(caller.leases()?.is_empty(), "{:?}", caller.leases()?);
    caller.collect()?;
    ensure_chain(&caller, &image, 3)?;
    let printed = host::run(&mut command(env, &["unpack", name, "--print-chain-id"])?)?;
    anyhow::ensure!(printed.trim_end() == image.chain_id(), "{printed}");
    let found = tree::scan(env.mount(&image)?.path())?;
    let said = env.run(name, "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    // containerd itself makes the same ones.
    forget_everything(env, &caller)?;
    let reference = env.push("features", &image)?;
    env.pull(&reference, "erofs", &[])?;
    let theirs = caller.snapshots("erofs")?;
    anyhow::ensure!(theirs.keys().eq(ours.keys()), "{theirs:#?}");
    for (name, snapshot) in &theirs {
        let parent = &ours[name].parent;
        anyhow::ensure!(*parent == snapshot.parent, "{name} on {} instead of {parent}", snapshot.parent);
        // Those that it does not set yet are of 2.3.
        for (key, value) in &snapshot.labels {
            anyhow::ensure!(ours[name].labels.get(key) == Some(value), "{name}: {key}");
        }
    }
    anyhow::ensure!(tree::scan(env.mount(&image)?.path())? == found, "the trees differ");
    Ok(())
}

/// Removes images, containers' leftovers and snapshots.
fn forget_everything(env: &Env, caller: &Caller) -> anyhow::Result<()> {
    let listed = host::run(&mut env.ctr(&["images", "ls", "--quiet"]))?;
    for name in listed.lines() {
        host::run(&mut env.ctr(&["images", "rm", "--sync", name]))?;
    }
    forget(caller)?;
    caller.collect()
}

fn again(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = Image::oci(text_layers(0..4)?);
    load(env, "example.test/app:1", &image)?;
    anyhow::ensure!(unpack(env, "example.test/app:1", &[])? == 4, "new at first");
    let before = (caller.snapshots("erofs")?, applies(env)?);
    anyhow::ensure!(unpack(env, "example.test/app:1", &[])? == 0, "nothing is new the second time");
    anyhow::ensure!((caller.snapshots("erofs")?, applies(env)?) == before, "something was done");
    anyhow::ensure!(caller.leases()?.is_empty(), "a lease is left");
    Ok(())
}

fn common(env: &mut Env) -> anyhow::Result<()> {
    let layers = text_layers(0..5)?;
    let of = |numbers: &[usize]| Image::oci(numbers.iter().map(|number| layers[*number].clone()).collect());
    let (one, other) = (of(&[0, 1, 2]), of(&[0, 1, 3, 4]));
    load(env, "example.test/one:1", &one)?;
    load(env, "example.test/other:1", &other)?;
    anyhow::ensure!(unpack(env, "example.test/one:1", &[])? == 3, "three layers");
    anyhow::ensure!(unpack(env, "example.test/other:1", &[])? == 2, "two layers more");
    anyhow::ensure!(applies(env)? == 5, "{} Applies", applies(env)?);
    Ok(())
}

fn twice(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let mut layers = text_layers([0, 1])?;
    layers.push(layers[0].clone());
    layers.push(layers[0].clone());
    let image = Image::oci(layers);
    load(env, "example.test/app:1", &image)?;
    anyhow::ensure!(unpack(env, "example.test/app:1", &[])? == 4, "four snapshots");
    ensure_chain(&caller, &image, 4)
}

fn lies(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = Image::oci(text_layers(0..4)?);
    let wrong = plywood_integration::image::digest(b"something else");
    load_altered(env, "example.test/app:1", &image, |_, config| {
        config["rootfs"]["diff_ids"][2] = json!(wrong);
    })?;
    let (digest, diff_id) = (image.layers[2].digest(), image.layers[2].diff_id.clone());
    for (more, kept) in [(&[][..], 0), (&["--resume"][..], 2)] {
        let Err((reason, message)) = try_unpack(env, "example.test/app:1", more)? else {
            anyhow::bail!("it was unpacked")
        };
        anyhow::ensure!(reason == "image.digest", "{reason}: {message}");
        for part in ["layer 3 of 4", &digest, &diff_id, &wrong] {
            anyhow::ensure!(message.contains(part), "{part} is not in {message}");
        }
        caller.collect()?;
        ensure_chain(&caller, &image, kept)?;
        anyhow::ensure!(caller.leases()?.len() == usize::from(kept > 0), "{:?}", caller.leases()?);
    }
    // Without its lease nothing keeps them.
    for lease in caller.leases()?.keys() {
        caller.delete_lease(lease)?;
    }
    ensure_chain(&caller, &image, 0)?;
    let config = config_of(env, &caller, "example.test/app:1")?;
    let (_, labels) = caller.content(&config)?.context("the configuration")?;
    anyhow::ensure!(!labels.keys().any(|key| key.contains("gc.ref.snapshot")), "{labels:?}");
    Ok(())
}

/// An image that takes a while.
fn big_image() -> anyhow::Result<Image> {
    let layer = |number: usize| {
        Layer::oci(&archive::one_file("data", &archive::text(LAYER_BYTES, number as u64))?, Coding::Gzip)
    };
    Ok(Image::oci((0..LAYERS).map(layer).collect::<anyhow::Result<_>>()?))
}

/// Starts a command that prints nothing, kills it after a while, and waits until containerd has noticed.
fn kill_after(command: &mut Command, pause: Duration) -> anyhow::Result<()> {
    let mut child =
        command.args(["--progress", "none"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    std::thread::sleep(pause);
    child.kill()?;
    child.wait()?;
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

fn killed(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = big_image()?;
    let name = "example.test/big:1";
    load(env, name, &image)?;
    // The shortest of several: others may be at work, and the first run finds nothing in memory.
    let mut took = Duration::MAX;
    for _ in 0..3 {
        forget(&caller)?;
        let begun = Instant::now();
        anyhow::ensure!(unpack(env, name, &[])? == LAYERS, "all are new");
        took = took.min(begun.elapsed());
    }
    let (mut complete, mut begun, mut left) = (0, 0, 0);
    for point in 0..POINTS {
        forget(&caller)?;
        // A little past the end, so that the last steps are met as well.
        kill_after(&mut command(env, &["unpack", name])?, took * point * 11 / (POINTS * 10))?;
        caller.collect()?;
        let mut there = caller.snapshots("erofs")?;
        let all = there.len();
        there.retain(|_, snapshot| snapshot.is_committed);
        let (committed, active) = (there.len(), all - there.len());
        ensure_chain_among(&there, &image, committed).with_context(|| format!("point {point}"))?;
        let new = unpack(env, name, &[]).with_context(|| format!("after point {point}"))?;
        anyhow::ensure!(new == LAYERS - committed, "point {point}: {new} new, {committed} were there");
        ensure_chain(&caller, &image, LAYERS).with_context(|| format!("after point {point}"))?;
        anyhow::ensure!(caller.leases()?.is_empty(), "point {point}: {:?}", caller.leases()?);
        complete += usize::from(committed == LAYERS);
        begun += usize::from(committed > 0 && committed < LAYERS);
        left += active;
    }
    println!(
        "unpack: of {POINTS} killed, {complete} were complete, {begun} had some layers, {left} left an active snapshot"
    );
    // Neither all nor none, or the moments were not in the run.
    anyhow::ensure!(begun > 0 && left > 0, "{complete}, {begun}, {left}");
    anyhow::ensure!(env.leftovers()?.is_empty(), "left behind: {:?}", env.leftovers()?);
    Ok(())
}

fn beside(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = big_image()?;
    let reference = env.push("big", &image)?;
    host::run(&mut env.ctr(&["content", "fetch", "--plain-http", &reference]))?;
    for round in 0..3 {
        let begin = || anyhow::Ok(command(env, &["unpack", &reference, "--progress", "none"])?.spawn()?);
        let mut children = vec![begin()?, begin()?];
        // containerd's own client takes no lock of ours.
        children.push(env.pull_command(&reference, "erofs", &[]).stdout(Stdio::null()).spawn()?);
        for mut child in children {
            let status = child.wait()?;
            anyhow::ensure!(status.success(), "round {round}: {status}");
        }
        ensure_chain(&caller, &image, LAYERS).with_context(|| format!("round {round}"))?;
        anyhow::ensure!(caller.leases()?.is_empty(), "{:?}", caller.leases()?);
        forget(&caller)?;
    }
    Ok(())
}

fn collected(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = big_image()?;
    let name = "example.test/big:1";
    load(env, name, &image)?;
    for round in 0..5 {
        let mut child =
            command(env, &["unpack", name, "--progress", "none"])?.stdout(Stdio::null()).spawn()?;
        let mut collections = 0;
        let status = loop {
            caller.collect()?;
            collections += 1;
            if let Some(status) = child.try_wait()? {
                break status;
            }
        };
        anyhow::ensure!(
            status.success() && collections > 3,
            "round {round}: {status}, {collections} collections"
        );
        caller.collect()?;
        ensure_chain(&caller, &image, LAYERS).with_context(|| format!("round {round}"))?;
        forget(&caller)?;
    }
    // With the image, its snapshots go.
    anyhow::ensure!(unpack(env, name, &[])? == LAYERS, "new again");
    host::run(&mut env.ctr(&["images", "rm", "--sync", name]))?;
    caller.collect()?;
    ensure_chain(&caller, &image, 0)
}

fn missing(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = Image::oci(text_layers(0..3)?);
    let reference = env.push("partial", &image)?;
    host::run(&mut env.ctr(&["content", "fetch", "--plain-http", &reference]))?;
    anyhow::ensure!(unpack(env, &reference, &[])? == 3, "all are new");
    // The layers are snapshots: their blobs are not needed.
    let gone = image.layers[1].digest();
    host::run(&mut env.ctr(&["content", "rm", &gone]))?;
    anyhow::ensure!(unpack(env, &reference, &[])? == 0, "nothing is new");
    let chain = chain_ids(&image);
    // Otherwise the garbage collector would take the layers below with the top one, if it came first.
    let root = ["snapshots", "--snapshotter", "erofs", "label", &chain[1], "containerd.io/gc.root=test"];
    host::run(&mut env.ctr(&root))?;
    caller.remove("erofs", &chain[2])?;
    anyhow::ensure!(unpack(env, &reference, &[])? == 1, "the blob of a layer below is not needed either");
    forget(&caller)?;
    let Err((reason, message)) = try_unpack(env, &reference, &[])? else { anyhow::bail!("it was unpacked") };
    anyhow::ensure!(reason == "image.missing", "{reason}");
    anyhow::ensure!(message.contains("layer 2 of 3") && message.contains(&gone), "{message}");
    ensure_chain(&caller, &image, 0)?;
    anyhow::ensure!(caller.leases()?.is_empty(), "{:?}", caller.leases()?);
    // The line that is printed brings the layer.
    let (_, line) = message.split_once("this brings it: ").context("no line")?;
    let mut words: Vec<_> = line.split(' ').collect();
    anyhow::ensure!(words.first() == Some(&"ctr"), "{line}");
    // The registry of this test needs an option more.
    words.insert(words.len() - 1, "--plain-http");
    host::run(host::command("ctr").args(&words[1..]))?;
    anyhow::ensure!(unpack(env, &reference, &[])? == 3, "all are new again");
    Ok(())
}

fn refused(env: &mut Env) -> anyhow::Result<()> {
    type Alter = fn(&mut Value, &mut Value);
    let caller = env.caller()?;
    let image = Image::oci(text_layers(0..2)?);
    let cases: [(&str, &str, Alter); 5] = [
        ("example.test/fewer:1", "image.count", |_, config| {
            config["rootfs"]["diff_ids"].as_array_mut().map(Vec::pop);
        }),
        ("example.test/more:1", "image.count", |manifest, _| {
            manifest["layers"].as_array_mut().map(Vec::pop);
        }),
        ("example.test/type:1", "image.nothing", |manifest, _| {
            manifest["config"]["mediaType"] = json!("application/vnd.example.config.v1+json");
        }),
        ("example.test/rootfs:1", "image.format", |_, config| {
            config["rootfs"]["type"] = json!("windows");
        }),
        ("example.test/platform:1", "image.nothing", |_, config| {
            config["architecture"] = json!("s390x");
        }),
    ];
    for (name, want, alter) in cases {
        load_altered(env, name, &image, alter)?;
        let Err((reason, message)) = try_unpack(env, name, &[])? else { anyhow::bail!("{name}: unpacked") };
        anyhow::ensure!(reason == want, "{name}: {reason}: {message}");
        ensure_chain(&caller, &image, 0)?;
        anyhow::ensure!(caller.leases()?.is_empty(), "{name}: {:?}", caller.leases()?);
    }
    let Err((reason, _)) = try_unpack(env, "example.test/none:1", &[])? else { anyhow::bail!("unpacked") };
    anyhow::ensure!(reason == "image.nothing", "{reason}");
    // What was wrong for this machine is right for the one that is asked for.
    anyhow::ensure!(unpack(env, "example.test/platform:1", &["--platform", "linux/s390x"])? == 2, "unpacked");
    Ok(())
}

fn directly(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = features()?;
    let name = "example.test/features:1";
    load(env, name, &image)?;
    anyhow::ensure!(unpack(env, name, &[])? == 3, "through containerd");
    let through = (caller.snapshots("erofs")?, tree::scan(env.mount(&image)?.path())?);
    forget(&caller)?;
    let socket = env.plywood_socket().display().to_string();
    anyhow::ensure!(unpack(env, name, &["--differ", &socket])? == 3, "through the socket");
    let snapshots = caller.snapshots("erofs")?;
    anyhow::ensure!(snapshots == through.0, "{snapshots:#?}");
    anyhow::ensure!(tree::scan(env.mount(&image)?.path())? == through.1, "the trees differ");
    Ok(())
}

/// An archive of an image in the OCI form.
fn archive_of(scratch: &Path, name: &str, image: &Image) -> anyhow::Result<String> {
    let layout = scratch.join("layout");
    image.write_layout(&layout)?;
    let index = std::fs::read_to_string(layout.join("index.json"))?;
    std::fs::write(layout.join("index.json"), index.replace("\"latest\"", &format!("{name:?}")))?;
    let packed = scratch.join("packed.tar");
    host::run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&packed).arg("."))?;
    Ok(packed.display().to_string())
}

fn loaded(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let scratch = tempfile::tempdir()?;
    let image = features()?;
    let name = "example.test/features:1";
    let packed = archive_of(scratch.path(), name, &image)?;
    let said = host::run(&mut command(env, &["load", "--unpack", &packed])?)?;
    anyhow::ensure!(said == format!("Loaded image: {name}\n"), "{said:?}");
    caller.collect()?;
    ensure_chain(&caller, &image, 3)?;
    anyhow::ensure!(caller.leases()?.is_empty(), "{:?}", caller.leases()?);
    let before = applies(env)?;
    let said = env.run(name, "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    anyhow::ensure!(before == 3 && applies(env)? == before, "the container needed {} Applies", applies(env)?);
    Ok(())
}

fn load_killed(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let scratch = tempfile::tempdir()?;
    let image = big_image()?;
    let name = "example.test/big:1";
    let packed = archive_of(scratch.path(), name, &image)?;
    let load = ["load", "--unpack", packed.as_str()];
    let begun = Instant::now();
    json_of(&mut command(env, &load)?)?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let took = begun.elapsed();
    let (mut recorded, mut left) = (0, 0);
    for point in 0..POINTS {
        forget_everything(env, &caller)?;
        kill_after(&mut command(env, &load)?, took * point * 11 / (POINTS * 10))?;
        caller.collect()?;
        let there = caller.snapshots("erofs")?;
        left += there.values().filter(|snapshot| !snapshot.is_committed).count();
        if host::run(&mut env.ctr(&["images", "ls", "--quiet"]))?.contains(name) {
            recorded += 1;
            ensure_chain(&caller, &image, LAYERS).with_context(|| format!("killed at point {point}"))?;
        }
        json_of(&mut command(env, &load)?)?
            .map_err(|error| anyhow::anyhow!("after point {point}: {error:?}"))?;
        ensure_chain(&caller, &image, LAYERS).with_context(|| format!("after point {point}"))?;
        anyhow::ensure!(caller.leases()?.is_empty(), "point {point}: {:?}", caller.leases()?);
    }
    println!(
        "load --unpack: of {POINTS} killed, {recorded} had recorded the image, {left} left an active snapshot"
    );
    anyhow::ensure!(recorded < POINTS && left > 0, "{recorded} recorded, {left} left a snapshot");
    Ok(())
}

fn load_fails(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let scratch = tempfile::tempdir()?;
    let mut layers = text_layers(0..2)?;
    // A differ is needed to find that this is no archive.
    layers.push(Layer::oci(&archive::noise(5000, 1), Coding::Gzip)?);
    let packed = archive_of(scratch.path(), "example.test/app:1", &Image::oci(layers))?;
    let Err((reason, message)) = json_of(&mut command(env, &["load", "--unpack", &packed])?)? else {
        anyhow::bail!("it was loaded")
    };
    anyhow::ensure!(reason == "unpack.apply" && message.contains("layer 3 of 3"), "{reason}: {message}");
    anyhow::ensure!(caller.snapshots("erofs")?.is_empty(), "{:#?}", caller.snapshots("erofs")?);
    anyhow::ensure!(caller.blobs()?.is_empty() && caller.leases()?.is_empty(), "something is left");
    anyhow::ensure!(host::run(&mut env.ctr(&["images", "ls", "--quiet"]))?.is_empty(), "an image is left");
    Ok(())
}

fn example(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = Image::oci(text_layers(0..4)?);
    load(env, "example.test/app:1", &image)?;
    let arguments = example_program::Arguments {
        address: env.containerd_socket(),
        namespace: env.namespace().to_owned(),
        snapshotter: "erofs".to_owned(),
        image: "example.test/app:1".to_owned(),
    };
    let report = example_program::run(&arguments).map_err(|error| anyhow::anyhow!("{error}"))?;
    let chain = chain_ids(&image);
    let words = [(0, "applied"), (0, "there"), (1, "applied"), (2, "applied"), (3, "applied")];
    let want: Vec<_> = words.iter().map(|(layer, word)| format!("{word} {}", chain[*layer])).collect();
    anyhow::ensure!(report.trim_end().lines().eq(want.iter().map(String::as_str)), "{report}");
    ensure_chain(&caller, &image, 4)
}

/// One by one and at once, on a containerd that takes parents at the commit.
fn at_once(env: &mut Env) -> anyhow::Result<()> {
    const LAYERS: u64 = 20;
    let caller = env.caller()?;
    let layer =
        |number| Layer::oci(&archive::one_file("data", &archive::text(1 << 20, number))?, Coding::Gzip);
    let image = Image::oci((0..LAYERS).map(layer).collect::<anyhow::Result<_>>()?);
    let name = "example.test/many:1";
    load(env, name, &image)?;
    let socket = env.plywood_socket().display().to_string();
    let mut best = [Duration::MAX; 2];
    for _ in 0..5 {
        for (best, parallel) in best.iter_mut().zip(["1", "2"]) {
            let begun = Instant::now();
            let new = unpack(env, name, &["--parallel", parallel, "--differ", &socket])?;
            *best = begun.elapsed().min(*best);
            anyhow::ensure!(u64::try_from(new)? == LAYERS, "{new} new");
            ensure_chain(&caller, &image, new)?;
            forget(&caller)?;
        }
    }
    let [one_by_one, at_once] = best.map(|best| best.as_secs_f64());
    let ratio = at_once / one_by_one;
    println!(
        "unpack: {LAYERS} layers one by one {one_by_one:.3} s, two at once {at_once:.3} s, ratio {ratio:.2}"
    );
    Ok(())
}
