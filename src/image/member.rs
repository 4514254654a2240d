//! Members of an archive one after the other: names checked and brought to one form, data to be read or passed over.

use std::io::{self, Read};

use super::{
    error::ImageError,
    source::{Stretch, unreadable},
};
use crate::{
    error::{Error, Result},
    format::tar::{Event, Parser},
    limits,
    tree::{Body, Entry},
};

/// Bytes of the archive that are looked at a time where the data of files is passed over: a header and what often
/// surrounds it.
const HEADERS_BYTES: usize = 4 << 10;
/// Bytes looked at a time where everything is read.
const STREAM_BYTES: usize = 128 << 10;

/// Bytes of an archive.
pub(super) trait Bytes: Read {
    /// Number of bytes that can be passed over without being read.
    fn passable(&self) -> u64 {
        0
    }

    /// Passes over them.
    fn pass(&mut self, _: u64) {}
}

impl Bytes for Stretch<'_> {
    fn passable(&self) -> u64 {
        self.left()
    }

    fn pass(&mut self, len: u64) {
        Stretch::pass(self, len);
    }
}

/// Bytes that have to be read in order.
pub(super) struct Streamed<R>(pub(super) R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Bytes for Streamed<R> {}

/// A member that is not a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Name in one form: components joined by `/`.
    pub(super) name: String,
    pub(super) kind: MemberKind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    /// A file; its data begins at this byte of the uncompressed archive.
    File { offset: u64, size_bytes: u64 },
    /// Another name for the member `target`; `None` when the link leads out of the archive.
    Link { target: Option<String> },
}

/// Reader of an archive.
pub(super) struct Members<B> {
    bytes: B,
    parser: Parser,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Byte of the archive at `start`.
    position: u64,
    ended: bool,
    in_file: bool,
    count: u64,
}

impl<B: Bytes> Members<B> {
    pub(super) fn new(bytes: B) -> Self {
        let len = if bytes.passable() > 0 { HEADERS_BYTES } else { STREAM_BYTES };
        Self {
            bytes,
            parser: Parser::new(),
            buffer: vec![0; len].into(),
            start: 0,
            end: 0,
            position: 0,
            ended: false,
            in_file: false,
            count: 0,
        }
    }

    /// Goes on to the next member, whatever of the last one was not read. `None` at the end of the file: bytes after
    /// the end of the archive are read as well.
    ///
    /// Errors: those of the tar parser; `image.member` for types and names that are not allowed; `image.limit`.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        self.leave()?;
        loop {
            if self.parser.is_finished() {
                // Whoever can seek has no use for the bytes after the end of the archive.
                self.bytes.pass(u64::MAX);
            }
            if self.start == self.end && !self.fill()? {
                self.parser.finish()?;
                return Ok(None);
            }
            let (entry, taken) = self.step()?;
            self.position += taken;
            if let Some(entry) = entry {
                self.count += 1;
                if self.count > limits::ARCHIVE_MEMBERS {
                    let (what, limit) = ("members of an archive".to_owned(), limits::ARCHIVE_MEMBERS);
                    return Err(ImageError::Limit { what, limit, unit: "of them" }.into());
                }
                self.in_file = matches!(entry.body, Body::Regular { .. });
                if let Some(member) = member(entry, self.position)? {
                    return Ok(Some(member));
                }
            }
        }
    }

    /// Reads from the data of the member that [`Members::next`] returned last.
    pub(super) fn read_data(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.in_file && !buf.is_empty() {
            if self.start == self.end && !self.fill()? {
                self.parser.finish()?;
                self.in_file = false;
                break;
            }
            let mut piece = self.buffer.get(self.start..self.end).unwrap_or_default();
            piece = piece.get(..buf.len()).unwrap_or(piece);
            let had = piece.len();
            let (copied, ended) = match self.parser.next(&mut piece)? {
                Some(Event::Data { bytes, .. }) => {
                    if let Some(room) = buf.get_mut(..bytes.len()) {
                        room.copy_from_slice(bytes);
                    }
                    (bytes.len(), false)
                }
                Some(Event::EndOfEntry) => (0, true),
                Some(Event::Entry { .. }) | None => (0, false),
            };
            let taken = had - piece.len();
            self.start += taken;
            self.position += length(taken);
            self.in_file = !ended;
            if copied > 0 {
                return Ok(copied);
            }
        }
        Ok(0)
    }

    /// Passes over the rest of the current file.
    fn leave(&mut self) -> Result<()> {
        if self.in_file {
            let waiting = length(self.end - self.start);
            let skipped = self.parser.skip(waiting.saturating_add(self.bytes.passable()));
            self.position += skipped;
            if skipped <= waiting {
                self.start += usize::try_from(skipped).unwrap_or(usize::MAX);
            } else {
                (self.start, self.end) = (0, 0);
                self.bytes.pass(skipped - waiting);
            }
        }
        self.in_file = false;
        Ok(())
    }

    fn fill(&mut self) -> Result<bool> {
        if !self.ended {
            self.start = 0;
            self.end = loop {
                match self.bytes.read(&mut self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    outcome => break outcome.map_err(unreadable)?,
                }
            };
            self.ended = self.end == 0;
        }
        Ok(!self.ended)
    }

    /// Lets the parser take from the bytes that wait. Returns the entry that it found, and their number.
    fn step(&mut self) -> Result<(Option<Entry>, u64)> {
        let mut piece = self.buffer.get(self.start..self.end).unwrap_or_default();
        let had = piece.len();
        let entry = match self.parser.next(&mut piece)? {
            Some(Event::Entry { entry, .. }) => Some(entry),
            Some(Event::Data { .. } | Event::EndOfEntry) | None => None,
        };
        let taken = had - piece.len();
        self.start += taken;
        Ok((entry, length(taken)))
    }

    pub(super) fn into_bytes(self) -> B {
        self.bytes
    }
}

