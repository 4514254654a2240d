//! Images written by mkfs.erofs, read by us, by the erofs-rs crate and by the kernel: the same tree.
//!
//! The images are in `tests/fixtures/erofs`; its README says how they were made.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use erofs_rs::{EroFS, backend::SliceImage};
use libtest_mimic::Failed;
use plywood::{
    error::{Classify as _, Kind},
    format::erofs::{
        check::{Level, Policy, Rule, verify, verify_image},
        dump,
        reader::Image,
    },
};
use testkit::{Need, Suite, mkfs};

use super::{
    layer_model::{Listed, Listing},
    listing,
};

/// An image, and what is to be known about it.
#[derive(Clone, Copy)]
struct Fixture {
    name: &'static str,
    /// The file of its one device.
    device: Option<&'static str>,
    /// Whether owners and times are those of the tree it was made of.
    faithful: bool,
    /// Rules that the check reports as remarks.
    lints: &'static [Rule],
    /// Why the check refuses it as a layer.
    refused: Option<&'static str>,
}

const PLAIN: Fixture =
    Fixture { name: "plain.erofs", device: None, faithful: true, lints: &[], refused: None };

const FIXTURES: &[Fixture] = &[
    PLAIN,
    Fixture { name: "inline.erofs", ..PLAIN },
    Fixture { name: "compact.erofs", faithful: false, ..PLAIN },
    Fixture { name: "shared.erofs", ..PLAIN },
    Fixture { name: "prefixes.erofs", ..PLAIN },
    Fixture { name: "block512.erofs", ..PLAIN },
    // The files share blocks of zeros, which none of them has of its own, and their ends.
    Fixture { name: "chunks.erofs", ..PLAIN },
    Fixture {
        name: "devices.erofs",
        device: Some("devices.blob"),
        refused: Some("erofs.policy.devices"),
        ..PLAIN
    },
    Fixture {
        name: "tar-index.erofs",
        device: Some("tar-index.blob"),
        // mkfs.erofs does not set the bit of chunk-based files here.
        lints: &[Rule::Unused],
        refused: Some("erofs.policy.devices"),
        ..PLAIN
    },
    // mkfs.erofs keeps whole seconds only.
    Fixture { name: "wide.erofs", faithful: false, ..PLAIN },
    // The root's attributes are followed by 500 reserved bytes.
    Fixture { name: "reserved.erofs", ..PLAIN },
];

pub fn add(suite: &mut Suite) {
    suite.test("compressed_files_are_checked_but_not_read", &[], compressed);
    let name = "needs_mkfs_erofs_every_compression_is_accepted";
    suite.test(name, &[Need::Tool("mkfs.erofs")], every_compression_is_accepted);
    let kernel = [Need::Root, Need::FileSystem("erofs")];
    for fixture in FIXTURES {
        let name = fixture.name;
        suite.test(format!("{name}_reads_as_by_erofs_rs"), &[], || agrees_with_erofs_rs(*fixture));
        suite.test(format!("{name}_holds_the_common_tree"), &[], || holds_the_tree(*fixture));
        suite.test(format!("{name}_is_checked"), &[], || is_checked(*fixture));
        let name = format!("needs_kernel_erofs_{name}_reads_as_by_the_kernel");
        suite.test(name, &kernel, || agrees_with_the_kernel(*fixture));
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/erofs").join(name)
}

impl Fixture {
    fn image(&self) -> Vec<u8> {
        fs::read(path(self.name)).unwrap()
    }

    fn device(&self) -> Vec<Vec<u8>> {
        self.device.iter().map(|name| fs::read(path(name)).unwrap()).collect()
    }

    /// Our reading, with the device as a file of its own.
    fn listing(&self) -> Listing {
        let (image, device) = (self.image(), self.device());
        let devices = device.iter().map(Vec::as_slice).collect();
        listing::of_image(&Image::open_with_devices(&image[..], devices).unwrap())
    }
}

fn same(ours: &Listing, theirs: &Listing, who: &str) -> Result<(), Failed> {
    for (name, listed) in theirs {
        let found = ours.get(name);
        if found != Some(listed) {
            // Data would fill the screen.
            let brief = |listed: &Listed| Listed { data: Vec::new(), ..listed.clone() };
            let same_data = found.is_some_and(|found| found.data == listed.data);
            let (name, found, theirs) = (name.escape_ascii(), found.map(brief), brief(listed));
            return Err(format!("{name}: we read {found:?}, {who} {theirs:?}, same data: {same_data}").into());
        }
    }
    let ours_only: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
    if ours_only.is_empty() { Ok(()) } else { Err(format!("only we read {ours_only:?}").into()) }
}

fn agrees_with_erofs_rs(fixture: Fixture) -> Result<(), Failed> {
    let (image, device) = (fixture.image(), fixture.device());
    let devices = device.iter().map(|bytes| SliceImage::new(bytes)).collect();
    let theirs = EroFS::new_with_devices(SliceImage::new(&image), devices)?;
    same(&fixture.listing(), &listing::of_erofs_rs(&theirs), "erofs-rs reads")
}

fn agrees_with_the_kernel(fixture: Fixture) -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let data = fixture.device.map_or(String::new(), |name| format!("device={}", path(name).display()));
    rustix::mount::mount(
        path(fixture.name),
        dir.path(),
        "erofs",
        rustix::mount::MountFlags::RDONLY,
        Some(CString::new(data)?.as_c_str()),
    )
    .map_err(|error| format!("mount of {}: {error}", fixture.name))?;
    let theirs = std::panic::catch_unwind(|| listing::by_kernel(dir.path()));
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH)?;
    let theirs = theirs.ok().ok_or("the mounted tree cannot be read")?;
    same(&fixture.listing(), &theirs, "the kernel reads")
}

