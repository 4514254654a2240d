use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::{
    apply::{Contents, NativeVerify, Options, Strategy},
    digest::Digest,
    error::Kind,
    format::erofs::{fixture::seal, reader::Image},
    kind,
    limits::Limits,
    pipeline::{Resources, helpers::Helpers},
    snapshot::{Durability, Mount, Publication, Stack},
    store::{Blob, Memory, file::FileBlob},
};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const NATIVE: &str = "application/vnd.erofs.layer.v1";

/// A root with the snapshots 1 and 2, and a store in memory.
struct Fixture {
    scratch: tempfile::TempDir,
    store: Memory,
    options: Options,
    limits: Limits,
    helper_threads: usize,
}

fn fixture() -> Fixture {
    let scratch = tempfile::tempdir().unwrap();
    for id in ["1", "2"] {
        fs::create_dir_all(scratch.path().join("snapshots").join(id).join("fs")).unwrap();
        fs::write(scratch.path().join("snapshots").join(id).join(".erofslayer"), "").unwrap();
    }
    let limits = Limits::without_reserve();
    let options = Options { durability: Durability::Never, ..Options::default() };
    Fixture { scratch, store: Memory::new(), options, limits, helper_threads: Helpers::default_threads() }
}

impl Fixture {
    fn applier(&self) -> Applier {
        self.applier_of(Arc::new(self.store.clone()))
    }

    fn applier_of(&self, store: Arc<dyn ContentStore>) -> Applier {
        self.applier_with(store, self.resources())
    }

    fn applier_with(&self, store: Arc<dyn ContentStore>, resources: Arc<Resources>) -> Applier {
        let roots = Roots::open(&[self.scratch.path().to_owned()]).unwrap();
        Applier::new(store, Arc::new(roots), Converter::new(self.options.clone(), resources))
    }

    fn resources(&self) -> Arc<Resources> {
        Resources::new(self.limits.clone(), self.helper_threads)
    }

    fn snapshot(&self, id: &str) -> PathBuf {
        self.scratch.path().join("snapshots").join(id)
    }

    fn layer(&self, id: &str) -> Vec<u8> {
        fs::read(self.snapshot(id).join("layer.erofs")).unwrap()
    }

    /// Names in snapshot 1 besides those that the snapshotter put there.
    fn left_behind(&self) -> Vec<String> {
        let names = fs::read_dir(self.snapshot("1")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "fs" && name != ".erofslayer").collect()
    }

    fn request(&self, id: &str, media_type: &str, digest: &Digest, size_bytes: usize) -> Request {
        let size_bytes = i64::try_from(size_bytes).unwrap();
        Request {
            diff: Descriptor::new(media_type, digest.clone(), size_bytes).unwrap(),
            mounts: vec![Mount {
                kind: "bind".into(),
                source: self.snapshot(id).join("fs").to_str().unwrap().into(),
                target: String::new(),
                options: vec!["rw".into(), "rbind".into()],
            }],
            payloads: BTreeMap::new(),
            sync_fs: false,
        }
    }

    /// Applies `blob`, under its own digest, to snapshot `id`.
    fn apply(&mut self, id: &str, media_type: &str, blob: &[u8]) -> Result<Applied> {
        let digest = self.store.insert(blob);
        self.applier().apply(&call(), &self.request(id, media_type, &digest, blob.len()))
    }
}

fn call() -> Call {
    Call::new("default".parse().unwrap())
}

