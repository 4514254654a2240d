//! The daemon around the wires: who waits, who works, and how it all begins and ends.

mod admission;
mod caller;
mod drain;
mod service;

pub use admission::{Admission, Capacity};
pub use caller::{Caller, Method};
pub use service::Service;
