//! LSMT layers of overlaybd's own tools, read by us, and committed by us to the same bytes.

use std::{fs, io::Read as _, path::PathBuf};

use plywood::{
    digest::{Algorithm, Hasher},
    format::{
        ReadAt, Sink,
        lsmt::{CommitOptions, Device, Layer, NewUpper, Targets, Upper, Uuid, Writable, Writer},
        zfile::reader::Reader,
    },
    tree::Extent,
};
use serde_json::Value;
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    for (name, test) in [
        ("every_layer_of_overlaybd_reads_as_the_expected_device", expected_devices as fn()),
        ("a_stack_of_overlaybd_reads_as_the_expected_device", expected_stack),
        ("a_turbo_layer_reads_its_files_from_the_archive", expected_turbo),
        ("a_sparse_layer_is_mapped_by_its_holes", sparse),
        ("committing_a_pair_and_its_sealed_file_gives_the_bytes_of_overlaybd", same_bytes),
        ("sealing_a_pair_gives_the_bytes_of_overlaybd", sealed_bytes),
        ("a_pair_that_was_written_again_reads_the_same", upper),
        ("a_layer_written_in_another_order_has_the_bytes_of_overlaybd", written_in_any_order),
    ] {
        suite.test(name, &[], test);
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd").join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn expected(file: &str, stack: &str) -> Value {
    let all: Value = serde_json::from_slice(&fixture(file)).unwrap();
    all[stack].clone()
}

/// SHA-256 of everything in a volume.
fn sha256(volume: &impl ReadAt) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while at < volume.size_bytes() {
        let len = usize::try_from(volume.size_bytes() - at).unwrap().min(buffer.len());
        volume.read_exact_at(at, &mut buffer[..len]).unwrap();
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    hasher.finish().hex().to_owned()
}

/// The runs of sectors in data that are not zeros.
fn nonzero_runs<R: ReadAt>(device: &Device<R>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for Extent { offset, len } in device.data(0, device.size_bytes()) {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        device.read_exact_at(offset, &mut bytes).unwrap();
        for (sector, _) in
            (offset / 512..).zip(bytes.chunks(512)).filter(|(_, sector)| sector.iter().any(|b| *b != 0))
        {
            match runs.last_mut() {
                Some((start, count)) if *start + *count == sector => *count += 1,
                _ => runs.push((sector, 1)),
            }
        }
    }
    runs
}

fn assert_device<R: ReadAt>(device: &Device<R>, want: &Value, name: &str) {
    assert_eq!(device.size_bytes(), want["device_size"].as_u64().unwrap(), "{name}");
    let runs: Vec<(u64, u64)> = serde_json::from_value(want["nonzero_extents_512B"].clone()).unwrap();
    assert_eq!(nonzero_runs(device), runs, "{name}");
    assert_eq!(sha256(device), want["sha256_device"].as_str().unwrap(), "{name}");
}

fn one(layer: Layer<Vec<u8>>) -> Device<Vec<u8>> {
    Device::new(vec![layer]).unwrap()
}

