//! Writable layers of overlaybd on the command line: created, sealed, committed, merged, flattened. By the commands, and
//! by the names and the arguments of the upstream tools.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use plywood::digest::Digest;
use serde_json::Value;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_writable_layer_is_created_once_and_an_existing_file_is_kept,
        the_commit_tool_takes_the_arguments_of_the_upstream_tool,
        a_sealed_file_and_its_pair_are_committed_to_the_same_bytes,
        what_cannot_be_committed_leaves_nothing,
        a_stack_is_flattened_and_merged_to_the_expected_device,
        a_command_without_its_files_shows_every_form_that_it_takes,
        a_tool_shows_its_arguments_by_its_own_name,
        a_stack_over_archives_is_flattened_from_its_files_alone,
        a_result_file_says_whether_the_tool_could_open_the_device,
        directories_get_the_files_of_the_upstream_wrapper,
    ];
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd").join(name)
}

/// Runs `plywood overlaybd`.
fn layer(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.arg("overlaybd").args(arguments).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program by the name of an upstream tool.
fn tool(dir: &Path, name: &str, arguments: &[&str]) -> Output {
    let link = dir.join(name);
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_plywood"), &link).unwrap();
    }
    let mut command = Command::new(&link);
    let output = command.args(arguments).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    fs::remove_file(link).unwrap();
    output
}

#[track_caller]
fn succeeds(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[track_caller]
fn fails(output: &Output, code: i32, reason: &str) {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(error.contains(reason), "{reason} is not in {error}");
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn copy(dir: &Path, from: &str, to: &str) {
    fs::copy(fixture(from), dir.join(to)).unwrap();
}

fn expected(stack: &str) -> String {
    let all: Value = serde_json::from_slice(&fs::read(fixture("lsmt/expected.json")).unwrap()).unwrap();
    all[stack]["sha256_device"].as_str().unwrap().to_owned()
}

fn sha256(path: &Path) -> String {
    Digest::sha256(&fs::read(path).unwrap()).hex().to_owned()
}

fn a_command_without_its_files_shows_every_form_that_it_takes() {
    let scratch = tempfile::tempdir().unwrap();
    for (command, forms) in [
        ("create", &["<DATA> <INDEX> <VSIZE_GB>\n", "<DIR> <VSIZE_GB>\n"][..]),
        ("seal", &["<DATA> <INDEX>\n", "<DIR> <OUT_DIR>\n"]),
        ("commit", &["<DATA> <INDEX> <OUT>\n", "<DIR> <OUT_DIR>\n", "--commit_sealed <SEALED> <OUT>\n"]),
        ("flatten", &["--output <OUT> <LOWER>...\n", "--config <FILE> --output <OUT>\n"]),
    ] {
        for form in forms {
            fails(&layer(scratch.path(), &[command]), 2, form);
        }
    }
    fails(&tool(scratch.path(), "overlaybd-create", &[]), 255, "Usage: overlaybd-create ");
}

fn a_tool_shows_its_arguments_by_its_own_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, usage, example) in [
        (
            "overlaybd-create",
            "overlaybd-create [OPTIONS] <DATA> <INDEX> <VSIZE_GB>\n",
            "create data index 64",
        ),
        (
            "overlaybd-commit",
            "overlaybd-commit [OPTIONS] --commit_sealed <SEALED> <OUT>\n",
            "commit dir other",
        ),
        (
            "overlaybd-apply",
            "overlaybd-apply [OPTIONS] <TAR> <CONFIG>\n",
            "apply layer.tar.gz config.v1.json",
        ),
        ("turboOCI-apply", "turboOCI-apply [OPTIONS] <TAR> <CONFIG>\n", "config.v1.json --fstype erofs"),
        (
            "overlaybd-merge",
            "overlaybd-merge [OPTIONS] <CONFIG> <OUT>\n",
            "merge config.v1.json merged.zfile",
        ),
        ("overlaybd-zfile", "overlaybd-zfile [OPTIONS] <SRC> [DST]\n", "zfile --verify layer.tar"),
    ] {
        let output = tool(scratch.path(), name, &["--help"]);
        succeeds(&output);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(usage) && help.contains(example), "{help}");
        assert!(!help.contains("plywood overlaybd") && !help.contains("Arguments of"), "{help}");
    }
}

