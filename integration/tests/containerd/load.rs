//! `plywood load` into a real containerd: the images that containerd's own import makes, in whatever order layers come
//! there, and nothing when it fails or is killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plywood_integration::archive::{self, Sparse};
use plywood_integration::calls::Caller;
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer};
use serde_json::Value;
use testkit::Need;

use crate::Suite;

/// Moments at which a load is killed, evenly spread from its begin to its end.
const POINTS: u32 = 100;
/// Layers of the image that is killed, and uncompressed bytes of each.
const LAYERS: usize = 6;
const LAYER_BYTES: usize = 4 << 20;

/// Lets a program write archives, and loads them.
type Made = fn(&Env, &Workshop) -> anyhow::Result<()>;

pub fn add(suite: &mut Suite) {
    suite.with_env("load_gives_every_set_the_image_or_the_refusal_of_its_case", Setup::default(), cases);
    suite.with_env("load_reads_only_the_files_of_a_set_that_are_needed", Setup::default(), sequences);
    suite.with_env("load_records_what_ctr_import_records", Setup::default(), like_ctr);
    let programs: [(&'static str, Made); 4] =
        [("skopeo", skopeo), ("umoci", umoci), ("buildah", buildah), ("podman", podman)];
    for (program, made) in programs {
        let name = format!("load_records_what_ctr_import_records_of_archives_made_by_{program}");
        suite.test(name, &[Need::Tool(program)], move || {
            let env = Env::start(&Setup::default())?;
            made(&env, &Workshop::new()?).map_err(|error| error.context(env.logs()))
        });
    }
    suite.with_env("load_completes_a_partial_archive_from_the_store", Setup::default(), partial);
    suite.with_env("a_loaded_image_runs", Setup::default(), runs);
    suite.with_env("load_killed_at_100_points_leaves_no_image_or_a_whole_one", Setup::default(), killed);
    suite.with_env("load_that_is_interrupted_leaves_nothing", Setup::default(), interrupted);
    suite.with_env("load_loses_nothing_to_the_garbage_collector", Setup::default(), collected);
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/separated")
}

fn archive_file(name: &str) -> String {
    fixtures().join(format!("archives/{name}.tar")).display().to_string()
}

fn command(env: &Env, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
    command.args(arguments).arg("--address").arg(env.containerd_socket());
    command.args(["--namespace", env.namespace()]);
    Ok(command)
}

/// Loads. Returns the result's JSON object, or the reason id of the refusal.
fn load(env: &Env, arguments: &[&str]) -> anyhow::Result<Result<Value, String>> {
    let output = command(env, &[&["load", "--json", "--progress", "none"], arguments].concat())?.output()?;
    let object: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok(match object.pointer("/error/reason").and_then(Value::as_str) {
        Some(reason) => Err(reason.to_owned()),
        None => Ok(object),
    })
}

fn loaded(env: &Env, arguments: &[&str]) -> anyhow::Result<Value> {
    load(env, arguments)?.map_err(|reason| anyhow::anyhow!("{arguments:?}: {reason}"))
}

/// Names and digests of the recorded images.
fn images(env: &Env) -> anyhow::Result<BTreeMap<String, String>> {
    let table = host::run(&mut env.ctr(&["images", "ls"]))?;
    let rows = table.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace();
        (words.next().unwrap_or_default().to_owned(), words.nth(1).unwrap_or_default().to_owned())
    });
    Ok(rows.collect())
}

fn forget(env: &Env, caller: &Caller) -> anyhow::Result<()> {
    for name in images(env)?.keys() {
        host::run(&mut env.ctr(&["images", "rm", "--sync", name]))?;
    }
    caller.collect()?;
    let blobs = caller.blobs()?;
    anyhow::ensure!(blobs.is_empty(), "left in the store: {blobs:?}");
    Ok(())
}

fn ensure_nothing_is_left(env: &Env, caller: &Caller, what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(images(env)?.is_empty(), "{what}: an image is left");
    anyhow::ensure!(caller.leases()?.is_empty(), "{what}: a lease is left: {:?}", caller.leases()?);
    anyhow::ensure!(caller.blobs()?.is_empty(), "{what}: blobs are left: {:?}", caller.blobs()?);
    anyhow::ensure!(caller.ingests()?.is_empty(), "{what}: ingests are left: {:?}", caller.ingests()?);
    Ok(())
}

