//! No dead public items: whatever is `pub` is used outside its file, and not by tests alone.
//!
//! The compiler finds dead code that nobody outside the crate can name. What others can name it takes for used; in a
//! library that only its own binary uses, that is not so.

use std::collections::BTreeSet;

use syn::{
    ImplItem, Item, Visibility,
    visit::{self, Visit},
};

use crate::{
    house::{From, House, Source, Target},
    mentions::{Mentions, Tokens},
    production,
};

/// Items that exist for tests. They are public because tests are packages of their own.
const FOR_TESTS: &[(&str, &str)] = &[
    // Entries of the fuzz targets.
    ("codec/mod.rs", "fuzz_gzip"),
    ("codec/mod.rs", "fuzz_zstd"),
    ("codec/foreign/mod.rs", "fuzz"),
    ("codec/foreign/mod.rs", "Foreign::of_fuzz"),
    ("codec/deflate/fuzz.rs", "fuzz"),
    ("codec/deflate/fuzz.rs", "Fuzzer"),
    ("pipeline/ahead/fuzz.rs", "fuzz_ahead"),
    ("pipeline/ahead/fuzz.rs", "fuzz_ahead_zstd"),
    ("format/bolt.rs", "fuzz"),
    ("format/erofs/fuzz.rs", "fuzz_image"),
    ("format/ext4/fuzz.rs", "fuzz_image"),
    ("format/ext4/fuzz.rs", "read_all"),
    ("format/gzindex/fuzz.rs", "fuzz"),
    ("format/tar/wrapper.rs", "fuzz"),
    ("format/stargz/fuzz.rs", "fuzz"),
    ("format/rafs/fuzz.rs", "fuzz"),
    ("format/zfile/fuzz.rs", "fuzz"),
    ("format/ztoc/fuzz.rs", "fuzz"),
    ("overlaybd/config.rs", "fuzz"),
    ("format/lsmt/fuzz.rs", "fuzz"),
    ("format/lsmt/fuzz.rs", "entries"),
    ("format/tar/mod.rs", "fuzz"),
    ("format/tar/metadata.rs", "fuzz"),
    ("format/turbo.rs", "fuzz"),
    // In place of a content store, of a configuration file and of the process around the daemon.
    ("store/memory.rs", "Memory"),
    ("config/file.rs", "parse"),
    ("daemon/mod.rs", "Daemon"),
    // The client's half of both wires, which the daemon itself has no use for.
    ("rpc/convert/apply.rs", "request_to_grpc"),
    ("rpc/convert/apply.rs", "request_to_ttrpc"),
    ("rpc/convert/diff.rs", "request_to_grpc"),
    ("rpc/convert/diff.rs", "request_to_ttrpc"),
    ("rpc/status.rs", "reason_of"),
    ("rpc/status.rs", "reason_of_ttrpc"),
    // Shows that a file system was one that needed its journal.
    ("format/ext4/reader/mod.rs", "Image::replayed"),
    // Mappings, without a file system that has them.
    ("format/lsmt/writer.rs", "Writer::map_target"),
];

/// Something public.
struct Public {
    /// As a finding spells it.
    label: String,
    name: String,
    place: Place,
}

enum Place {
    /// An item of this module. Others of the same name differ in their paths.
    Module(usize),
    /// A constant of this inline module: a table, of the bits of a field for one, that is used when one of them is.
    Table(usize),
    /// A method or a constant of a type, known by its name alone.
    Type,
}

