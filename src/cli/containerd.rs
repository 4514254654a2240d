//! `plywood config containerd`: the part of containerd's configuration that makes it use Plywood.
//!
//! Source: containerd's documents PLUGINS.md (proxy plugins), transfer.md and snapshotters/erofs.md.

use std::{env, path::Path, process::Command, str::FromStr};

use super::output::io_text;
use crate::{
    error::{Error, Kind},
    kind::{
        Container, LayerType, TABLE,
        streamed::{self, Streamed},
    },
};

/// A minor release of containerd. This part of the configuration has changed with several of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

/// First release with the EROFS snapshotter.
const OLDEST: Version = Version { major: 2, minor: 1 };
/// Where the overlaybd snapshotter listens by default.
pub const OVERLAYBD_SOCKET: &str = "/run/overlaybd-snapshotter/overlaybd.sock";

/// First release that imports `/etc/containerd/conf.d` by default.
const IMPORTING: Version = Version { major: 2, minor: 2 };
/// First release that knows native layers and EROFS platforms by itself.
const NATIVE: Version = Version { major: 2, minor: 3 };
/// First release whose EROFS snapshotter takes ready images from directories of the operator.
const CACHES: Version = Version { major: 2, minor: 4 };

impl FromStr for Version {
    type Err = String;

    /// Parses a version such as `2.1`, `2.3.4` or `v2.2.0-rc.1`. Errors, in words: no version, or one before 2.1.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || parts.next().and_then(|part| part.parse().ok());
        match (number(), number()) {
            (Some(major), Some(minor)) if Self { major, minor } >= OLDEST => Ok(Self { major, minor }),
            (Some(_), Some(_)) => Err("the EROFS snapshotter came with containerd 2.1".to_owned()),
            _ => Err("not a version such as 2.1 or 2.3.4".to_owned()),
        }
    }
}

impl Version {
    /// Whether containerd reads `/etc/containerd/conf.d` when it has no configuration file.
    pub fn imports_unasked(self) -> bool {
        self >= IMPORTING
    }
}

/// Facts on which the snippet depends.
#[derive(Clone, Copy, Debug)]
pub struct Host<'h> {
    /// Release of containerd.
    pub version: Version,
    /// Architecture of the machine, as containerd names it.
    pub architecture: &'h str,
    /// Path of the daemon's socket.
    pub socket: &'h Path,
    /// Path of this program, which is a stream processor as well.
    pub program: &'h Path,
    /// Name and socket of the overlaybd snapshotter, on a node that has it.
    pub overlaybd: Option<(&'h str, &'h Path)>,
}