fn a_writable_layer_is_created_once_and_an_existing_file_is_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let parent = "0b0b0b0b-2222-4222-8222-000000000002";
    for (options, data_bytes, index_bytes) in [
        (&[][..], 4096, 4096),
        (&["-s"], 4096 + (64 << 30), 0),
        (&["--turboOCI"], 64 << 30, 4096),
        (&["--fastoci", "-s"], 64 << 30, 4096),
        (&["-u", parent], 4096, 4096),
        (&["-u", "none"], 4096, 4096),
        (&["--raw"], 64 << 30, 0),
    ] {
        let arguments = [&["data", "index", "64"], options].concat();
        succeeds(&tool(dir, "overlaybd-create", &arguments));
        let [data, index] = ["data", "index"].map(|name| fs::metadata(dir.join(name)).unwrap());
        assert_eq!((data.len(), index.len()), (data_bytes, index_bytes), "{options:?}");
        assert!(data.blocks() <= 16, "{options:?}: {} blocks", data.blocks());
        for (code, failed) in [
            (255, tool(dir, "overlaybd-create", &arguments)),
            (1, layer(dir, &[&["create"], &arguments[..]].concat())),
        ] {
            fails(&failed, code, "[overlaybd.output.exists]");
        }
        if options == ["-u", parent] {
            let header = fs::read(dir.join("data")).unwrap();
            assert_eq!(header[93..129], *parent.to_uppercase().as_bytes());
            assert_ne!(header[56..92], [b'0'; 36]);
        }
        fs::remove_file(dir.join("data")).unwrap();
        // The index is in the way: then there is no data file either.
        fails(&tool(dir, "overlaybd-create", &arguments), 255, "[overlaybd.output.exists]");
        assert_eq!(names(dir), set(&["index"]), "{options:?}");
        fs::remove_file(dir.join("index")).unwrap();
    }
    succeeds(&layer(dir, &["create", "data", "index", "0"]));
    fails(&tool(dir, "overlaybd-create", &["a", "b", "64", "--mkfs"]), 255, "[overlaybd.ext4]");
    fails(&tool(dir, "overlaybd-create", &["a", "b", "20000"]), 255, "[lsmt.device.size]");
    fails(&tool(dir, "overlaybd-create", &["a", "b", "-1"]), 255, "");
    fails(&tool(dir, "overlaybd-create", &["a", "b", "18446744073709551615"]), 255, "[cli.usage]");
    fails(&tool(dir, "overlaybd-create", &["a"]), 255, "");
    assert_eq!(names(dir), set(&["data", "index"]));
}

fn the_commit_tool_takes_the_arguments_of_the_upstream_tool() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    copy(dir, "lsmt/ops2.rw.data", "data");
    copy(dir, "lsmt/ops2.rw.index", "index");
    let before = [sha256(&dir.join("data")), sha256(&dir.join("index"))];
    let uuid = "0b0b0b0b-1111-4111-8111-000000000001";
    succeeds(&tool(dir, "overlaybd-commit", &["data", "index", "out", "--uuid", uuid]));
    assert!(fs::read(dir.join("out")).unwrap() == fs::read(fixture("lsmt/ops2.commit")).unwrap());
    fails(&tool(dir, "overlaybd-commit", &["data", "index", "out"]), 255, "[overlaybd.output.exists]");
    let want = expected("ops2");
    for options in [
        &["-z"][..],
        &["-z", "-t"],
        &["-z", "-t", "--algorithm", "zstd", "--bs", "64"],
        &["-z", "--algorithm", "lz4", "--bs", "8", "--compress_threads", "4", "--verbose"],
        &["-t"],
        &["-p", uuid, "-m", "a text"],
    ] {
        let arguments = [options, &["data", "index", "out", "-f"]].concat();
        succeeds(&tool(dir, "overlaybd-commit", &arguments));
        succeeds(&layer(dir, &["flatten", "out", "-o", "device"]));
        assert_eq!(sha256(&dir.join("device")), want, "{options:?}");
        let is_archive = fs::read(dir.join("out")).unwrap()[257..262] == *b"ustar";
        assert_eq!(is_archive, options.starts_with(&["-z", "-t"]), "{options:?}");
    }
    let header = fs::read(dir.join("out")).unwrap();
    assert_eq!((&header[93..129], &header[134..141]), (uuid.to_uppercase().as_bytes(), &b"a text\0"[..]));
    assert_eq!([sha256(&dir.join("data")), sha256(&dir.join("index"))], before, "the inputs are untouched");
    assert_eq!(names(dir), set(&["data", "index", "out", "device"]));
}

fn a_sealed_file_and_its_pair_are_committed_to_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    copy(dir, "lsmt/over2.rw.data", "data");
    copy(dir, "lsmt/over2.rw.index", "index");
    succeeds(&tool(dir, "overlaybd-commit", &["-z", "-t", "data", "index", "pair"]));
    succeeds(&tool(dir, "overlaybd-commit", &["--seal", "data", "index"]));
    let sealed = fs::read(dir.join("data")).unwrap();
    assert_eq!(sealed.len(), fs::read(fixture("lsmt/over2.sealed")).unwrap().len());
    // Sealed is sealed.
    succeeds(&layer(dir, &["seal", "data", "index"]));
    assert!(fs::read(dir.join("data")).unwrap() == sealed);
    succeeds(&tool(dir, "overlaybd-commit", &["-z", "-t", "--commit_sealed", "data", "sealed"]));
    assert!(fs::read(dir.join("sealed")).unwrap() == fs::read(dir.join("pair")).unwrap());
    assert_eq!(names(dir), set(&["data", "index", "pair", "sealed"]));
}

