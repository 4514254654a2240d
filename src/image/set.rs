//! A separated set: one image in two or three archives and a manifest of its own.
//!
//! Only the app's file is read at once. The others are opened when a layer is needed that is nowhere else, and may be
//! absent until then.
//!
//! Source: docs/formats/archives.md, "Separated sets".

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    archive::{self, Archive, Rules},
    error::ImageError,
    json, name,
    source::unreadable,
};
use crate::{
    call::Cancel,
    error::{Error, Result},
    limits::{self, Limits},
    sys::dir::Dir,
};

/// Name of the set's manifest.
const MANIFEST: &str = "manifest";
/// Longest plain file name, in bytes: what file systems take.
const FILE_NAME_BYTES: usize = 255;

/// A separated set as the command line names it.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The directory of the set.
    pub directory: PathBuf,
    /// Name of the image in it.
    pub image: String,
    /// File to use for the base in place of the set's own.
    pub base: Option<PathBuf>,
    /// File to use for the lib in place of the set's own.
    pub lib: Option<PathBuf>,
    /// Leaves out the comparison of the files with the hashes of the manifest. Layers are checked all the same.
    pub no_check: bool,
}

/// Fields of one image in the set's manifest. The lists of layers are not used for loading.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    app: String,
    app_hash: String,
    lib: String,
    lib_hash: String,
    base: String,
    base_hash: String,
}

/// An open set.
#[derive(Debug)]
pub(super) struct Set {
    /// Name of the image in full form.
    pub(super) image: String,
    app: Part,
    lib: Option<Part>,
    base: Part,
    cancel: Cancel,
    limits: Limits,
}

/// One file of the set.
#[derive(Debug)]
struct Part {
    /// For messages.
    path: PathBuf,
    opened: Opened,
    /// SHA-256 by the manifest; `None` without the check.
    hash: Option<String>,
    archive: OnceCell<Archive>,
}

/// A file, opened at the start so that all names are of one moment; or the reason why it could not be, which matters
/// only if the file is needed.
type Opened = std::result::Result<File, Error>;

impl Set {
    /// Opens the set, and reads the app's file.
    pub(super) fn open(asked: &Asked, limits: &Limits, cancel: &Cancel) -> Result<Self> {
        let dir = Dir::open(&asked.directory)
            .map_err(|error| archive::unopened(error).context(asked.directory.display().to_string()))?;
        let manifest = asked.directory.join(MANIFEST);
        let (image, fields) = read_manifest(&dir, &asked.image)
            .map_err(|error| error.context(manifest.display().to_string()))?;
        let Fields { app, app_hash, lib, lib_hash, base, base_hash } = fields;
        let part = |name: &str, instead: Option<&PathBuf>, hash: String| -> Result<Part> {
            if instead.is_none() {
                check_name(name)?;
            }
            let path = instead.cloned().unwrap_or_else(|| asked.directory.join(name));
            let opened = match instead {
                Some(path) => archive::open(path),
                None => {
                    dir.open_file_beneath(name).map_err(|error| not_plain(name, error)).and_then(|file| {
                        archive::check_regular(&file, Path::new(name))?;
                        Ok(file)
                    })
                }
            };
            let hash = (!asked.no_check).then_some(hash);
            Ok(Part { path, opened, hash, archive: OnceCell::new() })
        };
        let has_lib = !lib.is_empty() || asked.lib.is_some();
        let set = Self {
            image,
            app: part(&app, None, app_hash)?,
            lib: has_lib.then(|| part(&lib, asked.lib.as_ref(), lib_hash)).transpose()?,
            base: part(&base, asked.base.as_ref(), base_hash)?,
            cancel: cancel.clone(),
            limits: limits.clone(),
        };
        set.app()?;
        Ok(set)
    }

    /// The app's archive, which has the documents.
    pub(super) fn app(&self) -> Result<&Archive> {
        self.opened(&self.app, true)
    }

    /// The archives in the order in which layers are looked for: app, lib, base. Each is read when it is asked for.
    pub(super) fn archives(&self) -> impl Iterator<Item = Result<&Archive>> {
        let others = self.lib.iter().chain([&self.base]);
        [self.app()].into_iter().chain(others.map(|part| self.opened(part, false)))
    }

    /// Path of the archive with this number, for messages.
    pub(super) fn path(&self, number: usize) -> &Path {
        let others = self.lib.iter().chain([&self.base]);
        [&self.app].into_iter().chain(others).nth(number).map_or(Path::new(""), |part| &part.path)
    }

