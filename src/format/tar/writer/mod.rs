//! Writer of tar archives: entries and their data in, one spelling for each of them out.
//!
//! Every entry has a POSIX header, after an extended header for values that do not fit it. That is
//! what Go's `archive/tar` writes for the headers that containerd gives it. Owners are numbers.
//! There are no user names, no access times, and device numbers of devices only. Equal entries give
//! equal bytes.
//!
//! Holes of sparse files are written as zeros, which all readers understand: see
//! `docs/formats/tar.md`.
//!
//! Source: `docs/formats/tar.md`, "What is written"; POSIX.1-2017 `pax`; Go `archive/tar/writer.go`;
//! containerd `pkg/archive/tar.go`.

mod error;
#[cfg(test)]
mod tests;

use std::io::Write;

pub use self::error::{WriterError, WriterProblem};
use super::{
    header::{self, BLOCK, Header},
    number,
    pax::Body as Records,
};
use crate::{
    limits,
    tree::{Attributes, Body, Device, Entry, Extent, Timestamp, xattr},
};

/// Zeros written at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Name of the root directory.
const ROOT: &[u8] = b"./";

/// Form in which entries are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Writes times with nanoseconds. Otherwise they are whole seconds, rounded down, as
    /// containerd's are.
    pub nanoseconds: bool,
}

/// Writer of one tar archive.
///
/// ```
/// use plywood::{format::tar::writer::{Options, Writer}, tree::{Attributes, Body, Entry}};
///
/// # fn main() -> Result<(), plywood::format::tar::writer::WriterError> {
/// let mut writer = Writer::new(Vec::new(), Options::default());
/// writer.entry(&Entry {
///     path: b"hello".to_vec(),
///     attributes: Attributes { mode: 0o644, ..Attributes::default() },
///     xattrs: Vec::new(),
///     body: Body::Regular { size_bytes: 5, extents: None },
/// })?;
/// writer.data(0, b"world")?;
/// writer.end_entry()?;
/// let archive = writer.finish()?;
/// assert_eq!(archive.len(), 512 + 512 + 1024);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    options: Options,
    file: Option<File>,
    /// Name of the current entry, for messages.
    name: Vec<u8>,
}

/// Entry in the terms of the archive.
struct Spelled {
    path: Vec<u8>,
    /// Records of the extended header; empty when the header holds everything.
    records: Records,
    header: [u8; BLOCK],
}

/// File whose data is being written.
#[derive(Debug)]
struct File {
    size_bytes: u64,
    /// Bytes written so far, holes included.
    written: u64,
    /// Stretches with data still to come, in reverse order.
    expected: Vec<Extent>,
}

impl<W: Write> Writer<W> {
    /// Starts a new archive into `out`.
    pub fn new(out: W, options: Options) -> Self {
        Self { out, options, file: None, name: Vec::new() }
    }

