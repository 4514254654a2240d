//! Messages between daemon and broker, in bytes.
//!
//! | message | bytes | descriptors |
//! |---|---|---|
//! | setup, the first one | JSON of [`Setup`](super::Setup) | none |
//! | answer | 1, or a text of several bytes | none |
//! | request | number of the processor (4 bytes, little-endian), 1 if there is a payload and 0 if not, the media type | leash, standard input, standard output, and the payload if there is one |
//! | report, on the leash | what happened (1 byte), its number (4 bytes, little-endian), 1 if processes were left behind and 0 if not, end of the standard error | none |

use std::{fmt, io};

use crate::pipeline::processor::{Outcome, ProcessorError};

/// Longest setup, in bytes: the table has 32 KiB of text, each byte of which JSON may spell with two.
pub(super) const SETUP_BYTES: usize = 128 << 10;
/// Longest media type, in bytes.
const MEDIA_TYPE_BYTES: usize = 255;
/// Longest request, in bytes.
pub(super) const REQUEST_BYTES: usize = 5 + MEDIA_TYPE_BYTES;
/// Bytes of a processor's standard error that are kept: the last ones.
pub(super) const ERRORS_BYTES: usize = 64 << 10;
/// Longest report, in bytes.
pub(super) const REPORT_BYTES: usize = 6 + ERRORS_BYTES;
/// The answer of a broker that is ready. One that is not sends the reason as a text.
pub(super) const READY: u8 = 1;
/// Descriptors of a request without payload.
pub(super) const DESCRIPTORS: usize = 3;

/// A request to start a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Place of the processor in the table.
    pub(super) processor: u32,
    pub(super) has_payload: bool,
    pub(super) media_type: String,
}

/// Why a message of the daemon's is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.processor.to_le_bytes().to_vec();
        bytes.push(u8::from(self.has_payload));
        bytes.extend(self.media_type.as_bytes());
        bytes
    }

    /// Reads a request that came with `descriptors` descriptors.
    pub(super) fn decode(bytes: &[u8], descriptors: usize) -> Result<Self, Refused> {
        let refuse = |why: String| Err(Refused(why));
        let Some(([n0, n1, n2, n3, flag], media_type)) = bytes.split_first_chunk() else {
            return refuse(format!("a message of {} bytes", bytes.len()));
        };
        let has_payload = match flag {
            0 => false,
            1 => true,
            flag => return refuse(format!("flag {flag}")),
        };
        let expected = DESCRIPTORS + usize::from(has_payload);
        if descriptors != expected {
            return refuse(format!("{descriptors} descriptors instead of {expected}"));
        }
        let is_long = media_type.len() > MEDIA_TYPE_BYTES;
        match std::str::from_utf8(media_type) {
            Ok(media_type) if !is_long => {
                let processor = u32::from_le_bytes([*n0, *n1, *n2, *n3]);
                Ok(Self { processor, has_payload, media_type: media_type.to_owned() })
            }
            _ => refuse(format!("a media type of {} bytes", media_type.len())),
        }
    }
}

/// Outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) what: What,
    pub(super) left_behind: bool,
    pub(super) errors: Vec<u8>,
}

/// End of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Killed(i32),
    /// It could not be executed; the number of the error.
    NotStarted(i32),
    /// So many run already.
    Busy(i32),
}

impl Report {
    pub(super) fn of(what: What) -> Self {
        Self { what, left_behind: false, errors: Vec::new() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (what, number) = match self.what {
            What::Exited(status) => (0, status),
            What::Killed(signal) => (1, signal),
            What::NotStarted(error) => (2, error),
            What::Busy(running) => (3, running),
        };
        let mut bytes = vec![what];
        bytes.extend(number.to_le_bytes());
        bytes.push(u8::from(self.left_behind));
        bytes.extend(&self.errors);
        bytes
    }

    /// Reads a report. `None`: it is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let ([what, n0, n1, n2, n3, left_behind], errors) = bytes.split_first_chunk()?;
        let number = i32::from_le_bytes([*n0, *n1, *n2, *n3]);
        let what = match what {
            0 => What::Exited(number),
            1 => What::Killed(number),
            2 => What::NotStarted(number),
            3 => What::Busy(number),
            _ => return None,
        };
        Some(Self { what, left_behind: *left_behind == 1, errors: errors.to_vec() })
    }

    /// The report as the pipeline takes it. Errors: the processor `id` never ran.
    pub(super) fn outcome(self, id: &str) -> Result<Outcome, ProcessorError> {
        let Self { what, left_behind, errors } = self;
        let failure = match what {
            What::Exited(0) => None,
            What::Exited(status) => Some(format!("exited with status {status}")),
            What::Killed(signal) => Some(format!("was killed by signal {signal}")),
            What::NotStarted(error) => {
                let problem = io::Error::from_raw_os_error(error).to_string();
                return Err(ProcessorError::Start { id: id.to_owned(), problem });
            }
            What::Busy(running) => return Err(ProcessorError::Busy { running }),
        };
        Ok(Outcome { failure, left_behind, errors })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_says_how_many_descriptors_it_has() {
        let request = Request { processor: 7, has_payload: true, media_type: "a/b".into() };
        let bytes = request.encode();
        assert_eq!(Request::decode(&bytes, 4), Ok(request));
        for descriptors in [0, 1, 3, 5, 8] {
            assert!(Request::decode(&bytes, descriptors).is_err(), "{descriptors}");
        }
        assert!(Request::decode(&bytes[..4], 3).is_err());
        assert!(Request::decode(&[0, 0, 0, 0, 2, b'a'], 4).is_err(), "a flag that means nothing");
        assert!(Request::decode(&[0, 0, 0, 0, 0, 0xff], 3).is_err(), "not UTF-8");
        assert!(Request::decode(&[b'a'; REQUEST_BYTES + 1], 3).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_fail_otherwise_than_by_refusing(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            descriptors in 0_usize..9,
        ) {
            if let Ok(request) = Request::decode(&bytes, descriptors) {
                prop_assert_eq!(request.encode(), bytes.clone());
            }
            let _whatever = Report::decode(&bytes);
        }

        #[test]
        fn a_report_reads_as_it_was_written(
            what in prop_oneof![
                any::<i32>().prop_map(What::Exited),
                any::<i32>().prop_map(What::Killed),
                any::<i32>().prop_map(What::NotStarted),
                any::<i32>().prop_map(What::Busy),
            ],
            left_behind: bool,
            errors in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let report = Report { what, left_behind, errors };
            prop_assert_eq!(Report::decode(&report.encode()), Some(report));
        }
    }
}
