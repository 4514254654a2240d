//! Tests of logs put together block by block: which transactions count, and where the log ends.

use super::*;
use crate::{
    error::Classify as _,
    format::ext4::{
        checksum::{START, crc32c},
        fixture::{BLOCK, BLOCKS, Fixture, at, block_at, file_data, ino, log_at, super_at},
    },
};

/// Step of a log, with the number of its transaction.
enum Step {
    /// Descriptor and copies: for each the block it replaces, and the byte that fills it.
    Copies(u32, &'static [(usize, u8)]),
    Revoke(u32, usize),
    /// Commit with its time.
    Commit(u32, u64),
}
use Step::{Commit, Copies, Revoke};

/// Writes these steps as a log from transaction 5 on. Returns the journal block at which each
/// begins.
fn logged(steps: &[Step]) -> (Fixture, Vec<usize>) {
    let mut fixture = Fixture::new(true);
    fixture.put(log_at(1, 0), &[0; 8 * BLOCK]);
    let seed = crc32c(START, &fixture.bytes[log_at(0, 0x30)..log_at(0, 0x40)]);
    let (mut next, mut places) = (1, Vec::new());
    for step in steps {
        let (kind, sequence) = match step {
            Copies(sequence, _) => (1, sequence),
            Commit(sequence, _) => (2, sequence),
            Revoke(sequence, _) => (5, sequence),
        };
        let mut block = [0xC03B_3998, kind, *sequence].map(u32::to_be_bytes).concat();
        match step {
            Copies(_, copies) => {
                for (index, (target, byte)) in copies.iter().enumerate() {
                    let copy = [*byte; BLOCK];
                    fixture.put(log_at(next + 1 + index, 0), &copy);
                    // No tag is followed by a uuid; the last one is marked as last.
                    let flags = if index + 1 == copies.len() { 2 | 8 } else { 2 };
                    let checksum = crc32c(crc32c(seed, &sequence.to_be_bytes()), &copy);
                    let target = u32::try_from(*target).unwrap();
                    block.extend([target, flags, 0, checksum].map(u32::to_be_bytes).concat());
                }
            }
            Revoke(_, target) => {
                block.extend([20, u32::try_from(*target).unwrap()].map(u32::to_be_bytes).concat());
            }
            Commit(_, seconds) => {
                block.resize(0x30, 0);
                block.extend(seconds.to_be_bytes());
            }
        }
        block.resize(BLOCK, 0);
        let checksum = crc32c(seed, &block).to_be_bytes();
        let stored = if kind == 2 { 0x10 } else { BLOCK - 4 };
        block[stored..stored + 4].copy_from_slice(&checksum);
        fixture.put(log_at(next, 0), &block);
        places.push(next);
        next += 1 + if let Copies(_, copies) = step { copies.len() } else { 0 };
    }
    (fixture, places)
}

/// First byte of the file's last block, or the reason for which the image cannot be opened.
fn last_block(fixture: &Fixture) -> Result<u8, &'static str> {
    let image = Image::open(&fixture.bytes[..]).map_err(|error| error.reason())?;
    let node = image.node(InodeNumber(ino::FILE)).unwrap();
    let mut byte = [0];
    image.read_data(&node, 2 * BLOCK as u64, &mut byte).unwrap();
    Ok(byte[0])
}

const END: usize = at::FILE_END;
const PLACE: u8 = b'g';

#[test]
fn a_revocation_counts_for_its_own_and_earlier_transactions_and_the_last_one_counts() {
    for (steps, want) in [
        (&[Copies(5, &[(END, b'q')]), Commit(5, 100)][..], b'q'),
        (&[Copies(5, &[(END, b'q')]), Revoke(5, END), Commit(5, 100)], PLACE),
        (&[Revoke(5, END), Copies(5, &[(END, b'q')]), Commit(5, 100)], PLACE),
        (&[Copies(5, &[(END, b'q')]), Commit(5, 100), Revoke(6, END), Commit(6, 101)], PLACE),
        (&[Revoke(5, END), Commit(5, 100), Copies(6, &[(END, b'q')]), Commit(6, 101)], b'q'),
        (&[Revoke(5, END), Commit(5, 100), Copies(6, &[(END, b'q')]), Revoke(6, END), Commit(6, 101)], PLACE),
        (&[Copies(5, &[(END, b'q')]), Commit(5, 100), Copies(6, &[(END, b'r')]), Commit(6, 100)], b'r'),
        (&[Copies(5, &[(END, b'q'), (END, b'r')]), Commit(5, 100)], b'r'),
    ] {
        assert_eq!(last_block(&logged(steps).0), Ok(want));
    }
}

