//! The configuration that containerd is given: what it itself makes of it.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use plywood_integration::host;

use crate::Suite;

pub fn add(suite: &mut Suite) {
    suite.test("containerd_uses_the_drop_in_file_beside_any_configuration", &[], drop_in);
}

/// containerd's whole configuration, as `config dump` prints it.
fn dump(config: &Path) -> anyhow::Result<toml::Table> {
    let mut command = host::command("containerd");
    Ok(host::run(command.arg("--config").arg(config).args(["config", "dump"]))?.parse()?)
}

fn drop_in() -> anyhow::Result<()> {
    let plywood = host::plywood_binary().context("no plywood binary")?;
    let printed = host::run(host::command("containerd").args(["config", "default"]))?;
    // Debian's own file; none; and what `containerd config default` printed, whose imports are an empty list.
    let without_imports = printed.replace("imports = []\n", "");
    let debian = "version = 2\n\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"/var/lib/kept\"\n";
    for before in [Some(debian), None, Some(&without_imports)] {
        let scratch = tempfile::tempdir()?;
        let (config, directory) = (scratch.path().join("config.toml"), scratch.path().join("conf.d"));
        if let Some(text) = before {
            fs::write(&config, text)?;
        }
        let mut command = host::command(plywood.to_str().context("an odd path")?);
        let version = ["--version", "2.1"];
        host::run(command.args(["config", "containerd", "--install"]).arg(&directory).args(version))?;
        let dumped = dump(&config)?;
        let plugins = &dumped["plugins"];
        let of = |name: &str| plugins.get(name).with_context(|| format!("no {name} in {before:?}"));
        anyhow::ensure!(dumped["proxy_plugins"]["plywood"]["type"].as_str() == Some("diff"));
        let default = &of("io.containerd.service.v1.diff-service")?["default"];
        anyhow::ensure!(*default == toml::Value::from(vec!["plywood", "walking"]), "{default}");
        let unpack = of("io.containerd.transfer.v1.local")?["unpack_config"].as_array().context("no list")?;
        let differs: Vec<_> =
            unpack.iter().map(|entry| (entry["snapshotter"].as_str(), entry["differ"].as_str())).collect();
        let want = [(Some("erofs"), Some("plywood")), (Some("overlayfs"), Some("walking"))];
        anyhow::ensure!(differs == want, "{differs:?}");
        if before == Some(debian) {
            anyhow::ensure!(
                dumped.to_string().contains("/var/lib/kept"),
                "the configuration of before is gone"
            );
        }
    }
    // Lists that are there already are not changed: the command says what to add.
    let scratch = tempfile::tempdir()?;
    fs::write(scratch.path().join("config.toml"), &printed)?;
    let mut command = host::command(plywood.to_str().context("an odd path")?);
    command
        .args(["config", "containerd", "--version", "2.1", "--install"])
        .arg(scratch.path().join("conf.d"));
    let refused = host::run(&mut command).err().context("an empty list of imports was taken")?;
    anyhow::ensure!(format!("{refused:#}").contains("imports = []"), "{refused:#}");
    Ok(())
}
