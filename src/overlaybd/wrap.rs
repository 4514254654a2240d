//! Writes a layer with what goes around it: a ZFile, and a tar wrapper.

use std::{
    io::{self, Write},
    sync::Arc,
};

use crate::{
    error::{Error, Kind, Result},
    format::{Sink, tar::wrapper, zfile::writer::Options},
    pipeline::{helpers::Helpers, zfile},
};

/// What goes around a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrapping {
    /// Compression in a ZFile.
    pub zfile: Option<Options>,
    /// A tar archive as the outermost.
    pub tar: bool,
}

/// Sizes of a file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of what `produce` wrote, in bytes.
    pub contents_bytes: u64,
    /// Size of the file in bytes.
    pub file_bytes: u64,
}

/// Runs `produce`, and writes what it writes to `sink`, which is empty. The first bytes of the file are written last, so
/// that an incomplete file with a wrapping is none.
///
/// Errors: those of `produce` and of the sink; contents that the ZFile cannot hold.
pub fn write<S: Sink, T>(
    helpers: &Arc<Helpers>,
    wrapping: Wrapping,
    sink: &mut S,
    produce: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<(T, Written)> {
    if !wrapping.tar {
        return payload(helpers, wrapping.zfile, sink, produce);
    }
    // The headers have the same length for every payload.
    let mut behind = Behind { sink, start: wrapper::HEADERS_LEN };
    let (output, written) = payload(helpers, wrapping.zfile, &mut behind, produce)?;
    let around = wrapper::around(written.file_bytes).ok_or_else(|| {
        let message = format!("{} bytes are more than a file can have", written.file_bytes);
        Error::new(Kind::Exhausted, "overlaybd.wrapper.size", message)
    })?;
    let file_bytes = wrapper::HEADERS_LEN + written.file_bytes + around.zeros_after;
    let finished = sink.set_len(file_bytes).and_then(|()| sink.write_at(0, &around.before));
    finished.map_err(Error::disk)?;
    Ok((output, Written { file_bytes, ..written }))
}

fn payload<S: Sink, T>(
    helpers: &Arc<Helpers>,
    options: Option<Options>,
    sink: &mut S,
    produce: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<(T, Written)> {
    match options {
        Some(options) => {
            let (output, summary) = zfile::write(helpers, options, sink, produce)?;
            let zfile::Summary { contents_bytes, file_bytes } = summary;
            Ok((output, Written { contents_bytes, file_bytes }))
        }
        None => {
            let mut plain = Plain { sink, end: 0 };
            let output = produce(&mut plain)?;
            let end = plain.end;
            sink.set_len(end).map_err(Error::disk)?;
            Ok((output, Written { contents_bytes: end, file_bytes: end }))
        }
    }
}

/// A sink from byte `start` on.
struct Behind<'a, S> {
    sink: &'a mut S,
    start: u64,
}

impl<S: Sink> Sink for Behind<'_, S> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_at(self.start + offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.sink.discard(self.start + offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.sink.set_len(self.start + len)
    }
}

/// Writes a sink from its start to its end.
struct Plain<'a, S> {
    sink: &'a mut S,
    end: u64,
}

impl<S: Sink> Write for Plain<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write_at(self.end, bytes)?;
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::ReadAt, overlaybd::blob::Blob};

    #[test]
    fn what_was_written_is_read_through_whatever_is_around_it() {
        let contents: Vec<u8> = (0..700_000).map(|at| u8::try_from(at / 100 % 250).unwrap()).collect();
        let helpers = Helpers::new(1);
        for zfile in [None, Some(Options::default())] {
            for tar in [false, true] {
                let mut file = Vec::new();
                let ((), written) = write(&helpers, Wrapping { zfile, tar }, &mut file, |out| {
                    contents.chunks(99_999).try_for_each(|piece| out.write_all(piece)).map_err(Error::disk)
                })
                .unwrap();
                assert_eq!((written.contents_bytes, written.file_bytes), (700_000, file.len() as u64));
                let blob = Blob::layer(&file[..]).unwrap();
                let mut found = vec![0; 700_000];
                blob.read_exact_at(0, &mut found).unwrap();
                assert!(found == contents && blob.size_bytes() == 700_000);
                assert_eq!(blob.range().start, if tar { 1536 } else { 0 });
                assert_eq!(matches!(blob, Blob::Zfile(_)), zfile.is_some());
            }
        }
    }

    #[test]
    fn a_failure_leaves_nothing_that_looks_whole() {
        let mut file = Vec::new();
        let wrapping = Wrapping { zfile: Some(Options::default()), tar: true };
        let failed = write(&Helpers::new(0), wrapping, &mut file, |out| {
            out.write_all(&[7; 600_000]).map_err(Error::disk)?;
            Err::<(), _>(Error::new(Kind::Malformed, "test.refused", "refused"))
        });
        assert_eq!(failed.unwrap_err().reason(), "test.refused");
        assert!(file.iter().take(2048).all(|byte| *byte == 0));
    }
}
