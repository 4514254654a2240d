//! `plywood stream`, as containerd runs it: a media type in the environment, a pipe at each end.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Command, Output, Stdio},
    thread,
};

use testkit::{
    Need, Suite,
    archive::{archive, gzip},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[Need::Tool("xz"), Need::Tool("lz4"), Need::Tool("bzip2")];
        every_coding_gives_the_tar_on_standard_output,
        a_cut_input_ends_with_one_line_and_a_failure,
        the_payload_on_descriptor_3_is_not_looked_at,
    ];
    testkit::tests![suite, &[Need::Tool("mkfs.erofs")];
        an_image_of_an_index_and_the_tar_gives_the_tar_bit_for_bit,
        an_image_without_its_whole_tar_ends_with_one_line_and_a_failure,
        a_large_tar_goes_through_in_little_memory,
    ];
    testkit::tests![suite, &[];
        a_seekable_zstd_file_is_read_to_its_end,
        an_unknown_media_type_ends_with_one_line_and_a_failure,
        a_reader_that_goes_away_makes_it_fail,
    ];
}

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
/// A brotli stream; `tests/fixtures/streams/README.md` says of what.
const BROTLI: &[u8] = include_bytes!("../fixtures/streams/text.br");
/// The same text as a seekable zstd file.
const SEEKABLE: &[u8] = include_bytes!("../fixtures/streams/text.seekable.zst");
/// The types of EROFS images, and whether zstd is around them.
const IMAGES: [(&str, bool); 4] = [
    ("application/vnd.erofs.layer.v1", false),
    ("application/vnd.erofs.layer.v1+zstd", true),
    ("application/vnd.oci.image.layer.v1.erofs", false),
    ("application/vnd.oci.image.layer.v1.erofs+zstd", true),
];

/// Runs it with `media_type` in the environment.
fn stream(media_type: Option<&str>, input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.arg("stream").env_remove("STREAM_PROCESSOR_MEDIATYPE");
    command.envs(media_type.map(|media_type| ("STREAM_PROCESSOR_MEDIATYPE", media_type)));
    through(&mut command, input)
}