/// An archive with some files, the largest of `len` bytes.
fn archive(len: usize) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, data: &[u8]| {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).unwrap();
    };
    add("etc", ::tar::EntryType::Directory, b"");
    add("etc/os-release", ::tar::EntryType::Regular, b"ID=plywood\n");
    add("etc/.wh.old", ::tar::EntryType::Regular, b"");
    let noise: Vec<u8> = (0..len as u64).map(|i| (i.wrapping_mul(i) >> 7).to_le_bytes()[0]).collect();
    add("blob", ::tar::EntryType::Regular, &noise);
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// An archive of sparse files (PAX 1.0), each of the given size in bytes, whose only data is their last byte.
fn sparse(sizes: &[u64]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (number, size_bytes) in sizes.iter().enumerate() {
        let size = size_bytes.to_string();
        let name = format!("sparse-{number}");
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", name.as_bytes()),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        builder.append_pax_extensions(records).unwrap();
        let mut data = format!("1\n{}\n1\n", size_bytes - 1).into_bytes();
        data.resize(512, 0);
        data.push(b'x');
        let mut header = ::tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, "GNUSparseFile.0/f", &data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn holes_count_against_the_limit_on_the_stream() {
    let mut fixture = fixture();
    let limit = fixture.limits.stream_bytes;
    for sizes in [&[(1 << 63) - 1][..], &[limit], &[limit / 2, limit / 2]] {
        let error = fixture.apply("1", PLAIN, &sparse(sizes)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"), "{sizes:?}: {error}");
        assert!(fixture.left_behind().is_empty());
    }
    // All blocks of the archive count, and in place of each file's data its whole size.
    fixture.limits.stream_bytes = 1 << 34;
    let archive = sparse(&[1 << 32]);
    let holes = (1 << 32) - 1;
    for (spare, taken) in [(0, true), (1, false)] {
        fixture.limits.stream_bytes = archive.len() as u64 + holes - spare;
        assert_eq!(fixture.apply("1", PLAIN, &archive).is_ok(), taken);
    }
    // No limit lets a size through that the kernel cannot count.
    fixture.limits.stream_bytes = u64::MAX;
    let error = fixture.apply("1", PLAIN, &sparse(&[(1 << 63) - 1])).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.file-size"), "{error}");
}

/// Go, GNU tar and others carry what AUFS wrote into a layer beside the files.
#[test]
fn a_layer_with_aufs_housekeeping_has_the_files_that_are_linked_to_it() {
    use ::tar::{Builder, EntryType, Header};
    let mut fixture = fixture();
    let mut builder = Builder::new(Vec::new());
    let mut add = |name: &str, kind, data: &[u8], target: &str| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        if kind == EntryType::Link {
            builder.append_link(&mut header, name, target).unwrap();
        } else {
            builder.append_data(&mut header, name, data).unwrap();
        }
    };
    let unused = vec![7; 50_000];
    add(".wh..wh.aufs", EntryType::Regular, b"", "");
    add(".wh..wh.plnk", EntryType::Directory, b"", "");
    add(".wh..wh.plnk/100.1", EntryType::Regular, b"linked", "");
    add(".wh..wh.plnk/100.2", EntryType::Regular, &unused, "");
    add(".wh..wh.orph", EntryType::Directory, b"", "");
    add("usr/a", EntryType::Link, b"", ".wh..wh.plnk/100.1");
    add("usr/b", EntryType::Link, b"", "./.wh..wh.plnk/100.1");
    let archive = builder.into_inner().unwrap();
    let applied = fixture.apply("1", PLAIN, &archive).unwrap();
    assert_eq!(applied.stats.contents.nodes, 3, "root, usr and one file");
    let layer = fixture.layer("1");
    let image = Image::open(layer.as_slice()).unwrap();
    let (usr, _) = image.lookup(&image.root().unwrap(), b"usr").unwrap().unwrap();
    let inode = |name: &[u8]| image.lookup(&image.node(usr).unwrap(), name).unwrap().unwrap().0;
    assert_eq!(inode(b"a"), inode(b"b"));
    let node = image.node(inode(b"a")).unwrap();
    let mut data = [0; 6];
    image.read_data(&node, 0, &mut data).unwrap();
    assert_eq!((&data, node.inode.size_bytes, node.inode.nlink), (b"linked", 6, 2));
    assert!(!layer.windows(8).any(|bytes| bytes == [7; 8]), "what nobody names is not in the image");
}

#[test]
fn the_reply_describes_the_uncompressed_layer() {
    let mut fixture = fixture();
    let tar = archive(1_000_000);
    for (media_type, blob) in [(PLAIN, tar.clone()), (GZIP, gzip(&tar)), (ZSTD, zstd(&tar))] {
        let applied = fixture.apply("1", media_type, &blob).unwrap();
        assert_eq!(applied.descriptor.media_type, PLAIN);
        assert_eq!(
            (applied.descriptor.digest, applied.descriptor.size_bytes),
            (Digest::sha256(&tar), tar.len() as u64)
        );
        let stats = applied.stats;
        assert_eq!((stats.blob, stats.blob_bytes), (Digest::sha256(&blob), blob.len() as u64));
        assert_eq!(stats.image_bytes, fixture.layer("1").len() as u64);
        assert_eq!((stats.contents.nodes, stats.contents.whiteouts), (5, 1)); // root, etc, two files, whiteout
    }
    assert_eq!(fixture.left_behind(), ["layer.erofs"]);
}

#[test]
fn the_label_does_not_decide_how_a_tar_layer_is_compressed() {
    let mut fixture = fixture();
    let tar = archive(3000);
    for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let images = [PLAIN, GZIP, ZSTD, "application/vnd.docker.image.rootfs.diff.tar.gzip"].map(|label| {
            assert_eq!(fixture.apply("1", label, &blob).unwrap().descriptor.digest, Digest::sha256(&tar));
            fixture.layer("1")
        });
        assert!(images.iter().all(|image| *image == images[0]));
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let mut fixture = fixture();
    for blob in [gzip(&archive(2_000_000)), zstd(&archive(2_000_000)), archive(2_000_000)] {
        fixture.helper_threads = 0;
        fixture.apply("1", GZIP, &blob).unwrap();
        for helper_threads in 1..=3 {
            fixture.helper_threads = helper_threads;
            fixture.apply("2", GZIP, &blob).unwrap();
            assert!(fixture.layer("1") == fixture.layer("2"), "{helper_threads} helpers");
        }
    }
}

#[test]
fn an_unknown_type_or_foreign_mounts_are_left_to_other_differs_untouched() {
    struct NeverOpened;
    impl ContentStore for NeverOpened {
        fn open(&self, _: &Call, _: &Descriptor) -> Result<Box<dyn Blob>> {
            panic!("opened a blob")
        }
        fn size_bytes(&self, _: &Call, _: &Digest) -> Result<Option<u64>> {
            panic!("asked for a blob")
        }
    }
    let fixture = fixture();
    let applier = fixture.applier_of(Arc::new(NeverOpened));
    let digest = Digest::sha256(b"");
    for media_type in ["application/vnd.oci.image.layer.v1.tar+lz4", "application/vnd.erofs.layer.v1+gzip"] {
        let error = applier.apply(&call(), &fixture.request("1", media_type, &digest, 0)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "apply.media-type"));
    }
    let mut foreign = fixture.request("1", GZIP, &digest, 0);
    foreign.mounts[0].source = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/1/fs".into();
    assert_eq!(applier.apply(&call(), &foreign).unwrap_err().kind(), Kind::NotImplemented);
    // The next differ may be containerd's EROFS differ, which crashes on a list without mounts.
    for media_type in [GZIP, NATIVE, "application/vnd.oci.image.layer.v1.tar+lz4"] {
        let nowhere = Request { mounts: Vec::new(), ..fixture.request("1", media_type, &digest, 0) };
        let error = applier.apply(&call(), &nowhere).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "mount.empty"), "{media_type}");
    }
    assert!(fixture.left_behind().is_empty());
}

