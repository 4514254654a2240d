//! Archives on overlaybd devices: applied to a writable layer, converted in one go, and imported from their metadata. Each
//! way has to give the same layer.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use plywood::format::erofs::reader::Image;
use testkit::{Suite, archive::gzip};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        an_archive_applied_and_committed_is_the_layer_that_convert_writes,
        the_metadata_of_an_archive_gives_the_layer_of_the_archive,
        a_native_layer_is_read_out_of_the_writable_files,
        an_archive_that_is_refused_leaves_the_writable_layer_as_it_was,
        ext4_is_refused_before_anything_is_written,
        a_layer_written_to_a_file_with_holes_is_that_of_a_pair,
        no_output_takes_the_place_of_a_file_that_is_read,
        a_layer_that_is_no_file_is_refused_at_once,
        sealing_and_committing_take_no_more_files_than_they_name,
    ];
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/overlaybd/turbo").join(name)
}

/// A directory with the upstream tools by their names, the archives `base.tar` and `top.tar`, and base.tar as gzip.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        for name in ["base.tar", "top.tar"] {
            fs::copy(fixture(name), bench.path(name)).unwrap();
        }
        fs::write(bench.path("base.tar.gz"), gzip(&fs::read(fixture("base.tar")).unwrap())).unwrap();
        for tool in ["overlaybd-create", "overlaybd-commit", "overlaybd-apply", "turboOCI-apply"] {
            symlink(env!("CARGO_BIN_EXE_plywood"), bench.path(tool)).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The files, with what is in them.
    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(self.0.path()).unwrap().map(Result::unwrap);
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
        files.map(|entry| (name(&entry), fs::read(entry.path()).unwrap_or_default())).collect()
    }

    /// Runs a tool by its name, or `plywood overlaybd`.
    fn run(&self, line: &str) -> Output {
        let mut words = line.split(' ');
        let tool = words.next().unwrap();
        let mut command = match tool {
            "plywood" => Command::new(env!("CARGO_BIN_EXE_plywood")),
            tool => Command::new(self.path(tool)),
        };
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn succeed(&self, line: &str) {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
    }

    /// Fails with the code of the upstream tools. Returns what is said.
    fn fail(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(255), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Writes a configuration with a turboOCI upper or a plain one, above `lowers`.
    fn config(&self, name: &str, lowers: &str, target: &str) {
        let target = if target.is_empty() { String::new() } else { format!(r#","target":"{target}""#) };
        let upper = format!(r#"{{"data":"data","index":"index"{target}}}"#);
        let json = format!(r#"{{"repoBlobUrl":"","lowers":[{lowers}],"upper":{upper}}}"#);
        fs::write(self.path(name), json).unwrap();
    }
}

const BELOW: &str = r#"{"file":"base.layer","targetFile":"base.tar"}"#;

fn an_archive_applied_and_committed_is_the_layer_that_convert_writes() {
    let bench = Bench::new();
    bench.succeed("plywood overlaybd convert base.tar base.layer --vsize 1 --workdir w");
    for name in ["writable_data", "writable_index", "fake_target", "service.json", "config.v1.json"] {
        assert!(bench.path("w").join(name).exists(), "{name}");
    }
    bench.succeed("overlaybd-create -s data index 1 --turboOCI");
    fs::write(bench.path("fake"), "").unwrap();
    bench.config("bottom.json", "", "fake");
    bench.succeed("turboOCI-apply base.tar.gz bottom.json --gz_index_path g.meta --fstype erofs");
    assert!(bench.path("g.meta").exists());
    bench.succeed("overlaybd-commit -z --turboOCI data index applied");
    assert!(bench.read("applied") == bench.read("base.layer"));

    let below = format!(r#"{{"repoBlobUrl":"","lowers":[{BELOW}]}}"#);
    fs::write(bench.path("below.json"), below).unwrap();
    bench.succeed("plywood overlaybd convert top.tar top.layer --config below.json --workdir w");
    for name in ["data", "index"] {
        fs::remove_file(bench.path(name)).unwrap();
    }
    bench.succeed("overlaybd-create data index 0 --turboOCI");
    bench.config("top.json", BELOW, "fake");
    bench.succeed("turboOCI-apply top.tar top.json --fstype erofs");
    bench.succeed("overlaybd-commit -z --turboOCI data index applied2");
    assert!(bench.read("applied2") == bench.read("top.layer"));

    let layers = format!(r#"{{"lowers":[{BELOW},{{"file":"top.layer","targetFile":"top.tar"}}]}}"#);
    fs::write(bench.path("both.json"), layers).unwrap();
    bench.succeed("plywood overlaybd flatten --config both.json -o device");
    let image = Image::open(fs::File::open(bench.path("device")).unwrap()).unwrap();
    let note = image.find(b"srv/note.txt").unwrap().unwrap();
    let mut data = vec![0; usize::try_from(note.inode.size_bytes).unwrap()];
    image.read_data(&note, 0, &mut data).unwrap();
    assert_eq!(data.len(), 9);
    assert!(image.find(b"app/lib/libx.so.1").unwrap().is_none());
    assert_eq!(image.find(b"app/lib/libx.so").unwrap().unwrap().inode.nlink, 1);
}

fn the_metadata_of_an_archive_gives_the_layer_of_the_archive() {
    let bench = Bench::new();
    bench.succeed("plywood overlaybd convert base.tar direct --vsize 1");
    bench.succeed("turboOCI-apply base.tar.gz base.tar.meta --export");
    bench.succeed("plywood overlaybd convert base.tar.meta imported --vsize 1 --import");
    assert!(bench.read("imported") == bench.read("direct"));
}

fn a_native_layer_is_read_out_of_the_writable_files() {
    let bench = Bench::new();
    bench.succeed("overlaybd-create data index 1");
    bench.config("config.json", "", "");
    let digest = testkit::archive::digest(&bench.read("base.tar"));
    bench.succeed(&format!("overlaybd-apply base.tar.gz config.json --checksum {digest}"));
    bench.succeed("overlaybd-apply top.tar config.json");
    bench.succeed("overlaybd-commit data index layer");
    bench.succeed("plywood overlaybd flatten layer -o device");
    bench.succeed("plywood check device");
    let image = Image::open(fs::File::open(bench.path("device")).unwrap()).unwrap();
    assert_eq!(image.find(b"srv/more/deep/file").unwrap().unwrap().inode.size_bytes, 5000);
    // The attributes of a directory that the upper archive only implies are those below.
    assert_eq!(image.find(b"srv").unwrap().unwrap().inode.attributes.mtime.seconds, 1_600_000_000);
}

fn a_layer_written_to_a_file_with_holes_is_that_of_a_pair() {
    let bench = Bench::new();
    // The directory takes several sectors, of which the second archive changes some.
    let archive = |numbers: std::ops::Range<u32>, text: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        for number in numbers {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            let name = format!("d/a-file-with-quite-a-long-name-{number:04}");
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    };
    fs::write(bench.path("many.tar"), archive(0..60, "old")).unwrap();
    fs::write(bench.path("one.tar"), archive(50..51, "new")).unwrap();
    let mut devices = Vec::new();
    for sparse in ["", " -s"] {
        bench.succeed(&format!("overlaybd-create data index 1{sparse}"));
        bench.config("bottom.json", "", "");
        bench.succeed("overlaybd-apply many.tar bottom.json");
        bench.succeed("overlaybd-commit -f data index base.layer");
        ["data", "index"].iter().for_each(|name| fs::remove_file(bench.path(name)).unwrap());
        bench.succeed(&format!("overlaybd-create data index 0{sparse}"));
        bench.config("top.json", r#"{"file":"base.layer"}"#, "");
        bench.succeed("overlaybd-apply one.tar top.json");
        bench.succeed("plywood overlaybd flatten --config top.json -o device");
        ["data", "index"].iter().for_each(|name| fs::remove_file(bench.path(name)).unwrap());
        // The file system is at the start.
        let mut start = vec![0; 16 << 20];
        fs::File::open(bench.path("device")).unwrap().read_exact(&mut start).unwrap();
        devices.push(start);
    }
    assert!(devices[0] == devices[1]);
}

fn an_archive_that_is_refused_leaves_the_writable_layer_as_it_was() {
    let bench = Bench::new();
    bench.succeed("overlaybd-create data index 1");
    bench.config("config.json", "", "");
    let files = || (bench.read("data"), bench.read("index"));
    let before = files();
    let cut = bench.read("base.tar")[..100_000].to_vec();
    fs::write(bench.path("cut.tar"), cut).unwrap();
    assert!(bench.fail("overlaybd-apply cut.tar config.json").contains("tar.truncated.data"));
    let other = format!("sha256:{}", "0".repeat(64));
    let said = bench.fail(&format!("overlaybd-apply base.tar config.json --checksum {other}"));
    assert!(said.contains("overlaybd.checksum"), "{said}");
    assert!(bench.fail("overlaybd-apply base.tar config.json --from_qcow2").contains("overlaybd.option"));
    bench.config("none.json", "", "");
    fs::write(bench.path("none.json"), format!(r#"{{"lowers":[{BELOW}]}}"#)).unwrap();
    assert!(bench.fail("overlaybd-apply base.tar none.json").contains("overlaybd.lower.missing"));
    assert!(files() == before);
    bench.succeed("overlaybd-apply base.tar config.json --mkfs");
    assert!(bench.fail("overlaybd-apply base.tar config.json --mkfs").contains("overlaybd.mkfs"));
}

fn ext4_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    bench.succeed("overlaybd-create data index 1 --turboOCI");
    fs::write(bench.path("fake"), "").unwrap();
    bench.config("config.json", "", "fake");
    let before = testkit::tree::names(bench.0.path());
    let index = bench.read("index");
    assert!(bench.fail("turboOCI-apply base.tar.gz config.json --fstype ext4").contains("overlaybd.ext4"));
    // It is what the upstream tool makes unless it is told otherwise.
    let said = bench.fail("turboOCI-apply base.tar.gz config.json");
    assert!(said.contains("overlaybd.ext4") && said.contains("pass --fstype erofs"), "{said}");
    let output = bench.run("plywood overlaybd convert base.tar out --fstype ext4 --workdir w");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(testkit::tree::names(bench.0.path()), before);
    assert!(bench.read("index") == index);
}

fn no_output_takes_the_place_of_a_file_that_is_read() {
    let bench = Bench::new();
    bench.succeed("plywood overlaybd convert base.tar base.layer --vsize 1 --workdir w");
    bench.succeed("overlaybd-create data index 1 --turboOCI");
    bench.succeed("overlaybd-create rw rw.index 1");
    symlink("base.tar.gz", bench.path("link")).unwrap();
    fs::write(bench.path("fake"), "").unwrap();
    bench.config("upper.json", "", "fake");
    fs::write(bench.path("below.json"), format!(r#"{{"lowers":[{BELOW}]}}"#)).unwrap();
    fs::write(bench.path("gz.meta"), "").unwrap();
    let before = bench.contents();
    for line in [
        "export base.tar.gz base.tar.gz",
        "export link base.tar.gz",
        "export base.tar.gz out --gz_index_path base.tar.gz",
        "export base.tar.gz out --gz_index_path ./out",
        "turbo-export base.tar.gz -o base.tar.gz",
        "turbo-export base.tar.gz -o base.layer --config below.json",
        "turbo-apply base.tar.gz upper.json --gz_index_path base.tar.gz",
        "turbo-apply base.tar.gz upper.json --gz_index_path index",
        "convert base.tar base.tar --workdir v",
        "convert top.tar base.layer --config below.json --workdir v",
        "commit -f rw rw.index rw",
        "commit -f rw rw.index rw.index",
        "commit -f --commit_sealed base.layer base.layer",
        "zfile -f base.tar base.tar",
        "zfile -x -f base.layer base.layer",
        "merge below.json base.layer",
        "flatten --config below.json -o base.tar",
        "flatten base.layer --target 1=base.tar -o base.tar",
        "flatten base.layer --target 1=base.tar -o base.layer",
    ] {
        let output = bench.run(&format!("plywood overlaybd {line}"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.ends_with("[cli.same-file]\n"), "{line}: {error}");
        assert!(bench.contents() == before, "{line}");
    }
}

fn a_layer_that_is_no_file_is_refused_at_once() {
    let bench = Bench::new();
    assert!(Command::new("mkfifo").arg(bench.path("fifo")).status().unwrap().success());
    fs::write(bench.path("fifo.json"), r#"{"lowers":[{"file":"fifo"}]}"#).unwrap();
    fs::write(bench.path("zero.json"), r#"{"lowers":[{"file":"/dev/zero"}]}"#).unwrap();
    for line in [
        "merge fifo.json out",
        "merge zero.json out",
        "flatten fifo -o out",
        "commit --commit_sealed fifo out",
        "commit fifo fifo out",
        "zfile --verify fifo",
        "zfile -x fifo out",
    ] {
        let output = bench.run(&format!("plywood overlaybd {line}"));
        let error = String::from_utf8(output.stderr).unwrap();
        let is_refused = error.ends_with("not a regular file [overlaybd.input]\n");
        assert!(output.status.code() == Some(1) && is_refused, "{line}: {error}");
    }
}

fn sealing_and_committing_take_no_more_files_than_they_name() {
    let bench = Bench::new();
    bench.succeed("overlaybd-create data index 1");
    fs::create_dir(bench.path("d")).unwrap();
    bench.succeed("overlaybd-create d 1");
    let before = bench.contents();
    for line in ["overlaybd-commit --seal data index more", "overlaybd-commit d e f"] {
        assert!(bench.fail(line).ends_with("[cli.usage]\n"), "{line}");
        assert!(bench.contents() == before, "{line}");
    }
}