fn what_cannot_be_committed_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    copy(dir, "lsmt/ops2.rw.data", "data");
    copy(dir, "lsmt/ops2.rw.index", "index");
    fs::write(dir.join("short"), "x").unwrap();
    let long = "x".repeat(257);
    for (arguments, reason) in [
        (&["-z", "--bs", "5", "data", "index", "out"][..], "not 4, 8, 16, 32 or 64"),
        (&["-z", "--algorithm", "gzip", "data", "index", "out"], "not lz4 or zstd"),
        (&["-m", &long, "data", "index", "out"], "[lsmt.user-tag]"),
        (&["--commit_sealed", "data", "out"], "[lsmt.magic]"),
        (&["data", "index"], "[cli.usage]"),
        (&["data", "none", "out"], "none: "),
        (&["short", "index", "out"], "[lsmt.short]"),
        (&["index", "data", "out"], "[lsmt.flags]"),
        (&["--seal", "index", "data"], "[lsmt.flags]"),
        (&["data", "index", "none/out"], "none/out"),
    ] {
        fails(&tool(dir, "overlaybd-commit", arguments), 255, reason);
        assert_eq!(names(dir), set(&["data", "index", "short"]), "{arguments:?}");
    }
    fails(&layer(dir, &["commit", "data", "none", "out"]), 1, "none: ");
}

fn a_stack_is_flattened_and_merged_to_the_expected_device() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let want = expected("chain ops2<over2");
    let [lower, upper] = ["lsmt/ops2.commit", "lsmt/over2.sealed"].map(fixture);
    let [lower, upper] = [lower, upper].map(|path| path.to_str().unwrap().to_owned());
    succeeds(&layer(dir, &["flatten", &lower, &upper, "-o", "device"]));
    assert_eq!(sha256(&dir.join("device")), want);
    assert!(fs::metadata(dir.join("device")).unwrap().blocks() * 512 < 1 << 20, "it has holes");
    // The wrong order is another device.
    succeeds(&layer(dir, &["flatten", &upper, &lower, "-o", "device"]));
    assert_ne!(sha256(&dir.join("device")), want);

    copy(dir, "lsmt/over2.rw.data", "data");
    copy(dir, "lsmt/over2.rw.index", "index");
    let here = dir.display();
    let config = format!(
        r#"{{"lowers":[{{"file":"{lower}"}}],"upper":{{"data":"{here}/data","index":"{here}/index"}},"resultFile":"{here}/result"}}"#
    );
    fs::write(dir.join("config.v1.json"), config).unwrap();
    succeeds(&layer(dir, &["flatten", "--config", "config.v1.json", "--output", "device"]));
    assert_eq!(sha256(&dir.join("device")), want);
    fs::write(dir.join("merged"), "older and longer".repeat(9000)).unwrap();
    for (arguments, magic) in [
        (&["config.v1.json", "merged"][..], &b"ZFile"[..]),
        (&["--compress=false", "config.v1.json", "merged"], b"LSMT"),
        (&["-t", "config.v1.json", "merged"], b"overlaybd.pax"),
    ] {
        succeeds(&tool(dir, "overlaybd-merge", arguments));
        assert!(fs::read(dir.join("merged")).unwrap().starts_with(magic), "{arguments:?}");
        succeeds(&layer(dir, &["flatten", "merged", "-o", "device"]));
        assert_eq!(sha256(&dir.join("device")), want, "{arguments:?}");
    }
    let merged = sha256(&dir.join("merged"));
    fs::remove_file(dir.join("index")).unwrap();
    fails(&tool(dir, "overlaybd-merge", &["config.v1.json", "merged"]), 255, "[overlaybd.lower.missing]");
    assert_eq!(sha256(&dir.join("merged")), merged, "a failure leaves the older one");
    fails(&layer(dir, &["flatten", "none", "-o", "device"]), 1, "none: ");
    fails(&layer(dir, &["flatten", "-o", "device"]), 2, "");
    assert_eq!(names(dir), set(&["config.v1.json", "data", "device", "merged", "result"]));
}

