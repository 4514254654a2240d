//! The commands of a Markdown document, in the order in which a reader comes to them.
//!
//! A fenced block of the language `sh` holds commands. A comment above it, which readers do not see, excepts the block:
//! `<!-- not run: REASON -->`. The comment `<!-- test: COMMAND -->` adds a command that a test runs at that place.

use anyhow::Context as _;

/// Languages of blocks that are shown and not typed.
const SHOWN: [&str; 3] = ["json", "text", "toml"];

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line of the document, counted from 1.
    pub line: usize,
    /// The text typed at the shell.
    pub command: String,
}

/// The commands of `document`. An error for a block that is neither commands, nor shown, nor excepted with a reason.
pub fn steps(document: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut lines = document.lines().zip(1..).peekable();
    let mut excepted = None;
    let mut blank = true;
    while let Some((text, line)) = lines.next() {
        if let Some(language) = text.strip_prefix("```") {
            let runs = language == "sh" && excepted.take().is_none();
            anyhow::ensure!(
                language == "sh" || SHOWN.contains(&language),
                "line {line}: a block of the language {language:?}"
            );
            loop {
                let (text, line) =
                    lines.next().with_context(|| format!("line {line}: a block without an end"))?;
                if text == "```" {
                    break;
                }
                if runs && !text.trim().is_empty() {
                    steps.push(Step { line, command: text.to_owned() });
                }
            }
        } else if let Some(comment) = text.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
            match comment.split_once(": ") {
                Some(("test", command)) => steps.push(Step { line, command: command.to_owned() }),
                Some(("not run", _reason)) => excepted = Some(line),
                _ => anyhow::bail!("line {line}: neither a reason nor a command"),
            }
            let ends = excepted.is_none() || lines.peek().is_some_and(|(next, _)| *next == "```sh");
            anyhow::ensure!(ends, "line {line}: no block of commands follows");
        } else {
            anyhow::ensure!(!(blank && text.starts_with("    ")), "line {line}: a block without a language");
        }
        blank = text.is_empty();
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTS: [(&str, &str); 2] = [
        ("README.md", include_str!("../../README.md")),
        ("docs/operations.md", include_str!("../../docs/operations.md")),
    ];

    #[test]
    fn every_block_of_the_documents_is_run_or_says_why_not() {
        for (name, text) in DOCUMENTS {
            let found = steps(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(found.len() > 10, "{name}: {found:#?}");
        }
        // Builds and tests; nothing of it can run inside a test.
        assert_eq!(steps(include_str!("../../CONTRIBUTING.md")).unwrap(), []);
    }

    #[test]
    fn blocks_are_run_line_by_line_unless_they_are_excepted() {
        let text = "\
Text
```sh
one   # with a comment

two
```
```toml
shown = true
```
<!-- not run: REASON -->
```sh
three
```
<!-- test: four -->
";
        let found: Vec<_> = steps(text).unwrap().into_iter().map(|step| (step.line, step.command)).collect();
        let want = [(3, "one   # with a comment"), (5, "two"), (14, "four")];
        assert_eq!(found, want.map(|(line, command)| (line, command.to_owned())));
    }

    #[test]
    fn blocks_that_nobody_can_tell_from_commands_are_refused() {
        for text in [
            "```\nls\n```\n",
            "```bash\nls\n```\n",
            "```sh\nls\n",
            "Text:\n\n    ls\n",
            "<!-- not run: REASON -->\nText\n",
            "<!-- not run -->\n```sh\nls\n```\n",
        ] {
            assert!(steps(text).is_err(), "{text}");
        }
    }
}
