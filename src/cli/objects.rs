//! Progress of a load and of an unpacking, object by object: lines that are redrawn on a terminal, JSON lines elsewhere.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use super::output;
use crate::{
    image::progress::{Board, Row, State},
    sys::thread::spawn,
};

/// Time between two looks: about three events a second and object.
const TICK: Duration = Duration::from_millis(300);

/// Shows what has changed since the last look.
type Show = Box<dyn FnMut(&[Row]) + Send>;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Manner {
    /// Lines that are redrawn on a terminal, JSON lines elsewhere
    Auto,
    /// One JSON object a line
    Json,
    /// Not at all
    None,
}

/// Shows a board on standard error until it is dropped.
pub struct Shown(Option<(Sender<()>, JoinHandle<()>)>);

impl Shown {
    pub(super) fn new(board: &Board, manner: Manner) -> Self {
        let mut show: Show = match manner {
            Manner::None => return Self(None),
            Manner::Auto if io::stderr().is_terminal() => drawn(),
            Manner::Auto | Manner::Json => lines(),
        };
        let board = board.clone();
        let (stop, stopped) = channel();
        let watch = move || {
            loop {
                let ended = stopped.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout);
                show(&board.look());
                if ended {
                    return;
                }
            }
        };
        // Without the thread the command runs without progress.
        Self(spawn("progress", watch).ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            // A panic of the thread has been reported.
            let _shown = thread.join();
        }
    }
}

fn done_bytes(row: &Row) -> u64 {
    match row.state {
        State::Complete | State::AlreadyExists | State::Extracted | State::Saved => row.total_bytes,
        State::Waiting | State::Downloading | State::Extracting => row.progress.look().done_bytes,
    }
}

fn lines() -> Show {
    let mut told: HashMap<usize, (State, u64)> = HashMap::new();
    Box::new(move |rows| {
        for (number, row) in rows.iter().enumerate() {
            let now = (row.state, done_bytes(row));
            if told.insert(number, now) != Some(now) {
                let line = json!({
                    "name": row.name,
                    "status": row.state.as_str(),
                    "progress": now.1,
                    "total": row.total_bytes,
                });
                output::note(&line.to_string());
            }
        }
    })
}

fn drawn() -> Show {
    let all = MultiProgress::new();
    let mut bars: Vec<ProgressBar> = Vec::new();
    let style = |template: &str| {
        let style = ProgressStyle::with_template(template);
        style.unwrap_or_else(|_plain_will_do| ProgressStyle::default_bar()).progress_chars("++-")
    };
    let sized = style("{prefix:23} {msg:14} |{wide_bar}| {bytes}/{total_bytes}");
    let without_size = style("{prefix} {msg}");
    Box::new(move |rows| {
        for (number, row) in rows.iter().enumerate() {
            if bars.len() <= number {
                let bar = ProgressBar::new(row.total_bytes).with_prefix(row.name.clone());
                let style = if row.total_bytes > 0 { &sized } else { &without_size };
                bars.push(all.add(bar.with_style(style.clone())));
            }
            if let Some(bar) = bars.get(number) {
                bar.set_message(row.state.as_str());
                bar.set_position(done_bytes(row));
                let is_open = matches!(row.state, State::Waiting | State::Downloading | State::Extracting);
                if !is_open && !bar.is_finished() {
                    // Stays on the screen.
                    bar.abandon();
                }
            }
        }
    })
}
