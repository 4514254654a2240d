//! Indexed layers of other tools as metadata with a data device, merged, and as images with their data: read by the kernel,
//! fsck.erofs and our own reader, compared with listings of an independent reader.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use erofs_rs::{EroFS, backend::SliceImage};
use libtest_mimic::Failed;
use plywood::{
    call::{Cancel, Progress, Work},
    digest::Digest,
    error::{Error, Kind},
    format::{
        ReadAt as _,
        erofs::reader::Image,
        rafs,
        stargz::{Declared, Layout, Toc},
    },
    limits::Limits,
    pipeline::Resources,
    stargz::{
        BlobId, StargzLayer, is_stargz_data_layer, merge_stargz_meta_layer, prepare_stargz_meta_layer,
        prepare_with_device, write_whole,
    },
};
use testkit::{
    Need, Suite,
    host::{plywood, program, run},
};

use super::{erofs_writer::MountPoint, layer_model::Listing, listing};

pub fn add(suite: &mut Suite) {
    let kernel = [Need::Root, Need::FileSystem("erofs")];
    testkit::tests![suite, &[];
        metadata_with_its_data_has_the_files_of_the_layer,
        merged_metadata_has_the_files_of_the_image,
        the_merge_of_another_tool_has_the_same_files,
        a_snapshot_directory_ends_as_the_nydus_snapshotter_leaves_it,
        implied_directories_keep_the_attributes_below,
        a_layer_that_is_none_leaves_nothing_behind,
        one_file_is_the_metadata_with_the_device_at_its_mapped_address,
        one_file_has_the_files_of_the_layer,
        one_file_reads_as_by_erofs_rs,
        files_with_data_merge_like_their_metadata,
        a_flipped_bit_in_any_chunk_is_an_error_with_layer_and_path,
        of_several_damaged_chunks_the_first_in_the_blob_is_reported,
        damaged_tables_are_refused_and_leave_nothing,
        metadata_of_which_a_byte_is_wrong_is_refused_or_sound,
    ];
    suite.test("needs_kernel_erofs_metadata_mounts_with_its_data_device", &kernel, metadata_in_the_kernel);
    suite.test("needs_kernel_erofs_merged_metadata_mounts_with_all_devices", &kernel, merged_in_the_kernel);
    suite.test("needs_kernel_erofs_one_file_mounts_without_a_device", &kernel, one_file_in_the_kernel);
    let fsck = [Need::Tool("fsck.erofs"), Need::Tool("dump.erofs")];
    suite.test("needs_fsck_erofs_metadata_passes_with_its_devices", &fsck, erofs_utils_read_metadata);
    let xfs = [
        Need::Root,
        Need::Tool("mkfs.xfs"),
        Need::Tool("filefrag"),
        Need::FileSystem("xfs"),
        Need::LoopDevices,
    ];
    suite.test(
        "needs_kernel_xfs_copies_beside_merged_metadata_share_their_blocks",
        &xfs,
        copies_share_their_blocks,
    );
    let nydus = [Need::Tool("nydus-image")];
    suite.test("needs_nydus_image_check_accepts_metadata_and_what_is_merged", &nydus, nydus_accepts);
    suite.test("needs_nydus_image_it_merges_metadata_to_the_files_of_the_image", &nydus, nydus_merges);
    suite.test("needs_nydus_image_it_reads_the_files_of_a_layer_from_its_blob", &nydus, nydus_unpacks);
}

const LAYERS: [&str; 3] = ["l1", "l2", "l3"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(fixture(name)).unwrap()
}

fn unpacked(name: &str) -> Vec<u8> {
    let (packed, mut bytes) = (fs::read(fixture(name)).unwrap(), Vec::new());
    lzma_rust2::XzReader::new(packed.as_slice(), false).read_to_end(&mut bytes).unwrap();
    bytes
}

fn id_of(blob: &[u8]) -> BlobId {
    BlobId::parse(Digest::sha256(blob).hex()).unwrap()
}

fn estargz(name: &str) -> (Vec<u8>, BlobId) {
    let blob = fs::read(fixture(&format!("stargz/estargz/{name}.esgz"))).unwrap();
    let id = id_of(&blob);
    (blob, id)
}

