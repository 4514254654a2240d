//! The check of metadata before it gets its name.

use crate::{
    error::{Error, Kind, Result},
    format::{ReadAt, erofs::reader::Image, rafs},
    limits::Limits,
};

/// Checks the metadata in `file`, which was made here: a broken rule is a fault of this program.
pub(super) fn check(file: &impl ReadAt, limits: &Limits) -> Result<()> {
    let checked = Image::open(file)
        .map_err(Error::from)
        .and_then(|image| Ok(rafs::verify(&image, limits.metadata_bytes).map(drop)?));
    checked.map_err(|error| {
        let message = format!("the metadata just made: {error} [{}]", error.reason());
        Error::new(Kind::Internal, "image.self-check", message)
    })
}
