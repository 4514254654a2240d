//! LSMT: the layer files of overlaybd, each of which says which sectors of a block device it provides.
//!
//! ```text
//! committed or sealed file ──> Layer::open ──────────┐
//! file and its target (turboOCI) ──> open_turbo ─────┼──> Layer, bottom first ──> Device: ReadAt
//! writable files ──> open_pair, open_turbo_pair, … ──┤                               │
//! Writer: a Sink of device bytes ──> finish ─────────┘                            commit ──> io::Write
//! ```
//!
//! A [`Layer`] is one file and its sorted index. A [`Device`] is a stack of layers with one merged index: it is
//! read as the block device that the stack describes, says which ranges are mapped, and is written as one
//! committed layer. Making a new layer takes a [`Writer`] on a scratch file, which takes writes in any order:
//!
//! ```
//! use plywood::format::{ReadAt, Sink, lsmt::{CommitOptions, Device, Layer, Writer}};
//! let mut writer = Writer::new(Vec::new(), 1 << 30); // the scratch file, and the size of the device
//! writer.write_at(1 << 20, b"written first")?;
//! writer.write_at(0, b"written last")?;
//! let mut file = Vec::new();
//! Device::new(vec![writer.finish()?])?.commit(&CommitOptions::default(), &mut file)?;
//!
//! let device = Device::new(vec![Layer::open(file)?])?;
//! let mut first = [0; 12];
//! device.read_exact_at(0, &mut first)?;
//! assert_eq!((device.size_bytes(), &first), (1 << 30, b"written last"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! The wrappings around a layer, a tar header and a ZFile, are formats of their own: what is given to
//! [`Layer::open`] reads as the bare file.
//!
//! Described in `docs/formats/overlaybd.md`.

mod commit;
mod device;
mod entry;
mod error;
mod form;
mod fuzz;
mod header;
mod index;
mod layer;
mod seal;
#[cfg(test)]
mod tests;
mod upper;
mod writable;
mod writer;

pub use self::{
    commit::{CommitOptions, Committed, Targets},
    device::Device,
    error::LsmtError,
    form::Form,
    fuzz::{entries as fuzz_entries, fuzz},
    header::{Header, Uuid},
    layer::{Layer, SectorPlace},
    seal::Seal,
    upper::{NewUpper, Upper, Writable},
    writer::Writer,
};

/// Bytes of a sector, the unit of all positions in the index.
const SECTOR: u64 = 512;
/// Length of the header and of the trailer in a file, in bytes.
const HEADER_BLOCK: u64 = 4096;
