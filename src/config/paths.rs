//! Paths in the configuration.

use std::path::{Component, Path};

/// Whether `path` starts at the root, and names something in it without `..`.
pub(super) fn is_absolute(path: &Path) -> bool {
    let mut parts = path.components();
    let starts_at_root = parts.next() == Some(Component::RootDir);
    starts_at_root && parts.all(|part| matches!(part, Component::Normal(_))) && path != Path::new("/")
}
