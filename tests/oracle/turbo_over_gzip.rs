//! A turboOCI layer over a real `tar.gz`: every file that the device shows is the archive's, and is read through the gzip
//! index alone.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use libtest_mimic::Failed;
use plywood::{
    call::{Cancel, Progress, Work},
    format::{ReadAt, erofs::reader::Image},
    kind::overlaybd::Flavour,
    limits::Limits,
    overlaybd::{
        build::Base,
        config::{ImageConfig, LowerConfig, Mode, anywhere},
        device,
        options::DeviceOptions,
        publish,
    },
    pipeline::{Plan, Resources, Source},
    snapshot::NewFile,
    tree::FileType,
    view::{LayeredDevice, Volume},
};
use testkit::{Need, Suite, host::run, random::Random};

use super::{
    erofs_writer::MountPoint,
    layer_model::{Listed, Listing},
    listing,
    overlaybd_vectors::flatten_to_file,
};

pub fn add(suite: &mut Suite) {
    let tar = [Need::GnuTar];
    suite.test("every_file_is_the_archives_read_in_any_order_through_the_index", &tar, in_any_order);
    let kernel = [Need::GnuTar, Need::Root, Need::FileSystem("erofs")];
    suite.test("needs_kernel_every_file_of_the_mounted_device_is_the_archives", &kernel, mounted);
}

/// The gzip blobs to try: one of this package's own files, and those of the benches where they are there.
fn blobs(dir: &Path) -> Result<Vec<PathBuf>, Failed> {
    let blob = dir.join("layer.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(["--format=gnu", "--numeric-owner", "-czf"]);
    run(tar.arg(&blob).args(["src", "docs", "tests/fixtures", "Cargo.lock"]))?;
    let mut blobs = vec![blob];
    if let Ok(corpora) = env::var("PLYWOOD_CORPORA") {
        let corpora = ["minbase", "pydata"].map(|name| Path::new(&corpora).join(format!("{name}.tar.gz")));
        blobs.extend(corpora.into_iter().filter(|path| path.exists()));
    }
    Ok(blobs)
}

/// Makes the turboOCI layer of a blob, and opens the device. Of the layer, only the blob and what was made of it is there.
fn device_over(blob: &Path, dir: &Path) -> LayeredDevice {
    // The disk of a test may be nearly full.
    let limits = Limits { reserve_percent: 0, reserve_bytes: 0, ..Limits::default() };
    let resources = Resources::new(limits, 2);
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel).unwrap();
    let work = Work { cancel: &cancel, progress: &progress };
    let plan = Plan { resources: &resources, lease: &lease, work };
    let base = Base::new(&DeviceOptions { flavour: Flavour::Erofs, virtual_bytes: 64 << 30 }).unwrap();
    let scratch = || Ok(NewFile::scratch(dir, &resources.limits)?);
    let mut input = File::open(blob).unwrap();
    let source = Source { reader: &mut input, size_bytes: None, digest: None };
    let mut archive = Vec::new();
    let mut deliver = |bytes: &[u8]| {
        archive.extend_from_slice(bytes);
        Ok(())
    };
    publish::turbo(source, None, &base, &scratch, plan, &mut deliver).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice())).unpack(dir).unwrap();
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let lower = LowerConfig {
        file: file("erofs.fs.meta"),
        target_file: blob.to_str().unwrap().to_owned(),
        gzip_index: file("gzip.meta"),
        ..LowerConfig::default()
    };
    let config = ImageConfig { lowers: vec![lower], ..ImageConfig::default() };
    config.open(&anywhere, Mode::Read).and_then(device::open).unwrap()
}

