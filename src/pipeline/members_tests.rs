use super::*;
use crate::{
    call::Seen,
    codec::Coding,
    limits::Limits,
    pipeline::test_setup::{Setup, setup},
};

/// A part of a stream: a chunk of so many bytes, which begins a member, and so many bytes behind it.
type Part = (Option<usize>, usize);

/// Bytes that no two members share, and that compress.
fn sample(len: usize) -> Vec<u8> {
    let byte = |at: usize| (at / 1000 * 7 + at % 13).to_le_bytes()[0];
    (0..len).map(byte).collect()
}

/// A blob, where its members are, and the places that [`Members::begin`] returned.
#[derive(PartialEq)]
struct Made {
    blob: Vec<u8>,
    members: Vec<Member>,
    begun: Vec<usize>,
    diff_id: Digest,
    stream_bytes: u64,
}

const TAIL: &[u8] = b"what comes behind";

/// The blob of `parts`, written in pieces of `step` bytes.
fn made(helpers: usize, compression: Compression, parts: &[Part], step: usize) -> Made {
    let setup = setup(helpers);
    let bytes = sample(parts.iter().map(|(chunk, rest)| chunk.unwrap_or(0) + rest).sum());
    let (mut blob, mut members) = (Vec::new(), Vec::new());
    let mut deliver = |piece: &[u8]| {
        blob.extend_from_slice(piece);
        Ok(())
    };
    let produce = |feed: &mut dyn Members| {
        let (mut begun, mut bytes) = (Vec::new(), &bytes[..]);
        for (chunk, rest) in parts {
            if let Some(chunk) = chunk {
                begun.push(feed.begin(*chunk).unwrap());
            }
            let (part, behind) = bytes.split_at(chunk.unwrap_or(0) + rest);
            part.chunks(step).try_for_each(|piece| feed.write_all(piece)).unwrap();
            bytes = behind;
        }
        Ok(begun)
    };
    let end = |_: &mut Vec<usize>, delivering: Delivering<'_>| {
        members = delivering.members.to_vec();
        let skipped = delivering.blob_bytes.to_le_bytes();
        Ok(vec![Ending::Member(TAIL.to_vec()), Ending::Raw(skipped.to_vec())])
    };
    let (begun, facts) = setup.run(|plan| run(plan, compression, &mut deliver, produce, end)).unwrap();
    let Seen { phase, done_bytes, .. } = setup.progress.look();
    assert_eq!((phase, done_bytes), (Phase::Transfer, bytes.len() as u64));
    assert_eq!((&facts.blob, facts.blob_bytes), (&Digest::sha256(&blob), blob.len() as u64));
    let stream = [&bytes[..], TAIL].concat();
    assert_eq!((&facts.diff_id, facts.stream_bytes), (&Digest::sha256(&stream), stream.len() as u64));
    Made { blob, members, begun, diff_id: facts.diff_id, stream_bytes: facts.stream_bytes }
}

/// All that one member, or frame, decodes to.
fn decoded(coding: Coding, member: &[u8]) -> Vec<u8> {
    let mut decoder = coding.decoder(8 << 20).unwrap();
    let (mut plain, mut space, mut input) = (Vec::new(), vec![0; 1 << 20], member);
    loop {
        let filled = decoder.decode(&mut input, &mut space).unwrap();
        plain.extend_from_slice(&space[..filled]);
        if input.is_empty() && filled < space.len() {
            break;
        }
    }
    decoder.finish().unwrap();
    plain
}

const BOTH: [Compression; 2] = [Compression::GZIP, Compression::ZSTD];

/// Parts with chunks of many sizes, without a chunk, and without anything.
fn parts() -> Vec<Part> {
    let mut parts = vec![(None, 700), (Some(1), 0), (Some(0), 512), (Some(0), 0), (Some(4096), 1536)];
    parts.extend((0..60).map(|n| (Some(n * 997), 512)));
    // A chunk of the largest size and a long run of headers, which needs two members more.
    parts.extend([(Some(MEMBER_BYTES), 2 * MEMBER_BYTES + 5), (Some(9), 9)]);
    parts
}

#[test]
fn every_member_stands_for_itself_and_begins_with_its_chunk() {
    for compression in BOTH {
        let made = made(0, compression, &parts(), usize::MAX);
        let Made { blob, members, begun, .. } = &made;
        let bytes = sample(parts().iter().map(|(chunk, rest)| chunk.unwrap_or(0) + rest).sum());
        let end = u64::from_le_bytes(blob[blob.len() - 8..].try_into().unwrap());
        let ends = members.iter().skip(1).map(|member| member.offset).chain([end]);
        let at = |byte: u64| usize::try_from(byte).unwrap();
        let pieces: Vec<_> = members
            .iter()
            .zip(ends)
            .map(|(member, end)| decoded(compression.coding(), &blob[at(member.offset)..at(end)]))
            .collect();
        assert!(pieces.concat() == bytes, "{compression:?}");
        assert!(pieces.iter().all(|piece| !piece.is_empty()), "a member without data");
        assert!(decoded(compression.coding(), &blob[at(end)..blob.len() - 8]) == TAIL);
        // 67 parts, of which two are empty or share a member; two members more hold the headers.
        let wanted: Vec<_> = parts().into_iter().filter_map(|(chunk, _)| chunk).collect();
        assert_eq!(begun.len(), wanted.len());
        for (chunk, place) in wanted.into_iter().zip(begun) {
            if chunk > 0 {
                assert_eq!(
                    members[*place].digest,
                    Some(Digest::sha256(&pieces[*place][..chunk])),
                    "{chunk} bytes"
                );
                assert!(pieces[*place].len() <= chunk + MEMBER_BYTES);
            }
        }
    }
}

