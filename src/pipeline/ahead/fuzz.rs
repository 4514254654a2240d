//! Differential fuzzing: helpers change neither bytes nor refusals.

use std::thread;

use super::{
    Ahead, Hired,
    options::{AheadOptions, AheadPlan},
};
use crate::{
    call::{Cancel, Progress, Work},
    codec::{
        Coding,
        deflate::{Inflate, Pause},
    },
    error::{Error, Kind, Result},
    limits::Limits,
    pipeline::{
        Plan, Resources,
        buffer::{Chunk, Pool},
        stage::Stage,
    },
};

/// Most bytes compared.
const LIMIT: u64 = 1 << 20;
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// Fuzz entry: makes a gzip member of a deflate stream, in pieces of `chunk_bytes`, and decodes it in order and with
/// `helpers` helpers that are `distance` bytes from each other.
///
/// # Panics
///
/// When the bytes or the refusals differ.
pub fn fuzz_ahead(deflate: &[u8], helpers: usize, distance: u64, chunk_bytes: usize) {
    compare(Coding::Gzip, &member(deflate), helpers, distance, chunk_bytes);
}

/// Fuzz entry: decodes a zstd stream like [`fuzz_ahead`] one of gzip.
///
/// # Panics
///
/// When the bytes or the refusals differ.
pub fn fuzz_ahead_zstd(stream: &[u8], helpers: usize, distance: u64, chunk_bytes: usize) {
    compare(Coding::Zstd, stream, helpers, distance, chunk_bytes);
}

pub(super) fn compare(coding: Coding, blob: &[u8], helpers: usize, distance: u64, chunk_bytes: usize) {
    compare_up_to(LIMIT, AheadPlan { coding, distance, index: None }, blob, helpers, chunk_bytes);
}

/// Compares at most `limit` bytes.
pub(super) fn compare_up_to(limit: u64, how: AheadPlan<'_>, blob: &[u8], helpers: usize, chunk_bytes: usize) {
    let want = in_order(limit, how.coding, blob, chunk_bytes);
    let got = ahead(limit, how, blob, helpers, chunk_bytes);
    match (&want, &got) {
        (Ok(want), Ok(got)) => assert!(want == got, "other bytes with {helpers} helpers"),
        (Err(want), Err(got)) => {
            assert_eq!(want.to_string(), got.to_string(), "{helpers} helpers");
        }
        _ => panic!(
            "{:?} in order, {:?} with {helpers} helpers",
            want.map(|bytes| bytes.len()),
            got.map(|bytes| bytes.len())
        ),
    }
}

/// A member with the right trailer, if the stream is a valid one; what comes behind the stream follows.
fn member(deflate: &[u8]) -> Vec<u8> {
    let (mut inflate, mut output) = (Inflate::<u8>::new(), vec![0; 1 << 16]);
    let (mut input, mut crc, mut length) = (deflate, 0, 0_u32);
    let trailer = loop {
        match inflate.decode(&mut input, &mut output) {
            Ok((filled, pause)) => {
                crc = zlib_rs::crc32::crc32(crc, output.get(..filled).unwrap_or_default());
                length = length.wrapping_add(u32::try_from(filled).unwrap_or_default());
                match pause {
                    Pause::Ended => break [crc.to_le_bytes(), length.to_le_bytes()].concat(),
                    Pause::Input => break Vec::new(),
                    Pause::Output | Pause::Block => {}
                }
            }
            Err(_) => break Vec::new(),
        }
        if u64::from(length) > LIMIT {
            break Vec::new();
        }
    };
    let body = deflate.get(..deflate.len() - input.len()).unwrap_or_default();
    [&HEADER[..], body, &trailer, input].concat()
}

fn in_order(limit: u64, coding: Coding, blob: &[u8], chunk_bytes: usize) -> Result<Vec<u8>> {
    let mut decoder = coding.decoder(Limits::default().zstd_window_bytes)?;
    let (mut plain, mut output) = (Collect::up_to(limit), vec![0; 1 << 16]);
    for mut input in blob.chunks(chunk_bytes) {
        loop {
            let filled = decoder.decode(&mut input, &mut output)?;
            plain.add(output.get(..filled).unwrap_or_default())?;
            // A decoder stops for its window, too.
            if filled < output.len() && input.is_empty() {
                break;
            }
        }
    }
    decoder.finish()?;
    Ok(plain.bytes)
}

fn ahead(limit: u64, how: AheadPlan<'_>, blob: &[u8], helpers: usize, chunk_bytes: usize) -> Result<Vec<u8>> {
    let options = AheadOptions { yields: false, ..AheadOptions::AUTO };
    let resources = Resources::with_ahead(Limits::default(), helpers + 2, options);
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel)?;
    let work = Work { cancel: &cancel, progress: &progress };
    let plan = Plan { resources: &resources, lease: &lease, work };
    thread::scope(|scope| {
        let permit = resources.helpers.take();
        let permit = permit.ok_or_else(|| Error::new(Kind::Internal, "fuzz.permit", "no permit"))?;
        let hired = Hired::up_to(helpers, plan);
        let mut ahead =
            Ahead::new(scope, how, permit, hired, Pool::new(1 << 16), plan, Collect::up_to(limit))?;
        for bytes in blob.chunks(chunk_bytes) {
            ahead.push(Chunk::copy_of(bytes))?;
        }
        Ok(ahead.finish()?.output)
    })
}

/// Collects what comes, up to a limit.
struct Collect {
    bytes: Vec<u8>,
    limit: u64,
}

impl Collect {
    fn up_to(limit: u64) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() as u64 > self.limit {
            return Err(Error::new(Kind::Exhausted, "fuzz.limit", "too long"));
        }
        Ok(())
    }
}

impl Stage for Collect {
    type Output = Vec<u8>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.add(&chunk)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.bytes)
    }
}