    /// Writes the headers of the next entry. [`Writer::data`] takes the data of a regular file
    /// afterwards and [`Writer::end_entry`] ends it.
    ///
    /// The root directory may have an empty name. Other names are written as they are, directories
    /// with a slash at the end.
    ///
    /// Errors: [`WriterError`] when the entry cannot be spelled or writing to `out` fails. After an
    /// error the writer cannot be used.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), WriterError> {
        if self.file.is_some() {
            return Err(self.refuse(WriterProblem::Order("an entry began before the last file's end")));
        }
        self.name.clone_from(&entry.path);
        let Spelled { path, records, header } = self.spell(entry).map_err(|problem| self.refuse(problem))?;
        if !records.is_empty() {
            self.extended_header(&path, &records.encode())?;
        }
        self.put(&header)?;
        if let Body::Regular { size_bytes, extents } = &entry.body {
            let size_bytes = *size_bytes;
            let whole = [Extent { offset: 0, len: size_bytes }];
            let extents = extents.as_deref().unwrap_or(&whole);
            let expected = expected(extents, size_bytes).map_err(|problem| self.refuse(problem))?;
            self.file = Some(File { size_bytes, written: 0, expected });
        }
        Ok(())
    }

    /// Writes data of the current file: `bytes` at byte `offset` of the file, in ascending order
    /// and within the extents that the entry announced. Holes before them are written as zeros.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriterError> {
        let Some(file) = &mut self.file else {
            return Err(self.refuse(WriterProblem::Order("data came without a file")));
        };
        let gap = match file.take(offset, bytes.len()) {
            Ok(gap) => gap,
            Err(problem) => return Err(self.refuse(problem)),
        };
        self.zeros(gap)?;
        self.put(bytes)
    }

    /// Ends the current file: writes its last hole, and zeros up to the end of the block.
    pub fn end_entry(&mut self) -> Result<(), WriterError> {
        let Some(file) = self.file.take() else {
            return Err(self.refuse(WriterProblem::Order("an end came without a file")));
        };
        let missing = file.expected.iter().map(|extent| extent.len).sum();
        if missing > 0 {
            return Err(self.refuse(WriterProblem::TooLittle { missing, size_bytes: file.size_bytes }));
        }
        self.zeros(file.size_bytes.saturating_sub(file.written))?;
        self.pad(file.size_bytes)
    }

    /// Ends the archive with two zero blocks and returns `out`.
    pub fn finish(mut self) -> Result<W, WriterError> {
        if self.file.is_some() {
            return Err(self.refuse(WriterProblem::Order("the archive ended before the last file's end")));
        }
        self.name.clear();
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    /// Sink that the archive is written to.
    pub fn sink(&self) -> &W {
        &self.out
    }

    /// Sink of the archive, to be changed between two writes.
    pub fn sink_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn refuse(&self, problem: WriterProblem) -> WriterError {
        WriterError::new(&self.name, problem)
    }

    fn spell(&self, entry: &Entry) -> Result<Spelled, WriterProblem> {
        let mut records = Records::default();
        let attributes = entry.attributes;
        let path = archive_name(entry)?;
        let kind = kind(&entry.body);
        let (size_bytes, link_name, device) = match &entry.body {
            Body::Regular { size_bytes, .. } => (*size_bytes, &[][..], Device::default()),
            Body::Symlink { target } | Body::HardLink { target } => (0, &target[..], Device::default()),
            Body::CharDevice(device) | Body::BlockDevice(device) => (0, &[][..], *device),
            Body::Directory | Body::Fifo => (0, &[][..], Device::default()),
        };
        if matches!(kind, b'1' | b'2')
            && (link_name.is_empty() || link_name.len() > limits::LINK_TARGET_BYTES)
        {
            return Err(WriterProblem::LinkLength { found: link_name.len() });
        }
        if path.contains(&0) || link_name.contains(&0) {
            return Err(WriterProblem::Nul);
        }
        let Device { major, minor } = device;
        if major > limits::DEVICE_MAJOR || minor > limits::DEVICE_MINOR {
            return Err(WriterProblem::Device { major, minor });
        }
        let size = i64::try_from(size_bytes).ok().ok_or(WriterProblem::Size { found: size_bytes })?;
        let mtime = if self.options.nanoseconds {
            attributes.mtime
        } else {
            Timestamp { nanoseconds: 0, ..attributes.mtime }
        };

        for (key, name) in [(&b"path"[..], &path[..]), (b"linkpath", link_name)] {
            if !header::holds_name(name) {
                records.add(key, name);
            }
        }
        for (key, id) in [(&b"uid"[..], attributes.uid), (b"gid", attributes.gid)] {
            if id == u32::MAX {
                return Err(WriterProblem::Owner);
            }
            if !header::holds_owner(id.into()) {
                records.add(key, id.to_string().as_bytes());
            }
        }
        if !header::holds_size(size) {
            records.add(b"size", size.to_string().as_bytes());
        }
        if mtime.nanoseconds != 0 || !header::holds_size(mtime.seconds) {
            records.add(b"mtime", number::spell_seconds(mtime).as_bytes());
        }
        let mut xattrs = entry.xattrs.clone();
        for attribute in &xattrs {
            xattr::check(&attribute.name, &attribute.value)?;
            if !records.add_xattr(&attribute.name, &attribute.value) {
                return Err(WriterProblem::XattrName { name: attribute.name.clone() });
            }
        }
        xattr::settle(&mut xattrs)?;

        let header = Header {
            kind,
            mode: match entry.body {
                Body::Symlink { .. } => Attributes::SYMLINK_MODE,
                _ => attributes.mode & 0o7777,
            },
            uid: attributes.uid.into(),
            gid: attributes.gid.into(),
            size_bytes,
            mtime: mtime.seconds,
            device: (major.into(), minor.into()),
            name: &path,
            prefix: &[],
            link_name,
        };
        let header = header.encode();
        Ok(Spelled { path, records, header })
    }

    /// Writes an extended header before the entry `path`.
    fn extended_header(&mut self, path: &[u8], body: &[u8]) -> Result<(), WriterError> {
        if body.len() > limits::TAR_EXTENSION_BYTES {
            return Err(self.refuse(WriterProblem::Records { size_bytes: body.len() }));
        }
        let name = extended_name(path);
        let header = Header {
            kind: b'x',
            mode: 0,
            uid: 0,
            gid: 0,
            size_bytes: body.len() as u64,
            mtime: 0,
            device: (0, 0),
            name: &name,
            prefix: &[],
            link_name: &[],
        };
        self.put(&header.encode())?;
        self.put(body)?;
        self.pad(body.len() as u64)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriterError> {
        self.out.write_all(bytes).map_err(|error| self.refuse(WriterProblem::Sink(error)))
    }

    fn zeros(&mut self, mut len: u64) -> Result<(), WriterError> {
        while len > 0 {
            let step = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len());
            self.put(ZEROS.get(..step).unwrap_or_default())?;
            len = len.saturating_sub(step as u64);
        }
        Ok(())
    }

    /// Writes zeros from `len` bytes of data up to the end of the block.
    fn pad(&mut self, len: u64) -> Result<(), WriterError> {
        self.zeros(len.next_multiple_of(BLOCK as u64).saturating_sub(len))
    }
}

