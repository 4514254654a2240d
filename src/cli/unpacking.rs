//! Arguments of the commands that unpack images.

use std::{path::PathBuf, str::FromStr, thread::available_parallelism};

use super::{output, store::Connection};
use crate::{
    containerd::Differ,
    error::Result,
    image::{progress::Board, unpack::Unpacker},
    limits::Limits,
};

/// Most layers at a time.
const MOST: u16 = 64;

/// How layers become snapshots.
#[derive(Debug, clap::Args)]
pub struct Unpacking {
    /// Snapshotter that gets the layers
    #[arg(short, long, value_name = "NAME", env = "CONTAINERD_SNAPSHOTTER", default_value = "erofs")]
    pub snapshotter: String,
    /// Who applies the layers: "containerd" for its Diff service, or the socket of a differ, such as
    /// /run/plywood/plywood.sock
    #[arg(long, value_name = "DIFFER", default_value = "containerd")]
    pub differ: At,
    /// Most layers that are applied at a time. More than one needs containerd 2.2 or later and a snapshotter that takes the
    /// parent at the commit ("rebase") [default: two for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)))]
    pub parallel: Option<u16>,
}

/// Where a differ is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// Behind containerd's Diff service.
    Containerd,
    /// On a socket.
    Socket(PathBuf),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "containerd" => Ok(Self::Containerd),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            _ => Err("neither \"containerd\" nor the absolute path of a socket".to_owned()),
        }
    }
}

impl Unpacking {
    /// Unpacker for the containerd of `connection`. Prints a line where `--parallel` cannot be done.
    pub(super) fn unpacker(&self, connection: &Connection, board: &Board) -> Result<Unpacker> {
        let at_once = match self.parallel {
            Some(wanted) => {
                if wanted > 1 && !connection.client.can_rebase(&connection.call, &self.snapshotter)? {
                    output::note(&format!(
                        "plywood: one layer after the other: {} or this containerd needs the parent of a snapshot at its \
                         beginning",
                        self.snapshotter
                    ));
                }
                usize::from(wanted)
            }
            // A layer waits for the store, the disk and the commits below it: with two for each processor 20 layers take
            // 0.55 to 0.70 of their time one by one, with one 0.70 to 0.78 (docs/performance.md).
            None => available_parallelism().map_or(1, usize::from).saturating_mul(2).min(MOST.into()),
        };
        let differ = match &self.differ {
            At::Containerd => connection.client.differ(),
            At::Socket(path) => {
                Differ::at(path, connection.runtime.handle().clone(), Limits::default().stall)
            }
        };
        Ok(Unpacker {
            containerd: connection.client.clone(),
            differ,
            snapshotter: self.snapshotter.clone(),
            at_once,
            fetch: None,
            board: board.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_differ_is_containerds_or_has_a_socket() {
        assert_eq!("containerd".parse(), Ok(At::Containerd));
        assert_eq!("/run/x.sock".parse(), Ok(At::Socket("/run/x.sock".into())));
        assert!("walking".parse::<At>().is_err());
    }
}
