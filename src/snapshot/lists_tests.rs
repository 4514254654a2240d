//! Mount lists in short, for the tests of this folder.

use super::Mount;

/// A list: each line a type, a source and options in brackets. `_` in templates is a space, and every
/// name of `places` at the start of a path stands for that directory.
pub(super) fn mounts(list: &str, places: &[(&str, &std::path::Path)]) -> Vec<Mount> {
    let mut list = list.to_owned();
    for (name, path) in places {
        list = list.replace(&format!("{name}/"), &format!("{}/", path.display()));
    }
    list.lines().map(str::trim).filter(|line| !line.is_empty()).map(mount).collect()
}

fn mount(line: &str) -> Mount {
    let (kind, rest) = line.split_once(' ').unwrap();
    let (source, options) = rest.split_once(" [").unwrap();
    // Only templates have spaces, and no option that stands in a list has an underscore besides these.
    let words = |text: &str| match text.contains("{{") || !text.contains('=') {
        true => text.replace('_', " "),
        false => text.to_owned(),
    };
    Mount {
        kind: kind.to_owned(),
        source: words(source),
        target: String::new(),
        options: options.trim_end_matches(']').split_whitespace().map(words).collect(),
    }
}
