//! Stacks of layers on the command line, spelled like overlayfs's `lowerdir`.
//!
//! Newest first, with `:` between; `\:` is a colon and `\\` a backslash of a name. A layer is a directory or an
//! image, whichever is found at the path. Source: Linux, Documentation/filesystems/overlayfs.rst.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use super::output;
use crate::{
    error::{Error, Kind, Result},
    format::{ReadAt as _, erofs::superblock::Superblock},
    kind::sniff::Image,
    snapshot::{IdMaps, LayerSource, Stack, StackLayer},
    sys::dir::Dir,
};

/// Spelling of the empty stack.
const NONE: &str = "none";
/// The paths of a stack. Nothing is opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelled(Vec<PathBuf>);

/// Options for reading the layers of all stacks.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Extra devices of the one image that names any.
    pub devices: &'a [PathBuf],
    /// Read overlayfs's marks of directories from `user.overlay.*` instead of `trusted.overlay.*`.
    pub user_xattr: bool,
}

impl Spelled {
    /// A stack of `layers`, the newest first.
    pub fn of(layers: &[PathBuf]) -> Self {
        Self(layers.to_vec())
    }

    /// Splits the text into paths. `none` is the empty stack; a directory of that name is `./none`. Errors, in words: a
    /// name is empty, or a backslash escapes nothing.
    pub fn parse(text: &OsString) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self(Vec::new()));
        }
        let mut layers = vec![Vec::new()];
        let mut bytes = text.as_bytes().iter().copied();
        while let Some(byte) = bytes.next() {
            let layer = layers.last_mut().expect("begins with one");
            match byte {
                b':' => layers.push(Vec::new()),
                b'\\' => match bytes.next() {
                    Some(escaped @ (b':' | b'\\')) => layer.push(escaped),
                    _ => {
                        return Err("a backslash must be followed by a colon or another backslash".to_owned());
                    }
                },
                byte => layer.push(byte),
            }
        }
        if layers.iter().any(Vec::is_empty) {
            return Err(format!("a name in it is empty; {NONE:?} is the empty stack"));
        }
        Ok(Self(layers.into_iter().map(|layer| OsString::from_vec(layer).into()).collect()))
    }

    /// Opens every layer. Errors: those of the files, and `diff.layer` for one that is neither directory nor image.
    pub fn open(&self, reading: Reading<'_>) -> Result<Stack> {
        let layer = |path: &PathBuf| {
            open(path, reading).map_err(|error| error.context(format!("layer {}", path.display())))
        };
        Ok(Stack { layers: self.0.iter().map(layer).collect::<Result<_>>()?, ..Stack::default() })
    }
}

fn open(path: &Path, reading: Reading<'_>) -> Result<StackLayer> {
    let found = path.metadata().map_err(unreadable)?;
    let source = if found.is_dir() {
        LayerSource::Directory { dir: Dir::open(path).map_err(unreadable)?, user_xattr: reading.user_xattr }
    } else if found.is_file() {
        let image = File::open(path).map_err(unreadable)?;
        image_source(image, reading)?
    } else {
        return Err(unknown("it is neither a directory nor a file"));
    };
    let key = (found.dev(), found.ino());
    Ok(StackLayer { path: path.to_owned(), key, ids: IdMaps::default(), source })
}

/// Returns the source for an image of EROFS or ext4, by its magic number.
fn image_source(image: File, Reading { devices, user_xattr }: Reading<'_>) -> Result<LayerSource> {
    let starts = |offset, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        image.read_exact_at(offset, &mut found).is_ok() && found == magic
    };
    let found = Image::of(starts);
    if found == Some(Image::Erofs) {
        let mut head = [0; Superblock::LEN];
        image.read_exact_at(Superblock::OFFSET, &mut head).map_err(unreadable)?;
        let device = |path: &PathBuf| {
            let file = File::open(path).map_err(unreadable);
            file.map_err(|error| error.context(format!("device {}", path.display())))
        };
        let has_devices = Superblock::decode(&head).is_ok_and(|found| found.extra_devices > 0);
        let devices = if has_devices { devices } else { &[] };
        let devices = devices.iter().map(device).collect::<Result<_>>()?;
        return Ok(LayerSource::Erofs { image, devices });
    }
    if found == Some(Image::Ext4) {
        return Ok(LayerSource::writable(image, user_xattr));
    }
    Err(unknown(
        "it is neither an EROFS nor an ext4 image; `plywood apply` makes an EROFS image of a packed layer",
    ))
}

fn unknown(what: &str) -> Error {
    Error::new(Kind::Malformed, "diff.layer", what)
}

fn unreadable(error: io::Error) -> Error {
    output::unreadable(&error, "diff.input")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let Spelled(layers) = Spelled::parse(&text.into())?;
        Ok(layers.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn a_stack_is_spelled_like_overlayfs_lowerdir() {
        assert_eq!(parse("a"), Ok(vec!["a".into()]));
        assert_eq!(parse("/x/a:b:c"), Ok(vec!["/x/a".into(), "b".into(), "c".into()]));
        assert_eq!(parse(r"a\:b:c\\d"), Ok(vec!["a:b".into(), r"c\d".into()]));
        assert_eq!(parse("none"), Ok(vec![]));
        assert_eq!(parse("./none"), Ok(vec!["./none".into()]));
        for text in ["", ":", "a:", ":a", "a::b", r"a\b", r"a\"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_layer_is_what_its_bytes_say() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir(at("directory")).unwrap();
        let mut image = vec![0; 4096];
        image[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        fs::write(at("erofs"), &image).unwrap();
        image[1024..1028].fill(0);
        image[1080..1082].copy_from_slice(&[0x53, 0xef]);
        fs::write(at("ext4"), &image).unwrap();
        fs::write(at("tar"), b"x").unwrap();
        let reading = Reading { devices: &[], user_xattr: true };
        let kind = |name: &str| match open(&at(name), reading).map(|layer| layer.source) {
            Ok(LayerSource::Directory { user_xattr: true, .. }) => "directory",
            Ok(LayerSource::Erofs { .. }) => "erofs",
            Ok(LayerSource::Ext4 { .. }) => "ext4",
            Ok(_) => "else",
            Err(error) => error.reason(),
        };
        for name in ["directory", "erofs", "ext4"] {
            assert_eq!(kind(name), name);
        }
        assert_eq!((kind("tar"), kind("absent")), ("diff.layer", "diff.input"));
    }
}
