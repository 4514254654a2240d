//! A layer as a native EROFS image, plain or in zstd frames.
//!
//! The writer of images needs random access, and writes its first block last. So the image is laid out in a
//! file without a name, checked there, and only then streamed through digests and compression. Holes stay
//! holes on the way, times keep their nanoseconds.
//!
//! The image's UUID is made of its contents: equal changes give equal images, and other changes another UUID.
//! Overlayfs recognises lower layers by it, so it must not be the same for all.
//!
//! Described in `docs/formats/erofs.md`, "Images made of changes".

use std::{path::PathBuf, time::Instant};

use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::{output::Output, send};
use crate::{
    call::{Phase, Progress, Work},
    codec::encode::Compression,
    error::Result,
    format::erofs::writer::{self, WriteOptions},
    limits::Limits,
    pipeline::{
        Plan, StreamLimit,
        encode::{Deliver, Facts},
        image::{self, ImageWriter},
    },
    snapshot::NewFile,
    tree::{Body, Device, Entry},
};

/// Settings for writing an EROFS layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Compression of the image: none or zstd.
    pub compression: Compression,
    /// Layout of the image.
    pub image: WriteOptions,
    /// A directory with room for the image.
    pub work_directory: PathBuf,
}

impl Options {
    /// Uncompressed images with the writer's own defaults, laid out in `work_directory`.
    pub fn in_directory(work_directory: PathBuf) -> Self {
        Self { compression: Compression::PLAIN, image: WriteOptions::DEFAULT, work_directory }
    }
}

/// Runs `changes`, and delivers the image of the entries that it writes to its output. The root directory gets
/// the attributes of its entry, so there should be one.
///
/// Errors: those of `changes`, of `deliver`, of the work directory and of the limits; an entry that no image can
/// hold; `Cancelled`. Nothing is delivered before the whole image has passed its check.
pub fn write<T>(
    plan: Plan<'_>,
    options: &Options,
    deliver: Deliver<'_>,
    changes: impl FnOnce(&mut dyn Output) -> Result<T>,
) -> Result<(T, Facts)> {
    let started = Instant::now();
    let Plan { resources, lease, work: Work { cancel, progress } } = plan;
    let limits = &resources.limits;
    progress.begin(Phase::LayOut, None);
    let file = NewFile::scratch(&options.work_directory, limits)?;
    let writer_options = writer::Options {
        image: options.image,
        max_nodes: limits.nodes,
        max_metadata_bytes: limits.metadata_bytes,
        ..writer::Options::default()
    };
    let mut layer = Layer {
        writer: ImageWriter::new(file, writer_options, lease, cancel),
        contents: Xxh3::new(),
        limits,
        progress,
    };
    layer.contents.update(&[options.image.block_bits.get()]);
    layer.contents.update(&options.image.inline_limit.to_le_bytes());
    let output = changes(&mut layer)?;
    let (file, summary) = layer.writer.finish(uuid(&layer.contents))?;
    admit(summary.size_bytes, limits)?;
    progress.begin(Phase::Verify, None);
    image::verify_own(&file, &[], limits, lease, cancel)?;
    let built = started.elapsed();

    let mut facts = send::file(plan, options.compression, deliver, &file, summary.size_bytes)?;
    facts.times.produce += built;
    Ok((output, facts))
}

/// A name-based identifier, as containerd's differ gives images, whose name is made of the contents.
fn uuid(contents: &Xxh3) -> [u8; 16] {
    let name = format!("erofs:entries/xxh3-128:{:032x}", contents.digest128());
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes()
}

/// An image is a stream, with the limit of every stream.
fn admit(image_bytes: u64, limits: &Limits) -> Result<()> {
    let limit = limits.stream_bytes;
    if image_bytes > limit { Err(StreamLimit::Length { limit }.into()) } else { Ok(()) }
}

/// An image being laid out.
struct Layer<'a> {
    writer: ImageWriter<'a>,
    /// Hash of all entries and their data.
    contents: Xxh3,
    limits: &'a Limits,
    progress: &'a Progress,
}

