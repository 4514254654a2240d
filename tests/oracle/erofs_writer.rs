//! Images we write, read by others: our own reader, the erofs-rs crate, the kernel, fsck.erofs.
//!
//! Random layers are applied to a simple model and to the writer. The two have to refuse the same entries,
//! and every reader has to find in the image what the model says.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::Failed;
use plywood::{
    format::erofs::{
        BlockBits,
        check::{Policy, verify},
        writer::{Options, Summary, WriteOptions, Writer, WriterError},
    },
    tree::{Attributes, Body, Device, Entry, Extent, FileType, Timestamp, Xattr},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use testkit::{Need, Suite, host::program, mounts::Mounted};

use super::{
    layer_model::{Listing, Model},
    listing,
};

/// An entry and the data of its file, holes spelled out.
pub type Item = (Entry, Vec<u8>);

pub fn add(suite: &mut Suite) {
    let kernel = [Need::Root, Need::FileSystem("erofs")];
    suite.test("random_layers_read_back_as_the_model_says", &[], random_layers_in_memory);
    suite.test("entries_the_model_refuses_are_refused", &[], refusals_agree);
    suite.test("data_in_pieces_of_any_size_gives_the_same_bytes", &[], pieces_do_not_matter);
    let name = "needs_kernel_erofs_random_layers_mount_as_the_model_says";
    suite.test(name, &kernel, random_layers_in_the_kernel);
    let overlay = [Need::Root, Need::FileSystem("erofs"), Need::FileSystem("overlay")];
    suite.test("needs_kernel_overlay_deletions_hide_what_lies_below", &overlay, deletions_hide);
    let fsck = [Need::Tool("fsck.erofs")];
    suite.test("needs_fsck_erofs_random_layers_pass", &fsck, random_layers_pass_fsck);
    let dump = [Need::Tool("dump.erofs")];
    suite.test("needs_dump_erofs_random_layers_show_what_the_model_says", &dump, random_layers_in_dump);
}

fn write_in_pieces(
    items: &[Item],
    options: &Options,
    piece: usize,
) -> Result<(Vec<u8>, Summary), WriterError> {
    let mut writer = Writer::new(Vec::new(), options.clone());
    for (entry, data) in items {
        writer.entry(entry)?;
        if let Body::Regular { size_bytes, extents } = &entry.body {
            let whole = [Extent { offset: 0, len: *size_bytes }];
            for extent in extents.as_deref().unwrap_or(&whole) {
                let start = usize::try_from(extent.offset).unwrap();
                let bytes = &data[start..start + usize::try_from(extent.len).unwrap()];
                let mut offset = extent.offset;
                for bytes in bytes.chunks(piece) {
                    writer.data(offset, bytes)?;
                    offset += bytes.len() as u64;
                }
            }
            writer.end_entry()?;
        }
    }
    writer.finish()
}

pub fn write(items: &[Item], options: &Options) -> Result<(Vec<u8>, Summary), WriterError> {
    write_in_pieces(items, options, usize::MAX)
}

fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-d]",
        2 => Just("-x".to_owned()),
        1 => Just("!".to_owned()),
        1 => Just(".-".to_owned()),
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => (150_usize..=255).prop_map(|len| "n".repeat(len)),
    ]
}

fn last_component() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => component(),
        3 => "[a-d]".prop_map(|name| format!(".wh.{name}")),
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just(".wh..wh.plnk".to_owned()),
    ]
}

fn path() -> impl Strategy<Value = String> {
    (prop::collection::vec(component(), 0..3), last_component(), prop::bool::weighted(0.2)).prop_map(
        |(mut parents, last, absolute)| {
            parents.push(last);
            let path = parents.join("/");
            if absolute { format!("/{path}") } else { path }
        },
    )
}

/// Version 2; owner rw-, group r--, others r--: what the mode says too would be left out by the kernel.
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\
    \x02\0\x07\0\xe8\x03\0\0\
    \x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\
    \x20\0\x04\0\xff\xff\xff\xff";

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    let one = prop_oneof![
        4 => Just(("security.selinux".to_owned(), b"system_u:object_r:usr_t:s0\0".to_vec())),
        2 => ("user[.][a-c]", prop::collection::vec(any::<u8>(), 0..40)),
        1 => Just(("system.posix_acl_access".to_owned(), ACL.to_vec())),
        1 => ("trusted[.][a-c]", prop::collection::vec(any::<u8>(), 0..600)),
        1 => Just(("user.large".to_owned(), vec![7; 9000])),
    ];
    prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec(one, 1..4).prop_map(|mut list| {
            list.sort();
            list.dedup_by(|a, b| a.0 == b.0);
            list.into_iter().map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect()
        }),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let mtime = prop_oneof![Just((0, 0)), (-2_000_000_000_i64..8_000_000_000, 0_u32..1_000_000_000),];
    let owner = prop_oneof![Just(0), Just(1000), Just(70_000), Just(u32::MAX - 2)];
    (0_u16..0o10000, owner.clone(), owner, mtime).prop_map(|(mode, uid, gid, (seconds, nanoseconds))| {
        Attributes { mode, uid, gid, mtime: Timestamp { seconds, nanoseconds } }
    })
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        1_u64..2000,
        prop::sample::select(vec![511, 512, 513, 1024, 1025, 4095, 4096, 4097, 5120, 5121, 12_288]),
        4096_u64..60_000,
    ]
}

