//! The tar reader against two others: what GNU tar writes is read as it stood on disk, and every
//! archive that the crate `tar` or GNU tar accepts too means the same to both of us.
//!
//! Where the others are known to differ, the difference is written down beside the comparison.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt, fs::symlink},
    path::Path,
    process::{Command, Stdio},
};

use libtest_mimic::Failed;
use plywood::{
    format::tar::{Event, Parser, TarError},
    tree::{Body, Entry},
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use testkit::{Need, Suite};

pub fn add(suite: &mut Suite) {
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        let name = format!("gnu_tar_{format}_archive_reads_as_the_tree_was");
        suite.test(name, &[Need::GnuTar], || tree_reads_back(format));
    }
    for version in ["0.0", "0.1", "1.0"] {
        let name = format!("gnu_tar_pax_sparse_{version}_reads_as_the_files_were");
        suite.test(name, &[Need::GnuTar], || sparse_reads_back(version));
    }
    suite.test("gnu_tar_old_sparse_is_refused", &[Need::GnuTar], old_sparse_is_refused);
    let xattrs = [Need::GnuTar, Need::Xattr("user.probe", b"1")];
    suite.test("gnu_tar_xattrs_read_as_they_were", &xattrs, xattrs_read_back);
    suite.test("what_other_readers_agree_on_is_read", &[Need::GnuTar], readers_agree);
    let trusted = [Need::Xattr("trusted.probe", b"1"), Need::Xattr("system.posix_acl_access", &[2, 0, 0, 0])];
    let name = "the_kernel_agrees_on_the_attributes_that_files_can_have";
    suite.test(name, &trusted, kernel_agrees_on_attributes);
    suite.test("what_the_tar_crate_writes_is_read_equal", &[], crate_reads_back);
    suite.test("what_the_tar_crate_accepts_too_is_read_equal", &[], crate_agrees);
    suite.test("what_gnu_tar_accepts_too_is_read_equal", &[Need::GnuTar], gnu_agrees);
}

// --- what other readers agree on --------------------------------------------------------------------

const V7: &[u8] = &[0; 8];
const POSIX: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

