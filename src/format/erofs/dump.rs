//! An image as text: one line for each fact, in an order that makes two images comparable line by
//! line.
//!
//! A part that cannot be read is shown as its error; the dump goes on after it.
//!
//! Described in `docs/formats/erofs.md`, "Text".

use std::{
    collections::HashSet,
    fmt::{self, Write as _},
};

use super::{
    Nid,
    compression::Algorithm,
    device::DeviceSlot,
    inode::{Form, Layout},
    reader::{CompressedExtent, Directory, Extent, Image, Node, Place, ReadError, Source},
    superblock::{compat, incompat},
    xattr::Prefix,
};
use crate::{
    format::ReadAt,
    limits::DIRECTORY_DEPTH,
    tree::{Device, FileType, Timestamp, Xattr},
};

/// Extents listed per file. Further ones are only counted.
const EXTENTS: usize = 64;

/// One fact about the image as a whole.
#[derive(Debug)]
pub struct Fact {
    /// Name in the text form, with hyphens. Each device and each name prefix is a fact of its own.
    pub name: &'static str,
    /// Value, whose [`Display`](fmt::Display) is the text form.
    pub value: FactValue,
}

/// The value of a [`Fact`].
#[derive(Debug)]
pub enum FactValue {
    /// Number of things, blocks or bytes.
    Number(u64),
    /// List of names whose order has no meaning. The text form of an empty list is `none`.
    Names(Vec<String>),
    /// Identifier, shown without quotes or escapes.
    Id(String),
    /// Name from the image, without the NULs that pad it.
    Text(Vec<u8>),
    /// Checksum, or the error of reading block 0; `None` where the image has none.
    Checksum(Result<Option<Checksum>, ReadError>),
    /// Time of the image, absolute.
    Time(Timestamp),
    /// Time stored as seconds after the epoch of the image.
    AfterEpoch {
        /// Epoch of the image.
        epoch: Timestamp,
        /// Seconds after the epoch, unsigned.
        seconds: u32,
    },
    /// Compression algorithms, or the error of reading their configurations.
    Compression {
        /// Value of `available_compr_algs` in the superblock.
        bits: u16,
        /// Algorithms that `bits` names, or the error of reading their configurations.
        algorithms: Result<Vec<Algorithm>, ReadError>,
    },
    /// Long prefix of extended attribute names.
    XattrPrefix {
        /// Prefix that every image knows, such as `user.`.
        base: Prefix,
        /// Bytes after the base prefix.
        infix: Vec<u8>,
    },
    /// Slot of an extra device.
    Device(DeviceSlot),
}

/// Stored and computed checksum of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Number in the superblock.
    pub stored: u32,
    /// CRC-32C of the covered bytes.
    pub computed: u32,
}

impl fmt::Display for FactValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Names(names) => f.write_str(&joined(names)),
            Self::Id(id) => f.write_str(id),
            Self::Text(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Self::Checksum(Err(error)) => write!(f, "{error}"),
            Self::Checksum(Ok(None)) => f.write_str("none"),
            Self::Checksum(Ok(Some(Checksum { stored, computed }))) => match stored == computed {
                true => write!(f, "{stored:#010x}"),
                false => write!(f, "{stored:#010x}, but {computed:#010x} is right"),
            },
            Self::Time(time) => write!(f, "{time}"),
            Self::AfterEpoch { seconds, .. } => write!(f, "epoch + {seconds}"),
            Self::Compression { bits, algorithms: Err(error) } => write!(f, "{bits:#x}, {error}"),
            Self::Compression { algorithms: Ok(algorithms), .. } => {
                f.write_str(&joined(&algorithms.iter().map(|found| found.as_str()).collect::<Vec<_>>()))
            }
            Self::XattrPrefix { base, infix } => {
                write!(f, "\"{}{}\"", base.as_bytes().escape_ascii(), infix.escape_ascii())
            }
            Self::Device(DeviceSlot { tag, blocks, unified_start }) => {
                write!(f, "blocks={blocks} start={unified_start} tag=\"{}\"", unpadded(tag).escape_ascii())
            }
        }
    }
}

