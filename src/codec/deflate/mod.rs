//! DEFLATE: a decoder that takes its input and gives its output in pieces of any size.
//!
//! [`Inflate`] reads blocks, one after the other. The headers, and symbols near the end of a piece of
//! input or output, go through a careful loop that can stop between any two bits; all other symbols
//! go through [`fast`], which looks at edges once a turn. Matches copy from the output itself; what
//! was given out before is kept in a [`History`] for the few that start before it.
//!
//! Source: RFC 1951.

mod bits;
mod copy;
mod cpu;
mod error;
mod fast;
mod history;
mod inflate;
mod table;

pub(crate) use self::history::{History, WINDOW_BYTES};
pub use self::{
    error::{DeflateError, Fault},
    inflate::{Inflate, Pause},
};

/// Fuzz entry: decodes `data` as a deflate stream, in steps of different sizes and from every block, and compares
/// what comes out with zlib-rs.
///
/// # Panics
///
/// When anything differs.
pub fn fuzz(data: &[u8]) {
    /// Enough to cross the window, and the buffers of zlib-rs.
    const LIMIT: usize = 1 << 18;
    let want = second_opinion(data, LIMIT);
    for (step_in, step_out) in [(usize::MAX, LIMIT), (7, 61), (1 << 10, 1 << 9)] {
        let mut inflate = Inflate::new();
        let (mut plain, mut output) = (Vec::new(), vec![0; step_out]);
        let mut outcome = Ok(false);
        'stream: for mut piece in data.chunks(step_in) {
            loop {
                match inflate.decode(&mut piece, &mut output) {
                    Ok((filled, pause)) => {
                        plain.extend_from_slice(output.get(..filled).unwrap_or_default());
                        match pause {
                            Pause::Ended => outcome = Ok(true),
                            Pause::Input => break assert!(piece.is_empty(), "input was left"),
                            Pause::Output if plain.len() < LIMIT => continue,
                            Pause::Output | Pause::Block => {}
                        }
                    }
                    Err(error) => outcome = Err(error),
                }
                break 'stream;
            }
        }
        if plain.len() >= LIMIT || want.0.len() >= LIMIT {
            let common = plain.len().min(want.0.len());
            assert_eq!(plain.get(..common), want.0.get(..common), "steps of {step_in} and {step_out}");
            continue;
        }
        let got = outcome.map_err(|error| error.what.as_str());
        match (got, want.1) {
            // zlib-rs goes on after an error and then has no other word for it.
            (Err(_), Err("repeated call with bad state")) => {}
            (got, want) => assert_eq!(got, want, "steps of {step_in} and {step_out}"),
        }
        if got.is_ok() {
            assert!(plain == want.0, "other bytes in steps of {step_in} and {step_out}");
        }
    }
    if want.1 == Ok(true) && want.0.len() < LIMIT {
        from_every_block(data, &want.0);
    }
}

/// Result of zlib-rs for the same stream: bytes, and whether the stream has ended or why it is refused.
fn second_opinion(data: &[u8], limit: usize) -> (Vec<u8>, Result<bool, &'static str>) {
    let mut inflate = zlib_rs::Inflate::new(false, 15);
    let mut output = vec![0; limit];
    let outcome = inflate.decompress(data, &mut output, zlib_rs::InflateFlush::NoFlush);
    output.truncate(usize::try_from(inflate.total_out()).unwrap_or(limit));
    let outcome = match outcome {
        Ok(status) => Ok(status == zlib_rs::Status::StreamEnd),
        Err(error) => Err(inflate.error_message().unwrap_or(error.as_str())),
    };
    (output, outcome)
}

/// Starts at every block of a valid stream, with its window.
fn from_every_block(data: &[u8], plain: &[u8]) {
    let mut inflate = Inflate::new();
    inflate.pause_at_blocks();
    let (mut input, mut done) = (data, 0);
    let mut output = vec![0; plain.len().saturating_add(1)];
    while let Ok((filled, Pause::Block)) = inflate.decode(&mut input, &mut output) {
        done += filled;
        let (byte, bit) = (inflate.position() / 8, inflate.position() % 8);
        let mut rest = usize::try_from(byte).ok().and_then(|byte| data.get(byte..)).unwrap_or_default();
        let mut other = Inflate::new();
        other.start_at(u32::try_from(bit).unwrap_or_default(), &inflate.window());
        let again = other.decode(&mut rest, &mut output);
        let expected = plain.len().saturating_sub(done);
        assert_eq!(again, Ok((expected, Pause::Ended)), "from the block at byte {byte}, bit {bit}");
        assert!(output.get(..expected) == plain.get(done..), "from the block at byte {byte}, bit {bit}");
    }
}

#[cfg(test)]
mod tests;