/// Annotations of the descriptor beside a layer.
fn annotations(layer: &str) -> BTreeMap<String, String> {
    let value: serde_json::Value = serde_json::from_str(&text(&format!("{layer}.json"))).unwrap();
    let pairs = value["descriptor"]["annotations"].as_object().unwrap().iter();
    pairs.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// Runs something with so many threads beside its own.
fn with_threads<T>(threads: usize, make: impl FnOnce(&Resources, Work<'_>) -> T) -> T {
    let (cancel, progress) = (Cancel::new(), Progress::default());
    make(&Resources::new(Limits::default(), threads), Work { cancel: &cancel, progress: &progress })
}

fn layer_of(name: &str) -> (StargzLayer<Vec<u8>>, BlobId) {
    let (blob, id) = estargz(name);
    (is_stargz_data_layer(blob, &annotations(&format!("stargz/estargz/{name}.esgz"))).unwrap(), id)
}

/// Metadata and data device of a layer in a directory.
struct Made {
    image: PathBuf,
    device: PathBuf,
}

fn made(name: &str, dir: &Path) -> Made {
    let (layer, id) = layer_of(name);
    let made =
        with_threads(2, |resources, work| prepare_with_device(&layer, id, dir, resources, work)).unwrap();
    assert!(matches!(made, (Some(_), Some(_))));
    Made { image: dir.join(id.to_string()), device: dir.join(format!("{id}.blob.data")) }
}

fn read_listing(image: &Path, devices: &[PathBuf]) -> Listing {
    let image = fs::read(image).unwrap();
    let devices: Vec<_> = devices.iter().map(|path| fs::read(path).unwrap()).collect();
    let devices = devices.iter().map(Vec::as_slice).collect();
    listing::of_image(&Image::open_with_devices(image.as_slice(), devices).unwrap())
}

const WITH_METADATA: [&str; 6] = ["eqsize", "l1", "l2", "l3", "plain", "plain-chunk256k"];

/// The listing of a layer is about its files, however they are in members.
fn listing_of(layer: &str) -> String {
    let name = layer.trim_end_matches("-chunk256k").trim_end_matches("-inner").trim_end_matches("-prio");
    text(&format!("stargz/listing/{name}.jsonl"))
}

fn metadata_with_its_data_has_the_files_of_the_layer() {
    for name in WITH_METADATA {
        let dir = tempfile::tempdir().unwrap();
        let Made { image, device } = made(name, dir.path());
        listing::assert_listed(&read_listing(&image, &[device]), &listing_of(name), true);
        let output = plywood().arg("check").arg(&image).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("RAFS metadata") && said.contains("1 compression contexts"), "{said}");
    }
}

fn metadata_in_the_kernel() -> Result<(), Failed> {
    for name in WITH_METADATA {
        let dir = tempfile::tempdir()?;
        let Made { image, device } = made(name, dir.path());
        let mounted = MountPoint::new("erofs", &image, dir, &format!("device={}", device.display()))?;
        listing::assert_listed(&listing::by_kernel(&mounted.at()), &listing_of(name), true);
    }
    Ok(())
}

/// Three layers as the snapshotter has them, and their data devices: `snapshots/N/fs`.
fn snapshots(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut upper_paths, mut devices) = (Vec::new(), Vec::new());
    for (number, name) in (1..).zip(LAYERS) {
        let upper = root.join(format!("snapshots/{number}/fs"));
        fs::create_dir_all(&upper).unwrap();
        let data = root.join("data");
        fs::create_dir_all(&data).unwrap();
        let (layer, id) = layer_of(name);
        prepare_stargz_meta_layer(&layer, id, &upper, None).unwrap().unwrap();
        devices.push(made(name, &data).device);
        upper_paths.insert(0, upper);
    }
    (upper_paths, devices)
}

fn merged(root: &Path) -> (PathBuf, Vec<PathBuf>) {
    let (upper_paths, devices) = snapshots(root);
    merge_stargz_meta_layer(&upper_paths, &Limits::default(), &Cancel::new()).unwrap().unwrap();
    let merged = upper_paths[0].join("image.boot");
    let devices = in_slot_order(&fs::read(&merged).unwrap(), &devices);
    (merged, devices)
}

