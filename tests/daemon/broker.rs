//! The broker as a child of this process, which speaks to it as a daemon would, or as whoever has taken one over.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use plywood::sys::{
    messages::{self, Message},
    pipe::{self, Wanted},
};
use testkit::{Suite, daemon::until, host, random::Random};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[testkit::Need::Root];
        a_processor_gets_its_descriptors_and_its_environment_and_nothing_else,
        a_processor_has_no_capabilities_and_gets_none,
        a_processor_writes_to_temporary_files_only,
        a_payload_is_on_descriptor_3,
        the_broker_starts_nothing_but_what_its_table_holds,
        whatever_bytes_come_the_broker_starts_nothing_for_them,
        the_broker_ends_with_its_daemon_and_so_do_processors,
        a_program_that_others_can_write_is_not_in_the_table,
        no_more_than_256_processors_run,
        what_one_processor_has_left_is_not_held_against_another,
        a_setup_that_is_too_long_or_comes_again_starts_nothing,
    ];
    testkit::tests![suite, &[testkit::Need::Root, testkit::Need::Tool("strace")];
        a_processor_whose_broker_dies_while_it_is_being_started_never_begins,
    ];
}

/// A table of processors for type `x/y`, by their numbers.
const PROGRAMS: [(&str, &str); 5] = [
    ("0-cat", "/bin/cat"),
    ("1-env", "/usr/bin/env"),
    ("2-shell", "/bin/sh"),
    ("3-sleep", "/bin/sleep"),
    ("4-ls", "/bin/ls"),
];

struct Broker {
    socket: OwnedFd,
    child: Child,
}

/// The other ends of a processor.
struct Processor {
    leash: OwnedFd,
    input: File,
    output: File,
}

/// How a processor ended, in the first byte of the report, and the rest of it.
type Report = (u8, i32, Vec<u8>);

impl Broker {
    /// Starts one. `shell` is what the shell of the table runs.
    fn start(shell: &str) -> Self {
        let (broker, answer) = Self::launch(&setup(shell));
        assert_eq!(answer, [1], "{}", String::from_utf8_lossy(&answer));
        broker
    }

