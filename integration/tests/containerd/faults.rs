//! Faults in the middle of a request: the answer has the right code, and the directory is as it was.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use plywood_integration::archive;
use plywood_integration::calls::{apply_request, layer_directory};
use plywood_integration::disk::SmallDisk;
use plywood_integration::env::{Env, Setup, wait_until};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer, digest};
use tonic::Code;

use crate::Suite;

/// Enough output that the middle of an Apply can be met.
const BIG_BYTES: usize = 300 << 20;
/// Output after which an Apply counts as in its middle, in bytes.
const MIDDLE_BYTES: u64 = 30 << 20;

/// A way to damage the bytes of a layer.
type Spoil = fn(&mut Vec<u8>);

pub fn add(suite: &mut Suite) {
    suite.with_env("after_sigkill_in_an_apply_the_next_pull_works", Setup::default(), killed);
    suite.with_env("a_cancelled_pull_stops_the_apply_and_leaves_nothing", Setup::default(), cancelled);
    suite.with_disk("a_full_disk_fails_the_pull_and_leaves_nothing", full_disk);
    suite.with_disk("the_free_space_reserve_is_kept", reserve);
    suite.with_env("a_missing_blob_is_not_found", Setup::default(), missing_blob);
    suite.with_env("an_unknown_namespace_is_not_found", Setup::default(), unknown_namespace);
    suite.with_env("no_namespace_is_a_failed_precondition", Setup::default(), no_namespace);
    let spoil: [(&str, Spoil); 2] = [
        ("flipped_byte", |blob| {
            let middle = blob.len() / 2;
            blob[middle] ^= 0x10;
        }),
        ("lost_tail", |blob| blob.truncate(blob.len() - 1)),
    ];
    for (name, spoil) in spoil {
        for (access, direct) in [("direct", true), ("grpc", false)] {
            for coding in [Coding::Plain, Coding::Gzip, Coding::Zstd] {
                let kind = format!("{coding:?}").to_lowercase();
                let setup = Setup { direct_content: direct, ..Setup::default() };
                suite.with_env(
                    format!("{name}_in_the_stores_{kind}_blob_is_refused_{access}"),
                    setup,
                    move |env| spoilt_in_store(env, spoil, coding),
                );
            }
        }
    }
    suite.with_env("a_descriptor_of_the_wrong_size_is_refused", Setup::default(), wrong_size);
}

fn big_image() -> anyhow::Result<Image> {
    let tar = archive::one_file("big", &archive::text(BIG_BYTES, 1))?;
    Ok(Image::oci(vec![Layer::oci(&tar, Coding::Gzip)?]))
}

/// Waits until Plywood has written a good part of a layer, and stops it there: however fast it is and however busy the
/// machine, what happens next happens in the middle.
fn stop_in_the_middle(env: &mut Env) -> anyhow::Result<()> {
    let before = env.plywood()?.written_bytes()?;
    let plywood = env.plywood()?;
    wait_until("the Apply is in its middle", || Ok(plywood.written_bytes()? > before + MIDDLE_BYTES))?;
    signal("STOP", plywood.pid())
}

fn signal(name: &str, pid: u32) -> anyhow::Result<()> {
    host::run(Command::new("kill").args(["-s", name, &pid.to_string()]))?;
    Ok(())
}

fn killed(env: &mut Env) -> anyhow::Result<()> {
    let reference = env.push("big", &big_image()?)?;
    let mut pull = quietly(&mut env.pull_command(&reference, "erofs", &[])).spawn()?;
    stop_in_the_middle(env)?;
    env.kill_plywood()?;
    anyhow::ensure!(!pull.wait()?.success(), "a pull without its differ succeeded");
    env.start_plywood()?;
    env.wait_until_clean()?;
    // containerd's connection back-off lasts up to three seconds.
    wait_until("a pull works again", || Ok(env.pull(&reference, "erofs", &[]).is_ok()))?;
    anyhow::ensure!(env.layer_files()?.len() == 1, "layers: {:?}", env.layer_files()?);
    anyhow::ensure!(env.leftovers()?.is_empty(), "left behind: {:?}", env.leftovers()?);
    Ok(())
}

