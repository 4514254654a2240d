//! Members of an archive: a header combined with the extension headers before it.
//!
//! Source: `docs/formats/tar.md`; POSIX.1-2017 `pax`; GNU tar manual, "GNU tar and POSIX tar" (types
//! `L`, `K`, `S`); Go `archive/tar/reader.go`.

use super::{
    error::Problem,
    header::{self, Header},
    pax::{self, Overrides},
    sparse::Plan,
};
use crate::{
    limits,
    tree::{Attributes, Body, Device, Entry, FileType, Timestamp, Xattr, xattr},
};

/// Extension headers since the last entry.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    headers: u32,
    bytes: u64,
    /// True when one of them belongs to the next entry alone. Only global headers do not.
    own: bool,
    pax: Option<Overrides>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Entry, and what follows it in the archive.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) entry: Entry,
    pub(super) content: Content,
    pub(super) dropped_xattrs: u64,
}

/// Data after a member's header.
#[derive(Debug)]
pub(super) enum Content {
    /// No data: the next header follows.
    Nothing,
    /// Data of a plain file.
    Plain {
        /// Size of the data in bytes.
        size_bytes: u64,
    },
    /// Data of a sparse file, perhaps after its map.
    Sparse {
        /// Sparse records of the extended header.
        plan: Plan,
        /// Bytes stored in the archive, a map included.
        stored: u64,
    },
}

impl Extensions {
    /// True when an entry must follow. Global headers need none.
    pub(super) fn need_entry(&self) -> bool {
        self.own
    }

    /// Decides whether an extension header of type `kind` with a body of `size_bytes` is allowed
    /// here. Returns the size of the body.
    ///
    /// `size_bytes` is that of the extension's own header: a PAX size counts for the entry alone.
    pub(super) fn admit(&mut self, kind: u8, size_bytes: u64) -> Result<usize, Problem> {
        match kind {
            // Readers merge two of these, keep the last, or fail.
            b'x' if self.pax.is_some() => return Err(Problem::ExtensionRepeated { found: kind }),
            // Go forgets the headers before this one.
            b'g' if self.own => return Err(Problem::ExtensionOrder),
            _ => {}
        }
        self.own |= kind != b'g';
        self.headers += 1;
        if self.headers > limits::TAR_EXTENSION_HEADERS {
            return Err(Problem::ExtensionCount);
        }
        self.bytes = self.bytes.saturating_add(size_bytes);
        match (usize::try_from(self.bytes), usize::try_from(size_bytes)) {
            (Ok(all), Ok(size_bytes)) if all <= limits::TAR_EXTENSION_BYTES => Ok(size_bytes),
            _ => Err(Problem::ExtensionSize { size_bytes: self.bytes }),
        }
    }

    /// Reads the body of an allowed extension header. Returns true when only zeros may fill its
    /// last block, because GNU tar looks there for the NUL that a long name lacks.
    pub(super) fn apply(&mut self, kind: u8, body: &[u8]) -> Result<bool, Problem> {
        match kind {
            b'x' => self.pax = Some(Overrides::decode(body)?),
            b'L' => long_name(&mut self.long_name, kind, body)?,
            b'K' => long_name(&mut self.long_link, kind, body)?,
            _ => pax::check_global(body)?,
        }
        Ok(matches!(kind, b'L' | b'K') && !body.contains(&0))
    }

    /// Name of the entry that `header` begins.
    pub(super) fn path(&mut self, header: &Header<'_>) -> Result<Vec<u8>, Problem> {
        let (path, sparse_name) = match &mut self.pax {
            Some(pax) => (pax.path.take(), pax.sparse.as_mut().and_then(|sparse| sparse.name.take())),
            None => (None, None),
        };
        match one_of("name", self.long_name.take(), sparse_name.or(path))? {
            Some(name) => Ok(name),
            None if header.prefix.is_empty() => Ok(header.name.to_vec()),
            None => Ok([header.prefix, b"/", header.name].concat()),
        }
    }

    /// Builds the member. `path` is the result of [`Extensions::path`].
    pub(super) fn member(self, header: &Header<'_>, path: Vec<u8>) -> Result<Member, Problem> {
        if path.len() > limits::PATH_BYTES {
            return Err(Problem::NameLength { found: path.len() });
        }
        let pax = self.pax.unwrap_or_default();
        let link_target = one_of("link target", self.long_link, pax.link_path)?;
        let stored = pax.size_bytes.unwrap_or(header.size_bytes);
        let body = body(header, &path, link_target, stored)?;
        let attributes = Attributes {
            // The kernel gives every symbolic link this mode, whatever an archive says.
            mode: if matches!(body, Body::Symlink { .. }) { Attributes::SYMLINK_MODE } else { header.mode },
            uid: owner("uid", pax.uid.unwrap_or(header.uid))?,
            gid: owner("gid", pax.gid.unwrap_or(header.gid))?,
            mtime: pax.mtime.unwrap_or(Timestamp { seconds: header.mtime, nanoseconds: 0 }),
        };
        let mut xattrs = pax.xattrs;
        xattr::settle(&mut xattrs)?;
        let given = xattrs.len();
        // Attributes of a hard link's entry have no meaning.
        if let Some(file_type) = file_type(&body) {
            keep_settable(&mut xattrs, file_type)?;
        }
        let unsettable = u64::try_from(given - xattrs.len()).unwrap_or(u64::MAX);
        let is_file = matches!(body, Body::Regular { .. });
        if !is_file && pax.sparse.is_some() {
            return Err(Problem::SparseType { found: header.kind });
        }
        // Go continues with the next block, other readers skip the data first.
        if !is_file && stored > 0 {
            return Err(Problem::Body { found: header.kind, size_bytes: stored });
        }
        let content = match pax.sparse {
            Some(records) => Content::Sparse { plan: records.plan()?, stored },
            None if is_file => Content::Plain { size_bytes: stored },
            None => Content::Nothing,
        };
        let entry = Entry { path, attributes, xattrs, body };
        Ok(Member { entry, content, dropped_xattrs: pax.dropped_xattrs.saturating_add(unsettable) })
    }
}

