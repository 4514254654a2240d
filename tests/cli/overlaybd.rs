//! Layers of overlaybd devices on the command line: ZFiles, what `check` and `dump` say of a file, and the tools of
//! others by their names.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_file_comes_out_of_a_zfile_as_it_went_in,
        a_zfile_in_a_tar_archive_is_read_by_tar_and_by_us,
        nothing_is_written_when_a_zfile_cannot_be,
        the_upstream_tool_by_its_name_takes_its_arguments_and_fails_with_255,
        every_file_of_a_device_is_checked_down_to_its_blocks,
        writable_layers_are_checked_with_their_index,
        the_metadata_of_an_archive_and_a_published_layer_are_known_by_their_entries,
        a_dump_shows_what_is_around_what,
        a_dump_for_machines_has_a_key_for_each_part,
    ];
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd").join(name)
}

fn run(dir: &Path, program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

fn plywood(dir: &Path, arguments: &[&str]) -> Output {
    run(dir, Path::new(env!("CARGO_BIN_EXE_plywood")), arguments)
}

fn zfile(dir: &Path, arguments: &[&str]) -> Output {
    plywood(dir, &[&["overlaybd", "zfile"], arguments].concat())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn a_file_comes_out_of_a_zfile_as_it_went_in() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let payload = fs::read(fixture("zfile/payload.bin")).unwrap();
    fs::write(dir.join("in"), payload.repeat(40)).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    for (source, options) in [
        ("in", &[][..]),
        ("in", &["--algorithm", "zstd"]),
        ("in", &["--bs", "32", "--verify"]),
        ("in", &["--algorithm", "zstd", "--bs", "16", "-t"]),
        ("empty", &["-t"]),
    ] {
        let made = zfile(dir, &[options, &[source, "z"]].concat());
        assert!(made.status.success(), "{made:?}");
        let checked = zfile(dir, &["--verify", "z"]);
        assert!(text(&checked.stdout).starts_with("z: sound, "), "{checked:?}");
        let extracted = zfile(dir, &["-x", "z", "out"]);
        assert!(extracted.status.success(), "{extracted:?}");
        assert!(fs::read(dir.join("out")).unwrap() == fs::read(dir.join(source)).unwrap(), "{options:?}");
        fs::remove_file(dir.join("z")).unwrap();
        fs::remove_file(dir.join("out")).unwrap();
    }
    // What the upstream tool has compressed.
    for name in ["payload.lz4-4k.zfile", "payload.zstd-32k.zfile"] {
        let file = fixture("zfile").join(name);
        assert!(zfile(dir, &["-x", "-f", file.to_str().unwrap(), "out"]).status.success());
        assert!(fs::read(dir.join("out")).unwrap() == payload);
    }
}

fn a_zfile_in_a_tar_archive_is_read_by_tar_and_by_us() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let payload = fixture("zfile/payload.bin");
    let payload = payload.to_str().unwrap();
    assert!(zfile(dir, &[payload, "bare"]).status.success());
    assert!(zfile(dir, &["-t", payload, "wrapped.tar"]).status.success());
    let mut archive = tar::Archive::new(fs::File::open(dir.join("wrapped.tar")).unwrap());
    let mut entries = archive.entries().unwrap();
    let mut entry = entries.next().unwrap().unwrap();
    assert_eq!(
        (entry.path().unwrap().to_str(), entry.header().mode().unwrap()),
        (Some("overlaybd.commit"), 0o100_644)
    );
    let mut found = Vec::new();
    std::io::copy(&mut entry, &mut found).unwrap();
    assert!(found == fs::read(dir.join("bare")).unwrap());
    assert!(entries.next().is_none());
    assert!(zfile(dir, &["-x", "wrapped.tar", "out"]).status.success());
    assert!(fs::read(dir.join("out")).unwrap() == fs::read(payload).unwrap());
}