#[test]
fn a_damaged_descriptor_is_the_end_of_the_log_only_when_its_commit_is_older() {
    for (seconds, want) in
        [(99, Ok(b'q')), (100, Err("ext4.journal.checksum")), (101, Err("ext4.journal.checksum"))]
    {
        let (mut fixture, places) = logged(&[
            Copies(5, &[(END, b'q')]),
            Commit(5, 100),
            Copies(6, &[(END, b'r')]),
            Commit(6, seconds),
        ]);
        fixture.put(log_at(places[2], 500), &[1]);
        assert_eq!(last_block(&fixture), want, "{seconds}");
    }
}

#[test]
fn a_copy_behind_a_block_in_its_place_is_read_from_its_start() {
    let (mut fixture, _) = logged(&[Copies(5, &[(END, b'q')]), Commit(5, 100)]);
    // One extent for both blocks of the file.
    fixture.put(block_at(at::LEAF, 2), &[1]);
    fixture.put(block_at(at::LEAF, 12 + 4), &[2]);
    fixture.put(super_at(0x64), &[1, 0]);
    let mut copy = [0; BLOCK];
    (0..).zip(&mut copy).for_each(|(n, byte): (usize, _)| *byte = n.to_le_bytes()[0]);
    fixture.put(log_at(2, 0), &copy);
    fixture.be32(log_at(0, 0x28), 1);
    // Tag in the form without checksums.
    fixture.be32(log_at(1, 16), 2 | 8);
    let image = Image::open(&fixture.bytes[..]).unwrap();
    let node = image.node(InodeNumber(ino::FILE)).unwrap();
    let want = [&file_data()[..BLOCK], &copy].concat();
    for (offset, len) in [(0, 2048), (1, 2047), (1000, 100), (1023, 2), (1024, 1), (2000, 48)] {
        let mut buf = vec![0; len];
        image.read_data(&node, offset, &mut buf).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert_eq!(buf, want[start..start + len], "{offset} {len}");
    }
}

#[test]
fn a_superblock_in_the_journal_has_to_fit_the_file_and_bounds_what_is_read() {
    let with = |blocks: u32| {
        let (mut fixture, _) = logged(&[Copies(5, &[(1, 0)]), Commit(5, 100)]);
        let mut newer = fixture.bytes[super_at(0)..][..BLOCK].to_vec();
        newer[4..8].copy_from_slice(&blocks.to_le_bytes());
        // Features without checksums, in both copies of the superblock.
        newer[0x64..0x66].copy_from_slice(&[1, 0]);
        fixture.put(super_at(0x64), &[1, 0]);
        fixture.put(log_at(2, 0), &newer);
        fixture.be32(log_at(0, 0x28), 1);
        fixture.be32(log_at(1, 16), 2 | 8);
        fixture.bytes
    };
    assert_eq!(Image::open(&with(BLOCKS + 1)[..]).err().unwrap().reason(), "ext4.truncated");
    let bytes = with(u32::try_from(at::XATTRS).unwrap());
    let image = Image::open(&bytes[..]).unwrap();
    let node = image.node(InodeNumber(ino::FILE)).unwrap();
    assert_eq!(image.xattrs(&node).unwrap_err().reason(), "ext4.bounds");
    let bytes = with(u32::try_from(at::JOURNAL).unwrap());
    let image = Image::open(&bytes[..]).unwrap();
    let node = image.node(InodeNumber(ino::FILE)).unwrap();
    assert_eq!(image.xattrs(&node).unwrap().len(), 3);
}
