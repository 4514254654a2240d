use std::fs::File;

use super::*;
use crate::{
    call::{Cancel, Progress, Work},
    format::erofs::check,
    limits::Limits,
    pipeline::{Resources, budget::Lease},
    tree::{Attributes, Extent, Xattr},
};

const GIB: u64 = 1 << 30;

/// Threads, memory and cancellation of a test.
struct Bench {
    resources: Arc<Resources>,
    lease: Lease,
    cancel: Cancel,
    progress: Progress,
}

impl Bench {
    fn new() -> Self {
        Self::limited(Limits::default())
    }

    fn limited(limits: Limits) -> Self {
        let (resources, cancel) = (Resources::new(limits, 2), Cancel::new());
        let lease = resources.budget.lease(&cancel).unwrap();
        Self { resources, lease, cancel, progress: Progress::default() }
    }

    fn plan(&self) -> Plan<'_> {
        let work = Work { cancel: &self.cancel, progress: &self.progress };
        Plan { resources: &self.resources, lease: &self.lease, work }
    }

    /// Builds a layer of files whose data does not come, on `base`.
    fn import(&self, base: &Base<'_>, place: DataPlace, entries: &[(Entry, u64)]) -> Result<NewLayer<File>> {
        let mut writer = LayerWriter::new(tempfile::tempfile().unwrap(), base, place, self.plan())?;
        for (entry, data_start) in entries {
            writer.import(entry, *data_start)?;
        }
        writer.finish(base, self.plan())
    }
}

fn options(virtual_bytes: u64) -> DeviceOptions {
    DeviceOptions { flavour: crate::kind::overlaybd::Flavour::Erofs, virtual_bytes }
}

fn file(path: &str, size_bytes: u64, extents: Option<Vec<Extent>>) -> Entry {
    let attributes = Attributes { mode: 0o644, ..Attributes::default() };
    Entry { path: path.into(), attributes, xattrs: Vec::new(), body: Body::Regular { size_bytes, extents } }
}

/// An archive of any size, each sector of which holds its own number.
#[derive(Debug)]
struct Numbered;

impl ReadAt for Numbered {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (offset..).zip(buf) {
            let within = usize::try_from(at % 512).unwrap();
            *byte = (at / 512).to_le_bytes().get(within).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        u64::MAX
    }
}

/// A file of a device.
#[derive(Debug)]
enum Part {
    Layer(zfile::reader::Reader<Vec<u8>>),
    Archive,
}

impl ReadAt for Part {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Layer(contents) => contents.read_exact_at(offset, buf),
            Self::Archive => Numbered.read_exact_at(offset, buf),
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Layer(contents) => contents.size_bytes(),
            Self::Archive => Numbered.size_bytes(),
        }
    }
}

/// The layer as it is read, with the archive as its target.
fn read(layer: NewLayer<File>) -> lsmt::Device<Part> {
    lsmt::Device::new(vec![opened(&written(layer))]).unwrap()
}

fn written(layer: NewLayer<File>) -> Vec<u8> {
    let mut file = Vec::new();
    let bench = Bench::new();
    layer.write(zfile::writer::Options::default(), &bench.resources.helpers, &mut file).unwrap();
    file
}

fn opened(file: &[u8]) -> lsmt::Layer<Part> {
    let contents = zfile::reader::Reader::open(file.to_vec()).unwrap();
    lsmt::Layer::open_turbo(Part::Layer(contents), Part::Archive).unwrap()
}

