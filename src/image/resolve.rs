//! Contents of images: their documents, read and checked, and for every layer the place it comes from.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
};

use super::{
    config::Config,
    document::{self, Document, Packed, docker_layer, media_type},
    error::ImageError,
    finds::{Content, Find},
    member,
    options::Options,
    platform::Platform,
    pool::{Form, Located, Pool},
    source::unreadable,
    target::Target,
};
use crate::{
    codec::Coding,
    descriptor::Descriptor,
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    kind::LayerType,
    limits,
};

/// Images, and everything they need.
#[derive(Debug, Default)]
pub struct Plan {
    /// The images in the order of the inputs.
    pub images: Vec<Image>,
    /// Their layers and other blobs, each once.
    pub blobs: Vec<Blob>,
    /// Their documents, each once, those that others lead to first.
    pub(super) documents: Vec<Node>,
}

/// One image.
#[derive(Debug)]
pub struct Image {
    /// Names it gets.
    pub names: Vec<String>,
    /// Names that the input has for it besides.
    pub other_names: Vec<String>,
    /// Number of its input; `None` for an image of the target.
    pub input: Option<usize>,
    /// Document to which the names lead; `None` for an image whose manifest has yet to be written.
    pub root: Option<Descriptor>,
    /// Manifests that are loaded: one for each platform.
    pub manifests: Vec<Manifest>,
}

/// One manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Platform, by the configuration.
    pub platform: Option<Platform>,
    /// The configuration.
    pub config: Descriptor,
    /// DiffIDs of the layers, lowest first. Empty for what is no image.
    pub diff_ids: Vec<Digest>,
    /// Numbers of the layers in [`Plan::blobs`].
    pub layers: Vec<usize>,
}

/// A layer, or another blob that is not read as a document.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Digest of the uncompressed layer; `None` for what is no layer of ours.
    pub diff_id: Option<Digest>,
    /// The blob. Not known for a layer of a docker-archive that is compressed.
    pub descriptor: Option<Descriptor>,
    /// Name of the layer in its own docker-archive or set.
    pub member: Option<String>,
    own: Option<usize>,
    /// Place it comes from.
    pub from: From,
}

/// Place from which a blob comes.
#[derive(Clone, Debug)]
pub enum From {
    /// The target has it.
    Store,
    /// One of the inputs has it.
    Input(Source),
    /// Nobody has it, for this reason.
    Missing(String),
}

/// A file of an input.
#[derive(Clone, Debug)]
pub struct Source {
    pub(super) located: Located,
}

impl Source {
    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.located.size_bytes
    }

    /// Number of the input.
    pub fn input(&self) -> usize {
        self.located.place.input
    }
}

/// A document and the labels by which it keeps others alive.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Vec<u8>,
    pub(super) labels: BTreeMap<String, String>,
}

/// Reads the documents of `finds`, and looks for every layer: in the target, in its own input, in the others.
pub(super) fn plan(
    pool: &Pool,
    target: Option<&dyn Target>,
    finds: Vec<Find>,
    options: &Options,
) -> Result<Plan> {
    let mut planner = Planner {
        pool,
        target,
        options,
        plan: Plan::default(),
        known: HashMap::new(),
        documents: HashMap::new(),
        bytes: 0,
    };
    for find in finds {
        let name = find.names.first().cloned().unwrap_or_default();
        planner.image(find).map_err(|error| error.context(format!("image {name}")))?;
    }
    planner.settle()?;
    Ok(planner.plan)
}

struct Planner<'p> {
    pool: &'p Pool,
    target: Option<&'p dyn Target>,
    options: &'p Options,
    plan: Plan,
    /// Numbers of blobs by digest, or by diffID for those of docker-archives.
    known: HashMap<(bool, Digest), usize>,
    /// Numbers of documents.
    documents: HashMap<Digest, usize>,
    /// Bytes of all documents.
    bytes: usize,
}

