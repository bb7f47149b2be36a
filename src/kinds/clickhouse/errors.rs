//! The meaning of the driver's errors: to the pool, which connects again or gives up, and to the caller of a verb.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use ::clickhouse::error::Error as DriverError;

use crate::base::error::{BoxError, Chain, Error, Failure, Worded, causes, redacted};
use crate::base::secret::Secret;
use crate::kinds::clickhouse::config::{ClickHouseConfig, HTTP_PORT, USE_HTTP};
use crate::kinds::clickhouse::statement::StatementEffect;
use crate::lifecycle::link::Link;
use crate::net::tls;

/// The server's codes for something that it withholds from this user at the moment, though it serves others: a quota
/// that is used up, too many queries or sessions at once, too much memory, no access.
const LIMITED: [&str; 6] = ["201", "202", "241", "291", "497", "700"];

/// The server's codes for a setting that this user may not change, or not to this value.
pub(super) const UNCHANGEABLE: [&str; 2] = ["164", "452"];

/// The server's codes for a login that the server does not know.
const UNKNOWN_LOGIN: [&str; 4] = ["192", "193", "194", "516"];

const UNKNOWN_DATABASE: &str = "81";

/// The server's other codes for an error that trying again cannot mend: an address from which this user may not come,
/// no access, an unknown setting.
const PERMANENT: [&str; 4] = ["115", "195", "291", "497"];

/// The failure of a connect or a ping that was sent with these settings.
pub(super) fn failure(config: &ClickHouseConfig, error: DriverError, settings: &BTreeMap<String, String>) -> Failure {
    let failure: fn(BoxError) -> Failure = match &error {
        _ if has_code(&error, &LIMITED) => Failure::limited,
        DriverError::Network(_) | DriverError::TimedOut => Failure::transient,
        _ => Failure::refused,
    };
    let (permanent, remedy) = judged(config, &error, settings);
    let source = withheld(error, config);
    let source = match remedy {
        Some(remedy) => Worded::new(format!("{}; {remedy}", Chain(&*source)), source).into(),
        None => source,
    };
    failure(source).with_permanent(permanent)
}

/// Tells whether trying again is useless, and the remedy.
fn judged(
    config: &ClickHouseConfig,
    error: &DriverError,
    settings: &BTreeMap<String, String>,
) -> (bool, Option<String>) {
    let ClickHouseConfig { port, database, .. } = config;
    if error.to_string().contains("is for clickhouse-client program") {
        (true, Some(format!("port {port} {USE_HTTP}")))
    } else if is_foreign(error) {
        (true, Some(format!("port {port} does not speak HTTP; use ClickHouse's HTTP port, {HTTP_PORT} by default")))
    } else if is_unreachable(error) {
        let remedy = "see that a ClickHouse listens there, or set `host` and `port`, its HTTP port".to_owned();
        (false, Some(remedy))
    } else if has_code(error, &UNKNOWN_LOGIN) {
        let remedy =
            "set `user` and `password`, or CLICKHOUSE_USER and CLICKHOUSE_PASSWORD, to a login of this server's";
        // This may pass if a file has the password, because the file may just be replaced.
        (config.password_file.is_none(), Some(remedy.to_owned()))
    } else if has_code(error, &[UNKNOWN_DATABASE]) {
        (true, Some(format!("create the database {database:?} first, or set `database` to one that is there")))
    } else if has_code(error, &UNCHANGEABLE) && !settings.is_empty() {
        (true, Some(format!("this user may not change every setting: set {}", config.without(settings))))
    } else {
        let is_useless = matches!(error, DriverError::InvalidParams(_) | DriverError::Unsupported(_));
        (is_useless || has_code(error, &PERMANENT) || has_code(error, &UNCHANGEABLE) || tls::is_permanent(error), None)
    }
}

/// Whether the answer was not HTTP.
pub(super) fn is_foreign(error: &DriverError) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_parse))
}

/// Whether nobody listens there, or no route leads there.
pub(super) fn is_unreachable(error: &(dyn StdError + 'static)) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
    })
}

/// Whether the server answered one of these codes, as in `Code: 62. DB::Exception: …`. Old servers write a comma.
pub(super) fn has_code(error: &DriverError, codes: &[&str]) -> bool {
    let DriverError::BadResponse(text) = error else { return false };
    let code = text.split("Code: ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    code.is_some_and(|code| codes.contains(&code))
}

/// The driver's error, or a note in its place if the server's words in it contain a password.
fn withheld(error: DriverError, config: &ClickHouseConfig) -> BoxError {
    let told = matches!(error, DriverError::BadResponse(_) | DriverError::Custom(_) | DriverError::Other(_));
    let secrets = config.secrets();
    let secrets: Vec<_> = secrets.iter().map(Secret::expose).collect();
    redacted(error, told, &secrets, &[&config.user, &config.database])
}

/// The pool's error for an error of the driver.
pub(super) fn failed(
    link: &Link,
    config: &ClickHouseConfig,
    action: &str,
    effect: StatementEffect,
    error: DriverError,
) -> Error {
    if let Some(ours) = Error::behind(&error) {
        return link.told(ours.clone());
    }
    let resource = Arc::clone(link.name());
    let (is_lost, was_sent) = match &error {
        DriverError::Network(cause) => (true, !is_connect(&**cause)),
        DriverError::TimedOut => (true, true),
        _ => (false, true),
    };
    let source = withheld(error, config).into();
    let action = action.to_owned();
    match (is_lost, was_sent, effect) {
        (false, ..) => Error::Operation { resource, action, source },
        (true, true, StatementEffect::Changes) => link.outcome_unknown(action, source),
        (true, ..) => Error::Lost { resource, endpoint: Arc::clone(link.endpoint()), source },
    }
}

/// Whether no connection was made, so that nothing can have been sent.
fn is_connect(mut cause: &(dyn StdError + 'static)) -> bool {
    loop {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        match cause.source() {
            Some(next) => cause = next,
            None => return false,
        }
    }
}

/// The error with a remedy in its text.
pub(super) fn advised(error: Error, remedy: &str) -> Error {
    match error {
        Error::Operation { resource, action, source } => {
            let source = Arc::new(Worded::new(format!("{}; {remedy}", Chain(&*source)), source));
            Error::Operation { resource, action, source }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use ::clickhouse::error::Error as DriverError;

    use super::withheld;
    use crate::base::secret::SecretFile;
    use crate::kinds::clickhouse::config::ClickHouseConfig;

    #[test]
    fn a_password_that_the_file_had_before_is_withheld() {
        let config = ClickHouseConfig::default().password_file(SecretFile::that_had(&["first", "second", "third"]));
        let told = |words: &str| withheld(DriverError::BadResponse(words.to_owned()), &config).to_string();
        assert!(told("near 'first'").contains("withheld"));
        assert!(told("near 'second'").contains("withheld"));
        assert!(told("near 'fourth'").contains("fourth"));
    }
}
