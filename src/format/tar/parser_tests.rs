//! Tests of every rule of `docs/formats/tar.md` on whole archives, accepted and refused.
//!
//! Source: `docs/formats/tar.md`.

use proptest::prelude::*;

use super::{
    super::{Problem, fuzz, header::BLOCK, trace},
    *,
};
use crate::{
    error::{Classify, Kind},
    limits,
    tree::{Attributes, Device, Timestamp, Xattr},
};

/// An archive under construction.
#[derive(Clone, Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    /// Byte at which the last header begins.
    header: usize,
}

impl Archive {
    fn new() -> Self {
        Self::default()
    }

    /// Appends a POSIX header: mode 0644, owner 0:0, time 0.
    fn header(mut self, kind: u8, name: &[u8], size: usize) -> Self {
        self.header = self.bytes.len();
        self.bytes.resize(self.header + BLOCK, 0);
        self.field(0, name)
            .field(100, b"0000644\0")
            .field(124, format!("{size:011o}\0").as_bytes())
            .field(156, &[kind])
            .field(257, b"ustar\x0000")
    }

    /// Overwrites part of the last header and corrects its checksum.
    fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[self.header + at..][..bytes.len()].copy_from_slice(bytes);
        let block = &mut self.bytes[self.header..][..BLOCK];
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn extension(self, kind: u8, body: &[u8]) -> Self {
        self.header(kind, b"././extension", body.len()).body(body)
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', &pax_body(records))
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.header(b'0', name.as_bytes(), data.len()).body(data)
    }

    fn entry(self, kind: u8, name: &str) -> Self {
        self.header(kind, name.as_bytes(), 0)
    }

    fn link(self, kind: u8, target: &[u8]) -> Self {
        self.header(kind, b"link", 0).field(157, target)
    }

    fn zeros(mut self, blocks: usize) -> Self {
        self.bytes.resize(self.bytes.len() + blocks * BLOCK, 0);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Files of the archive. It must be accepted, whole and in pieces, with and without an end
    /// marker.
    fn files(&self) -> Vec<trace::File> {
        fuzz(&self.bytes);
        let ended = self.clone().zeros(2).raw(b"ignored");
        let trace = trace::trace(&ended.bytes, usize::MAX);
        assert_eq!(trace.refusal, None);
        assert!(trace.ended);
        let open = trace::trace(&self.bytes, usize::MAX);
        assert_eq!(open.refusal, None);
        assert_eq!((&open.files, open.ended), (&trace.files, false));
        trace.files
    }

    /// The only entry of the archive.
    fn only(&self) -> Entry {
        let mut files = self.files();
        assert_eq!(files.len(), 1);
        files.remove(0).entry
    }

    fn path(&self) -> String {
        String::from_utf8_lossy(&self.only().path).into_owned()
    }

    /// Reason id of the refusal. The archive has no end marker, so the reason is not a missing end.
    fn reason(&self) -> &'static str {
        self.refusal().reason()
    }

    fn refusal(&self) -> TarError {
        fuzz(&self.bytes);
        trace::trace(&self.bytes, usize::MAX).refusal.expect("the archive is refused")
    }
}

