//! Streams in codings that no differ reads by itself, written by xz, lz4, bzip2 and brotli in all their forms.

use std::{
    io::{BufReader, Read as _, Write as _},
    process::{Command, Stdio},
};

use plywood::{
    codec::foreign::Foreign,
    error::{Error, Kind},
};
use testkit::{Need, Suite};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[Need::Tool("xz"), Need::Tool("lz4"), Need::Tool("bzip2")];
        the_streams_of_the_tools_give_the_bytes_back_whatever_their_form,
        one_stream_after_another_is_one_stream,
        a_stream_that_is_cut_anywhere_is_no_success,
        a_flipped_bit_never_passes_where_the_format_has_checksums,
        what_follows_the_last_stream_is_refused,
        a_dictionary_above_the_limit_is_refused_before_it_is_allocated,
    ];
    testkit::tests![suite, &[]; a_brotli_stream_gives_the_bytes_back];
}

const WINDOW: u64 = 128 << 20;

/// Text that compresses, with a repetition every 300 KB, so that blocks refer to each other.
fn text() -> Vec<u8> {
    let line =
        |number: u64| format!("{:x} {}\n", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40, number % 97);
    let once: Vec<u8> = (0..30_000).flat_map(|number| line(number).into_bytes()).collect();
    once.repeat(5)
}

/// `plain` through a program.
fn packed(program: &str, arguments: &[&str], plain: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let plain = plain.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&plain).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

fn decode_with(coding: Foreign, bytes: &[u8], window: u64, buffer: usize) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    let read = coding.reader(BufReader::with_capacity(buffer, bytes), window).read_to_end(&mut plain);
    read.map_err(|error| Error::from_io(error, Kind::Internal, "not named"))?;
    Ok(plain)
}

fn decode(coding: Foreign, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    decode_with(coding, bytes, WINDOW, 1 << 16)
}

/// Streams of the tools in all the forms that they write, by coding. brotli's are fixtures.
fn streams(plain: &[u8]) -> Vec<(Foreign, String, Vec<u8>)> {
    let mut found = Vec::new();
    for (coding, program, forms) in [
        (
            Foreign::Xz,
            "xz",
            &[
                &["-c0"][..],
                &["-c6", "--check=none"],
                &["-c1", "--check=crc32"],
                &["-c1", "--check=sha256"],
                &["-c1", "--block-size=100000", "-T2"],
                &["-c", "--x86", "--lzma2=preset=1"],
                &["-c", "--delta=dist=4", "--lzma2=preset=1"],
            ][..],
        ),
        (
            Foreign::Lz4,
            "lz4",
            &[
                &["-c"][..],
                &["-c9"],
                &["-cB4"],
                &["-c", "-BD", "-B4"],
                &["-c", "-BD", "-BX", "-B5"],
                &["-cl"],
                &["-c", "--no-frame-crc"],
                &["-c", "-B4096"],
            ],
        ),
        (Foreign::Bzip2, "bzip2", &[&["-c1"], &["-c9"]]),
    ] {
        for form in forms {
            let packed = packed(program, form, plain);
            found.push((coding, format!("{program} {}", form.join(" ")), packed));
        }
    }
    found
}

fn the_streams_of_the_tools_give_the_bytes_back_whatever_their_form() {
    let plain = text();
    let streams = streams(&plain);
    for (coding, form, packed) in &streams {
        for buffer in [1, 61, 1 << 16] {
            let found = decode_with(*coding, packed, WINDOW, buffer);
            assert!(found.as_ref().is_ok_and(|found| *found == plain), "{form}: {:?}", found.err());
        }
    }
    for (coding, form, packed) in self::streams(b"") {
        assert_eq!(decode(coding, &packed).map_err(|error| error.to_string()), Ok(Vec::new()), "{form}");
    }
}

