//! Many layers at once, in any order: each comes out as it does alone.

use std::path::PathBuf;

use plywood_integration::archive;
use plywood_integration::calls::{Caller, apply_request, layer_directory};
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Layer};

use crate::Suite;

/// Layers applied at the same time; more than run at once on any machine, so that some wait.
const LAYERS: u64 = 40;

pub fn add(suite: &mut Suite) {
    suite.with_env(
        "layers_applied_at_once_are_the_same_bytes_as_one_by_one",
        Setup::default(),
        same_at_once_as_one_by_one,
    );
}

fn same_at_once_as_one_by_one(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        let len = usize::try_from(number * 50_000 + 10)?;
        let tar = archive::one_file(&format!("dir/file-{number}"), &archive::text(len, number))?;
        let codings = [Coding::Gzip, Coding::Zstd, Coding::Plain];
        let coding = codings[usize::try_from(number % 3)?];
        let layer = Layer::oci(&tar, coding)?;
        caller.ingest(&layer)?;
        layers.push(layer);
    }
    let at_once = apply_all(&caller, &layers, "at-once", true)?;
    let one_by_one = apply_all(&caller, &layers, "one-by-one", false)?;
    for ((first, second), layer) in at_once.iter().zip(&one_by_one).zip(&layers) {
        anyhow::ensure!(std::fs::read(first)? == std::fs::read(second)?, "{} differs", layer.media_type);
    }
    anyhow::ensure!(env.leftovers()?.is_empty(), "left behind: {:?}", env.leftovers()?);
    Ok(())
}

/// The published files, in the order of the layers.
fn apply_all(caller: &Caller, layers: &[Layer], name: &str, at_once: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut running = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let mounts = caller.prepare(&format!("{name}-{number}"), "")?;
        files.push(layer_directory(&mounts)?.join("layer.erofs"));
        let call = caller.begin_here(apply_request(layer, &mounts));
        if at_once {
            running.push((layer, call));
        } else {
            anyhow::ensure!(caller.finish(call)?.digest == layer.diff_id, "wrong digest");
        }
    }
    for (layer, call) in running {
        let applied = caller.finish(call)?;
        anyhow::ensure!(applied.digest == layer.diff_id, "{} for {}", applied.digest, layer.diff_id);
    }
    Ok(files)
}
