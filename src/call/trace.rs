//! The trace a request belongs to.
//!
//! Source: W3C Trace Context, section 3.2.

/// A `traceparent` header, version 00.
///
/// Source: W3C Trace Context, section 3.2: `00-` 32 hex digits `-` 16 hex digits `-` 2 hex digits, lower
/// case, the two identifiers not all zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(String);

impl TraceParent {
    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `None` when `text` is not of that form; a request is not refused for its trace.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let hex = |part: &&str, len: usize| {
            part.len() == len && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let named = |part: &&str| part.bytes().any(|byte| byte != b'0');
        let [version, trace, parent, flags] = parts.as_slice() else { return None };
        let well_formed = *version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
        (well_formed && named(trace) && named(parent)).then(|| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_is_taken_in_its_one_form_only() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceParent::parse(good).map(|parent| parent.as_str().to_owned()), Some(good.to_owned()));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