/// A file of data from beginning to end, or one with holes.
fn regular() -> impl Strategy<Value = (Body, Vec<u8>)> {
    let gaps = prop::collection::vec((0_u64..40_000, 1_u64..6000), 0..4);
    (size(), prop::option::weighted(0.25, gaps), any::<u8>()).prop_map(|(size, gaps, seed)| {
        let mut at = 0;
        let extents: Option<Vec<Extent>> = gaps.map(|gaps| {
            let mut extents = Vec::new();
            for (gap, len) in gaps {
                extents.push(Extent { offset: at + gap, len });
                at += gap + len;
            }
            extents
        });
        let size_bytes = size.max(at);
        let byte =
            |offset: u64| u8::try_from((offset * 31 + offset / 251 + u64::from(seed)) % 255 + 1).unwrap();
        let data = (0..size_bytes)
            .map(|offset| match &extents {
                Some(extents) if !extents.iter().any(|e| (e.offset..e.offset + e.len).contains(&offset)) => 0,
                _ => byte(offset),
            })
            .collect();
        (Body::Regular { size_bytes, extents }, data)
    })
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => path().prop_map(String::into_bytes),
        1 => (1_usize..=4095).prop_map(|len| vec![b'l'; len]),
    ]
}

fn body() -> impl Strategy<Value = (Body, Vec<u8>)> {
    let no_data = |body| (body, Vec::new());
    let device = (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| Device { major, minor });
    prop_oneof![
        8 => regular(),
        6 => Just(no_data(Body::Directory)),
        3 => target().prop_map(move |target| no_data(Body::Symlink { target })),
        4 => path().prop_map(move |target| no_data(Body::HardLink { target: target.into_bytes() })),
        1 => device.clone().prop_map(move |device| no_data(Body::CharDevice(device))),
        1 => device.prop_map(move |device| no_data(Body::BlockDevice(device))),
        1 => Just(no_data(Body::CharDevice(Device::WHITEOUT))),
        1 => Just(no_data(Body::Fifo)),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    (path(), attributes(), xattrs(), body()).prop_map(|(path, attributes, mut xattrs, (body, data))| {
        // The kernel shows neither of these on other files.
        let plain = matches!(body, Body::Regular { .. } | Body::Directory);
        xattrs.retain(|xattr| {
            plain || !(xattr.name.starts_with(b"user.") || xattr.name.starts_with(b"system."))
        });
        (Entry { path: path.into_bytes(), attributes, xattrs, body }, data)
    })
}

fn options() -> impl Strategy<Value = Options> {
    let bits = prop::sample::select(vec![9, 10, 12, 12, 12]);
    (bits, prop::sample::select(vec![0, 512, 1024, 4096]), any::<[u8; 16]>()).prop_map(
        |(bits, inline_limit, uuid)| Options {
            image: WriteOptions { block_bits: BlockBits::new(bits).unwrap(), inline_limit },
            uuid,
            ..Options::default()
        },
    )
}

/// The entries that the model takes, and the tree they make.
pub fn accepted(items: Vec<Item>) -> (Vec<Item>, Listing) {
    let (taken, model) = taken_by(Model::new(), items);
    (taken, model.listing())
}

/// The entries that a model takes, and the model with them.
pub fn taken_by(mut model: Model, items: Vec<Item>) -> (Vec<Item>, Model) {
    let mut taken = Vec::new();
    for (entry, data) in items {
        let mut next = model.clone();
        if next.apply(&entry, &data) {
            model = next;
            taken.push((entry, data));
        }
    }
    (taken, model)
}

/// An input of a test that can be printed.
pub trait Shown: std::fmt::Debug {
    fn shown(&self) -> String;
}

impl Shown for (Vec<Item>, Options) {
    fn shown(&self) -> String {
        let WriteOptions { block_bits, inline_limit } = self.1.image;
        let mut text = format!("block size 2^{}, inline {inline_limit}", block_bits.get());
        for (entry, data) in &self.0 {
            let path = entry.path.escape_ascii();
            let xattrs: Vec<String> = entry
                .xattrs
                .iter()
                .map(|xattr| format!("{} ({})", xattr.name.escape_ascii(), xattr.value.len()))
                .collect();
            let body = match &entry.body {
                Body::Symlink { target } => format!("Symlink to {}", target.escape_ascii()),
                Body::HardLink { target } => format!("HardLink to {}", target.escape_ascii()),
                other => format!("{other:?}"),
            };
            text += &format!("\n  {path}: {body}, {} bytes, xattrs {xattrs:?}", data.len());
        }
        text
    }
}

impl Shown for Vec<Vec<Item>> {
    fn shown(&self) -> String {
        let layers = self.iter().map(|items| (items.clone(), Options::default()).shown());
        layers.collect::<Vec<_>>().join("\nthen ")
    }
}

impl<T: Shown> Shown for (T, usize) {
    fn shown(&self) -> String {
        format!("pieces of {}; {}", self.1, self.0.shown())
    }
}

pub fn check<S: Strategy<Value: Shown>>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) -> Result<(), Failed> {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, test).map_err(|error| match error {
        TestError::Fail(reason, input) => format!("{reason}\nfor {}", input.shown()).into(),
        TestError::Abort(reason) => format!("aborted: {reason}").into(),
    })
}

