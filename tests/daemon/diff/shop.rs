//! Snapshots with something in them, and the proof of a Diff: applied to what was before, it gives what is.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use plywood::{compare::Request, digest::Digest, rpc::convert, snapshot::Mount};
use rustix::fs::{CWD, FileType, Mode as Permissions, XattrFlags, makedev};
use testkit::{
    host,
    images::{self, Mounted},
    mounts::{Looped, Overlay},
    tree::{self, Kind, Tree},
};

use super::lists::{Lists, Release};
use crate::harness::*;

pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const EROFS: &str = "application/vnd.erofs.layer.v1";
pub const EROFS_ZSTD: &str = "application/vnd.erofs.layer.v1+zstd";
pub const OCI_EROFS: &str = "application/vnd.oci.image.layer.v1.erofs";

/// A node whose snapshots are made by its own daemon.
pub struct Shop {
    pub node: Node,
    pub daemon: Daemon,
    scratch_names: Cell<u32>,
}

/// A Diff that worked.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    pub media_type: String,
    pub digest: Digest,
    pub size: i64,
}

impl Shop {
    pub fn new() -> Self {
        Self::with("")
    }

    /// `extra` is appended to the configuration, whose last table is `[server]`.
    pub fn with(extra: &str) -> Self {
        Self::on(Node::with(extra))
    }

    pub fn on(node: Node) -> Self {
        let daemon = node.start();
        Self::of(node, daemon)
    }

    pub fn of(node: Node, daemon: Daemon) -> Self {
        Self { node, daemon, scratch_names: Cell::new(0) }
    }