impl File {
    /// Takes `len` bytes at `offset` into account. Returns the number of zeros to write before
    /// them.
    fn take(&mut self, offset: u64, len: usize) -> Result<u64, WriterProblem> {
        let mut left = len as u64;
        let mut at = offset;
        let end = offset.checked_add(left).filter(|end| *end <= self.size_bytes);
        let misplaced = WriterProblem::Misplaced { offset, len: left, size_bytes: self.size_bytes };
        let Some(end) = end else { return Err(misplaced) };
        while left > 0 {
            let Some(next) = self.expected.last_mut().filter(|next| next.offset == at) else {
                return Err(misplaced);
            };
            let step = next.len.min(left);
            (next.offset, next.len) = (next.offset + step, next.len - step);
            if next.len == 0 {
                self.expected.pop();
            }
            (at, left) = (at + step, left - step);
        }
        if len == 0 {
            return Ok(0);
        }
        let gap = offset.saturating_sub(self.written);
        self.written = end;
        Ok(gap)
    }
}

/// Checks the extents and returns them in reverse order. Errors: they go back, overlap or leave the
/// file.
fn expected(extents: &[Extent], size_bytes: u64) -> Result<Vec<Extent>, WriterProblem> {
    let mut floor = 0;
    for extent in extents {
        let Extent { offset, len } = *extent;
        let end = offset.checked_add(len).filter(|end| *end <= size_bytes && offset >= floor);
        floor = end.ok_or(WriterProblem::Misplaced { offset, len, size_bytes })?;
    }
    Ok(extents.iter().rev().filter(|extent| extent.len > 0).copied().collect())
}

fn kind(body: &Body) -> u8 {
    match body {
        Body::Regular { .. } => b'0',
        Body::HardLink { .. } => b'1',
        Body::Symlink { .. } => b'2',
        Body::CharDevice(_) => b'3',
        Body::BlockDevice(_) => b'4',
        Body::Directory => b'5',
        Body::Fifo => b'6',
    }
}

/// Name of the entry as the archive spells it.
fn archive_name(entry: &Entry) -> Result<Vec<u8>, WriterProblem> {
    let is_directory = matches!(entry.body, Body::Directory);
    let mut name = entry.path.clone();
    match (name.as_slice(), is_directory) {
        (b"" | b"." | b"/", true) => name = ROOT.to_vec(),
        ([], false) => return Err(WriterProblem::NameLength { found: 0 }),
        ([.., b'/'], false) => return Err(WriterProblem::Slash),
        ([.., b'/'], true) | (_, false) => {}
        (_, true) => name.push(b'/'),
    }
    if name.len() > limits::PATH_BYTES {
        return Err(WriterProblem::NameLength { found: name.len() });
    }
    Ok(name)
}

/// Name of an extended header: that of its entry, with a directory `PaxHeaders.0` before the last
/// component. Only readers without support for extended headers use it: they extract the header as
/// a file of that name.
fn extended_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, file) = path.split_at_checked(at).unwrap_or((&[], path));
    let directory = if directory == ROOT { &[] } else { directory };
    let mut name = [directory, b"PaxHeaders.0/", file].concat();
    name.retain(u8::is_ascii);
    name.truncate(100);
    while name.last() == Some(&b'/') {
        name.pop();
    }
    name
}
