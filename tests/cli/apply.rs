//! `plywood apply` as a user runs it: files, pipes, refusals, and the two forms of its result.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use plywood::digest::Digest;
use testkit::{Suite, archive::gzip};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_file_and_a_pipe_give_the_same_image_and_the_same_digests,
        an_image_is_recognised_by_its_bytes_and_published_as_it_is,
        a_refused_layer_leaves_the_old_file_and_says_why,
        a_layer_is_not_replaced_by_its_image,
        block_size_and_inline_limit_change_the_image_and_the_summary_is_for_people,
        an_empty_input_is_a_failed_download_unless_its_digest_is_asked_for,
        an_image_is_not_written_to_standard_output,
        an_archive_of_a_whole_image_is_no_layer,
        another_compression_is_named,
        a_failure_for_programs_is_json_with_kind_reason_and_message,
        an_unknown_media_type_is_wrong_usage,
        parents_say_what_directories_are_like_that_the_layer_does_not_list,
        a_layer_goes_through_the_processors_of_a_file,
        an_index_changes_no_byte_of_the_image_whatever_it_says,
        an_index_that_cannot_be_read_is_an_error,
        processors_that_fail_or_cannot_be_run_leave_no_image,
    ];
}

fn plywood(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plywood"))
        .arg("apply")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that refuses its arguments does not read.
    let _broken_pipe = child.stdin.take().expect("it was piped").write_all(input);
    child.wait_with_output().expect("the binary ends")
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, len) in [("etc/hostname", 9), ("lib/large", 700_000)] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(len);
        let data: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(i) >> 6).to_le_bytes()[0]).collect();
        builder.append_data(&mut header, name, &data[..]).expect("the header is good");
    }
    builder.into_inner().expect("memory takes everything")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

fn a_file_and_a_pipe_give_the_same_image_and_the_same_digests() {
    let scratch = tempfile::tempdir().unwrap();
    let [layer, out] = ["layer", "out.erofs"].map(|name| scratch.path().join(name));
    let tar = archive();
    for blob in [tar.clone(), gzip(&tar), zstd::bulk::compress(&tar, 1).unwrap()] {
        fs::write(&layer, &blob).unwrap();
        let mut images = Vec::new();
        for (source, input) in [(text(&layer), &[][..]), ("-", &blob)] {
            let done = plywood(&[source, "-o", text(&out), "--json"], input);
            assert!(done.status.success(), "{done:?}");
            let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(result["media_type"], "application/vnd.oci.image.layer.v1.tar");
            assert_eq!(result["diff_id"], Digest::sha256(&tar).to_string());
            assert_eq!(result["uncompressed_bytes"], tar.len());
            assert_eq!(result["blob_digest"], Digest::sha256(&blob).to_string());
            assert_eq!(result["blob_bytes"], blob.len());
            assert_eq!(result["nodes"], 5);
            assert!(result["seconds"]["total"].as_f64().unwrap() > 0.0);
            images.push(fs::read(&out).unwrap());
            assert_eq!(result["image_bytes"], images[0].len());
        }
        assert!(images[0] == images[1]);
    }
}

fn an_image_is_recognised_by_its_bytes_and_published_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let [first, layer, out] = ["first.erofs", "layer", "out.erofs"].map(|name| scratch.path().join(name));
    assert!(plywood(&["-", "-o", text(&first)], &archive()).status.success());
    let image = fs::read(&first).unwrap();
    for blob in [image.clone(), zstd::bulk::compress(&image, 1).unwrap()] {
        fs::write(&layer, &blob).unwrap();
        for (source, input) in [(text(&layer), &[][..]), ("-", &blob)] {
            let done = plywood(&[source, "-o", text(&out), "--json"], input);
            assert!(done.status.success(), "{done:?}");
            let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(result["media_type"], "application/vnd.erofs.layer.v1");
            assert_eq!(result["diff_id"], Digest::sha256(&image).to_string());
            assert!(fs::read(&out).unwrap() == image);
        }
    }
}

fn a_refused_layer_leaves_the_old_file_and_says_why() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.erofs");
    let blob = gzip(&archive());
    let other = Digest::sha256(b"other").to_string();
    for existing in [None, Some(b"before")] {
        if let Some(bytes) = existing {
            fs::write(&out, bytes).unwrap();
        }
        for (more, input, reason) in [
            (&[][..], &blob[..blob.len() - 1], "codec.gzip.truncated"),
            (&["--digest", &other], &blob, "blob.digest"),
            (&["--media-type", "application/vnd.erofs.layer.v1"], &blob, "erofs.superblock.magic"),
        ] {
            let done = plywood(&[&["-", "-o", text(&out)], more].concat(), input);
            assert_eq!(done.status.code(), Some(1), "{done:?}");
            let message = String::from_utf8(done.stderr).unwrap();
            assert!(message.trim_end().ends_with(&format!("[{reason}]")), "{message}");
            assert_eq!(fs::read(&out).ok().as_deref(), existing.map(|bytes| &bytes[..]));
        }
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

fn a_layer_is_not_replaced_by_its_image() {
    let scratch = tempfile::tempdir().unwrap();
    let layer = scratch.path().join("layer.tar.gz");
    fs::write(&layer, gzip(&archive())).unwrap();
    let done = plywood(&[text(&layer), "-o", text(&layer)], b"");
    let message = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.code() == Some(1) && message.ends_with("[cli.same-file]\n"), "{message}");
    assert!(fs::read(&layer).unwrap() == gzip(&archive()));
}