fn pax_body(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest..).find(|len| len.to_string().len() + rest == *len).unwrap();
        body.extend_from_slice(format!("{len} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}

/// Size of a file, and its first run of data.
fn content(file: &trace::File) -> (u64, &[u8]) {
    let Body::Regular { size_bytes, .. } = file.entry.body else { panic!("not a file") };
    (size_bytes, file.runs.first().map_or(&[], |(_, run)| run))
}

#[test]
fn every_kind_of_end_is_an_end() {
    assert_eq!(Archive::new().files(), []);
    let one = Archive::new().file("a", b"data");
    assert_eq!(one.files().len(), 1);
    assert_eq!(trace::trace(&one.clone().zeros(1).bytes, usize::MAX).refusal, None);
    // Padding after the last data may be missing in part or as a whole.
    for len in [BLOCK + 4, BLOCK + 5, 2 * BLOCK - 1] {
        let trace = trace::trace(&one.bytes[..len], usize::MAX);
        assert_eq!((trace.files.len(), trace.refusal), (1, None), "{len}");
    }
    for len in 0..=3 * BLOCK {
        let trace = trace::trace(&vec![0; len], 100);
        let partial = len < 2 * BLOCK && len % BLOCK != 0;
        assert_eq!(trace.refusal.is_some(), partial, "{len} zero bytes");
        assert_eq!(trace.ended, len >= 2 * BLOCK);
    }
}

#[test]
fn an_archive_that_ends_early_is_refused() {
    let one = Archive::new().file("a", b"data");
    for (len, reason) in [
        (1, "tar.truncated.header"),
        (511, "tar.truncated.header"),
        (512, "tar.truncated.data"),
        (515, "tar.truncated.data"),
    ] {
        assert_eq!(Archive::new().raw(&one.bytes[..len]).reason(), reason, "{len}");
    }
    let pax = Archive::new().pax(&[("path", b"a")]).bytes;
    assert_eq!(Archive::new().raw(&pax[..512]).reason(), "tar.truncated.extension");
    assert_eq!(Archive::new().raw(&pax[..519]).reason(), "tar.truncated.extension");
    assert_eq!(Archive::new().raw(&pax[..522]).reason(), "tar.extension.orphan");
    assert_eq!(Archive::new().raw(&pax).zeros(2).reason(), "tar.extension.orphan");
    assert_eq!(one.clone().zeros(1).file("b", b"").reason(), "tar.zero-block");
    assert_eq!(one.clone().zeros(1).raw(&[0; 100]).reason(), "tar.truncated.header");
    assert_eq!(one.raw(&[1; 512]).reason(), "tar.checksum");
}

#[test]
fn a_refusal_says_where_and_what_and_stays() {
    let archive = Archive::new().file("first", &[7; 600]).entry(b'V', "volume\n");
    let refusal = archive.refusal();
    assert_eq!((refusal.header_offset(), refusal.name()), (1536, &b"volume\n"[..]));
    assert_eq!(refusal.kind(), Kind::Malformed);
    assert_eq!(refusal.to_string(), r#"tar header at byte 1536, "volume\n": type "V" is not supported"#);
    let long = Archive::new().extension(b'L', &[b'n'; 4096]).file("", b"").refusal();
    assert_eq!(long.header_offset(), 512 + 4096);
    assert!(long.to_string().len() < 500);
}

#[test]
fn every_type_becomes_what_it_is() {
    let regular = |size_bytes| Body::Regular { size_bytes, extents: None };
    for (archive, want) in [
        (Archive::new().entry(b'0', "a"), regular(0)),
        (Archive::new().file("a", b"x"), regular(1)),
        (Archive::new().entry(0, "a"), regular(0)),
        (Archive::new().entry(b'7', "a"), regular(0)),
        (Archive::new().entry(0, "a/"), Body::Directory),
        (Archive::new().entry(b'5', "a"), Body::Directory),
        (Archive::new().entry(b'5', "a/"), Body::Directory),
        (Archive::new().link(b'1', b"t"), Body::HardLink { target: b"t".to_vec() }),
        (Archive::new().link(b'2', b"../t"), Body::Symlink { target: b"../t".to_vec() }),
        (Archive::new().entry(b'3', "a"), Body::CharDevice(Device::WHITEOUT)),
        (Archive::new().entry(b'4', "a/"), Body::BlockDevice(Device::WHITEOUT)),
        (Archive::new().entry(b'6', "a"), Body::Fifo),
    ] {
        assert_eq!(archive.only().body, want);
    }
    for kind in (0..=u8::MAX).filter(|kind| !b"\x0001234567xgLKS".contains(kind)) {
        assert_eq!(Archive::new().entry(kind, "a").reason(), "tar.type", "{kind}");
    }
    assert_eq!(Archive::new().entry(b'S', "a").reason(), "tar.sparse.gnu");
}

#[test]
fn only_files_have_data() {
    for kind in *b"123456" {
        if !b"25".contains(&kind) {
            let archive = Archive::new().header(kind, b"a", 5).field(157, b"t").body(b"hello");
            assert_eq!(archive.reason(), "tar.body", "{kind}");
        }
        // The PAX record wins over the header.
        let archive = Archive::new().pax(&[("size", b"0")]).header(kind, b"a", 5).field(157, b"t");
        archive.only();
        let archive = Archive::new().pax(&[("size", b"5")]).header(kind, b"a", 0).field(157, b"t");
        assert_eq!(archive.reason(), "tar.body", "{kind}");
    }
    assert_eq!(Archive::new().header(0, b"a/", 5).body(b"hello").reason(), "tar.body");
    for kind in *b"07" {
        assert_eq!(Archive::new().entry(kind, "a/").reason(), "tar.name.slash");
        let long = Archive::new().extension(b'L', b"a/\0").entry(kind, "a");
        assert_eq!(long.reason(), "tar.name.slash");
    }
    assert_eq!(Archive::new().pax(&[("path", b"a/")]).entry(0, "a").only().body, Body::Directory);
}

#[test]
fn a_size_on_what_has_no_data_is_no_size() {
    const V7: &[u8] = &[0; 8];
    const GNU: &[u8] = b"ustar  \0";
    for (kind, dialects) in
        [(b'1', &[V7, GNU][..]), (b'2', &[V7, GNU, b"ustar\x0000"]), (b'5', &[V7, GNU, b"ustar\x0000"])]
    {
        for magic in dialects {
            let link = |size| Archive::new().header(kind, b"a", size).field(157, b"t").field(257, magic);
            assert_eq!(link(5).file("next", b"").files(), link(0).file("next", b"").files(), "{kind}");
            // Data that follows nevertheless is read as a header.
            assert_eq!(link(5).body(b"hello").reason(), "tar.checksum", "{kind}");
        }
    }
    for (kind, magic) in [(b'3', GNU), (b'4', V7), (b'6', GNU), (b'1', b"ustar\x0000")] {
        let archive = Archive::new().header(kind, b"a", 5).field(157, b"t").field(257, magic);
        assert_eq!(archive.file("next", b"").reason(), "tar.body", "{kind}");
    }
}

#[test]
fn attributes_that_no_file_can_have_are_counted_or_refused() {
    let (user, acl) = ("SCHILY.xattr.user.a", "SCHILY.xattr.system.posix_acl_default");
    for (kind, kept) in [(b'0', 2), (b'5', 2), (b'2', 1), (b'3', 1), (b'4', 1), (b'6', 1)] {
        let records: &[(&str, &[u8])] = &[(user, b"1"), (acl, b""), ("SCHILY.xattr.trusted.a", b"1")];
        let archive = Archive::new().pax(records).header(kind, b"a", 0).field(157, b"t");
        let trace = trace::trace(&archive.bytes, 1000);
        assert_eq!(trace.files[0].entry.xattrs.len(), kept, "{kind}");
        assert_eq!(trace.dropped_xattrs, 3 - u64::try_from(kept).unwrap(), "{kind}");
    }
    for (key, value) in [("SCHILY.xattr.security.capability", &b"\x01\0"[..]), (acl, b"\x02\0\0")] {
        let archive = |kind| Archive::new().pax(&[(key, value)]).header(kind, b"a", 0).field(157, b"t");
        assert_eq!(archive(b'0').reason(), "xattr.invalid");
        // Attributes of a hard link's entry have no meaning.
        assert!(matches!(archive(b'1').only().body, Body::HardLink { .. }));
    }
}

#[test]
fn a_symbolic_link_has_mode_0777() {
    for mode in [b"0000644\0", b"0007000\0", b"0000777\0"] {
        let link = Archive::new().link(b'2', b"t").field(100, mode);
        assert_eq!(link.only().attributes.mode, 0o777);
    }
}

#[test]
fn a_global_header_needs_no_entry_after_it() {
    let global = |archive: Archive| archive.extension(b'g', &pax_body(&[("comment", b"c")]));
    assert_eq!(global(Archive::new()).files(), []);
    assert_eq!(global(Archive::new().file("a", b"x")).files().len(), 1);
}

#[test]
fn a_name_may_be_given_twice_but_not_another_one() {
    let file = |archive: Archive| archive.file("name", b"");
    let long = |archive: Archive, name: &[u8]| archive.extension(b'L', name);
    let twice = long(long(Archive::new(), b"l\0"), b"l\0junk");
    assert_eq!(file(twice).path(), "l");
    assert_eq!(file(long(long(Archive::new(), b"l\0"), b"m\0")).reason(), "tar.extension.repeated");
    for key in ["path", "GNU.sparse.name"] {
        let named = long(Archive::new().pax(&[(key, b"l")]), b"l\0");
        if key == "path" {
            assert_eq!(file(named).path(), "l");
        } else {
            assert_eq!(file(named).reason(), "tar.sparse.version", "it is no conflict");
        }
    }
    let link = |archive: Archive| archive.link(b'2', b"h").only().body;
    let target = Body::Symlink { target: b"k".to_vec() };
    assert_eq!(link(Archive::new().extension(b'K', b"k\0").extension(b'K', b"k")), target);
    assert_eq!(link(Archive::new().extension(b'K', b"k\0").pax(&[("linkpath", b"k")])), target);
}

#[test]
fn attributes_come_from_the_header_unless_a_record_overrides_them() {
    let header = Archive::new()
        .entry(b'0', "a")
        .field(100, b"0107755\0")
        .field(108, b"0001750\0")
        .field(116, b"\x80\0\0\0\xff\xff\xff\xfe")
        .field(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    let mtime = Timestamp { seconds: -1, nanoseconds: 0 };
    let want = Attributes { mode: 0o7755, uid: 1000, gid: u32::MAX - 1, mtime };
    assert_eq!(header.only().attributes, want);
    let records = pax_body(&[("uid", b"7"), ("gid", b"4294967294"), ("mtime", b"-1.5"), ("uid", b"8")]);
    let archive = Archive::new().extension(b'x', &records).raw(&header.bytes);
    let mtime = Timestamp { seconds: -2, nanoseconds: 500_000_000 };
    assert_eq!(archive.only().attributes, Attributes { mode: 0o7755, uid: 8, gid: u32::MAX - 1, mtime });
}

#[test]
fn owners_and_devices_that_would_wrap_are_refused() {
    let file = || Archive::new().entry(b'0', "a");
    for at in [108, 116] {
        assert_eq!(file().field(at, b"\x80\0\0\0\xff\xff\xff\xff").reason(), "tar.owner");
        assert_eq!(file().field(at, b"\x80\0\0\x01\0\0\0\0").reason(), "tar.owner");
        assert_eq!(file().field(at, b"\xff\xff\xff\xff\xff\xff\xff\xff").reason(), "tar.owner");
    }
    for key in ["uid", "gid"] {
        let archive = |value: &[u8]| Archive::new().pax(&[(key, value)]).entry(b'0', "a");
        assert_eq!(archive(b"4294967295").reason(), "tar.owner");
        assert_eq!(archive(b"4294967296").reason(), "tar.owner");
        assert_eq!(archive(b"-1").reason(), "tar.pax.value");
        // The field of a header that a record overrides may hold any number.
        let at = if key == "uid" { 108 } else { 116 };
        archive(b"1").field(at, b"\xff\xff\xff\xff\xff\xff\xff\xff").only();
    }
    let device =
        |major: &[u8], minor: &[u8]| Archive::new().entry(b'4', "a").field(329, major).field(337, minor);
    let want = Device { major: 4095, minor: (1 << 20) - 1 };
    assert_eq!(device(b"0007777\0", b"3777777\0").only().body, Body::BlockDevice(want));
    assert_eq!(device(b"0010000\0", b"0000000\0").reason(), "tar.device");
    assert_eq!(device(b"0000000\0", b"4000000\0").reason(), "tar.device");
    assert_eq!(device(b"\xff\xff\xff\xff\xff\xff\xff\xff", b"").reason(), "tar.device");
    // Device numbers are read for devices only.
    device(b"0010000\0", b"").field(156, b"0").only();
    assert_eq!(device(b"9", b"").field(156, b"0").reason(), "tar.number");
}

#[test]
fn names_come_from_one_place_only() {
    let prefixed = |archive: Archive| archive.file("name", b"").field(345, b"prefix");
    assert_eq!(prefixed(Archive::new()).path(), "prefix/name");
    // Go before 1.8 wrote a prefix into GNU headers, where other writers put times.
    assert_eq!(prefixed(Archive::new()).field(257, b"ustar  \0").path(), "prefix/name");
    assert_eq!(prefixed(Archive::new()).field(257, b"ustar  \0").field(345, b"000123\0").path(), "name");
    assert_eq!(prefixed(Archive::new()).field(257, &[0; 8]).path(), "name");
    let long_prefix = prefixed(Archive::new()).field(345, &[b'p'; 150]).field(508, b"tar\0");
    assert_eq!(long_prefix.path().len(), 131 + 5);
    assert_eq!(prefixed(Archive::new().pax(&[("path", b"b"), ("path", b"c")])).path(), "c");
    assert_eq!(prefixed(Archive::new().pax(&[("path", b"b"), ("path", b"")])).path(), "prefix/name");
    assert_eq!(prefixed(Archive::new().extension(b'L', b"long\0junk")).path(), "long");
    assert_eq!(prefixed(Archive::new().extension(b'L', b"long")).path(), "long");
    assert_eq!(prefixed(Archive::new().pax(&[("mtime", b"1")]).extension(b'L', b"l\0")).path(), "l");
    assert_eq!(prefixed(Archive::new().extension(b'L', b"l\0").pax(&[("path", b"")])).path(), "l");
    for records in [&[("path", &b"p"[..])][..], &[("GNU.sparse.name", b"p")]] {
        let first = prefixed(Archive::new().pax(records).extension(b'L', b"l\0"));
        assert_eq!(first.reason(), "tar.name.conflict");
        let second = prefixed(Archive::new().extension(b'L', b"l\0").pax(records));
        assert_eq!(second.reason(), "tar.name.conflict");
    }
    let both = Archive::new().pax(&[("linkpath", b"p")]).extension(b'K', b"k\0").link(b'2', b"h");
    assert_eq!(both.reason(), "tar.name.conflict");
    for kind in *b"LK" {
        let mut archive = prefixed(Archive::new().extension(kind, b"long\0"));
        archive.bytes[BLOCK + 9] = b'x';
        archive.only();
        let mut archive = prefixed(Archive::new().extension(kind, b"long"));
        archive.bytes[2 * BLOCK - 1] = b'x';
        assert_eq!(archive.reason(), "tar.gnu.padding");
    }
    for empty in [&b""[..], b"\0", b"\0name\0"] {
        assert_eq!(prefixed(Archive::new().extension(b'L', empty)).reason(), "tar.gnu.name");
        assert_eq!(prefixed(Archive::new().extension(b'K', empty)).reason(), "tar.gnu.name");
    }
}

#[test]
fn names_and_link_targets_are_as_long_as_a_path_at_most() {
    let name = |len: usize| vec![b'n'; len];
    for (len, fits) in [(4095, true), (4096, false)] {
        let archives = [
            Archive::new().extension(b'L', &[&name(len)[..], &[0; 500]].concat()).entry(b'0', "a"),
            Archive::new().pax(&[("path", &name(len))]).entry(b'0', "a"),
        ];
        for archive in archives {
            if fits {
                assert_eq!(archive.path().len(), len)
            } else {
                assert_eq!(archive.reason(), "tar.name.length")
            }
        }
        for kind in *b"12" {
            let archives = [
                Archive::new().extension(b'K', &name(len)).link(kind, b"t"),
                Archive::new().pax(&[("linkpath", &name(len))]).link(kind, b"t"),
            ];
            for archive in archives {
                if fits {
                    archive.only();
                } else {
                    assert_eq!(archive.reason(), "tar.link.length")
                }
            }
        }
    }
    for kind in *b"12" {
        assert_eq!(Archive::new().link(kind, b"").reason(), "tar.link.length");
        let target = Archive::new().pax(&[("linkpath", b"p")]).link(kind, b"").only().body;
        assert!(matches!(target, Body::Symlink { target } | Body::HardLink { target } if target == b"p"));
    }
}

#[test]
fn a_pax_size_belongs_to_the_entry_and_not_to_headers_in_between() {
    let archive = Archive::new()
        .pax(&[("size", b"3")])
        .extension(b'L', b"long name\0")
        .header(b'0', b"a", 77_777)
        .body(b"abc")
        .file("b", b"defg");
    let files = archive.files();
    assert_eq!(files[0].entry.path, b"long name");
    assert_eq!(content(&files[0]), (3, &b"abc"[..]));
    assert_eq!(content(&files[1]), (4, &b"defg"[..]));
}

#[test]
fn extension_headers_are_of_different_kinds_and_followed_by_an_entry() {
    let x = |archive: Archive| archive.pax(&[("uid", b"1")]);
    let g = |archive: Archive| archive.extension(b'g', &pax_body(&[("comment", b"c")]));
    let l = |archive: Archive| archive.extension(b'L', b"l\0");
    let k = |archive: Archive| archive.extension(b'K', b"k\0");
    let file = |archive: Archive| archive.entry(b'0', "a");
    file(g(g(Archive::new()))).only();
    file(k(l(x(g(Archive::new()))))).only();
    file(x(k(l(g(Archive::new()))))).only();
    assert_eq!(file(g(file(x(Archive::new())))).files().len(), 2);
    assert_eq!(file(x(x(Archive::new()))).reason(), "tar.extension.repeated");
    assert_eq!(file(x(l(x(Archive::new())))).reason(), "tar.extension.repeated");
    file(l(l(Archive::new()))).only();
    file(k(k(Archive::new()))).only();
    assert_eq!(file(x(Archive::new().extension(b'x', b""))).reason(), "tar.extension.repeated");
    for own in [x, l, k] {
        assert_eq!(file(g(own(Archive::new()))).reason(), "tar.extension.order");
    }
    for any in [x, l, k] {
        assert_eq!(any(Archive::new()).reason(), "tar.extension.orphan");
        assert_eq!(any(Archive::new()).zeros(1).reason(), "tar.extension.orphan");
    }
    assert_eq!(Archive::new().extension(b'x', b"7 a=b\n").reason(), "tar.pax.record");
    assert_eq!(Archive::new().extension(b'g', b"7 a=b\n").reason(), "tar.pax.record");
    let global = Archive::new().extension(b'g', &pax_body(&[("path", b"p")]));
    assert_eq!(file(global).reason(), "tar.pax.global");
}

#[test]
fn extension_headers_are_limited_in_number_and_in_size() {
    let global = |count: usize| (0..count).fold(Archive::new(), |archive, _| archive.extension(b'g', b""));
    assert_eq!(global(16).entry(b'0', "a").file("b", b"").files().len(), 2);
    assert_eq!(global(17).entry(b'0', "a").reason(), "tar.extension.count");
    global(15).pax(&[]).entry(b'0', "a").only();

    let comment = |len: usize| {
        // The length has eight digits, so that the record's own length is known.
        format!("{len:08} comment={}\n", "c".repeat(len - 18)).into_bytes()
    };
    let limit = limits::TAR_EXTENSION_BYTES;
    Archive::new().extension(b'x', &comment(limit)).entry(b'0', "a").only();
    let refusal = Archive::new().header(b'x', b"", limit + 1).refusal();
    assert_eq!((refusal.reason(), refusal.kind()), ("limit.extension", Kind::Exhausted));
    let half = comment(limit / 2);
    let halves = Archive::new().extension(b'g', &half).extension(b'x', &half);
    halves.clone().entry(b'0', "a").file("b", b"").files();
    assert_eq!(halves.extension(b'L', b"l").reason(), "limit.extension");
    let huge = Archive::new().header(b'L', b"", 0).field(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(huge.reason(), "limit.extension");
}

#[test]
fn an_announced_body_is_not_allocated_before_it_arrives() {
    let mut parser = Parser::new();
    let header = Archive::new().header(b'x', b"", limits::TAR_EXTENSION_BYTES).bytes;
    assert_eq!(parser.next(&mut &header[..]), Ok(None));
    assert_eq!(parser.next(&mut &b"12 "[..]), Ok(None));
    assert!(parser.body.capacity() < 100);
    let archive =
        Archive::new().header(b'0', b"a", 0).field(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    let refusal = archive.refusal();
    assert_eq!(refusal.problem(), &Problem::TruncatedData { missing: (1 << 63) - 1 });
}

#[test]
fn attributes_are_kept_dropped_and_limited() {
    let archive = Archive::new()
        .pax(&[
            ("SCHILY.xattr.user.b", b"1"),
            ("SCHILY.xattr.user.a", b"\0\n="),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.b", b""),
        ])
        .entry(b'5', "a/")
        .pax(&[("SCHILY.xattr.lustre.lov", b"x")])
        .entry(b'0', "b");
    let xattr = |name: &[u8], value: &[u8]| Xattr { name: name.to_vec(), value: value.to_vec() };
    let files = archive.files();
    assert_eq!(files[0].entry.xattrs, [xattr(b"user.a", b"\0\n="), xattr(b"user.b", b"")]);
    assert_eq!(files[1].entry.xattrs, []);
    assert_eq!(trace::trace(&archive.bytes, 7).dropped_xattrs, 2);
    let value = vec![0; 65_000];
    let records: Vec<_> = ["a", "b", "c", "d"].iter().map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|key| (key.as_str(), &value[..])).collect();
    Archive::new().pax(&records[..3]).entry(b'0', "a").only();
    let refusal = Archive::new().pax(&records).entry(b'0', "a").refusal();
    assert_eq!((refusal.reason(), refusal.kind()), ("limit.xattrs", Kind::Exhausted));
}

/// A sparse file of 1 MiB with "hello" at 4096 and "world" at its end, in each version.
fn sparse_archives() -> Vec<Archive> {
    let end = (1 << 20) - 5;
    let size = (1 << 20).to_string();
    let (size, map) = (size.as_bytes(), format!("4096,5,{end},5"));
    let pairs: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", size),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"5"),
        ("GNU.sparse.offset", &map.as_bytes()[7..14]),
        ("GNU.sparse.numbytes", b"5"),
        ("path", b"s"),
    ];
    let comma: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", size),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.map", map.as_bytes()),
        ("path", b"GNUSparseFile.1/s"),
    ];
    let head: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", size),
    ];
    let lines = format!("2\n4096\n5\n{end}\n5\n");
    vec![
        Archive::new().pax(pairs).file("GNUSparseFile.0/s", b"helloworld"),
        Archive::new().pax(comma).file("GNUSparseFile.0/s", b"helloworld"),
        Archive::new()
            .pax(head)
            .header(b'0', b"GNUSparseFile.0/s", BLOCK + 10)
            .body(lines.as_bytes())
            .body(b"helloworld"),
    ]
}

#[test]
fn sparse_files_of_every_version_get_their_holes_back() {
    for archive in sparse_archives() {
        let end = (1 << 20) - 5;
        let archive = archive.file("next", b"data");
        let files = archive.files();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].entry.path, b"s");
        let extents = vec![Extent { offset: 4096, len: 5 }, Extent { offset: end, len: 5 }];
        assert_eq!(files[0].entry.body, Body::Regular { size_bytes: 1 << 20, extents: Some(extents) });
        assert_eq!(files[0].runs, [(4096, b"hello".to_vec()), (end, b"world".to_vec())]);
        assert_eq!(content(&files[1]), (4, &b"data"[..]));
    }
}

