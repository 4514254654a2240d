//! Replays the inputs of `tests/fuzz/corpus` through the entry functions of the fuzz targets.

use std::{collections::BTreeSet, fs, path::Path};

use plywood::{
    codec::{CodecError, Coding, foreign::Foreign},
    error::{Classify, Error, Kind},
    format::{
        ReadAt, bolt,
        erofs::check::{Policy, verify},
        gzindex, lsmt, rafs, stargz,
        tar::{Parser, TarError, metadata, wrapper},
        turbo, zfile, ztoc,
    },
    overlaybd,
};

/// Every target of `tests/fuzz/Cargo.toml`, with its entry function.
const TARGETS: &[(&str, Entry)] = &[
    ("tar_parser", plywood::format::tar::fuzz),
    ("erofs_image", plywood::format::erofs::fuzz_image),
    ("ext4_image", plywood::format::ext4::fuzz_image),
    ("gzip", plywood::codec::fuzz_gzip),
    ("deflate", plywood::codec::deflate::fuzz),
    ("zstd", plywood::codec::fuzz_zstd),
    ("foreign", plywood::codec::foreign::fuzz),
    ("gzindex", gzindex::fuzz),
    ("lsmt", lsmt::fuzz),
    ("zfile", zfile::fuzz),
    ("tarwrap", wrapper::fuzz),
    ("overlaybd_config", overlaybd::config::fuzz),
    ("tar_metadata", metadata::fuzz),
    ("turbo_archive", turbo::fuzz),
    ("stargz", stargz::fuzz),
    ("rafs", rafs::fuzz),
    ("ztoc", ztoc::fuzz),
    ("bolt", bolt::fuzz),
];

type Entry = fn(&[u8]);

/// The inputs of a target by name, in order.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| {
            let entry = entry.expect("the corpus is readable");
            let name = entry.file_name().into_string().expect("names of inputs are text");
            (name, fs::read(entry.path()).expect("inputs are readable"))
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_passes_its_target() {
    for (target, entry) in TARGETS {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "{target} has no inputs");
        for (name, data) in inputs {
            println!("{target}/{name}");
            entry(&data);
        }
    }
}

#[test]
fn every_target_of_the_fuzz_package_is_replayed() {
    let manifest = include_str!("fuzz/Cargo.toml");
    let targets = manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
    let replayed: BTreeSet<_> = TARGETS.iter().map(|(target, _)| *target).collect();
    assert_eq!(targets.collect::<BTreeSet<_>>(), replayed);
}

fn read_tar(mut parser: Parser, archive: &[u8]) -> Result<(), TarError> {
    let mut input = archive;
    while parser.next(&mut input)?.is_some() {}
    parser.finish()
}

