use std::{
    io::{Read, Write},
    sync::Mutex,
    thread,
};

use super::{
    super::{Pipeline, Ran, Resources, Source, helpers::Helpers},
    *,
};
use crate::{
    call::{Progress, Work},
    codec::Coding,
    digest::Digest,
    limits::Limits,
    pipeline::buffer::Chunk,
};

/// Work of a processor between its ends, and how it says to have ended.
type Act = fn(File, File) -> Outcome;

/// Runs processors on threads of this process.
#[derive(Debug)]
struct Threads(Vec<Act>);

struct OnThread {
    ended: OwnedFd,
    thread: Mutex<Option<thread::JoinHandle<Outcome>>>,
}

impl Start for Threads {
    fn start(
        &self,
        step: &Step,
        input: OwnedFd,
        output: OwnedFd,
        _: Option<&[u8]>,
    ) -> Result<Box<dyn Running>> {
        let act = self.0[step.processor];
        let (ended, end) = pipe::pair(0).unwrap();
        let thread = thread::spawn(move || {
            let outcome = act(File::from(input), File::from(output));
            drop(end);
            outcome
        });
        Ok(Box::new(OnThread { ended, thread: Mutex::new(Some(thread)) }))
    }
}

impl Running for OnThread {
    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn outcome(&mut self) -> Result<Option<Outcome>> {
        let mut thread = self.thread.lock().unwrap();
        if thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(None);
        }
        Ok(thread.take().map(|thread| thread.join().unwrap()))
    }
}

fn ok() -> Outcome {
    Outcome { failure: None, left_behind: false, errors: Vec::new() }
}

fn failed() -> Outcome {
    Outcome { failure: Some("exited with status 1".into()), errors: b"no\nkey\n".to_vec(), ..ok() }
}

fn copy(mut input: File, mut output: File) -> Outcome {
    let _nobody_reads = io::copy(&mut input, &mut output);
    ok()
}

/// Collects the stream.
struct Collect(Vec<u8>);

impl Stage for Collect {
    type Output = Vec<u8>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.0.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0)
    }
}

fn run_within(limits: Limits, acts: &[Act], blob: &[u8]) -> Result<Ran<Vec<u8>>> {
    let step = |processor| Step { processor, id: format!("p{processor}"), media_type: "x/y".into() };
    let steps = (0..acts.len()).map(|processor| (step(processor), None)).collect();
    let chain = Chain { starter: Arc::new(Threads(acts.to_vec())), steps };
    let resources = Resources::new(limits, 2);
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel).unwrap();
    let plan =
        Plan { resources: &resources, lease: &lease, work: Work { cancel: &cancel, progress: &progress } };
    let (mut reader, digest) = (blob, Some(Digest::sha256(blob)));
    let source = Source { reader: &mut reader, size_bytes: u64::try_from(blob.len()).ok(), digest };
    Pipeline::new(source, plan).through(Some(&chain)).run(Collect(Vec::new()))
}

fn run(acts: &[Act], blob: &[u8]) -> Result<Ran<Vec<u8>>> {
    run_within(Limits::default(), acts, blob)
}

fn noise(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(at) >> 5).to_le_bytes()[0]).collect()
}

#[test]
fn the_stream_is_what_the_last_processor_returns() {
    let reverse: Act = |mut input, mut output| {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).unwrap();
        bytes.reverse();
        output.write_all(&bytes).unwrap();
        ok()
    };
    for len in [1, 1000, 5 << 20] {
        let blob = noise(len);
        let ran = run(&[copy, reverse, copy], &blob).unwrap();
        let want: Vec<u8> = blob.iter().rev().copied().collect();
        assert!(ran.output == want, "{len}");
        assert_eq!((&ran.facts.blob, ran.facts.blob_bytes), (&Digest::sha256(&blob), len));
        assert_eq!((&ran.facts.diff_id, ran.facts.stream_bytes), (&Digest::sha256(&want), len));
    }
}

#[test]
fn what_a_processor_returns_is_decoded_as_its_bytes_say() {
    let pack: Act = |mut input, mut output| {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).unwrap();
        output.write_all(&zstd::bulk::compress(&bytes, 1).unwrap()).unwrap();
        ok()
    };
    let blob = noise(100_000);
    let ran = run(&[pack], &blob).unwrap();
    assert_eq!((ran.output, ran.facts.coding), (blob, Coding::Zstd));
}