/// A header of mode 0755 with further fields by their place.
fn header(kind: u8, name: &str, size: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let size = format!("{size:011o}\0");
    let common: [(usize, &[u8]); 6] = [
        (0, name.as_bytes()),
        (100, b"0000755\0"),
        (124, size.as_bytes()),
        (136, b"00000000000\0"),
        (148, b"        "),
        (156, &[kind]),
    ];
    for (at, bytes) in common.iter().chain([&(257, POSIX)]).chain(fields) {
        block[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn extension(kind: u8, body: &str) -> Vec<u8> {
    let mut out = header(kind, "extension", body.len(), &[]);
    out.extend_from_slice(body.as_bytes());
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// The readers that are installed, each with the command that extracts an archive from its input.
fn extractors() -> Vec<(&'static str, Vec<&'static str>)> {
    const PYTHON: &str =
        "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall()";
    [
        ("gnu", vec!["tar", "-xf", "-"]),
        ("libarchive", vec!["bsdtar", "-xf", "-"]),
        ("python", vec!["python3", "-c", PYTHON]),
    ]
    .into_iter()
    .filter(|(_, command)| Command::new(command[0]).arg("--version").output().is_ok())
    .collect()
}

/// The files and directories that a reader leaves of an archive, by their names.
fn extracted(command: &[&str], archive: &[u8]) -> Result<Vec<String>, Failed> {
    fn list(at: &Path, below: &str, names: &mut Vec<String>) -> Result<(), Failed> {
        for entry in fs::read_dir(at)? {
            let entry = entry?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                list(&entry.path(), &format!("{name}/"), names)?;
            }
            names.push(name);
        }
        Ok(())
    }
    let directory = tempfile::tempdir()?;
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let _it_may_stop_early = child.stdin.take().map(|mut stdin| stdin.write_all(archive));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let mut names = Vec::new();
    list(directory.path(), "", &mut names)?;
    names.sort();
    Ok(names)
}

/// Each archive with the readers that do not take it, or take it otherwise, by name.
fn readers_agree() -> Result<(), Failed> {
    const NONE: &[&str] = &[];
    let after = || header(b'0', "t", 0, &[]);
    let mut archives: Vec<(String, Vec<u8>, &[&str])> = Vec::new();
    for (kind, magics) in [(b'1', &[V7, GNU][..]), (b'2', &[V7, GNU, POSIX]), (b'5', &[V7, GNU, POSIX])] {
        for magic in magics {
            let sized = header(kind, "a", 5, &[(157, b"t"), (257, magic)]);
            let next = header(b'0', "b", 0, &[(257, magic)]);
            let name = format!("{kind} of size 5, {}", magic.escape_ascii());
            archives.push((name, [after(), sized, next].concat(), NONE));
        }
    }
    let global = || extension(b'g', "13 comment=c\n");
    let (long, path) = (|| extension(b'L', "name\0"), || extension(b'x', "13 path=name\n"));
    let target = || [extension(b'K', "t\0"), extension(b'x', "14 linkpath=t\n")].concat();
    let root = || header(b'5', "./", 0, &[]);
    archives.extend([
        // Python misses the end in both.
        ("a global header last".into(), [after(), global()].concat(), &["python"][..]),
        ("a global header only".into(), global(), &["python"]),
        ("L twice".into(), [long(), long(), after()].concat(), NONE),
        ("L and path".into(), [long(), path(), after()].concat(), NONE),
        ("path and L".into(), [path(), long(), after()].concat(), NONE),
        ("K and linkpath".into(), [target(), header(b'2', "a", 0, &[]), after()].concat(), NONE),
        // libarchive reports an error, and leaves the same.
        (
            "the root links to itself".into(),
            [root(), header(b'1', "./", 0, &[(157, b"./")]), after()].concat(),
            &["libarchive", "python"],
        ),
        // GNU tar and libarchive never look for a prefix there; Go does like Python.
        (
            "a prefix in a GNU header".into(),
            header(b'0', "a", 0, &[(257, GNU), (345, b"some/dir")]),
            &["gnu", "libarchive"],
        ),
        (
            "times in a GNU header".into(),
            header(b'0', "a", 0, &[(257, GNU), (345, b"14000000000\x0014000000000\0")]),
            // Python takes every text there for a prefix.
            &["python"],
        ),
    ]);
    for (what, mut archive, other) in archives {
        archive.resize(archive.len() + 1024, 0);
        let mut want = std::collections::BTreeSet::new();
        for member in ours(&archive)? {
            let path = String::from_utf8(member.path)?;
            let path = path.trim_start_matches("./").trim_end_matches('/');
            // With the directories that it implies, without the root.
            let with_parents = Path::new(path).ancestors().filter(|path| !path.as_os_str().is_empty());
            want.extend(with_parents.map(|path| path.to_string_lossy().into_owned()));
        }
        let want: Vec<String> = want.into_iter().collect();
        for (reader, command) in extractors() {
            let theirs = extracted(&command, &archive);
            let agrees = theirs.as_ref().is_ok_and(|theirs| *theirs == want);
            if agrees == other.contains(&reader) {
                return Err(format!("{what}: {reader} reads {theirs:?}, we read {want:?}").into());
            }
        }
    }
    Ok(())
}

// --- attributes, and the kernel ----------------------------------------------------------------------

/// Which attributes files can have, by the kernel's word: what it refuses in a way that containerd ignores is
/// dropped, everything else that it refuses to set or to read is refused.
fn kernel_agrees_on_attributes() -> Result<(), Failed> {
    use plywood::tree::{FileType as Kind, xattr::is_settable};
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "")?;
    fs::create_dir(at("directory"))?;
    symlink("target", at("link"))?;
    for (name, kind) in [("pipe", FileType::Fifo), ("character", FileType::CharacterDevice)] {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o644), rustix::fs::makedev(1, 3))?;
    }
    let files = [
        ("file", Kind::Regular),
        ("directory", Kind::Directory),
        ("link", Kind::Symlink),
        ("pipe", Kind::Fifo),
        ("character", Kind::CharDevice),
    ];
    let mut random = Random(6);
    let mut values = vec![Vec::new(), vec![2, 0, 0], vec![2, 0, 0, 0], vec![1, 0, 0, 0], vec![3; 20]];
    for len in [12, 19, 20, 21, 24, 28] {
        for version in [0x0100_0000_u32, 0x0200_0000, 0x0200_0001, 0x0200_0002, 0x0300_0000, 0x0300_0001] {
            for fill in [0, 1, 255] {
                let mut value = version.to_le_bytes().to_vec();
                value.resize(len, fill);
                values.push(value);
            }
        }
    }
    // Lists that are right but for one entry, if that.
    for _ in 0..1500 {
        let mut entries = vec![(1_u16, 7_u16, u32::MAX)];
        entries.extend((0..random.below(3)).map(|_| (2, 4, 1000)));
        entries.push((4, 5, u32::MAX));
        entries.extend((0..random.below(3)).map(|_| (8, 4, 5)));
        entries.extend((random.below(2) == 0).then_some((16, 5, 0)));
        entries.push((32, 0, 0));
        match random.below(6) {
            0 => entries.swap(0, 1),
            1 => drop(entries.pop()),
            2 => {
                let changed = random.below(entries.len());
                entries[changed] = (
                    random.pick(&[0, 1, 2, 4, 8, 16, 32, 64]),
                    random.pick(&[0, 7, 8]),
                    random.pick(&[0, u32::MAX]),
                );
            }
            3 => entries.push(random.pick(&[(1, 7, 0), (2, 7, 0), (16, 7, 0), (32, 7, 0)])),
            _ => {}
        }
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value.truncate(value.len() - [0, 0, 0, 0, 0, 1][random.below(6)]);
        values.push(value);
    }
    let names = [
        "user.a",
        "trusted.a",
        "security.a",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
    ];
    let mut found = [0, 0, 0];
    for value in &values {
        for ((name, kind), attribute) in files.iter().flat_map(|file| names.map(|name| (file, name))) {
            use rustix::io::Errno;
            let path = at(name);
            let set = rustix::fs::lsetxattr(&path, attribute, value, XattrFlags::empty());
            let read = rustix::fs::lgetxattr(&path, attribute, &mut [0_u8; 4096][..]);
            let _clean = rustix::fs::lremovexattr(&path, attribute);
            let kernel = match (set, read) {
                (Err(Errno::PERM), _) if attribute.starts_with("user.") => Some(false),
                (Err(Errno::NOTSUP), _) => Some(false),
                (Err(_), _) => None,
                (Ok(()), Ok(_)) => Some(true),
                // A list that says no more than the mode is not kept, one without entries removes another.
                (Ok(()), Err(Errno::NODATA)) => Some(value.len() > 4),
                (Ok(()), Err(_)) => None,
            };
            let ours = is_settable(attribute.as_bytes(), value, *kind).ok();
            if ours != kernel {
                return Err(format!(
                    "{attribute} on a {name}, {value:?}: the kernel says {set:?} {read:?}, we {ours:?}"
                )
                .into());
            }
            found[match ours {
                Some(true) => 0,
                Some(false) => 1,
                None => 2,
            }] += 1;
        }
    }
    assert!(found.iter().all(|count| *count > 1000), "{found:?}");
    Ok(())
}