fn block_size_and_inline_limit_change_the_image_and_the_summary_is_for_people() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.erofs");
    let size = |more: &[&str]| {
        let done = plywood(&[&["-", "-o", text(&out)], more].concat(), &archive());
        assert!(done.status.success(), "{done:?}");
        let summary = String::from_utf8(done.stdout).unwrap();
        assert!(
            summary.contains("diffID  sha256:")
                && summary.contains("nodes   5; implied directories: 2, 0 of them like those below\n"),
            "{summary}"
        );
        assert!(done.stderr.is_empty(), "no bar without a terminal");
        fs::metadata(&out).unwrap().len()
    };
    assert!(size(&["--block-size", "512"]) < size(&["--inline-limit", "0", "--sync"]));
    assert_eq!(plywood(&["-", "-o", text(&out), "--block-size", "5"], &[]).status.code(), Some(2));
}

/// Runs `plywood apply - -o OUT` with more arguments; its exit code and what it said, and that nothing was left.
fn refused(more: &[&str], input: &[u8]) -> (Option<i32>, String) {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let out = scratch.path().join("out.erofs");
    let done = plywood(&[&["-", "-o", text(&out)], more].concat(), input);
    assert_eq!(fs::read_dir(scratch.path()).expect("it is readable").count(), 0, "{done:?}");
    (done.status.code(), String::from_utf8(done.stderr).expect("messages are UTF-8"))
}

fn an_empty_input_is_a_failed_download_unless_its_digest_is_asked_for() {
    let empty_frame = zstd::bulk::compress(&[], 1).unwrap();
    for input in [Vec::new(), gzip(&[]), empty_frame] {
        for more in [&[][..], &["--media-type", "application/vnd.oci.image.layer.v1.tar+gzip"]] {
            let (code, message) = refused(more, &input);
            assert_eq!(code, Some(1), "{message}");
            assert!(message.trim_end().ends_with("[apply.empty]"), "{message}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out.erofs");
        let digest = Digest::sha256(&input).to_string();
        assert!(plywood(&["-", "-o", text(&out), "--digest", &digest], &input).status.success());
        assert!(out.exists());
    }
    // A gzip member that is cut short is not an empty one.
    let (_, message) = refused(&[], &gzip(&[])[..12]);
    assert!(message.contains("[codec.gzip.truncated]"), "{message}");
}

fn an_image_is_not_written_to_standard_output() {
    let scratch = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_plywood"))
        .args(["apply", "layer", "-o", "-"])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "no file called \"-\"");
    assert!(String::from_utf8(done.stderr).unwrap().contains("-o -: an image cannot be written to a pipe"));
}

