//! Unpacking: the layers of an image become a chain of committed snapshots, each under its chainID.
//!
//! [`apply_layer`] puts one layer on top of another; [`prepare`] makes the snapshots of a list of layers and leaves out
//! those that are there. [`unpack`] does this for an image of containerd, under a lease that a killed run leaves for the
//! next one. Layers are applied by a differ, which sees mounts and a descriptor; it may be ours or any other.
//!
//! Source: docs/formats/unpack.md; containerd `core/unpack/unpacker.go`.

mod chain;
mod image;
mod kept;
mod lease;
mod step;
mod together;
mod unpacker;

pub(in crate::image) use self::kept::layers_of;
pub use self::{
    chain::prepare,
    image::{Failure, Image, find, unpack},
    kept::unpack_layers,
    lease::Lease,
    step::apply_layer,
    unpacker::{Applied, Layer, Unpacker},
};