fn file_type(body: &Body) -> Option<FileType> {
    match body {
        Body::Regular { .. } => Some(FileType::Regular),
        Body::Directory => Some(FileType::Directory),
        Body::Symlink { .. } => Some(FileType::Symlink),
        Body::CharDevice(_) => Some(FileType::CharDevice),
        Body::BlockDevice(_) => Some(FileType::BlockDevice),
        Body::Fifo => Some(FileType::Fifo),
        Body::HardLink { .. } => None,
    }
}

/// Drops attributes that a file of this type cannot have.
fn keep_settable(xattrs: &mut Vec<Xattr>, file_type: FileType) -> Result<(), Problem> {
    let mut refused = None;
    xattrs.retain(|Xattr { name, value }| match xattr::is_settable(name, value, file_type) {
        Ok(settable) => settable,
        Err(error) => {
            refused.get_or_insert(error);
            false
        }
    });
    refused.map_or(Ok(()), |error| Err(error.into()))
}

/// Reads the body of a GNU long name header into `place`, which may hold the same name from an
/// earlier one.
fn long_name(place: &mut Option<Vec<u8>>, kind: u8, body: &[u8]) -> Result<(), Problem> {
    match (header::until_nul(body), place.as_deref()) {
        // Go ignores such a header, GNU tar takes the empty name.
        ([], _) => Err(Problem::LongNameEmpty),
        (name, Some(earlier)) if name != earlier => Err(Problem::ExtensionRepeated { found: kind }),
        (name, _) => {
            *place = Some(name.to_vec());
            Ok(())
        }
    }
}

/// Chooses between the names in a GNU header and in a PAX record, which have to be equal.
fn one_of(
    what: &'static str,
    long: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>, Problem> {
    // Go prefers the GNU header, other readers the PAX record.
    match (long, pax) {
        (Some(long), Some(pax)) if long != pax => Err(Problem::NameConflict { what }),
        (long, pax) => Ok(long.or(pax)),
    }
}

fn body(
    header: &Header<'_>,
    path: &[u8],
    link_target: Option<Vec<u8>>,
    size_bytes: u64,
) -> Result<Body, Problem> {
    let link_target = || {
        let target = link_target.unwrap_or_else(|| header.link_name.to_vec());
        if target.is_empty() || target.len() > limits::LINK_TARGET_BYTES {
            return Err(Problem::LinkLength { found: target.len() });
        }
        Ok(target)
    };
    match header.kind {
        // V7 had no type for directories: a slash at the end of the name marked one.
        0 if path.ends_with(b"/") => Ok(Body::Directory),
        // A file for Go, a directory for GNU tar and libarchive.
        b'0' | b'7' if path.ends_with(b"/") => Err(Problem::FileSlash),
        0 | b'0' | b'7' => Ok(Body::Regular { size_bytes, extents: None }),
        b'1' => Ok(Body::HardLink { target: link_target()? }),
        b'2' => Ok(Body::Symlink { target: link_target()? }),
        b'3' => Ok(Body::CharDevice(device(header)?)),
        b'4' => Ok(Body::BlockDevice(device(header)?)),
        b'5' => Ok(Body::Directory),
        b'6' => Ok(Body::Fifo),
        // Many readers take its map, in header blocks of its own, for data.
        b'S' => Err(Problem::SparseGnu),
        // Skipping the entry would lose its content in silence.
        found => Err(Problem::Type { found }),
    }
}

/// System calls take 2^32 - 1 for "no owner".
fn owner(field: &'static str, found: i64) -> Result<u32, Problem> {
    match u32::try_from(found) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Problem::Owner { field, found }),
    }
}

fn device(header: &Header<'_>) -> Result<Device, Problem> {
    let (major, minor) = header.device;
    let within = |found: i64, max: u32| u32::try_from(found).ok().filter(|number| *number <= max);
    match (within(major, limits::DEVICE_MAJOR), within(minor, limits::DEVICE_MINOR)) {
        (Some(major), Some(minor)) => Ok(Device { major, minor }),
        _ => Err(Problem::Device { major, minor }),
    }
}
