//! Times the look of `plywood scrub` at images against a plain read of their metadata, both with nothing in the page cache.
//!
//!     cargo bench --bench scrub -- IMAGE...       # layer.erofs of snapshots, or any other images; on a disk, as root
//!
//! The metadata of an image is every block that holds no file's data alone: the superblock, inodes with what is stored beside
//! them, directories, attributes. Whoever looks at all of it has to read these blocks. The plain read reads them in the order
//! of the disk, in pieces of 128 KiB, and looks at none; the look takes several images side by side, as a scrub does. In turns,
//! the median of all. Bytes that are asked for twice come from the page cache the second time.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what it is for")]

use std::{
    cell::Cell,
    env,
    fs::File,
    io,
    num::NonZero,
    process::ExitCode,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use plywood::format::{
    ReadAt,
    erofs::{
        check::{Policy, verify},
        reader::{Image, Place},
    },
};
use rustix::fs::{Advice, fadvise};

const TURNS: usize = 7;
const PIECE: u64 = 128 << 10;

/// Counts the bytes that are read.
struct Counting<'a> {
    file: &'a File,
    bytes: Cell<u64>,
}

impl ReadAt for Counting<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.set(self.bytes.get() + buf.len() as u64);
        self.file.read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.file.will_need(offset, len);
    }
}

/// Start and end of every stretch of the image that holds metadata.
fn metadata(file: &File) -> Vec<(u64, u64)> {
    let image = Image::open(file).expect("an EROFS image");
    let bits = image.superblock().block_bits;
    let root = image.root().expect("a root");
    let (mut data, mut pending) = (Vec::new(), vec![root]);
    while let Some(node) = pending.pop() {
        if let Ok(mut walk) = image.directory(&node) {
            let mut children = Vec::new();
            while let Some(entry) = walk.next_child().expect("a sound directory") {
                children.push(entry.nid);
            }
            pending.extend(children.into_iter().map(|nid| image.node(nid).expect("a sound inode")));
            continue;
        }
        for extent in image.extents(&node, 0).flatten() {
            if let Place::Blocks { device: 0, offset } = extent.place {
                data.push((offset, offset + bits.blocks_for(extent.len) * bits.size()));
            }
        }
    }
    data.sort_unstable();
    let (mut rest, mut at) = (Vec::new(), 0);
    for (start, end) in data.into_iter().chain([(file.size_bytes(), file.size_bytes())]) {
        if start > at {
            rest.push((at, start));
        }
        at = at.max(end);
    }
    rest
}

fn forget(file: &File) {
    file.sync_all().expect("the disk takes it");
    fadvise(file, 0, None, Advice::DontNeed).expect("advice is taken");
}

fn plain(file: &File, stretches: &[(u64, u64)]) -> Duration {
    let mut buffer = vec![0; usize::try_from(PIECE).expect("it fits")];
    let started = Instant::now();
    for (start, end) in stretches {
        let mut at = *start;
        while at < *end {
            let len = PIECE.min(end - at);
            let piece = buffer.get_mut(..usize::try_from(len).expect("it fits")).expect("no longer");
            file.read_exact_at(at, piece).expect("readable");
            at += len;
        }
    }
    started.elapsed()
}

fn look(file: &File) -> u64 {
    let counting = Counting { file, bytes: Cell::new(0) };
    verify(&counting, &Policy::any()).expect("a sound image");
    counting.bytes.get()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
}

fn main() -> ExitCode {
    let paths: Vec<_> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if paths.is_empty() {
        eprintln!("name some images");
        return ExitCode::FAILURE;
    }
    let images: Vec<_> = paths
        .iter()
        .map(|path| {
            let file = File::open(path).expect("an image");
            let stretches = metadata(&file);
            (file, stretches)
        })
        .collect();
    let bytes: u64 = images.iter().flat_map(|(_, stretches)| stretches).map(|(start, end)| end - start).sum();
    let forget_all = || images.iter().for_each(|(file, _)| forget(file));
    let (mut plains, mut looks, mut read) = (Vec::new(), Vec::new(), 0);
    for _ in 0..TURNS {
        forget_all();
        plains.push(images.iter().map(|(file, stretches)| plain(file, stretches)).sum());
        forget_all();
        let started = Instant::now();
        read = look_at_all(&images);
        looks.push(started.elapsed());
    }
    let (plain, look) = (median(plains) * 1e3, median(looks) * 1e3);
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let share = read as f64 / bytes as f64;
    println!("{} images, {bytes} bytes of metadata; {share:.2} of them asked for", images.len());
    println!("plain {plain:.1} ms, look {look:.1} ms, {:.2}", look / plain);
    ExitCode::SUCCESS
}

/// As a scrub does: up to four threads take one image after the other. Returns the bytes that they asked for.
fn look_at_all(images: &[(File, Vec<(u64, u64)>)]) -> u64 {
    let (next, read) = (AtomicUsize::new(0), AtomicU64::new(0));
    let threads = thread::available_parallelism().map_or(1, NonZero::get).clamp(1, 4);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((file, _)) = images.get(next.fetch_add(1, Relaxed)) {
                    read.fetch_add(look(file), Relaxed);
                }
            });
        }
    });
    read.into_inner()
}
