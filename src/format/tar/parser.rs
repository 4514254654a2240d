//! Grammar of archives: headers, extension headers, data, padding, end.
//!
//! Source: `docs/formats/tar.md`; Go `archive/tar/reader.go` for what belongs to which entry.

use super::{
    error::{Problem, TarError},
    header::{self, BLOCK, Header},
    member::{Content, Extensions, Member},
    sparse::{self, MapReader, Plan},
};
use crate::{
    format::magic,
    tree::{Body, Entry, Extent},
};

/// Event of the parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Entry. The data of a regular file follows, then [`Event::EndOfEntry`].
    Entry {
        /// Name, type and metadata.
        entry: Entry,
        /// Byte of the archive at which the data starts. A sparse file's stretches of data follow each other from
        /// there on, see [`Body::stored`]; the map at their head is not counted. Without a meaning for entries
        /// without data.
        data_start: u64,
    },
    /// Data of the last regular file, in ascending order; a slice of the input.
    Data {
        /// Byte of the file at which the data belongs. Holes of a sparse file are skipped.
        offset: u64,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// End of the regular file's data.
    EndOfEntry,
}

/// Reads a tar archive from pieces of any size.
///
/// Memory: one block, the arrived part of one extension body, one sparse map.
///
/// ```
/// use plywood::{format::tar::{Event, Parser}, tree::Body};
///
/// # fn main() -> Result<(), plywood::format::tar::TarError> {
/// # let mut header = tar::Header::new_gnu();
/// # header.set_path("hello").unwrap();
/// # header.set_size(5);
/// # header.set_cksum();
/// # let archive = [header.as_bytes().as_slice(), b"world", &[0; 507], &[0; 1024]].concat();
/// let mut parser = Parser::new();
/// let mut files = Vec::new();
/// for mut piece in archive.chunks(100) {
///     while let Some(event) = parser.next(&mut piece)? {
///         match event {
///             Event::Entry { entry, .. } => files.push((entry.path, Vec::new())),
///             Event::Data { bytes, .. } => files.last_mut().unwrap().1.extend_from_slice(bytes),
///             Event::EndOfEntry => {}
///         }
///     }
/// }
/// parser.finish()?;
/// assert_eq!(files, [(b"hello".to_vec(), b"world".to_vec())]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// Number of bytes taken so far.
    position: u64,
    /// Byte at which the current header, or that of the current entry, begins.
    header_offset: u64,
    /// Name of that entry, cut to the length that messages print.
    name: Vec<u8>,
    /// Header that arrives in several pieces.
    block: [u8; BLOCK],
    block_len: usize,
    /// Extension body that arrives in several pieces.
    body: Vec<u8>,
    /// Extension headers that wait for their entry.
    pending: Extensions,
    data: Data,
    dropped_xattrs: u64,
    reading: Reading,
}

/// Kind of the bytes that a parser gets.
#[derive(Debug)]
enum Reading {
    /// An archive.
    Archive,
    /// An archive whose headers and extension bodies are kept, until they are taken.
    Copied(Vec<u8>),
    /// The headers of an archive and nothing else, see [`super::metadata`].
    Metadata {
        /// Bytes of data that the archive had so far.
        left_out: u64,
    },
}

#[derive(Debug)]
enum State {
    /// A header or the end of the archive comes next.
    Header,
    /// One zero block was read. Another one or the end of the stream must follow.
    ZeroBlock,
    /// In the body of an extension header.
    Extension { kind: u8, size_bytes: usize },
    /// In the map at the head of a sparse file's data.
    SparseMap(Box<SparseDraft>),
    /// In the data of a regular file.
    Data,
    /// In the padding of the last block of data.
    Padding {
        left: usize,
        /// True when the padding must be zero, because some readers would take other bytes for
        /// data.
        zero: bool,
        /// True when it ends an extension body.
        of_extension: bool,
    },
    /// The end marker was read. All bytes are ignored from here on.
    End,
    /// The archive was refused.
    Refused(TarError),
}

/// Sparse file whose map is incomplete.
#[derive(Debug)]
struct SparseDraft {
    entry: Entry,
    size_bytes: u64,
    stored: u64,
    map: MapReader,
}