/// `outside`: the sources of tests, fuzz targets and other packages that use the library. `for_tests`: files, and items in
/// them, that these alone may use.
fn findings(house: &House, outside: &[Source], for_tests: &[(&str, &str)]) -> Vec<String> {
    let used_items = used_items(house);
    let used_tables: BTreeSet<_> = used_items.iter().map(|(module, _)| *module).collect();
    // By file: the names that its code uses, and those that it uses with its tests.
    let names: Vec<_> =
        house.files.iter().map(|file| (mentions(&file.code), mentions(&file.whole))).collect();
    let mut in_tests = BTreeSet::new();
    for source in outside {
        let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.path));
        in_tests.extend(mentions(&file));
    }
    let mut findings = Vec::new();
    for (at, file) in house.files.iter().enumerate() {
        let exposed = exposed(&file.code);
        let elsewhere = || names.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, names)| names);
        for public in public_items(house, at) {
            let is_used = match public.place {
                Place::Module(module) => {
                    used_items.contains(&(module, public.name.clone())) || exposed.contains(&public.name)
                }
                Place::Table(module) => used_tables.contains(&module),
                Place::Type => elsewhere().any(|(code, _)| code.contains(&public.name)),
            };
            let is_for_tests = for_tests.contains(&(file.path.as_str(), public.label.as_str()));
            let is_tested =
                in_tests.contains(&public.name) || elsewhere().any(|(_, whole)| whole.contains(&public.name));
            let fault = match (is_used, is_for_tests, is_tested) {
                (true, true, _) => "listed as for tests, but used by the program",
                (true, false, _) | (false, true, true) => continue,
                (false, false, true) => "used by tests only",
                (false, _, false) => "not used outside its file",
            };
            findings.push(format!("{}: {}: {fault}", file.path, public.label));
        }
    }
    findings
}

fn mentions(file: &syn::File) -> BTreeSet<String> {
    let mut mentions = Mentions::default();
    mentions.visit_file(file);
    mentions.0
}