/// The devices of an image, by the tags of its slots.
fn in_slot_order(image: &[u8], devices: &[PathBuf]) -> Vec<PathBuf> {
    let image = Image::open(image).unwrap();
    let of_tag = |tag: &[u8; 64]| {
        let name = format!("{}.blob.data", String::from_utf8_lossy(tag));
        devices.iter().find(|path| path.ends_with(&name)).unwrap().clone()
    };
    image.slots().iter().map(|slot| of_tag(&slot.tag)).collect()
}

fn merged_metadata_has_the_files_of_the_image() {
    let root = tempfile::tempdir().unwrap();
    let (image, devices) = merged(root.path());
    let want = text("erofs/merge/merged.jsonl");
    listing::assert_listed(&read_listing(&image, &devices), &want, true);
    let output = plywood().arg("check").arg(&image).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("3 blobs, 3 compression contexts"), "{said}");
    // The command of the same name makes the same.
    let layers = ["1", "2", "3"].map(|number| {
        let upper = root.path().join("snapshots").join(number).join("fs");
        let is_image = |path: &PathBuf| path.file_name().unwrap().len() == 64;
        fs::read_dir(upper).unwrap().map(|entry| entry.unwrap().path()).find(is_image).unwrap()
    });
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    let again = out.join("image.boot");
    let status = plywood().arg("merge").args(&layers).arg("-o").arg(&again).status().unwrap();
    assert!(status.success() && fs::read(&again).unwrap() == fs::read(&image).unwrap());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 4, "the contexts of three layers");
    let status = plywood().args(["merge", "--format", "fsmeta"]).args(&layers).arg("-o").arg(&again).output();
    let said = String::from_utf8(status.unwrap().stderr).unwrap();
    assert!(said.contains("[merge.form]"), "{said}");
}

fn merged_in_the_kernel() -> Result<(), Failed> {
    let root = tempfile::tempdir()?;
    let (image, devices) = merged(root.path());
    let options: Vec<_> = devices.iter().map(|path| format!("device={}", path.display())).collect();
    let mounted = MountPoint::new("erofs", &image, root, &options.join(","))?;
    listing::assert_listed(&listing::by_kernel(&mounted.at()), &text("erofs/merge/merged.jsonl"), true);
    Ok(())
}

