//! Delivers a layer that lies in a file: one that could not be written front to back.

use std::io::{self, Read as _};

use crate::{
    codec::encode::Compression,
    error::{Error, Result},
    format::{ReadAt as _, tar::wrapper::Around},
    pipeline::{
        Plan,
        encode::{self, Deliver, Facts, Feed},
    },
    snapshot::NewFile,
};

/// Bytes read from the file at a time.
const READ_BYTES: usize = 1 << 20;

/// Delivers the first `size_bytes` bytes of `file`, compressed.
pub(super) fn file(
    plan: Plan<'_>,
    compression: Compression,
    deliver: Deliver<'_>,
    file: &NewFile,
    size_bytes: u64,
) -> Result<Facts> {
    let run = encode::run(plan, compression, deliver, |feed| copy(feed, file, size_bytes));
    run.map(|((), facts)| facts)
}

/// Delivers the first `size_bytes` bytes of `file` with a tar archive `around` them, uncompressed.
pub(super) fn wrapped(
    plan: Plan<'_>,
    deliver: Deliver<'_>,
    file: &NewFile,
    size_bytes: u64,
    around: &Around,
) -> Result<Facts> {
    let run = encode::run(plan, Compression::PLAIN, deliver, |mut feed| {
        feed.write_all(&around.before).map_err(Error::disk)?;
        copy(feed, file, size_bytes)?;
        io::copy(&mut io::repeat(0).take(around.zeros_after), &mut feed).map_err(Error::disk)?;
        Ok(())
    });
    run.map(|((), facts)| facts)
}

fn copy(feed: &mut dyn Feed, file: &NewFile, size_bytes: u64) -> Result<()> {
    let mut space = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < size_bytes {
        let left = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX);
        let space = space.get_mut(..left.min(READ_BYTES)).unwrap_or_default();
        file.read_exact_at(offset, space).map_err(Error::disk)?;
        feed.write_all(space).map_err(Error::disk)?;
        offset += space.len() as u64;
    }
    Ok(())
}