    fn launch(setup: &serde_json::Value) -> (Self, Vec<u8>) {
        let (socket, far) = messages::pair().unwrap();
        let mut command = host::plywood();
        command.arg("broker").stdin(Stdio::from(far)).stderr(Stdio::null());
        // One that somebody forgot: it is not closed on exec.
        let forgotten = File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty()).unwrap();
        let child = command.spawn().unwrap();
        drop(command);
        messages::send(&socket, setup.to_string().as_bytes(), &[]).unwrap();
        let (answer, _) = receive(&socket);
        (Self { socket, child }, answer)
    }

    fn request(&self, number: u32, media_type: &str, payload: Option<&OwnedFd>) -> Processor {
        let (leash, far) = messages::pair().unwrap();
        let (read, input) = pipe::pair(0).unwrap();
        let (output, write) = pipe::pair(0).unwrap();
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.push(u8::from(payload.is_some()));
        bytes.extend(media_type.as_bytes());
        let mut descriptors = vec![far.as_fd(), read.as_fd(), write.as_fd()];
        descriptors.extend(payload.map(|payload| payload.as_fd()));
        messages::send(&self.socket, &bytes, &descriptors).unwrap();
        Processor { leash, input: input.into(), output: output.into() }
    }

    /// Runs a processor with this input. Returns its output and how it ended.
    fn run(&self, number: u32, input: &[u8]) -> (String, Report) {
        let Processor { leash, input: mut write, mut output } = self.request(number, "x/y", None);
        let _it_may_not_read = write.write_all(input);
        drop(write);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (text, report(&leash).unwrap())
    }

    /// Processes that it has started, zombies included.
    fn children(&self) -> Vec<String> {
        children(self.child.id())
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn setup(shell: &str) -> serde_json::Value {
    let processor = |(id, path): (&str, &str)| {
        let args = match path {
            "/bin/sh" => vec!["-c", shell],
            "/bin/sleep" => vec!["1000"],
            "/bin/ls" => vec!["-l", "/proc/self/fd"],
            _ => vec![],
        };
        let env = ["A=b c", "D=e=f"];
        let table = serde_json::json!({
            "accepts": ["x/y"], "returns": "x/z", "path": path, "args": args, "env": env
        });
        (id.to_owned(), table)
    };
    let processors: serde_json::Map<_, _> = PROGRAMS.into_iter().map(processor).collect();
    serde_json::json!({
        "processors": processors, "user": 0, "memory_bytes": 1 << 30, "cpu_seconds": 60, "sandbox": true,
        "log": {"level": "off", "format": "text"}
    })
}

fn receive(socket: &OwnedFd) -> (Vec<u8>, usize) {
    pipe::ready(&[(socket.as_fd(), Wanted::Read)], Some(Duration::from_secs(20))).unwrap();
    let mut buffer = vec![0; 1 << 17];
    let Message { len, descriptors, .. } = messages::receive(socket, &mut buffer).unwrap();
    buffer.truncate(len);
    (buffer, descriptors.len())
}

/// `None` when the leash is closed without one.
fn report(leash: &OwnedFd) -> Option<Report> {
    let (bytes, _) = receive(leash);
    let (&what, rest) = bytes.split_first()?;
    let number = i32::from_le_bytes(rest[..4].try_into().unwrap());
    Some((what, number, rest[5..].to_vec()))
}

const SUCCESS: (u8, i32) = (0, 0);

fn a_processor_gets_its_descriptors_and_its_environment_and_nothing_else() {
    let broker = Broker::start("");
    let (text, report) = broker.run(1, b"");
    assert_eq!((report.0, report.1), SUCCESS);
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b c", "D=e=f", "STREAM_PROCESSOR_MEDIATYPE=x/y"]);
    let (text, _) = broker.run(4, b"");
    let open: Vec<_> =
        text.lines().skip(1).filter_map(|line| line.split(" -> ").next()?.rsplit(' ').next()).collect();
    // The fourth is the directory that lists them.
    assert_eq!(open, ["0", "1", "2", "3"], "{text}");
    assert!(text.lines().last().unwrap().contains("/proc/"), "{text}");
    let (text, report) = broker.run(0, b"bytes");
    assert_eq!((text.as_str(), report), ("bytes", (0, 0, Vec::new())));
}

fn a_processor_has_no_capabilities_and_gets_none() {
    let broker = Broker::start("cat /proc/self/status; ulimit -c; pwd; echo said >&2; exit 3");
    let (text, report) = broker.run(2, b"");
    assert_eq!(report, (0, 3, b"said\n".to_vec()));
    for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.ends_with("\n0\n/\n"), "no core file, in the root: {text}");
}

fn a_processor_writes_to_temporary_files_only() {
    let scratch = tempfile::tempdir_in("/var").unwrap();
    let target = scratch.path().join("file");
    let shell =
        format!("f=$(mktemp) && echo x > $f && rm $f && echo y > /dev/null; echo z > {}", target.display());
    let broker = Broker::start(&shell);
    let (_, report) = broker.run(2, b"");
    if testkit::Need::Landlock.missing().is_none() {
        assert_ne!((report.0, report.1), SUCCESS);
        assert!(!target.exists());
        let said = String::from_utf8(report.2).unwrap();
        assert!(said.contains("Permission denied") && said.lines().count() == 1, "{said}");
    } else {
        assert_eq!((report.0, report.1), SUCCESS);
    }
}

fn a_payload_is_on_descriptor_3() {
    let broker = Broker::start("cat <&3; echo; [ -e /proc/self/fd/4 ] || echo none");
    let (read, write) = pipe::pair(0).unwrap();
    File::from(write).write_all(b"a key").unwrap();
    let Processor { leash, mut output, .. } = broker.request(2, "x/y", Some(&read));
    drop(read);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "a key\nnone\n");
    assert_eq!(report(&leash), Some((0, 0, Vec::new())));
    let (_, report) = broker.run(2, b"");
    assert!(
        String::from_utf8_lossy(&report.2).contains("Bad file descriptor"),
        "without a payload: {report:?}"
    );
}

