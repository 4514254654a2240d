//! Names of images: `registry/path:tag`, in full and as people shorten them.
//!
//! Source: distribution/reference `normalize.go`, `regexp.go`.

use super::error::ImageError;

/// Registry of names that have none.
const REGISTRY: &str = "docker.io";
/// Path of names on that registry that are one word.
const LIBRARY: &str = "library";
/// Tag of names that have none.
const TAG: &str = "latest";
/// Longest name without its tag, in bytes.
const NAME_BYTES: usize = 255;

/// Returns `text` in full form: the default registry, `library/` and `:latest` added where they are left out.
///
/// ```
/// use plywood::image::name::full;
/// assert_eq!(full("alpine").unwrap(), "docker.io/library/alpine:latest");
/// assert_eq!(full("host:5000/a/b:1").unwrap(), "host:5000/a/b:1");
/// assert!(full("Upper/Case").is_err());
/// ```
///
/// Errors: [`ImageError::Reference`] for what is no name, or is one with a digest.
pub fn full(text: &str) -> Result<String, ImageError> {
    let refuse = |problem: &str| {
        let shown: String = text.chars().take(NAME_BYTES).collect();
        ImageError::Reference(format!("{shown:?} is not the name of an image: {problem}"))
    };
    if text.contains('@') {
        return Err(refuse("a name with a digest cannot be given to an image"));
    }
    let (name, tag) = split(text);
    let tag = tag.unwrap_or(TAG);
    let (registry, path) = match name.split_once('/') {
        Some((head, path)) if is_registry(head) => (head, path.to_owned()),
        _ if name.contains('/') => (REGISTRY, name.to_owned()),
        _ => (REGISTRY, format!("{LIBRARY}/{name}")),
    };
    let registry = if registry == "index.docker.io" { REGISTRY } else { registry };
    let of_registry = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if !registry.bytes().all(of_registry) || registry.starts_with(['.', '-', ':']) {
        return Err(refuse("the registry is not a host"));
    }
    if !path.split('/').all(is_component) {
        return Err(refuse(
            "the path may have lower-case letters, digits, and single separators between them",
        ));
    }
    let of_tag = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(of_tag) || tag.starts_with(['.', '-']) {
        return Err(refuse("the tag is not one"));
    }
    if registry.len() + 1 + path.len() > NAME_BYTES {
        return Err(refuse("it is too long"));
    }
    Ok(format!("{registry}/{path}:{tag}"))
}

/// Splits a name into the part before the tag, and the tag if it has one.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

fn is_registry(head: &str) -> bool {
    head == "localhost" || head.contains(['.', ':']) || head.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Words of lower-case letters and digits, with `.`, one or two `_`, or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [component.as_bytes().first(), component.as_bytes().last()];
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fit = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    ends.into_iter().all(|end| end.is_some_and(is_word)) && separators.into_iter().all(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_get_what_they_leave_out() {
        for (short, want) in [
            ("shorty:1", "docker.io/library/shorty:1"),
            ("docker.io/library/shorty:1", "docker.io/library/shorty:1"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("a/b", "docker.io/a/b:latest"),
            ("localhost/b", "localhost/b:latest"),
            ("host:5000/b", "host:5000/b:latest"),
            ("example.test/tiny/app1", "example.test/tiny/app1:latest"),
            ("a--b.c_d__e:T.1-x", "docker.io/library/a--b.c_d__e:T.1-x"),
        ] {
            assert_eq!(full(short).unwrap(), want, "{short}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("h.test/{}", "a".repeat(NAME_BYTES));
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for text in [
            "", ":1", "/a", "a/", "a//b", "a..b", "a___b", "-a", "a-", "A/b/C", "a:", "a:-1", "a b", "ä",
            "a\nb", &long, &digest,
        ] {
            assert!(full(text).is_err(), "{text}");
        }
    }
}