    fn opened<'s>(&'s self, part: &'s Part, documents: bool) -> Result<&'s Archive> {
        if let Some(archive) = part.archive.get() {
            return Ok(archive);
        }
        let read = || {
            let file = match &part.opened {
                Ok(file) => file.try_clone().map_err(unreadable)?,
                Err(error) => return Err(Error::new(error.kind(), error.reason(), error.to_string())),
            };
            if let Some(hash) = &part.hash
                && !is_hash(hash)
            {
                let found = "not compared".to_owned();
                return Err(ImageError::Hash { expected: hash.chars().take(128).collect(), found }.into());
            }
            let archive = Archive::new(
                file,
                &Rules::Files { documents },
                part.hash.as_deref(),
                &self.limits,
                &self.cancel,
            )?;
            let read_before = [Some(&self.app), self.lib.as_ref(), Some(&self.base)];
            for other in read_before.into_iter().flatten().filter_map(|part| part.archive.get()) {
                if let Some(twice) = archive.names().find(|name| other.has(name)) {
                    let problem = "occurs in two files of the set".to_owned();
                    return Err(ImageError::Member { name: twice.as_bytes().to_vec(), problem }.into());
                }
            }
            Ok(archive)
        };
        let archive = read().map_err(|error| error.context(part.path.display().to_string()))?;
        Ok(part.archive.get_or_init(|| archive))
    }
}

/// Reads the set's manifest. Returns the name in full form and the fields of the image that was asked for.
fn read_manifest(dir: &Dir, asked: &str) -> Result<(String, Fields)> {
    let file = dir.open_file_beneath(MANIFEST).map_err(|error| not_plain(MANIFEST, error))?;
    let size = archive::check_regular(&file, Path::new(MANIFEST))?;
    let limit = u64::try_from(limits::SET_MANIFEST_BYTES).unwrap_or(u64::MAX);
    if size > limit {
        return Err(ImageError::Limit { what: "set's manifest".to_owned(), limit, unit: "bytes" }.into());
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    let mut images: BTreeMap<String, Fields> = json::parse(&bytes).map_err(ImageError::SetManifest)?;
    let key = find(asked, images.keys())?;
    let full = name::full(&key)?;
    images
        .remove(&key)
        .map(|fields| (full, fields))
        .ok_or_else(|| ImageError::SetManifest("changed".into()).into())
}

/// Returns the key that is `asked`, or the one that has the same full form.
fn find<'k>(asked: &str, keys: impl Iterator<Item = &'k String> + Clone) -> Result<String, ImageError> {
    let refuse = |found| {
        Err(ImageError::NotInSet {
            asked: asked.to_owned(),
            found,
            keys: keys.clone().take(64).cloned().collect(),
        })
    };
    if let Some(key) = keys.clone().find(|key| *key == asked) {
        return Ok(key.clone());
    }
    let full = name::full(asked)?;
    let mut fitting = keys.clone().filter(|key| name::full(key).is_ok_and(|key| key == full));
    match (fitting.next(), fitting.next()) {
        (Some(key), None) => Ok(key.clone()),
        (None, _) => refuse("no"),
        (Some(_), Some(_)) => refuse("more than one"),
    }
}

/// A plain name of a file in the set.
fn check_name(file: &str) -> Result<(), ImageError> {
    let problem = match file {
        "" => "is no file name",
        "." | ".." => "is a directory",
        _ if file.contains(['/', '\0']) => "is not the plain name of a file in the set",
        _ if file.len() > FILE_NAME_BYTES => "is longer than any file name",
        _ => return Ok(()),
    };
    Err(ImageError::FileName { name: file.to_owned(), problem: problem.to_owned() })
}

/// Error for a file of the set that cannot be opened. A link is not followed.
fn not_plain(name: &str, error: std::io::Error) -> Error {
    let is_link = [rustix::io::Errno::LOOP, rustix::io::Errno::XDEV]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    if is_link {
        let problem = "is a link or a mount point".to_owned();
        return ImageError::FileName { name: name.to_owned(), problem }.into();
    }
    archive::unopened(error)
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_its_key_or_by_the_only_one_of_its_full_form() {
        let keys =
            ["shorty:1", "example.test/a:latest", "docker.io/library/twice:1", "twice:1"].map(str::to_owned);
        let find = |asked| find(asked, keys.iter()).map_err(|error| error.to_string());
        assert_eq!(find("docker.io/library/shorty:1").as_deref(), Ok("shorty:1"));
        assert_eq!(find("example.test/a").as_deref(), Ok("example.test/a:latest"));
        assert_eq!(find("twice:1").as_deref(), Ok("twice:1"));
        assert!(find("library/twice:1").unwrap_err().contains("more than one"));
        assert!(find("shorty").unwrap_err().contains("\"shorty:1\""));
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_plain() {
        assert!(check_name("app_1_image.tar.gz").is_ok() && check_name(&"a".repeat(255)).is_ok());
        for name in ["", ".", "..", "../x", "/x", "a/b", "a\0b", &"a".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
