//! Views of an image: they read as the directories that the kernel shows when the image is mounted.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    process::Command,
};

use libtest_mimic::Failed;
use plywood::{
    call::Cancel,
    error::{Kind, Result},
    sys::dir::Dir,
    tree::{Extent, FileType, Timestamp, Xattr},
    view::{At, Control, DirectoryView, Ext4View, Node, View, Volume},
};
use testkit::{Suite, host::run};

use super::{
    NEEDS,
    disk::{Disk, Mounted},
    fill,
};

pub fn add(suite: &mut Suite) {
    for (name, test) in [
        ("layer_of_everything_is_the_directory", everything as fn() -> Result<(), Failed>),
        ("layer_of_an_overlay_mount_is_the_directory", overlay),
        ("image_without_upper_is_no_layer", no_upper),
        ("image_is_read_from_its_own_root", own_root),
    ] {
        suite.test(format!("needs_root_and_mkfs_{name}"), &NEEDS, test);
    }
}

/// Everything that a view reads of one file.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    node: Node,
    xattrs: Vec<Xattr>,
    target: Vec<u8>,
    extents: Option<Vec<Extent>>,
    data: Vec<(u64, u8)>,
}

fn told(view: &dyn View) -> Result<BTreeMap<Vec<u8>, Told>> {
    let mut found = BTreeMap::new();
    let mut open = vec![(Vec::new(), view.root()?)];
    while let Some((path, node)) = open.pop() {
        let at = At { path: &path, node: &node };
        let mut told = Told {
            node: node.clone(),
            xattrs: view.xattrs(at)?,
            target: Vec::new(),
            extents: None,
            data: Vec::new(),
        };
        match node.file_type {
            FileType::Directory => {
                let mut names = Vec::new();
                view.names(at, &mut |name| {
                    names.push(name.to_vec());
                    Ok(())
                })?;
                assert_eq!(view.lookup(at, b"no such name")?, None);
                for name in names {
                    let child = view.lookup(at, &name)?.unwrap();
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    open.push(([&path, slash, &name].concat(), child));
                }
            }
            FileType::Regular => {
                // The layer in a directory does not ask about holes of small files.
                told.extents = if node.size_bytes > 4096 { view.extents(at)? } else { None };
                let whole = [Extent { offset: 0, len: node.size_bytes }];
                view.read(at, &whole[..usize::from(node.size_bytes > 0)], &mut |offset, bytes| {
                    told.data.extend((offset..).zip(bytes.iter().copied()));
                    Ok(())
                })?;
            }
            FileType::Symlink => told.target = view.symlink_target(at)?,
            _ => {}
        }
        // Only of a mounted one is there a time of the last change, and a device.
        told.node.changed = Timestamp::default();
        told.node.file_system = 0;
        if told.node.file_type == FileType::Directory {
            told.node.links = 0;
        }
        found.insert(path, told);
    }
    Ok(found)
}

/// Compares a view of the directory `root` of the image with the mounted directory, and returns the number of files.
fn same(disk: &Disk, root: &str) -> Result<usize, Failed> {
    let cancel = Cancel::new();
    let theirs = {
        let mounted = Mounted::new(&disk.path, "ro")?;
        let dir = Dir::open_root(&mounted.root().join(root))?;
        told(&DirectoryView::new(dir, "theirs".into(), Control::Trusted, &cancel)?)?
    };
    let image = Volume::from(File::open(&disk.path)?);
    let ours = Ext4View::open(image, root.as_bytes(), (1, 2), "ours".into(), Control::Trusted, &cancel)?;
    let ours = ours.ok_or("the image has no such directory")?;
    assert_eq!((ours.key(), ours.name(), ours.control_prefix()), ((1, 2), "ours", &b"trusted.overlay."[..]));
    let ours = told(&ours)?;
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, theirs) in &theirs {
        let brief = |told: &Told| Told { data: Vec::new(), ..told.clone() };
        let ours = &ours[path];
        let mut briefly = brief(ours);
        // Where enough blocks are given out the directory does not ask what was written.
        if theirs.extents.is_none() {
            briefly.extents = None;
        }
        assert_eq!(briefly, brief(theirs), "{}", path.escape_ascii());
        assert!(ours.data == theirs.data, "data of {}", path.escape_ascii());
    }
    Ok(ours.len())
}

fn everything() -> Result<(), Failed> {
    let disk = Disk::new(128, &[])?;
    {
        let mounted = Mounted::new(&disk.path, "")?;
        fs::create_dir(mounted.root().join("upper"))?;
        fill::everything(&mounted.root().join("upper"))?;
    }
    assert!(same(&disk, "upper")? > 3000);
    Ok(())
}

fn own_root() -> Result<(), Failed> {
    let disk = Disk::new(128, &[])?;
    {
        let mounted = Mounted::new(&disk.path, "")?;
        fill::everything(mounted.root())?;
    }
    assert!(same(&disk, "")? > 3000);
    // The root of the view and one file.
    assert_eq!(same(&disk, "upper")?, 2);
    Ok(())
}

/// A container that deletes, replaces and renames.
fn overlay() -> Result<(), Failed> {
    let disk = Disk::new(64, &[])?;
    let lower = tempfile::tempdir()?;
    fs::create_dir_all(lower.path().join("dir/sub"))?;
    for name in ["a", "b", "dir/c", "dir/sub/d"] {
        fs::write(lower.path().join(name), name)?;
    }
    {
        let mounted = Mounted::new(&disk.path, "")?;
        let merged = tempfile::tempdir()?;
        for name in ["upper", "work"] {
            fs::create_dir(mounted.root().join(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={}/upper,workdir={}/work,redirect_dir=off,metacopy=off",
            lower.path().display(),
            mounted.root().display(),
            mounted.root().display()
        );
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(merged.path()))?;
        let changes = || -> std::io::Result<()> {
            let root = merged.path();
            fs::remove_file(root.join("a"))?;
            fs::write(root.join("b"), b"other")?;
            fs::remove_dir_all(root.join("dir"))?;
            fs::create_dir(root.join("dir"))?;
            fs::write(root.join("dir/new"), b"new")?;
            fs::create_dir_all(root.join("from/below"))?;
            fs::rename(root.join("from/below"), root.join("moved"))
        };
        let done = changes();
        run(Command::new("umount").arg(merged.path()))?;
        done?;
    }
    // The root, a whiteout, a file, an opaque directory, what is in it, and two new ones.
    assert_eq!(same(&disk, "upper")?, 7);
    Ok(())
}

fn no_upper() -> Result<(), Failed> {
    let open = |disk: &Disk| {
        let image = Volume::from(File::open(&disk.path).unwrap());
        Ext4View::open(image, b"upper", (1, 2), "ours".into(), Control::User, &Cancel::new())
    };
    let disk = Disk::new(16, &[])?;
    assert!(open(&disk)?.is_none());
    {
        let mounted = Mounted::new(&disk.path, "")?;
        fs::write(mounted.root().join("upper"), b"")?;
    }
    let error = open(&disk).err().ok_or("a file is no layer")?;
    assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "ext4.upper"));
    Ok(())
}
