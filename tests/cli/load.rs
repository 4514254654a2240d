//! `plywood load` and `plywood inspect` as a user runs them, without containerd: sets and archives of other programs, and
//! inputs that are refused.
//!
//! The sets and what has to come out of them are described in tests/fixtures/separated/README.md.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use testkit::{
    Suite,
    archive::{digest, gzip},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        every_set_gives_the_image_or_the_refusal_of_its_case,
        archives_of_other_programs_give_the_manifest_that_containerd_gives_them,
        archives_load_in_every_shape_that_programs_give_them,
        a_partial_archive_needs_what_it_leaves_out,
        inputs_are_one_pool,
        a_dry_run_names_the_file_of_every_layer_and_what_is_missing,
        only_the_platform_that_was_asked_for_is_taken_from_an_index,
        an_image_without_a_name_gets_the_one_that_is_given,
        a_layer_that_lies_about_its_digest_leaves_nothing,
        a_load_into_a_layout_keeps_what_is_in_it,
        nothing_to_load_is_wrong_usage,
        the_name_of_an_image_in_the_place_of_a_file_is_told_its_option,
        progress_is_a_json_line_for_each_change_of_an_object,
        an_image_without_a_name_is_shown_all_the_same,
        hostile_archives_are_refused_at_a_bounded_cost_of_memory,
    ];
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/separated")
}

fn plywood(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plywood")).args(arguments).output().expect("the binary starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

/// Loads into the layout `out`. Returns the result's JSON object, or the reason id of the refusal.
fn load(out: &Path, arguments: &[&str]) -> Result<Value, String> {
    let to = format!("oci:{}", text(out));
    let options = ["load", "--to", &to, "--json", "--progress", "none"];
    let done = plywood(&[&options, arguments].concat());
    let object: Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {done:?}"));
    assert_eq!(done.status.success(), object.get("error").is_none(), "{object}");
    match object.pointer("/error/reason") {
        Some(reason) => Err(reason.as_str().unwrap().to_owned()),
        None => Ok(object),
    }
}

fn inspect(arguments: &[&str]) -> Value {
    let done = plywood(&[&["inspect", "--json"], arguments].concat());
    assert!(done.status.success(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Names of the blobs in a layout.
fn blobs(layout: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(layout.join("blobs/sha256")) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| format!("sha256:{}", entry.unwrap().file_name().to_string_lossy())).collect();
    names.sort();
    names
}

/// Word of the cases for a reason id.
fn category(reason: &str) -> &str {
    match reason.split_once('.') {
        Some(("image", word)) => word,
        Some(("tar" | "codec", _)) => "format",
        Some(("blob", _)) => "digest",
        _ => reason,
    }
}

fn every_set_gives_the_image_or_the_refusal_of_its_case() {
    let scratch = tempfile::tempdir().unwrap();
    let probe = Path::new("/tmp/sep-escape-probe");
    fs::create_dir_all(probe).unwrap();
    let before = fs::metadata(probe).unwrap().modified().unwrap();
    let cases: Value = serde_json::from_slice(&fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 49);
    // The file is a link, which version control may not keep.
    let linked = scratch.path().join("symlink-tarball");
    fs::create_dir(&linked).unwrap();
    for entry in fs::read_dir(fixtures().join("symlink-tarball")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), linked.join(entry.file_name())).unwrap();
    }
    let app = linked.join("app1_1_app_image.tar.gz");
    fs::remove_file(&app).unwrap();
    symlink(fixtures().join("real-app.tar.gz"), &app).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let (dir, ask) = (case["dir"].as_str().unwrap(), case["ask"].as_str().unwrap());
        let set = if dir == "symlink-tarball" { linked.clone() } else { fixtures().join(dir) };
        let out = scratch.path().join(format!("out-{number}"));
        let options = &case["options"];
        let mut arguments = vec!["--set", text(&set), ask];
        let files =
            ["base", "lib"].map(|part| (part, options[part].as_str().map(|file| fixtures().join(file))));
        for (part, file) in &files {
            if let Some(file) = file {
                arguments.extend([if *part == "base" { "--base" } else { "--lib" }, text(file)]);
            }
        }
        if options["no_check"] == true {
            arguments.push("--no-check");
        }
        let what = format!("{dir} {ask} {options}");
        match (load(&out, &arguments), case["result"].as_str().unwrap()) {
            (Ok(result), "ok") => check_image(&result, &inspect(&arguments), &case["image"], &out, &what),
            (Err(reason), "reject") => {
                let allowed = case["reasons"].as_array().unwrap();
                assert!(allowed.contains(&json!(category(&reason))), "{what}: {reason}, not {allowed:?}");
                assert!(blobs(&out).is_empty() && !out.join("index.json").exists(), "{what}: left something");
            }
            (outcome, want) => panic!("{what}: {outcome:?}, not {want}"),
        }
    }
    assert_eq!(fs::read_dir(probe).unwrap().count(), 0);
    assert_eq!(fs::metadata(probe).unwrap().modified().unwrap(), before);
}

