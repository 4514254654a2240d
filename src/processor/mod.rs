//! Running stream processors: which programs may be run, and the broker, the process that runs them.
//!
//! ```text
//! daemon, confined ── number of a processor, media type, pipes ──> broker ── fork, execve ──> processor
//!        <────────────────── how it ended, its last words ─────────
//! ```
//!
//! The daemon gives up the right to run programs when it confines itself. Before that it starts the [`broker`], which
//! gets the table of processors in its first message, and from then on starts nothing else, whatever it is asked. The
//! daemon's half is [`Broker`]. Every processor has a socket of its own to the daemon, its leash: when the daemon closes
//! it, for a cancelled request or because it ends, the broker kills the processor with all that it has started.

mod broker;
mod client;
mod message;
mod program;

pub use broker::{Setup, receive_setup, serve};
pub use client::Broker;
pub use program::{ProgramError, check_program};