/// A member of an archive in the words that all readers share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Member {
    path: Vec<u8>,
    /// As `ls` shows it, and `h` for a hard link.
    kind: char,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: (i64, u32),
    size: u64,
    target: Vec<u8>,
    device: (u32, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Without holes.
    data: Vec<u8>,
    sparse: bool,
}

impl Member {
    fn new(entry: Entry) -> Self {
        let mut member = Self {
            path: entry.path,
            mode: u32::from(entry.attributes.mode),
            uid: entry.attributes.uid.into(),
            gid: entry.attributes.gid.into(),
            mtime: (entry.attributes.mtime.seconds, entry.attributes.mtime.nanoseconds),
            xattrs: entry.xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
            ..Self::default()
        };
        match entry.body {
            Body::Regular { size_bytes, extents } => {
                (member.kind, member.size, member.sparse) = ('-', size_bytes, extents.is_some());
            }
            Body::Directory => member.kind = 'd',
            Body::Symlink { target } => (member.kind, member.target) = ('l', target),
            Body::HardLink { target } => (member.kind, member.target) = ('h', target),
            Body::CharDevice(device) => (member.kind, member.device) = ('c', (device.major, device.minor)),
            Body::BlockDevice(device) => (member.kind, member.device) = ('b', (device.major, device.minor)),
            Body::Fifo => member.kind = 'p',
        }
        member
    }
}

fn ours(archive: &[u8]) -> Result<Vec<Member>, TarError> {
    let mut parser = Parser::new();
    let mut members: Vec<Member> = Vec::new();
    for mut piece in archive.chunks(1 << 16) {
        while let Some(event) = parser.next(&mut piece)? {
            match event {
                Event::Entry { entry, .. } => members.push(Member::new(entry)),
                Event::Data { offset, bytes } => {
                    let data = &mut members.last_mut().expect("data follows an entry").data;
                    data.resize(usize::try_from(offset).expect("tests are small"), 0);
                    data.extend_from_slice(bytes);
                }
                Event::EndOfEntry => {
                    let member = members.last_mut().expect("an end follows an entry");
                    member.data.resize(usize::try_from(member.size).expect("tests are small"), 0);
                }
            }
        }
    }
    parser.finish()?;
    Ok(members)
}

// --- trees on disk, archived by GNU tar -----------------------------------------------------------

