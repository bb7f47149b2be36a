//! A program that pushes its metrics over OTLP, to a collector of OpenTelemetry or anything else that takes OTLP over HTTP.
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` says where to, and is `http://localhost:4318` by default.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_opentelemetry::Recorder;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, WithHttpConfig};
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream};
use parking_lot::Mutex;
use redis::AsyncCommands;
use resource_pool::ResourcePool;
use resource_pool::metrics::Metrics;
use tokio::runtime::Handle;

/// The time between two pushes.
const INTERVAL: Duration = Duration::from_secs(1);
/// The limit of one push.
const LIMIT: Duration = Duration::from_secs(5);

#[resource_pool::main]
async fn main() -> anyhow::Result<()> {
    let client = OnRuntime { client: HyperClient::with_default_connector(LIMIT, None), runtime: Handle::current() };
    let exporter = MetricExporter::builder().with_http().with_http_client(client).build()?;
    // The pushes come from `push`, because the levels are to be read right before each.
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(86_400)).build();
    let configure =
        |provider: opentelemetry_sdk::metrics::MeterProviderBuilder| provider.with_reader(reader).with_view(in_seconds);
    let (provider, recorder) = Recorder::builder("resource_pool").with_meter_provider(configure).build();
    let described = Described { recorder, told: Mutex::default() };
    metrics::set_global_recorder(described).map_err(|_| anyhow::anyhow!("there is another recorder"))?;

    let pool = ResourcePool::global();
    let levels = Metrics::install(pool)?;
    let closing = pool.closing();
    while !closing.is_set() {
        if let Ok(redis) = pool.redis().await {
            // An error is in the metrics, and the next round tries again.
            let _price = redis.clone().get::<_, Option<f64>>("price").await;
        }
        push(&levels, &provider).await;
        tokio::select! {
            () = closing.wait() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    push(&levels, &provider).await;
    Ok(())
}

/// Reads the levels and pushes everything. The call blocks, so it has a thread of its own.
async fn push(levels: &Metrics, provider: &SdkMeterProvider) {
    levels.observe();
    let provider = provider.clone();
    match tokio::task::spawn_blocking(move || provider.force_flush()).await {
        Ok(Ok(())) => println!("pushed"),
        failed => eprintln!("not pushed: {failed:?}"),
    }
}

/// Gives the histograms buckets for seconds. OpenTelemetry's own are for milliseconds.
fn in_seconds(instrument: &Instrument) -> Option<Stream> {
    let buckets = Aggregation::ExplicitBucketHistogram { boundaries: Metrics::BUCKETS.to_vec(), record_min_max: true };
    let is_histogram = instrument.kind() == InstrumentKind::Histogram;
    is_histogram.then(|| Stream::builder().with_aggregation(buckets).build().ok()).flatten()
}

/// The recorder, with a memory for units and descriptions. The exporter forgets those of a metric with its first series,
/// and OpenTelemetry takes a metric without them for another one. So they are told again with each series.
struct Described {
    recorder: Recorder,
    /// Held until the series is made, so that no other one takes what is told.
    told: Mutex<HashMap<KeyName, (Option<Unit>, SharedString)>>,
}

impl metrics::Recorder for Described {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.told.lock().insert(name, (unit, description));
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.told.lock().insert(name, (unit, description));
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.told.lock().insert(name, (unit, description));
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let told = self.told.lock();
        if let Some((unit, description)) = told.get(key.name()) {
            self.recorder.describe_counter(key.name_shared(), *unit, description.clone());
        }
        self.recorder.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let told = self.told.lock();
        if let Some((unit, description)) = told.get(key.name()) {
            self.recorder.describe_gauge(key.name_shared(), *unit, description.clone());
        }
        self.recorder.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let told = self.told.lock();
        if let Some((unit, description)) = told.get(key.name()) {
            self.recorder.describe_histogram(key.name_shared(), *unit, description.clone());
        }
        self.recorder.register_histogram(key, metadata)
    }
}

/// An HTTP client on tokio, called by a thread of OpenTelemetry that has no runtime.
#[derive(Debug)]
struct OnRuntime {
    client: HyperClient,
    runtime: Handle,
}

type Answer = Result<Response<Bytes>, HttpError>;

impl HttpClient for OnRuntime {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = Answer> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let answer = self.runtime.spawn(async move { client.send_bytes(request).await });
        Box::pin(async move { answer.await? })
    }
}
