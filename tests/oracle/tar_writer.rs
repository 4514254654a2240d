//! The tar writer against readers of others: every entry of a tree of everything, with names, owners, times
//! and attributes at the edges of the format, is read as it was written by the crate `tar`, by Python's
//! `tarfile`, and by GNU tar, which unpacks it.
//!
//! Our own parser, which follows Go's rules, reads what is written in the unit tests of the writer.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
};

use libtest_mimic::Failed;
use plywood::{
    digest::Digest,
    format::tar::writer::{Options, Writer},
    tree::{Attributes, Body, Device, Entry, Extent, Timestamp, Xattr},
};
use testkit::{Need, Suite};

pub fn add(suite: &mut Suite) {
    suite.test("the_tar_crate_reads_what_is_written", &[], crate_reads);
    suite.test(
        "python_reads_what_is_written",
        &[Need::Other("python3 with tarfile", has_tarfile)],
        python_reads,
    );
    let unpack = [Need::GnuTar, Need::Root, Need::Xattr("user.probe", b"1")];
    suite.test("gnu_tar_unpacks_what_is_written", &unpack, gnu_unpacks);
}

fn has_tarfile() -> bool {
    Command::new("python3").args(["-c", "import tarfile"]).status().is_ok_and(|status| status.success())
}

/// An entry and the contents of the file, holes included.
struct Item {
    entry: Entry,
    contents: Vec<u8>,
}

fn file(path: &str, len: usize) -> Item {
    let contents: Vec<u8> = (1..=251).cycle().take(len).collect();
    item(path, Body::Regular { size_bytes: len as u64, extents: None }, contents)
}

fn item(path: impl AsRef<[u8]>, body: Body, contents: Vec<u8>) -> Item {
    let mode = match &body {
        Body::Directory => 0o755,
        Body::Symlink { .. } => 0o777,
        _ => 0o640,
    };
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    let attributes = Attributes { mode, uid: 3, gid: 4, mtime };
    Item { entry: Entry { path: path.as_ref().to_vec(), attributes, xattrs: Vec::new(), body }, contents }
}

impl Item {
    fn with(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        change(&mut self.entry);
        self
    }
}

/// A tree, depth first.
fn tree() -> Vec<Item> {
    let directory = |path: &str| item(path, Body::Directory, vec![]);
    let symlink = |path: &str, target: &str| item(path, Body::Symlink { target: target.into() }, vec![]);
    let link = |path: &str, target: &str| item(path, Body::HardLink { target: target.into() }, vec![]);
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.to_vec() };
    let time = |seconds, nanoseconds| {
        move |entry: &mut Entry| entry.attributes.mtime = Timestamp { seconds, nanoseconds }
    };
    let long = "n".repeat(200);
    let extents = vec![Extent { offset: 5000, len: 3 }, Extent { offset: 100_000, len: 1 }];
    let mut holes = vec![0; 150_000];
    holes[5000..5003].copy_from_slice(b"abc");
    holes[100_000] = b'd';
    let mut items = vec![
        directory("").with(|entry| entry.attributes.mode = 0o711),
        directory("dir").with(|entry| entry.xattrs = vec![xattr("user.dir", b"1")]),
        item("dir/sparse", Body::Regular { size_bytes: 150_000, extents: Some(extents) }, holes),
        file("dir/with-attributes", 10).with(|entry| {
            entry.xattrs = vec![
                xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
                xattr("user.binary", b"\0\n=\xff\0"),
                xattr("user.empty", b""),
                xattr("user.with space\n", b"1"),
            ];
        }),
        directory(&long).with(|entry| entry.attributes.mode = 0o1777),
        file(&format!("{long}/{long}"), 600).with(|entry| entry.attributes.mode = 0o4755),
        link(&format!("{long}/z-hard"), &format!("{long}/{long}")),
        symlink("symlink", "../x//y/."),
        symlink("symlink-long", &"t".repeat(300)),
        symlink("symlink-\u{fc}", "\u{fc}"),
        link("symlink-hard", "symlink"),
        file("mtime-negative", 1).with(time(-1_000_000, 0)),
        file("mtime-zero", 1).with(time(0, 0)),
        file("mtime-last-octal", 1).with(time((1 << 33) - 1, 0)),
        file("mtime-beyond-octal", 1).with(time(1 << 33, 0)),
        file("owner-last-octal", 1).with(|entry| entry.attributes.uid = 0o7_777_777),
        file("owner-beyond-octal", 1)
            .with(|entry| (entry.attributes.uid, entry.attributes.gid) = (0o10_000_000, u32::MAX - 1)),
        item("char", Body::CharDevice(Device { major: 4095, minor: (1 << 20) - 1 }), vec![]),
        item("block", Body::BlockDevice(Device { major: 8, minor: 0 }), vec![]),
        item("fifo", Body::Fifo, vec![]),
        item(
            b"not-text-\xff\xfe\\\"'\n \xc3",
            Body::Regular { size_bytes: 2, extents: None },
            b"xy".to_vec(),
        ),
        file(".wh.gone", 0).with(|entry| {
            entry.attributes = Attributes::default();
        }),
        file("dir/.wh..wh..opq", 0),
    ];
    for len in [0, 1, 511, 512, 513, 10_240, 100_000] {
        items.push(file(&format!("dir/file-{len}"), len));
    }
    // Around the length of the name field, and of the record's own length.
    for len in [99, 100, 101, 254] {
        items.push(file(&format!("{:n<len$}", "name"), 3));
    }
    // Depth first, as changes come: GNU tar sets a directory's time when it has left it.
    let components = |item: &Item| -> Vec<Vec<u8>> {
        item.entry.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
    };
    items.sort_by_key(components);
    items
}

