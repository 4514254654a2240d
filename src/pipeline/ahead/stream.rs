//! A decoder that can be taken up at another member or frame: gzip or zstd.

use crate::{
    codec::{CodecError, Coding, Cut, Decoder as _, Gzip, Zstd},
    error::{Error, Kind, Result},
};

/// Largest window of the frames that a helper decodes, in bytes: that of what compressors write unless told otherwise.
pub(super) const HELPER_WINDOW_BYTES: u64 = 8 << 20;

/// Decoder of a stream with helpers, or that of a helper.
pub(super) enum Stream {
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

impl Stream {
    /// A decoder at the start of a stream. It refuses frames with a window above `window_bytes`.
    pub(super) fn new(coding: Coding, window_bytes: u64) -> Result<Self> {
        match coding {
            Coding::Gzip => Ok(Self::Gzip(Box::default())),
            Coding::Zstd => Ok(Self::Zstd(Box::new(Zstd::new(window_bytes)?))),
            Coding::Plain => {
                Err(Error::new(Kind::Internal, "pipeline.ahead", "a plain stream has no decoder"))
            }
        }
    }

    /// Goes to the start of a member or frame that is not the first one, and counts from there.
    pub(super) fn restart(&mut self) {
        match self {
            Self::Gzip(gzip) => **gzip = Gzip::at_member(),
            Self::Zstd(zstd) => zstd.restart(),
        }
    }

    /// Compressed bytes taken so far.
    pub(super) fn taken(&self) -> u64 {
        match self {
            Self::Gzip(gzip) => gzip.taken(),
            Self::Zstd(zstd) => zstd.taken(),
        }
    }

    /// Where the decoder stands, if that is between two blocks, members or frames.
    pub(super) fn cut(&self) -> Option<Cut> {
        match self {
            Self::Gzip(gzip) => gzip.cut(),
            Self::Zstd(zstd) => zstd.is_between_frames().then(|| Cut(zstd.taken().saturating_mul(8))),
        }
    }

    /// The last bytes given out of this member, at most 32768; none of a frame.
    pub(super) fn window(&self) -> Vec<u8> {
        match self {
            Self::Gzip(gzip) => gzip.window(),
            Self::Zstd(_) => Vec::new(),
        }
    }

    /// Whether the decoder stands between two members or frames.
    pub(super) fn is_between_members(&self) -> bool {
        match self {
            Self::Gzip(gzip) => gzip.is_between_members(),
            Self::Zstd(zstd) => zstd.is_between_frames(),
        }
    }

    /// Where the last whole member or frame ends, and how many bytes were given out since.
    pub(super) fn last_end(&self) -> (u64, usize) {
        let (end, bytes) = match self {
            Self::Gzip(gzip) => {
                let (end, bytes) = gzip.last_end();
                (end, bytes.into())
            }
            Self::Zstd(zstd) => zstd.last_end(),
        };
        (end, usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// [`Gzip::decode_to`] and [`Zstd::decode_to`].
    pub(super) fn decode_to(
        &mut self,
        cut: Option<Cut>,
        input: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, CodecError> {
        match self {
            Self::Gzip(gzip) => gzip.decode_to(cut, input, output),
            Self::Zstd(zstd) => zstd.decode_to(cut.map(|cut| cut.0.div_ceil(8)), input, output),
        }
    }

    /// Goes on at another member or frame, when this decoder stands between two.
    pub(super) fn go_on_at_member(&mut self, byte: u64) {
        match self {
            Self::Gzip(gzip) => gzip.go_on_at_member(byte),
            Self::Zstd(zstd) => zstd.go_on_at(byte),
        }
    }

    /// Lets `decode` use this decoder, which stands between two members or frames, for others that need no more memory than
    /// `window` bytes; then it stands where it did.
    pub(super) fn decode_run<T>(&mut self, window: u64, decode: impl FnOnce(&mut Self) -> T) -> T {
        let at = self.taken();
        let limit = self.limit_window(window);
        let decoded = decode(self);
        self.limit_window(limit);
        self.restart();
        self.go_on_at_member(at);
        decoded
    }

    /// Refuses frames with a window above `bytes` from now on; the limit that there was.
    fn limit_window(&mut self, bytes: u64) -> u64 {
        match self {
            Self::Gzip(_) => 0,
            Self::Zstd(zstd) => zstd.set_limit(bytes),
        }
    }

    /// Memory of the window, in bytes, if that depends on the stream.
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Gzip(gzip) => gzip.memory_bytes(),
            Self::Zstd(zstd) => zstd.memory_bytes(),
        }
    }

    /// Ends the stream.
    pub(super) fn finish(&mut self) -> Result<(), CodecError> {
        match self {
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(zstd) => zstd.finish(),
        }
    }
}
