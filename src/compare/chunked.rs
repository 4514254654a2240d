//! A layer as zstd:chunked of the containers tools: the archive that a plain layer would be, in frames, with a table of
//! contents and what it takes to make the archive again from its files.
//!
//! Every chunk of a file's data has a frame of its own; headers and padding are in others. So Podman and its like fetch
//! the chunks that they lack, and others decode frames on many processors.

use std::io::{self, Write};

use super::{
    indexed::Indexed,
    output::Output,
    tar::{self, writer_error},
};
use crate::{
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Result},
    format::{
        stargz::chunked::{ChunkedToc, Cut, Cutter, End, Frame, Piece, TarSplit, end},
        tar::writer::{self, Writer},
    },
    pipeline::{
        Plan,
        encode::Deliver,
        members::{self, Delivering, Ending, Members},
    },
    tree::{Body, Entry},
};

/// Like [`tar::write`], with a table of contents behind the archive.
///
/// Errors: also when a name is not UTF-8, or the table becomes larger than readers take.
pub(super) fn write<T>(
    plan: Plan<'_>,
    options: tar::Options,
    deliver: Deliver<'_>,
    changes: impl FnOnce(&mut dyn Output) -> Result<T>,
) -> Result<Indexed<T>> {
    let tar::Options { compression, nanoseconds } = options;
    let mut annotations = None;
    let ((output, ..), facts) = members::run(
        plan,
        compression,
        deliver,
        |members| {
            let frames = Frames { members, split: TarSplit::new(compression), file: None, space: Vec::new() };
            let archive = Writer::new(frames, writer::Options { nanoseconds });
            let mut archive = Archive { archive, toc: ChunkedToc::new(nanoseconds), name: String::new() };
            let output = changes(&mut archive)?;
            let Archive { archive, toc, .. } = archive;
            let Frames { split, .. } = archive.finish().map_err(writer_error)?;
            Ok((output, Some((toc, split))))
        },
        |(_, written), Delivering { members, blob_bytes }| {
            let Some((toc, split)) = written.take() else { return Ok(Vec::new()) };
            let frame = |at: usize| {
                let member = members.get(at)?;
                let end = members.get(at + 1).map_or(blob_bytes, |next| next.offset);
                Some(Frame { offset: member.offset, end, digest: member.digest.as_ref()? })
            };
            let split = split.finish()?;
            let json = toc.finish(frame, &Digest::sha256(&split.packed))?;
            let packed = compression.whole(&json)?;
            let End { parts, annotations: own } = end(&json, packed, split, blob_bytes);
            annotations = Some(own);
            Ok(parts.into_iter().map(Ending::Raw).collect())
        },
    )?;
    Ok(Indexed { output, facts, annotations: annotations.unwrap_or_default() })
}

/// The archive, and its table.
struct Archive<'a> {
    archive: Writer<Frames<'a>>,
    toc: ChunkedToc,
    /// Name of the file whose data is being written, as the archive spells it.
    name: String,
}

impl Output for Archive<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.name = self.toc.entry(entry)?;
        if let Body::Regular { size_bytes, .. } = entry.body {
            self.archive.sink().members.announce(size_bytes)?;
        }
        self.archive.entry(entry).map_err(writer_error)?;
        let frames = self.archive.sink_mut();
        frames.split.end_headers()?;
        match entry.body {
            Body::Regular { size_bytes, .. } => frames.begin(size_bytes),
            _ => frames.split.end_entry(&self.name, 0)?,
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.archive.data(offset, bytes).map_err(writer_error)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.archive.end_entry().map_err(writer_error)?;
        let frames = self.archive.sink_mut();
        if let Some(File { size_bytes, pieces, hasher, .. }) = frames.file.take() {
            frames.split.end_entry(&self.name, size_bytes)?;
            self.toc.data(&self.name, &pieces, hasher.map(Hasher::finish))?;
        }
        Ok(())
    }
}

/// Puts each chunk of a file into a frame of its own, and what is between files into others.
struct Frames<'a> {
    members: &'a mut dyn Members,
    split: TarSplit,
    file: Option<File>,
    /// Buffer of the last file's chunks, for those of the next one.
    space: Vec<u8>,
}

