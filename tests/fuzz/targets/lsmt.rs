//! LSMT layers: never a panic, and the same device after committing and sealing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::lsmt::fuzz(data));