    pub fn lists(&self, release: Release) -> Lists<'static> {
        Lists { root: Box::leak(self.node.root().into_boxed_path()), release }
    }

    /// A name in the scratch directory that nothing has yet.
    fn fresh(&self, what: &str) -> PathBuf {
        let number = self.scratch_names.replace(self.scratch_names.get() + 1);
        self.node.scratch.path().join(format!("{what}-{number}"))
    }

    pub fn directory(&self, id: u32) -> PathBuf {
        self.node.root().join(format!("snapshots/{id}"))
    }

    /// A committed snapshot that holds a layer of what `fill` makes, packed by GNU tar and applied by the
    /// daemon.
    pub fn layer(&self, id: u32, fill: impl FnOnce(&Path)) {
        let tree = self.fresh("tree");
        fs::create_dir(&tree).unwrap();
        fill(&tree);
        let archive = self.fresh("tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&tree).args(["--sort=name", "--numeric-owner", "--format=posix", "--xattrs"]);
        host::run(tar.args(["--xattrs-include=*", "-cf"]).arg(&archive).arg(".")).unwrap();
        let blob = fs::read(&archive).unwrap();
        let digest = self.node.store.add(NAMESPACE, blob.as_slice());
        assert_eq!(self.node.apply(&self.node.request(id, TAR, &digest, blob.len())), Reply::of_tar(&blob));
    }

    /// Layers 1, 2 and 3: a base, one that changes and deletes, one that adds to it.
    pub fn image(&self) {
        self.layer(1, base);
        self.layer(2, |root| {
            let file = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
            fs::create_dir_all(root.join("etc/opaque")).unwrap();
            file("etc/.wh.deleted", "");
            file("etc/opaque/.wh..wh..opq", "");
            file("etc/opaque/only", "here");
            file("etc/replaced", "by the second layer");
        });
        self.layer(3, |root| {
            fs::create_dir_all(root.join("usr/bin")).unwrap();
            fs::write(root.join("usr/bin/new"), vec![7; 100_000]).unwrap();
            fs::hard_link(root.join("usr/bin/new"), root.join("usr/bin/again")).unwrap();
        });
    }

    /// Runs `look` on the kernel's mount of these layers, the newest first, below an upper directory.
    pub fn show<T>(&self, layers: &[u32], upper: Option<[&Path; 2]>, look: impl FnOnce(&Path) -> T) -> T {
        let images: Vec<_> = layers.iter().map(|id| self.directory(*id).join("layer.erofs")).collect();
        let images: Vec<_> = images.iter().map(PathBuf::as_path).collect();
        self.show_images(&images, upper, look)
    }

    fn show_images<T>(
        &self,
        images: &[&Path],
        upper: Option<[&Path; 2]>,
        look: impl FnOnce(&Path) -> T,
    ) -> T {
        let mounted: Vec<_> =
            images.iter().map(|image| Mounted::new(image, self.fresh("image")).unwrap()).collect();
        let empty = self.fresh("empty");
        fs::create_dir(&empty).unwrap();
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).unwrap();
        let mut layers: Vec<_> = mounted.iter().map(Mounted::path).collect();
        // An overlay without an upper directory takes two lower ones at least, one with it one.
        layers.push(&empty);
        if layers.len() == 1 && upper.is_none() {
            return look(&empty);
        }
        let overlay = Overlay::new(self.fresh("overlay"), &layers, upper).unwrap();
        look(overlay.path())
    }

    /// An active snapshot on top of `parents`, changed through the kernel by `change`. `look` runs while it is
    /// mounted, as a container would have it, and is given the tree.
    pub fn run<T>(
        &self,
        id: u32,
        parents: &[u32],
        change: impl FnOnce(&Path),
        look: impl FnOnce(Tree) -> T,
    ) -> T {
        let directory = self.node.snapshot(id);
        let upper = [directory.join("fs"), directory.join("work")];
        // Without parents it is no overlay but the directory itself.
        if parents.is_empty() {
            change(&upper[0]);
            return look(scan(&upper[0]));
        }
        self.show(parents, Some([&upper[0], &upper[1]]), |root| {
            change(root);
            look(scan(root))
        })
    }

    /// Like [`Self::run`], in block mode: the upper directory is in an ext4 image.
    pub fn run_block<T>(
        &self,
        id: u32,
        parents: &[u32],
        change: impl FnOnce(&Path),
        look: impl FnOnce(Tree) -> T,
    ) -> T {
        let directory = self.node.snapshot(id);
        fs::remove_dir(directory.join("work")).unwrap();
        let image = directory.join("rwlayer.img");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        host::run(Command::new("mkfs.ext4").arg("-q").arg(&image)).unwrap();
        let mounted = Looped::new(&image, self.fresh("state/ext4")).unwrap();
        let upper = [mounted.path().join("upper"), mounted.path().join("work")];
        for directory in &upper {
            fs::create_dir(directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        if parents.is_empty() {
            change(&upper[0]);
            return look(scan(&upper[0]));
        }
        self.show(parents, Some([&upper[0], &upper[1]]), |root| {
            change(root);
            look(scan(root))
        })
    }

    pub fn diff(&self, request: &Request) -> Reply {
        self.node.runtime.block_on(self.node.grpc().diff(request))
    }

    /// A Diff that has to work, over both wires with the same result.
    pub fn diff_both(&self, request: &Request) -> Blob {
        let reply = self.diff(request);
        let again = self.node.runtime.block_on(self.node.ttrpc().diff(request));
        assert_eq!(reply, again, "gRPC and ttrpc");
        Blob::of(&reply)
    }

    /// The bytes of a blob, which is in the store with the label of its uncompressed form.
    pub fn bytes(&self, blob: &Blob) -> Vec<u8> {
        let held = self.node.store.blob(NAMESPACE, &blob.digest).expect("the blob is in the store");
        assert_eq!(Digest::sha256(&held.bytes), blob.digest);
        assert_eq!(i64::try_from(held.bytes.len()).unwrap(), blob.size);
        let plain = match blob.media_type.rsplit_once('+') {
            Some((_, "gzip")) => {
                let mut plain = Vec::new();
                // One member: some readers stop at the first.
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&held.bytes[..]), &mut plain)
                    .unwrap();
                plain
            }
            Some((_, "zstd")) => zstd::decode_all(&held.bytes[..]).unwrap(),
            _ => held.bytes.to_vec(),
        };
        assert_eq!(held.labels["containerd.io/uncompressed"], Digest::sha256(&plain).to_string());
        held.bytes.to_vec()
    }

    /// Applies `blob` on top of `lower` and expects `want`.
    pub fn assert_turns(&self, lower: &[u32], blob: &Blob, want: &Tree) {
        let [layer, image] = [self.fresh("layer"), self.fresh("applied")];
        fs::write(&layer, self.bytes(blob)).unwrap();
        images::apply(&layer, &image).unwrap();
        let below: Vec<_> = lower.iter().map(|id| self.directory(*id).join("layer.erofs")).collect();
        let mut layers = vec![image.as_path()];
        layers.extend(below.iter().map(PathBuf::as_path));
        let found = self.show_images(&layers, None, scan);
        let whole_seconds = blob.media_type.contains(".tar");
        let [want, found] = [want.clone(), found].map(|tree| comparable(tree, whole_seconds));
        if let Err(difference) = tree::compare(&want, &found) {
            panic!("{}: {}", blob.media_type, difference.message().unwrap_or_default());
        }
    }
}

impl Blob {
    pub fn of(reply: &Reply) -> Self {
        match reply {
            Reply::Applied { media_type, digest, size } => {
                Self { media_type: media_type.clone(), digest: digest.parse().unwrap(), size: *size }
            }
            refused @ Reply::Refused { .. } => panic!("{refused:?}"),
        }
    }
}

