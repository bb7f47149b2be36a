//! The names of all metrics, with their units and descriptions. `adapter::attribute` has the names of their labels.

use metrics::{Unit, with_recorder};

/// Declares the metrics: a constant for each name, and [`describe`] for all of them.
macro_rules! names {
    ($($constant:ident: $sort:ident $name:literal, $unit:ident, $about:literal;)*) => {
        $(pub(super) const $constant: &str = $name;)*

        /// Tells the recorder the unit and the description of each metric.
        pub(super) fn describe() {
            with_recorder(|recorder| {
                $(recorder.$sort($name.into(), Some(Unit::$unit), $about.into());)*
            });
        }
    };
}

names! {
    // Names of OpenTelemetry.
    CONNECTION_COUNT: describe_gauge "db.client.connection.count", Count, "Connections that are open, by state: idle or used";
    CONNECTION_MAX: describe_gauge "db.client.connection.max", Count, "The most connections that there may be";
    CONNECTION_IDLE_MIN: describe_gauge "db.client.connection.idle.min", Count, "The fewest idle connections that the pool tries to keep";
    CONNECTION_IDLE_MAX: describe_gauge "db.client.connection.idle.max", Count, "The most idle connections that there may be";
    CONNECTION_PENDING: describe_gauge "db.client.connection.pending_requests", Count, "Callers that wait for a connection";
    CONNECTION_TIMEOUTS: describe_counter "db.client.connection.timeouts", Count, "Waits that reached their limit";
    CONNECTION_CREATE_TIME: describe_histogram "db.client.connection.create_time", Seconds, "The time that it took to connect";
    CONNECTION_WAIT_TIME: describe_histogram "db.client.connection.wait_time", Seconds, "The time for which callers waited, of those that had to wait";
    CONNECTION_USE_TIME: describe_histogram "db.client.connection.use_time", Seconds, "The time between a checkout and its return";
    OPERATION_DURATION: describe_histogram "db.client.operation.duration", Seconds, "The time from the begin of an operation to its answer";
    SENT_MESSAGES: describe_counter "messaging.client.sent.messages", Count, "Messages that were published";
    CONSUMED_MESSAGES: describe_counter "messaging.client.consumed.messages", Count, "Messages that were delivered, counted as they are settled";
    MESSAGING_DURATION: describe_histogram "messaging.client.operation.duration", Seconds, "The time from a publish to the broker's confirm";
    PROCESS_DURATION: describe_histogram "messaging.process.duration", Seconds, "The time from a delivery until it is settled";
    DESCRIPTORS: describe_gauge "process.unix.file_descriptor.count", Count, "Descriptors that the process has open";
    // Names of this crate.
    STATE: describe_gauge "resource_pool.state", Count, "1 for the state that the resource is in, 0 for the others";
    NODE_UP: describe_gauge "resource_pool.node.up", Count, "1 if the server is connected, 0 otherwise";
    LEASES: describe_gauge "resource_pool.leases", Count, "Shared leases that are held";
    CHECKOUTS: describe_gauge "resource_pool.checkouts", Count, "Exclusive checkouts that are held";
    WORK: describe_gauge "resource_pool.work", Count, "Work in flight, by sort";
    LEAKS_SUSPECTED: describe_gauge "resource_pool.leaks.suspected", Count, "Leaks that are suspected now";
    LEAKS: describe_counter "resource_pool.leaks", Count, "Leaks that were ever suspected";
    CLOSING: describe_gauge "resource_pool.closing", Count, "1 once the pool has begun to close, 0 before";
    HOLDS: describe_gauge "resource_pool.holds", Count, "Holds of the application that closing waits for";
    TASKS: describe_gauge "resource_pool.tasks", Count, "Background tasks and threads of the application";
    OPENED: describe_counter "resource_pool.connections.opened", Count, "Connections that were opened";
    CLOSED: describe_counter "resource_pool.connections.closed", Count, "Connections that were closed, by reason";
    DETACHED: describe_counter "resource_pool.connections.detached", Count, "Connections that their users took out of the pool";
    ACQUIRES: describe_counter "resource_pool.acquires", Count, "Connections that were handed out";
    CONNECTS: describe_counter "resource_pool.connects", Count, "Connects that succeeded, with the reconnects";
    RECONNECTS: describe_counter "resource_pool.reconnects", Count, "Connects that succeeded after the first one";
    CONNECT_FAILURES: describe_counter "resource_pool.connect.failures", Count, "Attempts to connect that failed, by error";
    LOSSES: describe_counter "resource_pool.losses", Count, "Losses of the connection, by cause";
    PROBE_FAILURES: describe_counter "resource_pool.probe.failures", Count, "Probes that got no answer, or not the one that they should";
    CHECKS: describe_counter "resource_pool.health.checks", Count, "Health checks, by verdict";
    CHECK_DURATION: describe_histogram "resource_pool.health.duration", Seconds, "The round trip of a health check that succeeded";
    REPEATS: describe_counter "resource_pool.repeats", Count, "Operations that the pool sent once more after a loss";
    UNKNOWN_OUTCOMES: describe_counter "resource_pool.unknown_outcomes", Count, "Operations that change something and got no answer";
    DEADLOCKS: describe_counter "resource_pool.deadlocks", Count, "Waits that were refused, since they could never end";
    WARNINGS: describe_counter "resource_pool.warnings", Count, "Problems with which a resource goes on";
    CLOSE_STEPS: describe_counter "resource_pool.close.steps", Count, "Steps of closing, by outcome";
    CLOSE_DURATION: describe_histogram "resource_pool.close.duration", Seconds, "The time that closing the pool took";
    EVENTS_MISSED: describe_counter "resource_pool.events.missed", Count, "Events that are not counted here, for they came too fast";
}

/// The value of a label that stands for all resources, or all servers, beyond a limit.
pub(super) const OTHER: &str = "other";
