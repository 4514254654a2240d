//! A machine to follow documents on: a root directory of its own with a real containerd's programs in it, and
//! stand-ins for what a scratch root lacks: systemd, kernel modules, a compiler.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use crate::commands::Step;
use crate::daemon::{Daemon, SocketUnit};
use crate::env::{Env, wait_within};
use crate::host;

/// Where the stand-ins, the logs and the script lie in the root.
const STAND_INS: &str = "run/stand-ins";
/// The checkout of the repository in which the commands are typed.
pub const CHECKOUT: &str = "root/plywood";
/// The stand-ins come first.
const PATH: &str = "/run/stand-ins/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Programs of an installed containerd.
const CONTAINERD: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];

/// Asks the test to do it, which plays the units: see [`Node::systemctl`].
const SYSTEMCTL: &str = "\
#!/bin/sh
cd /run/stand-ins || exit
rm -f answer
echo \"$*\" > ask
until [ -e answer ]; do sleep 0.02; done
{ read -r status; cat; } < answer
exit \"$status\"
";
/// `journalctl -u UNIT -n COUNT`
const JOURNALCTL: &str = "\
#!/bin/sh
[ \"$1 $3\" = '-u -n' ] && tail -n \"$4\" \"/run/stand-ins/$2.log\"
";
/// Modules are the kernel's, which is not the root's.
const MODPROBE: &str = "\
#!/bin/sh
grep -qw \"$1\" /proc/filesystems
";
/// Puts the program under test where a build would.
const CARGO: &str = "\
#!/bin/sh
[ \"$*\" = 'build --release' ] && mkdir -p target/release && cp /run/stand-ins/plywood target/release/plywood
";

/// A root directory, its mounts and its daemons. The daemons end with it; its mounts are [`Env`]'s, which removes them.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    namespace: String,
    units: Units,
}

/// The units that run.
#[derive(Debug, Default)]
struct Units {
    // In the order in which they end.
    containerd: Option<Daemon>,
    plywood: Option<SocketUnit>,
}

impl Node {
    /// Makes a node below the directory of `env`. Its system is a copy of `system`, or of this machine's.
    pub fn new(env: &Env, system: Option<&Path>) -> anyhow::Result<Self> {
        let root = env.path("root");
        fs::create_dir(&root)?;
        match system {
            Some(system) => overlay(env, system, &root)?,
            None => {
                // runc changes its root, which has to be a mount.
                mount(&["-t", "tmpfs", "-o", "mode=755", "root"], &root)?;
                for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
                    if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                        symlink(target, root.join(name))?;
                    }
                }
                for name in ["usr", "etc"] {
                    fs::create_dir(root.join(name))?;
                    overlay(env, &Path::new("/").join(name), &root.join(name))?;
                }
            }
        }
        for name in ["dev", "proc", "sys", "run", "tmp", "mnt", "opt", "var/lib/containerd", CHECKOUT] {
            fs::create_dir_all(root.join(name))?;
        }
        mount(&["-t", "proc", "proc"], &root.join("proc"))?;
        mount(&["-t", "tmpfs", "-o", "mode=755", "run"], &root.join("run"))?;
        for name in ["dev", "sys"] {
            mount(&["--rbind", &format!("/{name}")], &root.join(name))?;
        }
        // The kernel mounts no EROFS image that lies on tmpfs, and no overlay on an overlay.
        for (name, target) in [("data", "var/lib/containerd"), ("checkout", CHECKOUT)] {
            fs::create_dir(env.path(name))?;
            mount(&[OsStr::new("--bind"), env.path(name).as_os_str()], &root.join(target))?;
        }
        let node = Self { root, namespace: env.namespace().to_owned(), units: Units::default() };
        node.forget_the_machine()?;
        node.install_containerd()?;
        node.put_stand_ins()?;
        Ok(node)
    }

    /// A file of the node.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name.trim_start_matches('/'))
    }

    /// The log lines of a unit.
    pub fn log(&self, unit: &str) -> String {
        fs::read_to_string(self.path(STAND_INS).join(format!("{unit}.log"))).unwrap_or_default()
    }

    /// Removes what a containerd or a Plywood of the machine left in its copy.
    fn forget_the_machine(&self) -> anyhow::Result<()> {
        for name in ["etc/containerd", "etc/plywood", "etc/modules-load.d/erofs.conf", "usr/bin/plywood"] {
            let path = self.path(name);
            match path.is_dir() {
                true => fs::remove_dir_all(path)?,
                false if path.exists() => fs::remove_file(path)?,
                false => {}
            }
        }
        // systemd's package brings them.
        for directory in ["etc/systemd/system", "etc/modules-load.d"] {
            fs::create_dir_all(self.path(directory))?;
        }
        Ok(())
    }

    /// containerd as its release archive is unpacked, with the programs at their usual place.
    fn install_containerd(&self) -> anyhow::Result<()> {
        fs::create_dir_all(self.path("usr/local/bin"))?;
        for name in CONTAINERD {
            let program = host::program(name).with_context(|| format!("no {name}"))?;
            // Programs of `setup/tools.sh` find their libraries by absolute names.
            let home = program.parent().and_then(Path::parent).context("a program at the top")?;
            if !home.starts_with("/usr") && !self.path(&home.to_string_lossy()).exists() {
                let target = self.path(&home.to_string_lossy());
                fs::create_dir_all(&target)?;
                mount(&[OsStr::new("--rbind"), home.as_os_str()], &target)?;
            }
            let link = self.path("usr/local/bin").join(name);
            if !link.exists() {
                symlink(&program, link)?;
            }
        }
        Ok(())
    }

    fn put_stand_ins(&self) -> anyhow::Result<()> {
        let top = self.path(STAND_INS);
        fs::create_dir_all(top.join("bin"))?;
        for (name, text) in
            [("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL), ("modprobe", MODPROBE), ("cargo", CARGO)]
        {
            let program = top.join("bin").join(name);
            fs::write(&program, text)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
        host::run(Command::new("mkfifo").arg(top.join("ask")))?;
        fs::write(top.join("plywood"), "")?;
        let binary = host::plywood_binary().context("no plywood binary")?;
        mount(&[OsStr::new("--bind"), binary.as_os_str()], &top.join("plywood"))?;

        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let checkout = self.path(CHECKOUT).join("integration");
        fs::create_dir_all(checkout.join("setup"))?;
        host::run(Command::new("cp").arg("-r").args([repository.join("deploy"), checkout.clone()]))?;
        // Installs packages and a toolchain, which is done: the program is built.
        let build = checkout.join("setup/build.sh");
        fs::write(&build, "#!/bin/sh\n")?;
        fs::set_permissions(build, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Types `steps` into one shell, and stops at the first that fails. Returns what was typed and printed.
    pub fn follow(&mut self, document: &str, steps: &[Step]) -> anyhow::Result<String> {
        let mut script = format!("cd /{CHECKOUT} || exit\n");
        for Step { line, command } in steps {
            let shown = format!("'{}'", command.replace('\'', "'\\''"));
            script += &format!(
                "printf '%s\\n' {document}:{line}:\\ {shown}\n{command}\n\
                 status=$?; [ $status = 0 ] || {{ echo \"{document}:{line}: exit status $status\"; exit 1; }}\n"
            );
        }
        let top = self.path(STAND_INS);
        fs::write(top.join("script"), script)?;
        let output = top.join("transcript");
        let file = fs::File::create(&output)?;
        let mut shell = self.command("timeout");
        shell.args(["--kill-after=5", "300", "bash", &format!("/{STAND_INS}/script")]);
        // A pipe would stay open for as long as a container that was started.
        shell.stdout(file.try_clone()?).stderr(file);
        // Open at both ends, so that nobody waits for the other side.
        let mut asked = fs::File::options().read(true).write(true).open(top.join("ask"))?;
        let questions = BufReader::new(asked.try_clone()?);
        let status = thread::scope(|scope| {
            let units = scope.spawn(|| self.play_units(questions));
            let status = shell.status();
            asked.write_all(b"quit\n")?;
            units.join().map_err(|_panic| anyhow::anyhow!("the units' player has panicked"))??;
            anyhow::Ok(status?)
        })?;
        let transcript = String::from_utf8_lossy(&fs::read(output)?).into_owned();
        anyhow::ensure!(
            status.success(),
            "{transcript}\n--- containerd\n{}\n--- plywood\n{}",
            tail(&self.log("containerd")),
            tail(&self.log("plywood"))
        );
        Ok(transcript)
    }

    /// A command in the root, with an environment that is the same on every machine.
    fn command(&self, name: &str) -> Command {
        let mut command = host::command("chroot");
        command.arg(&self.root).args(["/usr/bin/env", "-i", "HOME=/root"]);
        command.arg(format!("PATH={PATH}"));
        // So that cgroups do not meet those of a containerd of the machine.
        command.arg(format!("CONTAINERD_NAMESPACE={}", self.namespace)).arg(name);
        command
    }

    /// Answers the stand-in for `systemctl` until it is asked to quit.
    fn play_units(&mut self, questions: impl BufRead) -> anyhow::Result<()> {
        let top = self.path(STAND_INS);
        for question in questions.lines() {
            let question = question?;
            if question == "quit" {
                break;
            }
            let words: Vec<&str> = question.split_whitespace().collect();
            let answer = match self.systemctl(&words) {
                Ok(()) => "0\n".to_owned(),
                Err(error) => format!("1\nsystemctl {question}: {error:#}\n"),
            };
            fs::write(top.join("answer.new"), answer)?;
            fs::rename(top.join("answer.new"), top.join("answer"))?;
        }
        Ok(())
    }

    /// The part of `systemctl` that the documents use. A service and its socket are started and stopped together.
    fn systemctl(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let (verb, rest) = words.split_first().context("no verb")?;
        let units = || rest.iter().filter(|word| **word != "--now");
        match *verb {
            "daemon-reload" if rest.is_empty() => {}
            "enable" | "start" => units().try_for_each(|unit| self.start(unit))?,
            "disable" | "stop" => units().try_for_each(|unit| self.stop(unit))?,
            "restart" => {
                units().try_for_each(|unit| self.stop(unit))?;
                units().try_for_each(|unit| self.start(unit))?;
            }
            _ => anyhow::bail!("no stand-in for this"),
        }
        Ok(())
    }

    fn start(&mut self, unit: &str) -> anyhow::Result<()> {
        let log = self.path(STAND_INS).join(format!("{}.log", base(unit)));
        match base(unit) {
            "containerd" if self.units.containerd.is_none() => {
                let mut command = self.command("containerd");
                let mut daemon = Daemon::start("containerd", &mut command, &log)?;
                daemon.wait_until(|| host::run(self.command("ctr").arg("version")).is_ok())?;
                self.units.containerd = Some(daemon);
            }
            "plywood" if self.units.plywood.is_none() => {
                let read = |ending: &str| {
                    let name = format!("etc/systemd/system/plywood.{ending}");
                    fs::read_to_string(self.path(&name)).with_context(|| name.clone())
                };
                let (service, socket) = (read("service")?, read("socket")?);
                let service = settings_of(&service);
                let start = service.get("ExecStart").context("no ExecStart")?;
                let listen = self.path(settings_of(&socket).get("ListenStream").context("no ListenStream")?);
                let directory = listen.parent().context("a socket at the top")?;
                fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                let mut command = Command::new(host::program("chroot").context("no chroot")?);
                command.arg(&self.root).args(start.split(' '));
                let before = self.times_ready();
                self.units.plywood = Some(SocketUnit::start(&command, &listen, &log)?);
                // Type=notify
                wait_within(Duration::from_secs(20), "Plywood is ready", || Ok(self.times_ready() > before))
                    .with_context(|| tail(&self.log("plywood")))?;
            }
            "containerd" | "plywood" => {}
            // No timer goes off while a document is followed.
            "plywood-scrub" => {}
            _ => anyhow::bail!("no unit {unit}"),
        }
        Ok(())
    }

    /// How often Plywood has reported that it is ready.
    fn times_ready(&self) -> usize {
        self.log("plywood").matches(" ready ").count()
    }

    fn stop(&mut self, unit: &str) -> anyhow::Result<()> {
        match base(unit) {
            "containerd" => self.units.containerd = None,
            // Removes the socket, as RemoveOnStop= says.
            "plywood" => self.units.plywood = None,
            "plywood-scrub" => {}
            _ => anyhow::bail!("no unit {unit}"),
        }
        Ok(())
    }
}

/// A unit's name without its type.
fn base(unit: &str) -> &str {
    unit.split('.').next().unwrap_or(unit)
}

/// The settings of a unit file, the last of each name.
fn settings_of(unit: &str) -> BTreeMap<&str, &str> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

/// The end of a log, without containerd's lines about its plugins.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("plugin")).collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Mounts a writable copy of `lower`; what is written goes below the directory of `env`.
fn overlay(env: &Env, lower: &Path, target: &Path) -> anyhow::Result<()> {
    let name = target.file_name().context("no name")?.to_string_lossy();
    let (upper, work) = (env.path(&format!("upper-{name}")), env.path(&format!("work-{name}")));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(&["-t", "overlay", "-o", &options, "overlay"], target)
}

fn mount<S: AsRef<OsStr>>(arguments: &[S], target: &Path) -> anyhow::Result<()> {
    host::run(Command::new("mount").args(arguments).arg(target))?;
    Ok(())
}
