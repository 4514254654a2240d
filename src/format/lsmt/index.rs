//! The index in memory: sorted runs of device sectors, 16 bytes each, and the merging of indexes.
//!
//! Source: `docs/formats/overlaybd.md`, "Stacking".

use super::entry::Entry;

/// Number of a file that holds data of a device: two of each layer, the layer's own and its target.
pub(super) type Source = u16;

/// A run of device sectors, and what it reads as.
///
/// | word | bits   | field   | unit and meaning                                  |
/// |-----:|--------|---------|---------------------------------------------------|
/// |    0 | 0..49  | start   | first sector on the device                        |
/// |    0 | 50..63 | sectors | length, 1 to 16383                                |
/// |    1 | 0..53  | at      | first sector of the data in its file              |
/// |    1 | 54     | zeroed  | the run reads as zeros                            |
/// |    1 | 55..63 | source  | the file; with `zeroed`, 511 stands for "not mapped" |
// Sectors of a file end at 2^54, where its bytes end at 2^63. That leaves bits for the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    on_device: u64,
    in_file: u64,
}

/// Source of a segment's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The layers below decide. Only in the log of a writer.
    Hole,
    /// Zeros.
    Zero,
    /// Data from sector `at` of file `source` on.
    Data { source: Source, at: u64 },
}

impl Segment {
    const START_BITS: u32 = 50;
    const AT_BITS: u32 = 54;
    const AT_MASK: u64 = (1 << Self::AT_BITS) - 1;
    const ZEROED: u64 = 1 << Self::AT_BITS;
    const SOURCE_SHIFT: u32 = Self::AT_BITS + 1;
    const HOLE: u64 = 511;
    /// Highest sector of a file that a segment can name.
    pub(super) const MAX_AT: u64 = Self::AT_MASK;
    /// Longest run, in sectors.
    pub(super) const MAX_SECTORS: u64 = Entry::MAX_SECTORS;

    fn new(start: u64, sectors: u64, at: u64, zeroed: bool, source: u64) -> Self {
        debug_assert!((1..=Self::MAX_SECTORS).contains(&sectors), "{sectors} sectors");
        debug_assert!(start >> Self::START_BITS == 0 && at <= Self::MAX_AT && source <= Self::HOLE);
        let zeroed = if zeroed { Self::ZEROED } else { 0 };
        Self {
            on_device: start | sectors << Self::START_BITS,
            in_file: at | zeroed | source << Self::SOURCE_SHIFT,
        }
    }

    /// A run with data.
    pub(super) fn data(start: u64, sectors: u64, at: u64, source: Source) -> Self {
        Self::new(start, sectors, at, false, source.into())
    }

    /// A run of zeros. `at` is only kept.
    pub(super) fn zeros(start: u64, sectors: u64, at: u64) -> Self {
        Self::new(start, sectors, at, true, 0)
    }

    /// A run that is not mapped.
    pub(super) fn hole(start: u64, sectors: u64) -> Self {
        Self::new(start, sectors, 0, true, Self::HOLE)
    }

    /// First sector on the device.
    pub(super) fn start(self) -> u64 {
        self.on_device & ((1 << Self::START_BITS) - 1)
    }

    /// Number of sectors.
    pub(super) fn sectors(self) -> u64 {
        self.on_device >> Self::START_BITS
    }

    /// First sector behind it on the device.
    pub(super) fn end(self) -> u64 {
        self.start() + self.sectors()
    }

    /// First sector of the data in its file; of zeros, the number that was given.
    pub(super) fn at(self) -> u64 {
        self.in_file & Self::AT_MASK
    }

    fn is_zeroed(self) -> bool {
        self.in_file & Self::ZEROED != 0
    }

    fn source(self) -> u64 {
        self.in_file >> Self::SOURCE_SHIFT
    }

    /// Source of the bytes.
    pub(super) fn place(self) -> Place {
        match (self.is_zeroed(), self.source()) {
            (true, Self::HOLE) => Place::Hole,
            (true, _) => Place::Zero,
            (false, source) => {
                Place::Data { source: Source::try_from(source).unwrap_or(Source::MAX), at: self.at() }
            }
        }
    }