/// A file whose data is being written, holes included.
struct File {
    size_bytes: u64,
    written: u64,
    /// `None` once all data has come.
    cutter: Option<Cutter>,
    pieces: Vec<Piece>,
    /// Bytes of them.
    cut_bytes: u64,
    /// Digest of a file of several pieces.
    hasher: Option<Hasher>,
}

impl Frames<'_> {
    fn begin(&mut self, size_bytes: u64) {
        let cutter = Some(Cutter::new(size_bytes, std::mem::take(&mut self.space)));
        let pieces = Vec::new();
        self.file = Some(File { size_bytes, written: 0, cutter, pieces, cut_bytes: 0, hasher: None });
    }

    /// Writes as much as belongs to the file, or else to the headers; how much.
    fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        let Some(file) = self.file.as_mut().filter(|file| file.written < file.size_bytes) else {
            // Headers, and what fills the last block of a file.
            self.split.raw(bytes);
            self.members.write_all(bytes).map_err(Error::disk)?;
            return Ok(bytes.len());
        };
        let left = usize::try_from(file.size_bytes - file.written).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
        self.split.data(bytes);
        file.written += bytes.len() as u64;
        let Some(mut cutter) = file.cutter.take() else { return Ok(bytes.len()) };
        let is_whole = file.written == file.size_bytes;
        let mut chunk = |cut: Cut<'_>| file.chunk(self.members, cut);
        cutter.push(bytes, &mut chunk)?;
        if is_whole {
            self.space = cutter.end(&mut chunk)?;
            self.members.begin(0)?;
        } else {
            file.cutter = Some(cutter);
        }
        Ok(bytes.len())
    }
}