impl Planner<'_> {
    fn image(&mut self, find: Find) -> Result<()> {
        let Find { input, names, other_names, content } = find;
        let mut manifests = Vec::new();
        let root = match content {
            Content::Packed(packed) => {
                let missing =
                    || Error::new(Kind::Internal, "internal.input", "a packed image without an input");
                manifests.push(self.packed(input.ok_or_else(missing)?, &packed)?);
                None
            }
            Content::Tree(root) => {
                self.tree(&root, 0, &mut manifests)?;
                Some(root)
            }
        };
        self.plan.images.push(Image { names, other_names, input, root, manifests });
        Ok(())
    }

    /// An image of a docker-archive or a set.
    fn packed(&mut self, input: usize, packed: &Packed) -> Result<Manifest> {
        let is_set = matches!(self.pool.input(input)?.form, Form::Set(_));
        let name = clean(&packed.config)?;
        let what = || format!("configuration {}", packed.config);
        let bytes =
            self.pool.document(input, &name)?.ok_or_else(|| Error::from(ImageError::Missing(what())))?;
        let digest = Digest::sha256(&bytes);
        let last = name.rsplit('/').next().unwrap_or(&name);
        let stem = last.strip_suffix(".json").unwrap_or(last);
        match format!("sha256:{stem}").parse::<Digest>() {
            Ok(expected) if expected != digest => {
                return Err(ImageError::Digest { what: what(), expected, found: digest }.into());
            }
            Err(_) if is_set => {
                let problem = "is not called after its digest".to_owned();
                return Err(ImageError::Format { what: what(), problem }.into());
            }
            _ => {}
        }
        let config = Config::decode(&bytes).map_err(|error| error.context(what()))?;
        if config.diff_ids.len() != packed.layers.len() {
            let (layers, diff_ids) = (packed.layers.len(), config.diff_ids.len());
            return Err(ImageError::Count { layers, diff_ids }.into());
        }
        let mut layers = Vec::new();
        for (diff_id, member) in config.diff_ids.iter().zip(&packed.layers) {
            let member = clean(member)?;
            let blob = Blob {
                diff_id: Some(diff_id.clone()),
                descriptor: None,
                member: Some(member),
                own: Some(input),
                from: From::Missing(String::new()),
            };
            layers.push(self.blob((false, diff_id.clone()), blob));
        }
        let descriptor = Descriptor::of(media_type::DOCKER_CONFIG, digest, length(bytes.len()));
        self.document(descriptor.clone(), bytes, BTreeMap::new())?;
        Ok(Manifest {
            platform: Some(config.platform),
            config: descriptor,
            diff_ids: config.diff_ids,
            layers,
        })
    }

    /// An index or a manifest, and everything below it.
    fn tree(&mut self, root: &Descriptor, depth: usize, manifests: &mut Vec<Manifest>) -> Result<()> {
        if depth > limits::INDEX_DEPTH {
            return Err(document::too_many("indexes within indexes", limits::INDEX_DEPTH).into());
        }
        if self.documents.contains_key(&root.digest) && document::is_index(&root.media_type) {
            let problem = "occurs twice".to_owned();
            return Err(ImageError::Format { what: format!("index {}", root.digest), problem }.into());
        }
        if !document::is_index(&root.media_type) && !document::is_manifest(&root.media_type) {
            let problem = format!("has type {:?}, which is neither a manifest nor an index", root.media_type);
            return Err(ImageError::Format { what: format!("document {}", root.digest), problem }.into());
        }
        let bytes = self.read(root)?;
        match Document::decode(&root.media_type, &bytes)
            .map_err(|error| error.context(root.digest.to_string()))?
        {
            Document::Index(entries) => {
                let before = manifests.len();
                let mut children = Vec::new();
                for entry in entries {
                    let is_wanted = |platform: &Platform| {
                        self.options.all_platforms || *platform == self.options.platform
                    };
                    if entry.platform.as_ref().is_none_or(is_wanted) {
                        self.tree(&entry.descriptor, depth + 1, manifests)?;
                        children.push(entry.descriptor);
                    }
                }
                if manifests.len() == before {
                    let message =
                        format!("the index {} has no image for {}", root.digest, self.options.platform);
                    return Err(ImageError::Nothing(message).into());
                }
                self.document(root.clone(), bytes, labels(&children))
            }
            Document::Manifest(found) => {
                let children: Vec<_> = [&found.config].into_iter().chain(&found.layers).cloned().collect();
                let manifest = self.manifest(found)?;
                manifests.push(manifest);
                self.document(root.clone(), bytes, labels(&children))
            }
        }
    }

    fn manifest(&mut self, found: document::Manifest) -> Result<Manifest> {
        let document::Manifest { config: descriptor, layers } = found;
        if !document::is_config(&descriptor.media_type) {
            self.leaf(descriptor.clone(), None);
            let layers = layers.into_iter().map(|layer| self.leaf(layer, None)).collect();
            return Ok(Manifest { platform: None, config: descriptor, diff_ids: Vec::new(), layers });
        }
        let bytes = self.read(&descriptor)?;
        let config = Config::decode(&bytes).map_err(|error| error.context(descriptor.digest.to_string()))?;
        self.document(descriptor.clone(), bytes, BTreeMap::new())?;
        // Clients add attestations and signatures among the layers; these have no diffIDs, or all have.
        let of_root = layers.iter().filter(|layer| document::is_layer(&layer.media_type)).count();
        let expected = config.diff_ids.len();
        if of_root != expected && layers.len() != expected {
            return Err(ImageError::Count { layers: of_root, diff_ids: expected }.into());
        }
        let all_have = layers.len() == expected;
        let mut diff_ids = config.diff_ids.iter();
        let mut numbers = Vec::new();
        for layer in layers {
            let has = all_have || document::is_layer(&layer.media_type);
            let diff_id = if has { diff_ids.next().cloned() } else { None };
            let number = self.leaf(layer, diff_id);
            if has {
                numbers.push(number);
            }
        }
        let (platform, diff_ids) = (Some(config.platform), config.diff_ids);
        Ok(Manifest { platform, config: descriptor, diff_ids, layers: numbers })
    }

    fn leaf(&mut self, descriptor: Descriptor, diff_id: Option<Digest>) -> usize {
        let key = (true, descriptor.digest.clone());
        let from = From::Missing(String::new());
        self.blob(key, Blob { diff_id, descriptor: Some(descriptor), member: None, own: None, from })
    }

    fn blob(&mut self, key: (bool, Digest), blob: Blob) -> usize {
        let blobs = &mut self.plan.blobs;
        *self.known.entry(key).or_insert_with(|| {
            blobs.push(blob);
            blobs.len() - 1
        })
    }

    /// Reads a document by its digest, from the inputs or from the target, and checks it.
    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let Descriptor { digest, size_bytes, .. } = descriptor;
        if usize::try_from(*size_bytes).map_or(true, |size| size > limits::DOCUMENT_BYTES) {
            return Err(document::too_long(&digest.to_string()).into());
        }
        let bytes = match (self.pool.blob(digest)?, self.target) {
            (Some(found), _) => self.pool.document(found.place.input, &found.place.name)?,
            (None, Some(target)) if target.have(digest)?.is_some() => {
                let mut bytes = Vec::new();
                target.open(descriptor)?.take(*size_bytes).read_to_end(&mut bytes).map_err(unreadable)?;
                Some(bytes)
            }
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| Error::from(ImageError::Missing(format!("document {digest}"))))?;
        let found = digest_of(digest.algorithm(), &bytes);
        if found != *digest || length(bytes.len()) != *size_bytes {
            let what = format!("document of {} bytes instead of {size_bytes}", bytes.len());
            return Err(ImageError::Digest { what, expected: digest.clone(), found }.into());
        }
        Ok(bytes)
    }

    fn document(
        &mut self,
        descriptor: Descriptor,
        bytes: Vec<u8>,
        labels: BTreeMap<String, String>,
    ) -> Result<()> {
        if self.documents.contains_key(&descriptor.digest) {
            return Ok(());
        }
        self.bytes += bytes.len();
        if self.bytes > limits::IMAGE_DOCUMENTS_BYTES {
            let limit = length(limits::IMAGE_DOCUMENTS_BYTES);
            return Err(ImageError::Limit {
                what: "documents of all images".to_owned(),
                limit,
                unit: "bytes",
            }
            .into());
        }
        self.documents.insert(descriptor.digest.clone(), self.plan.documents.len());
        self.plan.documents.push(Node { descriptor, bytes, labels });
        Ok(())
    }

    /// Looks for every blob.
    fn settle(&mut self) -> Result<()> {
        let elsewhere = self.layers_by_diff_id()?;
        let mut blobs = std::mem::take(&mut self.plan.blobs);
        for blob in &mut blobs {
            let what = || match (&blob.descriptor, &blob.diff_id) {
                (Some(descriptor), _) => format!("blob {}", descriptor.digest),
                (None, Some(diff_id)) => format!("layer {diff_id}"),
                (None, None) => "blob".to_owned(),
            };
            let what = what();
            (blob.from, blob.descriptor) = match blob.descriptor.take() {
                Some(descriptor) => {
                    (self.by_digest(&descriptor, &blob.diff_id, &elsewhere)?, Some(descriptor))
                }
                None => self.by_diff_id(blob, &elsewhere)?,
            };
            if let From::Missing(reason) = &mut blob.from
                && reason.is_empty()
            {
                *reason = format!("{what}, in the inputs and in the store,");
            }
        }
        self.plan.blobs = blobs;
        Ok(())
    }

    /// Files of the inputs that hold a layer by their own image's word. Those of sets are left out: looking for them
    /// would open files that may be absent.
    fn layers_by_diff_id(&self) -> Result<HashMap<Digest, Located>> {
        let mut found = HashMap::new();
        for Blob { diff_id, descriptor, member, own, .. } in &self.plan.blobs {
            let located = match (descriptor, own, member) {
                (Some(descriptor), _, _) => self.pool.blob(&descriptor.digest)?,
                (None, Some(own), Some(member)) if !matches!(self.pool.input(*own)?.form, Form::Set(_)) => {
                    self.pool.find(*own, member)?
                }
                _ => None,
            };
            if let (Some(diff_id), Some(located)) = (diff_id, located) {
                found.entry(diff_id.clone()).or_insert(located);
            }
        }
        Ok(found)
    }

    fn by_digest(
        &self,
        descriptor: &Descriptor,
        diff_id: &Option<Digest>,
        elsewhere: &HashMap<Digest, Located>,
    ) -> Result<From> {
        let Descriptor { digest, size_bytes, .. } = descriptor;
        if let Some(target) = self.target
            && let Some(found) = target.have(digest)?
        {
            if found != *size_bytes {
                let message = format!("the store's blob {digest} has {found} bytes instead of {size_bytes}");
                return Err(Error::new(Kind::DataLoss, crate::store::reason::SIZE, message));
            }
            return Ok(From::Store);
        }
        let mut located = self.pool.blob(digest)?;
        if located.is_none() && diff_id.as_ref() == Some(digest) {
            located = elsewhere.get(digest).filter(|found| found.coding == Coding::Plain).cloned();
        }
        Ok(located.map_or(From::Missing(String::new()), |located| From::Input(Source { located })))
    }

    fn by_diff_id(
        &self,
        blob: &Blob,
        elsewhere: &HashMap<Digest, Located>,
    ) -> Result<(From, Option<Descriptor>)> {
        let Some(diff_id) = &blob.diff_id else { return Ok((From::Missing(String::new()), None)) };
        if let Some(target) = self.target {
            if let Some(size_bytes) = target.have(diff_id)? {
                let descriptor = Descriptor::of(docker_layer(Coding::Plain), diff_id.clone(), size_bytes);
                return Ok((From::Store, Some(descriptor)));
            }
            if let Some((digest, size_bytes)) = target.have_layer(diff_id)? {
                let mut prefix = Vec::new();
                let descriptor = Descriptor::of(docker_layer(Coding::Plain), digest, size_bytes);
                let head = u64::try_from(Coding::PREFIX_LEN).unwrap_or(u64::MAX);
                target.open(&descriptor)?.take(head).read_to_end(&mut prefix).map_err(unreadable)?;
                let media_type = docker_layer(Coding::detect(&prefix)).to_owned();
                return Ok((From::Store, Some(Descriptor { media_type, ..descriptor })));
            }
        }
        let own = match (blob.own, &blob.member) {
            (Some(own), Some(member)) => self.pool.find(own, member),
            _ => Ok(None),
        };
        let (own, reason) = match own {
            // Another input may have what a file of the set that is gone had.
            Err(error) if error.reason() == "image.missing" => (None, error.to_string()),
            own => (own?, String::new()),
        };
        let located = match own {
            Some(found) => Some(found),
            None => self.pool.blob(diff_id)?.or_else(|| elsewhere.get(diff_id).cloned()),
        };
        let Some(located) = located else { return Ok((From::Missing(reason), None)) };
        let known = (located.coding == Coding::Plain)
            .then(|| Descriptor::of(docker_layer(Coding::Plain), diff_id.clone(), located.size_bytes));
        Ok((From::Input(Source { located }), known))
    }
}

