//! Sparse files in PAX archives: the three spellings of their map, and the check they all pass.
//!
//! An archive stores only the data of a sparse file; the map holds its places in the file. Versions
//! 0.0 and 0.1 keep the map in records of the extended header, version 1.0 at the head of the data.
//!
//! Source: GNU tar manual, "Storing Sparse Files" (versions 0.0, 0.1, 1.0); Go
//! `archive/tar/reader.go` for the order of the checks.

use super::{error::Problem, header::BLOCK, number};
use crate::{limits, tree::Extent};

/// Most digits of a number in the map of version 1.0: those of 2^64 - 1.
const MAP_DIGITS: u32 = 20;

/// Values of the `GNU.sparse.*` records in one extended header.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Name of the file. The header holds a made-up one.
    pub(super) name: Option<Vec<u8>>,
    major: Option<u8>,
    minor: Option<u8>,
    /// Value of `GNU.sparse.size`, in version 0.
    size: Option<u64>,
    /// Value of `GNU.sparse.realsize`, in version 1.
    real_size: Option<u64>,
    regions: Option<u64>,
    /// Map of version 0.1, from a single record.
    map: Option<Vec<Extent>>,
    /// Map of version 0.0, from two records for each region.
    pairs: Vec<Extent>,
    /// Offset of a region whose length has not come yet.
    offset: Option<u64>,
}

/// Size and map of a sparse file, before the map is compared with the data.
#[derive(Debug)]
pub(super) struct Plan {
    /// Logical size of the file in bytes.
    pub(super) size_bytes: u64,
    /// Map of the data; `None` when it stands at the head of the data.
    pub(super) map: Option<Vec<Extent>>,
}

impl Records {
    /// Takes the record `GNU.sparse.FIELD`. Errors: an unknown field, or a value that is no number.
    pub(super) fn apply(&mut self, field: &[u8], value: &[u8]) -> Result<(), Problem> {
        match field {
            b"major" => self.major = number::record("GNU.sparse.major", value, digit)?,
            b"minor" => self.minor = number::record("GNU.sparse.minor", value, digit)?,
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = number::record("GNU.sparse.size", value, number::decimal)?,
            b"realsize" => self.real_size = number::record("GNU.sparse.realsize", value, number::decimal)?,
            b"numblocks" => self.regions = number::record("GNU.sparse.numblocks", value, number::decimal)?,
            b"map" => self.map = (!value.is_empty()).then(|| comma_map(value)).transpose()?,
            b"offset" => {
                let offset = number::decimal(value).ok_or(MAP_NUMBER)?;
                if self.offset.replace(offset).is_some() {
                    return Err(MAP_PAIRS);
                }
            }
            b"numbytes" => {
                let offset = self.offset.take().ok_or(MAP_PAIRS)?;
                let len = number::decimal(value).ok_or(MAP_NUMBER)?;
                push(&mut self.pairs, Extent { offset, len })?;
            }
            _ => return Err(Problem::SparseVersion { detail: "an unknown GNU.sparse record" }),
        }
        Ok(())
    }

    /// Decides the version and returns size and map.
    ///
    /// Refuses records that some readers would take for a sparse file and others for a plain one.
    pub(super) fn plan(self) -> Result<Plan, Problem> {
        if self.offset.is_some() {
            return Err(MAP_PAIRS);
        }
        let version = |detail| Problem::SparseVersion { detail };
        let size_bytes = match (self.size, self.real_size) {
            (Some(size), Some(real_size)) if size != real_size => {
                return Err(version("GNU.sparse.size and GNU.sparse.realsize differ"));
            }
            (size, real_size) => size.or(real_size).ok_or(version("no GNU.sparse.realsize"))?,
        };
        let in_records = match (self.major, self.minor) {
            (None, None) | (Some(0), Some(0 | 1)) => true,
            (Some(1), Some(0)) => false,
            _ => return Err(version("GNU.sparse.major and minor are not 0.0, 0.1 or 1.0")),
        };
        let map = match (self.map, self.pairs) {
            (Some(_), pairs) if !pairs.is_empty() => return Err(version("two maps")),
            (Some(map), _) => Some(map),
            (None, pairs) => Some(pairs).filter(|pairs| !pairs.is_empty()),
        };
        match map {
            Some(_) if !in_records => Err(version("a map in the records of version 1.0")),
            None if in_records => Err(version("no map")),
            Some(map) if self.regions != u64::try_from(map.len()).ok() => {
                Err(Problem::SparseMap { detail: "as many regions as GNU.sparse.numblocks says" })
            }
            map => Ok(Plan { size_bytes, map }),
        }
    }
}

