//! Choice of images and names among a command's inputs.

use super::platform::Platform;

/// Images to load, and their names.
#[derive(Clone, Debug)]
pub struct Options {
    /// Platform of the images that are taken from an index.
    pub platform: Platform,
    /// Takes the images of all platforms.
    pub all_platforms: bool,
    /// Name for images that have none, or of which only the tag is known.
    pub name: Option<String>,
    /// Images may stay without a name: they are only shown.
    pub nameless: bool,
    /// Gives an image of a set all names that its archive has.
    pub all_tags: bool,
}

impl Options {
    /// An image of containerd for `platform`, or for this machine's. Its names are as they are.
    pub fn of_containerd(platform: Option<&Platform>) -> Self {
        Self {
            platform: platform.cloned().unwrap_or_else(Platform::of_this_machine),
            all_platforms: false,
            name: None,
            nameless: true,
            all_tags: false,
        }
    }
}
