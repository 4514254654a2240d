//! A mount of a request, and its options one by one.

/// One entry of a mount list as the request has it. Nothing in it has been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mount {
    /// `bind`, `overlay`, `erofs`, or one of them behind prefixes such as `format/mkdir/`.
    pub kind: String,
    /// A path, a template, or a word without meaning.
    pub source: String,
    /// A path below the mount point. Empty in all lists of snapshotters.
    pub target: String,
    /// Options in their order, each `name` or `name=value`, or several of them joined by commas.
    pub options: Vec<String>,
}

impl Mount {
    /// Length of all strings together, in bytes.
    pub(super) fn len_bytes(&self) -> usize {
        let options: usize = self.options.iter().map(String::len).sum();
        self.kind.len() + self.source.len() + self.target.len() + options
    }

    /// Iterates over the options one by one. Empty ones are left out, as the kernel does.
    pub(super) fn each_option(&self) -> impl Iterator<Item = &str> {
        self.options
            .iter()
            .flat_map(|options| Joined { rest: Some(options) })
            .filter(|option| !option.is_empty())
    }
}

/// An iterator over the options in one string.
///
/// containerd joins all strings by commas, and the kernel splits the result at commas. So one string may hold
/// several options. An option that containerd consumes itself is looked for at the start of a string only, and
/// the rest of the string is its value.
struct Joined<'o> {
    rest: Option<&'o str>,
}

/// Options that containerd consumes, and whose values may hold commas.
const WHOLE: [&str; 3] = ["X-containerd.", "uidmap=", "gidmap="];

impl<'o> Iterator for Joined<'o> {
    type Item = &'o str;

    fn next(&mut self) -> Option<&'o str> {
        let rest = self.rest.take()?;
        // With a backslash a comma may be part of a path; such a path is refused, as a whole.
        if WHOLE.iter().any(|name| rest.starts_with(name)) || rest.contains('\\') {
            return Some(rest);
        }
        let mut quoted = false;
        let ends = rest.bytes().enumerate().find_map(|(at, byte)| {
            // SELinux's contexts have commas between quotes.
            quoted ^= byte == b'"';
            let (option, next) = (rest.get(..at)?, rest.get(at + 1..)?);
            (byte == b',' && !quoted && !continues_path(next)).then_some((option, next))
        });
        match ends {
            Some((option, next)) => {
                self.rest = Some(next);
                Some(option)
            }
            None => Some(rest),
        }
    }
}

/// Whether the text after a comma can only be the rest of a path: no option has a slash in its name.
fn continues_path(next: &str) -> bool {
    next.find(['/', '=', ',']).is_some_and(|at| next.get(at..).is_some_and(|rest| rest.starts_with('/')))
}

/// Reads a number without sign, leading zeros or spaces.
pub(super) fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_joined_by_commas_are_several() {
        for (joined, want) in [
            ("ro", &["ro"][..]),
            ("index=off,xino=off,volatile", &["index=off", "xino=off", "volatile"]),
            ("upperdir=/a/fs,lowerdir=/b/fs:/c/fs", &["upperdir=/a/fs", "lowerdir=/b/fs:/c/fs"]),
            (",ro,,rw,", &["ro", "rw"]),
            ("", &[]),
            // Consumed by containerd, with commas that are its own.
            ("uidmap=0:1000:10,10:5000:10", &["uidmap=0:1000:10,10:5000:10"]),
            ("X-containerd.mkdir.path=/a,b:0755", &["X-containerd.mkdir.path=/a,b:0755"]),
            ("context=\"u:r:t:s0:c1,c2\",ro", &["context=\"u:r:t:s0:c1,c2\"", "ro"]),
            // Parts of a path.
            ("lowerdir=/a,b/fs:/c/fs", &["lowerdir=/a,b/fs:/c/fs"]),
            ("lowerdir=/a\\,b,ro", &["lowerdir=/a\\,b,ro"]),
        ] {
            let mount = Mount { options: vec![joined.to_owned()], ..Mount::default() };
            assert_eq!(mount.each_option().collect::<Vec<_>>(), want, "{joined}");
        }
    }
}