#[test]
fn a_refused_layer_leaves_the_directory_as_it_was() {
    let fixture = fixture();
    let blob = gzip(&archive(500_000));
    let digest = fixture.store.insert(&*blob);
    let mut flipped = blob.clone();
    flipped[blob.len() / 2] ^= 1;
    fixture.store.insert_as(Digest::sha256(b"lie"), &*flipped);
    let bad_tar = gzip(&[b'x'; 1024]);
    let bad_tar_digest = fixture.store.insert(&*bad_tar);
    let cut = &blob[..blob.len() - 5];
    let cut_digest = fixture.store.insert(cut);
    let long = fixture.request("1", GZIP, &digest, blob.len() + 1);
    let missing = fixture.request("1", GZIP, &Digest::sha256(b"missing"), 1);
    for existing in [None, Some(&b"the layer of before"[..])] {
        if let Some(bytes) = existing {
            fs::write(fixture.snapshot("1").join("layer.erofs"), bytes).unwrap();
        }
        for (request, kind, reason) in [
            (fixture.request("1", GZIP, &Digest::sha256(b"lie"), blob.len()), Kind::DataLoss, "blob.digest"),
            (fixture.request("1", GZIP, &bad_tar_digest, bad_tar.len()), Kind::Malformed, "tar.checksum"),
            (fixture.request("1", GZIP, &cut_digest, cut.len()), Kind::Malformed, "codec.gzip.truncated"),
            (fixture.request("1", NATIVE, &digest, blob.len()), Kind::Malformed, "erofs.superblock.magic"),
            (long.clone(), Kind::DataLoss, "store.size"),
            (missing.clone(), Kind::NotFound, "store.not-found"),
        ] {
            let error = fixture.applier().apply(&call(), &request).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (kind, reason), "{error}");
            let what = format!("apply {} ({}) to ", request.diff.digest, request.diff.media_type);
            assert!(error.to_string().starts_with(&what), "{error}");
            match existing {
                None => assert!(fixture.left_behind().is_empty()),
                Some(bytes) => assert!(fixture.layer("1") == bytes),
            }
        }
    }
}