fn gnu_tar(directory: &Path, arguments: &[&str]) -> Result<Vec<u8>, Failed> {
    let output = Command::new("tar")
        .args(["--sort=name", "-c", "-f", "-"])
        .args(arguments)
        .arg(".")
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(output.stdout)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).is_ok()
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) -> Result<(), Failed> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes a tree of everything the format can hold.
fn make_tree(root: &Path, format: &str) -> Result<(), Failed> {
    let root_user = rustix::process::geteuid().is_root();
    let write = |name: &[u8], len: usize| {
        let data: Vec<u8> = (1..=251).cycle().take(len).collect();
        fs::write(root.join(std::ffi::OsStr::from_bytes(name)), data)
    };
    for len in [0, 1, 511, 512, 513, 10_240, 100_000] {
        write(format!("file-{len}").as_bytes(), len)?;
    }
    write(b"not-text-\xff\xfe\\\"'\n", 3)?;
    write(b"with space ", 3)?;
    fs::create_dir_all(root.join("a/b/c"))?;
    write(b"a/b/c/deep", 7)?;
    symlink("a/b", root.join("link"))?;
    symlink("/nowhere//at all/..", root.join("dangling"))?;
    fs::hard_link(root.join("file-513"), root.join("hard"))?;
    for (name, mode) in [("file-0", 0o4711), ("file-1", 0o2700), ("a/b", 0o1777), ("file-511", 0)] {
        rustix::fs::chmod(root.join(name), Mode::from_raw_mode(mode))?;
    }
    if format != "v7" {
        rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
        if root_user {
            let device = rustix::fs::makedev(4000, 1_000_000);
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(CWD, root.join("char"), FileType::CharacterDevice, mode, device)?;
            rustix::fs::mknodat(CWD, root.join("block"), FileType::BlockDevice, mode, 0)?;
        }
    }
    if root_user {
        rustix::fs::chown(root.join("file-512"), Some(rustix::fs::Uid::from_raw(1234)), None)?;
    }
    if matches!(format, "gnu" | "oldgnu" | "pax") {
        let long = "n".repeat(200);
        fs::create_dir(root.join(&long))?;
        write(format!("{long}/{long}").as_bytes(), 1)?;
        fs::hard_link(root.join(&long).join(&long), root.join(&long).join("hard"))?;
        symlink("t".repeat(300), root.join("long-target"))?;
        set_mtime(&root.join("file-1"), -1_000_000, 0)?;
        if root_user {
            let owner = Some(rustix::fs::Uid::from_raw(u32::MAX - 1));
            rustix::fs::chown(root.join("file-10240"), owner, None)?;
        }
    }
    if matches!(format, "pax") {
        set_mtime(&root.join("file-511"), -2, 250_000_000)?;
        set_mtime(&root.join("link"), 1_700_000_000, 1)?;
        set_mtime(&root.join("a"), 1 << 40, 999_999_999)?;
    }
    Ok(())
}

/// Compares each member with the file it was made of.
fn assert_as_on_disk(members: &[Member], root: &Path, whole_seconds: bool) -> Result<(), Failed> {
    let mut first_names: BTreeMap<(u64, u64), &[u8]> = BTreeMap::new();
    for member in members {
        let path = root.join(std::ffi::OsStr::from_bytes(&member.path));
        let on_disk = fs::symlink_metadata(&path)?;
        let kind = match on_disk.mode() & 0o170_000 {
            0o040_000 => 'd',
            0o120_000 => 'l',
            0o020_000 => 'c',
            0o060_000 => 'b',
            0o010_000 => 'p',
            _ if first_names.contains_key(&(on_disk.dev(), on_disk.ino())) => 'h',
            _ => '-',
        };
        let mut want = Member {
            path: member.path.clone(),
            kind,
            mode: on_disk.mode() & 0o7777,
            uid: on_disk.uid().into(),
            gid: on_disk.gid().into(),
            mtime: (on_disk.mtime(), u32::try_from(on_disk.mtime_nsec())?),
            xattrs: member.xattrs.clone(),
            sparse: member.sparse,
            ..Member::default()
        };
        if whole_seconds {
            want.mtime.1 = 0;
        }
        match kind {
            '-' => {
                want.data = fs::read(&path)?;
                want.size = on_disk.size();
            }
            'l' => want.target = fs::read_link(&path)?.as_os_str().as_bytes().to_vec(),
            'h' => want.target = first_names[&(on_disk.dev(), on_disk.ino())].to_vec(),
            'c' | 'b' => {
                want.device = (rustix::fs::major(on_disk.rdev()), rustix::fs::minor(on_disk.rdev()));
            }
            _ => {}
        }
        if on_disk.nlink() > 1 && kind == '-' {
            first_names.insert((on_disk.dev(), on_disk.ino()), &member.path);
        }
        assert_eq!(*member, want);
    }
    Ok(())
}

