//! Layers and snapshots that are not ours are left to the next differ.

use plywood_integration::archive::{self, Sparse};
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Image, Layer};

use crate::Suite;

pub fn add(suite: &mut Suite) {
    let setup = || Setup { differs: &["plywood", "walking"], ..Setup::default() };
    suite.with_env("overlayfs_snapshots_fall_through_to_the_next_differ", setup(), falls_through);
}

fn falls_through(env: &mut Env) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let tars = archive::feature_layers(scratch.path(), Sparse::Without)?;
    let layers = tars.iter().map(|tar| Layer::oci(&std::fs::read(tar)?, Coding::Gzip));
    let reference = env.push("fallback", &Image::oci(layers.collect::<anyhow::Result<_>>()?))?;
    env.pull(&reference, "overlayfs", &["--local"])?;
    let said = env.run(&reference, "overlayfs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    // Without being asked first, the pull would have proven nothing about Plywood.
    let log = env.plywood()?.log();
    let refused = log.lines().filter(|line| line.contains("unimplemented")).count();
    anyhow::ensure!(refused == 3, "{refused} of 3 layers were refused as unimplemented");
    anyhow::ensure!(env.layer_files()?.is_empty(), "published {:?}", env.layer_files()?);
    Ok(())
}