#[test]
fn bytes_after_the_end_of_the_archive_count_for_both_digests() {
    let mut fixture = fixture();
    let mut tar = archive(100);
    tar.extend(b"trailing bytes that no tar reader looks at");
    let blob = [gzip(&tar), gzip(b"in a member of their own")].concat();
    tar.extend(b"in a member of their own");
    let applied = fixture.apply("1", GZIP, &blob).unwrap();
    assert_eq!(
        (applied.descriptor.digest, applied.descriptor.size_bytes),
        (Digest::sha256(&tar), tar.len() as u64)
    );
}

#[test]
fn an_empty_blob_is_an_empty_layer() {
    let mut fixture = fixture();
    let applied = fixture.apply("1", GZIP, b"").unwrap();
    assert_eq!((applied.descriptor.digest, applied.descriptor.size_bytes), (Digest::sha256(b""), 0));
    assert_eq!(applied.stats.contents.nodes, 1);
}

#[test]
fn a_native_image_arrives_as_it_is_however_it_comes() {
    let mut fixture = fixture();
    fixture.apply("1", PLAIN, &archive(300_000)).unwrap();
    let image = fixture.layer("1");
    for base in [NATIVE, "application/vnd.oci.image.layer.v1.erofs"] {
        for (media_type, blob) in [(base.to_owned(), image.clone()), (format!("{base}+zstd"), zstd(&image))] {
            let applied = fixture.apply("2", &media_type, &blob).unwrap();
            assert_eq!(
                (applied.descriptor.media_type.as_str(), applied.descriptor.size_bytes),
                (base, image.len() as u64)
            );
            assert_eq!(applied.descriptor.digest, Digest::sha256(&image));
            assert!(fixture.layer("2") == image);
        }
    }
}

#[test]
fn how_deep_a_native_image_is_checked_is_the_operators_choice() {
    let mut fixture = fixture();
    fixture.apply("1", PLAIN, &archive(10)).unwrap();
    let mut image = fixture.layer("1");
    let name = image.windows(10).rposition(|bytes| bytes == b"os-release").unwrap();
    assert!(name > 4096, "the first block has a checksum");
    image[name + 2] = b'/';
    for (native_verify, refused) in
        [(NativeVerify::Strict, true), (NativeVerify::Superblock, false), (NativeVerify::Off, false)]
    {
        fixture.options.native_verify = native_verify;
        let outcome = fixture.apply("2", NATIVE, &image);
        assert_eq!(outcome.is_err(), refused, "{native_verify:?}: {outcome:?}");
        let published = fixture.snapshot("2").join("layer.erofs");
        assert_eq!(published.exists(), !refused);
        if let Err(error) = outcome {
            assert_eq!(error.kind(), Kind::Malformed);
            assert!(error.reason().starts_with("erofs."), "{}", error.reason());
        }
    }
    fixture.options.native_verify = NativeVerify::Superblock;
    assert_eq!(fixture.apply("2", NATIVE, &[0; 8192]).unwrap_err().kind(), Kind::Malformed);
}

#[test]
fn a_native_image_may_be_compressed_inside() {
    let mut fixture = fixture();
    let image = include_bytes!("../../tests/fixtures/erofs/lz4.erofs");
    for native_verify in [NativeVerify::Strict, NativeVerify::Superblock] {
        fixture.options.native_verify = native_verify;
        fixture.apply("1", NATIVE, image).unwrap();
        assert!(fixture.layer("1") == image);
    }
    // The map of its compressed file leads behind the end.
    let mut broken = image.to_vec();
    let image = Image::open(&image[..]).unwrap();
    let map = image.find(b"sparse").unwrap().unwrap().xattr_end().next_multiple_of(8);
    broken[usize::try_from(map).unwrap() + 14] = 0xff;
    seal(&mut broken);
    for (native_verify, refused) in [(NativeVerify::Strict, true), (NativeVerify::Superblock, false)] {
        fixture.options.native_verify = native_verify;
        let outcome = fixture.apply("2", NATIVE, &broken);
        assert_eq!(outcome.err().map(|error| error.reason()), refused.then_some("erofs.bounds"));
    }
}