    fn is_in_target(self) -> bool {
        !self.is_zeroed() && self.source() % 2 == 1
    }

    /// Moves the data to the files of layer `layer` in a stack.
    pub(super) fn in_layer(self, layer: Source) -> Self {
        match self.place() {
            Place::Data { source, at } => {
                Self::data(self.start(), self.sectors(), at, layer.saturating_mul(2).saturating_add(source))
            }
            Place::Zero | Place::Hole => self,
        }
    }

    /// The first `sectors` of it, which are not all.
    fn first(self, sectors: u64) -> Self {
        Self::new(self.start(), sectors, self.at(), self.is_zeroed(), self.source())
    }

    /// Everything behind the first `sectors`, which are not all.
    fn after(self, sectors: u64) -> Self {
        let at = if self.is_zeroed() { self.at() } else { self.at() + sectors };
        Self::new(self.start() + sectors, self.sectors() - sectors, at, self.is_zeroed(), self.source())
    }

    /// The part of it in the sectors from `start` to `end`, if any.
    pub(super) fn within(self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.start().max(start), self.end().min(end));
        let mut part = self;
        if from >= to {
            return None;
        }
        if to < part.end() {
            part = part.first(to - part.start());
        }
        if from > part.start() {
            part = part.after(from - part.start());
        }
        Some(part)
    }

    /// Both as one, when `next` continues this one on the device and in its file and the run stays below `limit`
    /// sectors. Zeros continue zeros with the same number.
    pub(super) fn joined(self, next: Self, limit: u64) -> Option<Self> {
        let sectors = self.sectors() + next.sectors();
        let continues = self.end() == next.start()
            && (self.is_zeroed(), self.source()) == (next.is_zeroed(), next.source())
            && next.at() == if self.is_zeroed() { self.at() } else { self.at() + self.sectors() };
        (continues && sectors < limit)
            .then(|| Self::new(self.start(), sectors, self.at(), self.is_zeroed(), self.source()))
    }
}

/// Sorted segments that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index(Vec<Segment>);

impl Index {
    /// Takes segments that are sorted and do not overlap.
    pub(super) fn from_sorted(segments: Vec<Segment>) -> Self {
        debug_assert!(segments.is_sorted_by(|a, b| a.end() <= b.start()), "segments are sorted");
        Self(segments)
    }

    /// One index of several, bottom first: an upper one hides what it covers.
    // Pairs of neighbours, then pairs of pairs: every entry is copied log2(k) times for k layers.
    pub(super) fn merged(mut layers: Vec<Self>) -> Self {
        while layers.len() > 1 {
            let mut fewer = Vec::with_capacity(layers.len().div_ceil(2));
            let mut rest = layers.into_iter();
            while let Some(lower) = rest.next() {
                fewer.push(match rest.next() {
                    Some(upper) => upper.over(lower),
                    None => lower,
                });
            }
            layers = fewer;
        }
        layers.pop().unwrap_or_default()
    }

    fn over(self, lower: Self) -> Self {
        if self.0.is_empty() {
            return lower;
        }
        if lower.0.is_empty() {
            return self;
        }
        let mut out = Vec::with_capacity(self.0.len().saturating_add(lower.0.len()));
        let mut lower = lower.0.into_iter();
        let mut next = lower.next();
        for upper in self.0 {
            while let Some(segment) = next {
                if segment.end() > upper.start() {
                    break;
                }
                out.push(segment);
                next = lower.next();
            }
            if let Some(segment) = next
                && segment.start() < upper.start()
            {
                let sectors = upper.start() - segment.start();
                out.push(segment.first(sectors));
                next = Some(segment.after(sectors));
            }
            out.push(upper);
            while let Some(segment) = next {
                if segment.start() >= upper.end() {
                    break;
                }
                if segment.end() > upper.end() {
                    next = Some(segment.after(upper.end() - segment.start()));
                    break;
                }
                next = lower.next();
            }
        }
        out.extend(next);
        out.extend(lower);
        Self(out)
    }