fn committed(name: &str) -> Layer<Vec<u8>> {
    Layer::open(fixture(&format!("lsmt/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn pair(name: &str) -> Layer<Vec<u8>> {
    let [data, index] = ["data", "index"].map(|file| fixture(&format!("lsmt/{name}.rw.{file}")));
    Layer::open_pair(data, &index).unwrap()
}

fn expected_devices() {
    for (name, stack) in [
        ("ops2.commit", "ops2"),
        ("ops2.sealed", "ops2"),
        ("over2.commit", "over2 alone"),
        ("over2.sealed", "over2 alone"),
        ("erofs.commit", "erofs"),
        ("sparse.commit", "sparse"),
    ] {
        assert_device(&one(committed(name)), &expected("lsmt/expected.json", stack), name);
    }
    for name in ["erofs.lz4-4k.zfile", "erofs.zstd-8k.zfile"] {
        let layer = Layer::open(Reader::open(fixture(&format!("zfile/{name}"))).unwrap()).unwrap();
        assert_device(&Device::new(vec![layer]).unwrap(), &expected("lsmt/expected.json", "erofs"), name);
    }
    for (name, stack) in [("ops2", "ops2"), ("over2", "over2 alone")] {
        assert_device(&one(pair(name)), &expected("lsmt/expected.json", stack), name);
    }
}

fn sealed_bytes() {
    for name in ["ops2", "over2"] {
        let mut data = fixture(&format!("lsmt/{name}.rw.data"));
        let seal = pair(name).seal().unwrap();
        assert!(!Layer::is_sealed(&data) && seal.offset == data.len() as u64);
        data.extend([seal.index, seal.trailer].concat());
        assert!(Layer::is_sealed(&data));
        // The bytes between the index and the trailer were never set there.
        let mut want = fixture(&format!("lsmt/{name}.sealed"));
        let entries = usize::try_from(pair(name).entries()).unwrap();
        let (index, trailer) = (fixture(&format!("lsmt/{name}.rw.data")).len(), want.len() - 4096);
        want[index + 16 * entries..trailer].fill(0);
        assert!(data == want, "{name}");
    }
    // A sparse one keeps its place on the device, and its holes.
    let (mut data, extents) = sparse_file();
    let seal = Layer::open_sparse(data.clone(), extents).unwrap().seal().unwrap();
    data.extend([seal.index, seal.trailer].concat());
    assert_eq!(data.len(), 4096 + (8 << 20) + 512 + 4096);
    assert_device(&one(Layer::open(data).unwrap()), &expected("lsmt/expected.json", "sparse"), "sealed");
}

fn upper() {
    let new = |kind, name: &str| {
        let uuid = pair(name).header().uuid;
        let parent_uuid = pair(name).header().parent_uuid;
        let new = NewUpper { kind, virtual_size: 16 << 20, uuid, parent_uuid };
        let (mut data, mut index) = (Vec::new(), Vec::new());
        Upper::create(new, &mut data, &mut index).unwrap();
        Upper::open(&mut data, &mut index, kind == Writable::Turbo, 3)
            .unwrap()
            .write(&pair(name), &vec![0; 16 << 20])
            .unwrap();
        (data, index)
    };
    for name in ["ops2", "over2"] {
        let stack = if name == "ops2" { "ops2" } else { "over2 alone" };
        let want = expected("lsmt/expected.json", stack);
        let (data, index) = new(Writable::Append, name);
        let again = Layer::open_pair(data, &index).unwrap();
        assert_device(&one(again), &want, name);
        let (data, index) = new(Writable::Turbo, name);
        assert_device(&one(Layer::open_turbo_pair(data, &index, Vec::new()).unwrap()), &want, name);
        let (data, index) = new(Writable::Sparse, name);
        assert!(index.is_empty());
        let whole = Extent { offset: 0, len: data.len() as u64 };
        assert_device(&one(Layer::open_sparse(data, [whole]).unwrap()), &want, name);
    }
    // Written in the order of the device, a pair is committed to the same bytes.
    let (data, index) = new(Writable::Append, "over2");
    let mut bytes = Vec::new();
    one(Layer::open_pair(data, &index).unwrap()).commit(&identity("over2"), &mut bytes).unwrap();
    assert!(bytes == fixture("lsmt/over2.commit"));
    // What a fresh pair looks like is what overlaybd's looked like.
    let (data, index) = (fixture("lsmt/ops2.rw.data"), fixture("lsmt/ops2.rw.index"));
    let new = NewUpper {
        kind: Writable::Append,
        virtual_size: 16 << 20,
        uuid: identity("ops2").uuid,
        parent_uuid: Uuid::NULL,
    };
    let (mut our_data, mut our_index) = (Vec::new(), Vec::new());
    Upper::create(new, &mut our_data, &mut our_index).unwrap();
    assert!(our_data == data[..4096] && our_index == index[..4096]);
}

fn expected_stack() {
    let want = expected("lsmt/expected.json", "chain ops2<over2");
    for upper in [committed("over2.commit"), committed("over2.sealed"), pair("over2")] {
        let device = Device::new(vec![committed("ops2.commit"), upper]).unwrap();
        assert_device(&device, &want, "ops2 < over2");
        let mut merged = Vec::new();
        device.commit(&CommitOptions::default(), &mut merged).unwrap();
        assert_device(&one(Layer::open(merged).unwrap()), &want, "the merged layer");
    }
    let merged = Reader::open(fixture("zfile/merged-ops2-over2.zfile")).unwrap();
    assert_device(&Device::new(vec![Layer::open(merged).unwrap()]).unwrap(), &want, "merged by overlaybd");
    let wrong = Device::new(vec![committed("over2.commit"), committed("ops2.commit")]).unwrap();
    assert_ne!(sha256(&wrong), want["sha256_device"].as_str().unwrap());
}

fn expected_turbo() {
    let file = fixture("turbo/base.erofs.fs.meta.uncompressed");
    let layer = Layer::open_turbo(file.clone(), fixture("turbo/base.tar")).unwrap();
    assert_eq!(layer.target_end(), 352 * 512);
    let device = one(layer);
    assert_device(&device, &expected("turbo/expected-device.json", "erofs base"), "turbo");
    let mut again = Vec::new();
    let keep = CommitOptions { targets: Targets::Keep, ..CommitOptions::default() };
    device.commit(&keep, &mut again).unwrap();
    assert!(again == file, "a turboOCI layer is committed to itself");
    // With its data inside, it is a plain layer.
    let mut plain = Vec::new();
    device.commit(&CommitOptions::default(), &mut plain).unwrap();
    assert_device(
        &one(Layer::open(plain).unwrap()),
        &expected("turbo/expected-device.json", "erofs base"),
        "with its data inside",
    );
}

/// The writable sparse file of the fixtures, and where it has data: from the map of the tar entry.
fn sparse_file() -> (Vec<u8>, Vec<Extent>) {
    let packed = fixture("lsmt/sparse.rw.data.tar.gz");
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut archive).unwrap();
    let mut archive = tar::Archive::new(archive.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).unwrap();
    // The crate fills the holes with zeros. Blocks of zeros were holes: the data has none.
    let blocks = (0..).zip(bytes.chunks(4096)).filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    let extents = blocks.map(|(n, _): (u64, _)| Extent { offset: n * 4096, len: 4096 }).collect();
    (bytes, extents)
}

fn sparse() {
    let (bytes, extents) = sparse_file();
    assert_eq!(bytes.len(), 4096 + (8 << 20));
    let device = one(Layer::open_sparse(bytes.clone(), extents).unwrap());
    assert_device(&device, &expected("lsmt/expected.json", "sparse"), "sparse");
    // A copy that lost its holes reads the same, but maps everything.
    let whole = Extent { offset: 0, len: bytes.len() as u64 };
    let dense = one(Layer::open_sparse(bytes, [whole]).unwrap());
    assert_eq!(sha256(&dense), sha256(&device));
    assert_eq!(dense.data(0, u64::MAX).map(|extent| extent.len).sum::<u64>(), 8 << 20);
}

/// What the fixtures were committed with.
fn identity(layer: &str) -> CommitOptions {
    let uuid = |text| Uuid::parse(text).unwrap();
    let (uuid, parent_uuid) = match layer {
        "ops2" => (uuid("0b0b0b0b-1111-4111-8111-000000000001"), None),
        "over2" => (uuid("0b0b0b0b-2222-4222-8222-000000000002"), None),
        _ => (uuid("0b0b0b0b-4444-4444-8444-000000000004"), None),
    };
    CommitOptions { uuid, parent_uuid, ..CommitOptions::default() }
}

fn same_bytes() {
    for name in ["ops2", "over2"] {
        let want = fixture(&format!("lsmt/{name}.commit"));
        for layer in [pair(name), committed(&format!("{name}.sealed")), committed(&format!("{name}.commit"))]
        {
            let form = layer.form();
            let mut bytes = Vec::new();
            let done = one(layer).commit(&identity(name), &mut bytes).unwrap();
            assert!(bytes == want, "{name} from {form:?}");
            assert_eq!(done.file_bytes, want.len() as u64);
        }
    }
}

fn written_in_any_order() {
    let want = fixture("lsmt/erofs.commit");
    let device = one(committed("erofs.commit"));
    let pieces: Vec<_> = (0..344_u64).map(|sector| sector * 512).collect();
    for (step, turn) in [(1, 0), (7, 0), (45, 5), (343, 2)] {
        let mut writer = Writer::new(Vec::new(), 1 << 20);
        // Garbage, overwritten or taken back.
        writer.write_at(3000, &[7; 9000]).unwrap();
        writer.write_at(400 * 512, &[7; 5000]).unwrap();
        for n in 0..344 {
            let offset = pieces[(n * step + turn) % 344];
            let mut bytes = [0; 512];
            device.read_exact_at(offset, &mut bytes).unwrap();
            writer.write_at(offset, &bytes).unwrap();
        }
        writer.discard(400 * 512, 10 * 512).unwrap();
        let mut bytes = Vec::new();
        one(writer.finish().unwrap()).commit(&identity("erofs"), &mut bytes).unwrap();
        assert!(bytes == want, "every {step}th sector from {turn} on");
    }
}