/// Opens blobs as files, like a content store whose directory can be read.
struct Files(tempfile::TempDir);

impl ContentStore for Files {
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        let file = File::open(self.0.path().join(descriptor.digest.hex())).unwrap();
        Ok(Box::new(FileBlob::new(file, call.cancel.clone())?))
    }
    fn size_bytes(&self, _: &Call, _: &Digest) -> Result<Option<u64>> {
        Ok(None)
    }
}

#[test]
fn a_native_image_in_a_file_is_copied_by_the_kernel_and_hashed_all_the_same() {
    let mut fixture = fixture();
    fixture.apply("1", PLAIN, &archive(3_000_000)).unwrap();
    let image = fixture.layer("1");
    let digest = Digest::sha256(&image);
    for helper_threads in [0, 1] {
        fixture.helper_threads = helper_threads;
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join(digest.hex());
        fs::write(&path, &image).unwrap();
        let applier = fixture.applier_of(Arc::new(Files(files)));
        let request = fixture.request("2", NATIVE, &digest, image.len());
        let applied = applier.apply(&call(), &request).unwrap();
        assert_eq!(
            (&applied.descriptor.digest, applied.descriptor.size_bytes),
            (&digest, image.len() as u64)
        );
        assert!(fixture.layer("2") == image);
        fs::remove_file(fixture.snapshot("2").join("layer.erofs")).unwrap();

        let mut flipped = image.clone();
        flipped[image.len() - 1] ^= 1;
        for (bytes, reason) in [
            (&flipped[..], "blob.digest"),
            (&image[..image.len() - 1], "blob.size"),
            (&[&image[..], b"x"].concat(), "blob.size"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = applier.apply(&call(), &request).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, reason), "{error}");
            assert!(!fixture.snapshot("2").join("layer.erofs").exists());
        }
    }
}

/// A store whose blobs misbehave while they are read.
struct Odd<F>(F);

impl<F: Fn(&mut [u8]) -> io::Result<usize> + Clone + Send + Sync + 'static> ContentStore for Odd<F> {
    fn open(&self, _: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        struct OddBlob<F>(F, u64);
        impl<F: Fn(&mut [u8]) -> io::Result<usize>> Read for OddBlob<F> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                (self.0)(buf)
            }
        }
        impl<F: Fn(&mut [u8]) -> io::Result<usize> + Send> Blob for OddBlob<F> {
            fn size_bytes(&self) -> u64 {
                self.1
            }
        }
        Ok(Box::new(OddBlob(self.0.clone(), descriptor.size_bytes)))
    }

    fn size_bytes(&self, _: &Call, _: &Digest) -> Result<Option<u64>> {
        Ok(None)
    }
}

#[test]
fn a_panic_fails_its_request_only() {
    let fixture = fixture();
    let digest = fixture.store.insert(&*archive(10));
    let resources = fixture.resources();
    let faulty = Arc::new(Odd(|_: &mut [u8]| panic!("a fault of ours")));
    let panicking = fixture.applier_with(faulty, Arc::clone(&resources));
    let request = fixture.request("1", PLAIN, &digest, archive(10).len());
    for _ in 0..2 {
        let error = panicking.apply(&call(), &request).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "internal.panic"));
        assert!(error.to_string().contains("a fault of ours"), "{error}");
        assert!(fixture.left_behind().is_empty());
    }
    assert_eq!(resources.budget.charged_bytes(), 0);
    fixture.applier().apply(&call(), &request).unwrap();
}

