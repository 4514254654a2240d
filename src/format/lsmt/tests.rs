use proptest::prelude::*;

use super::{header::flags, *};
use crate::{
    error::{Classify, Kind},
    format::{ReadAt, Sink},
    limits::{LSMT_DEVICE_BYTES, LSMT_ENTRIES},
    tree::Extent,
};

const MIB: u64 = 1 << 20;

/// Where the fields of a header are.
const FLAGS: usize = 28;
const INDEX_OFFSET: usize = 32;
const INDEX_SIZE: usize = 40;
const VIRTUAL_SIZE: usize = 48;
const VERSION: usize = 132;

fn writer(size_bytes: u64, writes: &[(u64, &[u8])]) -> Writer<Vec<u8>> {
    let mut writer = Writer::new(Vec::new(), size_bytes);
    writes.iter().for_each(|(offset, bytes)| writer.write_at(*offset, bytes).unwrap());
    writer
}

fn device(layers: Vec<Layer<Vec<u8>>>) -> Device<Vec<u8>> {
    Device::new(layers).unwrap()
}

fn commit(layer: Layer<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    device(vec![layer]).commit(&CommitOptions::default(), &mut bytes).unwrap();
    bytes
}

/// Two sectors of data, at 2 and at 8.
fn small() -> Vec<u8> {
    commit(writer(MIB, &[(1024, &[1; 512]), (4096, &[2; 512])]).finish().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn reason(result: Result<Layer<Vec<u8>>, LsmtError>) -> &'static str {
    result.map_or_else(|error| error.reason(), |_| "ok")
}

fn all(device: &impl ReadAt) -> Vec<u8> {
    let mut bytes = vec![0xaa; usize::try_from(device.size_bytes()).unwrap()];
    device.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_that_breaks_a_rule_is_refused_for_that_rule() {
    let good = small();
    let end = good.len() - 4096;
    let index = end - 4096;
    let entry = |start: u64, sectors: u64, at: u64, tag: u64| {
        [(start | sectors << 50).to_le_bytes(), (at | tag << 56).to_le_bytes()].concat()
    };
    assert_eq!(reason(Layer::open(good.clone())), "ok");
    let number = u64::to_le_bytes;
    for (what, at, value, want) in [
        ("the magic number", 0, vec![0], "lsmt.magic"),
        ("an index file", FLAGS, vec![1], "lsmt.flags"),
        ("a trailer in front", FLAGS, vec![6], "lsmt.flags"),
        ("a later version", VERSION, vec![2], "lsmt.version"),
        ("no trailer", end, vec![0], "lsmt.magic"),
        ("a header behind", end + FLAGS, vec![7], "lsmt.flags"),
        ("not sealed", end + FLAGS, vec![2], "lsmt.flags"),
        ("not data", end + FLAGS, vec![4], "lsmt.flags"),
        ("a later trailer", end + VERSION, vec![9], "lsmt.version"),
        ("the index in the header", end + INDEX_OFFSET, number(4095).to_vec(), "lsmt.index.range"),
        ("the index in the trailer", end + INDEX_OFFSET, number(end as u64 + 1).to_vec(), "lsmt.index.range"),
        ("the index far away", end + INDEX_OFFSET, number(u64::MAX).to_vec(), "lsmt.index.range"),
        ("a long index", end + INDEX_SIZE, number(257).to_vec(), "lsmt.index.range"),
        ("a huge index", end + INDEX_SIZE, number(LSMT_ENTRIES + 1).to_vec(), "lsmt.index.count"),
        ("an index of the largest size", end + INDEX_SIZE, number(u64::MAX).to_vec(), "lsmt.index.count"),
        ("a huge device", end + VIRTUAL_SIZE, number(LSMT_DEVICE_BYTES + 1).to_vec(), "lsmt.device.size"),
        ("a small device", end + VIRTUAL_SIZE, number(4096).to_vec(), "lsmt.entry.device"),
        ("an empty run", index, entry(2, 0, 8, 0), "lsmt.entry.length"),
        ("behind the device", index + 16, entry(2047, 2, 9, 0), "lsmt.entry.device"),
        ("far behind the device", index + 16, entry((1 << 50) - 1, 1, 9, 0), "lsmt.entry.device"),
        ("overlap", index + 16, entry(2, 1, 9, 0), "lsmt.entry.order"),
        ("not sorted", index + 16, entry(0, 1, 9, 0), "lsmt.entry.order"),
        ("data in the header", index, entry(2, 1, 7, 0), "lsmt.entry.data"),
        ("data in the index", index, entry(2, 1, 10, 0), "lsmt.entry.data"),
        ("data that reaches into the index", index, entry(2, 2, 9, 0), "lsmt.entry.data"),
        ("data far away", index, entry(2, 1, (1 << 55) - 1, 0), "lsmt.entry.data"),
        ("zeros in the header", index, entry(2, 1, 7 | 1 << 55, 0), "lsmt.entry.data"),
        ("data in a target", index, entry(2, 1, 700, 1), "lsmt.entry.target"),
        ("the tag of a merged layer", index, entry(2, 1, 8, 1), "ok"),
        ("unused", index, entry((1 << 50) - 1, 0, 8, 0), "ok"),
        ("the last entry at the end", index + 255 * 16, entry(2047, 1, 9, 0), "ok"),
        ("zeros at the end of the data", index, entry(2, 1, 10 | 1 << 55, 0), "ok"),
        ("another size of the structure", 24, vec![0, 0], "ok"),
    ] {
        let mut bad = good.clone();
        put(&mut bad, at, &value);
        let opened = Layer::open(bad);
        let text = opened.as_ref().err().map(ToString::to_string);
        assert_eq!(reason(opened), want, "{what}: {text:?}");
    }
    for len in [0, 1, 4095, 4096, 8191] {
        assert_eq!(reason(Layer::open(good[..len].to_vec())), "lsmt.short", "{len} bytes");
    }
    for len in [8192, good.len() - 1] {
        assert_eq!(reason(Layer::open(good[..len].to_vec())), "lsmt.magic", "{len} bytes");
    }
}

#[test]
fn a_refusal_says_where_what_was_found_and_what_was_expected() {
    let mut bad = small();
    let index = bad.len() - 8192;
    put(&mut bad, index + 16, &(1_u64 | 1 << 50).to_le_bytes());
    let error = Layer::open(bad).unwrap_err();
    assert_eq!(
        error.to_string(),
        "index entry 1 at byte 5136, 1 sectors from 1 on: the entry before it ends at sector 3"
    );
    assert_eq!(error.kind(), Kind::Malformed);
}

#[test]
fn a_turbo_layer_opened_without_its_target_is_refused() {
    let mut turbo = writer(MIB, &[(0, &[1; 512])]);
    turbo.map_target(4096, 1000, 1536 + 2 * 512).unwrap();
    let mut bytes = Vec::new();
    let keep = CommitOptions { targets: Targets::Keep, ..CommitOptions::default() };
    device(vec![turbo.finish().unwrap()]).commit(&keep, &mut bytes).unwrap();
    let error = Layer::open(bytes.clone()).unwrap_err();
    assert_eq!(error.reason(), "lsmt.entry.target");
    assert!(error.to_string().ends_with("a turboOCI layer, which needs its target"), "{error}");
    // The target ends in the middle of the last sector that is mapped.
    let target: Vec<u8> = (0..3600_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
    let layer = Layer::open_turbo(bytes, target.clone()).unwrap();
    assert_eq!(layer.target_end(), 2560 + 1024);
    let found = all(&device(vec![layer]));
    assert_eq!(found[4096..4096 + 1024], target[2560..3584]);
    assert_eq!((found[0], found[512], found[4096 + 1024]), (1, 0, 0));
}

#[test]
fn what_lies_behind_the_end_of_a_target_reads_as_zeros() {
    let mut turbo = writer(MIB, &[]);
    turbo.map_target(0, 2048, 0).unwrap();
    let mut bytes = Vec::new();
    let keep = CommitOptions { targets: Targets::Keep, ..CommitOptions::default() };
    device(vec![turbo.finish().unwrap()]).commit(&keep, &mut bytes).unwrap();
    let found = all(&device(vec![Layer::open_turbo(bytes, vec![3; 700]).unwrap()]));
    assert_eq!((&found[..700], &found[700..2048]), (&[3; 700][..], &[0; 1348][..]));
}

/// An archive of many gigabytes: every eight bytes are their own number.
#[derive(Debug)]
struct Numbers;

impl ReadAt for Numbers {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = (at / 8).to_le_bytes()[usize::try_from(at % 8).unwrap()];
        }
        Ok(())
    }
    fn size_bytes(&self) -> u64 {
        20 << 30
    }
}

#[test]
fn a_file_of_more_than_4_gib_is_mapped_to_its_end() {
    // Upstream counts the bytes of a mapping in 32 bits.
    const LEN: u64 = (9 << 30) + 12_345;
    const START: u64 = 8 * MIB;
    const IN_TARGET: u64 = (5 << 30) + 512;
    let mut turbo = writer(64 << 30, &[(0, &[1; 512])]);
    turbo.map_target(START, LEN, IN_TARGET).unwrap();
    let layer = turbo.finish().unwrap();
    // 1 of metadata, and the file in the longest entries.
    assert_eq!(layer.entries(), 1 + LEN.div_ceil(512).div_ceil(16_383));
    let mut bytes = Vec::new();
    let keep = CommitOptions { targets: Targets::Keep, ..CommitOptions::default() };
    device(vec![layer]).commit(&keep, &mut bytes).unwrap();
    let [file, target]: [Box<dyn ReadAt>; 2] = [Box::new(bytes), Box::new(Numbers)];
    let layer = Layer::open_turbo(file, target).unwrap();
    assert_eq!(layer.target_end(), IN_TARGET + LEN.next_multiple_of(512));
    let device = Device::new(vec![layer]).unwrap();
    let mapped: Vec<_> = device.data(0, u64::MAX).skip(1).collect();
    assert_eq!(mapped, [Extent { offset: START, len: LEN.next_multiple_of(512) }]);
    for at in [0, 16_383 * 512 - 8, (4 << 30) - 8, 4 << 30, (8 << 30) + 80, LEN / 8 * 8] {
        let mut found = [0; 8];
        device.read_exact_at(START + at, &mut found).unwrap();
        assert_eq!(u64::from_le_bytes(found), (IN_TARGET + at) / 8, "byte {at}");
    }
}

#[test]
fn an_empty_layer_is_two_blocks_and_the_device_is_zeros() {
    let bytes = commit(writer(MIB, &[]).finish().unwrap());
    assert_eq!(bytes.len(), 8192);
    let device = device(vec![Layer::open(bytes).unwrap()]);
    assert_eq!((device.size_bytes(), device.entries()), (MIB, 0));
    assert!(all(&device).iter().all(|byte| *byte == 0));
}

#[test]
fn a_device_has_the_size_of_the_topmost_layer_that_has_one() {
    let sized = |size| Layer::open(commit(writer(size, &[(0, &[1; 512])]).finish().unwrap())).unwrap();
    let unsized_layer = || {
        let mut bytes = small();
        let end = bytes.len() - 4096;
        put(&mut bytes, end + VIRTUAL_SIZE, &[0; 8]);
        Layer::open(bytes).unwrap()
    };
    assert_eq!(device(vec![sized(MIB), sized(2 * MIB), unsized_layer()]).size_bytes(), 2 * MIB);
    assert_eq!(device(vec![sized(2 * MIB), sized(4608)]).size_bytes(), 4608);
    assert_eq!(device(vec![unsized_layer()]).size_bytes(), 0);
    // The layers below may be larger: what is behind the end is not there.
    let cut = device(vec![sized(MIB), unsized_layer(), sized(512)]);
    assert_eq!(cut.data(0, u64::MAX).collect::<Vec<_>>(), [Extent { offset: 0, len: 512 }]);
    assert_eq!(cut.read_exact_at(512, &mut [0]).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_device_takes_255_read_only_layers_and_one_more() {
    let layer = || Layer::open(small()).unwrap();
    let many = |count: usize| (0..count).map(|_| layer()).collect::<Vec<_>>();
    let scratch = writer(MIB, &[(0, &[9; 512])]).finish().unwrap();
    let full = device(many(255).into_iter().chain([scratch]).collect());
    assert_eq!(all(&full)[..1536], [&[9; 512][..], &[0; 512], &[1; 512]].concat());
    for layers in [Vec::new(), many(256)] {
        assert_eq!(Device::new(layers).map(drop).unwrap_err().reason(), "lsmt.layers");
    }
}

#[test]
fn zeros_of_an_upper_layer_hide_what_is_below_and_what_was_taken_back_does_not() {
    let lower = || writer(MIB, &[(0, &[5; 8192])]).finish().unwrap();
    let mut upper = writer(MIB, &[(4096, &[6; 2048])]);
    upper.zero(0, 1024).unwrap();
    upper.discard(4096 + 256, 1024).unwrap();
    let stack = device(vec![lower(), upper.finish().unwrap()]);
    let found = all(&stack);
    let sectors: Vec<_> = found[..6144].chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(sectors, [0, 0, 5, 5, 5, 5, 5, 5, 6, 5, 0, 6]);
    // Half a sector that was taken back is zeros.
    assert_eq!((found[4096 + 255], found[4096 + 256]), (6, 0));
    // Both survive committing the stack.
    let mut merged = Vec::new();
    stack.commit(&CommitOptions::default(), &mut merged).unwrap();
    assert_eq!(all(&device(vec![Layer::open(merged).unwrap()])), found);
    assert_eq!(
        stack.data(100, 4096 + 512).collect::<Vec<_>>(),
        [Extent { offset: 1024, len: 4096 + 512 - 1024 }]
    );
}

#[test]
fn writes_outside_the_device_are_refused() {
    let mut layer = writer(1000, &[(999, &[1])]);
    assert!(layer.write_at(999, &[1, 2]).unwrap_err().to_string().contains("the device is smaller"));
    assert!(layer.write_at(u64::MAX, &[1]).is_err());
    assert!(layer.set_len(1001).is_err());
    layer.set_len(1000).unwrap();
    for refused in [
        layer.map_target(512, 512, 0),
        layer.map_target(1, 1, 0),
        layer.map_target(0, 1, 1),
        layer.zero(0, 1),
    ] {
        assert_eq!(refused.unwrap_err().reason(), "lsmt.range");
    }
    assert_eq!(layer.map_target(0, 1, (1 << 63) - 512).unwrap_err().reason(), "lsmt.range");
    let size = LSMT_DEVICE_BYTES + 1;
    assert_eq!(reason(writer(size, &[]).finish()), "lsmt.device.size");
}

#[test]
fn a_layer_that_no_reader_takes_is_not_written() {
    let layer = || writer(MIB, &[(0, &[1; 512])]).finish().unwrap();
    let refused = |device: Device<Vec<u8>>, options: CommitOptions| {
        let mut out = Vec::new();
        let error = device.commit(&options, &mut out).unwrap_err();
        assert!(out.is_empty(), "{error}");
        error.reason()
    };
    let long = CommitOptions { user_tag: vec![b'x'; 257], ..CommitOptions::default() };
    assert_eq!(refused(device(vec![layer()]), long), "lsmt.user-tag");
    let keep = CommitOptions { targets: Targets::Keep, ..CommitOptions::default() };
    assert_eq!(refused(device(vec![layer(), layer()]), keep), "lsmt.targets");
    let mut scattered = writer(1 << 40, &[]);
    for n in 0..=LSMT_ENTRIES {
        scattered.map_target(n * 1024, 512, 0).unwrap();
    }
    assert_eq!(refused(device(vec![scattered.finish().unwrap()]), CommitOptions::default()), "lsmt.entries");
}

#[test]
fn the_identity_of_the_layer_below_stays_when_the_caller_gives_none() {
    let uuid = |n| Uuid::from_random([n; 16]);
    let given = |uuid, parent_uuid, user_tag: &str| CommitOptions {
        uuid,
        parent_uuid,
        user_tag: user_tag.into(),
        targets: Targets::Store,
    };
    let mut first = Vec::new();
    let source = device(vec![Layer::open(small()).unwrap()]);
    source.commit(&given(uuid(1), Some(uuid(2)), "one"), &mut first).unwrap();
    let header = |bytes: &[u8]| Layer::open(bytes.to_vec()).unwrap().header().clone();
    let found = header(&first);
    assert_eq!((found.uuid, found.parent_uuid, found.user_tag.as_slice()), (uuid(1), uuid(2), &b"one"[..]));
    let mut second = Vec::new();
    device(vec![Layer::open(first).unwrap()]).commit(&CommitOptions::default(), &mut second).unwrap();
    let found = header(&second);
    assert_eq!((found.uuid, found.parent_uuid, found.user_tag.as_slice()), (Uuid::NULL, uuid(2), &b""[..]));
}

#[test]
fn runs_are_cut_as_upstream_cuts_them() {
    // 20 MiB in one run, and zeros that are longer than one entry.
    let mut long = Writer::new(Vec::new(), 64 * MIB);
    (0..20).for_each(|n| long.write_at(n * MIB, &vec![1; 1 << 20]).unwrap());
    long.zero(20 * MIB, 16 * MIB).unwrap();
    let bytes = commit(long.finish().unwrap());
    let index = 4096 + (20 << 20);
    let lengths: Vec<_> = bytes[index..]
        .as_chunks::<16>()
        .0
        .iter()
        .map_while(entry::Entry::decode)
        .map(|entry| (entry.start, entry.sectors, entry.zeroed))
        .collect();
    let zeros = 20 * 2048;
    assert_eq!(
        lengths,
        [
            (0, 16_320, false),
            (16_320, 16_320, false),
            (32_640, 8320, false),
            (zeros, 16_320, true),
            (zeros + 16_320, 16_320, true),
            (zeros + 32_640, 128, true)
        ]
    );
}

fn pair(records: &[[u8; 16]], data_sectors: usize, flags: u32) -> (Vec<u8>, Vec<u8>) {
    let mut data = Header::new(flags, MIB).encode();
    (0..data_sectors).for_each(|n| data.extend([u8::try_from(n + 1).unwrap(); 512]));
    let mut index = Header::new(flags::HEADER, MIB).encode();
    records.iter().for_each(|record| index.extend(record));
    (data, index)
}

fn record(start: u64, sectors: u64, at: u64, zeroed: bool, tag: u8) -> [u8; 16] {
    entry::Entry { start, sectors, at, zeroed, tag }.encode()
}

const DATA: u32 = flags::HEADER | flags::DATA;

#[test]
fn a_pair_is_replayed_record_by_record() {
    let records = [
        record(0, 4, 8, false, 3),
        entry::Entry::UNUSED,
        record(2, 1, 12, true, 0),
        record(3, 2, 12, false, 200),
    ];
    let (data, mut index) = pair(&records, 6, DATA);
    // The end of a record whose write was cut off.
    index.extend([0xff; 9]);
    let layer = Layer::open_pair(data, &index).unwrap();
    let found = all(&device(vec![layer]));
    let sectors: Vec<_> = found[..3072].chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(sectors, [1, 2, 0, 5, 6, 0]);
}

#[test]
fn a_pair_that_breaks_a_rule_is_refused() {
    let good = [record(0, 2, 8, false, 0)];
    let open = |(data, index): (Vec<u8>, Vec<u8>)| reason(Layer::open_pair(data, &index));
    assert_eq!(open(pair(&good, 2, DATA)), "ok");
    assert_eq!(open(pair(&good, 1, DATA)), "lsmt.entry.data");
    assert_eq!(open(pair(&good, 2, DATA | flags::SPARSE)), "lsmt.flags");
    assert_eq!(open(pair(&good, 2, DATA | flags::SEALED)), "lsmt.flags");
    assert_eq!(open(pair(&good, 2, flags::HEADER)), "lsmt.flags");
    assert_eq!(open(pair(&[record(2047, 2, 8, false, 0)], 2, DATA)), "lsmt.entry.device");
    let (data, index) = pair(&good, 2, DATA);
    assert_eq!(open((index.clone(), data.clone())), "lsmt.flags");
    assert_eq!(open((data.clone(), Vec::new())), "lsmt.short");
    assert_eq!(open((data.clone(), data.clone())), "lsmt.flags");
    let other = Header { uuid: Uuid::from_random([4; 16]), ..Header::new(flags::HEADER, MIB) };
    assert_eq!(open((data, other.encode())), "lsmt.pair");
}

#[test]
fn the_lowest_tag_of_a_turbo_pair_stands_for_its_own_file() {
    let records = [record(0, 1, 0, false, 7), record(8, 2, 1, false, 8), record(1, 1, 0, true, 7)];
    let (_, index) = pair(&records, 0, DATA);
    let target = [[1_u8; 512], [2; 512], [3; 512]].concat();
    let open = |index: &Vec<u8>| Layer::open_turbo_pair(vec![9; 512], index, target.clone());
    let layer = open(&index).unwrap();
    assert_eq!((layer.form(), layer.target_end()), (Form::TurboPair, 1536));
    let found = all(&device(vec![layer]));
    assert_eq!((found[0], found[512], found[4096], found[4608]), (9, 0, 2, 3));
    let (_, index) = pair(&[record(0, 1, 0, false, 7), record(8, 2, 1, false, 9)], 0, DATA);
    assert_eq!(reason(open(&index)), "lsmt.entry.tag");
}

#[test]
fn the_extents_of_a_sparse_file_come_in_order_and_end_with_the_device() {
    let mut data = Header::new(DATA | flags::SPARSE, 8192).encode();
    data.extend([7; 16_384]);
    let open = |extents: &[(u64, u64)]| {
        let extents = extents.iter().map(|(offset, len)| Extent { offset: *offset, len: *len });
        Layer::open_sparse(data.clone(), extents)
    };
    // The header is data as well, and blocks need not be whole sectors.
    let layer = open(&[(0, 4096 + 100), (4096 + 1024, 1), (10_000, u64::MAX)]).unwrap();
    let device = device(vec![layer]);
    let mapped: Vec<_> = device.data(0, u64::MAX).map(|extent| (extent.offset, extent.len)).collect();
    assert_eq!(mapped, [(0, 512), (1024, 512), (5632, 8192 - 5632)]);
    assert_eq!(reason(open(&[(8192, 4096), (4096, 8192)])), "lsmt.range");
    let (pair, _) = pair(&[], 0, DATA);
    assert_eq!(reason(Layer::open_sparse(pair, [])), "lsmt.flags");
}

proptest! {
    #[test]
    fn a_device_reads_as_its_layers_were_written(
        layers in proptest::collection::vec(
            proptest::collection::vec((0..30_000_u64, 1..3000_usize, 1..=255_u8, 0..8_u8), 0..12),
            1..5,
        ),
        reads in proptest::collection::vec((0..40_000_usize, 0..5000_usize), 8),
    ) {
        const SIZE: u64 = 33_333;
        let mut want = vec![0_u8; 33_333];
        let mut stack = Vec::new();
        for writes in layers {
            let mut layer = writer(SIZE, &[]);
            // Which sectors the layer maps, and with what.
            let mut mapped: Vec<Option<[u8; 512]>> = vec![None; 66];
            for (offset, len, byte, kind) in writes {
                let first = usize::try_from(offset).unwrap();
                let (from, to) = (first / 512, (first + len).div_ceil(512));
                match kind {
                    0 => {
                        layer.discard(offset, len as u64).unwrap();
                        for at in first..first + len {
                            if let Some(Some(sector)) = mapped.get_mut(at / 512) {
                                sector[at % 512] = 0;
                            }
                        }
                        let whole = first.div_ceil(512)..(first + len) / 512;
                        if let Some(whole) = mapped.get_mut(whole) {
                            whole.fill(None);
                        }
                    }
                    1 => {
                        layer.zero(from as u64 * 512, (to - from) as u64 * 512).unwrap();
                        mapped[from..to].fill(Some([0; 512]));
                    }
                    _ => {
                        layer.write_at(offset, &vec![byte; len]).unwrap();
                        for at in first..first + len {
                            mapped[at / 512].get_or_insert([0; 512])[at % 512] = byte;
                        }
                    }
                }
            }
            for (sector, bytes) in mapped.iter().enumerate() {
                if let Some(bytes) = bytes {
                    let end = (sector * 512 + 512).min(want.len());
                    want[sector * 512..end].copy_from_slice(&bytes[..end - sector * 512]);
                }
            }
            let layer = layer.finish().unwrap();
            stack.push(if stack.len() % 2 == 0 { layer } else { Layer::open(commit(layer)).unwrap() });
        }
        let device = device(stack);
        prop_assert_eq!(&all(&device), &want);
        for (offset, len) in reads {
            let mut found = vec![0xaa; len];
            let read = device.read_exact_at(offset as u64, &mut found);
            match want.get(offset..offset + len) {
                Some(want) => prop_assert_eq!(&found, want),
                None => prop_assert!(read.is_err()),
            }
        }
        let mut merged = Vec::new();
        device.commit(&CommitOptions::default(), &mut merged).unwrap();
        let again = Device::new(vec![Layer::open(merged).unwrap()]).unwrap();
        prop_assert_eq!(&all(&again), &want);
        prop_assert!(again.data(0, SIZE).eq(device.data(0, SIZE)));
    }
}

#[test]
fn the_memory_of_a_layer_that_is_written_is_that_of_its_index() {
    let mut layer = writer(64 << 30, &[]);
    assert_eq!(layer.memory_bytes(), 0);
    // Nothing continues anything, neither on the device nor in the target.
    for n in 0..10_000_u64 {
        layer.map_target(n * 4096, 512, n * 1024).unwrap();
    }
    let sorted = layer.memory_bytes();
    assert!((10_000 * 16..10_000 * 70).contains(&sorted), "{sorted}");
    // What overwrites it in another order is merged on the way.
    for n in (0..10_000_u64).rev() {
        layer.write_at(n * 4096, &[1; 512]).unwrap();
    }
    assert!(layer.memory_bytes() < 4 * sorted, "{} after {sorted}", layer.memory_bytes());
}

/// A file on a full disk: nothing can be written from byte `end` on.
struct Full {
    bytes: Vec<u8>,
    end: u64,
}

impl ReadAt for Full {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.bytes.read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.size_bytes()
    }
}

impl Sink for Full {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        match offset + bytes.len() as u64 <= self.end {
            true => self.bytes.write_at(offset, bytes),
            false => Err(std::io::ErrorKind::StorageFull.into()),
        }
    }

    fn discard(&mut self, offset: u64, len: u64) -> std::io::Result<()> {
        self.bytes.discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        Sink::set_len(&mut self.bytes, len)
    }
}

#[test]
fn a_full_disk_does_not_tear_what_a_layer_with_data_in_its_place_holds() {
    let zeros = vec![0; 8 << 20];
    for kind in [Writable::Sparse, Writable::Turbo] {
        let new = NewUpper { kind, virtual_size: 8 * MIB, uuid: Uuid::NULL, parent_uuid: Uuid::NULL };
        let (mut data, mut index) = (Full { bytes: Vec::new(), end: u64::MAX }, Vec::new());
        let old = writer(8 * MIB, &[(0, &[1; 4096])]).finish().unwrap();
        Upper::create(new, &mut data, &mut index).unwrap().write(&old, &zeros).unwrap();
        let before = (data.bytes.clone(), index.clone());
        // Both what changes and what is new are more than one copy takes.
        let newer = vec![2; 3 << 20];
        let newer = writer(8 * MIB, &[(0, &newer), (4 * MIB, &newer[..1 << 20])]).finish().unwrap();
        for end in [4 * MIB, 2 * MIB, 8192] {
            data.end = end;
            let mut upper = Upper::open(&mut data, &mut index, kind == Writable::Turbo, 0).unwrap();
            assert_eq!(upper.write(&newer, &zeros).unwrap_err().kind(), Kind::Exhausted);
            assert!(data.bytes[..1 << 20] == before.0[..1 << 20] && index == before.1, "{kind:?}");
        }
    }
}

#[test]
fn whole_blocks_of_a_sparse_file_are_written_as_the_device_has_them() {
    // A file system with such blocks has these of the file, once one sector at 200 is written.
    for (block_bytes, want) in [(512, 102_400..106_496), (4096, 102_400..106_496), (16384, 94_208..110_592)] {
        let virtual_size = MIB;
        let new =
            NewUpper { kind: Writable::Sparse, virtual_size, uuid: Uuid::NULL, parent_uuid: Uuid::NULL };
        let (mut data, mut index) = (Vec::new(), Vec::new());
        let mut upper = Upper::create(new, &mut data, &mut index).unwrap();
        upper.set_block_bytes(block_bytes);
        let layer = writer(MIB, &[(200 * 512, &[1; 512])]).finish().unwrap();
        upper.write(&layer, &vec![7; 1 << 20]).unwrap();
        let found = |at: usize| data[4096 + at];
        for at in (0..1 << 20).step_by(512) {
            let byte = if at == 200 * 512 {
                1
            } else if want.contains(&at) {
                7
            } else {
                0
            };
            assert_eq!((found(at), found(at + 511)), (byte, byte), "{block_bytes}: {at}");
        }
    }
}