fn directories_get_the_files_of_the_upstream_wrapper() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::create_dir(dir.join("d")).unwrap();
    fs::create_dir(dir.join("t")).unwrap();
    for _again in 0..2 {
        succeeds(&layer(dir, &["create", "d", "1"]));
        assert_eq!(names(&dir.join("d")), set(&["writable_data", "writable_index"]));
    }
    // A refused one does not take the place of the one there is.
    fails(&layer(dir, &["create", "d", "20000"]), 1, "[lsmt.device.size]");
    assert_eq!(names(&dir.join("d")), set(&["writable_data", "writable_index"]));
    copy(dir, "lsmt/ops2.rw.data", "d/writable_data");
    copy(dir, "lsmt/ops2.rw.index", "d/writable_index");
    succeeds(&layer(dir, &["commit", "d", "t"]));
    let pair = fs::read(dir.join("t/overlaybd.commit")).unwrap();
    succeeds(&layer(dir, &["seal", "d", "d"]));
    assert_eq!(names(&dir.join("d")), set(&["overlaybd.sealed"]));
    succeeds(&layer(dir, &["commit", "--commit_sealed", "d", "t"]));
    assert!(fs::read(dir.join("t/overlaybd.commit")).unwrap() == pair);
    assert_eq!(names(&dir.join("t")), set(&["overlaybd.commit"]));
    fails(&layer(dir, &["commit", "d", "t"]), 1, "writable_data");
    fails(&layer(dir, &["seal", "t", "t"]), 1, "writable_data");
}

fn a_stack_over_archives_is_flattened_from_its_files_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    for (from, to) in [
        ("turbo/base.erofs.fs.meta", "base"),
        ("turbo/top.erofs.fs.meta", "top"),
        ("turbo/base.tar", "base.tar"),
        ("turbo/top.tar.gz", "top.tar.gz"),
        ("turbo/top.gzip.meta", "top.meta"),
    ] {
        copy(dir, from, to);
    }
    let flatten = |options: &str| {
        layer(dir, &[vec!["flatten", "base", "top", "-o", "out"], options.split(' ').collect()].concat())
    };
    succeeds(&flatten("--target 1=base.tar --target 2=top.tar.gz --gzip-index 2=top.meta"));
    let config = r#"{"lowers":[{"file":"base","targetFile":"base.tar"},{"file":"top","targetFile":"top.tar.gz","gzipIndex":"top.meta"}]}"#;
    fs::write(dir.join("config.json"), config).unwrap();
    succeeds(&layer(dir, &["flatten", "--config", "config.json", "-o", "same"]));
    let head = |name: &str| {
        let mut head = vec![0; 1 << 20];
        std::io::Read::read_exact(&mut fs::File::open(dir.join(name)).unwrap(), &mut head).unwrap();
        head
    };
    assert!(head("out") == head("same"));
    fs::remove_file(dir.join("out")).unwrap();
    for (options, code, said) in [
        ("--target 1=base.tar", 1, "lsmt.entry.target"),
        ("--target 1=base.tar --target 2=top.tar.gz", 1, "overlaybd.target.coding"),
        ("--target 1=base.tar --target 3=top.tar.gz", 2, "there is no such lower"),
        ("--target 0=base.tar", 2, "there is no such lower"),
        ("--target 1=base.tar --gzip-index 2=top.meta", 2, "there is no such target"),
        ("--target base.tar", 2, "not N=FILE"),
        ("--target x=base.tar", 2, "not the number of a lower"),
        ("--config config.json --target 1=base.tar", 2, "cannot be used with"),
    ] {
        fails(&flatten(options), code, said);
        assert!(!dir.join("out").exists(), "{options}");
    }
}

fn a_result_file_says_whether_the_tool_could_open_the_device() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    copy(dir, "lsmt/ops2.commit", "lower");
    let config = |lower: &str| {
        let json = format!(r#"{{"lowers":[{{"file":"{lower}"}}],"resultFile":"result"}}"#);
        fs::write(dir.join("config.json"), json).unwrap();
    };
    let result = || fs::read_to_string(dir.join("result")).unwrap();
    config("gone");
    fails(&tool(dir, "overlaybd-merge", &["config.json", "out"]), 255, "overlaybd.lower.missing");
    assert!(result().starts_with("failed:lower 1 is not here: gone"), "{}", result());
    config("lower");
    succeeds(&tool(dir, "overlaybd-merge", &["config.json", "out"]));
    assert_eq!(result(), "success");
    // Nothing but a result is overwritten when the device cannot be opened: it might be one of its files.
    fs::write(dir.join("result"), "ZFile").unwrap();
    config("gone");
    fails(&tool(dir, "overlaybd-merge", &["config.json", "out"]), 255, "overlaybd.lower.missing");
    assert_eq!(result(), "ZFile");
    // Applying opens a device too.
    config("lower");
    fs::remove_file(dir.join("result")).unwrap();
    fs::write(dir.join("archive"), [0; 1024]).unwrap();
    fails(&tool(dir, "overlaybd-apply", &["archive", "config.json"]), 255, "overlaybd.config.upper");
    assert!(result().starts_with("failed:the configuration has no upper"), "{}", result());
}
