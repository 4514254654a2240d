//! Applies a layer to a tree, by the OCI image specification (`layer.md`, "Applying Changesets"): for a layer that
//! GNU tar extracted, which knows nothing of whiteouts.

use testkit::tree::{Kind, Tree, count_links, split};

/// Applies the tree that an archive extracts to, whiteout names and all.
pub fn merge(mut below: Tree, layer: Tree) -> Tree {
    // Whatever is deleted is deleted from below only, so that comes first.
    for name in layer.keys() {
        let (directory, last) = split(name);
        match last.strip_prefix(b".wh.") {
            Some(b".wh..opq") => remove_below(&mut below, directory),
            Some(hidden) => {
                let target =
                    if directory.is_empty() { hidden.to_vec() } else { [directory, b"/", hidden].concat() };
                assert!(below.contains_key(&target), "a whiteout of nothing: {}", name.escape_ascii());
                remove_below(&mut below, &target);
                below.remove(&target);
            }
            None => {}
        }
    }
    // The groups of the layer are not those of the tree below.
    let most = below.values().map(|node| node.link_group).max().unwrap_or(0);
    for (name, mut node) in layer {
        if split(&name).1.starts_with(b".wh.") {
            continue;
        }
        let both_directories = node.kind == Kind::Directory
            && below.get(&name).is_some_and(|found| found.kind == Kind::Directory);
        if !both_directories {
            remove_below(&mut below, &name);
        }
        if node.kind != Kind::Directory {
            node.link_group += most;
        }
        below.insert(name, node);
    }
    count_links(&mut below);
    below
}

fn remove_below(tree: &mut Tree, directory: &[u8]) {
    let start = if directory.is_empty() { Vec::new() } else { [directory, b"/"].concat() };
    tree.retain(|name, _| name.is_empty() || name == directory || !name.starts_with(&start));
}
