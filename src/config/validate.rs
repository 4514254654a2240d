//! Finds values that parse but cannot work, before anything is opened.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
};

use super::{Config, ConfigError, log_filter, paths::is_absolute, processors};

/// Longest path of a unix socket, in bytes: `sun_path` without its NUL.
const SOCKET_PATH_BYTES: usize = 107;

impl Config {
    /// Errors: [`ConfigError::Value`] for the first value that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_server()?;
        let log = &self.log.level;
        log_filter(log).map_err(|problem| refuse("log.level", log, problem))?;
        socket("containerd.address", &self.containerd.address)?;
        let content_root = &self.containerd.content_root;
        if !content_root.as_os_str().is_empty() {
            absolute("containerd.content_root", content_root)?;
        }
        absolute("containerd.state_dir", &self.containerd.state_dir)?;
        self.validate_roots()?;
        let erofs = &self.erofs;
        // A kernel does not mount an image whose blocks are larger than its pages.
        let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        if !erofs.block_size.is_power_of_two() || !(512..=page).contains(&erofs.block_size) {
            let problem = format!("not a power of two from 512 to the page size, {page}");
            return Err(refuse("erofs.block_size", erofs.block_size, problem));
        }
        let diff_limit = self.diff.inline_limit.bytes(erofs.inline_limit);
        for (key, limit) in [("erofs.inline_limit", erofs.inline_limit), ("diff.inline_limit", diff_limit)] {
            if limit > erofs.block_size {
                let problem = format!("more than one block of {} bytes", erofs.block_size);
                return Err(refuse(key, limit, problem));
            }
        }
        // The largest device that LSMT's index can describe is far larger; a file system of that size is not.
        between("overlaybd.virtual_gib", self.overlaybd.virtual_gib.into(), 1, 16 << 10)?;
        if self.overlaybd.snapshotter.is_empty() {
            return Err(refuse("overlaybd.snapshotter", "", "empty"));
        }
        self.validate_diff()?;
        processors::check(&self.stream_processors)
            .map_err(|(id, problem)| refuse("stream_processors", id, problem))?;
        self.validate_limits()
    }

    fn validate_diff(&self) -> Result<(), ConfigError> {
        let diff = &self.diff;
        // A caller needs a moment to refer to the layer. After a day it no longer will.
        between("diff.lease_seconds", diff.lease_seconds, 60, 86_400)?;
        between("diff.gzip_level", diff.gzip_level.into(), 1, 9)?;
        between("diff.zstd_level", diff.zstd_level.into(), 1, 19)?;
        if !diff.work_directory.as_os_str().is_empty() {
            absolute("diff.work_directory", &diff.work_directory)?;
        }
        let has_form = |name: &&String| {
            let start = name.strip_suffix('*').unwrap_or(name);
            start.contains('.') && start.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*')
        };
        match diff.xattrs.iter().find(|name| !has_form(name)) {
            Some(name) => {
                let problem = "not a name such as security.capability, nor a beginning such as user.*";
                Err(refuse("diff.xattrs", name, problem))
            }
            None => Ok(()),
        }
    }

    fn validate_server(&self) -> Result<(), ConfigError> {
        let server = &self.server;
        socket("server.socket", &server.socket)?;
        if !server.metrics_socket.as_os_str().is_empty() {
            socket("server.metrics_socket", &server.metrics_socket)?;
            if server.metrics_socket == server.socket {
                return Err(refuse("server.metrics_socket", &server.metrics_socket, "also server.socket"));
            }
        }
        between("server.max_connections", server.max_connections.into(), 1, 4096)?;
        between("server.max_streams", server.max_streams.into(), 1, 4096)?;
        between("server.running_applies", server.running_applies.into(), 0, 256)?;
        between("server.waiting_applies", server.waiting_applies.into(), 0, 65_536)?;
        between("server.drain_seconds", server.drain_seconds, 0, 3600)
    }

    fn validate_roots(&self) -> Result<(), ConfigError> {
        let roots = &self.snapshots.roots;
        if roots.is_empty() && self.snapshots.overlaybd_roots.is_empty() {
            return Err(refuse("snapshots.roots", roots, "empty: every request would be refused"));
        }
        let named = |key: &'static str, paths: &'_ [PathBuf]| {
            paths.iter().map(move |path| (key, path.clone())).collect::<Vec<_>>()
        };
        let mut all = named("snapshots.roots", roots);
        all.extend(named("snapshots.overlayfs_roots", &self.snapshots.overlayfs_roots));
        all.extend(named("snapshots.overlaybd_roots", &self.snapshots.overlaybd_roots));
        all.extend(named("snapshots.shared_layers", &self.snapshots.shared_layers));
        for (number, (key, root)) in all.iter().enumerate() {
            absolute(key, root)?;
            let others = all.iter().enumerate().filter(|(other, _)| *other != number);
            if let Some((_, (_, other))) = others.into_iter().find(|(_, (_, other))| root.starts_with(other))
            {
                return Err(refuse(key, root, format!("lies in {other:?}")));
            }
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        // EROFS counts blocks in 32 bits, which is 2^44 bytes with blocks of 4 KiB; and sums of
        // sizes must not overflow.
        const MOST_BYTES: u64 = 1 << 44;
        between("limits.blob_bytes", limits.blob_bytes, 1, MOST_BYTES)?;
        between("limits.stream_bytes", limits.stream_bytes, 1, MOST_BYTES)?;
        between("limits.expansion_ratio", limits.expansion_ratio, 2, 1 << 20)?;
        between("limits.reserve_bytes", limits.reserve_bytes, 0, MOST_BYTES)?;
        between("limits.reserve_percent", limits.reserve_percent, 0, 90)?;
        between("limits.nodes", limits.nodes, 1, 1 << 31)?;
        between("limits.metadata_bytes", limits.metadata_bytes, 1 << 20, MOST_BYTES)?;
        between(
            "limits.total_metadata_bytes",
            limits.total_metadata_bytes,
            limits.metadata_bytes,
            MOST_BYTES,
        )?;
        // 1 KiB is the smallest window of the format, 2 GiB the largest that decoders accept.
        between("limits.zstd_window_bytes", limits.zstd_window_bytes, 1 << 10, 1 << 31)?;
        // Less does not start a program; a day is more than any layer takes.
        between("limits.processor_memory_bytes", limits.processor_memory_bytes, 16 << 20, MOST_BYTES)?;
        between("limits.processor_cpu_seconds", limits.processor_cpu_seconds, 1, 86_400)?;
        between("limits.stall_seconds", limits.stall_seconds, 1, 86_400)
    }
}