fn an_archive_of_a_whole_image_is_no_layer() {
    let digest = Digest::sha256(b"x");
    let hex = digest.hex();
    let packed = |names: &[&str]| {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_ustar();
            header.set_size(2);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &b"{}"[..]).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let blob = format!("blobs/sha256/{hex}");
    let (config, layer) = (format!("{hex}.json"), format!("{hex}/layer.tar"));
    for names in [
        &["oci-layout", "index.json"][..],
        &["./oci-layout"],
        &[&blob, "index.json", "manifest.json"],
        &["repositories", &layer],
        &[&config],
    ] {
        let archive = packed(names);
        for input in [archive.clone(), gzip(&archive)] {
            let (code, message) = refused(&[], &input);
            assert!(code == Some(1) && message.contains("[apply.image-archive]"), "{names:?}: {message}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out.erofs");
        let meant = ["--media-type", "application/vnd.oci.image.layer.v1.tar"];
        assert!(plywood(&[&["-", "-o", text(&out)], &meant[..]].concat(), &archive).status.success());
    }
    for names in [&["index.json", "manifest.json", "blobs/x"][..], &["srv/oci-layout"], &["app.json"]] {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out.erofs");
        assert!(plywood(&["-", "-o", text(&out)], &packed(names)).status.success(), "{names:?}");
    }
}

fn another_compression_is_named() {
    for (input, name) in [
        (
            &b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46\0\0\0\0\x1c\xdfDJ\x1f\xb6\xf3\x7d\x01\0\0\0\0\x04YZ"[..],
            "an xz stream",
        ),
        (b"BZh91AY&SY", "a bzip2 stream"),
        (b"\x04\x22\x4d\x18", "an lz4 stream"),
        (b"PK\x03\x04", "a zip archive"),
    ] {
        for input in [input.to_vec(), [input, &[7; 2000]].concat()] {
            let (code, message) = refused(&[], &input);
            let want = format!(
                "this is no tar archive but {name}; layers are read as tar, gzip or zstd [tar.foreign]"
            );
            assert!(code == Some(1) && message.contains(&want), "{message}");
        }
    }
}

fn a_failure_for_programs_is_json_with_kind_reason_and_message() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.erofs");
    let done = plywood(&["-", "-o", text(&out), "--json"], b"no archive");
    assert_eq!(done.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(value["error"]["kind"], "invalid_argument");
    assert_eq!(value["error"]["reason"], "tar.truncated.header");
    let message = value["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("apply - to "), "{message}");
    assert_eq!(
        String::from_utf8(done.stderr).unwrap(),
        format!("plywood: {message} [tar.truncated.header]\n")
    );
}

fn an_unknown_media_type_is_wrong_usage() {
    let (code, message) = refused(&["--media-type", "application/x-unknown"], &archive());
    assert!(code == Some(2) && message.contains("not the media type of a layer"), "{message}");
}

fn parents_say_what_directories_are_like_that_the_layer_does_not_list() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let packed = |directories: &[(&str, u32, u64)], file: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind, mode, uid| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_mtime(1_700_000_000);
            header.set_size(0);
            builder.append_data(&mut header, name, &b""[..]).unwrap();
        };
        for (name, mode, uid) in directories {
            add(name, tar::EntryType::Directory, *mode, *uid);
        }
        add(file, tar::EntryType::Regular, 0o644, 0);
        builder.into_inner().unwrap()
    };
    let run = |layer: &[u8], out: &str, more: &[&str]| {
        let done = plywood(&[&["-", "--json", "-o", text(&at(out))], more].concat(), layer);
        assert!(done.status.success(), "{done:?}");
        let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        ["implied_directories", "inherited_directories"].map(|key| result[key].as_u64().unwrap())
    };
    let lower = packed(&[("tmp", 0o1777, 3), ("etc", 0o750, 3), ("etc/own", 0o700, 3)], "etc/old");
    let upper = packed(&[("etc", 0o755, 9)], "etc/new");
    let layer = packed(&[], "etc/own/f");
    assert_eq!(run(&lower, "lower", &[]), [0, 0]);
    assert_eq!(run(&upper, "upper", &[]), [0, 0]);
    let [newest, oldest] = ["upper", "lower"].map(at);
    let parents = ["--parent", text(&newest), "--parent", text(&oldest)];
    let described = |path: &str| {
        let image = at("out");
        let arguments = ["dump", "--path", path, text(&image)];
        let dump = Command::new(env!("CARGO_BIN_EXE_plywood")).args(arguments).output().unwrap();
        String::from_utf8(dump.stdout).unwrap()
    };
    // The newest first: `etc` is like the upper one's, `etc/own` is only in the lower one.
    assert_eq!(run(&layer, "out", &parents), [2, 2]);
    for (path, want) in [("/etc", " 0755 9:0 "), ("/etc/own", " 0700 3:0 ")] {
        let found = described(path);
        assert!(found.contains(want) && found.contains(" mtime=1700000000."), "{found}");
    }
    // Without, and where what is below has no such directory.
    assert_eq!(run(&layer, "plain", &[]), [2, 0]);
    let plain = fs::read(at("plain")).unwrap();
    assert_eq!(run(&packed(&[], "new/f"), "new", &parents), [1, 0]);
    // A directory can be a parent as well, and nothing changes for a layer that lists its directories.
    fs::create_dir_all(at("tree/etc")).unwrap();
    assert_eq!(run(&layer, "out", &["--parent", text(&at("tree"))]), [2, 1]);
    assert_eq!(run(&upper, "again", &parents), [0, 0]);
    assert_eq!(fs::read(at("again")).unwrap(), fs::read(at("upper")).unwrap());

    // A parent that cannot be read is an error.
    for (parent, reason) in [("absent", "diff.input"), ("none", "diff.layer"), ("broken", "erofs.")] {
        fs::write(at("none"), "no image").unwrap();
        let mut broken = fs::read(at("lower")).unwrap();
        broken[1160..].fill(0xee);
        fs::write(at("broken"), broken).unwrap();
        fs::write(at("kept"), &plain).unwrap();
        let done = plywood(&["-", "-o", text(&at("kept")), "--parent", text(&at(parent))], &layer);
        let message = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && message.contains(reason), "{parent}: {message}");
        assert_eq!(fs::read(at("kept")).unwrap(), plain, "{parent}");
    }
}

