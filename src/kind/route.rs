//! Routes: through which stream processors a layer goes until its type is one that Apply takes.
//!
//! Source: containerd `docs/stream_processors.md`; the walk is that of its `diff.GetProcessor`, except that a table in
//! which the way is not clear is refused.

use std::collections::BTreeMap;

use super::LayerType;

/// Most processors on one route.
const MOST_STEPS: usize = 8;

/// Media types that a processor accepts and returns.
#[derive(Clone, Copy, Debug)]
pub struct Accepts<'a> {
    /// Name of the processor.
    pub id: &'a str,
    /// Media types that it takes.
    pub accepts: &'a [String],
    /// Media type that it returns for each of them.
    pub returns: &'a str,
}

/// One processor on a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Place of the processor among all, which is the order of their names.
    pub processor: usize,
    /// Name of the processor.
    pub id: String,
    /// Media type that it gets.
    pub media_type: String,
}

/// The way of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The processors in their order; at least one.
    pub steps: Vec<Step>,
    /// Type of what the last one returns.
    pub layer_type: &'static LayerType,
}

/// Why a table of processors is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// Two processors accept one type, so that the order would be chance.
    #[error("{first} and {second} both accept {media_type:?}")]
    Ambiguous {
        /// The type.
        media_type: String,
        /// One of the processors.
        first: String,
        /// The other one.
        second: String,
    },
    /// A type leads back to itself.
    #[error("a layer of type {media_type:?} goes round in a circle: {}", ids.join(", "))]
    Circle {
        /// The type.
        media_type: String,
        /// The processors in the circle.
        ids: Vec<String>,
    },
    /// Too many processors in a row.
    #[error("a layer of type {media_type:?} goes through more than {MOST_STEPS} processors")]
    Long {
        /// The type.
        media_type: String,
    },
}

/// The routes of all types that processors accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(BTreeMap<String, Exit>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exit {
    processor: usize,
    id: String,
    returns: String,
}

impl Routes {
    /// The routes through `processors`, which are in the order of their places.
    pub fn new<'a>(processors: impl IntoIterator<Item = Accepts<'a>>) -> Result<Self, RouteError> {
        let mut exits: BTreeMap<String, Exit> = BTreeMap::new();
        for (processor, Accepts { id, accepts, returns }) in processors.into_iter().enumerate() {
            for media_type in accepts {
                let exit = Exit { processor, id: id.to_owned(), returns: returns.to_owned() };
                if let Some(other) = exits.insert(media_type.clone(), exit) {
                    let (media_type, first) = (media_type.clone(), other.id);
                    return Err(RouteError::Ambiguous { media_type, first, second: id.to_owned() });
                }
            }
        }
        let routes = Self(exits);
        routes.0.keys().try_for_each(|media_type| routes.check(media_type))?;
        Ok(routes)
    }

    fn check(&self, start: &str) -> Result<(), RouteError> {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        let mut media_type = start;
        while let Some((accepted, exit)) = self.0.get_key_value(media_type) {
            if let Some(first) = seen.iter().position(|(seen, _)| seen == accepted) {
                let circle = seen.get(first..).unwrap_or_default();
                let ids = circle.iter().map(|(_, id)| (*id).to_owned()).collect();
                return Err(RouteError::Circle { media_type: media_type.to_owned(), ids });
            }
            seen.push((accepted, &exit.id));
            media_type = &exit.returns;
        }
        match seen.len() {
            len if len > MOST_STEPS => Err(RouteError::Long { media_type: start.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Whether a processor accepts layers of type `media_type`, wherever that leads.
    pub fn accept(&self, media_type: &str) -> bool {
        self.0.contains_key(media_type)
    }

    /// Returns the way of a layer of type `media_type`. `None`: no processor accepts it, or it ends at a type that is
    /// not Apply's. Processors come first: one that accepts a type of Apply's gets the layer.
    pub fn of(&self, media_type: &str) -> Option<Route> {
        let (mut steps, mut media_type) = (Vec::new(), media_type);
        while let Some(Exit { processor, id, returns }) = self.0.get(media_type) {
            steps.push(Step { processor: *processor, id: id.clone(), media_type: media_type.to_owned() });
            media_type = returns;
        }
        let layer_type = LayerType::of(media_type).filter(|_| !steps.is_empty())?;
        Some(Route { steps, layer_type })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn routes(table: &[(&str, &[&str], &str)]) -> Result<Routes, RouteError> {
        let owned: Vec<_> = table
            .iter()
            .map(|(id, accepts, returns)| {
                (*id, accepts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), *returns)
            })
            .collect();
        Routes::new(owned.iter().map(|(id, accepts, returns)| Accepts { id, accepts, returns }))
    }

    #[test]
    fn a_layer_goes_through_processors_until_apply_knows_its_type() {
        let table =
            routes(&[("a", &["x", "y"], "z"), ("b", &["z"], GZIP), ("c", &["w"], "unknown")]).unwrap();
        let ids = |media_type| {
            let route = table.of(media_type)?;
            let ids =
                route.steps.iter().map(|step| format!("{}{}:{}", step.processor, step.id, step.media_type));
            Some((ids.collect::<Vec<_>>().join(" "), route.layer_type.media_type))
        };
        assert_eq!(ids("x"), Some(("0a:x 1b:z".to_owned(), GZIP)));
        assert_eq!(ids("y"), Some(("0a:y 1b:z".to_owned(), GZIP)));
        assert_eq!(ids("z"), Some(("1b:z".to_owned(), GZIP)));
        assert_eq!(ids("w"), None, "nobody takes what it ends at");
        assert_eq!(ids(GZIP), None);
        assert_eq!(ids(""), None);
    }

    #[test]
    fn a_processor_of_a_type_that_apply_knows_gets_it() {
        let table = routes(&[("unpigz", &[GZIP], TAR)]).unwrap();
        assert_eq!(table.of(GZIP).unwrap().steps.len(), 1);
        assert_eq!(table.of(TAR), None);
    }

    #[test]
    fn a_table_without_a_clear_way_is_refused() {
        let message = |table: &[(&str, &[&str], &str)]| routes(table).unwrap_err().to_string();
        assert_eq!(message(&[("a", &["x"], TAR), ("b", &["y", "x"], TAR)]), "a and b both accept \"x\"");
        assert!(message(&[("a", &["x", "x"], TAR)]).contains("a and a both"));
        assert_eq!(message(&[("a", &["x"], "x")]), "a layer of type \"x\" goes round in a circle: a");
        let round = message(&[("a", &["x"], "y"), ("b", &["y"], "z"), ("c", &["z"], "y")]);
        assert_eq!(round, "a layer of type \"y\" goes round in a circle: b, c");
    }

    #[test]
    fn eight_processors_in_a_row_are_enough() {
        let types: Vec<_> = (0..10).map(|number| format!("t{number}")).collect();
        let table = |count: usize| {
            let accepts: Vec<_> = types.iter().map(|text| vec![text.clone()]).collect();
            let rows =
                (0..count).map(|at| Accepts { id: "p", accepts: &accepts[at], returns: &types[at + 1] });
            Routes::new(rows)
        };
        assert!(table(8).is_ok());
        assert!(matches!(table(9), Err(RouteError::Long { .. })));
    }
}