    /// This index in the fewest segments, however it was written. What continues is cut after `limit` sectors, or
    /// after the longest run if the data is in a target.
    pub(super) fn rejoined(self, limit: u64) -> Self {
        let mut out: Vec<Segment> = Vec::with_capacity(self.0.len());
        for segment in self.0 {
            let limit = if segment.is_in_target() { Segment::MAX_SECTORS } else { limit };
            let mut start = segment.start();
            while start < segment.end() {
                let room = out.last().map_or(0, |last| limit.saturating_sub(last.sectors()));
                if let Some(last) = out.last_mut()
                    && let Some(part) = segment.within(start, start + room)
                    && let Some(joined) = last.joined(part, limit + 1)
                {
                    *last = joined;
                    start = part.end();
                } else if let Some(part) = segment.within(start, start + limit) {
                    out.push(part);
                    start = part.end();
                }
            }
        }
        Self(out)
    }

    /// Drops the segments that are not mapped.
    pub(super) fn without_holes(mut self) -> Self {
        self.0.retain(|segment| segment.place() != Place::Hole);
        self
    }

    /// Moves all data to the files of layer `layer` in a stack.
    pub(super) fn in_layer(mut self, layer: Source) -> Self {
        self.0.iter_mut().for_each(|segment| *segment = segment.in_layer(layer));
        self
    }

    /// Drops everything from sector `end` on.
    pub(super) fn cut(mut self, end: u64) -> Self {
        let keep = self.0.partition_point(|segment| segment.start() < end);
        self.0.truncate(keep);
        if let Some(last) = self.0.last_mut()
            && let Some(part) = last.within(0, end)
        {
            *last = part;
        }
        self
    }

    /// The segments from the one that holds or follows `sector` on.
    pub(super) fn from(&self, sector: u64) -> &[Segment] {
        let first = self.0.partition_point(|segment| segment.end() <= sector);
        self.0.get(first..).unwrap_or_default()
    }

    /// All segments.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.0
    }
}

/// Writes in their order: later ones replace what they overlap of earlier ones.
///
/// Memory is that of what is mapped, times two, whatever was overwritten.
// A stack of ascending runs, each at least twice as long as the next. Sorted writes are one run, and n writes in any
// order take n log n steps.
#[derive(Debug, Default)]
pub(super) struct Log(Vec<Index>);

impl Log {
    /// Adds a write.
    pub(super) fn push(&mut self, segment: Segment) {
        match self.0.last_mut() {
            Some(Index(run)) if run.last().is_none_or(|last| last.end() <= segment.start()) => {
                run.push(segment)
            }
            _ => {
                self.settle(2);
                self.0.push(Index(vec![segment]));
            }
        }
    }

    /// Adds a write, to the last one if it continues that in its file as well.
    pub(super) fn push_joining(&mut self, segment: Segment) {
        if let Some(Index(run)) = self.0.last_mut()
            && let Some(last) = run.last_mut()
            && let Some(joined) = last.joined(segment, Segment::MAX_SECTORS + 1)
        {
            *last = joined;
        } else {
            self.push(segment);
        }
    }

    /// Merges the last runs until the one below is `times` as long.
    fn settle(&mut self, times: usize) {
        while let Some([.., below, last]) = Some(self.0.as_slice())
            && below.0.len() < last.0.len().saturating_mul(times)
            && let (Some(upper), Some(lower)) = (self.0.pop(), self.0.pop())
        {
            self.0.push(upper.over(lower));
        }
    }

