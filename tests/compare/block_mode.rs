//! Snapshots in block mode, with real ext4 images on real loop devices: where is the upper directory read?

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use plywood::{
    call::Call,
    compare::{self, Composer, Form, Sides},
    error::{Classify as _, Kind},
    kind::LayerType,
    limits::Limits,
    pipeline::Resources,
    snapshot::{LayerSource, Mount, MountError, Roots, Stack, StackLayer},
    sys::{capabilities, dir::Dir, loop_device, sandbox},
};
use testkit::{Need, Suite};

pub fn add(suite: &mut Suite) {
    let tools = ["mkfs.ext4", "losetup", "mount", "unshare"].map(Need::Tool);
    let needs = [&[Need::Root, Need::LoopDevices][..], &tools].concat();
    // Loop devices are handed out one after the other.
    suite.in_turn(|suite| {
        for (name, test) in [
            ("an_idle_image_is_read_as_a_file", idle as fn()),
            ("a_mounted_image_is_read_where_it_is_mounted", live),
            ("an_image_mounted_out_of_sight_is_refused", unseen),
            ("what_else_is_mounted_or_attached_does_not_matter", bystanders),
            ("an_image_that_comes_into_use_is_noticed", watched),
            ("a_diff_of_an_image_that_comes_into_use_fails", composed),
        ] {
            suite.test(name, &needs, test);
        }
        let needs = [&needs[..], &[Need::Landlock]].concat();
        suite.test("a_confined_process_sees_mounts_made_later", &needs, confined);
    });
}

fn try_run(tool: &str, words: &[&str], paths: &[&Path]) -> bool {
    let status = Command::new(tool).args(words).args(paths).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn run(tool: &str, words: &[&str], paths: &[&Path]) {
    let output = Command::new(tool).args(words).args(paths).output().unwrap();
    assert!(output.status.success(), "{tool} {words:?} {paths:?}: {output:?}");
}

/// A snapshot root with a committed parent, 1, and an active snapshot in block mode, 2.
struct Node {
    scratch: tempfile::TempDir,
    roots: Roots,
}

impl Node {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        for (id, entries) in [("1", &[".erofslayer", "layer.erofs"][..]), ("2", &[".erofslayer"])] {
            let snapshot = scratch.path().join("erofs/snapshots").join(id);
            fs::create_dir_all(snapshot.join("fs")).unwrap();
            entries.iter().for_each(|name| fs::write(snapshot.join(name), "").unwrap());
        }
        fs::create_dir_all(scratch.path().join("state/mnt")).unwrap();
        let roots = Roots::open(&[scratch.path().join("erofs")]).unwrap();
        Self { scratch, roots }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.at("erofs/snapshots/2/rwlayer.img")
    }

    /// Makes the image, with these directories in it.
    fn format(&self, directories: &[&str]) {
        let tree = tempfile::tempdir().unwrap();
        directories.iter().for_each(|name| fs::create_dir_all(tree.path().join(name)).unwrap());
        fs::File::create(self.image()).unwrap().set_len(4 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-d"], &[tree.path(), &self.image()]);
    }

    fn mount(&self) {
        run("mount", &["-o", "loop"], &[&self.image(), &self.at("state/mnt")]);
    }

    fn unmount(&self) {
        run("umount", &[], &[&self.at("state/mnt")]);
    }

    fn key(&self) -> (u64, u64) {
        let metadata = fs::metadata(self.image()).unwrap();
        (metadata.dev(), metadata.ino())
    }

    /// The mounts of the active snapshot, with its parent or as if it had none.
    fn mounts(&self, parent: bool) -> Vec<Mount> {
        let mount = |kind: &str, source: String, options: &[&str]| Mount {
            kind: kind.to_owned(),
            source,
            target: String::new(),
            options: options.iter().map(|option| option.to_string()).collect(),
        };
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let size = "X-containerd.mkfs.size=4194304";
        let image =
            mount("mkfs/ext4", path(self.image()), &["X-containerd.mkfs.fs=ext4", size, "rw", "loop"]);
        let upper = "X-containerd.mkdir.path={{ mount 0 }}/upper:0755";
        if !parent {
            let source = "{{ mount 0 }}/upper".to_owned();
            return vec![image, mount("format/mkdir/bind", source, &[upper, "rw", "rbind"])];
        }
        let work = "X-containerd.mkdir.path={{ mount 0 }}/work:0755";
        let options = [
            upper,
            work,
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
            "lowerdir={{ mount 1 }}",
        ];
        let layer = path(self.at("erofs/snapshots/1/layer.erofs"));
        vec![
            image,
            mount("erofs", layer, &["ro", "loop"]),
            mount("format/mkdir/overlay", "overlay".to_owned(), &options),
        ]
    }

    fn stack(&self) -> Result<Stack, MountError> {
        self.roots.stack(&self.mounts(true))
    }

    /// The upper layer: below it there is always the parent.
    fn upper(&self) -> Option<StackLayer> {
        let mut layers = self.stack().unwrap().layers;
        assert!(matches!(layers.pop().unwrap().source, LayerSource::Erofs { .. }));
        let alone = self.roots.stack(&self.mounts(false)).unwrap().layers;
        assert_eq!(alone.len(), layers.len());
        assert!(layers.len() <= 1);
        layers.pop()
    }

    fn refusal(&self) -> (Kind, &'static str) {
        let error = self.stack().unwrap_err();
        (error.kind(), error.reason())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        while try_run("umount", &[], &[&self.at("state/mnt")]) {}
        let devices = loop_device::attached(&self.image(), self.key_or_none()).unwrap_or_default();
        for device in devices {
            try_run("losetup", &["-d", &format!("/dev/{}", device.name)], &[]);
        }
    }
}

impl Node {
    fn key_or_none(&self) -> (u64, u64) {
        fs::metadata(self.image()).map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()))
    }
}

