//! Images whose file data is elsewhere: indexes of archives, and devices with mapped blocks.
//!
//! Random layers are written, and every reader has to find in the image, together with the file that has the data, what
//! the model says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    process::Command,
};

use libtest_mimic::Failed;
use plywood::{
    format::{
        Remote, Sink,
        erofs::{
            check::{Policy, verify, verify_image},
            reader::Image,
            writer::{Options, Writer, WriterError},
        },
    },
    tree::{Extent, FileType},
};
use proptest::{prelude::*, test_runner::TestCaseError};
use testkit::{Need, Suite, host::program};

use super::{
    erofs_writer::{Item, MountPoint, accepted, assert_same, check, deletions, layers, stacks, taken_by},
    layer_model::{Listing, Model},
    listing,
};

pub fn add(suite: &mut Suite) {
    let kernel = [Need::Root, Need::FileSystem("erofs")];
    suite.test("an_index_beside_its_archive_reads_as_the_model_says", &[], indexes_in_memory);
    let name = "needs_kernel_erofs_an_index_mounts_with_its_archive_as_a_device_and_in_one_file";
    suite.test(name, &kernel, indexes_in_the_kernel);
    let overlay = [Need::Root, Need::FileSystem("erofs"), Need::FileSystem("overlay")];
    suite.test("needs_kernel_overlay_deletions_in_an_index_hide_what_lies_below", &overlay, deletions_hide);
    suite.test("needs_fsck_erofs_an_index_passes", &[Need::Tool("fsck.erofs")], indexes_pass_fsck);
    suite.test("a_device_with_mapped_files_reads_as_the_model_says", &[], devices_in_memory);
    suite.test("needs_kernel_erofs_a_device_with_mapped_files_mounts", &kernel, devices_in_the_kernel);
    suite.test("three_layers_on_a_device_read_as_the_model_says", &[], stacks_in_memory);
    let name = "needs_kernel_erofs_three_layers_on_a_device_mount_as_the_model_says";
    suite.test(name, &kernel, stacks_in_the_kernel);
    let fsck = [Need::Tool("fsck.erofs")];
    suite.test("needs_fsck_erofs_three_layers_on_a_device_pass", &fsck, stacks_pass_fsck);
}

/// Data of all files in the manner of an archive: one after the other, each from a multiple of 512 bytes on. Between
/// them are bytes that no file has.
pub struct Archive {
    pub bytes: Vec<u8>,
    /// Where the data of each item starts.
    starts: Vec<u64>,
}

impl Archive {
    pub fn of(items: &[Item]) -> Self {
        let mut archive = Self { bytes: Vec::new(), starts: Vec::new() };
        for (entry, data) in items {
            archive.bytes.extend([0xEE; 512]);
            let start = archive.bytes.len() as u64;
            archive.starts.push(start);
            for (extent, _) in entry.body.stored(start) {
                archive.bytes.extend_from_slice(piece(data, extent));
            }
            // The padding of an archive is zeros.
            archive.bytes.resize(archive.bytes.len().next_multiple_of(512), 0);
        }
        archive
    }
}

fn piece(data: &[u8], extent: Extent) -> &[u8] {
    let start = usize::try_from(extent.offset).unwrap();
    &data[start..start + usize::try_from(extent.len).unwrap()]
}

pub fn index(items: &[Item], archive: &Archive, options: Options) -> Result<Vec<u8>, WriterError> {
    let mut writer = Writer::index(Vec::new(), options);
    for ((entry, data), start) in items.iter().zip(&archive.starts) {
        writer.entry_in_archive(entry, *start)?;
        for (extent, _) in entry.body.stored(*start) {
            writer.data(extent.offset, piece(data, extent))?;
        }
        writer.end_entry()?;
    }
    writer.set_archive_bytes(archive.bytes.len() as u64);
    Ok(writer.finish()?.0)
}

fn made(outcome: Result<Vec<u8>, WriterError>) -> Result<Vec<u8>, TestCaseError> {
    outcome.map_err(|error| TestCaseError::fail(format!("the writer refuses: {error}")))
}

fn indexes_in_memory() -> Result<(), Failed> {
    check(200, layers(), |(items, options)| {
        let (items, want) = accepted(items);
        let archive = Archive::of(&items);
        let image = made(index(&items, &archive, options))?;
        let opened = Image::open_with_devices(image.as_slice(), vec![archive.bytes.as_slice()]).unwrap();
        let report = verify_image(&opened, &Policy { devices: true, ..Policy::layer() });
        let report = report.map_err(|error| TestCaseError::fail(format!("our check: {error}")))?;
        prop_assert!(report.lints.is_empty(), "our check: {:?}", report.lints);
        assert_same(listing::of_image(&opened), &want, "our reader, two files")?;
        let whole = [image, archive.bytes].concat();
        assert_same(listing::by_our_reader(&whole), &want, "our reader, one file")
    })
}