/// Upstream's tools count the bytes of a mapping in 32 bits.
#[test]
fn files_of_more_than_4_gib_are_mapped_to_their_end() {
    let bench = Bench::new();
    let base = Base::new(&options(64 * GIB)).unwrap();
    let (large, start) = (5 * GIB + 700, 9 * GIB + 512);
    let holes = vec![Extent { offset: 6 * GIB, len: 1024 }, Extent { offset: 7 * GIB - 512, len: 512 }];
    let entries = [(file("large", large, None), start), (file("sparse", 7 * GIB, Some(holes)), 20 * GIB)];
    let layer = bench.import(&base, DataPlace::Target, &entries).unwrap();
    let device = read(layer);
    let image = Image::open(&device).unwrap();
    let sector = |path: &[u8], offset: u64| {
        let node = image.find(path).unwrap().unwrap();
        let mut bytes = [0; 8];
        image.read_data(&node, offset, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    for offset in [0, 512, 4 * GIB - 512, 4 * GIB, 4 * GIB + 512, 5 * GIB + 512] {
        assert_eq!(sector(b"large", offset), (start + offset) / 512, "at {offset}");
    }
    assert_eq!(sector(b"sparse", 6 * GIB), 20 * GIB / 512);
    assert_eq!(sector(b"sparse", 6 * GIB + 512), 20 * GIB / 512 + 1);
    assert_eq!(sector(b"sparse", 7 * GIB - 512), 20 * GIB / 512 + 2);
    assert_eq!([0, 5 * GIB, 6 * GIB + 1024].map(|offset| sector(b"sparse", offset)), [0; 3]);
}

/// The check reads ahead, over sectors that are mapped to the archive, which is not at hand.
#[test]
fn inodes_between_mapped_blocks_are_checked_without_the_archive() {
    let bench = Bench::new();
    let base = Base::new(&options(GIB)).unwrap();
    let entries: Vec<_> =
        (0..40_000_u64).map(|n| (file(&format!("f{n}"), 4, None), 512 + 1024 * n)).collect();
    let layer = bench.import(&base, DataPlace::Target, &entries).unwrap();
    assert_eq!(layer.summary.nodes, 40_001);
}

/// A directory whose names are in a block of their own keeps its inode's place, where longer attributes stood.
#[test]
fn nothing_is_left_of_attributes_that_were_longer() {
    let bench = Bench::new();
    let directory = |len: usize| {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        let xattrs = vec![Xattr { name: b"user.x".to_vec(), value: vec![7; len] }];
        (Entry { path: b"d".to_vec(), attributes, xattrs, body: Body::Directory }, 0)
    };
    let base = Base::new(&options(GIB)).unwrap();
    let lower = written(bench.import(&base, DataPlace::Target, &[directory(9000)]).unwrap());
    let below = lsmt::Device::new(vec![opened(&lower)]).unwrap();
    let base = Base::open(&below, &options(GIB)).unwrap();
    let upper = written(bench.import(&base, DataPlace::Target, &[directory(20)]).unwrap());
    let device = lsmt::Device::new(vec![opened(&lower), opened(&upper)]).unwrap();
    let report = check::verify(&device, &check::Policy::layer()).unwrap();
    assert_eq!(report.lints, []);
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let bench = Bench::new();
    let base = Base::new(&options(16 << 20)).unwrap();
    let fits = [(file("a", 8 << 20, None), 512)];
    bench.import(&base, DataPlace::Target, &fits).unwrap();
    let large = [(file("a", 16 << 20, None), 512)];
    let error = bench.import(&base, DataPlace::Target, &large).err().unwrap();
    assert_eq!((error.reason(), error.kind()), ("overlaybd.device-full", Kind::Exhausted), "{error}");
}

#[test]
fn a_sparse_file_whose_data_is_not_in_the_metadata_is_refused() {
    let bench = Bench::new();
    let base = Base::new(&options(GIB)).unwrap();
    let holes = vec![Extent { offset: 4096, len: 5 }, Extent { offset: 8192, len: 512 }];
    let error = bench.import(&base, DataPlace::Target, &[(file("s", GIB, Some(holes)), 512)]).err().unwrap();
    assert_eq!((error.reason(), error.kind()), ("overlaybd.import-sparse", Kind::NotImplemented), "{error}");
    let error = bench.import(&base, DataPlace::Target, &[(file("s", 9, None), 513)]).err().unwrap();
    assert_eq!(error.reason(), "overlaybd.import-sparse");
}

#[test]
fn only_empty_devices_and_those_with_erofs_get_a_layer() {
    let erofs = options(GIB);
    let ext4 = DeviceOptions { flavour: crate::kind::overlaybd::Flavour::Ext4, ..erofs };
    let reason = |device: &[u8], options: &DeviceOptions| {
        Base::open(&device, options).err().map(|error| (error.reason(), error.kind()))
    };
    let empty = vec![0; 1 << 20];
    assert_eq!(reason(&empty, &erofs), None);
    assert_eq!(reason(&empty, &ext4), Some(("overlaybd.ext4", Kind::NotImplemented)));
    assert_eq!(Base::new(&ext4).err().map(|error| error.reason()), Some("overlaybd.ext4"));
    assert_eq!(Base::new(&options(0)).err().map(|error| error.reason()), Some("overlaybd.virtual-size"));
    let with = |offset: usize, bytes: &[u8]| {
        let mut device = empty.clone();
        device[offset..offset + bytes.len()].copy_from_slice(bytes);
        device
    };
    assert_eq!(reason(&with(1080, &[0x53, 0xEF]), &erofs), Some(("overlaybd.ext4", Kind::NotImplemented)));
    let other = Some(("overlaybd.file-system", Kind::NotImplemented));
    assert_eq!(reason(&with(0, b"XFSB"), &erofs), other);
    // A superblock that is none: the device below is damaged, and nobody sent it just now.
    let damaged = reason(&with(1024, &0xE0F5_E1E2_u32.to_le_bytes()), &erofs);
    assert_eq!(damaged.map(|(_, kind)| kind), Some(Kind::DataLoss));
}

#[test]
fn the_index_of_a_layer_counts_as_memory_of_the_request() {
    let charged = |size_bytes: u64| {
        let bench = Bench::new();
        let base = Base::new(&options(64 * GIB)).unwrap();
        let scratch = tempfile::tempfile().unwrap();
        let mut writer = LayerWriter::new(scratch, &base, DataPlace::Target, bench.plan()).unwrap();
        for n in 0..100_000 {
            writer.import(&file(&format!("{n:06}"), size_bytes, None), 1024 + n * 1024).unwrap();
        }
        bench.resources.budget.charged_bytes()
    };
    // The same names, with a mapping each: 16 bytes, and as much to merge them.
    let (without, with) = (charged(0), charged(512));
    assert!(with >= without + 100_000 * 32, "{with} bytes, {without} without mappings");
}

/// An index may have as many entries as the archive has files.
#[test]
fn the_index_of_a_new_layer_counts_against_the_memory_while_it_is_checked() {
    let limit = crate::pipeline::budget::SHARE_BYTES;
    let bench = Bench::limited(Limits { metadata_bytes: limit, ..Limits::default() });
    let base = Base::new(&options(64 * GIB)).unwrap();
    let layer = |entries: u64| {
        let mut writer = lsmt::Writer::new(tempfile::tempfile().unwrap(), 64 * GIB);
        // Every other sector, which no two entries can be joined over.
        (0..entries).for_each(|entry| writer.map_target(1024 * entry, 512, 0).unwrap());
        lsmt::Device::new(vec![writer.finish().unwrap()]).unwrap()
    };
    let reason = |entries| base.check(&layer(entries), bench.plan()).unwrap_err().reason();
    assert_eq!(reason(1000), "image.self-check");
    assert_eq!(reason(limit / 16), "limit.metadata");
}
