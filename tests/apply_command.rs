//! `plywood apply` as a user runs it: files, pipes, refusals, and the two forms of its result.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use flate2::{Compression, write::GzEncoder};
use plywood::digest::Digest;

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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

#[test]
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
            assert_eq!(result["digest"], Digest::sha256(&tar).to_string());
            assert_eq!(result["size_bytes"], tar.len());
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

#[test]
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
            assert_eq!(result["digest"], Digest::sha256(&image).to_string());
            assert!(fs::read(&out).unwrap() == image);
        }
    }
}

#[test]
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
            (&["--media-type", "application/x-unknown"], &blob, "apply.media-type"),
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

#[test]
fn block_size_and_inline_limit_change_the_image_and_the_summary_is_for_people() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.erofs");
    let size = |more: &[&str]| {
        let done = plywood(&[&["-", "-o", text(&out)], more].concat(), &archive());
        assert!(done.status.success(), "{done:?}");
        let summary = String::from_utf8(done.stdout).unwrap();
        assert!(summary.contains("diffID  sha256:") && summary.contains("nodes   5\n"), "{summary}");
        assert!(done.stderr.is_empty(), "no bar without a terminal");
        fs::metadata(&out).unwrap().len()
    };
    assert!(size(&["--block-size", "512"]) < size(&["--inline-limit", "0", "--sync"]));
    assert_eq!(plywood(&["-", "-o", text(&out), "--block-size", "5"], &[]).status.code(), Some(2));
}