fn through(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feeder = thread::spawn(move || {
        let _it_may_end_first = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

/// The tar, and each coding of it with its suffix. A zstd stream has its frames, and behind them a table of them.
fn codings(tar: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let pack = |program: &str, arguments: &[&str]| {
        let output = through(Command::new(program).args(arguments), tar);
        assert!(output.status.success());
        output.stdout
    };
    let mut seekable = Vec::new();
    let mut table = Vec::new();
    for frame in tar.chunks(10_000) {
        let packed = zstd::bulk::compress(frame, 3).unwrap();
        table.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        table.extend(u32::try_from(frame.len()).unwrap().to_le_bytes());
        seekable.extend(packed);
    }
    let frames = u32::try_from(table.len() / 8).unwrap();
    table.extend(frames.to_le_bytes());
    table.push(0);
    table.extend(0x8f92_eab1_u32.to_le_bytes());
    seekable.extend(0x184d_2a5e_u32.to_le_bytes());
    seekable.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
    seekable.extend(table);
    vec![
        ("+xz", pack("xz", &["-c"])),
        ("+lz4", pack("lz4", &["-c"])),
        ("+bzip2", pack("bzip2", &["-c"])),
        ("+gzip", gzip(tar)),
        ("+zstd", zstd::bulk::compress(tar, 3).unwrap()),
        ("+zstd", seekable),
    ]
}

fn every_coding_gives_the_tar_on_standard_output() {
    let tar = archive(3, 90_000);
    for (suffix, packed) in codings(&tar) {
        let done = stream(Some(&format!("{OCI}{suffix}")), &packed);
        assert!(done.status.success() && done.stderr.is_empty(), "{suffix}: {done:?}");
        assert!(done.stdout == tar, "{suffix}: {} bytes", done.stdout.len());
    }
    let done = stream(Some(&format!("{OCI}+brotli")), BROTLI);
    assert!(done.status.success() && done.stdout.len() == 20_000, "{done:?}");
    for docker in ["gzip", "zstd"] {
        let packed = if docker == "gzip" { gzip(&tar) } else { zstd::bulk::compress(&tar, 3).unwrap() };
        let done = stream(Some(&format!("application/vnd.docker.image.rootfs.diff.tar.{docker}")), &packed);
        assert!(done.status.success() && done.stdout == tar, "{docker}");
    }
}

fn assert_one_line(done: &Output, part: &str) {
    let said = std::str::from_utf8(&done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert_eq!(said.matches('\n').count(), 1, "{said:?}");
    assert!(said.ends_with('\n') && said.contains(part), "{said:?} has no {part:?}");
}

fn an_unknown_media_type_ends_with_one_line_and_a_failure() {
    for media_type in ["text/plain", OCI, "application/vnd.oci.image.layer.v1.tar+xz+encrypted", ""] {
        let done = stream(Some(media_type), b"");
        assert_one_line(&done, "[stream.media-type]");
        assert!(done.stdout.is_empty());
    }
    assert_one_line(&stream(None, b""), "STREAM_PROCESSOR_MEDIATYPE is not set");
}

fn a_cut_input_ends_with_one_line_and_a_failure() {
    let tar = archive(3, 90_000);
    let mut packed = codings(&tar);
    packed.push(("+brotli", BROTLI.to_vec()));
    for (suffix, packed) in packed {
        for end in [0, 3, packed.len() / 2, packed.len() - 1] {
            let done = stream(Some(&format!("{OCI}{suffix}")), &packed[..end]);
            assert_one_line(&done, "truncated]");
        }
    }
}

fn a_seekable_zstd_file_is_read_to_its_end() {
    let text = stream(Some(&format!("{OCI}+brotli")), BROTLI).stdout;
    let done = stream(Some(&format!("{OCI}+zstd")), SEEKABLE);
    assert!(done.status.success() && done.stdout == text && text.len() == 20_000, "{done:?}");
    let done = stream(Some(&format!("{OCI}+zstd")), &SEEKABLE[..SEEKABLE.len() - 1]);
    assert_one_line(&done, "[codec.zstd.truncated]");
}

/// What mkfs.erofs makes of `tar`.
fn mkfs(tar: &[u8], mode: &str) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let program = testkit::host::program("mkfs.erofs").unwrap();
    let done = through(Command::new(program).args([mode, "--aufs", "--quiet"]).arg(&image), tar);
    assert!(done.status.success(), "{done:?}");
    std::fs::read(image).unwrap()
}

/// An index with the tar behind it, as containerd's differ puts them together.
fn tar_index(tar: &[u8]) -> Vec<u8> {
    [&mkfs(tar, "--tar=i"), tar].concat()
}

fn an_image_of_an_index_and_the_tar_gives_the_tar_bit_for_bit() {
    let tar = archive(300, 5000);
    let full_record = [&tar[..], &vec![0; 10_240 - tar.len() % 10_240]].concat();
    for tar in [tar, full_record, archive(1, 0), archive(1, 3 << 20)] {
        let image = tar_index(&tar);
        for (media_type, packed) in IMAGES {
            let packed = packed.then(|| zstd::bulk::compress(&image, 3).unwrap());
            let done = stream(Some(media_type), packed.as_ref().unwrap_or(&image));
            assert!(done.status.success() && done.stderr.is_empty(), "{media_type}: {:?}", done.status);
            assert!(done.stdout == tar, "{media_type}: {} of {} bytes", done.stdout.len(), tar.len());
        }
    }
}

fn an_image_without_its_whole_tar_ends_with_one_line_and_a_failure() {
    let (tar, media_type) = (archive(3, 90_000), IMAGES[0].0);
    let (index, image) = (mkfs(&tar, "--tar=i"), tar_index(&tar));
    for end in [0, 1000, index.len() - 1, index.len(), index.len() + 512, image.len() / 2, image.len() - 512]
    {
        assert_one_line(&stream(Some(media_type), &image[..end]), "truncated]");
    }
    let followed = [&image[..], &[0; 512], b"verity"].concat();
    for (image, part) in [
        (mkfs(&tar, "--tar=f"), "[erofs.tar-index.devices]"),
        (followed, "[erofs.tar-index.trailing]"),
        ([&index[..], &vec![b'x'; tar.len()]].concat(), "[tar."),
        (tar, "[erofs.superblock.magic]"),
    ] {
        assert_one_line(&stream(Some(media_type), &image), part);
    }
    let packed = zstd::bulk::compress(&image, 3).unwrap();
    assert_one_line(&stream(Some(IMAGES[1].0), &packed[..packed.len() - 1]), "[codec.zstd.truncated]");
}

/// The index is held, the tar is not.
fn a_large_tar_goes_through_in_little_memory() {
    let tar = archive(24, 4 << 20);
    let image = tar_index(&tar);
    let mut child = Command::new(env!("CARGO_BIN_EXE_plywood"))
        .arg("stream")
        .env("STREAM_PROCESSOR_MEDIATYPE", IMAGES[0].0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let feeder = thread::spawn(move || {
        stdin.write_all(&image).unwrap();
        stdin
    });
    let mut out = vec![0; tar.len()];
    stdout.read_exact(&mut out).unwrap();
    assert!(out == tar);
    // It waits for the end of its input.
    let stdin = feeder.join().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 48 << 10, "{peak_kib} KiB for {} bytes", tar.len());
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

/// A type that plays no part gets a payload as well, if the client sends one.
fn the_payload_on_descriptor_3_is_not_looked_at() {
    let tar = archive(1, 100);
    let (_, packed) = codings(&tar).into_iter().next().unwrap();
    let mut command = Command::new("/bin/sh");
    let program = env!("CARGO_BIN_EXE_plywood");
    command.args(["-c", &format!("exec {program} stream 3</dev/null")]);
    command.env("STREAM_PROCESSOR_MEDIATYPE", format!("{OCI}+xz"));
    assert_eq!(through(&mut command, &packed).stdout, tar);
}

fn a_reader_that_goes_away_makes_it_fail() {
    let packed = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("packed");
    std::fs::write(&path, packed).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_plywood"))
        .arg("stream")
        .env("STREAM_PROCESSOR_MEDIATYPE", format!("{OCI}+zstd"))
        .stdin(File::open(path).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_one_line(&child.wait_with_output().unwrap(), "[stream.write]");
}
