//! Metrics with the names of OpenTelemetry, for any recorder of the crate `metrics`.