impl Layer<'_> {
    /// Hashes a field together with its length, so that no two entries look alike.
    fn hash(&mut self, field: &[u8]) {
        self.contents.update(&(field.len() as u64).to_le_bytes());
        self.contents.update(field);
    }

    fn hash_numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.contents.update(&number.to_le_bytes());
        }
    }

    fn hash_entry(&mut self, entry: &Entry) {
        let attributes = entry.attributes;
        self.hash(&entry.path);
        self.hash_numbers(&[
            attributes.mode.into(),
            attributes.uid.into(),
            attributes.gid.into(),
            attributes.mtime.seconds.cast_unsigned(),
            attributes.mtime.nanoseconds.into(),
            entry.xattrs.len() as u64,
        ]);
        for xattr in &entry.xattrs {
            self.hash(&xattr.name);
            self.hash(&xattr.value);
        }
        match &entry.body {
            Body::Regular { size_bytes, extents } => {
                // Data follows; how much is known from here.
                let extents = extents.as_deref();
                self.hash_numbers(&[
                    0,
                    *size_bytes,
                    extents.map_or(u64::MAX, |extents| extents.len() as u64),
                ]);
                for extent in extents.unwrap_or_default() {
                    self.hash_numbers(&[extent.offset, extent.len]);
                }
            }
            Body::Directory => self.hash_numbers(&[1]),
            Body::Symlink { target } => {
                self.hash_numbers(&[2]);
                self.hash(target);
            }
            Body::HardLink { target } => {
                self.hash_numbers(&[3]);
                self.hash(target);
            }
            Body::CharDevice(Device { major, minor }) => {
                self.hash_numbers(&[4, (*major).into(), (*minor).into()]);
            }
            Body::BlockDevice(Device { major, minor }) => {
                self.hash_numbers(&[5, (*major).into(), (*minor).into()]);
            }
            Body::Fifo => self.hash_numbers(&[6]),
        }
    }
}

