//! The tree a layer describes, read from the archive as it streams by: no extraction, one pass.
//!
//! Built on the `tar` crate, which shares no code with ours. It knows what the corpora hold, not
//! everything that tar can spell: what it does not know is an error, never a guess.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use libtest_mimic::Failed;
use testkit::tree::{Kind, Node, Tree, clean, hash, image_of, is_overlay_attribute, split};

/// The tree that an image of this archive must show.
pub fn of_archive(archive: impl Read) -> Result<Tree, Failed> {
    let mut tree = Tree::new();
    let mut next_group = 0;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = clean(&entry.path_bytes());
        let link = entry.link_name_bytes().map(|target| target.into_owned());
        let extra = Extra::of(&mut entry)?;
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let (size_bytes, sha256) = hash(&mut entry)?;
                Kind::Regular { size_bytes, sha256 }
            }
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => Kind::Symlink { target: link.ok_or("a link without target")? },
            tar::EntryType::Link => {
                let target = clean(&link.ok_or("a link without target")?);
                let node = tree.get(&target).ok_or("a link to nothing")?.clone();
                replace(&mut tree, name, node)?;
                continue;
            }
            tar::EntryType::Char => Kind::Char {
                major: header.device_major()?.unwrap_or(0),
                minor: header.device_minor()?.unwrap_or(0),
            },
            tar::EntryType::Block => Kind::Block {
                major: header.device_major()?.unwrap_or(0),
                minor: header.device_minor()?.unwrap_or(0),
            },
            tar::EntryType::Fifo => Kind::Fifo,
            tar::EntryType::XGlobalHeader => continue,
            other => return Err(format!("{}: entry type {other:?}", String::from_utf8_lossy(&name)).into()),
        };
        next_group += 1;
        let node = Node {
            mode: header.mode()? & 0o7777,
            uid: extra.uid.map_or_else(|| header.uid().map(u32::try_from), |id| Ok(Ok(id)))??,
            gid: extra.gid.map_or_else(|| header.gid().map(u32::try_from), |id| Ok(Ok(id)))??,
            mtime: match extra.mtime {
                Some(mtime) => mtime,
                None => (i64::try_from(header.mtime()?)?, 0),
            },
            xattrs: extra.xattrs,
            nlink: 1,
            link_group: if kind == Kind::Directory { 0 } else { next_group },
            kind,
        };
        replace(&mut tree, name, node)?;
    }
    let implied = imply(&mut tree)?;
    Ok(image_of(tree, &implied))
}

/// A later entry replaces an earlier one of its name; only the plain cases occur in the corpora.
fn replace(tree: &mut Tree, name: Vec<u8>, node: Node) -> Result<(), Failed> {
    match tree.get_mut(&name) {
        Some(earlier) if (earlier.kind == Kind::Directory) != (node.kind == Kind::Directory) => {
            Err(format!("{}: becomes another type", String::from_utf8_lossy(&name)).into())
        }
        Some(earlier) => {
            *earlier = node;
            Ok(())
        }
        None => {
            tree.insert(name, node);
            Ok(())
        }
    }
}

/// Adds directories that are named only as parents, and the root; returns them.
fn imply(tree: &mut Tree) -> Result<BTreeSet<Vec<u8>>, Failed> {
    let mut implied = BTreeSet::new();
    for name in tree.keys() {
        let mut rest: &[u8] = name;
        while !rest.is_empty() {
            rest = split(rest).0;
            match tree.get(rest).map(|node| &node.kind) {
                None => implied.insert(rest.to_vec()),
                Some(Kind::Directory) => break,
                Some(_) => {
                    return Err(
                        format!("{}: the parent is no directory", String::from_utf8_lossy(name)).into()
                    );
                }
            };
        }
    }
    for name in &implied {
        tree.insert(
            name.clone(),
            Node {
                kind: Kind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: BTreeMap::new(),
                nlink: 2,
                link_group: 0,
            },
        );
    }
    Ok(implied)
}

/// Fields of extended headers that the plain header has not.
#[derive(Default)]
struct Extra {
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Extra {
    fn of(entry: &mut tar::Entry<'_, impl Read>) -> Result<Self, Failed> {
        let mut extra = Self::default();
        let Some(records) = entry.pax_extensions()? else { return Ok(extra) };
        for record in records {
            let record = record?;
            match record.key_bytes() {
                b"uid" => extra.uid = Some(record.value()?.parse()?),
                b"gid" => extra.gid = Some(record.value()?.parse()?),
                b"mtime" => extra.mtime = Some(timestamp(record.value()?)?),
                key if key.starts_with(b"GNU.sparse.") => return Err("a sparse file".into()),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && !is_overlay_attribute(name)
                    {
                        extra.xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
                    }
                }
            }
        }
        Ok(extra)
    }
}

/// A PAX time: decimal seconds, perhaps negative, with a fraction of any length.
fn timestamp(text: &str) -> Result<(i64, u32), Failed> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (seconds, nanoseconds): (i64, u32) = (whole.parse()?, digits.parse()?);
    Ok(if text.starts_with('-') && nanoseconds > 0 {
        (seconds - 1, 1_000_000_000 - nanoseconds)
    } else {
        (seconds, nanoseconds)
    })
}