/// A request without anything special.
pub fn request(left: Vec<Mount>, right: Vec<Mount>, media_type: &str) -> Request {
    Request {
        left,
        right,
        media_type: media_type.to_owned(),
        reference: String::new(),
        labels: Default::default(),
        source_date_epoch: None,
    }
}

pub fn scan(root: &Path) -> Tree {
    tree::scan(root).unwrap_or_else(|failed| panic!("{}", failed.message().unwrap_or_default()))
}

/// A tree as it is compared: without sockets, which no layer holds, and without the root's time.
fn comparable(mut tree: Tree, whole_seconds: bool) -> Tree {
    tree.retain(|_, node| node.kind != Kind::Socket);
    for (name, node) in &mut tree {
        if whole_seconds {
            node.mtime.1 = 0;
        }
        if name.is_empty() {
            node.mtime = (0, 0);
        }
    }
    tree::count_links(&mut tree);
    tree
}

/// A tree with one of everything that a layer can hold.
pub fn base(root: &Path) {
    let file = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    for directory in ["etc/opaque", "usr/bin", "usr/lib", "var/empty"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    file("etc/kept", b"kept");
    file("etc/deleted", b"deleted");
    file("etc/replaced", b"replaced");
    file("etc/opaque/gone", b"gone");
    file("usr/bin/tool", &[0x7f; 20_000]);
    fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/alias")).unwrap();
    symlink("../bin/tool", root.join("usr/lib/link")).unwrap();
    special(root);
}

fn special(root: &Path) {
    let node = |name: &str, kind, number| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Permissions::from_raw_mode(0o600), number).unwrap();
    };
    node("var/fifo", FileType::Fifo, 0);
    node("var/null", FileType::CharacterDevice, makedev(1, 3));
    node("var/disk", FileType::BlockDevice, makedev(259, 3));
    rustix::fs::lsetxattr(root.join("etc/kept"), "user.note", b"a note", XattrFlags::empty()).unwrap();
}

/// Changes of a container to [`Shop::image`]'s tree, or to an empty one.
pub fn work(root: &Path) {
    let path = |name: &str| root.join(name);
    for directory in ["etc", "usr/bin", "var"] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    fs::write(path("etc/added"), "by the container").unwrap();
    fs::write(path("etc/kept"), "changed by the container").unwrap();
    let _ = fs::remove_file(path("usr/bin/tool"));
    let _ = fs::remove_dir_all(path("etc/opaque"));
    fs::create_dir(path("etc/opaque")).unwrap();
    fs::write(path("etc/opaque/fresh"), "in a directory made anew").unwrap();
    let _ = fs::remove_file(path("var/null"));
    fs::create_dir(path("var/null")).unwrap();
    fs::write(path("var/null/inside"), "").unwrap();
    fs::hard_link(path("etc/added"), path("var/added")).unwrap();
    symlink("nowhere", path("var/link")).unwrap();
    let sparse = fs::File::create(path("var/sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"far away", 1 << 20).unwrap();
    sparse.set_len(2 << 20).unwrap();
    let name = path(&format!("var/{}", "long".repeat(50)));
    rustix::fs::mknodat(
        CWD,
        name,
        FileType::CharacterDevice,
        Permissions::from_raw_mode(0o600),
        makedev(1, 5),
    )
    .unwrap();
    rustix::fs::lsetxattr(path("etc/added"), "user.mark", b"x", XattrFlags::empty()).unwrap();
    std::os::unix::fs::lchown(path("var/link"), Some(1000), Some(1000)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(path("var/s")));
}

impl Grpc {
    pub async fn diff(&mut self, request: &Request) -> Reply {
        self.diff_under(request, None).await
    }

    /// With a lease of the client's.
    pub async fn diff_under(&mut self, request: &Request, lease: Option<&str>) -> Reply {
        let mut message = tonic::Request::new(convert::diff::request_to_grpc(request));
        message.metadata_mut().insert("containerd-namespace", self.namespace.parse().unwrap());
        if let Some(lease) = lease {
            message.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
        }
        match self.client.diff(message).await {
            Ok(reply) => {
                let blob = reply.into_inner().diff.unwrap();
                Reply::Applied { media_type: blob.media_type, digest: blob.digest, size: blob.size }
            }
            Err(status) => Reply::refused(&status),
        }
    }
}

impl Ttrpc {
    pub async fn diff(&self, request: &Request) -> Reply {
        match self.client().diff(Self::context(), &convert::diff::request_to_ttrpc(request)).await {
            Ok(reply) => {
                let blob = reply.diff.unwrap();
                Reply::Applied { media_type: blob.media_type, digest: blob.digest, size: blob.size }
            }
            Err(error) => Reply::refused_by_ttrpc(error),
        }
    }
}