fn check_image(result: &Value, inspected: &Value, want: &Value, out: &Path, what: &str) {
    let image = &result["images"][0];
    assert_eq!(image["name"], want["name"], "{what}");
    assert_eq!(image["digest"], want["manifest"], "{what}");
    assert_eq!(image["size_bytes"], want["manifest_size"], "{what}");
    let mut expected = vec![want["manifest"].clone(), want["config"].clone()];
    expected.extend(want["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].clone()));
    let mut expected: Vec<_> = expected.iter().map(|digest| digest.as_str().unwrap().to_owned()).collect();
    expected.sort();
    assert_eq!(blobs(out), expected, "{what}");
    for blob in &expected {
        let bytes = fs::read(out.join("blobs").join(blob.replace(':', "/"))).unwrap();
        assert_eq!(digest(&bytes), *blob, "{what}");
    }
    let described = &inspected["images"][0];
    let layers = described["platforms"][0]["layers"].as_array().unwrap();
    let column = |key: &str| layers.iter().map(|layer| layer[key].clone()).collect::<Vec<_>>();
    assert_eq!(json!(column("diff_id")), want["diff_ids"], "{what}");
    assert_eq!(json!(column("chain_id")), want["chain_ids"], "{what}");
    assert_eq!(described["platforms"][0]["config"], want["config"], "{what}");
    let other_names = described.get("other_names").cloned().unwrap_or_else(|| json!([]));
    assert_eq!(other_names, want["other_tags"], "{what}");
}

const APP1: &str = "example.test/tiny/app1:1";
const FROM_DOCKER: &str = "sha256:89c93b7aba937f82d7d40d921ac21d83275131eae622c5ed6dbd26b59f385619";
const FROM_OCI: &str = "sha256:cda0241bdb954b45156dd7883228e92b2784fa00d778d2cc8ef382f260a39e9e";

fn archives_of_other_programs_give_the_manifest_that_containerd_gives_them() {
    let scratch = tempfile::tempdir().unwrap();
    let archives = fixtures().join("archives");
    for (name, want) in [
        ("docker-links", FROM_DOCKER),
        ("docker-files", FROM_DOCKER),
        ("docker-skopeo", FROM_DOCKER),
        ("oci", FROM_OCI),
        ("oci-and-docker", FROM_OCI),
    ] {
        let file = archives.join(format!("{name}.tar"));
        let bytes = fs::read(&file).unwrap();
        let packed = scratch.path().join(format!("{name}.tar.gz"));
        fs::write(&packed, gzip(&bytes)).unwrap();
        let frames = scratch.path().join(format!("{name}.tar.zst"));
        fs::write(&frames, zstd::bulk::compress(&bytes, 1).unwrap()).unwrap();
        // An OCI archive is a packed layout.
        let layout = scratch.path().join(format!("{name}-layout"));
        tar::Archive::new(&bytes[..]).unpack(&layout).unwrap();
        let mut inputs = vec![file, packed, frames];
        inputs.extend(layout.join("index.json").exists().then_some(layout));
        for (number, input) in inputs.iter().enumerate() {
            let out = scratch.path().join(format!("{name}-{number}"));
            let result =
                load(&out, &[text(input)]).unwrap_or_else(|reason| panic!("{}: {reason}", input.display()));
            let (image, inspected) = (&result["images"][0], inspect(&[text(input)]));
            assert_eq!(
                (&image["name"], &image["digest"]),
                (&json!(APP1), &json!(want)),
                "{}",
                input.display()
            );
            assert_eq!(inspected["images"][0]["digest"], want, "{}", input.display());
            // What was written is an input itself.
            let again = scratch.path().join(format!("{name}-{number}-again"));
            assert_eq!(load(&again, &[text(&out)]).unwrap()["images"][0]["digest"], want);
            assert_eq!(blobs(&again), blobs(&out));
        }
    }
}

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

fn docker_archive(files: Files<'_>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn archives_load_in_every_shape_that_programs_give_them() {
    let scratch = tempfile::tempdir().unwrap();
    let tars = [1, 2].map(|number| testkit::archive::archive(2, 1000 * number));
    let packed = [gzip(&tars[0]), gzip(&tars[1])];
    let [one, two] = &tars;
    let [one_gz, two_gz] = &packed;
    let diff_ids = [digest(one), digest(two)];
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = config.to_string().into_bytes();
    let id = digest(&config);
    let hex = id.strip_prefix("sha256:").unwrap();
    let hexes = packed.each_ref().map(|blob| digest(blob).replace("sha256:", ""));
    let list = |config: &str, layers: [&str; 2], tags: &[&str]| {
        let each: Vec<_> =
            tags.iter().map(|tag| json!({ "Config": config, "RepoTags": [tag], "Layers": layers })).collect();
        json!(each).to_string().into_bytes()
    };
    let (first, second) = ("example.test/app:1", "example.test/app:2");
    let json_name = format!("{hex}.json");
    let in_blobs = format!("blobs/sha256/{hex}");
    let gz_names = hexes.each_ref().map(|hex| format!("{hex}.tar.gz"));
    let blob_names = hexes.each_ref().map(|hex| format!("blobs/sha256/{hex}.tar.gz"));
    let gz = gz_names.each_ref().map(String::as_str);
    let blobs_gz = blob_names.each_ref().map(String::as_str);
    let plain = ["x/layer.tar", "y/layer.tar"];
    let lists = [
        list(&id, gz, &[first]),
        list(&id, gz, &[first, second]),
        list(&json_name, plain, &[first, second]),
        list("config.json", gz, &[first]),
        list(&json_name, plain, &[first]),
        list(&in_blobs, blobs_gz, &[first]),
    ];
    let shapes: [(&str, Files<'_>, usize); 6] = [
        // crane pull, ko, kaniko: the configuration has its digest for a name, and layers come as they are in the registry.
        ("tarball", &[(&id, &config), (gz[0], one_gz), (gz[1], two_gz), ("manifest.json", &lists[0])], 1),
        // The same for two tags: the configuration is there twice.
        (
            "two tags",
            &[(&id, &config), (gz[0], one_gz), (gz[1], two_gz), (&id, &config), ("manifest.json", &lists[1])],
            2,
        ),
        // crane pull --format legacy, and Docker before 1.13, for two tags.
        (
            "legacy",
            &[
                (&json_name, &config),
                ("x/layer.tar", one),
                ("x/json", b"{}"),
                ("x/VERSION", b"1.0"),
                ("y/layer.tar", two),
                ("y/json", b"{}"),
                ("y/VERSION", b"1.0"),
                (&json_name, &config),
                ("manifest.json", &lists[2]),
                ("repositories", b"{}"),
            ],
            2,
        ),
        // Jib, Guix: one name for every configuration.
        (
            "jib",
            &[("config.json", &config), (gz[0], one_gz), (gz[1], two_gz), ("manifest.json", &lists[3])],
            1,
        ),
        // Nix: everything below ./.
        (
            "nix",
            &[
                ("./manifest.json", &lists[4]),
                (&json_name, &config),
                ("./x/layer.tar", one),
                ("./y/layer.tar", two),
            ],
            1,
        ),
        // Bazel's rules_oci: blobs by digest, but no layout; a layer that is shared may be there twice.
        (
            "bazel",
            &[
                ("manifest.json", &lists[5]),
                (&in_blobs, &config),
                (blobs_gz[0], one_gz),
                (blobs_gz[1], two_gz),
                (blobs_gz[1], two_gz),
            ],
            1,
        ),
    ];
    for (shape, files, images) in shapes {
        let bytes = docker_archive(files);
        for (coding, bytes) in [("plain", bytes.clone()), ("gzip", gzip(&bytes))] {
            let file = scratch.path().join(format!("{shape}-{coding}"));
            fs::write(&file, bytes).unwrap();
            let out = scratch.path().join(format!("{shape}-{coding}-out"));
            let result =
                load(&out, &[text(&file)]).unwrap_or_else(|reason| panic!("{shape}, {coding}: {reason}"));
            let loaded = result["images"].as_array().unwrap();
            assert_eq!((loaded.len(), &loaded[0]["name"]), (images, &json!(first)), "{shape}, {coding}");
            assert!(blobs(&out).contains(&id), "{shape}, {coding}");
        }
    }
}

fn a_partial_archive_needs_what_it_leaves_out() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let [partial, whole] = ["oci-partial", "oci"].map(|name| fixtures().join(format!("archives/{name}.tar")));
    assert_eq!(load(&out, &[text(&partial)]), Err("image.missing".to_owned()));
    assert!(blobs(&out).is_empty() && !out.join("index.json").exists());
    let all = load(&out, &[text(&whole)]).unwrap();
    assert_eq!(all["written_blobs"], 5);
    let again = load(&out, &[text(&partial)]).unwrap();
    assert_eq!((&again["images"][0]["digest"], &again["written_blobs"]), (&json!(FROM_OCI), &json!(0)));
}

fn inputs_are_one_pool() {
    let scratch = tempfile::tempdir().unwrap();
    let archives = fixtures().join("archives");
    let [partial, whole, docker] =
        ["oci-partial", "oci", "docker-links"].map(|name| archives.join(format!("{name}.tar")));
    let out = scratch.path().join("both");
    let result = load(&out, &[text(&partial), text(&whole)]).unwrap();
    assert_eq!(result["images"].as_array().unwrap().len(), 1, "{result}");
    // A set without lib and base finds their layers in an archive.
    let set = fixtures().join("missing-base");
    let out = scratch.path().join("set");
    fs::create_dir(scratch.path().join("app")).unwrap();
    for name in ["manifest", "app1_1_app_image.tar.gz"] {
        fs::copy(set.join(name), scratch.path().join("app").join(name)).unwrap();
    }
    let app = scratch.path().join("app");
    assert_eq!(load(&out, &["--set", text(&app), APP1]), Err("image.missing".to_owned()));
    let result = load(&out, &[text(&docker), "--set", text(&app), APP1]).unwrap();
    assert_eq!(result["images"][0]["digest"], FROM_DOCKER);
}

fn a_dry_run_names_the_file_of_every_layer_and_what_is_missing() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let archives = fixtures().join("archives");
    let [partial, whole] = ["oci-partial", "oci"].map(|name| archives.join(format!("{name}.tar")));
    let found = |arguments: &[&str]| -> Vec<Value> {
        let to = format!("oci:{}", text(&out));
        let done = plywood(&[&["load", "--dry-run", "--json", "--to", &to], arguments].concat());
        assert!(done.status.success(), "{done:?}");
        let object: Value = serde_json::from_slice(&done.stdout).unwrap();
        let layers = object["images"][0]["platforms"][0]["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["found"].clone()).collect()
    };
    let (none, partial_has) = (Value::Null, json!(text(&partial)));
    assert_eq!(found(&[text(&partial)]), [&none, &none, &none, &partial_has, &partial_has].map(Clone::clone));
    assert!(!out.exists(), "a dry run makes nothing");
    load(&out, &[text(&whole)]).unwrap();
    assert_eq!(found(&[text(&partial)]), vec![json!("store"); 5]);
}

/// A layout whose index leads to one image for each platform.
fn two_platforms(path: &Path) {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let store = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        digest
    };
    let mut manifests = Vec::new();
    for (architecture, bytes) in [("amd64", 5), ("arm64", 6)] {
        let layer = testkit::archive::archive(1, bytes);
        let diff_id = store(&layer);
        let config = json!({"os": "linux", "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
        .to_string();
        let manifest = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": store(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": layer.len()}]})
        .to_string();
        manifests.push(json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": store(manifest.as_bytes()), "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests})
    .to_string();
    let top = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": store(index.as_bytes()), "size": index.len(),
        "annotations": {"org.opencontainers.image.ref.name": "two"}}]});
    fs::write(path.join("index.json"), top.to_string()).unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn only_the_platform_that_was_asked_for_is_taken_from_an_index() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    two_platforms(&layout);
    let number = |name: &str, arguments: &[&str]| {
        let out = scratch.path().join(name);
        let arguments = [&[text(&layout), "--name", "host.test/a"], arguments].concat();
        let result = load(&out, &arguments).unwrap();
        assert_eq!(result["images"][0]["name"], "host.test/a:two");
        blobs(&out).len()
    };
    // The index, and of each platform a manifest, a configuration and a layer.
    assert_eq!(number("one", &["--platform", "linux/arm64/v8"]), 4);
    assert_eq!(number("all", &["--all-platforms"]), 7);
    let none =
        load(&scratch.path().join("none"), &[text(&layout), "--name", "a", "--platform", "linux/s390x"]);
    assert_eq!(none, Err("image.nothing".to_owned()));
}

