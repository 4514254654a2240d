//! Whether two images hold the same tree, although they are not the same bytes.
//!
//! mkfs.erofs, which containerd's own differ calls, lays out an image in another way than we do, and fills in what an
//! archive leaves open with other values: the root and the directories that it does not list.

use std::collections::BTreeMap;

use crate::{
    call::Cancel,
    compare::changes::same_data,
    error::{Quoted, Result},
    tree::{Attributes, Device, FileType, Timestamp, Xattr},
    view::{At, Node, View},
};

/// Directories that both trees have and that remain to be compared.
struct Pending {
    path: Vec<u8>,
    nodes: [Node; 2],
}

/// What an archive leaves open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// It has names in directories that it does not list.
    pub(super) implied: bool,
}

/// Finds the first difference between the tree of `image` and that of `made`, in words. `None`: there is none.
pub(super) fn difference(
    image: &dyn View,
    made: &dyn View,
    open: Open,
    cancel: &Cancel,
) -> Result<Option<String>> {
    let views = [image, made];
    let mut comparison = Comparison { views, open, cancel, inodes: [BTreeMap::new(), BTreeMap::new()] };
    let nodes = [image.root()?, made.root()?];
    if let Some(what) = comparison.node(b"", &nodes)? {
        return Ok(Some(format!("the root: {what}")));
    }
    let mut pending = vec![Pending { path: Vec::new(), nodes }];
    while let Some(Pending { path, nodes }) = pending.pop() {
        cancel.check()?;
        let names = comparison.names(&path, &nodes)?;
        let [own, wanted] = &names;
        if let Some(name) = first_difference(own, wanted) {
            let place = join(&path, &name);
            let what = if own.binary_search(&name).is_ok() { "is not in the layer" } else { "is missing" };
            return Ok(Some(format!("{} {what}", Quoted(&place))));
        }
        for name in own {
            let place = join(&path, name);
            let [a, b] = comparison.children(&path, &nodes, name)?;
            let (Some(a), Some(b)) = (a, b) else {
                return Ok(Some(format!("{} is listed and cannot be found", Quoted(&place))));
            };
            let nodes = [a, b];
            if let Some(what) = comparison.node(&place, &nodes)? {
                return Ok(Some(format!("{}: {what}", Quoted(&place))));
            }
            if nodes.iter().all(|node| node.file_type == FileType::Directory) {
                pending.push(Pending { path: place, nodes });
            }
        }
    }
    Ok(None)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// The first name that only one of two sorted lists has.
fn first_difference(a: &[Vec<u8>], b: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut pairs = a.iter().zip(b);
    match pairs.find(|(a, b)| a != b) {
        Some((a, b)) => Some(a.min(b).clone()),
        None => a.get(b.len()).or_else(|| b.get(a.len())).cloned(),
    }
}

struct Comparison<'a> {
    views: [&'a dyn View; 2],
    open: Open,
    cancel: &'a Cancel,
    /// Inodes with several names: of each view, those of the other by their numbers.
    inodes: [BTreeMap<u64, u64>; 2],
}

impl Comparison<'_> {
    /// The names in a directory of both, sorted.
    fn names(&self, path: &[u8], nodes: &[Node; 2]) -> Result<[Vec<Vec<u8>>; 2]> {
        let mut all = [Vec::new(), Vec::new()];
        for ((view, node), names) in self.views.iter().zip(nodes).zip(&mut all) {
            view.names(At { path, node }, &mut |name| {
                names.push(name.to_vec());
                Ok(())
            })?;
            names.sort();
        }
        Ok(all)
    }

    fn children(&self, path: &[u8], nodes: &[Node; 2], name: &[u8]) -> Result<[Option<Node>; 2]> {
        let [a, b] = self.views;
        let [of_a, of_b] = nodes;
        Ok([a.lookup(At { path, node: of_a }, name)?, b.lookup(At { path, node: of_b }, name)?])
    }

    /// Compares two files of the same name, without what is in a directory.
    fn node(&mut self, path: &[u8], nodes: &[Node; 2]) -> Result<Option<String>> {
        let [a, b] = nodes;
        if (a.file_type, a.device) != (b.file_type, b.device) {
            return Ok(Some(format!("{:?} instead of {:?}", a.file_type, b.file_type)));
        }
        // overlayfs looks at nothing else of it.
        if (a.file_type, a.device) == (FileType::CharDevice, Device::WHITEOUT) {
            return Ok(None);
        }
        let xattrs = [self.xattrs(0, path, a)?, self.xattrs(1, path, b)?];
        let [own, wanted] = &xattrs;
        if (a.attributes != b.attributes || own != wanted) && !self.is_left_open(path, a, own) {
            let (found, want) = (a.attributes, b.attributes);
            return Ok(Some(match own == wanted {
                true => format!("{} instead of {}", shown(found), shown(want)),
                false => "other extended attributes".to_owned(),
            }));
        }
        if a.file_type == FileType::Directory {
            return Ok(None);
        }
        if (a.size_bytes, a.links.max(1)) != (b.size_bytes, b.links.max(1)) {
            let text = |node: &Node| format!("{} bytes and {} names", node.size_bytes, node.links.max(1));
            return Ok(Some(format!("{} instead of {}", text(a), text(b))));
        }
        if a.links > 1 {
            let [to_b, to_a] = &mut self.inodes;
            let is_new = !to_b.contains_key(&a.inode);
            let fits = *to_b.entry(a.inode).or_insert(b.inode) == b.inode
                && *to_a.entry(b.inode).or_insert(a.inode) == a.inode;
            if !fits {
                return Ok(Some("a hard link to another file".to_owned()));
            }
            // Under another name it was compared already.
            if !is_new {
                return Ok(None);
            }
        }
        let [view, other] = self.views;
        let (at, at_other) = (At { path, node: a }, At { path, node: b });
        let is_same = match a.file_type {
            FileType::Symlink => view.symlink_target(at)? == other.symlink_target(at_other)?,
            FileType::Regular => same_data((view, at), (other, at_other), self.cancel)?,
            _ => true,
        };
        Ok((!is_same).then(|| "other contents".to_owned()))
    }

    /// Extended attributes, without an empty mark that says only that there are whiteouts.
    fn xattrs(&self, side: usize, path: &[u8], node: &Node) -> Result<Vec<Xattr>> {
        let Some(view) = self.views.get(side) else { return Ok(Vec::new()) };
        let mut xattrs = view.xattrs(At { path, node })?;
        xattrs.retain(|xattr| !(xattr.name == b"trusted.overlay.origin" && xattr.value.is_empty()));
        Ok(xattrs)
    }

    /// Whether a directory has the attributes that makers of images give the root and directories that an archive does
    /// not list: root's, mode 0755 or 0777, the time 0.
    fn is_left_open(&self, path: &[u8], node: &Node, xattrs: &[Xattr]) -> bool {
        let Attributes { mode, uid, gid, mtime } = node.attributes;
        (path.is_empty() || self.open.implied)
            && node.file_type == FileType::Directory
            && (uid, gid) == (0, 0)
            && matches!(mode, 0o755 | 0o777)
            && mtime == Timestamp::default()
            && xattrs.is_empty()
    }
}

