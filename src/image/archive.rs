//! An archive of images, read where it is: its members are located in one pass, and read again when they are needed.
//!
//! A plain archive is read by position. A compressed one is decompressed from its start each time; documents are
//! kept from the first pass, so that most need only one more, for all layers together.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, hash_map},
    fs::File,
    io::Read,
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::{
    document::{self, MANIFEST_JSON},
    error::ImageError,
    member::{Bytes, Member, MemberKind, Members, Streamed},
    source::{Decoding, Hashing, Stretch, unreadable},
};
use crate::{
    call::Cancel,
    codec::Coding,
    error::{Error, Result},
    limits::{self, Limits},
    sys::file,
};

/// Rules for the members of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// Links between members are other names for them.
    Links,
    /// Files and directories only, as in a part of a separated set. The first part has the documents.
    Files { documents: bool },
}

/// An open archive whose members are known.
#[derive(Debug)]
pub struct Archive {
    file: File,
    size_bytes: u64,
    coding: Coding,
    limits: Limits,
    cancel: Cancel,
    members: HashMap<String, Place>,
    /// Documents of a compressed archive, by the names of their members.
    kept: HashMap<String, Vec<u8>>,
    /// How often a compressed archive was read again.
    passes: Cell<u32>,
}

/// Place of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File { offset: u64, size_bytes: u64, coding: Coding },
    Link { target: Option<String> },
}

/// A file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// Name of the member that has the data.
    pub(super) name: &'a str,
    pub(super) size_bytes: u64,
    /// Compression of the file itself, by its first bytes.
    pub(super) coding: Coding,
    offset: u64,
}

/// Opens a file that the user named. Errors: `image.name` for what is not a regular file.
pub(super) fn open(path: &Path) -> Result<File> {
    let file = file::open_without_waiting(path).map_err(unopened)?;
    check_regular(&file, path)?;
    Ok(file)
}

/// Refuses what is not a regular file.
pub(super) fn check_regular(file: &File, path: &Path) -> Result<u64> {
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let name = path.display().to_string();
    Err(ImageError::FileName { name, problem: "is not a regular file".to_owned() }.into())
}

/// Error for a file that cannot be opened.
pub(super) fn unopened(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => ImageError::Missing("the file".to_owned()).into(),
        _ => unreadable(error),
    }
}

impl Archive {
    /// Locates the members of `file`.
    ///
    /// `expected`: the SHA-256 that all bytes of the file must have, as hexadecimal digits. Errors: those of the decoder
    /// and the tar parser, of the rules, and `image.hash`.
    pub(super) fn new(
        file: File,
        rules: &Rules,
        expected: Option<&str>,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Self> {
        let size_bytes = check_regular(&file, Path::new("the file"))?;
        let mut prefix = [0; Coding::PREFIX_LEN];
        let len = file.read_at(&mut prefix, 0).map_err(unreadable)?;
        let coding = Coding::detect(prefix.get(..len).unwrap_or_default());
        let mut archive = Self {
            file,
            size_bytes,
            coding,
            limits: limits.clone(),
            cancel: cancel.clone(),
            members: HashMap::new(),
            kept: HashMap::new(),
            passes: Cell::new(0),
        };
        let plain = (coding == Coding::Plain).then_some((&archive.file, cancel));
        let mut scan = Scan {
            rules,
            plain,
            names_bytes: 0,
            kept_bytes: 0,
            members: HashMap::new(),
            kept: HashMap::new(),
        };
        let whole = Stretch::new(&archive.file, 0, size_bytes, cancel);
        if coding == Coding::Plain && expected.is_none() {
            scan.run(&mut Members::new(whole), false)?;
        } else {
            let decoding = Decoding::new(Hashing::new(whole), coding, limits)?;
            let mut members = Members::new(Streamed(decoding));
            scan.run(&mut members, coding != Coding::Plain)?;
            let found = members.into_bytes().0.into_inner().finish();
            if let Some(expected) = expected.filter(|expected| *expected != found.hex()) {
                let expected = expected.chars().take(128).collect();
                return Err(ImageError::Hash { expected, found: found.hex().to_owned() }.into());
            }
        }
        let Scan { members, kept, .. } = scan;
        (archive.members, archive.kept) = (members, kept);
        Ok(archive)
    }

    /// Finds the file called `name`, over links. Errors: `image.member` for a link that leads out of the archive, or in
    /// circles.
    pub(super) fn find(&self, name: &str) -> Result<Option<Found<'_>>> {
        let mut at = name;
        for _ in 0..=limits::ARCHIVE_LINKS {
            let Some((found, place)) = self.members.get_key_value(at) else { return Ok(None) };
            match place {
                Place::File { offset, size_bytes, coding } => {
                    let (offset, size_bytes, coding) = (*offset, *size_bytes, *coding);
                    return Ok(Some(Found { name: found, size_bytes, coding, offset }));
                }
                Place::Link { target: Some(target) } => at = target,
                Place::Link { target: None } => {
                    let problem = "is a link that leads out of the archive".to_owned();
                    return Err(ImageError::Member { name: at.as_bytes().to_vec(), problem }.into());
                }
            }
        }
        let problem = format!("is a link over more than {} others", limits::ARCHIVE_LINKS);
        Err(ImageError::Member { name: name.as_bytes().to_vec(), problem }.into())
    }

