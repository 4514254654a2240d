//! The paths and names that code is made of, those in the arguments of macros included.

use std::collections::BTreeSet;

use syn::{
    ItemUse, Macro, MetaList, VisRestricted,
    buffer::{Cursor, TokenBuffer},
    visit::{self, Visit},
};

/// Every path of some code, and the imports that stand inside of functions.
#[derive(Default)]
pub struct Paths {
    pub paths: Vec<Vec<String>>,
    pub imports: Vec<ItemUse>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        self.imports.push(import.clone());
    }

    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {
        // `pub(super)` uses nothing.
    }

    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {
        // Has names of its own.
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.paths.extend(Tokens::of(call).paths);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        // Derived traits, and functions that a derived implementation calls.
        if let syn::Meta::List(list) = &attribute.meta {
            self.paths.extend(Tokens::of_attribute(list).paths);
        }
    }
}

/// Mentions in the arguments of a macro or an attribute whose grammar is not known.
#[derive(Default)]
pub struct Tokens {
    pub paths: Vec<Vec<String>>,
    /// Methods that are called, and whether a closure is the first argument.
    pub methods: Vec<(String, bool)>,
    /// All words, and all of them with what follows.
    pub words: BTreeSet<String>,
    pub pairs: Vec<(String, String)>,
}

impl Tokens {
    pub fn of(call: &Macro) -> Self {
        Self::in_buffer(&TokenBuffer::new2(call.tokens.clone()))
    }

    pub fn of_attribute(list: &MetaList) -> Self {
        Self::in_buffer(&TokenBuffer::new2(list.tokens.clone()))
    }

    fn in_buffer(buffer: &TokenBuffer) -> Self {
        let mut tokens = Self::default();
        tokens.read(buffer.begin());
        tokens
    }

    fn read(&mut self, mut cursor: Cursor<'_>) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut after_dot = false;
        let mut last_word = String::new();
        while !cursor.eof() {
            if let Some((word, next)) = cursor.ident() {
                let word = word.to_string();
                if colons == 2 && !path.is_empty() {
                    path.push(word.clone());
                } else {
                    self.end(&mut path);
                    path = vec![word.clone()];
                }
                if after_dot {
                    path.clear();
                    if let Some((inside, ..)) = next.any_group() {
                        self.methods.push((word.clone(), opens_closure(inside)));
                    }
                }
                self.words.insert(word.clone());
                if !last_word.is_empty() {
                    self.pairs.push((std::mem::take(&mut last_word), word.clone()));
                }
                last_word = word;
                (colons, after_dot, cursor) = (0, false, next);
            } else if let Some((mark, next)) = cursor.punct() {
                if mark.as_char() == ':' {
                    colons += 1;
                } else {
                    self.end(&mut path);
                    colons = 0;
                }
                after_dot = mark.as_char() == '.';
                last_word.clear();
                cursor = next;
            } else if let Some((inside, _, _, next)) = cursor.any_group() {
                self.end(&mut path);
                self.read(inside);
                (colons, after_dot, cursor) = (0, false, next);
                last_word.clear();
            } else {
                self.end(&mut path);
                (colons, after_dot) = (0, false);
                last_word.clear();
                cursor = cursor.token_tree().map_or_else(Cursor::empty, |(_, next)| next);
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        if !path.is_empty() {
            self.paths.push(std::mem::take(path));
        }
    }
}

fn opens_closure(cursor: Cursor<'_>) -> bool {
    match cursor.ident() {
        Some((word, next)) => word == "move" && next.punct().is_some_and(|(mark, _)| mark.as_char() == '|'),
        None => cursor.punct().is_some_and(|(mark, _)| mark.as_char() == '|'),
    }
}

/// All names that some code uses: parts of paths, methods, words in macros, and imports. A re-export uses nothing.
#[derive(Default)]
pub struct Mentions(pub BTreeSet<String>);

impl<'ast> Visit<'ast> for Mentions {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.extend(path.segments.iter().map(|segment| segment.ident.to_string()));
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.0.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        if matches!(import.vis, syn::Visibility::Inherited) {
            visit::visit_item_use(self, import);
        }
    }

    fn visit_use_path(&mut self, path: &'ast syn::UsePath) {
        self.0.insert(path.ident.to_string());
        visit::visit_use_path(self, path);
    }

    fn visit_use_name(&mut self, name: &'ast syn::UseName) {
        self.0.insert(name.ident.to_string());
    }

    fn visit_use_rename(&mut self, name: &'ast syn::UseRename) {
        self.0.insert(name.ident.to_string());
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.0.extend(Tokens::of(call).words);
    }
}