/// All images are of one tree; only what the options of mkfs.erofs change may differ.
fn holds_the_tree(fixture: Fixture) -> Result<(), Failed> {
    let (mut found, mut want) = (fixture.listing(), PLAIN.listing());
    if !fixture.faithful {
        for listed in found.values_mut().chain(want.values_mut()) {
            listed.attributes.mtime = Default::default();
            (listed.attributes.uid, listed.attributes.gid) = (0, 0);
        }
    }
    // Only of a directory, not of an archive, does mkfs.erofs mark the parents of whiteouts.
    for tree in [&mut found, &mut want] {
        tree.get_mut(&b""[..]).unwrap().xattrs.remove(&b"trusted.overlay.origin"[..]);
    }
    same(&found, &want, "plain.erofs has")?;
    // The devices in one file with the image are the same tree.
    let one_file = [vec![fixture.image()], fixture.device()].concat().concat();
    same(&listing::by_our_reader(&one_file), &fixture.listing(), "the device apart has")?;
    let data = |name: &str| &want.get(name.as_bytes()).unwrap().data;
    assert_eq!(data("small"), b"hello\n");
    assert_eq!(data("link"), b"dir/medium");
    assert_eq!(data("dir/sub/again").len(), 5000);
    assert_eq!(want.len(), 13);
    Ok(())
}

fn is_checked(fixture: Fixture) -> Result<(), Failed> {
    let (image, device) = (fixture.image(), fixture.device());
    let devices = device.iter().map(Vec::as_slice).collect();
    let report = verify_image(&Image::open_with_devices(&image[..], devices)?, &Policy::any())?;
    let lints: Vec<Rule> = report.lints.iter().map(|lint| lint.rule).collect();
    assert_eq!(lints, fixture.lints, "{:?}", report.lints);
    assert_eq!((report.inodes, report.names, report.whiteouts), (12, 12, 1));
    let refused = verify(&image[..], &Policy::layer()).err().map(|error| error.reason());
    assert_eq!(refused, fixture.refused);
    Ok(())
}

fn compressed() -> Result<(), Failed> {
    let image = fs::read(path("lz4.erofs"))?;
    let report = verify(&image[..], &Policy::layer())?;
    assert_eq!(verify(&image[..], &Policy::any())?, report);
    assert!(report.compressed > 0);
    assert_eq!(report.inodes, 12);
    // Names, attributes and uncompressed files are there all the same.
    let image = Image::open(&image[..])?;
    let node = image.find(b"small")?.unwrap();
    assert_eq!(image.xattr(&node, b"user.colour")?, Some(b"blue".to_vec()));
    let node = image.find(b"sparse")?.unwrap();
    let error = image.read_data(&node, 0, &mut [0; 1]).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "erofs.compressed"));
    Ok(())
}

/// Images of every option that the tool has, those of containerd's converter among them. A kernel mounts and
/// reads them, so both depths of the check take it. The extents cover each file, once and in order.
fn every_compression_is_accepted() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let (tree, file) = (scratch.path().join("tree"), scratch.path().join("image"));
    mkfs::fill(&tree)?;
    let mut failed = Vec::new();
    for options in mkfs::COMBINATIONS {
        mkfs::make(&file, &tree, options)?;
        let bytes = fs::read(&file)?;
        for level in [Level::Superblock, Level::Strict] {
            if let Err(error) = verify(&bytes[..], &Policy { level, ..Policy::layer() }) {
                failed.push(format!("{options:?}, {level:?}: {error} [{}]", error.reason()));
            }
        }
        let image = Image::open(&bytes[..])?;
        let mut compressed = 0;
        dump::walk(&image, image.root()?, b"", |entry| {
            let details = entry.inode.as_ref().unwrap();
            assert!(details.data_error.is_none(), "{options:?}: {entry}");
            if !details.compressed.is_empty() {
                compressed += 1;
                let mut end = 0;
                for extent in image.compressed_extents(&details.node)? {
                    let extent = extent?;
                    assert_eq!(extent.offset, end, "{options:?}: {entry}");
                    end += extent.len;
                }
                assert_eq!(end, details.node.inode.size_bytes, "{options:?}: {entry}");
            }
            Ok::<_, Failed>(())
        })?;
        let wanted = options.iter().any(|option| option.starts_with("-z"));
        assert_eq!(compressed > 0, wanted, "{options:?}");
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}
