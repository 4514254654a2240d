//! PAX extended headers: their records, and the values they give the next entry.
//!
//! The last of equal keys counts, and an empty value leaves the header's value in place. Keys that
//! do not change what is unpacked (access time, user names, comments, ...) are checked for grammar
//! only.
//!
//! Source: POSIX.1-2017 `pax`, "pax Extended Header"; `star(5)` for `SCHILY.xattr`; containerd
//! `pkg/archive/tar.go` for which keys end up in a file system.

use super::{error::Problem, number, sparse};
use crate::tree::{Timestamp, Xattr, xattr};

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Prefix of attributes in base64, which libarchive writes beside the former. Never read.
const XATTR_LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// Record of a header's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

/// Iterator over the records of a body, in order. It stops after an error.
struct Records<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.body.get(self.at..).filter(|rest| !rest.is_empty())?;
        let parsed = record(rest);
        let item = match parsed {
            Some((record, len)) => {
                self.at += len;
                check_nul(record)
            }
            None => Err(Problem::PaxRecord { at: self.at }),
        };
        if item.is_err() {
            self.body = &[];
        }
        Some(item)
    }
}

/// Splits `LENGTH KEY=VALUE
/// ` off the front of `body`. `LENGTH` counts the whole record, itself included.
fn record(body: &[u8]) -> Option<(Record<'_>, usize)> {
    let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (length, rest) = body.split_at_checked(digits)?;
    let len = usize::try_from(number::decimal(length)?).ok()?;
    let rest = rest.get(..len.checked_sub(digits)?)?;
    let fields = rest.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let equals = fields.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some((Record { key: fields.get(..equals)?, value: fields.get(equals + 1..)? }, len))
}

/// Refuses a NUL in a name, which would end it early for some readers. In other values it is data.
fn check_nul(record: Record<'_>) -> Result<Record<'_>, Problem> {
    let is_name = matches!(record.key, b"path" | b"linkpath" | b"uname" | b"gname" | b"GNU.sparse.name");
    if record.key.contains(&0) || (is_name && record.value.contains(&0)) {
        return Err(Problem::PaxNul { key: record.key.to_vec() });
    }
    Ok(record)
}

/// Values for the next entry from an extended header; `None` leaves the header's value.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size_bytes: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    /// Attributes that an image keeps, in the archive's order.
    pub(super) xattrs: Vec<Xattr>,
    /// Number of attributes that an image does not keep.
    pub(super) dropped_xattrs: u64,
    /// Records of a sparse file. Boxed, because few entries have them.
    pub(super) sparse: Option<Box<sparse::Records>>,
}

impl Overrides {
    /// Reads the body of an extended header (type `x`).
    pub(super) fn decode(body: &[u8]) -> Result<Self, Problem> {
        let mut overrides = Self::default();
        for record in (Records { body, at: 0 }) {
            overrides.apply(record?)?;
        }
        Ok(overrides)
    }

    fn apply(&mut self, record: Record<'_>) -> Result<(), Problem> {
        let Record { key, value } = record;
        match key {
            b"path" => self.path = non_empty(value).map(<[u8]>::to_vec),
            b"linkpath" => self.link_path = non_empty(value).map(<[u8]>::to_vec),
            b"size" => self.size_bytes = number::record("size", value, number::decimal)?,
            b"uid" => self.uid = number::record("uid", value, owner)?,
            b"gid" => self.gid = number::record("gid", value, owner)?,
            b"mtime" => self.mtime = number::record("mtime", value, number::seconds)?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    return self.xattr(name, value);
                }
                if let Some(field) = key.strip_prefix(SPARSE) {
                    return self.sparse.get_or_insert_default().apply(field, value);
                }
            }
        }
        Ok(())
    }

    /// Adds an attribute. An empty value is a value here: files have attributes without one.
    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Problem> {
        if !xattr::is_kept(name) {
            self.dropped_xattrs += 1;
            return Ok(());
        }
        xattr::check(name, value)?;
        self.xattrs.push(Xattr { name: name.to_vec(), value: value.to_vec() });
        Ok(())
    }
}

/// Checks the body of a global header (type `g`), which changes nothing.
///
/// Readers differ in whether it applies to the entries that follow. So it must not hold a record
/// that would change where an entry ends, what it is called or what it carries.
pub(super) fn check_global(body: &[u8]) -> Result<(), Problem> {
    for record in (Records { body, at: 0 }) {
        let Record { key, .. } = record?;
        let changes_entries = matches!(key, b"path" | b"linkpath" | b"size")
            || [XATTR, XATTR_LIBARCHIVE, SPARSE].iter().any(|prefix| key.starts_with(prefix));
        if changes_entries {
            return Err(Problem::PaxGlobal { key: key.to_vec() });
        }
    }
    Ok(())
}

