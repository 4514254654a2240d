use proptest::prelude::*;

use super::{
    super::trace::{Trace, trace},
    *,
};
use crate::{
    error::{Classify, Kind},
    tree::{Attributes, Xattr},
};

/// Entry with the joined data of its extents.
type Item = (Entry, Vec<u8>);

fn entry(path: &str, body: Body) -> Entry {
    let attributes =
        Attributes { mode: 0o644, uid: 1, gid: 2, mtime: Timestamp { seconds: 3, nanoseconds: 4 } };
    Entry { path: path.into(), attributes, xattrs: Vec::new(), body }
}

fn file(path: &str, data: &[u8]) -> Item {
    let size_bytes = data.len() as u64;
    (entry(path, Body::Regular { size_bytes, extents: None }), data.to_vec())
}

fn stretches(body: &Body) -> Vec<Extent> {
    match body {
        Body::Regular { size_bytes, extents: None } => vec![Extent { offset: 0, len: *size_bytes }],
        Body::Regular { extents: Some(extents), .. } => extents.clone(),
        _ => Vec::new(),
    }
}

/// Writes all items, with data in pieces of `piece` bytes.
fn write(items: &[Item], options: Options, piece: usize) -> Result<Vec<u8>, WriterError> {
    let mut writer = Writer::new(Vec::new(), options);
    for (entry, data) in items {
        writer.entry(entry)?;
        let mut data = &data[..];
        for extent in stretches(&entry.body) {
            let mut offset = extent.offset;
            let (mut now, rest) = data.split_at(usize::try_from(extent.len).unwrap());
            data = rest;
            while !now.is_empty() {
                let (step, rest) = now.split_at(piece.min(now.len()));
                writer.data(offset, step)?;
                (offset, now) = (offset + step.len() as u64, rest);
            }
        }
        if matches!(entry.body, Body::Regular { .. }) {
            writer.end_entry()?;
        }
    }
    writer.finish()
}

/// Entry as it should be read back, with the content of the file, holes filled.
fn want(item: &Item, options: Options) -> (Entry, Vec<u8>) {
    let (mut entry, data) = item.clone();
    if !options.nanoseconds {
        entry.attributes.mtime.nanoseconds = 0;
    }
    entry.xattrs.sort();
    let mut contents = Vec::new();
    let mut data = &data[..];
    for extent in stretches(&entry.body) {
        contents.resize(usize::try_from(extent.offset).unwrap(), 0);
        let (now, rest) = data.split_at(usize::try_from(extent.len).unwrap());
        contents.extend_from_slice(now);
        data = rest;
    }
    match &mut entry.body {
        Body::Regular { size_bytes, extents } => {
            contents.resize(usize::try_from(*size_bytes).unwrap(), 0);
            *extents = None;
        }
        Body::Directory if entry.path.is_empty() => entry.path = b"./".to_vec(),
        Body::Directory => entry.path.push(b'/'),
        Body::Symlink { .. } => entry.attributes.mode = 0o777,
        _ => {}
    }
    (entry, contents)
}

fn read(archive: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let Trace { files, dropped_xattrs, ended, refusal } = trace(archive, 1000);
    assert_eq!((dropped_xattrs, ended, refusal), (0, true, None));
    files
        .into_iter()
        .map(|file| (file.entry, file.runs.into_iter().flat_map(|run| run.1).collect()))
        .collect()
}

#[track_caller]
fn assert_round_trip(items: &[Item]) {
    for options in [Options { nanoseconds: true }, Options::default()] {
        let archive = write(items, options, 700).unwrap();
        assert_eq!(archive, write(items, options, usize::MAX).unwrap(), "pieces make no difference");
        assert_eq!(archive.len() % BLOCK, 0);
        assert!(archive.ends_with(&[0; 2 * BLOCK]));
        let wanted: Vec<_> = items.iter().map(|item| want(item, options)).collect();
        assert_eq!(read(&archive), wanted);
    }
}

/// Types and names of the headers in an archive.
fn headers(archive: &[u8]) -> Vec<(char, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = archive;
    while rest.len() > 2 * BLOCK {
        let header = Header::decode(rest.first_chunk().unwrap()).unwrap();
        found.push((char::from(header.kind), header.name.to_vec()));
        let data = usize::try_from(header.size_bytes).unwrap().next_multiple_of(BLOCK);
        rest = &rest[BLOCK + data..];
    }
    found
}

