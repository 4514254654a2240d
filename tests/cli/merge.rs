//! `plywood merge` as a user runs it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use testkit::{
    Need, Suite,
    host::{self, program},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        merged_metadata_is_sound_and_the_command_says_what_it_made,
        a_disk_of_all_layers_is_described_beside_it,
        layers_that_cannot_be_merged_leave_no_file,
        no_layer_is_replaced_by_the_metadata_or_the_disk,
    ];
    let name = "needs_qemu_img_the_described_disk_is_the_concatenation";
    suite.test(name, &[Need::Tool("qemu-img")], qemu_reads_the_disk);
}

fn plywood(dir: &Path, arguments: &[&str]) -> Output {
    host::plywood().args(arguments).current_dir(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Three layers, `1.erofs` to `3.erofs`.
fn layers() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=3_u8 {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, len) in
            [(format!("only-in-{number}"), 5000), ("common".to_owned(), 100 * usize::from(number))]
        {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(len as u64);
            builder.append_data(&mut header, name, vec![b'0' + number; len].as_slice()).unwrap();
        }
        fs::write(dir.path().join("layer.tar"), builder.into_inner().unwrap()).unwrap();
        let output = plywood(dir.path(), &["apply", "layer.tar", "-o", &format!("{number}.erofs")]);
        assert!(output.status.success(), "{output:?}");
    }
    dir
}

const MERGE: [&str; 6] = ["merge", "1.erofs", "2.erofs", "3.erofs", "-o", "fsmeta.erofs"];

fn merged_metadata_is_sound_and_the_command_says_what_it_made() {
    let dir = layers();
    let output = plywood(dir.path(), &MERGE);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "fsmeta.erofs: 12.00 KiB, 5 files and directories of 3 layers\n");
    let devices = ["--device=1.erofs", "--device=2.erofs", "--device=3.erofs"];
    let output = plywood(dir.path(), &[&["check", "--rules", "any", "fsmeta.erofs"], &devices[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let output = plywood(dir.path(), &[&["dump", "--tree", "fsmeta.erofs"], &devices[..]].concat());
    let out = text(&output.stdout);
    assert!(out.contains("common") && out.contains("only-in-1") && out.contains("only-in-3"), "{out}");
    // The same again, in the place of the first.
    let before = fs::read(dir.path().join("fsmeta.erofs")).unwrap();
    assert!(plywood(dir.path(), &MERGE).status.success());
    assert_eq!(fs::read(dir.path().join("fsmeta.erofs")).unwrap(), before);
}

fn a_disk_of_all_layers_is_described_beside_it() {
    let dir = layers();
    fs::create_dir(dir.path().join("below")).unwrap();
    fs::rename(dir.path().join("1.erofs"), dir.path().join("below/1.erofs")).unwrap();
    let arguments = ["merge", "below/1.erofs", "2.erofs", "-o", "fsmeta.erofs", "--disk", "image.vmdk"];
    let output = plywood(dir.path(), &arguments);
    assert!(output.status.success(), "{output:?}");
    let description = fs::read_to_string(dir.path().join("image.vmdk")).unwrap();
    assert!(description.starts_with("# Disk DescriptorFile\nversion=1\n"), "{description}");
    let extents: Vec<_> = description.lines().filter(|line| line.starts_with("RW ")).collect();
    let whole = dir.path().canonicalize().unwrap().join("below/1.erofs");
    assert_eq!(extents.len(), 3, "{description}");
    assert!(extents[0].ends_with("FLAT \"fsmeta.erofs\" 0"), "{description}");
    assert!(extents[1].ends_with(&format!("FLAT \"{}\" 0", whole.display())), "{description}");
    assert!(extents[2].ends_with("FLAT \"2.erofs\" 0"), "{description}");
}

fn qemu_reads_the_disk() {
    let dir = layers();
    assert!(plywood(dir.path(), &[&MERGE[..], &["--disk", "image.vmdk"]].concat()).status.success());
    let mut qemu = Command::new(program("qemu-img").unwrap());
    host::run(qemu.current_dir(dir.path()).args(["convert", "-f", "vmdk", "-O", "raw", "image.vmdk", "raw"]))
        .unwrap();
    let mut want = Vec::new();
    for file in ["fsmeta.erofs", "1.erofs", "2.erofs", "3.erofs"] {
        want.extend(fs::read(dir.path().join(file)).unwrap());
    }
    assert!(fs::read(dir.path().join("raw")).unwrap() == want);
}

fn layers_that_cannot_be_merged_leave_no_file() {
    let dir = layers();
    let small = ["apply", "layer.tar", "-o", "2.erofs", "--block-size", "512"];
    assert!(plywood(dir.path(), &small).status.success());
    assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
    for (arguments, code, reason) in [
        (&MERGE[..], 1, "merge.block-size"),
        (&["merge", "1.erofs", "layer.tar", "-o", "fsmeta.erofs"][..], 1, "erofs.superblock.magic"),
        (&["merge", "1.erofs", "none", "-o", "fsmeta.erofs"][..], 1, "image.open"),
        (&["merge", "1.erofs", ".", "-o", "fsmeta.erofs"][..], 1, "image.open"),
        (&["merge", "fifo", "1.erofs", "-o", "fsmeta.erofs"][..], 1, "image.open"),
    ] {
        let output = plywood(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text(&output.stderr).trim_end().ends_with(&format!("[{reason}]")), "{output:?}");
        assert!(!dir.path().join("fsmeta.erofs").exists());
    }
}

fn no_layer_is_replaced_by_the_metadata_or_the_disk() {
    let dir = layers();
    let layer = fs::read(dir.path().join("2.erofs")).unwrap();
    for (output, disk) in [("2.erofs", "disk.vmdk"), ("fsmeta.erofs", "2.erofs"), ("same", "./same")] {
        let arguments = ["merge", "1.erofs", "2.erofs", "-o", output, "--disk", disk];
        let made = plywood(dir.path(), &arguments);
        assert!(text(&made.stderr).ends_with("[cli.same-file]\n"), "{made:?}");
        assert!(fs::read(dir.path().join("2.erofs")).unwrap() == layer);
        assert!(["disk.vmdk", "fsmeta.erofs", "same"].iter().all(|name| !dir.path().join(name).exists()));
    }
}
