//! Devices of several layers, written in every way there is, and read by others: the kernel, fsck.erofs and erofs-rs find
//! the tree that GNU tar makes of the archives.
//!
//! With `PLYWOOD_CORPORA` set, the corpora of `tests/benches/corpora.py` too: `minbase`, `node` and `whiteout` on top of
//! each other, and the others by themselves. They print what they took
//! (`cargo test --release --test oracle devices::corpora`).

use std::{
    env, fmt,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    thread::sleep,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use plywood::format::erofs::reader::Image;
use tempfile::TempDir;
use testkit::{
    Need, Suite,
    host::{plywood, plywood_binary, run},
    images::{Mounted, erofs_utils_accept, read_with_erofs_rs},
    layers::{self, Sparse},
    tree::{Tree, compare, count_links, scan},
};

/// Memory that a layer may take, in KiB, and more for each of its entries, in bytes.
const PEAK_KIB: u64 = 64 << 10;
const ENTRY_BYTES: u64 = 512;

/// A way to make a device of archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Layers with all data, applied to writable ones and committed.
    Native,
    /// Layers over the archives.
    Turbo,
    /// Layers over the gzip blobs, as they are published.
    TurboGzip,
    /// The native ones, merged into one.
    Merged,
}

const WAYS: [Way; 4] = [Way::Native, Way::Turbo, Way::TurboGzip, Way::Merged];

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native layers",
            Self::Turbo => "layers over archives",
            Self::TurboGzip => "published layers over gzip blobs",
            Self::Merged => "merged layers",
        })
    }
}

pub fn add(suite: &mut Suite) {
    let needs = [
        Need::Root,
        Need::FileSystem("erofs"),
        Need::GnuTar,
        Need::Tool("busybox"),
        Need::Tool("fsck.erofs"),
        Need::Tool("dump.erofs"),
    ];
    let features = Arc::new(Stack::of_features());
    for way in WAYS {
        let features = Arc::clone(&features);
        suite.test(format!("{way} have the tree of their archives"), &needs, move || {
            features.check(way, false)
        });
    }
    match env::var_os("PLYWOOD_CORPORA") {
        Some(corpora) => {
            for names in [&["minbase", "node", "whiteout"][..], &["minbase"], &["pydata"], &["cuda"], &["tf"]]
            {
                let stack = Arc::new(Stack::of_corpora(Path::new(&corpora), names));
                for way in WAYS {
                    let stack = Arc::clone(&stack);
                    let test =
                        format!("corpora: {way} of {} have the tree of their archives", names.join(", "));
                    suite.test(test, &needs, move || stack.check(way, true));
                }
            }
        }
        None => {
            let corpora =
                Need::Other("PLYWOOD_CORPORA, a directory made by tests/benches/corpora.py", || false);
            suite.test("corpora: layers have the tree of their archives", &[corpora], || ());
        }
    }
}

/// Archives on top of each other, the lowest first, and what they make.
struct Stack {
    /// `None`: the feature layers, which are made when they are asked for.
    archives: Option<Vec<PathBuf>>,
    made: OnceLock<Result<Made, String>>,
}

struct Made {
    dir: TempDir,
    archives: Vec<PathBuf>,
    want: Tree,
}

fn message(failed: impl Into<Failed>) -> String {
    failed.into().message().unwrap_or("failed").to_owned()
}

impl Stack {
    fn of_features() -> Self {
        Self { archives: None, made: OnceLock::new() }
    }

    fn of_corpora(corpora: &Path, names: &[&str]) -> Self {
        let archives = names.iter().map(|name| corpora.join(format!("{name}.tar"))).collect();
        Self { archives: Some(archives), made: OnceLock::new() }
    }

    fn made(&self) -> Result<&Made, Failed> {
        self.made.get_or_init(|| self.make().map_err(message)).as_ref().map_err(Failed::from)
    }

    fn make(&self) -> Result<Made, Failed> {
        let dir = TempDir::with_prefix_in("devices-", env!("CARGO_TARGET_TMPDIR"))?;
        let archives = match &self.archives {
            Some(archives) => archives.clone(),
            None => layers::feature_layers(dir.path(), Sparse::With).map_err(|error| format!("{error:#}"))?,
        };
        let want = dir.path().join("want");
        layers::stack(&archives, &want).map_err(|error| format!("{error:#}"))?;
        let mut tree = scan(&want)?;
        count_links(&mut tree);
        fs::remove_dir_all(want)?;
        Ok(Made { dir, archives, want: tree })
    }

    fn check(&self, way: Way, measures: bool) -> Result<(), Failed> {
        let Made { dir, archives, want } = self.made()?;
        let dir = TempDir::new_in(dir.path())?;
        let work = Work { dir: dir.path(), measures, entries: want.len() as u64 };
        let lowers = match way {
            Way::Native | Way::Merged => work.native(archives)?,
            Way::Turbo => work.turbo(archives)?,
            Way::TurboGzip => work.turbo_gzip(archives)?,
        };
        let flat = work.flatten(&lowers, way == Way::Merged)?;
        let mounted = Mounted::new(&flat, dir.path().join("mounted"))?;
        compare(want, &mounted.tree()?)?;
        drop(mounted);
        compare(want, &read_with_erofs_rs(&flat)?)?;
        erofs_utils_accept(&flat)?;
        run(plywood().arg("check").arg(&flat)).map(drop)
    }
}

