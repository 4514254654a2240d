//! Cost of large and hostile layers to the tree and the EROFS writer: time grows with the layer and no faster,
//! memory with its live names alone.
//!
//! With PLYWOOD_MEASURE set there are also trials that measure at full size, one per process:
//! `PLYWOOD_MEASURE=1 cargo test --release --test scale -- --nocapture measure_synth_1m`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "measurements are for people")]

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt,
    time::Instant,
};

use libtest_mimic::Failed;
use plywood::{
    call::Cancel,
    format::{
        ReadAt, Sink,
        erofs::writer::{Options, Summary, Writer, WriterError},
        lsmt,
    },
    limits::Limits,
    merge,
    pipeline::{budget::Budget, image},
    snapshot::{Durability, LAYER_NAME, Publication},
    tree::{Attributes, Body, Entry, Extent, Timestamp, Xattr},
    view::ErofsView,
};
use testkit::{
    Suite,
    archive::{archive, digest, gzip},
    containerd::Snapshotter,
    host,
    image::Image,
    node::Node,
};

fn main() {
    let mut suite = Suite::new();
    for (name, test) in [
        ("one_directory_of_many_names_grows_linearly", (|| growth(wide)) as fn() -> Result<(), Failed>),
        ("many_directories_grow_linearly", || growth(synth)),
        ("deep_implied_chains_grow_linearly", || growth(deep)),
        ("one_name_replaced_again_and_again_grows_linearly", || growth(replaced)),
        ("a_subtree_replaced_again_and_again_grows_linearly", || growth(replaced_subtree)),
        ("repeated_opaque_markers_grow_linearly", || growth(opaque_markers)),
        ("a_long_chain_of_links_in_every_parent_grows_linearly", || growth(link_chain)),
        ("many_attributes_on_one_directory_grow_linearly", || growth(attributes_of_one)),
        ("writes_are_few_and_large", writes_are_few),
        ("replaced_names_take_no_memory", replaced_names_take_no_memory),
        ("replaced_names_take_no_disk", replaced_names_take_no_disk),
        ("links_that_keep_changing_are_refused_in_time", changing_links),
        ("a_device_of_ten_million_mappings_opens_in_400_mib", ten_million_mappings),
        ("thirty_layers_merge_in_little_memory", || {
            let (_, _, peak, _) = merge_layers(30, 1000)?;
            if peak < 64 { Ok(()) } else { Err(format!("{peak} MiB").into()) }
        }),
    ] {
        suite.test(name, &[], test);
    }
    if std::env::var_os("PLYWOOD_MEASURE").is_some() {
        measurements(&mut suite);
    }
    // Memory is that of the process.
    suite.run_in_turn()
}

fn measurements(suite: &mut Suite) {
    for (name, test) in [
        (
            "measure_synth_10k",
            (|| report("10k entries, 100 per directory", 10_000, synth)) as fn() -> Result<(), Failed>,
        ),
        ("measure_synth_1m", || report("1M entries, 100 per directory", 1_000_000, synth)),
        ("measure_wide_100k", || report("100k entries in one directory", 100_000, wide)),
        ("measure_wide_1m", || report("1M entries in one directory", 1_000_000, wide)),
        ("measure_labelled_100k", || report("100k labelled files", 100_000, labelled)),
        ("measure_directories_1m", || report("1M directories", 1_000_000, directories)),
        ("measure_replaced_5000", || {
            let what = Replaced { size_bytes: 900_000, extents: None, xattr_bytes: 4 };
            let (once, often) = (allocated_bytes(&what, 1, false)?, allocated_bytes(&what, 5000, false)?);
            println!(
                "\na file of {} bytes occupies {once} bytes, as the last of 5000 {often}",
                what.size_bytes
            );
            Ok(())
        }),
        ("measure_merge_30_layers_300k", || {
            let (seconds, cpu, peak, size) = merge_layers(30, 10_000)?;
            println!(
                "\n30 layers of 10 000 files: {seconds:.3} s, {cpu:.3} s CPU, peak {peak} MiB, {size} MiB"
            );
            Ok(())
        }),
        ("measure_twenty_layers_of_100_kb", || twenty_layers("100 kB", &synthetic_layers(1))),
        ("measure_twenty_layers_of_1_mb", || twenty_layers("1 MB", &synthetic_layers(10))),
        ("measure_twenty_layers_of_10_mb", || twenty_layers("10 MB", &synthetic_layers(100))),
        ("measure_twenty_layers_of_an_archive", || match std::env::var_os("PLYWOOD_LAYERS") {
            Some(path) => twenty_layers("an archive", &slices(&fs::read(path)?)?),
            None => Err("PLYWOOD_LAYERS names the archive".into()),
        }),
        ("measure_links_1m", || report("1M symbolic links", 1_000_000, symlinks)),
    ] {
        suite.test(name, &[], test);
    }
}

