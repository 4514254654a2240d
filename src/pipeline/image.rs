//! Writes an EROFS image to a file under the limits of a request, and checks it in that file.

use std::io;

use super::budget::{Lease, SHARE_BYTES, Use};
use crate::{
    call::Cancel,
    error::{Error, Kind, Result},
    format::{
        ReadAt, Remote, Sink,
        erofs::{
            check::{self, CheckError, Level, Policy, Report},
            reader::Image,
            superblock::Superblock,
            writer::{LayerDevice, Options, Referred, Summary, Writer, WriterError},
        },
    },
    limits::Limits,
    snapshot::NewFile,
    tree::{Below, Entry},
};

/// Step in which memory is charged, in bytes: each charge takes the lock of all requests.
const CHARGE_BYTES: u64 = 1 << 20;

/// Writes an image whose metadata memory is charged to the request.
#[derive(Debug)]
pub struct ImageWriter<'a, S = NewFile> {
    writer: Writer<Watched<'a, S>>,
    /// Purpose of its metadata memory.
    purpose: Use,
    /// Metadata memory charged so far, in bytes.
    charged: u64,
    lease: &'a Lease,
    cancel: &'a Cancel,
}

impl<'a, S: Sink> ImageWriter<'a, S> {
    /// A writer into `file`, which is empty.
    pub fn new(file: S, options: Options, lease: &'a Lease, cancel: &'a Cancel) -> Self {
        Self::with(Writer::new(Watched { file, cancel }, options), Use::Metadata, lease, cancel)
    }

    /// [`Writer::index`]. Its memory is charged beside that of another image.
    pub fn index(file: S, options: Options, lease: &'a Lease, cancel: &'a Cancel) -> Self {
        Self::with(Writer::index(Watched { file, cancel }, options), Use::Index, lease, cancel)
    }

    /// [`Writer::device`].
    pub fn device(
        file: S,
        options: Options,
        below: Option<&Superblock>,
        lease: &'a Lease,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let writer = Writer::device(Watched { file, cancel }, options, below).map_err(writer_error)?;
        Ok(Self::with(writer, Use::Metadata, lease, cancel))
    }

    /// [`Writer::merged`]. Its memory is charged beside that of another image.
    pub fn merged(
        file: S,
        options: Options,
        layers: &[LayerDevice],
        lease: &'a Lease,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let writer = Writer::merged(Watched { file, cancel }, options, layers).map_err(writer_error)?;
        Ok(Self::with(writer, Use::Index, lease, cancel))
    }

    fn with(writer: Writer<Watched<'a, S>>, purpose: Use, lease: &'a Lease, cancel: &'a Cancel) -> Self {
        Self { writer, purpose, charged: 0, lease, cancel }
    }

    /// [`Writer::entry_referred`]. Errors: as for [`Self::entry`].
    pub fn entry_referred(&mut self, entry: &Entry, data: Referred<'_>) -> Result<()> {
        let taken = self.writer.entry_referred(entry, data);
        self.charge()?;
        taken.map_err(writer_error)
    }

