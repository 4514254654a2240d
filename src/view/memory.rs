//! The charge for memory that grows with the trees that are read.

use crate::error::Result;

/// Bytes of one step of the charge: a budget shared by all requests is asked once for many small pieces.
const STEP_BYTES: u64 = 1 << 20;

/// Memory in use, charged in steps before it is used.
pub(crate) struct Memory<'a> {
    charge: &'a mut dyn FnMut(u64) -> Result<()>,
    used: u64,
    charged: u64,
}

impl<'a> Memory<'a> {
    /// No memory yet. `charge` gets the total in bytes that may be used from then on, and may refuse it.
    pub(crate) fn new(charge: &'a mut dyn FnMut(u64) -> Result<()>) -> Self {
        Self { charge, used: 0, charged: 0 }
    }

    /// Adds `bytes` to the memory in use.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<()> {
        self.used = self.used.saturating_add(bytes as u64);
        self.cover(self.used)
    }

    /// Takes `bytes` from the memory in use. They stay charged, for the next that are added.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes as u64);
    }

    /// Charges for a total of `bytes`, when that is more than ever before.
    pub(crate) fn cover(&mut self, bytes: u64) -> Result<()> {
        if bytes > self.charged {
            let charged = bytes.next_multiple_of(STEP_BYTES);
            (self.charge)(charged)?;
            self.charged = charged;
        }
        Ok(())
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}
