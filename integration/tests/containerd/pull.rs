//! Images of every coding, pulled both ways: the tree a container sees is the one GNU tar and the whiteout rules give.

use plywood_integration::archive::{self, Sparse};
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Image, Layer};
use plywood_integration::tree;

use crate::Suite;

/// How the layers of an image are stored and named, the lowest first.
type Make = fn(&[Vec<u8>]) -> anyhow::Result<Image>;

pub fn add(suite: &mut Suite) {
    let kinds: [(&str, Make); 6] = [
        ("gzip", |tars| same(tars, Coding::Gzip)),
        ("zstd", |tars| same(tars, Coding::Zstd)),
        ("plain", |tars| same(tars, Coding::Plain)),
        ("mixed", |tars| {
            let codings = [Coding::Gzip, Coding::Zstd, Coding::Plain];
            let layers = tars.iter().zip(codings).map(|(tar, coding)| Layer::oci(tar, coding));
            Ok(Image::oci(layers.collect::<anyhow::Result<_>>()?))
        }),
        ("docker", |tars| {
            let codings = [Coding::Gzip, Coding::Zstd, Coding::Gzip];
            let layers = tars.iter().zip(codings).map(|(tar, coding)| Layer::docker(tar, coding));
            Ok(Image { layers: layers.collect::<anyhow::Result<_>>()?, docker: true })
        }),
        ("mislabelled", |tars| {
            let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
            let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
            let names = [(gzip, Coding::Zstd), (zstd, Coding::Gzip), (gzip, Coding::Plain)];
            let layers = tars.iter().zip(names).map(|(tar, (name, coding))| Layer::coded(name, tar, coding));
            Ok(Image::oci(layers.collect::<anyhow::Result<_>>()?))
        }),
    ];
    for (kind, make) in kinds {
        for (service, arguments) in [("transfer", &[][..]), ("diff", &["--local"][..])] {
            let name = format!("{kind}_image_pulled_through_the_{service}_service_equals_its_layers");
            suite.with_env(name, Setup::default(), move |env| equals_its_layers(env, make, arguments));
        }
    }
}

fn same(tars: &[Vec<u8>], coding: Coding) -> anyhow::Result<Image> {
    let layers = tars.iter().map(|tar| Layer::oci(tar, coding));
    Ok(Image::oci(layers.collect::<anyhow::Result<_>>()?))
}

fn equals_its_layers(env: &mut Env, make: Make, arguments: &[&str]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let files = archive::feature_layers(scratch.path(), Sparse::With)?;
    let tars: Vec<Vec<u8>> = files.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let image = make(&tars)?;
    let reference = env.push("features", &image)?;
    env.pull(&reference, "erofs", arguments)?;

    let said = env.run(&reference, "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");

    let want = scratch.path().join("want");
    tree::stack(&files, &want)?;
    let mounted = env.mount(&image)?;
    tree::ensure_equal(&tree::scan(&want)?, &tree::scan(mounted.path())?)?;

    anyhow::ensure!(env.layer_files()?.len() == 3, "layers: {:?}", env.layer_files()?);
    // The container's snapshot and the view have gone or hold nothing of ours.
    anyhow::ensure!(env.leftovers()?.is_empty(), "left behind: {:?}", env.leftovers()?);
    Ok(())
}
