//! The server side of containerd's snapshots service, for a stand-in of a snapshotter.

#![allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]

include!(concat!(env!("OUT_DIR"), "/containerd.services.snapshots.v1.rs"));
