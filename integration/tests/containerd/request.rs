//! Which requests are ours: every name a tar layer has, and nothing whose name or place is another's.

use plywood_integration::archive;
use plywood_integration::calls::apply_request;
use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Layer};
use tonic::Code;

use crate::Suite;

/// Every media type of a tar layer. The coding is found in the bytes, so each must take all of them.
const TAR_TYPES: [&str; 11] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

pub fn add(suite: &mut Suite) {
    suite.with_env("every_tar_media_type_takes_every_coding", Setup::default(), every_tar_type);
    suite.with_env("other_media_types_are_unimplemented", Setup::default(), other_types);
    suite.with_env("mounts_of_others_are_unimplemented", Setup::default(), other_mounts);
    suite.with_env("a_pull_that_asks_for_sync_is_served", Setup::default(), |env| {
        let layer = Layer::oci(&archive::one_file("file", b"contents")?, Coding::Gzip)?;
        let reference = env.push("sync", &plywood_integration::image::Image::oci(vec![layer]))?;
        env.pull(&reference, "erofs", &["--local", "--sync-fs"])?;
        anyhow::ensure!(env.layer_files()?.len() == 1, "layers: {:?}", env.layer_files()?);
        Ok(())
    });
}

fn every_tar_type(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let tar = archive::one_file("file", b"contents")?;
    let mut files = Vec::new();
    for coding in [Coding::Plain, Coding::Gzip, Coding::Zstd] {
        caller.ingest(&Layer::coded("", &tar, coding)?)?;
        for media_type in TAR_TYPES {
            let layer = Layer::coded(media_type, &tar, coding)?;
            let mounts = caller.prepare(&format!("{coding:?}-{media_type}"), "")?;
            let applied = caller.apply(&layer, &mounts)?;
            anyhow::ensure!(applied.digest == layer.diff_id, "{media_type} {coding:?}: {applied:?}");
            anyhow::ensure!(
                applied.size == i64::try_from(tar.len())?,
                "{media_type} {coding:?}: {applied:?}"
            );
            anyhow::ensure!(
                applied.media_type == "application/vnd.oci.image.layer.v1.tar",
                "{media_type} {coding:?}: {applied:?}"
            );
        }
    }
    for file in env.layer_files()? {
        files.push(std::fs::metadata(file)?.len());
    }
    anyhow::ensure!(files.len() == 3 * TAR_TYPES.len(), "{} layers", files.len());
    files.dedup();
    anyhow::ensure!(files.len() == 1, "one tar gave images of these sizes: {files:?}");
    Ok(())
}

fn other_types(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let tar = archive::one_file("file", b"contents")?;
    let mounts = caller.prepare("key", "")?;
    for media_type in [
        "application/octet-stream",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+lz4",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.erofs.layer.v1+gzip",
    ] {
        // Not in the store: the answer must not depend on it.
        let layer = Layer::coded(media_type, &tar, Coding::Gzip)?;
        let Err(status) = caller.apply(&layer, &mounts) else { anyhow::bail!("{media_type:?} was applied") };
        anyhow::ensure!(status.code() == Code::Unimplemented, "{media_type:?}: {status:?}");
    }
    Ok(())
}

fn other_mounts(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let layer = Layer::oci(&archive::one_file("file", b"contents")?, Coding::Gzip)?;
    caller.ingest(&layer)?;
    let elsewhere = env.path("elsewhere/fs");
    std::fs::create_dir_all(&elsewhere)?;
    std::fs::write(env.path("elsewhere/.erofslayer"), b"")?;
    let mut bind = caller.prepare("key", "")?;
    for mount in &mut bind {
        mount.source = elsewhere.to_string_lossy().into_owned();
    }
    let mut btrfs = caller.prepare("key-2", "")?;
    for mount in &mut btrfs {
        mount.r#type = "btrfs".into();
    }
    for (name, mounts) in [("outside of the roots", bind), ("a subvolume", btrfs)] {
        let call = caller.begin_here(apply_request(&layer, &mounts));
        let Err(status) = caller.finish(call) else { anyhow::bail!("{name}: applied") };
        anyhow::ensure!(status.code() == Code::Unimplemented, "{name}: {status:?}");
    }
    anyhow::ensure!(!env.path("elsewhere/layer.erofs").exists(), "written outside of the roots");
    Ok(())
}
