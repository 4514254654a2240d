//! Kinds of layers.
//!
//! Source: `docs/formats/overlaybd.md`, "LSMT".

/// Kinds of layers by what their file looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Read-only: data in the order of the device, nothing else.
    Committed,
    /// Read-only: the data file of a writable layer, with its index behind it.
    Sealed {
        /// Data lies at its place on the device.
        sparse: bool,
    },
    /// Writable: data in the order of arrival, and an index file.
    Append,
    /// Writable: data at its place on the device, in a file with holes.
    Sparse,
    /// Writable, of a turboOCI layer: data at its place on the device without a header, and an index file.
    TurboPair,
    /// Data that a [`super::Writer`] has written to its scratch file.
    Scratch,
}