    /// [`Writer::entry`]. Errors: also when the request gets no more memory, or was cancelled.
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        let taken = self.writer.entry(entry);
        self.charge()?;
        taken.map_err(writer_error)
    }

    /// [`Writer::entry_in_archive`]. Errors: as for [`Self::entry`].
    pub fn entry_in_archive(&mut self, entry: &Entry, data_start: u64) -> Result<()> {
        let taken = self.writer.entry_in_archive(entry, data_start);
        self.charge()?;
        taken.map_err(writer_error)
    }

    /// [`Writer::set_archive_bytes`].
    pub fn set_archive_bytes(&mut self, bytes: u64) {
        self.writer.set_archive_bytes(bytes);
    }

    /// [`Writer::entry_mapped`]. Errors: as for [`Self::entry`].
    pub fn entry_mapped(&mut self, entry: &Entry, data_start: u64) -> Result<()>
    where
        S: Remote,
    {
        let taken = self.writer.entry_mapped(entry, data_start);
        self.charge()?;
        taken.map_err(writer_error)
    }

    fn charge(&mut self) -> Result<()> {
        let used = self.writer.metadata_bytes();
        if used > self.charged {
            let charged = used.next_multiple_of(CHARGE_BYTES);
            self.lease.charge(self.purpose, charged, self.cancel)?;
            self.charged = charged;
        }
        Ok(())
    }

    /// [`Writer::data`].
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writer.data(offset, bytes).map_err(writer_error)
    }

    /// [`Writer::end_entry`].
    pub fn end_entry(&mut self) -> Result<()> {
        self.writer.end_entry().map_err(writer_error)
    }

    /// [`Writer::implied_directories`].
    pub fn implied_directories(&self) -> u64 {
        self.writer.implied_directories()
    }

    /// [`Writer::inherit`].
    pub fn inherit(&mut self, below: &mut impl Below<Error = Error>) -> Result<u64> {
        let inherited = self.writer.inherit(below);
        self.charge()?;
        inherited
    }

    /// [`Writer::disinherit`].
    pub fn disinherit(&mut self) {
        self.writer.disinherit();
    }

    /// [`Writer::image_bytes`].
    pub fn image_bytes(&self) -> u64 {
        self.writer.image_bytes()
    }

    /// Completes the image, identified by `uuid`.
    pub fn finish(mut self, uuid: [u8; 16]) -> Result<(S, Summary)> {
        self.writer.set_uuid(uuid);
        let (watched, summary) = self.writer.finish().map_err(writer_error)?;
        Ok((watched.file, summary))
    }

    /// [`Writer::finish_above`].
    pub fn finish_above<R: ReadAt>(self, below: Option<&Image<R>>) -> Result<(S, Summary)> {
        let (watched, summary) = self.writer.finish_above(below).map_err(writer_error)?;
        Ok((watched.file, summary))
    }
}

/// An error of the sink may carry one of ours.
fn writer_error(error: WriterError) -> Error {
    match error {
        WriterError::Sink(error) => Error::disk(error),
        error => error.into(),
    }
}

/// A file whose reads and writes end when the call is cancelled: either end of a large image takes seconds.
#[derive(Debug)]
struct Watched<'a, T> {
    file: T,
    cancel: &'a Cancel,
}

impl<T> Watched<'_, T> {
    fn check(&self) -> io::Result<()> {
        self.cancel.check().map_err(|stop| Error::from(stop).into_io())
    }
}

impl<T: Sink> Sink for Watched<'_, T> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write_at(offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn memory_bytes(&self) -> u64 {
        self.file.memory_bytes()
    }
}

impl<T: Remote> Remote for Watched<'_, T> {
    fn map(&mut self, offset: u64, len: u64, target: u64) -> io::Result<()> {
        self.check()?;
        self.file.map(offset, len, target)
    }
}

impl<T: ReadAt> ReadAt for Watched<'_, T> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.file.read_exact_at(offset, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.file.will_need(offset, len);
    }
}

/// Checks a finished image, on the bytes in the file. The decoder and the writers that used `lease` must be gone: the
/// check uses all of it. Errors: the first rule that the image breaks; `Cancelled`.
pub fn verify(
    image: &impl ReadAt,
    level: Level,
    limits: &Limits,
    lease: &Lease,
    cancel: &Cancel,
) -> Result<()> {
    verify_by(image, &[], &Policy { level, ..Policy::layer() }, limits, lease, cancel).map(drop)
}

/// Like [`verify`] at the strictest level, for an image of any origin that is in use already, with its extra devices:
/// whether it is sound, not whether it would be taken.
pub fn examine<'r>(
    image: &'r dyn ReadAt,
    devices: &[&'r dyn ReadAt],
    limits: &Limits,
    lease: &Lease,
    cancel: &Cancel,
) -> Result<Report> {
    verify_by(image, devices, &Policy::any(), limits, lease, cancel)
}

