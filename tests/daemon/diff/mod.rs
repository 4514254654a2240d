//! Diff: what comes back and what is in the store then, for every mount list that a snapshotter makes. And Apply,
//! where it depends on what these lists stack.

mod faults;
mod forms;
pub mod lists;
mod merged;
mod parents;
pub mod shop;
mod store;

use super::harness::Test;

pub fn tests() -> Vec<Test> {
    [forms::TESTS, store::TESTS, faults::TESTS, parents::TESTS, merged::TESTS].concat()
}
