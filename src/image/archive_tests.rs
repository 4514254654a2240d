use std::io::Write as _;

use super::*;
use crate::error::Kind;

/// One member as a test writes it.
enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Symlink(&'a str, &'a str),
    Link(&'a str, &'a str),
    Directory(&'a str),
    Fifo(&'a str),
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        let (name, kind, data, target): (_, _, &[u8], _) = match entry {
            Entry::File(name, data) => (*name, tar::EntryType::Regular, data, None),
            Entry::Symlink(name, target) => (*name, tar::EntryType::Symlink, &[], Some(*target)),
            Entry::Link(name, target) => (*name, tar::EntryType::Link, &[], Some(*target)),
            Entry::Directory(name) => (*name, tar::EntryType::Directory, &[], None),
            Entry::Fifo(name) => (*name, tar::EntryType::Fifo, &[], None),
        };
        // The builder refuses the names that are to be refused here.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = target {
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<Archive> {
    Archive::new(file(bytes), &Rules::Links, None, &Limits::default(), &Cancel::new())
}

fn open_part(bytes: &[u8]) -> Result<Archive> {
    let rules = Rules::Files { documents: true };
    Archive::new(file(bytes), &rules, None, &Limits::default(), &Cancel::new())
}

#[test]
fn members_are_read_where_they_are_plain_or_compressed() {
    let big = vec![b'x'; 300_000];
    let bytes = archive(&[
        Entry::Directory("./"),
        Entry::File("./a/layer.tar", &big),
        Entry::Symlink("b/layer.tar", "../a/layer.tar"),
        Entry::Link("c", "./b/layer.tar"),
        Entry::File("manifest.json", b"[{}]"),
        Entry::File("empty", b""),
    ]);
    for bytes in [bytes.clone(), gzip(&bytes), [gzip(&bytes[..1000]), gzip(&bytes[1000..])].concat()] {
        let archive = open(&bytes).unwrap();
        assert_eq!(archive.document("manifest.json").unwrap().as_deref(), Some(&b"[{}]"[..]));
        assert_eq!(archive.document("empty").unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(archive.document("none").unwrap(), None);
        let found = archive.find("c").unwrap().unwrap();
        assert_eq!((found.name, found.size_bytes), ("a/layer.tar", 300_000));
        let mut seen = Vec::new();
        let names = ["manifest.json", "a/layer.tar"].map(str::to_owned).into();
        archive
            .visit(&names, &mut |found, bytes| {
                let mut data = Vec::new();
                bytes.read_to_end(&mut data).map_err(unreadable)?;
                seen.push((found.name.to_owned(), data.len()));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [("a/layer.tar".to_owned(), 300_000), ("manifest.json".to_owned(), 4)]);
    }
}

#[test]
fn a_link_out_of_the_archive_is_an_error_only_for_those_who_follow_it() {
    let archive = open(&archive(&[
        Entry::Symlink("out", "/etc/passwd"),
        Entry::Symlink("up", "../x"),
        Entry::Symlink("round", "about"),
        Entry::Symlink("about", "round"),
        Entry::Symlink("dangling", "none"),
        Entry::File("fine", b"x"),
    ]))
    .unwrap();
    assert!(archive.find("fine").unwrap().is_some());
    assert_eq!(archive.find("dangling").unwrap(), None);
    for name in ["out", "up", "round"] {
        assert_eq!(archive.find(name).unwrap_err().reason(), "image.member", "{name}");
    }
}

#[test]
fn a_file_may_come_again_with_the_same_bytes() {
    let layer = vec![b'x'; 5 << 20];
    let bytes = archive(&[
        Entry::File("config", b"{}"),
        Entry::File("layer", &layer),
        Entry::File("./config", b"{}"),
        Entry::File("layer", &layer),
    ]);
    for bytes in [bytes.clone(), gzip(&bytes)] {
        let archive = open(&bytes).unwrap();
        assert_eq!(archive.document("config").unwrap().as_deref(), Some(&b"{}"[..]));
        let mut seen = Vec::new();
        let take = &mut |found: Found<'_>, data: &mut dyn Read| {
            seen.push(found.name.to_owned());
            assert_eq!(data.read_to_end(&mut Vec::new()).unwrap() as u64, found.size_bytes);
            Ok(())
        };
        archive.visit(&["config", "layer"].map(str::to_owned).into(), take).unwrap();
        assert_eq!(seen, ["config", "layer"]);
    }
    assert_eq!(open_part(&bytes).unwrap_err().reason(), "image.member");
}

#[test]
fn members_that_no_archive_of_images_has_are_refused() {
    for entries in [
        &[Entry::File("../escaped", b"x")][..],
        &[Entry::File("/absolute", b"x")],
        &[Entry::File("a/../../b", b"x")],
        &[Entry::Directory("../d")],
        &[Entry::Fifo("fifo")],
        &[Entry::File("twice", b"[1]"), Entry::File("./twice", b"[2]")],
        &[Entry::File("twice", b"[1]"), Entry::File("twice", b"[10]")],
        &[Entry::File("twice", b"[1]"), Entry::Link("a", "twice"), Entry::Link("twice", "a")],
        &[Entry::File("twice", b"1"), Entry::Symlink("twice", "x")],
    ] {
        for bytes in [archive(entries), gzip(&archive(entries))] {
            assert_eq!(open(&bytes).unwrap_err().reason(), "image.member");
        }
    }
    let link = archive(&[Entry::Symlink("a", "b")]);
    assert!(open(&link).is_ok());
    assert_eq!(open_part(&link).unwrap_err().reason(), "image.member");
    let lib = |name| {
        let rules = Rules::Files { documents: false };
        let bytes = archive(&[Entry::File(name, b"{}")]);
        Archive::new(file(&bytes), &rules, None, &Limits::default(), &Cancel::new())
    };
    for name in ["manifest.json", "repositories", "abc.json"] {
        assert_eq!(lib(name).unwrap_err().reason(), "image.member", "{name}");
    }
    assert!(lib("a/json").is_ok() && lib("a/b.json").is_ok());
}

#[test]
fn an_archive_that_is_cut_short_is_refused_wherever_that_is() {
    let whole = archive(&[Entry::File("a", &[1; 2000]), Entry::File("b", &[2; 700])]);
    // The end mark may be missing.
    let end = whole.len() - 1024;
    for len in [100, 600, 512 + 1999, end - 512 - 300, end - 1024 - 512 + 100] {
        assert!(open(&whole[..len]).is_err(), "{len}");
        assert!(open(&gzip(&whole[..len])).is_err(), "{len}, compressed");
    }
    assert!(open(&whole[..end]).is_ok());
    let packed = gzip(&whole);
    for len in [packed.len() / 2, packed.len() - 1] {
        assert!(open(&packed[..len]).unwrap_err().reason().starts_with("codec.gzip."), "{len}");
    }
    let mut damaged = packed.clone();
    let crc = damaged.len() - 8;
    damaged[crc] ^= 1;
    assert_eq!(open(&damaged).unwrap_err().reason(), "codec.gzip.checksum");
    assert!(open(&[whole.clone(), b"bytes after the end".to_vec()].concat()).is_ok());
}

#[test]
fn the_hash_is_that_of_all_bytes_of_the_file() {
    let bytes = [archive(&[Entry::File("a", b"x")]), b"trailing".to_vec()].concat();
    let hash = crate::digest::Digest::sha256(&bytes);
    let part = |expected: &str| {
        let rules = Rules::Files { documents: true };
        Archive::new(file(&bytes), &rules, Some(expected), &Limits::default(), &Cancel::new())
    };
    assert!(part(hash.hex()).is_ok());
    for expected in ["", &hash.hex().to_uppercase(), &"0".repeat(64)] {
        let error = part(expected).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "image.hash"), "{error}");
    }
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let bytes = gzip(&archive(&[Entry::File("zeros", &vec![0; 8 << 20])]));
    let limits = Limits { stream_bytes: 1 << 20, ..Limits::default() };
    let error = Archive::new(file(&bytes), &Rules::Links, None, &limits, &Cancel::new()).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
}

#[test]
fn a_compressed_archive_is_not_read_again_without_end() {
    // Not kept: it does not look like a document.
    let archive = open(&gzip(&archive(&[Entry::File("a", b"not json")]))).unwrap();
    for _ in 0..limits::ARCHIVE_PASSES {
        assert_eq!(archive.document("a").unwrap().as_deref(), Some(&b"not json"[..]));
    }
    assert_eq!(archive.document("a").unwrap_err().reason(), "image.limit");
}

/// 50 MB of headers, made as they are read.
#[test]
fn a_million_members_are_refused_at_the_limit() {
    let count = usize::try_from(limits::ARCHIVE_MEMBERS).unwrap() + 1;
    let mut bytes = Vec::with_capacity(count * 512);
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    for number in 0..count {
        header.set_path(format!("{number}")).unwrap();
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
    }
    assert!(open(&bytes[..(count - 1) * 512]).is_ok());
    let error = open(&bytes).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "image.limit"));
    assert!(error.to_string().contains("100000"), "{error}");
}
