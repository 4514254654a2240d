//! The description of a device, `config.v1.json`: its lowers, bottom first, and a writable layer on top.
//!
//! The snapshotter writes one for each snapshot, and people write their own. It names files, so who may read it decides
//! which files it may name: the caller opens them, and gives `None` for one that does not exist.
//!
//! Described in `docs/formats/overlaybd.md`, "Configuration files".

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize};

use super::blob::damaged;
use crate::{
    error::{Classify, Error, Kind, Quoted, Result},
    limits,
    sys::file,
};

/// Most read-only layers of a device.
const LOWERS_MAX: usize = 255;
/// What a result file holds once the device was opened.
const SUCCESS: &str = "success";
/// How it begins when the device could not be opened.
const FAILED: &str = "failed:";
/// Longest configuration file in bytes. 255 lowers with paths of a few hundred bytes take a tenth of it.
const CONFIG_BYTES: u64 = 4 << 20;

/// A device as `config.v1.json` describes it. Fields that are not listed here are ignored, and `null` is nothing, as
/// Go's encoder writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageConfig {
    /// Address of the registry's blobs, for lowers without a local file.
    #[serde(deserialize_with = "null_is_default")]
    pub repo_blob_url: String,
    /// Read-only layers, the bottom one first.
    #[serde(deserialize_with = "null_is_default")]
    pub lowers: Vec<LowerConfig>,
    /// Writable layer; all empty without one.
    #[serde(deserialize_with = "null_is_default")]
    pub upper: UpperConfig,
    /// File that gets `success` or `failed:` and a reason when the device is opened.
    #[serde(deserialize_with = "null_is_default")]
    pub result_file: String,
    /// The last lower is a directory with a trace, and no layer.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub acceleration_layer: bool,
}

/// A read-only layer. A path that is empty is not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LowerConfig {
    /// File of the layer.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Directory in which the layer has one of the usual names.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub dir: String,
    /// Digest of the layer's blob in the registry.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Size of that blob in bytes.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub size: u64,
    /// File that the data of a turboOCI layer is in.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub target_file: String,
    /// Digest of the blob in the registry that the data of a turboOCI layer is in.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub target_digest: String,
    /// Index of the target, which is then a gzip blob.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub gzip_index: String,
}

/// A writable layer. A path that is empty is not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UpperConfig {
    /// Data.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// Index.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub index: String,
    /// File that the data of a turboOCI layer is in.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Index of the target, which is then a gzip blob.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub gzip_index: String,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Reason why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    /// The file is too long.
    #[error("a configuration of more than {max} bytes")]
    Size {
        /// The limit.
        max: u64,
    },
    /// The file is not JSON, or a field has another type.
    #[error("not a configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// There are too many lowers.
    #[error("{found} lowers are more than {max}")]
    Lowers {
        /// Number of lowers.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// There is no layer at all.
    #[error("neither a lower nor an upper")]
    Empty,
    /// A path is no path.
    #[error("{role}: {} is not a path of 1 to {} bytes without NUL", Quoted(path.as_bytes()), limits::PATH_BYTES)]
    Path {
        /// What the file is for.
        role: String,
        /// The path.
        path: String,
    },
    /// A lower has no file here.
    #[error("{role} is not here: {tried}")]
    Missing {
        /// What the file is for.
        role: String,
        /// Paths and digests that were looked for.
        tried: String,
    },
    /// Two files that must differ are one.
    #[error("{role} {} is also {other}", Quoted(path.as_bytes()))]
    Cycle {
        /// What the file is for.
        role: String,
        /// Its path.
        path: String,
        /// What else it is.
        other: String,
    },
}

impl Classify for ConfigError {
    fn kind(&self) -> Kind {
        match self {
            Self::Size { .. } | Self::Lowers { .. } => Kind::Exhausted,
            Self::Missing { .. } => Kind::NotFound,
            Self::Json(_) | Self::Empty | Self::Path { .. } | Self::Cycle { .. } => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Size { .. } => "overlaybd.config.size",
            Self::Json(_) => "overlaybd.config.json",
            Self::Lowers { .. } => "overlaybd.config.lowers",
            Self::Empty => "overlaybd.config.empty",
            Self::Path { .. } => "overlaybd.config.path",
            Self::Missing { .. } => "overlaybd.lower.missing",
            Self::Cycle { .. } => "overlaybd.config.cycle",
        }
    }
}