/// The table is the one of containerd's configuration, among others that mean nothing to Plywood.
fn a_layer_goes_through_the_processors_of_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    let [layer, out, table] = ["layer", "out.erofs", "config.toml"].map(|name| scratch.path().join(name));
    let program = env!("CARGO_BIN_EXE_plywood");
    let tables = format!(
        "version = 3\n[plugins.\"x.y\"]\nkey = 1\n[stream_processors.cat]\naccepts = [\"x/y\"]\n\
         returns = \"application/vnd.oci.image.layer.v1.tar+lz4\"\npath = \"/bin/cat\"\n[stream_processors.plywood]\n\
         accepts = [\"application/vnd.oci.image.layer.v1.tar+lz4\"]\n\
         returns = \"application/vnd.oci.image.layer.v1.tar\"\npath = {program:?}\nargs = [\"stream\"]\n"
    );
    fs::write(&table, tables).unwrap();
    let tar = archive();
    // One frame with stored blocks of at most 64 KiB.
    let mut blob = vec![0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
    for block in tar.chunks(1 << 16) {
        blob.extend((u32::try_from(block.len()).unwrap() | 1 << 31).to_le_bytes());
        blob.extend(block);
    }
    blob.extend([0; 4]);
    fs::write(&layer, &blob).unwrap();
    let arguments =
        [text(&layer), "-o", text(&out), "--media-type", "x/y", "--processors", text(&table), "--json"];
    let done = plywood(&arguments, &[]);
    assert!(done.status.success(), "{done:?}");
    let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(result["diff_id"], Digest::sha256(&tar).to_string());
    assert_eq!(result["blob_digest"], Digest::sha256(&blob).to_string());
    assert!(out.exists());
}

fn ztoc(name: &str) -> String {
    format!("{}/tests/fixtures/ztoc/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn an_index_changes_no_byte_of_the_image_whatever_it_says() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.erofs");
    let apply = |index: Option<&str>| {
        let index = index.map(ztoc);
        let mut arguments =
            vec![ztoc("layer.tar.gz"), "-o".to_owned(), text(&out).to_owned(), "--json".to_owned()];
        arguments.extend(index.into_iter().flat_map(|index| ["--ztoc".to_owned(), index]));
        let done = plywood(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        assert!(done.status.success(), "{done:?}");
        let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(result["decoded_ahead"]["indexed"], 0, "it is too small for helpers");
        (fs::read(&out).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (want, _) = apply(None);
    assert_eq!(apply(Some("layer.ztoc")), (want.clone(), String::new()));
    for other in ["twice.ztoc", "plain.ztoc"] {
        let (image, warning) = apply(Some(other));
        assert!(image == want, "{other}");
        assert!(
            warning.starts_with("plywood: warning: ") && warning.ends_with(" [ztoc.blob-size]\n"),
            "{warning}"
        );
    }
}

fn an_index_that_cannot_be_read_is_an_error() {
    let layer = ztoc("layer.tar.gz");
    for (index, reason) in [(layer.as_str(), "ztoc."), ("/nonexistent", "image.open")] {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out.erofs");
        let done = plywood(&[&layer, "-o", text(&out), "--ztoc", index], &[]);
        let error = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{error}");
        assert!(
            error.contains(&format!("zTOC {index}: ")) && error.contains(&format!("[{reason}")),
            "{error}"
        );
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left behind");
    }
}

fn processors_that_fail_or_cannot_be_run_leave_no_image() {
    let scratch = tempfile::tempdir().unwrap();
    let [out, table] = ["out.erofs", "config.toml"].map(|name| scratch.path().join(name));
    let returns = "application/vnd.oci.image.layer.v1.tar";
    let entry = |path: &str, accepts: &str| {
        format!("[stream_processors.p]\naccepts = [{accepts:?}]\nreturns = {returns:?}\npath = {path:?}\n")
    };
    for (text_of_table, code, part) in [
        (entry("/bin/false", "x/y"), 1, "processor p exited with status 1 [processor.failed]"),
        (entry("/bin/true", "x/y"), 1, "processor p wrote nothing [processor.empty]"),
        (entry("/nonexistent", "x/y"), 1, "[broker.start]"),
        (entry("cat", "x/y"), 1, "[config.value]"),
        (entry("/bin/cat", returns), 1, "goes round in a circle"),
        (entry("/bin/cat", "x/z"), 2, "not the media type of a layer that can be applied"),
        (String::new(), 1, "[config.parse]"),
    ] {
        fs::write(&table, &text_of_table).unwrap();
        let arguments = ["-", "-o", text(&out), "--media-type", "x/y", "--processors", text(&table)];
        let done = plywood(&arguments, &archive());
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(code) && said.contains(part), "{part}: {said}");
        assert!(!out.exists(), "{part}");
    }
}
