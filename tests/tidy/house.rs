//! The sources of the library, parsed: its modules, the names each defines, and the code without its tests.
//!
//! Names are resolved as the compiler resolves them, as far as imports go: `crate`, `self`, `super`, nested groups,
//! renames, globs, and re-exports, which are followed to where a name is defined. What methods and macros refer to
//! stays unknown, except for paths that are spelled out in a macro's arguments.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{Item, UseTree, Visibility, visit::Visit as _, visit_mut::VisitMut as _};

use crate::{
    mentions::Paths,
    production::{self, WithoutTests},
};

/// One text of the package: a source, a document, a manifest.
pub struct Source {
    /// Below the root of the package, with `/` between its parts.
    pub path: String,
    pub text: String,
}

/// The library and its binary.
pub struct House {
    pub files: Vec<File>,
    pub modules: Vec<Module>,
    pub references: Vec<Reference>,
    /// Sources below `src/` to which no `mod` leads.
    pub orphans: Vec<String>,
}

/// One file of the library that is not only compiled for tests.
pub struct File {
    /// Below `src/`.
    pub path: String,
    pub text: String,
    /// With its tests.
    pub whole: syn::File,
    /// Without them; empty in a file that is a test.
    pub code: syn::File,
}

impl File {
    /// The first component: the room that the file is in.
    pub fn room(&self) -> &str {
        let first = self.path.split('/').next().expect("a path has a component");
        first.strip_suffix(".rs").unwrap_or(first)
    }

    pub fn is_in(&self, rooms: &[&str]) -> bool {
        rooms.contains(&self.room())
    }

    pub fn is_test(&self) -> bool {
        self.code.items.is_empty() && !self.whole.items.is_empty()
    }
}

/// A module, whether it has a file or stands inside one.
pub struct Module {
    pub file: usize,
    parent: Option<usize>,
    names: BTreeMap<String, Vec<Name>>,
    globs: Vec<Vec<String>>,
}

/// Meaning of a name in the module that has it.
#[derive(Clone)]
enum Name {
    Module(usize),
    Item,
    Import(Vec<String>),
}

