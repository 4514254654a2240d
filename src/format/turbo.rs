//! Published turboOCI layers: a small archive with the metadata of a file system and the index of the original layer.
//!
//! The archive has a fixed set of members. [`Reader`] takes nothing else out of it, so that no name of it ever becomes a
//! path. [`write()`] writes one whose bytes depend on the contents of the members alone.
//!
//! Source: `docs/formats/overlaybd.md`, "The published turboOCI layer".

use std::io::Write;

use super::{
    ReadAt,
    tar::{
        self, Parser, TarError,
        writer::{Options, Writer, WriterError},
    },
};
use crate::{
    error::{Classify, Error, Kind, Quoted},
    tree::{Attributes, Body, Entry},
};

/// Bytes of a member copied at a time.
const COPY_BYTES: usize = 64 << 10;

/// Member of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// Metadata of an ext4 file system.
    Ext4,
    /// Metadata of an EROFS file system.
    Erofs,
    /// Empty file that says what the archive is.
    Marker,
    /// gzip index of the original layer.
    GzipIndex,
}

impl Member {
    /// Every member, in the order of the archive.
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Erofs, Self::Marker, Self::GzipIndex];

    /// Name of the member in the archive, and in the directory that it is unpacked to.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4.fs.meta",
            Self::Erofs => "erofs.fs.meta",
            Self::Marker => ".turbo.ociv1",
            Self::GzipIndex => "gzip.meta",
        }
    }

    fn of(path: &[u8]) -> Option<Self> {
        let name = path.strip_prefix(b"./").unwrap_or(path);
        Self::ALL.into_iter().find(|member| member.name().as_bytes() == name)
    }
}

/// Refusal of a turboOCI layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TurboError {
    /// The archive is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry is none of the members.
    #[error("{} is no member of a turboOCI layer, or not as a plain file", Quoted(name))]
    Member {
        /// Name of the entry.
        name: Vec<u8>,
    },
    /// A member comes twice.
    #[error("member {name} comes twice")]
    Twice {
        /// Name of the member.
        name: &'static str,
    },
    /// The marker has contents.
    #[error("the marker .turbo.ociv1 has {size_bytes} bytes, not 0")]
    Marker {
        /// Size of the marker.
        size_bytes: u64,
    },
    /// There is no file system.
    #[error("the archive has neither ext4.fs.meta nor erofs.fs.meta")]
    Empty,
}

impl Classify for TurboError {
    fn kind(&self) -> Kind {
        match self {
            Self::Tar(error) => error.kind(),
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Tar(error) => error.reason(),
            Self::Member { .. } | Self::Twice { .. } => "turbo.member",
            Self::Marker { .. } => "turbo.marker",
            Self::Empty => "turbo.empty",
        }
    }
}

/// Event of the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Member, whose data follows.
    Member {
        /// Which one.
        member: Member,
        /// Size of the member in bytes.
        size_bytes: u64,
    },
    /// Data of the last member, in order.
    Data {
        /// Byte of the member at which the data belongs.
        offset: u64,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// End of the member's data.
    End,
}

/// Reads the members of an archive that comes in pieces of any size.
///
/// Directories are passed over: some writers add one for the root.
#[derive(Debug, Default)]
pub struct Reader {
    parser: Parser,
    seen: Vec<Member>,
}

