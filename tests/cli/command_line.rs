//! The command line as a stranger tries it: wrong use ends with 2, a failure with 1, and both say what it was.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        wrong_use_ends_with_2_in_every_command,
        a_failure_ends_with_1_and_names_the_file_it_is_about,
        a_containerd_that_is_not_installed_cannot_be_asked_for_its_version,
    ];
}

fn plywood(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).env_remove("SOURCE_DATE_EPOCH");
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A layer, an image of it, a directory with a file, and a text.
fn scratch() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::create_dir(dir.join("tree")).unwrap();
    fs::write(dir.join("tree/file"), "x").unwrap();
    fs::write(dir.join("text"), "a text").unwrap();
    for output in ["layer.tar", "image.erofs"] {
        let done = plywood(dir, &["diff", "--user-xattr", "none", "tree", "-o", output]);
        assert!(done.status.success(), "{done:?}");
    }
    scratch
}

fn wrong_use_ends_with_2_in_every_command() {
    let scratch = scratch();
    for arguments in [
        &[][..],
        &["nonsense"],
        &["--nonsense"],
        &["help", "nonsense"],
        &["serve", "surplus"],
        &["serve", "--config"],
        &["apply"],
        &["apply", "layer.tar"],
        &["apply", "layer.tar", "-o", "-"],
        &["apply", "layer.tar", "-o", ""],
        &["apply", "layer.tar", "-o", "out", "--block-size", "5"],
        &["apply", "layer.tar", "-o", "out", "--inline-limit", "4097"],
        &["apply", "layer.tar", "-o", "out", "--inline-limit", "513", "--block-size", "512"],
        &["apply", "layer.tar", "-o", "out", "--media-type", "text/plain"],
        &["apply", "layer.tar", "-o", "out", "--digest", "sha256:12"],
        &["apply", "layer.tar", "-o", "out", "--user-xattr"],
        &["diff", "none", "tree"],
        &["diff", "none", "tree", "-o", "out"],
        &["diff", "none", "", "-o", "out.tar"],
        &["diff", "none", r"a\b", "-o", "out.tar"],
        &["diff", "none", "tree", "-o", "out.tar", "--level", "1"],
        &["diff", "none", "tree", "-o", "out.tar.gz", "--level", "0"],
        &["diff", "none", "tree", "-o", "out.erofs", "--inline-limit", "4097"],
        &["diff", "none", "tree", "-o", "out.tar", "--xattr", "a*b"],
        &["diff", "none", "tree", "-o", "out.tar", "--source-date-epoch", "today"],
        &["check"],
        &["check", "image.erofs", "--rules", "none"],
        &["dump"],
        &["dump", "image.erofs", "text"],
        &["config"],
        &["config", "default", "surplus"],
        &["config", "containerd", "--version", "1.7"],
        &["completions", "nonsense"],
        &["man", "surplus"],
    ] {
        let done = plywood(scratch.path(), arguments);
        let message = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(!message.is_empty() && done.stdout.is_empty(), "{arguments:?}: {done:?}");
        assert!(!scratch.path().join("out").exists(), "{arguments:?}");
    }
}

fn a_failure_ends_with_1_and_names_the_file_it_is_about() {
    let scratch = scratch();
    for (arguments, want) in [
        (
            &["apply", "absent", "-o", "out"][..],
            "apply absent to out: layer absent: no such file or directory [apply.input]",
        ),
        (&["apply", "tree", "-o", "out"], "apply tree to out: layer tree: is a directory [apply.input]"),
        (
            &["apply", "layer.tar", "-o", "out", "--parent", "absent"],
            "apply layer.tar to out: layer absent: no such file or directory [diff.input]",
        ),
        (
            &["diff", "none", "absent", "-o", "out.tar"],
            "diff none absent to out.tar: the newer side: layer absent: no such file or directory [diff.input]",
        ),
        (
            &["diff", "none", "/dev/null", "-o", "out.tar"],
            "diff none /dev/null to out.tar: the newer side: layer /dev/null: it is neither a directory nor a \
             file [diff.layer]",
        ),
        (&["dump", "absent"], "absent: no such file or directory [image.open]"),
        (
            &["dump", "tree"],
            "tree: an image is a file or a block device, and this is a directory [image.open]",
        ),
        (
            &["dump", "--device", "absent", "image.erofs"],
            "image.erofs: device absent: no such file or directory [image.open]",
        ),
        (&["dump", "--path", "/no", "image.erofs"], "image.erofs: the image has no /no [image.path]"),
        (&["check", "text"], "the image is refused [check.refused]"),
        (
            &["man", "--directory", "absent"],
            "absent: the manual pages cannot be written there: no such file or directory [man.write]",
        ),
    ] {
        let done = plywood(scratch.path(), arguments);
        assert_eq!(text(&done.stderr), format!("plywood: {want}\n"), "{arguments:?}");
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
    }
}

fn a_containerd_that_is_not_installed_cannot_be_asked_for_its_version() {
    let nothing = tempfile::tempdir().unwrap();
    let arguments = ["config", "containerd"];
    let done = command(nothing.path(), &arguments).env("PATH", nothing.path()).output().unwrap();
    assert_eq!(
        text(&done.stderr),
        "plywood: containerd cannot be asked for its version: no such file or directory; name the release with \
         --version, for example --version 2.1 [config.containerd-version]\n"
    );
    assert_eq!((done.status.code(), done.stdout.as_slice()), (Some(1), &[][..]));
    let done = plywood(nothing.path(), &[&arguments[..], &["--version", "2.1"]].concat());
    assert!(done.status.success(), "{done:?}");
}