/// Runs `containerd --version`, and returns the version. Errors: `config.containerd-version`.
pub fn installed_version() -> Result<Version, Error> {
    let hint = "name the release with --version, for example --version 2.1";
    let refuse =
        |kind, problem: String| Error::new(kind, "config.containerd-version", format!("{problem}; {hint}"));
    let output = Command::new("containerd").arg("--version").output().map_err(|error| {
        refuse(Kind::NotFound, format!("containerd cannot be asked for its version: {}", io_text(&error)))
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = find_version(&text)
        .ok_or_else(|| refuse(Kind::Malformed, format!("containerd --version printed {text:?}")))?;
    version.parse().map_err(|problem| refuse(Kind::Malformed, format!("containerd {version}: {problem}")))
}

/// Returns the first word of containerd's output that looks like a version.
fn find_version(output: &str) -> Option<&str> {
    output.split_whitespace().find(|word| {
        let digits = word.strip_prefix('v').unwrap_or(word);
        digits.starts_with(|first: char| first.is_ascii_digit()) && digits.contains('.')
    })
}

/// Returns the architecture of this machine, as platform strings name it.
pub fn architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Returns the tables to add to containerd's configuration.
pub fn snippet(host: &Host<'_>) -> String {
    let Host { version: Version { major, minor }, architecture, socket, program, overlaybd } = *host;
    let quoted = |path: &Path| toml::Value::from(path.display().to_string());
    let [socket, program] = [socket, program].map(quoted);
    let mut text = format!(
        r#"# For containerd {major}.{minor}, as a file of its own that /etc/containerd/config.toml imports.
version = 3

# Plywood, as a plugin that containerd calls over its socket.
[proxy_plugins.plywood]
  type = "diff"
  address = {socket}

# Who applies and compares layers for ctr pull --local, nerdctl, BuildKit: the first that does not decline.
# containerd's own "erofs" differ does not belong here: what Plywood declines it turns into errors or empty layers,
# and where mkfs.erofs is missing it is not loaded, and a name that is not loaded disables all differs.
[plugins."io.containerd.service.v1.diff-service"]
  default = ["plywood", "walking"]

# Who does it for the transfer service: ctr pull, and Kubernetes. Only the named differ is asked.
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{architecture}"
  snapshotter = "erofs"
  differ = "plywood"
"#
    );
    if host.version < NATIVE {
        // Types with a short name only: those in use. containerd knows the older spelling by itself.
        let is_native = |row: &&LayerType| row.container == Container::Erofs && !row.names.is_empty();
        let types: Vec<_> =
            TABLE.iter().filter(is_native).map(|row| format!("{:?}", row.media_type)).collect();
        text += &format!(
            "  # Layers that are EROFS images already; without this, images made of them are pulled but not unpacked.\n  \
             layer_types = [{}]\n",
            types.join(", ")
        );
    } else {
        text += &format!(
            r#"
# Images that say they are made of EROFS layers (os.features).
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux(+erofs)/{architecture}"
  snapshotter = "erofs"
  differ = "plywood"
"#
        );
    }
    text += &format!(
        r#"
# Entries of this list replace containerd's defaults: keep the one for ordinary snapshots.
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{architecture}"
  snapshotter = "overlayfs"
  differ = "walking"
"#
    );
    if let Some((name, address)) = overlaybd {
        let (name, address) = (toml::Value::from(name), quoted(address));
        text += &format!(
            r#"
# The overlaybd snapshotter, whose layers are block devices and which has no differ of its own. Plywood's setting
# overlaybd.layers says what becomes of ordinary layers.
[proxy_plugins.{name}]
  type = "snapshot"
  address = {address}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{architecture}"
  snapshotter = {name}
  differ = "plywood"
"#
        );
    }
    text += r#"
# To make it the default for Kubernetes as well:
# [plugins."io.containerd.cri.v1.images"]
#   snapshotter = "erofs"
"#;
    let accepts = |types: &mut dyn Iterator<Item = &str>| {
        types.map(|media_type| format!("    {media_type:?},\n")).collect::<String>()
    };
    text += &format!(
        r#"
# Layers that containerd's own differs cannot read, for snapshotters that use them: decoded by plywood stream. Plywood
# itself does not look at this table: the same one in /etc/plywood/config.toml is for its snapshots.
[stream_processors.plywood]
  accepts = [
{foreign}  ]
  returns = "{returns}"
  path = {program}
  args = ["stream"]

# EROFS images of an index and the layer's tar, the one that mkfs.erofs --tar=i has indexed: the tar comes out of them.
# For this file only. In Plywood's table, this entry would take all EROFS layers away from Plywood, which needs no tar.
[stream_processors.plywood-tar-index]
  accepts = [
{tar_indexes}  ]
  returns = "{returns}"
  path = {program}
  args = ["stream"]
"#,
        foreign = accepts(&mut Streamed::foreign()),
        tar_indexes = accepts(&mut Streamed::tar_indexes()),
        returns = streamed::RETURNS,
    );
    if host.version >= CACHES {
        text += r#"
# Directories with ready images, if there are any. Plywood has to know them as well: name the same ones as
# snapshots.shared_layers in /etc/plywood/config.toml, or Diff of snapshots that use them fails.
# [plugins."io.containerd.snapshotter.v1.erofs"]
#   layer_content_caches = ["/var/cache/erofs-layers"]
"#;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: &str) -> String {
        with(version, None)
    }

    fn with(version: &str, overlaybd: Option<(&str, &Path)>) -> String {
        let (socket, program) = (Path::new("/run/plywood/plywood.sock"), Path::new("/usr/bin/plywood"));
        let version = version.parse().unwrap();
        snippet(&Host { version, architecture: "amd64", socket, program, overlaybd })
    }

    #[test]
    fn the_overlaybd_snapshotter_is_named_where_it_is_asked_for() {
        let socket = Path::new(OVERLAYBD_SOCKET);
        for version in ["2.1", "2.3.4", "v2.4.0-beta.1"] {
            assert!(!of(version).contains("overlaybd"), "{version}");
            let parsed: toml::Table = with(version, Some(("overlaybd", socket))).parse().unwrap();
            let plugin = &parsed["proxy_plugins"]["overlaybd"];
            assert_eq!(plugin["type"].as_str(), Some("snapshot"), "{version}");
            assert_eq!(plugin["address"].as_str(), socket.to_str(), "{version}");
            let unpack = parsed["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"].as_array();
            let named: Vec<_> =
                unpack.unwrap().iter().filter_map(|entry| entry["snapshotter"].as_str()).collect();
            assert!(named.contains(&"overlaybd") && named.contains(&"overlayfs"), "{version}: {named:?}");
        }
    }

    #[test]
    fn the_shipped_files_are_what_the_command_prints() {
        for (version, file) in [
            ("2.1", include_str!("../../integration/deploy/containerd-2.1.toml")),
            ("2.3", include_str!("../../integration/deploy/containerd-2.3.toml")),
        ] {
            assert_eq!(of(version), file, "{version}: plywood config containerd --version {version}");
        }
    }

    #[test]
    fn every_variant_is_toml_that_names_us_everywhere() {
        for (version, entries) in [("2.1", 2), ("2.2.7", 2), ("2.3.4", 3), ("v2.4.0-beta.1", 3), ("3.0", 3)] {
            let parsed: toml::Table = of(version).parse().unwrap();
            assert_eq!(parsed["proxy_plugins"]["plywood"]["type"].as_str(), Some("diff"));
            let plugins = &parsed["plugins"];
            let default = plugins["io.containerd.service.v1.diff-service"]["default"].as_array().unwrap();
            let default: Vec<_> = default.iter().filter_map(toml::Value::as_str).collect();
            assert_eq!(default, ["plywood", "walking"], "{version}");
            let unpack = plugins["io.containerd.transfer.v1.local"]["unpack_config"].as_array().unwrap();
            assert_eq!(unpack.len(), entries, "{version}");
            assert_eq!(unpack[0].get("layer_types").is_some(), version < "2.3", "{version}");
            let accepts = |id| {
                let accepts = parsed["stream_processors"][id]["accepts"].as_array().unwrap();
                accepts.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>()
            };
            assert!(Streamed::foreign().eq(accepts("plywood")), "{version}");
            assert!(Streamed::tar_indexes().eq(accepts("plywood-tar-index")), "{version}");
        }
    }

    #[test]
    fn where_layers_come_from_caches_the_snippet_says_what_we_have_to_know() {
        for (version, known) in [("2.3.4", false), ("v2.4.0-beta.1", true), ("3.0", true)] {
            let text = of(version);
            for word in ["layer_content_caches", "snapshots.shared_layers"] {
                assert_eq!(text.contains(word), known, "{version}: {word}");
            }
        }
    }

    #[test]
    fn versions_are_found_in_what_containerd_prints() {
        let debian = "containerd github.com/containerd/containerd/v2 2.1.9~ds1-1 deadbeef\n";
        assert_eq!(find_version(debian), Some("2.1.9~ds1-1"));
        assert_eq!(find_version(debian).unwrap().parse(), Ok(Version { major: 2, minor: 1 }));
        assert_eq!(find_version("containerd containerd.io v2.3.4 abc"), Some("v2.3.4"));
        assert_eq!(find_version("no idea"), None);
        assert!("1.7.20".parse::<Version>().unwrap_err().contains("2.1"));
        assert!("2".parse::<Version>().is_err() && "".parse::<Version>().is_err());
    }
}