fn cases_of(key: &str) -> anyhow::Result<Vec<Value>> {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json"))?)?;
    cases[key].as_array().cloned().context("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Arguments for a request of the cases.
fn arguments(case: &Value) -> Vec<String> {
    let mut arguments = vec![
        "--set".to_owned(),
        fixtures().join(text(&case["dir"])).display().to_string(),
        text(&case["ask"]).to_owned(),
    ];
    for part in ["base", "lib"] {
        if let Some(file) = case["options"][part].as_str() {
            arguments.extend([format!("--{part}"), fixtures().join(file).display().to_string()]);
        }
    }
    if case["options"]["no_check"] == true {
        arguments.push("--no-check".to_owned());
    }
    arguments
}

/// Compares an outcome with what a case asks for.
fn ensure_outcome(
    env: &Env,
    caller: &Caller,
    outcome: &Result<Value, String>,
    case: &Value,
    what: &str,
) -> anyhow::Result<()> {
    match (outcome, text(&case["result"])) {
        (Ok(_), "ok") => {
            let want = &case["image"];
            let found = images(env)?;
            let digest = found.get(text(&want["name"]));
            anyhow::ensure!(digest.map(String::as_str) == want["manifest"].as_str(), "{what}: {found:?}");
            for layer in want["layers"].as_array().into_iter().flatten() {
                anyhow::ensure!(caller.content(text(&layer["digest"]))?.is_some(), "{what}: no {layer}");
            }
            anyhow::ensure!(caller.leases()?.is_empty(), "{what}: a lease is left");
            Ok(())
        }
        (Err(reason), "reject") => {
            let word = match reason.split_once('.') {
                Some(("image", word)) => word,
                Some(("tar" | "codec", _)) => "format",
                _ => reason,
            };
            let allowed: Vec<_> = case["reasons"].as_array().into_iter().flatten().map(text).collect();
            anyhow::ensure!(allowed.contains(&word), "{what}: {reason} instead of {allowed:?}");
            Ok(())
        }
        (outcome, want) => anyhow::bail!("{what}: {outcome:?} instead of {want}"),
    }
}

fn cases(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    // The link of this one is made where the command line is tested.
    for case in cases_of("cases")?.iter().filter(|case| case["dir"] != "symlink-tarball") {
        let arguments = arguments(case);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let what = format!("{arguments:?}");
        let outcome = load(env, &arguments)?;
        ensure_outcome(env, &caller, &outcome, case, &what)?;
        if outcome.is_err() {
            ensure_nothing_is_left(env, &caller, &what)?;
        } else {
            forget(env, &caller)?;
        }
    }
    Ok(())
}

fn sequences(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    for case in cases_of("sequences")? {
        let [first, then] = ["first", "then"].map(|step| arguments(&case[step]));
        let strings = |arguments: &[String]| arguments.iter().map(String::clone).collect::<Vec<_>>();
        let (first, then) = (strings(&first), strings(&then));
        loaded(env, &first.iter().map(String::as_str).collect::<Vec<_>>())?;
        let outcome = load(env, &then.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure_outcome(env, &caller, &outcome, &case, &format!("{first:?}, then {then:?}"))?;
        forget(env, &caller)?;
    }
    Ok(())
}

/// Labels of all blobs by which containerd's collector goes from one to the next.
fn references(caller: &Caller) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut found = BTreeMap::new();
    for digest in caller.blobs()? {
        let (_, labels) = caller.content(&digest)?.context("a blob that is listed")?;
        let labels = labels.into_iter().filter(|(key, _)| key.starts_with("containerd.io/gc.ref."));
        found.insert(digest, labels.collect::<BTreeMap<_, _>>());
    }
    Ok(found)
}

fn like_ctr(env: &mut Env) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let own = scratch.path().join("own");
    own_image()?.write_layout(&own)?;
    ensure_like_ctr(env, &pack(&own)?, Some("example.test/own"))?;
    for name in ["docker-links", "docker-files", "docker-skopeo", "oci", "oci-and-docker"] {
        ensure_like_ctr(env, &archive_file(name), None)?;
    }
    Ok(())
}

/// An image with Docker's types and gzip layers.
fn own_image() -> anyhow::Result<Image> {
    let tars = [archive::one_file("a", b"1")?, archive::one_file("b", b"2")?];
    let layers = tars.iter().map(|tar| Layer::docker(tar, Coding::Gzip)).collect::<anyhow::Result<_>>()?;
    Ok(Image { layers, docker: true })
}

/// Packs a layout, and returns the path of the archive beside it.
fn pack(layout: &Path) -> anyhow::Result<String> {
    let packed = layout.with_extension("tar");
    host::run(Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(&packed).arg("."))?;
    Ok(packed.display().to_string())
}

/// Loads what `ctr images import` imports, and compares names, digests and references. `base_name`: for images that
/// have only a tag.
fn ensure_like_ctr(env: &Env, file: &str, base_name: Option<&str>) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let mut import = env.ctr(&["images", "import", "--no-unpack"]);
    // With a base name, import leaves out the images that have another one.
    import.args(base_name.into_iter().flat_map(|name| ["--base-name", name]));
    host::run(import.arg(file))?;
    caller.collect()?;
    let want = (images(env)?, references(&caller)?);
    forget(env, &caller)?;
    let name: Vec<_> = base_name.into_iter().flat_map(|name| ["--name", name]).collect();
    loaded(env, &[&[file][..], &name].concat())?;
    caller.collect()?;
    let found = (images(env)?, references(&caller)?);
    let is_same = !found.0.is_empty() && found.0 == want.0;
    anyhow::ensure!(is_same, "{file}: {:#?} instead of {:#?}", found.0, want.0);
    // The index that import writes beside the images is nobody's.
    for (digest, labels) in &found.1 {
        let theirs = want.1.get(digest).with_context(|| format!("{file}: only we have {digest}"))?;
        anyhow::ensure!(labels == theirs, "{file}: {digest}: {labels:#?} instead of {theirs:#?}");
    }
    for name in found.0.keys() {
        let inspected = host::run(&mut command(env, &["inspect", "--json", "--image", name])?)?;
        let inspected: Value = serde_json::from_str(&inspected)?;
        let layers = inspected["images"][0]["platforms"][0]["layers"].as_array().context("layers")?;
        anyhow::ensure!(layers.iter().all(|layer| layer["found"] == "store"), "{inspected:#}");
    }
    forget(env, &caller)
}