fn cancelled(env: &mut Env) -> anyhow::Result<()> {
    let reference = env.push("big", &big_image()?)?;
    let mut pull = quietly(&mut env.pull_command(&reference, "erofs", &[])).spawn()?;
    stop_in_the_middle(env)?;
    // ctr passes an interrupt on as the cancellation of its call.
    signal("INT", pull.id())?;
    anyhow::ensure!(!pull.wait()?.success(), "a cancelled pull succeeded");
    signal("CONT", env.plywood()?.pid())?;
    std::thread::sleep(Duration::from_secs(1));
    let plywood = env.plywood()?;
    let after_a_second = plywood.written_bytes()?;
    std::thread::sleep(Duration::from_millis(300));
    let later = plywood.written_bytes()?;
    anyhow::ensure!(later - after_a_second < 1 << 16, "still writing a second after the cancellation");
    anyhow::ensure!(after_a_second < u64::try_from(BIG_BYTES)?, "the Apply ran to its end");
    env.wait_until_clean()?;
    env.pull(&reference, "erofs", &[])?;
    anyhow::ensure!(env.layer_files()?.len() == 1, "layers: {:?}", env.layer_files()?);
    Ok(())
}

fn quietly(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

fn full_disk() -> anyhow::Result<()> {
    let disk = SmallDisk::mount(128 << 20)?;
    let setup = Setup {
        containerd_root: Some(disk.path().join("containerd")),
        plywood_tables: "[limits]\nreserve_bytes = 0\nreserve_percent = 0\n".into(),
        ..Setup::default()
    };
    let mut env = Env::start(&setup)?;
    fails_for_space(&mut env, disk.path().as_path()).map_err(|error| error.context(env.logs()))
}

fn reserve() -> anyhow::Result<()> {
    let disk = SmallDisk::mount(128 << 20)?;
    let setup = Setup {
        containerd_root: Some(disk.path().join("containerd")),
        // Room for a few small layers, not for the big one.
        plywood_tables: format!("[limits]\nreserve_bytes = {}\nreserve_percent = 0\n", 64 << 20),
        ..Setup::default()
    };
    let mut env = Env::start(&setup)?;
    fails_for_space(&mut env, disk.path().as_path()).map_err(|error| error.context(env.logs()))
}

fn fails_for_space(env: &mut Env, disk: &Path) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let image = big_image()?;
    let big = &image.layers[0];
    caller.ingest(big)?;
    let mounts = caller.prepare("big", "")?;
    let before = free_bytes(disk)?;
    let Err(status) = caller.apply(big, &mounts) else { anyhow::bail!("300 MiB fitted on 128 MiB") };
    anyhow::ensure!(status.code() == Code::ResourceExhausted, "{status:?}");
    let directory = layer_directory(&mounts)?;
    anyhow::ensure!(!directory.join("layer.erofs").exists(), "a torn layer was published");
    anyhow::ensure!(env.leftovers()?.is_empty(), "left behind: {:?}", env.leftovers()?);
    wait_until("the space is free again", || Ok(free_bytes(disk)? + (1 << 20) > before))?;

    let reference = env.push("big", &image)?;
    anyhow::ensure!(env.pull(&reference, "erofs", &[]).is_err(), "the pull succeeded");
    let small = Layer::oci(&archive::one_file("small", b"fits")?, Coding::Gzip)?;
    let reference = env.push("small", &Image::oci(vec![small]))?;
    env.pull(&reference, "erofs", &[])?;
    Ok(())
}

