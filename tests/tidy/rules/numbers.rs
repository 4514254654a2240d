//! Numbers from outside are converted with care: byte order is written out, and no cast cuts a length.

use syn::{
    Macro,
    visit::{self, Visit},
};

use crate::{house::House, mentions::Tokens};

pub fn findings(house: &House) -> Vec<String> {
    let mut findings = Vec::new();
    for file in &house.files {
        let mut careless = Careless::default();
        careless.visit_file(&file.code);
        findings.extend(careless.0.iter().map(|what| format!("{}: {what}", file.path)));
    }
    findings
}

#[derive(Default)]
struct Careless(Vec<String>);

impl Careless {
    fn word(&mut self, word: &str) {
        if word.ends_with("_ne_bytes") || word.contains("native_endian") || word.starts_with("transmute") {
            self.0.push(word.to_owned());
        }
    }
}

impl<'ast> Visit<'ast> for Careless {
    fn visit_ident(&mut self, word: &'ast syn::Ident) {
        self.word(&word.to_string());
    }

    fn visit_expr_cast(&mut self, cast: &'ast syn::ExprCast) {
        if matches!(&*cast.ty, syn::Type::Path(to) if to.path.is_ident("usize")) {
            self.0.push("as usize".to_owned());
        }
        visit::visit_expr_cast(self, cast);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let tokens = Tokens::of(call);
        tokens.words.iter().for_each(|word| self.word(word));
        if tokens.pairs.iter().any(|(first, second)| first == "as" && second == "usize") {
            self.0.push("as usize".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_kept, assert_none, house::made_up};

    #[test]
    fn numbers_from_outside_are_converted_with_care() {
        assert_kept("byte order is written out, and widths are converted with try_from");
    }

    #[test]
    fn careless_numbers_are_found() {
        let code = "fn f(x: u64) { u32::from_ne_bytes(b); x.to_ne_bytes(); x as  usize; vec![x as usize]; transmute(x); }";
        assert_found(
            &findings(&made_up(&[("format.rs", code)])),
            &["from_ne_bytes", "to_ne_bytes", "as usize", "as usize", "transmute"],
        );
        let code = "fn f(x: u8) { u32::from_le_bytes(b); x as u64; say(\"x as usize\"); } // from_ne_bytes
                    #[cfg(test)] mod tests { fn f(x: u8) { x as usize; } }";
        assert_none(&findings(&made_up(&[("format.rs", code)])), "made up");
    }
}