#[test]
fn the_status_decides_however_complete_the_stream_looks() {
    let fails: Act = |input, output| {
        copy(input, output);
        failed()
    };
    let leaves: Act = |input, output| Outcome { left_behind: true, ..copy(input, output) };
    let silent: Act = |mut input, _| {
        io::copy(&mut input, &mut io::sink()).unwrap();
        ok()
    };
    let early: Act = |_, _| failed();
    for (acts, reason, part) in [
        (&[fails][..], "processor.failed", "processor p0 exited with status 1: no key"),
        (&[fails, copy], "processor.failed", "processor p0 exited"),
        (&[copy, early], "processor.failed", "processor p1 exited"),
        (&[fails, early], "processor.failed", "no key; processor p1 exited"),
        (&[leaves], "processor.left-behind", "p0 ended before"),
        (&[silent], "processor.empty", "p0 wrote nothing"),
    ] {
        // Its copy ends by itself, without a signal, when nobody reads.
        let quiet: Vec<Act> = acts.to_vec();
        let error = run(&quiet, &noise(1000)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, reason), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_processor_may_stop_reading_when_it_has_enough() {
    let first: Act = |input, mut output| {
        io::copy(&mut input.take(10), &mut output).unwrap();
        ok()
    };
    let blob = noise(3 << 20);
    let ran = run(&[first], &blob).unwrap();
    assert_eq!((ran.output.as_slice(), ran.facts.blob_bytes), (&blob[..10], 3 << 20));
}

#[test]
fn a_blob_that_is_not_the_one_asked_for_is_the_stores_fault() {
    let step = Step { processor: 0, id: "p".into(), media_type: "x/y".into() };
    let chain = Chain { starter: Arc::new(Threads(vec![|_, _| failed()])), steps: vec![(step, None)] };
    let resources = Resources::new(Limits::default(), Helpers::default_threads());
    let (cancel, progress) = (Cancel::new(), Progress::default());
    let lease = resources.budget.lease(&cancel).unwrap();
    let plan =
        Plan { resources: &resources, lease: &lease, work: Work { cancel: &cancel, progress: &progress } };
    let mut reader = &b"other"[..];
    let source = Source { reader: &mut reader, size_bytes: Some(5), digest: Some(Digest::sha256(b"right")) };
    let error = Pipeline::new(source, plan).through(Some(&chain)).run(Collect(Vec::new())).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "blob.digest"), "{error}");
    assert!(error.to_string().contains("processor p exited with status 1"), "{error}");
}

#[test]
fn every_limit_counts_what_processors_return() {
    let zeros: Act = |_, mut output| {
        let zeros = vec![0; 1 << 20];
        while output.write_all(&zeros).is_ok() {}
        ok()
    };
    let limits = Limits { stream_bytes: 8 << 20, ..Limits::default() };
    let error = run_within(limits, &[zeros], b"x").unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"), "{error}");
    let limits = Limits { expansion_ratio: 2, ..Limits::default() };
    let error = run_within(limits, &[zeros], b"x").unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.expansion"), "{error}");
}

#[test]
fn processors_that_do_nothing_are_given_up() {
    let hangs: Act = |input, _output| {
        thread::sleep(Duration::from_millis(600));
        drop(input);
        ok()
    };
    let limits = Limits { stall: Duration::from_millis(200), ..Limits::default() };
    let error = run_within(limits, &[hangs], b"x").unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "processor.stalled"), "{error}");
}

#[test]
fn what_a_processor_said_is_shown_from_its_end_on_one_line() {
    assert_eq!(shown(b""), "");
    assert_eq!(shown(b" a\nb\x1b[2J\xff\n"), "a b [2J\u{fffd}");
    let long = shown("ä".repeat(2000).as_bytes());
    assert!(long.starts_with("...ä") && long.len() <= SHOWN_BYTES + 3, "{}", long.len());
}

#[test]
fn a_secret_is_not_shown() {
    assert_eq!(format!("{:?}", Secret::new(b"key".to_vec())), "Secret(3 bytes)");
}
