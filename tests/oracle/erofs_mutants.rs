//! Damaged images, as the kernel sees them: what our check accepts, the kernel mounts and reads to the last
//! byte, and it shows what our reader shows.
//!
//! Images of every kind, ours and those of mkfs.erofs, are changed in their metadata at random: bits, bytes,
//! words with values at the edges, words and records swapped or copied. Each mutant has a number, from which it
//! can be made again. Most are refused; the others are mounted, walked, and every file is read. Data of
//! compressed files is not decoded by the check: there the kernel has to find every extent, and what these
//! decode to does not matter.
//!
//! `PLYWOOD_EROFS_MUTANTS=10000` sets how many accepted mutants are looked at. `PLYWOOD_EROFS_KEEP=DIR` keeps
//! those that fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use plywood::{
    format::erofs::{
        BlockBits,
        check::{CheckError, Policy, verify_image},
        dump,
        inode::{Data, Layout},
        reader::{Image, Node, Place, ReadError},
        superblock::{self, Superblock},
        writer::{Options, WriteOptions, Writer},
    },
    tree::{Attributes, Body, Device, Entry, Extent, FileType, Timestamp, Xattr},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use testkit::{Need, Suite, host::program, mkfs, random::Random};

/// Accepted mutants without another wish: a few seconds.
const MUTANTS: u64 = 300;
/// How long the kernel may take for one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes read at each place of a file that is looked at.
const WINDOW: u64 = 32 << 10;

pub fn add(suite: &mut Suite) {
    let kernel = [Need::Root, Need::FileSystem("erofs")];
    let name = "needs_kernel_erofs_accepted_mutants_are_read_as_by_us";
    suite.test(name, &kernel, || run(uncompressed()?));
    let tool = [Need::Root, Need::FileSystem("erofs"), Need::Tool("mkfs.erofs")];
    let name = "needs_kernel_and_mkfs_erofs_accepted_compressed_mutants_are_mapped";
    suite.test(name, &tool, || run(compressed()?));
}

/// An image to be damaged.
struct Base {
    name: String,
    bytes: Vec<u8>,
    /// The file of its extra device, which is left as it is.
    device: Option<Vec<u8>>,
    /// Where its metadata is: first byte and length.
    places: Vec<(usize, usize)>,
}