#[test]
fn every_type_comes_back_as_it_was() {
    let device = Device { major: 4095, minor: (1 << 20) - 1 };
    assert_round_trip(&[]);
    assert_round_trip(&[
        (entry("", Body::Directory), vec![]),
        (entry("dir", Body::Directory), vec![]),
        file("dir/.wh..wh..opq", b""),
        file("dir/.wh.gone", b""),
        file("dir/one", b"1"),
        file("dir/full", &[1; 512]),
        file("dir/more", &[2; 513]),
        (entry("dir/link", Body::Symlink { target: b"../x y".to_vec() }), vec![]),
        (entry("dir/again", Body::HardLink { target: b"dir/one".to_vec() }), vec![]),
        (entry("dir/char", Body::CharDevice(device)), vec![]),
        (entry("dir/block", Body::BlockDevice(Device { major: 8, minor: 0 })), vec![]),
        (entry("dir/pipe", Body::Fifo), vec![]),
    ]);
}

#[test]
fn records_are_written_only_for_what_the_header_cannot_hold() {
    let with = |path: &str, change: &dyn Fn(&mut Entry)| {
        let mut item = file(path, b"");
        change(&mut item.0);
        item
    };
    let long = "d/".repeat(49) + "nn"; // 100 bytes
    let plain = [
        with("a", &|_| {}),
        with(&long, &|_| {}),
        with("a", &|entry| entry.attributes.uid = 0o7_777_777),
        with("a", &|entry| entry.attributes.mtime.seconds = (1 << 33) - 1),
        with("a", &|entry| entry.attributes.mode = 0o7777),
    ];
    for item in plain {
        let archive = write(std::slice::from_ref(&item), Options::default(), 1).unwrap();
        assert_eq!(headers(&archive), [('0', item.0.path.clone())]);
        assert_round_trip(&[item]);
    }
    let extended = [
        with(&(long.clone() + "n"), &|_| {}),
        with("gr\u{fc}n", &|_| {}),
        with("a", &|entry| entry.attributes.uid = 0o10_000_000),
        with("a", &|entry| entry.attributes.gid = u32::MAX - 1),
        with("a", &|entry| entry.attributes.mtime = Timestamp { seconds: -1, nanoseconds: 1 }),
        with("a", &|entry| entry.attributes.mtime.seconds = 1 << 33),
        with("a", &|entry| entry.body = Body::Symlink { target: vec![b't'; 101] }),
        with("a", &|entry| entry.body = Body::HardLink { target: b"\xff".to_vec() }),
        with("a", &|entry| {
            entry.xattrs = vec![
                Xattr { name: b"user.z".to_vec(), value: b"\0\n=".to_vec() },
                Xattr { name: b"security.empty".to_vec(), value: vec![] },
            ];
        }),
    ];
    for item in extended {
        let archive = write(std::slice::from_ref(&item), Options::default(), 1).unwrap();
        let kinds: Vec<char> = headers(&archive).into_iter().map(|header| header.0).collect();
        assert_eq!(kinds, ['x', kind(&item.0.body).into()]);
        assert_round_trip(&[item]);
    }
    let nanoseconds = write(&[with("a", &|_| {})], Options { nanoseconds: true }, 1).unwrap();
    assert_eq!(headers(&nanoseconds).len(), 2);
}

/// Spelling of Go's `archive/tar` for the same header with `Format: FormatPAX`, derived from its
/// `writer.go`: records sorted, names without bytes that are not ASCII, zeros for numbers that do
/// not fit.
#[test]
fn an_extended_header_is_spelled_like_gos() {
    let mut item = file("d\u{e4}r/x", b"data");
    item.0.attributes =
        Attributes { mode: 0o4755, uid: 3_000_000, gid: 0, mtime: Timestamp { seconds: -7, nanoseconds: 9 } };
    item.0.xattrs = vec![Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() }];
    let archive = write(&[item, (entry("\u{e4}", Body::Directory), vec![])], Options::default(), 9).unwrap();
    let body = "25 SCHILY.xattr.user.a=1\n12 mtime=-7\n15 path=d\u{e4}r/x\n15 uid=3000000\n";
    assert_eq!(
        headers(&archive),
        [
            ('x', b"dr/PaxHeaders.0/x".to_vec()),
            ('0', b"dr/x".to_vec()),
            ('x', b"/PaxHeaders.0".to_vec()),
            ('5', b"/".to_vec()),
        ]
    );
    assert_eq!(&archive[512..512 + body.len()], body.as_bytes());
    assert_eq!(&archive[512 + body.len()..1024], &vec![0; 512 - body.len()]);
    let header = &archive[1024..1536];
    assert_eq!(&header[100..148], b"0004755\x000000000\x000000000\x0000000000004\x0000000000000\0");
    assert_eq!(&header[156..265], [&b"0"[..], &[0; 100], b"ustar\x0000"].concat());
    assert_eq!(&header[265..], [&[0; 64][..], b"0000000\x000000000\0", &[0; 167]].concat());
}