/// nydus-image 2.4.4 gives implied directories of upper layers their own attributes.
fn the_merge_of_another_tool_has_the_same_files() {
    let root = tempfile::tempdir().unwrap();
    let (_, devices) = snapshots(root.path());
    let want = text("erofs/merge/merged.jsonl");
    for (name, directories) in [("image.boot", true), ("image.boot.nydus-2.4.4", false)] {
        let image = root.path().join(name);
        fs::write(&image, unpacked(&format!("rafs/{name}.xz"))).unwrap();
        let devices = in_slot_order(&fs::read(&image).unwrap(), &devices);
        listing::assert_listed(&read_listing(&image, &devices), &want, directories);
        let output = plywood().arg("check").arg(&image).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
}

/// Names, modes and bytes of the files in a directory.
fn files(dir: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777;
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, mode, fs::read(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

fn names(dir: &Path) -> Vec<(String, u32)> {
    files(dir).into_iter().map(|(name, mode, _)| (name, mode)).collect()
}

fn a_snapshot_directory_ends_as_the_nydus_snapshotter_leaves_it() {
    let root = tempfile::tempdir().unwrap();
    let (upper_paths, _) = snapshots(root.path());
    let ids = LAYERS.map(|name| estargz(name).1.to_string());
    let own = |id: &str| {
        let mut files = vec![
            (id.to_owned(), 0o440),
            (format!("{id}.blob.meta"), 0o644),
            ("stargz.index.json".to_owned(), 0o440),
        ];
        files.sort();
        files
    };
    for (upper, id) in upper_paths.iter().rev().zip(&ids) {
        assert_eq!(names(upper), own(id));
    }
    // Once more: what is there stays.
    let before: Vec<_> = upper_paths.iter().map(|upper| files(upper)).collect();
    for ((name, id), upper) in LAYERS.iter().zip(&ids).zip(upper_paths.iter().rev()) {
        let layer = is_stargz_data_layer(estargz(name).0, &BTreeMap::new()).unwrap();
        let id = BlobId::parse(id).unwrap();
        assert_eq!(prepare_stargz_meta_layer(&layer, id, upper, None).unwrap(), None);
    }
    assert!(before == upper_paths.iter().map(|upper| files(upper)).collect::<Vec<_>>());

    let merge = |parents: &[PathBuf]| merge_stargz_meta_layer(parents, &Limits::default(), &Cancel::new());
    merge(&upper_paths).unwrap().unwrap();
    let mut want = own(&ids[2]);
    want.extend(ids[..2].iter().map(|id| (format!("{id}.blob.meta"), 0o644)));
    want.push(("image.boot".to_owned(), 0o440));
    want.sort();
    assert_eq!(names(&upper_paths[0]), want);
    for (upper, before) in upper_paths[1..].iter().zip(&before[1..]) {
        assert!(files(upper) == *before, "the parents below stay as they are");
    }
    let copied = |id: &String, from: &Path| {
        let name = format!("{id}.blob.meta");
        fs::read(upper_paths[0].join(&name)).unwrap() == fs::read(from.join(&name)).unwrap()
    };
    assert!(copied(&ids[0], &upper_paths[2]) && copied(&ids[1], &upper_paths[1]));
    let before = files(&upper_paths[0]);
    assert_eq!(merge(&upper_paths).unwrap(), None, "an existing one is respected");
    assert!(files(&upper_paths[0]) == before);
    // Whatever it is: not even the parents are looked at.
    let (merged, context) =
        (upper_paths[0].join("image.boot"), upper_paths[0].join(format!("{}.blob.meta", ids[0])));
    let made = fs::read(&merged).unwrap();
    fs::write(&merged, "another one").unwrap();
    fs::remove_file(&context).unwrap();
    assert_eq!(merge(&[&upper_paths[..1], &[root.path().join("none")]].concat()).unwrap(), None);
    assert_eq!(fs::read(&merged).unwrap(), b"another one");
    assert!(!context.exists());
    // So is an existing compression context, when merged metadata has to be made.
    fs::remove_file(&merged).unwrap();
    fs::write(&context, "another one").unwrap();
    merge(&upper_paths).unwrap().unwrap();
    assert!(fs::read(&merged).unwrap() == made && fs::read(&context).unwrap() == b"another one");
    fs::copy(upper_paths[2].join(context.file_name().unwrap()), &context).unwrap();
    // The command for directories makes the same call.
    fs::remove_file(upper_paths[0].join("image.boot")).unwrap();
    let output = plywood().arg("merge").args(upper_paths.iter().rev()).output().unwrap();
    assert!(output.status.success() && files(&upper_paths[0]) == before, "{output:?}");

    // A single layer is copied.
    assert_eq!(merge(&upper_paths[2..]).unwrap(), None);
    let read = |name: &str| fs::read(upper_paths[2].join(name)).unwrap();
    assert!(read("image.boot") == read(&ids[0]));
    let mut want = own(&ids[0]);
    want.push(("image.boot".to_owned(), 0o440));
    want.sort();
    assert_eq!(names(&upper_paths[2]), want);
}

/// A copy of a file of a snapshot costs no space where the file system can share blocks.
fn copies_share_their_blocks() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let (disk, at) = (dir.path().join("disk"), dir.path().join("mnt"));
    fs::File::create(&disk)?.set_len(400 << 20)?;
    fs::create_dir(&at)?;
    run(Command::new(program("mkfs.xfs").unwrap()).args(["-q", "-m", "reflink=1"]).arg(&disk))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&at))?;
    let (upper_paths, _) = snapshots(&at);
    let merge = |parents: &[PathBuf]| merge_stargz_meta_layer(parents, &Limits::default(), &Cancel::new());
    let outcome = merge(&upper_paths).and_then(|_| merge(&upper_paths[2..]));
    let contexts =
        LAYERS[..2].iter().map(|name| upper_paths[0].join(format!("{}.blob.meta", estargz(name).1)));
    let copies: Vec<_> = contexts.chain([upper_paths[2].join("image.boot")]).collect();
    let extents: Vec<_> = copies
        .iter()
        .map(|path| run(Command::new(program("filefrag").unwrap()).arg("-vs").arg(path)))
        .collect();
    run(Command::new("umount").arg(&at))?;
    outcome?;
    for said in extents {
        let said = said?;
        assert!(said.lines().any(|line| line.ends_with("shared,eof")), "{said}");
    }
    Ok(())
}

