//! `plywood overlaybd export` and `turbo-export`: the metadata of an archive and the index of its gzip blob, as overlaybd's
//! own tool writes them, and the layer that is made of both.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use plywood::{
    digest::Digest,
    format::{erofs::reader::Image, gzindex::Index},
};
use serde_json::json;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        metadata_is_that_of_overlaybd_from_a_tar_a_gzip_blob_and_a_zfile,
        nothing_is_exported_of_a_layer_that_is_refused,
        a_turbo_layer_gives_the_same_device_through_the_index_and_from_the_archive,
        a_turbo_layer_is_the_same_from_run_to_run_and_needs_a_layer_that_can_be_read_in_pieces,
    ];
}

const BLOB: &[u8] = include_bytes!("../fixtures/gzindex/base.tar.gz");
const INDEX: &[u8] = include_bytes!("../fixtures/gzindex/base.gzip.meta");
const METADATA: &[u8] = include_bytes!("../fixtures/tar/base.tar.meta");

fn plywood(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plywood"))
        .arg("overlaybd")
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn metadata_is_that_of_overlaybd_from_a_tar_a_gzip_blob_and_a_zfile() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::write(dir.join("layer.tar"), layer()).unwrap();
    fs::write(dir.join("layer.tar.gz"), BLOB).unwrap();
    assert!(plywood(dir, &["zfile", "layer.tar", "layer.zfile"]).status.success());
    for (layer, options, index) in [
        ("layer.tar", &[][..], None),
        ("layer.zfile", &["--gz_index_path", "missing/gzip.meta"], None),
        ("layer.tar.gz", &[], Some("gzip.meta")),
        ("layer.tar.gz", &["--gz_index_path", "layer.idx"], Some("layer.idx")),
    ] {
        let made = plywood(dir, &[&["export", layer, "out"], options].concat());
        assert!(made.status.success(), "{made:?}");
        assert!(fs::read(dir.join("out")).unwrap() == METADATA, "{layer}");
        fs::remove_file(dir.join("out")).unwrap();
        let text = String::from_utf8(made.stdout).unwrap();
        assert!(text.starts_with("out: 7.00 KiB of 180.00 KiB uncompressed\n"), "{text}");
        if let Some(index) = index {
            let found = fs::read(dir.join(index)).unwrap();
            let (ours, theirs) = (Index::read(found.as_slice()).unwrap(), Index::read(INDEX).unwrap());
            let places = |index: &Index| {
                index.points().iter().map(|point| (point.plain, point.byte, point.bits)).collect::<Vec<_>>()
            };
            assert_eq!(places(&ours), places(&theirs));
            assert!(text.contains(&format!("{index}: ")) && text.ends_with(", 1 points\n"), "{text}");
            fs::remove_file(dir.join(index)).unwrap();
        }
        assert_eq!(names(dir), ["layer.tar", "layer.tar.gz", "layer.zfile"], "nothing else is left");
    }
}

fn nothing_is_exported_of_a_layer_that_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::write(dir.join("twice"), [BLOB, BLOB].concat()).unwrap();
    fs::write(dir.join("cut"), &BLOB[..BLOB.len() - 9]).unwrap();
    for (layer, reason) in
        [("twice", "gzindex.members"), ("cut", "codec.gzip.truncated"), ("gone", "overlaybd.input")]
    {
        let made = plywood(dir, &["export", layer, "out"]);
        assert_eq!(made.status.code(), Some(1));
        let text = String::from_utf8(made.stderr).unwrap();
        assert!(text.starts_with(&format!("plywood: export {layer}: ")), "{text}");
        assert!(text.ends_with(&format!("[{reason}]\n")), "{text}");
        assert_eq!(names(dir), ["cut", "twice"]);
    }
}

fn layer() -> Vec<u8> {
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(BLOB).read_to_end(&mut archive).unwrap();
    archive
}

/// Runs `turbo-export` with these arguments; the descriptor that it prints, and the members of the archive in `out`.
fn turbo_export(dir: &Path, arguments: &[&str]) -> (serde_json::Value, Vec<(String, Vec<u8>)>) {
    let made = plywood(dir, &[&["turbo-export", "-o", "out"], arguments].concat());
    assert!(made.status.success(), "{made:?}");
    let printed: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let out = fs::read(dir.join("out")).unwrap();
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(&*out).read_to_end(&mut archive).unwrap();
    assert_eq!(printed["descriptor"]["digest"], Digest::sha256(&out).to_string());
    assert_eq!(printed["descriptor"]["size"], out.len());
    assert_eq!(printed["diffID"], Digest::sha256(&archive).to_string());
    let mut read = tar::Archive::new(&*archive);
    let members = read.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header();
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        assert_eq!((header.mode().unwrap(), owner, header.mtime().unwrap()), (0o644, (0, 0), 0));
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        (name, contents)
    });
    let members = members.collect();
    (printed["descriptor"].clone(), members)
}

