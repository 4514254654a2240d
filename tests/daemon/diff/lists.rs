//! The mount lists of snapshots, as containerd's EROFS snapshotter writes them.
//!
//! Source: docs/formats/containerd.md, "Mount lists"; containerd `plugins/snapshots/erofs/erofs.go`.

use std::path::Path;

use plywood::snapshot::Mount;

/// Whose form a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// containerd 2.1: paths.
    V21,
    /// containerd 2.2 and later: templates.
    V22,
}

/// Where an active snapshot is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `fs/` in its directory.
    Directory,
    /// `upper/` in an ext4 image.
    Block,
}

fn mount(kind: &str, source: String, options: &[String]) -> Mount {
    Mount { kind: kind.to_owned(), source, target: String::new(), options: options.to_vec() }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// The lists of snapshots below a root. Snapshots are numbers, parents the nearest first.
pub struct Lists<'a> {
    pub root: &'a Path,
    pub release: Release,
}

impl Lists<'_> {
    fn at(&self, id: u32, name: &str) -> String {
        self.root.join(format!("snapshots/{id}/{name}")).display().to_string()
    }

    /// One mount for each parent.
    fn images(&self, parents: &[u32]) -> Vec<Mount> {
        parents.iter().map(|id| mount("erofs", self.at(*id, "layer.erofs"), &words("ro loop"))).collect()
    }

    fn directories(&self, parents: &[u32]) -> String {
        let directories: Vec<_> = parents.iter().map(|id| self.at(*id, "fs")).collect();
        directories.join(":")
    }

    /// Template of overlayfs's `lowerdir`: mount `first` and those after it.
    fn lower_template(first: usize, count: usize) -> String {
        match count {
            1 => format!("lowerdir={{{{ mount {first} }}}}"),
            _ => format!("lowerdir={{{{ overlay {first} {} }}}}", first + count - 1),
        }
    }

    /// A view of `parents`; `own` is its own number, which shows when there is nothing to view.
    pub fn view(&self, own: u32, parents: &[u32]) -> Vec<Mount> {
        let mut list = self.images(parents);
        match (parents.len(), self.release) {
            (0, _) => vec![mount("bind", self.at(own, "fs"), &words("ro rbind"))],
            (1, _) => list,
            (_, Release::V21) => {
                vec![mount("overlay", "overlay".into(), &[format!("lowerdir={}", self.directories(parents))])]
            }
            (count, Release::V22) => {
                list.push(mount("format/mkdir/overlay", "overlay".into(), &[Self::lower_template(0, count)]));
                list
            }
        }
    }

    /// The active snapshot `own` on top of `parents`.
    pub fn active(&self, own: u32, parents: &[u32], mode: Mode) -> Vec<Mount> {
        match mode {
            Mode::Directory => self.active_directory(own, parents, &[]),
            Mode::Block => self.active_block(own, parents),
        }
    }

    /// Like [`Self::active`] in directory mode, with `more` options on the overlay.
    pub fn active_directory(&self, own: u32, parents: &[u32], more: &[&str]) -> Vec<Mount> {
        if parents.is_empty() {
            return vec![mount("bind", self.at(own, "fs"), &words("rw rbind"))];
        }
        let mut options =
            vec![format!("workdir={}", self.at(own, "work")), format!("upperdir={}", self.at(own, "fs"))];
        let (mut list, kind) = match self.release {
            Release::V21 => {
                options.push(format!("lowerdir={}", self.directories(parents)));
                (Vec::new(), "overlay")
            }
            Release::V22 => {
                options.push(Self::lower_template(0, parents.len()));
                (self.images(parents), "format/mkdir/overlay")
            }
        };
        options.extend(more.iter().map(|option| (*option).to_owned()));
        list.push(mount(kind, "overlay".into(), &options));
        list
    }

    /// The view `own` of nothing in block mode. It has neither image nor marker.
    pub fn view_of_nothing_in_block_mode(&self, own: u32) -> Vec<Mount> {
        let mut list = self.active_block(own, &[]);
        for option in list.iter_mut().flat_map(|mount| &mut mount.options).filter(|option| *option == "rw") {
            *option = "ro".to_owned();
        }
        list
    }

    fn active_block(&self, own: u32, parents: &[u32]) -> Vec<Mount> {
        let make = words("X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop");
        let mut list = vec![mount("mkfs/ext4", self.at(own, "rwlayer.img"), &make)];
        let directory = |name: &str| format!("X-containerd.mkdir.path={{{{ mount 0 }}}}/{name}:0755");
        if parents.is_empty() {
            let options = [directory("upper"), "rw".to_owned(), "rbind".to_owned()];
            list.push(mount("format/mkdir/bind", "{{ mount 0 }}/upper".into(), &options));
            return list;
        }
        list.extend(self.images(parents));
        let options = [
            directory("upper"),
            directory("work"),
            "workdir={{ mount 0 }}/work".to_owned(),
            "upperdir={{ mount 0 }}/upper".to_owned(),
            Self::lower_template(1, parents.len()),
        ];
        list.push(mount("format/mkdir/overlay", "overlay".into(), &options));
        list
    }

    /// A view of `parents`, of which the last `merged` are seen through the merged metadata of the first of
    /// them (containerd 2.3).
    pub fn view_merged(&self, parents: &[u32], merged: usize) -> Vec<Mount> {
        let (above, below) = parents.split_at(parents.len() - merged);
        let mut list = self.images(above);
        list.push(self.merged(below));
        let last = match above.len() {
            0 => mount("format/bind", "{{ mount 0 }}".into(), &words("ro rbind")),
            count => mount("format/mkdir/overlay", "overlay".into(), &[Self::lower_template(0, count + 1)]),
        };
        list.push(last);
        list
    }

    /// The active snapshot `own` on top of the same.
    pub fn active_merged(&self, own: u32, parents: &[u32], merged: usize) -> Vec<Mount> {
        let (above, below) = parents.split_at(parents.len() - merged);
        let mut list = self.images(above);
        list.push(self.merged(below));
        let options = [
            format!("workdir={}", self.at(own, "work")),
            format!("upperdir={}", self.at(own, "fs")),
            Self::lower_template(0, above.len() + 1),
        ];
        list.push(mount("format/mkdir/overlay", "overlay".into(), &options));
        list
    }

    /// One mount for all of `layers`, whose devices are named from the bottom up.
    fn merged(&self, layers: &[u32]) -> Mount {
        let mut options = words("ro loop");
        options.extend(layers.iter().rev().map(|id| format!("device={}", self.at(*id, "layer.erofs"))));
        mount("erofs", self.at(layers[0], "fsmeta.erofs"), &options)
    }
}