fn tree_reads_back(format: &str) -> Result<(), Failed> {
    let root = tempfile::tempdir()?;
    make_tree(root.path(), format)?;
    let archive = gnu_tar(root.path(), &[&format!("--format={format}")])?;
    let members = ours(&archive)?;
    assert!(members.len() > 16, "{} members", members.len());
    assert_as_on_disk(&members, root.path(), format != "pax")
}

/// Files with holes at the beginning, in the middle, at the end, and nothing but a hole.
fn make_sparse_files(root: &Path) -> Result<(), Failed> {
    use std::os::unix::fs::FileExt;
    for (name, size, writes) in [
        ("hole", 1 << 20, &[][..]),
        ("end", 1 << 20, &[0][..]),
        ("begin", (1 << 20) + 3, &[1 << 20]),
        ("middle", 3 << 20, &[0, 1 << 20, (1 << 20) + 4096, 2 << 20]),
        ("many", 1 << 20, &(0..100).map(|n| n * 10_240).collect::<Vec<u64>>()),
        ("dense", 5, &[0]),
    ] {
        let file = fs::File::create(root.join(name))?;
        for offset in writes {
            file.write_all_at(format!("at {offset}").as_bytes(), *offset)?;
        }
        file.set_len(size)?;
    }
    Ok(())
}

fn sparse_reads_back(version: &str) -> Result<(), Failed> {
    let root = tempfile::tempdir()?;
    make_sparse_files(root.path())?;
    let version = format!("--sparse-version={version}");
    // Looks for zeros itself, so that holes do not depend on the file system.
    let archive = gnu_tar(root.path(), &["--format=pax", "-S", "--hole-detection=raw", &version])?;
    let members = ours(&archive)?;
    let sparse: Vec<_> = members.iter().filter(|member| member.sparse).collect();
    assert!(sparse.len() >= 5, "{} of {} files are sparse", sparse.len(), members.len());
    assert_as_on_disk(&members, root.path(), false)
}

fn old_sparse_is_refused() -> Result<(), Failed> {
    use plywood::error::Classify;
    let root = tempfile::tempdir()?;
    make_sparse_files(root.path())?;
    let archive = gnu_tar(root.path(), &["--format=gnu", "-S", "--hole-detection=raw"])?;
    let error = ours(&archive).expect_err("type S is refused");
    assert_eq!(error.reason(), "tar.sparse.gnu", "{error}");
    Ok(())
}

fn xattrs_read_back() -> Result<(), Failed> {
    let root = tempfile::tempdir()?;
    let file = root.path().join("file");
    fs::write(&file, b"data")?;
    let long = format!("user.{}", "n".repeat(200));
    let want: &[(&str, &[u8])] = &[("user.empty", b""), ("user.bytes", b"\0=\n\xff"), (&long, &[7; 1000])];
    for (name, value) in want {
        assert!(set_xattr(&file, name, value));
    }
    let archive = gnu_tar(root.path(), &["--format=pax", "--xattrs", "--xattrs-include=user.*"])?;
    let members = ours(&archive)?;
    let file = members.iter().find(|member| member.path == b"./file").expect("the file is there");
    let want = want.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
    assert_eq!(file.xattrs, want);
    Ok(())
}

// --- archives made up, read by all ----------------------------------------------------------------

/// A small generator whose archives are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's multiplier; the high bits are the random ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn name(&mut self) -> String {
        let len = self.pick(&[1, 3, 20, 99, 100, 101, 155, 254, 300]);
        let mut name: String =
            (0..len).map(|n| if n % 50 == 40 { '/' } else { char::from(self.pick(b"abcx.- ")) }).collect();
        // Names that others trim or look at are another test's matter.
        name.insert(0, 'n');
        name.push('n');
        name
    }
}

