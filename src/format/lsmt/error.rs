//! Refusals of LSMT files and stacks, each with the place at which it was found.
//!
//! Reasons are listed in `docs/formats/overlaybd.md`, "LSMT".

use std::io;

use super::{Uuid, form::Form, header::Header};
use crate::{
    error::{Classify, Kind, disk_kind, disk_reason},
    limits::{LSMT_DEVICE_BYTES, LSMT_ENTRIES, LSMT_LAYERS, LSMT_STACK_ENTRIES},
};

/// Failure to read a layer, a stack of layers, or to write one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LsmtError {
    /// Reading a file failed.
    #[error("reading {what} at byte {offset} failed")]
    Read {
        /// Part of the file, in words.
        what: &'static str,
        /// Byte of the file at which the read started.
        offset: u64,
        /// Error of the file's reader.
        source: io::Error,
    },
    /// Writing a file failed.
    #[error("writing the layer failed")]
    Write {
        /// Error of the output.
        source: io::Error,
    },
    /// The file is too short for what it has to hold.
    #[error("{size_bytes} bytes are too few for {what}, which takes {needed}")]
    Short {
        /// Part that does not fit, in words.
        what: &'static str,
        /// Size of the file in bytes.
        size_bytes: u64,
        /// Least number of bytes.
        needed: u64,
    },
    /// The header or the trailer does not have the magic number.
    #[error("the {what} at byte {offset} does not have the magic number of LSMT")]
    Magic {
        /// Header or trailer.
        what: &'static str,
        /// Place in the file, in bytes.
        offset: u64,
    },
    /// The header's or the trailer's flags are those of another kind of file.
    #[error("the {what} at byte {offset} has flags {found:#x}, not those of {want}")]
    Flags {
        /// Header or trailer.
        what: &'static str,
        /// Place in the file, in bytes.
        offset: u64,
        /// Flags that were found.
        found: u32,
        /// Expected kind of file, in words.
        want: &'static str,
    },
    /// The format has a version that is not known.
    #[error("the {what} at byte {offset} has version {found}, the highest known one is 1")]
    Version {
        /// Header or trailer.
        what: &'static str,
        /// Place in the file, in bytes.
        offset: u64,
        /// Version that was found.
        found: u8,
    },
    /// The index does not lie between the header and the trailer.
    #[error("the index of {entries} entries at byte {offset} does not lie between byte 4096 and byte {end}")]
    IndexRange {
        /// Place of the index, in bytes.
        offset: u64,
        /// Number of its entries.
        entries: u64,
        /// Place of the trailer, in bytes.
        end: u64,
    },
    /// The index has more entries than a reader takes.
    #[error("the index has {entries} entries, more than {LSMT_ENTRIES}")]
    IndexCount {
        /// Number of entries.
        entries: u64,
    },
    /// An entry breaks a rule.
    #[error("index entry {number} at byte {offset}, {sectors} sectors from {start} on: {fault}")]
    Entry {
        /// Number of the entry, from 0.
        number: u64,
        /// Place of the entry in its file, in bytes.
        offset: u64,
        /// First sector of the entry on the device.
        start: u64,
        /// Number of its sectors.
        sectors: u64,
        /// Rule that is broken.
        fault: EntryFault,
    },
    /// The layer is of another kind than what is to be done takes.
    #[error("the layer is {form:?}, not {want}")]
    Form {
        /// Kind of the layer.
        form: Form,
        /// Expected kind, in words.
        want: &'static str,
    },
    /// The two files of a writable layer do not belong together.
    #[error("the data has identity {data}, the index {index}")]
    Pair {
        /// Identity of the data file.
        data: Uuid,
        /// Identity of the index file.
        index: Uuid,
    },
    /// The device is larger than any that is read.
    #[error("a device of {size_bytes} bytes is larger than {LSMT_DEVICE_BYTES}")]
    DeviceSize {
        /// Size of the device in bytes.
        size_bytes: u64,
    },
    /// A stack has no layer, or more than a device can have.
    #[error("a device has 1 to {LSMT_LAYERS} layers below its writable one, not {layers}")]
    Layers {
        /// Number of layers.
        layers: usize,
    },
    /// The merged index of a stack has more entries than a reader takes.
    #[error("the index of the stack has {entries} entries, more than {LSMT_STACK_ENTRIES}")]
    StackCount {
        /// Number of entries.
        entries: u64,
    },
    /// The new layer would have more entries than readers take.
    #[error("the layer takes {entries} index entries, more than the {LSMT_ENTRIES} that readers take")]
    TooManyEntries {
        /// Number of entries.
        entries: u64,
    },
    /// Data cannot stay in targets when there may be several.
    #[error("a stack of {layers} layers cannot keep its data in one target")]
    ManyTargets {
        /// Number of layers.
        layers: usize,
    },
    /// The user tag does not fit the header.
    #[error("a user tag of {bytes} bytes is longer than {}", Header::USER_TAG_BYTES)]
    UserTag {
        /// Length of the tag in bytes.
        bytes: usize,
    },
    /// A range to be written or mapped is not on the device, or not in whole sectors.
    #[error("{len} bytes at byte {offset}: {fault}")]
    Range {
        /// First byte on the device.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Rule that is broken, in words.
        fault: &'static str,
    },
}