/// Takes everything and keeps nothing.
#[derive(Default)]
struct Nowhere {
    writes: u64,
    bytes: u64,
}

impl Sink for Nowhere {
    fn write_at(&mut self, _offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writes += 1;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
    fn discard(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&mut self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

type Build = fn(&mut Writer<Nowhere>, u32) -> Result<(), WriterError>;

fn entry(path: String, body: Body) -> Entry {
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    let attributes = Attributes { mode: 0o644, mtime, ..Attributes::default() };
    Entry { path: path.into_bytes(), attributes, xattrs: Vec::new(), body }
}

fn empty(path: String) -> Entry {
    entry(path, Body::Regular { size_bytes: 0, extents: None })
}

fn file(writer: &mut Writer<Nowhere>, path: String, data: &[u8]) -> Result<(), WriterError> {
    writer.entry(&entry(path, Body::Regular { size_bytes: data.len() as u64, extents: None }))?;
    writer.data(0, data)?;
    writer.end_entry()
}

/// Files of up to 2 KiB, a hundred to a directory.
fn synth(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    let data = [0x55; 2048];
    for n in 0..count {
        let len = usize::try_from(n.wrapping_mul(2_654_435_761) % 2048).unwrap();
        let path = format!("srv/d{:03}/s{:03}/file-{:05}.txt", n / 100_000, n / 100 % 1000, n % 100);
        file(writer, path, &data[..len])?;
    }
    Ok(())
}

fn wide(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    (0..count).try_for_each(|n| {
        // Not in sorted order.
        let path = format!("wide/name-{:08x}", n.wrapping_mul(2_654_435_761));
        writer.entry(&empty(path))?;
        writer.end_entry()
    })
}

fn labelled(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    for n in 0..count {
        let mut entry = empty(format!("usr/d{}/f{n}", n / 100));
        let label = ["usr_t", "lib_t", "bin_t", "etc_t"][usize::try_from(n % 4).unwrap()];
        let value = format!("system_u:object_r:{label}:s0\0").into_bytes();
        entry.xattrs.push(Xattr { name: b"security.selinux".to_vec(), value });
        writer.entry(&entry)?;
        writer.end_entry()?;
    }
    Ok(())
}

fn directories(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    (0..count).try_for_each(|n| writer.entry(&entry(format!("a{}/b{n}", n / 1000), Body::Directory)))
}

fn symlinks(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    (0..count).try_for_each(|n| {
        let target = format!("../../lib/x86_64-linux-gnu/lib{n}.so.1").into_bytes();
        writer.entry(&entry(format!("a{}/b{n}", n / 1000), Body::Symlink { target }))
    })
}

/// Chains of 2000 directories that nothing else names, each beginning anew after a few.
fn deep(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    (0..count / 2000).try_for_each(|n| {
        writer.entry(&empty(format!("{n}/{}f", "d/".repeat(1999))))?;
        writer.end_entry()
    })
}

fn replaced(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    (0..count).try_for_each(|_| file(writer, "one/name".into(), &[1; 5000]))
}

/// A directory of a hundred names, and a file in its place.
fn replaced_subtree(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    for n in 0..count {
        match n % 100 {
            0 => writer.entry(&entry("d".into(), Body::Directory))?,
            99 => writer.entry(&empty("d".into()))?,
            _ => writer.entry(&empty(format!("d/{}-{n}", "x".repeat(200))))?,
        }
        writer.end_entry()?;
    }
    Ok(())
}

fn opaque_markers(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    wide(writer, count / 2)?;
    (0..count / 2).try_for_each(|_| writer.entry(&empty("wide/.wh..wh..opq".into())))
}

/// Forty links in a row, each over a long way round, and a chain of directories behind them.
fn link_chain(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    let way = "d/".repeat(800);
    writer.entry(&empty(format!("{way}x/f")))?;
    writer.end_entry()?;
    for n in 0..39 {
        let target = format!("{way}{}l{}", "../".repeat(800), n + 1).into_bytes();
        writer.entry(&entry(format!("l{n}"), Body::Symlink { target }))?;
    }
    writer.entry(&entry("l39".into(), Body::Symlink { target: way.into_bytes() }))?;
    (0..count).try_for_each(|n| {
        // Two parents in turn, so that remembering the last one alone does not help.
        writer.entry(&empty(format!("l{}/f{n}", n % 2)))?;
        writer.end_entry()
    })
}

fn attributes_of_one(writer: &mut Writer<Nowhere>, count: u32) -> Result<(), WriterError> {
    for n in 0..count {
        let mut entry = entry("d".into(), Body::Directory);
        entry.xattrs.push(Xattr { name: format!("user.{}", n % 2000).into_bytes(), value: vec![1; 8] });
        writer.entry(&entry)?;
    }
    Ok(())
}

fn build(count: u32, build: Build) -> Result<(Nowhere, Summary, f64, u64), WriterError> {
    let before = cpu_seconds();
    let mut writer = Writer::new(Nowhere::default(), Options::default());
    build(&mut writer, count)?;
    let held = writer.metadata_bytes();
    let (sink, summary) = writer.finish()?;
    Ok((sink, summary, cpu_seconds() - before, held))
}

/// Four times the work may take five times the time and a little: a quadratic part would take sixteen.
fn growth(layer: Build) -> Result<(), Failed> {
    const BASE: u32 = 12_000;
    let (_, _, small, _) = build(BASE, layer)?;
    let (_, _, large, _) = build(4 * BASE, layer)?;
    if large > 6.0 * small + 0.2 {
        return Err(format!("{BASE} entries take {small:.3} s, four times as many {large:.3} s").into());
    }
    Ok(())
}

/// Layers of a device of 100 GiB: `LAYERS` of as many entries as a layer can have, each sector between those of others.
/// Merges `layers` images of `files` files each, and checks the result. Every layer has files of its own in directories
/// that all have, replaces some of the layer below, and deletes some. Returns seconds, seconds of CPU, the peak of the
/// memory that it took, and the size of the metadata, both in MiB.
fn merge_layers(layers: u32, files: u32) -> Result<(f64, f64, u64, u64), Failed> {
    let scratch = tempfile::tempdir()?;
    let mut opened = Vec::new();
    for layer in 0..layers {
        let path = scratch.path().join(format!("{layer}.erofs"));
        let publication = Publication::beside(&path)?;
        let mut writer = Writer::new(publication.file(LAYER_NAME)?, Options::default());
        let mut add = |path: String, data: &[u8]| {
            let body = Body::Regular { size_bytes: data.len() as u64, extents: None };
            writer.entry(&entry(path, body))?;
            writer.data(0, data)?;
            writer.end_entry()
        };
        for number in 0..files {
            let len = [300, 700, 5000, 4096, 100, 9000][usize::try_from(number % 6)?];
            add(format!("usr/lib/package-{}/layer-{layer}-file-{number}", number / 50), &vec![b'x'; len])?;
            if number % 100 == 0 {
                add(format!("usr/lib/package-{}/common", number / 50), b"replaced")?;
                if let Some(below) = layer.checked_sub(1) {
                    add(format!("usr/lib/package-{}/.wh.layer-{below}-file-{number}", number / 50), b"")?;
                }
            }
        }
        publication.commit([writer.finish()?.0], Durability::Never, false)?;
        opened.push(fs::File::open(&path)?);
    }
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let budget = Budget::new(&limits);
    let lease = budget.lease(&cancel)?;
    let publication = Publication::beside(&scratch.path().join("fsmeta.erofs"))?;
    let file = publication.file(LAYER_NAME)?;
    fs::write("/proc/self/clear_refs", "5")?;
    let (before, started, cpu) = (status_kib("VmRSS"), Instant::now(), cpu_seconds());
    let devices: Vec<&dyn ReadAt> = opened.iter().map(|file| file as &dyn ReadAt).collect();
    let views = (0..).zip(&devices).map(|(number, file)| {
        ErofsView::open(*file, Vec::new(), (0, number), format!("layer {number}"), &cancel)
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    let (file, summary) = merge::write(&views, file, &limits, &lease, &cancel)?;
    drop(views);
    image::verify_own(&file, &devices, &limits, &lease, &cancel)?;
    let figures = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let peak = status_kib("VmHWM").saturating_sub(before) >> 10;
    publication.commit([file], Durability::Never, false)?;
    assert_eq!(summary.regular_files, u64::from(layers * files - (layers - 1) * (files / 100) + files / 100));
    Ok((figures.0, figures.1, peak, summary.size_bytes >> 20))
}

fn ten_million_mappings() -> Result<(), Failed> {
    const LAYERS: u64 = 11;
    const ENTRIES: u64 = 999_936;
    let scratch = tempfile::tempdir()?;
    let mut empty = Vec::new();
    let writer = lsmt::Writer::new(Vec::new(), 100 << 30);
    lsmt::Device::new(vec![writer.finish()?])?.commit(&lsmt::CommitOptions::default(), &mut empty)?;
    let mut files = Vec::new();
    for layer in 0..LAYERS {
        let (header, trailer) = empty.split_at(4096);
        let mut trailer = trailer.to_vec();
        trailer[32..40].copy_from_slice(&4608_u64.to_le_bytes());
        trailer[40..48].copy_from_slice(&ENTRIES.to_le_bytes());
        let mut file = io::BufWriter::new(tempfile::tempfile_in(&scratch)?);
        file.write_all(header)?;
        file.write_all(&[7; 512])?;
        for entry in 0..ENTRIES {
            // One sector, whose data is the first of the file.
            file.write_all(&((entry * 200 + layer * 3) | 1 << 50).to_le_bytes())?;
            file.write_all(&8_u64.to_le_bytes())?;
        }
        file.write_all(&trailer)?;
        files.push(file.into_inner()?);
    }
    // Entries of a layer may be held in two copies for a moment, never all of them in more.
    let (before, started) = (status_kib("VmRSS"), cpu_seconds());
    fs::write("/proc/self/clear_refs", "5")?;
    let layers = files.into_iter().map(lsmt::Layer::open).collect::<Result<_, _>>()?;
    let device = lsmt::Device::new(layers)?;
    let (seconds, used) = (cpu_seconds() - started, status_kib("VmHWM").saturating_sub(before) >> 10);
    println!("{} mappings: {seconds:.3} s CPU, {used} MiB", device.entries());
    assert_eq!(device.entries(), LAYERS * ENTRIES);
    let mut sector = [0; 1024];
    device.read_exact_at((999_935 * 200 + 30) * 512, &mut sector)?;
    assert_eq!((sector[0], sector[511], sector[512]), (7, 7, 0));
    if used >= 400 {
        return Err(format!("{used} MiB").into());
    }
    Ok(())
}

fn writes_are_few() -> Result<(), Failed> {
    for (layer, count) in [(synth as Build, 20_000), (wide, 20_000), (labelled, 20_000), (symlinks, 20_000)] {
        let (sink, ..) = build(count, layer)?;
        let most = 3 + sink.bytes / (512 << 10);
        if sink.writes > most {
            return Err(format!("{} writes of {} bytes, at most {most}", sink.writes, sink.bytes).into());
        }
    }
    Ok(())
}

fn replaced_names_take_no_memory() -> Result<(), Failed> {
    for layer in [replaced as Build, replaced_subtree] {
        let (_, _, _, held) = build(60_000, layer)?;
        // Spellings that are gone may take a megabyte before they are swept.
        if held > 3 << 20 {
            return Err(format!("{held} bytes are held").into());
        }
    }
    Ok(())
}

/// A file whose data comes in pieces as a decoder hands them out, which end anywhere in it.
struct Replaced {
    size_bytes: u64,
    extents: Option<Vec<Extent>>,
    xattr_bytes: usize,
}

/// Writes it `count` times under one name and, where `kept` says so, each time also under a name of its own.
/// Returns what the image occupies on disk.
fn allocated_bytes(what: &Replaced, count: u32, kept: bool) -> Result<u64, Failed> {
    const PIECE: u64 = 200_000;
    let scratch = tempfile::tempdir()?;
    let publication = Publication::beside(&scratch.path().join("image"))?;
    let file = publication.file(LAYER_NAME)?;
    let mut writer = Writer::new(file, Options::default());
    let data = vec![0x55; usize::try_from(PIECE)?];
    for n in 0..count {
        for path in ["one/name".to_owned(), format!("kept/{n}")].into_iter().take(1 + usize::from(kept)) {
            let Replaced { size_bytes, extents, xattr_bytes } = what;
            let mut entry = entry(path, Body::Regular { size_bytes: *size_bytes, extents: extents.clone() });
            let value = vec![1; *xattr_bytes];
            entry.xattrs.push(Xattr { name: format!("user.{n}").into_bytes(), value });
            writer.entry(&entry)?;
            for extent in extents.as_deref().unwrap_or(&[Extent { offset: 0, len: *size_bytes }]) {
                let end = extent.offset + extent.len;
                let mut offset = extent.offset;
                while offset < end {
                    let len = (end - offset).min(PIECE - offset % PIECE);
                    writer.data(offset, &data[..usize::try_from(len)?])?;
                    offset += len;
                }
            }
            writer.end_entry()?;
        }
    }
    let (file, _) = writer.finish()?;
    publication.commit([file], Durability::Never, false)?;
    Ok(fs::metadata(scratch.path().join("image"))?.blocks() * 512)
}

fn replaced_names_take_no_disk() -> Result<(), Failed> {
    let flat = |size_bytes| Replaced { size_bytes, extents: None, xattr_bytes: 4 };
    let sparse = |size_bytes| {
        let extents = Some(vec![Extent { offset: 0, len: 10 }, Extent { offset: size_bytes - 10, len: 10 }]);
        Replaced { size_bytes, extents, xattr_bytes: 4 }
    };
    for (what, count) in [
        (flat(1 << 20), 100),
        (flat((1 << 20) + 700), 100),
        // A gathered write holds the end of one file and the beginning of the next.
        (flat(900_000), 100),
        (flat(5000), 2000),
        (flat(700), 2000),
        // Attributes or an array of chunks that need blocks of their own.
        (Replaced { size_bytes: 10, extents: None, xattr_bytes: 5000 }, 500),
        (sparse(1 << 20), 1000),
        (sparse(1 << 36), 50),
    ] {
        let once = allocated_bytes(&what, 1, false)?;
        let often = allocated_bytes(&what, count, false)?;
        // Attributes that came twice wait to be shared.
        if often > once + (128 << 10) {
            let bytes = what.size_bytes;
            return Err(format!("{count} files of {bytes} bytes keep {often} bytes, one {once}").into());
        }
    }
    // Between others that stay, the blocks of each replaced one are given back as well.
    let (once, often) = (allocated_bytes(&flat(9000), 1, true)?, allocated_bytes(&flat(9000), 1000, true)?);
    let each = (often - once) / 1000;
    if each > (3 + 2) * 4096 {
        return Err(format!("each file of 9000 bytes that replaces one costs {each} bytes").into());
    }
    Ok(())
}

/// Every second entry replaces a link, so that nothing about links can be remembered.
fn changing_links() -> Result<(), Failed> {
    let mut writer = Writer::new(Nowhere::default(), Options::default());
    link_chain(&mut writer, 0)?;
    let before = cpu_seconds();
    for n in 0..100_000 {
        writer.entry(&entry("l".into(), Body::Symlink { target: b"x".to_vec() }))?;
        if let Err(error) = writer.entry(&empty(format!("l0/{n}"))) {
            let spent = cpu_seconds() - before;
            let text = error.to_string();
            if spent > 5.0 || !text.contains("steps") {
                return Err(format!("after {spent:.1} s: {text}").into());
            }
            return Ok(());
        }
        writer.end_entry()?;
    }
    Err("nothing was refused".into())
}

/// Processor time of this thread, which is the only one that works.
fn cpu_seconds() -> f64 {
    let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds: u64 = times.split_whitespace().next().unwrap().parse().unwrap();
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}

fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn report(what: &str, count: u32, layer: Build) -> Result<(), Failed> {
    let (sink, summary, seconds, held) = build(count, layer)?;
    println!(
        "\n{what}: {seconds:.3} s CPU, peak {} MiB, {} bytes held per entry, {} writes, {} MiB of {} MiB, {summary:?}",
        status_kib("VmHWM") >> 10,
        held / u64::from(count),
        sink.writes,
        sink.bytes >> 20,
        summary.size_bytes >> 20,
    );
    Ok(())
}

/// Layers of the image that is unpacked one by one and two at a time.
const LAYERS: usize = 20;

/// Layers of so many files of 100 kB each.
fn synthetic_layers(files: usize) -> Vec<Vec<u8>> {
    (0..LAYERS).map(|number| archive(files, 100_000 + number)).collect()
}

/// Cuts an archive into layers of about the same length. Hard links are left out: their files may be in another one.
fn slices(bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut layers = vec![tar::Builder::new(Vec::new())];
    for entry in tar::Archive::new(bytes).entries()? {
        let mut entry = entry?;
        let mut header = entry.header().clone();
        let (path, target) =
            (entry.path()?.into_owned(), entry.link_name()?.map(std::borrow::Cow::into_owned));
        if layers.last().is_some_and(|layer| layer.get_ref().len() > bytes.len() / LAYERS) {
            layers.push(tar::Builder::new(Vec::new()));
        }
        let Some(layer) = layers.last_mut() else { continue };
        match (header.entry_type(), target) {
            (tar::EntryType::Link, _) => {}
            (_, Some(target)) => layer.append_link(&mut header, path, target)?,
            _ => layer.append_data(&mut header, path, &mut entry)?,
        }
    }
    layers.into_iter().map(tar::Builder::into_inner).collect()
}

/// Unpacks an image of these layers, one by one and two at a time, with the command and the real daemon, and a containerd
/// that takes parents at the commit. Also tells the processor time of all that are at work in the one by one: no order of
/// work makes two processors faster than half of it.
fn twenty_layers(what: &str, tars: &[Vec<u8>]) -> Result<(), Failed> {
    const NAME: &str = "example.test/app:1";
    let node = Node::new();
    node.store.add_snapshotter(&Snapshotter {
        name: "erofs",
        rebases: true,
        version: "v2.2.0",
        root: &node.root(),
    });
    let daemon = node.start();
    let diff_ids: Vec<_> = tars.iter().map(|tar| digest(tar)).collect();
    let blobs: Vec<_> = tars.iter().map(|tar| gzip(tar)).collect();
    let image = Image::record(&node, NAME, &diff_ids, &blobs, "{}");
    let socket = node.socket();
    // This process is the containerd.
    let spent = || -> Result<f64, Failed> {
        Ok(daemon.processor_time()?.as_secs_f64() + times("/proc/self/stat", [13, 14, 15, 16])?)
    };
    // The best of several: others may be at work.
    let (mut best, mut processor_seconds) = ([f64::MAX; 2], [f64::MAX; 2]);
    for _ in 0..5 {
        for (which, parallel) in ["1", "4"].into_iter().enumerate() {
            let mut command = host::plywood();
            command.args(["unpack", NAME, "--progress", "none", "--parallel", parallel]);
            command.arg("--address").arg(node.store.socket()).arg("--differ").arg(&socket);
            let (begun, before) = (Instant::now(), spent()?);
            let status = command.stdout(std::process::Stdio::null()).status()?;
            best[which] = begun.elapsed().as_secs_f64().min(best[which]);
            processor_seconds[which] = (spent()? - before).min(processor_seconds[which]);
            assert!(status.success());
            assert!(image.chain_ids.iter().all(|name| node.store.snapshots()[name].is_committed));
            node.store.forget_snapshots();
        }
    }
    daemon.stop();
    let ([one_by_one, at_once], [cpu, cpu_at_once]) = (best, processor_seconds);
    println!(
        "{} layers of {what}: one by one {one_by_one:.3} s ({cpu:.2} s CPU), four at once {at_once:.3} s ({cpu_at_once:.2} s CPU), \
         ratio {:.2}; half of the CPU is {:.2}",
        tars.len(),
        at_once / one_by_one,
        cpu / 2.0 / one_by_one
    );
    Ok(())
}

/// Sum of fields of a process's times, which are in hundredths of a second.
fn times(path: &str, fields: [usize; 4]) -> Result<f64, Failed> {
    let text = fs::read_to_string(path)?;
    // The name, in parentheses, may have spaces.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let each = fields.map(|field| rest.split(' ').nth(field - 2).and_then(|text| text.parse::<f64>().ok()));
    Ok(each.into_iter().flatten().sum::<f64>() / 100.0)
}