/// Members and the archive that the crate makes of them.
fn crate_archive(random: &mut Random) -> Result<(Vec<Member>, Vec<u8>), Failed> {
    use tar::{EntryType, Header};
    let mut builder = tar::Builder::new(Vec::new());
    let mut members = Vec::new();
    for _ in 0..=random.below(4) {
        let mut header = match random.below(3) {
            0 => Header::new_ustar(),
            1 => Header::new_gnu(),
            _ => Header::new_old(),
        };
        let is_old = header.as_ustar().is_none() && header.as_gnu().is_none();
        let kind = random.pick(if is_old { b"-dlh" } else { b"--dlhcbp" });
        let mut member = Member {
            path: random.name().into_bytes(),
            kind: char::from(kind),
            mode: random.pick(&[0o644, 0o755, 0o7777, 0]),
            uid: random.pick(&[0, 1, 65_534, 0o7_777_777]),
            gid: random.pick(&[0, 100, 0o7_777_777]),
            mtime: (random.pick(&[0, 1, 1_700_000_000, 0o77_777_777_777]), 0),
            ..Member::default()
        };
        if header.as_gnu().is_some() {
            member.uid = random.pick(&[member.uid, 0o10_000_000, u64::from(u32::MAX) - 1]);
        }
        header.set_mode(member.mode);
        header.set_uid(member.uid);
        header.set_gid(member.gid);
        header.set_mtime(member.mtime.0.unsigned_abs());
        header.set_size(0);
        let entry_type = match kind {
            b'd' => EntryType::Directory,
            b'l' => EntryType::Symlink,
            b'h' => EntryType::Link,
            b'c' => EntryType::Char,
            b'b' => EntryType::Block,
            b'p' => EntryType::Fifo,
            _ => EntryType::Regular,
        };
        header.set_entry_type(entry_type);
        match kind {
            b'-' => {
                let size = random.pick(&[0, 1, 511, 512, 513, 4096]);
                member.data = (0..=250).cycle().take(size).collect();
                member.size = member.data.len() as u64;
                header.set_size(member.size);
            }
            b'c' | b'b' => {
                member.device = (random.pick(&[0, 1, 4095]), random.pick(&[0, 3, (1 << 20) - 1]));
                header.set_device_major(member.device.0)?;
                header.set_device_minor(member.device.1)?;
            }
            _ => {}
        }
        if random.below(3) == 0 {
            if b"-dh".contains(&kind) {
                member.xattrs.insert(b"user.a".to_vec(), b"v\0".to_vec());
            }
            member.uid = 77;
            let records: &[(&str, &[u8])] = &[("SCHILY.xattr.user.a", b"v\0"), ("uid", b"77")];
            builder.append_pax_extensions(records.iter().copied())?;
        }
        if kind == b'l' {
            member.mode = 0o777;
        }
        if matches!(kind, b'l' | b'h') {
            let target = random.name();
            builder.append_link(&mut header, String::from_utf8(member.path.clone())?, &target)?;
            member.target = target.into_bytes();
        } else {
            builder.append_data(&mut header, String::from_utf8(member.path.clone())?, &member.data[..])?;
        }
        members.push(member);
    }
    Ok((members, builder.into_inner()?))
}

fn crate_reads_back() -> Result<(), Failed> {
    let mut random = Random(1);
    for _ in 0..400 {
        let (want, archive) = crate_archive(&mut random)?;
        assert_eq!(ours(&archive)?, want);
    }
    Ok(())
}

/// The crate drops one NUL only from the end of a GNU long name.
fn until_nul(name: &[u8]) -> Vec<u8> {
    name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// The crate's reading of an archive.
fn crates(archive: &[u8]) -> std::io::Result<Vec<Member>> {
    let mut members = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let kind = match entry.header().entry_type().as_byte() {
            // Type NUL, which the crate takes for "0": a slash made a directory of it.
            b'0' if until_nul(&entry.path_bytes()).ends_with(b"/") => 'd',
            0 | b'0' | b'7' => '-',
            b'1' => 'h',
            b'2' => 'l',
            b'3' => 'c',
            b'4' => 'b',
            b'5' => 'd',
            b'6' => 'p',
            b'g' => continue,
            other => char::from(other),
        };
        let header = entry.header();
        let mut member = Member {
            path: until_nul(&entry.path_bytes()),
            kind,
            mode: header.mode()? & 0o7777,
            uid: header.uid()?,
            gid: header.gid()?,
            mtime: (i64::try_from(header.mtime()?).map_err(std::io::Error::other)?, 0),
            size: entry.size(),
            ..Member::default()
        };
        if matches!(kind, 'h' | 'l') {
            member.target = entry.link_name_bytes().map(|name| until_nul(&name)).unwrap_or_default();
        }
        if matches!(kind, 'c' | 'b') {
            member.device =
                (header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default());
        }
        if let Some(records) = entry.pax_extensions()? {
            for record in records {
                let record = record?;
                if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    member.xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
                }
            }
        }
        entry.read_to_end(&mut member.data)?;
        if kind == 'l' {
            member.mode = 0o777;
        }
        if "lcbp".contains(kind) {
            // They cannot have any attribute of `user.`.
            member.xattrs.clear();
        }
        members.push(member);
    }
    Ok(members)
}