fn archive(items: &[Item], options: Options) -> Result<Vec<u8>, Failed> {
    let mut writer = Writer::new(Vec::new(), options);
    for Item { entry, contents } in items {
        writer.entry(entry)?;
        if let Body::Regular { size_bytes, extents } = &entry.body {
            let whole = [Extent { offset: 0, len: *size_bytes }];
            for extent in extents.as_deref().unwrap_or(&whole) {
                let (start, len) = (usize::try_from(extent.offset)?, usize::try_from(extent.len)?);
                writer.data(extent.offset, &contents[start..start + len])?;
            }
            writer.end_entry()?;
        }
    }
    Ok(writer.finish()?)
}

/// An entry in the words that all readers share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Member {
    path: Vec<u8>,
    kind: char,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
    target: Vec<u8>,
    device: (u32, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    data: String,
}

fn digest(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

fn wanted(item: &Item) -> Member {
    let Entry { path, attributes, xattrs, body } = &item.entry;
    let mut member = Member {
        path: path.clone(),
        mode: attributes.mode.into(),
        uid: attributes.uid.into(),
        gid: attributes.gid.into(),
        mtime: attributes.mtime.seconds,
        xattrs: xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect(),
        ..Member::default()
    };
    match body {
        Body::Regular { .. } => (member.kind, member.data) = ('-', digest(&item.contents)),
        Body::Directory => member.kind = 'd',
        Body::Symlink { target } => (member.kind, member.target) = ('l', target.clone()),
        Body::HardLink { target } => (member.kind, member.target) = ('h', target.clone()),
        Body::CharDevice(device) => (member.kind, member.device) = ('c', (device.major, device.minor)),
        Body::BlockDevice(device) => (member.kind, member.device) = ('b', (device.major, device.minor)),
        Body::Fifo => member.kind = 'p',
    }
    member
}

#[track_caller]
fn assert_equal(found: &[Member], items: &[Item]) {
    for (found, item) in found.iter().zip(items) {
        assert_eq!(found, &wanted(item), "{}", found.path.escape_ascii());
    }
    assert_eq!(found.len(), items.len());
}

/// A directory's name without the slash that all readers but one leave at its end.
fn without_slash(path: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path == b"." { Vec::new() } else { path.to_vec() }
}

// --- the crate ---------------------------------------------------------------------------------------

fn crate_reads() -> Result<(), Failed> {
    let mut items = tree();
    for item in &mut items {
        // The crate ends records at newlines, and then finds that they are not as long as they say.
        let one_line = |text: &[u8]| !text.contains(&b'\n');
        item.entry.xattrs.retain(|xattr| one_line(&xattr.name) && one_line(&xattr.value));
    }
    items.retain(|item| !item.entry.path.contains(&b'\n'));
    let archive = archive(&items, Options::default())?;
    let mut members = Vec::new();
    for entry in tar::Archive::new(&archive[..]).entries()? {
        let mut entry = entry?;
        let header = entry.header().clone();
        let directory = header.entry_type().is_dir();
        assert_eq!(entry.path_bytes().ends_with(b"/"), directory);
        let mut member = Member {
            path: without_slash(&entry.path_bytes()),
            kind: match header.entry_type().as_byte() {
                b'0' => '-',
                b'1' => 'h',
                b'2' => 'l',
                b'3' => 'c',
                b'4' => 'b',
                b'5' => 'd',
                b'6' => 'p',
                other => char::from(other),
            },
            mode: header.mode()?,
            uid: header.uid()?,
            gid: header.gid()?,
            mtime: i64::try_from(header.mtime()?)?,
            target: entry.link_name_bytes().map(|name| name.to_vec()).unwrap_or_default(),
            ..Member::default()
        };
        if header.entry_type().is_character_special() || header.entry_type().is_block_special() {
            member.device = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        }
        assert_eq!((header.username_bytes(), header.groupname_bytes()), (Some(&b""[..]), Some(&b""[..])));
        for record in entry.pax_extensions()?.into_iter().flatten() {
            let record = record?;
            match record.key_bytes() {
                // The crate leaves these to its callers: only when it unpacks does it look at them.
                b"mtime" => member.mtime = record.value()?.parse()?,
                b"uid" => member.uid = record.value()?.parse()?,
                b"gid" => member.gid = record.value()?.parse()?,
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        member.xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
                    }
                }
            }
        }
        if member.kind == '-' {
            let mut data = Vec::new();
            entry.read_to_end(&mut data)?;
            member.data = digest(&data);
        }
        members.push(member);
    }
    assert_equal(&members, &items);
    Ok(())
}