fn an_image_without_a_name_gets_the_one_that_is_given() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    two_platforms(&layout);
    let out = scratch.path().join("out");
    assert_eq!(load(&out, &[text(&layout), "--platform", "linux/amd64"]), Err("image.reference".to_owned()));
    for (given, want) in [("short", "docker.io/library/short:two"), ("host.test/b:1", "host.test/b:1")] {
        let result = load(&out, &[text(&layout), "--platform", "linux/amd64", "--name", given]).unwrap();
        assert_eq!(result["images"][0]["name"], want);
    }
}

fn a_layer_that_lies_about_its_digest_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    two_platforms(&layout);
    let layer = inspect(&[text(&layout), "--platform", "linux/amd64"])["images"][0]["platforms"][0]["layers"]
        [0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let blob = layout.join("blobs").join(layer.replace(':', "/"));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let out = scratch.path().join("out");
    let arguments = [text(&layout), "--platform", "linux/amd64", "--name", "a"];
    assert_eq!(load(&out, &arguments), Err("blob.digest".to_owned()));
    assert!(blobs(&out).is_empty() && !out.join("index.json").exists());
    bytes.push(0);
    fs::write(&blob, &bytes).unwrap();
    assert_eq!(load(&out, &arguments), Err("blob.size".to_owned()));
    // A blob of a layout is no link to somewhere else.
    fs::remove_file(&blob).unwrap();
    symlink("/etc/hostname", &blob).unwrap();
    assert_eq!(load(&out, &arguments), Err("image.read".to_owned()));
}

