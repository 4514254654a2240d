//! Files of layers: whatever is around the layer, it is read as if it stood alone.

use std::{io, ops::Range};

use crate::{
    error::{Error, Kind, Result},
    format::{
        ReadAt, gzindex,
        tar::wrapper,
        zfile::{self, header::Header},
    },
};

/// A part of a file, from one byte to another.
#[derive(Debug)]
pub struct Part<R> {
    source: R,
    range: Range<u64>,
}

impl<R: ReadAt> ReadAt for Part<R> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = self.range.start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(buf.len() as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.range.end => self.source.read_exact_at(start, buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The contents of a file.
#[derive(Debug)]
pub enum Blob<R> {
    /// They stand as they are, in the whole file or in a tar wrapper.
    Plain(Part<R>),
    /// They are compressed.
    Zfile(Box<zfile::reader::Reader<Part<R>>>),
    /// They are a gzip stream, read through an index.
    Gzip(Box<gzindex::Reader<R, R>>),
}

impl<R: ReadAt> Blob<R> {
    /// Opens the file of a layer: strips the tar wrapper if there is one, and decompresses a ZFile if that is what is
    /// there.
    ///
    /// Errors: those of both formats.
    pub fn layer(source: R) -> Result<Self> {
        let range = match wrapper::find(&source)? {
            Some(payload) => payload.range,
            None => 0..source.size_bytes(),
        };
        Self::inside(Part { source, range })
    }

    /// Opens the file that the data of a turboOCI layer is in: a tar archive, which may be in a ZFile.
    ///
    /// Errors: those of ZFiles.
    pub fn target(source: R) -> Result<Self> {
        let range = 0..source.size_bytes();
        Self::inside(Part { source, range })
    }

    /// Opens the gzip blob that the data of a turboOCI layer is in, with its index.
    ///
    /// Errors: those of the index and of the blob.
    pub fn gzip_target(source: R, index: R) -> Result<Self> {
        Ok(Self::Gzip(Box::new(gzindex::Reader::open(source, index)?)))
    }

    fn inside(part: Part<R>) -> Result<Self> {
        let mut magic = [0; Header::MAGIC.len()];
        let is_zfile = part.size_bytes() >= magic.len() as u64 && {
            part.read_exact_at(0, &mut magic).map_err(Error::disk)?;
            magic == Header::MAGIC
        };
        Ok(match is_zfile {
            true => Self::Zfile(Box::new(zfile::reader::Reader::open(part)?)),
            false => Self::Plain(part),
        })
    }

    /// Where the contents of the file are in it: behind the headers of the tar wrapper.
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::Plain(part) => part.range.clone(),
            Self::Zfile(reader) => reader.source().range.clone(),
            Self::Gzip(reader) => 0..reader.index().header().blob_bytes,
        }
    }

    /// Makes it a part of a device that exists already: `name` goes before the messages, and a file that breaks a rule
    /// is damaged, since it was sound when it got there.
    pub fn named(self, name: String) -> Named<R> {
        Named { blob: self, name }
    }
}

impl<R: ReadAt> ReadAt for Blob<R> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Plain(part) => part.read_exact_at(offset, buf),
            Self::Zfile(reader) => reader.read_exact_at(offset, buf),
            Self::Gzip(reader) => reader.read_exact_at(offset, buf),
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Plain(part) => part.size_bytes(),
            Self::Zfile(reader) => reader.size_bytes(),
            Self::Gzip(reader) => reader.size_bytes(),
        }
    }
}

/// A file of a device, with the name that messages give it.
#[derive(Debug)]
pub struct Named<R> {
    blob: Blob<R>,
    name: String,
}

impl<R: ReadAt> ReadAt for Named<R> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.blob.read_exact_at(offset, buf).map_err(|error| match error.kind() {
            // The caller asks what is behind the end.
            io::ErrorKind::UnexpectedEof => error,
            _ => damaged(Error::disk(error), &self.name).into_io(),
        })
    }

    fn size_bytes(&self) -> u64 {
        self.blob.size_bytes()
    }
}

/// Adds the name of a file to an error. A file that breaks a rule is damaged: the caller did not bring it.
pub fn damaged(error: Error, name: &str) -> Error {
    let error = match error.kind() {
        Kind::Malformed => error.with_kind(Kind::DataLoss),
        _ => error,
    };
    error.context(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::zfile::writer::{Encoder, Layout, Options};

    const LAYER: &[u8] = b"LSMT and what follows";

    fn zfile(contents: &[u8]) -> Vec<u8> {
        let options = Options::default();
        let (mut out, mut lengths) = (vec![0; options.bound(contents.len())], Vec::new());
        let stored = Encoder::new(options).unwrap().encode(contents, &mut out, &mut lengths).unwrap();
        let mut layout = Layout::new(options);
        layout.add(&lengths, contents.len() as u64).unwrap();
        let ends = layout.finish();
        [&ends.header[..], &out[..stored], &ends.tail].concat()
    }

    fn wrapped(payload: &[u8]) -> Vec<u8> {
        let around = wrapper::around(payload.len() as u64).unwrap();
        [&around.before[..], payload, &vec![0; usize::try_from(around.zeros_after).unwrap()]].concat()
    }

    fn all(blob: &impl ReadAt) -> Vec<u8> {
        let mut contents = vec![0; usize::try_from(blob.size_bytes()).unwrap()];
        blob.read_exact_at(0, &mut contents).unwrap();
        contents
    }

    #[test]
    fn a_layer_is_read_the_same_in_whatever_is_around_it() {
        let (compressed, before) = (zfile(LAYER), 1536);
        for (file, start) in [
            (LAYER.to_vec(), 0),
            (compressed.clone(), 0),
            (wrapped(LAYER), before),
            (wrapped(&compressed), before),
        ] {
            let blob = Blob::layer(&file[..]).unwrap();
            assert_eq!(all(&blob), LAYER);
            assert_eq!(blob.range().start, start);
            let end = blob.size_bytes();
            assert_eq!(blob.read_exact_at(end, &mut [0]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        for short in [&b""[..], b"Z", &zfile(LAYER)[..23]] {
            assert_eq!(all(&Blob::layer(short).unwrap()), short);
        }
    }

    #[test]
    fn a_target_is_the_archive_itself() {
        let archive = wrapped(LAYER);
        assert_eq!(all(&Blob::target(&archive[..]).unwrap()), archive);
        assert_eq!(all(&Blob::target(&zfile(&archive)[..]).unwrap()), archive);
    }

    #[test]
    fn a_file_of_a_device_that_breaks_a_rule_is_damaged() {
        let mut file = zfile(LAYER);
        file[515] ^= 1;
        let layer = Blob::layer(&file[..]).unwrap();
        let error = Error::disk(layer.read_exact_at(0, &mut [0]).unwrap_err());
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "zfile.block.checksum"));
        let lower = layer.named("lower 1, /a".to_owned());
        let error = Error::disk(lower.read_exact_at(0, &mut [0]).unwrap_err());
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "zfile.block.checksum"));
        assert!(error.to_string().starts_with("lower 1, /a: block 0 at byte 512: "), "{error}");
        assert_eq!(lower.read_exact_at(99, &mut [0]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
