//! Trees that containers see, and the tree that a stack of layers must give.

use std::path::Path;

pub use testkit::layers::stack;
pub use testkit::tree::{Kind, Node, Tree};
use testkit::{Failed, tree};

/// Reads a whole tree. The links of directories are counted, because file systems differ in them.
pub fn scan(root: &Path) -> anyhow::Result<Tree> {
    let mut tree = tree::scan(root).map_err(error)?;
    tree::count_links(&mut tree);
    Ok(tree)
}

/// A tree as a tar layer can carry it: whole seconds, no sockets, no entry for the root.
pub fn carried(root: &Path) -> anyhow::Result<Tree> {
    let mut tree = scan(root)?;
    tree.remove(&b""[..]);
    tree.retain(|_, node| node.kind != Kind::Socket);
    for node in tree.values_mut() {
        node.mtime.1 = 0;
    }
    tree::count_links(&mut tree);
    Ok(tree)
}

/// An error that lists the first differences between two trees; fine when there are none.
pub fn ensure_equal(want: &Tree, found: &Tree) -> anyhow::Result<()> {
    tree::compare(want, found).map_err(error)
}

fn error(failed: Failed) -> anyhow::Error {
    anyhow::anyhow!("{}", failed.message().unwrap_or("failed"))
}
