//! Checks that this machine has the paths of a configuration, as `plywood serve` needs them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use super::output::io_text;
use crate::{config::Config, error::Error, processor::check_program, snapshot::check_root};

/// User of the daemon.
const ROOT: u32 = 0;

/// Returns one line for each path that the daemon could not use at present: setting, path and problem.
pub fn problems(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |key: &str, path: &Path, problem: Result<(), String>| {
        if let Err(problem) = problem {
            found.push(format!("{key} = {path:?}: {problem}"));
        }
    };
    let snapshots = &config.snapshots;
    let mut roots = vec![("snapshots.roots", &snapshots.roots)];
    if config.diff.enabled {
        roots.push(("snapshots.overlayfs_roots", &snapshots.overlayfs_roots));
        roots.push(("snapshots.shared_layers", &snapshots.shared_layers));
        look("containerd.state_dir", &config.containerd.state_dir, directory(&config.containerd.state_dir));
        let work = &config.diff.work_directory;
        if !work.as_os_str().is_empty() {
            look("diff.work_directory", work, directory(work));
        }
    }
    // Without the snapshotter there is no root, which is no problem.
    let overlaybd: Vec<_> = snapshots.overlaybd_roots.iter().filter(|root| root.exists()).cloned().collect();
    roots.push(("snapshots.overlaybd_roots", &overlaybd));
    for (key, paths) in roots {
        for path in paths {
            let usable = check_root(path, ROOT).map_err(|error| Error::from(error).to_string());
            look(key, path, usable);
        }
    }
    for path in config.content_roots() {
        look("containerd.content_root", &path, directory(&path));
    }
    look("containerd.address", &config.containerd.address, socket(&config.containerd.address));
    for processor in config.stream_processors.values() {
        let usable =
            check_program(&processor.path, ROOT).map(drop).map_err(|error| Error::from(error).to_string());
        look("stream_processors", &processor.path, usable);
    }
    let server = &config.server;
    look("server.socket", &server.socket, place_of_socket(&server.socket));
    if !server.metrics_socket.as_os_str().is_empty() {
        look("server.metrics_socket", &server.metrics_socket, place_of_socket(&server.metrics_socket));
    }
    found
}

fn directory(path: &Path) -> Result<(), String> {
    match fs::metadata(path).map_err(text)? {
        found if found.is_dir() => Ok(()),
        _ => Err("not a directory".to_owned()),
    }
}

fn socket(path: &Path) -> Result<(), String> {
    match fs::metadata(path).map_err(text)? {
        found if found.file_type().is_socket() => Ok(()),
        _ => Err("not a socket".to_owned()),
    }
}

/// Whether the daemon could create a socket at `path`, or has done so already.
fn place_of_socket(path: &Path) -> Result<(), String> {
    let parent = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err("something else is there".to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(text(error)),
        _ => {}
    }
    let beside = parent(path);
    match fs::metadata(&beside) {
        Ok(found) if !found.is_dir() => Err(format!("{beside:?} is not a directory")),
        Ok(found) if found.uid() != ROOT || found.mode() & 0o022 != 0 => Err(format!(
            "{beside:?} belongs to uid {} and has mode {:04o}; it must belong to root and be writable by nobody else",
            found.uid(),
            found.mode() & 0o7777
        )),
        // The daemon creates the last directory of the path, none above it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => directory(&parent(&beside)),
        Err(error) => Err(text(error)),
        Ok(_) => Ok(()),
    }
}

fn text(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => io_text(&error),
    }
}