/// A directory for programs that keep their images in a store of their own, without anything of the host's.
struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("home/.config/containers"))?;
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        std::fs::write(path("home/.config/containers/policy.json"), policy)?;
        let (graph, run) = (path("graph"), path("run"));
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = {graph:?}\nrunroot = {run:?}\n");
        std::fs::write(path("storage.conf"), storage)?;
        // They look for helpers when they start, and need none to save an image.
        let program = host::program("true").context("no true")?;
        std::fs::create_dir(path("helpers"))?;
        for helper in ["netavark", "conmon", "crun"] {
            std::os::unix::fs::symlink(&program, path("helpers").join(helper))?;
        }
        let helpers = path("helpers");
        let (conmon, crun) = (helpers.join("conmon"), helpers.join("crun"));
        let config = format!(
            "[engine]\nhelper_binaries_dir = [{helpers:?}]\nconmon_path = [{conmon:?}]\nruntime = \"crun\"\n\
             cgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n[engine.runtimes]\ncrun = [{crun:?}]\n"
        );
        std::fs::write(path("containers.conf"), config)?;
        // Not all of them know Docker's media types.
        let tars = [archive::one_file("a", b"1")?, archive::one_file("b", b"2")?];
        let layers = tars.iter().map(|tar| Layer::oci(tar, Coding::Gzip)).collect::<anyhow::Result<_>>()?;
        Image::oci(layers).write_layout(&path("layout"))?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = host::command(program);
        command.current_dir(self.dir.path()).env("HOME", self.path("home"));
        command.env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"));
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        host::run(command.args(arguments))
    }
}

/// Name of the image in the archives of other programs.
const MADE: &str = "example.test/made:1";

fn skopeo(env: &Env, workshop: &Workshop) -> anyhow::Result<()> {
    for form in ["docker-archive", "oci-archive"] {
        let file = workshop.path(form);
        workshop.run("skopeo", &["copy", "oci:layout:latest", &format!("{form}:{file}:{MADE}")])?;
        ensure_like_ctr(env, &file, None)?;
    }
    Ok(())
}

fn umoci(env: &Env, workshop: &Workshop) -> anyhow::Result<()> {
    let image = "layout:latest";
    workshop.run("umoci", &["config", "--image", image, "--tag", "second", "--config.user", "7"])?;
    workshop
        .run("umoci", &["insert", "--image", "layout:second", "containers.conf", "/etc/containers.conf"])?;
    let layout = workshop.path("layout");
    ensure_like_ctr(env, &pack(Path::new(&layout))?, Some("example.test/made"))?;
    let done = loaded(env, &[&layout, "--name", "example.test/made"])?;
    anyhow::ensure!(done["images"].as_array().is_some_and(|images| images.len() == 2), "{done}");
    forget(env, &env.caller()?)
}

