//! Generates both forms of the Diff service, and our own progress service, from `protos/`.
//!
//! gRPC: server code only, the messages are containerd-client's structs and the library's own. ttrpc: messages of
//! rust-protobuf and a service trait. Neither needs `protoc`.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=protos");
    println!("cargo:rustc-env=PLYWOOD_VERSION={}", version()?);
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let files = protox::compile(["services/diff/v1/diff.proto"], ["protos/api"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".containerd.services.diff.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.types", "::containerd_client::types")
        .compile_fds(files)?;

    let files = protox::compile(["progress.proto"], ["protos/plywood"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".plywood.progress.v1", "crate::containerd::progress")
        .compile_fds(files)?;

    let generated = out.join("ttrpc");
    fs::create_dir_all(&generated)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&generated)
        .inputs([
            "protos/api/services/diff/v1/diff.proto",
            "protos/api/types/descriptor.proto",
            "protos/api/types/mount.proto",
        ])
        .include("protos/api")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()?;
    // The generated files carry inner attributes, which `include!` refuses: they are modules of a file.
    let mut modules = String::new();
    for name in ["descriptor", "mount", "diff", "diff_ttrpc"] {
        let file = generated.join(format!("{name}.rs"));
        modules.push_str(&format!("#[path = {:?}]\npub mod {name};\n", file.display().to_string()));
    }
    fs::write(out.join("ttrpc_modules.rs"), modules)?;
    Ok(())
}

/// The package's version, and of a release build from a checkout the commit as well: `0.1.0 (1a2b3c4d5e6f)`.
///
/// Other builds leave the commit out, because every commit would make them compile everything anew.
fn version() -> Result<String, Box<dyn Error>> {
    let version = env::var("CARGO_PKG_VERSION")?;
    if env::var("PROFILE")? != "release" {
        return Ok(version);
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return Ok(version) };
    // The log of HEAD grows with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    Ok(format!("{version} ({commit})"))
}
