//! containerd starts from nothing: on a fresh node, and after its data was removed under a running Plywood.

use plywood_integration::archive;
use plywood_integration::env::{Env, Setup, wait_until};
use plywood_integration::image::{Coding, Image, Layer};

use crate::Suite;

pub fn add(suite: &mut Suite) {
    suite.with_env(
        "containerd_reset_five_times_under_a_socket_unit_leaves_every_pull_working",
        Setup::default(),
        five_resets,
    );
}

fn five_resets(env: &mut Env) -> anyhow::Result<()> {
    let layers = (1..=5).map(|seed| {
        Layer::oci(&archive::one_file(&format!("file-{seed}"), &archive::text(1 << 20, seed))?, Coding::Gzip)
    });
    let image = Image::oci(layers.collect::<anyhow::Result<_>>()?);
    let reference = env.push("small", &image)?;
    let _unit = env.start_socket_unit()?;
    let log = env.path("logs/plywood.log");
    let count = |text: &str| Ok::<_, anyhow::Error>(std::fs::read_to_string(&log)?.matches(text).count());
    wait_until("Plywood is ready", || Ok(count(" ready ")? == 2))?;
    for round in 1..=5 {
        let (starts, ends) = (count(" ready ")?, count("[server.root-replaced]")?);
        env.reset_containerd()?;
        wait_until("Plywood has ended", || Ok(count("[server.root-replaced]")? > ends))?;
        wait_until("Plywood is ready again", || Ok(count(" ready ")? > starts))?;
        env.pull(&reference, "erofs", &[]).map_err(|error| error.context(format!("round {round}")))?;
        let files = env.layer_files()?;
        anyhow::ensure!(files.len() == image.layers.len(), "round {round}: {files:?}");
    }
    // containerd makes its content store with the first blob, after Plywood has started.
    wait_until("Plywood can read blobs where they lie", || Ok(count("[server.directory-replaced]")? > 0))?;
    Ok(())
}
