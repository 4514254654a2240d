//! Classification of failures: what a caller can do about each, and a stable reason id.
//!
//! Each module has an error enum of its own and implements [`Classify`] for it. The edges see only
//! [`Error`]. Its [`Kind`] chooses the status code; its reason id goes into the log line, the
//! metrics and the status details.

use std::{fmt, io};

/// Kind of a failure: what a caller can do about it. No other part of an error chooses a status
/// code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Another differ may be able to do it: containerd asks the next one in its list. Never
    /// returned after a byte of the layer has been read.
    NotImplemented,
    /// The request, the archive or the image breaks a rule: retrying cannot help.
    Malformed,
    /// The request names a place inside a configured root that has the wrong owner, link or marker, or the configuration
    /// forbids what the layer holds.
    Denied,
    /// The directory is in a state that forbids the request: busy with other content, immutable.
    Conflict,
    /// A limit, the free-space reserve or the queue is exhausted.
    Exhausted,
    /// The bytes differ from those that the descriptor names, or the store could not deliver them.
    DataLoss,
    /// The content store does not have the blob.
    NotFound,
    /// The content store, a processor or the disk went away or stalled: retrying may help.
    Unavailable,
    /// The caller cancelled the request.
    Cancelled,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The source changed while it was being read.
    Changed,
    /// Fault of this program, or of its own output.
    Internal,
}

impl Kind {
    /// Lower-case name for logs and metrics, the same word as the gRPC status code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotImplemented => "unimplemented",
            Self::Malformed => "invalid_argument",
            Self::Denied => "permission_denied",
            Self::Conflict => "failed_precondition",
            Self::Exhausted => "resource_exhausted",
            Self::DataLoss => "data_loss",
            Self::NotFound => "not_found",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Changed => "aborted",
            Self::Internal => "internal",
        }
    }
}

/// An error that knows its [`Kind`] and its reason id.
pub trait Classify: std::error::Error + Send + Sync + 'static {
    /// Kind of this failure, which chooses the status code.
    fn kind(&self) -> Kind;

    /// Stable id of the form `area.rule`, for example `tar.pax.record` or `limit.nodes`.
    fn reason(&self) -> &'static str;
}

/// Classified failure on its way to the edge, with the context that was added underway.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    reason: &'static str,
    context: Vec<String>,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Failure that no module's enum describes. `message` is lower case and holds the values.
    pub fn new(kind: Kind, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, reason, context: Vec::new(), source: message.into().into() }
    }

    /// Puts "`what`: " before the message; the context added last stands first.
    #[must_use]
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.context.push(what.into());
        self
    }

    /// Changes the kind of the failure, where the caller knows whose fault it is.
    #[must_use]
    pub fn with_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Kind of the failure, which chooses the status code.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Stable reason id, for example `limit.nodes`.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Packs the failure into an I/O error, for the traits of `std::io`; [`Error::from_io`] unpacks
    /// it.
    pub fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// Unpacks a failure that [`Error::into_io`] packed. Any other I/O error gets `kind` and
    /// `reason`.
    pub fn from_io(error: io::Error, kind: Kind, reason: &'static str) -> Self {
        match error.downcast::<Self>() {
            Ok(packed) => packed,
            Err(error) => Self { kind, reason, context: Vec::new(), source: Box::new(error) },
        }
    }

    /// Like [`Error::from_io`], for an error of the local disk, which [`disk_kind`] classifies.
    pub fn disk(error: io::Error) -> Self {
        let kind = disk_kind(&error);
        Self::from_io(error, kind, "disk.io")
    }
}

/// The text of an error includes its causes, so `source` is `None`.
impl std::error::Error for Error {}

impl<E: Classify> From<E> for Error {
    fn from(error: E) -> Self {
        Self { kind: error.kind(), reason: error.reason(), context: Vec::new(), source: Box::new(error) }
    }
}

/// Prints the contexts, then the error and its causes, joined by ": ". A cause that ends the text
/// before it is not repeated.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.context.iter().rev() {
            write!(f, "{context}: ")?;
        }
        let mut last = self.source.to_string();
        f.write_str(&last)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

/// Name from a layer as messages print it: in quotes, with escapes for control bytes and for bytes
/// that are not UTF-8, and cut after 256 bytes.
///
/// ```
/// assert_eq!(plywood::error::Quoted(b"a\n\xffb").to_string(), r#""a\n\xffb""#);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a [u8]);

impl Quoted<'_> {
    /// Most bytes printed between the quotes. A longer name ends in `...`.
    const SHOWN_BYTES: usize = 256;
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = Self::SHOWN_BYTES - "...".len();
        f.write_str("\"")?;
        'shown: {
            for chunk in self.0.utf8_chunks() {
                let text = chunk.valid().chars().map(|c| match c {
                    '\'' => c.to_string(),
                    _ => c.escape_debug().to_string(),
                });
                let bytes = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
                for piece in text.chain(bytes) {
                    let Some(rest) = left.checked_sub(piece.len()) else {
                        f.write_str("...")?;
                        break 'shown;
                    };
                    left = rest;
                    f.write_str(&piece)?;
                }
            }
        }
        f.write_str("\"")
    }
}

