//! Texts of a table of contents as values: paths, times, digests, extended attributes.
//!
//! Source: RFC 3339; stargz-snapshotter `docs/estargz.md`.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::error::EntryFault;
use crate::{
    limits,
    tree::{Timestamp, Xattr, whiteout, xattr},
};

/// A name as a path below the root, without slashes around it; empty for the root. A `..` does not leave the root.
pub(super) fn path(name: &str) -> Result<Vec<u8>, EntryFault> {
    let bytes = name.as_bytes();
    if bytes.len() > limits::PATH_BYTES {
        return Err(EntryFault::Name("its name is longer than 4095 bytes"));
    }
    if bytes.contains(&0) {
        return Err(EntryFault::Name("its name holds a NUL"));
    }
    let mut components: Vec<&[u8]> = Vec::new();
    for component in bytes.split(|byte| *byte == b'/') {
        // A whiteout is longer than the name that it deletes.
        let prefix = if component.starts_with(whiteout::PREFIX) { whiteout::PREFIX.len() } else { 0 };
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            name if name.len() > limits::NAME_BYTES + prefix => {
                return Err(EntryFault::Name("a component of its name is longer than 255 bytes"));
            }
            name => components.push(name),
        }
    }
    Ok(components.join(&b'/'))
}

/// A time of RFC 3339; nothing is the year 1970. Digits of a second behind the ninth are dropped.
pub(super) fn time(text: &str) -> Result<Timestamp, EntryFault> {
    if text.is_empty() {
        return Ok(Timestamp::default());
    }
    timestamp(text.as_bytes()).ok_or_else(|| EntryFault::Time(text.chars().take(80).collect()))
}

fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (date, rest) = text.split_at_checked(10)?;
    let (clock, rest) = rest.split_at_checked(9)?;
    let ([y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1], [b'T' | b't', h0, h1, b':', n0, n1, b':', s0, s1]) =
        (date, clock)
    else {
        return None;
    };
    let year = decimal(&[*y0, *y1, *y2, *y3], 0, 9999)?;
    let month = decimal(&[*m0, *m1], 1, 12)?;
    let day = decimal(&[*d0, *d1], 1, days_of(year, month))?;
    let hour = decimal(&[*h0, *h1], 0, 23)?;
    let minute = decimal(&[*n0, *n1], 0, 59)?;
    let second = decimal(&[*s0, *s1], 0, 59)?;
    let (nanoseconds, zone) = fraction(rest)?;
    let offset = match zone {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h0, h1, b':', m0, m1] => {
            let minutes = decimal(&[*h0, *h1], 0, 23)? * 60 + decimal(&[*m0, *m1], 0, 59)?;
            if *sign == b'+' { minutes * 60 } else { -minutes * 60 }
        }
        _ => return None,
    };
    let seconds = days_before(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(Timestamp { seconds, nanoseconds })
}

/// Spells a time in RFC 3339 and UTC; nothing for one that it has no year for.
pub(super) fn spell_time(time: Timestamp) -> String {
    let (days, second) = (time.seconds.div_euclid(86_400), time.seconds.rem_euclid(86_400));
    let Some((year, month, day)) = date(days) else { return String::new() };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match time.nanoseconds {
        0 => String::new(),
        nanoseconds => format!(".{nanoseconds:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// The date so many days after the start of 1970, in the years that RFC 3339 has.
fn date(days: i64) -> Option<(i64, i64, i64)> {
    let year = (0..=9999).rev().nth(usize::try_from((days_before(9999, 12, 31) - days) / 366).ok()?)?;
    // Years have 366 days at most, so that the first guess is late or right.
    let year = (0..=year).rev().find(|year| days_before(*year, 1, 1) <= days)?;
    let month = (1..=12).rev().find(|month| days_before(year, *month, 1) <= days)?;
    let day = days - days_before(year, month, 1) + 1;
    (day <= days_of(year, month)).then_some((year, month, day))
}

fn decimal(digits: &[u8], least: i64, most: i64) -> Option<i64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    let value = digits.iter().try_fold(0, |value, byte| Some(value * 10 + digit(byte)?))?;
    (least..=most).contains(&value).then_some(value)
}

/// Nanoseconds of an optional fraction, and what follows it.
fn fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let Some((b'.', digits)) = text.split_first() else { return Some((0, text)) };
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at_checked(len).filter(|_| len > 0)?;
    let shown = digits.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = shown.fold(0, |value, byte| value * 10 + u32::from(byte - b'0'));
    Some((nanoseconds, rest))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from the start of 1970 to a day of the Gregorian calendar.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let before = year - 1;
    let years = before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    let months: i64 = (1..month).map(|month| days_of(year, month)).sum();
    // Day 719 162 is the first of January 1970.
    years + months + day - 1 - 719_162
}

/// The 32 bytes of `sha256:` and 64 digits.
pub(super) fn digest(text: &str) -> Result<[u8; 32], EntryFault> {
    let bytes = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).and_then(|hex| {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, _) = hex.as_bytes().as_chunks();
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(bytes)
    });
    bytes.ok_or_else(|| EntryFault::Digest(text.chars().take(80).collect()))
}