fn the_broker_starts_nothing_but_what_its_table_holds() {
    let broker = Broker::start("");
    let before = broker.descriptors();
    let long = "x".repeat(300);
    for (number, media_type) in
        [(5, "x/y"), (u32::MAX, "x/y"), (0, "x/z"), (0, ""), (0, "x/y\0A=b"), (0, "X/Y"), (0, long.as_str())]
    {
        let Processor { leash, mut output, .. } = broker.request(number, media_type, None);
        assert_eq!(report(&leash), None, "{number} {media_type:?}");
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
        assert!(broker.children().is_empty());
    }
    let (near, far) = messages::pair().unwrap();
    let request = [0, 0, 0, 0, 0, b'x', b'/', b'y'];
    let with_payload = [0, 0, 0, 0, 1, b'x', b'/', b'y'];
    for (bytes, wrong) in [(&request[..], [0, 1, 2, 4, 8]), (&with_payload[..], [0, 1, 3, 5, 8])] {
        for count in wrong {
            messages::send(&broker.socket, bytes, &vec![far.as_fd(); count]).unwrap();
        }
    }
    drop(far);
    assert_eq!(report(&near), None, "all copies were closed");
    let (text, report) = broker.run(0, b"still there");
    assert_eq!((text.as_str(), report.0), ("still there", 0));
    until("its descriptors", Duration::from_secs(2), || broker.descriptors() == before);
}

fn whatever_bytes_come_the_broker_starts_nothing_for_them() {
    let broker = Broker::start("");
    let before = broker.descriptors();
    let mut random = Random(7);
    let (near, far) = messages::pair().unwrap();
    let (read, write) = pipe::pair(0).unwrap();
    let ends: [BorrowedFd<'_>; 3] = [far.as_fd(), read.as_fd(), write.as_fd()];
    let mut sent = 0;
    while sent < 3000 {
        let len = random.below(300);
        let mut bytes = random.bytes(len);
        if random.below(2) == 0 {
            // Close to a request, but never one.
            bytes = [&[0, 0, 0, 0, random.below(2).to_le_bytes()[0]][..], b"x/y"].concat();
            let at = random.below(8);
            bytes[at] ^= 1 << random.below(8);
            if bytes[5..] == *b"x/y" && bytes[..4] < [5, 0, 0, 0][..] && bytes[1..4] == [0; 3] && bytes[4] < 2
            {
                continue;
            }
        }
        if bytes.is_empty() {
            continue;
        }
        let descriptors: Vec<_> = (0..random.below(9)).map(|_| *random.of(&ends)).collect();
        match messages::send(&broker.socket, &bytes, &descriptors) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    drop((far, read, write));
    assert_eq!(report(&near), None, "all copies were closed, and none was answered");
    let (text, report) = broker.run(0, b"still there");
    assert_eq!((text.as_str(), report.0), ("still there", 0));
    assert!(broker.children().is_empty());
    until("its descriptors", Duration::from_secs(2), || broker.descriptors() == before);
}

fn the_broker_ends_with_its_daemon_and_so_do_processors() {
    let mut broker = Broker::start("trap '' TERM; sleep 1000 & setsid sleep 1001 & wait");
    let held: Vec<_> = [3, 3, 2, 2].into_iter().map(|number| broker.request(number, "x/y", None)).collect();
    until("its children", Duration::from_secs(5), || broker.children().len() == 4);
    until("their children", Duration::from_secs(5), || {
        broker.children().iter().map(|pid| children(pid.parse().unwrap()).len()).sum::<usize>() == 4
    });
    let mut all = broker.children();
    all.extend(broker.children().iter().flat_map(|pid| children(pid.parse().unwrap())));
    assert_eq!(all.len(), 8);
    let (near, _far) = messages::pair().unwrap();
    let closed = Instant::now();
    drop(std::mem::replace(&mut broker.socket, near));
    assert!(broker.child.wait().unwrap().success());
    assert!(closed.elapsed() < Duration::from_secs(1), "{:?}", closed.elapsed());
    for pid in all {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(status.is_empty() || status.contains(") Z "), "{status}");
    }
    drop(held);
}

/// Killed with the test, should that fail.
struct Strace(Child);

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Between fork and the call that ties the child's life to the broker's, the child has no reason to end with it. strace
/// keeps a child at that call for longer than the broker lives.
fn a_processor_whose_broker_dies_while_it_is_being_started_never_begins() {
    let mut broker = Broker::start("");
    let scratch = tempfile::tempdir().unwrap();
    let trace = scratch.path().join("trace");
    let strace = std::process::Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=prctl,execve", "-e", "inject=prctl:delay_enter=2s", "-o"])
        .arg(&trace)
        .args(["-p", &broker.child.id().to_string()])
        .spawn();
    let mut strace = Strace(strace.unwrap());
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let id = broker.child.id().to_string();
    until("strace has it", Duration::from_secs(10), || !status(&id).contains("TracerPid:\t0\n"));
    let held = broker.request(3, "x/y", None);
    until("a child", Duration::from_secs(10), || broker.children().len() == 1);
    let child = broker.children().remove(0);
    broker.child.kill().unwrap();
    broker.child.wait().unwrap();
    assert!(
        status(&child).starts_with("Name:\tplywood\n"),
        "it was held before it began: {}",
        status(&child)
    );
    until("the child is gone", Duration::from_secs(10), || {
        let status = status(&child);
        status.is_empty() || status.contains("State:\tZ")
    });
    strace.0.wait().unwrap();
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("PR_SET_PDEATHSIG") && !trace.contains("execve"), "{trace}");
    drop(held);
}

/// One that runs has started a process that left its group, and whose parent has ended.
fn what_one_processor_has_left_is_not_held_against_another() {
    let broker = Broker::start("(setsid sh -c 'sleep 1; echo alive' &); cat; sleep 2");
    let mut first = broker.request(2, "x/y", None);
    until("its process", Duration::from_secs(5), || {
        broker.children().iter().any(|leader| !children(leader.parse().unwrap()).is_empty())
    });
    for _ in 0..20 {
        let Processor { leash, input, .. } = broker.request(0, "x/y", None);
        drop(input);
        let (bytes, _) = receive(&leash);
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0], "ended by itself, and left nothing behind");
    }
    drop(first.input);
    let mut text = String::new();
    first.output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "alive\n", "it was not killed for another's sake");
    assert_eq!(receive(&first.leash).0, [0, 0, 0, 0, 0, 0]);
}

