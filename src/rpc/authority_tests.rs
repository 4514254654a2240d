use proptest::prelude::*;

use super::*;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// A connection whose first frame is a SETTINGS frame with one setting.
fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    [preface, frame(4, 0, &[0, 4, 0, 1, 0, 0]), frames.concat()].concat()
}

/// Amends `bytes` in pieces of several sizes, which all have to give one result.
fn amended(bytes: &[u8]) -> Vec<u8> {
    let by = |len: usize| {
        let mut amender = Amender::new();
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(len).for_each(|chunk| amender.amend(chunk));
        bytes
    };
    let whole = by(usize::MAX);
    for len in [1, 2, 3, 7, 10] {
        assert_eq!(by(len), whole, "in pieces of {len} bytes");
    }
    whole
}

/// Encodes a string for HPACK: not compressed, or given in `hex`.
fn text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

fn huffman(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let bytes: Vec<_> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    [&[0x80 | u8::try_from(bytes.len()).unwrap()], bytes.as_slice()].concat()
}

/// A header block: POST, the scheme, a path, and `field` both before and after other fields.
fn block(field: &[u8]) -> Vec<u8> {
    let path = [&[0x04], text("/a%2F/b c").as_slice()].concat();
    let custom = [&[0x40], text("x-authority").as_slice(), &text("/kept%2F")].concat();
    [&[0x3f, 0xe1, 0x1f, 0x83, 0x86], path.as_slice(), field, &custom, &[0xbe]].concat()
}

#[test]
fn an_authority_that_is_a_path_becomes_a_name_of_the_same_length() {
    let spelt = [&[0x40], text(":authority").as_slice()].concat();
    for name in [&[0x41][..], &[0x01], &[0x11], &spelt] {
        for (sent, want) in [
            (text("/run/plywood/plywood.sock"), text("-run-plywood-plywood.sock")),
            (text("%2Frun%2Fplywood.sock"), text("-2Frun-2Fplywood.sock")),
            (text("unix:/run/a:b:c"), text("unix--run-a-b-c")),
            (text("localhost"), text("localhost")),
            (text(""), text("")),
            // From another encoder.
            (
                huffman("54586cb6a54586ba3d7839e454586ba3d7839e45d07275"), // %2Frun%2Fplywood%2Fplywood.sock
                huffman("5c586cb6a5c586ba3d7839e45c586ba3d7839e45d07275"), // .2Frun.2Fplywood.2Fplywood.sock
            ),
            (
                huffman("62cb6a62ba3d29e0e7918ae8f5e0e791741c9d7f"), // /run/ply wood/plywood.sock
                huffman("66cb6a66ba3d2de0e7919ae8f5e0e791741c9d7f"), // 3run3ply-wood3plywood.sock
            ),
            (huffman("b6a379b8c596d4c0ee47709f"), huffman("b6a379bacd96d4c8eec7749f")), // unix:/run/a:b:c
            (huffman("a0e41d139d09"), huffman("a0e41d139d09")),                         // localhost
            // After a rare character, here `~`, nothing is changed.
            (huffman("54587ffaa8b0ff"), huffman("5c587ffaa8b0ff")),
        ] {
            let [sent, want] = [sent, want].map(|value| block(&[name, &value].concat()));
            let data = frame(0, 1, &[&[0, 0, 0, 0, 13, 0x41, 11], b"/left/alone".as_slice()].concat());
            let with = |block: &[u8]| {
                let (first, second) = block.split_at(block.len() / 2);
                let padded = [&[3, 0, 0, 0, 0, 5], first, b"%//"].concat();
                connection(&[
                    frame(HEADERS, 4, block),
                    data.clone(),
                    frame(HEADERS, PADDED | PRIORITY, &padded),
                    frame(CONTINUATION, 0, &[]),
                    frame(CONTINUATION, 4, second),
                    frame(HEADERS, 4, block),
                ])
            };
            assert_eq!(amended(&with(&sent)), with(&want), "{name:x?} {sent:x?}");
        }
    }
}

#[test]
fn long_values_and_frames_are_followed() {
    let path = "/".repeat(5000);
    // 127 + 9 + 38 * 128 = 5000
    let length = [0x7f, 0x80 | 9, 38];
    let block = |value: &str| block(&[&[0x41], length.as_slice(), value.as_bytes()].concat());
    let of = |value: &str| connection(&[frame(HEADERS, 4, &block(value)), frame(HEADERS, 4, &block(value))]);
    assert_eq!(amended(&of(&path)), of(&"-".repeat(5000)));
}

#[test]
fn what_cannot_be_followed_is_passed_on() {
    let bad = [
        frame(HEADERS, PADDED, &[9, 0x41, 1, b'/']),
        frame(HEADERS, PADDED, &[]),
        frame(HEADERS, PRIORITY, &[0, 0]),
        frame(HEADERS, 4, &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, b'/']),
    ];
    for bad in bad {
        let bytes = connection(&[bad, frame(HEADERS, 4, &block(&[0x41, 1, b'/']))]);
        assert_eq!(amended(&bytes), bytes);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_stumble(
        frames in prop::collection::vec((0..10_u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6)
    ) {
        let frames: Vec<_> = frames.iter().map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
        amended(&connection(&frames));
        amended(&frames.concat());
    }
}