impl<B: Bytes> Read for Members<B> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_data(buf).map_err(Error::into_io)
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Checks an entry. `None` for a directory.
fn member(entry: Entry, offset: u64) -> Result<Option<Member>, ImageError> {
    let refuse = |problem: &str| ImageError::Member { name: entry.path.clone(), problem: problem.to_owned() };
    let name = clean(&entry.path).map_err(refuse)?;
    let kind = match &entry.body {
        Body::Directory => return Ok(None),
        Body::Regular { size_bytes, extents: None } => MemberKind::File { offset, size_bytes: *size_bytes },
        Body::Regular { extents: Some(_), .. } => return Err(refuse("is a file with holes")),
        Body::HardLink { target } => MemberKind::Link { target: clean(target).ok() },
        Body::Symlink { target } => MemberKind::Link { target: beside(&name, target) },
        Body::CharDevice(_) | Body::BlockDevice(_) | Body::Fifo => {
            return Err(refuse("is neither a file nor a directory"));
        }
    };
    if name.is_empty() {
        return Err(refuse("has no name"));
    }
    Ok(Some(Member { name, kind }))
}

/// Brings a name to one form. Errors, in words: absolute, or with a `..`.
pub(super) fn clean(path: &[u8]) -> Result<String, &'static str> {
    let path = str::from_utf8(path).map_err(|_other| "has a name that is not UTF-8")?;
    if path.starts_with('/') {
        return Err("has an absolute name");
    }
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("has a name with \"..\"");
    }
    Ok(parts.join("/"))
}

/// Name of the member to which a symbolic link beside `name` leads. `None` when it leads out of the archive.
fn beside(name: &str, target: &[u8]) -> Option<String> {
    let target = str::from_utf8(target).ok()?;
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<_> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_brought_to_one_form_and_ways_out_refused() {
        for (path, want) in [("./a/b", Ok("a/b")), ("a//./b/", Ok("a/b")), ("./", Ok(""))] {
            assert_eq!(clean(path.as_bytes()).as_deref(), want.as_deref(), "{path}");
        }
        for path in [&b"/a"[..], b"../a", b"a/../b", b"a\xff"] {
            assert!(clean(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_symbolic_link_is_followed_inside_the_archive_only() {
        for (name, target, want) in [
            ("id/layer.tar", "../x.tar", Some("x.tar")),
            ("id/layer.tar", "other", Some("id/other")),
            ("a", "b/../c", Some("c")),
            ("id/layer.tar", "../../x", None),
            ("a", "/etc/passwd", None),
        ] {
            assert_eq!(beside(name, target.as_bytes()).as_deref(), want, "{name} -> {target}");
        }
    }
}