fn refuse(key: &'static str, value: impl Debug, problem: impl ToString) -> ConfigError {
    ConfigError::Value { key, value: format!("{value:?}"), problem: problem.to_string() }
}

fn between(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if !(least..=most).contains(&value) {
        return Err(refuse(key, value, format!("not within {least} and {most}")));
    }
    Ok(())
}

fn absolute(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    if !is_absolute(path) {
        return Err(refuse(key, path, "not an absolute path without \"..\""));
    }
    Ok(())
}

fn socket(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    absolute(key, path)?;
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_BYTES {
        let problem = format!("{len} bytes, but a unix socket's path has at most {SOCKET_PATH_BYTES}");
        return Err(refuse(key, path, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(crate::config::Config::default().validate().err().map(|e| e.to_string()), None);
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        let long = format!("[server]\nsocket = \"/{}\"", "a".repeat(107));
        for (text, key) in [
            ("[server]\nsocket = \"run/x.sock\"", "server.socket"),
            ("[server]\nsocket = \"/run/../x.sock\"", "server.socket"),
            ("[server]\nsocket = \"\"", "server.socket"),
            (&long, "server.socket"),
            ("[server]\nmetrics_socket = \"/run/plywood/plywood.sock\"", "server.metrics_socket"),
            ("[server]\nmax_connections = 0", "server.max_connections"),
            ("[log]\nlevel = \"plywood=loud\"", "log.level"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[log]\nlevel = \"\"", "log.level"),
            ("[snapshots]\nroots = []\noverlaybd_roots = []", "snapshots.roots"),
            ("[snapshots]\nroots = [\"/a\"]\noverlaybd_roots = [\"/a\"]", "snapshots.roots"),
            ("[overlaybd]\nvirtual_gib = 0", "overlaybd.virtual_gib"),
            ("[overlaybd]\nsnapshotter = \"\"", "overlaybd.snapshotter"),
            ("[snapshots]\nroots = [\"/\"]", "snapshots.roots"),
            ("[snapshots]\nroots = [\"/a\", \"/a\"]", "snapshots.roots"),
            ("[snapshots]\nroots = [\"/a\", \"/a/b\"]", "snapshots.roots"),
            ("[snapshots]\noverlayfs_roots = [\"a\"]", "snapshots.overlayfs_roots"),
            ("[snapshots]\nroots = [\"/a\"]\noverlayfs_roots = [\"/a/b\"]", "snapshots.overlayfs_roots"),
            ("[snapshots]\nroots = [\"/a/b\"]\noverlayfs_roots = [\"/a\"]", "snapshots.roots"),
            ("[snapshots]\nshared_layers = [\"/a\", \"/a\"]", "snapshots.shared_layers"),
            ("[containerd]\nstate_dir = \"\"", "containerd.state_dir"),
            ("[erofs]\nblock_size = 1048576", "erofs.block_size"),
            ("[erofs]\nblock_size = 3000", "erofs.block_size"),
            ("[erofs]\nblock_size = 512", "erofs.inline_limit"),
            ("[diff]\nlease_seconds = 59", "diff.lease_seconds"),
            ("[diff]\ninline_limit = 4097", "diff.inline_limit"),
            ("[erofs]\nblock_size = 512\ninline_limit = 0\n[diff]\ninline_limit = 513", "diff.inline_limit"),
            ("[diff]\ngzip_level = 0", "diff.gzip_level"),
            ("[diff]\nzstd_level = 20", "diff.zstd_level"),
            ("[diff]\nxattrs = [\"*\"]", "diff.xattrs"),
            ("[diff]\nxattrs = [\"user.*.x\"]", "diff.xattrs"),
            ("[limits]\nnodes = 0", "limits.nodes"),
            ("[limits]\nstall_seconds = 0", "limits.stall_seconds"),
            ("[limits]\ntotal_metadata_bytes = 2000000000", "limits.total_metadata_bytes"),
        ] {
            let message = parse(text, "test").unwrap_err().to_string();
            assert!(message.starts_with(&format!("{key} = ")), "{text}: {message}");
        }
    }

    #[test]
    fn metrics_can_be_turned_off_and_roots_can_share_a_parent() {
        assert!(parse("[server]\nmetrics_socket = \"\"", "test").is_ok());
        assert!(parse("[snapshots]\nroots = [\"/a/b\", \"/a/bc\"]", "test").is_ok());
    }
}
