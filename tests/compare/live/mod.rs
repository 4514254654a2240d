//! Live directories: walks of upper directories that the kernel wrote, and of those whose owner means harm.
//!
//! The kernel's overlayfs is the oracle: changes are made through its mount, the walk of the upper directory becomes
//! an image, and the kernel shows that image over the same lower directory. Both views have to be one tree. Most of
//! it needs root, for mounts, devices and attributes of overlayfs.

mod hostile;
mod overlay;

use std::{env, path::Path};

use plywood::{
    call::Cancel,
    compare::{
        changes::{self, Counts, Options},
        output::Output,
    },
    error::Result as CompareResult,
    format::{
        ReadAt,
        erofs::writer::{self, Writer},
    },
    sys::dir::Dir,
    tree::Entry,
    view::{Control, DirectoryView, View},
};
use testkit::{Need, Suite};

pub fn add(suite: &mut Suite) {
    let root = &[Need::Root][..];
    let overlay = &[Need::Root, Need::FileSystem("overlay")][..];
    let erofs = &[Need::Root, Need::FileSystem("overlay"), Need::FileSystem("erofs")][..];
    let landlock = &[Need::Root, Need::Landlock][..];
    for seed in 1..=3 {
        let name = format!("overlay: 200 random changes, seed {seed}");
        suite.test(name, erofs, move || overlay::random_changes(seed, "trusted"));
    }
    // Each seed is four rounds, one on top of the other.
    let seeds = env::var("PLYWOOD_REDIRECT_SEEDS").map_or(12, |text| text.parse::<u64>().unwrap());
    for first in (0..seeds).step_by(4) {
        let name = format!("overlay: renamed directories and files without data, seeds from {first}");
        suite.test(name, erofs, move || overlay::redirects(first..first + 4));
    }
    for (name, needs, run) in [
        (
            "overlay: attributes of the user's own",
            erofs,
            (|| overlay::random_changes(4, "user")) as fn() -> _,
        ),
        ("overlay: renames and files without data that lead nowhere are refused", root, overlay::unresolved),
        (
            "overlay: a redirect of the user's own is refused, as by the kernel",
            overlay,
            overlay::user_redirects,
        ),
        ("overlay: attributes that are not to be seen", root, overlay::privilege),
        ("confined: two capabilities and the layer's directory are enough", landlock, overlay::confined),
        ("hostile: files that become others are told right or not at all", root, hostile::swaps),
        ("hostile: a file that grows is told right or not at all", &[], hostile::growing),
        ("hostile: eight exabytes of nothing", &[], hostile::eight_exabytes),
        ("hostile: ten thousand directories in each other", &[], hostile::deep),
        ("hostile: a million names", &[], hostile::million),
        ("hostile: a mount inside the layer", root, hostile::mounted_inside),
    ] {
        suite.test(name, needs, run);
    }
}

fn layer(path: &Path, control: Control) -> DirectoryView {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    DirectoryView::new(Dir::open_root(path).unwrap(), name, control, &Cancel::new()).unwrap()
}

fn compare(
    lower: &[&dyn View],
    upper: &[&dyn View],
    options: &Options,
    output: &mut dyn Output,
) -> CompareResult<Counts> {
    changes::write(lower, upper, options, &Cancel::new(), &mut |_| Ok(()), output)
}

/// Collects the changes of a walk in an image.
struct Image(Writer<Vec<u8>>);

impl Image {
    fn new() -> Self {
        Self(Writer::new(Vec::new(), writer::Options::default()))
    }

    fn finish(self) -> Vec<u8> {
        let (image, _) = self.0.finish().unwrap();
        assert!(image.size_bytes() > 0);
        image
    }
}

impl Output for Image {
    fn entry(&mut self, entry: &Entry) -> CompareResult<()> {
        Ok(self.0.entry(entry)?)
    }
    fn data(&mut self, offset: u64, bytes: &[u8]) -> CompareResult<()> {
        Ok(self.0.data(offset, bytes)?)
    }
    fn end_entry(&mut self) -> CompareResult<()> {
        Ok(self.0.end_entry()?)
    }
}
