//! Files that commands read and write.

use std::{
    fs::{File, Metadata},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::output;
use crate::{
    error::{Error, Kind, Result},
    sys::file,
};

/// Opens a file that is read in any order. Does not wait for the writer of a pipe.
///
/// Errors: `reason`, without the file's name; also for what is not a regular file.
pub fn open_regular(path: &Path, reason: &'static str) -> Result<File> {
    let unreadable = |error| output::unreadable(&error, reason);
    let file = file::open_without_waiting(path).map_err(unreadable)?;
    match file.metadata().map_err(unreadable)?.is_file() {
        true => Ok(file),
        false => Err(Error::new(Kind::Malformed, reason, "not a regular file")),
    }
}

/// Refuses an output that is one of the inputs, by whatever name: it would take the place of a file that may exist
/// nowhere else. Inputs that do not exist are passed over.
///
/// Errors: `cli.same-file`.
pub fn require_other<'p>(output: &Path, inputs: impl IntoIterator<Item = &'p Path>) -> Result<()> {
    // Nothing but a file is ever replaced.
    let file = |path: &Path| path.metadata().ok().filter(Metadata::is_file);
    let key = |path: &Path| file(path).map(|found| (found.dev(), found.ino()));
    let Some(there) = key(output) else { return Ok(()) };
    match inputs.into_iter().find(|input| key(input) == Some(there)) {
        Some(input) => Err(same(output, &format!("would replace {}, which is read", input.display()))),
        None => Ok(()),
    }
}

/// Refuses two outputs that would have the same name.
///
/// Errors: `cli.same-file`.
pub fn require_apart(first: &Path, second: &Path) -> Result<()> {
    let place = |path: &Path| Some((directory(path).canonicalize().ok()?, path.file_name()?.to_owned()));
    match (place(first), place(second)) {
        (Some(first), Some(place)) if first == place => Err(same(second, "two files cannot have this name")),
        _ => Ok(()),
    }
}

fn same(path: &Path, problem: &str) -> Error {
    Error::new(Kind::Conflict, "cli.same-file", format!("{}: {problem}", path.display()))
}

/// The directory of a file.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    #[test]
    fn an_output_is_an_input_by_any_of_its_names() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        for name in ["input", "other"] {
            fs::write(path(name), "").unwrap();
        }
        fs::hard_link(path("input"), path("hard")).unwrap();
        symlink("input", path("soft")).unwrap();
        let refused = |output: &str| {
            let outcome =
                require_other(&path(output), [path("missing"), path("input")].iter().map(PathBuf::as_path));
            outcome.err().map(|error| error.reason())
        };
        for output in ["input", "hard", "soft"] {
            assert_eq!(refused(output), Some("cli.same-file"), "{output}");
        }
        for output in ["other", "missing", "new"] {
            assert_eq!(refused(output), None, "{output}");
        }
    }

    #[test]
    fn two_outputs_have_two_names() {
        let scratch = tempfile::tempdir().unwrap();
        symlink(".", scratch.path().join("again")).unwrap();
        let apart = |first: &str, second: &str| {
            require_apart(&scratch.path().join(first), &scratch.path().join(second)).is_ok()
        };
        assert!(apart("a", "b") && apart("gone/a", "gone/b"));
        assert!(!apart("a", "a") && !apart("a", "again/a"));
    }
}
