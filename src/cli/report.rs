//! What apply and diff tell alike, on the way and in the end.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::digest::Digest;

/// How often a bar is drawn when nothing moves.
const TICK: Duration = Duration::from_millis(100);

/// How far the work is, on a terminal; nothing elsewhere. Without a size it tells how much was done.
pub fn progress_bar(size_bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size_bytes {
        Some(size_bytes) => {
            let template = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            (ProgressBar::new(size_bytes), template)
        }
        None => (ProgressBar::no_length(), "{spinner} {bytes}, {bytes_per_sec}"),
    };
    bar.enable_steady_tick(TICK);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_plain_will_do) => bar,
    }
}

/// The seconds of every step and of all.
pub fn seconds(steps: impl IntoIterator<Item = (&'static str, Duration)>, total: Duration) -> Value {
    let mut seconds: Map<_, _> =
        steps.into_iter().map(|(step, time)| (step.to_owned(), json!(time.as_secs_f64()))).collect();
    seconds.insert("total".to_owned(), json!(total.as_secs_f64()));
    Value::Object(seconds)
}

/// The lines that end a report for people: digests, and the seconds of the steps that took any.
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
