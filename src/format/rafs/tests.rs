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