/// What an entry of the archive says of a name, and the data, as another reader of archives has them. Times are whole
/// seconds; link counts and directories' sizes are not in an archive.
fn of_archive(blob: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(blob).unwrap()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let header = entry.header().clone();
        let kind = header.entry_type();
        if kind == tar::EntryType::Link {
            let target = entry.link_name_bytes().unwrap().into_owned();
            let target = target.strip_prefix(b"./").unwrap_or(&target).to_vec();
            let linked: Listed = listing[&target].clone();
            listing.insert(path, linked);
            continue;
        }
        let mut data = Vec::new();
        let file_type = match kind {
            tar::EntryType::Directory => FileType::Directory,
            tar::EntryType::Symlink => {
                data = entry.link_name_bytes().unwrap().into_owned();
                FileType::Symlink
            }
            tar::EntryType::Char => FileType::CharDevice,
            tar::EntryType::Block => FileType::BlockDevice,
            tar::EntryType::Fifo => FileType::Fifo,
            _ => {
                entry.read_to_end(&mut data).unwrap();
                FileType::Regular
            }
        };
        let attributes = plywood::tree::Attributes {
            mode: u16::try_from(header.mode().unwrap() & 0o7777).unwrap(),
            uid: u32::try_from(header.uid().unwrap()).unwrap(),
            gid: u32::try_from(header.gid().unwrap()).unwrap(),
            mtime: plywood::tree::Timestamp {
                seconds: i64::try_from(header.mtime().unwrap()).unwrap(),
                nanoseconds: 0,
            },
        };
        let listed = Listed {
            file_type,
            attributes: attributes.of_type(file_type),
            nlink: 0,
            size_bytes: data.len() as u64,
            device: None,
            data,
            xattrs: BTreeMap::new(),
            first_name: Vec::new(),
        };
        listing.insert(path, listed);
    }
    listing
}

fn mounted() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    for blob in blobs(scratch.path())? {
        let dir = tempfile::tempdir()?;
        let device = device_over(&blob, dir.path());
        let flat = flatten_to_file(&device);
        let mount = MountPoint::new("erofs", flat.path(), tempfile::tempdir()?, "")?;
        let mut found = listing::by_kernel(&mount.at());
        let want = of_archive(&blob);
        // The root and directories on the way may have no entry.
        found.retain(|name, listed| want.contains_key(name) || listed.file_type != FileType::Directory);
        assert_eq!(found.len(), want.len(), "{}", blob.display());
        for (name, listed) in &want {
            let shown = String::from_utf8_lossy(name);
            let found = found.get(name).ok_or_else(|| format!("{shown} is missing"))?;
            assert_eq!(found.file_type, listed.file_type, "{shown}");
            assert_eq!(found.attributes, listed.attributes, "{shown}");
            assert_eq!(found.size_bytes, listed.size_bytes, "{shown}");
            assert!(found.data == listed.data, "{shown}: the data is another");
        }
    }
    Ok(())
}

fn in_any_order() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    for blob in blobs(scratch.path())? {
        let dir = tempfile::tempdir()?;
        let volume = Volume::from(device_over(&blob, dir.path()));
        let index = fs::read(dir.path().join("gzip.meta"))?;
        let points = plywood::format::gzindex::Index::read(index.as_slice())?.points().len();
        assert!(points > 2, "{points} points show little");
        let image = Image::open(&volume)?;
        let want = of_archive(&blob);
        let files =
            want.iter().filter(|(_, listed)| listed.file_type == FileType::Regular && listed.size_bytes > 0);
        let mut files: Vec<_> = files.collect();
        let mut random = Random(7);
        for at in (1..files.len()).rev() {
            files.swap(at, random.below(at + 1));
        }
        let (clock, mut bytes) = (Instant::now(), 0);
        for (name, listed) in &files {
            let shown = String::from_utf8_lossy(name);
            let node = image.find(name)?.ok_or_else(|| format!("{shown} is missing"))?;
            assert_eq!(node.inode.size_bytes, listed.size_bytes, "{shown}");
            // From some byte on to the end, and then what is before it.
            let split = random.below(listed.data.len());
            let mut found = vec![0; listed.data.len()];
            image.read_data(&node, split as u64, &mut found[split..])?;
            image.read_data(&node, 0, &mut found[..split])?;
            assert!(found == listed.data, "{shown}: the data is another");
            bytes += found.len();
        }
        let (files, seconds) = (files.len(), clock.elapsed().as_secs_f64());
        println!("{}: {files} files, {bytes} bytes, {points} points, {seconds:.1} s", blob.display());
        assert!(volume.size_bytes() == 64 << 30);
    }
    Ok(())
}