// --- Python ------------------------------------------------------------------------------------------

/// Prints one line for each member: fields in hexadecimal, joined by spaces.
const PYTHON: &str = r#"
import hashlib, sys, tarfile
raw = lambda text: "x" + text.encode("utf-8", "surrogateescape").hex()
kinds = {b"0": "-", b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}
archive = tarfile.open(fileobj=sys.stdin.buffer, mode="r|", encoding="utf-8", errors="surrogateescape")
for m in archive:
    kind = kinds[m.type]
    data = "sha256:" + hashlib.sha256(archive.extractfile(m).read()).hexdigest() if kind == "-" else "none"
    xattrs = [raw(k[13:]) + "=" + raw(v) for k, v in m.pax_headers.items() if k.startswith("SCHILY.xattr.")]
    assert m.uname == "" and m.gname == "" and float(m.mtime).is_integer()
    print(raw(m.name), kind, m.mode, m.uid, m.gid, int(m.mtime), raw(m.linkname), m.devmajor, m.devminor, data, *xattrs)
"#;

fn python_reads() -> Result<(), Failed> {
    let items = tree();
    let archive = archive(&items, Options::default())?;
    let mut child = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no pipe")?;
    let feeding = std::thread::spawn(move || stdin.write_all(&archive));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    feeding.join().map_err(|_panic| "the pipe")??;
    let mut members = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [path, kind, mode, uid, gid, mtime, target, major, minor, data, xattrs @ ..] = &words[..] else {
            return Err(format!("not understood: {line}").into());
        };
        let mut member = Member {
            path: without_slash(&unhex(path)?),
            kind: kind.chars().next().ok_or("no kind")?,
            mode: mode.parse()?,
            uid: uid.parse()?,
            gid: gid.parse()?,
            mtime: mtime.parse()?,
            target: unhex(target)?,
            device: (major.parse()?, minor.parse()?),
            ..Member::default()
        };
        if member.kind == '-' {
            member.data = (*data).to_owned();
        }
        for xattr in xattrs {
            let (name, value) = xattr.split_once('=').ok_or("no value")?;
            member.xattrs.insert(unhex(name)?, unhex(value)?);
        }
        members.push(member);
    }
    assert_equal(&members, &items);
    Ok(())
}

