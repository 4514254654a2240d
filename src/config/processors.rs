//! The table `[stream_processors]`, which is containerd's own, and the rules that its values follow.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::paths::is_absolute;
use crate::kind::route::{Accepts, RouteError, Routes};

/// Most processors.
const MOST: usize = 64;
/// Most bytes of all strings of the table: it goes to another process in one message.
const MOST_BYTES: usize = 32 << 10;
/// Longest media type, in bytes, as for descriptors.
const MEDIA_TYPE_BYTES: usize = 255;
/// The variable that names the type of the input. It is set for each layer.
pub const MEDIA_TYPE_VARIABLE: &str = "STREAM_PROCESSOR_MEDIATYPE";

/// One program, `[stream_processors.ID]`. Clients send a processor's payload under its ID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StreamProcessor {
    /// Media types of layers that it takes.
    pub accepts: Vec<String>,
    /// Media type of what it returns.
    pub returns: String,
    /// Program, with its whole path.
    pub path: PathBuf,
    /// Arguments behind the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The program's environment besides the type of its input, each entry a name, `=` and a value.
    #[serde(default)]
    pub env: Vec<String>,
}

/// All processors by their IDs.
pub type StreamProcessors = BTreeMap<String, StreamProcessor>;

/// Lines of the default file about this table.
pub(super) const ABOUT: &str = r#"
# Programs that turn layers of other types into ones that Plywood takes. containerd's table of the same name
# is not read: where both are to take such layers, this is a copy of it. path is absolute; the file and the
# directories above it must belong to root, and be writable by nobody else. A program runs as root without
# capabilities, with STREAM_PROCESSOR_MEDIATYPE and env as its environment, and may write to temporary files
# only. Its standard input is the layer, its standard output the result. For example:
# [stream_processors.plywood]
# accepts = ["application/vnd.oci.image.layer.v1.tar+xz", "application/vnd.oci.image.layer.v1.tar+lz4"]
# returns = "application/vnd.oci.image.layer.v1.tar"
# path = "/usr/bin/plywood"
# args = ["stream"]
# env = []
"#;

impl StreamProcessor {
    /// The environment as names and values.
    pub fn environment(&self) -> Vec<(String, String)> {
        let split =
            |entry: &String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.env.iter().filter_map(split).collect()
    }

    fn strings(&self) -> impl Iterator<Item = &str> {
        let path = self.path.to_str().unwrap_or_default();
        let lists = self.accepts.iter().chain(&self.args).chain(&self.env).map(String::as_str);
        lists.chain([self.returns.as_str(), path])
    }

    /// Errors: what is wrong, in words.
    fn check(&self) -> Result<(), String> {
        let is_media_type = |text: &str| {
            (1..=MEDIA_TYPE_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if self.accepts.is_empty() {
            return Err("accepts is empty".to_owned());
        }
        if let Some(text) = self.accepts.iter().chain([&self.returns]).find(|text| !is_media_type(text)) {
            return Err(format!("{text:?} is not a media type"));
        }
        if self.path.to_str().is_none() || !is_absolute(&self.path) {
            return Err(format!("path {:?} is not an absolute path without \"..\"", self.path));
        }
        let has_name = |entry: &&String| entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        if let Some(entry) = self.env.iter().find(|entry| !has_name(entry)) {
            return Err(format!("env {entry:?} is not a name, = and a value"));
        }
        if self.environment().iter().any(|(name, _)| name == MEDIA_TYPE_VARIABLE) {
            return Err(format!("env sets {MEDIA_TYPE_VARIABLE}, which has the type of the layer"));
        }
        match self.strings().find(|text| text.contains('\0')) {
            Some(text) => Err(format!("{text:?} holds NUL")),
            None => Ok(()),
        }
    }
}

/// Errors: the processor that is wrong, and why, in words.
pub fn check(processors: &StreamProcessors) -> Result<(), (String, String)> {
    if processors.len() > MOST {
        return Err((String::new(), format!("more than {MOST} processors")));
    }
    for (id, processor) in processors {
        if id.is_empty() || id.len() > MEDIA_TYPE_BYTES || id.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err((id.clone(), "not a name of printable characters".to_owned()));
        }
        processor.check().map_err(|problem| (id.clone(), problem))?;
    }
    let bytes: usize = processors.values().flat_map(StreamProcessor::strings).map(str::len).sum();
    if bytes > MOST_BYTES {
        return Err((String::new(), format!("{bytes} bytes in all, more than {MOST_BYTES}")));
    }
    routes(processors).map(drop).map_err(|error| (String::new(), error.to_string()))
}

/// Returns the routes of layers through `processors`.
pub fn routes(processors: &StreamProcessors) -> Result<Routes, RouteError> {
    let accepts = |(id, processor): (&'_ String, &'_ StreamProcessor)| (id.clone(), processor.clone());
    let all: Vec<_> = processors.iter().map(accepts).collect();
    Routes::new(all.iter().map(|(id, processor)| Accepts {
        id,
        accepts: &processor.accepts,
        returns: &processor.returns,
    }))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, parse};

    const GOOD: &str =
        "[stream_processors.\"a.b\"]\naccepts = [\"x/y\"]\nreturns = \"x/z\"\npath = \"/bin/cat\"\n";

    #[test]
    fn the_example_of_the_default_file_is_a_table_that_works() {
        let example = super::ABOUT.lines().skip_while(|line| !line.starts_with("# ["));
        let commented: Vec<_> = example.filter_map(|line| line.strip_prefix("# ")).collect();
        let config = parse(&commented.join("\n"), "example").unwrap();
        assert_eq!(config.stream_processors["plywood"].args, ["stream"]);
        assert!(Config::default_file().contains(super::ABOUT));
    }

    #[test]
    fn a_table_that_cannot_work_is_refused_by_the_name_of_its_processor() {
        assert!(parse(GOOD, "test").is_ok());
        let long = format!("args = [\"{}\"]", "a".repeat(40_000));
        for (change, problem) in [
            (("\"x/y\"", ""), "accepts is empty"),
            (("x/y", "x y"), "\"x y\" is not a media type"),
            (("\"x/z\"", "\"\""), "\"\" is not a media type"),
            (("/bin/cat", "cat"), "not an absolute path"),
            (("/bin/cat", "/bin/../cat"), "not an absolute path"),
            (("path", "env = [\"X\"]\npath"), "env \"X\" is not a name"),
            (("path", "env = [\"=x\"]\npath"), "env \"=x\" is not a name"),
            (("path", "env = [\"STREAM_PROCESSOR_MEDIATYPE=x\"]\npath"), "which has the type of the layer"),
            (("path", "args = [\"a\\u0000b\"]\npath"), "holds NUL"),
            (("path", &format!("{long}\npath")), "more than 32768"),
            (("x/z", "x/y"), "goes round in a circle: a.b"),
            (("\"a.b\"", "\"a b\""), "not a name of printable characters"),
        ] {
            let message = parse(&GOOD.replacen(change.0, change.1, 1), "test").unwrap_err().to_string();
            assert!(message.starts_with("stream_processors") && message.contains(problem), "{message}");
        }
        let twice = format!("{GOOD}{}", GOOD.replace("a.b", "c"));
        let message = parse(&twice, "test").unwrap_err().to_string();
        assert!(message.contains("a.b and c both accept \"x/y\""), "{message}");
        let message = parse(&GOOD.replace("returns = \"x/z\"\n", ""), "test").unwrap_err().to_string();
        assert!(message.contains("missing field `returns`"), "{message}");
    }
}
