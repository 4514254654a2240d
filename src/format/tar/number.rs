//! Numbers as tar spells them: octal text, base-256, decimal text, and decimal seconds.
//!
//! Fields that readers interpret differently (signs, digits after the end, two runs of digits) are
//! not numbers here.
//!
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
//! "Basic Tar Format" (base-256); Go `archive/tar/strconv.go` for what is lenient.

use super::error::Problem;
use crate::tree::Timestamp;

/// Reads octal digits, with spaces before them and a space or NUL after them; blank is 0. `None`
/// for any other field.
///
/// A NUL right after the digits ends the field, whatever follows. After a space only blanks may
/// follow.
pub(super) fn octal(field: &[u8]) -> Option<u64> {
    // Today's writers use leading zeros and one byte at the end.
    let padded = match *field {
        [a, b, c, d, e, f, g, 0 | b' '] => eight_digits([b'0', a, b, c, d, e, f, g]),
        [a, b, c, d, e, f, g, h, i, j, k, 0 | b' '] => {
            let high = eight_digits([b'0', b'0', b'0', b'0', b'0', a, b, c]);
            high.zip(eight_digits([d, e, f, g, h, i, j, k])).map(|(high, low)| high << 24 | low)
        }
        _ => None,
    };
    padded.or_else(|| any_octal(field))
}

/// Reads eight octal digits at once, joining neighbours into numbers of 2, 4 and 8 digits.
fn eight_digits(digits: [u8; 8]) -> Option<u64> {
    let digits = u64::from_be_bytes(digits);
    // Octal digits are the bytes 0x30 to 0x37.
    if digits & 0xf8f8_f8f8_f8f8_f8f8 != 0x3030_3030_3030_3030 {
        return None;
    }
    let pairs = (digits & 0x0007_0007_0007_0007) | ((digits >> 5) & 0x0038_0038_0038_0038);
    let fours = (pairs & 0x0000_003f_0000_003f) | ((pairs >> 10) & 0x0000_0fc0_0000_0fc0);
    Some((fours & 0xfff) | ((fours >> 20) & 0xff_f000))
}

/// Reads an octal field in any other accepted form.
fn any_octal(field: &[u8]) -> Option<u64> {
    let mut rest = field;
    while let Some(after) = rest.strip_prefix(b" ") {
        rest = after;
    }
    let mut value = 0_u64;
    let mut digits = false;
    while let Some((digit @ b'0'..=b'7', after)) = rest.split_first() {
        value = value.checked_mul(8)? | u64::from(digit - b'0');
        digits = true;
        rest = after;
    }
    let ends = match rest {
        [0, ..] if digits => true,
        _ => rest.iter().all(|byte| matches!(byte, 0 | b' ')),
    };
    ends.then_some(value)
}

/// Reads a numeric header field: octal text, or base-256 when the first byte is 0x80 or 0xff.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    match field.split_first() {
        Some((0x80, magnitude)) => base256(0, magnitude),
        Some((0xff, magnitude)) => base256(-1, magnitude),
        _ => i64::try_from(octal(field)?).ok(),
    }
}

/// True when Go's `archive/tar` reads `field` as a number. It accepts more fields than [`numeric`].
pub(super) fn go_reads(field: &[u8]) -> bool {
    let Some((first, rest)) = field.split_first().filter(|(first, _)| **first >= 0x80) else {
        let blank = |byte: &u8| matches!(byte, 0 | b' ');
        let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
        let text = field.get(start..).unwrap_or_default();
        let end = text.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1);
        let digits = text.get(..end).and_then(|text| text.split(|byte| *byte == 0).next());
        let mut digits = digits.unwrap_or_default().iter();
        return digits
            .try_fold(0_u64, |value, digit| match digit {
                b'0'..=b'7' => Some(value.checked_mul(8)? | u64::from(digit - b'0')),
                _ => None,
            })
            .is_some();
    };
    // The second highest bit is the sign, as in Go. The number has 63 more bits.
    let sign = if first & 0x40 == 0 { 0 } else { 0xff };
    rest.iter()
        .try_fold(u64::from((first ^ sign) & 0x7f), |value, byte| {
            (value >> 56 == 0).then(|| value << 8 | u64::from(byte ^ sign))
        })
        .is_some_and(|value| value >> 63 == 0)
}

