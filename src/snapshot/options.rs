//! The mount options whose effect on the meaning of the layers is known.
//!
//! A list with any other option is refused: with `fsoffset` or `datadir+`, to name two, the layers would be other
//! ones than the paths say.
//!
//! Source: mount(8), Linux `fs/overlayfs/params.c`, `fs/erofs/super.c`, `fs/ext4/super.c`; containerd `core/mount`.

/// Options of any mount that do not change what the layers mean.
const HARMLESS: [&str; 32] = [
    "ro",
    "rw",
    "bind",
    "rbind",
    "loop",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "silent",
    "defaults",
    "nosymfollow",
];
/// Options of any mount with a value: SELinux labels, which layers do not hold.
const HARMLESS_VALUES: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];
/// Options of an overlay with a known effect: on how it is written, or on attributes that the layers then show.
const OVERLAY: [&str; 6] =
    ["volatile", "userxattr", "default_permissions", "override_creds", "nooverride_creds", "direct-io"];
/// Options of an overlay with a value.
const OVERLAY_VALUES: [&str; 13] = [
    "upperdir",
    "workdir",
    "lowerdir",
    "uidmap",
    "gidmap",
    "index",
    "xino",
    "redirect_dir",
    "metacopy",
    "nfs_export",
    "uuid",
    "verity",
    "fsync",
];
/// Options of an EROFS or ext4 mount that do not change its content.
const IMAGE: [&str; 8] =
    ["acl", "noacl", "user_xattr", "nouser_xattr", "direct-io", "discard", "nodiscard", "directio"];
/// Options of an EROFS or ext4 mount with a value.
const IMAGE_VALUES: [&str; 4] = ["device", "cache_strategy", "dax", "errors"];
/// Options of a bind mount with a value. Its map shows the ids on disk as the host's: on disk they are the
/// container's already.
const BIND_VALUES: [&str; 2] = ["uidmap", "gidmap"];

/// Whether the effect of `option` on a mount of the file system `base` is known.
pub(super) fn is_known(option: &str, base: &str, is_formatted: bool) -> bool {
    // Consumed by containerd itself.
    if option.starts_with("X-containerd.") {
        return true;
    }
    let (flags, values): (&[&str], &[&str]) = match base {
        "overlay" => (&OVERLAY, &OVERLAY_VALUES),
        // After an overlay of merged metadata alone was made a bind mount, the overlay's are left over.
        "bind" if is_formatted => (&OVERLAY, &OVERLAY_VALUES),
        "bind" => (&[], &BIND_VALUES),
        _ => (&IMAGE, &IMAGE_VALUES),
    };
    match option.split_once('=') {
        None => HARMLESS.contains(&option) || flags.contains(&option),
        Some((name, _)) => HARMLESS_VALUES.contains(&name) || values.contains(&name),
    }
}