/// Joins words with spaces; `none` for no words.
fn joined<T: AsRef<str>>(words: &[T]) -> String {
    match words {
        [] => "none".to_owned(),
        words => words.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "),
    }
}

/// Lists the facts of the superblock and its tables, in the order of their fields.
pub fn facts<R: ReadAt>(image: &Image<R>) -> Vec<Fact> {
    use FactValue::Number;
    let superblock = image.superblock();
    let checksum = image.checksum();
    let checksum = checksum.map(|sums| sums.map(|(stored, computed)| Checksum { stored, computed }));
    let epoch = Timestamp { seconds: superblock.epoch, nanoseconds: superblock.fixed_nsec };
    let compression = FactValue::Compression {
        bits: superblock.compression,
        algorithms: image.compression().map(|compression| compression.algorithms),
    };
    let mut facts = Vec::new();
    let mut fact = |name, value| facts.push(Fact { name, value });
    fact("checksum", FactValue::Checksum(checksum));
    fact("features", FactValue::Names(features(superblock.feature_compat, &compat::NAMES)));
    fact("incompatible-features", FactValue::Names(features(superblock.feature_incompat, &incompat::NAMES)));
    fact("block-size", Number(superblock.block_bits.size()));
    fact("blocks", Number(superblock.blocks));
    fact("file-size", Number(image.size_bytes()));
    fact("root", Number(superblock.root.0));
    fact("inodes", Number(superblock.inos));
    fact("epoch", FactValue::Time(epoch));
    fact("build-time", FactValue::AfterEpoch { epoch, seconds: superblock.build_time });
    fact("metadata-block", Number(superblock.meta_block.into()));
    fact("xattr-block", Number(superblock.xattr_block.into()));
    fact("uuid", FactValue::Id(uuid(superblock.uuid)));
    fact("volume-name", FactValue::Text(unpadded(&superblock.volume_name).to_vec()));
    fact("compression", compression);
    for (base, infix) in image.name_prefixes() {
        fact("xattr-prefix", FactValue::XattrPrefix { base, infix: infix.to_vec() });
    }
    if superblock.packed_nid != 0 {
        fact("packed-file", Number(superblock.packed_nid));
    }
    for slot in image.slots() {
        fact("device", FactValue::Device(*slot));
    }
    facts
}

/// Names of the set feature bits, joined as a sentence lists them; `none` for no bit.
pub fn feature_names(bits: u32, table: &[(u32, &str)]) -> String {
    joined(&features(bits, table))
}

/// Names of the set feature bits; a bit without a name in hexadecimal.
fn features(bits: u32, table: &[(u32, &str)]) -> Vec<String> {
    let mut rest = bits;
    let mut found = Vec::new();
    for (bit, name) in table {
        if rest & bit != 0 {
            found.push((*name).to_owned());
            rest &= !bit;
        }
    }
    if rest != 0 {
        found.push(format!("{rest:#x}"));
    }
    found
}

/// Cuts the NULs that pad a text.
pub fn unpadded(padded: &[u8]) -> &[u8] {
    let end = padded.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    padded.get(..end).unwrap_or_default()
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        let hyphen = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{hyphen}{byte:02x}");
    }
    text
}

/// Name in an image, with what it leads to; its text form is one line.
#[derive(Debug)]
pub struct Entry {
    /// Path from the root, with a slash in front.
    pub path: Vec<u8>,
    /// Inode number in the directory's record.
    pub nid: Nid,
    /// Details of the inode, or the error of reading it.
    pub inode: Result<Details, ReadError>,
}

/// Inode with its attributes and data places.
#[derive(Debug)]
pub struct Details {
    /// Decoded inode and its place in the image.
    pub node: Node,
    /// Target of a symbolic link, 1 to 4095 bytes.
    pub target: Option<Vec<u8>>,
    /// Extended attributes in the order of their names.
    pub xattrs: Vec<Xattr>,
    /// First extents of uncompressed data, at most 64.
    pub extents: Vec<Extent>,
    /// First extents of compressed data, at most 64.
    pub compressed: Vec<CompressedExtent>,
    /// Number of extents not listed.
    pub more_extents: u64,
    /// Error that ended the list of extents.
    pub data_error: Option<ReadError>,
}

