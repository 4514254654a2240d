//! Files that the commands write.

use std::path::Path;

use crate::{
    error::{Error, Kind, Result},
    snapshot::{Durability, LAYER_NAME, NewFile, Publication},
};

/// Writes a new file at `path`: `make` fills it, and it appears when it is complete. With `replace` it takes the place
/// of an older one.
///
/// Errors: `overlaybd.output.exists`; those of `make` and of the disk.
pub(super) fn produce<T>(
    path: &Path,
    replace: bool,
    make: impl FnOnce(&mut NewFile) -> Result<T>,
) -> Result<T> {
    if !replace && path.symlink_metadata().is_ok() {
        let message = format!("{} exists already", path.display());
        return Err(Error::new(Kind::Conflict, "overlaybd.output.exists", message));
    }
    let publication = Publication::beside(path)?;
    let mut file = publication.file(LAYER_NAME)?;
    let made = make(&mut file)?;
    publication.commit([file], Durability::Request, false)?;
    Ok(made)
}
