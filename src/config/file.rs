//! Reads the configuration file, and refuses one that someone besides root may have written.

use std::{
    fmt,
    fs::{File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    Config,
    processors::{self, StreamProcessors},
};
use crate::error::{Classify, Kind};

/// Longest configuration that is read, in bytes; the default one has 6 KiB.
const MAX_LEN: u64 = 1 << 20;

/// Failure to load a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error("{path} cannot be read")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// Someone besides root could have written the file, and chosen with it where a root daemon
    /// writes.
    #[error("{path} {problem}: the daemon only obeys a file that root alone can change")]
    Owner {
        /// Path of the file.
        path: PathBuf,
        /// Owner, mode or file type that was found, in words.
        problem: String,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; holds the line.
    #[error("{origin}: {message}")]
    Parse {
        /// Path of the file, or name of the text.
        origin: String,
        /// Line, column and expected value.
        message: String,
    },
    /// A value that cannot work, alone or with the others.
    #[error("{key} = {value}: {problem}")]
    Value {
        /// Table and key, joined by a dot.
        key: &'static str,
        /// Value in the file.
        value: String,
        /// Reason of the refusal, with values that would work.
        problem: String,
    },
}

impl Classify for ConfigError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read { .. } => Kind::Unavailable,
            Self::Owner { .. } => Kind::Denied,
            Self::Parse { .. } | Self::Value { .. } => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "config.read",
            Self::Owner { .. } => "config.owner",
            Self::Parse { .. } => "config.parse",
            Self::Value { .. } => "config.value",
        }
    }
}

/// Source of the settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file with this path.
    File(PathBuf),
    /// No file exists: all settings have their defaults.
    Defaults,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Defaults => f.write_str("defaults"),
        }
    }
}

/// Parses and checks a text. `origin` names the text in errors.
pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error: toml::de::Error| ConfigError::Parse {
        origin: origin.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })?;
    config.validate()?;
    Ok(config)
}

/// Loads the settings of `path`, or of [`super::DEFAULT_PATH`] if that exists, or the defaults.
///
/// Errors: [`ConfigError`]; [`ConfigError::Owner`] when root does not own the file or others may
/// write it.
pub fn load(path: Option<&Path>) -> Result<(Config, Origin), ConfigError> {
    let given = path.unwrap_or(Path::new(super::DEFAULT_PATH));
    match Opened::at(given) {
        Err(ConfigError::Read { source, .. })
            if path.is_none() && source.kind() == io::ErrorKind::NotFound =>
        {
            Ok((Config::default(), Origin::Defaults))
        }
        opened => {
            let opened = opened?;
            match opened.problem() {
                Some(problem) => Err(problem),
                None => Ok((opened.settings()?, Origin::File(given.to_owned()))),
            }
        }
    }
}

/// Reads the settings of `path`, with the reason for which [`load`] would refuse the file if there
/// is one. For looking at a configuration, not for running with it.
pub fn read(path: &Path) -> Result<(Config, Option<ConfigError>), ConfigError> {
    let opened = Opened::at(path)?;
    let problem = opened.problem();
    Ok((opened.settings()?, problem))
}

/// Reads the table `[stream_processors]` of `path`, whatever else is in the file: it may be containerd's configuration.
/// Who can write the file does not matter.
pub fn read_processors(path: &Path) -> Result<StreamProcessors, ConfigError> {
    #[derive(serde::Deserialize)]
    struct Only {
        stream_processors: StreamProcessors,
    }
    let text = Opened::at(path)?.text()?;
    let origin = path.display().to_string();
    let parsed = toml::from_str(&text);
    let Only { stream_processors } = parsed.map_err(|error: toml::de::Error| ConfigError::Parse {
        origin,
        message: error.to_string().trim_end().to_owned(),
    })?;
    let refuse = |(id, problem): (String, String)| ConfigError::Value {
        key: "stream_processors",
        value: format!("{id:?}"),
        problem,
    };
    processors::check(&stream_processors).map_err(refuse)?;
    Ok(stream_processors)
}

/// Open file: its owner and its text come from one descriptor, not from two lookups of the path.
struct Opened<'p> {
    path: &'p Path,
    file: File,
    metadata: Metadata,
}

impl<'p> Opened<'p> {
    fn at(path: &'p Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        Ok(Self { path, file, metadata })
    }

    /// Reason for which a root daemon must not use the file; `None` if it may.
    fn problem(&self) -> Option<ConfigError> {
        let Self { path, metadata, .. } = self;
        let problem = trouble(metadata.is_file(), metadata.uid(), metadata.mode())?;
        Some(ConfigError::Owner { path: path.to_path_buf(), problem })
    }

    fn settings(self) -> Result<Config, ConfigError> {
        let origin = self.path.display().to_string();
        parse(&self.text()?, &origin)
    }

    fn text(self) -> Result<String, ConfigError> {
        let Self { path, file, .. } = self;
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let len = file.take(MAX_LEN + 1).read_to_string(&mut text).map_err(read)?;
        if len as u64 > MAX_LEN {
            return Err(read(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(text)
    }
}

/// Reason in words why a file of this type, owner and mode must not be used.
fn trouble(is_file: bool, uid: u32, mode: u32) -> Option<String> {
    if !is_file {
        Some("is not a regular file".to_owned())
    } else if uid != 0 {
        Some(format!("belongs to uid {uid}"))
    } else if mode & 0o022 != 0 {
        Some(format!("has mode {:04o}", mode & 0o7777))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_wrong_types_are_refused_with_their_line() {
        let message = parse("[server]\n\nsocketz = \"/x\"\n", "test").unwrap_err().to_string();
        assert!(message.contains("line 3") && message.contains("socketz"), "{message}");
        let message = parse("[servers]\n", "test").unwrap_err().to_string();
        assert!(message.contains("line 1") && message.contains("servers"), "{message}");
        let message = parse("[erofs]\nblock_size = \"4k\"\n", "test").unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
        assert_eq!(parse("[apply]\ndurability = \"maybe\"", "t").unwrap_err().reason(), "config.parse");
    }

    #[test]
    fn only_a_file_that_root_alone_can_change_is_obeyed() {
        assert_eq!(trouble(true, 0, 0o100_644), None);
        assert_eq!(trouble(true, 0, 0o100_600), None);
        for (is_file, uid, mode) in
            [(false, 0, 0o644), (true, 1000, 0o644), (true, 0, 0o664), (true, 0, 0o646)]
        {
            assert!(trouble(is_file, uid, mode).is_some(), "{is_file} {uid} {mode:o}");
        }
    }

    #[test]
    fn a_named_file_must_exist_and_the_default_one_need_not() {
        let error = load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "config.read"));
    }
}