/// The files of one device.
struct Work<'a> {
    dir: &'a Path,
    measures: bool,
    entries: u64,
}

impl Work<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn config(&self, lowers: &[String], upper: &str) -> Result<PathBuf, Failed> {
        let path = self.at("config.v1.json");
        fs::write(&path, format!(r#"{{"repoBlobUrl": "", "lowers": [{}]{upper}}}"#, lowers.join(", ")))?;
        Ok(path)
    }

    /// Runs `plywood`, under the name of one of overlaybd's tools or its own.
    fn plywood(&self, name: &str, arguments: &[&str]) -> Result<(), Failed> {
        let mut command = Command::new(plywood_binary().ok_or("no plywood")?);
        command.arg0(name).args(arguments).current_dir(self.dir);
        let log = self.at("log");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let (started, mut peak_kib) = (Instant::now(), 0);
        let mut child = command.spawn()?;
        let status = loop {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
            peak_kib = peak_kib.max(peak.unwrap_or(0));
            if let Some(status) = child.try_wait()? {
                break status;
            }
            sleep(Duration::from_millis(5));
        };
        let line = [&[name], arguments].concat().join(" ");
        if !status.success() {
            return Err(format!("{line}: {status}\n{}", fs::read_to_string(log)?).into());
        }
        if self.measures {
            println!("{:>8.2} s {:>7} KiB  {line}", started.elapsed().as_secs_f64(), peak_kib);
        }
        let most_kib = PEAK_KIB + self.entries * ENTRY_BYTES / 1024;
        if peak_kib > most_kib {
            return Err(format!("{line}: {peak_kib} KiB, more than {most_kib}").into());
        }
        Ok(())
    }

    fn native(&self, archives: &[PathBuf]) -> Result<Vec<String>, Failed> {
        let mut lowers = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let size = if lowers.is_empty() { "8" } else { "0" };
            self.plywood("overlaybd-create", &["data", "index", size])?;
            let config = self.config(&lowers, r#", "upper": {"data": "data", "index": "index"}"#)?;
            self.plywood("overlaybd-apply", &[text(archive), text(&config)])?;
            let layer = format!("layer-{number}");
            self.plywood("overlaybd-commit", &["-z", "data", "index", &layer])?;
            for name in ["data", "index"] {
                fs::remove_file(self.at(name))?;
            }
            lowers.push(format!(r#"{{"file": "{layer}"}}"#));
        }
        Ok(lowers)
    }

    fn turbo(&self, archives: &[PathBuf]) -> Result<Vec<String>, Failed> {
        let mut lowers = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let layer = format!("layer-{number}");
            let mut arguments = vec!["overlaybd", "convert", text(archive), &layer, "--workdir", "work"];
            let config;
            if lowers.is_empty() {
                arguments.extend(["--vsize", "8"]);
            } else {
                config = self.config(&lowers, "")?;
                arguments.extend(["--config", text(&config)]);
            }
            self.plywood("plywood", &arguments)?;
            lowers.push(format!(r#"{{"file": "{layer}", "targetFile": {:?}}}"#, text(archive)));
        }
        Ok(lowers)
    }

    fn turbo_gzip(&self, archives: &[PathBuf]) -> Result<Vec<String>, Failed> {
        let mut lowers = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let blob = self.at(&format!("blob-{number}"));
            run(Command::new("sh").args(["-c", "gzip -1 < \"$0\" > \"$1\""]).arg(archive).arg(&blob))?;
            let published = format!("published-{number}");
            let mut arguments = vec!["overlaybd", "turbo-export", text(&blob), "-o", &published];
            let config;
            if !lowers.is_empty() {
                config = self.config(&lowers, "")?;
                arguments.extend(["--config", text(&config)]);
            }
            self.plywood("plywood", &arguments)?;
            let members = self.at(&format!("members-{number}"));
            fs::create_dir(&members)?;
            run(Command::new("tar").arg("-C").arg(&members).arg("-xzf").arg(self.at(&published)))?;
            lowers.push(format!(
                r#"{{"file": {:?}, "targetFile": {:?}, "gzipIndex": {:?}}}"#,
                text(&members.join("erofs.fs.meta")),
                text(&blob),
                text(&members.join("gzip.meta"))
            ));
        }
        Ok(lowers)
    }

    /// The file system on the device, without what is behind it.
    fn flatten(&self, lowers: &[String], merge: bool) -> Result<PathBuf, Failed> {
        let config = self.config(lowers, "")?;
        if merge {
            self.plywood("overlaybd-merge", &[text(&config), "merged"])?;
            self.plywood("plywood", &["overlaybd", "flatten", "merged", "-o", "flat"])?;
        } else {
            self.plywood("plywood", &["overlaybd", "flatten", "--config", text(&config), "-o", "flat"])?;
        }
        let flat = self.at("flat");
        let blocks = Image::open(File::open(&flat)?)?.superblock().blocks;
        File::options().write(true).open(&flat)?.set_len(blocks * 4096)?;
        Ok(flat)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
