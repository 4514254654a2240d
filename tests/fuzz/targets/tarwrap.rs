//! Tar wrappers: never a panic, and a payload is found where it was put.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::tar::wrapper::fuzz(data));