/// Reads an owner. Its range is checked with the entry's other fields, as for owners in headers.
fn owner(value: &[u8]) -> Option<i64> {
    i64::try_from(number::decimal(value)?).ok()
}

fn non_empty(value: &[u8]) -> Option<&[u8]> {
    Some(value).filter(|value| !value.is_empty())
}

/// Body of an extended header that is being written.
///
/// Records are sorted by the bytes of their keys, as Go does, so that equal entries give equal
/// bytes.
#[derive(Debug, Default)]
pub(super) struct Body {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Body {
    /// True when the body has no records.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds a record. `key` holds no `=`.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records.push((key.to_vec(), value.to_vec()));
    }

    /// Adds an extended attribute. Returns false when its name cannot be spelled: a key ends at its
    /// first `=`, and a NUL in it is refused.
    pub(super) fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> bool {
        if name.is_empty() || name.iter().any(|byte| matches!(byte, b'=' | 0)) {
            return false;
        }
        self.add(&[XATTR, name].concat(), value);
        true
    }

    /// Encodes all records, sorted by key.
    pub(super) fn encode(mut self) -> Vec<u8> {
        self.records.sort();
        let mut body = Vec::new();
        for (key, value) in &self.records {
            body.extend_from_slice(record_len(key.len() + value.len()).to_string().as_bytes());
            body.push(b' ');
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        body
    }
}

/// Length of a record whose key and value have `content` bytes, the digits of the length included.
fn record_len(content: usize) -> usize {
    let rest = content + " =\n".len();
    let mut len = rest + digits(rest);
    // Adding the digits may make the length one digit longer.
    while len != rest + digits(len) {
        len = rest + digits(len);
    }
    len
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| usize::try_from(log).unwrap_or_default() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (Vec<u8>, Vec<u8>);

    fn records(body: &[u8]) -> Result<Vec<Pair>, Problem> {
        Records { body, at: 0 }
            .map(|record| record.map(|record| (record.key.to_vec(), record.value.to_vec())))
            .collect()
    }

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let len = (rest..).find(|len| len.to_string().len() + rest == *len).unwrap();
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn written_records_are_sorted_and_count_themselves() {
        // Contents around which the length gets another digit.
        for len in (0..130).chain(985..1010).chain(9_980..10_010) {
            let mut body = Body::default();
            body.add(b"path", &vec![b'p'; len]);
            assert!(body.add_xattr(b"user.a", b"1\n\0="));
            let body = body.encode();
            let want = [line("SCHILY.xattr.user.a", b"1\n\0="), line("path", &vec![b'p'; len])].concat();
            assert_eq!(body, want, "{len}");
        }
        let mut body = Body::default();
        assert!(
            !body.add_xattr(b"user.a=b", b"")
                && !body.add_xattr(b"", b"")
                && !body.add_xattr(b"user.\0", b"")
        );
        assert!(body.is_empty());
    }

    fn decode(records: &[(&str, &[u8])]) -> Result<Overrides, Problem> {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| line(key, value)).collect();
        Overrides::decode(&body)
    }

    #[test]
    fn records_are_read_by_their_length_alone() {
        let pair = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        assert_eq!(records(b"").unwrap(), []);
        assert_eq!(records(b"6 a=b\n").unwrap(), [pair(b"a", b"b")]);
        assert_eq!(records(b"5 a=\n").unwrap(), [pair(b"a", b"")]);
        assert_eq!(records(b"008 a=b\n").unwrap(), [pair(b"a", b"b")]);
        assert_eq!(records(b"8 a=b=\n\n").unwrap(), [pair(b"a", b"b=\n")]);
        assert_eq!(records(b"6 a=b\n7 c=\0\xff\n").unwrap(), [pair(b"a", b"b"), pair(b"c", b"\0\xff")]);
        assert_eq!(records(b"6  =b\n").unwrap(), [pair(b" ", b"b")]);
    }