/// An extended attribute from its value in base64.
pub(super) fn attribute(name: &str, value: &str) -> Result<Xattr, EntryFault> {
    let refuse = |fault| EntryFault::Xattr { name: name.chars().take(80).collect(), fault };
    const NAMESPACES: [&str; 3] = ["user.", "trusted.", "security."];
    // Those that steer a file system have a place in an image; who makes an image of a layer leaves them out.
    let is_known = NAMESPACES.iter().any(|space| name.len() > space.len() && name.starts_with(space));
    if !is_known && !xattr::is_kept(name.as_bytes()) {
        return Err(refuse("its namespace has no place in an image"));
    }
    let value = STANDARD.decode(value).map_err(|_not_base64| refuse("its value is not base64"))?;
    xattr::check(name.as_bytes(), &value).map_err(|_too_long| refuse("its name or value is too long"))?;
    Ok(Xattr { name: name.into(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_stay_below_the_root() {
        for (name, want) in [
            ("", ""),
            ("./", ""),
            ("/", ""),
            ("usr/bin/", "usr/bin"),
            ("/a//b/./c", "a/b/c"),
            ("../../out/side", "out/side"),
            ("a/../../b", "b"),
            (".wh..wh..opq", ".wh..wh..opq"),
        ] {
            assert_eq!(path(name).unwrap(), want.as_bytes(), "{name:?}");
        }
        assert!(path(&"a".repeat(255)).is_ok());
        assert!(path(&format!(".wh.{}", "a".repeat(255))).is_ok());
        for name in [&"a".repeat(256), "a\0b", &"a/".repeat(2048)] {
            assert!(matches!(path(name), Err(EntryFault::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_zones_and_any_year() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        for (text, want) in [
            ("", at(0, 0)),
            ("1970-01-01T00:00:00Z", at(0, 0)),
            ("2020-09-13T12:26:40Z", at(1_600_000_000, 0)),
            ("2023-07-22T06:26:40.75+02:00", at(1_690_000_000, 750_000_000)),
            ("1969-12-31T23:59:59.5Z", at(-1, 500_000_000)),
            ("0001-01-01T00:00:00Z", at(-62_135_596_800, 0)),
            ("9999-12-31T23:59:59.9999999999Z", at(253_402_300_799, 999_999_999)),
            ("2000-02-29T00:00:00-23:59", at(951_782_400 + 86_340, 0)),
            ("2100-02-29T00:00:00Z", None),
            ("2020-13-01T00:00:00Z", None),
            ("2020-01-01T24:00:00Z", None),
            ("2020-01-01T00:00:60Z", None),
            ("2020-01-01T00:00:00", None),
            ("2020-01-01T00:00:00.Z", None),
            ("2020-01-01 00:00:00Z", None),
            ("2020-01-01T00:00:00+2:00", None),
        ] {
            assert_eq!(time(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn times_are_spelled_as_they_are_read() {
        for text in [
            "0000-01-01T00:00:00Z",
            "1969-12-31T23:59:59.5Z",
            "1970-01-01T00:00:00Z",
            "2000-02-29T12:00:00.000000001Z",
            "2020-12-31T23:59:59Z",
            "2100-03-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(spell_time(time(text).unwrap()), text);
        }
        for seconds in [i64::MIN, i64::MAX, time("9999-12-31T23:59:59Z").unwrap().seconds + 1] {
            assert_eq!(spell_time(Timestamp { seconds, nanoseconds: 0 }), "");
        }
    }

    #[test]
    fn digests_are_sha256_in_lower_case() {
        let hex = "00ff".repeat(16);
        assert_eq!(digest(&format!("sha256:{hex}")).unwrap()[..3], [0, 255, 0]);
        for text in
            [hex.as_str(), &format!("sha512:{hex}"), &format!("sha256:{}", hex.to_uppercase()), "sha256:00"]
        {
            assert!(matches!(digest(text), Err(EntryFault::Digest(_))), "{text}");
        }
    }

    #[test]
    fn attributes_have_a_namespace_and_values_in_base64() {
        assert_eq!(attribute("user.a", "gAB/").unwrap().value, [0x80, 0, 0x7f]);
        assert_eq!(attribute("trusted.overlay.opaque", "").unwrap().value, b"");
        assert!(attribute("system.posix_acl_access", "").is_ok());
        for (name, value) in [("user.a", "?"), ("user.a", "gAB"), ("user.", ""), ("btrfs.x", ""), ("", "")] {
            assert!(matches!(attribute(name, value), Err(EntryFault::Xattr { .. })), "{name} {value}");
        }
        assert!(attribute(&format!("user.{}", "a".repeat(251)), "").is_err());
    }
}
