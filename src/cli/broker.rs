//! `plywood broker`: the process that starts stream processors. Hidden: the daemon and `plywood apply` start it.

use std::io;

use crate::{
    error::Result,
    observe::logging,
    processor::{receive_setup, serve},
};

/// Obeys the process that started it, over standard input, until that ends. Errors: standard input is not that socket; a
/// program of the table may not be run.
pub fn run() -> Result<()> {
    let socket = io::stdin();
    let setup = receive_setup(&socket)?;
    logging::start(&setup.log)?;
    serve(&socket, setup)
}
