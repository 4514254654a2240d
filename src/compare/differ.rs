//! One Diff: from a request to a blob in the content store.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{Compare, Compared, Composer, Form, Request, Sides, Stats, Times};
use crate::{
    call::{Call, Phase},
    descriptor::Descriptor,
    digest::Digest,
    error::{Classify, Error, Kind, Result},
    kind::{
        Index, LayerType, OCI_LAYER_TAR,
        overlaybd::{BLOB_DIGEST, BLOB_SIZE, FS_TYPE, NATIVE_VERSION, VERSION},
    },
    overlaybd::snapshot,
    snapshot::{DeviceDir, DeviceState, LayerSource, Roots, Stack, StackLayer},
    store::{BlobSink, Stored, check_labels},
    sys::thread::catch,
};

/// Label with the digest of the uncompressed layer: clients look for it on every blob.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Labels of a request that ask for a layer with a table of contents. Snapshotters set the first on snapshots of such
/// layers; the second is what the names of the annotations of such layers begin with.
const INDEXED: [(&str, Index); 2] = [
    ("containerd.io/snapshot/stargz", Index::Stargz),
    ("io.github.containers.zstd-chunked", Index::Containers),
];

/// Why a request is declined.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
enum CompareError {
    /// This differ does not write the type. Another one may.
    #[error("this differ does not write layers of type {0:?}")]
    MediaType(String),
    /// No layer has the tables of both.
    #[error("labels {} and {} ask for two forms of a layer", INDEXED[0].0, INDEXED[1].0)]
    Index,
    /// A layer of a device has to go on top of the older side.
    #[error(
        "the older side is not the device right below the newer one, so no layer of a device leads from it there"
    )]
    NotBelow,
}

impl Classify for CompareError {
    fn kind(&self) -> Kind {
        match self {
            Self::MediaType(_) | Self::Index => Kind::NotImplemented,
            Self::NotBelow => Kind::Conflict,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::MediaType(_) => "diff.media-type",
            Self::Index => "diff.index",
            Self::NotBelow => "diff.device",
        }
    }
}

/// Compares snapshots below trusted roots, and puts the layers into a content store.
pub struct Differ {
    sink: Arc<dyn BlobSink>,
    roots: Arc<Roots>,
    composer: Composer,
    device_layers: bool,
}

impl Differ {
    /// A differ for the snapshots below `roots`, whose layers go to `sink`.
    pub fn new(sink: Arc<dyn BlobSink>, roots: Arc<Roots>, composer: Composer) -> Self {
        Self { sink, roots, composer, device_layers: false }
    }

    /// Chooses whether a plain tar of changes above a device becomes a layer of the device, also where the request does
    /// not ask for that.
    #[must_use]
    pub fn with_device_layers(self, device_layers: bool) -> Self {
        Self { device_layers, ..self }
    }

