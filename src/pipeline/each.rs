//! Work on many items whose results nobody needs, on many threads.

use std::{marker::PhantomData, sync::Arc, thread};

use super::{
    helpers::Helpers,
    ordered::{Ordered, Worker},
};
use crate::error::Result;

/// Does `work` for each item, on this thread and on helpers called `name`. Few items are taken ahead of the work.
///
/// Errors: that of the first item that fails, in the order of the items, however many threads there are.
pub fn for_each<T: Send>(
    helpers: &Arc<Helpers>,
    name: &'static str,
    items: impl Iterator<Item = T>,
    work: &(impl Fn(T) -> Result<()> + Sync),
) -> Result<()> {
    thread::scope(|scope| {
        let each = Each { work, items: PhantomData };
        let mut ordered = Ordered::new(scope, helpers, helpers.take(), name, each);
        for item in items {
            ordered.submit(item)?;
            while ordered.due()?.is_some() {}
        }
        while ordered.rest()?.is_some() {}
        Ok(())
    })
}

struct Each<'a, T, F> {
    work: &'a F,
    items: PhantomData<fn(T)>,
}

impl<T, F> Clone for Each<'_, T, F> {
    fn clone(&self) -> Self {
        Self { work: self.work, items: PhantomData }
    }
}

impl<T: Send, F: Fn(T) -> Result<()> + Sync> Worker for Each<'_, T, F> {
    type Item = T;
    type Done = ();

    fn work(&self, item: T) -> Result<()> {
        (self.work)(item)
    }
}