#[test]
fn sparse_maps_that_do_not_fit_their_data_are_refused() {
    let head = |size: &[u8], lines: &str, data: &[u8]| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size)];
        Archive::new()
            .pax(records)
            .header(b'0', b"a", lines.len().next_multiple_of(BLOCK) + data.len())
            .body(lines.as_bytes())
            .body(data)
    };
    let regular = |archive: &Archive| match archive.only().body {
        Body::Regular { size_bytes, extents } => (size_bytes, extents),
        other => panic!("{other:?}"),
    };
    assert_eq!(regular(&head(b"9", "0\n", b"")), (9, Some(vec![])));
    assert_eq!(regular(&head(b"0", "1\n0\n0\n", b"")), (0, None));
    assert_eq!(regular(&head(b"4", "2\n0\n2\n2\n2\n", b"data")), (4, None));
    assert_eq!(head(b"9", "1\n0\n5\n", b"data").reason(), "tar.sparse.sum");
    assert_eq!(head(b"9", "1\n0\n3\n", b"data").reason(), "tar.sparse.sum");
    assert_eq!(head(b"3", "1\n0\n4\n", b"data").reason(), "tar.sparse.order");
    assert_eq!(head(b"9", "2\n2\n2\n0\n2\n", b"data").reason(), "tar.sparse.order");
    assert_eq!(head(b"9", "x\n", b"").reason(), "tar.sparse.map");
    assert_eq!(head(b"9", "", b"").reason(), "tar.sparse.map");
    // The map continues in the data, or its padding does.
    assert_eq!(head(b"9", "1\n0\n4", b"").reason(), "tar.sparse.map");
    assert_eq!(head(b"9", "0\n", b"").field(124, b"00000000002\0").reason(), "tar.sparse.map");
    let cut = head(b"9", "1\n0\n4\n", b"data");
    assert_eq!(Archive::new().raw(&cut.bytes[..1536 + 3]).reason(), "tar.truncated.data");
    let refusal = head(b"9", "65537\n", b"").refusal();
    assert_eq!((refusal.reason(), refusal.kind()), ("limit.sparse-regions", Kind::Exhausted));

    let records: &[(&str, &[u8])] = &[("GNU.sparse.name", b"a")];
    assert_eq!(Archive::new().pax(records).entry(b'0', "b").reason(), "tar.sparse.version");
    for kind in *b"123456" {
        let archive = Archive::new().pax(records).entry(kind, "b").field(157, b"t");
        assert_eq!(archive.reason(), "tar.sparse.type", "{kind}");
    }
    for bytes in sparse_archives().iter().map(|archive| &archive.bytes) {
        assert_eq!(Archive::new().raw(&bytes[..bytes.len() - BLOCK + 9]).reason(), "tar.truncated.data");
    }
}

