//! ZFiles that we write, taken apart by hand and decompressed by the tools of liblz4 and libzstd.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use testkit::{Need, Suite};
use xxhash_rust::xxh32::xxh32;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[Need::Tool("lz4"), Need::Tool("zstd")];
        liblz4_and_libzstd_decompress_every_block,
    ];
}

/// CRC-32C from a register value, bit by bit, without an inversion.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        (0..8).fold(crc ^ u32::from(*byte), step)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())).unwrap()
}

/// The compressed blocks of a file, after all digests and checksums were compared.
fn blocks(file: &[u8], algorithm: u8, block_bytes: u32) -> Vec<&[u8]> {
    let (header, trailer) = (&file[..512], &file[file.len() - 512..]);
    for (record, flags) in [(header, 0x1B), (trailer, 0x16)] {
        assert_eq!(&record[..24], b"ZFile\0\x01\0tuji.yyf@Alibaba");
        assert_eq!((u32_at(record, 24), u64_at(record, 32)), (96, flags));
        let undigested = [&record[..28], &[0; 4], &record[32..]].concat();
        assert_eq!(u32_at(record, 28), crc(0, &undigested), "digest");
        assert_eq!((u32_at(record, 72), record[76], record[88]), (block_bytes, algorithm, 1));
        assert!([&record[68..72], &record[77..88], &record[89..]].concat().iter().all(|byte| *byte == 0));
    }
    assert_eq!(header[40..72], trailer[40..72], "both ends agree");
    let (offset, count) = (u64_at(trailer, 40), u64_at(trailer, 48));
    let index = &file[offset..file.len() - 512];
    assert_eq!((index.len(), u32_at(trailer, 64)), (4 * count, crc(0, index)));
    let (mut at, mut blocks) = (512, Vec::new());
    for entry in index.chunks(4) {
        let end = at + u32_at(entry, 0) as usize;
        let (block, sum) = file[at..end].split_last_chunk::<4>().unwrap();
        assert_eq!(u32::from_le_bytes(*sum), crc(100_007, block), "checksum of a block");
        blocks.push(block);
        at = end;
    }
    assert_eq!(at, offset, "the index follows the blocks");
    let per_64_kib = (65_536 / block_bytes) as usize;
    for group in blocks.chunks(per_64_kib) {
        let sum: usize = group[..group.len() - 1].iter().map(|block| block.len() + 4).sum();
        assert!(sum < 65_535, "readers sum in 16 bits");
    }
    blocks
}

/// An LZ4 frame of independent blocks of up to 64 KiB.
fn lz4_frame(blocks: &[&[u8]]) -> Vec<u8> {
    let descriptor = [0x60, 0x40];
    let mut frame = vec![0x04, 0x22, 0x4d, 0x18];
    frame.extend(descriptor);
    frame.push(xxh32(&descriptor, 0).to_be_bytes()[2]);
    for block in blocks {
        frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        frame.extend(*block);
    }
    frame.extend([0; 4]);
    frame
}

fn decompress(tool: &str, input: Vec<u8>) -> Vec<u8> {
    let mut command = Command::new(testkit::host::program(tool).unwrap());
    let mut child = command.args(["-d", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{tool}: {:?}", output.status);
    output.stdout
}

fn liblz4_and_libzstd_decompress_every_block() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    let payload = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd/zfile/payload.bin");
    let mut contents = fs::read(payload).unwrap().repeat(7);
    contents.extend([0; 100_000]);
    contents.extend(std::iter::repeat_with(&mut noise).take(300_001));
    fs::write(path("in"), &contents).unwrap();
    for (name, number) in [("lz4", 1), ("zstd", 2)] {
        for kib in [4, 8, 16, 32] {
            let out = path(&format!("{name}-{kib}"));
            let arguments =
                ["overlaybd", "zfile", "--algorithm", name, "--bs", &kib.to_string(), &path("in"), &out];
            let status =
                Command::new(env!("CARGO_BIN_EXE_plywood")).args(arguments).stdout(Stdio::null()).status();
            assert!(status.unwrap().success());
            let file = fs::read(&out).unwrap();
            let blocks = blocks(&file, number, kib << 10);
            let stream = if number == 1 { lz4_frame(&blocks) } else { blocks.concat() };
            assert!(decompress(name, stream) == contents, "{name}, {kib} KiB");
        }
    }
}
