//! Configurations of devices: never a panic, and one is written as it is read.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::overlaybd::config::fuzz(data));
