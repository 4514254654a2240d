//! The daemon around the wires: who waits, who works, and how it all begins and ends.

mod admission;
mod caller;
mod drain;
mod join;
mod lifecycle;
mod notify;
mod places;
mod service;
mod socket;

pub use admission::{Admission, Capacity};
pub use caller::{Caller, Method};
pub use lifecycle::{Beside, Daemon, Made, MakeDomain, run};
pub use service::{Domain, HealthCheck, Job, MemoryGauge, Service};
pub use socket::{Bound, Listening, SocketError, SocketFile};