const MAP_NUMBER: Problem = Problem::SparseMap { detail: "decimal numbers only" };
const MAP_PAIRS: Problem = Problem::SparseMap { detail: "an offset, then a length, for each region" };

fn digit(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        _ => None,
    }
}

/// Reads the map `OFFSET,LENGTH,OFFSET,LENGTH...`.
fn comma_map(value: &[u8]) -> Result<Vec<Extent>, Problem> {
    let mut map = Vec::new();
    let mut numbers = value.split(|byte| *byte == b',').map(|text| number::decimal(text).ok_or(MAP_NUMBER));
    while let Some(offset) = numbers.next() {
        let (offset, len) = (offset?, numbers.next().ok_or(MAP_PAIRS)??);
        push(&mut map, Extent { offset, len })?;
    }
    Ok(map)
}

fn push(map: &mut Vec<Extent>, region: Extent) -> Result<(), Problem> {
    if map.len() >= limits::SPARSE_REGIONS {
        return Err(Problem::SparseRegions);
    }
    map.push(region);
    Ok(())
}

/// Reads the map of version 1.0 as it arrives: the number of regions, then offset and length of
/// each. Every number is decimal and on a line of its own. Zeros follow up to a multiple of 512.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    taken: u64,
    digits: u32,
    number: u64,
    regions: Option<u64>,
    offset: Option<u64>,
    map: Vec<Extent>,
}

impl MapReader {
    /// Takes bytes of the map off the front of `data` until it is complete or `data` is used up.
    /// Returns the bytes taken, and whether the map is complete.
    pub(super) fn feed(&mut self, data: &[u8]) -> Result<(usize, bool), Problem> {
        for (at, byte) in data.iter().enumerate() {
            match byte {
                b'0'..=b'9' if self.digits < MAP_DIGITS => {
                    self.digits += 1;
                    let digit = u64::from(byte - b'0');
                    self.number =
                        self.number.checked_mul(10).and_then(|n| n.checked_add(digit)).ok_or(MAP_NUMBER)?;
                }
                b'\n' if self.digits > 0 => {
                    if self.line()? {
                        self.count(at + 1);
                        return Ok((at + 1, true));
                    }
                }
                _ => return Err(MAP_NUMBER),
            }
        }
        self.count(data.len());
        Ok((data.len(), false))
    }