fn indexes_in_the_kernel() -> Result<(), Failed> {
    check(60, layers(), |(items, options)| {
        let failed = |error: Failed| TestCaseError::fail(format!("{error:?}"));
        let (items, want) = accepted(items);
        let archive = Archive::of(&items);
        let image = made(index(&items, &archive, options))?;
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer.tar");
        fs::write(&tar, &archive.bytes).unwrap();
        fs::write(dir.path().join("image"), &image).unwrap();
        let option = format!("device={}", tar.display());
        let beside = MountPoint::new("erofs", &dir.path().join("image"), dir, &option).map_err(failed)?;
        assert_same(listing::by_kernel(&beside.at()), &want, "the kernel, two files")?;
        let within = MountPoint::image(&[image, archive.bytes].concat()).map_err(failed)?;
        assert_same(listing::by_kernel(&within.at()), &want, "the kernel, one file")
    })
}

fn deletions_hide() -> Result<(), Failed> {
    deletions(|items| {
        let archive = Archive::of(items);
        let dir = tempfile::tempdir()?;
        let [tar, image] = ["layer.tar", "image"].map(|name| dir.path().join(name));
        fs::write(&tar, &archive.bytes)?;
        fs::write(&image, index(items, &archive, Options::default())?)?;
        MountPoint::new("erofs", &image, dir, &format!("device={}", tar.display()))
    })
}

fn indexes_pass_fsck() -> Result<(), Failed> {
    let fsck = program("fsck.erofs").unwrap();
    check(30, layers(), |(items, options)| {
        let (items, _) = accepted(items);
        let archive = Archive::of(&items);
        let image = made(index(&items, &archive, options))?;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tar"), &archive.bytes).unwrap();
        fs::write(dir.path().join("image"), &image).unwrap();
        let device = format!("--device={}", dir.path().join("tar").display());
        let output = Command::new(&fsck).args(["--extract", &device]).arg(dir.path().join("image")).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        prop_assert!(output.status.success(), "fsck.erofs: {}", text);
        prop_assert!(!text.contains("<E>") && !text.contains("<W>"), "fsck.erofs: {}", text);
        Ok(())
    })
}

/// A device in memory, whose mapped bytes are fetched from the target when it is flattened.
#[derive(Default)]
struct Device {
    bytes: Vec<u8>,
    /// Sectors that were written.
    stored: BTreeSet<u64>,
    /// Device and target byte, in sectors of 512 bytes.
    mapped: BTreeMap<u64, u64>,
}

impl Sink for Device {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let sectors = offset / 512..(offset + bytes.len() as u64).div_ceil(512);
        assert!(self.mapped.range(sectors.clone()).next().is_none(), "{offset} is mapped");
        self.stored.extend(sectors);
        self.bytes.write_at(offset, bytes)
    }
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.mapped.retain(|sector, _| !(offset..offset + len).contains(&(sector * 512)));
        self.stored.retain(|sector| sector * 512 < offset || (sector + 1) * 512 > offset + len);
        self.bytes.discard(offset, len)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        Sink::set_len(&mut self.bytes, len)
    }
}

impl Remote for Device {
    fn map(&mut self, offset: u64, len: u64, target: u64) -> io::Result<()> {
        assert!([offset, len, target].iter().all(|value| value % 512 == 0));
        for sector in 0..len / 512 {
            let before = self.mapped.insert(offset / 512 + sector, target / 512 + sector);
            assert_eq!(before, None, "mapped twice");
        }
        Ok(())
    }
}

impl Device {
    fn flatten(mut self, target: &[u8]) -> Vec<u8> {
        for (device, target_sector) in self.mapped {
            let [device, from] = [device, target_sector].map(|sector| usize::try_from(sector * 512).unwrap());
            assert!(self.bytes[device..device + 512].iter().all(|byte| *byte == 0), "stored and mapped");
            let len = (target.len() - from).min(512);
            self.bytes[device..device + len].copy_from_slice(&target[from..from + len]);
        }
        self.bytes
    }
}

