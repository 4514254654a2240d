//! `plywood config containerd --install`: a drop-in file for containerd, and the import that makes it read that file.
//!
//! The snippet is not appended to containerd's own file: one that containerd printed has the same tables, and
//! containerd does not start with a table that stands twice.
//!
//! Source: containerd, docs/man/containerd-config.toml.5.md, `imports`.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::output::io_text;
use crate::error::{Error, Kind, Result, disk_kind};

/// Directory that containerd 2.2 and later import by default.
pub const DEFAULT_DIRECTORY: &str = "/etc/containerd/conf.d";
/// File name of the drop-in.
const NAME: &str = "plywood.toml";

/// Writes `snippet` into `directory`, and adds to the `config.toml` beside it the import of that directory. Returns a
/// report, one line for each file. `imports_unasked`: without a `config.toml` containerd imports the directory by
/// default.
pub fn install(directory: &Path, snippet: &str, imports_unasked: bool) -> Result<String> {
    let directory = std::path::absolute(directory).map_err(|error| refusal(directory, &error))?;
    let main = directory.parent().unwrap_or(Path::new("/")).join("config.toml");
    // Checked first, so that nothing is written when `config.toml` cannot be completed.
    let imports = import(&main, &directory, imports_unasked)?;
    fs::create_dir_all(&directory).map_err(|error| refusal(&directory, &error))?;
    let drop_in = directory.join(NAME);
    replace(&drop_in, snippet)?;
    let mut report = format!("{}: written\n", drop_in.display());
    match imports {
        Import::There => report += &format!("{}: imports it already\n", main.display()),
        Import::Unasked => report += "containerd reads that directory without being told\n",
        Import::Missing(text) => {
            replace(&main, &text)?;
            report += &format!("{}: imports it now\n", main.display());
        }
    }
    Ok(report + "restart containerd to use it\n")
}

/// State of the import in containerd's own configuration.
enum Import {
    There,
    Unasked,
    /// Text of the configuration with the import added.
    Missing(String),
}

fn import(main: &Path, directory: &Path, imports_unasked: bool) -> Result<Import> {
    let line = format!("imports = [{}]\n", toml::Value::from(directory.join("*.toml").display().to_string()));
    let text = match fs::read_to_string(main) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(match imports_unasked {
                true => Import::Unasked,
                false => Import::Missing(format!("version = 3\n{line}")),
            });
        }
        text => text.map_err(|error| refusal(main, &error))?,
    };
    let refuse = |message: String| {
        Error::new(Kind::Malformed, "config.containerd-file", format!("{}: {message}", main.display()))
    };
    let parsed: toml::Table = text.parse().map_err(|error| refuse(format!("{error}")))?;
    let Some(imports) = parsed.get("imports") else {
        // Keys of the whole file have to stand before the first table.
        return Ok(Import::Missing(line + &text));
    };
    let patterns = imports.as_array().map(Vec::as_slice).unwrap_or_default();
    let base = main.parent().unwrap_or(Path::new("/"));
    let found =
        patterns.iter().filter_map(toml::Value::as_str).any(|pattern| matches(base, pattern, directory));
    match found {
        true => Ok(Import::There),
        false => Err(refuse(format!(
            "its imports = {imports} do not hold {:?}; add it there",
            directory.join("*.toml")
        ))),
    }
}

/// Whether the pattern of an import, relative to `base`, matches the drop-in in `directory`.
fn matches(base: &Path, pattern: &str, directory: &Path) -> bool {
    let pattern = base.join(pattern);
    let name = pattern.file_name().and_then(|name| name.to_str());
    pattern.parent() == Some(directory) && matches!(name, Some("*" | "*.toml" | NAME))
}

/// Replaces or creates a file by renaming a new one into its place. Its permissions stay.
fn replace(path: &Path, text: &str) -> Result<()> {
    let temporary = PathBuf::from(format!("{}.plywood-{}", path.display(), std::process::id()));
    let write = || {
        let mut file = File::create_new(&temporary)?;
        match fs::metadata(path) {
            Ok(metadata) => file.set_permissions(metadata.permissions())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // Only the first failure is reported.
        let _gone = fs::remove_file(&temporary);
        refusal(path, &error)
    })
}

fn refusal(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => Kind::Denied,
        _ => disk_kind(error),
    };
    Error::new(kind, "config.containerd-file", format!("{}: {}", path.display(), io_text(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Installs beside a configuration with this text. Returns the text afterwards, and the report.
    fn installed(before: Option<&str>, unasked: bool) -> (Option<String>, Result<String>) {
        let scratch = tempfile::tempdir().unwrap();
        let main = scratch.path().join("config.toml");
        if let Some(text) = before {
            fs::write(&main, text.replace("DIR", scratch.path().to_str().unwrap())).unwrap();
        }
        let directory = scratch.path().join("conf.d");
        let report = install(&directory, "# ours\n", unasked);
        let written = fs::read_to_string(directory.join(NAME)).ok();
        assert_eq!(written.is_some(), report.is_ok());
        let after = fs::read_to_string(main).ok();
        (after.map(|text| text.replace(scratch.path().to_str().unwrap(), "DIR")), report)
    }

    #[test]
    fn a_configuration_without_imports_gets_one_and_stays_as_it_is_otherwise() {
        for (before, unasked, after) in [
            (None, true, None),
            (None, false, Some("version = 3\nimports = [\"DIR/conf.d/*.toml\"]\n")),
            (
                Some("version = 2\n[plugins]\n"),
                true,
                Some("imports = [\"DIR/conf.d/*.toml\"]\nversion = 2\n[plugins]\n"),
            ),
            (Some("imports = [\"DIR/conf.d/*.toml\"]\n"), false, Some("imports = [\"DIR/conf.d/*.toml\"]\n")),
            (Some("imports = ['conf.d/*']\n"), false, Some("imports = ['conf.d/*']\n")),
        ] {
            let (found, report) = installed(before, unasked);
            assert!(report.unwrap().ends_with("restart containerd to use it\n"));
            assert_eq!(found.as_deref(), after);
            // A second installation changes nothing.
            if let Some(text) = after {
                assert_eq!(installed(Some(text), unasked).0.as_deref(), after);
            }
        }
    }

    #[test]
    fn what_cannot_be_completed_safely_is_left_alone() {
        for text in ["imports = []\n", "imports = [\"/elsewhere/*.toml\"]\n", "imports = 1\n", "no toml\n"] {
            let (after, report) = installed(Some(text), true);
            assert_eq!(after.as_deref(), Some(text));
            assert_eq!(report.unwrap_err().reason(), "config.containerd-file", "{text}");
        }
    }
}