impl Base {
    fn new(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self, Failed> {
        Self::with_device(name, bytes, None)
    }

    fn with_device(name: impl Into<String>, bytes: Vec<u8>, device: Option<Vec<u8>>) -> Result<Self, Failed> {
        let mut base = Self { name: name.into(), bytes, device, places: Vec::new() };
        base.check(&base.bytes).map_err(|error| format!("{}: {error}", base.name))?;
        base.places = metadata(&open(&base.bytes, base.device.as_deref())?, base.bytes.len())?;
        Ok(base)
    }

    /// Whether `bytes`, with the device of the base, are accepted.
    fn check(&self, bytes: &[u8]) -> Result<(), CheckError> {
        let policy = Policy { max_block_bits: 12, ..Policy::any() };
        verify_image(&open(bytes, self.device.as_deref())?, &policy).map(drop)
    }
}

/// With the device in a file of its own. Linux 6.18 misreads devices that lie in the file of the image, now and
/// then: where a file has several chunks, a mount of a file takes the second for a continuation of the first if
/// its block on the device is the one after the first's in the file (`erofs_fileio_scan_folio`).
fn open<'b>(bytes: &'b [u8], device: Option<&'b [u8]>) -> Result<Image<&'b [u8]>, ReadError> {
    Image::open_with_devices(bytes, device.into_iter().collect())
}

/// The stretches of metadata of an image: the superblock, inodes with all that follows them, blocks of
/// directories, shared attributes.
fn metadata(image: &Image<&[u8]>, len: usize) -> Result<Vec<(usize, usize)>, Failed> {
    let mut stretches: BTreeSet<(u64, u64)> = BTreeSet::new();
    let add_node = |node: &Node, stretches: &mut BTreeSet<(u64, u64)>| -> Result<(), Failed> {
        let mut end = node.xattr_end() + 16;
        if matches!(node.inode.data.layout(), Layout::CompressedFull | Layout::CompressedCompact) {
            end = image.compressed_extents(node)?.map_end().min(node.xattr_end() + 400);
        }
        if let Data::Chunks(_) = node.inode.data {
            end += 64;
        }
        stretches.insert((node.position, end - node.position));
        let mut xattrs = image.xattr_entries(node)?;
        while let Some(entry) = xattrs.next_entry()? {
            stretches.insert((entry.position, 4 + u64::from(entry.header.name_len) + 4));
        }
        Ok(())
    };
    dump::walk(image, image.root()?, b"", |entry| -> Result<(), Failed> {
        let details = entry.inode.as_ref().unwrap();
        add_node(&details.node, &mut stretches)?;
        if details.node.inode.file_type == FileType::Directory {
            for extent in &details.extents {
                let (Place::Blocks { offset: at, .. } | Place::Inline { offset: at }) = extent.place else {
                    continue;
                };
                stretches.insert((at, extent.len.min(256)));
            }
        }
        Ok(())
    })?;
    if let Some(packed) = image.packed()? {
        add_node(&packed, &mut stretches)?;
    }
    // A tenth of the changes go to the superblock and what follows it.
    let mut places = vec![(1024, 192); stretches.len() / 9 + 1];
    for (at, stretch) in stretches {
        let at = usize::try_from(at)?;
        places.push((at, usize::try_from(stretch)?.min(len - at)));
    }
    Ok(places)
}

fn uncompressed() -> Result<Vec<Base>, Failed> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/erofs");
    let read = |name: &str| fs::read(directory.join(name));
    let mut bases = Vec::new();
    for name in ["plain", "inline", "compact", "shared", "prefixes", "block512", "chunks", "wide", "reserved"]
    {
        bases.push(Base::new(name, read(&format!("{name}.erofs"))?)?);
    }
    for name in ["devices", "tar-index"] {
        let (image, device) = (read(&format!("{name}.erofs"))?, read(&format!("{name}.blob"))?);
        bases.push(Base::with_device(name, image, Some(device))?);
    }
    for bits in [9, 12] {
        bases.push(Base::new(format!("ours with 2^{bits}"), ours(bits)?)?);
    }
    if program("mkfs.erofs").is_some() {
        let plain = |options: &&&[&str]| !options.iter().any(|option| option.starts_with("-z"));
        bases.extend(made(mkfs::COMBINATIONS.iter().filter(plain))?);
    }
    Ok(bases)
}

fn compressed() -> Result<Vec<Base>, Failed> {
    let zipped = |options: &&&[&str]| options.iter().any(|option| option.starts_with("-z"));
    made(mkfs::COMBINATIONS.iter().filter(zipped))
}

fn made<'o>(combinations: impl Iterator<Item = &'o &'o [&'o str]>) -> Result<Vec<Base>, Failed> {
    let scratch = tempfile::tempdir()?;
    let (tree, file) = (scratch.path().join("tree"), scratch.path().join("image"));
    mkfs::fill(&tree)?;
    combinations
        .map(|options| {
            mkfs::make(&file, &tree, options)?;
            Base::new(options.join(" "), fs::read(&file)?)
        })
        .collect()
}

