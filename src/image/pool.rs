//! The inputs of one command, and the files in them: a layer of one may belong to an image of another.

use std::{
    collections::BTreeSet,
    io::Read,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

pub use super::set::Asked;
use super::{
    archive::{self, Archive, Found, Rules},
    document::{self, INDEX_JSON, OCI_LAYOUT},
    set::Set,
    source::{Stretch, unreadable},
};
use crate::{
    call::Cancel,
    codec::Coding,
    digest::Digest,
    error::{Error, Kind, Result},
    limits::{self, Limits},
    store::layout::OciDirectory,
};

/// All inputs of one command.
#[derive(Debug)]
pub struct Pool {
    pub(super) inputs: Vec<Input>,
    pub(super) cancel: Cancel,
    limits: Limits,
}

/// One input.
#[derive(Debug)]
pub(super) struct Input {
    /// Path for messages.
    pub(super) path: PathBuf,
    pub(super) form: Form,
}

#[derive(Debug)]
pub(super) enum Form {
    /// A docker-archive, an OCI archive, or both in one.
    Archive(Box<Archive>),
    /// A directory in the OCI layout.
    Layout(OciDirectory),
    Set(Box<Set>),
}

/// Place of a file in the pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Number of the input.
    pub(super) input: usize,
    /// Number of the archive in a set; 0 elsewhere.
    pub(super) part: usize,
    pub(super) name: String,
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) place: Place,
    pub(super) size_bytes: u64,
    pub(super) coding: Coding,
}

impl Pool {
    /// A pool without inputs. `limits` bound each archive and each layer.
    pub fn new(limits: Limits, cancel: Cancel) -> Self {
        Self { inputs: Vec::new(), cancel, limits }
    }