/// Number of bytes as messages print it.
///
/// ```
/// assert_eq!(plywood::error::Size(103_600_000).to_string(), "98.8 MiB");
/// assert_eq!(plywood::error::Size(2 << 30).to_string(), "2 GiB");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let bytes = u128::from(self.0);
        let mut unit = 1024;
        for name in UNITS {
            let tenths = (bytes * 10 + unit / 2) / unit;
            // A value that rounds up to 1024 is printed in the next unit.
            if tenths < 10_240 || name == "EiB" {
                return match tenths % 10 {
                    0 => write!(f, "{} {name}", tenths / 10),
                    tenth => write!(f, "{}.{tenth} {name}", tenths / 10),
                };
            }
            unit *= 1024;
        }
        Ok(())
    }
}

/// Classifies an I/O error of the local disk: a full disk and a quota are limits, other errors may
/// pass. One that carries an error of ours, of a reader below for example, is of that one's kind.
pub fn disk_kind(error: &io::Error) -> Kind {
    if let Some(carried) = carried(error) {
        return carried.kind();
    }
    use std::io::ErrorKind;
    /// "Too many open files", of this process and of the system. The numbers are those of Linux on
    /// every architecture.
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    match error.kind() {
        _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => Kind::Exhausted,
        ErrorKind::StorageFull
        | ErrorKind::QuotaExceeded
        | ErrorKind::FileTooLarge
        | ErrorKind::OutOfMemory => Kind::Exhausted,
        ErrorKind::PermissionDenied => Kind::Denied,
        _ => Kind::Unavailable,
    }
}

/// Reason id of an I/O error: that of the error of ours that it carries, or `otherwise`.
pub fn disk_reason(error: &io::Error, otherwise: &'static str) -> &'static str {
    carried(error).map_or(otherwise, Error::reason)
}

fn carried(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("checksum 1 is not 2")]
    struct Checksum;

    impl Classify for Checksum {
        fn kind(&self) -> Kind {
            Kind::Malformed
        }
        fn reason(&self) -> &'static str {
            "tar.checksum"
        }
    }

    #[test]
    fn an_io_error_that_carries_one_of_ours_is_of_its_kind() {
        let carried = Error::new(Kind::DataLoss, "zfile.block.checksum", "damaged").into_io();
        assert_eq!(
            (disk_kind(&carried), disk_reason(&carried, "disk.read")),
            (Kind::DataLoss, "zfile.block.checksum")
        );
        let own = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!((disk_kind(&own), disk_reason(&own, "disk.read")), (Kind::Exhausted, "disk.read"));
    }

    #[test]
    fn context_reads_from_the_outside_in() {
        let error = Error::from(Checksum).context("entry \"a\"").context("apply sha256:00");
        assert_eq!(error.to_string(), "apply sha256:00: entry \"a\": checksum 1 is not 2");
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "tar.checksum"));
    }

    #[test]
    fn an_error_survives_the_way_through_an_io_trait() {
        let error = Error::disk(Error::from(Checksum).context("entry \"a\"").into_io());
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "tar.checksum"));
        assert_eq!(error.to_string(), "entry \"a\": checksum 1 is not 2");
        let plain = Error::disk(io::ErrorKind::StorageFull.into());
        assert_eq!((plain.kind(), plain.reason()), (Kind::Exhausted, "disk.io"));
        assert_eq!(disk_kind(&io::Error::from_raw_os_error(24)), Kind::Exhausted);
    }

    #[test]
    fn a_cause_that_is_part_of_the_message_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("file \"a\": {source}")]
        struct Unreadable {
            source: io::Error,
        }
        let error = Error::disk(io::Error::other(Unreadable { source: io::Error::other("no medium") }));
        assert_eq!(error.to_string(), "file \"a\": no medium");
    }

    #[test]
    fn a_size_is_shown_in_the_unit_that_fits_it() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn a_quoted_name_has_no_control_bytes_and_an_end() {
        assert_eq!(Quoted(b"").to_string(), r#""""#);
        assert_eq!(Quoted("fr\u{fc}h \"x\"\\".as_bytes()).to_string(), r#""früh \"x\"\\""#);
        assert_eq!(Quoted(b"\0\x1b[2J\xc3(").to_string(), r#""\0\u{1b}[2J\xc3(""#);
        let long = Quoted(&[b'a'; 4096]).to_string();
        assert_eq!(long.len(), 2 + Quoted::SHOWN_BYTES);
        assert!(long.ends_with("a...\""));
        assert!(Quoted(&[0xff; 4096]).to_string().len() <= 2 + Quoted::SHOWN_BYTES);
    }
}