fn a_setup_that_is_too_long_or_comes_again_starts_nothing() {
    let mut long = setup("");
    long["processors"]["0-cat"]["env"] = serde_json::json!([format!("A={}", "x".repeat(130 << 10))]);
    let (socket, far) = messages::pair().unwrap();
    let mut command = host::plywood();
    let output = command.arg("broker").stdin(Stdio::from(far)).stderr(Stdio::piped()).stdout(Stdio::piped());
    let child = output.spawn().unwrap();
    drop(command);
    messages::send(&socket, long.to_string().as_bytes(), &[]).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("[broker.setup]"), "{said}");
    // A daemon that was taken over sends another table, with an environment and a program of its own.
    let broker = Broker::start("");
    let mut other = setup("id; touch /tmp/never");
    other["processors"]["0-cat"]["env"] = serde_json::json!(["LD_PRELOAD=/tmp/own.so"]);
    messages::send(&broker.socket, other.to_string().as_bytes(), &[]).unwrap();
    let (text, report) = broker.run(0, b"as before");
    assert_eq!((text.as_str(), report.0), ("as before", 0));
    let (text, _) = broker.run(1, b"");
    assert!(!text.contains("LD_PRELOAD"), "{text}");
    let (text, report) = broker.run(2, b"");
    assert_eq!((text.as_str(), report), ("", (0, 0, Vec::new())), "the shell still runs nothing");
}

fn a_program_that_others_can_write_is_not_in_the_table() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("program");
    fs::write(&program, "#!/bin/sh\ncat\n").unwrap();
    let mut setup = setup("");
    setup["processors"]["0-cat"]["path"] = program.display().to_string().into();
    for (mode, part) in [(0o757, "others than root can change it"), (0o644, "not a program")] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        let (mut broker, answer) = Broker::launch(&setup);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("processor 0-cat: ") && answer.contains(part), "{answer}");
        assert_eq!(broker.child.wait().unwrap().code(), Some(1));
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(Broker::launch(&setup).1, [1]);
}

fn no_more_than_256_processors_run() {
    let broker = Broker::start("");
    let before = broker.descriptors();
    let held: Vec<_> = (0..256).map(|_| broker.request(3, "x/y", None)).collect();
    let refused = broker.request(3, "x/y", None);
    assert_eq!(report(&refused.leash), Some((3, 256, Vec::new())));
    assert_eq!(broker.children().len(), 256);
    let dropped = Instant::now();
    drop(held);
    until("all are gone", Duration::from_secs(2), || broker.children().is_empty());
    println!("256 processors are gone {:?} after they were let go", dropped.elapsed());
    until("its descriptors", Duration::from_secs(2), || broker.descriptors() == before);
    assert_eq!(broker.run(0, b"x").0, "x");
}