/// Items that code of another file uses, by module and name.
fn used_items(house: &House) -> BTreeSet<(usize, String)> {
    let mut used = BTreeSet::new();
    for reference in house.references.iter().filter(|reference| reference.from != From::ReExport) {
        for target in house.resolve(reference.module, &reference.path) {
            if let Target::Item(module, name) = target
                && house.modules[module].file != house.modules[reference.module].file
            {
                used.insert((module, name));
            }
        }
    }
    used
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn public_items(house: &House, file: usize) -> Vec<Public> {
    let mut found = Vec::new();
    let module = house.modules.iter().position(|module| module.file == file).expect("a file is a module");
    collect(house, module, false, &house.files[file].code.items, &mut found);
    found
}

fn collect(house: &House, module: usize, is_inline: bool, items: &[Item], found: &mut Vec<Public>) {
    for item in items {
        if let Some((name, visibility)) = production::named(item)
            && is_public(visibility)
        {
            let name = name.to_string();
            let is_table = is_inline && matches!(item, Item::Const(_));
            let place = if is_table { Place::Table(module) } else { Place::Module(module) };
            found.push(Public { label: name.clone(), name, place });
        }
        match item {
            Item::Mod(inner) => {
                if let Some((_, items)) = &inner.content
                    && is_public(&inner.vis)
                    && let Some(child) = house.child(module, &inner.ident.to_string())
                {
                    collect(house, child, true, items, found);
                }
            }
            Item::Impl(block) if block.trait_.is_none() => {
                let of = match &*block.self_ty {
                    syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
                    _ => None,
                };
                for item in &block.items {
                    let (name, visibility) = match item {
                        ImplItem::Fn(item) => (&item.sig.ident, &item.vis),
                        ImplItem::Const(item) => (&item.ident, &item.vis),
                        _ => continue,
                    };
                    if is_public(visibility) {
                        let label = format!("{}::{name}", of.as_deref().unwrap_or("_"));
                        found.push(Public { label, name: name.to_string(), place: Place::Type });
                    }
                }
            }
            _ => {}
        }
    }
}

/// The names in the public face of a file. Uses of the face are uses of these names, without spelling them.
fn exposed(file: &syn::File) -> BTreeSet<String> {
    let mut face = Face::default();
    face.visit_file(file);
    face.0
}

#[derive(Default)]
struct Face(BTreeSet<String>);

impl<'ast> Visit<'ast> for Face {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.extend(path.segments.iter().map(|segment| segment.ident.to_string()));
        visit::visit_path(self, path);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.visit_generics(&item.generics);
        item.fields.iter().filter(|field| is_public(&field.vis)).for_each(|field| self.visit_type(&field.ty));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if is_public(&item.vis) {
            self.visit_signature(&item.sig);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if is_public(&item.vis) {
            self.visit_signature(&item.sig);
        }
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        match &block.trait_ {
            // The path of a trait counts for its arguments only; the items are visited as all others.
            Some((_, path, _)) => {
                for segment in &path.segments {
                    self.visit_path_arguments(&segment.arguments);
                }
                for item in &block.items {
                    match item {
                        ImplItem::Fn(item) => self.visit_signature(&item.sig),
                        ImplItem::Type(item) => self.visit_type(&item.ty),
                        _ => {}
                    }
                }
            }
            None => block.items.iter().for_each(|item| self.visit_impl_item(item)),
        }
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.visit_type(&item.ty);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.visit_type(&item.ty);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.visit_type(&item.ty);
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        // It may define what is public of anything that it mentions.
        self.0.extend(Tokens::of(&item.mac).words);
    }

    fn visit_expr(&mut self, _: &'ast syn::Expr) {}

    fn visit_block(&mut self, _: &'ast syn::Block) {}

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assert_found, assert_none,
        house::{made_up, sources_below, this_house},
    };

    #[test]
    fn whatever_is_public_is_used_outside_its_file() {
        let mut outside = Vec::new();
        for directory in ["tests", "testkit", "integration"] {
            outside.extend(sources_below(directory, "rs"));
        }
        assert!(outside.len() > 20, "only {} sources use the library", outside.len());
        assert_none(&findings(&this_house(), &outside, FOR_TESTS), "dead public items");
    }

    fn with_tests(files: &[(&str, &str)], test: &str) -> Vec<String> {
        let outside = [Source { path: "tests/x.rs".to_owned(), text: test.to_owned() }];
        findings(&made_up(files), &outside, &[("store/file.rs", "Fake"), ("store/file.rs", "Blob")])
    }

    #[test]
    fn dead_items_and_those_that_only_tests_use_are_found() {
        let found = with_tests(
            &[
                ("store/mod.rs", "mod file; pub use self::file::{FileStore, Memory, Blob, Fake};"),
                (
                    "store/file.rs",
                    "pub struct FileStore; pub struct Memory; pub struct Blob; pub struct Fake;
                     impl Blob { pub fn read(&self) { self.seek() } pub fn seek(&self) {} pub const LEN: u8 = 1; }
                     pub fn unit() {} fn private(_: FileStore) {}",
                ),
                ("cli.rs", "use crate::store::Blob; fn f(b: Blob) { b.read() } #[cfg(test)] use crate::store::file::unit;"),
            ],
            "use plywood::store::{Fake, Memory};",
        );
        assert_found(
            &found,
            &[
                "store/file.rs: FileStore: not used outside its file",
                "store/file.rs: Memory: used by tests only",
                "store/file.rs: Blob::seek: not used outside its file",
                "store/file.rs: Blob::LEN: not used outside its file",
                "store/file.rs: unit: used by tests only",
                "store/file.rs: Blob: listed as for tests, but used by the program",
            ],
        );
    }

    #[test]
    fn whatever_others_get_without_naming_it_is_used() {
        let found = with_tests(
            &[
                (
                    "store.rs",
                    "pub struct Swept { pub kind: Kind } pub enum Kind { A(Part) } pub struct Part; pub trait Bound {}
                     pub fn sweep<B: Bound>(b: B) -> Swept { todo() } pub(crate) fn ours() {}
                     mod inner { pub struct Ours; } table! { limit: Limit } pub enum Limit {}
                     pub mod bits { pub const ONE: u8 = 1; pub const TWO: u8 = 2; }",
                ),
                ("cli.rs", "fn f() { println!(\"{}\", crate::store::sweep(x)); g(crate::store::bits::ONE) }"),
            ],
            "",
        );
        assert_none(&found, "made up");
    }
}