#[test]
fn a_cancelled_call_ends_within_a_second_and_leaves_nothing() {
    let fixture = fixture();
    // A blob without an end, of zeros: an archive that has ended, with bytes after it.
    let endless = fixture.applier_of(Arc::new(Odd(|buf: &mut [u8]| {
        buf.fill(0);
        Ok(buf.len())
    })));
    let call = call();
    let request = fixture.request("1", PLAIN, &Digest::sha256(b""), 1 << 40);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| endless.apply(&call, &request));
        std::thread::sleep(Duration::from_millis(100));
        let cancelled = Instant::now();
        call.cancel.cancel();
        assert_eq!(running.join().unwrap().unwrap_err().kind(), Kind::Cancelled);
        assert!(cancelled.elapsed() < Duration::from_secs(1));
    });
    assert!(fixture.left_behind().is_empty());
}

#[test]
fn the_same_layer_asked_for_many_times_is_converted_once() {
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    struct Counting(Memory);
    impl ContentStore for Counting {
        fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
            OPENED.fetch_add(1, Ordering::Relaxed);
            // Long enough for all callers to arrive.
            std::thread::sleep(Duration::from_millis(200));
            self.0.open(call, descriptor)
        }
        fn size_bytes(&self, call: &Call, digest: &Digest) -> Result<Option<u64>> {
            self.0.size_bytes(call, digest)
        }
    }
    let fixture = fixture();
    let blob = gzip(&archive(10_000));
    let digest = fixture.store.insert(&*blob);
    let applier = fixture.applier_of(Arc::new(Counting(fixture.store.clone())));
    let request = fixture.request("1", GZIP, &digest, blob.len());
    let other = fixture.request("1", ZSTD, &digest, blob.len());
    let elsewhere = fixture.request("2", GZIP, &digest, blob.len());
    std::thread::scope(|scope| {
        let same: Vec<_> =
            (0..6).map(|_| scope.spawn(|| applier.apply(&call(), &request).unwrap())).collect();
        std::thread::sleep(Duration::from_millis(50));
        let error = applier.apply(&call(), &other).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "apply.busy"));
        let first = applier.apply(&call(), &elsewhere).unwrap();
        for applied in same {
            assert_eq!(applied.join().unwrap().descriptor.digest, first.descriptor.digest);
        }
    });
    assert_eq!(OPENED.load(Ordering::Relaxed), 2);
    assert_eq!(fixture.left_behind(), ["layer.erofs"]);
}

#[test]
fn layers_below_that_are_odd_are_left_out_and_those_that_fail_to_be_read_fail_the_layer() {
    let fixture = fixture();
    let converter = Converter::new(fixture.options.clone(), fixture.resources());
    let out = fixture.scratch.path().join("image");
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_ustar();
    header.set_size(0);
    builder.append_data(&mut header, "d/f", &b""[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let convert = |kind: Kind, required| {
        let open = || -> Result<Stack> { Err(Error::new(kind, "test.below", "on purpose")) };
        let layer = Layer {
            layer_type: kind::DEFAULT,
            reader: &mut archive.as_slice(),
            file: None,
            size_bytes: None,
            digest: None,
            chain: None,
            ztoc: None,
            parents: Some(Parents { open: &open, required }),
            device: None,
            target_bytes: None,
            annotations: &BTreeMap::new(),
        };
        let publication = Publication::beside(&out).unwrap();
        converter.convert(call().work(), Strategy::Erofs, layer, publication, false)
    };
    for (kind, may_be_ignored) in [
        (Kind::NotImplemented, true),
        (Kind::Malformed, true),
        (Kind::Denied, true),
        (Kind::Conflict, true),
        (Kind::Exhausted, false),
        (Kind::DataLoss, false),
        (Kind::NotFound, false),
        (Kind::Unavailable, false),
        (Kind::Cancelled, false),
        (Kind::DeadlineExceeded, false),
        (Kind::Changed, false),
        (Kind::Internal, false),
    ] {
        match convert(kind, false) {
            Ok(applied) => {
                let Contents { implied_directories, inherited_directories, without_parents, .. } =
                    applied.stats.contents;
                assert!(may_be_ignored, "{kind:?}");
                assert_eq!((implied_directories, inherited_directories, without_parents), (1, 0, true));
                fs::remove_file(&out).unwrap();
            }
            Err(error) => {
                assert!(!may_be_ignored, "{kind:?}");
                assert_eq!((error.kind(), error.reason()), (kind, "test.below"));
                assert_eq!(error.to_string(), "the layers below: on purpose");
                assert!(!out.exists());
            }
        }
        let error = convert(kind, true).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (kind, "test.below"));
    }
}