    /// Chooses the form of the layer.
    ///
    /// Only a plain tar can be a layer of a device: clients take every other type by its name for what it is.
    fn form<'l>(&self, request: &Request, layer_type: &'l LayerType, sides: &Sides) -> Result<Form<'l>> {
        let is_asked = self.device_layers || request.labels.contains_key(VERSION);
        let ordinary = Ok(Form::Of(layer_type));
        if layer_type.media_type != OCI_LAYER_TAR {
            return ordinary;
        }
        match sides.upper.layers.as_slice() {
            [StackLayer { source: LayerSource::Device { dir, state: DeviceState::Writable }, .. }] => {
                // Other snapshotters may not describe a device before it is committed.
                if dir.is_described() {
                    check_next(&sides.lower, dir)?;
                }
                Ok(Form::Written(Arc::clone(dir)))
            }
            _ if !is_asked => ordinary,
            [StackLayer { source: LayerSource::Device { dir, .. }, .. }] if dir.is_described() => {
                check_next(&sides.lower, dir)?;
                Ok(Form::Top(Arc::clone(dir)))
            }
            [upper, StackLayer { source: LayerSource::Device { dir, .. }, key, .. }]
                if matches!(upper.source, LayerSource::Directory { .. }) && dir.is_described() =>
            {
                match sides.lower.layers.as_slice() {
                    [older] if older.key == *key => Ok(Form::Changed(Arc::clone(dir))),
                    _ => Err(CompareError::NotBelow.into()),
                }
            }
            _ => ordinary,
        }
    }

    fn write(
        &self,
        call: &Call,
        request: &Request,
        layer_type: &LayerType,
        form: &Form<'_>,
        sides: Sides,
    ) -> Result<Compared> {
        let started = Instant::now();
        check_labels(&request.labels)?;
        let mut ingest = self.sink.ingest(call, &request.reference)?;
        let composed =
            self.composer.compose(call.work(), sides, form, request.source_date_epoch, &mut |bytes| {
                ingest.write(bytes)
            })?;
        call.cancel.check()?;
        call.progress.begin(Phase::Commit, None);
        let committing = Instant::now();
        let mut labels = request.labels.clone();
        // A plain layer has it as well: several clients fail without.
        labels.insert(UNCOMPRESSED.to_owned(), composed.diff_id.to_string());
        let Stored { digest, size_bytes } = ingest.commit(&composed.blob, &labels)?;
        let stats = Stats {
            diff_id: composed.diff_id,
            uncompressed_bytes: composed.uncompressed_bytes,
            coding: layer_type.coding,
            contents: composed.contents,
            times: Times { commit: committing.elapsed(), ..composed.times },
            total: started.elapsed(),
        };
        let annotations = match form {
            Form::Of(_) => composed.annotations,
            _ => annotations(composed.file_system, &digest, size_bytes),
        };
        let descriptor =
            Descriptor { annotations, ..Descriptor::of(layer_type.media_type, digest, size_bytes) };
        Ok(Compared { descriptor, stats })
    }
}

impl Compare for Differ {
    fn compare(&self, call: &Call, request: &Request) -> Result<Compared> {
        // Nothing is written and no layer is read before both stacks are open.
        let layer_type = layer_type(request).map_err(|error| Error::from(error).context("diff"))?;
        let stack = |mounts, side: &str| -> Result<Stack> {
            self.roots.stack(mounts).map_err(|error| {
                Error::from(error).context(side).context(format!("diff ({})", layer_type.media_type))
            })
        };
        let lower = stack(&request.left, "the older side")?;
        let upper = stack(&request.right, "the newer side")?;
        let sides = Sides { lower, upper };
        let context =
            format!("diff of {} to {} ({})", top(&sides.lower), top(&sides.upper), layer_type.media_type);
        let form = self.form(request, layer_type, &sides);
        form.and_then(|form| catch(|| self.write(call, request, layer_type, &form, sides)))
            .map_err(|error| error.context(context))
    }
}

/// The type of the layer that a request asks for.
fn layer_type(request: &Request) -> std::result::Result<&'static LayerType, CompareError> {
    let unknown = || CompareError::MediaType(request.media_type.clone());
    let layer_type = LayerType::to_write(&request.media_type).ok_or_else(unknown)?;
    let mut asked = INDEXED.into_iter().filter(|(label, _)| request.labels.contains_key(*label));
    match (asked.next(), asked.next()) {
        (None, _) => Ok(layer_type),
        (Some((_, index)), None) => layer_type.with_index(index).ok_or_else(unknown),
        (Some(_), Some(_)) => Err(CompareError::Index),
    }
}

/// Checks that the layers of the device `newer` are those of the older side and one on top.
fn check_next(older: &Stack, newer: &DeviceDir) -> Result<()> {
    let below = match older.layers.as_slice() {
        [] => None,
        [StackLayer { source: LayerSource::Device { dir, .. }, .. }] if dir.is_described() => Some(&**dir),
        _ => return Err(CompareError::NotBelow.into()),
    };
    match snapshot::is_next(below, newer)? {
        true => Ok(()),
        false => Err(CompareError::NotBelow.into()),
    }
}