fn written(items: &[Item], options: &Options) -> Result<(Vec<u8>, Summary), TestCaseError> {
    write(items, options).map_err(|error| TestCaseError::fail(format!("the writer refuses: {error}")))
}

pub fn layers() -> impl Strategy<Value = (Vec<Item>, Options)> {
    (prop::collection::vec(item(), 0..40), options())
}

/// Three layers, each on top of the one before.
pub fn stacks() -> impl Strategy<Value = Vec<Vec<Item>>> {
    prop::collection::vec(prop::collection::vec(item(), 0..25), 3)
}

#[allow(clippy::needless_pass_by_value, reason = "it is what the readers return")]
pub fn assert_same(got: Listing, want: &Listing, reader: &str) -> Result<(), TestCaseError> {
    let names = |listing: &Listing| -> Vec<String> {
        listing.keys().map(|name| name.escape_ascii().to_string()).collect()
    };
    prop_assert_eq!(names(&got), names(want), "names, read by {}", reader);
    for (name, want) in want {
        let got = &got[name];
        let named = format!("{}, read by {reader}", name.escape_ascii());
        prop_assert!(got.data == want.data, "data of {}", named);
        prop_assert_eq!(got, want, "{}", named);
    }
    Ok(())
}

fn random_layers_in_memory() -> Result<(), Failed> {
    check(300, layers(), |(items, options)| {
        let (items, want) = accepted(items);
        let (image, summary) = written(&items, &options)?;
        prop_assert_eq!(image.len() as u64, summary.size_bytes);
        prop_assert_eq!(want.len() as u64, summary.names + 1);
        assert_same(listing::by_our_reader(&image), &want, "our reader")?;
        let report = verify(image.as_slice(), &Policy::layer());
        let report = report.map_err(|error| TestCaseError::fail(format!("our check: {error}")))?;
        prop_assert!(report.lints.is_empty(), "our check: {:?}", report.lints);
        assert_same(listing::by_erofs_rs(&image), &want, "erofs-rs")
    })
}

fn refusals_agree() -> Result<(), Failed> {
    check(400, layers(), |(items, options)| {
        let mut model = Model::new();
        let mut taken: Vec<Item> = Vec::new();
        for (entry, data) in items {
            let mut next = model.clone();
            let takes = next.apply(&entry, &data);
            taken.push((entry, data));
            if !takes {
                let refused = write(&taken, &options).is_err();
                prop_assert!(refused, "{:?} is refused by the model only", taken.last().unwrap().0);
                taken.pop();
                continue;
            }
            model = next;
        }
        Ok(())
    })
}

fn pieces_do_not_matter() -> Result<(), Failed> {
    check(60, (layers(), 1_usize..6000), |((items, options), piece)| {
        let (items, _) = accepted(items);
        let (whole, _) = written(&items, &options)?;
        let (pieces, _) = write_in_pieces(&items, &options, piece).unwrap();
        prop_assert!(whole == pieces, "pieces of {} bytes make another image", piece);
        Ok(())
    })
}

/// A file system that is mounted as long as this lives.
pub struct MountPoint {
    _mounted: Mounted,
    dir: tempfile::TempDir,
}

impl MountPoint {
    pub fn at(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn new(kind: &str, source: &Path, dir: tempfile::TempDir, data: &str) -> Result<Self, Failed> {
        let at = dir.path().join("mnt");
        fs::create_dir_all(&at)?;
        Ok(Self { _mounted: Mounted::new(source, &at, kind, data)?, dir })
    }

    pub fn image(image: &[u8]) -> Result<Self, Failed> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("image.erofs");
        fs::File::create(&file)?.write_all(image)?;
        Self::new("erofs", &file, dir, "")
    }
}

