//! A view inside a user namespace: the ids that files have on the host become those of the container.
//!
//! Source: `snapshot::IdMaps`; Linux `include/uapi/linux/posix_acl_xattr.h` and
//! `include/uapi/linux/capability.h` for the attributes that hold ids.

use super::{At, Node, View};
use crate::{
    error::{Error, Kind, Quoted, Result},
    snapshot::IdMaps,
    tree::{Device, Extent, FileType, Xattr},
};

/// First bytes of an ACL attribute: version 2, little-endian.
const ACL_VERSION: [u8; 4] = 2_u32.to_le_bytes();
/// Length of one ACL entry, in bytes: tag, permissions, id.
const ACL_ENTRY_LEN: usize = 8;
/// Tags of the ACL entries that have an id.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
/// Lengths of a capability attribute, in bytes: without and with the user that it is valid for.
const CAPABILITY_LEN: usize = 20;
const NAMESPACED_LEN: usize = 24;
/// Revisions of a capability attribute: the highest byte of its first number.
const REVISION_2: u8 = 2;
const REVISION_3: u8 = 3;

/// A view with the ids of a user namespace.
pub(super) struct Mapped {
    inner: Box<dyn View>,
    ids: IdMaps,
}

impl Mapped {
    /// `inner` with its ids translated; `inner` itself where the ids of host and container are the same.
    pub(super) fn wrap(inner: Box<dyn View>, ids: IdMaps) -> Box<dyn View> {
        if ids.is_identity() { inner } else { Box::new(Self { inner, ids }) }
    }

    fn unmapped(&self, path: &[u8], what: &str, id: u32) -> Error {
        let message = format!(
            "{} in {}: {what} {id} is outside the snapshot's user namespace",
            Quoted(path),
            self.inner.name()
        );
        Error::new(Kind::Conflict, "diff.id-map", message)
    }

    fn user(&self, path: &[u8], id: u32) -> Result<u32> {
        self.ids.users.in_container(id).ok_or_else(|| self.unmapped(path, "user", id))
    }

    fn group(&self, path: &[u8], id: u32) -> Result<u32> {
        self.ids.groups.in_container(id).ok_or_else(|| self.unmapped(path, "group", id))
    }

    fn acl(&self, path: &[u8], value: &mut [u8]) -> Result<()> {
        let Some((version, entries)) = value.split_first_chunk_mut() else { return Ok(()) };
        if *version != ACL_VERSION {
            return Ok(());
        }
        for entry in entries.as_chunks_mut::<ACL_ENTRY_LEN>().0 {
            let [t0, t1, _, _, id @ ..] = entry;
            let found = u32::from_le_bytes(*id);
            *id = match u16::from_le_bytes([*t0, *t1]) {
                ACL_USER => self.user(path, found)?,
                ACL_GROUP => self.group(path, found)?,
                _ => found,
            }
            .to_le_bytes();
        }
        Ok(())
    }

    /// A capability that is valid for the container's root only has no restriction inside the container.
    fn capability(&self, value: &mut Vec<u8>) {
        let Some((head, root)) = value.split_at_checked(CAPABILITY_LEN) else { return };
        let is_namespaced = value.len() == NAMESPACED_LEN && head.get(3) == Some(&REVISION_3);
        let root = <[u8; 4]>::try_from(root).map(u32::from_le_bytes);
        if is_namespaced && root.is_ok_and(|root| self.ids.users.in_container(root) == Some(0)) {
            value.truncate(CAPABILITY_LEN);
            if let Some(revision) = value.get_mut(3) {
                *revision = REVISION_2;
            }
        }
    }
}

impl View for Mapped {
    fn key(&self) -> (u64, u64) {
        self.inner.key()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn control_prefix(&self) -> &'static [u8] {
        self.inner.control_prefix()
    }

    fn root(&self) -> Result<Node> {
        let mut node = self.inner.root()?;
        // The snapshotter made the root directory, as its own user: an id that the container may not have.
        node.attributes.uid = self.ids.users.in_container(node.attributes.uid).unwrap_or(0);
        node.attributes.gid = self.ids.groups.in_container(node.attributes.gid).unwrap_or(0);
        Ok(node)
    }

    fn names(&self, directory: At<'_>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.inner.names(directory, each)
    }

    fn lookup(&self, directory: At<'_>, name: &[u8]) -> Result<Option<Node>> {
        let Some(mut node) = self.inner.lookup(directory, name)? else { return Ok(None) };
        // overlayfs makes whiteouts as the user who mounted it, who may be outside the namespace.
        let is_whiteout = node.file_type == FileType::CharDevice && node.device == Device::WHITEOUT;
        if !is_whiteout {
            let path = [directory.path, name].join(&b'/');
            node.attributes.uid = self.user(&path, node.attributes.uid)?;
            node.attributes.gid = self.group(&path, node.attributes.gid)?;
        }
        Ok(Some(node))
    }

    fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
        let mut xattrs = self.inner.xattrs(at)?;
        for xattr in &mut xattrs {
            match xattr.name.as_slice() {
                b"system.posix_acl_access" | b"system.posix_acl_default" => {
                    self.acl(at.path, &mut xattr.value)?;
                }
                b"security.capability" => self.capability(&mut xattr.value),
                _ => {}
            }
        }
        Ok(xattrs)
    }

    fn symlink_target(&self, at: At<'_>) -> Result<Vec<u8>> {
        self.inner.symlink_target(at)
    }

    fn extents(&self, at: At<'_>) -> Result<Option<Vec<Extent>>> {
        self.inner.extents(at)
    }

    fn read(
        &self,
        at: At<'_>,
        extents: &[Extent],
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.inner.read(at, extents, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        snapshot::IdMap,
        tree::{Attributes, Timestamp},
    };

    /// A directory of files that are named by their owner.
    struct Host;

    fn node(file_type: FileType, id: u32) -> Node {
        Node {
            file_type,
            attributes: Attributes { mode: 0o644, uid: id, gid: id, mtime: Timestamp::default() },
            device: Device::WHITEOUT,
            size_bytes: 0,
            links: 1,
            inode: u64::from(id),
            file_system: 0,
            changed: Timestamp::default(),
        }
    }

    impl View for Host {
        fn key(&self) -> (u64, u64) {
            (1, 2)
        }
        fn name(&self) -> &str {
            "/upper"
        }
        fn control_prefix(&self) -> &'static [u8] {
            b"trusted.overlay."
        }
        fn root(&self) -> Result<Node> {
            Ok(node(FileType::Directory, 7))
        }
        fn names(&self, _: At<'_>, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            Ok(())
        }
        fn lookup(&self, _: At<'_>, name: &[u8]) -> Result<Option<Node>> {
            let (kind, id) = name.split_first().unwrap();
            let id = std::str::from_utf8(id).unwrap().parse().unwrap();
            let mut found = node(if *kind == b'w' { FileType::CharDevice } else { FileType::Regular }, id);
            if *kind == b'f' {
                found.attributes.gid = id + 100_000;
            }
            Ok(Some(found))
        }
        fn xattrs(&self, at: At<'_>) -> Result<Vec<Xattr>> {
            let acl = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[4, 0], &id.to_le_bytes()].concat();
            let access = [ACL_VERSION.to_vec(), acl(1, u32::MAX), acl(2, 101_000), acl(8, 200_007)].concat();
            let default = [ACL_VERSION.to_vec(), acl(2, 100_003)].concat();
            let mut capability = vec![1, 0, 0, 3];
            capability.extend([0; 16]);
            let valid_for = if at.path == b"nested" { 100_001_u32 } else { 100_000 };
            capability.extend(valid_for.to_le_bytes());
            let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.into() };
            Ok(vec![
                xattr("security.capability", &capability),
                xattr("system.posix_acl_access", &access),
                xattr("system.posix_acl_default", &default),
                xattr("user.id", &100_000_u32.to_le_bytes()),
            ])
        }
        fn symlink_target(&self, _: At<'_>) -> Result<Vec<u8>> {
            Ok(Vec::new())
        }
        fn extents(&self, _: At<'_>) -> Result<Option<Vec<Extent>>> {
            Ok(None)
        }
        fn read(&self, _: At<'_>, _: &[Extent], _: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
            Ok(())
        }
    }

    fn mapped() -> Box<dyn View> {
        let map = |text| IdMap::parse(text).unwrap();
        Mapped::wrap(Box::new(Host), IdMaps { users: map("0:100000:65536"), groups: map("0:200000:65536") })
    }

    fn owner(view: &dyn View, name: &str) -> Result<(u32, u32)> {
        let root = view.root()?;
        let found = view.lookup(At { path: b"", node: &root }, name.as_bytes())?.unwrap();
        Ok((found.attributes.uid, found.attributes.gid))
    }

    #[test]
    fn owners_are_those_of_the_container_and_others_are_refused() {
        let view = mapped();
        assert_eq!(owner(&*view, "f100000").unwrap(), (0, 0));
        assert_eq!(owner(&*view, "f165535").unwrap(), (65_535, 65_535));
        let error = owner(&*view, "g100000").unwrap_err();
        assert!(error.to_string().contains("\"/g100000\" in /upper: group 100000"), "{error}");
        let error = owner(&*view, "f99999").unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "diff.id-map"));
        assert!(error.to_string().contains("\"/f99999\" in /upper: user 99999"), "{error}");
        // Whiteouts have the id of the user who mounted the overlay, the root that of the snapshotter.
        assert_eq!(owner(&*view, "w0").unwrap(), (0, 0));
        let root = view.root().unwrap().attributes;
        assert_eq!((root.uid, root.gid), (0, 0));
    }

    #[test]
    fn without_maps_a_view_stays_what_it_is() {
        let view = Mapped::wrap(Box::new(Host), IdMaps::default());
        assert_eq!(owner(&*view, "f100000").unwrap(), (100_000, 200_000));
    }

    #[test]
    fn ids_inside_attributes_are_translated_too() {
        let view = mapped();
        let root = view.root().unwrap();
        let xattrs = view.xattrs(At { path: b"f", node: &root }).unwrap();
        let [capability, access, default, user] = xattrs.as_slice() else { panic!("{xattrs:?}") };
        assert_eq!((capability.value.len(), capability.value[3]), (CAPABILITY_LEN, REVISION_2));
        let ids: Vec<_> = access.value[4..].chunks(8).map(|entry| entry[4..].to_vec()).collect();
        assert_eq!(ids, [u32::MAX, 1000, 7].map(|id| id.to_le_bytes().to_vec()));
        assert_eq!(default.value[8..], 3_u32.to_le_bytes());
        assert_eq!(user.value, 100_000_u32.to_le_bytes());
    }

    #[test]
    fn a_capability_of_a_namespace_in_the_container_stays_one_for_that_namespace() {
        let view = mapped();
        let root = view.root().unwrap();
        let xattrs = view.xattrs(At { path: b"nested", node: &root }).unwrap();
        assert_eq!((xattrs[0].value.len(), xattrs[0].value[3]), (NAMESPACED_LEN, REVISION_3));
    }
}