/// An archive with a few of its headers changed into others that may still be valid.
fn mutated_archive(random: &mut Random) -> Result<Vec<u8>, Failed> {
    let (_, mut archive) = crate_archive(random)?;
    let is_header = |block: &[u8]| {
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        block[148..154] == *format!("{sum:06o}").as_bytes()
            || block[148..155] == *format!("{sum:07o}").as_bytes()
    };
    let headers: Vec<usize> =
        (0..archive.len()).step_by(512).filter(|at| is_header(&archive[*at..*at + 512])).collect();
    for _ in 0..=random.below(2) {
        let at = random.pick(&headers);
        let block = &mut archive[at..at + 512];
        let mut set = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        match random.below(12) {
            0 => set(156, &[random.pick(b"\x0001234567xgLKSVM")]),
            1 => set(257, random.pick(&[&b"ustar\x0000"[..], b"ustar  \0", &[0; 8], b"ustar 00"])),
            2 => set(
                124,
                random.pick(&[
                    &b"00000000000\0"[..],
                    b"        512 ",
                    b"\x80\0\0\0\0\0\0\0\0\0\0\x05",
                    b"           \0",
                    b"513\0 junk   ",
                ]),
            ),
            3 => set(
                108,
                random.pick(&[
                    &b"     12 "[..],
                    b"\x80\0\0\0\0\0\0\x05",
                    b"        ",
                    b"-1\0\0\0\0\0\0",
                    b"12 34   ",
                ]),
            ),
            4 => set(
                136,
                random.pick(&[&b"\x80\0\0\0\0\0\0\0\0\0\0\x05"[..], b"1234567 \0\0\0\0", b"            "]),
            ),
            5 => set(100, random.pick(&[&b"0100644\0"[..], b"755 \0\0\0\0", b"\x80\0\0\0\0\0\x01\xff"])),
            6 => set(0, random.pick(&[&b"x\0y"[..], b"./x\0", b"/x\0", b"../x\0", b"x//y\0", b"x/\0"])),
            7 => set(345, random.pick(&[&b"prefix\0"[..], b"\0", b"14000000000\0"])),
            8 => set(508, b"tar\0"),
            9 => set(157, random.pick(&[&b"t\0u"[..], b"\0", b"../t\0"])),
            10 => set(329, random.pick(&[&b"0000017\0"[..], b"\0\0\0\0\0\0\0\0", b"     17 "])),
            _ => {
                let insert = random.pick(&headers);
                archive.splice(insert..insert, vec![0; 512]);
                break;
            }
        }
        archive[at + 148..at + 156].fill(b' ');
        let sum: u32 = archive[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        archive[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    if random.below(4) == 0 {
        archive.truncate(archive.len() - 512 * random.below(4));
    }
    Ok(archive)
}

/// One line for each member that only one of the two readings has.
fn differences(ours: &[Member], theirs: &[Member]) -> String {
    let line = |who: &str, member: &Member| {
        let Member { kind, mode, uid, gid, mtime, size, device, .. } = member;
        let xattrs: Vec<_> = member.xattrs.keys().map(|name| name.escape_ascii().to_string()).collect();
        format!(
            "{who}: {kind} {mode:o} {uid}:{gid} {mtime:?} {size} {device:?} {} -> {} {xattrs:?} {} bytes",
            member.path.escape_ascii(),
            member.target.escape_ascii(),
            member.data.len(),
        )
    };
    let only = |who, these: &[Member], others: &[Member]| -> Vec<String> {
        these.iter().filter(|member| !others.contains(member)).map(|member| line(who, member)).collect()
    };
    [only("ours", ours, theirs), only("theirs", theirs, ours)].concat().join("\n")
}

/// Whether a block may be a header that the crate, or the list of GNU tar, reads in another way.
fn is_read_otherwise(block: &[u8]) -> bool {
    // Where star has a time (byte 476), others go on with the prefix.
    let star = block.ends_with(b"tar\0") && block[475] != 0;
    // Go and Python take text in a GNU header for a prefix.
    let gnu_prefix = &block[257..265] == b"ustar  \0" && block[345] != 0 && !block[345].is_ascii_digit();
    // They skip as much as is announced; what extracts does not.
    let has_no_data =
        b"125".contains(&block[156]) && block[124..136].iter().any(|byte| !b"0 \0".contains(byte));
    star || gnu_prefix || has_no_data
}

/// Reads `rounds` changed archives by ourselves and by `theirs`, and compares what both accept.
fn agree(
    seed: u64,
    rounds: usize,
    theirs: impl Fn(&[u8], &mut Vec<Member>) -> Result<Option<Vec<Member>>, Failed>,
) -> Result<(), Failed> {
    let mut random = Random(seed);
    let (mut both, mut refused) = (0, 0);
    for round in 0..rounds {
        let archive = mutated_archive(&mut random)?;
        if archive.chunks_exact(512).any(is_read_otherwise) {
            continue;
        }
        let Ok(mut ours) = ours(&archive) else {
            refused += 1;
            continue;
        };
        let Some(theirs) = theirs(&archive, &mut ours)? else { continue };
        both += 1;
        if ours != theirs {
            let path = std::env::temp_dir().join(format!("tar-oracle-{seed}.tar"));
            fs::write(&path, &archive)?;
            let differences = differences(&ours, &theirs);
            return Err(format!("round {round}, {}:\n{differences}", path.display()).into());
        }
    }
    // Otherwise the archives were not worth comparing.
    if both * 5 < rounds || refused * 10 < rounds {
        return Err(format!("of {rounds} archives {both} were accepted by both, {refused} refused").into());
    }
    Ok(())
}

fn crate_agrees() -> Result<(), Failed> {
    agree(4, 3000, |archive, _| {
        let theirs = crates(archive).ok();
        // Extension headers of another dialect than it expects come out as entries.
        Ok(theirs.filter(|members| !members.iter().any(|member| "LKxgS".contains(member.kind))))
    })
}

/// Runs GNU tar on an archive; `None` when it complains.
fn gnu_output(archive: &[u8], arguments: &[&str]) -> Result<Option<Vec<u8>>, Failed> {
    let mut child = Command::new("tar")
        .args(arguments)
        .env("LC_ALL", "C")
        .env("TZ", "UTC0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // The archives are smaller than a pipe's buffer; it may stop reading early.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(archive));
    let output = child.wait_with_output()?;
    Ok((output.status.success() && output.stderr.is_empty()).then_some(output.stdout))
}

/// A line of `tar -tv --full-time --numeric-owner`.
fn listed(line: &str) -> Option<Member> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(word)
    };
    let (mode, owner, size, date, time) = (word()?, word()?, word()?, word()?, word()?);
    let mut member = Member { kind: mode.chars().next()?, ..Member::default() };
    if member.kind == 'C' {
        // A contiguous file, which is a file.
        member.kind = '-';
    }
    for (at, c) in mode.chars().skip(1).enumerate() {
        let bit = 1 << (8 - at);
        let special = [0o4000, 0o2000, 0o1000][at / 3];
        member.mode |= match c {
            '-' => 0,
            's' | 't' => bit | special,
            'S' | 'T' => special,
            _ => bit,
        };
    }
    if member.kind == 'l' {
        member.mode = 0o777;
    }
    let (uid, gid) = owner.split_once('/')?;
    (member.uid, member.gid) = (uid.parse().ok()?, gid.parse().ok()?);
    match size.split_once(',') {
        Some((major, minor)) => member.device = (major.parse().ok()?, minor.parse().ok()?),
        None => member.size = size.parse().ok()?,
    }
    let numbers: Vec<i64> = date.split('-').chain(time.split(':')).filter_map(|n| n.parse().ok()).collect();
    let [year, month, day, hour, minute, second] = numbers[..] else { return None };
    // Days since 1970, of a year that begins in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    member.mtime = (((days * 24 + hour) * 60 + minute) * 60 + second, 0);
    let (name, target) = match member.kind {
        'l' => rest.split_once(" -> ")?,
        'h' => rest.split_once(" link to ")?,
        _ => (rest, ""),
    };
    (member.path, member.target) = (name.into(), target.into());
    Some(member)
}

fn gnu_agrees() -> Result<(), Failed> {
    agree(5, 300, |archive, ours| {
        let list = ["-tvf", "-", "-P", "--full-time", "--numeric-owner", "--quoting-style=literal"];
        let (Some(list), Some(data)) = (gnu_output(archive, &list)?, gnu_output(archive, &["-xPOf", "-"])?)
        else {
            return Ok(None);
        };
        let list = String::from_utf8(list)?;
        let mut theirs = Vec::new();
        for line in list.lines() {
            theirs.push(listed(line).ok_or_else(|| format!("not understood: {line}"))?);
        }
        assert_eq!(data, ours.iter().flat_map(|member| member.data.clone()).collect::<Vec<u8>>());
        for member in ours {
            // Compared above; and attributes are not listed.
            member.data.clear();
            member.xattrs.clear();
        }
        Ok(Some(theirs))
    })
}