/// An image of our writer with one of everything.
fn ours(bits: u8) -> Result<Vec<u8>, Failed> {
    let image = WriteOptions { block_bits: BlockBits::new(bits).unwrap(), ..WriteOptions::DEFAULT };
    let options = Options { image, ..Options::default() };
    let mut writer = Writer::new(Vec::new(), options);
    let attributes = |mode| Attributes {
        mode,
        uid: 1000,
        gid: 70_000,
        mtime: Timestamp { seconds: -2, nanoseconds: 500_000_000 },
    };
    let data: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
    let acl = [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0];
    let label = ("security.selinux", &b"system_u:object_r:container_file_t:s0\0"[..]);
    let list = [&acl[..], &[255; 4]].concat();
    let holes = vec![Extent { offset: 0, len: 4096 }, Extent { offset: 32_768, len: 7232 }];
    let regular = |size_bytes, extents| Body::Regular { size_bytes, extents };
    let device = |major, minor| Device { major, minor };
    type Attribute<'a> = (&'a str, &'a [u8]);
    let entries: Vec<(&str, Body, Vec<Attribute<'_>>)> = vec![
        ("", Body::Directory, vec![label]),
        ("d", Body::Directory, vec![label, ("system.posix_acl_default", &list)]),
        ("d/.wh.gone", regular(0, None), vec![]),
        ("d/block", Body::BlockDevice(device(8, 300)), vec![label]),
        ("d/char", Body::CharDevice(device(5, 1)), vec![]),
        ("d/empty", regular(0, None), vec![label, ("system.posix_acl_access", &list)]),
        ("d/fifo", Body::Fifo, vec![("trusted.x", b"")]),
        ("d/link", Body::Symlink { target: b"../inline".to_vec() }, vec![label]),
        ("holes", regular(40_000, Some(holes)), vec![("user.a", b"1")]),
        ("inline", regular(5000, None), vec![("user.a", b"1"), ("user.b", &[7; 700])]),
        ("large", regular(40_000, None), vec![]),
        ("opaque", Body::Directory, vec![]),
        ("opaque/.wh..wh..opq", regular(0, None), vec![]),
        ("tail", regular(300, None), vec![label]),
    ];
    for (path, body, xattrs) in entries {
        let xattrs = xattrs.into_iter();
        let xattrs = xattrs.map(|(name, value)| Xattr { name: name.into(), value: value.to_vec() }).collect();
        let size = match &body {
            Body::Regular { size_bytes, extents } => Some((*size_bytes, extents.clone())),
            _ => None,
        };
        writer.entry(&Entry { path: path.into(), attributes: attributes(0o751), xattrs, body })?;
        if let Some((size_bytes, extents)) = size {
            for extent in extents.unwrap_or_else(|| vec![Extent { offset: 0, len: size_bytes }]) {
                let (start, len) = (usize::try_from(extent.offset)?, usize::try_from(extent.len)?);
                writer.data(extent.offset, &data[start..start + len])?;
            }
            writer.end_entry()?;
        }
    }
    Ok(writer.finish()?.0)
}

/// Values at the edges of fields.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    11,
    12,
    16,
    31,
    32,
    63,
    64,
    127,
    128,
    255,
    256,
    511,
    512,
    0x7ff,
    0x800,
    0x801,
    4095,
    4096,
    4097,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0xf_ffff,
    0x10_0000,
    0x1f_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0xffff_ffff_ffff,
    i64::MAX as u64 - 4095,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Mutant `number` of `base`.
fn mutant(base: &Base, number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes = base.bytes.clone();
    for _ in 0..=random.below(3) {
        let width = *random.of(&[1_usize, 2, 2, 4, 4, 8]);
        let place = |random: &mut Random, width: usize| {
            let (at, len) = *random.of(&base.places);
            let at = at + random.below(len);
            (at - at % width).min(base.bytes.len() - width)
        };
        let at = place(&mut random, width);
        let word: u64 = bytes[at..at + width].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let value = match random.below(8) {
            0 | 1 => word ^ 1 << random.below(8 * width),
            2 | 3 => *random.of(EDGES),
            4 => word.wrapping_add(*random.of(&[1, 2, 4, 8, u64::MAX, u64::MAX - 1, 32, 4096])),
            5 => random.number(),
            6 => {
                let other = place(&mut random, width);
                let words = [at, other].map(|at| bytes[at..at + width].to_vec());
                bytes[at..at + width].copy_from_slice(&words[1]);
                bytes[other..other + width].copy_from_slice(&words[0]);
                continue;
            }
            _ => {
                // A record over another.
                let (from, to) = (place(&mut random, 32), place(&mut random, 32));
                let len = (*random.of(&[32, 64])).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + len, to);
                continue;
            }
        };
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    let bits = BlockBits::new(bytes[1024 + 0x0C]);
    if let Some(covered) = bits.and_then(|bits| bytes.get_mut(1024..1024 + Superblock::checksummed_len(bits)))
    {
        superblock::seal(covered);
    }
    bytes
}

