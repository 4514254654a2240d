//! The images that inputs say they hold, and the names that these get.

use super::{
    document::{self, Document, INDEX_JSON, MANIFEST_JSON, NAME, OCI_LAYOUT, Packed, REF_NAME, media_type},
    error::ImageError,
    name,
    options::Options,
    platform::Platform,
    pool::{Form, Input, Pool},
};
use crate::{
    descriptor::Descriptor,
    error::{Error, Result},
};

/// An image that an input says it holds.
#[derive(Debug)]
pub(super) struct Find {
    /// Number of the input; `None` for an image of the target.
    pub(super) input: Option<usize>,
    /// Names it gets, in full form.
    pub(super) names: Vec<String>,
    /// Names that a set has besides and that were not asked for.
    pub(super) other_names: Vec<String>,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// From a docker-archive or a set.
    Packed(Packed),
    /// From an OCI layout.
    Tree(Descriptor),
}

/// Lists the images of all inputs.
pub(super) fn images(pool: &Pool, options: &Options) -> Result<Vec<Find>> {
    let mut found = Vec::new();
    for (number, Input { path, form }) in pool.inputs.iter().enumerate() {
        let of_input = match form {
            Form::Set(set) => packed_in_set(pool, number, &set.image, options).map(|find| vec![find]),
            _ if pool.is_oci(number)? => trees(pool, number, options),
            _ => packed(pool, number, options),
        };
        // An error of the pool names its file already.
        found.extend(of_input.map_err(|error| error.context(path.display().to_string()))?);
    }
    Ok(found)
}

fn missing(name: &str) -> Error {
    ImageError::Missing(name.to_owned()).into()
}

fn trees(pool: &Pool, input: usize, options: &Options) -> Result<Vec<Find>> {
    let read = |name: &str| pool.document(input, name)?.ok_or_else(|| missing(name));
    document::check_marker(&read(OCI_LAYOUT)?)?;
    let bytes = read(INDEX_JSON)?;
    let Document::Index(entries) = Document::decode_index(&bytes)? else { return Ok(Vec::new()) };
    let mut finds: Vec<Find> = Vec::new();
    for entry in entries {
        let is_wanted = |platform: &Platform| options.all_platforms || *platform == options.platform;
        if !entry.platform.as_ref().is_none_or(is_wanted) {
            continue;
        }
        let annotation = |key| entry.descriptor.annotations.get(key).filter(|value| !value.is_empty());
        let name = match (annotation(NAME), annotation(REF_NAME)) {
            (Some(name), _) => Some(name::full(name)?),
            (None, Some(name)) if name.contains(['/', ':']) => Some(name::full(name)?),
            (None, Some(tag)) => given(options, Some(tag))?,
            (None, None) => None,
        };
        let same = finds.iter_mut().find(
            |find| matches!(&find.content, Content::Tree(tree) if tree.digest == entry.descriptor.digest),
        );
        match (same, name) {
            (Some(find), name) => find.names.extend(name),
            (None, name) => finds.push(Find {
                input: Some(input),
                names: name.into_iter().collect(),
                other_names: Vec::new(),
                content: Content::Tree(entry.descriptor),
            }),
        }
    }
    for find in finds.iter_mut().filter(|find| find.names.is_empty()) {
        find.names.extend(given(options, None)?);
    }
    Ok(finds)
}

fn packed(pool: &Pool, input: usize, options: &Options) -> Result<Vec<Find>> {
    let list = pool.document(input, MANIFEST_JSON)?.ok_or_else(|| {
        missing("manifest.json of a docker-archive, or index.json and oci-layout of an OCI archive,")
    })?;
    let mut finds = Vec::new();
    for image in document::packed(&list)? {
        let mut names = Vec::new();
        for tag in &image.repo_tags {
            names.push(name::full(tag)?);
        }
        if names.is_empty() {
            names.extend(given(options, None)?);
        }
        let content = Content::Packed(image);
        finds.push(Find { input: Some(input), names, other_names: Vec::new(), content });
    }
    Ok(finds)
}

fn packed_in_set(pool: &Pool, input: usize, asked: &str, options: &Options) -> Result<Find> {
    let list = pool.document(input, MANIFEST_JSON)?.ok_or_else(|| missing(MANIFEST_JSON))?;
    let mut images = document::packed(&list)?;
    let fits =
        |image: &Packed| image.repo_tags.iter().any(|tag| name::full(tag).is_ok_and(|tag| tag == asked));
    if let [image] = images.as_slice()
        && image.repo_tags.is_empty()
    {
        // The only one, and without a name.
    } else {
        images.retain(fits);
    }
    let problem = if images.len() > 1 { "has more than one image" } else { "has no image" };
    let (Some(image), true) = (images.pop(), images.is_empty()) else {
        return Err(ImageError::Tag { asked: asked.to_owned(), problem }.into());
    };
    let mut names = vec![asked.to_owned()];
    let mut other_names = Vec::new();
    for tag in &image.repo_tags {
        let tag = name::full(tag)?;
        if tag != asked {
            if options.all_tags { names.push(tag) } else { other_names.push(tag) }
        }
    }
    Ok(Find { input: Some(input), names, other_names, content: Content::Packed(image) })
}

/// Name for an image that has none, or only a tag.
fn given(options: &Options, tag: Option<&str>) -> Result<Option<String>> {
    let what = tag.map_or_else(|| "no name".to_owned(), |tag| format!("only the tag {tag:?}"));
    let Some(given) = &options.name else {
        if options.nameless {
            return Ok(tag.map(str::to_owned));
        }
        return Err(ImageError::Reference(format!("an image has {what}; give it one with --name")).into());
    };
    Ok(Some(match (tag, name::split(given)) {
        (Some(tag), (base, None)) => name::full(&format!("{base}:{tag}"))?,
        _ => name::full(given)?,
    }))
}

/// An image that the target has already.
pub(super) fn recorded(name: &str, target: Descriptor) -> Find {
    Find {
        input: None,
        names: vec![name.to_owned()],
        other_names: Vec::new(),
        content: Content::Tree(target),
    }
}

impl Document {
    /// Reads `index.json`, which need not say its type.
    fn decode_index(bytes: &[u8]) -> Result<Self> {
        Self::decode(media_type::OCI_INDEX, bytes)
    }
}