    #[test]
    fn everything_else_is_refused_with_its_place() {
        for body in [
            &b"a"[..],
            b"\n",
            b"\0",
            b"6",
            b"6 ",
            b"6 a=b",
            b"5 a=b\n",
            b"7 a=b\n",
            b"6 a=b\0",
            b"6 abc\n",
            b"5 =b\n",
            b"4 a=\n",
            b"2 \n",
            b"3 =\n",
            b"0 a=b\n",
            b"+6 a=b\n",
            b"-6 a=b\n",
            b" 6 a=b\n",
            b"6\ta=b\n",
            b"0x6 a=b\n",
            b"18446744073709551622 a=b\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert_eq!(records(body), Err(Problem::PaxRecord { at: 0 }), "{}", body.escape_ascii());
        }
        assert_eq!(records(b"6 a=b\n\0\0"), Err(Problem::PaxRecord { at: 6 }));
        assert_eq!(records(b"6 a=b\n6 a=b\n7 a=b\n"), Err(Problem::PaxRecord { at: 12 }));
    }

    #[test]
    fn nul_is_refused_in_keys_and_in_names() {
        for key in ["path", "linkpath", "uname", "gname", "GNU.sparse.name", "a\0b"] {
            let problem = decode(&[(key, b"x\0y")]).unwrap_err();
            assert_eq!(problem, Problem::PaxNul { key: key.into() });
        }
        assert!(decode(&[("comment", b"x\0y"), ("SCHILY.xattr.user.a", b"\0")]).is_ok());
    }

    #[test]
    fn the_last_of_equal_keys_wins_and_an_empty_value_overrides_nothing() {
        let overrides = decode(&[
            ("path", b"a"),
            ("path", b"b"),
            ("linkpath", b"c"),
            ("linkpath", b""),
            ("size", b"1"),
            ("size", b"2"),
            ("uid", b""),
            ("mtime", b"-0.25"),
        ])
        .unwrap();
        assert_eq!(overrides.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(overrides.link_path, None);
        assert_eq!((overrides.size_bytes, overrides.uid, overrides.gid), (Some(2), None, None));
        assert_eq!(overrides.mtime, Some(Timestamp { seconds: -1, nanoseconds: 750_000_000 }));
    }

    #[test]
    fn values_that_are_no_numbers_are_refused() {
        for (key, value) in [
            ("size", &b"-1"[..]),
            ("size", b"+1"),
            ("size", b"1.0"),
            ("size", b"0x1"),
            ("size", b" 1"),
            ("size", b"9223372036854775808"),
            ("uid", b"-1"),
            ("gid", b"root"),
            ("mtime", b"now"),
            ("mtime", b"1.x"),
        ] {
            let problem = decode(&[(key, value)]).unwrap_err();
            assert_eq!(problem, Problem::PaxValue { key, value: value.to_vec() });
        }
        assert!(decode(&[("atime", b"now"), ("ctime", b""), ("hdrcharset", b"BINARY")]).is_ok());
    }

    #[test]
    fn attributes_are_kept_even_empty_and_others_are_counted() {
        let overrides = decode(&[
            ("SCHILY.xattr.user.a", b""),
            ("SCHILY.xattr.security.capability", b"\x01\0"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.com.apple.ResourceFork", &[0; 70_000]),
            ("SCHILY.xattr.", b"x"),
            ("LIBARCHIVE.xattr.user.b", b"eA=="),
        ])
        .unwrap();
        assert_eq!(
            overrides.xattrs,
            [
                Xattr { name: b"user.a".to_vec(), value: vec![] },
                Xattr { name: b"security.capability".to_vec(), value: vec![1, 0] },
            ]
        );
        assert_eq!(overrides.dropped_xattrs, 3);
        assert_eq!(decode(&[("SCHILY.xattr.user.a", &[0; 65_536])]).unwrap_err().reason(), "xattr.value");
        let long = format!("SCHILY.xattr.user.{}", "n".repeat(251));
        assert_eq!(decode(&[(&long, b"")]).unwrap_err().reason(), "xattr.name");
    }

    #[test]
    fn a_global_header_must_not_touch_what_entries_are() {
        check_global(b"").unwrap();
        check_global(&line("comment", b"5e1b")).unwrap();
        check_global(&[line("mtime", b"1"), line("uid", b"x")].concat()).unwrap();
        for key in
            ["path", "linkpath", "size", "GNU.sparse.major", "SCHILY.xattr.user.a", "LIBARCHIVE.xattr.user.a"]
        {
            for value in [&b"1"[..], b""] {
                let body = [line("comment", b"x"), line(key, value)].concat();
                assert_eq!(check_global(&body), Err(Problem::PaxGlobal { key: key.into() }));
            }
        }
        assert_eq!(check_global(b"7 a=b\n").unwrap_err().reason(), "tar.pax.record");
        assert_eq!(check_global(&line("uname", b"a\0")).unwrap_err().reason(), "tar.pax.nul");
    }
}
