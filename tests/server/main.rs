//! Both wires on a real socket, with a stand-in for the work behind them.
//!
//! The stand-in does what the media type of a request says, so that every test chooses for itself how long
//! a request runs and how it ends. The real applier behind the real binary is tested in `daemon.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod lifecycle;
mod limits;
mod requests;