/// Opens a file that a configuration names; `None` if it does not exist. In the daemon, it opens files below the roots of
/// snapshots and no others.
pub type Open<'a> = &'a dyn Fn(&str, Mode) -> Result<Option<File>>;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
}

/// The files of a device.
#[derive(Debug)]
pub struct Files {
    /// Read-only layers, the bottom one first.
    pub lowers: Vec<LowerFiles>,
    /// Writable layer.
    pub upper: Option<UpperFiles>,
}

/// The files of a read-only layer.
#[derive(Debug)]
pub struct LowerFiles {
    /// Name for messages.
    pub name: String,
    /// The layer.
    pub layer: File,
    /// Where the data of a turboOCI layer is.
    pub target: Option<TargetFiles>,
}

/// The files of a writable layer.
#[derive(Debug)]
pub struct UpperFiles {
    /// Name for messages.
    pub name: String,
    /// Data.
    pub data: File,
    /// Index.
    pub index: File,
    /// Where the data of a turboOCI layer is.
    pub target: Option<TargetFiles>,
}

/// The file that the data of a turboOCI layer is in.
#[derive(Debug)]
pub struct TargetFiles {
    /// Name for messages.
    pub name: String,
    /// The archive, or the gzip blob.
    pub file: File,
    /// Index of the gzip blob.
    pub gzip_index: Option<File>,
}

/// Names of a layer in its directory, in the order in which they are tried.
const LAYER_NAMES: [&str; 3] = ["overlaybd.commit", ".commit", "overlaybd.sealed"];

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// Errors: `overlaybd.config.…`, and those of reading.
    pub fn read(file: impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        file.take(CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(Error::disk)?;
        Ok(Self::parse(&bytes)?)
    }

    /// Parses a configuration.
    ///
    /// Errors: `overlaybd.config.…`.
    fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > CONFIG_BYTES {
            return Err(ConfigError::Size { max: CONFIG_BYTES });
        }
        let config: Self = serde_json::from_slice(bytes)?;
        let lowers =
            config.lowers.len() - usize::from(config.acceleration_layer && !config.lowers.is_empty());
        if lowers > LOWERS_MAX {
            return Err(ConfigError::Lowers { found: lowers, max: LOWERS_MAX });
        }
        if lowers == 0 && !config.has_upper() {
            return Err(ConfigError::Empty);
        }
        Ok(config)
    }

    /// The configuration as JSON, as the snapshotter writes it.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(self).map_err(ConfigError::Json)?)
    }

    /// Whether there is a writable layer.
    pub(super) fn has_upper(&self) -> bool {
        !self.upper.data.is_empty() || !self.upper.index.is_empty()
    }

    /// Paths of all files of the device, whether they exist or not. Of a directory, all that may be the layer.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let lowers = self.lowers.iter().flat_map(|lower| {
            let LowerConfig { file, dir, target_file, gzip_index, .. } = lower;
            let in_dir = LAYER_NAMES
                .map(|name| if dir.is_empty() { PathBuf::new() } else { Path::new(dir).join(name) });
            in_dir.into_iter().chain([file, target_file, gzip_index].map(PathBuf::from))
        });
        let UpperConfig { data, index, target, gzip_index, .. } = &self.upper;
        let upper = [data, index, target, gzip_index].map(PathBuf::from);
        lowers.chain(upper).filter(|path| !path.as_os_str().is_empty())
    }

    /// Opens all files of the device, the writable layer in `mode`. Nothing is read, so the files may be anything.
    ///
    /// Errors: `overlaybd.config.…`, and those of `open`.
    pub fn open(&self, open: Open<'_>, mode: Mode) -> Result<Files> {
        let mut opened = Opened { open, files: Vec::new() };
        let layers = match self.acceleration_layer {
            true => self.lowers.split_last().map_or(&[][..], |(_trace, layers)| layers),
            false => &self.lowers,
        };
        let lowers = layers.iter().enumerate();
        let lowers = lowers.map(|(number, lower)| opened.lower(number, lower)).collect::<Result<_>>()?;
        let upper = if self.has_upper() { Some(opened.upper(&self.upper, mode)?) } else { None };
        if !self.result_file.is_empty() {
            opened.check_result(&self.result_file)?;
        }
        Ok(Files { lowers, upper })
    }
}