#[test]
fn tar_archives_are_refused_for_the_reason_in_their_name() {
    for (name, archive) in corpus("tar_parser") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_tar(Parser::new(), &archive).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

fn read_turbo(archive: &[u8]) -> Result<(), turbo::TurboError> {
    let mut reader = turbo::Reader::new();
    let mut input = archive;
    while reader.next(&mut input)?.is_some() {}
    reader.finish().map(drop)
}

#[test]
fn turbo_archives_are_refused_for_the_reason_in_their_name() {
    for (name, archive) in corpus("turbo_archive") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_turbo(&archive).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

fn read_records(file: &[u8]) -> Result<(), bolt::BoltError> {
    let records = bolt::Bolt::open(file)?;
    let mut pending = vec![records.root()];
    while let Some(bucket) = pending.pop() {
        records.each(&bucket, &mut |_, value| {
            if let bolt::Value::Bucket(value) = value {
                pending.push(bolt::Bucket::within(value)?);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn records_are_refused_for_the_reason_in_their_name() {
    for (name, file) in corpus("bolt") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_records(&file).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn metadata_is_refused_for_the_reason_in_its_name() {
    for (name, data) in corpus("tar_metadata") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_tar(Parser::of_metadata(), &data).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn erofs_images_are_refused_for_the_reason_in_their_name() {
    for (name, image) in corpus("erofs_image") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = verify(image.as_slice(), &Policy::layer()).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn ext4_images_are_refused_for_the_reason_in_their_name() {
    for (name, image) in corpus("ext4_image") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = plywood::format::ext4::read_all(&image).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn images_of_another_writer_pass_the_target_too() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/erofs");
    for entry in fs::read_dir(directory).expect("there are fixtures") {
        let path = entry.expect("the fixtures are readable").path();
        if path.extension().is_some_and(|extension| extension == "erofs") {
            let image = fs::read(&path).expect("fixtures are readable");
            plywood::format::erofs::fuzz_image(&image);
            if let Ok(device) = fs::read(path.with_extension("blob")) {
                plywood::format::erofs::fuzz_image(&[image, device].concat());
            }
        }
    }
}

#[test]
fn every_reason_in_the_rules_of_tar_has_an_archive() {
    let document = include_str!("../docs/formats/tar.md");
    let (rules, _of_the_writer) = document.split_once("\n## What is written\n").unwrap();
    // A reason id stands alone in the last column of a table.
    let reasons =
        rules.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once("| `").map(|(_, id)| id));
    let reasons: BTreeSet<_> = reasons.filter(|id| id.contains('.')).map(str::to_owned).collect();
    let shown: BTreeSet<_> = corpus("tar_parser")
        .into_iter()
        .filter_map(|(name, _)| name.split_once('@').map(|(reason, _)| reason.to_owned()))
        .filter(|reason| reason != "ok")
        .collect();
    assert_eq!(reasons, shown);
}

fn read_stargz(data: &[u8]) -> Result<&'static str, Error> {
    if data.first() == Some(&b'{') {
        stargz::Toc::read(data, 1 << 20)?;
        return Ok("ok");
    }
    let declared = stargz::Declared::default();
    let Some(layout) = stargz::Layout::find(&data, &declared)? else { return Ok("none") };
    if let Some(json) = layout.read_toc(&data, &declared)? {
        let toc = stargz::Toc::read(&json, layout.payload_end)?;
        stargz::verify(&data, &layout, &toc, &mut |_| Ok(()))?;
        stargz::verify_split(&data, &layout, &toc, &mut |_| Ok(()))?;
    }
    Ok("ok")
}

#[test]
fn tables_of_contents_are_refused_for_the_reason_in_their_name() {
    for (name, data) in corpus("stargz") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_stargz(&data);
        let reason = match &found {
            Ok(reason) => reason,
            Err(error) => error.reason(),
        };
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn every_reason_in_the_rules_of_indexed_layers_has_an_input() {
    let rules = include_str!("../docs/formats/stargz.md");
    let ids = rules.split('`').filter(|word| word.starts_with("stargz.") && *word != "stargz.index.json");
    // These are about descriptors, and about what is written.
    let others = ["stargz.annotation", "stargz.toc.digest", "stargz.write.name", "stargz.write.time"];
    let rules: BTreeSet<_> = ids.filter(|id| !others.contains(id)).map(str::to_owned).collect();
    let found = reasons("stargz").into_iter().filter(|id| id.starts_with("stargz.")).collect();
    assert_eq!(rules, found);
}

#[test]
fn indexed_layers_of_other_tools_and_damaged_ones_pass_the_target_too() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz");
    for part in ["estargz", "zstdchunked", "other", "bad"] {
        for entry in fs::read_dir(directory.join(part)).expect("there are fixtures") {
            stargz::fuzz(
                &fs::read(entry.expect("the fixtures are readable").path()).expect("fixtures are readable"),
            );
        }
    }
}

#[test]
fn ztocs_are_refused_for_the_reason_in_their_name() {
    for (name, file) in corpus("ztoc") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = ztoc::Ztoc::read(&file).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn every_reason_in_the_rules_of_ztocs_has_an_input() {
    let rules = include_str!("../docs/formats/ztoc.md");
    let ids = rules.split('`').filter(|word| word.starts_with("ztoc.") || *word == "limit.ztoc");
    // These are about the layer, and about the code of SOCI.
    let others = ["ztoc.blob-size", "ztoc.place", "ztoc.fbs"];
    let rules: BTreeSet<_> = ids.filter(|id| !others.contains(id)).map(str::to_owned).collect();
    assert_eq!(rules, reasons("ztoc"));
}

#[test]
fn ztocs_of_soci_pass_the_target_too() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ztoc");
    for name in ["layer.ztoc", "twice.ztoc", "plain.ztoc"] {
        ztoc::fuzz(&fs::read(directory.join(name)).expect("fixtures are readable"));
    }
}

/// The reasons of a target's named inputs, without `ok` and `none`.
fn reasons(target: &str) -> BTreeSet<String> {
    let names = corpus(target).into_iter().filter_map(|(name, _)| Some(name.split_once('@')?.0.to_owned()));
    names.filter(|reason| reason != "ok" && reason != "none").collect()
}

fn read_zfile(file: &[u8]) -> Result<(), Error> {
    let reader = zfile::reader::Reader::open(file)?;
    let mut contents = vec![0; usize::try_from(reader.size_bytes()).expect("small")];
    reader.read_exact_at(0, &mut contents).map_err(Error::disk)
}

#[test]
fn zfiles_are_refused_for_the_reason_in_their_name() {
    for (name, file) in corpus("zfile") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_zfile(&file).err();
        let reason = found.as_ref().map_or("ok", Error::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn every_reason_in_the_rules_of_zfile_has_a_file() {
    let rules = include_str!("../docs/formats/overlaybd.md");
    let ids = rules.split('`').filter(|word| word.starts_with("zfile.") || *word == "limit.zfile-blocks");
    // These are not about the bytes of one file.
    let others = ["zfile.incompressible", "zfile.changed", "zfile.memory", "zfile.encoder"];
    let rules: BTreeSet<_> = ids.filter(|id| !others.contains(id)).map(str::to_owned).collect();
    assert_eq!(rules, reasons("zfile"));
}

#[test]
fn tar_wrappers_are_refused_for_the_reason_in_their_name() {
    for (name, archive) in corpus("tarwrap") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let reason = match wrapper::find(archive.as_slice()) {
            Ok(None) => "none",
            Ok(Some(payload)) => {
                let is_whole = payload.range.end <= archive.len() as u64;
                assert!(is_whole && payload.name == wrapper::NAME, "{name}: {payload:?}");
                "ok"
            }
            Err(error) => error.reason(),
        };
        assert_eq!(reason, want, "{name}");
    }
    let rules = include_str!("../docs/formats/overlaybd.md");
    let ids = rules.split('`').filter(|word| word.starts_with("overlaybd.wrapper."));
    // These are for whoever looks into the payload, and for whoever writes one.
    let others = ["overlaybd.wrapper.contents", "overlaybd.wrapper.size"];
    let rules: BTreeSet<_> = ids.filter(|id| !others.contains(id)).map(str::to_owned).collect();
    let shown = reasons("tarwrap").into_iter().filter(|reason| reason.starts_with("overlaybd."));
    assert_eq!(rules, shown.collect());
}

#[test]
fn configurations_are_refused_for_the_reason_in_their_name() {
    for (name, json) in corpus("overlaybd_config") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let opened = overlaybd::config::ImageConfig::read(json.as_slice()).and_then(|config| {
            // Every file that is named is there, and each is another one.
            let open = |_: &str, _| tempfile::tempfile().map(Some).map_err(Error::disk);
            config.open(&open, overlaybd::config::Mode::Read)
        });
        let reason = opened.as_ref().map_or_else(Error::reason, |_| "ok");
        assert_eq!(reason, want, "{name}: {opened:?}");
    }
}

fn decode(coding: Coding, mut input: &[u8]) -> Result<(), CodecError> {
    let mut decoder = coding.decoder(128 << 20)?;
    let mut output = vec![0; 1 << 16];
    // A full buffer, or a window that has just been announced: there is more.
    while decoder.decode(&mut input, &mut output)? == output.len() || !input.is_empty() {}
    decoder.finish()
}

#[test]
fn compressed_streams_are_refused_for_the_reason_in_their_name() {
    for (target, coding) in [("gzip", Coding::Gzip), ("zstd", Coding::Zstd)] {
        for (name, stream) in corpus(target) {
            let Some((want, _)) = name.split_once('@') else { continue };
            let found = decode(coding, &stream).err();
            let reason = found.as_ref().map_or("ok", Classify::reason);
            assert_eq!(reason, want, "{target}/{name}: {found:?}");
        }
    }
}

#[test]
fn streams_of_foreign_codings_are_refused_for_the_reason_in_their_name() {
    for (name, stream) in corpus("foreign") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let (coding, stream) = Foreign::of_fuzz(&stream).expect("a byte that selects the coding");
        let found = std::io::copy(&mut coding.reader(stream, 128 << 20), &mut std::io::sink()).err();
        let found = found.map(|error| Error::from_io(error, Kind::Internal, "not named"));
        let reason = found.as_ref().map_or("ok", Error::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn every_reason_in_the_rules_of_compression_has_a_stream() {
    let rules = include_str!("../docs/formats/compression.md");
    let ids = rules.split('`').filter(|word| word.starts_with("codec.") && !word.contains(' '));
    let reasons: BTreeSet<_> = ids.map(str::to_owned).collect();
    let shown = ["gzip", "zstd", "foreign"].into_iter().flat_map(corpus);
    let mut shown: BTreeSet<_> = shown
        .filter_map(|(name, _)| name.split_once('@').map(|(reason, _)| reason.to_owned()))
        .filter(|reason| reason != "ok")
        .collect();
    // Takes a megabyte: the decoder's own tests make one.
    shown.insert("codec.gzip.header-string".to_owned());
    assert_eq!(reasons, shown);
}

/// Opens a blob through its index and reads all of it, after the windows: the length of the blob, the blob, the index.
fn read_indexed(input: &[u8]) -> Result<(), Error> {
    let (len, rest) = input.split_first_chunk().expect("four bytes");
    let len = usize::try_from(u32::from_le_bytes(*len)).expect("small");
    let (blob, index) = rest.split_at(len);
    let reader = gzindex::Reader::open(blob, index)?;
    reader.index().verify(index)?;
    let mut plain = vec![0; usize::try_from(reader.size_bytes()).expect("small")];
    reader.read_exact_at(0, &mut plain).map_err(Error::disk)
}

#[test]
fn gzip_indexes_are_refused_for_the_reason_in_their_name() {
    for (name, input) in corpus("gzindex") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = read_indexed(&input).err();
        let reason = found.as_ref().map_or("ok", Error::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn every_reason_in_the_rules_of_gzip_indexes_has_an_input() {
    let rules = include_str!("../docs/formats/overlaybd.md");
    let ids = rules.split('`').filter(|word| word.starts_with("gzindex.") || *word == "limit.gzindex-points");
    let reasons: BTreeSet<_> = ids.map(str::to_owned).collect();
    let shown = corpus("gzindex").into_iter();
    let shown: BTreeSet<_> = shown
        .filter_map(|(name, _)| name.split_once('@').map(|(reason, _)| reason.to_owned()))
        .filter(|reason| reason != "ok")
        .collect();
    assert_eq!(reasons, shown);
}

#[test]
fn lsmt_layers_are_refused_for_the_reason_in_their_name() {
    for (name, input) in corpus("lsmt") {
        let Some((want, _)) = name.split_once('@') else { continue };
        let found = lsmt::fuzz_entries(&input).err();
        let reason = found.as_ref().map_or("ok", Classify::reason);
        assert_eq!(reason, want, "{name}: {found:?}");
    }
}

#[test]
fn every_reason_in_the_rules_of_layers_has_an_input() {
    let document = include_str!("../docs/formats/overlaybd.md");
    let rules = document.split("**What is checked** when a layer is opened").nth(1).unwrap();
    let (rules, _of_the_writer) = rules.split_once("**Committing**").unwrap();
    let ids = rules.lines().filter_map(|line| line.strip_prefix("| `lsmt.")?.split_once('`'));
    let mut reasons: BTreeSet<_> = ids.map(|(id, _)| format!("lsmt.{id}")).collect();
    // Not of files, but of what is done with a layer.
    for other in ["lsmt.range", "lsmt.form"] {
        assert!(reasons.remove(other), "{other} is documented");
    }
    let shown = corpus("lsmt").into_iter();
    let shown: BTreeSet<_> = shown
        .filter_map(|(name, _)| name.split_once('@').map(|(reason, _)| reason.to_owned()))
        .filter(|reason| reason != "ok")
        .collect();
    assert_eq!(reasons, shown);
}