/// Places in the current file for its stored bytes.
#[derive(Debug, Default)]
struct Data {
    /// Bytes to skip first: the padding of a sparse map.
    skip: usize,
    /// Stretch of the file that is being filled.
    current: Option<Extent>,
    /// Stretches after it, in reverse order.
    later: Vec<Extent>,
    padding: usize,
    /// Bytes that the archive has here and its metadata leaves out.
    absent: u64,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Parser at the beginning of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            position: 0,
            header_offset: 0,
            name: Vec::new(),
            block: [0; BLOCK],
            block_len: 0,
            body: Vec::new(),
            pending: Extensions::default(),
            data: Data::default(),
            dropped_xattrs: 0,
            reading: Reading::Archive,
        }
    }

    /// Parser of an archive that keeps the headers it reads.
    pub(super) fn copying() -> Self {
        Self { reading: Reading::Copied(Vec::new()), ..Self::new() }
    }

    /// Parser of the headers of an archive, without its data. Entries have the places of their data in the archive;
    /// none comes.
    ///
    /// ```
    /// use plywood::format::tar::{Event, Parser, metadata::Exporter};
    ///
    /// # fn main() -> Result<(), plywood::format::tar::TarError> {
    /// # let mut header = tar::Header::new_gnu();
    /// # header.set_path("hello").unwrap();
    /// # header.set_size(5);
    /// # header.set_cksum();
    /// # let archive = [header.as_bytes().as_slice(), b"world", &[0; 507], &[0; 1024]].concat();
    /// let mut metadata = Vec::new();
    /// let mut exporter = Exporter::new();
    /// exporter.push(&archive, &mut metadata)?;
    /// exporter.finish(&mut metadata)?;
    /// assert_eq!(metadata.len(), 512);
    ///
    /// let mut parser = Parser::of_metadata();
    /// let event = parser.next(&mut &metadata[..])?;
    /// assert!(matches!(event, Some(Event::Entry { data_start: 512, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_metadata() -> Self {
        Self { reading: Reading::Metadata { left_out: 0 }, ..Self::new() }
    }

    /// Headers and extension bodies that were read since this was last called.
    pub(super) fn take_headers(&mut self) -> Vec<u8> {
        match &mut self.reading {
            Reading::Copied(headers) => std::mem::take(headers),
            Reading::Archive | Reading::Metadata { .. } => Vec::new(),
        }
    }

    /// Takes bytes off the front of `input` up to the next event. Returns `None` when `input` is
    /// used up and more is needed. After the end of the archive it takes and ignores everything.
    ///
    /// Errors: [`TarError`] when the archive breaks a rule. Every later call returns the same
    /// error.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, TarError> {
        if let State::Refused(error) = &self.state {
            return Err(error.clone());
        }
        self.step(input).map_err(|problem| self.refuse(problem))
    }

    /// Passes over up to `available` bytes of the current file's data, which the caller leaves out of its input because
    /// it can seek. Returns their number; 0 outside the data of a file, and within a sparse one.
    ///
    /// ```
    /// use plywood::format::tar::{Event, Parser};
    ///
    /// # fn main() -> Result<(), plywood::format::tar::TarError> {
    /// # let mut header = tar::Header::new_gnu();
    /// # header.set_path("hello").unwrap();
    /// # header.set_size(5);
    /// # header.set_cksum();
    /// # let archive = [header.as_bytes().as_slice(), b"world", &[0; 507], &[0; 1024]].concat();
    /// let (mut header, mut rest) = archive.split_at(512);
    /// let mut parser = Parser::new();
    /// assert!(matches!(parser.next(&mut header)?, Some(Event::Entry { .. })));
    /// assert_eq!(parser.skip(rest.len() as u64), 5);
    /// rest = &rest[5..];
    /// assert_eq!(parser.next(&mut rest)?, Some(Event::EndOfEntry));
    /// # Ok(())
    /// # }
    /// ```
    pub fn skip(&mut self, available: u64) -> u64 {
        let is_plain = matches!(self.state, State::Data) && self.data.skip == 0 && self.data.later.is_empty();
        let Some(extent) = self.data.current.filter(|_| is_plain) else { return 0 };
        let skipped = extent.len.min(available);
        self.data.current = Some(Extent { offset: extent.offset + skipped, len: extent.len - skipped })
            .filter(|left| left.len > 0);
        self.position = self.position.saturating_add(skipped);
        skipped
    }

    /// True once the end marker was read. Everything after it is ignored.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Checks that the archive may end here. Call at the end of the stream, after [`Parser::next`]
    /// returned `None`. Errors: [`TarError`] for an incomplete archive.
    pub fn finish(&mut self) -> Result<(), TarError> {
        let missing = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        let problem = match &self.state {
            State::End => return Ok(()),
            State::Refused(error) => return Err(error.clone()),
            State::Header | State::ZeroBlock if self.block_len > 0 => {
                self.foreign(self.block.get(..self.block_len).unwrap_or_default(), Problem::TruncatedHeader)
            }
            State::Header | State::ZeroBlock | State::Padding { .. } => {
                if !self.pending.need_entry() {
                    return Ok(());
                }
                Problem::ExtensionOrphan
            }
            State::Extension { size_bytes, .. } => {
                Problem::TruncatedExtension { missing: missing(size_bytes.saturating_sub(self.body.len())) }
            }
            State::SparseMap(draft) => Problem::TruncatedData { missing: draft.map.missing(draft.stored) },
            State::Data => match self.data.missing() {
                0 => return Ok(()),
                missing => Problem::TruncatedData { missing },
            },
        };
        Err(self.refuse(problem))
    }

    /// Number of extended attributes so far that [`crate::tree::xattr::is_kept`] excludes from the
    /// image.
    pub fn dropped_xattrs(&self) -> u64 {
        self.dropped_xattrs
    }

    fn refuse(&mut self, problem: Problem) -> TarError {
        let error = TarError::new(self.header_offset, &self.name, problem);
        self.state = State::Refused(error.clone());
        error
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Problem> {
        loop {
            match &mut self.state {
                State::Header | State::ZeroBlock => {
                    // Most headers arrive in one piece and are read in place.
                    let entry = if self.block_len == 0
                        && let Some((block, rest)) = input.split_first_chunk()
                    {
                        *input = rest;
                        self.header_offset = self.position;
                        self.count(BLOCK);
                        self.block(block)?
                    } else if self.fill_block(input) {
                        let block = self.block;
                        self.block(&block)?
                    } else {
                        return Ok(None);
                    };
                    if let Some(entry) = entry {
                        return Ok(Some(Event::Entry { entry, data_start: self.place() }));
                    }
                }
                &mut State::Extension { kind, size_bytes } => {
                    let mut body = std::mem::take(&mut self.body);
                    let wanted = size_bytes.saturating_sub(body.len());
                    let arrived = self.take(input, wanted);
                    self.copy(arrived);
                    let zero;
                    if arrived.len() == size_bytes {
                        zero = self.pending.apply(kind, arrived)?;
                    } else {
                        body.extend_from_slice(arrived);
                        if body.len() < size_bytes {
                            self.body = body;
                            return Ok(None);
                        }
                        zero = self.pending.apply(kind, &body)?;
                        body.clear();
                    }
                    self.body = body;
                    self.state = State::Padding { left: padding(size_bytes), zero, of_extension: true };
                }
                State::SparseMap(draft) => {
                    let left = usize::try_from(draft.map.missing(draft.stored)).unwrap_or(usize::MAX);
                    let available = input.get(..left.min(input.len())).unwrap_or_default();
                    let (taken, complete) = draft.map.feed(available)?;
                    self.take(input, taken);
                    if complete {
                        return self.sparse_entry();
                    }
                    if taken == left {
                        return Err(Problem::SparseMap { detail: "an end within the file's data" });
                    }
                    return Ok(None);
                }
                State::Data => {
                    let skipped = self.take(input, self.data.skip).len();
                    self.data.skip -= skipped;
                    if self.data.skip > 0 {
                        return Ok(None);
                    }
                    let Some(extent) = self.data.current else {
                        if let Reading::Metadata { left_out } = &mut self.reading {
                            *left_out = left_out.saturating_add(self.data.absent);
                        }
                        let left = self.data.padding;
                        self.state = State::Padding { left, zero: false, of_extension: false };
                        return Ok(Some(Event::EndOfEntry));
                    };
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let bytes = self.take(input, usize::try_from(extent.len).unwrap_or(usize::MAX));
                    self.data.advance(bytes.len());
                    return Ok(Some(Event::Data { offset: extent.offset, bytes }));
                }
                &mut State::Padding { left, zero, of_extension } => {
                    let taken = self.take(input, left);
                    if of_extension {
                        self.copy(taken);
                    }
                    if zero && taken.iter().any(|byte| *byte != 0) {
                        return Err(Problem::LongNamePadding);
                    }
                    if taken.len() < left {
                        self.state = State::Padding { left: left - taken.len(), zero, of_extension };
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
                State::End => {
                    self.take(input, usize::MAX);
                    return Ok(None);
                }
                State::Refused(error) => return Err(error.problem().clone()),
            }
        }
    }

    /// Takes up to `len` bytes off the front of `input`.
    fn take<'a>(&mut self, input: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, rest) = input.split_at_checked(len).unwrap_or((*input, &[]));
        *input = rest;
        self.count(taken.len());
        taken
    }

    /// Byte of the archive up to which it was read.
    fn place(&self) -> u64 {
        match self.reading {
            Reading::Archive | Reading::Copied(_) => self.position,
            Reading::Metadata { left_out } => self.position.saturating_add(left_out),
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        if let Reading::Copied(headers) = &mut self.reading {
            headers.extend_from_slice(bytes);
        }
    }

    fn count(&mut self, bytes: usize) {
        self.position = self.position.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Collects a block from pieces. Returns true when it is complete.
    fn fill_block(&mut self, input: &mut &[u8]) -> bool {
        if self.block_len == 0 && !input.is_empty() {
            self.header_offset = self.position;
            self.name.clear();
        }
        let piece = self.take(input, BLOCK - self.block_len);
        if let Some(room) = self.block.get_mut(self.block_len..self.block_len + piece.len()) {
            room.copy_from_slice(piece);
        }
        self.block_len = (self.block_len + piece.len()) % BLOCK;
        // The piece that completes the block resets the length to 0.
        self.block_len == 0 && !piece.is_empty()
    }

    /// Reads a block that may be a header or part of the end marker.
    fn block(&mut self, block: &[u8; BLOCK]) -> Result<Option<Entry>, Problem> {
        self.name.clear();
        // A header begins with its name, so one byte excludes most blocks from the comparison.
        let zero = block.first() == Some(&0) && *block == [0; BLOCK];
        match (&self.state, zero) {
            (State::ZeroBlock, true) => self.state = State::End,
            // Some readers stop at a single zero block, others go on.
            (State::ZeroBlock, false) => return Err(Problem::LoneZeroBlock),
            (_, true) if self.pending.need_entry() => return Err(Problem::ExtensionOrphan),
            (_, true) => self.state = State::ZeroBlock,
            (_, false) => {
                self.name.extend_from_slice(header::name(block));
                self.copy(block);
                let plain;
                let header = if let Reading::Metadata { .. } = self.reading {
                    plain = self.restore(block)?;
                    Header::decode_unsummed(&plain)?
                } else {
                    Header::decode(block).map_err(|problem| self.foreign(block, problem))?
                };
                return match header.kind {
                    b'x' | b'g' | b'L' | b'K' => self.begin_extension(&header).map(|()| None),
                    _ => self.entry(&header),
                };
            }
        }
        Ok(None)
    }

    /// Header of an archive, made of one in its metadata: the place of the data is taken out of it again.
    fn restore(&self, block: &[u8; BLOCK]) -> Result<[u8; BLOCK], Problem> {
        let mut plain = *block;
        match header::take_place(&mut plain) {
            // The archive is laid out without gaps, so there is no choice.
            Some(found) if found != self.place() => {
                Err(Problem::MetadataPlace { found, expected: self.place() })
            }
            _ => Ok(plain),
        }
    }

    /// Names the format of a stream whose first block is no header. Go, GNU tar and Python read
    /// such a stream only after they have decompressed it.
    fn foreign(&self, block: &[u8], problem: Problem) -> Problem {
        match magic::recognise_bytes(block) {
            Some(found) if self.header_offset == 0 && found.name != magic::TAR => {
                Problem::Foreign { what: found.name }
            }
            _ => problem,
        }
    }

    fn begin_extension(&mut self, header: &Header<'_>) -> Result<(), Problem> {
        let size_bytes = self.pending.admit(header.kind, header.size_bytes)?;
        self.state = State::Extension { kind: header.kind, size_bytes };
        Ok(())
    }

    fn entry(&mut self, header: &Header<'_>) -> Result<Option<Entry>, Problem> {
        let mut extensions = std::mem::take(&mut self.pending);
        let path = extensions.path(header)?;
        self.name.clear();
        self.name.extend_from_slice(path.get(..SHOWN_NAME_BYTES).unwrap_or(&path));
        let Member { mut entry, content, dropped_xattrs } = extensions.member(header, path)?;
        self.dropped_xattrs = self.dropped_xattrs.saturating_add(dropped_xattrs);
        // A map in the data is not among the headers.
        if let (Content::Sparse { plan: Plan { map: None, .. }, .. }, false) = (&content, self.is_archive()) {
            return Err(Problem::MetadataSparse);
        }
        match content {
            Content::Nothing => self.state = State::Header,
            Content::Plain { size_bytes } => self.begin_data(None, size_bytes, size_bytes),
            Content::Sparse { plan: Plan { size_bytes, map: Some(map) }, stored } => {
                self.begin_sparse_data(&mut entry, &map, size_bytes, stored, stored)?;
            }
            Content::Sparse { plan: Plan { size_bytes, map: None }, stored } => {
                let map = MapReader::default();
                self.state = State::SparseMap(Box::new(SparseDraft { entry, size_bytes, stored, map }));
                return Ok(None);
            }
        }
        Ok(Some(entry))
    }

    /// Ends the map at the head of the data. After its padding comes data.
    fn sparse_entry<'a>(&mut self) -> Result<Option<Event<'a>>, Problem> {
        let State::SparseMap(draft) = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(None);
        };
        let SparseDraft { mut entry, size_bytes, stored, map } = *draft;
        let (map_padding, data_bytes) = map
            .rest(stored)
            .ok_or(Problem::SparseMap { detail: "padding to a multiple of 512 within the file's data" })?;
        self.begin_sparse_data(&mut entry, &map.into_map(), size_bytes, data_bytes, stored)?;
        self.data.skip = map_padding;
        let data_start = self.position.saturating_add(u64::try_from(map_padding).unwrap_or(u64::MAX));
        Ok(Some(Event::Entry { entry, data_start }))
    }

    fn begin_sparse_data(
        &mut self,
        entry: &mut Entry,
        map: &[Extent],
        size_bytes: u64,
        data_bytes: u64,
        stored: u64,
    ) -> Result<(), Problem> {
        let extents = sparse::settle(map, size_bytes, data_bytes)?;
        self.begin_data(extents.as_deref(), size_bytes, stored);
        entry.body = Body::Regular { size_bytes, extents };
        Ok(())
    }

    fn begin_data(&mut self, extents: Option<&[Extent]>, size_bytes: u64, stored: u64) {
        self.data = match self.reading {
            Reading::Archive | Reading::Copied(_) => Data::new(extents, size_bytes, stored),
            Reading::Metadata { .. } => {
                let absent = stored.checked_next_multiple_of(512).unwrap_or(u64::MAX);
                Data { absent, ..Data::default() }
            }
        };
        self.state = State::Data;
    }

    fn is_archive(&self) -> bool {
        matches!(self.reading, Reading::Archive)
    }
}

/// Bytes of a name kept for messages, which print no more.
const SHOWN_NAME_BYTES: usize = 512;

impl Data {
    /// Stretches of a file of `size_bytes`, of which the archive stores `stored` bytes, a sparse
    /// map included.
    fn new(extents: Option<&[Extent]>, size_bytes: u64, stored: u64) -> Self {
        let whole = [Extent { offset: 0, len: size_bytes }];
        let mut later = Vec::new();
        let current = match extents.unwrap_or(&whole) {
            [first, rest @ ..] => {
                later.extend(rest.iter().rev());
                Some(*first).filter(|extent| extent.len > 0)
            }
            [] => None,
        };
        let beyond = stored % u64::try_from(BLOCK).unwrap_or(u64::MAX);
        let padding = padding(usize::try_from(beyond).unwrap_or_default());
        Self { skip: 0, current, later, padding, absent: 0 }
    }

    /// Moves on by `len` bytes, which do not exceed the current stretch.
    fn advance(&mut self, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.current = match self.current {
            Some(extent) if extent.len > len => {
                Some(Extent { offset: extent.offset + len, len: extent.len - len })
            }
            _ => self.later.pop(),
        };
    }

    /// Number of stored bytes that have not arrived.
    fn missing(&self) -> u64 {
        let data: u64 = self.current.iter().chain(&self.later).map(|extent| extent.len).sum();
        data.saturating_add(u64::try_from(self.skip).unwrap_or(u64::MAX))
    }
}

/// Bytes between the end of `len` bytes of data and the next block.
fn padding(len: usize) -> usize {
    len.next_multiple_of(BLOCK) - len
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
