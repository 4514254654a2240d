use serde_json::{Value, json};

use super::*;
use crate::{
    digest::Digest,
    format::{erofs::reader::Image, stargz::Toc},
    pipeline::budget::Budget,
    tree::FileType,
};

/// Metadata of a layer whose blob has the digest of `name`, and which has these entries.
fn metadata(name: &str, entries: &[Value]) -> Vec<u8> {
    let json = json!({ "version": 1, "entries": entries }).to_string();
    let id = Digest::sha256(name.as_bytes()).hex().as_bytes().try_into().unwrap();
    rafs::write(&Toc::read(json.as_bytes(), 1 << 30).unwrap(), id).unwrap().image
}

fn file(path: &str, data: &str) -> Value {
    let digest = Digest::sha256(data.as_bytes()).to_string();
    let size = data.len();
    match size {
        0 => json!({ "name": path, "type": "reg" }),
        _ => json!({ "name": path, "type": "reg", "size": size, "offset": 1, "digest": digest }),
    }
}

fn directory(path: &str, mode: u32, modtime: &str) -> Value {
    json!({ "name": path, "type": "dir", "mode": mode, "modtime": modtime })
}

const LATER: &str = "2020-01-01T00:00:00Z";
const EPOCH: &str = "1970-01-01T00:00:00Z";

type Explicit = Option<HashSet<Vec<u8>>>;

fn merged_with(layers: &[(Vec<u8>, Explicit)], limits: &Limits) -> Result<Vec<u8>> {
    let cancel = Cancel::new();
    let layer = |(number, (image, explicit)): (u64, &(Vec<u8>, Explicit))| {
        let name = format!("layer {number}");
        let view = ErofsView::open(image.clone(), Vec::new(), (0, number), name, &cancel)?;
        Ok(Layer { view, explicit: explicit.clone() })
    };
    let layers = (0..).zip(layers).map(layer).collect::<Result<Vec<_>>>()?;
    let budget = Budget::new(limits);
    let lease = budget.lease(&cancel)?;
    let mut image = Vec::new();
    write(layers, limits, &lease, &cancel, &mut image)?;
    Ok(image)
}

fn merged(layers: &[Vec<u8>]) -> Vec<u8> {
    let layers: Vec<_> = layers.iter().map(|image| (image.clone(), None)).collect();
    let image = merged_with(&layers, &Limits::default()).unwrap();
    rafs::verify(&Image::open(image.as_slice()).unwrap(), 1 << 20).unwrap();
    image
}

/// A path with its mode, number of links, and the blob and number of its chunks.
type Listed = (String, u16, u32, Vec<(u8, u32)>);

fn listed(image: &[u8]) -> Vec<Listed> {
    let image = Image::open(image).unwrap();
    let tables = Tables::read(&image, 1 << 20).unwrap();
    let mut found = Vec::new();
    let mut open = vec![(String::new(), image.root().unwrap().nid)];
    while let Some((path, nid)) = open.pop() {
        let node = image.node(nid).unwrap();
        let mut chunks = Vec::new();
        match node.inode.file_type {
            FileType::Directory => {
                let mut names = image.directory(&node).unwrap();
                while let Some(child) = names.next_child().unwrap() {
                    open.push((format!("{path}/{}", String::from_utf8_lossy(child.name)), child.nid));
                }
            }
            FileType::Regular => chunks = tables.chunks_of(&image, &node).unwrap(),
            _ => {}
        }
        let chunks = chunks.into_iter().map(|chunk| (chunk.blob, chunk.index)).collect();
        found.push((path, node.inode.attributes.mode, node.inode.nlink, chunks));
    }
    found.sort();
    found
}

fn paths(image: &[u8]) -> Vec<String> {
    listed(image).into_iter().map(|(path, ..)| path).collect()
}

#[test]
fn whiteouts_are_names_and_spare_the_entries_beside_them() {
    let layers = [
        metadata(
            "1",
            &[file("d/gone", "1"), file("d/kept", "1"), file("o/hidden", "1"), file("f/below", "1")],
        ),
        metadata(
            "2",
            &[
                file("d/.wh.gone", ""),
                file("d/.wh.never-was", ""),
                file("o/.wh..wh..opq", ""),
                file("o/own", "2"),
                file("o/.wh..wh.plnk", ""),
                file(".wh.f", ""),
                file("f/new", "2"),
            ],
        ),
    ];
    assert_eq!(paths(&merged(&layers)), ["", "/d", "/d/kept", "/f", "/f/new", "/o", "/o/own"]);
    let root = [layers[0].clone(), metadata("2", &[file(".wh..wh..opq", ""), file("only", "2")])];
    assert_eq!(paths(&merged(&root)), ["", "/only"]);
}

#[test]
fn a_file_in_a_middle_layer_cuts_off_everything_below_it() {
    let layers = [
        metadata("1", &[file("d/a", "1")]),
        metadata("2", &[file("d", "2")]),
        metadata("3", &[file("d/b", "3")]),
    ];
    assert_eq!(paths(&merged(&layers)), ["", "/d", "/d/b"]);
    assert_eq!(paths(&merged(&layers[..2])), ["", "/d"]);
}

