//! Tests of whole images.

use sha2::{Digest, Sha256};

use super::*;
use crate::tree::Timestamp;

fn entry(path: &str, body: Body) -> Entry {
    let attributes = Attributes { mode: 0o644, ..Attributes::default() };
    Entry { path: path.into(), attributes, xattrs: Vec::new(), body }
}

fn regular(path: &str, data: &[u8]) -> (Entry, Vec<u8>) {
    (entry(path, Body::Regular { size_bytes: data.len() as u64, extents: None }), data.to_vec())
}

/// An image of `entries`, their data handed over in slices of `step` bytes.
fn write_in_steps(options: &Options, entries: &[(Entry, Vec<u8>)], step: usize) -> (Vec<u8>, Summary) {
    let mut writer = Writer::new(Vec::new(), options.clone());
    for (entry, data) in entries {
        writer.entry(entry).unwrap();
        let mut offset = 0;
        for bytes in data.chunks(step) {
            writer.data(offset, bytes).unwrap();
            offset += bytes.len() as u64;
        }
        writer.end_entry().unwrap();
    }
    writer.finish().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = text.bytes().filter_map(digit).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The example of `docs/formats/erofs.md`, "An example".
#[test]
fn golden_a_file_and_a_whiteout() {
    let (mut hello, data) = regular("hello", b"world\n");
    hello.attributes.uid = 1000;
    hello.attributes.gid = 1000;
    let mut old = entry(".wh.old", Body::Regular { size_bytes: 0, extents: None });
    for entry in [&mut hello, &mut old] {
        entry.attributes.mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    }
    let mut want = vec![0; 8192];
    for (offset, bytes) in [
        (0x0400, "e2e1f5e0 395b74e6 07000000 0c002400 03000000 00000000 00000000 00000000"),
        (0x0420, "00000000 02000000"),
        (0x0480, "05000600 ed410000 3b000000 00000000 ffffffff 00000000 00000000 00000000"),
        (0x04a8, "00000000 02000000"),
        (0x04c0, "fffffbff 00000000 00000000 0e040000 6f766572 6c61792e 6f726967 696e0000"),
        (0x04e0, "24000000 00000000 30000200 24000000 00000000 31000200 80000000 00000000"),
        (0x0500, "33000100 83000000 00000000 38000300 2e2e2e68 656c6c6f 6f6c6400 00000000"),
        (0x1000, "05000000 a4810000 06000000 00000000 ffffffff 01000000 e8030000 e8030000"),
        (0x1020, "00f15365 00000000 00000000 01000000"),
        (0x1040, "776f726c 640a0000"),
        (0x1060, "01000000 a4210000 00000000 00000000 00000000 02000000 00000000 00000000"),
        (0x1080, "00f15365 00000000 00000000 01000000"),
    ] {
        let bytes = hex(bytes);
        want[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    let (image, summary) = write_in_steps(&Options::default(), &[(hello, data), (old, Vec::new())], 4);
    for (offset, (got, want)) in image.chunks(16).zip(want.chunks(16)).enumerate() {
        assert_eq!(got, want, "at {:#x}", offset * 16);
    }
    assert_eq!(image.len(), want.len());
    let sha256: Vec<u8> = Sha256::digest(&image).to_vec();
    assert_eq!(sha256, hex("8d9f0527fdbf2f751c0ab6737c28777bf94c6e9d0c1452b69c69b03892c27e38"));
    assert_eq!((summary.nodes, summary.whiteouts, summary.names), (3, 1, 2));
}
