//! File systems that were not unmounted: copied while they were in use, read with their journal.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Command,
};

use libtest_mimic::Failed;
use plywood::format::ext4::reader::{Extent, Image, Place};
use testkit::{Need, Suite, host::run};

use super::{
    super::listing,
    Made, NEEDS,
    disk::{Disk, Mounted},
    fill, made, of_image, same,
};

/// File systems to make, and the options to mount them.
const SYSTEMS: &[(Made, &str)] = &[
    (made("defaults", &[]), ""),
    (made("small_journal", &["-J", "size=4"]), ""),
    (made("no_checksums", &["-O", "^metadata_csum", "-J", "size=4"]), ""),
    (made("32_bit", &["-O", "^64bit"]), ""),
    (made("32_bit_no_checksums", &["-O", "^64bit,^metadata_csum"]), ""),
    (made("block_maps_1k", &["-b", "1024", "-O", "^extent,^64bit", "-J", "size=4"]), ""),
    (made("journalled_data", &["-J", "size=8"]), "data=journal"),
    (made("journalled_data_no_checksums", &["-O", "^metadata_csum", "-J", "size=8"]), "data=journal"),
    (made("summed_transactions", &["-O", "^metadata_csum"]), "journal_checksum"),
    (made("late_commits", &[]), "journal_checksum,journal_async_commit,data=writeback"),
    (
        made("late_commits_summed", &["-O", "^metadata_csum"]),
        "journal_checksum,journal_async_commit,data=writeback",
    ),
    (made("inline_data", &["-O", "inline_data"]), ""),
    (made("ext3", &["-t", "ext3"]), ""),
];

pub fn add(suite: &mut Suite) {
    for (system, options) in SYSTEMS {
        let name = format!("needs_root_and_mkfs_{}_in_use_reads_as_replayed_by_the_kernel", system.name);
        suite.test(name, &NEEDS, || in_use(*system, options));
    }
    for (name, test) in [
        ("deleted_and_cut_in_use_reads_as_replayed_by_the_kernel", orphans as fn() -> Result<(), Failed>),
        ("fast_commits_are_refused", fast_commits),
    ] {
        suite.test(format!("needs_root_and_mkfs_{name}"), &NEEDS, test);
    }
    let resize = [&NEEDS[..], &[Need::Capability("CAP_SYS_RESOURCE", 24)]].concat();
    suite.test("needs_root_and_mkfs_grown_in_use_reads_as_replayed_by_the_kernel", &resize, grown);
    let debugfs = [&NEEDS[..], &[Need::Tool("debugfs")]].concat();
    for (form, options) in [
        ("without_checksums", &[][..]),
        ("with_wrong_sums", &["-c", "-v", "1"]),
        ("with_checksums_2", &["-c", "-v", "2"]),
        ("with_checksums_3", &["-c", "-v", "3"]),
    ] {
        for width in ["64bit", "^64bit"] {
            let bits = if width == "64bit" { 64 } else { 32 };
            let name =
                format!("needs_root_and_debugfs_{bits}_bit_journal_{form}_reads_as_replayed_by_the_kernel");
            suite.test(name, &debugfs, || by_debugfs(options, width));
        }
    }
}

fn in_use(system: Made, options: &str) -> Result<(), Failed> {
    let disk = Disk::new(system.size_mib, system.options)?;
    let (ours, theirs) = {
        let mounted = Mounted::new(&disk.path, options)?;
        fill::everything(mounted.root())?;
        run(Command::new("sync").arg("-f").arg(mounted.root()))?;
        // Old copies of blocks that are used otherwise later, among them as data.
        for round in 0..6 {
            churn(mounted.root(), round)?;
        }
        File::create(mounted.root().join("last"))?.sync_all()?;
        (disk.copy("ours")?, disk.copy("theirs")?)
    };
    let theirs = listing::by_kernel(Mounted::new(&theirs, "")?.root());
    let image = Image::open(File::open(&ours)?)?;
    let replayed = image.replayed().ok_or("it was in use")?;
    assert!(replayed.transactions > 0 && replayed.blocks > 0, "{replayed:?}");
    same(&of_image(&image), &theirs)
}