fn shown(attributes: Attributes) -> String {
    let Attributes { mode, uid, gid, mtime } = attributes;
    format!("mode {mode:04o}, owner {uid}:{gid}, time {}.{:09}", mtime.seconds, mtime.nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::view::{ErofsView, Volume, fixture::Entries};

    fn view(entries: &Entries) -> ErofsView<Volume> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&entries.image()).unwrap();
        ErofsView::open(file.into(), Vec::new(), (0, 1), "image".to_owned(), &Cancel::new()).unwrap()
    }

    fn between(image: &Entries, made: &Entries, implied: bool) -> Option<String> {
        difference(&view(image), &view(made), Open { implied }, &Cancel::new()).unwrap()
    }

    /// A layer with one of everything.
    fn layer() -> Entries {
        let data = "x".repeat(9000);
        Entries::new()
            .dir("d")
            .time(5, 6)
            .file("d/file", &data)
            .owner(1, 2)
            .xattr("user.a", "value")
            .file("linked", "text")
            .link("other", "linked")
            .symlink("s", "target")
            .fifo("pipe")
            .char_device("null", 1, 3)
            .whiteout("gone")
            .dir("hidden")
            .opaque("hidden")
    }

    #[test]
    fn the_same_layer_is_the_same_tree() {
        assert_eq!(between(&layer(), &layer(), false), None);
        assert_eq!(between(&Entries::new(), &Entries::new(), false), None);
    }

    #[test]
    fn every_change_that_shows_is_found() {
        let with = |change: fn(Entries) -> Entries| between(&change(layer()), &layer(), false);
        for (what, found, want) in [
            ("a name", with(|layer| layer.file("more", "")), "\"more\" is not in the layer"),
            ("a deletion", with(|layer| layer.whiteout("more")), "\"more\" is not in the layer"),
            ("contents", with(|layer| layer.file("linked", "texT")), "\"linked\": "),
            ("a length", with(|layer| layer.file("d/file", "x").owner(1, 2)), "\"d/file\": "),
            ("a type", with(|layer| layer.file("pipe", "")), "\"pipe\": Regular instead of Fifo"),
            (
                "a device",
                with(|layer| layer.char_device("null", 1, 5)),
                "\"null\": CharDevice instead of CharDevice",
            ),
            ("a target", with(|layer| layer.symlink("s", "targeT")), "\"s\": other contents"),
            (
                "a time",
                with(|layer| layer.dir("d").time(5, 7)),
                "\"d\": mode 0755, owner 0:0, time 5.000000007",
            ),
            ("a mode", with(|layer| layer.dir("d").time(5, 6).mode(0o700)), "\"d\": mode 0700"),
            (
                "an attribute",
                with(|layer| layer.dir("hidden").xattr("user.b", "")),
                "\"hidden\": other extended",
            ),
        ] {
            assert!(found.as_ref().is_some_and(|text| text.starts_with(want)), "{what}: {found:?}");
        }
        let found = between(&layer(), &layer().file("more", ""), false);
        assert_eq!(found.as_deref(), Some("\"more\" is missing"));
        // Two files with the same contents are not two names of one.
        let (one, two) = (
            Entries::new().file("a", "x").link("b", "a").file("c", "y").link("d", "c"),
            Entries::new().file("a", "x").link("d", "a").file("b", "y").link("c", "b"),
        );
        assert!(between(&one, &two, false).is_some());
    }

    #[test]
    fn what_an_archive_leaves_open_may_be_filled_in_either_way() {
        let implied = |mode| Entries::new().dir("d").mode(mode).file("d/f", "x");
        let inherited = Entries::new().dir("d").mode(0o700).owner(7, 7).time(1, 0).file("d/f", "x");
        assert_eq!(between(&implied(0o755), &inherited, true), None);
        assert_eq!(between(&implied(0o777), &inherited, true), None);
        assert!(between(&implied(0o755), &inherited, false).is_some(), "the archive lists it");
        assert!(between(&implied(0o700), &inherited, true).is_some(), "nobody gives it that mode");
    }
}