fn verify_by<'r>(
    image: &'r dyn ReadAt,
    devices: &[&'r dyn ReadAt],
    policy: &Policy,
    limits: &Limits,
    lease: &Lease,
    cancel: &Cancel,
) -> Result<Report> {
    lease.charge(Use::Window, 0, cancel)?;
    lease.charge(Use::Index, 0, cancel)?;
    let watched = |file| Watched { file, cancel };
    // How much memory it takes is known only when the check runs out of it. So it gets the share that every request
    // has, and is repeated with the most there is if that was too little.
    let used = lease.used(Use::Device);
    let [small, large] = [SHARE_BYTES, limits.metadata_bytes].map(|share| share.saturating_sub(used));
    let mut max_memory_bytes = if lease.is_large() { large } else { small };
    loop {
        lease.charge(Use::Metadata, max_memory_bytes, cancel)?;
        let policy = Policy { max_nodes: limits.nodes, max_memory_bytes, ..policy.clone() };
        let devices = devices.iter().copied().map(watched).collect();
        let opened = Image::open_with_devices(watched(image), devices).map_err(CheckError::from);
        let error = match opened.and_then(|image| check::verify_image(&image, &policy)) {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        cancel.check()?;
        match error {
            CheckError::Memory { .. } if max_memory_bytes < large => max_memory_bytes = large,
            error => return Err(error.into()),
        }
    }
}

/// Like [`verify`] at the strictest level, for an image made here, with its extra devices: a broken rule is a fault of
/// this program.
pub fn verify_own<'r>(
    image: &'r dyn ReadAt,
    devices: &[&'r dyn ReadAt],
    limits: &Limits,
    lease: &Lease,
    cancel: &Cancel,
) -> Result<()> {
    let policy = Policy { devices: !devices.is_empty(), ..Policy::layer() };
    own(verify_by(image, devices, &policy, limits, lease, cancel).map(drop))
}

/// Like [`verify_own`] for the index of an archive, with the archive, its extra device, behind it.
pub fn verify_index(image: &impl ReadAt, limits: &Limits, lease: &Lease, cancel: &Cancel) -> Result<()> {
    own(verify_by(image, &[], &Policy { devices: true, ..Policy::layer() }, limits, lease, cancel).map(drop))
}

fn own(verified: Result<()>) -> Result<()> {
    match verified {
        Err(error) if error.kind() == Kind::Malformed => {
            let message = format!("the image just made: {error} [{}]", error.reason());
            Err(Error::new(Kind::Internal, "image.self-check", message))
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pipeline::budget::Budget,
        snapshot::{LAYER_NAME, Publication},
        tree::{Attributes, Body},
    };

    fn symlink(number: u32) -> Entry {
        let body = Body::Symlink { target: b"t".to_vec() };
        let path = format!("{number:0200}").into_bytes();
        Entry {
            path,
            attributes: Attributes { mode: 0o777, ..Attributes::default() },
            xattrs: Vec::new(),
            body,
        }
    }

    /// Writes so many names, and checks the image under `limits`.
    fn outcome(names: u32, limits: &Limits) -> Result<u64> {
        let scratch = tempfile::tempdir().unwrap();
        let file = Publication::beside(&scratch.path().join("image")).unwrap().file(LAYER_NAME).unwrap();
        let (budget, cancel) = (Budget::new(limits), Cancel::new());
        let lease = budget.lease(&cancel)?;
        let mut writer = ImageWriter::new(file, Options::default(), &lease, &cancel);
        (0..names).try_for_each(|number| writer.entry(&symlink(number)))?;
        let (image, _) = writer.finish([0; 16])?;
        let charged = budget.charged_bytes();
        verify_own(&image, &[], limits, &lease, &cancel)?;
        Ok(charged)
    }

    #[test]
    fn the_memory_of_an_image_is_charged_while_it_grows() {
        // The names alone have two megabytes.
        assert!(outcome(10_000, &Limits::default()).unwrap() >= 2 << 20);
    }

    #[test]
    fn an_image_and_the_index_beside_it_are_charged_together() {
        let limits = Limits { metadata_bytes: SHARE_BYTES, ..Limits::default() };
        let (budget, cancel) = (Budget::new(&limits), Cancel::new());
        let lease = budget.lease(&cancel).unwrap();
        let file = || tempfile::tempfile().unwrap();
        let mut image = ImageWriter::new(file(), Options::default(), &lease, &cancel);
        let mut index = ImageWriter::index(file(), Options::default(), &lease, &cancel);
        let mut both = |number| {
            image.entry(&symlink(number))?;
            index.entry(&symlink(number))
        };
        (0..10_000).try_for_each(&mut both).unwrap();
        assert!(budget.charged_bytes() >= 4 << 20, "{}", budget.charged_bytes());
        // Neither of them is over the limit by itself.
        let error = (10_000..70_000).try_for_each(both).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.metadata"), "{error}");
        assert!(image.charged < 16 << 20 && index.charged < 16 << 20);
    }

    #[test]
    fn the_check_counts_the_names_of_an_image() {
        let limits = |nodes| Limits { nodes, ..Limits::default() };
        outcome(10, &limits(11)).unwrap();
        let error = outcome(10, &limits(9)).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.nodes"), "{error}");
    }
}