/// Names in the root of a directory layer.
fn names(layer: Option<StackLayer>) -> Vec<String> {
    let Some(StackLayer { source: LayerSource::Directory { dir, .. }, .. }) = &layer else {
        panic!("{layer:?}");
    };
    names_in(dir)
}

fn names_in(dir: &Dir) -> Vec<String> {
    let mut names: Vec<_> = dir.names().unwrap().map(|name| name.unwrap().into_string().unwrap()).collect();
    names.sort();
    names
}

fn is_idle(layer: Option<StackLayer>) -> bool {
    matches!(layer, Some(StackLayer { source: LayerSource::Ext4 { .. }, .. }))
}

fn idle() {
    let node = Node::new();
    assert!(node.upper().is_none(), "there is no image before the first mount");
    node.format(&["upper"]);
    let layer = node.upper().unwrap();
    let LayerSource::Ext4 { image, root: "upper", user_xattr: false } = &layer.source else {
        panic!("{layer:?}")
    };
    let opened = image.metadata().unwrap();
    assert_eq!(((opened.dev(), opened.ino()), layer.key), (node.key(), node.key()));
    // Once applied, the layer is what was applied.
    fs::write(node.at("erofs/snapshots/2/layer.erofs"), "").unwrap();
    assert!(matches!(node.upper().unwrap().source, LayerSource::Erofs { .. }));
}

fn live() {
    let node = Node::new();
    node.format(&["upper", "work"]);
    node.mount();
    fs::write(node.at("state/mnt/upper/unsynced"), "x").unwrap();
    let layer = node.upper().unwrap();
    assert_eq!((layer.path.clone(), layer.key), (node.at("state/mnt/upper"), node.key()));
    assert_eq!(names(Some(layer)), ["unsynced"]);
    fs::remove_file(node.at("state/mnt/upper/unsynced")).unwrap();
    fs::remove_dir(node.at("state/mnt/upper")).unwrap();
    assert!(node.upper().is_none(), "nothing has been written yet");
    fs::write(node.at("state/mnt/upper"), "").unwrap();
    assert_eq!(node.refusal(), (Kind::Denied, "mount.link"));
    node.unmount();
    assert!(is_idle(node.upper()), "the device is let go with its mount");
}

fn unseen() {
    let node = Node::new();
    node.format(&["upper"]);
    let mut device = Command::new("losetup").args(["--find", "--show"]).arg(node.image()).output().unwrap();
    device.stdout.retain(|byte| *byte != b'\n');
    let device = PathBuf::from(String::from_utf8(device.stdout).unwrap());
    assert_eq!(node.refusal(), (Kind::Conflict, "mount.unseen"));
    run("losetup", &["-d"], &[&device]);
    assert!(is_idle(node.upper()));

    let elsewhere = Elsewhere::mount(&node);
    assert_eq!(node.refusal(), (Kind::Conflict, "mount.unseen"));
    drop(elsewhere);
    assert!(is_idle(node.upper()));

    // Something else was mounted over it.
    node.mount();
    run("mount", &["-t", "tmpfs", "tmpfs"], &[&node.at("state/mnt")]);
    fs::create_dir(node.at("state/mnt/upper")).unwrap();
    assert_eq!(node.refusal(), (Kind::Conflict, "mount.unseen"));
}

/// A process that has the image mounted where nobody else sees it.
struct Elsewhere(Child);