/// A path in the code.
pub struct Reference {
    /// Where it is written.
    pub module: usize,
    pub path: Vec<String>,
    pub from: From,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    Use,
    /// A `use` that is visible to others.
    ReExport,
    Code,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Module(usize),
    /// An item of the module, or what only a macro of the module can have defined.
    Item(usize, String),
    /// Another crate, by its full path.
    Outside(Vec<String>),
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files with this extension below a directory of the package, in order; none when it has no such directory.
pub fn sources_below(directory: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.expect("the entry is readable").path();
            if path.is_dir() {
                // A package of its own has its own build directory.
                let name = path.file_name().expect("an entry has a name").to_string_lossy();
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found.iter().map(|path| source(path.strip_prefix(root()).expect("below the root"))).collect()
}

/// One file of the package.
pub fn source(path: &Path) -> Source {
    let text = fs::read_to_string(root().join(path)).expect("files of the package are UTF-8");
    Source { path: path.to_string_lossy().into_owned(), text }
}

/// The house of this package.
pub fn this_house() -> House {
    House::of(&sources_below("src", "rs"))
}

/// A made-up house: files below `src/` and their texts. Where `lib.rs` is not among them, it declares the others.
pub fn made_up(files: &[(&str, &str)]) -> House {
    let mut sources: Vec<_> = files
        .iter()
        .map(|(path, text)| Source { path: format!("src/{path}"), text: (*text).to_owned() })
        .collect();
    if files.iter().all(|(path, _)| *path != "lib.rs") {
        let rooms = files.iter().filter_map(|(path, _)| {
            let room = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs"))?;
            (!room.contains('/') && room != "main").then(|| format!("pub mod {room};\n"))
        });
        sources.push(Source { path: "src/lib.rs".to_owned(), text: rooms.collect() });
    }
    House::of(&sources)
}

impl House {
    /// The module of this name inside `module`.
    pub fn child(&self, module: usize, name: &str) -> Option<usize> {
        self.modules[module].names.get(name)?.iter().find_map(|name| match name {
            Name::Module(child) => Some(*child),
            _ => None,
        })
    }

    fn of(sources: &[Source]) -> Self {
        let mut builder = Builder {
            sources: sources.iter().map(|source| (source.path.as_str(), source.text.as_str())).collect(),
            house: House {
                files: Vec::new(),
                modules: Vec::new(),
                references: Vec::new(),
                orphans: Vec::new(),
            },
        };
        builder.root("src/lib.rs");
        builder.root("src/main.rs");
        builder.house.orphans = builder.sources.keys().map(|path| (*path).to_owned()).collect();
        builder.house
    }

    pub fn file_of(&self, module: usize) -> &File {
        &self.files[self.modules[module].file]
    }

    /// Everything that `path`, written in `module`, may stand for.
    pub fn resolve(&self, module: usize, path: &[String]) -> Vec<Target> {
        let mut found = self.absolute(module, path, &mut Vec::new());
        found.sort();
        found.dedup();
        found
    }

    fn absolute(&self, module: usize, path: &[String], seen: &mut Vec<(usize, String)>) -> Vec<Target> {
        let outside = || vec![Target::Outside(path.to_vec())];
        let Some((head, rest)) = path.split_first() else { return vec![Target::Module(module)] };
        match head.as_str() {
            "crate" => self.inside(self.root_of(module), rest, seen),
            "self" => self.absolute(module, rest, seen),
            "super" => match self.modules[module].parent {
                // A second `super` goes on from there.
                Some(parent) => self.absolute(parent, rest, seen),
                None => outside(),
            },
            // The binary's name for the library.
            "plywood" if self.root_of(module) != 0 => self.inside(0, rest, seen),
            _ => {
                let found = self.members(module, path, seen);
                if found.is_empty() { outside() } else { found }
            }
        }
    }

    fn root_of(&self, mut module: usize) -> usize {
        while let Some(parent) = self.modules[module].parent {
            module = parent;
        }
        module
    }

    /// A path whose first name has to be in `module`.
    fn inside(&self, module: usize, path: &[String], seen: &mut Vec<(usize, String)>) -> Vec<Target> {
        let Some(head) = path.first() else { return vec![Target::Module(module)] };
        let found = self.members(module, path, seen);
        if found.is_empty() { vec![Target::Item(module, head.clone())] } else { found }
    }

    fn members(&self, module: usize, path: &[String], seen: &mut Vec<(usize, String)>) -> Vec<Target> {
        let Some((head, rest)) = path.split_first() else { return vec![Target::Module(module)] };
        let key = (module, head.clone());
        // `use tokio;` names itself, and globs may lead in a circle.
        if seen.contains(&key) {
            return Vec::new();
        }
        seen.push(key);
        let Module { names, globs, .. } = &self.modules[module];
        let mut found = Vec::new();
        for name in names.get(head).into_iter().flatten() {
            match name {
                Name::Module(child) => found.extend(self.inside(*child, rest, seen)),
                Name::Item => found.push(Target::Item(module, head.clone())),
                Name::Import(import) => {
                    let path: Vec<_> = import.iter().chain(rest).cloned().collect();
                    found.extend(self.absolute(module, &path, seen));
                }
            }
        }
        if found.is_empty() {
            for glob in globs {
                for target in self.absolute(module, glob, seen) {
                    if let Target::Module(from) = target {
                        found.extend(self.members(from, path, seen));
                    }
                }
            }
        }
        seen.pop();
        found
    }
}

struct Builder<'a> {
    /// Those to which no `mod` led yet.
    sources: BTreeMap<&'a str, &'a str>,
    house: House,
}

impl<'a> Builder<'a> {
    fn root(&mut self, path: &'a str) {
        if self.sources.contains_key(path) {
            self.file(Path::new(path), None, false);
        }
    }

    /// Takes in a file and the modules below it. Returns its module.
    fn file(&mut self, path: &Path, parent: Option<usize>, is_test: bool) -> usize {
        let path = path.to_str().expect("paths are UTF-8");
        let text = self.sources.remove(path).unwrap_or_else(|| panic!("{path} is declared, but not there"));
        let whole = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut code = whole.clone();
        if is_test {
            code.items.clear();
        } else {
            WithoutTests.visit_file_mut(&mut code);
        }
        let in_tests = |item: &&Item| is_test || production::is_test(production::attributes(item));
        let tests: Vec<_> = whole.items.iter().filter(in_tests).cloned().collect();
        let items = code.items.clone();
        let relative = path.strip_prefix("src/").expect("below src").to_owned();
        self.house.files.push(File { path: relative, text: text.to_owned(), whole, code });
        let file = self.house.files.len() - 1;
        let at = Path::new(path);
        let directory = at.parent().expect("a file has a directory");
        let stem = at.file_stem().expect("a file has a name");
        let is_directory = ["mod", "lib", "main"].iter().any(|name| stem == *name);
        let below = if is_directory { directory.to_owned() } else { directory.join(stem) };
        let module = self.module(file, parent, &items, directory, &below);
        self.tests(&tests, module, directory, &below);
        module
    }