/// Makes mutants of `bases` in turn until enough of them are accepted, and looks at these.
fn run(bases: Vec<Base>) -> Result<(), Failed> {
    let wish = env::var("PLYWOOD_EROFS_MUTANTS").ok().map(|wish| wish.parse()).transpose()?;
    let wish: u64 = wish.unwrap_or(MUTANTS);
    let keep = env::var_os("PLYWOOD_EROFS_KEEP").map(PathBuf::from);
    let kernel = Kernel::start()?;
    for base in &bases {
        let seen = kernel
            .look(base.bytes.clone(), base.device.clone())
            .map_err(|error| format!("{}: {error}", base.name))?;
        if seen.undecoded > 0 {
            return Err(format!("{}: {} files cannot be decoded", base.name, seen.undecoded).into());
        }
    }
    let (mut accepted, mut number, mut undecoded, mut failures) = (0, 0, 0, Vec::new());
    let started = Instant::now();
    while accepted < wish && number < wish * 100 {
        let base = &bases[usize::try_from(number)? % bases.len()];
        let bytes = mutant(base, number);
        number += 1;
        if bytes == base.bytes || base.check(&bytes).is_err() {
            continue;
        }
        accepted += 1;
        match kernel.look(bytes.clone(), base.device.clone()) {
            Ok(seen) => undecoded += seen.undecoded,
            Err(error) => {
                if let Some(keep) = &keep {
                    fs::write(keep.join(format!("{}-{}", number - 1, failures.len())), &bytes)?;
                }
                failures.push(format!("mutant {} of {}: {error}", number - 1, base.name));
            }
        }
    }
    println!(
        "{accepted} of {number} mutants of {} images accepted, {} of these broken, {undecoded} files not decoded, \
         {:.1} s",
        bases.len(),
        failures.len(),
        started.elapsed().as_secs_f64()
    );
    if failures.is_empty() {
        return Ok(());
    }
    let count = failures.len();
    failures.truncate(20);
    Err(format!("{count} of {accepted} accepted mutants:\n{}", failures.join("\n")).into())
}

/// Counts about an image, beside the facts that have to agree.
struct Seen {
    /// Compressed files that do not decode.
    undecoded: u64,
}

/// A thread that asks the kernel, which may never answer.
struct Kernel {
    images: mpsc::Sender<(Vec<u8>, Option<Vec<u8>>)>,
    answers: mpsc::Receiver<Result<Seen, String>>,
}

impl Kernel {
    fn start() -> Result<Self, Failed> {
        // On a disk: a mount of a file takes its pages from the file system below.
        let scratch = tempfile::tempdir()?;
        let (images, inbox) = mpsc::channel::<(Vec<u8>, Option<Vec<u8>>)>();
        let (outbox, answers) = mpsc::channel();
        thread::spawn(move || {
            for (number, (bytes, device)) in inbox.into_iter().enumerate() {
                let file = scratch.path().join(number.to_string());
                let seen = mounted(&file, &bytes, device.as_deref(), &scratch.path().join("mount"));
                if outbox.send(seen).is_err() {
                    return;
                }
            }
        });
        Ok(Self { images, answers })
    }

