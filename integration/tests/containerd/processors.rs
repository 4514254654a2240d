//! Layers that need a stream processor: xz and EROFS images with the tar in them through `plywood stream`, under containerd's
//! own differ and under ours; processors that fail; and layers encrypted by imgcrypt.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use plywood_integration::archive::{self, Sparse};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer, digest};
use plywood_integration::tree;
use testkit::Need;

use crate::Suite;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub fn add(suite: &mut Suite) {
    let xz = [Need::Tool("xz")];
    for (name, arguments) in [("transfer", &[][..]), ("diff", &["--local"])] {
        suite.test(format!("a_tar_xz_image_runs_on_overlayfs_through_the_{name}_service"), &xz, move || {
            let containerd_tables = printed_tables()?;
            let differs = &["plywood", "walking"];
            in_env(Setup { differs, containerd_tables, ..Setup::default() }, |env| walks(env, arguments))
        });
        suite.test(format!("a_tar_xz_image_runs_on_erofs_through_the_{name}_service"), &xz, move || {
            in_env(Setup { plywood_tables: own_table()?, ..Setup::default() }, |env| applies(env, arguments))
        });
        let mkfs = [Need::Tool("mkfs.erofs")];
        suite.test(
            format!("an_image_of_tar_indexes_runs_on_overlayfs_through_the_{name}_service"),
            &mkfs,
            move || {
                let containerd_tables = printed_tables()?;
                let differs = &["plywood", "walking"];
                in_env(Setup { differs, containerd_tables, ..Setup::default() }, |env| {
                    walks_tar_indexes(env, arguments)
                })
            },
        );
        suite.test(format!("how_processors_end_decides_a_pull_through_the_{name}_service"), &xz, move || {
            let plywood_tables = own_table()? + &shells();
            in_env(Setup { plywood_tables, ..Setup::default() }, |env| ends_decide(env, arguments))
        });
    }
    let imgcrypt = [Need::Tool("ctr-imgcrypt"), Need::Tool("ctd-decoder"), Need::Tool("openssl")];
    suite.test("an_encrypted_image_is_pulled_with_the_key_of_the_client", &imgcrypt, || {
        in_env(Setup { plywood_tables: decoders(None)?, ..Setup::default() }, with_client_key)
    });
    suite.test("an_encrypted_image_is_pulled_with_the_key_of_the_node", &imgcrypt, || {
        let keys = tempfile::tempdir()?;
        let plywood_tables = decoders(Some(keys.path()))?;
        in_env(Setup { plywood_tables, ..Setup::default() }, |env| with_node_key(env, keys.path()))
    });
}

fn in_env(setup: Setup, test: impl FnOnce(&mut Env) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut env = Env::start(&setup)?;
    test(&mut env).map_err(|error| error.context(env.logs()))
}

/// The tables that `plywood config containerd` prints for containerd.
fn printed_tables() -> anyhow::Result<String> {
    let binary = host::plywood_binary().context("no plywood binary")?;
    let printed = host::run(Command::new(binary).args(["config", "containerd", "--version", "2.1"]))?;
    let start = printed.find("[stream_processors").context("no such table")?;
    Ok(printed[start..].to_owned())
}

/// The first of them, which is for Plywood as well.
fn own_table() -> anyhow::Result<String> {
    let tables = printed_tables()?;
    Ok(tables.split("\n#").next().context("no such table")?.to_owned())
}

