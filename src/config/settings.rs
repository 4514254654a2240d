//! All settings with their defaults and comments.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::processors::{self, StreamProcessors};
use crate::{
    apply::{self, ImpliedDirectories, NativeVerify, OrdinaryLayers},
    codec::encode::Compression,
    compare::changes::XattrFilter,
    format::erofs::writer::WriteOptions,
    kind::overlaybd::Flavour,
    limits,
    pipeline::AheadOptions,
    snapshot::Durability,
};

/// Declares one table of the file. The doc comments are the comments of the default file.
macro_rules! table {
    (
        $(#[doc = $about:literal])*
        $name:ident { $( $(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr; )* }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $doc])* pub $key: $type, )* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $name {
            /// Comment lines above the table.
            pub(super) const ABOUT: &'static [&'static str] = &[$($about),*];
            /// Keys with their comment lines, in the order of the file.
            pub(super) const KEYS: &'static [(&'static str, &'static [&'static str])] =
                &[$( (stringify!($key), &[$($doc),*]) ),*];
        }
    };
}

table! {
    /// The sockets, and how many requests are taken at a time.
    Server {
        /// The Diff service, gRPC and ttrpc on one unix socket. Its directory is made with mode 0700.
        /// An inherited socket (systemd's plywood.socket) takes its place.
        socket: PathBuf = "/run/plywood/plywood.sock".into();
        /// Metrics and health over plain HTTP on a unix socket: GET /metrics, GET /health. "" turns it off.
        metrics_socket: PathBuf = "/run/plywood/metrics.sock".into();
        /// A user besides root (uid 0) whose processes may connect. 0: nobody else.
        allowed_uid: u32 = 0;
        /// Group of both sockets. 0: mode 0600; any other: mode 0660 and that group, and the directory
        /// becomes 0750 with that group.
        gid: u32 = 0;
        /// Connections open at a time; further ones are closed at once.
        max_connections: u32 = 32;
        /// Requests in flight on one connection.
        max_streams: u32 = 64;
        /// Layers applied and written (Diff) at a time. 0: twice the number of processors, at least 4 and
        /// at most 32. A layer of which nothing comes for 200 ms lets the next one work until there is more; up to
        /// 128 wait like that.
        running_applies: u32 = 0;
        /// Layers that wait for their turn, or for an equal request to be done; further ones are answered
        /// RESOURCE_EXHAUSTED, "busy".
        waiting_applies: u32 = 256;
        /// Seconds that running requests get to finish after SIGTERM before they are cancelled.
        drain_seconds: u64 = 20;
    }
}

table! {
    /// Messages on standard error.
    Log {
        /// error, warn, info, debug, trace or off, or directives such as "info,plywood::containerd=debug".
        /// The environment variable RUST_LOG, if it is set, overrides this.
        level: String = "info".to_owned();
        /// "text" or "json".
        format: LogFormat = LogFormat::Text;
    }
}

table! {
    /// The containerd whose content store holds the layers.
    Containerd {
        /// containerd's gRPC socket.
        address: PathBuf = "/run/containerd/containerd.sock".into();
        /// Read blobs from the content store's directory once containerd has confirmed that the caller
        /// may have them. false: every byte comes over gRPC.
        direct_content: bool = true;
        /// The content store's directory, which the sandbox then lets us read. "": the one beside each snapshot
        /// root, as containerd lays them out.
        content_root: PathBuf = PathBuf::new();
        /// containerd's state directory. Snapshots whose writable layer is an ext4 image are mounted below it while
        /// they are in use.
        state_dir: PathBuf = "/run/containerd".into();
    }
}

table! {
    /// Where layers go, and where they are read from.
    Snapshots {
        /// Roots of the EROFS snapshotter. A request that names a directory outside all of them is answered
        /// UNIMPLEMENTED, so that containerd asks its next differ.
        roots: Vec<PathBuf> = vec!["/var/lib/containerd/io.containerd.snapshotter.v1.erofs".into()];
        /// Roots of the overlayfs snapshotter, whose snapshots Diff reads too. Nothing is ever written there. A
        /// root that does not exist at the start is passed over.
        overlayfs_roots: Vec<PathBuf> = vec!["/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs".into()];
        /// Roots of the overlaybd snapshotter, whose layers are block devices: see the table overlaybd. A root that
        /// does not exist at the start is passed over.
        overlaybd_roots: Vec<PathBuf> = vec!["/var/lib/containerd/io.containerd.snapshotter.v1.overlaybd".into()];
        /// Directories with ready images that the snapshotter links to, or mounts where they are, instead of
        /// unpacking a layer (its layer_content_caches), for Diff and apply.implied_directories to read them.
        shared_layers: Vec<PathBuf> = Vec::new();
    }
}

