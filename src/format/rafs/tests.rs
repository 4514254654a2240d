use std::{fs, io::Read as _, path::Path};

use super::*;
use crate::{
    digest::Digest,
    error::Classify as _,
    format::{
        erofs::reader::Image,
        stargz::{Declared, Layout, Toc},
    },
};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn unpacked(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(fixture(name).as_slice(), false).read_to_end(&mut bytes).unwrap();
    bytes
}

fn made(layer: &str) -> Result<Metadata, RafsError> {
    let blob = fixture(&format!("stargz/estargz/{layer}.esgz"));
    let layout = Layout::find(&blob, &Declared::default()).unwrap().unwrap();
    let json = layout.read_toc(&blob, &Declared::default()).unwrap().unwrap();
    let toc = Toc::read(&json, layout.payload_end).unwrap();
    let id = Digest::sha256(&blob).to_string();
    let id = id.trim_start_matches("sha256:").as_bytes().try_into().unwrap();
    write(&toc, id)
}

/// The images were accepted by nydus-image and read by nydusd; recipe in `tests/fixtures/rafs/README.md`.
#[test]
fn golden_layers_match_those_that_nydus_has_accepted() {
    for layer in ["eqsize", "l1", "l2", "l3", "plain"] {
        let Metadata { image, context, .. } = made(layer).unwrap();
        let (want_image, want_context) =
            (unpacked(&format!("rafs/{layer}.boot.xz")), unpacked(&format!("rafs/{layer}.blob.meta.xz")));
        let differs = image.iter().zip(&want_image).position(|(a, b)| a != b);
        assert_eq!((differs, image.len()), (None, want_image.len()), "{layer}");
        assert!(context.as_deref() == Some(want_context.as_slice()), "context of {layer}");
    }
}

#[test]
fn every_file_leads_to_the_data_device() {
    let Metadata { image, data_bytes, .. } = made("l1").unwrap();
    let device = vec![0; usize::try_from(data_bytes).unwrap()];
    let opened = Image::open_with_devices(image.as_slice(), vec![device.as_slice()]).unwrap();
    let (mut open, mut files) = (vec![opened.root().unwrap().nid], 0);
    while let Some(nid) = open.pop() {
        let node = opened.node(nid).unwrap();
        match node.inode.file_type {
            crate::tree::FileType::Directory => {
                let mut names = opened.directory(&node).unwrap();
                while let Some(child) = names.next_child().unwrap() {
                    open.push(child.nid);
                }
            }
            _ => {
                files += 1;
                assert!(opened.extents(&node, 0).all(|extent| extent.is_ok()) || node.inode.size_bytes == 0);
            }
        }
    }
    assert!(files > 150, "{files}");
}

#[test]
fn layers_that_the_tables_cannot_describe_are_refused() {
    let error = made("l2-inner").unwrap_err();
    assert_eq!(error.reason(), "rafs.inner-offset", "{error}");
    assert!(made("plain-chunk256k").is_ok());
}

fn refused(image: &[u8]) -> &'static str {
    let opened = Image::open(image).map_err(crate::error::Error::from);
    opened.and_then(|image| Ok(verify(&image, 1 << 20).map(drop)?)).unwrap_err().reason()
}

#[test]
fn tables_that_break_a_rule_are_refused() {
    let image = made("plain").unwrap().image;
    let tables = verify(&Image::open(image.as_slice()).unwrap(), 1 << 20).unwrap();
    let chunk_table = usize::try_from(tables.extended.chunk_table.0).unwrap();
    let with = |at: usize, byte: u8| {
        let mut damaged = image.clone();
        damaged[at] ^= byte;
        refused(&damaged)
    };
    for (at, byte, reason) in [
        // Superblock: checksum, feature RAFS, extension slots, place of the slots.
        (1028, 1, "rafs.field"),
        (1024 + 11, 0x40, "rafs.form"),
        (1024 + 13, 1, "rafs.field"),
        (1024 + 88, 1, "rafs.field"),
        // Flags, chunk size, places of the tables.
        (1152, 1, "rafs.field"),
        (1152 + 20, 1, "rafs.field"),
        (1152 + 8, 1, "rafs.table"),
        (1152 + 16, 1, "rafs.table"),
        (1152 + 32, 1, "rafs.table"),
        // Blob: id, place, chunk size.
        (4096, 1, "rafs.blob"),
        (4096 + 64, 1, "rafs.blob"),
        (4096 + 68, 1, "rafs.blob"),
        // Chunk: blob, size, place on the device, number.
        (chunk_table + 32, 1, "rafs.chunk"),
        (chunk_table + 44 + 3, 1, "rafs.chunk"),
        (chunk_table + 56, 1, "rafs.chunk"),
        (chunk_table + 72, 1, "rafs.chunk"),
    ] {
        assert_eq!(with(at, byte), reason, "byte {at} with {byte:#x}");
    }
    assert_eq!(refused(&[&image[..], &[0; 512]].concat()), "rafs.field");
    let error = Tables::read(&Image::open(image.as_slice()).unwrap(), 1).unwrap_err();
    assert_eq!(error.reason(), "limit.metadata");
}