impl Elsewhere {
    fn mount(node: &Node) -> Self {
        let script = "mount -o loop \"$1\" \"$2\" && echo mounted && read line";
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .args([node.image(), node.at("state/mnt")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn bystanders() {
    let node = Node::new();
    node.format(&["upper", "other"]);
    // An image of the same name that is mounted, and a file that has lost its name to ours.
    let other = Node::new();
    other.format(&["upper"]);
    other.mount();
    assert!(is_idle(node.upper()));
    node.mount();
    fs::write(node.at("state/mnt/upper/old"), "").unwrap();
    fs::rename(node.image(), node.at("gone")).unwrap();
    fs::remove_file(node.at("gone")).unwrap();
    node.format(&["upper"]);
    assert!(is_idle(node.upper()), "the mounted image is another file, without a name");
    node.unmount();

    // A mount of one directory of the file system only.
    node.format(&["upper", "part/upper"]);
    node.mount();
    fs::write(node.at("state/mnt/upper/right"), "").unwrap();
    fs::create_dir(node.at("part")).unwrap();
    run("mount", &["--bind"], &[&node.at("state/mnt/part"), &node.at("part")]);
    run("umount", &[], &[&node.at("state/mnt")]);
    assert_eq!(node.refusal(), (Kind::Conflict, "mount.unseen"));
    run("umount", &[], &[&node.at("part")]);
    node.mount();
    assert_eq!(names(node.upper()), ["right"]);
}

fn watched() {
    let node = Node::new();
    node.format(&["upper"]);
    let stack = node.stack().unwrap();
    let watch = stack.watch().unwrap();
    drop(stack);
    watch.check().unwrap();
    watch.check().unwrap();
    // Nothing is written to an image that is mounted to be read, and yet it is in use.
    run("mount", &["-o", "ro,noload,loop"], &[&node.image(), &node.at("state/mnt")]);
    assert_eq!(watch.check().unwrap_err().reason(), "mount.in-use");
    node.unmount();
    watch.check().unwrap();
    node.mount();
    let error = watch.check().unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Changed, "mount.in-use"));
    assert!(node.stack().unwrap().watch().unwrap().check().is_ok(), "what is mounted is not watched");
    fs::write(node.at("state/mnt/upper/new"), "x").unwrap();
    node.unmount();
    // Idle again, but not what it was.
    assert_eq!(watch.check().unwrap_err().reason(), "mount.in-use");
    node.stack().unwrap().watch().unwrap().check().unwrap();
}

/// The watch notices changes while a whole layer is read.
fn composed() {
    let node = Node::new();
    node.format(&["upper/directory"]);
    let options = compare::Options::in_directory(env::temp_dir());
    let composer = Composer::new(options, Resources::new(Limits::default(), 2));
    let call = Call::new("default".parse().unwrap());
    let compose = |meanwhile: &(dyn Fn() + Sync)| {
        let upper = Stack { layers: node.upper().into_iter().collect(), ..Stack::default() };
        let sides = Sides { lower: Stack::default(), upper };
        let layer_type = LayerType::of("application/vnd.oci.image.layer.v1.tar").unwrap();
        let mut bytes = Vec::new();
        let mut deliver = |piece: &[u8]| {
            meanwhile();
            bytes.extend_from_slice(piece);
            Ok(())
        };
        composer.compose(call.work(), sides, &Form::Of(layer_type), None, &mut deliver).map(|_| bytes)
    };
    let tar = compose(&|| ()).unwrap();
    assert!(tar.starts_with(b"directory/\0"), "{tar:?}");
    // A container starts and ends meanwhile.
    let error = compose(&|| {
        node.mount();
        node.unmount();
    });
    let error = error.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Changed, "mount.in-use"));
    assert_eq!(compose(&|| ()).unwrap(), tar);
}

/// With what the daemon gives up at start, and a mount that containerd makes afterwards.
fn confined() {
    let node = Node::new();
    node.format(&["upper"]);
    fs::create_dir(node.at("outside")).unwrap();
    let (tell, told) = mpsc::channel();
    let (mount, mounted) = mpsc::channel();
    std::thread::scope(|scope| {
        let node = &node;
        let confined = scope.spawn(move || {
            let (root, state, devices) = (node.at("erofs"), node.at("state"), loop_device::to_read());
            let paths = sandbox::Paths {
                read_write: &[&root],
                read: &[&state, &devices],
                remove: &[],
                abstract_sockets: false,
            };
            sandbox::confine(paths).unwrap();
            let kept = capabilities::drop_all_but(capabilities::READING).unwrap();
            assert_eq!(kept, capabilities::READING);
            assert!(is_idle(node.upper()));
            tell.send(()).unwrap();
            mounted.recv().unwrap();
            // Without the capability the directory is closed even to root: it belongs to somebody else.
            assert!(fs::read_dir(node.at("outside")).is_err());
            assert!(fs::read_dir(node.at("state/mnt/upper")).is_err());
            let upper = node.upper();
            capabilities::reading(|| names(upper)).unwrap()
        });
        told.recv().unwrap();
        node.mount();
        fs::write(node.at("state/mnt/upper/late"), "x").unwrap();
        run("chown", &["1000:1000"], &[&node.at("state/mnt/upper")]);
        run("chmod", &["0700"], &[&node.at("state/mnt/upper")]);
        mount.send(()).unwrap();
        assert_eq!(confined.join().unwrap(), ["late"]);
    });
}
