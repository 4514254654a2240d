//! New files that appear whole or not at all, and together.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    format::Sink as _,
    snapshot::{Durability, LAYER_NAME, NewFile, Publication},
};

/// Files that were made one after the other. Dropped without [`NewFiles::keep`], those of them are removed that did not
/// replace others.
#[derive(Debug, Default)]
pub(super) struct NewFiles(Vec<PathBuf>);

impl NewFiles {
    /// Makes the file `path`, which `fill` writes. `mode`: its permissions, if the umask does not decide.
    ///
    /// It gets its name when it is complete and on disk: whoever finds it respects it for ever.
    pub fn add<T>(
        &mut self,
        path: &Path,
        mode: Option<u32>,
        fill: impl FnOnce(NewFile) -> Result<(NewFile, T)>,
    ) -> Result<T> {
        let (made, is_new) = make(path, mode, fill)?;
        if is_new {
            self.0.push(path.to_owned());
        }
        Ok(made)
    }

    /// [`NewFiles::add`] for a file with these bytes.
    pub fn add_bytes(&mut self, path: &Path, mode: Option<u32>, bytes: &[u8]) -> Result<()> {
        self.add(path, mode, |mut file| {
            file.write_at(0, bytes).map_err(Error::disk)?;
            Ok((file, ()))
        })
    }

    /// Keeps all files.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

/// Makes a file. Returns whether nothing had its name, too.
fn make<T>(
    path: &Path,
    mode: Option<u32>,
    fill: impl FnOnce(NewFile) -> Result<(NewFile, T)>,
) -> Result<(T, bool)> {
    // Errors of the publication name the file themselves.
    let named = |error: Error| error.context(path.display().to_string());
    let publication = Publication::beside(path)?;
    let (file, made) = fill(publication.file(LAYER_NAME)?).map_err(named)?;
    if let Some(mode) = mode {
        let set = file.file().set_permissions(Permissions::from_mode(mode));
        set.map_err(|error| named(Error::disk(error)))?;
    }
    let is_new = path.symlink_metadata().is_err();
    publication.commit([file], Durability::Always, false)?;
    Ok((made, is_new))
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            let _the_caller_reports_the_first_error = fs::remove_file(path);
        }
    }
}