    /// Whether a member has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Names of all members.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Reads a document. Errors: `image.limit` for one that is too long.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(found) = self.find(name)? else { return Ok(None) };
        if let Some(kept) = self.kept.get(found.name) {
            return Ok(Some(kept.clone()));
        }
        if usize::try_from(found.size_bytes).map_or(true, |size| size > limits::DOCUMENT_BYTES) {
            return Err(document::too_long(name).into());
        }
        let mut document = Vec::new();
        self.visit(&[found.name.to_owned()].into(), &mut |_, bytes| {
            bytes.read_to_end(&mut document).map_err(unreadable).map(drop)
        })?;
        Ok(Some(document))
    }

    /// Calls `take` for each of the files in `names`, which are names of [`Found`], in the order of the archive. In a
    /// compressed archive that is one pass for all of them.
    pub(super) fn visit(
        &self,
        names: &BTreeSet<String>,
        take: &mut dyn FnMut(Found<'_>, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        if self.coding == Coding::Plain {
            let mut found = Vec::new();
            for name in names {
                found.extend(self.find(name)?);
            }
            found.sort_by_key(|found| found.offset);
            for found in found {
                let mut bytes = Stretch::new(&self.file, found.offset, found.size_bytes, &self.cancel);
                take(found, &mut bytes)?;
            }
            return Ok(());
        }
        self.passes.set(self.passes.get() + 1);
        if self.passes.get() > limits::ARCHIVE_PASSES {
            let (what, limit) =
                ("readings of a compressed archive".to_owned(), limits::ARCHIVE_PASSES.into());
            return Err(ImageError::Limit { what, limit, unit: "of them" }.into());
        }
        let whole = Stretch::new(&self.file, 0, self.size_bytes, &self.cancel);
        let mut members = Members::new(Streamed(Decoding::new(whole, self.coding, &self.limits)?));
        let mut left = names.len();
        while let Some(Member { name, kind }) = members.next()? {
            if let MemberKind::File { offset, .. } = kind
                && names.contains(&name)
            {
                // The same file may come again under its name.
                let Some(found) = self.find(&name)?.filter(|found| found.offset == offset) else { continue };
                take(found, &mut members)?;
                left = left.saturating_sub(1);
                if left == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The first pass over an archive.
struct Scan<'r> {
    rules: &'r Rules,
    /// The file, if it is read where it is.
    plain: Option<(&'r File, &'r Cancel)>,
    names_bytes: usize,
    kept_bytes: usize,
    members: HashMap<String, Place>,
    kept: HashMap<String, Vec<u8>>,
}

impl Scan<'_> {
    fn run<B: Bytes>(&mut self, members: &mut Members<B>, keep: bool) -> Result<()> {
        while let Some(member) = members.next()? {
            self.check(&member)?;
            let place = match member.kind {
                MemberKind::Link { target } => {
                    self.names_bytes += target.as_ref().map_or(0, String::len);
                    Place::Link { target }
                }
                MemberKind::File { offset, size_bytes } => {
                    let head = read_up_to(members, Coding::PREFIX_LEN)?;
                    let coding = Coding::detect(&head);
                    let place = Place::File { offset, size_bytes, coding };
                    if let Some(first) = self.members.get(&member.name) {
                        self.again(&member.name, (first, &place), head, members)?;
                        continue;
                    }
                    if keep {
                        self.keep(&member.name, size_bytes, head, members)?;
                    }
                    place
                }
            };
            self.names_bytes += member.name.len();
            if self.names_bytes > limits::ARCHIVE_NAME_BYTES {
                return Err(ImageError::Limit {
                    what: "names of an archive's members".to_owned(),
                    limit: u64::try_from(limits::ARCHIVE_NAME_BYTES).unwrap_or(u64::MAX),
                    unit: "bytes",
                }
                .into());
            }
            match self.members.entry(member.name) {
                hash_map::Entry::Vacant(vacant) => drop(vacant.insert(place)),
                hash_map::Entry::Occupied(taken) => return Err(twice(taken.key())),
            }
        }
        Ok(())
    }

    /// Accepts a file that comes a second time: crane writes the configuration once for each tag. Documents have to be the
    /// same bytes, so that no two readers see two images; of anything else, whichever is read is compared with its digest.
    fn again<B: Bytes>(
        &self,
        name: &str,
        (first, second): (&Place, &Place),
        head: Vec<u8>,
        members: &mut Members<B>,
    ) -> Result<()> {
        let (Place::File { offset, size_bytes, .. }, Place::File { offset: again, size_bytes: size, .. }) =
            (first, second)
        else {
            return Err(twice(name));
        };
        if *self.rules != Rules::Links || size_bytes != size {
            return Err(twice(name));
        }
        let is_short = usize::try_from(*size).is_ok_and(|size| size <= limits::DOCUMENT_BYTES);
        let is_same = match (self.plain, self.kept.get(name)) {
            _ if !is_short || !looks_like_a_document(&head) => true,
            (Some((file, cancel)), _) => {
                let read = |offset| {
                    let mut bytes = Vec::new();
                    Stretch::new(file, offset, *size, cancel).read_to_end(&mut bytes).map_err(unreadable)?;
                    Ok::<_, Error>(bytes)
                };
                read(*offset)? == read(*again)?
            }
            (None, Some(kept)) => {
                let mut bytes = head;
                members.read_to_end(&mut bytes).map_err(unreadable)?;
                bytes == *kept
            }
            (None, None) => false,
        };
        if is_same { Ok(()) } else { Err(twice(name)) }
    }

    fn check(&self, Member { name, kind }: &Member) -> Result<(), ImageError> {
        let Rules::Files { documents } = self.rules else { return Ok(()) };
        let refuse = |problem: &str| {
            Err(ImageError::Member { name: name.as_bytes().to_vec(), problem: problem.to_owned() })
        };
        if matches!(kind, MemberKind::Link { .. }) {
            return refuse("is a link, which a separated set never has");
        }
        let is_document = [MANIFEST_JSON, "repositories"].contains(&name.as_str())
            || name.ends_with(".json") && !name.contains('/');
        if is_document && !documents {
            return refuse("belongs into the app's file only");
        }
        Ok(())
    }

    /// Keeps what looks like a document of an image, as far as there is room.
    fn keep<B: Bytes>(
        &mut self,
        name: &str,
        size_bytes: u64,
        head: Vec<u8>,
        members: &mut Members<B>,
    ) -> Result<()> {
        if !looks_like_a_document(&head) {
            return Ok(());
        }
        let Ok(size) = usize::try_from(size_bytes) else { return Ok(()) };
        if size > limits::DOCUMENT_BYTES || self.kept_bytes + size > limits::ARCHIVE_KEPT_BYTES {
            return Ok(());
        }
        let mut document = head;
        members.read_to_end(&mut document).map_err(unreadable)?;
        self.kept_bytes += document.len();
        self.kept.insert(name.to_owned(), document);
        Ok(())
    }
}

fn looks_like_a_document(head: &[u8]) -> bool {
    matches!(head.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{' | b'['))
}

fn twice(name: &str) -> Error {
    ImageError::Member { name: name.as_bytes().to_vec(), problem: "occurs twice".to_owned() }.into()
}

/// Reads until `most` bytes have come, or the data ends.
fn read_up_to(source: &mut dyn Read, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(u64::try_from(most).unwrap_or(u64::MAX)).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
