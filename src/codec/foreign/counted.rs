//! The input of a decoder, which counts the bytes taken and marks its own errors.
//!
//! Described in `docs/formats/compression.md`.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    rc::Rc,
};

use crate::error::{Error, Kind};

/// Number of bytes taken from an input.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken(Rc<Cell<u64>>);

impl Taken {
    pub(super) fn get(&self) -> u64 {
        self.0.get()
    }
}

/// An input of compressed bytes.
#[derive(Debug)]
pub(super) struct Counted<R> {
    input: R,
    taken: Taken,
}

impl<R: BufRead> Counted<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, taken: Taken::default() }
    }

    pub(super) fn taken(&self) -> Taken {
        self.taken.clone()
    }

    /// Fills `bytes`. Returns how many there were, which is fewer only at the end.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(space) = bytes.get_mut(filled..).filter(|space| !space.is_empty()) {
            match self.read(space) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let bytes = available.get(..output.len().min(available.len())).unwrap_or_default();
        let count = bytes.len();
        if let Some(space) = output.get_mut(..count) {
            space.copy_from_slice(bytes);
        }
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf().map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => Error::from_io(error, Kind::DataLoss, "stream.read").into_io(),
        })
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.taken.0.set(self.taken.0.get().saturating_add(count as u64));
    }
}

/// Whether `error` is one of the input, and not of what is in it.
pub(super) fn is_of_the_input(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}
