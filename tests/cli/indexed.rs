//! eStargz and zstd:chunked on the command line: applied as the archives that they are, checked, dumped, and written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_layer_is_applied_whatever_its_table_says,
        every_chunk_of_a_layer_is_checked,
        a_damaged_chunk_is_an_error_with_layer_and_path,
        a_flipped_bit_in_any_file_of_a_layer_is_reported_with_layer_and_path,
        every_damaged_layer_is_judged_as_it_should_be,
        a_table_in_another_file_is_checked_with_its_layer,
        a_dump_shows_entries_and_chunks,
        a_difference_is_written_as_an_indexed_layer_and_read_back,
        a_chunked_layer_of_the_containers_tools_is_the_archive_that_a_plain_one_is,
        what_a_table_cannot_spell_is_refused_and_leaves_no_file,
    ];
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz").join(name)
}

fn plywood(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.args(arguments).current_dir(dir).env_remove("SOURCE_DATE_EPOCH").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn layers() -> Vec<String> {
    let mut names = Vec::new();
    for part in ["estargz", "zstdchunked"] {
        for entry in fs::read_dir(fixture(part)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".json") {
                names.push(format!("{part}/{name}"));
            }
        }
    }
    names
}

fn a_layer_is_applied_whatever_its_table_says() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let apply = |layer: &Path| plywood(dir, &["apply", layer.to_str().unwrap(), "-o", "out", "--json"]);
    for name in layers() {
        let want: Value =
            serde_json::from_slice(&fs::read(fixture(&format!("{name}.json"))).unwrap()).unwrap();
        assert_eq!(json(&apply(&fixture(&name)))["diff_id"], want["diffID"], "{name}");
    }
    let cases: Value = serde_json::from_slice(&fs::read(fixture("bad/expect.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let file = fixture("bad").join(case["file"].as_str().unwrap());
        let output = apply(&file);
        assert_eq!(output.status.success(), case["expect"] != "error", "{}: {output:?}", file.display());
    }
}

fn every_chunk_of_a_layer_is_checked() {
    let layers = layers();
    let paths: Vec<_> = layers.iter().map(|name| fixture(name)).collect();
    let arguments: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    let output = plywood(Path::new("/"), &[&["check"], &arguments[..]].concat());
    assert!(output.status.success(), "{output:?}");
    for (name, path) in layers.iter().zip(&paths) {
        let form = match name {
            name if name.ends_with(".esgz") => "eStargz",
            name if name.contains("stargz.zc") => "zstd:chunked of the stargz tools",
            _ => "zstd:chunked of the containers tools",
        };
        let line = format!("{}: sound, {form}, ", path.display());
        assert!(text(&output.stdout).contains(&line), "{name}: {output:?}");
    }
    let found = json(&plywood(Path::new("/"), &["check", "--json", arguments[0]]));
    assert!(found[0]["indexed"]["chunks_verified"].as_u64() > Some(0), "{found}");
    let found = json(&plywood(Path::new("/"), &["check", "--json", "--superblock-only", arguments[0]]));
    assert!(found[0]["indexed"]["chunks_verified"].is_null(), "the table alone: {found}");
}

fn a_damaged_chunk_is_an_error_with_layer_and_path() {
    let output = plywood(&fixture("bad"), &["check", "chunk-digest-wrong.esgz"]);
    assert_eq!(output.status.code(), Some(1));
    let out = text(&output.stdout);
    assert!(out.starts_with("chunk-digest-wrong.esgz: refused: "), "{out}");
    assert!(out.contains("[stargz.chunk.digest]") && out.contains(" at byte 0 of the file"), "{out}");
    for (name, reason) in [
        ("toc-version-2.esgz", "stargz.toc.version"),
        ("hardlink-loop.esgz", "stargz.entry.link"),
        ("offset-beyond-end.gz", "stargz.toc.place"),
    ] {
        let output = plywood(&fixture("bad"), &["check", name]);
        assert!(text(&output.stdout).contains(&format!("[{reason}]")), "{output:?}");
    }
}

fn a_flipped_bit_in_any_file_of_a_layer_is_reported_with_layer_and_path() {
    let scratch = tempfile::tempdir().unwrap();
    for layer in ["estargz/plain.esgz", "zstdchunked/plain-stargz.zc", "zstdchunked/plain-containers.zc"] {
        let good = fs::read(fixture(layer)).unwrap();
        let dump = plywood(&fixture(""), &["dump", "--json", "--tree", layer]);
        let mut chunks = Vec::new();
        for line in text(&dump.stdout).lines().skip(1) {
            let line: Value = serde_json::from_str(line).unwrap();
            for chunk in line["chunks"].as_array().into_iter().flatten() {
                let offset = usize::try_from(chunk["blob_offset"].as_u64().unwrap()).unwrap();
                chunks.push((line["path"].as_str().unwrap().trim_start_matches('/').to_owned(), offset));
            }
        }
        assert!(!chunks.is_empty(), "{layer}: {dump:?}");
        for (path, offset) in chunks {
            let mut bad = good.clone();
            // Behind the header of a member; that of a frame is shorter.
            bad[offset + if layer.ends_with(".esgz") { 13 } else { 9 }] ^= 0x10;
            fs::write(scratch.path().join("damaged"), bad).unwrap();
            let output = plywood(scratch.path(), &["check", "damaged"]);
            let out = text(&output.stdout);
            assert_eq!(output.status.code(), Some(1), "{layer}: {path}: {output:?}");
            assert!(
                out.starts_with("damaged: refused: ") && out.contains("[stargz.chunk."),
                "{layer}: {out}"
            );
            assert!(out.contains(&path), "{layer}: {path}: {out}");
        }
    }
}

fn every_damaged_layer_is_judged_as_it_should_be() {
    let cases: Value = serde_json::from_slice(&fs::read(fixture("bad/expect.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        let output = plywood(&fixture("bad"), &["check", name]);
        let out = text(&output.stdout);
        let is_sound = match case["expect"].as_str().unwrap() {
            "index-ok" => true,
            // Nothing says that it should be one, or that there was more of it.
            "not-estargz" | "error" => continue,
            _ => false,
        };
        assert_eq!(output.status.success(), is_sound, "{name}: {output:?}");
        if !is_sound {
            assert!(out.starts_with(&format!("{name}: refused: ")) && out.contains("[stargz."), "{out}");
        }
    }
}

fn a_table_in_another_file_is_checked_with_its_layer() {
    let dir = fixture("other");
    let check = |arguments: &[&str]| plywood(&dir, &[&["check"], arguments].concat());
    let output = check(&["plain-external.esgz"]);
    assert!(text(&output.stdout).contains("whose table was not given"), "{output:?}");
    let output = check(&["--toc", "plain-external.toc.tar.gz", "plain-external.esgz"]);
    assert!(output.status.success() && text(&output.stdout).contains(" chunks, "), "{output:?}");
    let output = check(&["--toc", "plain.tar.gz", "plain-external.esgz"]);
    assert!(text(&output.stdout).contains("[stargz.toc.place]"), "{output:?}");
    let output = check(&["--toc", "plain-external.toc.tar.gz", "plain.tar.gz"]);
    assert!(!output.status.success(), "{output:?}");
}

fn a_dump_shows_entries_and_chunks() {
    let dir = fixture("estargz");
    let output = plywood(&dir, &["dump", "--tree", "l1.esgz"]);
    let out = text(&output.stdout);
    assert!(out.starts_with("stargz.form: eStargz\n"), "{output:?}");
    for line in [
        "\n/usr/bin/app file 0755 0:0 1600000000.000000000 20000\n  20000 at 0: blob 213 + 0, sha256:11723eee",
        "\n/usr/bin/app-link hardlink ",
        " = /usr/bin/app\n",
        "\n/node/hi char-device 0666 ",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    let output = plywood(&dir, &["dump", "--json", "--tree", "l1.esgz"]);
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["form"], "eStargz");
    let large = lines.iter().find(|line| line["path"] == "/data/large").unwrap();
    assert_eq!(
        (large["size_bytes"].as_u64(), large["chunks"].as_array().unwrap().len()),
        (Some(6_291_533), 2)
    );
}

fn a_difference_is_written_as_an_indexed_layer_and_read_back() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/small"), "text").unwrap();
    fs::write(tree.join("a/empty"), "").unwrap();
    let noise: Vec<u8> = (0..2_500_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    fs::write(tree.join("large"), &noise).unwrap();
    fs::hard_link(tree.join("large"), tree.join("again")).unwrap();
    // A tree that was such a layer before.
    fs::write(tree.join("stargz.index.json"), "{}").unwrap();
    fs::write(tree.join(".no.prefetch.landmark"), "\x0f").unwrap();
    for (kind, ending, media_type) in [
        ("estargz", "esgz", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("zstdchunked", "zc", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ] {
        let layer = format!("layer.{ending}");
        let arguments = ["diff", "--user-xattr", "none", "tree", "-t", kind, "-o", &layer, "--json"];
        let report = json(&plywood(dir, &arguments));
        assert_eq!(report["media_type"], media_type);
        let annotations = &report["annotations"];
        assert_eq!(
            annotations["io.containers.estargz.uncompressed-size"],
            report["uncompressed_bytes"].to_string()
        );
        let bytes = fs::read(dir.join(&layer)).unwrap();
        for threads in ["0", "5"] {
            let again = plywood(dir, &[&arguments[..], &["--threads", threads]].concat());
            assert!(again.status.success() && fs::read(dir.join(&layer)).unwrap() == bytes, "{again:?}");
        }

        let output = plywood(dir, &["check", "--json", &layer]);
        assert_eq!(json(&output)[0]["indexed"]["chunks_verified"], 1 + 1 + 3, "{output:?}");
        let toc = plywood(dir, &["dump", "--json", "--tree", &layer]);
        let names: Vec<_> = text(&toc.stdout)
            .lines()
            .skip(1)
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names.iter().filter(|name| *name == "/.no.prefetch.landmark").count(), 1, "{names:?}");
        assert!(!names.contains(&"/stargz.index.json".to_owned()), "{names:?}");

        let applied = json(&plywood(dir, &["apply", &layer, "-o", "image", "--json"]));
        assert_eq!(applied["diff_id"], report["diff_id"]);
        assert_eq!(plywood(dir, &["check", "image"]).status.code(), Some(0));
        // Other decoders read all of it.
        let archive = match ending {
            "zc" => zstd::decode_all(&bytes[..]).unwrap(),
            _ => {
                let mut archive = Vec::new();
                let mut decoder = flate2::read::MultiGzDecoder::new(&bytes[..]);
                std::io::Read::read_to_end(&mut decoder, &mut archive).unwrap();
                archive
            }
        };
        let mut found = None;
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            if entry.header().entry_type().is_file() && (name == "large" || name == "again") {
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
                found = Some(data);
            }
        }
        assert!(found.as_ref() == Some(&noise));
    }
}

fn a_chunked_layer_of_the_containers_tools_is_the_archive_that_a_plain_one_is() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir_all(dir.join("nothing")).unwrap();
    fs::write(tree.join("a/b/small"), "text").unwrap();
    fs::write(tree.join("a/empty"), "").unwrap();
    let noise: Vec<u8> = (0..1_500_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    fs::write(tree.join("large"), &noise).unwrap();
    fs::hard_link(tree.join("large"), tree.join("again")).unwrap();
    fs::File::create(tree.join("hole")).unwrap().set_len(9 << 20).unwrap();
    // Names of the other forms mean nothing to this one.
    fs::write(tree.join("stargz.index.json"), "{}").unwrap();
    for side in ["tree", "nothing"] {
        let diff = |kind: &str, layer: &str, more: &[&str]| {
            let arguments = ["diff", "--user-xattr", "none", side, "-t", kind, "-o", layer, "--json"];
            json(&plywood(dir, &[&arguments, more].concat()))
        };
        let plain = diff("tar", "layer.tar", &[]);
        let report = diff("zstd:chunked", "layer", &[]);
        assert_eq!(report["media_type"], "application/vnd.oci.image.layer.v1.tar+zstd");
        assert_eq!(report["diff_id"], plain["diff_id"], "{side}");
        let bytes = fs::read(dir.join("layer")).unwrap();
        assert!(zstd::decode_all(&bytes[..]).unwrap() == fs::read(dir.join("layer.tar")).unwrap(), "{side}");
        for threads in ["0", "5"] {
            let again = diff("zstd:chunked", "layer", &["--threads", threads]);
            assert_eq!(again["annotations"], report["annotations"], "{threads} threads");
            assert!(fs::read(dir.join("layer")).unwrap() == bytes, "{side}, {threads} threads");
        }
        let found = json(&plywood(dir, &["check", "--json", "layer"]));
        assert_eq!(found[0]["indexed"]["form"], "zstd:chunked of the containers tools", "{found}");
        assert_eq!(found[0]["indexed"]["entries"], report["entries"], "{found}");
        assert_eq!(found[0]["indexed"]["tar_split_verified"], true, "{found}");
        let dump = plywood(dir, &["dump", "--json", "--tree", "layer"]);
        assert!(!text(&dump.stdout).contains("\"hidden\":true"), "{dump:?}");
        let applied = json(&plywood(dir, &["apply", "layer", "-o", "image", "--json"]));
        assert_eq!(applied["diff_id"], report["diff_id"], "{side}");
    }
}

fn what_a_table_cannot_spell_is_refused_and_leaves_no_file() {
    use std::os::unix::ffi::OsStrExt as _;
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::create_dir(dir.join("tree")).unwrap();
    fs::write(dir.join("tree").join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "").unwrap();
    let output = plywood(dir, &["diff", "--user-xattr", "none", "tree", "-o", "layer.esgz", "--json"]);
    assert!(!output.status.success() && text(&output.stdout).contains("stargz.write.name"), "{output:?}");
    assert!(!dir.join("layer.esgz").exists());
    let output = plywood(dir, &["diff", "--user-xattr", "none", "tree", "-o", "layer.tar.gz"]);
    assert!(output.status.success(), "archives can: {output:?}");
    let output =
        plywood(dir, &["diff", "--user-xattr", "none", "tree", "-t", "zstd:chunked", "-o", "l", "--json"]);
    assert!(!output.status.success() && text(&output.stdout).contains("stargz.write.name"), "{output:?}");

    fs::remove_dir_all(dir.join("tree")).unwrap();
    fs::create_dir(dir.join("tree")).unwrap();
    let late = fs::File::create(dir.join("tree/late")).unwrap();
    // Not every file system has such times.
    let seconds = std::time::Duration::from_secs(300_000_000_000);
    late.set_modified(std::time::SystemTime::UNIX_EPOCH + seconds).unwrap();
    let has_it = late.metadata().unwrap().modified().unwrap() == std::time::SystemTime::UNIX_EPOCH + seconds;
    for kind in ["estargz", "zstdchunked", "zstd:chunked"] {
        let arguments = ["diff", "--user-xattr", "none", "tree", "-t", kind, "-o", "layer", "--json"];
        let output = plywood(dir, &arguments);
        let is_refused = text(&output.stdout).contains("stargz.write.time");
        assert_eq!(is_refused, has_it, "{kind}: {output:?}");
    }
}