/// `/data` and `/usr` of the lowest layer have entries, and the names of the layers above only imply them.
fn implied_directories_keep_the_attributes_below() {
    let root = tempfile::tempdir().unwrap();
    let (upper_paths, devices) = snapshots(root.path());
    // Also without the tables of contents.
    for upper in &upper_paths {
        fs::remove_file(upper.join("stargz.index.json")).unwrap();
    }
    merge_stargz_meta_layer(&upper_paths, &Limits::default(), &Cancel::new()).unwrap().unwrap();
    let image = upper_paths[0].join("image.boot");
    let found = read_listing(&image, &in_slot_order(&fs::read(&image).unwrap(), &devices));
    assert_eq!((found[&b"data"[..]].attributes.mode, found[&b"usr"[..]].attributes.mode), (0o1777, 0o755));
    listing::assert_listed(&found, &text("erofs/merge/merged.jsonl"), true);
}

fn a_layer_that_is_none_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    for (name, reason) in [
        ("other/plain.tar.gz", "rafs.form"),
        ("other/plain.tar.zst", "rafs.form"),
        ("zstdchunked/plain-stargz.zc", "rafs.form"),
        ("zstdchunked/plain-containers.zc", "rafs.form"),
        ("estargz/l2-inner.esgz", "rafs.inner-offset"),
        ("other/plain-external.esgz", "rafs.form"),
        ("bad/toc-version-2.esgz", "stargz.toc.version"),
        ("bad/offset-beyond-end.gz", "stargz.toc.place"),
    ] {
        let blob = fs::read(fixture(&format!("stargz/{name}"))).unwrap();
        let id = id_of(&blob);
        let error = is_stargz_data_layer(blob, &BTreeMap::new())
            .and_then(|layer| prepare_stargz_meta_layer(&layer, id, dir.path(), None))
            .unwrap_err();
        assert_eq!(error.reason(), reason, "{name}: {error}");
        assert_eq!(names(dir.path()), [], "{name}");
    }
    // A declared table that is another one.
    let (blob, id) = estargz("plain");
    let layer = is_stargz_data_layer(blob, &annotations("stargz/estargz/l1.esgz")).unwrap();
    let error = prepare_stargz_meta_layer(&layer, id, dir.path(), None).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "stargz.toc.digest"));
    // The last name is taken by something that cannot be replaced.
    let (blob, id) = estargz("plain");
    let layer = is_stargz_data_layer(blob, &BTreeMap::new()).unwrap();
    fs::create_dir(dir.path().join(format!("{id}.blob.meta"))).unwrap();
    prepare_stargz_meta_layer(&layer, id, dir.path(), None).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // A parent without metadata.
    let root = tempfile::tempdir().unwrap();
    let (mut upper_paths, _) = snapshots(root.path());
    let before = files(&upper_paths[0]);
    upper_paths.push(dir.path().to_owned());
    let error = merge_stargz_meta_layer(&upper_paths, &Limits::default(), &Cancel::new()).unwrap_err();
    assert_eq!(error.reason(), "stargz.parent", "{error}");
    assert!(files(&upper_paths[0]) == before);
    // A parent with chunks of another size.
    let other = root.path().join("snapshots/9/fs");
    fs::create_dir_all(&other).unwrap();
    made("plain-chunk256k", &other);
    *upper_paths.last_mut().unwrap() = other;
    let error = merge_stargz_meta_layer(&upper_paths, &Limits::default(), &Cancel::new()).unwrap_err();
    assert_eq!(error.reason(), "merge.chunk-size", "{error}");
    assert!(files(&upper_paths[0]) == before);
}

