//! Layers that are EROFS images already: published byte for byte, refused when anything about them is wrong.

use plywood_integration::archive::{self, Sparse};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Image, Layer, digest};
use plywood_integration::tree;

use crate::Suite;

const OCI: &str = "application/vnd.oci.image.layer.v1.erofs";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.erofs+zstd";
const EROFS: &str = "application/vnd.erofs.layer.v1";
const EROFS_ZSTD: &str = "application/vnd.erofs.layer.v1+zstd";

/// A way to damage the bytes of a layer.
type Spoil = fn(&mut Vec<u8>);

pub fn add(suite: &mut Suite) {
    for (name, media_type) in
        [("oci", OCI), ("oci_zstd", OCI_ZSTD), ("erofs", EROFS), ("erofs_zstd", EROFS_ZSTD)]
    {
        suite.with_env(
            format!("native_{name}_image_is_published_byte_for_byte"),
            Setup::default(),
            move |env| is_published(env, media_type, &[]),
        );
    }
    // Client-side unpacking knows only OCI's names for layers.
    suite.with_env("native_oci_image_is_published_through_the_diff_service", Setup::default(), |env| {
        is_published(env, OCI, &["--local"])
    });
    let spoil: [(&str, &str, Spoil); 4] = [
        ("cut_in_half", "[erofs.superblock.blocks]", |image| image.truncate(image.len() / 2)),
        ("cut_by_one_block", "[erofs.superblock.blocks]", |image| image.truncate(image.len() - 4096)),
        ("with_a_flipped_bit_in_the_superblock", "[erofs.superblock.checksum]", |image| {
            image[1024 + 40] ^= 1
        }),
        ("of_noise", "[erofs.superblock.magic]", |image| *image = archive::noise(image.len(), 11)),
    ];
    for (name, reason, spoil) in spoil {
        for (spelling, media_type) in [("plain", EROFS), ("zstd", EROFS_ZSTD)] {
            suite.with_env(
                format!("native_{spelling}_layer_{name}_is_refused"),
                Setup::default(),
                move |env| {
                    let (_, mut image) = base_image()?;
                    spoil(&mut image);
                    is_refused(env, Layer::native(media_type, &image)?, reason)
                },
            );
        }
    }
    for (spelling, media_type) in [("plain", OCI), ("zstd", OCI_ZSTD)] {
        let name = format!("native_{spelling}_layer_with_a_wrong_diff_id_is_refused");
        suite.with_env(name, Setup::default(), move |env| {
            let (_, image) = base_image()?;
            let mut layer = Layer::native(media_type, &image)?;
            layer.diff_id = digest(b"something else");
            is_refused(env, layer, "wrong diff id")
        });
    }
    suite.with_env("tar_layer_with_a_wrong_diff_id_is_refused", Setup::default(), |env| {
        let tar = archive::one_file("file", b"contents")?;
        let mut layer = Layer::oci(&tar, plywood_integration::image::Coding::Gzip)?;
        layer.diff_id = digest(b"something else");
        is_refused(env, layer, "wrong diff id")
    });
}

/// The feature layers as tar files, kept as long as the first part lives, and as EROFS images.
fn images() -> anyhow::Result<(tempfile::TempDir, Vec<std::path::PathBuf>, Vec<Vec<u8>>)> {
    let scratch = tempfile::tempdir()?;
    let tars = archive::feature_layers(scratch.path(), Sparse::Without)?;
    let mut images = Vec::new();
    for tar in &tars {
        let image = tar.with_extension("erofs");
        // The command of containerd's own converter.
        let mut command = host::command("mkfs.erofs");
        command.args(["--tar=f", "--aufs", "--quiet", "-Enoinline_data"]).arg(&image).arg(tar);
        host::run(&mut command)?;
        images.push(std::fs::read(&image)?);
    }
    Ok((scratch, tars, images))
}

fn base_image() -> anyhow::Result<(tempfile::TempDir, Vec<u8>)> {
    let (scratch, _, images) = images()?;
    let base = images.into_iter().next().ok_or_else(|| anyhow::anyhow!("no layers"))?;
    Ok((scratch, base))
}

fn is_published(env: &mut Env, media_type: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let (scratch, tars, images) = images()?;
    let layers = images.iter().map(|image| Layer::native(media_type, image)).collect::<Result<_, _>>()?;
    let image = Image::oci(layers);
    let reference = env.push("native", &image)?;
    env.pull(&reference, "erofs", arguments)?;
    let mut published = Vec::new();
    for file in env.layer_files()? {
        published.push(digest(&std::fs::read(file)?));
    }
    let mut want: Vec<String> = images.iter().map(|image| digest(image)).collect();
    published.sort();
    want.sort();
    anyhow::ensure!(published == want, "published {published:?}, pushed {want:?}");

    let said = env.run(&reference, "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    let expected = scratch.path().join("want");
    tree::stack(&tars, &expected)?;
    let mounted = env.mount(&image)?;
    tree::ensure_equal(&tree::scan(&expected)?, &tree::scan(mounted.path())?)
}

/// A pull of this one layer fails, says why, and leaves nothing.
fn is_refused(env: &mut Env, layer: Layer, says: &str) -> anyhow::Result<()> {
    let reference = env.push("spoilt", &Image::oci(vec![layer]))?;
    let Err(error) = env.pull(&reference, "erofs", &[]) else {
        anyhow::bail!("the pull was expected to fail, and left {:?}", env.layer_files()?);
    };
    let text = format!("{error:#}");
    anyhow::ensure!(text.contains(says), "{says:?} is not in {text}");
    // An answer of "unimplemented" would also fail the pull, but for no reason a user can use.
    anyhow::ensure!(!text.contains("not implemented"), "{text}");
    env.wait_until_clean()
}