fn buildah(env: &Env, workshop: &Workshop) -> anyhow::Result<()> {
    let container = workshop.run("buildah", &["from", "scratch"])?;
    workshop.run("buildah", &["copy", container.trim(), "containers.conf", "/etc/containers.conf"])?;
    workshop.run("buildah", &["commit", container.trim(), MADE])?;
    for form in ["docker-archive", "oci-archive"] {
        let file = workshop.path(form);
        workshop.run("buildah", &["push", MADE, &format!("{form}:{file}:{MADE}")])?;
        ensure_like_ctr(env, &file, None)?;
    }
    Ok(())
}

fn podman(env: &Env, workshop: &Workshop) -> anyhow::Result<()> {
    let pulled = workshop.run("podman", &["pull", "--quiet", "oci:layout:latest"])?;
    for name in [MADE, "example.test/made:2"] {
        workshop.run("podman", &["tag", pulled.trim(), name])?;
    }
    for form in ["docker-archive", "oci-archive"] {
        let file = workshop.path(form);
        workshop.run("podman", &["save", "--quiet", "--format", form, "--output", &file, MADE])?;
        ensure_like_ctr(env, &file, None)?;
    }
    let file = workshop.path("several");
    let several =
        ["save", "--quiet", "--multi-image-archive", "--output", &file, MADE, "example.test/made:2"];
    workshop.run("podman", &several)?;
    ensure_like_ctr(env, &file, None)
}

fn partial(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let [partial, whole] = ["oci-partial", "oci"].map(archive_file);
    let refused = load(env, &[&partial])?;
    anyhow::ensure!(refused == Err("image.missing".to_owned()), "{refused:?}");
    ensure_nothing_is_left(env, &caller, "partial")?;
    let first = loaded(env, &[&whole])?;
    anyhow::ensure!(first["written_blobs"] == 5, "{first}");
    let again = loaded(env, &[&partial])?;
    anyhow::ensure!(again["written_blobs"] == 0 && again["images"] == first["images"], "{again}");
    // Two inputs, and a docker-archive whose layers the store has in compressed form.
    let third = loaded(env, &[&archive_file("docker-links")])?;
    anyhow::ensure!(third["written_blobs"] == 0, "{third}");
    Ok(())
}

fn runs(env: &mut Env) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let files = archive::feature_layers(scratch.path(), Sparse::With)?;
    let tars: Vec<Vec<u8>> = files.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let layers = tars.iter().map(|tar| Layer::oci(tar, Coding::Gzip)).collect::<anyhow::Result<_>>()?;
    let layout = scratch.path().join("layout");
    let image = Image::oci(layers);
    image.write_layout(&layout)?;
    let layout = layout.display().to_string();
    let said = host::run(&mut command(env, &["load", &layout, "--name", "example.test/features"])?)?;
    anyhow::ensure!(said == "Loaded image: example.test/features:latest\n", "{said:?}");
    let said = env.run("example.test/features:latest", "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    let inspect = ["inspect", "--json", "--containerd", &layout, "--name", "example.test/features"];
    let inspected: Value = serde_json::from_str(&host::run(&mut command(env, &inspect)?)?)?;
    let platform = &inspected["images"][0]["platforms"][0];
    let snapshots = &platform["snapshots"][0];
    anyhow::ensure!(snapshots["snapshotter"] == "erofs" && snapshots["layers"] == 3, "{inspected:#}");
    anyhow::ensure!(platform["layers"][2]["chain_id"] == image.chain_id(), "{inspected:#}");
    Ok(())
}

