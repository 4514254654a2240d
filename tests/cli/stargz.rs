//! `plywood stargz` as a user runs it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use testkit::{Suite, host};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        the_files_of_a_layer_have_the_names_and_modes_of_the_nydus_snapshotter,
        layers_without_such_metadata_are_refused,
    ];
}

const ID: &str = "e9c7d7101dfff3e9f82bd5d2e01a6c2c0cd7604413b77ee88668b5adcdb001df";

fn plywood(arguments: &[&str]) -> Output {
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stargz");
    host::plywood().arg("stargz").args(arguments).current_dir(layers).output().unwrap()
}

fn the_files_of_a_layer_have_the_names_and_modes_of_the_nydus_snapshotter() {
    let made = |arguments: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let output = plywood(&[arguments, &["-o", dir.path().to_str().unwrap()]].concat());
        assert!(output.status.success(), "{output:?}");
        let mut files: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let read = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, mode(path), fs::read(path).unwrap())
        };
        (files.iter().map(read).collect::<Vec<_>>(), dir)
    };
    let (files, dir) = made(&["estargz/eqsize.esgz"]);
    let names: Vec<_> = files.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
    let context = format!("{ID}.blob.meta");
    assert_eq!(names, [(ID, 0o440), (context.as_str(), 0o440), ("stargz.index.json", 0o440)]);
    // Of the table alone.
    let table = dir.path().join("stargz.index.json");
    let (alone, _dir) = made(&[table.to_str().unwrap(), "--blob-id", ID]);
    assert!(alone[2] == files[2] && alone[0].2.len() == files[0].2.len());
    // What is there stays.
    let image = dir.path().join(ID);
    fs::remove_file(&image).unwrap();
    fs::write(&image, "another one").unwrap();
    assert!(plywood(&["estargz/eqsize.esgz", "-o", dir.path().to_str().unwrap()]).status.success());
    assert_eq!(fs::read(&image).unwrap(), b"another one");
}

fn layers_without_such_metadata_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    for (arguments, code, reason) in [
        (&["estargz/l2-inner.esgz", "-o", out][..], 1, "rafs.inner-offset"),
        (&["zstdchunked/plain-stargz.zc", "-o", out][..], 1, "rafs.form"),
        (&["README.md", "-o", out][..], 1, "rafs.form"),
        (&["estargz/eqsize.esgz", "--blob-id", "e9", "-o", out][..], 2, "cli.usage"),
    ] {
        let output = plywood(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(error.trim_end().ends_with(&format!("[{reason}]")), "{output:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
