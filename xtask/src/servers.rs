//! Starts the servers of one run, and tells the child where they are.

use services::{ClickHouseBridge, Error, Kind, Service};
use std::env;
use std::time::Instant;

/// The servers of one run, and the environment variables with their URLs.
#[derive(Debug)]
pub(crate) struct Servers {
    services: Vec<Service>,
    bridge: Option<ClickHouseBridge>,
    environment: Vec<(String, String)>,
}

/// Installs the servers that this machine lacks.
pub(crate) fn set_up() -> Result<(), Box<dyn std::error::Error>> {
    services::install(&Kind::ALL)?;
    ClickHouseBridge::install()?;
    Ok(())
}

impl Servers {
    /// Starts one of each kind, unless the user has given the URL of another one.
    pub(crate) fn for_demo() -> Result<Servers, Error> {
        let mut servers = Servers::start(Kind::url_variable)?;
        let url = |service: &Service| (service.kind().url_variable().to_string(), service.url().to_string());
        servers.environment = servers.services.iter().map(url).collect();
        Ok(servers)
    }

    /// Starts one of each kind and today's ClickHouse engine, for all test binaries together.
    pub(crate) fn for_tests() -> Result<Servers, Error> {
        let mut servers = Servers::start(Kind::variable)?;
        if !is_given(ClickHouseBridge::VARIABLE) {
            servers.bridge = Some(ClickHouseBridge::start()?);
        }
        for service in &servers.services {
            let dir = service.dir().to_string_lossy().into_owned();
            servers.environment.push((service.kind().variable().into(), service.url().into()));
            servers.environment.push((service.kind().folder_variable().into(), dir));
        }
        let bridge = servers.bridge.iter().map(|bridge| (ClickHouseBridge::VARIABLE.into(), bridge.url().into()));
        servers.environment.extend(bridge);
        Ok(servers)
    }

    /// The variables that the child gets.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.environment.iter().map(|(name, url)| (name.as_str(), url.as_str()))
    }

    /// Stops the servers. Their data is of no more use.
    pub(crate) fn stop(self) {
        drop(self);
    }

    fn start(variable: impl Fn(Kind) -> &'static str) -> Result<Servers, Error> {
        let (given, wanted): (Vec<Kind>, Vec<Kind>) = Kind::ALL.into_iter().partition(|kind| is_given(variable(*kind)));
        for kind in given {
            eprintln!("{kind}: the one in {}", variable(kind));
        }
        let names: Vec<String> = wanted.iter().map(Kind::to_string).collect();
        eprintln!("starting {} …", names.join(", "));
        let began = Instant::now();
        let services = Service::start_all(&wanted)?;
        for service in &services {
            eprintln!("{}: 127.0.0.1:{}, log {}", service.kind(), service.port(), service.log_path().display());
        }
        eprintln!("ready in {:.1?}", began.elapsed());
        Ok(Servers { services, bridge: None, environment: Vec::new() })
    }
}

fn is_given(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|url| !url.is_empty())
}
