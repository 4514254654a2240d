//! Images that mkfs.erofs makes on the spot, with every kind of compression it knows.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use libtest_mimic::Failed;

use crate::host::program;

/// Options of mkfs.erofs: what containerd's converter asks for, and every other kind of map, algorithm and
/// extended option.
pub const COMBINATIONS: &[&[&str]] = &[
    &["-zlz4"],
    &["-zlz4hc,12", "-C16384"],
    &["-zlz4hc,12", "-C65536", "-Eztailpacking"],
    &["-zlz4", "-C1048576"],
    &["-zlz4", "-Eztailpacking"],
    &["-zlz4", "-Efragments"],
    &["-zlz4", "-Eall-fragments"],
    &["-zlz4", "-Ededupe"],
    &["-zlz4", "-Efragments,dedupe", "-C32768"],
    &["-zlz4", "-Eztailpacking,dedupe"],
    &["-zlz4", "-Eztailpacking,fragments,dedupe"],
    &["-zlz4", "-Elegacy-compress"],
    &["-zlz4", "-Elegacy-compress,ztailpacking"],
    &["-zlz4", "-Efragments,fragdedupe=inode"],
    &["-zlz4", "-Efragments=65536,^fragdedupe", "-C65536"],
    &["-zlz4", "--max-extent-bytes=8192", "-C65536"],
    &["-zlz4", "-b512"],
    &["-zlz4", "-b1024", "-C16384", "-Eztailpacking"],
    &["-zdeflate,9", "-C65536"],
    &["-zdeflate", "-Eztailpacking"],
    &["-zlibdeflate", "-b2048", "-C8192", "-Efragments"],
    &["-zlzma", "-C65536"],
    &["-zlzma", "-Eztailpacking,dedupe"],
    &["-zzstd", "-C65536"],
    &["-zzstd", "-C1048576"],
    &["-zzstd", "-Eall-fragments,dedupe"],
    &["-zzstd", "-Eztailpacking", "-b512"],
    &["-E48bit", "-zlz4", "-C65536"],
    &["-E48bit", "-zzstd", "-C65536"],
    &["-E48bit", "-zzstd,level=9", "-C1048576", "--max-extent-bytes=16384"],
    &["-E48bit,fragments", "-zzstd", "-C65536"],
    &["-E48bit,all-fragments,dedupe", "-zlz4"],
    &["-E48bit,ztailpacking", "-zdeflate"],
    &["-E48bit,dedupe", "-zlz4hc", "-C65536"],
    &["-E48bit,force-inode-compact", "-zlz4"],
    &["-Edot-omitted", "-zlz4"],
    &["-Edot-omitted"],
    &["-E48bit"],
    &["-Enosbcrc", "-zlz4"],
    &["-Enoinline_data", "-zzstd"],
    &["-E^xattr-name-filter,force-inode-extended", "-zlz4"],
    &["-Eforce-inode-compact", "-zlz4", "-C65536"],
    &["-Eplain-xattr-prefixes,fragments", "--xattr-prefix=user.long.", "-zlz4"],
    &["-Eforce-chunk-indexes", "--chunksize=4096"],
    &["-Eforce-inode-blockmap", "--chunksize=4096"],
    &["--root-xattr-isize=500"],
    &["--root-xattr-isize=500", "-zlz4", "-x1"],
];

/// Fills `tree` with files that compress, that do not, that end within a block, and that share data.
pub fn fill(tree: &Path) -> Result<(), Failed> {
    let mut seed = 7_u32;
    let mut random = |len: usize| -> Vec<u8> {
        let bytes = (0..len).map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()[0]
        });
        bytes.collect()
    };
    let text: String =
        (0..4000).map(|line| format!("line {} of {}\n", line * 7919 % 4001, line % 13)).collect();
    fs::create_dir_all(tree.join("dir/empty"))?;
    fs::write(tree.join("text"), &text)?;
    fs::write(tree.join("dir/same"), &text)?;
    fs::write(tree.join("dir/shifted"), &text.as_bytes()[5000..56_000])?;
    fs::write(tree.join("random"), random(20_000))?;
    fs::write(tree.join("mixed"), [&text.as_bytes()[..9000], &random(9000), &[0; 30_000]].concat())?;
    fs::write(tree.join("dir/small"), "a few bytes\n".repeat(20))?;
    fs::write(tree.join("dir/tail"), &text.as_bytes()[..12_300])?;
    fs::write(tree.join("whole"), &text.as_bytes()[..8192])?;
    fs::write(tree.join("zeros"), vec![0; 40_000])?;
    fs::write(tree.join("none"), "")?;
    fs::hard_link(tree.join("text"), tree.join("dir/linked"))?;
    symlink("dir/small", tree.join("link"))?;
    fs::set_permissions(tree.join("dir/small"), fs::Permissions::from_mode(0o4751))?;
    for (file, name, value) in [
        ("text", "user.colour", "blue"),
        ("whole", "user.colour", "blue"),
        ("dir", "trusted.overlay.opaque", "y"),
        ("random", "user.long.prefix", "value"),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(tree.join(file), name, value.as_bytes(), flags)?;
    }
    Ok(())
}

/// Makes an image of `tree` at `image`.
pub fn make(image: &Path, tree: &Path, options: &[&str]) -> Result<(), Failed> {
    let program = program("mkfs.erofs").ok_or("there is no mkfs.erofs")?;
    let fixed = ["-d1", "-T1700000000", "--mkfs-time", "-U00112233-4455-6677-8899-aabbccddeeff"];
    let output = Command::new(program).args(fixed).args(options).arg(image).arg(tree).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("mkfs.erofs {options:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