#[test]
fn a_file_agrees_with_the_table_of_chunks() {
    let image = made("l1").unwrap().image;
    let opened = Image::open(image.as_slice()).unwrap();
    let tables = Tables::read(&opened, 1 << 20).unwrap();
    let mut index = None;
    let mut open = vec![opened.root().unwrap().nid];
    while let Some(nid) = open.pop() {
        let node = opened.node(nid).unwrap();
        if node.inode.file_type == crate::tree::FileType::Directory {
            let mut names = opened.directory(&node).unwrap();
            while let Some(child) = names.next_child().unwrap() {
                open.push(child.nid);
            }
        } else if node.inode.file_type == crate::tree::FileType::Regular && node.inode.size_bytes > 0 {
            tables.chunks_of(&opened, &node).unwrap();
            index = Some(usize::try_from(node.xattr_end().next_multiple_of(8)).unwrap());
        }
    }
    for at in [0, 2, 3, 4] {
        let mut damaged = image.clone();
        damaged[index.unwrap() + at] ^= 0x7f;
        assert_eq!(refused(&damaged), "rafs.file", "byte {at} of an index");
    }
}

#[test]
fn a_compression_context_agrees_with_the_chunks() {
    let Metadata { image, context, .. } = made("plain").unwrap();
    let (opened, context) = (Image::open(image.as_slice()).unwrap(), context.unwrap());
    let tables = Tables::read(&opened, 1 << 20).unwrap();
    tables.compare_context(0, &context).unwrap();
    let header = context.len() - 4096;
    for (at, reason) in
        [(0, "rafs.chunk"), (9, "rafs.chunk"), (header, "rafs.context"), (header + 4, "rafs.context")]
    {
        let mut damaged = context.clone();
        damaged[at] ^= 1;
        assert_eq!(tables.compare_context(0, &damaged).unwrap_err().reason(), reason, "byte {at}");
    }
    for len in [0, 100, 4096, 5000] {
        let error = tables.compare_context(0, &context[..len].to_vec()).unwrap_err();
        assert_eq!(error.reason(), "rafs.context", "{len} bytes: {error}");
    }
    assert_eq!(tables.compare_context(1, &context).unwrap_err().reason(), "rafs.context");
}

#[test]
fn an_image_without_data_has_no_device() {
    let toc = Toc::read(br#"{"version":1,"entries":[{"name":"empty","type":"reg"}]}"#, 1).unwrap();
    let Metadata { image, context, data_bytes } = write(&toc, [b'a'; 64]).unwrap();
    assert_eq!((context, data_bytes), (None, 0));
    let opened = Image::open(image.as_slice()).unwrap();
    assert_eq!((opened.superblock().blocks, opened.slots().len()), (4096, 0));
    verify(&opened, 0).unwrap();
}

proptest::proptest! {
    #[test]
    fn records_decode_to_what_was_encoded(
        blob in proptest::array::uniform32(proptest::prelude::any::<u8>()),
        chunk in proptest::prelude::any::<[u8; 32]>(),
        reference in proptest::prelude::any::<[u8; 8]>(),
    ) {
        let mut record = [0; BlobEntry::LEN];
        record[0x40..0x60].copy_from_slice(&blob);
        record[0x80..0xA0].copy_from_slice(&chunk);
        proptest::prop_assert_eq!(BlobEntry::decode(&record).encode(), record);
        let mut record = [0; ChunkEntry::LEN];
        record[..32].copy_from_slice(&chunk);
        record[0x20..0x40].copy_from_slice(&blob);
        proptest::prop_assert_eq!(ChunkEntry::decode(&record).encode(), record);
        if let Some(found) = ChunkRef::decode(&reference) {
            proptest::prop_assert_eq!(found.encode(), reference);
        }
        let mut record = [0; records::ExtendedSuperblock::LEN];
        record[..32].copy_from_slice(&blob);
        proptest::prop_assert_eq!(records::ExtendedSuperblock::decode(&record).encode(), record);
    }
}