    fn look(&self, bytes: Vec<u8>, device: Option<Vec<u8>>) -> Result<Seen, String> {
        self.images.send((bytes, device)).map_err(|error| error.to_string())?;
        self.answers.recv_timeout(PATIENCE).unwrap_or_else(|error| Err(format!("no answer: {error}")))
    }
}

fn mounted(file: &Path, bytes: &[u8], device: Option<&[u8]>, at: &Path) -> Result<Seen, String> {
    let device_file = file.with_extension("device");
    let written = fs::create_dir_all(at).and_then(|()| fs::write(file, bytes));
    let written = written.and_then(|()| fs::write(&device_file, device.unwrap_or_default()));
    written.map_err(|error| error.to_string())?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = device.map(|_| format!("device={}", device_file.display()));
    let options = CString::new(options.unwrap_or_default()).map_err(|error| error.to_string())?;
    let done = mount(file, at, "erofs", flags, Some(options.as_c_str()));
    let seen = match done {
        Err(error) => Err(format!("mount: {error}")),
        Ok(()) => {
            let image = open(bytes, device).map_err(|error| format!("our reader: {error}"));
            let seen = image.and_then(|image| compare(&image, at));
            if unmount(at, UnmountFlags::empty()).is_err() {
                let _ = unmount(at, UnmountFlags::DETACH);
            }
            seen
        }
    };
    for file in [file, &device_file] {
        let _ = fs::remove_file(file);
    }
    seen
}

/// Walks the mounted image beside our own reading of it.
fn compare(image: &Image<&[u8]>, root: &Path) -> Result<Seen, String> {
    let mut seen = Seen { undecoded: 0 };
    let mut left = vec![(PathBuf::new(), image.root().map_err(|error| error.to_string())?)];
    while let Some((path, node)) = left.pop() {
        let there = root.join(&path);
        let context = |error: String| format!("/{}: {error}", path.display());
        same_inode(image, &node, &there).map_err(context)?;
        match node.inode.file_type {
            FileType::Directory => left.extend(children(image, &node, &path, &there).map_err(context)?),
            FileType::Regular => {
                seen.undecoded += u64::from(!same_data(image, &node, &there).map_err(context)?);
            }
            FileType::Symlink => {
                let ours = image.symlink_target(&node).map_err(|error| context(error.to_string()))?;
                let theirs = fs::read_link(&there).map_err(|error| context(format!("readlink: {error}")))?;
                equal("target", OsStr::from_bytes(&ours), theirs.as_os_str()).map_err(context)?;
            }
            _ => {}
        }
    }
    Ok(seen)
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    Err(format!("we read {ours:?}, the kernel {theirs:?}: another {what}"))
}

fn same_inode(image: &Image<&[u8]>, node: &Node, there: &Path) -> Result<(), String> {
    let found = fs::symlink_metadata(there).map_err(|error| format!("stat: {error}"))?;
    let (inode, attributes) = (&node.inode, node.inode.attributes);
    let mode = u16::try_from(found.mode()).map_err(|error| error.to_string())?;
    equal("type", Some(inode.file_type), FileType::from_mode(mode))?;
    equal("mode", attributes.mode, mode & 0o7777)?;
    equal("owner", (attributes.uid, attributes.gid), (found.uid(), found.gid()))?;
    equal("size", inode.size_bytes, found.size())?;
    equal("link count", u64::from(inode.nlink), found.nlink())?;
    // A wrong number of nanoseconds is cut by us, and shown as it is by the kernel.
    let nanoseconds = u32::try_from(found.mtime_nsec()).unwrap_or(u32::MAX).min(999_999_999);
    equal("time", attributes.mtime, Timestamp { seconds: found.mtime(), nanoseconds })?;
    if let Data::Device(Device { major, minor }) = inode.data {
        let number = found.rdev();
        equal("device", (major, minor), (rustix::fs::major(number), rustix::fs::minor(number)))?;
    }
    let ours = image.xattrs(node).map_err(|error| error.to_string())?;
    // No kernel shows `lustre.`, and some values it shows in another form than they are stored in.
    let ours = ours.into_iter().filter(|xattr| !xattr.name.starts_with(b"lustre."));
    let ours: BTreeMap<_, _> =
        ours.map(|Xattr { name, value }| (name.clone(), shown(&name, value))).collect();
    equal("attribute", ours, xattrs(there)?)
}