/// The metadata and the data of a layer in one file.
fn whole(layer: &StargzLayer<Vec<u8>>, id: BlobId, path: &Path, threads: usize) -> Result<u64, Error> {
    with_threads(threads, |resources, work| write_whole(layer, id, path, resources, work))
}

fn one_file(name: &str, dir: &Path) -> PathBuf {
    let path = dir.join("layer.boot");
    let (layer, id) = layer_of(name);
    let bytes = whole(&layer, id, &path, 2).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
    path
}

fn blob_of(name: &str) -> Vec<u8> {
    fs::read(fixture(&format!("stargz/{name}"))).unwrap()
}

fn one_file_is_the_metadata_with_the_device_at_its_mapped_address() {
    for name in WITH_METADATA {
        let dir = tempfile::tempdir().unwrap();
        let Made { image, device } = made(name, dir.path());
        let mut want = fs::read(&image).unwrap();
        let slots = Image::open(want.as_slice()).unwrap().slots().to_vec();
        want.resize(usize::try_from(slots[0].unified_start * 4096).unwrap(), 0);
        want.extend(fs::read(&device).unwrap());
        let path = dir.path().join("layer.boot");
        let (layer, id) = layer_of(name);
        for threads in [0, 1, 4] {
            whole(&layer, id, &path, threads).unwrap();
            assert!(fs::read(&path).unwrap() == want, "{name}, {threads} threads");
        }
    }
}

fn one_file_has_the_files_of_the_layer() {
    for name in WITH_METADATA {
        let dir = tempfile::tempdir().unwrap();
        let path = one_file(name, dir.path());
        listing::assert_listed(&read_listing(&path, &[]), &listing_of(name), true);
        let output = plywood().arg("check").arg(&path).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.contains("RAFS metadata"), "{said}");
    }
    // A file that ends within its data is not taken for metadata alone.
    let dir = tempfile::tempdir().unwrap();
    let path = one_file("plain", dir.path());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(fs::metadata(&path).unwrap().len() - 4096).unwrap();
    let output = plywood().arg("check").arg(&path).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success() && said.contains("[erofs.device.range]"), "{said}");
}

fn one_file_in_the_kernel() -> Result<(), Failed> {
    for name in WITH_METADATA {
        let dir = tempfile::tempdir()?;
        let path = one_file(name, dir.path());
        let mounted = MountPoint::new("erofs", &path, dir, "")?;
        listing::assert_listed(&listing::by_kernel(&mounted.at()), &listing_of(name), true);
    }
    Ok(())
}

/// The part of such a file that is the data device: erofs-rs and fsck.erofs want every device as a file of its own.
fn device_in(file: &[u8]) -> &[u8] {
    let slots = Image::open(file).unwrap().slots().to_vec();
    &file[usize::try_from(slots[0].unified_start * 4096).unwrap()..]
}

fn one_file_reads_as_by_erofs_rs() {
    for name in WITH_METADATA {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::read(one_file(name, dir.path())).unwrap();
        let devices = vec![SliceImage::new(device_in(&file))];
        let image = EroFS::new_with_devices(SliceImage::new(&file), devices).unwrap();
        listing::assert_listed(&listing::of_erofs_rs(&image), &listing_of(name), true);
    }
}

/// Where the data is does not matter to a merge: it keeps the places on the devices.
fn files_with_data_merge_like_their_metadata() {
    let root = tempfile::tempdir().unwrap();
    let (want, _) = merged(root.path());
    let layers = LAYERS.map(|name| {
        let dir = root.path().join(name);
        fs::create_dir(&dir).unwrap();
        one_file(name, &dir)
    });
    let found = root.path().join("image.boot");
    let output = plywood().arg("merge").args(layers).arg("-o").arg(&found).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(found).unwrap() == fs::read(want).unwrap());
}

