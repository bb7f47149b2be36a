//! A program that pushes its metrics over OTLP, to a collector of OpenTelemetry or anything else that takes OTLP over HTTP.
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` says where to, and is `http://localhost:4318` by default.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use metrics_exporter_opentelemetry::Recorder;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, WithHttpConfig};
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream};
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
    let (provider, _) = Recorder::builder("resource_pool").with_meter_provider(configure).install()?;

    let pool = ResourcePool::global();
    let metrics = Metrics::install(pool)?;
    let closing = pool.closing();
    while !closing.is_set() {
        if let Ok(redis) = pool.redis().await {
            // An error is in the metrics, and the next round tries again.
            let _price = redis.clone().get::<_, Option<f64>>("price").await;
        }
        push(&metrics, &provider).await;
        tokio::select! {
            () = closing.wait() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    push(&metrics, &provider).await;
    Ok(())
}

/// Reads the levels and pushes everything. The call blocks, so it has a thread of its own.
async fn push(metrics: &Metrics, provider: &SdkMeterProvider) {
    metrics.observe();
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