table! {
    /// The images made from tar layers, and those that Diff writes. Changing these changes the bytes of every
    /// image made from now on.
    Erofs {
        /// Bytes per block: a power of two from 512 to the page size.
        block_size: u32 = 1 << WriteOptions::DEFAULT.block_bits.get();
        /// Files and file ends up to this many bytes are stored beside their inode. 0: never, as
        /// containerd's own differ does it. Layers of Diff can have another limit: diff.inline_limit.
        inline_limit: u32 = u32::from(WriteOptions::DEFAULT.inline_limit);
    }
}

table! {
    /// Layers in snapshots of the overlaybd snapshotter. Those that overlaybd made are unwrapped and checked.
    Overlaybd {
        /// The snapshotter's name in containerd, which is asked about a snapshot whose mounts do not show the
        /// layers below.
        snapshotter: String = "overlaybd".to_owned();
        /// Ordinary tar layers: "as-labelled" leaves them to the next differ, unless the snapshot has the label
        /// convert2turbo-oci; "turbo" keeps the archive, and a device that points into it; "native" makes a
        /// device that holds all data.
        layers: OrdinaryLayers = OrdinaryLayers::default();
        /// File system of new devices: "erofs", or "ext4", which cannot be made yet. The label blob-fs-type of a
        /// snapshot comes before it.
        flavour: Flavour = Flavour::default();
        /// Size of new devices in GiB. Further layers have the size of the lowest one.
        virtual_gib: u32 = apply::Overlaybd::VIRTUAL_GIB;
        /// The layer that Diff makes of changes above a device when a plain tar is asked for: "tar", or
        /// "overlaybd", a layer of the device. A request asks for the latter with the label
        /// containerd.io/snapshot/overlaybd/version. Changes to a device itself are a layer of it in any case.
        diff: DeviceDiff = DeviceDiff::Tar;
        /// Also make an EROFS image beside each archive that is kept (layer.tar.erofs), which the kernel mounts
        /// without a device driver: mount -t erofs -o loop,device=layer.tar layer.tar.erofs DIRECTORY
        kernel_index: bool = false;
        /// Take published layers that come with an ext4 file system, as those of overlaybd's own tools do. The
        /// kernel mounts it unchecked: set it to false on nodes whose images are not trusted.
        published_ext4: bool = true;
    }
}

table! {
    /// How a layer becomes visible.
    Apply {
        /// "always": every layer is on disk before the reply. "request": only when the caller asks
        /// for it. "never": for tests, a power cut may tear layers.
        durability: Durability = Durability::default();
        /// Check of layers that are EROFS images already: "strict" (the whole structure), "superblock", "off".
        native_verify: NativeVerify = NativeVerify::default();
        /// Large gzip layers: "auto" lets threads that run only while processors are idle decode ahead of the one
        /// that decodes in order, 24 MiB of memory each; "off": never. The image is the same either way.
        decode_ahead: DecodeAhead = DecodeAhead::default();
        /// Directories that a tar layer does not list but puts files into: "from-parents" gives them owner, mode,
        /// time and attributes of the directory that they shadow, where the request shows the layers below;
        /// "default": root's, mode 0755, time 0, so that an image depends on nothing but its layer.
        implied_directories: ImpliedDirectories = ImpliedDirectories::default();
        /// Write merged metadata (fsmeta.erofs) beside a layer when a container would have more than so many layers
        /// mounted one by one otherwise. containerd 2.3.4 and later mounts it with all layers as its devices, as one
        /// file system. Needs requests that show the layers below: max_concurrent_unpacks = 1. Never where dm-verity or
        /// fs-verity protects layers. 0: never.
        max_unmerged_layers: u32 = 0;
    }
}