fn erofs_utils_read_metadata() -> Result<(), Failed> {
    let accepted = |image: &Path, devices: &[PathBuf]| {
        let arguments = devices.iter().map(|path| format!("--device={}", path.display()));
        let output = Command::new(program("fsck.erofs").unwrap())
            .arg("--extract")
            .args(arguments)
            .arg(image)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !said.contains("<E>") && !said.contains("<W>"), "{said}");
        let output = Command::new(program("dump.erofs").unwrap()).arg("-s").arg(image).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("chunked_file device_table"), "{said}");
    };
    for name in WITH_METADATA {
        let dir = tempfile::tempdir()?;
        let Made { image, device } = made(name, dir.path());
        accepted(&image, &[device]);
        let file = one_file(name, dir.path());
        let data = dir.path().join("data");
        fs::write(&data, device_in(&fs::read(&file)?))?;
        accepted(&file, &[data]);
    }
    let root = tempfile::tempdir()?;
    let (image, devices) = merged(root.path());
    accepted(&image, &devices);
    Ok(())
}

fn nydus_image(arguments: &[&Path]) -> Result<(), Failed> {
    run(Command::new(program("nydus-image").unwrap()).args(arguments)).map(drop)
}

fn nydus_accepts() -> Result<(), Failed> {
    let check = |image: &Path| nydus_image(&["check".as_ref(), "--bootstrap".as_ref(), image]);
    for name in WITH_METADATA {
        let dir = tempfile::tempdir()?;
        check(&made(name, dir.path()).image)?;
        check(&one_file(name, dir.path()))?;
    }
    let root = tempfile::tempdir()?;
    check(&merged(root.path()).0)
}

/// It gives implied directories of upper layers their own attributes.
fn nydus_merges() -> Result<(), Failed> {
    let root = tempfile::tempdir()?;
    let layers = LAYERS.map(|name| made(name, root.path()));
    let merged = root.path().join("image.boot");
    let arguments = ["merge".as_ref(), "--bootstrap".as_ref(), merged.as_path()];
    let images = layers.iter().map(|layer| layer.image.as_path());
    nydus_image(&arguments.into_iter().chain(images).collect::<Vec<_>>())?;
    let devices = layers.map(|layer| layer.device);
    let devices = in_slot_order(&fs::read(&merged)?, &devices);
    listing::assert_listed(&read_listing(&merged, &devices), &text("erofs/merge/merged.jsonl"), false);
    Ok(())
}

/// The archive that it makes, which has all data, is that of the layer. Whiteouts are files in it, but not in an image.
fn nydus_unpacks() -> Result<(), Failed> {
    for name in ["eqsize", "l1", "plain", "plain-chunk256k"] {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let blob = at("blob");
        fs::write(&blob, estargz(name).0)?;
        let (tar, image) = (at("tar"), at("image"));
        let metadata = made(name, dir.path()).image;
        nydus_image(&[
            "unpack".as_ref(),
            "--bootstrap".as_ref(),
            &metadata,
            "--blob".as_ref(),
            &blob,
            "--output".as_ref(),
            &tar,
        ])?;
        run(plywood().arg("apply").arg(&tar).arg("-o").arg(&image))?;
        listing::assert_listed(&listing::by_our_reader(&fs::read(&image)?), &listing_of(name), false);
    }
    Ok(())
}

/// Where the compressed data of each chunk is in a blob, with the path of its file.
fn chunks(name: &str, blob: &[u8]) -> Vec<(String, u64, u64)> {
    let declared = Declared::of(&annotations(&format!("stargz/{name}"))).unwrap();
    let layout = Layout::find(&blob, &declared).unwrap().unwrap();
    let json = layout.read_toc(&blob, &declared).unwrap().unwrap();
    let toc = Toc::read(&json, layout.payload_end).unwrap();
    let entries = toc.entries().iter().filter(|entry| !toc.is_of_the_format(entry));
    let chunks = entries.flat_map(|entry| {
        let path = String::from_utf8(entry.path.clone()).unwrap();
        toc.chunks_of(entry).iter().map(move |chunk| (path.clone(), chunk.blob_offset, chunk.blob_end))
    });
    chunks.collect()
}

