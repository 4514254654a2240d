//! Both wires on a real socket, with a stand-in for the work behind them.
//!
//! The stand-in does what the media type of a request says, so that every test chooses for itself how long
//! a request runs and how it ends. The real applier behind the real binary is tested in the rooms beside this one.

/// Adds tests that are asynchronous functions.
macro_rules! tests {
    ($suite:expr; $($test:ident),+ $(,)?) => {
        $($suite.test(stringify!($test), &[], || super::on_a_runtime($test));)+
    };
}

mod harness;
mod lifecycle;
mod limits;
mod requests;

use testkit::Suite;
use tokio::runtime::Builder;

pub fn add(suite: &mut Suite) {
    suite.room("requests", requests::add);
    suite.room("limits", limits::add);
    suite.room("lifecycle", lifecycle::add);
}

/// Runs a test to its end, on two threads of its own.
fn on_a_runtime<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test());
}
