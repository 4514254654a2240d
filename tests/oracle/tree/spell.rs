//! An archive spelled by hand: what GNU tar reads but never, or only in another mode, writes.

use libtest_mimic::Failed;

const MTIME: u64 = 1_700_000_000;

/// The archive, bytes after its end included.
pub fn archive() -> Result<Vec<u8>, Failed> {
    let mut out = Spell::default();
    out.pax('g', &[("comment", b"read, checked, ignored")])?;
    out.extended(&[("mtime", b"1700000001.000000007")]).add("./", '5', 0o711, b"")?;

    // Names as people write them, and parents that nobody names.
    out.add("plain//./below/./file", '0', 0o640, b"cleaned")?;
    out.add("/absolute/file", '0', 0o644, b"below the root")?;
    out.add("trailing/", '5', 0o750, b"")?;
    out.add("implied/by/a/link", '2', 0o777, b"target")?;

    // Old and odd type letters.
    out.old("v7-file", 0, b"no magic")?;
    out.old("v7-directory/", 0, b"")?;
    out.add("contiguous", '7', 0o600, b"a file all the same")?;

    // Numbers, names and times beyond the header's fields.
    out.gnu_long('L', &long("names/", 180))?;
    out.add("cut", '0', 0o644, b"GNU's long name")?;
    out.gnu_long('K', &long("targets/", 300))?;
    out.add("long-target", '2', 0o777, b"cut")?;
    out.add_prefixed(&"p".repeat(120), "name", b"the prefix of a POSIX header")?;
    out.base_256("base-256", 3_000_000_000, b"owner and size in binary")?;
    out.extended(&[("path", b"by-pax/caf\xe9"), ("uid", b"4000000000"), ("gid", b"70000")]).add(
        "short",
        '0',
        0o4755,
        b"set-uid by another owner",
    )?;
    out.extended(&[("linkpath", &b"y/".repeat(900))]).add("pax-target", '2', 0o777, b"short")?;
    for (name, mtime) in [
        ("times/before", "-0.25"),
        ("times/whole-before", "-5"),
        ("times/far", "4294967300.5"),
        ("times/cut", "1700000000.123456789987"),
        ("times/epoch", "0.000000001"),
    ] {
        out.extended(&[("mtime", mtime.as_bytes())]).add(name, '0', 0o644, b"")?;
    }
    out.extended(&[
        ("size", b"5"),
        ("atime", b"1.5"),
        ("ctime", b"1.5"),
        ("uname", b"nobody"),
        ("comment", b"x"),
    ])
    .add("pax-size", '0', 0o644, b"sized")?;

    // Attributes; what overlayfs would take as its own must not arrive.
    out.extended(&[
        ("SCHILY.xattr.user.lines", b"two\nlines = \0 and a NUL"),
        ("SCHILY.xattr.user.twice", b"first"),
        ("SCHILY.xattr.user.twice", b"last"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc/shadow"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
    ])
    .add("attributed", '0', 0o644, b"x")?;
    out.extended(&[("SCHILY.xattr.user.of", b"a directory")]).add(
        "attributed-directory/",
        '5',
        0o755,
        b"",
    )?;

    // The later entry of a name wins.
    out.add("twice", '0', 0o644, b"the earlier and longer of two contents")?;
    out.add("linked", '1', 0o644, b"twice")?;
    out.add("twice", '0', 0o600, b"later")?;
    out.add("file-then-directory", '0', 0o644, b"x")?;
    out.add("file-then-directory/", '5', 0o755, b"")?;
    out.add("file-then-directory/child", '0', 0o644, b"y")?;
    out.add("directory-then-link/", '5', 0o755, b"")?;
    out.add("directory-then-link", '2', 0o777, b"twice")?;
    out.add("again/", '5', 0o700, b"")?;
    out.add("again/child", '0', 0o644, b"kept")?;
    out.add("again/", '5', 0o751, b"")?;
    out.add("linked", '1', 0o644, b"linked")?;

    // Through a link of the same layer.
    out.add("real/", '5', 0o755, b"")?;
    out.add("alias", '2', 0o777, b"real")?;
    out.add("alias/through", '0', 0o644, b"lands in real")?;

    // Three ways to spell holes: at 4096 a block of data, at 10000 to the end three bytes more.
    let packed = [&[b'#'; 512][..], b"end"].concat();
    out.extended(&[
        ("GNU.sparse.size", b"10003"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"10000"),
        ("GNU.sparse.numbytes", b"3"),
    ])
    .add("sparse/v0.0", '0', 0o644, &packed)?;
    out.extended(&[
        ("GNU.sparse.size", b"10003"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.name", b"sparse/v0.1"),
        ("GNU.sparse.map", b"4096,512,10000,3"),
    ])
    .add("sparse/GNUSparseFile.1/v0.1", '0', 0o644, &packed)?;
    let mut mapped = b"2\n4096\n512\n10000\n3\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(&packed);
    out.extended(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse/v1.0"),
        ("GNU.sparse.realsize", b"10003"),
    ])
    .add("sparse/GNUSparseFile.1/v1.0", '0', 0o644, &mapped)?;

    out.device("nodes/tty", '3', 4, 64)?;
    out.device("nodes/disk", '4', 8, 17)?;
    out.add("nodes/fifo", '6', 0o600, b"")?;

    // Deletions, in every order.
    out.add("deleted/.wh.file", '0', 0o600, b"")?;
    out.add("nowhere/named/.wh.file", '0', 0, b"")?;
    out.add("before/.wh.file", '0', 0, b"")?;
    out.add("before/file", '0', 0o644, b"stays")?;
    out.add("after/file", '0', 0o644, b"stays")?;
    out.add("after/.wh.file", '0', 0, b"")?;
    out.add(".wh.returns", '0', 0, b"")?;
    out.add("returns/child", '0', 0o644, b"and its directory hides what was below")?;
    out.add("hides/child", '0', 0o644, b"before the mark")?;
    out.add("hides/.wh..wh..opq", '0', 0, b"")?;
    out.add("hides/.wh.more", '0', 0, b"")?;

    out.bytes.resize(out.bytes.len() + 1024, 0);
    // Nobody reads this, but it belongs to the layer's digest.
    out.bytes.resize(out.bytes.len() + 4000, b'#');
    Ok(out.bytes)
}

fn long(head: &str, len: usize) -> String {
    head.to_owned() + &"l".repeat(len)
}

#[derive(Default)]
struct Spell {
    bytes: Vec<u8>,
    extended: Vec<u8>,
}

impl Spell {
    /// An extended header for the next entry.
    fn extended(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        self.extended = spell_records(records);
        self
    }

    fn pax(&mut self, kind: char, records: &[(&str, &[u8])]) -> Result<(), Failed> {
        let body = spell_records(records);
        self.entry(header("pax", kind, 0o644)?, &body)
    }

    fn add(&mut self, name: &str, kind: char, mode: u32, body: &[u8]) -> Result<(), Failed> {
        let mut entry = header(name, kind, mode)?;
        if matches!(kind, '1' | '2') {
            put(&mut entry, 157, body)?;
            return self.entry(entry, b"");
        }
        self.entry(entry, body)
    }

    /// Version 7: no magic, type NUL, a directory by its trailing slash.
    fn old(&mut self, name: &str, kind: u8, body: &[u8]) -> Result<(), Failed> {
        let mut entry = header(name, '0', 0o755)?;
        entry[156] = kind;
        entry[257..].fill(0);
        self.entry(entry, body)
    }

    fn gnu_long(&mut self, kind: char, text: &str) -> Result<(), Failed> {
        let body = [text.as_bytes(), b"\0"].concat();
        let mut entry = header("././@LongLink", kind, 0)?;
        put(&mut entry, 257, b"ustar  \0")?;
        self.entry(entry, &body)
    }

    fn add_prefixed(&mut self, prefix: &str, name: &str, body: &[u8]) -> Result<(), Failed> {
        let mut entry = header(name, '0', 0o644)?;
        put(&mut entry, 345, prefix.as_bytes())?;
        self.entry(entry, body)
    }

    fn base_256(&mut self, name: &str, uid: u32, body: &[u8]) -> Result<(), Failed> {
        let mut entry = header(name, '0', 0o644)?;
        put(&mut entry, 257, b"ustar  \0")?;
        put(&mut entry, 108, &[0x80, 0, 0, 0])?;
        put(&mut entry, 112, &uid.to_be_bytes())?;
        put(&mut entry, 124, &[0x80, 0, 0, 0])?;
        put(&mut entry, 128, &(body.len() as u64).to_be_bytes())?;
        self.sized(entry, body)
    }

    fn device(&mut self, name: &str, kind: char, major: u32, minor: u32) -> Result<(), Failed> {
        let mut entry = header(name, kind, 0o620)?;
        put(&mut entry, 329, format!("{major:07o}\0{minor:07o}\0").as_bytes())?;
        self.entry(entry, b"")
    }

    fn entry(&mut self, mut header: [u8; 512], body: &[u8]) -> Result<(), Failed> {
        put(&mut header, 124, format!("{:011o}\0", body.len()).as_bytes())?;
        self.sized(header, body)
    }

    fn sized(&mut self, mut entry: [u8; 512], body: &[u8]) -> Result<(), Failed> {
        let extended = std::mem::take(&mut self.extended);
        if !extended.is_empty() {
            self.entry(header("PaxHeaders/x", 'x', 0o644)?, &extended)?;
        }
        entry[148..156].fill(b' ');
        let sum: u32 = entry.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut entry, 148, format!("{sum:06o}\0 ").as_bytes())?;
        self.bytes.extend_from_slice(&entry);
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(())
    }
}

fn header(name: &str, kind: char, mode: u32) -> Result<[u8; 512], Failed> {
    let mut entry = [0; 512];
    put(&mut entry, 0, name.as_bytes())?;
    put(&mut entry, 100, format!("{mode:07o}\0{:07o}\0{:07o}\0", 10, 20).as_bytes())?;
    put(&mut entry, 136, format!("{MTIME:011o}\0").as_bytes())?;
    entry[156] = u8::try_from(kind)?;
    put(&mut entry, 257, b"ustar\x0000")?;
    Ok(entry)
}

fn put(entry: &mut [u8; 512], at: usize, bytes: &[u8]) -> Result<(), Failed> {
    entry.get_mut(at..at + bytes.len()).ok_or("a field beyond the header")?.copy_from_slice(bytes);
    Ok(())
}

/// PAX records: a decimal length that counts itself, a space, key, `=`, value, newline.
fn spell_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (1..)
            .map(|digits| rest + digits)
            .find(|len| len.to_string().len() + rest == *len)
            .unwrap_or(rest);
        body.extend_from_slice(format!("{len} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}