impl ImageConfig {
    /// Writes to the result file, if one is named, whether a tool could open the device, as upstream's tools do.
    ///
    /// Errors: the file cannot be written, and the device was opened.
    pub fn report<T>(&self, opened: &Result<T>) -> Result<()> {
        let path = &self.result_file;
        if path.is_empty() {
            return Ok(());
        }
        match opened {
            Ok(_) => fs::write(path, SUCCESS).map_err(|error| Error::disk(error).context(path)),
            // The configuration may name a file of the device, which was not noticed: something else failed first.
            Err(error) if holds_result(path) => {
                let _the_device_matters_more = fs::write(path, format!("{FAILED}{error}"));
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

/// Whether there is no file of this name, or an empty one, or one that [`ImageConfig::report`] has written.
fn holds_result(path: &str) -> bool {
    let mut head = Vec::new();
    match File::open(path).and_then(|file| file.take(FAILED.len() as u64).read_to_end(&mut head)) {
        Ok(_) => head.is_empty() || head == SUCCESS.as_bytes() || head == FAILED.as_bytes(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Files that were opened, to tell when one is named twice.
struct Opened<'a> {
    open: Open<'a>,
    /// Device, inode, and what the file is for.
    files: Vec<((u64, u64), String, Use)>,
}

/// Whether a file may be named twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A layer: equal layers of an image may be one file.
    Layer,
    /// A target: layers may share one.
    Target,
    /// An index of a target.
    Index,
    /// A file that is written to.
    Written,
}

impl Opened<'_> {
    /// Opens one file.
    fn file(&mut self, role: &str, path: &str, usage: Use, mode: Mode) -> Result<Option<File>> {
        check_path(role, path)?;
        let Some(file) = (self.open)(path, mode).map_err(|error| error.context(role))? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(|error| damaged(Error::disk(error), role))?;
        if !metadata.is_file() {
            let message = format!("{path} is not a regular file");
            return Err(Error::new(Kind::Malformed, "overlaybd.input", message).context(role));
        }
        let key = (metadata.dev(), metadata.ino());
        self.check(role, path, usage, key)?;
        self.files.push((key, role.to_owned(), usage));
        Ok(Some(file))
    }

    /// Refuses a file that is something else as well.
    fn check(&self, role: &str, path: &str, usage: Use, key: (u64, u64)) -> Result<(), ConfigError> {
        let is_in_the_way = |other: Use| other != usage || usage == Use::Written;
        match self.files.iter().find(|(held, _, other)| *held == key && is_in_the_way(*other)) {
            Some((_, other, _)) => {
                Err(ConfigError::Cycle { role: role.to_owned(), path: path.to_owned(), other: other.clone() })
            }
            None => Ok(()),
        }
    }

    fn lower(&mut self, number: usize, lower: &LowerConfig) -> Result<LowerFiles> {
        let role = format!("lower {}", number + 1);
        let mut paths = Vec::new();
        if !lower.file.is_empty() {
            paths.push(lower.file.clone());
        }
        if !lower.dir.is_empty() {
            paths.extend(LAYER_NAMES.map(|name| format!("{}/{name}", lower.dir.trim_end_matches('/'))));
        }
        for path in &paths {
            if let Some(layer) = self.file(&role, path, Use::Layer, Mode::Read)? {
                let name = format!("{role}, {path}");
                let target =
                    self.target(&role, &lower.target_file, &lower.target_digest, &lower.gzip_index)?;
                return Ok(LowerFiles { name, layer, target });
            }
        }
        Err(missing(role, paths, &lower.digest).into())
    }

    fn target(
        &mut self,
        role: &str,
        path: &str,
        digest: &str,
        gzip_index: &str,
    ) -> Result<Option<TargetFiles>> {
        if path.is_empty() && digest.is_empty() {
            return Ok(None);
        }
        let role = format!("target of {role}");
        let file = match path {
            "" => None,
            path => self.file(&role, path, Use::Target, Mode::Read)?,
        };
        let paths = if path.is_empty() { Vec::new() } else { vec![path.to_owned()] };
        let file = file.ok_or_else(|| missing(role.clone(), paths, digest))?;
        let gzip_index = match gzip_index {
            "" => None,
            path => {
                let role = format!("gzip index of the {role}");
                let index = self.file(&role, path, Use::Index, Mode::Read)?;
                Some(index.ok_or_else(|| missing(role, vec![path.to_owned()], ""))?)
            }
        };
        Ok(Some(TargetFiles { name: format!("{role}, {path}"), file, gzip_index }))
    }

    fn upper(&mut self, upper: &UpperConfig, mode: Mode) -> Result<UpperFiles> {
        let mut one = |what: &str, path: &str| -> Result<File> {
            let role = format!("{what} of the upper");
            let file = self.file(&role, path, Use::Written, mode)?;
            Ok(file.ok_or_else(|| missing(role, vec![path.to_owned()], ""))?)
        };
        let data = one("data", &upper.data)?;
        let index = one("index", &upper.index)?;
        let target = self.target("the upper", &upper.target, "", &upper.gzip_index)?;
        Ok(UpperFiles { name: format!("upper, {}", upper.data), data, index, target })
    }

    /// Refuses a result file that is a file of the device: it is going to be overwritten.
    fn check_result(&self, path: &str) -> Result<()> {
        let role = "result file";
        check_path(role, path)?;
        if let Some(file) = (self.open)(path, Mode::Read).map_err(|error| error.context(role))? {
            let metadata = file.metadata().map_err(|error| damaged(Error::disk(error), role))?;
            self.check(role, path, Use::Written, (metadata.dev(), metadata.ino()))?;
        }
        Ok(())
    }
}

fn check_path(role: &str, path: &str) -> Result<(), ConfigError> {
    if path.is_empty() || path.len() > limits::PATH_BYTES || path.contains('\0') {
        return Err(ConfigError::Path { role: role.to_owned(), path: path.to_owned() });
    }
    Ok(())
}

fn missing(role: String, mut tried: Vec<String>, digest: &str) -> ConfigError {
    if !digest.is_empty() {
        tried.push(format!("{digest} in a registry, which is not asked"));
    }
    if tried.is_empty() {
        tried.push("no file is named".to_owned());
    }
    ConfigError::Missing { role, tried: tried.join(", ") }
}

/// Opens a file anywhere, as a command does that was given the configuration.
pub fn anywhere(path: &str, mode: Mode) -> Result<Option<File>> {
    let opened = match mode {
        Mode::Read => file::open_without_waiting(path),
        Mode::Write => File::options().read(true).write(true).open(path),
    };
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::disk(error).context(path)),
    }
}

/// The configuration of overlaybd's service, of which the tools here need nothing: no registry is asked, so there is
/// neither a cache nor a credential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceConfig {
    /// Version of the registry file system.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub registry_fs_version: String,
    /// File of the log.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub log_path: String,
    /// 0 psync, 1 libaio, 2 POSIX aio.
    #[serde(deserialize_with = "null_is_default")]
    pub io_engine: u32,
}

impl ServiceConfig {
    /// Reads and checks a configuration, so that a mistake in it is found here as well.
    ///
    /// Errors: `overlaybd.config.…`, and those of reading.
    pub fn read(file: impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        file.take(CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(Error::disk)?;
        if bytes.len() as u64 > CONFIG_BYTES {
            return Err(ConfigError::Size { max: CONFIG_BYTES }.into());
        }
        Ok(serde_json::from_slice(&bytes).map_err(ConfigError::Json)?)
    }

    /// The configuration as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(self).map_err(ConfigError::Json)?)
    }
}

/// Fuzz entry: whatever is a configuration is written as it is read.
///
/// # Panics
///
/// When a configuration changes.
pub fn fuzz(data: &[u8]) {
    let Ok(config) = ImageConfig::parse(data) else { return };
    let json = config.to_json().expect("strings and numbers");
    assert_eq!(ImageConfig::parse(&json).expect("it was read before"), config);
    let _nothing_is_there = config.open(&|_, _| Ok(None), Mode::Read);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(json: &str) -> &'static str {
        ImageConfig::read(json.as_bytes()).map_or_else(|error| error.reason(), |_| "ok")
    }

