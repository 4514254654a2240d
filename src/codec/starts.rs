//! Where the members of a gzip stream, or the frames of a zstd stream, begin: found without decoding them.
//!
//! Each place found is a hint. zstd says how long its blocks are, and BGZF its members, so that one leads to the next. Other
//! members of gzip are found by their headers: those of one stream have the same first ten bytes where one program has
//! written all of them and no times, as all writers of eStargz do.
//!
//! Source: RFC 1952, section 2.3.1; RFC 8878, sections 3.1.1 and 3.1.2; SAM/BAM format specification, section 4.1.

use memchr::memmem::Finder;

use super::{
    coding::Coding,
    gzip::{MAGIC, SIZED_HEADER_BYTES, member_bytes},
    zstd::FrameWalk,
};

/// Bytes in which the headers of members are compared: magic number, method, flags, time, system.
const SIGNATURE_BYTES: usize = 10;

/// Finds the starts of members or frames in a stream that comes in pieces of any size.
pub struct Starts(Way);

enum Way {
    /// Nothing is found in a plain stream.
    None,
    Members(Box<Members>),
    Frames(FrameWalk),
}

struct Members {
    /// Bytes that have come.
    end: u64,
    /// The last of them, fewer than a header that says how long its member is.
    tail: Vec<u8>,
    /// The next member, while each says how long it is.
    next: Option<u64>,
    /// The first bytes of every header, once the first one is there.
    signature: Option<Finder<'static>>,
}

impl Starts {
    /// The starts in a stream of this coding.
    pub fn of(coding: Coding) -> Self {
        Self(match coding {
            Coding::Plain => Way::None,
            Coding::Gzip => {
                Way::Members(Box::new(Members { end: 0, tail: Vec::new(), next: Some(0), signature: None }))
            }
            Coding::Zstd => Way::Frames(FrameWalk::default()),
        })
    }

    /// Looks at the next bytes of the stream. `found` gets each start once, in order; that of the stream itself is one.
    pub fn push(&mut self, bytes: &[u8], found: &mut dyn FnMut(u64)) {
        match &mut self.0 {
            Way::None => {}
            Way::Members(members) => members.push(bytes, found),
            Way::Frames(frames) => frames.push(bytes, found),
        }
    }
}

impl Members {
    fn push(&mut self, bytes: &[u8], found: &mut dyn FnMut(u64)) {
        // Headers may lie across the end of what came before.
        let joined_bytes = bytes.len().min(SIZED_HEADER_BYTES - 1);
        let joined = [self.tail.as_slice(), bytes.get(..joined_bytes).unwrap_or_default()].concat();
        let start = self.end - self.tail.len() as u64;
        let here = self.end;
        self.end += bytes.len() as u64;
        if self.next.is_some() {
            self.follow(&joined, start, bytes, here, found);
        } else {
            self.search(&joined, start, self.tail.len(), found);
            self.search_all(bytes, here, found);
        }
        let kept = SIZED_HEADER_BYTES - 1;
        let all = if bytes.len() < kept { joined.as_slice() } else { bytes };
        self.tail = all.get(all.len().saturating_sub(kept)..).unwrap_or_default().to_vec();
    }

    /// Goes from member to member, as far as each says how long it is.
    fn follow(&mut self, joined: &[u8], start: u64, bytes: &[u8], here: u64, found: &mut dyn FnMut(u64)) {
        while let Some(next) = self.next {
            let header = match next.checked_sub(here) {
                Some(at) => usize::try_from(at).ok().and_then(|at| bytes.get(at..at + SIZED_HEADER_BYTES)),
                None => {
                    usize::try_from(next - start).ok().and_then(|at| joined.get(at..at + SIZED_HEADER_BYTES))
                }
            };
            let Some(header) = header else { return };
            found(next);
            self.next = member_bytes(header).map(|bytes| next + bytes);
            if self.next.is_none() && next == 0 && header.starts_with(&MAGIC) {
                let signature = header.get(..SIGNATURE_BYTES).unwrap_or_default();
                self.signature = Some(Finder::new(signature).into_owned());
                self.search_all(bytes, here, found);
            }
        }
    }