#[test]
fn an_entry_says_where_in_the_archive_its_data_starts() {
    let [old, newer, newest] = sparse_archives().try_into().expect("three versions");
    let archive = Archive::new().file("a", b"1").raw(&old.bytes).raw(&newer.bytes).raw(&newest.bytes);
    let trace = trace::trace(&archive.bytes, 100);
    let starts: Vec<_> = trace.files.iter().map(|file| file.data_start).collect();
    // Two headers and a record precede the sparse files; the newest version has its map before the data, too.
    let second = 1024 + 1536;
    let third = second + old.bytes.len() as u64;
    let fourth = third + newer.bytes.len() as u64 + 512;
    assert_eq!(starts, [512, second, third, fourth]);
    let stored: Vec<_> = trace.files[3].entry.body.stored(fourth).map(|(_, at)| at).collect();
    assert_eq!(stored, [fourth, fourth + 5]);
    assert_eq!(
        Body::Directory.stored(9).count() + Body::Regular { size_bytes: 0, extents: None }.stored(9).count(),
        0
    );
}

#[test]
fn data_is_handed_out_as_slices_of_the_input() {
    let archive = Archive::new().file("a", &[7; 5000]).bytes;
    let mut input = &archive[..];
    let mut parser = Parser::new();
    assert!(matches!(parser.next(&mut input), Ok(Some(Event::Entry { .. }))));
    let Ok(Some(Event::Data { offset: 0, bytes })) = parser.next(&mut input) else { panic!("no data") };
    assert!(std::ptr::eq(bytes, &archive[512..5512]));
    assert_eq!(parser.next(&mut input), Ok(Some(Event::EndOfEntry)));
    assert_eq!(parser.next(&mut input), Ok(None));
    assert!(input.is_empty());
}

