//! An Apply that ends anywhere: whatever the moment, a snapshot directory has no layer or the whole layer.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use containerd_client::types::Mount;
use plywood_integration::archive;
use plywood_integration::calls::{Caller, apply_request, layer_directory};
use plywood_integration::disk::SmallDisk;
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Layer};
use tonic::Code;

use crate::Suite;

/// Moments at which an Apply is ended, evenly spread from its begin to its end.
const POINTS: u32 = 200;
/// Uncompressed size of the layer that is ended, in bytes.
const LAYER_BYTES: usize = 24 << 20;
/// Points from no free space to enough of it.
const SPACES: u64 = 50;

pub fn add(suite: &mut Suite) {
    suite.with_env("sigkill_at_200_points_of_an_apply_leaves_all_or_nothing", Setup::default(), killed);
    suite.with_disk("enospc_at_50_points_of_an_apply_leaves_all_or_nothing", out_of_space);
}

/// A layer in the store, an active snapshot, and the file that an undisturbed Apply publishes.
struct Prepared {
    layer: Layer,
    mounts: Vec<Mount>,
    directory: PathBuf,
    whole: Vec<u8>,
    took: Duration,
}

impl Prepared {
    fn new(caller: &Caller) -> anyhow::Result<Self> {
        let tar = archive::one_file("dir/file", &archive::text(LAYER_BYTES, 3))?;
        let layer = Layer::oci(&tar, Coding::Gzip)?;
        caller.ingest(&layer)?;
        let mounts = caller.prepare("crash", "")?;
        let directory = layer_directory(&mounts)?;
        let start = Instant::now();
        caller.apply(&layer, &mounts)?;
        let took = start.elapsed();
        let whole = std::fs::read(directory.join("layer.erofs"))?;
        let prepared = Self { layer, mounts, directory, whole, took };
        prepared.clear()?;
        Ok(prepared)
    }

    /// Whether the layer is there. An error when it is there but not whole.
    fn is_published(&self) -> anyhow::Result<bool> {
        match std::fs::read(self.directory.join("layer.erofs")) {
            Ok(bytes) if bytes == self.whole => Ok(true),
            Ok(bytes) => anyhow::bail!("{} of {} bytes were published", bytes.len(), self.whole.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn clear(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.directory.join("layer.erofs"))?)
    }
}

fn killed(env: &mut Env) -> anyhow::Result<()> {
    let mut caller = env.caller()?;
    let prepared = Prepared::new(&caller)?;
    let mut published = 0;
    for point in 0..POINTS {
        let call = caller.begin_here(apply_request(&prepared.layer, &prepared.mounts));
        // A little past the end, so that the last steps are met as well.
        std::thread::sleep(prepared.took * point * 11 / (POINTS * 10));
        env.kill_plywood()?;
        let answered = caller.finish(call).is_ok();
        let there = prepared.is_published().with_context(|| format!("killed at point {point}"))?;
        anyhow::ensure!(
            there || !answered,
            "point {point}: success was answered for a layer that is not there"
        );
        env.start_plywood()?;
        anyhow::ensure!(env.leftovers()?.is_empty(), "point {point}: left behind {:?}", env.leftovers()?);
        if there {
            published += 1;
            prepared.clear()?;
        }
        caller = env.caller()?;
    }
    // Neither all nor none, or the moments were not in the Apply.
    anyhow::ensure!(published > 0 && published < POINTS, "{published} of {POINTS} were published");
    caller.apply(&prepared.layer, &prepared.mounts)?;
    anyhow::ensure!(prepared.is_published()?, "nothing was published");
    Ok(())
}

fn out_of_space() -> anyhow::Result<()> {
    let disk = SmallDisk::mount(128 << 20)?;
    let setup = Setup {
        containerd_root: Some(disk.path().join("containerd")),
        plywood_tables: "[limits]\nreserve_bytes = 0\nreserve_percent = 0\n".into(),
        ..Setup::default()
    };
    let env = Env::start(&setup)?;
    fill_and_apply(&env, &disk.path()).map_err(|error| error.context(env.logs()))
}

fn fill_and_apply(env: &Env, disk: &Path) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let prepared = Prepared::new(&caller)?;
    let filler = disk.join("filler");
    let need = u64::try_from(prepared.whole.len())?;
    let mut published = 0;
    for point in 0..=SPACES {
        // The last points leave enough, whatever the file system needs for itself.
        let leave = (need + (4 << 20)) * point / SPACES;
        let stat = rustix::fs::statvfs(disk)?;
        let free = stat.f_bavail * stat.f_frsize;
        fill(&filler, free.saturating_sub(leave))?;
        match caller.apply(&prepared.layer, &prepared.mounts) {
            Ok(_) => {
                anyhow::ensure!(prepared.is_published()?, "{leave} bytes: answered without a layer");
                published += 1;
                prepared.clear()?;
            }
            Err(status) => {
                anyhow::ensure!(status.code() == Code::ResourceExhausted, "{leave} bytes: {status:?}");
                anyhow::ensure!(!prepared.is_published()?, "{leave} bytes: a layer after {status:?}");
            }
        }
        anyhow::ensure!(env.leftovers()?.is_empty(), "{leave} bytes: left behind {:?}", env.leftovers()?);
        std::fs::remove_file(&filler)?;
    }
    anyhow::ensure!(published > 0 && published < SPACES, "{published} of {SPACES} were published");
    Ok(())
}

/// Takes this many bytes of the disk, or a little less where its own records need some of them.
fn fill(filler: &Path, mut bytes: u64) -> anyhow::Result<()> {
    let file = std::fs::File::create(filler)?;
    while bytes > 0 {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::NOSPC) => bytes = bytes.saturating_sub(64 << 10),
            done => return Ok(done?),
        }
    }
    Ok(())
}