fn one_stream_after_another_is_one_stream() {
    let (plain, other) = (text(), b"and more".to_vec());
    for ((coding, form, first), (_, _, second)) in streams(&plain).into_iter().zip(streams(&other)) {
        let both = [first.clone(), second.clone()].concat();
        let want = [&plain[..], &other].concat();
        assert_eq!(decode(coding, &both).map_err(|error| error.to_string()), Ok(want.clone()), "{form}");
        let (padded, wrong) = match coding {
            Foreign::Xz => {
                let padded = [&first[..], &[0; 4], &second, &[0; 8]].concat();
                (Some(padded), Some([&first[..], &[0; 3]].concat()))
            }
            // An old frame, one to be skipped, a new one.
            Foreign::Lz4 => {
                let skipped = [&0x184d_2a57_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
                (Some([&skipped[..], &first, &skipped, &second, &skipped].concat()), None)
            }
            Foreign::Bzip2 | Foreign::Brotli => (None, None),
        };
        if let Some(padded) = padded {
            assert_eq!(decode(coding, &padded).map_err(|error| error.to_string()), Ok(want), "{form}");
        }
        if let Some(wrong) = wrong {
            assert_eq!(decode(coding, &wrong).unwrap_err().reason(), "codec.foreign.data", "{form}");
        }
    }
}

fn a_stream_that_is_cut_anywhere_is_no_success() {
    let plain = text();
    let mut streams = streams(&plain[..20_000]);
    streams.push((Foreign::Brotli, "brotli".to_owned(), BROTLI.to_vec()));
    for (coding, form, packed) in streams {
        for end in (0..packed.len()).rev().step_by(1 + packed.len() / 300) {
            let outcome = decode(coding, &packed[..end]);
            // A legacy frame of LZ4 ends with any of its blocks, so also with none.
            let is_whole = form == "lz4 -cl" && end == 4;
            let reason = outcome.as_ref().map_err(Error::reason).err();
            let cut = matches!(reason, Some("codec.foreign.truncated" | "codec.foreign.data"));
            assert!(cut != is_whole, "{form}: {end} of {}: {reason:?}", packed.len());
        }
    }
}

fn a_flipped_bit_never_passes_where_the_format_has_checksums() {
    let plain = text();
    for (coding, form, packed) in streams(&plain[..5000]) {
        let unchecked = form.contains("none") || form.contains("-cl") || form.contains("no-frame-crc");
        for at in (0..packed.len()).step_by(7).filter(|_| !unchecked) {
            let mut flipped = packed.clone();
            flipped[at] ^= 1 << (at % 8);
            match decode(coding, &flipped) {
                Err(error) => {
                    assert!(error.reason().starts_with("codec.foreign."), "{form} at {at}: {error}")
                }
                Ok(found) => assert_eq!(found, plain[..5000], "{form} at {at}"),
            }
        }
    }
}

fn what_follows_the_last_stream_is_refused() {
    let plain = text();
    let mut streams = streams(&plain[..1000]);
    streams.push((Foreign::Brotli, "brotli".to_owned(), BROTLI.to_vec()));
    for (coding, form, mut packed) in streams {
        packed.extend(b"\xff\xff\xff\xff\xff\xff\xff\xff garbage");
        let error = decode(coding, &packed).unwrap_err();
        assert!(error.reason().starts_with("codec.foreign."), "{form}: {error}");
    }
}

fn a_dictionary_above_the_limit_is_refused_before_it_is_allocated() {
    let packed = packed("xz", &["-c", "--lzma2=dict=64MiB"], &text());
    let error = decode_with(Foreign::Xz, &packed, 1 << 20, 1 << 16).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "codec.foreign.window"), "{error}");
    assert!(decode_with(Foreign::Xz, &packed, 64 << 20, 1 << 16).is_ok());
}

/// The first 20 000 bytes of [`text`], by Python's brotli 1.2.1 (Google's encoder): `compress(text, quality=5, lgwin=24)`.
const BROTLI: &[u8] = include_bytes!("../fixtures/streams/text.br");

fn a_brotli_stream_gives_the_bytes_back() {
    let found = decode_with(Foreign::Brotli, BROTLI, WINDOW, 3);
    assert_eq!(found.map_err(|error| error.to_string()), Ok(text()[..20_000].to_vec()));
    assert_eq!(decode(Foreign::Brotli, b"").unwrap_err().reason(), "codec.foreign.truncated");
}
