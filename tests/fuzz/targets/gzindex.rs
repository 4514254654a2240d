//! gzip indexes and their blobs: never a panic, and what is indexed is read back.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::gzindex::fuzz(data));
