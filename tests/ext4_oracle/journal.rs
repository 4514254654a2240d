//! File systems that were not unmounted: copied while they were in use, read with their journal.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Command,
};

use libtest_mimic::{Failed, Trial};
use plywood::format::ext4::reader::Image;

use super::{
    Made,
    disk::{Disk, Mounted, run},
    fill, made, of_image, same,
    support::listing,
};

/// What is made, and how it is mounted.
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

pub fn trials(able: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (system, options) in SYSTEMS {
        let name = format!("needs_root_and_mkfs_{}_in_use_reads_as_replayed_by_the_kernel", system.name);
        trials.push(Trial::test(name, || in_use(*system, options)).with_ignored_flag(!able));
    }
    trials
}

fn in_use(system: Made, options: &str) -> Result<(), Failed> {
    let disk = Disk::new(system.size_mib, system.options)?;
    let (ours, theirs) = {
        let mounted = Mounted::new(&disk.path, options)?;
        fill::everything(mounted.root())?;
        // Old copies of blocks that are used otherwise later, among them as data.
        for round in 0..6 {
            churn(mounted.root(), round)?;
        }
        run(Command::new("sync").arg("-f").arg(mounted.root()))?;
        File::create(mounted.root().join("last"))?.sync_all()?;
        (disk.copy("ours")?, disk.copy("theirs")?)
    };
    let theirs = listing::by_kernel(Mounted::new(&theirs, "")?.root());
    let image = Image::open(File::open(&ours)?)?;
    let replayed = image.replayed().ok_or("it was in use")?;
    assert!(replayed.transactions > 0 && replayed.blocks > 0, "{replayed:?}");
    // Data that goes through the journal needs none.
    assert_eq!(replayed.revoked > 0, !options.contains("data=journal"), "{replayed:?}");
    same(&of_image(&image), &theirs)
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
