//! `plywood stargz` as a user runs it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use testkit::{
    Suite, host,
    image::Image,
    node::{NAMESPACE, Node},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        the_files_of_a_layer_have_the_names_and_modes_of_the_nydus_snapshotter,
        layers_without_such_metadata_are_refused,
        a_layer_is_not_replaced_and_a_missing_directory_is_named_once,
        a_layer_of_the_content_store_is_compared_with_what_its_image_says,
        metadata_and_data_of_a_layer_in_the_content_store_are_sound,
    ];
}

const ID: &str = "e9c7d7101dfff3e9f82bd5d2e01a6c2c0cd7604413b77ee88668b5adcdb001df";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz").join(name)
}

fn plywood(arguments: &[&str]) -> Output {
    host::plywood().arg("stargz").args(arguments).current_dir(fixture("")).output().unwrap()
}

fn the_files_of_a_layer_have_the_names_and_modes_of_the_nydus_snapshotter() {
    let made = |arguments: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let output = plywood(&[arguments, &["-o", dir.path().to_str().unwrap()]].concat());
        assert!(output.status.success(), "{output:?}");
        let mut files: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let read = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, mode(path), fs::read(path).unwrap())
        };
        (files.iter().map(read).collect::<Vec<_>>(), dir)
    };
    let (files, dir) = made(&["estargz/eqsize.esgz"]);
    let names: Vec<_> = files.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
    let context = format!("{ID}.blob.meta");
    assert_eq!(names, [(ID, 0o440), (context.as_str(), 0o644), ("stargz.index.json", 0o440)]);
    // Of the table alone.
    let table = dir.path().join("stargz.index.json");
    let (alone, _dir) = made(&[table.to_str().unwrap(), "--blob-id", ID]);
    assert!(alone[2] == files[2] && alone[0].2.len() == files[0].2.len());
    // What is there stays.
    let image = dir.path().join(ID);
    fs::remove_file(&image).unwrap();
    fs::write(&image, "another one").unwrap();
    assert!(plywood(&["estargz/eqsize.esgz", "-o", dir.path().to_str().unwrap()]).status.success());
    assert_eq!(fs::read(&image).unwrap(), b"another one");
}

fn layers_without_such_metadata_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let whole = format!("{out}/layer.boot");
    for (arguments, code, reason) in [
        (&["estargz/l2-inner.esgz", "-o", out][..], 1, "rafs.inner-offset"),
        (&["zstdchunked/plain-stargz.zc", "-o", out][..], 1, "rafs.form"),
        (&["zstdchunked/plain-containers.zc", "--whole", &whole], 1, "rafs.form"),
        (&["README.md", "-o", out][..], 1, "rafs.form"),
        (&["estargz/eqsize.esgz", "--blob-id", "e9", "-o", out][..], 2, "cli.usage"),
    ] {
        let output = plywood(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(error.trim_end().ends_with(&format!("[{reason}]")), "{output:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

fn a_layer_is_not_replaced_and_a_missing_directory_is_named_once() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer.esgz");
    fs::copy(fixture("estargz/eqsize.esgz"), &layer).unwrap();
    let name = layer.to_str().unwrap();
    let output = plywood(&[name, "--whole", name]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("[cli.same-file]"), "{error}");
    assert!(fs::read(&layer).unwrap() == fs::read(fixture("estargz/eqsize.esgz")).unwrap());

    let missing = dir.path().join("missing");
    let output = plywood(&[name, "-o", missing.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.matches("missing").count() == 1, "{error}");
}

/// Runs the command on a node, with the output in a directory of it.
fn on_node(node: &Node, arguments: &[&str]) -> Output {
    let address = node.store.socket().display().to_string();
    let mut command = host::plywood();
    command.arg("stargz").args(["--address", &address]).args(arguments);
    command.current_dir(node.scratch.path()).output().unwrap()
}

fn a_layer_of_the_content_store_is_compared_with_what_its_image_says() {
    let node = Node::new();
    let blob = fs::read(fixture("estargz/eqsize.esgz")).unwrap();
    let content = format!("sha256:{ID}");
    let described: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("estargz/eqsize.esgz.json")).unwrap()).unwrap();
    let diff_ids = [described["diffID"].as_str().unwrap().to_owned()];
    let annotations = described["descriptor"]["annotations"].to_string();
    Image::record(
        &node,
        "docker.io/library/right:latest",
        &diff_ids,
        std::slice::from_ref(&blob),
        &annotations,
    );
    let digest = described["descriptor"]["annotations"]["containerd.io/snapshot/stargz/toc.digest"].as_str();
    let wrong = annotations.replace(digest.unwrap(), &format!("sha256:{ID}"));
    Image::record(&node, "docker.io/library/wrong:latest", &diff_ids, &[blob], &wrong);
    for (name, arguments) in [("alone", &[][..]), ("of", &["--of", "right"])] {
        fs::create_dir(node.scratch.path().join(name)).unwrap();
        let output = on_node(&node, &[&["--content", &content, "-o", name], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        let made = node.scratch.path().join(name);
        assert!(made.join(ID).exists() && made.join(format!("{ID}.blob.meta")).exists());
        assert_eq!(fs::read_dir(made).unwrap().count(), 3);
    }
    fs::create_dir(node.scratch.path().join("none")).unwrap();
    for (arguments, reason) in [
        (&["--content", content.as_str(), "--of", "wrong", "-o", "none"][..], "stargz.toc.digest"),
        (&["--content", described["diffID"].as_str().unwrap(), "-o", "none"], "store.not-found"),
        (&["--content", described["diffID"].as_str().unwrap(), "--of", "right", "-o", "none"], "cli.usage"),
    ] {
        let output = on_node(&node, arguments);
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(error.trim_end().ends_with(&format!("[{reason}]")), "{output:?}");
    }
    assert_eq!(fs::read_dir(node.scratch.path().join("none")).unwrap().count(), 0);
}

fn metadata_and_data_of_a_layer_in_the_content_store_are_sound() {
    let node = Node::new();
    let blob = fs::read(fixture("estargz/eqsize.esgz")).unwrap();
    let content = node.store.add::<String>(NAMESPACE, blob);
    let output = on_node(&node, &["--content", &content, "--whole", "layer.boot", "--data", "-o", "."]);
    assert!(output.status.success(), "{output:?}");
    let made = |name: &str| node.scratch.path().join(name);
    for image in ["layer.boot", ID] {
        assert!(host::plywood().arg("check").arg(made(image)).output().unwrap().status.success());
    }
    let device = fs::read(made(&format!("{ID}.blob.data"))).unwrap();
    assert!(fs::read(made("layer.boot")).unwrap().ends_with(&device));
}
