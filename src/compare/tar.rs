//! A layer as a tar archive, compressed or not.

use super::output::Output;
use crate::{
    codec::encode::Compression,
    error::{Error, Result},
    format::tar::writer::{self, Writer, WriterError},
    pipeline::{
        Plan,
        encode::{self, Deliver, Facts, Feed},
    },
    tree::{Body, Entry},
};

/// Settings for writing a tar layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Compression of the archive.
    pub compression: Compression,
    /// Times with their nanoseconds instead of whole seconds.
    pub nanoseconds: bool,
}

impl Default for Options {
    /// Gzip, and times in whole seconds.
    fn default() -> Self {
        Self { compression: Compression::GZIP, nanoseconds: false }
    }
}

/// Runs `changes`, and delivers the archive of the entries that it writes to its output.
///
/// Errors: those of `changes`, of `deliver` and of the limits; an entry that no archive can hold; `Cancelled`.
pub fn write<T>(
    plan: Plan<'_>,
    options: Options,
    deliver: Deliver<'_>,
    changes: impl FnOnce(&mut dyn Output) -> Result<T>,
) -> Result<(T, Facts)> {
    encode::run(plan, options.compression, deliver, |feed| {
        let options = writer::Options { nanoseconds: options.nanoseconds };
        let mut archive = Archive(Writer::new(feed, options));
        let output = changes(&mut archive)?;
        archive.0.finish().map_err(writer_error)?;
        Ok(output)
    })
}

struct Archive<'a>(Writer<&'a mut dyn Feed>);

impl Output for Archive<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        if let Body::Regular { size_bytes, .. } = entry.body {
            // A sparse file of exabytes would be written as zeros until the limit is met.
            self.0.sink().announce(size_bytes)?;
        }
        self.0.entry(entry).map_err(writer_error)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.data(offset, bytes).map_err(writer_error)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.0.end_entry().map_err(writer_error)
    }
}

/// The error of the sink that `error` carries, or else `error` itself.
pub(super) fn writer_error(error: WriterError) -> Error {
    match error.into_sink_error() {
        Ok(error) => Error::disk(error),
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Cancel, Progress, Work},
        digest::Digest,
        error::Kind,
        format::tar::{Event, Parser},
        limits::Limits,
        pipeline::Resources,
        tree::{Attributes, Extent},
    };

    fn file(path: &str, size_bytes: u64, extents: Option<Vec<Extent>>) -> Entry {
        let body = Body::Regular { size_bytes, extents };
        Entry { path: path.into(), attributes: Attributes::default(), xattrs: Vec::new(), body }
    }

    fn archive(
        options: Options,
        changes: impl FnOnce(&mut dyn Output) -> Result<()>,
    ) -> Result<(Vec<u8>, Facts)> {
        let mut blob = Vec::new();
        let mut deliver = |piece: &[u8]| {
            blob.extend_from_slice(piece);
            Ok(())
        };
        let (resources, cancel) = (Resources::new(Limits::default(), 2), Cancel::new());
        let lease = resources.budget.lease(&cancel).unwrap();
        let work = Work { cancel: &cancel, progress: &Progress::default() };
        let plan = Plan { resources: &resources, lease: &lease, work };
        let ((), facts) = write(plan, options, &mut deliver, changes)?;
        Ok((blob, facts))
    }

    #[test]
    fn an_archive_without_changes_is_valid_and_empty() {
        let plain = Options { compression: Compression::PLAIN, nanoseconds: false };
        let (blob, facts) = archive(plain, |_| Ok(())).unwrap();
        assert_eq!(blob, [0; 1024]);
        assert_eq!((&facts.blob, &facts.diff_id), (&Digest::sha256(&blob), &Digest::sha256(&blob)));
        let (blob, facts) = archive(Options::default(), |_| Ok(())).unwrap();
        assert_eq!((facts.diff_id, facts.blob), (Digest::sha256(&[0; 1024]), Digest::sha256(&blob)));
    }

    #[test]
    fn entries_and_their_data_end_up_in_the_archive() {
        let plain = Options { compression: Compression::PLAIN, nanoseconds: false };
        let (blob, _) = archive(plain, |output| {
            output.entry(&file("a", 3, None))?;
            output.data(0, b"abc")?;
            output.end_entry()?;
            output.entry(&file("sparse", 3 << 20, Some(vec![Extent { offset: 2 << 20, len: 1 }])))?;
            output.data(2 << 20, b"x")?;
            output.end_entry()
        })
        .unwrap();
        let (mut parser, mut input, mut data) = (Parser::new(), &blob[..], Vec::new());
        while let Some(event) = parser.next(&mut input).unwrap() {
            if let Event::Data { bytes, .. } = event {
                data.extend_from_slice(bytes);
            }
        }
        parser.finish().unwrap();
        let mut want = vec![0; 3 + (3 << 20)];
        want[..3].copy_from_slice(b"abc");
        want[3 + (2 << 20)] = b'x';
        assert!(data == want);
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused_before_a_zero_of_it_is_written() {
        let huge = file("huge", 1 << 62, Some(Vec::new()));
        let error = archive(Options::default(), |output| output.entry(&huge)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
    }

    #[test]
    fn errors_keep_their_class_through_the_archive() {
        let error = archive(Options::default(), |output| output.entry(&file("a/", 0, None))).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "tar.name.slash"));
        let error = archive(Options::default(), |output| {
            output.entry(&file("a", 1 << 30, None))?;
            output.data(1, b"x")
        })
        .unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "tar.write.place"));
    }
}
