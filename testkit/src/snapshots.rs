//! containerd's snapshots service: its messages as they are since 2.2, and its server side, for a stand-in of a snapshotter.

#![allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]

include!(concat!(env!("OUT_DIR"), "/containerd.services.snapshots.v1.rs"));
