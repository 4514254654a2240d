use super::*;
use crate::{
    error::Error,
    pipeline::budget::Budget,
    view::fixture::{Entries, erofs, respelled},
};

fn merged(images: &[Vec<u8>]) -> Result<Vec<u8>> {
    merged_within(images, &Limits::default())
}

fn merged_within(images: &[Vec<u8>], limits: &Limits) -> Result<Vec<u8>> {
    let cancel = Cancel::new();
    let budget = Budget::new(limits);
    let lease = budget.lease(&cancel)?;
    let views: Vec<_> = (0..).zip(images).map(|(key, image)| erofs(image, key)).collect();
    Ok(write(&views, Vec::new(), limits, &lease, &cancel)?.0)
}

fn refusal(images: &[Vec<u8>]) -> Error {
    merged(images).unwrap_err()
}

/// The names of a merged image, each with its data.
fn files(image: &[u8], layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let opened = Image::open_with_devices(image, layers.iter().map(Vec::as_slice).collect()).unwrap();
    let mut found = Vec::new();
    let mut open = vec![(String::new(), opened.root().unwrap().nid)];
    while let Some((path, nid)) = open.pop() {
        let node = opened.node(nid).unwrap();
        let mut data = Vec::new();
        if node.inode.file_type == crate::tree::FileType::Directory {
            let mut names = opened.directory(&node).unwrap();
            while let Some(child) = names.next_child().unwrap() {
                open.push((format!("{path}/{}", String::from_utf8_lossy(child.name)), child.nid));
            }
        } else if node.inode.file_type == crate::tree::FileType::Regular {
            data.resize(usize::try_from(node.inode.size_bytes).unwrap(), 0);
            opened.read_data(&node, 0, &mut data).unwrap();
        }
        found.push((path, data));
    }
    found.sort();
    found
}

#[test]
fn the_topmost_layer_that_has_a_name_decides_about_it() {
    let layers = [
        Entries::new()
            .dir("d")
            .file("d/old", "1")
            .file("d/gone", "1")
            .dir("o")
            .file("o/hidden", "1")
            .file("f", "1"),
        Entries::new().dir("d").whiteout("d/gone").file("d/new", "2").dir("o").opaque("o").file("o/own", "2"),
        Entries::new().dir("d").file("d/old", "3").whiteout("f").whiteout("never-was"),
    ];
    let layers = layers.map(|layer| layer.image());
    let found = files(&merged(&layers).unwrap(), &layers);
    let want = [("", ""), ("/d", ""), ("/d/new", "2"), ("/d/old", "3"), ("/o", ""), ("/o/own", "2")];
    assert_eq!(found, want.map(|(name, data)| (name.to_owned(), data.as_bytes().to_vec())));
}

#[test]
fn links_that_lost_names_count_those_that_are_left() {
    let layers = [
        Entries::new()
            .file("a", "same")
            .link("b", "a")
            .link("c", "a")
            .file("x", "one")
            .link("y", "x")
            .image(),
        Entries::new().whiteout("b").whiteout("y").image(),
    ];
    let image = merged(&layers).unwrap();
    let opened =
        Image::open_with_devices(image.as_slice(), layers.iter().map(Vec::as_slice).collect()).unwrap();
    let root = opened.root().unwrap();
    let found = |name: &str| opened.lookup(&root, name.as_bytes()).unwrap().map(|(nid, _)| nid);
    assert_eq!((found("a"), found("b")), (found("c"), None));
    let links = |name: &str| opened.node(found(name).unwrap()).unwrap().inode.nlink;
    assert_eq!((links("a"), links("x")), (2, 1));
}

#[test]
fn a_whiteout_in_the_form_of_an_attribute_hides_like_any_other() {
    let lower = Entries::new().dir("d").file("d/gone", "1").file("d/stays", "1").image();
    let upper = Entries::new().dir("d").xattr("trusted.overtop.opaque", "x");
    let upper = upper.file("d/gone", "").xattr("trusted.overtop.whiteout", "y").image();
    let layers = [lower, respelled(upper, "overtop.", "overlay.")];
    let names: Vec<_> = files(&merged(&layers).unwrap(), &layers).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["", "/d", "/d/stays"]);
}

