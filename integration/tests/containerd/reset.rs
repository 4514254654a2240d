//! containerd starts from nothing: on a fresh node, and after its data was removed under a running Plywood.

use plywood_integration::archive;
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Image, Layer};

use crate::Suite;

pub fn add(suite: &mut Suite) {
    suite.with_env(
        "containerd_reset_five_times_under_a_socket_unit_loses_no_pull",
        Setup::default(),
        five_resets,
    );
}

/// The pull begins as soon as containerd answers, whatever Plywood is about then.
fn five_resets(env: &mut Env) -> anyhow::Result<()> {
    let layers = (1..=5).map(|seed| {
        Layer::oci(&archive::one_file(&format!("file-{seed}"), &archive::text(1 << 20, seed))?, Coding::Gzip)
    });
    let image = Image::oci(layers.collect::<anyhow::Result<_>>()?);
    let reference = env.push("small", &image)?;
    let unit = env.start_socket_unit()?;
    for round in 1..=5 {
        let before = unit.starts();
        env.reset_containerd()?;
        env.pull(&reference, "erofs", &[]).map_err(|error| error.context(format!("round {round}")))?;
        anyhow::ensure!(
            env.layer_files()?.len() == image.layers.len(),
            "round {round}: {:?}",
            env.layer_files()
        );
        anyhow::ensure!(unit.starts() > before, "round {round}: Plywood still holds the old root");
    }
    // The last one was bound to directories that have not changed since: it reads blobs where they lie.
    let log = std::fs::read_to_string(env.path("logs/plywood.log"))?;
    for reason in ["server.root-replaced", "server.directory-replaced"] {
        anyhow::ensure!(log.contains(&format!("[{reason}]")), "no {reason} in the log");
    }
    Ok(())
}