    /// Memory of the writes, in bytes, with what merging them takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let segments: usize = self.0.iter().map(|Index(run)| run.capacity()).sum();
        (2 * segments * size_of::<Segment>()) as u64
    }

    /// The index after all writes.
    pub(super) fn finish(mut self) -> Index {
        self.settle(usize::MAX);
        Index::merged(self.0).without_holes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTORS: usize = 96;

    /// File and sector that each sector of a small device reads from; zeros have file 1000.
    fn model(log: &[Segment]) -> Vec<Option<(Source, u64)>> {
        let mut sectors = vec![None; SECTORS];
        for segment in log {
            for n in 0..segment.sectors() {
                sectors[usize::try_from(segment.start() + n).unwrap()] = match segment.place() {
                    Place::Hole => None,
                    Place::Zero => Some((1000, 0)),
                    Place::Data { source, at } => Some((source, at + n)),
                };
            }
        }
        sectors
    }

    fn segments() -> impl Strategy<Value = Vec<Segment>> {
        let one = (0..SECTORS as u64, 1..32_u64, 0..4_u8, 0..500_u64, 0..4_u16);
        let one = one.prop_map(|(start, sectors, kind, at, source)| {
            let sectors = sectors.min(SECTORS as u64 - start);
            match kind {
                0 => Segment::zeros(start, sectors, at),
                1 => Segment::hole(start, sectors),
                _ => Segment::data(start, sectors, at, source),
            }
        });
        proptest::collection::vec(one, 0..24)
    }

    fn replay(log: &[Segment]) -> Index {
        let mut replayed = Log::default();
        log.iter().for_each(|segment| replayed.push(*segment));
        replayed.finish()
    }

    fn sorted(index: &Index) -> bool {
        index.0.is_sorted_by(|a, b| a.end() <= b.start())
    }

    proptest! {
        #[test]
        fn the_last_write_to_a_sector_counts(log in segments()) {
            let index = replay(&log);
            prop_assert!(sorted(&index));
            prop_assert_eq!(model(index.segments()), model(&log));
            let mut joining = Log::default();
            log.iter().for_each(|segment| joining.push_joining(*segment));
            let joined = joining.finish();
            prop_assert!(sorted(&joined) && joined.0.len() <= index.0.len());
            prop_assert_eq!(model(joined.segments()), model(&log));
            let cut = index.clone().cut(40);
            // However it was written, it looks the same.
            let rejoined = index.rejoined(16);
            prop_assert_eq!(&rejoined, &joined.rejoined(16));
            prop_assert_eq!(model(rejoined.segments()), model(&log));
            let mut want = model(&log);
            want[40..].fill(None);
            prop_assert_eq!(model(cut.segments()), want);
        }

        #[test]
        fn an_upper_index_hides_what_it_covers(logs in proptest::collection::vec(segments(), 0..6)) {
            let layers: Vec<_> = logs.iter().map(|log| replay(log)).collect();
            let want: Vec<_> = layers.iter().flat_map(|index| index.segments()).copied().collect();
            let merged = Index::merged(layers);
            prop_assert!(sorted(&merged));
            prop_assert_eq!(model(merged.segments()), model(&want));
        }
    }

    #[test]
    fn a_segment_keeps_its_largest_values_apart() {
        assert_eq!(size_of::<Segment>(), 16);
        let data = Segment::data((1 << 50) - 16_384, 16_383, Segment::MAX_AT - 16_383, 511);
        assert_eq!(data.place(), Place::Data { source: 511, at: Segment::MAX_AT - 16_383 });
        assert_eq!((data.start(), data.end()), ((1 << 50) - 16_384, (1 << 50) - 1));
        assert_eq!(Segment::data(0, 1, 7, 1).in_layer(255).place(), Place::Data { source: 511, at: 7 });
        assert_eq!(Segment::zeros(0, 1, 7).in_layer(255).place(), Place::Zero);
    }

    #[test]
    fn only_what_continues_is_joined_and_only_below_the_limit() {
        let a = Segment::data(10, 5, 100, 0);
        assert_eq!(a.joined(Segment::data(15, 5, 105, 0), 11), Some(Segment::data(10, 10, 100, 0)));
        assert_eq!(a.joined(Segment::data(15, 5, 105, 0), 10), None);
        for other in [
            Segment::data(16, 5, 105, 0),
            Segment::data(15, 5, 106, 0),
            Segment::data(15, 5, 105, 1),
            Segment::zeros(15, 5, 105),
        ] {
            assert_eq!(a.joined(other, 100), None, "{other:?}");
        }
        let zeros = Segment::zeros(0, 4, 9);
        assert_eq!(zeros.joined(Segment::zeros(4, 4, 9), 100), Some(Segment::zeros(0, 8, 9)));
        assert_eq!(zeros.joined(Segment::zeros(4, 4, 13), 100), None);
    }
}
