//! Layers of other tools, and damaged ones.

use std::{collections::BTreeMap, fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::*;
use crate::{
    digest::Digest,
    error::{Classify as _, Error, Kind},
    tree::Device,
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A layer, and the annotations of its descriptor.
fn layer(name: &str) -> (Vec<u8>, BTreeMap<String, String>) {
    let json: Value = serde_json::from_slice(&read(&format!("{name}.json"))).unwrap();
    let annotations = json["descriptor"]["annotations"].as_object().unwrap();
    let annotations =
        annotations.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    (read(name), annotations.collect())
}

fn open(blob: &[u8], declared: &Declared) -> Result<(Layout, Toc), StargzError> {
    let layout = Layout::find(&blob, declared)?.expect("it is an indexed layer");
    let json = layout.read_toc(&blob, declared)?.expect("the table is in the blob");
    let toc = Toc::read(&json, layout.payload_end)?;
    Ok((layout, toc))
}

fn check(blob: &[u8], declared: &Declared) -> Result<(Toc, Verified), Error> {
    let (layout, toc) = open(blob, declared)?;
    let verified = verify(&blob, &layout, &toc, &mut |_| Ok(()))?;
    Ok((toc, verified))
}

/// The table as a listing spells it.
fn listed(toc: &Toc) -> Vec<Value> {
    let mut links = BTreeMap::new();
    let shown = |entry: &&Entry| !toc.is_of_the_format(entry);
    let inode = |at: usize| match toc.entries()[at].body {
        Body::HardLink { target } => target,
        _ => at,
    };
    for (at, _) in toc.entries().iter().enumerate().filter(|(_, entry)| shown(entry)) {
        *links.entry(inode(at)).or_insert(0) += 1;
    }
    let line = |(at, entry): (usize, &Entry)| {
        let node = &toc.entries()[inode(at)];
        let attributes = node.attributes;
        let mut line = serde_json::json!({
            "path": format!("/{}", String::from_utf8_lossy(&entry.path)),
            "mode": format!("{:04o}", attributes.mode),
            "uid": attributes.uid,
            "gid": attributes.gid,
            "mtime": attributes.mtime.seconds,
        });
        let mut set = |name: &str, value: Value| line[name] = value;
        let rdev = |device: &Device| format!("{}:{}", device.major, device.minor).into();
        let kind = match &node.body {
            Body::Directory => "dir",
            Body::Regular { size_bytes, .. } => {
                set("size", (*size_bytes).into());
                "reg"
            }
            Body::Symlink { target } => {
                set("target", String::from_utf8_lossy(target).into());
                "symlink"
            }
            Body::CharDevice(device) => {
                set("rdev", rdev(device));
                "char"
            }
            Body::BlockDevice(device) => {
                set("rdev", rdev(device));
                "block"
            }
            Body::Fifo => "fifo",
            Body::HardLink { .. } => panic!("a link to a link"),
        };
        set("type", kind.into());
        if kind != "dir" {
            set("nlink", links[&inode(at)].into());
        }
        if !node.xattrs.is_empty() {
            let pairs = node.xattrs.iter().map(|attribute| {
                (
                    String::from_utf8_lossy(&attribute.name).into_owned(),
                    STANDARD.encode(&attribute.value).into(),
                )
            });
            set("xattrs", Value::Object(pairs.collect()));
        }
        line
    };
    let mut lines: Vec<_> =
        toc.entries().iter().enumerate().filter(|(_, entry)| shown(entry)).map(line).collect();
    lines.sort_by_key(|line| line["path"].as_str().unwrap().to_owned());
    lines
}

fn listing(name: &str) -> Vec<Value> {
    let text = String::from_utf8(read(&format!("listing/{name}.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let explicit = lines.filter(|line| line.get("implicit").is_none());
    let mut lines: Vec<_> = explicit
        .map(|mut line| {
            let object = line.as_object_mut().unwrap();
            object.remove("sha256");
            if object["type"] == "dir" {
                object.remove("nlink");
            }
            line
        })
        .collect();
    lines.sort_by_key(|line| line["path"].as_str().unwrap().to_owned());
    lines
}

const LAYERS: &[(&str, Form, &str)] = &[
    ("estargz/plain.esgz", Form::Estargz, "plain"),
    ("estargz/plain-chunk256k.esgz", Form::Estargz, "plain"),
    ("estargz/eqsize.esgz", Form::Estargz, "eqsize"),
    ("estargz/l1.esgz", Form::Estargz, "l1"),
    ("estargz/l1-prio.esgz", Form::Estargz, "l1"),
    ("estargz/l2.esgz", Form::Estargz, "l2"),
    ("estargz/l2-inner.esgz", Form::Estargz, "l2"),
    ("estargz/l3.esgz", Form::Estargz, "l3"),
    ("zstdchunked/plain-stargz.zc", Form::ZstdStargz, "plain"),
    ("zstdchunked/l1-stargz.zc", Form::ZstdStargz, "l1"),
    ("zstdchunked/plain-containers.zc", Form::ZstdContainers, "plain"),
    ("zstdchunked/l1-containers.zc", Form::ZstdContainers, "l1"),
];

#[test]
fn the_tables_of_other_tools_list_the_files_of_their_layers() {
    for (name, form, list) in LAYERS {
        let (blob, annotations) = layer(name);
        for declared in [Declared::of(&annotations).unwrap(), Declared::default()] {
            let (layout, toc) = open(&blob, &declared).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(layout.form, *form, "{name}");
            let (got, want) = (listed(&toc), listing(list));
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(got, want, "{name}");
            }
            assert_eq!(got.len(), want.len(), "{name}");
        }
    }
}

#[test]
fn every_chunk_of_their_layers_has_the_digest_in_the_table() {
    for (name, ..) in LAYERS {
        let (blob, _) = layer(name);
        let (toc, verified) =
            check(&blob, &Declared::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let chunks: usize = toc.entries().iter().map(|entry| toc.chunks_of(entry).len()).sum();
        assert_eq!(verified.chunks, chunks as u64, "{name}");
        // The digests of whole files are those of an independent reader.
        let text = String::from_utf8(read(&format!(
            "listing/{}.jsonl",
            LAYERS.iter().find(|row| row.0 == *name).unwrap().2
        )));
        for line in text.unwrap().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let path = line["path"].as_str().unwrap().trim_start_matches('/');
            let entry = toc.entries().iter().find(|entry| entry.path == path.as_bytes());
            if let ([only], Some(sum)) =
                (entry.map_or(&[][..], |entry| toc.chunks_of(entry)), line.get("sha256"))
            {
                assert_eq!(Digest::of_sha256(only.digest).hex(), sum.as_str().unwrap(), "{name}: {path}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_any_chunk_is_an_error_that_names_the_file() {
    for (name, ..) in LAYERS {
        let (good, _) = layer(name);
        let (_, toc) = open(&good, &Declared::default()).unwrap();
        for entry in toc.entries().iter().filter(|entry| !toc.chunks_of(entry).is_empty()).step_by(7) {
            for chunk in toc.chunks_of(entry) {
                // Behind the header of the member, where the data of the chunk begins; a frame has a shorter header.
                let inside = if name.ends_with(".zc") { 9 } else { 13 };
                let mut blob = good.clone();
                blob[usize::try_from(chunk.blob_offset).unwrap() + inside] ^= 0x10;
                let outcome = check(&blob, &Declared::default());
                let Err(error) = outcome else { panic!("{name}: a bit of {:?} is wrong", entry.path) };
                assert!(error.reason().starts_with("stargz.chunk."), "{name}: {error}");
            }
        }
        let (declared, mut blob) = (Declared::default(), good.clone());
        let entry = toc.entries().iter().find(|entry| !toc.chunks_of(entry).is_empty()).unwrap();
        let at = usize::try_from(toc.chunks_of(entry)[0].blob_offset).unwrap();
        blob[at + if name.ends_with(".zc") { 9 } else { 13 }] ^= 0x10;
        let error = check(&blob, &declared).unwrap_err().to_string();
        assert!(error.contains(&*String::from_utf8_lossy(&entry.path)), "{name}: {error}");
    }
}

#[test]
fn damaged_and_hostile_layers_are_refused_where_they_have_to_be() {
    let cases: Value = serde_json::from_slice(&read("bad/expect.json")).unwrap();
    let mut reasons = BTreeMap::new();
    for case in cases.as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        let blob = read(&format!("bad/{name}"));
        let annotations = case["tocDigest"].as_str().map(|digest| (TOC_DIGEST.to_owned(), digest.to_owned()));
        let declared = Declared::of(&annotations.into_iter().collect()).unwrap();
        let index = (|| {
            let Some(layout) = Layout::find(&blob, &declared)? else { return Ok(None) };
            let Some(json) = layout.read_toc(&blob, &declared)? else { return Ok(None) };
            Ok::<_, StargzError>(Some(Toc::read(&json, layout.payload_end).map(|toc| (layout, toc))?))
        })();
        let data = |index: &Result<Option<(Layout, Toc)>, StargzError>| match index {
            Ok(Some((layout, toc))) => verify(&blob.as_slice(), layout, toc, &mut |_| Ok(())).map(drop),
            _ => panic!("{name}: no table"),
        };
        let is_right = match case["expect"].as_str().unwrap() {
            "not-estargz" | "error" => !matches!(index, Ok(Some(_))),
            "index-refused" => index.is_err(),
            "index-ok" => data(&index).is_ok(),
            "index-ok,data-error" => matches!(index, Ok(Some(_))) && data(&index).is_err(),
            "index-refused-or-data-error" => index.is_err() || data(&index).is_err(),
            other => panic!("{other}"),
        };
        assert!(is_right, "{name}: {index:?}");
        reasons.insert(name.to_owned(), index.err().map(|error| error.reason()));
    }
    for (name, reason) in [
        ("offset-beyond-end.gz", "stargz.toc.place"),
        ("offset-zero.gz", "stargz.toc.place"),
        ("toc-version-2.esgz", "stargz.toc.version"),
        ("toc-empty.esgz", "stargz.toc.empty"),
        ("chunk-digest-missing.esgz", "stargz.entry.digest"),
        ("digest-bad-form.esgz", "stargz.entry.digest"),
        ("offset-past-toc.esgz", "stargz.entry.offset"),
        ("negative-size.esgz", "stargz.entry.number"),
        ("hole.esgz", "stargz.entry.chunks"),
        ("chunk-first.esgz", "stargz.entry.chunks"),
        ("hardlink-dangling.esgz", "stargz.entry.link"),
        ("hardlink-loop.esgz", "stargz.entry.link"),
        ("hardlink-dir.esgz", "stargz.entry.link"),
        ("type-unknown.esgz", "stargz.entry.type"),
        ("symlink-empty.esgz", "stargz.entry.link"),
        ("name-256.esgz", "stargz.entry.name"),
        ("xattr-not-base64.esgz", "stargz.entry.xattr"),
        ("file-as-parent.esgz", "stargz.entry.parent"),
    ] {
        assert_eq!(reasons[name], Some(reason), "{name}");
    }
}

#[test]
fn ordinary_layers_are_none_and_those_of_related_kinds_are_told_apart() {
    let none = Declared::default();
    for name in ["other/plain.tar.gz", "other/plain.tar.zst"] {
        assert_eq!(Layout::find(&read(name).as_slice(), &none).unwrap(), None, "{name}");
    }
    for blob in [&b""[..], b"x", &[0; 100]] {
        assert_eq!(Layout::find(&blob, &none).unwrap(), None);
    }
    let (stargz, _) = check(&read("other/plain-legacy.stargz"), &none).unwrap();
    assert!(!stargz.entries().is_empty());
    let external = read("other/plain-external.esgz");
    let layout = Layout::find(&external.as_slice(), &none).unwrap().unwrap();
    let want =
        Layout { form: Form::ExternalToc, payload_end: external.len() as u64, toc: None, tar_split: None };
    assert_eq!(layout, want);
    assert_eq!(layout.read_toc(&external.as_slice(), &none).unwrap(), None);
    // The table is the only file of a layer of its own.
    let mut archive = Some(read("other/plain-external.toc.tar.gz"));
    let json = toc_in_archive(&mut || Ok(archive.take().unwrap_or_default())).unwrap().unwrap();
    let toc = Toc::read(&json, layout.payload_end).unwrap();
    assert_eq!(listed(&toc), listing("plain"));
    verify(&external.as_slice(), &layout, &toc, &mut |_| Ok(())).unwrap();
}

#[test]
fn a_table_that_is_not_the_declared_one_is_data_loss() {
    for (name, ..) in LAYERS {
        let (blob, annotations) = layer(name);
        let sum = format!("sha256:{}", "0".repeat(64));
        let is_digest = |name: &str| name.ends_with("digest") || name.ends_with("checksum");
        let wrong = annotations
            .iter()
            .map(|(name, value)| (name.clone(), if is_digest(name) { sum.clone() } else { value.clone() }));
        let declared = Declared::of(&wrong.collect()).unwrap();
        let error = open(&blob, &declared).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "stargz.toc.digest"), "{name}");
    }
}

fn toc(entries: &str) -> Result<Toc, StargzError> {
    Toc::read(format!(r#"{{"version":1,"entries":[{entries}]}}"#).as_bytes(), 1000)
}

#[test]
fn tables_are_bounded() {
    let long = vec![b' '; usize::try_from(crate::limits::STARGZ_TOC_BYTES).unwrap() + 1];
    assert_eq!(Toc::read(&long, 1000).unwrap_err().reason(), "limit.stargz.toc");
    // A footer may promise anything.
    for (compressed, uncompressed) in [(1_u64 << 40, 10_u64), (10, 1 << 40)] {
        let fields = [8, compressed, uncompressed, 1].map(u64::to_le_bytes).concat();
        let blob = [&[0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0][..], &fields, b"GnUlInUx"].concat();
        let error = Layout::find(&blob.as_slice(), &Declared::default()).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stargz.toc"));
    }
    for member in ["x", "name"] {
        let deep = format!(r#"{{"name":"a","{member}":{}{}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
        assert_eq!(
            toc(&deep).unwrap_err().reason(),
            if member == "x" { "stargz.entry.type" } else { "stargz.toc.json" }
        );
    }
}

#[test]
fn long_chains_of_hard_links_take_no_stack_and_no_time() {
    let mut entries = r#"{"name":"l0","type":"reg"}"#.to_owned();
    for n in 1..100_000 {
        entries += &format!(r#",{{"name":"l{n}","type":"hardlink","linkName":"l{}"}}"#, n - 1);
    }
    let started = std::time::Instant::now();
    let toc = toc(&entries).unwrap();
    assert!(toc.entries().iter().skip(1).all(|entry| entry.body == Body::HardLink { target: 0 }));
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn of_entries_with_one_name_the_last_counts() {
    let toc = toc(
        r#"{"name":"a","type":"reg"},{"name":"b","type":"hardlink","linkName":"a"},{"name":"./a","type":"fifo"},
           {"name":"d","type":"dir","mode":448},{"name":"d/x","type":"fifo"},{"name":"d/","type":"dir","mode":511}"#,
    )
    .unwrap();
    let found: Vec<_> = toc.entries().iter().map(|entry| (entry.path.as_slice(), &entry.body)).collect();
    assert_eq!(
        found,
        [
            (&b"b"[..], &Body::HardLink { target: 1 }),
            (b"a", &Body::Fifo),
            (b"d/x", &Body::Fifo),
            (b"d", &Body::Directory)
        ]
    );
    assert_eq!(toc.entries()[3].attributes.mode, 0o777);
}

#[test]
fn a_name_below_something_else_than_a_directory_is_refused_wherever_it_stands() {
    for entries in [
        r#"{"name":"a","type":"fifo"},{"name":"a/b/c","type":"fifo"}"#,
        r#"{"name":"a/b/c","type":"fifo"},{"name":"a-","type":"fifo"},{"name":"a","type":"symlink","linkName":"x"}"#,
        r#"{"name":"a","type":"dir"},{"name":"a/b","type":"fifo"},{"name":"a","type":"fifo"}"#,
    ] {
        assert_eq!(toc(entries).unwrap_err().reason(), "stargz.entry.parent", "{entries}");
    }
    assert!(
        toc(r#"{"name":"a-b","type":"fifo"},{"name":"a","type":"fifo"},{"name":"a0","type":"fifo"}"#).is_ok()
    );
}

#[test]
fn a_written_table_has_files_with_and_without_data() {
    let file = |path: &str, size_bytes| crate::tree::Entry {
        path: path.into(),
        attributes: crate::tree::Attributes::default(),
        xattrs: Vec::new(),
        body: crate::tree::Body::Regular { size_bytes, extents: None },
    };
    let chunk = writer::CHUNK_BYTES as u64;
    let sums: Vec<_> = (0..4_u8).map(|n| Digest::sha256(&[n])).collect();
    let mut table = writer::TocWriter::new(false);
    let mut member = 0;
    for (path, size_bytes) in [("empty", 0), (".wh.gone", 0), ("one", chunk), ("two", chunk + 7), ("last", 0)]
    {
        table.entry(&file(path, size_bytes)).unwrap();
        let mut pieces = Vec::new();
        for offset in (0..size_bytes).step_by(writer::CHUNK_BYTES) {
            let size_bytes = chunk.min(size_bytes - offset);
            pieces.push(writer::Piece { member, offset, size_bytes });
            member += 1;
        }
        table.data(&pieces, (pieces.len() > 1).then_some(&sums[3]));
    }
    let json = table.finish(|at| Some((at as u64 + 1, &sums[at]))).unwrap();
    let toc = Toc::read(&json, 1000).unwrap();
    let found: Vec<_> = toc
        .entries()
        .iter()
        .map(|entry| match entry.body {
            Body::Regular { size_bytes, .. } => {
                (entry.path.as_slice(), size_bytes, toc.chunks_of(entry).len())
            }
            _ => panic!("{entry:?}"),
        })
        .collect();
    let want: &[(&[u8], _, _)] =
        &[(b"empty", 0, 0), (b".wh.gone", 0, 0), (b"one", chunk, 1), (b"two", chunk + 7, 2), (b"last", 0, 0)];
    assert_eq!(found, want);
    // Digests and sizes as the Go writer spells them.
    let document: Value = serde_json::from_slice(&json).unwrap();
    let spelled = document["entries"].as_array().unwrap().iter().map(|entry| {
        (entry["name"].as_str().unwrap(), entry["digest"].as_str(), entry["chunkSize"].as_u64())
    });
    let sums: Vec<_> = sums.iter().map(ToString::to_string).collect();
    let of_nothing = Digest::sha256(b"").to_string();
    let want = [
        ("empty", Some(of_nothing.as_str()), None),
        (".wh.gone", Some(&of_nothing), None),
        ("one", Some(&sums[0]), Some(chunk)),
        ("two", Some(&sums[3]), Some(chunk)),
        ("two", None, None),
        ("last", Some(&of_nothing), None),
    ];
    assert_eq!(spelled.collect::<Vec<_>>(), want);
}

/// The containers tools have cut the same files.
#[test]
fn chunks_of_the_containers_tools_end_where_ours_do() {
    let mut cut = 0;
    for name in ["zstdchunked/l1-containers.zc", "zstdchunked/plain-containers.zc"] {
        let (blob, _) = layer(name);
        let blob = &blob[..];
        let (layout, toc) = open(blob, &Declared::default()).unwrap();
        let mut files: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut take = |same: &[(&Entry, &Chunk)], _, bytes: &[u8]| {
            for (entry, _) in same {
                files.entry(entry.path.clone()).or_default().extend_from_slice(bytes);
            }
            Ok(())
        };
        extract(&blob, &layout, &wanted(&toc), &mut take, &mut |_| Ok(())).unwrap();
        for entry in toc.entries().iter().filter(|entry| !toc.chunks_of(entry).is_empty()) {
            let data = &files[&entry.path];
            let mut sizes = Vec::new();
            let mut take = |cut: chunked::Cut<'_>| -> Result<(), Error> {
                sizes.push(cut.bytes.len() as u64);
                Ok(())
            };
            let mut cutter = chunked::Cutter::new(data.len() as u64, Vec::new());
            cutter.push(data, &mut take).unwrap();
            cutter.end(&mut take).unwrap();
            let want: Vec<_> = toc.chunks_of(entry).iter().map(|chunk| chunk.size_bytes).collect();
            assert_eq!(sizes, want, "{name}: {}", entry.path.escape_ascii());
            cut += sizes.len();
        }
    }
    assert!(cut > 20, "{cut} chunks");
}

/// A layer of the containers tools with another table, and other lines of tar-split data.
fn rewritten(change: impl FnOnce(&mut Value, &mut Vec<Value>)) -> Vec<u8> {
    let (blob, _) = layer("zstdchunked/plain-containers.zc");
    let blob = &blob[..];
    let layout = Layout::find(&blob, &Declared::default()).unwrap().unwrap();
    let json = layout.read_toc(&blob, &Declared::default()).unwrap().unwrap();
    let mut table: Value = serde_json::from_slice(&json).unwrap();
    let place = layout.tar_split.unwrap();
    let start = usize::try_from(place.offset).unwrap();
    let text = zstd::decode_all(&blob[start..start + usize::try_from(place.len).unwrap()]).unwrap();
    let mut lines: Vec<_> =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    change(&mut table, &mut lines);
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let split = chunked::Split {
        packed: zstd::encode_all(text.as_bytes(), 3).unwrap(),
        size_bytes: text.len() as u64,
    };
    if table["tarSplitDigest"].is_string() {
        table["tarSplitDigest"] = Digest::sha256(&split.packed).to_string().into();
    }
    let json = serde_json::to_vec(&table).unwrap();
    let packed = zstd::encode_all(&json[..], 3).unwrap();
    let payload = &blob[..usize::try_from(layout.payload_end).unwrap()];
    let end = chunked::end(&json, packed, split, layout.payload_end);
    let found = [payload, &end.parts.concat()].concat();
    // Annotations and footer say the same.
    let declared = Declared::of(&end.annotations).unwrap();
    let [by_notes, by_footer] =
        [&declared, &Declared::default()].map(|declared| Layout::find(&&found[..], declared).unwrap());
    assert_eq!(by_notes, by_footer);
    found
}

fn check_split(blob: &[u8]) -> Result<bool, Error> {
    let (layout, toc) = open(blob, &Declared::default())?;
    verify_split(&blob, &layout, &toc, &mut |_| Ok(()))
}

#[test]
fn tar_split_data_makes_the_archive() {
    for name in ["zstdchunked/l1-containers.zc", "zstdchunked/plain-containers.zc"] {
        assert!(check_split(&layer(name).0).unwrap(), "{name}");
    }
    for name in ["zstdchunked/l1-stargz.zc", "estargz/l1.esgz"] {
        assert!(!check_split(&layer(name).0).unwrap(), "{name} has none");
    }
    assert!(check_split(&rewritten(|_, _| ())).unwrap());
    // Readers cannot trust such data.
    assert!(!check_split(&rewritten(|table, _| table["tarSplitDigest"] = Value::Null)).unwrap());
}

/// A change of the table and the lines.
type Change = fn(&mut Value, &mut Vec<Value>);

#[test]
fn tar_split_data_of_another_archive_or_table_is_refused() {
    let wrong: [(&str, Change); 12] = [
        ("stargz.tar-split.line", |_, lines| lines[2]["position"] = 7.into()),
        ("stargz.tar-split.line", |_, lines| lines[2]["type"] = 3.into()),
        ("stargz.tar-split.line", |_, lines| lines[0]["payload"] = "????".into()),
        ("stargz.tar-split.line", |_, lines| lines[0]["payload"] = "AAAA".into()),
        ("stargz.tar-split.line", |_, lines| {
            lines.iter_mut().find(|line| line["size"] == 5000).unwrap()["payload"] = "AAAAAAAAAAA=".into();
        }),
        ("stargz.tar-split.line", |_, lines| {
            lines.iter_mut().find(|line| line["size"] == 5000).unwrap()["size"] = 9_000_000.into();
        }),
        ("stargz.tar-split.line", |_, lines| lines.truncate(3)),
        ("stargz.tar-split.entry", |table, _| table["entries"][0]["mode"] = 0o700.into()),
        ("stargz.tar-split.entry", |table, _| table["entries"][1]["modtime"] = "2001-01-01T00:00:00Z".into()),
        ("stargz.tar-split.entry", |table, _| {
            table["entries"][1]["xattrs"] = serde_json::json!({"user.added": ""});
        }),
        ("stargz.tar-split.entry", |table, _| {
            table["entries"]
                .as_array_mut()
                .unwrap()
                .push(serde_json::json!({"type": "dir", "name": "more/"}));
        }),
        ("stargz.tar-split.entry", |table, _| {
            table["entries"].as_array_mut().unwrap().pop();
        }),
    ];
    for (number, (reason, change)) in wrong.into_iter().enumerate() {
        let error = check_split(&rewritten(change)).unwrap_err();
        assert_eq!(error.reason(), reason, "case {number}: {error}");
    }
    let mut damaged = layer("zstdchunked/plain-containers.zc").0;
    let (layout, _) = open(&damaged, &Declared::default()).unwrap();
    let at = usize::try_from(layout.tar_split.unwrap().offset + 50).unwrap();
    damaged[at] ^= 1;
    let error = check_split(&damaged).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "stargz.tar-split.digest"));
}