/// First 4 MiB of the device that a configuration describes: all that is on the small ones here.
fn flattened(dir: &Path, config: &serde_json::Value) -> Vec<u8> {
    fs::write(dir.join("config.v1.json"), config.to_string()).unwrap();
    let made = plywood(dir, &["flatten", "--config", "config.v1.json", "-o", "device"]);
    assert!(made.status.success(), "{made:?}");
    let mut head = vec![0; 4 << 20];
    fs::File::open(dir.join("device")).unwrap().read_exact(&mut head).unwrap();
    head
}

fn a_turbo_layer_gives_the_same_device_through_the_index_and_from_the_archive() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::write(dir.join("layer.tar"), layer()).unwrap();
    fs::write(dir.join("layer.tar.gz"), BLOB).unwrap();
    let below = "containerd.io/snapshot/overlaybd";
    let mut devices = Vec::new();
    for (original, names, media_type) in [
        ("layer.tar", &["erofs.fs.meta", ".turbo.ociv1"][..], "application/vnd.oci.image.layer.v1.tar"),
        (
            "layer.tar.gz",
            &["erofs.fs.meta", ".turbo.ociv1", "gzip.meta"],
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
    ] {
        let (descriptor, members) = turbo_export(dir, &[original, "--vsize", "1"]);
        assert_eq!(members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
        let annotations = &descriptor["annotations"];
        assert_eq!(annotations[format!("{below}/blob-digest")], descriptor["digest"]);
        assert_eq!(annotations[format!("{below}/blob-size")], descriptor["size"].to_string());
        assert_eq!(annotations[format!("{below}/version")], "0.1.0-turbo.ociv1");
        let digest = Digest::sha256(&fs::read(dir.join(original)).unwrap()).to_string();
        assert_eq!(annotations[format!("{below}/turbo-oci/target-digest")], digest);
        assert_eq!(annotations[format!("{below}/turbo-oci/target-media-type")], media_type);
        assert_eq!(annotations.as_object().unwrap().len(), 5);
        for (name, contents) in &members {
            fs::write(dir.join(name), contents).unwrap();
        }
        let mut lower = json!({ "file": "erofs.fs.meta", "targetFile": original });
        if original.ends_with(".gz") {
            lower["gzipIndex"] = "gzip.meta".into();
        }
        devices.push(flattened(dir, &json!({ "lowers": [lower] })));
    }
    assert!(devices[0] == devices[1], "the index gives what the archive has");

    // The layer above finds the file system on the device, through the index.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    archive.append_data(&mut header, "app/new", &b"new"[..]).unwrap();
    fs::write(dir.join("top.tar"), archive.into_inner().unwrap()).unwrap();
    let (_, members) = turbo_export(dir, &["top.tar", "--config", "config.v1.json"]);
    fs::write(dir.join("top.meta"), &members[0].1).unwrap();
    let bottom = json!({ "file": "erofs.fs.meta", "targetFile": "layer.tar.gz", "gzipIndex": "gzip.meta" });
    let top = json!({ "file": "top.meta", "targetFile": "top.tar" });
    let device = flattened(dir, &json!({ "lowers": [bottom, top] }));
    let image = Image::open(&device[..]).unwrap();
    for (path, want) in [("app/new", b"new".to_vec()), ("app/lib/libx.so", layer()[3584..43_584].to_vec())] {
        let node = image.find(path.as_bytes()).unwrap().unwrap();
        let mut found = vec![0; want.len()];
        image.read_data(&node, 0, &mut found).unwrap();
        assert!(found == want && node.inode.size_bytes == want.len() as u64, "{path}");
    }
}

fn a_turbo_layer_is_the_same_from_run_to_run_and_needs_a_layer_that_can_be_read_in_pieces() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::write(dir.join("layer"), BLOB).unwrap();
    let first = turbo_export(dir, &["layer"]);
    assert_eq!(turbo_export(dir, &["layer"]), first);
    fs::remove_file(dir.join("out")).unwrap();

    fs::write(dir.join("zstd"), zstd::bulk::compress(&layer(), 1).unwrap()).unwrap();
    fs::write(dir.join("twice"), [BLOB, BLOB].concat()).unwrap();
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (arguments, reason) in [
        (&["zstd"][..], "turbo.target"),
        (&["twice"], "gzindex.members"),
        (&["layer", "--fstype", "ext4"], "overlaybd.ext4"),
        (&["layer", "--digest", &zeros], "blob.digest"),
        (&["layer", "--config", "gone"], "overlaybd.input"),
        (&["layer", "--media-type", "application/vnd.oci.image.layer.v1.tar"], "turbo.target"),
        (&["layer", "--media-type", "application/vnd.erofs.layer.v1"], "turbo.target"),
    ] {
        let made = plywood(dir, &[&["turbo-export", "-o", "out"], arguments].concat());
        assert_eq!(made.status.code(), Some(1), "{made:?}");
        let text = String::from_utf8(made.stderr).unwrap();
        assert!(text.ends_with(&format!("[{reason}]\n")), "{text}");
        assert_eq!(names(dir), ["layer", "twice", "zstd"]);
    }
}
