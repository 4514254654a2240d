//! Indexed layers that Diff writes, read by Python: the table lists the archive, entry by entry, and the data of every
//! file is found by the table alone.
//!
//! The readers of others, which need a registry or a containerd, are in `integration/tests/containerd/indexed.rs`.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::Path,
    process::Command,
};

use libtest_mimic::Failed;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, makedev};
use serde_json::Value;
use testkit::{Need, Suite, host, random::noise};

pub fn add(suite: &mut Suite) {
    let needs = [Need::Root, Need::Tool("python3"), Need::Tool("zstd"), Need::Xattr("user.probe", b"1")];
    suite.test("python_finds_every_entry_of_the_archive_by_the_table", &needs, python_reads);
}

const CHUNK: usize = 4 << 20;

/// A layer, and entries as `tarfile` reads them and as a table lists them.
const COMMON: &str = r#"
import base64, calendar, hashlib, io, json, struct, subprocess, sys, tarfile, time, zlib
blob = open(sys.argv[1], "rb").read()
report = json.loads(sys.argv[2])
notes = report["annotations"]
digest = lambda data: "sha256:" + hashlib.sha256(data).hexdigest()
unzstd = lambda data: subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout

kinds = {b"0": "reg", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo"}
raw = lambda text: text.encode("utf-8", "surrogateescape")
untar = lambda data: tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape")

def archived(m):
    xattrs = {k[13:]: raw(v) for k, v in m.pax_headers.items() if k.startswith("SCHILY.xattr.")}
    return (m.name, kinds[m.type], m.size, m.mode, m.uid, m.gid, m.mtime, m.linkname, m.devmajor, m.devminor, xattrs)

def listed(e):
    assert e["name"].endswith("/") == (e["type"] == "dir"), e
    time_of = lambda text: calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
    when = time_of(e["modtime"]) if "modtime" in e else 0
    xattrs = {k: base64.b64decode(v, validate=True) for k, v in e.get("xattrs", {}).items()}
    numbers = [e.get(k, 0) for k in ("size", "mode", "uid", "gid")]
    devices = [e.get(k, 0) for k in ("devMajor", "devMinor")]
    return (e["name"].rstrip("/"), e["type"], *numbers, when, e.get("linkName", ""), *devices, xattrs)
"#;

/// Reads a layer by its footer and its table, and compares that with the archive as `tarfile` reads it. Prints the number
/// of entries, of those without data, and of chunks.
const STARGZ: &str = r#"

def members(data):
    found, at = [], 0
    while at < len(data):
        decoder = zlib.decompressobj(31)
        found.append((at, decoder.decompress(data[at:])))
        assert decoder.eof
        at = len(data) - len(decoder.unused_data)
    return found

if blob[:2] == b"\x1f\x8b":
    footer = blob[-51:]
    assert footer[:16] == b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0", footer
    assert footer[32:] == b"STARGZ\x01\0\0\xff\xff" + bytes(8), footer
    start = int(footer[16:32], 16)
    found = members(blob)
    starts = dict(found)
    stream = b"".join(data for _, data in found)
    (entry,) = [m for m in tarfile.open(fileobj=io.BytesIO(starts[start]))]
    assert entry.name == "stargz.index.json" and entry.isreg()
    table = starts[start][512:512 + entry.size]
    assert stream.endswith(starts[start]) and starts[len(blob) - 51] == b""
    piece = lambda at, end: starts[at]
else:
    fields = struct.unpack("<QQQQ8s", blob[-40:])
    start, packed, size, kind, magic = fields
    assert (kind, magic) == (1, b"GnUlInUx") and blob[-48:-40] == b"\x50\x2a\x4d\x18" + struct.pack("<I", 40)
    assert start + packed == len(blob) - 48
    assert blob[start - 8:start] == b"\x50\x2a\x4d\x18" + struct.pack("<I", packed)
    table = unzstd(blob[start:start + packed])
    assert len(table) == size
    assert notes["io.containers.zstd-chunked.manifest-checksum"] == digest(blob[start:start + packed])
    assert notes["io.containers.zstd-chunked.manifest-position"] == f"{start}:{packed}:{size}:1"
    stream = unzstd(blob)
    start -= 8
    piece = lambda at, end: unzstd(blob[at:end])

assert notes["containerd.io/snapshot/stargz/toc.digest"] == digest(table)
assert notes["io.containers.estargz.uncompressed-size"] == str(len(stream)) == str(report["uncompressed_bytes"])
assert digest(stream) == report["diff_id"] and digest(blob) == report["blob_digest"]
table = json.loads(table)
assert table["version"] == 1
entries = table["entries"]
offsets = sorted({e["offset"] for e in entries if "offset" in e} | {start})

archive = untar(stream)
want, data = [], []
for m in archive:
    if m.name == "stargz.index.json" and m.offset_data > len(stream) // 2:
        continue
    want.append(archived(m))
    data.append(archive.extractfile(m).read() if m.isreg() else None)

got = [listed(e) for e in entries if e["type"] != "chunk"]
for a, b in zip(got, want):
    assert a == b, (a, b)
assert len(got) == len(want), (len(got), len(want))

number, at, chunks = -1, 0, 0
for e in entries:
    if e["type"] != "chunk":
        assert number < 0 or at == len(data[number] or b""), e
        number, at = number + 1, 0
    if e["type"] == "reg":
        assert e["digest"] == digest(data[number]), e
        if e.get("size", 0) == 0:
            assert "offset" not in e and "chunkDigest" not in e, e
            continue
    if "offset" in e:
        assert e.get("chunkOffset", 0) == at and "innerOffset" not in e, e
        size = e.get("chunkSize", 0) or len(data[number]) - at
        end = offsets[offsets.index(e["offset"]) + 1]
        chunk = piece(e["offset"], end)[:size]
        assert chunk == data[number][at:at + size] and digest(chunk) == e["chunkDigest"], e
        at, chunks = at + size, chunks + 1
print(len(want), sum(d == b"" for d in data), chunks)
"#;

/// Reads a layer of the containers tools by its annotations, as these do: makes the archive of the chunks and the tar-split
/// data, whose headers the table has to match one by one, and compares it with the archive in the file of the third
/// argument. Prints the number of entries, of those without data, and of chunks.
const CHUNKED: &str = r#"
note = lambda name: notes.pop("io.github.containers.zstd-chunked." + name)
start, packed, size, kind = map(int, note("manifest-position").split(":"))
split_start, split_packed, split_size = map(int, note("tarsplit-position").split(":"))
table = blob[start:start + packed]
assert digest(table) == note("manifest-checksum") and not notes, notes
frame = lambda body: b"\x50\x2a\x4d\x18" + struct.pack("<I", len(body)) + body
split = blob[split_start:split_start + split_packed]
footer = struct.pack("<QQQQQQQ8s", start, packed, size, 1, split_start, split_packed, split_size, b"GNUlInUx")
assert kind == 1 and blob[start - 8:] == frame(table) + frame(split) + frame(footer)
stream = open(sys.argv[3], "rb").read()
assert unzstd(blob) == stream and unzstd(blob[:start - 8]) == stream, "the archive is another one"
assert digest(stream) == report["diff_id"] and digest(blob) == report["blob_digest"]
table = unzstd(table)
assert len(table) == size
table = json.loads(table)
assert table["version"] == 1 and table["tarSplitDigest"] == digest(split), table.keys()
split = unzstd(split)
assert len(split) == split_size

entries, files, chunks, last = {}, {}, 0, 0
for e in table["entries"]:
    if e["type"] != "chunk":
        assert e["name"] not in entries, e
        entries[e["name"]] = e
        assert "modtime" in e, e
        if e["type"] == "reg":
            files[e["name"]] = [e]
    else:
        assert set(e) - {"chunkType"} == {"type", "name", "offset", "chunkSize", "chunkOffset", "chunkDigest"}, e
        files[e["name"]].append(e)
data = {}
for name, parts in files.items():
    file, pieces = parts[0], []
    if file.get("size", 0) == 0:
        assert not {"offset", "endOffset", "digest"} & set(file), file
    else:
        for part, end in zip(parts, [p["offset"] for p in parts[1:]] + [file["endOffset"]]):
            assert last <= part["offset"] < end, (last, part)
            last = end
            piece = unzstd(blob[part["offset"]:end])
            if len(parts) == 1:
                assert "chunkSize" not in part and "chunkDigest" not in part, part
            else:
                assert part.get("chunkOffset", 0) == sum(map(len, pieces)), part
                assert len(piece) == part["chunkSize"] and digest(piece) == part["chunkDigest"], part
                assert part.get("chunkType") == (None if piece.strip(b"\0") else "zeros"), part
            pieces.append(piece)
            chunks += 1
    data[name] = b"".join(pieces)
    assert len(data[name]) == file.get("size", 0), file
    assert not data[name] or digest(data[name]) == file["digest"], file

def crc(data):
    sum = 2**64 - 1
    for byte in data:
        sum ^= byte
        for _ in range(8):
            sum = sum >> 1 ^ (0xD8 << 56 if sum & 1 else 0)
    return (sum ^ 2**64 - 1).to_bytes(8, "big")

made, names, padding, headers = [], [], 0, 0
for position, line in enumerate(split.splitlines()):
    line = json.loads(line)
    assert line["position"] == position
    payload = base64.b64decode(line["payload"] or "", validate=True)
    if line["type"] == 2:
        made.append(payload)
        header = payload[padding:]
        assert len(payload) >= padding and not payload[:padding].strip(b"\0")
        members = [m for m in [untar(header + bytes(1024)).next()] if m]
        assert len(members) == (1 if header.strip(b"\0") else 0)
        padding = 0
        for m in members:
            # The table of Python has no slashes behind directories; Go's has.
            name = m.name + "/" if m.isdir() else m.name
            assert archived(m) == listed(entries[name]), (archived(m), entries[name])
            padding, headers = -m.size % 512 if m.isreg() else 0, headers + 1
    else:
        assert line["type"] == 1 and line["name"] in entries
        names.append(line["name"])
        body = data.get(line["name"], b"")
        assert line.get("size", 0) == len(body) and ("size" in line) == bool(body), line
        assert payload == crc(body) if 0 < len(body) < 5000 else len(payload) == 8 * bool(body), line
        made.append(body)
assert names == list(entries) and headers == len(entries)
assert b"".join(made) == stream, "the archive that is made again is another one"
print(len(entries), sum(d == b"" for d in data.values()), chunks)
"#;

fn set_time(path: &Path, seconds: i64, nanoseconds: u32) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes a tree and another that it became: every type of file, sizes around those of pieces, attributes at the edges.
fn make_trees(older: &Path, newer: &Path) {
    for dir in ["gone", "opaque", "kept"] {
        fs::create_dir_all(older.join(dir)).unwrap();
        fs::write(older.join(dir).join("file"), dir).unwrap();
    }
    fs::create_dir_all(newer.join("kept")).unwrap();
    fs::create_dir_all(newer.join("sizes")).unwrap();
    for len in [0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5] {
        fs::write(newer.join("sizes").join(len.to_string()), noise(len, len as u64)).unwrap();
    }
    let sparse = fs::File::create(newer.join("sparse")).unwrap();
    sparse.set_len(CHUNK as u64 + 9).unwrap();
    fs::hard_link(newer.join("sizes/513"), newer.join("a-second-name")).unwrap();
    fs::hard_link(newer.join("sizes/0"), newer.join("z-second-name")).unwrap();
    symlink("t".repeat(900), newer.join("long-link")).unwrap();
    symlink("../..", newer.join("up")).unwrap();
    let long = newer.join("d".repeat(120)).join("e".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("file"), "at a long path").unwrap();
    fs::write(newer.join("odd \u{fc}\t\"\\<&>\u{2028}\u{1f980}"), "name").unwrap();
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("char", FileType::CharacterDevice, makedev(300, 70_000)),
        ("block", FileType::BlockDevice, makedev(8, 257)),
    ] {
        rustix::fs::mknodat(CWD, newer.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    let (first, second) = (newer.join("sizes/1"), newer.join("sizes/511"));
    let (uid, gid) = (Uid::from_raw(4_000_000_000), Gid::from_raw(3_000_000_000));
    rustix::fs::chownat(CWD, &first, Some(uid), Some(gid), AtFlags::empty()).unwrap();
    rustix::fs::chmod(&first, Mode::from_raw_mode(0o6755)).unwrap();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let every_byte: Vec<u8> = (0..=255).collect();
    for (name, value) in [
        ("security.capability", &capability[..]),
        ("user.bytes", &every_byte),
        ("user.empty", b""),
        ("user.with \u{fc}", b"1"),
    ] {
        rustix::fs::setxattr(&first, name, value, XattrFlags::empty()).unwrap();
    }
    set_time(&first, 1_234_567_890, 999_999_999);
    set_time(&second, -5, 7);
    set_time(&newer.join("sizes/512"), 5_000_000_000, 0);
    set_time(&newer.join("sizes/513"), 0, 0);
    set_time(&newer.join("up"), 0, 500_000_000);
}

fn python_reads() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let (older, newer) = (scratch.path().join("older"), scratch.path().join("newer"));
    make_trees(&older, &newer);
    // Directories of overlayfs: an upper one that deletes and replaces.
    let upper = scratch.path().join("upper");
    fs::create_dir_all(upper.join("opaque"))?;
    rustix::fs::setxattr(upper.join("opaque"), "user.overlay.opaque", b"y", XattrFlags::empty())?;
    let whiteout = upper.join("gone");
    rustix::fs::mknodat(CWD, whiteout, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?;
    for (sides, whiteouts) in [
        (&[OsStr::new("none"), newer.as_os_str()][..], 0),
        (&[older.as_os_str(), newer.as_os_str()], 3),
        (&[OsStr::new("--layer"), older.as_os_str(), upper.as_os_str()], 2),
    ] {
        for (kind, script, added) in
            [("estargz", STARGZ, 1), ("zstdchunked", STARGZ, 1), ("zstd:chunked", CHUNKED, 0)]
        {
            let layer = scratch.path().join(kind);
            let diff = |kind: &str, layer: &Path| {
                let mut diff = host::plywood();
                let diff = diff.args(["diff", "--user-xattr", "--json", "-t", kind, "-o"]);
                diff.arg(layer).args(sides).env_remove("SOURCE_DATE_EPOCH").output()
            };
            let output = diff(kind, &layer)?;
            if !output.status.success() {
                return Err(format!("{kind}, {sides:?}: {output:?}").into());
            }
            let plain = scratch.path().join("plain");
            assert!(diff("tar", &plain)?.status.success());
            let script = [COMMON, script].concat();
            let mut python = Command::new("python3");
            python.args(["-c", &script]).arg(&layer).arg(OsStr::from_bytes(&output.stdout)).arg(&plain);
            let said = host::run(&mut python)?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            assert_eq!(report["whiteouts"], whiteouts, "{kind}: {report}");
            let [entries, empty, chunks] = said.split_whitespace().collect::<Vec<_>>()[..] else {
                return Err(said.into());
            };
            // A landmark counts for no entry of the difference.
            assert_eq!(entries.parse::<u64>()?, report["entries"].as_u64().unwrap() + added, "{kind}");
            println!("{kind}: {entries} entries, {empty} of files without data, {chunks} chunks");
        }
    }
    Ok(())
}
