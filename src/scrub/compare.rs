//! Whether a layer is what its blob says: made again, and compared.

use std::{fs::File, io};

use super::{
    make::make,
    same::{Open, difference},
    subject::{Judgement, Problem, Subject},
};
use crate::{
    apply::{Contents, Strategy},
    codec::Coding,
    digest::Hasher,
    error::{Error, Kind, Result},
    format::ReadAt,
    snapshot::{Access, NewFile},
    view::{ErofsView, Volume},
};

/// Bytes of each file that are compared or hashed at a time.
const PIECE: usize = 1 << 20;

/// Compares an image that was found to be sound with its layer.
pub(super) fn image(subject: &Subject<'_>, image: File) -> Result<Judgement> {
    let Some(strategy) = subject.strategy() else { return Ok(Judgement::Sound { compared: false }) };
    if let Strategy::Native { .. } = strategy {
        return Ok(match is_native_layer(subject, &image)? {
            true => Judgement::Sound { compared: true },
            false => Judgement::Broken(Problem::new(
                "scrub.differs",
                "the image has another digest than the layer's diffID",
            )),
        });
    }
    let (files, contents) = match rehearsed(subject)? {
        Ok(made) => made,
        Err(judgement) => return Ok(judgement),
    };
    let Some(made) = files.first() else { return Ok(Judgement::Sound { compared: false }) };
    if is_equal(subject, &image, made.file())? {
        return Ok(Judgement::Sound { compared: true });
    }
    let cancel = &subject.call.cancel;
    let found = made.file().try_clone().map_err(Error::disk).and_then(|made| {
        let view = |file: File, number, name: &str| {
            ErofsView::open(Volume::from(file), Vec::new(), (0, number), name.to_owned(), cancel)
        };
        let (image, made) = (view(image, 0, "the image")?, view(made, 1, "the layer")?);
        difference(&image, &made, Open { implied: contents.implied_directories > 0 }, cancel)
    });
    let is_alone = contents.without_parents && !subject.numbering.parents(subject.id()).is_empty();
    match found {
        Ok(None) => Ok(Judgement::Sound { compared: true }),
        Ok(Some(text)) if is_alone => {
            let message =
                format!("{text}, but the layers below could not be read, from which it may take that");
            Ok(Judgement::Unchecked(Problem::new("scrub.below", message)))
        }
        Ok(Some(text)) => Ok(Judgement::Broken(Problem::new("scrub.differs", text))),
        Err(error) => Judgement::of(error),
    }
}

/// Compares the file of a device's layer, byte by byte.
pub(super) fn device(subject: &Subject<'_>, file: &File) -> Result<Judgement> {
    if !matches!(subject.strategy(), Some(Strategy::Overlaybd)) {
        // Another program may have made it from an archive, and lay it out in another way.
        return Ok(Judgement::Sound { compared: false });
    }
    let (files, _) = match rehearsed(subject)? {
        Ok(made) => made,
        Err(judgement) => return Ok(judgement),
    };
    let Some(made) = files.last() else { return Ok(Judgement::Sound { compared: false }) };
    Ok(match is_equal(subject, file, made.file())? {
        true => Judgement::Sound { compared: true },
        false => Judgement::Broken(Problem::new("scrub.differs", "other bytes than in the layer's blob")),
    })
}

/// The files of the layer, made again and not published, and the counts of its contents. Otherwise the judgement that
/// there is without them.
fn rehearsed(subject: &Subject<'_>) -> Result<Result<(Vec<NewFile>, Contents), Judgement>> {
    let Some(strategy) = subject.strategy() else {
        return Ok(Err(Judgement::Sound { compared: false }));
    };
    let root = subject.root;
    let directory = match root.scrub.roots.resolve(&root.survey.active(subject.id(), &[])) {
        Ok(directory) => directory,
        Err(error) => return Judgement::of(error.into()).map(Err),
    };
    debug_assert_eq!(directory.access(), Access::Active, "the mounts are those of an active snapshot");
    let publication = directory.rehearse(strategy.files(), &root.scrub.resources.limits);
    match make(subject, strategy, &publication) {
        Ok((files, applied)) => Ok(Ok((files, applied.stats.contents))),
        // The content store need not keep the blobs of layers that are unpacked.
        Err(error) if error.kind() == Kind::NotFound => Ok(Err(Judgement::Sound { compared: false })),
        Err(error) if error.kind() == Kind::Cancelled => Err(error),
        // Whatever is wrong there, the snapshot may be sound.
        Err(error) => Ok(Err(Judgement::Unchecked(error.into()))),
    }
}

/// Whether an image has the digest of its layer, which is an EROFS image itself.
pub(super) fn is_native_layer(subject: &Subject<'_>, image: &File) -> Result<bool> {
    let (Some(origin), Some(layer_type)) = (subject.origin, subject.layer_type()) else { return Ok(false) };
    let size_bytes = image.size_bytes();
    // A hash tree may follow.
    let len = match layer_type.coding {
        Coding::Plain => origin.blob.size_bytes,
        _ => size_bytes,
    };
    if len > size_bytes {
        return Ok(false);
    }
    let mut hasher = Hasher::new(origin.diff_id.algorithm());
    let is_read = pieces(subject, len, &mut |offset, piece| {
        image.read_exact_at(offset, piece)?;
        hasher.update(piece);
        Ok(true)
    })?;
    Ok(is_read && hasher.finish() == origin.diff_id)
}

fn is_equal(subject: &Subject<'_>, file: &File, made: &File) -> Result<bool> {
    let len = made.size_bytes();
    if file.size_bytes() != len {
        return Ok(false);
    }
    let mut other = vec![0; PIECE];
    pieces(subject, len, &mut |offset, piece| {
        let other = other.get_mut(..piece.len()).unwrap_or_default();
        file.read_exact_at(offset, piece)?;
        made.read_exact_at(offset, other)?;
        Ok(piece == other)
    })
}

/// Calls `look` for each piece of `len` bytes until it returns false, and returns whether it never did. A file that
/// cannot be read counts as that.
fn pieces(
    subject: &Subject<'_>,
    len: u64,
    look: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<bool>,
) -> Result<bool> {
    let (mut buffer, mut at) = (vec![0; PIECE], 0);
    while at < len {
        subject.call.cancel.check()?;
        let room = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        match look(at, buffer.get_mut(..room).unwrap_or_default()) {
            Ok(true) => at += room as u64,
            Ok(false) | Err(_) => return Ok(false),
        }
    }
    Ok(true)
}