    /// Finds the headers that begin in the first `len` bytes of `joined` and end behind those.
    fn search(&self, joined: &[u8], start: u64, len: usize, found: &mut dyn FnMut(u64)) {
        let Some(signature) = &self.signature else { return };
        let from = len.saturating_sub(SIGNATURE_BYTES - 1);
        let across = joined.get(from..(len + SIGNATURE_BYTES - 1).min(joined.len())).unwrap_or_default();
        for at in signature.find_iter(across) {
            found(start + (from + at) as u64);
        }
    }

    fn search_all(&self, bytes: &[u8], here: u64, found: &mut dyn FnMut(u64)) {
        let Some(signature) = &self.signature else { return };
        // The first member was found already.
        for at in signature.find_iter(bytes).filter(|at| here + *at as u64 > 0) {
            found(here + at as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn found(coding: Coding, stream: &[u8], step: usize) -> Vec<u64> {
        let (mut starts, mut found) = (Starts::of(coding), Vec::new());
        for bytes in stream.chunks(step) {
            starts.push(bytes, &mut |at| found.push(at));
        }
        found
    }

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Joins `parts`, and returns where each begins.
    fn join(parts: &[Vec<u8>]) -> (Vec<u8>, Vec<u64>) {
        let starts = parts.iter().scan(0, |at, part| {
            let start = *at;
            *at += part.len() as u64;
            Some(start)
        });
        (parts.concat(), starts.collect())
    }

    const STEPS: [usize; 6] = [1, 3, 9, 64, 1000, usize::MAX];

    #[test]
    fn members_are_found_by_the_header_of_the_first() {
        let long: Vec<u8> =
            (0..100_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
        let (stream, want) =
            join(&[member(&long[..300]), member(b""), member(&long), member(b"x"), member(&long)]);
        for step in STEPS {
            assert_eq!(found(Coding::Gzip, &stream, step), want, "steps of {step}");
        }
        // Another program's header inside of a member is none of this stream.
        let mut other = member(b"inner");
        other[9] ^= 1;
        let (stream, want) = join(&[
            member(
                b"first, with some bytes to make it as long as a header that says its size, \
            which takes a few more letters",
            ),
            [vec![7; 40], other].concat(),
            member(b"x"),
        ]);
        for step in STEPS {
            assert_eq!(found(Coding::Gzip, &stream, step), [want[0], want[2]], "steps of {step}");
        }
    }

    #[test]
    fn members_that_say_how_long_they_are_lead_to_each_other() {
        let sized = |bytes: &[u8]| {
            let member = member(bytes);
            let size = u16::try_from(member.len() + 8 - 1).unwrap().to_le_bytes();
            [&member[..3], &[4], &member[4..10], &[6, 0, b'B', b'C', 2, 0], &size, &member[10..]].concat()
        };
        let long: Vec<u8> = (0..9000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
        let (stream, want) = join(&[sized(&long), sized(&long[..99]), sized(&long[..7000]), vec![0; 100]]);
        for step in STEPS {
            let found = found(Coding::Gzip, &stream, step);
            assert_eq!(found, want, "steps of {step}");
        }
    }

    #[test]
    fn frames_are_found_by_the_lengths_of_their_blocks() {
        let frame = |bytes: &[u8], checksum: bool, level: i32| {
            let mut encoder = zstd::Encoder::new(Vec::new(), level).unwrap();
            encoder.include_checksum(checksum).unwrap();
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let noise: Vec<u8> =
            (0..200_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
        let skippable =
            |len: u8| [&[0x5a, 0x2a, 0x4d, 0x18, len, 0, 0, 0][..], &vec![1; len.into()]].concat();
        let (stream, want) = join(&[
            frame(&noise, true, 1),
            skippable(0),
            frame(b"", false, 3),
            frame(&[0; 1 << 20], true, 3),
            skippable(200),
            zstd::bulk::compress(b"with a declared size", 3).unwrap(),
            frame(&noise[..300], false, 19),
        ]);
        for step in STEPS {
            assert_eq!(found(Coding::Zstd, &stream, step), want, "steps of {step}");
        }
        assert_eq!(found(Coding::Zstd, &stream[..stream.len() - 5], 64), want, "the last one is cut short");
        let garbage = [&stream[..usize::try_from(want[2]).unwrap()], b"garbage", &stream].concat();
        assert_eq!(found(Coding::Zstd, &garbage, 64), want[..3]);
        assert!(found(Coding::Plain, &stream, 64).is_empty());
    }
}