/// Rule for one index entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The run is empty.
    #[error("its length is 0")]
    Length,
    /// The run begins before the end of the one before it.
    #[error("the entry before it ends at sector {end}")]
    Order {
        /// First sector behind the entry before.
        end: u64,
    },
    /// The run ends behind the device.
    #[error("the device ends at sector {end}")]
    Device {
        /// First sector behind the device.
        end: u64,
    },
    /// The data does not lie in the data part of the file.
    #[error("its data at sector {at} does not lie in sectors {first} to {end}")]
    Data {
        /// First sector of the data.
        at: u64,
        /// First sector that may hold data.
        first: u64,
        /// First sector behind the data.
        end: u64,
    },
    /// The data does not lie in the data part of the file, but the entry says that it is in the target.
    #[error(
        "its data at sector {at} does not lie in sectors {first} to {end}; it is that of a turboOCI layer, which needs its target"
    )]
    NoTarget {
        /// First sector of the data.
        at: u64,
        /// First sector that may hold data.
        first: u64,
        /// First sector behind the data.
        end: u64,
    },
    /// The data is in a file that the layer does not have.
    #[error("its data is in file {tag}; 0 is the layer's own, 1 the target, and there are no others")]
    Tag {
        /// Number of the file.
        tag: u8,
    },
}

impl LsmtError {
    pub(super) fn read(what: &'static str, offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { what, offset, source }
    }

    pub(super) fn write(source: io::Error) -> Self {
        Self::Write { source }
    }
}

impl Classify for LsmtError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } | Self::Write { source } => disk_kind(source),
            Self::IndexCount { .. }
            | Self::StackCount { .. }
            | Self::TooManyEntries { .. }
            | Self::DeviceSize { .. } => Kind::Exhausted,
            _ => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read { source, .. } => disk_reason(source, "disk.read"),
            Self::Write { source } => disk_reason(source, "disk.io"),
            Self::Short { .. } => "lsmt.short",
            Self::Magic { .. } => "lsmt.magic",
            Self::Flags { .. } => "lsmt.flags",
            Self::Version { .. } => "lsmt.version",
            Self::IndexRange { .. } => "lsmt.index.range",
            Self::IndexCount { .. } => "lsmt.index.count",
            Self::Entry { fault, .. } => match fault {
                EntryFault::Length => "lsmt.entry.length",
                EntryFault::Order { .. } => "lsmt.entry.order",
                EntryFault::Device { .. } => "lsmt.entry.device",
                EntryFault::Data { .. } => "lsmt.entry.data",
                EntryFault::NoTarget { .. } => "lsmt.entry.target",
                EntryFault::Tag { .. } => "lsmt.entry.tag",
            },
            Self::Form { .. } => "lsmt.form",
            Self::Pair { .. } => "lsmt.pair",
            Self::DeviceSize { .. } => "lsmt.device.size",
            Self::Layers { .. } => "lsmt.layers",
            Self::StackCount { .. } => "lsmt.stack.count",
            Self::TooManyEntries { .. } => "lsmt.entries",
            Self::ManyTargets { .. } => "lsmt.targets",
            Self::UserTag { .. } => "lsmt.user-tag",
            Self::Range { .. } => "lsmt.range",
        }
    }
}
