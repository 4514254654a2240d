//! The commands as a user runs them: files, pipes and terminals, results for people and for programs, refusals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
mod command_line;
mod diff;
mod image;
mod indexed;
mod load;
mod merge;
mod overlaybd;
mod overlaybd_apply;
mod overlaybd_export;
mod overlaybd_life;
mod stargz;
mod stream;
mod terminal;

use testkit::Suite;

fn main() {
    let mut suite = Suite::new();
    suite.room("command_line", command_line::add);
    suite.room("apply", apply::add);
    suite.room("diff", diff::add);
    suite.room("image", image::add);
    suite.room("indexed", indexed::add);
    suite.room("load", load::add);
    suite.room("merge", merge::add);
    suite.room("overlaybd", overlaybd::add);
    suite.room("overlaybd_apply", overlaybd_apply::add);
    suite.room("overlaybd_export", overlaybd_export::add);
    suite.room("overlaybd_life", overlaybd_life::add);
    suite.room("stargz", stargz::add);
    suite.room("stream", stream::add);
    suite.room("terminal", terminal::add);
    suite.run()
}