/// Writes a layer on the device `below`, if there is one, and flattens the device.
fn device(
    items: &[Item],
    archive: &Archive,
    options: Options,
    below: Option<&[u8]>,
) -> Result<Vec<u8>, WriterError> {
    let image = below.map(|bytes| Image::open(bytes).unwrap());
    let mut writer = Writer::device(Device::default(), options, image.as_ref().map(Image::superblock))?;
    for ((entry, data), start) in items.iter().zip(&archive.starts) {
        writer.entry_mapped(entry, *start)?;
        for (extent, _) in entry.body.stored(*start) {
            writer.data(extent.offset, piece(data, extent))?;
        }
        writer.end_entry()?;
    }
    let mut written = writer.finish_above(image.as_ref())?.0;
    // What the layer does not have comes from below.
    let size = written.bytes.len();
    let mut flat = below.unwrap_or_default().to_vec();
    assert!(size >= flat.len());
    flat.resize(size, 0);
    for sector in std::mem::take(&mut written.stored) {
        let at = usize::try_from(sector * 512).unwrap();
        flat[at..at + 512].copy_from_slice(&written.bytes[at..at + 512]);
    }
    written.bytes = flat;
    Ok(written.flatten(&archive.bytes))
}

/// The tree on a device: nothing is below it, so deletions leave nothing.
fn without_deletions(mut listing: Listing) -> Listing {
    let no_device = plywood::tree::Device::WHITEOUT;
    listing.retain(|_, node| node.file_type != FileType::CharDevice || node.device != Some(no_device));
    for node in listing.values_mut() {
        node.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay."));
    }
    listing
}

fn devices_in_memory() -> Result<(), Failed> {
    check(200, layers(), |(items, options)| {
        let (items, want) = accepted(items);
        let want = without_deletions(want);
        let archive = Archive::of(&items);
        let flat = made(device(&items, &archive, options, None))?;
        let report = verify(flat.as_slice(), &Policy::layer());
        let report = report.map_err(|error| TestCaseError::fail(format!("our check: {error}")))?;
        prop_assert!(report.lints.is_empty(), "our check: {:?}", report.lints);
        assert_same(listing::by_our_reader(&flat), &want, "our reader")?;
        assert_same(listing::by_erofs_rs(&flat), &want, "erofs-rs")?;
        Ok(())
    })
}

fn devices_in_the_kernel() -> Result<(), Failed> {
    check(60, layers(), |(items, options)| {
        let (items, want) = accepted(items);
        let flat = made(device(&items, &Archive::of(&items), options, None))?;
        let mounted = MountPoint::image(&flat).map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        assert_same(listing::by_kernel(&mounted.at()), &without_deletions(want), "the kernel")
    })
}

/// Writes the layers one above the other. Passes the flattened device and the tree that it should have to `each`, after
/// every layer.
fn stack(
    layers: Vec<Vec<Item>>,
    mut each: impl FnMut(&[u8], &Listing) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut below: Option<(Vec<u8>, Listing)> = None;
    for items in layers {
        let lower = below.as_ref().map_or_else(Listing::new, |(_, listing)| listing.clone());
        let (items, model) = taken_by(Model::above(lower), items);
        let archive = Archive::of(&items);
        let want = match &below {
            Some((_, listing)) => model.over(listing),
            None => without_deletions(model.listing()),
        };
        let flat = below.as_ref().map(|(flat, _)| flat.as_slice());
        let flat = made(device(&items, &archive, Options::default(), flat))?;
        each(&flat, &want)?;
        below = Some((flat, want));
    }
    Ok(())
}

fn stacks_in_memory() -> Result<(), Failed> {
    check(300, stacks(), |layers| {
        stack(layers, |flat, want| {
            assert_same(listing::by_our_reader(flat), want, "our reader")?;
            let report = verify(flat, &Policy::layer());
            let report = report.map_err(|error| TestCaseError::fail(format!("our check: {error}")))?;
            prop_assert!(report.lints.is_empty(), "our check: {:?}", report.lints);
            assert_same(listing::by_erofs_rs(flat), want, "erofs-rs")
        })
    })
}

fn stacks_in_the_kernel() -> Result<(), Failed> {
    check(60, stacks(), |layers| {
        stack(layers, |flat, want| {
            let mounted =
                MountPoint::image(flat).map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            assert_same(listing::by_kernel(&mounted.at()), want, "the kernel")
        })
    })
}

fn stacks_pass_fsck() -> Result<(), Failed> {
    let fsck = program("fsck.erofs").unwrap();
    check(30, stacks(), |layers| {
        stack(layers, |flat, _| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("image"), flat).unwrap();
            let output = Command::new(&fsck).arg("--extract").arg(dir.path().join("image")).output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            prop_assert!(output.status.success(), "fsck.erofs: {}", text);
            prop_assert!(!text.contains("<E>") && !text.contains("<W>"), "fsck.erofs: {}", text);
            Ok(())
        })
    })
}