fn nothing_is_written_when_a_zfile_cannot_be() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    });
    fs::write(dir.join("noise"), noise.take(1 << 20).collect::<Vec<_>>()).unwrap();
    let mut damaged = fs::read(fixture("zfile/payload.lz4-4k.zfile")).unwrap();
    damaged[9000] ^= 1;
    fs::write(dir.join("damaged"), damaged).unwrap();
    fs::write(dir.join("old"), "old").unwrap();
    for (arguments, code, reason) in [
        (&["--bs", "64", "noise", "new"][..], 1, "[zfile.incompressible]"),
        (&["-x", "damaged", "new"], 1, "[zfile.block.checksum]"),
        (&["--verify", "damaged"], 1, "[zfile.block.checksum]"),
        (&["-x", "noise", "new"], 1, "[zfile.magic]"),
        (&["noise", "old"], 1, "[overlaybd.output.exists]"),
        (&["none", "new"], 1, "[overlaybd.input]"),
        (&["--bs", "5", "noise", "new"], 2, "not 4, 8, 16, 32 or 64"),
        (&["--algorithm", "lzo", "noise", "new"], 2, "not lz4 or zstd"),
        (&["noise"], 2, "<DST>"),
    ] {
        let output = zfile(dir, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains(reason), "{arguments:?}: {output:?}");
        assert_eq!(names(dir), ["damaged", "noise", "old"], "{arguments:?}");
    }
    assert_eq!(fs::read(dir.join("old")).unwrap(), b"old");
    assert!(zfile(dir, &["-f", "noise", "old"]).status.success());
}

fn the_upstream_tool_by_its_name_takes_its_arguments_and_fails_with_255() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let tool = dir.join("overlaybd-zfile");
    symlink(env!("CARGO_BIN_EXE_plywood"), &tool).unwrap();
    fs::write(dir.join("in"), "contents").unwrap();
    for arguments in [
        &["in", "a"][..],
        &["-t", "--algorithm", "zstd", "--bs", "8", "in", "b"],
        &["-x", "a", "c"],
        &["-t", "-x", "b", "d"],
        &["--verify", "b"],
        &["--help"],
    ] {
        let output = run(dir, &tool, arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    }
    for name in ["c", "d"] {
        assert_eq!(fs::read(dir.join(name)).unwrap(), b"contents");
    }
    let before = names(dir);
    for arguments in [
        &["in", "a"][..],
        &["--bs", "3", "in", "e"],
        &["--algorithm", "none", "in", "e"],
        &["-x", "in", "e"],
        &[],
        &["--none"],
    ] {
        let output = run(dir, &tool, arguments);
        assert_eq!(output.status.code(), Some(255), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty() && names(dir) == before, "{arguments:?}");
    }
}

fn every_file_of_a_device_is_checked_down_to_its_blocks() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let mut late = fs::read(fixture("tarwrap/obd-commit-t.tar")).unwrap();
    late[90_000] ^= 4;
    fs::write(dir.join("late"), &late).unwrap();
    fs::write(dir.join("cut"), &late[..90_000]).unwrap();
    for (name, want) in [
        ("zfile/payload.lz4-4k.zfile", "sound, zfile, 16170 bytes"),
        ("zfile/erofs.zstd-8k.zfile", "sound, zfile > lsmt, 61002 bytes"),
        ("zfile/merged-ops2-over2.zfile", "sound, zfile > lsmt, 3529 bytes"),
        ("tarwrap/obd-commit-t.tar", "sound, tar > zfile > lsmt, 109056 bytes"),
        ("tarwrap/plain-ustar.tar", "sound, tar > zfile > lsmt, 108032 bytes"),
        ("../gzindex/hex.gz_idx", "sound, gzip-index, "),
    ] {
        let output = plywood(dir, &["check", fixture(name).to_str().unwrap()]);
        assert!(output.status.success() && text(&output.stdout).contains(want), "{output:?}");
    }
    for (name, want) in [("late", "[zfile.block.checksum]"), ("cut", "[overlaybd.wrapper.truncated]")] {
        let output = plywood(dir, &["check", name]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stdout).contains(want), "{output:?}");
    }
    let output = plywood(dir, &["check", "--superblock-only", "late"]);
    assert!(output.status.success(), "only its records are read: {output:?}");
}