fn a_load_into_a_layout_keeps_what_is_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let set = fixtures().join("base-lib-apps");
    for ask in [APP1, "example.test/tiny/app2:1", APP1] {
        load(&out, &["--set", text(&set), ask]).unwrap();
    }
    let index: Value = serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap();
    let names: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["annotations"]["io.containerd.image.name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["example.test/tiny/app2:1", APP1]);
    let occupied = scratch.path().join("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("precious"), "x").unwrap();
    assert_eq!(load(&occupied, &["--set", text(&set), APP1]), Err("store.refused".to_owned()));
}

fn the_name_of_an_image_in_the_place_of_a_file_is_told_its_option() {
    for (name, hint) in [
        ("docker.io/library/no-such:1", "shown with --image docker.io/library/no-such:1 [image.missing]\n"),
        ("/no/such/file", "/no/such/file: the file is missing [image.missing]\n"),
    ] {
        let done = plywood(&["inspect", name]);
        let error = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(1) && error.ends_with(hint), "{error}");
    }
}

fn nothing_to_load_is_wrong_usage() {
    for arguments in
        [&["load"][..], &["inspect"], &["load", "-"], &["load", "--set", "a", "b", "--to", "oci:"]]
    {
        assert_eq!(plywood(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// Largest resident memory of any of the archives below, in bytes. An archive of one small image takes 15 MiB.
const MEMORY: u64 = 160 << 20;

/// Runs a command to its end. Returns its output, and the most memory that it was seen to have, in bytes.
fn measured(arguments: &[&str]) -> (Output, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) * 1024);
        thread::sleep(Duration::from_millis(2));
    }
    (child.wait_with_output().unwrap(), most)
}

/// Writes a gzip'd archive, piece by piece.
fn written(path: &Path, write: impl FnOnce(&mut dyn FnMut(&str, &[u8]))) {
    let mut encoder =
        flate2::write::GzEncoder::new(fs::File::create(path).unwrap(), flate2::Compression::fast());
    write(&mut |name, data| {
        let mut header = tar::Header::new_gnu();
        if name.len() > 99 {
            header.set_path("././@LongLink").unwrap();
            header.set_entry_type(tar::EntryType::GNULongName);
            header.set_size(name.len() as u64 + 1);
            header.set_cksum();
            encoder.write_all(header.as_bytes()).unwrap();
            let mut body = name.as_bytes().to_vec();
            body.resize((name.len() + 1).next_multiple_of(512), 0);
            encoder.write_all(&body).unwrap();
            header = tar::Header::new_gnu();
            header.set_path("long").unwrap();
        } else {
            header.set_path(name).unwrap();
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
        encoder.write_all(data).unwrap();
        encoder.write_all(&vec![0; data.len().next_multiple_of(512) - data.len()]).unwrap();
    });
    encoder.finish().unwrap();
}

fn hostile_archives_are_refused_at_a_bounded_cost_of_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("hostile");
    let out = scratch.path().join("out");
    let to = format!("oci:{}", text(&out));
    let megabytes = 4 << 20;
    let json = |open: &str, item: &str, close: &str| {
        let mut text = open.to_owned();
        while text.len() + item.len() + close.len() + 8 < megabytes {
            text += item;
        }
        text.truncate(text.trim_end_matches(',').len());
        (text + close).into_bytes()
    };
    type Write = Box<dyn Fn(&mut dyn FnMut(&str, &[u8]))>;
    let one = |name: &'static str, data: Vec<u8>| -> Write { Box::new(move |add| add(name, &data)) };
    let archives: Vec<(&str, &str, Write)> = vec![
        (
            "a million members",
            "image.limit",
            Box::new(|add| (0..1_000_000).for_each(|n| add(&n.to_string(), b""))),
        ),
        (
            "long names",
            "image.limit",
            Box::new(|add| (0..20_000).for_each(|n| add(&format!("{n:04000}"), b""))),
        ),
        ("nested lists", "image.format", one("manifest.json", vec![b'['; 1 << 20])),
        ("empty lists", "image.format", one("manifest.json", json("[", "[],", "]"))),
        (
            "empty strings",
            "image.limit",
            one("manifest.json", json(r#"[{"Config":"c","Layers":["#, r#""","#, "]}]")),
        ),
        ("many images", "image.limit", one("manifest.json", json("[", r#"{"Config":"c"},"#, "]"))),
        ("a long document", "image.limit", one("manifest.json", vec![b' '; megabytes + 1])),
        (
            "many documents",
            "image.missing",
            Box::new(|add| {
                let document = [b"{".as_slice(), &vec![b' '; 4_000_000], b"}"].concat();
                (0..100).for_each(|n| add(&format!("{n}.json"), &document));
                add("manifest.json", br#"[{"Config":"c","RepoTags":["a"]}]"#);
            }),
        ),
        (
            "a large layer that nothing refers to",
            "image.missing",
            Box::new(|add| add("zeros", &vec![0; 300 << 20])),
        ),
    ];
    for (what, want, write) in archives {
        written(&path, write);
        let (done, most) = measured(&["load", text(&path), "--to", &to, "--json", "--progress", "none"]);
        let object: Value =
            serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{what}: {done:?}"));
        assert_eq!(object["error"]["reason"], want, "{what}: {object}");
        assert!(most < MEMORY, "{what}: {} MiB", most >> 20);
        assert!(blobs(&out).is_empty() && !out.join("index.json").exists(), "{what}: left something");
    }
}

fn progress_is_a_json_line_for_each_change_of_an_object() {
    let scratch = tempfile::tempdir().unwrap();
    let to = format!("oci:{}", text(&scratch.path().join("out")));
    let set = fixtures().join("repotags-extra");
    let done = plywood(&["load", "--set", text(&set), APP1, "--to", &to]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("Loaded image: {APP1}\n"));
    let stderr = String::from_utf8(done.stderr).unwrap();
    let (lines, notes): (Vec<_>, Vec<_>) = stderr.lines().partition(|line| line.starts_with('{'));
    assert!(notes.len() == 1 && notes[0].contains("--all-tags"), "{notes:?}");
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The states at the end: five layers, a configuration and a manifest, and the image.
    let last = |status: &str| lines.iter().filter(|line| line["status"] == status).count();
    assert_eq!((last("complete"), last("saved")), (7, 1), "{lines:#?}");
    for line in lines.iter().filter(|line| line["status"] == "complete") {
        assert_eq!(line["progress"], line["total"], "{line}");
    }
    let all = plywood(&["load", "--set", text(&set), APP1, "--to", &to, "--all-tags", "--progress", "none"]);
    assert!(all.stderr.is_empty());
    assert_eq!(String::from_utf8_lossy(&all.stdout).lines().count(), 2);
}

fn an_image_without_a_name_is_shown_all_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    two_platforms(&layout);
    let shown = inspect(&[text(&layout), "--platform", "linux/amd64"]);
    assert_eq!(shown["images"][0]["names"], json!(["two"]));
    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    fs::write(layout.join("index.json"), index.replace("org.opencontainers.image.ref.name", "other"))
        .unwrap();
    let shown = inspect(&[text(&layout), "--platform", "linux/amd64"]);
    assert_eq!(shown["images"][0]["names"], json!([]));
    let people = plywood(&["inspect", text(&layout), "--platform", "linux/amd64"]);
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.starts_with("(no name), from ") && people.contains("  linux/amd64\n"), "{people}");
    assert!(people.contains("chainID sha256:"), "{people}");
}
