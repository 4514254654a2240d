//! Directives of `log.level` and of `RUST_LOG`.
//!
//! `EnvFilter` takes a word that is no level for the name of a target: with `warning` or `loud` it
//! would log nothing of this program, and report no error. Such words are refused here.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// Parses `text`: levels and directives joined by commas, such as `info,plywood::containerd=debug`.
/// `warning` stands for `warn`, as it does for containerd.
///
/// Errors: the reason of the refusal, in words.
///
/// ```
/// assert!(plywood::config::log_filter("warning,plywood::containerd=debug").is_ok());
/// assert!(plywood::config::log_filter("loud").is_err());
/// ```
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    let directives: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if directives.is_empty() {
        return Err("names no level: error, warn, info, debug, trace or off".to_owned());
    }
    let mut concerns_us = false;
    for directive in &directives {
        concerns_us |= concerns_this_program(directive)?;
    }
    if !concerns_us {
        return Err("nothing of plywood would be logged: put a level in front, such as \"info,\"".to_owned());
    }
    let spelt: Vec<_> = directives.iter().map(|directive| without_alias(directive)).collect();
    spelt.join(",").parse().map_err(|error| format!("not a level and not a directive: {error}"))
}

/// True when a directive applies to this program's lines. Errors: a word that is neither a level
/// nor this program's target.
fn concerns_this_program(directive: &str) -> Result<bool, String> {
    const OURS: &str = "plywood";
    let (target, is_bare) = match directive.find(['=', '[']) {
        Some(end) => (directive.get(..end).unwrap_or_default(), false),
        None => (directive, true),
    };
    let is_ours = OURS.starts_with(target) || target.starts_with(OURS);
    let is_level = without_alias(directive).parse::<LevelFilter>().is_ok();
    if is_bare && !is_level && !target.starts_with(OURS) {
        return Err(format!(
            "{directive:?} is not error, warn, info, debug, trace or off; for a target write {directive}=LEVEL"
        ));
    }
    Ok(is_level || is_ours)
}

/// Directive with `warn` in place of `warning`, as `EnvFilter` needs it.
fn without_alias(directive: &str) -> String {
    const ALIAS: &str = "warning";
    let start = directive.len().saturating_sub(ALIAS.len());
    match directive.split_at_checked(start) {
        Some((before, level))
            if level.eq_ignore_ascii_case(ALIAS) && (before.is_empty() || before.ends_with('=')) =>
        {
            format!("{before}warn")
        }
        _ => directive.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_and_not_taken_for_a_target() {
        for text in
            ["loud", "", " ", ",", "fatal", "info,loud", "h2", "plywood=loud", "plywod=debug", "h2=info"]
        {
            assert!(log_filter(text).is_err(), "{text:?}");
        }
        let message = log_filter("loud").unwrap_err();
        assert!(message.contains("\"loud\" is not error, warn, info"), "{message}");
    }

    #[test]
    fn levels_and_directives_mean_what_they_meant() {
        for (text, same_as) in [
            ("warn", "warn"),
            ("WARN", "warn"),
            ("off", "off"),
            ("3", "info"),
            (" info , plywood::containerd=debug", "info,plywood::containerd=debug"),
            ("plywood", "plywood=trace"),
            ("plywood::containerd=debug", "plywood::containerd=debug"),
            ("info,h2=trace", "info,h2=trace"),
            ("[apply{namespace=k8s.io}]=debug", "[apply{namespace=k8s.io}]=debug"),
            ("plywood[apply]=debug", "plywood[apply]=debug"),
        ] {
            let want: EnvFilter = same_as.parse().unwrap();
            assert_eq!(log_filter(text).unwrap().to_string(), want.to_string(), "{text}");
        }
    }

    #[test]
    fn warning_is_another_word_for_warn() {
        for (text, same_as) in [
            ("warning", "warn"),
            ("Warning", "warn"),
            ("info,plywood::containerd=warning", "info,plywood::containerd=warn"),
        ] {
            let want: EnvFilter = same_as.parse().unwrap();
            assert_eq!(log_filter(text).unwrap().to_string(), want.to_string(), "{text}");
        }
    }
}
