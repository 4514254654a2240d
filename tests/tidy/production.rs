//! The code without its tests, and a few questions about items.

use syn::{
    Attribute, Expr, Field, File, ImplItem, Item, Meta, Stmt, Token, TraitItem, Variant, Visibility,
    punctuated::Punctuated,
    visit_mut::{self, VisitMut},
};

/// Takes out everything that is compiled for tests only.
pub struct WithoutTests;

impl VisitMut for WithoutTests {
    fn visit_file_mut(&mut self, file: &mut File) {
        file.items.retain(|item| !is_test(attributes(item)));
        visit_mut::visit_file_mut(self, file);
    }

    fn visit_item_mod_mut(&mut self, module: &mut syn::ItemMod) {
        if let Some((_, items)) = &mut module.content {
            items.retain(|item| !is_test(attributes(item)));
        }
        visit_mut::visit_item_mod_mut(self, module);
    }

    fn visit_item_impl_mut(&mut self, block: &mut syn::ItemImpl) {
        block.items.retain(|item| {
            !is_test(match item {
                ImplItem::Const(item) => &item.attrs,
                ImplItem::Fn(item) => &item.attrs,
                ImplItem::Type(item) => &item.attrs,
                ImplItem::Macro(item) => &item.attrs,
                _ => &[],
            })
        });
        visit_mut::visit_item_impl_mut(self, block);
    }

    fn visit_item_trait_mut(&mut self, block: &mut syn::ItemTrait) {
        block.items.retain(|item| {
            !is_test(match item {
                TraitItem::Const(item) => &item.attrs,
                TraitItem::Fn(item) => &item.attrs,
                TraitItem::Type(item) => &item.attrs,
                TraitItem::Macro(item) => &item.attrs,
                _ => &[],
            })
        });
        visit_mut::visit_item_trait_mut(self, block);
    }

    fn visit_block_mut(&mut self, block: &mut syn::Block) {
        block.stmts.retain(|statement| {
            !is_test(match statement {
                Stmt::Local(local) => &local.attrs,
                Stmt::Item(item) => attributes(item),
                Stmt::Expr(Expr::Block(block), _) => &block.attrs,
                Stmt::Expr(..) => &[],
                Stmt::Macro(call) => &call.attrs,
            })
        });
        visit_mut::visit_block_mut(self, block);
    }

    fn visit_fields_named_mut(&mut self, fields: &mut syn::FieldsNamed) {
        fields.named = kept(&fields.named, |field: &Field| &field.attrs);
        visit_mut::visit_fields_named_mut(self, fields);
    }

    fn visit_item_enum_mut(&mut self, item: &mut syn::ItemEnum) {
        item.variants = kept(&item.variants, |variant: &Variant| &variant.attrs);
        visit_mut::visit_item_enum_mut(self, item);
    }

    fn visit_expr_struct_mut(&mut self, value: &mut syn::ExprStruct) {
        value.fields = kept(&value.fields, |field| &field.attrs);
        visit_mut::visit_expr_struct_mut(self, value);
    }

    fn visit_expr_match_mut(&mut self, value: &mut syn::ExprMatch) {
        value.arms.retain(|arm| !is_test(&arm.attrs));
        visit_mut::visit_expr_match_mut(self, value);
    }
}

fn kept<T: Clone>(
    list: &Punctuated<T, Token![,]>,
    attributes: impl Fn(&T) -> &[Attribute],
) -> Punctuated<T, Token![,]> {
    list.iter().filter(|item| !is_test(attributes(item))).cloned().collect()
}

/// Whether the attributes leave something out where no tests are compiled.
pub fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<Meta>().is_ok_and(|condition| needs_test(&condition))
    })
}

fn needs_test(condition: &Meta) -> bool {
    let parts = |list: &syn::MetaList| {
        list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default()
    };
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => parts(list).iter().any(needs_test),
        Meta::List(list) if list.path.is_ident("any") => parts(list).iter().all(needs_test),
        _ => false,
    }
}

pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name and visibility of an item that has both, modules and imports aside.
pub fn named(item: &Item) -> Option<(&syn::Ident, &Visibility)> {
    match item {
        Item::Const(item) => Some((&item.ident, &item.vis)),
        Item::Enum(item) => Some((&item.ident, &item.vis)),
        Item::Fn(item) => Some((&item.sig.ident, &item.vis)),
        Item::Static(item) => Some((&item.ident, &item.vis)),
        Item::Struct(item) => Some((&item.ident, &item.vis)),
        Item::Trait(item) => Some((&item.ident, &item.vis)),
        Item::TraitAlias(item) => Some((&item.ident, &item.vis)),
        Item::Type(item) => Some((&item.ident, &item.vis)),
        Item::Union(item) => Some((&item.ident, &item.vis)),
        _ => None,
    }
}

pub fn name_of(item: &Item) -> Option<String> {
    named(item).map(|(name, _)| name.to_string())
}

#[cfg(test)]
mod tests {
    use syn::{parse_quote, visit::Visit as _};

    use super::*;
    use crate::mentions::Mentions;

    #[test]
    fn what_only_tests_compile_is_left_out_wherever_it_stands() {
        let mut file: File = parse_quote! {
            #[cfg(test)]
            use crate::a;
            #[cfg(all(test, unix))]
            mod tests { use crate::b; }
            #[cfg(any(test, unix))]
            fn both() { c(); }
            #[cfg(not(test))]
            fn outside() { d(); }
            struct S { #[cfg(test)] probe: u16, value: u8 }
            impl S {
                #[cfg(test)]
                fn peek(&self) { f(); }
                fn run(&self) { #[cfg(test)] let x = g(); #[cfg(test)] { h(); } e(); }
            }
        };
        WithoutTests.visit_file_mut(&mut file);
        let mut found = Mentions::default();
        found.visit_file(&file);
        assert_eq!(
            found.0.iter().map(String::as_str).collect::<Vec<_>>(),
            ["S", "Self", "c", "cfg", "d", "e", "u8"]
        );
    }
}
