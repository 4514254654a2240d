use std::path::Path;

use super::*;
use crate::{codec::Cut, error::Classify as _};

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ztoc").join(name)).unwrap()
}

#[test]
fn checkpoints_of_soci_are_those_that_the_decoder_finds() {
    for (name, members) in [("layer.ztoc", 1), ("twice.ztoc", 2)] {
        let (blob, file) = (fixture("layer.tar.gz").repeat(members), fixture(name));
        let ztoc = Ztoc::read(&file).unwrap();
        assert_eq!(ztoc.blob_bytes(), blob.len() as u64);
        let want = fixture::points(&blob, 65_536);
        assert_eq!(ztoc.checkpoints().len(), want.len());
        for (number, (found, want)) in ztoc.checkpoints().iter().zip(&want).enumerate() {
            let bit = want.byte * 8 - u64::from(want.bits);
            assert_eq!((found.bit, found.plain), (bit, want.plain), "{name} {number}");
            assert!(ztoc.window(number).unwrap() == want.window, "{name} {number}");
        }
        let starts: Vec<_> = ztoc.starts().collect();
        assert_eq!(starts.len(), want.len() - 1, "the first one has no window");
        assert_eq!(starts[0], (Cut(want[1].byte * 8 - u64::from(want[1].bits)), 1));
    }
}

#[test]
fn an_uncompressed_layer_has_no_checkpoints() {
    let file = fixture("plain.ztoc");
    let ztoc = Ztoc::read(&file).unwrap();
    assert_eq!((ztoc.blob_bytes(), ztoc.checkpoints()), (286_720, &[][..]));
}

#[test]
fn a_cut_file_is_refused_wherever_it_ends() {
    let whole = fixture("layer.ztoc");
    for len in (0..whole.len()).step_by(97) {
        // The names of files, which come last, are not read.
        if let Err(error) = Ztoc::read(&&whole[..len]) {
            assert_eq!(error.reason(), "ztoc.bounds", "{len}: {error}");
        }
    }
    assert!(Ztoc::read(&&whole[..100_000]).is_err());
}

#[test]
fn the_older_version_has_all_checkpoints_but_the_first() {
    let blob = fixture("layer.tar.gz");
    let points = fixture::points(&blob, 65_536);
    let mut file = fixture::file(blob.len() as u64, &points);
    let first = file.len() - points.len() * 32_785;
    file.drain(first..first + 32_785);
    let bytes = u32::try_from(12 + (points.len() - 1) * 32_785).unwrap();
    file[first - 16..first - 12].copy_from_slice(&bytes.to_le_bytes());
    let ztoc = Ztoc::read(&file).unwrap();
    assert_eq!(ztoc.checkpoints().len(), points.len() - 1);
    let new = fixture("layer.ztoc");
    let new = Ztoc::read(&new).unwrap();
    let places = |ztoc: &Ztoc<'_>| ztoc.starts().map(|(cut, _)| cut).collect::<Vec<_>>();
    assert_eq!(places(&ztoc), places(&new));
    assert!(ztoc.window(0).unwrap() == new.window(1).unwrap());
}