impl Output for Layer<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        // Before the data fills the disk.
        let data = match &entry.body {
            Body::Regular { size_bytes, extents: None } => *size_bytes,
            Body::Regular { extents: Some(extents), .. } => {
                extents.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.len))
            }
            _ => 0,
        };
        admit(self.writer.image_bytes().saturating_add(data), self.limits)?;
        self.hash_entry(entry);
        self.writer.entry(entry)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.contents.update(bytes);
        self.writer.data(offset, bytes)
    }

    fn end_entry(&mut self) -> Result<()> {
        self.progress.set_done(self.writer.image_bytes());
        self.writer.end_entry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::Cancel,
        digest::Digest,
        error::Kind,
        format::erofs::check::{self, Policy},
        pipeline::Resources,
        tree::{Attributes, Extent, Timestamp},
    };

    fn entry(path: &str, body: Body) -> Entry {
        let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
        let attributes = Attributes { mode: 0o751, uid: 7, gid: 8, mtime };
        Entry { path: path.into(), attributes, xattrs: Vec::new(), body }
    }

    fn file(path: &str, data: &[u8]) -> (Entry, Vec<u8>) {
        (entry(path, Body::Regular { size_bytes: data.len() as u64, extents: None }), data.to_vec())
    }

    fn root() -> (Entry, Vec<u8>) {
        (entry("", Body::Directory), vec![])
    }

    fn put(output: &mut dyn Output, entries: &[(Entry, Vec<u8>)], piece: usize) -> Result<()> {
        for (entry, data) in entries {
            output.entry(entry)?;
            if let Body::Regular { extents, .. } = &entry.body {
                let start =
                    extents.as_ref().and_then(|extents| extents.first()).map_or(0, |first| first.offset);
                for (at, bytes) in data.chunks(piece).enumerate() {
                    output.data(start + (at * piece) as u64, bytes)?;
                }
                output.end_entry()?;
            }
        }
        Ok(())
    }

    struct Run {
        helpers: usize,
        limits: Limits,
        compression: Compression,
        piece: usize,
    }

    const RUN: fn() -> Run = || Run {
        helpers: 0,
        limits: Limits::without_reserve(),
        compression: Compression::PLAIN,
        piece: 1000,
    };

    impl Run {
        fn image(&self, entries: &[(Entry, Vec<u8>)]) -> Result<(Vec<u8>, Facts)> {
            let directory = tempfile::tempdir().unwrap();
            let mut blob = Vec::new();
            let mut deliver = |piece: &[u8]| {
                blob.extend_from_slice(piece);
                Ok(())
            };
            let (resources, cancel) = (Resources::new(self.limits.clone(), self.helpers), Cancel::new());
            let lease = resources.budget.lease(&cancel).unwrap();
            let work = Work { cancel: &cancel, progress: &Progress::default() };
            let plan = Plan { resources: &resources, lease: &lease, work };
            let options = Options {
                compression: self.compression,
                ..Options::in_directory(directory.path().to_owned())
            };
            let outcome = write(plan, &options, &mut deliver, |output| put(output, entries, self.piece));
            assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "nothing is left");
            if outcome.is_err() {
                assert!(blob.is_empty(), "nothing is delivered");
            }
            outcome.map(|((), facts)| (blob, facts))
        }
    }

    fn some() -> Vec<(Entry, Vec<u8>)> {
        let noise: Vec<u8> =
            (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        vec![
            root(),
            (entry("dir", Body::Directory), vec![]),
            file("dir/.wh.gone", b""),
            file("dir/a", b"small"),
            file("dir/b", &noise),
            (entry("dir/c", Body::HardLink { target: b"dir/a".to_vec() }), vec![]),
            (entry("link", Body::Symlink { target: b"dir/a".to_vec() }), vec![]),
        ]
    }

    #[test]
    fn the_image_is_valid_whole_and_the_same_each_time() {
        let (image, facts) = RUN().image(&some()).unwrap();
        check::verify(&image[..], &Policy::layer()).unwrap();
        assert_eq!((&facts.diff_id, &facts.blob), (&Digest::sha256(&image), &Digest::sha256(&image)));
        let (again, _) = Run { helpers: 3, piece: 77, ..RUN() }.image(&some()).unwrap();
        assert!(again == image);
        let zstd = Run { helpers: 2, compression: Compression::ZSTD, ..RUN() };
        let (blob, packed) = zstd.image(&some()).unwrap();
        assert_eq!((packed.diff_id, packed.blob), (facts.diff_id, Digest::sha256(&blob)));
        assert!(zstd::decode_all(&blob[..]).unwrap() == image);
    }

    #[test]
    fn other_contents_give_another_uuid() {
        let uuid = |entries: &[(Entry, Vec<u8>)]| -> Vec<u8> {
            let (image, _) = RUN().image(entries).unwrap();
            image[1024 + 0x30..1024 + 0x40].to_vec()
        };
        let mut seen = vec![uuid(&[root()])];
        assert_ne!(seen[0], [0; 16]);
        assert_eq!(seen[0][6] >> 4, 5, "a name-based identifier");
        let mut changed = root();
        changed.0.attributes.mtime.nanoseconds += 1;
        for entries in [
            vec![changed],
            vec![root(), file("a", b"1")],
            vec![root(), file("a", b"2")],
            vec![root(), file("b", b"1")],
            vec![root(), (entry("a", Body::Directory), vec![])],
            some(),
        ] {
            let found = uuid(&entries);
            assert!(!seen.contains(&found));
            seen.push(found);
        }
    }

    #[test]
    fn holes_take_no_room() {
        let extents = Some(vec![Extent { offset: 1 << 30, len: 4096 }]);
        let sparse = (entry("sparse", Body::Regular { size_bytes: 4 << 30, extents }), vec![7; 4096]);
        let (image, _) = RUN().image(&[root(), sparse]).unwrap();
        assert!(image.len() < 1 << 20, "{} bytes", image.len());
    }

    #[test]
    fn an_image_beyond_the_limit_is_refused_before_its_data() {
        let limited = Run { limits: Limits { stream_bytes: 1 << 20, ..RUN().limits }, ..RUN() };
        let huge = entry("huge", Body::Regular { size_bytes: 1 << 50, extents: None });
        for entries in [vec![root(), (huge, vec![])], some()] {
            let error = limited.image(&entries).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
        }
        let full = Run { limits: Limits { reserve_bytes: u64::MAX, ..RUN().limits }, ..RUN() };
        assert_eq!(full.image(&some()).unwrap_err().reason(), "limit.free-space");
    }

    #[test]
    fn an_entry_without_a_place_is_refused() {
        let link = (entry("b", Body::HardLink { target: b"none".to_vec() }), vec![]);
        assert_eq!(RUN().image(&[root(), link]).unwrap_err().reason(), "tree.hardlink.target");
    }
}