#[test]
fn every_device_is_named_by_the_identifier_of_its_layer() {
    let layers = [Entries::new().file("f", "x").image(), Entries::new().dir("d").image()];
    let image = merged(&layers).unwrap();
    let opened =
        Image::open_with_devices(image.as_slice(), layers.iter().map(Vec::as_slice).collect()).unwrap();
    let [first, second] = opened.slots() else { panic!("a slot for each layer, with data or without") };
    assert_eq!(&first.tag[..33], b"00000000000000000000000000000000\0");
    let start = opened.superblock().blocks;
    assert_eq!((first.unified_start, second.unified_start), (start, start + first.blocks));
    assert_ne!(opened.superblock().uuid, [0; 16]);
}

#[test]
fn layers_that_cannot_be_merged_are_refused_with_their_name() {
    let plain = || Entries::new().file("f", "x").image();
    let error = refusal(&[]);
    assert_eq!((error.kind(), error.reason()), (crate::error::Kind::Malformed, "merge.layers"));
    let moved = Entries::new().dir("d").xattr("trusted.overtop.redirect", "/e").image();
    let error = refusal(&[plain(), respelled(moved, "overtop.", "overlay.")]);
    assert_eq!(error.reason(), "merge.overlay");
    assert!(error.to_string().contains("\"d\" in image 1 has overlayfs's attribute redirect"), "{error}");
    let copied = Entries::new().file("g", "").xattr("trusted.overtop.metacopy", "").image();
    assert_eq!(refusal(&[respelled(copied, "overtop.", "overlay.")]).reason(), "merge.overlay");
    let marked = respelled(Entries::new().file("_wh.x", "").image(), "_wh.x", ".wh.x");
    assert_eq!(refusal(&[marked]).reason(), "merge.name");
}

#[test]
fn a_damaged_layer_is_named_with_the_path() {
    let mut image = Entries::new().dir("d").file("d/f", "x").image();
    // The name in the block of the directory becomes one that no file can have.
    image = respelled(image, "f\0", "/\0");
    let error = refusal(&[Entries::new().image(), image]);
    assert_eq!(error.kind(), crate::error::Kind::Malformed);
    assert!(error.to_string().contains("image 1"), "{error}");
}

#[test]
fn memory_and_names_are_bounded() {
    let layer = (0..2000).fold(Entries::new(), |layer, n| layer.file(&format!("{n:0200}"), "")).image();
    let limits = Limits { metadata_bytes: 256 << 10, ..Limits::default() };
    let error = merged_within(std::slice::from_ref(&layer), &limits).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (crate::error::Kind::Exhausted, "limit.metadata"));
    let error = merged_within(&[layer], &Limits { nodes: 1000, ..Limits::default() }).unwrap_err();
    assert_eq!(error.reason(), "limit.nodes");
}

#[test]
fn a_disk_is_described_in_extents_of_two_gibibytes_at_most() {
    let layers = [Entries::new().bytes("f", &[7; 9000]).image()];
    let image = merged(&layers).unwrap();
    let opened = Image::open_with_devices(image.as_slice(), vec![layers[0].as_slice()]).unwrap();
    let path = std::path::Path::new;
    let text = describe(&opened, path("fsmeta.erofs"), &[path("/l/a b.erofs")]).unwrap();
    let extents: Vec<_> = text.lines().filter(|line| line.starts_with("RW ")).collect();
    let sectors = [&image, &layers[0]].map(|file| file.len() / 512);
    let want = [
        format!("RW {} FLAT \"fsmeta.erofs\" 0", sectors[0]),
        format!("RW {} FLAT \"/l/a b.erofs\" 0", sectors[1]),
    ];
    assert_eq!(extents, want);
    for name in ["a\"b", "a\nb"] {
        let error = describe(&opened, path("fsmeta.erofs"), &[path(name)]).unwrap_err();
        assert!(matches!(error, MergeError::Extent { .. }), "{error}");
    }
    assert!(matches!(describe(&opened, path("m"), &[]), Err(MergeError::Layers { count: 0 })));
}

#[test]
fn merged_metadata_is_no_layer() {
    let layers = [Entries::new().file("a", "1").image(), Entries::new().file("b", "2").image()];
    let error = refusal(&[merged(&layers).unwrap(), layers[1].clone()]);
    assert_eq!(error.reason(), "merge.devices", "{error}");
}