impl File {
    /// Writes a frame with a chunk.
    fn chunk(&mut self, members: &mut dyn Members, cut: Cut<'_>) -> Result<()> {
        let Cut { bytes, is_hole } = cut;
        let (offset, size_bytes) = (self.cut_bytes, bytes.len() as u64);
        let member = members.begin(bytes.len())?;
        members.write_all(bytes).map_err(Error::disk)?;
        self.pieces.push(Piece { member, offset, size_bytes, is_hole });
        self.cut_bytes += size_bytes;
        // A file of one piece has the piece's digest.
        if size_bytes < self.size_bytes {
            self.hasher.get_or_insert_with(|| Hasher::new(Algorithm::Sha256)).update(bytes);
        }
        Ok(())
    }
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map_err(Error::into_io)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        call::{Cancel, Progress, Work},
        codec::encode::Compression,
        error::Kind,
        format::stargz::{Declared, Layout, Toc, verify_split},
        limits::Limits,
        pipeline::{AheadOptions, Pipeline, Resources, Source, buffer::Chunk, encode::Facts, stage::Stage},
        tree::{Attributes, Extent},
    };

    fn file(path: &str, size_bytes: u64, extents: Option<Vec<Extent>>) -> Entry {
        let body = Body::Regular { size_bytes, extents };
        Entry { path: path.into(), attributes: Attributes::default(), xattrs: Vec::new(), body }
    }

    /// Runs `work` with `helpers` that decode ahead whatever the size of a layer.
    fn with_plan<T>(helpers: usize, work: impl FnOnce(Plan<'_>) -> T) -> T {
        let ahead =
            AheadOptions { from_bytes: Some(0), members_from_bytes: 0, distance: 128 << 10, yields: false };
        let (resources, cancel) = (Resources::with_ahead(Limits::default(), helpers, ahead), Cancel::new());
        let lease = resources.budget.lease(&cancel).unwrap();
        let progress = Progress::default();
        work(Plan {
            resources: &resources,
            lease: &lease,
            work: Work { cancel: &cancel, progress: &progress },
        })
    }

    type Changes<'a> = &'a dyn Fn(&mut dyn Output) -> Result<()>;

    fn chunked(helpers: usize, changes: Changes<'_>) -> Result<(Vec<u8>, Facts)> {
        let mut blob = Vec::new();
        let mut deliver = |piece: &[u8]| {
            blob.extend_from_slice(piece);
            Ok(())
        };
        let options = tar::Options { compression: Compression::ZSTD, nanoseconds: false };
        let written = with_plan(helpers, |plan| write(plan, options, &mut deliver, changes))?;
        Ok((blob, written.facts))
    }

    fn plain(changes: Changes<'_>) -> Vec<u8> {
        let mut archive = Vec::new();
        let mut deliver = |piece: &[u8]| {
            archive.extend_from_slice(piece);
            Ok(())
        };
        let options = tar::Options { compression: Compression::PLAIN, nanoseconds: false };
        with_plan(0, |plan| tar::write(plan, options, &mut deliver, changes)).unwrap();
        archive
    }

    /// Text and noise, and a sparse file.
    fn changes(output: &mut dyn Output) -> Result<()> {
        let mut state = 1_u32;
        let mut byte = move |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Half of the bits of noise.
            state.to_le_bytes()[3] & 0x5a
        };
        for number in 0..60_u32 {
            let data: Vec<u8> = (0..number * 5000).map(&mut byte).collect();
            output.entry(&file(&format!("file-{number}"), data.len() as u64, None))?;
            data.chunks(1 + 777 * number as usize)
                .try_fold(0, |at, piece| output.data(at, piece).map(|()| at + piece.len() as u64))?;
            output.end_entry()?;
        }
        output.entry(&file("sparse", 9 << 20, Some(vec![Extent { offset: 3 << 20, len: 1 }])))?;
        output.data(3 << 20, b"x")?;
        output.end_entry()
    }

    struct Collect(Vec<u8>);

    impl Stage for Collect {
        type Output = Vec<u8>;

        /// Slower than those who decode ahead.
        fn push(&mut self, chunk: Chunk) -> Result<()> {
            std::thread::sleep(Duration::from_millis(5));
            self.0.extend_from_slice(&chunk);
            Ok(())
        }

        fn finish(self) -> Result<Vec<u8>> {
            Ok(self.0)
        }
    }

    #[test]
    fn frames_of_such_a_layer_are_decoded_ahead_and_give_the_plain_archive() {
        let want = plain(&changes);
        let (blob, facts) = chunked(0, &changes).unwrap();
        assert_eq!((facts.diff_id, facts.stream_bytes), (Digest::sha256(&want), want.len() as u64));
        for helpers in [1, 4] {
            assert!(chunked(helpers, &changes).unwrap().0 == blob, "{helpers} helpers");
        }
        let ran = with_plan(4, |plan| {
            let (size_bytes, digest) = (Some(blob.len() as u64), Some(facts.blob));
            let source = Source { reader: &mut &blob[..], size_bytes, digest };
            Pipeline::new(source, plan).run(Collect(Vec::new()))
        });
        let ran = ran.unwrap();
        assert!(ran.output == want);
        let ahead = ran.facts.ahead;
        assert!(ahead.used > 0 && ahead.missed == 0, "{ahead:?} of {} bytes", blob.len());
    }

    #[test]
    fn a_link_to_a_link_is_checked_like_others() {
        let link = |path: &str, target: &str| Entry {
            body: Body::HardLink { target: target.into() },
            ..file(path, 0, None)
        };
        let links = [link("b", "a"), link("c", "b"), link("d", "a")];
        let changes = |output: &mut dyn Output| {
            output.entry(&file("a", 0, None))?;
            output.end_entry()?;
            links.iter().try_for_each(|link| output.entry(link))
        };
        let (blob, _) = chunked(0, &changes).unwrap();
        let (blob, declared) = (&blob[..], Declared::default());
        let layout = Layout::find(&blob, &declared).unwrap().unwrap();
        let json = layout.read_toc(&blob, &declared).unwrap().unwrap();
        let toc = Toc::read(&json, layout.payload_end).unwrap();
        assert!(verify_split(&blob, &layout, &toc, &mut |_| Ok(())).unwrap());
    }

    #[test]
    fn errors_keep_their_class() {
        let huge = file("huge", 1 << 62, Some(Vec::new()));
        let error = chunked(0, &|output| output.entry(&huge)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
        let error = chunked(0, &|output| output.entry(&file("a/", 0, None))).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "tar.name.slash"));
        let mut odd = file("a", 0, None);
        odd.path = b"caf\xe9".to_vec();
        let error = chunked(2, &|output| output.entry(&odd)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "stargz.write.name"));
    }
}