    /// Adds an archive, or a directory in the OCI layout. Errors: those of [`Archive`] and of the layout's documents.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let form = self.form(path).map_err(|error| error.context(path.display().to_string()))?;
        self.inputs.push(Input { path: path.to_owned(), form });
        Ok(())
    }

    /// Adds a separated set.
    pub fn add_set(&mut self, asked: &Asked) -> Result<()> {
        let set = Set::open(asked, &self.limits, &self.cancel)?;
        self.inputs.push(Input { path: asked.directory.clone(), form: Form::Set(Box::new(set)) });
        Ok(())
    }

    fn form(&self, path: &Path) -> Result<Form> {
        if path.is_dir() {
            let layout = OciDirectory::open(path).map_err(unreadable)?;
            if layout.file(OCI_LAYOUT).is_err() {
                let message = match layout.file("manifest") {
                    Ok(_) => "is no OCI layout; a separated set is named with --set DIR IMAGE",
                    Err(_) => "is a directory without a file oci-layout",
                };
                return Err(Error::new(Kind::Malformed, "image.format", message));
            }
            return Ok(Form::Layout(layout));
        }
        let file = archive::open(path)?;
        let archive = Archive::new(file, &Rules::Links, None, &self.limits, &self.cancel)?;
        Ok(Form::Archive(Box::new(archive)))
    }

    pub(super) fn input(&self, number: usize) -> Result<&Input> {
        let missing = || Error::new(Kind::Internal, "internal.input", format!("there is no input {number}"));
        self.inputs.get(number).ok_or_else(missing)
    }

    /// Finds the file called `name` in one input.
    pub(super) fn find(&self, input: usize, name: &str) -> Result<Option<Located>> {
        let located = |part, Found { name, size_bytes, coding, .. }: Found<'_>| Located {
            place: Place { input, part, name: name.to_owned() },
            size_bytes,
            coding,
        };
        let Input { path, form } = self.input(input)?;
        let found = match form {
            Form::Archive(archive) => archive.find(name).map(|found| found.map(|found| located(0, found))),
            Form::Layout(layout) => in_layout(layout, name).map(|found| {
                let (size_bytes, coding) = found?;
                Some(Located { place: Place { input, part: 0, name: name.to_owned() }, size_bytes, coding })
            }),
            Form::Set(set) => {
                for (part, archive) in set.archives().enumerate() {
                    if let Some(found) = archive?.find(name)? {
                        return Ok(Some(located(part, found)));
                    }
                }
                return Ok(None);
            }
        };
        found.map_err(|error| error.context(path.display().to_string()))
    }

    /// Finds a blob that is kept under its digest.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<Located>> {
        let name = blob_name(digest);
        for (number, input) in self.inputs.iter().enumerate() {
            if !matches!(input.form, Form::Set(_))
                && let Some(found) = self.find(number, &name)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Reads a document of one input: of a set, from the app's archive.
    pub(super) fn document(&self, input: usize, name: &str) -> Result<Option<Vec<u8>>> {
        let Input { path, form } = self.input(input)?;
        let document = match form {
            Form::Archive(archive) => archive.document(name),
            Form::Layout(layout) => read_file(layout, name),
            Form::Set(set) => set.app().and_then(|app| app.document(name)),
        };
        document.map_err(|error| error.context(path.display().to_string()))
    }

    /// Calls `take` for each file of one archive, in the order that costs least.
    pub(super) fn visit(
        &self,
        (input, part): (usize, usize),
        names: &BTreeSet<String>,
        take: &mut dyn FnMut(&str, u64, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let mut each = |found: Found<'_>, bytes: &mut dyn Read| take(found.name, found.size_bytes, bytes);
        match &self.input(input)?.form {
            Form::Archive(archive) => archive.visit(names, &mut each),
            Form::Set(set) => match set.archives().nth(part) {
                Some(archive) => archive?.visit(names, &mut each),
                None => Ok(()),
            },
            Form::Layout(layout) => {
                for name in names {
                    let file = layout.file(name).map_err(archive::unopened)?;
                    let size_bytes = archive::check_regular(&file, Path::new(name))?;
                    take(name, size_bytes, &mut Stretch::new(&file, 0, size_bytes, &self.cancel))?;
                }
                Ok(())
            }
        }
    }

    /// Path of the archive in which a file is, for messages.
    pub(super) fn path(&self, Place { input, part, .. }: &Place) -> &Path {
        match self.inputs.get(*input) {
            Some(Input { form: Form::Set(set), .. }) => set.path(*part),
            Some(Input { path, .. }) => path,
            None => Path::new(""),
        }
    }

    /// Whether the input is in the OCI layout.
    pub(super) fn is_oci(&self, input: usize) -> Result<bool> {
        Ok(match &self.input(input)?.form {
            Form::Archive(archive) => archive.has(OCI_LAYOUT) && archive.has(INDEX_JSON),
            Form::Layout(_) => true,
            Form::Set(_) => false,
        })
    }
}

/// Name of the file that holds the blob `digest`.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn in_layout(layout: &OciDirectory, name: &str) -> Result<Option<(u64, Coding)>> {
    let file = match layout.file(name) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let size_bytes = archive::check_regular(&file, Path::new(name))?;
    let mut prefix = [0; Coding::PREFIX_LEN];
    let len = file.read_at(&mut prefix, 0).map_err(unreadable)?;
    Ok(Some((size_bytes, Coding::detect(prefix.get(..len).unwrap_or_default()))))
}

fn read_file(layout: &OciDirectory, name: &str) -> Result<Option<Vec<u8>>> {
    let file = match layout.file(name) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let size_bytes = archive::check_regular(&file, Path::new(name))?;
    if usize::try_from(size_bytes).map_or(true, |size| size > limits::DOCUMENT_BYTES) {
        return Err(document::too_long(name).into());
    }
    let mut document = Vec::new();
    file.take(size_bytes).read_to_end(&mut document).map_err(unreadable)?;
    Ok(Some(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_layout_is_refused_with_a_hint() {
        let scratch = tempfile::tempdir().unwrap();
        let mut pool = Pool::new(Limits::default(), Cancel::new());
        let error = pool.add(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("without a file oci-layout"), "{error}");
        std::fs::write(scratch.path().join("manifest"), "{}").unwrap();
        let error = pool.add(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("--set DIR IMAGE"), "{error}");
        let error = pool.add(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.reason(), "image.name");
        assert_eq!(pool.add(&scratch.path().join("none")).unwrap_err().reason(), "image.missing");
    }
}
