//! `plywood diff` and `plywood apply` at a terminal: long work shows how far it is, and what is read by
//! programs stays free of it.
//!
//! The terminal is made by `script` of util-linux, without which the tests are skipped. It shows what is
//! written to it, escape sequences included.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;
use testkit::{Need, Suite};

/// Columns of the terminal.
const COLUMNS: usize = 80;
/// Takes a line away.
const CLEAR: &str = "\u{1b}[2K";
/// Bytes of a hole in the tree: as part of an archive, some tenths of a second of work.
const HOLE_BYTES: u64 = 200 << 20;
/// Bytes of data in the tree: more than a pipe holds.
const DATA_BYTES: usize = 1 << 20;

pub fn add(suite: &mut Suite) {
    for (name, test) in [
        ("a_layer_in_a_pipe_is_only_the_layer", layer_in_a_pipe as fn()),
        ("a_diff_shows_its_progress_and_takes_it_away", diff_to_a_file),
        ("a_report_for_programs_is_only_json", json),
        ("an_apply_shows_how_much_is_left_in_one_line", apply_of_a_file),
        ("an_apply_of_a_pipe_shows_how_much_it_has_read", apply_of_a_pipe),
        ("nothing_is_drawn_where_no_terminal_is", redirected),
        ("a_layer_is_not_written_to_a_terminal", refused),
        ("a_load_shows_its_objects_and_their_states", objects),
    ] {
        suite.test(name, &[Need::Tool("script")], test);
    }
}

/// Runs a shell's command in `dir` on a terminal. Returns its output, and whether it succeeded.
fn shown(dir: &Path, command: &str) -> (String, bool) {
    let command = format!("stty cols {COLUMNS} rows 24; {command}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).current_dir(dir);
    script.env("SHELL", "/bin/sh").env("TERM", "xterm").env("PLYWOOD", env!("CARGO_BIN_EXE_plywood"));
    script.env_remove("SOURCE_DATE_EPOCH").env_remove("NO_COLOR");
    let done = script.stdin(Stdio::null()).output().unwrap();
    (String::from_utf8(done.stdout).unwrap().replace("\r\n", "\n"), done.status.success())
}

fn success(dir: &Path, command: &str) -> String {
    let (shown, success) = shown(dir, command);
    assert!(success, "{command}: {shown}");
    shown
}

/// Splits output into the part that was drawn and erased again, and the part that is left.
fn drawn_and_left(shown: &str) -> (&str, &str) {
    let end = shown.rfind(CLEAR).map_or(0, |at| at + CLEAR.len());
    shown.split_at(end)
}

/// A directory with a tree of two files.
fn scratch() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("tree")).unwrap();
    File::create(scratch.path().join("tree/hole")).unwrap().set_len(HOLE_BYTES).unwrap();
    fs::write(scratch.path().join("tree/data"), vec![7; DATA_BYTES]).unwrap();
    scratch
}

fn layer_in_a_pipe() {
    let scratch = scratch();
    let dir = scratch.path();
    for kind in ["tar", "erofs"] {
        // While nobody reads, the bar has time.
        let diff = r#""$PLYWOOD" diff --user-xattr none tree"#;
        let shown = success(dir, &format!("{diff} -t {kind} -o - | (sleep 0.3; cat > piped)"));
        let (drawn, left) = drawn_and_left(&shown);
        assert!(drawn.contains("B/s"), "{shown:?}");
        assert!(left.starts_with("standard output: ") && left.contains("\ndiffID  sha256:"), "{shown:?}");
        success(dir, &format!("{diff} -t {kind} -o file"));
        assert!(fs::read(dir.join("piped")).unwrap() == fs::read(dir.join("file")).unwrap());
    }
}