/// The layers of an image with everything that an archive can hold, each packed by `pack`.
fn packed_image(
    scratch: &Path,
    media_type: &str,
    pack: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<(Vec<std::path::PathBuf>, Image)> {
    let tars = archive::feature_layers(scratch, Sparse::Without)?;
    let layers = tars.iter().map(|tar| {
        let tar = std::fs::read(tar)?;
        let (media_type, annotations) = (media_type.to_owned(), BTreeMap::new());
        anyhow::Ok(Layer { media_type, blob: pack(&tar)?, diff_id: digest(&tar), annotations })
    });
    let image = Image::oci(layers.collect::<anyhow::Result<_>>()?);
    Ok((tars, image))
}

/// Sends `bytes` through a program.
fn through(command: &mut Command, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    std::thread::scope(|scope| {
        let feeder = scope.spawn(move || stdin.write_all(bytes));
        let output = child.wait_with_output()?;
        // mkfs.erofs reads no further than the end of the archive.
        let _it_may_end_first = feeder.join().map_err(|_panic| anyhow::anyhow!("the feeder has panicked"))?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(output.stdout)
    })
}

fn xz(tar: &[u8]) -> anyhow::Result<Vec<u8>> {
    through(Command::new("xz").arg("-c"), tar)
}

fn xz_image(scratch: &Path) -> anyhow::Result<(Vec<std::path::PathBuf>, Image)> {
    packed_image(scratch, &format!("{TAR}+xz"), xz)
}

/// Images of an index and the tar, as containerd's own differ makes them with `enable_tar_index`.
fn walks_tar_indexes(env: &mut Env, arguments: &[&str]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let index = scratch.path().join("index");
    let (_, image) = packed_image(scratch.path(), "application/vnd.oci.image.layer.v1.erofs", |tar| {
        through(host::command("mkfs.erofs").args(["--tar=i", "--aufs", "--quiet"]).arg(&index), tar)?;
        Ok([std::fs::read(&index)?, tar.to_vec()].concat())
    })?;
    runs_on_overlayfs(env, &image, arguments)
}

/// Processors of shell, by the endings of the types that they take. The first one stands before `plywood stream`.
fn shells() -> String {
    let entry = |(id, returns, shell): (&str, &str, &str)| {
        format!(
            "\n[stream_processors.{id}]\naccepts = [\"{TAR}+{id}\"]\nreturns = \"{returns}\"\npath = \"/bin/sh\"\n\
             args = [\"-c\", {shell:?}]\nenv = [\"PATH=/usr/bin:/bin\"]\n"
        )
    };
    let xz = format!("{TAR}+xz");
    [
        ("before", xz.as_str(), "cat"),
        ("fails", TAR, "cat; echo 'said at last' >&2; exit 7"),
        ("cut", TAR, "head -c 1500"),
    ]
    .map(entry)
    .concat()
}

/// A chain of two succeeds. Nothing stays of a processor that fails after all of its output, or that cuts it off.
fn ends_decide(env: &mut Env, arguments: &[&str]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    for (ending, parts) in [
        ("fails", &["[processor.failed]", "processor fails exited with status 7: said at last"][..]),
        ("cut", &["[tar.truncated"]),
    ] {
        let scratch = scratch.path().join(ending);
        std::fs::create_dir(&scratch)?;
        let (_, image) = packed_image(&scratch, &format!("{TAR}+{ending}"), |tar| Ok(tar.to_vec()))?;
        let reference = env.push(ending, &image)?;
        let Err(error) = env.pull(&reference, "erofs", arguments) else { anyhow::bail!("{ending}: pulled") };
        let text = format!("{error:#}");
        for part in parts {
            anyhow::ensure!(text.contains(part), "{part:?} is not in {text}");
        }
        env.wait_until_clean()?;
    }
    let (_, image) = packed_image(scratch.path(), &format!("{TAR}+before"), xz)?;
    let reference = env.push("before", &image)?;
    env.pull(&reference, "erofs", arguments)?;
    ensure_runs(env, &reference)
}

fn walks(env: &mut Env, arguments: &[&str]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let (_, image) = xz_image(scratch.path())?;
    runs_on_overlayfs(env, &image, arguments)
}

fn runs_on_overlayfs(env: &mut Env, image: &Image, arguments: &[&str]) -> anyhow::Result<()> {
    let reference = env.push("walked", image)?;
    env.pull(&reference, "overlayfs", arguments)?;
    let said = env.run(&reference, "overlayfs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    anyhow::ensure!(env.layer_files()?.is_empty(), "published {:?}", env.layer_files()?);
    Ok(())
}

fn applies(env: &mut Env, arguments: &[&str]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let (tars, image) = xz_image(scratch.path())?;
    let reference = env.push("xz", &image)?;
    env.pull(&reference, "erofs", arguments)?;
    anyhow::ensure!(env.layer_files()?.len() == 3, "published {:?}", env.layer_files()?);
    let said = env.run(&reference, "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    let expected = scratch.path().join("want");
    tree::stack(&tars, &expected)?;
    let mounted = env.mount(&image)?;
    tree::ensure_equal(&tree::scan(&expected)?, &tree::scan(mounted.path())?)
}

/// containerd's own entries for imgcrypt, with the whole path of the program. Clients send the key under these names.
fn decoders(keys: Option<&Path>) -> anyhow::Result<String> {
    let program = host::program("ctd-decoder").context("no ctd-decoder")?;
    let args: Vec<_> = keys
        .into_iter()
        .flat_map(|keys| ["--decryption-keys-path".to_owned(), keys.display().to_string()])
        .collect();
    let entry = |name: &str, returns: &str| {
        format!(
            "[stream_processors.\"io.containerd.ocicrypt.decoder.v1.{name}\"]\naccepts = [\"{returns}+encrypted\"]\n\
             returns = \"{returns}\"\npath = {program:?}\nargs = {args:?}\n"
        )
    };
    Ok(entry("tar", TAR) + &entry("tar.gzip", GZIP))
}

/// Makes a pair of keys. Returns the paths of the private and the public one.
fn key(directory: &Path, name: &str) -> anyhow::Result<(String, String)> {
    let [private, public] =
        ["key", "pub"].map(|ending| directory.join(format!("{name}.{ending}")).display().to_string());
    host::run(Command::new("openssl").args(["genrsa", "-out", &private, "2048"]))?;
    host::run(Command::new("openssl").args(["rsa", "-in", &private, "-pubout", "-out", &public]))?;
    Ok((private, public))
}

/// imgcrypt's `ctr` for the containerd of `env`.
fn ctr(env: &Env, arguments: &[&str]) -> Command {
    let mut command = host::command("ctr-imgcrypt");
    command
        .arg("--address")
        .arg(env.containerd_socket())
        .args(["--namespace", env.namespace()])
        .args(arguments);
    command
}

/// Pushes an image whose layers are encrypted for `public`. Returns its reference, and the image before. Nothing of it is
/// left in containerd.
fn push_encrypted(env: &Env, public: &str) -> anyhow::Result<(String, Image)> {
    let scratch = tempfile::tempdir()?;
    let tars = archive::feature_layers(scratch.path(), Sparse::Without)?;
    let layers = tars.iter().map(|tar| Layer::oci(&std::fs::read(tar)?, Coding::Gzip));
    let image = Image::oci(layers.collect::<anyhow::Result<_>>()?);
    let plain = env.push("plain", &image)?;
    env.pull(&plain, "erofs", &[])?;
    let encrypted = env.reference("encrypted");
    let recipient = format!("jwe:{public}");
    host::run(&mut ctr(env, &["images", "encrypt", "--recipient", &recipient, &plain, &encrypted]))?;
    let info = host::run(&mut ctr(env, &["images", "layerinfo", &encrypted]))?;
    anyhow::ensure!(info.matches("jwe").count() >= 3, "not encrypted: {info}");
    host::run(&mut ctr(env, &["images", "push", "--plain-http", &encrypted]))?;
    host::run(&mut env.ctr(&["image", "rm", "--sync", &plain, &encrypted]))?;
    env.wait_until_clean()?;
    Ok((encrypted, image))
}

fn ensure_runs(env: &Env, reference: &str) -> anyhow::Result<()> {
    anyhow::ensure!(env.layer_files()?.len() == 3, "published {:?}", env.layer_files()?);
    let said = env.run(reference, "erofs", &["/bin/proof"])?;
    anyhow::ensure!(said.trim_end().ends_with("proven"), "the container said {said:?}");
    Ok(())
}

/// A pull that failed says that it was for the key, and has left nothing.
fn ensure_refused(env: &Env, outcome: anyhow::Result<String>) -> anyhow::Result<()> {
    let Err(error) = outcome else {
        anyhow::bail!("the pull was expected to fail, and left {:?}", env.layer_files()?)
    };
    let text = format!("{error:#}");
    for part in ["exited with status 1", "no suitable key"] {
        anyhow::ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    env.wait_until_clean()
}

/// The client sends its key with the request, as the payload of the processor.
fn with_client_key(env: &mut Env) -> anyhow::Result<()> {
    let keys = tempfile::tempdir()?;
    let ((private, public), (other, _)) = (key(keys.path(), "right")?, key(keys.path(), "wrong")?);
    let (reference, _) = push_encrypted(env, &public)?;
    let pull = |key: &str| {
        let arguments =
            ["images", "pull", "--plain-http", "--snapshotter", "erofs", "--key", key, &reference];
        host::run(&mut ctr(env, &arguments))
    };
    ensure_refused(env, pull(&other))?;
    pull(&private)?;
    ensure_runs(env, &reference)?;
    let log = env.plywood()?.log();
    anyhow::ensure!(!log.contains("PRIVATE KEY"), "{log}");
    Ok(())
}

/// The node has the key. The client sends only the descriptor with the annotations, where the layer's own key is; one that
/// knows nothing of encryption sends nothing.
fn with_node_key(env: &mut Env, keys: &Path) -> anyhow::Result<()> {
    let elsewhere = tempfile::tempdir()?;
    let ((private, public), (other, _)) = (key(elsewhere.path(), "right")?, key(elsewhere.path(), "wrong")?);
    let (reference, _) = push_encrypted(env, &public)?;
    let pull = || {
        let arguments =
            ["images", "pull", "--plain-http", "--snapshotter", "erofs", "--skip-decrypt-auth", &reference];
        host::run(&mut ctr(env, &arguments))
    };
    std::fs::copy(other, keys.join("key.pem"))?;
    ensure_refused(env, pull())?;
    std::fs::copy(private, keys.join("key.pem"))?;
    let Err(error) = env.pull(&reference, "erofs", &[]) else { anyhow::bail!("pulled without a payload") };
    anyhow::ensure!(format!("{error:#}").contains("read payload: read configFd"), "{error:#}");
    env.wait_until_clean()?;
    pull()?;
    ensure_runs(env, &reference)
}
