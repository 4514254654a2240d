//! Splits a stream of bytes into ttrpc frames, and decides which of them a server of unary calls
//! accepts.
//!
//! | offset | size | field     | unit and meaning                                       |
//! |-------:|-----:|-----------|--------------------------------------------------------|
//! |      0 |    4 | length    | bytes of the payload that follows the header, ≤ 4 MiB  |
//! |      4 |    4 | stream id | one per request: odd, not one that is still open       |
//! |      8 |    1 | type      | 1 request, 2 response, 3 data                          |
//! |      9 |    1 | flags     | 0 for unary calls; unknown ones are ignored            |
//!
//! The protocol requires ascending ids. Clients that number requests on one thread and send them
//! from another sometimes swap neighbours, which is harmless.
//!
//! Big-endian. Source: containerd/ttrpc `PROTOCOL.md`, `channel.go` and `server.go`.

use std::{collections::HashSet, mem};

use ::ttrpc::{
    Code, MessageHeader,
    proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST},
};

use crate::limits::TTRPC_MESSAGE_BYTES;

/// Bytes read at a time. The buffer grows with the bytes that arrived, not with an announced
/// length.
const READ_STEP: usize = 64 << 10;

/// Bytes of one connection that have arrived and were not taken yet.
#[derive(Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Bytes of an oversized payload that are still to be skipped.
    skip_bytes: usize,
}

/// Frame with its payload, which is empty when it was too long.
pub(super) struct Frame {
    pub(super) header: MessageHeader,
    pub(super) payload: Vec<u8>,
}

/// Decision about a frame.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// A request, to be served.
    Serve,
    /// Frame that needs no answer.
    Ignore,
    /// Request answered with this status at once. The connection is kept.
    Refuse(Code, String),
}

impl Frames {
    /// Buffer for the next bytes.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        self.buffer.reserve(READ_STEP);
        &mut self.buffer
    }

    /// True when no incomplete frame is buffered.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.buffer.is_empty() && self.skip_bytes == 0
    }

    /// Takes the next frame, if it is complete. Payloads beyond the limit are dropped as they
    /// arrive.
    pub(super) fn next(&mut self) -> Option<Frame> {
        let skipped = self.skip_bytes.min(self.buffer.len());
        if skipped > 0 {
            self.buffer.drain(..skipped);
            self.skip_bytes -= skipped;
        }
        let header = MessageHeader::from(self.buffer.get(..MESSAGE_HEADER_LENGTH)?);
        let length = usize::try_from(header.length).ok()?;
        if length > TTRPC_MESSAGE_BYTES {
            self.buffer.drain(..MESSAGE_HEADER_LENGTH);
            self.skip_bytes = length;
            return Some(Frame { header, payload: Vec::new() });
        }
        let end = MESSAGE_HEADER_LENGTH + length;
        if self.buffer.len() < end {
            return None;
        }
        let rest = self.buffer.split_off(end);
        let mut payload = mem::replace(&mut self.buffer, rest);
        payload.drain(..MESSAGE_HEADER_LENGTH);
        Some(Frame { header, payload })
    }
}

impl Frame {
    /// Decides about the frame. `open` holds the ids of the requests that wait for their answers.
    pub(super) fn judge(&self, open: &HashSet<u32>) -> Verdict {
        let MessageHeader { stream_id, length, type_, .. } = self.header;
        match type_ {
            MESSAGE_TYPE_REQUEST => {}
            MESSAGE_TYPE_DATA => {
                let message = format!("stream id {stream_id} is not open for data");
                return Verdict::Refuse(Code::INVALID_ARGUMENT, message);
            }
            _ => return Verdict::Ignore,
        }
        if stream_id % 2 == 0 || open.contains(&stream_id) {
            let message = format!("stream id {stream_id} is even or still open");
            return Verdict::Refuse(Code::INVALID_ARGUMENT, message);
        }
        match usize::try_from(length) {
            Ok(length) if length <= TTRPC_MESSAGE_BYTES => Verdict::Serve,
            _ => {
                let message = format!("message of {length} bytes is longer than {TTRPC_MESSAGE_BYTES}");
                Verdict::Refuse(Code::RESOURCE_EXHAUSTED, message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream_id: u32, type_: u8, length: u32) -> Vec<u8> {
        Vec::from(MessageHeader { length, stream_id, type_, flags: 0 })
    }

    fn feed(frames: &mut Frames, bytes: &[u8]) {
        frames.room().extend_from_slice(bytes);
    }

    #[test]
    fn frames_come_out_whole_however_they_came_in() {
        let mut bytes = frame(1, MESSAGE_TYPE_REQUEST, 3);
        bytes.extend_from_slice(b"abc");
        bytes.extend(frame(3, MESSAGE_TYPE_REQUEST, 0));
        for step in 1..=bytes.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                feed(&mut frames, piece);
                while let Some(frame) = frames.next() {
                    assert_eq!(frame.judge(&HashSet::new()), Verdict::Serve);
                    seen.push((frame.header.stream_id, frame.payload));
                }
            }
            assert_eq!(seen, [(1, b"abc".to_vec()), (3, Vec::new())], "{step}");
        }
    }

    #[test]
    fn an_oversized_payload_is_refused_skipped_and_never_held() {
        let mut frames = Frames::default();
        let long = u32::try_from(TTRPC_MESSAGE_BYTES + 1).unwrap();
        feed(&mut frames, &frame(1, MESSAGE_TYPE_REQUEST, long));
        let refused = frames.next().unwrap();
        assert!(matches!(refused.judge(&HashSet::new()), Verdict::Refuse(Code::RESOURCE_EXHAUSTED, _)));
        let piece = vec![0xff; READ_STEP];
        let mut left = TTRPC_MESSAGE_BYTES + 1;
        while left > 0 {
            let now = left.min(piece.len());
            feed(&mut frames, &piece[..now]);
            left -= now;
            assert!(frames.next().is_none());
            assert!(frames.buffer.capacity() <= 4 * READ_STEP);
        }
        feed(&mut frames, &frame(3, MESSAGE_TYPE_REQUEST, 0));
        let next = frames.next().unwrap();
        assert_eq!(next.judge(&HashSet::new()), Verdict::Serve);
        feed(&mut frames, &frame(5, MESSAGE_TYPE_REQUEST, u32::try_from(TTRPC_MESSAGE_BYTES).unwrap()));
        assert!(frames.next().is_none(), "the largest message waits for its payload");
    }

    #[test]
    fn ids_are_odd_and_not_open_and_only_requests_are_served() {
        let open = HashSet::from([7, 9]);
        let judge = |id, type_| {
            let header = MessageHeader { length: 0, stream_id: id, type_, flags: 0xff };
            Frame { header, payload: Vec::new() }.judge(&open)
        };
        for fine in [1, 11, 5, u32::MAX] {
            assert_eq!(judge(fine, MESSAGE_TYPE_REQUEST), Verdict::Serve, "{fine}");
        }
        for bad in [0, 2, 7, 8, 9] {
            assert!(
                matches!(judge(bad, MESSAGE_TYPE_REQUEST), Verdict::Refuse(Code::INVALID_ARGUMENT, _)),
                "{bad}"
            );
        }
        assert!(matches!(judge(7, MESSAGE_TYPE_DATA), Verdict::Refuse(Code::INVALID_ARGUMENT, _)));
        assert_eq!(judge(9, 2), Verdict::Ignore);
        assert_eq!(judge(9, 77), Verdict::Ignore);
    }
}