/// Read by us from one copy, and by the kernel, which may write to it, from another.
fn as_replayed(disk: &Disk, while_in_use: impl FnOnce() -> io::Result<()>) -> Result<Image<File>, Failed> {
    let (ours, theirs) = (disk.copy("ours")?, disk.copy("theirs")?);
    while_in_use()?;
    let theirs = listing::by_kernel(Mounted::new(&theirs, "")?.root());
    let image = Image::open(File::open(&ours)?)?;
    same(&of_image(&image), &theirs)?;
    Ok(image)
}

/// Made larger while it is mounted: the new superblock is in the journal.
fn grown() -> Result<(), Failed> {
    let disk = Disk::new(300, &["-N", "20000"])?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&disk.path).arg("100M"))?;
    let mounted = Mounted::new(&disk.path, "")?;
    fill::everything(mounted.root())?;
    let device = run(Command::new("findmnt").args(["-no", "SOURCE"]).arg(mounted.root()))?;
    run(Command::new("resize2fs").args([device.trim(), "290M"]))?;
    // Beyond what there was before.
    fs::write(mounted.root().join("large"), fill::bytes(150 << 20, 1))?;
    run(Command::new("sync").arg("-f").arg(mounted.root()))?;
    File::create(mounted.root().join("last"))?.sync_all()?;
    let image = as_replayed(&disk, || Ok(()))?;
    assert_eq!(image.superblock().size_bytes(), 290 << 20);
    assert!(image.replayed().is_some());
    Ok(())
}

/// A file that is deleted while it is open, and one that is cut.
fn orphans() -> Result<(), Failed> {
    use std::io::Write as _;
    for options in [&[][..], &["-O", "orphan_file"]] {
        let disk = Disk::new(96, options)?;
        let mounted = Mounted::new(&disk.path, "")?;
        let path = |name: &str| mounted.root().join(name);
        let mut open = File::create(path("deleted"))?;
        open.write_all(&fill::bytes(3 << 20, 1))?;
        fs::write(path("cut"), fill::bytes(9 << 20, 2))?;
        File::open(path("cut"))?.sync_all()?;
        fs::remove_file(path("deleted"))?;
        File::options().write(true).open(path("cut"))?.set_len(12_345)?;
        File::create(path("last"))?.sync_all()?;
        let image = as_replayed(&disk, || open.write_all(b"still open"))?;
        assert!(image.find(b"deleted")?.is_none());
        assert_eq!(image.find(b"cut")?.map(|node| node.inode.size_bytes), Some(12_345));
    }
    Ok(())
}

fn fast_commits() -> Result<(), Failed> {
    use plywood::error::{Classify as _, Kind};
    let disk = Disk::new(96, &["-O", "fast_commit"])?;
    let mounted = Mounted::new(&disk.path, "")?;
    fs::write(mounted.root().join("first"), b"first")?;
    run(Command::new("sync").arg("-f").arg(mounted.root()))?;
    // Nothing was committed quickly yet.
    let image = as_replayed(&disk, || Ok(()))?;
    assert!(image.find(b"first")?.is_some());
    fs::write(mounted.root().join("second"), b"second")?;
    File::open(mounted.root().join("second"))?.sync_all()?;
    let (ours, theirs) = (disk.copy("ours")?, disk.copy("theirs")?);
    let error = Image::open(File::open(&ours)?).err().ok_or("the second file is in a fast commit")?;
    assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "ext4.journal.fast-commit"), "{error}");
    // The kernel replays it, and then there is nothing to refuse.
    drop(Mounted::new(&theirs, "")?);
    assert!(Image::open(File::open(&theirs)?)?.find(b"second")?.is_some());
    Ok(())
}

