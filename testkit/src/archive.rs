//! Small archives, their coding and their digests.

use std::{fmt::Write as _, io::Write as _};

use sha2::{Digest as _, Sha256};

/// The SHA-256 of these bytes, as a descriptor spells it.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// An archive with a directory and `files` files of `bytes` bytes each.
pub fn archive(files: usize, bytes: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut entry = |path: &str, kind, mode, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        // mkfs.erofs refuses fields without a number.
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data).unwrap();
    };
    entry("etc/", tar::EntryType::Directory, 0o755, b"");
    for number in 0..files {
        // Different enough that no two files compress into one.
        let data: Vec<u8> =
            (0..bytes).map(|at| u8::try_from((at * 31 + number * 7 + at / 251) % 256).unwrap()).collect();
        entry(&format!("etc/file-{number}"), tar::EntryType::Regular, 0o644, &data);
    }
    builder.into_inner().unwrap()
}

/// `bytes`, compressed.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
