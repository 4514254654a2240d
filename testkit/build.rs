//! Generates the server side of containerd's services from `protos/`, for the stand-in of a containerd.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../protos");
    let mut compiler = protox::Compiler::new(["../protos/api"])?;
    // Comments in the messages hold examples in no language, which would be run as Rust.
    compiler.include_source_info(false).include_imports(true).open_files([
        "services/content/v1/content.proto",
        "services/diff/v1/diff.proto",
        "services/images/v1/images.proto",
        "services/introspection/v1/introspection.proto",
        "services/leases/v1/leases.proto",
        "services/namespaces/v1/namespace.proto",
        "services/snapshots/v1/snapshots.proto",
        "services/version/v1/version.proto",
    ])?;
    let files = compiler.file_descriptor_set();
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".containerd.services.content.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.services.diff.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.services.images.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.services.introspection.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.services.leases.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.services.namespaces.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.services.version.v1", "::containerd_client::services::v1")
        .extern_path(".containerd.types", "::containerd_client::types")
        .extern_path(".google.rpc", "::containerd_client::google::rpc")
        .compile_fds(files)?;
    Ok(())
}
