//! Plywood under the system call filter and the capabilities of its unit, as two versions of systemd set them up.

use std::process::Command;

use anyhow::Context as _;
use containerd_client::services::v1::DiffRequest;
use plywood_integration::archive;
use plywood_integration::calls::Differ;
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Image, Layer};

use crate::Suite;
use testkit::unit_filter::{Filter, NEEDS, SYSTEMD_252, SYSTEMD_257, UNIT};

pub fn add(suite: &mut Suite) {
    let by_252 = |command: Command| Filter::of_unit(SYSTEMD_252, UNIT).around(&command);
    let by_257 = |command: Command| Filter::of_unit(SYSTEMD_257, UNIT).around(&command);
    for (version, wrap) in [(252, by_252 as fn(Command) -> Command), (257, by_257)] {
        suite.test(
            format!("under_the_filter_of_systemd_{version}_a_pull_a_diff_and_a_restart_work"),
            &NEEDS,
            move || {
                let mut env = Env::start(&Setup { wrap, ..Setup::default() })?;
                works(&mut env).map_err(|error| error.context(env.logs()))
            },
        );
    }
}

fn works(env: &mut Env) -> anyhow::Result<()> {
    for round in 1..=2_u64 {
        let layers = [2 * round, 2 * round + 1].map(|seed| {
            let tar = archive::one_file(&format!("file-{seed}"), &archive::text(1 << 20, seed))?;
            Layer::oci(&tar, Coding::Gzip)
        });
        let image = Image::oci(layers.into_iter().collect::<anyhow::Result<_>>()?);
        let reference = env.push(&format!("filtered-{round}"), &image)?;
        env.pull(&reference, "erofs", &[])?;
        let caller = env.caller()?;
        let right = caller.view("erofs", &format!("newer-{round}"), &image.chain_id())?;
        let request = DiffRequest { right, ..DiffRequest::default() };
        let layer = caller.diff(Differ::Service, request, None)?;
        anyhow::ensure!(layer.size > 1000, "the layer of both files has {} bytes", layer.size);
        anyhow::ensure!(env.layer_files()?.len() == 2 * usize::try_from(round)?, "{:?}", env.layer_files()?);

        let log = env.plywood()?.log();
        let confined = log.lines().rev().find(|line| line.contains(" confined ")).context("not confined")?;
        anyhow::ensure!(confined.contains("landlock=\"full\""), "{confined}");
        anyhow::ensure!(!log.contains("landlock refuses"), "the filter denied something:\n{log}");
        env.plywood()?.terminate()?;
        env.start_plywood()?;
    }
    Ok(())
}