impl Reader {
    /// Reader at the beginning of an archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` up to the next event; `None` when it is used up. Errors: an entry that is no
    /// member, a member that comes twice, those of archives.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, TurboError> {
        while let Some(event) = self.parser.next(input)? {
            return Ok(Some(match event {
                tar::Event::Entry { entry: Entry { body: Body::Directory, .. }, .. } => continue,
                tar::Event::Entry { entry, .. } => self.member(entry)?,
                tar::Event::Data { offset, bytes } => Event::Data { offset, bytes },
                tar::Event::EndOfEntry => Event::End,
            }));
        }
        Ok(None)
    }

    /// Ends the archive; the members that it has. Errors: it is incomplete, or has no file system. The marker may be
    /// missing: its name has changed over time, and nobody looks for it.
    pub fn finish(mut self) -> Result<Vec<Member>, TurboError> {
        self.parser.finish()?;
        match self.seen.iter().any(|member| matches!(member, Member::Ext4 | Member::Erofs)) {
            true => Ok(self.seen),
            false => Err(TurboError::Empty),
        }
    }

    fn member<'a>(&mut self, entry: Entry) -> Result<Event<'a>, TurboError> {
        let (Some(member), Body::Regular { size_bytes, extents: None }) =
            (Member::of(&entry.path), entry.body)
        else {
            return Err(TurboError::Member { name: entry.path });
        };
        if self.seen.contains(&member) {
            return Err(TurboError::Twice { name: member.name() });
        }
        if member == Member::Marker && size_bytes > 0 {
            return Err(TurboError::Marker { size_bytes });
        }
        self.seen.push(member);
        Ok(Event::Member { member, size_bytes })
    }
}

/// Writes an archive with these members, in the order of [`Member::ALL`], and the marker.
///
/// Errors: those of `out`, packed as [`Error::into_io`] does it; reading a member fails.
pub fn write(out: impl Write, members: &[(Member, &dyn ReadAt)]) -> Result<(), Error> {
    let mut writer = Writer::new(out, Options::default());
    for member in Member::ALL {
        let contents: &dyn ReadAt = match members.iter().find(|(given, _)| *given == member) {
            Some((_, contents)) => *contents,
            None if member == Member::Marker => &[].as_slice(),
            None => continue,
        };
        let size_bytes = contents.size_bytes();
        let failed = |error: WriterError| match error.into_sink_error() {
            Ok(error) => Error::disk(error),
            Err(error) => error.into(),
        };
        let entry = Entry {
            path: member.name().into(),
            attributes: Attributes { mode: 0o644, ..Attributes::default() },
            xattrs: Vec::new(),
            body: Body::Regular { size_bytes, extents: None },
        };
        writer.entry(&entry).map_err(failed)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        while at < size_bytes {
            let len = usize::try_from(size_bytes.saturating_sub(at)).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            contents.read_exact_at(at, bytes).map_err(Error::disk)?;
            writer.data(at, bytes).map_err(failed)?;
            at = at.saturating_add(len as u64);
        }
        writer.end_entry().map_err(failed)?;
    }
    writer.finish().map_err(|error| match error.into_sink_error() {
        Ok(error) => Error::disk(error),
        Err(error) => error.into(),
    })?;
    Ok(())
}

/// Fuzz entry: reads `data` as an archive in pieces of different sizes, and writes what is in it again.
///
/// # Panics
///
/// When the results differ.
pub fn fuzz(data: &[u8]) {
    let whole = members(data, usize::MAX);
    for piece in [1 + data.len() % 700, 512] {
        assert_eq!(members(data, piece), whole, "in pieces of {piece} bytes");
    }
    let Ok(found) = whole else { return };
    let given: Vec<(Member, &dyn ReadAt)> =
        found.iter().map(|(member, bytes)| (*member, bytes as &dyn ReadAt)).collect();
    let mut again = Vec::new();
    write(&mut again, &given).expect("memory takes everything");
    let mut read = members(&again, usize::MAX).expect("what is written is read");
    let mut found = found.clone();
    if !found.iter().any(|(member, _)| *member == Member::Marker) {
        found.push((Member::Marker, Vec::new()));
    }
    found.sort();
    read.sort();
    assert_eq!(read, found, "written and read again");
}

