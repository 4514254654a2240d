//! `plywood diff` as a user runs it: directories, images, stacks, pipes, refusals, and the two forms of its
//! result.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use plywood::{digest::Digest, format::erofs::reader::Image};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        two_trees_are_compared_by_what_is_in_them,
        the_ending_or_the_option_says_what_is_written_and_the_report_is_true,
        a_pipe_gets_the_layer_and_nothing_else,
        a_layer_on_top_deletes_what_its_whiteouts_name,
        names_with_colons_and_backslashes_can_be_spelled,
        equal_inputs_give_equal_bytes_on_any_number_of_threads,
        times_are_as_exact_as_asked_for_and_not_later_than_the_epoch,
        an_image_has_the_attributes_of_the_root_even_if_they_did_not_change,
        only_the_attributes_asked_for_are_written,
        overlayfs_s_marks_are_those_of_the_prefix_that_is_given,
        what_cannot_be_done_is_said_and_leaves_no_file,
        a_failure_for_programs_is_json_where_the_report_would_be,
        an_output_that_takes_no_more_is_a_failure,
        an_interrupted_command_leaves_the_old_file_and_no_other,
    ];
}

/// `plywood diff` in `dir`. Overlayfs's own attributes are looked for where no privilege is needed.
fn diff(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.current_dir(dir).arg("diff").arg("--user-xattr").args(arguments);
    command.env_remove("SOURCE_DATE_EPOCH").output().unwrap()
}

fn expect(dir: &Path, arguments: &[&str]) -> Output {
    let done = diff(dir, arguments);
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    done
}

fn report(dir: &Path, arguments: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&expect(dir, &[arguments, &["--json"]].concat()).stdout).unwrap()
}

