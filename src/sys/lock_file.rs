//! Locks by name: files of which one process at a time may hold each, and which go with their holder.
//!
//! Source: flock(2).

use std::{fs::File, io, path::Path};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::{dir::Dir, file};

/// Most attempts while others remove the file between its opening and its locking.
const RACES: u32 = 16;

/// A lock that this process holds. Dropping it removes the file.
#[derive(Debug)]
pub struct LockFile {
    dir: Dir,
    name: String,
    file: File,
}

impl LockFile {
    /// Takes the lock `name` in `directory` without waiting. `None` while another process holds it.
    ///
    /// A file that a killed process has left is taken over. Errors: the directory cannot be written to.
    pub fn take(directory: &Path, name: &str) -> io::Result<Option<Self>> {
        let dir = Dir::open(directory)?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..RACES {
            let file = File::from(rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?);
            if !file::lock_exclusive(&file)? {
                return Ok(None);
            }
            // Its holder removes the file before it lets go, so this may be one without a name, and another be there.
            if is_named(&dir, name, &file)? {
                return Ok(Some(Self { dir, name: name.to_owned(), file }));
            }
        }
        Ok(None)
    }
}

fn is_named(dir: &Dir, name: &str, file: &File) -> io::Result<bool> {
    let own = rustix::fs::fstat(file)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // While the lock is held: nobody else's file can have the name. One that stays is taken over.
        let _stays = file::remove(&self.dir, self.name.as_str());
        let _unlocked_at_close = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_goes_with_its_holder() {
        let scratch = tempfile::tempdir().unwrap();
        let take = || LockFile::take(scratch.path(), "x.lock").unwrap();
        let held = take().unwrap();
        assert!(take().is_none());
        assert!(LockFile::take(scratch.path(), "y.lock").unwrap().is_some(), "another name");
        drop(held);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        // As a killed process leaves it.
        std::fs::write(scratch.path().join("x.lock"), "").unwrap();
        assert!(take().is_some());
    }

    #[test]
    fn a_link_in_the_place_of_a_lock_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("target", scratch.path().join("x.lock")).unwrap();
        assert!(LockFile::take(scratch.path(), "x.lock").is_err());
        assert!(!scratch.path().join("target").exists());
    }
}