/// Writes a docker-archive, plain, and returns its path.
fn big_archive(directory: &Path) -> anyhow::Result<String> {
    let layers: Vec<Vec<u8>> = (0..LAYERS)
        .map(|number| archive::one_file("data", &archive::noise(LAYER_BYTES, number as u64 + 1)))
        .collect::<anyhow::Result<_>>()?;
    let diff_ids: Vec<_> = layers.iter().map(|layer| plywood_integration::image::digest(layer)).collect();
    let config = serde_json::json!({"os": "linux", "architecture": Image::architecture(),
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let config_name = format!(
        "{}.json",
        plywood_integration::image::digest(config.as_bytes()).trim_start_matches("sha256:")
    );
    let names: Vec<_> = (0..LAYERS).map(|number| format!("{number}/layer.tar")).collect();
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": ["example.test/big:1"], "Layers": names}]);
    let path = directory.join("big.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path)?);
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data)
    };
    for (name, layer) in names.iter().zip(&layers) {
        add(name, layer)?;
    }
    add(&config_name, config.as_bytes())?;
    add("manifest.json", manifest.to_string().as_bytes())?;
    builder.finish()?;
    Ok(path.display().to_string())
}

/// An error unless the image is whole: the manifest, the configuration and every layer are in the store.
fn ensure_whole(caller: &Caller, manifest: &str) -> anyhow::Result<()> {
    let document: Value = serde_json::from_slice(&caller.read(manifest)?)?;
    let layers = document["layers"].as_array().context("layers")?;
    anyhow::ensure!(layers.len() == LAYERS, "{document}");
    for child in layers.iter().chain([&document["config"]]) {
        let (size, _) = caller.content(text(&child["digest"]))?.with_context(|| format!("no {child}"))?;
        anyhow::ensure!(Some(size) == child["size"].as_i64(), "{child}");
    }
    Ok(())
}

fn killed(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let scratch = tempfile::tempdir()?;
    let file = big_archive(scratch.path())?;
    let begun = Instant::now();
    loaded(env, &[&file])?;
    let took = begun.elapsed();
    let total = i64::try_from(LAYERS)?;
    let manifest = images(env)?.remove("example.test/big:1").context("the image")?;
    ensure_whole(&caller, &manifest)?;
    forget(env, &caller)?;
    let (mut recorded, mut resumed, mut resumed_bytes) = (0, 0, 0);
    for point in 0..POINTS {
        let mut child = command(env, &["load", "--progress", "none", &file])?
            .stdout(std::process::Stdio::null())
            .spawn()?;
        // A little past the end, so that the last steps are met as well.
        std::thread::sleep(took * point * 11 / (POINTS * 10));
        child.kill()?;
        child.wait()?;
        // The store learns of it with the connection.
        std::thread::sleep(Duration::from_millis(20));
        caller.collect()?;
        let layers_there = caller.blobs()?.len();
        if let Some(digest) = images(env)?.get("example.test/big:1") {
            ensure_whole(&caller, digest).with_context(|| format!("killed at point {point}"))?;
            recorded += 1;
        }
        let done = loaded(env, &[&file]).with_context(|| format!("after point {point}"))?;
        ensure_whole(&caller, &manifest)?;
        anyhow::ensure!(images(env)?.get("example.test/big:1") == Some(&manifest), "point {point}");
        anyhow::ensure!(caller.leases()?.is_empty(), "point {point}: {:?}", caller.leases()?);
        let written = done["written_blobs"].as_i64().context("a number")?;
        // Documents are blobs too, and those that are there are not layers then.
        let missing = total - i64::try_from(layers_there)?.min(total);
        anyhow::ensure!(
            written <= missing.max(0),
            "point {point}: {written} blobs written, {missing} were missing"
        );
        let bytes = done["written_bytes"].as_i64().context("a number")?
            + done["resumed_bytes"].as_i64().context("a number")?;
        anyhow::ensure!(bytes >= written * LAYER_BYTES as i64, "point {point}: {done}");
        resumed += i64::from(written < total);
        resumed_bytes += done["resumed_bytes"].as_i64().unwrap_or_default();
        forget(env, &caller)?;
    }
    println!(
        "load: of {POINTS} killed, {recorded} had recorded the image, {resumed} were resumed, {resumed_bytes} bytes of half-written blobs kept"
    );
    // Neither all nor none, or the moments were not in the load.
    anyhow::ensure!(recorded < POINTS && resumed > 0, "{recorded} recorded, {resumed} resumed");
    Ok(())
}

fn interrupted(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let scratch = tempfile::tempdir()?;
    let file = big_archive(scratch.path())?;
    let begun = Instant::now();
    loaded(env, &[&file])?;
    let took = begun.elapsed();
    forget(env, &caller)?;
    let mut ended_early = 0;
    for point in 1..10 {
        let mut child = command(env, &["load", "--progress", "none", &file])?
            .stdout(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(took * point / 10);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let status = child.wait()?;
        if status.success() {
            forget(env, &caller)?;
        } else {
            ended_early += 1;
            ensure_nothing_is_left(env, &caller, &format!("interrupted at point {point}, {status}"))?;
        }
    }
    anyhow::ensure!(ended_early > 0, "no load was interrupted");
    Ok(())
}

fn collected(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let scratch = tempfile::tempdir()?;
    let file = big_archive(scratch.path())?;
    for round in 0..5 {
        let mut child = command(env, &["load", "--progress", "none", &file])?
            .stdout(std::process::Stdio::null())
            .spawn()?;
        let status = loop {
            caller.collect()?;
            if let Some(status) = child.try_wait()? {
                break status;
            }
        };
        anyhow::ensure!(status.success(), "round {round}: {status}");
        caller.collect()?;
        let manifest = images(env)?.remove("example.test/big:1").context("the image")?;
        ensure_whole(&caller, &manifest)?;
        forget(env, &caller)?;
    }
    Ok(())
}