impl Entry {
    /// Reads the inode `nid`, which `path` names; the root's path is empty.
    pub fn read<R: ReadAt>(image: &Image<R>, path: &[u8], nid: Nid) -> Self {
        let inode = image.node(nid).and_then(|node| Details::read(image, node));
        Self { path: if path.is_empty() { b"/".to_vec() } else { path.to_vec() }, nid, inode }
    }
}

impl Details {
    /// Reads attributes, target and extents of `node`.
    pub fn read<R: ReadAt>(image: &Image<R>, node: Node) -> Result<Self, ReadError> {
        let target = match node.inode.file_type {
            FileType::Symlink => Some(image.symlink_target(&node)?),
            _ => None,
        };
        let mut xattrs = image.xattrs(&node)?;
        xattrs.sort_unstable();
        let (mut extents, mut more_extents, mut data_error) = (Vec::new(), 0, None);
        let mut compressed = Vec::new();
        if matches!(node.inode.data.layout(), Layout::CompressedFull | Layout::CompressedCompact) {
            match image.compressed_extents(&node) {
                Ok(map) => {
                    for extent in map {
                        match extent {
                            Ok(extent) if compressed.len() < EXTENTS => compressed.push(extent),
                            Ok(_) => more_extents += 1,
                            Err(error) => data_error = Some(error),
                        }
                    }
                }
                Err(error) => data_error = Some(error),
            }
        } else if matches!(node.inode.file_type, FileType::Regular | FileType::Directory | FileType::Symlink)
        {
            for extent in image.extents(&node, 0) {
                match extent {
                    Ok(extent) if extents.len() < EXTENTS => extents.push(extent),
                    Ok(_) => more_extents += 1,
                    Err(error) => data_error = Some(error),
                }
            }
        }
        Ok(Self { node, target, xattrs, extents, compressed, more_extents, data_error })
    }
}

/// The line for one name. The error that ended its directory follows, if there was one.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" nid={}", self.path.escape_ascii(), self.nid)?;
        match &self.inode {
            Ok(details) => write!(f, " {details}"),
            Err(error) => write!(f, " error: {error}"),
        }
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inode = &self.node.inode;
        let attributes = inode.attributes;
        write!(
            f,
            "{} {:04o} {}:{}",
            type_name(inode.file_type),
            attributes.mode,
            attributes.uid,
            attributes.gid
        )?;
        write!(f, " links={} mtime={}", inode.nlink, attributes.mtime)?;
        if let super::inode::Data::Device(Device { major, minor }) = inode.data {
            write!(f, " device={major}:{minor}")?;
        } else {
            write!(f, " size={} {}", inode.size_bytes, inode.data.layout().as_str())?;
        }
        if self.node.form == Form::Compact {
            f.write_str(" compact")?;
        }
        if let Some(target) = &self.target {
            write!(f, " target=\"{}\"", target.escape_ascii())?;
        }
        if !self.xattrs.is_empty() {
            let list = self.xattrs.iter();
            let list = list.map(|x| format!("{}=\"{}\"", x.name.escape_ascii(), x.value.escape_ascii()));
            write!(f, " xattrs=[{}]", list.collect::<Vec<_>>().join(" "))?;
        }
        let stored = self.extents.iter().map(|extent| place_text(*extent));
        let list: Vec<String> = stored.chain(self.compressed.iter().map(source_text)).collect();
        if !list.is_empty() {
            write!(f, " data=[{}]", list.join(" "))?;
        }
        if self.more_extents > 0 {
            write!(f, " and {} more", self.more_extents)?;
        }
        if let Some(error) = &self.data_error {
            write!(f, " data-error: {error}")?;
        }
        Ok(())
    }
}

/// An extent as `offset+length@place`, the place being a byte of the image or of a device.
fn place_text(Extent { offset, len, place }: Extent) -> String {
    match place {
        Place::Hole => format!("{offset}+{len}@hole"),
        Place::Inline { offset: at } => format!("{offset}+{len}@inline:{at}"),
        Place::Blocks { device: 0, offset: at } => format!("{offset}+{len}@{at}"),
        Place::Blocks { device, offset: at } => format!("{offset}+{len}@device{device}:{at}"),
    }
}