/// Two trees: in `new`, a file is changed, one added, one gone; much is the same.
fn trees() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    for tree in ["old", "new"] {
        let file = |name: &str, bytes: &[u8]| {
            let path = scratch.path().join(tree).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        file("etc/same", b"same");
        file(
            "lib/large",
            &(0..400_000_u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect::<Vec<_>>(),
        );
        match tree {
            "old" => {
                file("etc/changed", b"before");
                file("etc/gone", b"gone");
            }
            _ => {
                file("etc/changed", b"after!");
                file("etc/added", b"added");
            }
        }
        for directory in ["etc", "lib", ""] {
            let directory = fs::File::open(scratch.path().join(tree).join(directory)).unwrap();
            directory.set_modified(time).unwrap();
        }
    }
    scratch
}

fn names(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let name =
        |entry: std::io::Result<tar::Entry<'_, &[u8]>>| entry.unwrap().path().unwrap().display().to_string();
    archive.entries().unwrap().map(name).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn two_trees_are_compared_by_what_is_in_them() {
    let scratch = trees();
    let dir = scratch.path();
    expect(dir, &["old", "new", "-o", "out.tar"]);
    let want = ["etc/", "etc/added", "etc/changed", "etc/.wh.gone"];
    let mut found = names(&fs::read(dir.join("out.tar")).unwrap());
    found.sort_by_key(|name| want.iter().position(|wanted| wanted == name));
    assert_eq!(found, want);
    // Nothing to nothing is an archive without entries.
    expect(dir, &["old", "old", "-o", "out.tar"]);
    assert_eq!(fs::read(dir.join("out.tar")).unwrap(), [0; 1024]);
    expect(dir, &["none", "none", "-o", "out.tar"]);
    assert_eq!(fs::read(dir.join("out.tar")).unwrap(), [0; 1024]);
}

fn the_ending_or_the_option_says_what_is_written_and_the_report_is_true() {
    let scratch = trees();
    let dir = scratch.path();
    for (name, option, media_type, coding) in [
        ("a.tar", None, "application/vnd.oci.image.layer.v1.tar", "none"),
        ("a.tgz", None, "application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
        ("a.tar.zst", None, "application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
        ("a.erofs", None, "application/vnd.erofs.layer.v1", "none"),
        ("a.erofs.zst", None, "application/vnd.erofs.layer.v1+zstd", "zstd"),
        ("a", Some("tar+gzip"), "application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
        ("a.tar", Some("zstd"), "application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
        ("b.tar", Some("erofs"), "application/vnd.erofs.layer.v1", "none"),
        (
            "c",
            Some("application/vnd.oci.image.layer.v1.erofs"),
            "application/vnd.oci.image.layer.v1.erofs",
            "none",
        ),
    ] {
        let mut arguments = vec!["old", "new", "-o", name];
        arguments.extend(option.into_iter().flat_map(|option| ["--type", option]));
        let report = report(dir, &arguments);
        let blob = fs::read(dir.join(name)).unwrap();
        let mut plain = Vec::new();
        match coding {
            "gzip" => drop(flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut plain).unwrap()),
            "zstd" => plain = zstd::decode_all(&blob[..]).unwrap(),
            _ => plain.clone_from(&blob),
        }
        assert_eq!(report["media_type"], media_type, "{name}");
        assert_eq!(report["blob_digest"], Digest::sha256(&blob).to_string(), "{name}");
        assert_eq!(report["blob_bytes"], blob.len());
        assert_eq!(report["diff_id"], Digest::sha256(&plain).to_string());
        assert_eq!(report["uncompressed_bytes"], plain.len());
        assert_eq!((&report["whiteouts"], &report["sockets"]), (&1.into(), &0.into()), "{report}");
        assert!(
            report["entries"].as_u64().unwrap() >= 4 && report["seconds"]["total"].as_f64().unwrap() > 0.0
        );
        // The written layer can be applied.
        let mut apply = Command::new(env!("CARGO_BIN_EXE_plywood"));
        let applied = apply.current_dir(dir).args(["apply", name, "-o", "applied.erofs"]).output().unwrap();
        assert!(applied.status.success(), "{}", text(&applied.stderr));
    }
}

fn a_pipe_gets_the_layer_and_nothing_else() {
    let scratch = trees();
    let dir = scratch.path();
    for (kind, name) in [("tar", "x.tar"), ("tar+gzip", "x.tar.gz"), ("erofs", "x.erofs")] {
        let done = expect(dir, &["none", "new", "-t", kind, "-o", "-"]);
        assert!(text(&done.stderr).contains("diffID  sha256:"), "the report is on standard error");
        expect(dir, &["none", "new", "-o", name]);
        assert!(done.stdout == fs::read(dir.join(name)).unwrap(), "{kind}");
    }
    // A file's report is on standard output, and nothing on the other: no terminal, no progress.
    let done = expect(dir, &["none", "new", "-o", "x.tar"]);
    assert!(text(&done.stdout).starts_with("x.tar: ") && done.stderr.is_empty(), "{done:?}");
}

fn a_layer_on_top_deletes_what_its_whiteouts_name() {
    let scratch = trees();
    let dir = scratch.path();
    expect(dir, &["none", "old", "-o", "base.erofs"]);
    expect(dir, &["old", "new", "-o", "change.erofs"]);
    // The image holds a deletion, an addition and a change; unchanged things are not in it.
    expect(dir, &["--layer", "base.erofs", "change.erofs", "-o", "layer.tar"]);
    let found = names(&fs::read(dir.join("layer.tar")).unwrap());
    assert!(found.iter().any(|name| name == "etc/.wh.gone"), "{found:?}");
    assert!(found.iter().all(|name| !name.starts_with("lib/")), "{found:?}");
    // As a whole tree it lacks nearly everything.
    expect(dir, &["base.erofs", "change.erofs", "-o", "tree.tar"]);
    let found = names(&fs::read(dir.join("tree.tar")).unwrap());
    assert!(found.iter().any(|name| name == ".wh.lib"), "{found:?}");
    // Both layers, as a stack, are the new tree.
    expect(dir, &["new", "change.erofs:base.erofs", "-o", "same.tar"]);
    assert_eq!(names(&fs::read(dir.join("same.tar")).unwrap()), Vec::<String>::new());
    // A deletion of nothing is none.
    expect(dir, &["--layer", "none", "change.erofs", "-o", "alone.tar"]);
    let found = names(&fs::read(dir.join("alone.tar")).unwrap());
    assert!(found.iter().all(|name| !name.contains(".wh.")), "{found:?}");
}

fn names_with_colons_and_backslashes_can_be_spelled() {
    let scratch = trees();
    let dir = scratch.path();
    fs::rename(dir.join("old"), dir.join(r"a:b\c")).unwrap();
    expect(dir, &[r"a\:b\\c", "new", "-o", "out.tar"]);
    assert_eq!(names(&fs::read(dir.join("out.tar")).unwrap()).len(), 4);
    fs::rename(dir.join("new"), dir.join("none")).unwrap();
    expect(dir, &["none", "./none", "-o", "out.tar"]);
    assert!(names(&fs::read(dir.join("out.tar")).unwrap()).len() > 4);
}

fn equal_inputs_give_equal_bytes_on_any_number_of_threads() {
    let scratch = trees();
    let dir = scratch.path();
    for kind in ["tar", "tar+gzip", "tar+zstd", "erofs", "erofs+zstd"] {
        let mut first = None;
        for threads in ["0", "1", "2", "8"] {
            expect(dir, &["none", "new", "-t", kind, "-o", "out", "--threads", threads]);
            let bytes = fs::read(dir.join("out")).unwrap();
            assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{kind} on {threads}");
        }
    }
    // Levels are another matter.
    let size = |level| report(dir, &["none", "new", "-o", "x.tgz", "--level", level])["blob_bytes"].as_u64();
    assert!(size("1") > size("9"));
    let size =
        |level| report(dir, &["none", "new", "-o", "x.tar.zst", "--level", level])["blob_bytes"].as_u64();
    assert!(size("1") > size("19"));
}

fn times_are_as_exact_as_asked_for_and_not_later_than_the_epoch() {
    let scratch = trees();
    let dir = scratch.path();
    let times = |arguments: &[&str]| {
        let done = expect(dir, &[&["none", "new", "-t", "tar", "-o", "-"], arguments].concat());
        let mut archive = tar::Archive::new(&done.stdout[..]);
        let mut times: Vec<(u64, bool)> = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let exact = entry.pax_extensions().unwrap().is_some_and(|mut records| {
                records.any(|record| record.unwrap().value_bytes() == b"1600000000.123456789")
            });
            times.push((entry.header().mtime().unwrap(), exact));
        }
        times.sort_unstable();
        times.dedup();
        times
    };
    assert_eq!(times(&[]), [(1_600_000_000, false)]);
    assert_eq!(times(&["--timestamps", "nanoseconds"]), [(1_600_000_000, true)]);
    assert_eq!(times(&["--source-date-epoch", "1500000000"]), [(1_500_000_000, false)]);
    assert_eq!(times(&["--source-date-epoch", "1700000000"]), [(1_600_000_000, false)]);
    // The variable that other tools take it from.
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.current_dir(dir).args(["diff", "--user-xattr", "none", "new", "-t", "tar", "-o", "-"]);
    let done = command.env("SOURCE_DATE_EPOCH", "1500000000").output().unwrap();
    let by_option =
        expect(dir, &["none", "new", "-t", "tar", "-o", "-", "--source-date-epoch", "1500000000"]);
    assert!(done.stdout == by_option.stdout && !done.stdout.is_empty());
}

fn an_image_has_the_attributes_of_the_root_even_if_they_did_not_change() {
    let scratch = trees();
    let dir = scratch.path();
    for tree in ["old", "new"] {
        fs::set_permissions(dir.join(tree), fs::Permissions::from_mode(0o710)).unwrap();
    }
    expect(dir, &["old", "new", "-o", "out.erofs"]);
    let bytes = fs::read(dir.join("out.erofs")).unwrap();
    let root = Image::open(&bytes[..]).unwrap().root().unwrap().inode.attributes;
    assert_eq!((root.mode, root.mtime.seconds), (0o710, 1_600_000_000));
    // An archive says nothing of what stays as it is.
    expect(dir, &["old", "new", "-o", "out.tar"]);
    assert_eq!(names(&fs::read(dir.join("out.tar")).unwrap()).len(), 4);
}

fn only_the_attributes_asked_for_are_written() {
    let scratch = trees();
    let dir = scratch.path();
    for name in ["user.one", "user.other"] {
        let path = dir.join("new/etc/added");
        rustix::fs::setxattr(path, name, b"value", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let written = |arguments: &[&str]| {
        let done = expect(dir, &[&["old", "new", "-t", "tar", "-o", "-"], arguments].concat());
        let has = |name: &str| text(&done.stdout).contains(&format!("SCHILY.xattr.{name}=value"));
        [has("user.one"), has("user.other")]
    };
    assert_eq!(written(&[]), [true, true]);
    assert_eq!(written(&["--xattr", "user.one"]), [true, false]);
    assert_eq!(written(&["--xattr", "user.o*", "--xattr", "trusted.*"]), [true, true]);
    assert_eq!(written(&["--xattr", "security.capability"]), [false, false]);
}

fn overlayfs_s_marks_are_those_of_the_prefix_that_is_given() {
    let scratch = trees();
    let dir = scratch.path();
    rustix::fs::setxattr(dir.join("new/etc"), "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
        .unwrap();
    // "lib" is not in the layer any more, so that only the mark shows that it was there.
    fs::remove_dir_all(dir.join("new/lib")).unwrap();
    expect(dir, &["--layer", "old", "new", "-o", "out.tar"]);
    let found = names(&fs::read(dir.join("out.tar")).unwrap());
    assert!(found.iter().any(|name| name == "etc/.wh..wh..opq"), "{found:?}");
    assert!(found.iter().all(|name| !name.contains("lib")), "{found:?}");
}

fn what_cannot_be_done_is_said_and_leaves_no_file() {
    let scratch = trees();
    let dir = scratch.path();
    fs::write(dir.join("layer.tar"), [0; 1024]).unwrap();
    expect(dir, &["none", "new", "-o", "image.erofs"]);
    let before: Vec<PathBuf> = listing(dir);
    for (arguments, code, want) in [
        (&["old", "image.erofs", "-o", "image.erofs"][..], 1, "[cli.same-file]"),
        (&["old", "absent", "-o", "x.tar"], 1, "the newer side: layer absent: "),
        (&["old", "layer.tar", "-o", "x.tar"], 1, "[diff.layer]"),
        (&["old:", "new", "-o", "x.tar"], 2, "a name in it is empty"),
        (&["old", "new", "-o", "x"], 2, "--type"),
        (&["old", "new", "-o", "x.tar.gz", "--level", "10"], 2, "--level: "),
        (&["old", "new", "-o", "x.tar", "--level", "1"], 2, "tar is not compressed [cli.usage]"),
        (&["old", "new", "-o", "x.tar", "--device", "old"], 2, "--device: no image"),
        (&["old", "new", "-o", "x.tar", "--xattr", "a*b"], 2, "a*b"),
        (&["old", "new", "-o", "x.tar", "--inline-limit", "0"], 2, "tar is not an EROFS image [cli.usage]"),
        (
            &["old", "new", "-o", "x.erofs", "--inline-limit", "4097"],
            2,
            "4097 bytes are more than one block of 4096 bytes",
        ),
        (&["old", "new", "-o", "absent/x.tar"], 1, "[snapshot.io]"),
        (&["old", "new", "-o", "old"], 2, "--type"),
        (&["old", "new", "-o", "old", "-t", "tar"], 1, "[snapshot.occupied]"),
        (&["old", "new", "-o", "x", "-t", "zip"], 2, "neither tar"),
        (&["old", "new"], 2, "--output"),
        (&["old"], 2, "UPPER"),
    ] {
        let done = diff(dir, arguments);
        let message = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(want), "{want} not in {message}");
        assert!(done.stdout.is_empty());
    }
    assert_eq!(listing(dir), before);
}

fn a_failure_for_programs_is_json_where_the_report_would_be() {
    let scratch = trees();
    for (output, to_stderr) in [("x.tar", false), ("-", true)] {
        let done = diff(scratch.path(), &["old", "absent", "-t", "tar", "-o", output, "--json"]);
        assert_eq!(done.status.code(), Some(1));
        let report = if to_stderr { &done.stderr } else { &done.stdout };
        let value: serde_json::Value = serde_json::from_slice(report).unwrap();
        assert_eq!(value["error"]["kind"], "not_found");
        assert_eq!(value["error"]["reason"], "diff.input");
        assert!(value["error"]["message"].as_str().unwrap().contains("layer absent"));
        assert_eq!(to_stderr, done.stdout.is_empty());
    }
}

fn an_output_that_takes_no_more_is_a_failure() {
    let scratch = trees();
    let start = |kind: &str, stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
        command.current_dir(scratch.path()).args([
            "diff",
            "--user-xattr",
            "none",
            "new",
            "-o",
            "-",
            "-t",
            kind,
        ]);
        command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    for kind in ["tar", "zstd", "erofs"] {
        // A reader that has seen enough, and a full disk.
        let mut child = start(kind, Stdio::piped());
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let broken = child.wait_with_output().unwrap();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let full = start(kind, full.into()).wait_with_output().unwrap();
        for (done, why) in [(broken, "Broken pipe"), (full, "No space left on device")] {
            let message = text(&done.stderr);
            assert_eq!(done.status.code(), Some(1), "{kind}: {message}");
            assert!(message.contains(why) && message.ends_with("[output.write]\n"), "{kind}: {message}");
        }
    }
}

fn an_interrupted_command_leaves_the_old_file_and_no_other() {
    let scratch = trees();
    let dir = scratch.path();
    // Seconds of work for one thread at this level.
    let noise: Vec<u8> = (0..6_000_000_u32).flat_map(|n| n.wrapping_mul(n >> 3).to_be_bytes()).collect();
    fs::write(dir.join("new/noise"), noise).unwrap();
    for (name, signal) in [("x.tar.zst", Signal::INT), ("x.erofs.zst", Signal::TERM)] {
        fs::write(dir.join(name), "before").unwrap();
        let before = listing(dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
        command.current_dir(dir).args(["diff", "--user-xattr", "none", "new", "-o", name]);
        let mut child = command.args(["--level", "19", "--threads", "0"]).spawn().unwrap();
        thread::sleep(Duration::from_millis(300));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()), "{name} was done too early");
        assert_eq!(fs::read(dir.join(name)).unwrap(), b"before");
        assert_eq!(listing(dir), before);
    }
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}
