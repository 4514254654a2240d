//! Diff: what comes back and what is in the store then, for every mount list that a snapshotter makes.

mod faults;
mod forms;
pub mod lists;
pub mod shop;
mod store;

use super::harness::Test;

pub fn tests() -> Vec<Test> {
    [forms::TESTS, store::TESTS, faults::TESTS].concat()
}