fn diff_to_a_file() {
    let scratch = scratch();
    let shown = success(scratch.path(), r#""$PLYWOOD" diff --user-xattr none tree -o x.tar.gz"#);
    let (drawn, left) = drawn_and_left(&shown);
    assert!(drawn.contains("B/s"), "{shown:?}");
    assert!(left.starts_with("x.tar.gz: ") && left.contains("\ndiffID  sha256:"), "{shown:?}");
}

fn json() {
    let scratch = scratch();
    let dir = scratch.path();
    for command in [
        "diff --user-xattr none tree -o x.tar.gz --json > report",
        "apply x.tar.gz -o x.erofs --json > report",
    ] {
        let shown = success(dir, &format!(r#""$PLYWOOD" {command}"#));
        let (drawn, left) = drawn_and_left(&shown);
        assert!(drawn.contains("B/s") && left.is_empty(), "{shown:?}");
        let report: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.join("report")).unwrap()).unwrap();
        assert!(report["blob_digest"].as_str().unwrap().starts_with("sha256:"));
    }
    // On the terminal itself it comes when the bar is gone.
    let shown = success(dir, r#""$PLYWOOD" diff --user-xattr none tree -o x.tar.gz --json"#);
    let (drawn, left) = drawn_and_left(&shown);
    assert!(!drawn.is_empty() && serde_json::from_str::<serde_json::Value>(left).is_ok(), "{shown:?}");
}

fn apply_of_a_file() {
    let scratch = scratch();
    let dir = scratch.path();
    success(dir, r#""$PLYWOOD" diff --user-xattr none tree -o x.tar.gz"#);
    let shown = success(dir, r#""$PLYWOOD" apply x.tar.gz -o x.erofs"#);
    let (drawn, left) = drawn_and_left(&shown);
    assert!(drawn.contains(" left"), "{shown:?}");
    for line in drawn.split(['\r', '\n']) {
        let columns = line.replace(CLEAR, "").chars().count();
        assert!(columns <= COLUMNS, "{columns} columns: {line:?}");
    }
    assert!(left.starts_with("x.erofs: "), "{shown:?}");
}

fn apply_of_a_pipe() {
    let scratch = scratch();
    let dir = scratch.path();
    success(dir, r#""$PLYWOOD" diff --user-xattr none tree -o x.tar"#);
    let shown = success(dir, r#"cat x.tar | "$PLYWOOD" apply - -o x.erofs"#);
    let (drawn, left) = drawn_and_left(&shown);
    assert!(drawn.contains("B/s") && !drawn.contains(" left"), "{shown:?}");
    assert!(left.starts_with("x.erofs: "), "{shown:?}");
}

fn redirected() {
    let scratch = scratch();
    let dir = scratch.path();
    for command in ["diff --user-xattr none tree -o x.tar.gz", "apply x.tar.gz -o x.erofs"] {
        let shown = success(dir, &format!(r#""$PLYWOOD" {command} 2> errors"#));
        assert!(shown.starts_with("x.") && !shown.contains('\u{1b}'), "{shown:?}");
        assert_eq!(fs::read_to_string(dir.join("errors")).unwrap(), "");
        assert_eq!(success(dir, &format!(r#""$PLYWOOD" {command} > report 2>&1"#)), "");
        let report = fs::read_to_string(dir.join("report")).unwrap();
        assert!(report.starts_with("x.") && !report.contains('\u{1b}'), "{report:?}");
    }
}

fn refused() {
    let scratch = scratch();
    let (shown, success) = shown(scratch.path(), r#""$PLYWOOD" diff --user-xattr none tree -t tar -o -"#);
    assert!(!success && shown.contains("standard output is a terminal"), "{shown:?}");
}

fn objects() {
    let scratch = scratch();
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/separated/base-lib-apps");
    let command = format!(r#""$PLYWOOD" load --set {} example.test/tiny/app1:1 --to oci:out"#, set.display());
    let shown = success(scratch.path(), &command);
    for text in [
        "layer (5b34a84556c4)",
        "config (dfa7b1cf3847)",
        "manifest (89c93b7aba93)",
        "complete",
        "saved",
        "|+++",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(shown.trim_end().ends_with("Loaded image: example.test/tiny/app1:1"), "{shown}");
    assert!(!shown.contains('{'), "no JSON for people: {shown}");
}