/// A compressed extent as `offset+length@place+encoded:algorithm`, the place being a byte of the image, of a
/// device or of the packed file. `partial` follows where the pcluster decodes to more.
fn source_text(extent: &CompressedExtent) -> String {
    let CompressedExtent { offset, len, source, algorithm, partial } = extent;
    let coding = match algorithm {
        Some(algorithm) => algorithm.as_str(),
        None => "stored",
    };
    let coding = if *partial { format!("{coding},partial") } else { coding.to_owned() };
    match source {
        Source::Hole => format!("{offset}+{len}@hole"),
        Source::Fragment { offset: at } => format!("{offset}+{len}@fragment:{at}"),
        Source::Inline { offset: at, len: encoded } => {
            format!("{offset}+{len}@inline:{at}+{encoded}:{coding}")
        }
        Source::Device { device: 0, offset: at, len: encoded } => {
            format!("{offset}+{len}@{at}+{encoded}:{coding}")
        }
        Source::Device { device, offset: at, len: encoded } => {
            format!("{offset}+{len}@device{device}:{at}+{encoded}:{coding}")
        }
    }
}

/// Name of a file type, as dumps show it.
pub fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::CharDevice => "char-device",
        FileType::BlockDevice => "block-device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Symlink => "symlink",
    }
}