fn random_layers_in_the_kernel() -> Result<(), Failed> {
    check(80, layers(), |(items, options)| {
        let (items, want) = accepted(items);
        let (image, _) = written(&items, &options)?;
        let mounted = MountPoint::image(&image).map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        assert_same(listing::by_kernel(&mounted.at()), &want, "the kernel")
    })
}

fn random_layers_pass_fsck() -> Result<(), Failed> {
    let fsck = program("fsck.erofs").unwrap();
    check(60, layers(), |(items, options)| {
        let (items, _) = accepted(items);
        let (image, _) = written(&items, &options)?;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        let output = Command::new(&fsck).arg("--extract").arg(file.path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        prop_assert!(output.status.success(), "fsck.erofs: {}", text);
        prop_assert!(!text.contains("<E>") && !text.contains("<W>"), "fsck.erofs: {}", text);
        Ok(())
    })
}

fn random_layers_in_dump() -> Result<(), Failed> {
    let dump = program("dump.erofs").unwrap();
    check(8, layers(), |(items, options)| {
        let (items, want) = accepted(items);
        let (image, summary) = written(&items, &options)?;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        let run = |arguments: &[&OsStr]| {
            let output = Command::new(&dump).args(arguments).arg(file.path()).output().unwrap();
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        };
        let text = run(&[OsStr::new("-s")]);
        let inodes = text.lines().find_map(|line| line.strip_prefix("Filesystem inode count:"));
        let inodes = inodes.and_then(|number| number.trim().parse().ok());
        prop_assert_eq!(inodes, Some(summary.nodes), "{}", text);
        for (path, want) in want.iter().filter(|(_, listed)| listed.file_type != FileType::Directory) {
            let path = [b"--path=/", path.as_slice()].concat();
            let text = run(&[OsStr::from_bytes(&path)]);
            for shown in [
                format!("Size: {} ", want.size_bytes),
                format!("Links: {} ", want.nlink),
                format!("Uid: {} ", want.attributes.uid),
                format!("Gid: {} ", want.attributes.gid),
                // It leaves out the set-id and sticky bits.
                format!("Access: {:04o}/", want.attributes.mode & 0o777),
                format!(".{:09}", want.attributes.mtime.nanoseconds),
            ] {
                prop_assert!(text.contains(&shown), "{} is not in {}", shown, text);
            }
        }
        Ok(())
    })
}

fn deletions_hide() -> Result<(), Failed> {
    deletions(|items| MountPoint::image(&write(items, &Options::default()).unwrap().0))
}

/// Lays two layers over each other with overlayfs, each mounted by `mount`: what the upper one deletes must be gone, and
/// the rest be there with its data.
pub fn deletions(mount: impl Fn(&[Item]) -> Result<MountPoint, Failed>) -> Result<(), Failed> {
    let file = |path: &str, data: &str| {
        let body = Body::Regular { size_bytes: data.len() as u64, extents: None };
        let attributes = Attributes { mode: 0o644, ..Attributes::default() };
        (Entry { path: path.into(), attributes, xattrs: Vec::new(), body }, data.as_bytes().to_vec())
    };
    let lower: Vec<Item> =
        ["a", "b/gone", "b/kept", "c/x", "c/y/z", "d/x", "e/x"].map(|path| file(path, "below")).into();
    let mut upper: Vec<Item> =
        [".wh.a", "b/.wh.gone", "c/.wh..wh..opq", ".wh.d", "f/.wh.nothing"].map(|path| file(path, "")).into();
    upper.extend(["c/new", "d/new", "f/file"].map(|path| file(path, "above")));
    let (lower, upper) = (mount(&lower)?, mount(&upper)?);
    let options = format!("lowerdir={}:{}", upper.at().display(), lower.at().display());
    let merged = MountPoint::new("overlay", Path::new("overlay"), tempfile::tempdir()?, &options)?;
    let found = listing::by_kernel(&merged.at());
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(name, listed)| {
            (std::str::from_utf8(name).unwrap(), std::str::from_utf8(&listed.data).unwrap())
        })
        .collect();
    let want = [
        ("", ""),
        ("b", ""),
        ("b/kept", "below"),
        ("c", ""),
        ("c/new", "above"),
        ("d", ""),
        ("d/new", "above"),
        ("e", ""),
        ("e/x", "below"),
        ("f", ""),
        ("f/file", "above"),
    ];
    if found != want {
        return Err(format!("{found:?} instead of {want:?}").into());
    }
    Ok(())
}
