//! `plywood check` and `plywood dump` as a user runs them, on fixtures of another writer.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use testkit::Suite;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        sound_images_are_one_line_each_and_exit_code_0,
        one_refused_image_makes_exit_code_1_and_does_not_stop_the_others,
        results_for_machines_are_json,
        another_kind_of_file_is_named,
        dumps_show_the_superblock_and_on_request_the_names,
        dumps_for_machines_are_one_json_object_a_line,
        the_superblock_for_machines_has_numbers_as_numbers_and_lists_as_lists,
        names_for_machines_have_numbers_as_numbers_and_units_in_their_keys,
        keys_for_machines_are_words_with_underscores,
        what_a_dump_cannot_read_is_an_error_with_kind_and_reason,
        devices_may_be_given,
    ];
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/erofs").join(name)
}

fn plywood(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plywood"))
        .args(arguments)
        .current_dir(fixture(""))
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the output is UTF-8")
}

fn sound_images_are_one_line_each_and_exit_code_0() {
    let output = plywood(&["check", "inline.erofs", "block512.erofs"]);
    let lines = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<&str> = lines.lines().filter(|line| !line.starts_with("  ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("inline.erofs: sound, 12 inodes, "), "{lines:?}");
}

fn one_refused_image_makes_exit_code_1_and_does_not_stop_the_others() {
    let output = plywood(&["check", "devices.erofs", "README.md", "no-such-file", "inline.erofs"]);
    assert_eq!(output.status.code(), Some(1));
    let out = text(&output.stdout);
    for (line, want) in out.lines().zip([
        "devices.erofs: refused: the image refers to 1 extra devices [erofs.policy.devices]",
        "README.md: refused: not an EROFS image: ",
        "no-such-file: refused: ",
        "inline.erofs: sound",
    ]) {
        assert!(line.starts_with(want), "{line}");
    }
    assert_eq!(text(&output.stderr), "plywood: 3 of 4 images are refused [check.refused]\n");
}

fn results_for_machines_are_json() {
    let output = plywood(&["check", "--json", "devices.erofs", "inline.erofs"]);
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(value[0]["sound"], false);
    assert_eq!(value[0]["error"]["reason"], "erofs.policy.devices");
    assert_eq!(value[1]["sound"], true);
    assert_eq!(value[1]["inodes"], 12);
}

fn another_kind_of_file_is_named() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    for (bytes, want) in [
        (&b"\x1f\x8b\x08\0"[..], "a gzip stream; `plywood apply` makes an image of a layer"),
        (b"\x28\xb5\x2f\xfd", "a zstd stream; `plywood apply` makes an image of a layer"),
        (&[&[b'a'; 257][..], b"ustar\0", &[0; 2000]].concat(), "a tar archive; `plywood apply`"),
        (&[&[0; 1080][..], &[0x53, 0xef], &[0; 2000]].concat(), "an ext2, ext3 or ext4 image"),
        (b"hsqs", "a SquashFS image"),
    ] {
        let path = dir.path().join("layer");
        std::fs::write(&path, bytes).expect("it can be written");
        let path = path.to_str().expect("it is UTF-8");
        for command in ["check", "dump"] {
            let output = plywood(&[command, path]);
            assert_eq!(output.status.code(), Some(1));
            let all = text(&output.stdout) + &text(&output.stderr);
            assert!(all.contains(&format!("not an EROFS image, but {want}")), "{all}");
        }
    }
    let output = plywood(&["dump", dir.path().to_str().expect("it is UTF-8")]);
    assert!(text(&output.stderr).contains("directory"), "{output:?}");
}

fn dumps_show_the_superblock_and_on_request_the_names() {
    let output = plywood(&["dump", "inline.erofs"]);
    let facts = text(&output.stdout);
    assert!(output.status.success() && !facts.contains("nid="), "{facts}");
    assert!(facts.contains("block-size: 4096\n"), "{facts}");
    let tree = text(&plywood(&["dump", "--tree", "inline.erofs"]).stdout);
    assert!(tree.starts_with(&facts), "{tree}");
    assert_eq!(tree.lines().filter(|line| line.starts_with('"')).count(), 13, "{tree}");
    let one = text(&plywood(&["dump", "--path", "dir//./sub/", "inline.erofs"]).stdout);
    assert_eq!(one.lines().count(), 1);
    assert!(one.starts_with("\"/dir/sub\" nid="), "{one}");
    assert!(tree.contains(&one), "a line is the same wherever it is shown");
    let below = text(&plywood(&["dump", "--tree", "--path", "/dir", "inline.erofs"]).stdout);
    assert!(below.lines().count() > 1 && below.lines().all(|line| line.starts_with("\"/dir")), "{below}");
    let compressed = text(&plywood(&["dump", "--path", "sparse", "lz4.erofs"]).stdout);
    let map = " size=28772 compressed-compact data=[0+4096@4096+4096:stored 4096+24676@8192+4096:lz4]\n";
    assert!(compressed.ends_with(map), "{compressed}");
    let none = plywood(&["dump", "--path", "/dir/none", "inline.erofs"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("the image has no /dir/none [image.path]"), "{none:?}");
}

/// The objects that `plywood dump --json` prints.
fn dump_json(arguments: &[&str]) -> Vec<Value> {
    let output = plywood(&[&["dump", "--json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

fn dumps_for_machines_are_one_json_object_a_line() {
    let values = dump_json(&["--tree", "inline.erofs"]);
    assert_eq!(values.len(), 14);
    assert_eq!((&values[1]["path"], &values[1]["type"]), (&"/".into(), &"directory".into()));
    let link = values.iter().find(|value| value["path"] == "/link").expect("the link is listed");
    assert_eq!(link["target"], "dir/medium");
}

fn the_superblock_for_machines_has_numbers_as_numbers_and_lists_as_lists() {
    let want = json!({
        "checksum": { "stored": 0xf1a6_e477_u32, "computed": 0xf1a6_e477_u32 },
        "features": ["sb_chksum", "mtime", "xattr_filter"],
        "incompatible_features": ["chunked_file", "device_table"],
        "block_bytes": 4096,
        "blocks": 1,
        "file_bytes": 4096,
        "root": 41,
        "inodes": 12,
        "epoch": { "seconds": 1_700_000_000, "nanoseconds": 0 },
        "build_time": { "seconds": 1_700_000_000, "nanoseconds": 0 },
        "metadata_block": 0,
        "xattr_block": 0,
        "uuid": "00112233-4455-6677-8899-aabbccddeeff",
        "volume_name": "",
        "compression": [],
        "devices": [{ "blocks": 7, "start_block": 1, "tag": "" }],
        "xattr_prefixes": [],
    });
    assert_eq!(dump_json(&["devices.erofs"]), [want]);
    let prefixes = &dump_json(&["prefixes.erofs"])[0]["xattr_prefixes"];
    assert_eq!(prefixes, &json!([{ "base": "user.", "infix": "long.prefix." }]));
    assert_eq!(dump_json(&["lz4.erofs"])[0]["compression"], json!(["lz4"]));
}

fn names_for_machines_have_numbers_as_numbers_and_units_in_their_keys() {
    let one = |image: &str, path: &str| dump_json(&["--path", path, image]).remove(0);
    let medium = one("inline.erofs", "/dir/medium");
    assert_eq!(medium["size_bytes"], 5000);
    assert_eq!(medium["mode"], 0o644);
    assert_eq!(medium["mtime"], json!({ "seconds": 1_600_000_000, "nanoseconds": 123_456_789 }));
    let data = json!([
        { "offset_bytes": 0, "len_bytes": 4096, "device": 0, "at_bytes": 32768 },
        { "offset_bytes": 4096, "len_bytes": 904, "inline": true, "at_bytes": 2384 },
    ]);
    assert_eq!(medium["data"], data);
    assert_eq!(one("inline.erofs", "/sda")["device"], json!({ "major": 8, "minor": 300 }));
    let data = json!([
        { "offset_bytes": 0, "len_bytes": 4096, "device": 0, "at_bytes": 4096, "encoded_bytes": 4096 },
        { "offset_bytes": 4096, "len_bytes": 24676, "device": 0, "at_bytes": 8192, "encoded_bytes": 4096,
          "algorithm": "lz4" },
    ]);
    assert_eq!(one("lz4.erofs", "/sparse")["data"], data);
}

fn keys_for_machines_are_words_with_underscores() {
    fn look(value: &Value) {
        match value {
            Value::Array(values) => values.iter().for_each(look),
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                assert!(key.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{key}");
                assert!(value.as_str().is_none_or(|text| text.parse::<f64>().is_err()), "{key}: {value}");
                look(value);
            }),
            _ => {}
        }
    }
    // Values of attributes are text, although some of them are digits.
    for image in ["devices.erofs", "prefixes.erofs", "lz4.erofs", "chunks.erofs"] {
        for mut value in dump_json(&["--tree", image]) {
            if let Some(object) = value.as_object_mut() {
                object.remove("xattrs");
            }
            look(&value);
        }
    }
}

fn what_a_dump_cannot_read_is_an_error_with_kind_and_reason() {
    let mut image = std::fs::read(fixture("inline.erofs")).expect("the fixture is there");
    let dir = tempfile::tempdir().expect("a scratch directory");
    let path = dir.path().join("broken.erofs");
    let path = path.to_str().expect("it is UTF-8");
    let nid = dump_json(&["--path", "/small", "inline.erofs"])[0]["nid"].as_u64().expect("a number");
    image[usize::try_from(nid * 32).expect("it fits")] = 0x0b;
    // Only a checksum that does not hold says that the image was changed.
    std::fs::write(path, &image).expect("it can be written");
    let values = dump_json(&["--tree", path]);
    let checksum = &values[0]["checksum"];
    assert!(checksum["stored"].is_u64() && checksum["stored"] != checksum["computed"], "{checksum}");
    let small = values.iter().find(|value| value["path"] == "/small").expect("it is listed");
    assert_eq!(small["error"]["kind"], "invalid_argument", "{small}");
    for key in ["reason", "message"] {
        assert!(small["error"][key].is_string(), "{small}");
    }
}

fn devices_may_be_given() {
    let apart = plywood(&["check", "--rules", "any", "--device", "devices.blob", "devices.erofs"]);
    assert!(apart.status.success(), "{apart:?}");
    let missing = plywood(&["check", "--rules", "any", "devices.erofs"]);
    assert!(text(&missing.stdout).contains("[erofs.device.range]"), "{missing:?}");
    let layer = plywood(&["check", "--device", "devices.blob", "devices.erofs"]);
    assert!(text(&layer.stdout).contains("[erofs.policy.devices]"), "{layer:?}");
}