#[test]
fn an_implied_directory_has_the_attributes_below() {
    let layers = [
        metadata("1", &[directory("", 0o700, LATER), directory("d", 0o1777, LATER), file("d/a", "1")]),
        metadata("2", &[file("d/b", "2"), file("e/c", "2")]),
    ];
    let modes = |image: &[u8]| -> Vec<_> {
        let is_directory = |path: &str| ["", "/d", "/e"].contains(&path);
        listed(image).into_iter().filter(|(path, ..)| is_directory(path)).map(|(_, mode, ..)| mode).collect()
    };
    assert_eq!(modes(&merged(&layers)), [0o700, 0o1777, 0o755]);
    // An entry with just the attributes of an implied directory: the table of contents knows.
    let above = metadata("2", &[directory("d", 0o755, EPOCH), file("d/b", "2"), file("e/c", "2")]);
    let both = |explicit| [(layers[0].clone(), None), (above.clone(), explicit)];
    let limits = Limits::default();
    assert_eq!(modes(&merged_with(&both(None), &limits).unwrap()), [0o700, 0o1777, 0o755]);
    let explicit = Some(HashSet::from([b"d".to_vec()]));
    assert_eq!(modes(&merged_with(&both(explicit), &limits).unwrap()), [0o700, 0o755, 0o755]);
}

#[test]
fn names_share_an_inode_within_a_layer_and_blobs_without_files_have_no_slot() {
    let link = |path: &str, target: &str| json!({ "name": path, "type": "hardlink", "linkName": target });
    let layers = [
        metadata("1", &[file("a", "first"), link("b", "a"), link("c", "a"), file("x", "unused")]),
        metadata("2", &[file("y", "whited out later")]),
        metadata("3", &[file(".wh.b", ""), file(".wh.y", ""), file("z", "first"), link("s", "z")]),
    ];
    let image = merged(&layers);
    let shown: Vec<_> =
        listed(&image).into_iter().map(|(path, _, links, chunks)| (path, links, chunks)).collect();
    let of = |path: &str, links, chunk| (path.to_owned(), links, vec![chunk]);
    let want = [
        (String::new(), 2, vec![]),
        of("/a", 2, (0, 0)),
        of("/c", 2, (0, 0)),
        of("/s", 2, (1, 0)),
        of("/x", 1, (0, 1)),
        of("/z", 2, (1, 0)),
    ];
    assert_eq!(shown, want);
    let opened = Image::open(image.as_slice()).unwrap();
    let tags: Vec<_> = opened.slots().iter().map(|slot| slot.tag.to_vec()).collect();
    assert_eq!(tags, ["1", "3"].map(|name| Digest::sha256(name.as_bytes()).hex().as_bytes().to_vec()));
    assert_eq!(Tables::read(&opened, 1 << 20).unwrap().chunks().len(), 3);
}

#[test]
fn one_blob_in_two_layers_has_one_slot_unless_the_tables_differ() {
    let layer = metadata("1", &[file("a", "data")]);
    let image = merged(&[layer.clone(), layer.clone(), metadata("2", &[file("b", "")])]);
    let opened = Image::open(image.as_slice()).unwrap();
    assert_eq!((opened.slots().len(), paths(&image).len()), (1, 3));
    let layers = [(layer, None), (metadata("1", &[file("b", "other")]), None)];
    let error = merged_with(&layers, &Limits::default()).unwrap_err();
    assert_eq!(error.reason(), "merge.blob", "{error}");
}

#[test]
fn layers_that_do_not_fit_each_other_are_refused() {
    let (a, b) = (metadata("1", &[file("a", "data")]), metadata("2", &[file("b", "data")]));
    let refusal = |layers: &[&[u8]], limits: &Limits| {
        let layers: Vec<_> = layers.iter().map(|image| (image.to_vec(), None)).collect();
        merged_with(&layers, limits).unwrap_err().reason()
    };
    let limits = Limits::default();
    let mut other = b.clone();
    // LZ4 in place of gzip.
    other[1152] = other[1152] & !0x40 | 2;
    assert_eq!(refusal(&[&a, &other], &limits), "merge.flags");
    let ordinary = crate::view::fixture::Entries::new().file("f", "x").image();
    assert_eq!(refusal(&[&a, &ordinary], &limits), "rafs.form");
    assert_eq!(refusal(&[], &limits), "merge.layers");
    assert_eq!(refusal(&[&a, &b], &Limits { nodes: 1, ..Limits::default() }), "limit.nodes");
    assert_eq!(refusal(&[&a, &b], &Limits { metadata_bytes: 100, ..Limits::default() }), "limit.metadata");
    let unnamed = metadata("3", &[file(".wh.", "")]);
    assert_eq!(refusal(&[&a, &unnamed], &limits), "tree.whiteout.name");
}