table! {
    /// The layers that Diff writes. Changing what stands below the lease changes the bytes of every layer
    /// written from now on.
    Diff {
        /// Answer Diff. It reads files of any owner and overlayfs's own attributes, for which the daemon keeps
        /// CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN. false: no capability is kept, Diff is UNIMPLEMENTED.
        enabled: bool = true;
        /// Seconds that a layer stays in the content store when the caller brought no lease and nothing
        /// refers to it yet. Once something does, our lease goes within seconds.
        lease_seconds: u64 = 900;
        /// Level of gzip, 1 (fast) to 9 (small).
        gzip_level: u8 = Compression::GZIP.level();
        /// Level of zstd, 1 (fast) to 19 (small).
        zstd_level: u8 = Compression::ZSTD.level();
        /// Times in tar layers: whole "seconds", as containerd's own differ writes them, or "nanoseconds".
        /// Layers that are EROFS images have nanoseconds always.
        timestamps: Timestamps = Timestamps::Seconds;
        /// Extended attributes that belong to an image, each a name or the beginning of one with a * behind.
        /// overlayfs's own are never written.
        xattrs: Vec<String> = XattrFilter::DEFAULT.map(str::to_owned).into();
        /// Layers that are EROFS images: as erofs.inline_limit, for these alone. 0: never, which makes layers that
        /// mkfs.erofs can merge. "inherit": the value of erofs.inline_limit.
        inline_limit: InlineLimit = InlineLimit::Inherit(Inherit::Inherit);
        /// Where layers that are EROFS images are laid out before they are sent, in files without a name. "": the
        /// first snapshot root.
        work_directory: PathBuf = PathBuf::new();
    }
}

table! {
    /// Rights that the daemon gives up at start.
    Security {
        /// Drop all capabilities that are not needed, forbid new ones, and let the kernel (Landlock, where it is
        /// built in) confine file access to the directories named here. What was achieved is logged.
        sandbox: bool = true;
    }
}

table! {
    /// Bounds on the cost of one layer. None of these can be switched off.
    Limits {
        /// Compressed bytes of one layer.
        blob_bytes: u64 = limits::Limits::default().blob_bytes;
        /// Uncompressed bytes of one layer, holes of its files included.
        stream_bytes: u64 = limits::Limits::default().stream_bytes;
        /// Uncompressed bytes per compressed byte, from 1 GiB of output on.
        expansion_ratio: u64 = limits::Limits::default().expansion_ratio;
        /// Bytes that stay free on the file system of the snapshots; the larger of this and the next holds.
        reserve_bytes: u64 = limits::Limits::default().reserve_bytes;
        /// Percent of the file system that stay free.
        reserve_percent: u64 = limits::Limits::default().reserve_percent;
        /// Files, directories, links and whiteouts of one layer.
        nodes: u64 = limits::Limits::default().nodes;
        /// Bytes of memory for the metadata of one layer.
        metadata_bytes: u64 = limits::Limits::default().metadata_bytes;
        /// Bytes of memory for the metadata of all layers together; layers that would exceed it wait.
        total_metadata_bytes: u64 = limits::Limits::default().total_metadata_bytes;
        /// Largest zstd window in bytes.
        zstd_window_bytes: u64 = limits::Limits::default().zstd_window_bytes;
        /// Bytes of memory of its own that a stream processor may have.
        processor_memory_bytes: u64 = 1 << 30;
        /// Seconds of processor time that a stream processor may take.
        processor_cpu_seconds: u64 = 3600;
        /// Seconds without progress from the content store, the disk or a stream processor before a request is
        /// given up.
        stall_seconds: u64 = limits::Limits::default().stall.as_secs();
    }
}

/// Form of the layers that Diff writes of changes above a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceDiff {
    /// An ordinary tar.
    Tar,
    /// A layer of the device.
    Overlaybd,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text with fields, for people.
    Text,
    /// JSON, one object per line.
    Json,
}

/// Precision of the times in tar layers.
// Its doc lines are the help of `plywood diff --timestamps` as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Timestamps {
    /// Whole seconds, rounded down
    Seconds,
    /// As the file system has them
    Nanoseconds,
}

/// Whether helpers decode large layers ahead.
// Its doc lines are the help of `plywood apply --decode-ahead` as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DecodeAhead {
    /// While processors have nothing else to do
    #[default]
    Auto,
    /// Never
    Off,
}