/// A part of an archive that is accepted after any other part.
fn part() -> impl Strategy<Value = Archive> {
    let name = || {
        proptest::collection::vec(1..=255_u8, 1..150).prop_map(|mut name| {
            name.push(b'n');
            name
        })
    };
    let size = || prop_oneof![0..20_usize, 500..530_usize, 1020..1030_usize];
    prop_oneof![
        (name(), size()).prop_map(|(name, size)| {
            let data: Vec<u8> = (0..size).map(|n| n.to_le_bytes()[0]).collect();
            Archive::new().pax(&[("path", &name)]).header(b'0', b"", size).body(&data)
        }),
        (name(), name()).prop_map(|(name, target)| {
            Archive::new().extension(b'L', &name).extension(b'K', &target).link(b'2', b"")
        }),
        (name(), 0..4_u8).prop_map(|(name, kind)| {
            Archive::new()
                .extension(b'g', b"6 a=b\n")
                .pax(&[("SCHILY.xattr.user.n", &name)])
                .entry(b'3' + kind, "d")
        }),
        (0..3_usize).prop_map(|version| sparse_archives().remove(version)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_pieces_give_the_same_events(
        parts in proptest::collection::vec(part(), 0..5),
        cut in 0..2000_usize,
        piece in 1..1500_usize,
    ) {
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
        let whole = trace::trace(&bytes, usize::MAX);
        prop_assert_eq!(&whole.refusal, &None);
        prop_assert_eq!(whole.files.len(), parts.len());
        prop_assert_eq!(trace::trace(&bytes, piece), whole);
        bytes.truncate(bytes.len().saturating_sub(cut));
        prop_assert_eq!(trace::trace(&bytes, piece), trace::trace(&bytes, usize::MAX));
    }

    #[test]
    fn damaged_archives_are_read_or_refused(
        parts in proptest::collection::vec(part(), 1..4),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
        for (at, byte, mend) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if mend {
                // With a correct checksum the damage reaches deeper code.
                let header = at / BLOCK * BLOCK;
                let rest = bytes.split_off(header);
                bytes = Archive { bytes: [bytes, rest].concat(), header }.field(0, &[]).bytes;
            }
        }
        fuzz(&bytes);
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_empty(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        fuzz(&bytes);
        let trace = trace::trace(&bytes, usize::MAX);
        prop_assert!(trace.files.is_empty());
    }
}
