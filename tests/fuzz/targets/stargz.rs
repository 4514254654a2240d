//! Tables of contents and indexed layers: never a panic, and a table that is read keeps its promises.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::stargz::fuzz(data));
