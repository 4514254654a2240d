//! zTOCs: never a panic, and checkpoints that are read keep their promises.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::ztoc::fuzz(data));