/// A journal written by e2fsprogs: the only writer of the second form of checksums.
fn by_debugfs(options: &[&str], width: &str) -> Result<(), Failed> {
    let checksums = if options.contains(&"1") { "^metadata_csum" } else { "metadata_csum" };
    let disk = Disk::new(64, &["-O", &format!("{width},{checksums}")])?;
    {
        let mounted = Mounted::new(&disk.path, "")?;
        for name in ["changed", "escaped", "revoked"] {
            fs::write(mounted.root().join(name), fill::bytes(4096, 1))?;
        }
    }
    let block = |name: &str| -> Result<u64, Failed> {
        let image = Image::open(File::open(&disk.path)?)?;
        let node = image.find(name.as_bytes())?.ok_or("it was written")?;
        match image.extents(&node, 0).next() {
            Some(Ok(Extent { place: Place::Blocks { start }, .. })) => Ok(start.0),
            other => Err(format!("{name}: {other:?}").into()),
        }
    };
    let (changed, escaped, revoked) = (block("changed")?, block("escaped")?, block("revoked")?);
    let dir = tempfile::tempdir()?;
    let file = |name: &str, bytes: &[u8]| -> io::Result<String> {
        let path = dir.path().join(name);
        fs::write(&path, bytes)?;
        Ok(path.display().to_string())
    };
    let (one, two) = (file("one", &fill::bytes(4096, 2))?, file("two", &fill::bytes(4096, 3))?);
    let mut magic = fill::bytes(4096, 4);
    magic[..4].copy_from_slice(&0xC03B_3998_u32.to_be_bytes());
    let magic = file("magic", &magic)?;
    let commands = [
        format!("jo {}", options.join(" ")),
        format!("jw -b {changed} {one}"),
        format!("jw -b {revoked} {one}"),
        format!("jw -b {escaped} {magic}"),
        format!("jw -r {revoked}"),
        format!("jw -b {changed} {two}"),
        "jc".to_owned(),
    ];
    let script = file("script", commands.join("\n").as_bytes())?;
    let said = run(Command::new("debugfs").arg("-w").arg("-f").arg(script).arg(&disk.path))?;
    if options.contains(&"1") {
        // It leaves the sums of its transactions out, and nobody takes those.
        let error = Image::open(File::open(&disk.path)?).err().ok_or("the sums are wrong")?;
        assert_eq!(plywood::error::Classify::reason(&error), "ext4.journal.checksum", "{error}");
        assert!(Mounted::new(&disk.path, "").is_err());
        return Ok(());
    }
    let image = as_replayed(&disk, || Ok(()))?;
    let replayed = image.replayed().ok_or(said)?;
    assert_eq!((replayed.transactions, replayed.blocks, replayed.revoked), (5, 2, 1));
    for (name, want) in [("changed", 3), ("revoked", 1)] {
        let mut found = vec![0; 4096];
        image.read_data(&image.find(name.as_bytes())?.unwrap(), 0, &mut found)?;
        assert!(found == fill::bytes(4096, want), "{name}");
    }
    Ok(())
}

/// Directories that come and go, and files that look like blocks of a journal.
fn churn(root: &Path, round: u64) -> io::Result<()> {
    let dir = root.join(format!("churn {round}"));
    fs::create_dir(&dir)?;
    for number in 0..300 {
        fs::create_dir(dir.join(format!("{number}")))?;
    }
    sync(&dir)?;
    for number in 0..300 {
        fs::remove_dir(dir.join(format!("{number}")))?;
    }
    sync(&dir)?;
    let mut magic = fill::bytes(64 << 10, round);
    for block in magic.chunks_mut(1024) {
        block[..4].copy_from_slice(&0xC03B_3998_u32.to_be_bytes());
    }
    for number in 0..20 {
        fs::write(dir.join(format!("file {number}")), &magic)?;
    }
    sync(&dir)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