/// An attribute's value as the kernel shows it: entries of a list that have no user or group have the number
/// -1, and a capability of the root user is one of revision 2.
fn shown(name: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    if name.starts_with(b"system.posix_acl_") {
        for entry in value[4..].chunks_mut(8).filter(|entry| !matches!(entry[0], 2 | 8)) {
            entry[4..].fill(0xff);
        }
    }
    if name == b"security.capability" && value.len() == 24 && value[20..] == [0; 4] {
        value.truncate(20);
        value[3] = 2;
    }
    value
}

fn xattrs(there: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(there, &mut names).map_err(|error| format!("llistxattr: {error}"))?;
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| -> Result<Vec<u8>, String> {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(there, name, &mut value)
            .map_err(|error| format!("lgetxattr of {}: {error}", name.escape_ascii()))?;
        value.truncate(len);
        Ok(value)
    };
    names.map(|name| Ok((name.to_vec(), value(name)?))).collect()
}

fn children(
    image: &Image<&[u8]>,
    node: &Node,
    path: &Path,
    there: &Path,
) -> Result<Vec<(PathBuf, Node)>, String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(there).map_err(|error| format!("readdir: {error}"))? {
        names.insert(entry.map_err(|error| format!("readdir: {error}"))?.file_name());
    }
    let (mut ours, mut found) = (BTreeSet::new(), Vec::new());
    let mut walk = image.directory(node).map_err(|error| error.to_string())?;
    while let Some(child) = walk.next_child().map_err(|error| error.to_string())? {
        let name = OsStr::from_bytes(child.name);
        ours.insert(OsString::from(name));
        found.push((path.join(name), image.node(child.nid).map_err(|error| error.to_string())?));
    }
    equal("list of names", ours, names)?;
    Ok(found)
}

/// Compares a file's data at its start, its end, and where its extents start. `false` when it is compressed
/// and does not decode.
fn same_data(image: &Image<&[u8]>, node: &Node, there: &Path) -> Result<bool, String> {
    let file = File::open(there).map_err(|error| format!("open: {error}"))?;
    let size = node.inode.size_bytes;
    let compressed = matches!(node.inode.data.layout(), Layout::CompressedFull | Layout::CompressedCompact);
    let mut places = BTreeSet::from([0, size.saturating_sub(WINDOW)]);
    let mut decoded = true;
    if compressed {
        for extent in image.compressed_extents(node).map_err(|error| error.to_string())?.take(40) {
            places.insert(extent.map_err(|error| error.to_string())?.offset);
        }
        // Looks for a hole, and so at every extent of the map, without decoding any: a failure to decode and
        // a wrong map are the same error to who reads.
        if size > 0 {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))
                .map_err(|error| format!("map: {error}"))?;
        }
    } else {
        for extent in image.extents(node, 0).take(40) {
            places.insert(extent.map_err(|error| error.to_string())?.offset);
        }
    }
    for at in places {
        let len = usize::try_from(WINDOW.min(size - at)).unwrap();
        let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
        match file.read_exact_at(&mut theirs, at) {
            Err(error) if compressed && error.kind() != io::ErrorKind::UnexpectedEof => {
                decoded = false;
                continue;
            }
            result => result.map_err(|error| format!("read at {at}: {error}"))?,
        }
        if !compressed {
            image.read_data(node, at, &mut ours).map_err(|error| error.to_string())?;
            if let Some(byte) = (0..len).find(|byte| ours[*byte] != theirs[*byte]) {
                equal(&format!("byte {}", at + byte as u64), ours[byte], theirs[byte])?;
            }
        }
    }
    Ok(decoded)
}
