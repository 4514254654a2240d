//! Deflate streams: the same bytes or the same refusal as from zlib-rs, whatever the steps, from every block, and in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::codec::deflate::fuzz(data));