/// The annotations by which snapshotters know a layer of a device.
fn annotations(
    file_system: Option<&'static str>,
    digest: &Digest,
    size_bytes: u64,
) -> BTreeMap<String, String> {
    let flavour = file_system.map(|name| (FS_TYPE, name.to_owned()));
    let all = [
        (VERSION, NATIVE_VERSION.to_owned()),
        (BLOB_DIGEST, digest.to_string()),
        (BLOB_SIZE, size_bytes.to_string()),
    ];
    all.into_iter().chain(flavour).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A stack in a message: the newest layer, and the number of layers below.
fn top(stack: &Stack) -> String {
    match stack.layers.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.path.display().to_string(),
        [newest, rest @ ..] => format!("{} and {} below", newest.path.display(), rest.len()),
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod device_tests;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        compare::Options,
        format::stargz::{Declared, Layout},
        limits::Limits,
        pipeline::Resources,
        snapshot::Mount,
        store::{Ingest, Memory},
    };

    struct Fixture {
        scratch: tempfile::TempDir,
        store: Memory,
        differ: Differ,
    }

    /// A snapshot root with the snapshots 1, a view of nothing, and 2, a committed image: reading that takes no
    /// privilege.
    fn fixture(sink: impl FnOnce(Memory) -> Arc<dyn BlobSink>) -> Fixture {
        let scratch = tempfile::tempdir().unwrap();
        for id in ["1", "2"] {
            let directory = scratch.path().join("snapshots").join(id);
            fs::create_dir_all(directory.join("fs")).unwrap();
            fs::create_dir(directory.join("work")).unwrap();
            fs::write(directory.join(".erofslayer"), "").unwrap();
        }
        let image = include_bytes!("../../tests/fixtures/erofs/plain.erofs");
        fs::write(scratch.path().join("snapshots/2/layer.erofs"), image).unwrap();
        let store = Memory::new();
        let roots = Arc::new(Roots::open(&[scratch.path().to_owned()]).unwrap());
        let options = Options::in_directory(scratch.path().to_owned());
        let composer = Composer::new(options, Resources::new(Limits::default(), 2));
        let differ = Differ::new(sink(store.clone()), roots, composer);
        Fixture { scratch, store, differ }
    }

    impl Fixture {
        fn request(&self, media_type: &str) -> Request {
            let mount = |kind: &str, path: &str, option: &str| {
                vec![Mount {
                    kind: kind.to_owned(),
                    source: self.scratch.path().join("snapshots").join(path).display().to_string(),
                    target: String::new(),
                    options: vec!["ro".to_owned(), option.to_owned()],
                }]
            };
            Request {
                left: mount("bind", "1/fs", "rbind"),
                right: mount("erofs", "2/layer.erofs", "loop"),
                media_type: media_type.to_owned(),
                reference: "given".to_owned(),
                labels: BTreeMap::from([("own".to_owned(), "label".to_owned())]),
                source_date_epoch: None,
            }
        }
    }

    fn call() -> Call {
        Call::new("default".parse().unwrap())
    }

    #[test]
    fn a_blob_has_its_labels_and_is_described_as_the_store_knows_it() {
        let fixture = fixture(|store| Arc::new(store));
        for (media_type, coding) in [("", "gzip"), ("application/vnd.oci.image.layer.v1.tar", "plain")] {
            let compared = fixture.differ.compare(&call(), &fixture.request(media_type)).unwrap();
            let Descriptor { digest, size_bytes, .. } = &compared.descriptor;
            let bytes = fixture.store.bytes(digest).unwrap();
            assert_eq!((bytes.len() as u64, compared.stats.coding.as_str()), (*size_bytes, coding));
            let labels = fixture.store.labels(digest).unwrap();
            let diff_id = compared.stats.diff_id.to_string();
            assert_eq!(labels.get(UNCOMPRESSED), Some(&diff_id));
            assert_eq!(labels.get("own").map(String::as_str), Some("label"));
            assert_eq!(labels.len(), 2);
            assert!(compared.stats.contents.entries > 0 && compared.stats.contents.whiteouts == 0);
            if coding == "plain" {
                assert_eq!(diff_id, digest.to_string());
            }
        }
        assert!(fixture.store.ingests().is_empty());
    }

    #[test]
    fn a_request_with_the_label_gets_a_layer_with_a_table_and_its_annotations() {
        let fixture = fixture(|store| Arc::new(store));
        for (media_type, form) in [
            ("", Some("sha256:")),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some("sha256:")),
            ("application/vnd.oci.image.layer.v1.tar", None),
            ("application/vnd.erofs.layer.v1", None),
        ] {
            let mut request = fixture.request(media_type);
            request.labels.insert("containerd.io/snapshot/stargz".to_owned(), "true".to_owned());
            let compared = fixture.differ.compare(&call(), &request);
            match form {
                Some(digest) => {
                    let Descriptor { media_type, annotations, digest: blob, .. } =
                        compared.unwrap().descriptor;
                    let toc = &annotations["containerd.io/snapshot/stargz/toc.digest"];
                    assert!(toc.starts_with(digest), "{annotations:?}");
                    assert!(
                        media_type.starts_with("application/vnd.oci.image.layer.v1.tar+"),
                        "{media_type}"
                    );
                    let (bytes, declared) =
                        (fixture.store.bytes(&blob).unwrap(), Declared::of(&annotations).unwrap());
                    let layout = Layout::find(&&*bytes, &declared).unwrap().unwrap();
                    assert!(layout.read_toc(&&*bytes, &declared).unwrap().is_some());
                }
                None => {
                    let error = compared.unwrap_err();
                    assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "diff.media-type"));
                }
            }
        }
    }

    #[test]
    fn the_label_of_the_containers_tools_gets_their_form_of_zstd_and_no_other() {
        const PREFIX: &str = "io.github.containers.zstd-chunked";
        let fixture = fixture(|store| Arc::new(store));
        let compare = |media_type: &str, labels: &[&str]| {
            let mut request = fixture.request(media_type);
            request.labels.extend(labels.iter().map(|label| ((*label).to_owned(), String::new())));
            fixture.differ.compare(&call(), &request)
        };
        let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
        let Descriptor { media_type, annotations, digest, .. } = compare(zstd, &[PREFIX]).unwrap().descriptor;
        assert_eq!(media_type, zstd);
        let names: Vec<_> = annotations.keys().map(|name| name.strip_prefix(PREFIX).unwrap()).collect();
        assert_eq!(names, [".manifest-checksum", ".manifest-position", ".tarsplit-position"]);
        let (bytes, declared) = (fixture.store.bytes(&digest).unwrap(), Declared::of(&annotations).unwrap());
        let layout = Layout::find(&&*bytes, &declared).unwrap().unwrap();
        assert!(layout.read_toc(&&*bytes, &declared).unwrap().is_some());

        for media_type in
            ["", "application/vnd.oci.image.layer.v1.tar", "application/vnd.erofs.layer.v1+zstd"]
        {
            let error = compare(media_type, &[PREFIX]).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "diff.media-type"));
        }
        let error = compare(zstd, &[PREFIX, "containerd.io/snapshot/stargz"]).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "diff.index"), "{error}");
    }

    #[test]
    fn a_side_without_mounts_is_an_empty_tree() {
        let fixture = fixture(|store| Arc::new(store));
        let names = |left: &[Mount], right: &[Mount]| {
            let mut request = fixture.request("application/vnd.oci.image.layer.v1.tar");
            (request.left, request.right) = (left.to_vec(), right.to_vec());
            let Compared { descriptor, stats } = fixture.differ.compare(&call(), &request).unwrap();
            let bytes = fixture.store.bytes(&descriptor.digest).unwrap();
            let mut archive = ::tar::Archive::new(&bytes[..]);
            let name = |entry: std::io::Result<::tar::Entry<'_, _>>| {
                String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap()
            };
            let names: Vec<_> = archive.entries().unwrap().map(name).collect();
            assert_eq!(stats.contents.entries, names.len() as u64);
            (names, bytes)
        };
        let Request { left: nothing, right: image, .. } = fixture.request("");
        let (whole, bytes) = names(&[], &image);
        assert!(!whole.is_empty() && whole.iter().all(|name| !name.contains(".wh.")), "{whole:?}");
        assert_eq!(bytes, names(&nothing, &image).1, "as with a view of nothing");

        let (gone, bytes) = names(&image, &[]);
        let top: std::collections::BTreeSet<_> =
            whole.iter().filter_map(|name| name.split('/').next()).filter(|name| !name.is_empty()).collect();
        assert_eq!(gone, top.iter().map(|name| format!(".wh.{name}")).collect::<Vec<_>>());
        assert_eq!(bytes, names(&image, &nothing).1, "as with a view of nothing");

        assert_eq!(names(&[], &[]).1[..], [0; 1024], "an archive without entries");
    }

    /// Compressed data is not decoded yet, which is no fault of the layer.
    #[test]
    fn a_compressed_layer_is_in_the_way_only_where_its_data_is_needed() {
        let fixture = fixture(|store| Arc::new(store));
        let snapshots = fixture.scratch.path().join("snapshots");
        let image = include_bytes!("../../tests/fixtures/erofs/lz4.erofs");
        fs::write(snapshots.join("2/layer.erofs"), image).unwrap();
        let error = fixture.differ.compare(&call(), &fixture.request("")).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "erofs.compressed"));
        assert!(error.to_string().contains("\"sparse\" in"), "{error}");
        // A container above it, which left the compressed file alone.
        for directory in ["3/fs", "3/work"] {
            fs::create_dir_all(snapshots.join(directory)).unwrap();
        }
        fs::write(snapshots.join("3/.erofslayer"), "").unwrap();
        fs::write(snapshots.join("3/fs/new"), "data").unwrap();
        let mut request = fixture.request("");
        let at = |path: &str| snapshots.join(path).display().to_string();
        request.left = std::mem::take(&mut request.right);
        request.right = vec![Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec![
                format!("workdir={}", at("3/work")),
                format!("upperdir={}", at("3/fs")),
                format!("lowerdir={}", at("2/fs")),
            ],
        }];
        let compared = fixture.differ.compare(&call(), &request).unwrap();
        assert!(compared.stats.contents.entries > 0, "the new file");
    }

    /// A store that is not to be asked for anything.
    struct Untouched;

    impl BlobSink for Untouched {
        fn ingest(&self, _: &Call, _: &str) -> Result<Box<dyn Ingest>> {
            panic!("the store was touched")
        }
    }

    #[test]
    fn the_type_is_looked_at_first_then_the_older_side_then_the_newer_and_the_labels() {
        let fixture = fixture(|_| Arc::new(Untouched));
        let refused = |request: &Request| {
            let error = fixture.differ.compare(&call(), request).unwrap_err();
            (error.kind(), error.reason(), error.to_string())
        };
        let mut request = fixture.request("x/y");
        request.labels.insert("long".to_owned(), "x".repeat(4096));
        let right = std::mem::take(&mut request.right);
        let left = std::mem::take(&mut request.left);
        let (kind, reason, message) = refused(&request);
        assert_eq!((kind, reason), (Kind::NotImplemented, "diff.media-type"));
        assert_eq!(message, "diff: this differ does not write layers of type \"x/y\"");
        request.media_type.clear();
        let elsewhere = vec![Mount { kind: "bind".into(), source: "/other/fs".into(), ..Mount::default() }];
        (request.left, request.right) = (elsewhere.clone(), elsewhere);
        let (kind, reason, message) = refused(&request);
        assert_eq!((kind, reason), (Kind::NotImplemented, "mount.outside-root"));
        assert!(message.starts_with("diff (application/vnd.oci.image.layer.v1.tar+gzip): the older side: "));
        request.left = left;
        let (_, reason, message) = refused(&request);
        assert!(reason == "mount.outside-root" && message.contains("the newer side"), "{message}");
        request.right = right;
        let (_, reason, message) = refused(&request);
        assert!(reason == "store.label" && message.contains("snapshots/2/layer.erofs"), "{message}");
    }

    /// A store whose second write fails in the given way.
    struct Failing(fn() -> Result<()>);

    impl BlobSink for Failing {
        fn ingest(&self, _: &Call, _: &str) -> Result<Box<dyn Ingest>> {
            Ok(Box::new(Self(self.0)))
        }
    }

    impl Ingest for Failing {
        fn write(&mut self, _: &[u8]) -> Result<()> {
            (self.0)()
        }
        fn commit(self: Box<Self>, _: &Digest, _: &BTreeMap<String, String>) -> Result<Stored> {
            panic!("committed")
        }
    }

    #[test]
    fn failures_and_panics_below_are_errors_that_name_both_sides() {
        let full: fn() -> Result<()> = || Err(Error::new(Kind::Exhausted, "store.full", "no space"));
        for (fail, want) in [(full, "store.full"), (|| panic!("on purpose"), "internal.panic")] {
            let fixture = fixture(|_| Arc::new(Failing(fail)));
            let error = fixture.differ.compare(&call(), &fixture.request("")).unwrap_err();
            assert_eq!(error.reason(), want, "{error}");
            let message = error.to_string();
            for part in
                ["diff of ", "snapshots/2/layer.erofs", "(application/vnd.oci.image.layer.v1.tar+gzip): "]
            {
                assert!(message.contains(part), "{part} not in {message}");
            }
        }
    }

    /// A store to which a blob is written and that then loses its caller.
    struct Cancelling(Call);

    impl BlobSink for Cancelling {
        fn ingest(&self, _: &Call, _: &str) -> Result<Box<dyn Ingest>> {
            Ok(Box::new(Self(self.0.clone())))
        }
    }

    impl Ingest for Cancelling {
        fn write(&mut self, _: &[u8]) -> Result<()> {
            self.0.cancel.cancel();
            Ok(())
        }

        fn commit(self: Box<Self>, _: &Digest, _: &BTreeMap<String, String>) -> Result<Stored> {
            panic!("committed")
        }
    }

    #[test]
    fn a_call_that_is_cancelled_at_the_last_byte_is_not_committed() {
        let call = call();
        let fixture = fixture(|_| Arc::new(Cancelling(call.clone())));
        let error = fixture.differ.compare(&call, &fixture.request("")).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    }

    #[test]
    fn what_a_blob_is_uncompressed_is_not_for_the_caller_to_say() {
        let fixture = fixture(|store| Arc::new(store));
        let mut request = fixture.request("");
        request.labels.insert(UNCOMPRESSED.to_owned(), Digest::sha256(b"another").to_string());
        let compared = fixture.differ.compare(&call(), &request).unwrap();
        let labels = fixture.store.labels(&compared.descriptor.digest).unwrap();
        assert_eq!(labels.get(UNCOMPRESSED), Some(&compared.stats.diff_id.to_string()));
    }

    #[test]
    fn a_cancelled_call_is_answered_as_such() {
        let fixture = fixture(|store| Arc::new(store));
        let call = call();
        call.cancel.cancel();
        let error = fixture.differ.compare(&call, &fixture.request("")).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        assert!(fixture.store.ingests().is_empty());
    }
}