/// Continues a two's complement number whose higher bytes are all `sign`.
fn base256(sign: i64, magnitude: &[u8]) -> Option<i64> {
    magnitude.iter().try_fold(sign, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// Reads one or more decimal digits and nothing else; `None` above 2^63 - 1.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    i64::try_from(value).is_ok().then_some(value)
}

/// Reads decimal seconds since 1970: an optional `-`, digits, and an optional fraction. Nine digits
/// of the fraction count. `-0.25` is 750 ms into the second before 1970.
pub(super) fn seconds(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (text.get(..point)?, text.get(point + 1..)?),
        None => (text, &[][..]),
    };
    let mut nanoseconds = 0;
    let mut unit = 100_000_000;
    for byte in fraction {
        if !byte.is_ascii_digit() {
            return None;
        }
        nanoseconds += u32::from(byte - b'0') * unit;
        // Digits after the ninth are below a nanosecond.
        unit /= 10;
    }
    let mut seconds = i64::try_from(decimal(whole)?).ok()?;
    if negative {
        seconds = -seconds;
        if nanoseconds > 0 {
            seconds = seconds.checked_sub(1)?;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
    }
    Some(Timestamp { seconds, nanoseconds })
}

/// Spells a time as [`seconds`] reads it, without zeros at the end of the fraction.
pub(super) fn spell_seconds(time: Timestamp) -> String {
    if time.nanoseconds == 0 {
        return time.seconds.to_string();
    }
    time.to_string().trim_end_matches('0').to_owned()
}

/// Reads the value of the extended header's record `key` by `read`; an empty one is none.
pub(super) fn record<T>(
    key: &'static str,
    value: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, Problem> {
    if value.is_empty() {
        return Ok(None);
    }
    match read(value) {
        Some(parsed) => Ok(Some(parsed)),
        None => Err(Problem::PaxValue { key, value: value.to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_are_read_as_all_readers_read_them() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"000644 \0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"   644  ", Some(0o644)),
            (b"00000644", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"77777777", Some(0o77_777_777)),
            (b"        ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b" \0 \0 \0 \0", Some(0)),
            (b"", Some(0)),
            (b"777777777777777777777", Some((1 << 63) - 1)),
            (b"1777777777777777777777", Some(u64::MAX)),
            (b"2000000000000000000000", None),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"+000644\0", None),
            (b"0x00644\0", None),
            (b"644 644\0", None),
            (b"644 \0  1", None),
            (b"\0\x00000644", None),
            (b"  \0  644", None),
            (b"junk\0\0\0\0", None),
        ] {
            assert_eq!(octal(field), want, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn the_usual_octal_fields_are_read_like_all_others() {
        for len in [8, 12] {
            for at in 0..len {
                for byte in 0..=u8::MAX {
                    let mut field = b"01234567654\0"[12 - len..].to_vec();
                    field[at] = byte;
                    assert_eq!(octal(&field), any_octal(&field), "{}", field.escape_ascii());
                }
            }
            let largest = [vec![b'7'; len - 1], vec![b' ']].concat();
            assert_eq!(octal(&largest), Some((1 << (3 * (len - 1))) - 1));
        }
    }

    #[test]
    fn base_256_fields_are_big_endian_in_twos_complement() {
        for (field, want) in [
            (&b"\x80\0\0\0\0\0\0\x01"[..], Some(1)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff", Some((1 << 56) - 1)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\0\0\0\0\0\0\0", Some(-(1 << 56))),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x81\0\0\0\0\0\0\x01", None),
            (b"\xc0\0\0\0\0\0\0\x01", None),
            (b"\xfe\xff\xff\xff\xff\xff\xff\xff", None),
            (b"1777777777777777777777", None),
        ] {
            assert_eq!(numeric(field), want, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn fields_are_distinguished_from_text_as_in_go() {
        for (field, want) in [
            (&b"00000000000\0"[..], true),
            (b" 12 \0 \0", true),
            (b"12\0junk", true),
            (b"12 \0junk", false),
            (b"12 3", false),
            (b"", true),
            (b"8", false),
            (b"-1", false),
            (b"1777777777777777777777", true),
            (b"2000000000000000000000", false),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", true),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", false),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", true),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", false),
            (b"\x81\0\0\0\0\0\0\x01", true),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", false),
        ] {
            assert_eq!(go_reads(field), want, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn decimal_numbers_are_digits_only() {
        for (text, want) in [
            (&b"0"[..], Some(0)),
            (b"0012", Some(12)),
            (b"9223372036854775807", Some((1 << 63) - 1)),
            (b"9223372036854775808", None),
            (b"99999999999999999999", None),
            (b"", None),
            (b"-1", None),
            (b"+1", None),
            (b" 1", None),
            (b"1 ", None),
            (b"1.0", None),
            (b"0x1", None),
        ] {
            assert_eq!(decimal(text), want, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn seconds_have_a_sign_and_nine_digits_of_fraction() {
        for (text, want) in [
            (&b"0"[..], Some((0, 0))),
            (b"1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.", Some((1, 0))),
            (b"1.0000000019", Some((1, 1))),
            (b"1.9999999999999", Some((1, 999_999_999))),
            (b"-1", Some((-1, 0))),
            (b"-0", Some((0, 0))),
            (b"-0.25", Some((-1, 750_000_000))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-1.0000000001", Some((-1, 0))),
            (b"9223372036854775807.5", Some((i64::MAX, 500_000_000))),
            (b"-9223372036854775807.5", Some((i64::MIN, 500_000_000))),
            (b"9223372036854775808", None),
            (b".5", None),
            (b"-.5", None),
            (b"-", None),
            (b"", None),
            (b"+1", None),
            (b"1.5.5", None),
            (b"1.-5", None),
            (b"--1", None),
            (b"1e3", None),
            (b"1,5", None),
        ] {
            let got = seconds(text).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(got, want, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_time_is_spelled_as_it_is_read() {
        for (time, want) in [
            ((0, 0), "0"),
            ((1_700_000_000, 0), "1700000000"),
            ((-5, 0), "-5"),
            ((0, 1), "0.000000001"),
            ((12, 500_000_000), "12.5"),
            ((-1, 999_999_999), "-0.000000001"),
            ((-2, 250_000_000), "-1.75"),
            ((i64::MAX, 10), "9223372036854775807.00000001"),
            ((-i64::MAX, 1), "-9223372036854775806.999999999"),
        ] {
            let time = Timestamp { seconds: time.0, nanoseconds: time.1 };
            assert_eq!(spell_seconds(time), want);
            assert_eq!(seconds(want.as_bytes()), Some(time), "{want}");
        }
    }
}
