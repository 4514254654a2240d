//! The part of a file system that stays free while files are written.

use std::{fs::File, io};

use super::error::PublishError;
use crate::{
    error::{Error, Size},
    limits::Limits,
    sys::file,
};

/// Written bytes between two looks at the free space. A look costs one system call; what is written between two
/// looks is the most by which the reserve can be missed.
pub(super) const SPACE_EVERY: u64 = 256 << 20;

/// The space that one writer must leave free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserve {
    pub(super) bytes: u64,
    pub(super) percent: u64,
    /// Bytes written since the last look at the free space.
    pub(super) unchecked: u64,
}

impl Reserve {
    pub(super) fn of(limits: &Limits) -> Self {
        Self { bytes: limits.reserve_bytes, percent: limits.reserve_percent, unchecked: 0 }
    }

    /// Compares the free space of the file system of `file` with the reserve.
    pub(super) fn check(&self, file: &File) -> io::Result<Result<(), PublishError>> {
        let space = file::space(file)?;
        let share = space.total_bytes / 100 * self.percent;
        let reserve = self.bytes.max(share);
        Ok(if space.available_bytes < reserve {
            let [available, reserve, total] = [space.available_bytes, reserve, space.total_bytes].map(Size);
            let by_share = share > self.bytes;
            let setting = if by_share { "limits.reserve_percent" } else { "limits.reserve_bytes" };
            Err(PublishError::Reserve { available, reserve, total, setting })
        } else {
            Ok(())
        })
    }

    /// Counts `bytes` as written to `file`, and checks the free space after every [`SPACE_EVERY`] bytes. The
    /// error carries an [`Error`].
    pub(super) fn charge(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        self.unchecked = self.unchecked.saturating_add(bytes);
        if self.unchecked < SPACE_EVERY {
            return Ok(());
        }
        self.unchecked = 0;
        self.check(file)?.map_err(|full| Error::from(full).into_io())
    }
}
