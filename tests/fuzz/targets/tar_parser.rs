//! tar archives: never a panic, and the same events whatever the pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::tar::fuzz(data));