fn a_flipped_bit_in_any_chunk_is_an_error_with_layer_and_path() {
    let dir = tempfile::tempdir().unwrap();
    let (path, damaged) = (dir.path().join("out"), dir.path().join("damaged"));
    for name in
        ["estargz/l2.esgz", "estargz/l3.esgz", "estargz/plain.esgz", "zstdchunked/plain-containers.zc"]
    {
        let blob = blob_of(name);
        let has_metadata = name.starts_with("estargz");
        for (file, start, end) in chunks(name, &blob) {
            let mut bytes = blob.clone();
            // Behind the header of the member, or of the frame, and before its trailer.
            let at = usize::try_from(start + (end - start).min(24) / 2 + 1).unwrap();
            bytes[at] ^= 4;
            fs::write(&damaged, &bytes).unwrap();
            let mut commands = vec![plywood()];
            commands[0].arg("check").arg(&damaged);
            if has_metadata {
                let layer = is_stargz_data_layer(bytes, &annotations(&format!("stargz/{name}"))).unwrap();
                let error = whole(&layer, id_of(&blob), &path, 2).unwrap_err();
                assert!(error.reason().starts_with("stargz.chunk."), "{name}, {file}: {error}");
                for arguments in [&["--whole", "out"][..], &["--data", "-o", "."]] {
                    let mut command = plywood();
                    command.arg("stargz").arg(&damaged).args(arguments).current_dir(dir.path());
                    commands.push(command);
                }
            }
            for mut command in commands {
                let output = command.output().unwrap();
                let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
                assert!(said.contains("damaged: ") && said.contains("[stargz.chunk."), "{said}");
                // Another file may share the chunk.
                let names_a_file = |(file, ..): &(String, u64, u64)| said.contains(&format!("\"{file}\": "));
                assert!(chunks(name, &blob).iter().any(names_a_file), "{said}");
            }
            assert_eq!(names(dir.path()).len(), 1, "nothing but the layer is left");
        }
    }
}

/// With several threads a later one is found earlier.
fn of_several_damaged_chunks_the_first_in_the_blob_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let name = "estargz/plain-chunk256k.esgz";
    let mut blob = blob_of(name);
    let mut found = chunks(name, &blob);
    found.sort_by_key(|(_, start, _)| *start);
    for (_, start, _) in &found {
        blob[usize::try_from(*start).unwrap()] = 0;
    }
    let layer = is_stargz_data_layer(blob, &annotations(&format!("stargz/{name}"))).unwrap();
    for threads in [0, 4] {
        let error = whole(&layer, id_of(b""), &dir.path().join("out"), threads).unwrap_err().to_string();
        assert!(error.contains(&format!("byte {} of the blob", found[0].1)), "{error}");
    }
}

fn damaged_tables_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text("stargz/bad/expect.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let (name, expect) = (case["file"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let blob = blob_of(&format!("bad/{name}"));
        let id = id_of(&blob);
        let path = dir.path().join(format!("{name}.boot"));
        let outcome =
            is_stargz_data_layer(blob, &BTreeMap::new()).and_then(|layer| whole(&layer, id, &path, 2));
        assert_eq!(outcome.is_ok(), expect == "index-ok", "{name}, {expect}: {:?}", outcome.err());
        assert_eq!(path.exists(), expect == "index-ok", "{name}");
    }
}

fn metadata_of_which_a_byte_is_wrong_is_refused_or_sound() {
    let dir = tempfile::tempdir().unwrap();
    let image = fs::read(made("plain", dir.path()).image).unwrap();
    let mut refused = 0;
    for at in (1024..image.len()).filter(|at| image[*at] != 0 || at % 64 == 0) {
        let mut damaged = image.clone();
        damaged[at] ^= 0x11;
        // Neither panics nor takes long.
        let opened = Image::open(damaged.as_slice());
        let outcome =
            opened.map_err(Error::from).and_then(|image| Ok(rafs::verify(&image, 1 << 20).map(drop)?));
        refused += usize::from(outcome.is_err());
        assert!(damaged.size_bytes() > 0);
    }
    assert!(refused > 200, "{refused}");
}