    fn count(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Takes the number of a finished line. Returns true after the last one.
    fn line(&mut self) -> Result<bool, Problem> {
        let number = std::mem::take(&mut self.number);
        self.digits = 0;
        match (self.regions, self.offset.take()) {
            (None, _) => {
                if usize::try_from(number).map_or(true, |regions| regions > limits::SPARSE_REGIONS) {
                    return Err(Problem::SparseRegions);
                }
                self.regions = Some(number);
            }
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => push(&mut self.map, Extent { offset, len: number })?,
        }
        let complete = u64::try_from(self.map.len()).ok() == self.regions;
        Ok(complete && self.offset.is_none())
    }

    /// Number of the `stored` bytes that have not been taken.
    pub(super) fn missing(&self, stored: u64) -> u64 {
        stored.saturating_sub(self.taken)
    }

    /// Bytes that pad the map's last block, then the number of data bytes after them. `None` when
    /// the data ends before. Call once the map is complete.
    pub(super) fn rest(&self, stored: u64) -> Option<(usize, u64)> {
        let padded = self.taken.checked_next_multiple_of(u64::try_from(BLOCK).ok()?)?;
        Some((usize::try_from(padded - self.taken).ok()?, stored.checked_sub(padded)?))
    }

    /// Regions of the map. Call once the map is complete.
    pub(super) fn into_map(self) -> Vec<Extent> {
        self.map
    }
}

/// Checks a map against the file and its stored bytes, and normalises it: no empty regions,
/// neighbours joined. `None` when the file has no holes.
pub(super) fn settle(map: &[Extent], size_bytes: u64, stored: u64) -> Result<Option<Vec<Extent>>, Problem> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut floor = 0;
    let mut mapped = 0;
    for &Extent { offset, len } in map {
        let end = offset.checked_add(len).filter(|end| offset >= floor && *end <= size_bytes);
        let Some(end) = end else {
            return Err(Problem::SparseOrder { offset, len, floor, size_bytes });
        };
        // No overflow: regions do not overlap, so their sum is within the size.
        mapped += len;
        match extents.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.offset + last.len == offset => last.len += len,
            _ => extents.push(Extent { offset, len }),
        }
        floor = end;
    }
    if mapped != stored {
        return Err(Problem::SparseSum { mapped, stored });
    }
    Ok((mapped < size_bytes).then_some(extents))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(records: &[(&str, &str)]) -> Result<Plan, Problem> {
        let mut all = Records::default();
        for (field, value) in records {
            all.apply(field.as_bytes(), value.as_bytes())?;
        }
        all.plan()
    }

    fn extents(map: &[(u64, u64)]) -> Vec<Extent> {
        map.iter().map(|&(offset, len)| Extent { offset, len }).collect()
    }

    #[test]
    fn all_three_versions_give_a_plan() {
        let want = extents(&[(512, 10), (4096, 0)]);
        let pairs = [("offset", "512"), ("numbytes", "10"), ("offset", "4096"), ("numbytes", "0")];
        for records in [
            [&[("size", "4096"), ("numblocks", "2")], &pairs[..]].concat(),
            [&[("major", "0"), ("minor", "0"), ("realsize", "4096"), ("numblocks", "2")], &pairs[..]]
                .concat(),
            vec![("size", "4096"), ("numblocks", "2"), ("name", "a"), ("map", "512,10,4096,0")],
            vec![
                ("size", "4096"),
                ("realsize", "4096"),
                ("numblocks", "2"),
                ("map", "1,1"),
                ("map", "512,10,4096,0"),
            ],
        ] {
            let plan = plan(&records).unwrap();
            assert_eq!((plan.size_bytes, plan.map), (4096, Some(want.clone())));
        }
        let plan = plan(&[("major", "1"), ("minor", "0"), ("realsize", "9"), ("name", "a")]).unwrap();
        assert_eq!((plan.size_bytes, plan.map), (9, None));
    }

    #[test]
    fn records_that_readers_take_for_different_files_are_refused() {
        for records in [
            &[][..],
            &[("name", "a")],
            &[("size", "1")],
            &[("realsize", "1"), ("major", "1")],
            &[("realsize", "1"), ("minor", "0")],
            &[("realsize", "1"), ("major", "1"), ("minor", "1")],
            &[("realsize", "1"), ("major", "2"), ("minor", "0")],
            &[("major", "1"), ("minor", "0")],
            &[("size", "1"), ("realsize", "2"), ("major", "1"), ("minor", "0")],
            &[("realsize", "1"), ("major", "1"), ("minor", "0"), ("map", "0,1"), ("numblocks", "1")],
            &[("size", "1"), ("numblocks", "0"), ("map", "")],
            &[("size", "9"), ("numblocks", "1"), ("map", "0,1"), ("offset", "0"), ("numbytes", "1")],
            &[("size", "9"), ("numblocks", "1"), ("map", "0,1"), ("blocks", "1")],
        ] {
            assert_eq!(plan(records).unwrap_err().reason(), "tar.sparse.version", "{records:?}");
        }
    }

    #[test]
    fn maps_that_are_no_pairs_of_numbers_are_refused() {
        for records in [
            &[("size", "9"), ("map", "0,1")][..],
            &[("size", "9"), ("map", "0,1"), ("numblocks", "2")],
            &[("size", "9"), ("map", "0,1,2"), ("numblocks", "2")],
            &[("size", "9"), ("map", "0,"), ("numblocks", "1")],
            &[("size", "9"), ("map", "0,1,"), ("numblocks", "1")],
            &[("size", "9"), ("map", "0,-1"), ("numblocks", "1")],
            &[("size", "9"), ("map", " 0,1"), ("numblocks", "1")],
            &[("size", "9"), ("numblocks", "1"), ("numbytes", "1"), ("offset", "0")],
            &[("size", "9"), ("numblocks", "1"), ("offset", "1"), ("offset", "0")],
            &[("size", "9"), ("numblocks", "1"), ("offset", "1"), ("numbytes", "")],
            &[("size", "9"), ("numblocks", "1"), ("offset", "1,2"), ("numbytes", "1")],
            &[("size", "9"), ("numblocks", "1"), ("offset", "1"), ("numbytes", "1"), ("offset", "2")],
        ] {
            assert_eq!(plan(records).unwrap_err().reason(), "tar.sparse.map", "{records:?}");
        }
        for field in ["size", "realsize", "numblocks", "major", "minor"] {
            assert_eq!(plan(&[(field, "-1")]).unwrap_err().reason(), "tar.pax.value");
        }
    }

    #[test]
    fn the_map_at_the_head_of_the_data_is_read_in_any_pieces() {
        let data = b"2\n512\n10\n4096\n0\n\0\0\0";
        for size in 1..data.len() {
            let mut reader = MapReader::default();
            let mut complete = false;
            for piece in data.chunks(size) {
                let (taken, done) = reader.feed(piece).unwrap();
                assert!(done || taken == piece.len());
                complete = done;
                if done {
                    break;
                }
            }
            assert!(complete);
            assert_eq!(reader.rest(600), Some((512 - 16, 88)));
            assert_eq!((reader.rest(512), reader.rest(511)), (Some((512 - 16, 0)), None));
            assert_eq!(reader.into_map(), extents(&[(512, 10), (4096, 0)]));
        }
        let mut empty = MapReader::default();
        assert_eq!(empty.feed(b"0\n1").unwrap(), (2, true));
        assert_eq!((empty.missing(512), empty.rest(512)), (510, Some((510, 0))));
        assert_eq!(empty.into_map(), []);
    }

    #[test]
    fn the_map_at_the_head_of_the_data_holds_decimal_lines_only() {
        for data in [
            &b"\n"[..],
            b"-1\n",
            b"+1\n",
            b"a\n",
            b" 1\n",
            b"1 \n",
            b"1\n\n",
            b"1\n0\n\0",
            b"1\r\n",
            b"99999999999999999999\n",
            b"000000000000000000001\n",
        ] {
            let got = MapReader::default().feed(data).unwrap_err();
            assert_eq!(got.reason(), "tar.sparse.map", "{}", data.escape_ascii());
        }
    }

    #[test]
    fn regions_are_counted_before_they_are_stored() {
        assert!(!MapReader::default().feed(b"65536\n").unwrap().1);
        assert_eq!(MapReader::default().feed(b"65537\n"), Err(Problem::SparseRegions));
        assert_eq!(MapReader::default().feed(b"18446744073709551615\n"), Err(Problem::SparseRegions));
        let map = |regions: usize| vec!["0"; 2 * regions].join(",");
        assert_eq!(comma_map(map(65_536).as_bytes()).unwrap().len(), 65_536);
        assert_eq!(comma_map(map(65_537).as_bytes()), Err(Problem::SparseRegions));
    }

    #[test]
    fn a_map_ascends_stays_within_the_file_and_covers_all_stored_bytes() {
        let settle = |map: &[(u64, u64)], size, stored| settle(&extents(map), size, stored);
        assert_eq!(settle(&[], 0, 0), Ok(None));
        assert_eq!(settle(&[], 9, 0), Ok(Some(vec![])));
        assert_eq!(settle(&[(9, 0)], 9, 0), Ok(Some(vec![])));
        assert_eq!(settle(&[(0, 9)], 9, 9), Ok(None));
        assert_eq!(settle(&[(0, 4), (4, 0), (4, 5), (9, 0)], 9, 9), Ok(None));
        assert_eq!(settle(&[(1, 2), (3, 1), (6, 3)], 9, 6), Ok(Some(extents(&[(1, 3), (6, 3)]))));
        assert_eq!(settle(&[(1, 2), (5, 0), (5, 1)], 9, 3), Ok(Some(extents(&[(1, 2), (5, 1)]))));
        for map in [
            &[(0, 10)][..],
            &[(10, 0)],
            &[(1, 2), (2, 1)],
            &[(1, 2), (0, 1)],
            &[(3, 0), (2, 1)],
            &[(1, u64::MAX)],
            &[(u64::MAX, 1)],
        ] {
            assert_eq!(settle(map, 9, 0).unwrap_err().reason(), "tar.sparse.order", "{map:?}");
        }
        assert_eq!(settle(&[(0, 3)], 9, 4), Err(Problem::SparseSum { mapped: 3, stored: 4 }));
        assert_eq!(settle(&[(0, 3)], 9, 2), Err(Problem::SparseSum { mapped: 3, stored: 2 }));
        assert_eq!(settle(&[], 9, 1), Err(Problem::SparseSum { mapped: 0, stored: 1 }));
    }
}
