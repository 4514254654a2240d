//! ZFile: a file in blocks that are compressed one by one, so that any part can be read.
//!
//! ```text
//! header | block, checksum | block, checksum | ... | index: stored length of each block | trailer
//! ```
//!
//! [`header`] knows the record at either end, [`block`] one block. [`reader::Reader`] reads the contents at any offset.
//! [`writer`] compresses blocks and lays them out.
//!
//! Source: `docs/formats/overlaybd.md`, "ZFile".

pub mod block;
mod error;
mod fuzz;
pub mod header;
mod index;
pub mod reader;
pub mod writer;

pub use self::{
    error::{End, ZfileError},
    fuzz::fuzz,
};