    #[test]
    fn a_configuration_of_the_snapshotter_is_read_as_it_means_it() {
        let config = ImageConfig::read(
            &br#"{"repoBlobUrl":"https://r/v2/x/blobs","lowers":[
                {"digest":"sha256:00","size":4739584,"dir":"/s/1"},
                {"file":"/s/2/fs/erofs.fs.meta","targetDigest":"sha256:01","gzipIndex":"/s/2/fs/gzip.meta","dir":"/s/2"}],
                "upper":{"index":"/s/3/i","data":"/s/3/d","vsize":64},"resultFile":"/s/3/log","accelerationLayer":false,
                "recordTracePath":"","download":{"enable":true}}"#[..],
        )
        .unwrap();
        assert_eq!((config.lowers.len(), config.lowers[0].size), (2, 4_739_584));
        assert_eq!(config.lowers[1].gzip_index, "/s/2/fs/gzip.meta");
        assert_eq!((config.upper.data.as_str(), config.upper.index.as_str()), ("/s/3/d", "/s/3/i"));
        assert_eq!(ImageConfig::read(&config.to_json().unwrap()[..]).unwrap(), config);
        let go = r#"{"repoBlobUrl":"","lowers":[{"file":"a"}],"upper":{},"resultFile":null}"#;
        assert_eq!(reason(go), "ok");
    }

    #[test]
    fn what_describes_no_device_is_refused() {
        let many = |count: usize| format!(r#"{{"lowers":[{}]}}"#, vec![r#"{"file":"a"}"#; count].join(","));
        for (json, want) in [
            ("", "overlaybd.config.json"),
            ("[]", "overlaybd.config.empty"),
            ("{}", "overlaybd.config.empty"),
            (r#"{"lowers":null,"upper":null}"#, "overlaybd.config.empty"),
            (r#"{"lowers":[{"dir":"t"}],"accelerationLayer":true}"#, "overlaybd.config.empty"),
            (r#"{"lowers":[{"file":1}]}"#, "overlaybd.config.json"),
            (r#"{"lowers":[{"file":"a","size":-1}]}"#, "overlaybd.config.json"),
            (r#"{"lowers":[{"file":"a"}]} x"#, "overlaybd.config.json"),
            (&many(255), "ok"),
            (&many(256), "overlaybd.config.lowers"),
            (&format!("{}{{}}", " ".repeat(4 << 20)), "overlaybd.config.size"),
            (&"[".repeat(100_000), "overlaybd.config.json"),
        ] {
            assert_eq!(reason(json), want, "{}", json.get(..60).unwrap_or(json));
        }
    }

    /// A directory with the named files, and a configuration whose `@` stands for it.
    fn open(files: &[&str], json: &str) -> Result<Files> {
        let scratch = tempfile::tempdir().unwrap();
        for file in files {
            let path = scratch.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, file).unwrap();
        }
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(scratch.path().join("a"), link).unwrap();
        let json = json.replace('@', scratch.path().to_str().unwrap());
        ImageConfig::read(json.as_bytes()).unwrap().open(&anywhere, Mode::Write)
    }

    fn text(mut file: &File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_lower_is_the_first_file_that_is_there() {
        let lower = r#"{"lowers":[{"file":"@/a","dir":"@/d/","digest":"sha256:00"}]}"#;
        let all = ["a", "d/overlaybd.commit", "d/.commit", "d/overlaybd.sealed"];
        for first in 0..all.len() {
            let files = open(&all[first..], lower).unwrap();
            assert_eq!(text(&files.lowers[0].layer), all[first]);
            assert!(files.lowers[0].target.is_none() && files.upper.is_none());
        }
        let error = open(&[], lower).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "overlaybd.lower.missing"));
        for part in ["lower 1 is not here: ", "/a, ", "/d/overlaybd.sealed, sha256:00 in a registry"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn targets_uppers_and_traces_are_told_apart() {
        let files = open(
            &["a", "t", "i", "data", "index"],
            r#"{"lowers":[{"file":"@/a"},{"file":"@/a","targetFile":"@/t","gzipIndex":"@/i"},{"dir":"@/trace"}],
                "upper":{"data":"@/data","index":"@/index","target":"@/t"},"accelerationLayer":true}"#,
        )
        .unwrap();
        assert_eq!(files.lowers.len(), 2);
        let target = files.lowers[1].target.as_ref().unwrap();
        assert_eq!((text(&target.file), text(target.gzip_index.as_ref().unwrap())), ("t".into(), "i".into()));
        let upper = files.upper.unwrap();
        assert_eq!((text(&upper.data), text(&upper.index)), ("data".into(), "index".into()));
        assert!(upper.target.unwrap().gzip_index.is_none());
    }

    #[test]
    fn files_that_are_something_else_as_well_are_refused() {
        for (json, want) in [
            (r#"{"lowers":[{"file":"@/a","targetFile":"@/link"}]}"#, "overlaybd.config.cycle"),
            (r#"{"lowers":[{"file":"@/a","targetFile":"@/t","gzipIndex":"@/t"}]}"#, "overlaybd.config.cycle"),
            (r#"{"lowers":[{"file":"@/a"}],"upper":{"data":"@/a","index":"@/i"}}"#, "overlaybd.config.cycle"),
            (r#"{"upper":{"data":"@/a","index":"@/link"}}"#, "overlaybd.config.cycle"),
            (r#"{"lowers":[{"file":"@/a"}],"resultFile":"@/a"}"#, "overlaybd.config.cycle"),
            (r#"{"upper":{"data":"@/a"}}"#, "overlaybd.config.path"),
            (r#"{"upper":{"data":"@/a","index":"@/none"}}"#, "overlaybd.lower.missing"),
            (r#"{"lowers":[{"file":"a\u0000"}]}"#, "overlaybd.config.path"),
            (r#"{"lowers":[{}]}"#, "overlaybd.lower.missing"),
            (r#"{"lowers":[{"file":"@/a","targetDigest":"sha256:00"}]}"#, "overlaybd.lower.missing"),
            (
                r#"{"lowers":[{"file":"@/a","targetFile":"@/t","gzipIndex":"@/none"}]}"#,
                "overlaybd.lower.missing",
            ),
        ] {
            assert_eq!(open(&["a", "t", "i"], json).unwrap_err().reason(), want, "{json}");
        }
    }

    #[test]
    fn a_result_file_says_whether_the_device_was_opened_and_nothing_else_is_overwritten() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("result");
        let config = ImageConfig { result_file: path.to_str().unwrap().to_owned(), ..ImageConfig::default() };
        let failed = || Err::<(), _>(Error::new(Kind::NotFound, "test.gone", "lower 1 is gone"));
        let found = || fs::read_to_string(&path).unwrap();
        config.report(&failed()).unwrap();
        assert_eq!(found(), "failed:lower 1 is gone");
        config.report(&Ok(())).unwrap();
        assert_eq!(found(), "success");
        config.report(&failed()).unwrap();
        assert_eq!(found(), "failed:lower 1 is gone");
        for (before, after) in [("", "failed:lower 1 is gone"), ("ZFile, perhaps", "ZFile, perhaps")] {
            fs::write(&path, before).unwrap();
            config.report(&failed()).unwrap();
            assert_eq!(found(), after);
        }
        fs::remove_file(&path).unwrap();
        ImageConfig::default().report(&Ok(())).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn who_opens_the_files_decides_which_may_be_named() {
        let config = ImageConfig::read(&br#"{"lowers":[{"file":"/etc/shadow"}]}"#[..]).unwrap();
        let outside = |path: &str, _| match Path::new(path).starts_with("/snapshots") {
            true => Ok(None),
            false => Err(Error::new(Kind::Denied, "test.outside", "outside")),
        };
        let error = config.open(&outside, Mode::Read).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Denied, "lower 1: outside"));
    }

    #[test]
    fn a_configuration_of_the_service_is_checked_and_not_used() {
        let read = |json: &str| ServiceConfig::read(json.as_bytes()).map_err(|error| error.reason());
        let config =
            read(r#"{"registryFsVersion":"v2","ioEngine":1,"cacheConfig":{"cacheType":"file"}}"#).unwrap();
        assert_eq!((config.registry_fs_version.as_str(), config.io_engine), ("v2", 1));
        assert_eq!(read("7"), Err("overlaybd.config.json"));
    }
}
