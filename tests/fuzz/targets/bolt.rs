//! Records of snapshotters: never a panic, and no walk that takes more pages than there are.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::bolt::fuzz(data));
