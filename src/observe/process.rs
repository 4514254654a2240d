//! Memory, descriptors and threads of this process, read from `/proc/self` at every scrape.

use std::fs;

/// Resources of this process; `None` where `/proc` cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// Number of open file descriptors.
    pub descriptors: Option<u64>,
    /// Number of threads.
    pub threads: Option<u64>,
}

impl Usage {
    /// Reads the present values.
    pub fn now() -> Self {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
        let entries = |path| fs::read_dir(path).ok().map(|entries| entries.count() as u64);
        Self {
            resident_bytes: pages.map(|pages| pages.saturating_mul(page)),
            // Less the descriptor that reads the directory.
            descriptors: entries("/proc/self/fd").map(|count| count.saturating_sub(1)),
            threads: entries("/proc/self/task"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_file_is_counted() {
        let before = Usage::now();
        assert!(before.resident_bytes.unwrap() > 1 << 20 && before.threads.unwrap() >= 1);
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = Usage::now();
        assert!(after.descriptors.unwrap() >= before.descriptors.unwrap() + 40, "{before:?} {after:?}");
        drop(files);
    }
}
