//! Maps from the ids of files on disk to the ids inside a container.
//!
//! In a user namespace an overlay's upper directory holds the ids of the host: a file of the container's
//! root belongs to, say, 100000. A layer says 0.
//!
//! Source: user_namespaces(7), "User and group ID mappings"; containerd `core/mount`, options `uidmap=` and
//! `gidmap=` as `CONTAINER:HOST:COUNT`, joined by commas.

use super::mount::decimal;

/// Most ranges of one map: the kernel's own bound, `UID_GID_MAP_MAX_EXTENTS`.
const RANGES: usize = 340;

/// The maps of a container's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Map of owners.
    pub users: IdMap,
    /// Map of groups.
    pub groups: IdMap,
}

impl IdMaps {
    /// Whether every id stays as it is.
    pub fn is_identity(&self) -> bool {
        *self == Self::default()
    }
}

/// A map of ids. Without ranges, every id stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Sorted by the id on disk, not overlapping.
    ranges: Vec<Range>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    container: u32,
    disk: u32,
    count: u32,
}

impl IdMap {
    /// Translates the `id` of a file on disk. `None` when the map leaves it out.
    ///
    /// Whiteouts and opaque marks, which overlayfs makes itself, belong to the process that mounted it and need
    /// no place in the map.
    ///
    /// ```
    /// use plywood::snapshot::IdMap;
    /// let map = IdMap::parse("0:100000:65536").unwrap();
    /// assert_eq!((map.in_container(100_007), map.in_container(7)), (Some(7), None));
    /// assert_eq!(IdMap::default().in_container(7), Some(7));
    /// ```
    pub fn in_container(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        let next = self.ranges.partition_point(|range| range.disk <= id);
        let range = self.ranges.get(next.checked_sub(1)?)?;
        let distance = id.checked_sub(range.disk)?;
        if distance < range.count { range.container.checked_add(distance) } else { None }
    }

    /// Reads the value of an option. The error is the reason why the kernel would not take it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let mut numbers = part.split(':').map(decimal);
            let (Some(Some(container)), Some(Some(disk)), Some(Some(count)), None) =
                (numbers.next(), numbers.next(), numbers.next(), numbers.next())
            else {
                return Err("not CONTAINER:HOST:COUNT, joined by commas");
            };
            // 4294967295 is no id: chown(2) takes it for "unchanged".
            let most = u64::from(u32::MAX);
            let fits = |first: u64| first.checked_add(count).is_some_and(|end| end <= most);
            if count == 0 || !fits(container) || !fits(disk) {
                return Err("a range of no ids, or of ids beyond 32 bits");
            }
            let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
            ranges.push(Range { container: narrow(container), disk: narrow(disk), count: narrow(count) });
            if ranges.len() > RANGES {
                return Err("more ranges than the kernel takes");
            }
        }
        for first in [|range: &Range| range.container, |range: &Range| range.disk] {
            ranges.sort_by_key(first);
            let overlaps = |pair: &[Range]| match pair {
                [a, b] => first(a).saturating_add(a.count) > first(b),
                _ => false,
            };
            if ranges.windows(2).any(overlaps) {
                return Err("ranges that overlap");
            }
        }
        Ok(Self { ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_by_the_range_they_lie_in() {
        let map = IdMap::parse("10:5000:10,0:1000:10").unwrap();
        for (disk, container) in [
            (999, None),
            (1000, Some(0)),
            (1009, Some(9)),
            (1010, None),
            (4999, None),
            (5000, Some(10)),
            (5009, Some(19)),
            (5010, None),
            (0, None),
            (u32::MAX, None),
        ] {
            assert_eq!(map.in_container(disk), container, "{disk}");
        }
        let all = IdMap::parse("0:0:4294967295").unwrap();
        assert_eq!(all.in_container(u32::MAX - 1), Some(u32::MAX - 1));
        assert_eq!(all.in_container(u32::MAX), None);
    }

    #[test]
    fn maps_that_the_kernel_would_not_take_are_refused() {
        let many = vec!["0:0:1"; 341].join(",");
        for text in [
            "",
            ",",
            "0:0",
            "0:0:",
            ":0:1",
            "0:0:0",
            "0:0:1:1",
            "0:0:1,",
            "-1:0:1",
            "00:0:1",
            "0:0:4294967296",
            "4294967295:0:1",
            "0:1:4294967295",
            "0:18446744073709551615:1",
            "0:0:10,5:20:10",
            "0:0:10,20:5:10",
            &many,
        ] {
            assert!(IdMap::parse(text).is_err(), "{text}");
        }
    }
}