    /// Files that only tests have, so that they are known as such.
    fn tests(&mut self, items: &[Item], module: usize, directory: &Path, below: &Path) {
        for item in items {
            if let Item::Mod(declared) = item {
                match &declared.content {
                    None => {
                        let path = self.path_of(declared, directory, below);
                        self.file(&path, Some(module), true);
                    }
                    Some((_, items)) => {
                        let inner = below.join(declared.ident.to_string());
                        self.tests(items, module, &inner, &inner);
                    }
                }
            }
        }
    }

    fn path_of(&self, declared: &syn::ItemMod, directory: &Path, below: &Path) -> PathBuf {
        let name = declared.ident.to_string();
        let named = declared.attrs.iter().find_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => {
                    Some(directory.join(path.value()))
                }
                _ => None,
            },
            _ => None,
        });
        let beside = below.join(format!("{name}.rs"));
        let is_there = |path: &Path| path.to_str().is_some_and(|path| self.sources.contains_key(path));
        named.unwrap_or_else(|| if is_there(&beside) { beside } else { below.join(name).join("mod.rs") })
    }

    fn module(
        &mut self,
        file: usize,
        parent: Option<usize>,
        items: &[Item],
        directory: &Path,
        below: &Path,
    ) -> usize {
        let (mut names, mut globs) = (BTreeMap::new(), Vec::new());
        self.house.modules.push(Module { file, parent, names: BTreeMap::new(), globs: Vec::new() });
        let module = self.house.modules.len() - 1;
        let mut add = |name: String, what| names.entry(name).or_insert_with(Vec::new).push(what);
        for item in items {
            match item {
                Item::Mod(inner) => {
                    let name = inner.ident.to_string();
                    let child = match &inner.content {
                        Some((_, items)) => {
                            let below = below.join(&name);
                            self.module(file, Some(module), items, &below, &below)
                        }
                        None => {
                            let path = self.path_of(inner, directory, below);
                            self.file(&path, Some(module), false)
                        }
                    };
                    add(name, Name::Module(child));
                }
                Item::Use(import) => self.import(module, import, &mut add, &mut globs),
                _ => {
                    if let Some(name) = production::name_of(item) {
                        add(name, Name::Item);
                    }
                    let mut paths = Paths::default();
                    paths.visit_item(item);
                    // Imports inside of functions, as if they stood at the head of the module.
                    for import in paths.imports {
                        self.import(module, &import, &mut add, &mut globs);
                    }
                    let code = paths.paths.into_iter();
                    self.house.references.extend(code.map(|path| Reference {
                        module,
                        path,
                        from: From::Code,
                    }));
                }
            }
        }
        self.house.modules[module].names = names;
        self.house.modules[module].globs = globs;
        module
    }

    fn import(
        &mut self,
        module: usize,
        import: &syn::ItemUse,
        add: &mut impl FnMut(String, Name),
        globs: &mut Vec<Vec<String>>,
    ) {
        let from = if matches!(import.vis, Visibility::Inherited) { From::Use } else { From::ReExport };
        for Leaf { path, name } in leaves(&import.tree) {
            match name {
                Some(name) => add(name, Name::Import(path.clone())),
                None => globs.push(path.clone()),
            }
            self.house.references.push(Reference { module, path, from });
        }
    }
}

/// One path of a `use`, and the name that it gets; none for a glob.
struct Leaf {
    path: Vec<String>,
    name: Option<String>,
}

fn leaves(tree: &UseTree) -> Vec<Leaf> {
    fn walk(tree: &UseTree, path: &mut Vec<String>, found: &mut Vec<Leaf>) {
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                walk(&inner.tree, path, found);
                path.pop();
            }
            UseTree::Name(inner) => found.push(Leaf::new(path, &inner.ident, &inner.ident)),
            UseTree::Rename(inner) => found.push(Leaf::new(path, &inner.ident, &inner.rename)),
            UseTree::Glob(_) => found.push(Leaf { path: path.clone(), name: None }),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, path, found)),
        }
    }
    let mut found = Vec::new();
    walk(tree, &mut Vec::new(), &mut found);
    found
}

impl Leaf {
    fn new(group: &[String], last: &syn::Ident, name: &syn::Ident) -> Self {
        let mut path = group.to_vec();
        // `self` in a group names what the group belongs to.
        if last != "self" || group.is_empty() {
            path.push(last.to_string());
        }
        let name = if name == "self" { path.last().cloned() } else { Some(name.to_string()) };
        Self { path, name }
    }
}