impl DecodeAhead {
    /// The setting in the form that the pipeline takes.
    pub fn options(self) -> AheadOptions {
        match self {
            Self::Auto => AheadOptions::AUTO,
            Self::Off => AheadOptions::OFF,
        }
    }
}

/// Inline limit of layers that are EROFS images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a number of bytes, or \"inherit\"")]
pub enum InlineLimit {
    /// Longest file or file end that is stored beside its inode, in bytes.
    Bytes(u32),
    /// Limit of all other images: `erofs.inline_limit`.
    Inherit(Inherit),
}

impl InlineLimit {
    /// Limit in bytes, given the limit `inherited` of all other images.
    pub fn bytes(self, inherited: u32) -> u32 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Inherit(Inherit::Inherit) => inherited,
        }
    }
}

/// Word in the place of a value that another key sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Inherit {
    /// The word `"inherit"`.
    Inherit,
}

/// All tables of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Table `[server]`: sockets, and bounds of connections and requests.
    pub server: Server,
    /// Table `[log]`: level and format of log lines.
    pub log: Log,
    /// Table `[containerd]`: the daemon whose content store holds the layers.
    pub containerd: Containerd,
    /// Table `[snapshots]`: directories that layers are written to and read from.
    pub snapshots: Snapshots,
    /// Table `[erofs]`: layout of the images written here.
    pub erofs: Erofs,
    /// Table `[overlaybd]`: layers in snapshots of the overlaybd snapshotter.
    pub overlaybd: Overlaybd,
    /// Table `[apply]`: durability and checks of applied layers.
    pub apply: Apply,
    /// Table `[diff]`: form of the layers that Diff writes.
    pub diff: Diff,
    /// Table `[security]`: confinement of the daemon.
    pub security: Security,
    /// Table `[limits]`: highest cost of one layer.
    pub limits: Limits,
    /// Table `[stream_processors]`: programs for layers of other types.
    #[serde(skip_serializing_if = "StreamProcessors::is_empty")]
    pub stream_processors: StreamProcessors,
}