fn free_bytes(disk: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(disk)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

fn small_layer() -> anyhow::Result<Layer> {
    Layer::oci(&archive::one_file("file", b"contents")?, Coding::Gzip)
}

fn missing_blob(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let mounts = caller.prepare("missing", "")?;
    let layer = small_layer()?;
    let Err(status) = caller.apply(&layer, &mounts) else { anyhow::bail!("applied what is not there") };
    anyhow::ensure!(status.code() == Code::NotFound, "{status:?}");
    anyhow::ensure!(status.message().contains(&layer.digest()), "no digest in {status:?}");
    anyhow::ensure!(env.layer_files()?.is_empty() && env.leftovers()?.is_empty(), "something was written");
    Ok(())
}

fn unknown_namespace(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let layer = small_layer()?;
    caller.ingest(&layer)?;
    let mounts = caller.prepare("here", "")?;
    let call = caller.begin(Some("nobody-uses-this"), apply_request(&layer, &mounts));
    let Err(status) = caller.finish(call) else { anyhow::bail!("read a blob of another namespace") };
    anyhow::ensure!(status.code() == Code::NotFound, "{status:?}");
    anyhow::ensure!(env.layer_files()?.is_empty() && env.leftovers()?.is_empty(), "something was written");
    Ok(())
}

fn no_namespace(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let layer = small_layer()?;
    caller.ingest(&layer)?;
    let mounts = caller.prepare("here", "")?;
    let Err(status) = caller.finish(caller.begin(None, apply_request(&layer, &mounts))) else {
        anyhow::bail!("applied without a namespace")
    };
    anyhow::ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    Ok(())
}

fn spoilt_in_store(env: &mut Env, spoil: Spoil, coding: Coding) -> anyhow::Result<()> {
    let caller = env.caller()?;
    // Several of the store's windows long.
    let layer = Layer::oci(&archive::one_file("file", &archive::noise(20 << 20, 5))?, coding)?;
    caller.ingest(&layer)?;
    let file = env.blob(&layer.digest());
    let mut blob = std::fs::read(&file)?;
    spoil(&mut blob);
    std::fs::remove_file(&file)?;
    std::fs::write(&file, &blob)?;
    let mounts = caller.prepare("spoilt", "")?;
    let Err(status) = caller.apply(&layer, &mounts) else { anyhow::bail!("a spoilt blob was applied") };
    anyhow::ensure!(matches!(status.code(), Code::DataLoss | Code::InvalidArgument), "{status:?}");
    anyhow::ensure!(status.message().contains(&layer.digest()), "no digest in {status:?}");
    anyhow::ensure!(env.layer_files()?.is_empty() && env.leftovers()?.is_empty(), "something was written");
    Ok(())
}

fn wrong_size(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let layer = small_layer()?;
    caller.ingest(&layer)?;
    let mounts = caller.prepare("size", "")?;
    for size in [0, 1, layer.size_bytes() - 1, layer.size_bytes() + 1, -1] {
        let mut request = apply_request(&layer, &mounts);
        if let Some(diff) = &mut request.diff {
            diff.size = size;
        }
        let Err(status) = caller.finish(caller.begin_here(request)) else {
            anyhow::bail!("size {size} passed")
        };
        anyhow::ensure!(
            matches!(status.code(), Code::DataLoss | Code::InvalidArgument),
            "{size}: {status:?}"
        );
    }
    let mut request = apply_request(&layer, &mounts);
    if let Some(diff) = &mut request.diff {
        diff.digest = digest(b"another blob");
    }
    let Err(status) = caller.finish(caller.begin_here(request)) else {
        anyhow::bail!("a wrong digest passed")
    };
    anyhow::ensure!(status.code() == Code::NotFound, "{status:?}");
    anyhow::ensure!(env.layer_files()?.is_empty() && env.leftovers()?.is_empty(), "something was written");
    // The request as it should be.
    anyhow::ensure!(caller.apply(&layer, &mounts)?.digest == layer.diff_id, "wrong digest");
    Ok(())
}