fn unhex(text: &str) -> Result<Vec<u8>, Failed> {
    let digits = text.strip_prefix('x').ok_or("not hexadecimal")?;
    let pairs = digits.as_bytes().chunks(2).map(std::str::from_utf8);
    pairs.map(|pair| Ok(u8::from_str_radix(pair?, 16)?)).collect()
}

// --- GNU tar -----------------------------------------------------------------------------------------

fn gnu_unpacks() -> Result<(), Failed> {
    for nanoseconds in [false, true] {
        let mut items = tree();
        if nanoseconds {
            for (at, item) in items.iter_mut().enumerate() {
                item.entry.attributes.mtime.nanoseconds = 1 + 7_654_321 * u32::try_from(at)?;
            }
        }
        // ext4 keeps times up to the year 2446.
        items.retain(|item| {
            item.entry.path != b"mtime-beyond-octal" || item.entry.attributes.mtime.seconds < 1 << 33
        });
        let bytes = archive(&items, Options { nanoseconds })?;
        let scratch = tempfile::tempdir()?;
        let root = scratch.path().join("tree");
        fs::create_dir(&root)?;
        fs::write(scratch.path().join("layer.tar"), bytes)?;
        let output = Command::new("tar")
            .args([
                "-xpf",
                "../layer.tar",
                "--numeric-owner",
                "--same-owner",
                "--xattrs",
                "--xattrs-include=*",
            ])
            .current_dir(&root)
            .env("LC_ALL", "C")
            .output()?;
        let complaints = String::from_utf8(output.stderr)?;
        // It finds the times before 1970 and in the future implausible, and sets them all the same.
        let expected = complaints.lines().all(|line| line.contains("time stamp"));
        if !output.status.success() || !expected {
            return Err(complaints.into());
        }
        let mut found = 0;
        for item in &items {
            let path = root.join(OsStr::from_bytes(&item.entry.path));
            assert_on_disk(&path, item, &root)?;
            found += 1;
        }
        assert_eq!(found, count(&root)?, "nothing else was unpacked");
    }
    Ok(())
}

/// Files below and including `path`.
fn count(path: &Path) -> Result<usize, Failed> {
    let mut sum = 1;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            sum += count(&entry?.path())?;
        }
    }
    Ok(sum)
}

fn assert_on_disk(path: &Path, item: &Item, root: &Path) -> Result<(), Failed> {
    let want = wanted(item);
    let on_disk = fs::symlink_metadata(path)?;
    if let Body::HardLink { target } = &item.entry.body {
        // A hard link has the attributes of the inode it names, whichever entry came last.
        let first = fs::symlink_metadata(root.join(OsStr::from_bytes(target)))?;
        assert_eq!(on_disk.ino(), first.ino(), "{}", path.display());
        return Ok(());
    }
    let is_symlink = on_disk.is_symlink();
    let number = on_disk.rdev();
    let found = Member {
        path: want.path.clone(),
        kind: match on_disk.mode() & 0o170_000 {
            0o040_000 => 'd',
            0o120_000 => 'l',
            0o020_000 => 'c',
            0o060_000 => 'b',
            0o010_000 => 'p',
            _ => '-',
        },
        mode: on_disk.mode() & 0o7777,
        uid: on_disk.uid().into(),
        gid: on_disk.gid().into(),
        mtime: on_disk.mtime(),
        target: if is_symlink { fs::read_link(path)?.as_os_str().as_bytes().to_vec() } else { Vec::new() },
        device: (rustix::fs::major(number), rustix::fs::minor(number)),
        xattrs: xattrs(path)?,
        data: if on_disk.is_file() { digest(&fs::read(path)?) } else { String::new() },
    };
    assert_eq!(found, want, "{}", path.display());
    let nanoseconds = item.entry.attributes.mtime.nanoseconds;
    assert_eq!(on_disk.mtime_nsec(), i64::from(nanoseconds), "{}", path.display());
    Ok(())
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failed> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
