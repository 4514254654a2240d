use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use super::{
    super::{
        Durability, LAYER, LAYER_NAME,
        scratch_tests::{limits, scratch},
        space::SPACE_EVERY,
    },
    *,
};
use crate::error::{Classify, Error, Kind};

#[test]
fn a_scratch_file_has_no_name_and_respects_the_reserve() {
    let scratch = scratch();
    let mut file = NewFile::scratch(&scratch.path, &limits()).unwrap();
    file.write_at(0, b"image").unwrap();
    assert!(scratch.names().is_empty());
    let mut back = [0; 5];
    file.read_exact_at(0, &mut back).unwrap();
    assert_eq!((&back, ReadAt::size_bytes(&file)), (b"image", 5));

    let full = Limits { reserve_bytes: u64::MAX, ..limits() };
    let error = NewFile::scratch(&scratch.path, &full).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.free-space"));
    let error = NewFile::scratch(&scratch.path.join("none"), &limits()).unwrap_err();
    assert!(error.to_string().contains("open the work directory"), "{error}");
}

#[test]
fn what_is_dropped_leaves_nothing() {
    let scratch = scratch();
    for naming in [Naming::Preferred, Naming::Named] {
        let mut publication = scratch.publish(&LAYER, &limits()).unwrap();
        publication.naming = naming;
        let mut layer = publication.file(LAYER_NAME).unwrap();
        layer.write_at(0, &[1; 4096]).unwrap();
        assert_eq!(scratch.names().len(), usize::from(naming == Naming::Named));
        drop(layer);
        assert!(scratch.names().is_empty());
    }
}

#[test]
fn a_named_temporary_is_private_locked_and_recognised_by_the_sweep() {
    let scratch = scratch();
    let mut publication = scratch.publish(&LAYER, &limits()).unwrap();
    publication.naming = Naming::Named;
    let mut layer = publication.file(LAYER_NAME).unwrap();
    layer.write_at(0, b"x").unwrap();
    let names = scratch.names();
    let name = names.first().unwrap();
    assert!(is_temporary(&CString::new(name.as_str()).unwrap()), "{name}");
    let path = scratch.path.join(name);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!file::lock_exclusive(File::open(&path).unwrap()).unwrap());
    publication.commit([layer], Durability::Never, false).unwrap();
    assert_eq!(scratch.names(), ["layer.erofs"]);
}

#[test]
fn other_names_are_not_temporaries() {
    for name in [
        c".plywood-.tmp",
        c".plywood-0123456789abcdef0123456789abcdeF.tmp",
        c".plywood-0123456789abcdef0123456789abcdef.tm",
        c"plywood-0123456789abcdef0123456789abcdef.tmp",
        c".plywood-0123456789abcdef0123456789abcdef0.tmp",
        c"layer.erofs",
    ] {
        assert!(!is_temporary(name), "{name:?}");
    }
    assert!(is_temporary(c".plywood-0123456789abcdef0123456789abcdef.tmp"));
}

#[test]
fn a_reserve_reached_while_writing_ends_the_writing() {
    let scratch = scratch();
    let (_publication, mut layer) = scratch.begin().unwrap();
    layer.reserve = Some(Reserve { bytes: u64::MAX, percent: 0, unchecked: SPACE_EVERY - 8 });
    layer.write_at(0, b"1234").unwrap();
    let error = Error::disk(layer.write_at(4, b"5678").unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.free-space"));
}

#[test]
fn reserved_space_is_given_back_at_the_end() {
    let scratch = scratch();
    let (publication, mut layer) = scratch.begin().unwrap();
    let piece = vec![7; 1 << 20];
    for number in 0..9 {
        layer.write_at(number << 20, &piece).unwrap();
    }
    let ahead = 512 * layer.file().metadata().unwrap().blocks();
    assert!(ahead >= 9 << 20, "{ahead}");
    publication.commit([layer], Durability::Always, false).unwrap();
    let kept = fs::metadata(scratch.layer()).unwrap();
    assert_eq!(kept.len(), 9 << 20);
    assert!(kept.blocks() * 512 <= (9 << 20) + (64 << 10), "{} blocks", kept.blocks());
}

#[test]
fn a_hole_in_the_image_stays_a_hole_in_the_file() {
    let scratch = scratch();
    let (publication, mut layer) = scratch.begin().unwrap();
    let piece = vec![7; 2 << 20];
    layer.write_at(0, &piece).unwrap();
    layer.write_at(40 << 20, &piece).unwrap();
    layer.set_len(80 << 20).unwrap();
    assert_eq!(ReadAt::size_bytes(&layer), 80 << 20);
    publication.commit([layer], Durability::Always, false).unwrap();
    let kept = fs::metadata(scratch.layer()).unwrap();
    assert!(kept.blocks() * 512 <= (4 << 20) + (128 << 10), "{} blocks", kept.blocks());
    let bytes = fs::read(scratch.layer()).unwrap();
    assert!(bytes[2 << 20..40 << 20].iter().all(|byte| *byte == 0));
    assert!(bytes[40 << 20..42 << 20].iter().all(|byte| *byte == 7));
}

#[test]
fn discarded_bytes_read_as_zeros() {
    let scratch = scratch();
    let (_publication, mut layer) = scratch.begin().unwrap();
    layer.write_at(0, &[9; 20_000]).unwrap();
    layer.discard(5_000, 10_000).unwrap();
    layer.discard(19_999, 1 << 40).unwrap();
    layer.discard(0, 0).unwrap();
    let mut read = vec![1; 20_000];
    ReadAt::read_exact_at(&layer, 0, &mut read).unwrap();
    let want: Vec<u8> =
        (0..20_000).map(|i| if (5_000..15_000).contains(&i) || i == 19_999 { 0 } else { 9 }).collect();
    assert!(read == want);
    assert!(ReadAt::read_exact_at(&layer, 19_999, &mut [0; 2]).is_err());
}

#[test]
fn a_copy_of_a_file_has_its_bytes_and_its_size() {
    let scratch = scratch();
    let source = scratch.path.parent().unwrap().join("blob");
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&source, &bytes).unwrap();
    let source = File::open(&source).unwrap();
    let (publication, mut layer) = scratch.begin().unwrap();
    layer.copy_from(&source, bytes.len() as u64, |_| Ok(())).unwrap();
    assert_eq!(ReadAt::size_bytes(&layer), bytes.len() as u64);
    publication.commit([layer], Durability::Never, false).unwrap();
    assert!(fs::read(scratch.layer()).unwrap() == bytes);

    let (_publication, mut layer) = scratch.begin().unwrap();
    let short = layer.copy_from(&source, bytes.len() as u64 + 1, |_| Ok(())).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    let mut stop = |_| Err(io::ErrorKind::Interrupted.into());
    match layer.copy_from(&source, bytes.len() as u64, &mut stop) {
        Ok(shared) => assert!(shared, "a copy takes the step that stops it"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted),
    }
}
