//! Whether a program may be run by root: only if nobody else can have written it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::error::{Classify, Kind};

/// Bits of a mode by which others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;
/// In a directory with this bit, entries of root's can be replaced by root alone.
const STICKY: u32 = 0o1000;

/// Why a program is not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It is missing, or cannot be looked at.
    #[error("{path:?} cannot be read")]
    Read {
        /// Path of the program.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// Not a file that can be executed.
    #[error("{path:?} is not a program: its mode is {mode:o}")]
    NoProgram {
        /// Path of the program, without symbolic links.
        path: PathBuf,
        /// Type and permission bits.
        mode: u32,
    },
    /// Others could replace what is run.
    #[error("{path:?} belongs to uid {uid} and has mode {mode:04o}: others than root can change it")]
    Owner {
        /// The program, or a directory above it, without symbolic links.
        path: PathBuf,
        /// Owner of the file or directory.
        uid: u32,
        /// Permission bits of the file or directory.
        mode: u32,
    },
}

impl Classify for ProgramError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read { .. } => Kind::Unavailable,
            Self::NoProgram { .. } => Kind::Malformed,
            Self::Owner { .. } => Kind::Denied,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "processor.program",
            Self::NoProgram { .. } => "processor.no-program",
            Self::Owner { .. } => "processor.owner",
        }
    }
}

/// Checks that `path` is a program that only root and `user` can change, and so are the directories above it. Returns the
/// path without symbolic links, which is the one to execute.
pub fn check_program(path: &Path, user: u32) -> Result<PathBuf, ProgramError> {
    let read = |source| ProgramError::Read { path: path.to_owned(), source };
    let real = fs::canonicalize(path).map_err(read)?;
    let found = fs::metadata(&real).map_err(read)?;
    if !found.is_file() || found.mode() & 0o111 == 0 {
        return Err(ProgramError::NoProgram { path: real, mode: found.mode() });
    }
    for (place, at) in real.ancestors().enumerate() {
        let found = fs::metadata(at).map_err(read)?;
        let (uid, mode) = (found.uid(), found.mode());
        let is_kept = mode & OTHERS_WRITE == 0 || (place > 0 && mode & STICKY != 0);
        if ![0, user].contains(&uid) || !is_kept {
            return Err(ProgramError::Owner { path: at.to_owned(), uid, mode: mode & 0o7777 });
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_program_is_one_that_nobody_else_can_change() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().canonicalize().unwrap().join("bin");
        fs::create_dir(&dir).unwrap();
        let program = dir.join("program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let reason = |path: &Path| check_program(path, me()).map_err(|error| error.reason()).err();
        set(&program, 0o644);
        assert_eq!(reason(&program), Some("processor.no-program"));
        set(&program, 0o755);
        assert_eq!(check_program(&program, me()).unwrap(), program);
        for (path, mode) in [(&program, 0o775), (&program, 0o757), (&dir, 0o775), (&dir, 0o777)] {
            set(path, mode);
            assert_eq!(reason(&program), Some("processor.owner"), "{path:?} {mode:o}");
            set(path, 0o755);
        }
        set(&dir, 0o1777);
        assert_eq!(reason(&program), None, "a sticky directory keeps what is another's");
        assert_eq!(reason(&dir), Some("processor.no-program"));
        assert_eq!(reason(&dir.join("absent")), Some("processor.program"));
        symlink(&program, dir.join("link")).unwrap();
        assert_eq!(check_program(&dir.join("link"), me()).unwrap(), program);
        if me() == 0 {
            chown(&program, Some(1234), None).unwrap();
            assert_eq!(reason(&program), Some("processor.owner"));
        }
    }
}
