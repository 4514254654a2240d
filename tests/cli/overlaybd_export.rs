//! `plywood overlaybd export`: the metadata of an archive and the index of its gzip blob, as overlaybd's own tool writes
//! them.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use plywood::format::gzindex::Index;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        metadata_is_that_of_overlaybd_from_a_tar_a_gzip_blob_and_a_zfile,
        nothing_is_exported_of_a_layer_that_is_refused,
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
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(BLOB).read_to_end(&mut archive).unwrap();
    fs::write(dir.join("layer.tar"), &archive).unwrap();
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
