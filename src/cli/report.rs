//! Progress bar and summary shared by `apply` and `diff`.

use std::{
    io::{self, IsTerminal as _},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::{
    call::{Phase, Progress, Seen},
    digest::Digest,
    sys::thread::spawn,
};

/// Time between two drawings of the bar.
const TICK: Duration = Duration::from_millis(100);

/// A progress bar on standard error. Dropping it erases the bar.
pub struct Bar(Option<Drawing>);

struct Drawing {
    /// Dropped to end the thread.
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Bar {
    /// Draws `progress` on standard error, if that is a terminal. Without a total it shows only the bytes done.
    pub fn show(progress: &Progress) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (progress, bar) = (progress.clone(), styled(progress.look().total_bytes));
        let (stop, stopped) = channel();
        let draw = move || {
            loop {
                let position = position(&bar, progress.look());
                bar.update(|state| state.set_pos(position));
                if stopped.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
                    return bar.finish_and_clear();
                }
            }
        };
        // Without the thread the command runs without a bar.
        Self(spawn("progress", draw).ok().map(|thread| Drawing { stop, thread }))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(Drawing { stop, thread }) = self.0.take() {
            drop(stop);
            // Joined so that the next line is printed after the bar is erased. A panic of the thread has been reported.
            let _drawn = thread.join();
        }
    }
}

fn styled(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total_bytes) => {
            let template = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            (ProgressBar::new(total_bytes), template)
        }
        None => (ProgressBar::no_length(), "{spinner} {bytes}, {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_plain_will_do) => bar,
    }
}

/// Returns the bytes that the bar shows. In the phases after the transfer it stays full or, without a total, where
/// it is.
fn position(bar: &ProgressBar, seen: Seen) -> u64 {
    match seen.phase {
        Phase::Start | Phase::LayOut | Phase::Transfer => seen.done_bytes,
        Phase::Finish | Phase::Verify | Phase::Commit => bar.length().unwrap_or_else(|| bar.position()),
    }
}

/// Seconds of every step and in total, as a JSON object.
pub fn seconds(steps: impl IntoIterator<Item = (&'static str, Duration)>, total: Duration) -> Value {
    let mut seconds: Map<_, _> =
        steps.into_iter().map(|(step, time)| (step.to_owned(), json!(time.as_secs_f64()))).collect();
    seconds.insert("total".to_owned(), json!(total.as_secs_f64()));
    Value::Object(seconds)
}

/// Last lines of a report for people: digests, and the seconds of the steps that took any.
pub fn last_lines(
    diff_id: &Digest,
    blob: &Digest,
    steps: impl IntoIterator<Item = (&'static str, Duration)>,
    total: Duration,
) -> String {
    let busy: Vec<_> = steps
        .into_iter()
        .filter(|(_, time)| *time >= Duration::from_millis(1))
        .map(|(step, time)| format!("{} {:.3}", step.replace('_', " "), time.as_secs_f64()))
        .collect();
    let busy = if busy.is_empty() { String::new() } else { format!(" ({}; side by side)", busy.join(", ")) };
    format!("diffID  {diff_id}\nblob    {blob}\nseconds {:.3}{busy}\n", total.as_secs_f64())
}