#[test]
fn holes_are_written_as_zeros() {
    let sparse = |size_bytes: u64, extents: &[(u64, u64)]| {
        let extents: Vec<_> = extents.iter().map(|&(offset, len)| Extent { offset, len }).collect();
        let data = vec![7; usize::try_from(extents.iter().map(|extent| extent.len).sum::<u64>()).unwrap()];
        (entry("sparse", Body::Regular { size_bytes, extents: Some(extents) }), data)
    };
    assert_round_trip(&[sparse(0, &[])]);
    assert_round_trip(&[sparse(1, &[])]);
    assert_round_trip(&[sparse(200_000, &[])]);
    assert_round_trip(&[sparse(200_000, &[(0, 1), (512, 512), (100_000, 1), (199_999, 1)])]);
    assert_round_trip(&[sparse(100, &[(10, 10), (20, 10), (30, 0), (90, 10)])]);
}

#[test]
fn data_that_was_not_announced_is_refused() {
    let sparse = Body::Regular { size_bytes: 100, extents: Some(vec![Extent { offset: 50, len: 10 }]) };
    let whole = Body::Regular { size_bytes: 100, extents: None };
    let attempt = |body: &Body, pieces: &[(u64, usize)]| {
        let mut writer = Writer::new(Vec::new(), Options::default());
        writer.entry(&entry("a", body.clone()))?;
        for (offset, len) in pieces {
            writer.data(*offset, &vec![1; *len])?;
        }
        writer.end_entry()
    };
    attempt(&whole, &[(0, 60), (60, 40)]).unwrap();
    attempt(&sparse, &[(50, 5), (55, 5), (60, 0)]).unwrap();
    for (body, pieces) in [
        (&whole, &[(0, 101)][..]),
        (&whole, &[(0, 100), (100, 1)]),
        (&whole, &[(1, 99)]),
        (&whole, &[(0, 50), (49, 51)]),
        (&whole, &[(u64::MAX, 2)]),
        (&sparse, &[(0, 1)]),
        (&sparse, &[(50, 11)]),
        (&sparse, &[(60, 1)]),
        (&sparse, &[(50, 5), (50, 5)]),
    ] {
        let error = attempt(body, pieces).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "tar.write.place"), "{pieces:?}");
    }
    for (body, pieces, missing) in [(&whole, &[(0, 99)][..], 1), (&whole, &[], 100), (&sparse, &[(50, 1)], 9)]
    {
        let error = attempt(body, pieces).unwrap_err();
        assert!(
            matches!(error.problem(), WriterProblem::TooLittle { missing: found, .. } if *found == missing)
        );
    }
    let extents = |extents: &[(u64, u64)]| Body::Regular {
        size_bytes: 100,
        extents: Some(extents.iter().map(|&(offset, len)| Extent { offset, len }).collect()),
    };
    for body in [extents(&[(0, 101)]), extents(&[(50, 10), (40, 5)]), extents(&[(1, u64::MAX)])] {
        assert_eq!(attempt(&body, &[]).unwrap_err().reason(), "tar.write.place");
    }
}

#[test]
fn calls_out_of_order_are_refused() {
    let new = || Writer::new(Vec::new(), Options::default());
    let open = || {
        let mut writer = new();
        writer.entry(&file("a", b"x").0).unwrap();
        writer
    };
    for error in [
        new().data(0, b"").unwrap_err(),
        new().end_entry().unwrap_err(),
        open().entry(&entry("b", Body::Fifo)).unwrap_err(),
        open().finish().unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "tar.write.order"));
    }
}