/// Table of the file: name, comment lines, keys with their comment lines.
type Table = (&'static str, &'static [&'static str], &'static [(&'static str, &'static [&'static str])]);

/// All tables in the order of the file.
const TABLES: [Table; 10] = [
    ("server", Server::ABOUT, Server::KEYS),
    ("log", Log::ABOUT, Log::KEYS),
    ("containerd", Containerd::ABOUT, Containerd::KEYS),
    ("snapshots", Snapshots::ABOUT, Snapshots::KEYS),
    ("erofs", Erofs::ABOUT, Erofs::KEYS),
    ("overlaybd", Overlaybd::ABOUT, Overlaybd::KEYS),
    ("apply", Apply::ABOUT, Apply::KEYS),
    ("diff", Diff::ABOUT, Diff::KEYS),
    ("security", Security::ABOUT, Security::KEYS),
    ("limits", Limits::ABOUT, Limits::KEYS),
];

impl Config {
    /// Default file: every key with its comment and its default value.
    pub fn default_file() -> String {
        let values = toml::Table::try_from(Self::default()).expect("settings are plain values");
        let mut text = String::from(
            "# Plywood's configuration. Every value shown is the default: delete what you do not change.\n",
        );
        for (name, about, keys) in TABLES {
            text.push('\n');
            about.iter().for_each(|line| text.push_str(&format!("#{line}\n")));
            text.push_str(&format!("[{name}]\n"));
            for (key, comment) in keys {
                comment.iter().for_each(|line| text.push_str(&format!("#{line}\n")));
                let value = values.get(name).and_then(|table| table.get(*key));
                let value = value.expect("the keys are those of the structure");
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text + processors::ABOUT
    }

    /// Directories at which the content store may lie, for the sandbox.
    pub fn content_roots(&self) -> Vec<PathBuf> {
        let Containerd { direct_content, content_root, .. } = &self.containerd;
        if !direct_content {
            return Vec::new();
        }
        if !content_root.as_os_str().is_empty() {
            return vec![content_root.clone()];
        }
        let Snapshots { roots, overlaybd_roots, .. } = &self.snapshots;
        let roots = if roots.is_empty() { overlaybd_roots } else { roots };
        let beside = roots.iter().filter_map(|root| root.parent());
        let mut found: Vec<_> =
            beside.map(|parent| parent.join("io.containerd.content.v1.content")).collect();
        found.sort();
        found.dedup();
        found
    }

    /// Settings of Apply for snapshots of the overlaybd snapshotter.
    pub fn overlaybd(&self) -> apply::Overlaybd {
        let Overlaybd { layers, flavour, virtual_gib, kernel_index, published_ext4, .. } = self.overlaybd;
        let virtual_bytes = u64::from(virtual_gib) << 30;
        apply::Overlaybd { layers, flavour, virtual_bytes, kernel_index, published_ext4 }
    }

    /// Directories with images that snapshots share; empty when nothing reads the layers of a
    /// snapshot.
    pub fn shared_layers(&self) -> &[PathBuf] {
        let apply = &self.apply;
        let asks =
            apply.implied_directories == ImpliedDirectories::FromParents || apply.max_unmerged_layers > 0;
        let reads = self.diff.enabled || asks;
        if reads { &self.snapshots.shared_layers } else { &[] }
    }

    /// Directories read besides the snapshot roots, for the sandbox.
    pub fn read_roots(&self) -> Vec<PathBuf> {
        let (shared_layers, overlayfs_roots) = (self.shared_layers(), &self.snapshots.overlayfs_roots);
        if !self.diff.enabled {
            return shared_layers.to_vec();
        }
        let further = std::iter::once(&self.containerd.state_dir);
        overlayfs_roots.iter().chain(shared_layers).chain(further).cloned().collect()
    }

    /// Limits in the form that the rest of the program takes.
    pub fn limits(&self) -> limits::Limits {
        limits::Limits {
            blob_bytes: self.limits.blob_bytes,
            stream_bytes: self.limits.stream_bytes,
            expansion_ratio: self.limits.expansion_ratio,
            reserve_bytes: self.limits.reserve_bytes,
            reserve_percent: self.limits.reserve_percent,
            nodes: self.limits.nodes,
            metadata_bytes: self.limits.metadata_bytes,
            total_metadata_bytes: self.limits.total_metadata_bytes,
            zstd_window_bytes: self.limits.zstd_window_bytes,
            stall: Duration::from_secs(self.limits.stall_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_default_file_says_what_holds_without_a_file() {
        let text = Config::default_file();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        assert_eq!(Config::default().limits(), limits::Limits::default());
    }

    #[test]
    fn the_content_store_is_expected_beside_the_snapshots() {
        let with = |text: &str| toml::from_str::<Config>(text).unwrap().content_roots();
        let beside = PathBuf::from("/var/lib/containerd/io.containerd.content.v1.content");
        assert_eq!(with(""), [beside.as_path()]);
        assert_eq!(with("[snapshots]\nroots = [\"/a/x\", \"/a/y\"]").len(), 1);
        assert_eq!(with("[containerd]\ncontent_root = \"/c\""), [Path::new("/c")]);
        assert!(with("[containerd]\ndirect_content = false\ncontent_root = \"/c\"").is_empty());
    }

    #[test]
    fn without_diff_only_shared_layers_are_read_and_only_for_the_directories_above_them() {
        let with = |text: &str| toml::from_str::<Config>(text).unwrap().read_roots();
        let text =
            "[snapshots]\nshared_layers = [\"/s\"]\n[diff]\nenabled = false\n[apply]\nimplied_directories = ";
        assert_eq!(with(&format!("{text}\"from-parents\"")), [Path::new("/s")]);
        assert_eq!(with(&format!("{text}\"default\"")), Vec::<PathBuf>::new());
        let text = "[snapshots]\noverlayfs_roots = [\"/o\"]\nshared_layers = [\"/s\"]\n[containerd]\nstate_dir = \"/r\"";
        assert_eq!(with(text), [Path::new("/o"), Path::new("/s"), Path::new("/r")]);
    }

    #[test]
    fn every_table_and_every_key_is_explained() {
        let values = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(values.len(), TABLES.len());
        for (name, about, keys) in TABLES {
            assert!(!about.is_empty(), "{name}");
            assert_eq!(values[name].as_table().unwrap().len(), keys.len(), "{name}");
            for (key, comment) in keys {
                assert!(!comment.is_empty(), "{name}.{key}");
            }
        }
        let longest = Config::default_file().lines().map(str::len).max();
        assert!(longest <= Some(110), "{longest:?}");
    }
}
