//! Tests, collected and run: each has a name, what it needs, and a function.

use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::Need;

/// The tests of one program.
#[derive(Default)]
pub struct Suite {
    /// Put before the names of the tests that are added.
    room: String,
    /// Held by the tests that do not run beside each other.
    turn: Option<Arc<Mutex<()>>>,
    trials: Vec<Trial>,
}

/// A test and its name.
pub type Named<V> = (&'static str, fn() -> V);

impl Suite {
    /// Without any test yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the tests of a part of the program: their names begin with `name::`.
    pub fn room(&mut self, name: &str, add: impl FnOnce(&mut Self)) {
        let outer = self.room.len();
        self.room += name;
        self.room += "::";
        add(self);
        self.room.truncate(outer);
    }

    /// Adds tests that run one after the other, beside the rest of the program.
    pub fn in_turn(&mut self, add: impl FnOnce(&mut Self)) {
        let outer = self.turn.replace(Arc::default());
        add(self);
        self.turn = outer;
    }

    /// Adds a test. It is skipped, and says what it needs, where one of `needs` is missing.
    pub fn test<V: Verdict>(
        &mut self,
        name: impl AsRef<str>,
        needs: &[Need],
        test: impl FnOnce() -> V + Send + 'static,
    ) {
        let name = format!("{}{}", self.room, name.as_ref());
        let (needs, turn) = (needs.to_vec(), self.turn.clone());
        self.trials.push(Trial::ignorable_test(name, move || match needs.iter().find_map(Need::missing) {
            Some(missing) => Ok(Completion::ignored_with(missing)),
            None => {
                let _turn = turn.as_ref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
                test().verdict()
            }
        }));
    }

    /// Adds the tests of a table, which need the same.
    pub fn table<V: Verdict + 'static>(&mut self, needs: &[Need], tests: &[Named<V>]) {
        for (name, test) in tests {
            self.test(name, needs, *test);
        }
    }

    /// Runs the tests that the command line asks for, and ends the process.
    pub fn run(self) -> ! {
        libtest_mimic::run(&Arguments::from_args(), self.trials).exit()
    }

    /// Runs one test at a time.
    pub fn run_in_turn(self) -> ! {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = Some(1);
        libtest_mimic::run(&arguments, self.trials).exit()
    }
}

/// Adds tests that are named after their functions: `tests!(suite, &[Need::Root]; one, another)`.
#[macro_export]
macro_rules! tests {
    ($suite:expr, $needs:expr; $($test:ident),+ $(,)?) => {
        $($suite.test(stringify!($test), $needs, $test);)+
    };
}

/// The result of a test function. A test that panics has failed too.
pub trait Verdict {
    /// Success, a failure with its reason, or that the test turned out to lack something.
    fn verdict(self) -> Result<Completion, Failed>;
}

impl Verdict for () {
    fn verdict(self) -> Result<Completion, Failed> {
        Ok(Completion::Completed)
    }
}

impl Verdict for Result<(), Failed> {
    fn verdict(self) -> Result<Completion, Failed> {
        self.map(|()| Completion::Completed)
    }
}

impl Verdict for Result<Completion, Failed> {
    fn verdict(self) -> Self {
        self
    }
}

impl Verdict for anyhow::Result<()> {
    fn verdict(self) -> Result<Completion, Failed> {
        self.map(|()| Completion::Completed).map_err(|error| {
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            Failed::from(chain.join("\n"))
        })
    }
}