/// Calls `each` for every name from `start` on: a directory before its contents, names in order.
///
/// A directory is entered once, however often it is listed. Holds one block for each level.
pub fn walk<R: ReadAt, E>(
    image: &Image<R>,
    start: Node,
    path: &[u8],
    mut each: impl FnMut(&Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = path.to_vec();
    let mut open: Vec<(Directory<'_, R>, Nid, usize)> = Vec::new();
    let mut entered = HashSet::new();
    let mut enter = |node: &Node, depth: usize| -> Option<Directory<'_, R>> {
        let is_directory = node.inode.file_type == FileType::Directory;
        let shallow = u32::try_from(depth).is_ok_and(|depth| depth <= DIRECTORY_DEPTH);
        (is_directory && shallow && entered.insert(node.position)).then(|| image.directory(node).ok())?
    };
    each(&Entry::read(image, &path, start.nid))?;
    open.extend(enter(&start, 0).map(|directory| (directory, start.nid, path.len())));
    let mut depth = open.len();
    while let Some((directory, own, len)) = open.last_mut() {
        path.truncate(*len);
        let own = *own;
        let nid = match directory.next_child() {
            Ok(None) => {
                open.pop();
                depth -= 1;
                continue;
            }
            Ok(Some(child)) => {
                path.push(b'/');
                path.extend_from_slice(child.name);
                child.nid
            }
            Err(error) => {
                open.pop();
                depth -= 1;
                each(&Entry { path: path.clone(), nid: own, inode: Err(error) })?;
                continue;
            }
        };
        each(&Entry::read(image, &path, nid))?;
        if let Ok(node) = image.node(nid)
            && let Some(directory) = enter(&node, depth)
        {
            open.push((directory, nid, path.len()));
            depth += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::erofs::fixture::sample;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let image = Image::open_despite_checksum(bytes, Vec::new()).unwrap();
        let mut lines: Vec<String> =
            facts(&image).into_iter().map(|fact| format!("{}: {}", fact.name, fact.value)).collect();
        let root = image.root().unwrap();
        let done: Result<(), fmt::Error> = walk(&image, root, b"", |entry| {
            lines.push(entry.to_string());
            Ok(())
        });
        done.unwrap();
        lines
    }

    #[test]
    fn every_fact_and_every_name_is_a_line() {
        let (bytes, _) = sample(12);
        let lines = lines(&bytes);
        let want = [
            "features: sb_chksum mtime xattr_filter",
            "incompatible-features: chunked_file",
            "block-size: 4096",
            "root: 36",
            "inodes: 9",
            "epoch: 0.000000000",
            "uuid: 00000000-0000-0000-0000-000000000000",
            "volume-name: \"\"",
        ];
        for want in want {
            assert!(lines.iter().any(|line| line == want), "{want} is not in {lines:#?}");
        }
        let names: Vec<&str> =
            lines.iter().filter_map(|line| line.strip_prefix('"')?.split('"').next()).collect();
        let want = [
            "/",
            "/!first",
            "/chunks",
            "/dir",
            "/dir/again",
            "/dir/gone",
            "/dir/sda",
            "/fifo",
            "/plain",
            "/tail",
        ];
        assert_eq!(names, want);
        let line = |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap().as_str();
        assert_eq!(
            line("\"/chunks\""),
            "\"/chunks\" nid=139 file 0644 1000:1001 links=1 mtime=1700000000.000000007 size=16387 chunks \
             xattrs=[user.odd=\"v\"] data=[0+8192@81920 8192+8192@hole 16384+3@90112]"
        );
        assert!(
            line("\"/dir/sda\"")
                .ends_with("block-device 0644 1000:1001 links=1 mtime=1700000000.000000007 device=8:300")
        );
        assert!(line("\"/!first\"").contains("size=6 inline target=\"target\" data=[0+6@inline:"));
    }

    #[test]
    fn what_is_broken_is_shown_and_the_rest_as_well() {
        let (mut bytes, at) = sample(12);
        let plain = usize::try_from(at.plain.byte_offset(0)).unwrap();
        bytes[plain] = 0x0b;
        let text = lines(&bytes).join("\n");
        assert!(
            text.contains("\"/plain\" nid=128 error: inode 128: inode format 0x000b has unknown bits"),
            "{text}"
        );
        assert!(text.contains("\"/tail\" nid="), "{text}");
        // A directory that lists itself is entered once.
        let (mut bytes, at) = sample(12);
        let child = usize::try_from(at.directory.byte_offset(0)).unwrap() + 64 + 52 + 2 * 12;
        bytes[child..child + 8].copy_from_slice(&at.directory.0.to_le_bytes());
        let text = lines(&bytes).join("\n");
        assert!(text.contains("\"/dir/again\" nid="), "{text}");
        assert!(!text.contains("/dir/again/"), "{text}");
        // Records out of order end their directory.
        let (mut bytes, _) = sample(12);
        bytes[1152 + 64 + 8 * 12] = b'~';
        let text = lines(&bytes).join("\n");
        assert!(text.contains("error: directory 36, block 0: name"), "{text}");
    }

    #[test]
    fn data_outside_is_shown_beside_everything_else() {
        let (mut bytes, at) = sample(12);
        let plain = usize::try_from(at.plain.byte_offset(0)).unwrap();
        bytes[plain + 0x10..plain + 0x12].fill(0xff);
        let text = lines(&bytes).join("\n");
        assert!(text.contains(" size=12188 plain xattrs=[security.selinux="), "{text}");
        assert!(
            text.contains(" data-error: file data at byte 268431360, 12188 bytes long, is outside"),
            "{text}"
        );
    }

    #[test]
    fn a_second_and_a_half_before_1970_is_shown_as_such() {
        let (mut bytes, at) = sample(12);
        let plain = usize::try_from(at.plain.byte_offset(0)).unwrap();
        bytes[plain + 0x20..plain + 0x28].copy_from_slice(&(-2_i64).to_le_bytes());
        bytes[plain + 0x28..plain + 0x2C].copy_from_slice(&500_000_000_u32.to_le_bytes());
        bytes[1024 + 0x18..1024 + 0x20].copy_from_slice(&(-2_i64).to_le_bytes());
        bytes[1024 + 0x20..1024 + 0x24].copy_from_slice(&500_000_000_u32.to_le_bytes());
        let lines = lines(&bytes);
        assert!(lines.contains(&"epoch: -1.500000000".to_owned()), "{lines:?}");
        let plain = lines.iter().find(|line| line.starts_with("\"/plain\"")).unwrap();
        assert!(plain.contains(" mtime=-1.500000000 "), "{plain}");
    }

    #[test]
    fn a_wrong_checksum_is_shown_with_the_right_one() {
        let (mut bytes, _) = sample(12);
        bytes[1024 + 0x30] = 0xab;
        let lines = lines(&bytes);
        assert!(lines[0].starts_with("checksum: 0x") && lines[0].ends_with(" is right"), "{}", lines[0]);
        assert!(lines.contains(&"uuid: ab000000-0000-0000-0000-000000000000".to_owned()));
    }
}
