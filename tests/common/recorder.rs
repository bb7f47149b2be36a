//! A subscriber that keeps the spans of the process, as the tests of traces read them.
//!
//! A [`Recorder`] has one lock, held for single looks at the spans.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// The spans that were made, in their order.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<SeenSpan>>>);

/// A span, as it was made and recorded.
#[derive(Debug, Clone)]
pub(crate) struct SeenSpan {
    /// Its place among all spans.
    pub(crate) place: usize,
    /// The place of its parent.
    pub(crate) parent: Option<usize>,
    pub(crate) name: &'static str,
    fields: BTreeMap<&'static str, String>,
    pub(crate) is_closed: bool,
}

impl SeenSpan {
    /// The value of an attribute. Empty if it has none.
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// The place of a span, as its subscriber keeps it.
struct Place(usize);

impl Recorder {
    /// A subscriber that tells the recorder of all spans down to INFO.
    pub(crate) fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        tracing_subscriber::registry().with(LevelFilter::INFO).with(self.clone())
    }

    /// The place of a span of a test, which ended by now or not.
    pub(crate) fn place(&self, span: &Span) -> usize {
        let place = span.with_subscriber(|(id, subscriber)| {
            let registry = subscriber.downcast_ref::<tracing_subscriber::Registry>().expect("a registry");
            let data = registry.span(id).expect("it is open");
            data.extensions().get::<Place>().expect("it was seen").0
        });
        place.expect("there is a subscriber")
    }

    pub(crate) fn spans(&self) -> Vec<SeenSpan> {
        self.0.lock().clone()
    }

    /// The spans of this name whose resource has this one.
    pub(crate) fn of(&self, resource: &str, name: &str) -> Vec<SeenSpan> {
        let is_it = |span: &SeenSpan| span.name == name && span.attribute("db.client.connection.pool.name") == resource;
        self.spans().into_iter().filter(is_it).collect()
    }

    /// The spans below this one, the nearest first.
    pub(crate) fn below(&self, place: usize) -> Vec<SeenSpan> {
        let mut found: Vec<SeenSpan> = Vec::new();
        for span in self.spans() {
            if span.parent.is_some_and(|parent| parent == place || found.iter().any(|above| above.place == parent)) {
                found.push(span);
            }
        }
        found
    }

    /// The only span of this name below this one.
    #[track_caller]
    pub(crate) fn the(&self, place: usize, name: &str) -> SeenSpan {
        let mut found: Vec<_> = self.below(place).into_iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {found:#?}");
        found.remove(0)
    }

    /// The names of the spans below this one, those of siblings in order, as in `wait(connect) health_check()`.
    pub(crate) fn tree(&self, place: usize) -> String {
        let spans = self.spans();
        let mut below: Vec<String> = spans
            .iter()
            .filter(|span| span.parent == Some(place))
            .map(|span| format!("{}({})", span.name, self.tree(span.place)))
            .collect();
        below.sort();
        below.join(" ")
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let parent = span.parent().and_then(|parent| parent.extensions().get::<Place>().map(|place| place.0));
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let mut spans = self.0.lock();
        let place = spans.len();
        spans.push(SeenSpan { place, parent, name: span.name(), fields: fields.0, is_closed: false });
        drop(spans);
        span.extensions_mut().insert(Place(place));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let Some(place) = span.extensions().get::<Place>().map(|place| place.0) else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.0.lock()[place].fields.extend(fields.0);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let place = context.span(&id).and_then(|span| span.extensions().get::<Place>().map(|place| place.0));
        if let Some(place) = place {
            self.0.lock()[place].is_closed = true;
        }
    }
}

/// The values of fields as texts.
#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        write!(text, "{value:?}").expect("a string takes any text");
        self.0.insert(field.name(), text);
    }
}
