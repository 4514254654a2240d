//! Unpacks an image that containerd has, with the library instead of the command: the lowest layer by itself, then all of
//! them, of which the lowest is there by then.
//!
//! ```sh
//! cargo run --example unpack -- docker.io/library/alpine:latest
//! ```

#![allow(clippy::print_stdout, reason = "the report is for people")]

use std::{env, path::PathBuf, sync::Arc};

use plywood::{
    call::Call,
    containerd::{Containerd, Direct},
    error::{Error, Kind, Result},
    image::{
        options::Options,
        platform::Platform,
        progress::Board,
        unpack::{self, Lease, Unpacker},
    },
    limits::Limits,
};

/// What is unpacked, and where.
pub struct Arguments {
    /// containerd's socket.
    pub address: PathBuf,
    /// Namespace of the image.
    pub namespace: String,
    /// Name of the snapshotter that gets the layers.
    pub snapshotter: String,
    /// Name of the image.
    pub image: String,
}

fn main() -> Result<()> {
    let image = env::args().nth(1).unwrap_or_else(|| "docker.io/library/alpine:latest".to_owned());
    let report = run(&Arguments {
        address: "/run/containerd/containerd.sock".into(),
        namespace: "default".to_owned(),
        snapshotter: "erofs".to_owned(),
        image,
    })?;
    println!("{report}");
    Ok(())
}

/// Returns a line for every layer.
pub fn run(arguments: &Arguments) -> Result<String> {
    // The sockets live on a runtime; all calls below block.
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Error::new(Kind::Exhausted, "example.runtime", error.to_string()))?;
    let stall = Limits::default().stall;
    let containerd =
        Arc::new(Containerd::new(&arguments.address, runtime.handle().clone(), Direct::Introspect, stall));
    let call = Call::new(arguments.namespace.parse()?);

    // The layers of the image, each with its diffID. Any other list will do.
    let options = Options {
        platform: Platform::of_this_machine(),
        all_platforms: false,
        name: None,
        nameless: true,
        all_tags: false,
    };
    let image = unpack::find(&containerd, &call, &arguments.image, &options)?;
    let Some(lowest) = image.layers.first() else { return Ok(String::new()) };

    // The lease keeps the snapshots until the label of the configuration does.
    let directory = arguments.address.parent();
    let lease = Lease::take(&containerd, &call, (&arguments.snapshotter, &image.config), directory)?;
    let unpacker = Unpacker {
        differ: containerd.differ(),
        containerd,
        snapshotter: arguments.snapshotter.clone(),
        at_once: 1,
        fetch: None,
        board: Board::default(),
    };

    // One layer onto a parent; the lowest has none.
    let base = unpack::apply_layer(&unpacker, lease.call(), lowest, None)?;
    let mut report = format!("applied {}", base.chain_id);

    // All layers, without those that are there. `unpack::prepare` does the same without the label.
    let applied = unpack::unpack_layers(&unpacker, lease.call(), &image.config, &image.layers)?;
    for layer in &applied {
        let word = if layer.is_new { "applied" } else { "there" };
        report.push_str(&format!("\n{word} {}", layer.chain_id));
    }
    lease.end(false)?;
    Ok(report)
}
