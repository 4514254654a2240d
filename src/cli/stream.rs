//! `plywood stream`: gives the tar of a layer, from standard input to standard output, as containerd runs a stream
//! processor.
//!
//! Descriptor 3, on which a processor gets its payload, is left alone: no type here has one.
//!
//! Source: containerd `docs/stream_processors.md`.

use std::io::{self, BufReader, Read, Write as _};

use super::output;
use crate::{
    codec::foreign::Decoding,
    error::{Error, Kind, Result},
    format::erofs::tar_index::{self, Archive, TarIndexError},
    kind::{
        Container,
        streamed::{STREAMED, StreamCoding, Streamed},
    },
    limits::Limits,
};

/// Bytes read and written at a time: what a pipe holds after a differ has enlarged it.
const BUFFER_BYTES: usize = 1 << 20;

/// Arguments of `plywood stream`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  As containerd runs it:
    export STREAM_PROCESSOR_MEDIATYPE=application/vnd.oci.image.layer.v1.tar+xz
    plywood stream < layer.tar.xz > layer.tar
  The configuration that makes containerd run it:
    plywood config containerd")]
pub struct Arguments {
    /// Media type of the input. An unknown one is an error
    #[arg(long, value_name = "TYPE", env = "STREAM_PROCESSOR_MEDIATYPE", default_value = "")]
    pub media_type: String,
}

/// Decodes standard input. Errors: an unknown type; an input that is damaged, cut off or without a tar; an output that
/// nobody reads.
pub fn run(arguments: &Arguments) -> Result<()> {
    let media_type = &arguments.media_type;
    let row = Streamed::of(media_type).ok_or_else(|| {
        let known: Vec<_> = STREAMED.iter().map(|row| row.media_type).collect();
        let message = match media_type.as_str() {
            "" => "STREAM_PROCESSOR_MEDIATYPE is not set".to_owned(),
            unknown => format!("{unknown:?} is not one of {}", known.join(", ")),
        };
        Error::new(Kind::Malformed, "stream.media-type", message)
    })?;
    decode(row).map_err(|error| error.context(format!("stream {media_type}")))
}

fn decode(row: &Streamed) -> Result<()> {
    let window_bytes = Limits::default().zstd_window_bytes;
    let input = BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock());
    let mut reader: Box<dyn Read> = match row.coding {
        StreamCoding::Common(coding) => Box::new(Decoding::new(input, coding.decoder(window_bytes)?)),
        StreamCoding::Foreign(coding) => coding.reader(input, window_bytes),
    };
    let mut archive = match row.container {
        Container::Erofs => Some(behind_index(&mut reader)?),
        _ => None,
    };
    let mut output = io::stdout().lock();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let filled = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unread(error)),
        };
        let bytes = buffer.get(..filled).unwrap_or_default();
        if let Some(archive) = &mut archive {
            archive.push(bytes)?;
        }
        output.write_all(bytes).map_err(|error| unwritten(&error))?;
    }
    output.flush().map_err(|error| unwritten(&error))?;
    Ok(archive.map_or(Ok(()), Archive::finish)?)
}

/// Reads the index of a tar-index image. Errors: it is none.
fn behind_index(reader: &mut impl Read) -> Result<Archive> {
    let mut index = Vec::new();
    let head_bytes = tar_index::HEAD_LEN as u64;
    reader.by_ref().take(head_bytes).read_to_end(&mut index).map_err(unread)?;
    let head = index.first_chunk();
    let head = head.ok_or(TarIndexError::Truncated { found: index.len() as u64, expected: head_bytes })?;
    let rest_bytes = tar_index::index_bytes(head)?.saturating_sub(head_bytes);
    reader.take(rest_bytes).read_to_end(&mut index).map_err(unread)?;
    Ok(Archive::behind(&index)?)
}

fn unread(error: io::Error) -> Error {
    Error::from_io(error, Kind::DataLoss, "stream.read")
}

/// A reader that goes away has cancelled the work, and must not take what it has for the whole.
fn unwritten(error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::BrokenPipe => Kind::Cancelled,
        _ => Kind::Unavailable,
    };
    Error::new(kind, "stream.write", format!("standard output: {}", output::io_text(error)))
}