impl Blob {
    /// Whether the blob has to be compared with its diffID: every layer that we can decode.
    pub(super) fn layer_type(&self) -> Option<&'static LayerType> {
        match &self.descriptor {
            Some(descriptor) => LayerType::of(&descriptor.media_type),
            None => LayerType::of(docker_layer(Coding::Plain)),
        }
    }
}

/// Labels by which a document keeps its children, as containerd's clients set them.
pub(super) fn labels(children: &[Descriptor]) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels = BTreeMap::new();
    for child in children {
        let kind = match child.media_type.as_str() {
            media_type if document::is_config(media_type) => "config",
            media_type if document::is_layer(media_type) => "l.",
            media_type if document::is_manifest(media_type) || document::is_index(media_type) => "m.",
            _ => "",
        };
        let count = counts.entry(kind).or_default();
        let number = if kind == "config" && *count == 0 { String::new() } else { count.to_string() };
        *count += 1;
        labels.insert(format!("containerd.io/gc.ref.content.{kind}{number}"), child.digest.to_string());
    }
    labels
}

fn clean(name: &str) -> Result<String> {
    member::clean(name.as_bytes()).map_err(|problem| {
        let problem = format!("{problem}, which manifest.json refers to");
        ImageError::Member { name: name.as_bytes().to_vec(), problem }.into()
    })
}

fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

pub(super) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_count_each_kind_of_child_from_zero() {
        let child =
            |media_type: &str, text: &str| Descriptor::of(media_type, Digest::sha256(text.as_bytes()), 1);
        let children = [
            child(media_type::OCI_CONFIG, "c"),
            child(docker_layer(Coding::Gzip), "0"),
            child("application/vnd.oci.image.layer.v1.tar+zstd", "1"),
            child("application/json", "x"),
        ];
        let keys: Vec<_> = labels(&children).into_keys().collect();
        let want = ["0", "config", "l.0", "l.1"].map(|end| format!("containerd.io/gc.ref.content.{end}"));
        assert_eq!(keys, want);
    }
}
