//! The stream processors that layers may go through.

use std::{collections::BTreeMap, sync::Arc};

use super::request::Payload;
use crate::{
    kind::{
        LayerType,
        route::{Route, Routes},
    },
    pipeline::processor::{Chain, Start},
};

/// The configured processors, and what starts them. By default there are none.
#[derive(Clone, Debug, Default)]
pub struct Processors(Option<(Routes, Arc<dyn Start>)>);

impl Processors {
    /// Processors on these routes.
    pub fn new(routes: Routes, starter: Arc<dyn Start>) -> Self {
        Self(Some((routes, starter)))
    }

    /// Returns the type of a layer behind its processors, and those, if it has any. `None`: neither a processor nor Apply
    /// takes a layer of type `media_type`.
    pub fn way(
        &self,
        media_type: &str,
        payloads: &BTreeMap<String, Payload>,
    ) -> Option<(&'static LayerType, Option<Chain>)> {
        let Some((routes, starter)) = &self.0 else {
            return LayerType::of(media_type).map(|known| (known, None));
        };
        let Some(Route { steps, layer_type }) = routes.of(media_type) else {
            return LayerType::of(media_type)
                .filter(|_| !routes.accept(media_type))
                .map(|known| (known, None));
        };
        let steps = steps.into_iter().map(|step| {
            let payload = payloads.get(&step.id).map(Payload::encoded);
            (step, payload)
        });
        Some((layer_type, Some(Chain { starter: Arc::clone(starter), steps: steps.collect() })))
    }
}