#[test]
fn what_no_archive_can_hold_is_refused_with_its_name() {
    let refused = |change: &dyn Fn(&mut Entry)| {
        let mut entry = entry("some/name", Body::Fifo);
        change(&mut entry);
        let error = Writer::new(Vec::new(), Options::default()).entry(&entry).unwrap_err();
        assert!(!matches!(error.kind(), Kind::Internal), "{error}");
        error.reason()
    };
    let xattr = |name: &[u8], len: usize| vec![Xattr { name: name.to_vec(), value: vec![0; len] }];
    let symlink = |len: usize| Body::Symlink { target: vec![b't'; len] };
    assert_eq!(refused(&|entry| entry.path = vec![b'n'; 4096]), "tar.name.length");
    assert_eq!(
        refused(&|entry| (entry.path, entry.body) = (vec![b'n'; 4095], Body::Directory)),
        "tar.name.length"
    );
    assert_eq!(refused(&|entry| entry.path.clear()), "tar.name.length");
    assert_eq!(refused(&|entry| entry.path.push(b'/')), "tar.name.slash");
    assert_eq!(refused(&|entry| entry.path.push(0)), "tar.name.nul");
    assert_eq!(refused(&|entry| entry.body = symlink(0)), "tar.link.length");
    assert_eq!(refused(&|entry| entry.body = symlink(4096)), "tar.link.length");
    assert_eq!(refused(&|entry| entry.body = Body::Symlink { target: vec![0] }), "tar.name.nul");
    assert_eq!(refused(&|entry| entry.attributes.gid = u32::MAX), "tar.owner");
    assert_eq!(
        refused(&|entry| entry.body = Body::CharDevice(Device { major: 4096, minor: 0 })),
        "tar.device"
    );
    assert_eq!(
        refused(&|entry| entry.body = Body::BlockDevice(Device { major: 0, minor: 1 << 20 })),
        "tar.device"
    );
    assert_eq!(
        refused(&|entry| entry.body = Body::Regular { size_bytes: 1 << 63, extents: None }),
        "tar.size"
    );
    assert_eq!(refused(&|entry| entry.xattrs = xattr(b"user.a=b", 0)), "tar.xattr.name");
    assert_eq!(refused(&|entry| entry.xattrs = xattr(b"user.a", 65_536)), "xattr.value");
    assert_eq!(
        refused(&|entry| entry.xattrs =
            (0..4).flat_map(|n| xattr(format!("user.{n}").as_bytes(), 65_000)).collect()),
        "limit.xattrs"
    );
    let error = Writer::new(Vec::new(), Options::default()).entry(&entry("a\n/", Body::Fifo)).unwrap_err();
    assert_eq!(error.to_string(), r#""a\n/": the name of something that is no directory ends in a slash"#);
}

#[test]
fn a_sink_that_fails_fails_the_writer() {
    let mut room = [0; 700];
    let mut writer = Writer::new(&mut room[..], Options::default());
    writer.entry(&file("a", &[0; 600]).0).unwrap();
    let error = writer.data(0, &[1; 600]).unwrap_err();
    assert_eq!(error.reason(), "tar.write.sink");
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![8 => b'a'..=b'z', 1 => Just(b'/'), 1 => 1_u8..];
    let name = proptest::collection::vec(byte, 1..140);
    name.prop_map(|mut name| {
        name.push(b'.');
        name
    })
}

fn any_regular() -> impl Strategy<Value = (Body, Vec<u8>)> {
    let regions = proptest::collection::vec((0_u64..1500, 1_u64..1500), 0..5);
    (regions, 0_u64..1500, any::<bool>()).prop_map(|(regions, rest, whole)| {
        let mut end = 0;
        let mut extents = Vec::new();
        let mut data = Vec::new();
        for (gap, len) in regions {
            let gap = if whole { 0 } else { gap };
            extents.push(Extent { offset: end + gap, len });
            data.extend((0..len).map(|at| (end + at).to_le_bytes()[0] | 1));
            end += gap + len;
        }
        let (size_bytes, extents) = if whole { (end, None) } else { (end + rest, Some(extents)) };
        (Body::Regular { size_bytes, extents }, data)
    })
}

fn any_body() -> impl Strategy<Value = (Body, Vec<u8>)> {
    let device = (0..=limits::DEVICE_MAJOR, 0..=limits::DEVICE_MINOR)
        .prop_map(|(major, minor)| Device { major, minor });
    let other = prop_oneof![
        Just(Body::Directory),
        Just(Body::Fifo),
        any_name().prop_map(|target| Body::Symlink { target }),
        any_name().prop_map(|target| Body::HardLink { target }),
        device.clone().prop_map(Body::CharDevice),
        device.prop_map(Body::BlockDevice),
    ];
    prop_oneof![any_regular(), other.prop_map(|body| (body, Vec::new()))]
}

fn any_item() -> impl Strategy<Value = Item> {
    let seconds = prop_oneof![0_i64..1 << 34, -(1_i64 << 40)..1 << 40, any::<i64>().prop_map(|n| n / 2)];
    let id = || prop_oneof![0_u32..5000, 0..u32::MAX];
    let attributes = (0_u16..0o10_000, id(), id(), seconds, 0_u32..1_000_000_000).prop_map(
        |(mode, uid, gid, seconds, nanoseconds)| Attributes {
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanoseconds },
        },
    );
    let value = proptest::collection::vec(any::<u8>(), 0..40);
    let xattrs = proptest::collection::btree_map("user\\.[ -<>-~]{1,20}", value, 0..4);
    (any_name(), attributes, xattrs, any_body()).prop_map(|(path, attributes, xattrs, (body, data))| {
        let mut xattrs: Vec<_> =
            xattrs.into_iter().map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect();
        // The reader drops names that steer overlayfs, and names that not every file can have.
        let is_plain = matches!(body, Body::Regular { .. } | Body::Directory | Body::HardLink { .. });
        xattrs.retain(|xattr| xattr::is_kept(&xattr.name) && is_plain);
        xattrs.reverse();
        (Entry { path, attributes, xattrs, body }, data)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_is_written_is_read_again(items in proptest::collection::vec(any_item(), 0..6)) {
        assert_round_trip(&items);
    }
}