#[test]
fn the_blob_does_not_depend_on_the_threads_nor_on_the_writes() {
    for compression in BOTH {
        let want = made(0, compression, &parts(), usize::MAX);
        for (helpers, step) in [(1, 100_001), (2, 1 << 20), (3, 4095), (8, usize::MAX), (20, 333)] {
            let found = made(helpers, compression, &parts(), step);
            assert!(found == want, "{compression:?}, {helpers} helpers, {step} bytes");
        }
    }
}

#[test]
fn a_stream_without_anything_is_its_ending() {
    for helpers in [0, 8] {
        let made = made(helpers, Compression::GZIP, &[], 1);
        assert_eq!((made.members, made.stream_bytes), (Vec::new(), TAIL.len() as u64));
        let nothing: Vec<Ending> = Vec::new();
        let ((), facts) = setup(helpers)
            .run(|plan| run(plan, Compression::ZSTD, &mut |_| Ok(()), |_| Ok(()), |(), _| Ok(nothing)))
            .unwrap();
        assert_eq!((facts.blob_bytes, facts.blob), (0, Digest::sha256(b"")));
    }
}

fn refused() -> Error {
    Error::new(Kind::Unavailable, "test.refused", "refused")
}

/// Writes members until that fails.
fn endless(feed: &mut dyn Members) -> Result<()> {
    let bytes = sample(50_000);
    loop {
        feed.begin(10)?;
        feed.write_all(&bytes).map_err(|error| Error::from_io(error, Kind::Internal, "test"))?;
    }
}

fn no_ending((): &mut (), _: Delivering<'_>) -> Result<Vec<Ending>> {
    panic!("there is no end to it")
}

#[test]
fn an_error_of_any_step_ends_the_others() {
    for helpers in [0, 1, 2, 8] {
        let setup = setup(helpers);
        let few = |feed: &mut dyn Members| {
            feed.begin(3).unwrap();
            feed.write_all(&sample(100_000)).unwrap();
            Ok(())
        };
        let error_of = |deliver: Deliver<'_>, produce: fn(&mut dyn Members) -> Result<()>| {
            setup.run(|plan| run(plan, Compression::GZIP, deliver, produce, no_ending)).unwrap_err()
        };
        let error = error_of(&mut |_| Err(refused()), endless);
        assert_eq!(error.reason(), "test.refused", "of the store, {helpers} helpers");
        let error = error_of(&mut |_| Ok(()), |feed| {
            feed.write_all(&sample(9_000_000)).unwrap();
            Err(refused())
        });
        assert_eq!(error.reason(), "test.refused", "of the producer, {helpers} helpers");
        let end = |(): &mut (), _: Delivering<'_>| Err(refused());
        let error = setup.run(|plan| run(plan, Compression::GZIP, &mut |_| Ok(()), few, end)).unwrap_err();
        assert_eq!(error.reason(), "test.refused", "of the end, {helpers} helpers");
        // The store fails at the very last bytes.
        let mut deliver = |piece: &[u8]| if piece == b"end" { Err(refused()) } else { Ok(()) };
        let end = |(): &mut (), _: Delivering<'_>| Ok(vec![Ending::Raw(b"end".to_vec())]);
        let error = setup.run(|plan| run(plan, Compression::GZIP, &mut deliver, few, end)).unwrap_err();
        assert_eq!(error.reason(), "test.refused", "at the end, {helpers} helpers");
    }
}

#[test]
fn a_cancelled_call_ends_within_a_member() {
    for helpers in [0, 2] {
        let setup = setup(helpers);
        let mut pieces = 0;
        let mut deliver = |_: &[u8]| {
            pieces += 1;
            if pieces == 3 {
                setup.cancel.cancel();
            }
            Ok(())
        };
        let error =
            setup.run(|plan| run(plan, Compression::ZSTD, &mut deliver, endless, no_ending)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{helpers} helpers: {error}");
    }
}

#[test]
fn a_stream_ends_at_the_limit_of_its_length_the_ending_included() {
    let limits = Limits { stream_bytes: 1000, ..Limits::default() };
    for helpers in [0, 2] {
        let setup = Setup { limits: limits.clone(), ..setup(helpers) };
        let ended = |len: usize, tail: usize| {
            let produce = |feed: &mut dyn Members| {
                feed.begin(1)?;
                let outcome = feed.write_all(&sample(len));
                outcome.map_err(|error| Error::from_io(error, Kind::Internal, "test"))
            };
            let end = |(): &mut (), _: Delivering<'_>| Ok(vec![Ending::Member(vec![0; tail])]);
            setup.run(|plan| run(plan, Compression::GZIP, &mut |_| Ok(()), produce, end))
        };
        assert_eq!(ended(900, 100).unwrap().1.stream_bytes, 1000);
        for (len, tail) in [(1001, 0), (900, 101)] {
            let error = ended(len, tail).unwrap_err();
            assert_eq!(error.kind(), Kind::Exhausted, "{len} and {tail} bytes: {error}");
        }
        let announce = |feed: &mut dyn Members| feed.announce(1001);
        let announced = setup.run(|plan| run(plan, Compression::GZIP, &mut |_| Ok(()), announce, no_ending));
        assert_eq!(announced.unwrap_err().kind(), Kind::Exhausted);
    }
}