/// Every member with its contents, or the reason why the archive is refused.
fn members(archive: &[u8], piece: usize) -> Result<Vec<(Member, Vec<u8>)>, &'static str> {
    let mut found: Vec<(Member, Vec<u8>)> = Vec::new();
    let mut reader = Reader::new();
    let mut read = || {
        for mut input in archive.chunks(piece) {
            while let Some(event) = reader.next(&mut input)? {
                match event {
                    Event::Member { member, .. } => found.push((member, Vec::new())),
                    Event::Data { offset, bytes } => {
                        let (_, contents) = found.last_mut().expect("data follows a member");
                        assert_eq!(offset, contents.len() as u64, "data comes in order");
                        contents.extend_from_slice(bytes);
                    }
                    Event::End => {}
                }
            }
        }
        Ok::<(), TurboError>(())
    };
    read().and_then(|()| reader.finish()).map_err(|error| error.reason())?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = ::tar::Header::new_ustar();
            let place = header.as_old_mut();
            place.name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(::tar::EntryType::new(*kind));
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            if matches!(kind, b'1' | b'2') {
                header.set_link_name("erofs.fs.meta").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn an_archive_of_a_publisher_is_read_and_written_again_byte_for_byte() {
        let index = include_bytes!("../../tests/fixtures/gzindex/base.gzip.meta").as_slice();
        let published = archive(&[
            ("erofs.fs.meta", b'0', b"metadata"),
            (".turbo.ociv1", b'0', b""),
            ("gzip.meta", b'0', index),
        ]);
        let found = members(&published, 100).unwrap();
        assert_eq!(
            found,
            [
                (Member::Erofs, b"metadata".to_vec()),
                (Member::Marker, Vec::new()),
                (Member::GzipIndex, index.to_vec()),
            ]
        );
        let mut again = Vec::new();
        let metadata = b"metadata".as_slice();
        write(&mut again, &[(Member::GzipIndex, &index), (Member::Erofs, &metadata)]).unwrap();
        // Only name, mode, size and type are set, so another writer's archive differs in spelling alone.
        assert_eq!(members(&again, 512).unwrap(), found);
        let names = |archive: &[u8]| {
            let mut read = ::tar::Archive::new(archive);
            let entries = read.entries().unwrap().map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let owner = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
                (entry.path().unwrap().into_owned(), header.mode().unwrap(), owner)
            });
            entries.collect::<Vec<_>>()
        };
        assert_eq!(names(&again), names(&published));
        fuzz(&published);
        fuzz(&again);
    }

    #[test]
    fn nothing_but_members_is_taken_out_of_an_archive() {
        let good = ("erofs.fs.meta", b'0', b"x".as_slice());
        for (entries, want) in [
            (vec![good], Ok(1)),
            (vec![("./", b'5', b"".as_slice()), ("./ext4.fs.meta", b'0', b"x"), good], Ok(2)),
            (vec![good, ("../erofs.fs.meta", b'0', b"x")], Err("turbo.member")),
            (vec![good, ("/gzip.meta", b'0', b"x")], Err("turbo.member")),
            (vec![good, ("a/gzip.meta", b'0', b"x")], Err("turbo.member")),
            (vec![good, ("././gzip.meta", b'0', b"x")], Err("turbo.member")),
            (vec![good, ("gzip.meta", b'2', b"")], Err("turbo.member")),
            (vec![good, ("gzip.meta", b'1', b"")], Err("turbo.member")),
            (vec![good, ("gzip.meta", b'6', b"")], Err("turbo.member")),
            (vec![good, ("overlaybd.commit", b'0', b"x")], Err("turbo.member")),
            (vec![good, good], Err("turbo.member")),
            (vec![good, ("./erofs.fs.meta", b'0', b"x")], Err("turbo.member")),
            (vec![good, (".turbo.ociv1", b'0', b"x")], Err("turbo.marker")),
            (vec![("gzip.meta", b'0', b"x")], Err("turbo.empty")),
            (vec![], Err("turbo.empty")),
        ] {
            let archive = archive(&entries);
            let found = members(&archive, 512).map(|found| found.len());
            assert_eq!(found, want, "{entries:?}");
            fuzz(&archive);
        }
        assert_eq!(members(&archive(&[good])[..512], 512), Err("tar.truncated.data"));
    }

    #[test]
    fn a_disk_that_is_full_is_reported_as_what_it_is() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = write(Full, &[]).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "disk.io"));
    }
}
