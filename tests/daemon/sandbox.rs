//! The confinement of the daemon, on a thread of its own.

use std::fs;

use plywood::sys::sandbox::{Paths, confine};
use testkit::{Need, Suite};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[Need::Landlock];
        a_confined_thread_reaches_its_directories_and_nothing_else,
    ];
}

fn a_confined_thread_reaches_its_directories_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().to_owned();
    let at = move |name: &str| base.join(name);
    for name in ["write", "read", "other"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), name).unwrap();
    }
    // Other tests run on other threads and stay free.
    std::thread::spawn(move || {
        let paths = Paths {
            read_write: &[&at("write")],
            read: &[&at("read"), &at("absent")],
            remove: &[],
            abstract_sockets: false,
        };
        let enforced = confine(paths).unwrap();
        assert_eq!(enforced.missing, [at("absent").display().to_string()]);
        fs::write(at("write").join("new"), "x").unwrap();
        fs::rename(at("write").join("new"), at("write").join("file")).unwrap();
        fs::set_permissions(at("write").join("file"), fs::metadata(at("read")).unwrap().permissions())
            .unwrap();
        assert_eq!(fs::read(at("read").join("file")).unwrap(), b"read");
        assert!(fs::write(at("read").join("file"), "x").is_err());
        assert!(fs::read(at("other").join("file")).is_err());
        assert!(fs::read("/etc/passwd").is_err());
        assert!(fs::read("/proc/self/statm").is_ok());
        assert!(std::process::Command::new("/bin/true").status().is_err());
        assert!(std::net::TcpStream::connect("127.0.0.1:9").is_err());
    })
    .join()
    .unwrap();
}