fn writable_layers_are_checked_with_their_index() {
    let dir = fixture("lsmt");
    let output = plywood(&dir, &["check", "--index", "ops2.rw.index", "ops2.rw.data"]);
    assert!(text(&output.stdout).starts_with("ops2.rw.data: sound, lsmt, "), "{output:?}");
    let output = plywood(&dir, &["dump", "--tree", "--index", "over2.rw.index", "over2.rw.data"]);
    let out = text(&output.stdout);
    assert!(out.starts_with("lsmt.form: writable\n") && out.contains("\ndata: "), "{output:?}");
    for (arguments, code) in [
        (&["check", "--index", "over2.rw.index", "ops2.rw.data"][..], 1),
        (&["check", "ops2.rw.data"], 1),
        (&["check", "--index", "ops2.rw.index", "ops2.rw.data", "ops2.commit"], 2),
    ] {
        let output = plywood(&dir, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
}

fn the_metadata_of_an_archive_and_a_published_layer_are_known_by_their_entries() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    // An archive of a file, and its metadata: the place of the data is in the field for the device.
    let mut header = tar::Header::new_ustar();
    header.set_path("a").unwrap();
    header.set_size(5);
    header.set_cksum();
    let mut metadata = header.as_bytes().to_vec();
    metadata[329..337].copy_from_slice(&512_u64.to_le_bytes());
    fs::write(dir.join("metadata"), &metadata).unwrap();
    fs::write(dir.join("archive"), [header.as_bytes().as_slice(), &[7; 512], &[0; 1024]].concat()).unwrap();
    let output = plywood(dir, &["check", "metadata"]);
    assert_eq!(text(&output.stdout), "metadata: sound, tar-metadata, 512 bytes\n", "{output:?}");
    let output = plywood(dir, &["dump", "metadata"]);
    assert!(text(&output.stdout).contains("tar-metadata.data-end: 517\n"), "{output:?}");
    let output = plywood(dir, &["check", "archive"]);
    assert!(text(&output.stdout).contains("but a tar archive"), "{output:?}");
    // A published layer, sound and with a member that is damaged.
    let bare = fixture("turbo/base.erofs.fs.meta.uncompressed");
    assert!(zfile(dir, &[bare.to_str().unwrap(), "layer"]).status.success());
    let layer = fs::read(dir.join("layer")).unwrap();
    let mut damaged = layer.clone();
    damaged[520] ^= 1;
    for (name, layer, want) in [
        ("sound", layer, "sound: sound, turbo, "),
        ("damaged", damaged, "erofs.fs.meta: block 0 at byte 512: "),
    ] {
        let mut builder =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, contents) in [("erofs.fs.meta", layer.as_slice()), (".turbo.ociv1", b"")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, contents).unwrap();
        }
        fs::write(dir.join(name), builder.into_inner().unwrap().finish().unwrap()).unwrap();
        let output = plywood(dir, &["check", name]);
        assert!(text(&output.stdout).contains(want), "{output:?}");
    }
}

fn a_dump_shows_what_is_around_what() {
    let output = plywood(&fixture("tarwrap"), &["dump", "--tree", "obd-commit-t.tar"]);
    let mut out = text(&output.stdout);
    for line in [
        "tar.payload: 106342 at 1536\n",
        "zfile.algorithm: lz4\n",
        "zfile.block-size: 4096\n",
        "lsmt.form: committed\n",
        "lsmt.virtual-size: 1073741824\n",
        "data: ",
    ] {
        (_, out) =
            out.split_once(line).unwrap_or_else(|| panic!("{line:?} is missing or too early; left: {out}"));
    }
    let output = plywood(&fixture("../gzindex"), &["dump", "--tree", "hex.gz_idx"]);
    assert!(text(&output.stdout).contains("gzip-index.points: 2\n"), "{output:?}");
    let output = plywood(&fixture("tarwrap"), &["dump", "--path", "/etc", "obd-commit-t.tar"]);
    assert_eq!(output.status.code(), Some(2));
}

fn a_dump_for_machines_has_a_key_for_each_part() {
    let output = plywood(&fixture("tarwrap"), &["dump", "--json", "--tree", "plain-ustar.tar"]);
    let mut lines = text(&output.stdout).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let parts = lines.next().unwrap();
    assert_eq!(parts["tar"]["payload"]["offset_bytes"], 512);
    assert_eq!(parts["zfile"]["block_bytes"], 4096);
    assert_eq!(parts["lsmt"]["virtual_bytes"], 1_u64 << 30);
    assert!(lines.next().unwrap()["len_bytes"].as_u64().is_some_and(|len| len > 0));
    let output = plywood(&fixture("tarwrap"), &["check", "--json", "plain-ustar.tar"]);
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&checked[0]["sound"], &checked[0]["parts"]["lsmt"]["form"]),
        (&true.into(), &"committed".into())
    );
}
