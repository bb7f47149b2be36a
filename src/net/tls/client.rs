//! The TLS client: rustls on ring, given explicitly, whatever else the process has for a default.
//!
//! Each resource has one, and all its connections share it. Every connect reads its files again. It also puts errors of
//! TLS into words, with the remedy.
//! Invariant: no message has a part of a private key in it.
//! Orderings: [`Identity`] has the only shared state, a flag that goes up once. It is relaxed, because a reader that
//! misses it only finds fewer words.
//! Locks: [`Files`] has one, which is held while a client is made of files that have changed. No wait happens under it.

use std::fmt;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, SignatureScheme};

use crate::base::error::{Error, causes};
use crate::net::tls::options::TlsOptions;

/// The client with which the connections of one resource are secured.
#[derive(Clone)]
pub(crate) struct Client {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    pub(super) identity: Arc<Identity>,
    files: Arc<Files>,
}

/// The files that a client was made of. Each connect reads them again, so they can be replaced without a restart.
struct Files {
    key: String,
    options: TlsOptions,
    /// The client of the files as they were read last. All connections share it, so that sessions are resumed.
    last: Mutex<Last>,
}

struct Last {
    contents: u64,
    config: Arc<ClientConfig>,
    identity: Arc<Identity>,
}

impl Client {
    pub(super) fn new(key: &str, options: &TlsOptions, host: &str) -> Result<Self, Error> {
        let (name, name_key) = match &options.server_name {
            Some(name) => (name.as_str(), format!("{key}.server_name")),
            None => (host, key.to_owned()),
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| Error::config(name_key, format!("{name:?} is no name that a certificate can have")))?;
        let read = PemFiles::of(key, options)?;
        let contents = read.contents();
        let (config, identity) = made(key, &read)?;
        let last = Last { contents, config: Arc::clone(&config), identity: Arc::clone(&identity) };
        let files = Files { key: key.to_owned(), options: options.clone(), last: Mutex::new(last) };
        Ok(Client { config, name, identity, files: Arc::new(files) })
    }

    /// The client of the files as they are now. Reading them blocks the thread.
    ///
    /// # Errors
    /// A file cannot be used, with the remedy. This is no permanent failure, because the file may just be replaced.
    pub(super) fn current(&self) -> io::Result<Client> {
        let Files { key, options, last } = &*self.files;
        if !self.has_files() {
            return Ok(self.clone());
        }
        let read = PemFiles::of(key, options);
        let mut last = last.lock();
        let changed = read.and_then(|read| match read.contents() {
            contents if contents == last.contents => Ok(None),
            contents => made(key, &read).map(|made| Some((contents, made))),
        });
        match changed {
            Ok(None) => {}
            Ok(Some((contents, (config, identity)))) => *last = Last { contents, config, identity },
            Err(error) => {
                let error =
                    TlsError::new(&error, "every connect reads it again, so put a file there that can be used", false);
                return Err(io::Error::other(error));
            }
        }
        Ok(Client { config: Arc::clone(&last.config), identity: Arc::clone(&last.identity), ..self.clone() })
    }

    /// Whether the client was made of files, besides those of the machine.
    pub(super) fn has_files(&self) -> bool {
        let TlsOptions { ca_file, cert_file, key_file, .. } = &self.files.options;
        ca_file.is_some() || cert_file.is_some() || key_file.is_some()
    }

    /// Puts an error before the server's first answer into words, with the remedy.
    pub(super) fn explained(&self, error: io::Error, in_handshake: bool) -> io::Error {
        let kind = error.kind();
        // Relaxed, because the flag only adds words to an error.
        let asked = self.identity.asked.load(Ordering::Relaxed);
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        let error = match (cause, kind) {
            (Some(cause), _) => TlsError::of(cause, asked && self.identity.own.is_none()),
            // The kill switch explains itself.
            (None, _) if error.get_ref().is_some() && kind == io::ErrorKind::ConnectionAborted => return error,
            (
                None,
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe,
            ) => match (in_handshake, asked, &self.identity.own) {
                (_, true, None) => TlsError::new(&error, NEEDS_CERTIFICATE, true),
                (_, true, Some(_)) => TlsError::new(&error, "the server may have refused our certificate", false),
                (true, false, _) => TlsError::new(&error, "a port that speaks no TLS answers like this", false),
                (false, false, _) => return error,
            },
            _ => return error,
        };
        io::Error::new(kind, error)
    }
}

/// The most bytes that a file may have. It is read no further.
const LONGEST: u64 = 4 * 1024 * 1024;

/// A file of PEM, read once.
struct PemFile<'a> {
    /// The key of the configuration that names the file.
    key: String,
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> PemFile<'a> {
    fn read(key: String, path: &'a Path) -> Result<Self, Error> {
        let read = || {
            let refused = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            // Opening a pipe would wait for somebody who writes to it.
            if !fs::metadata(path)?.is_file() {
                return refused("it is no regular file");
            }
            let mut bytes = Vec::new();
            File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > LONGEST { refused("it has over 4194304 bytes") } else { Ok(bytes) }
        };
        match read() {
            Ok(bytes) => Ok(PemFile { key, path, bytes }),
            Err(error) => Err(unusable(&key, path, format_args!("cannot be read: {error}"))),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let read = |error| self.unreadable(&error, "certificate");
        let all: Vec<_> = CertificateDer::pem_slice_iter(&self.bytes).collect::<Result<_, _>>().map_err(read)?;
        if all.is_empty() { Err(read(pem::Error::NoItemsFound)) } else { Ok(all) }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.bytes)
            .map_err(|error| self.unreadable(&error, "private key that is not encrypted"))
    }

    /// The error of a file that cannot be used. It leaves out the text that a syntax error quotes, which may be a part
    /// of a key.
    fn unreadable(&self, error: &pem::Error, wanted: &str) -> Error {
        match error {
            pem::Error::NoItemsFound => self.unusable(format_args!("holds no {wanted}, in PEM")),
            _ => self.unusable("is not PEM"),
        }
    }

    fn unusable(&self, problem: impl fmt::Display) -> Error {
        unusable(&self.key, self.path, problem)
    }
}

fn unusable(key: &str, path: &Path, problem: impl fmt::Display) -> Error {
    Error::config(key, format!("{} {problem}", path.display()))
}

/// The files that the options name, as they are at one moment.
struct PemFiles<'a> {
    ca: Option<PemFile<'a>>,
    cert: Option<PemFile<'a>>,
    private: Option<PemFile<'a>>,
}

impl<'a> PemFiles<'a> {
    fn of(key: &str, options: &'a TlsOptions) -> Result<Self, Error> {
        let TlsOptions { ca_file, cert_file, key_file, .. } = options;
        PemFiles::read(key, ca_file.as_deref(), cert_file.as_deref(), key_file.as_deref())
    }

    fn read(
        key: &str,
        ca_file: Option<&'a Path>,
        cert_file: Option<&'a Path>,
        key_file: Option<&'a Path>,
    ) -> Result<Self, Error> {
        let read = |field: &str, path: Option<&'a Path>| {
            path.map(|path| PemFile::read(format!("{key}.{field}"), path)).transpose()
        };
        Ok(PemFiles {
            ca: read("ca_file", ca_file)?,
            cert: read("cert_file", cert_file)?,
            private: read("key_file", key_file)?,
        })
    }

    /// A hash of the contents, which tells whether they have changed. It keeps no copy of a key.
    fn contents(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for file in [&self.ca, &self.cert, &self.private] {
            file.as_ref().map(|file| &file.bytes).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Makes the client's configuration and its identity of these files.
fn made(key: &str, files: &PemFiles<'_>) -> Result<(Arc<ClientConfig>, Arc<Identity>), Error> {
    made_with(key, files, roots(key, files.ca.as_ref())?)
}

/// Makes them with these authorities.
fn made_with(
    key: &str,
    files: &PemFiles<'_>,
    roots: RootCertStore,
) -> Result<(Arc<ClientConfig>, Arc<Identity>), Error> {
    let provider = Arc::new(ring::default_provider());
    let identity = Arc::new(Identity { own: own(key, files, &provider)?, asked: AtomicBool::new(false) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::config(key, error))?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::clone(&identity) as _);
    Ok((Arc::new(config), identity))
}

/// The configuration of a client that checks the host of each URL. A machine that trusts no authority has one all the
/// same, for plain connections, unless there are options.
#[cfg(feature = "requests")]
pub(super) fn of_any_host(key: &str, options: Option<&TlsOptions>) -> Result<Arc<ClientConfig>, Error> {
    let Some(options) = options else {
        let found = roots(key, None).unwrap_or_else(|_trusts_nobody| RootCertStore::empty());
        return without_files(key, found);
    };
    made(key, &PemFiles::of(key, options)?).map(|(config, _)| config)
}

/// The configuration of a client with these authorities and no certificate.
#[cfg(feature = "requests")]
pub(super) fn without_files(key: &str, roots: RootCertStore) -> Result<Arc<ClientConfig>, Error> {
    made_with(key, &PemFiles { ca: None, cert: None, private: None }, roots).map(|(config, _)| config)
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The pool's certificate and its key, if any, and whether a server ever asked for one. A server that requires one may
/// hang up without saying so.
pub(super) struct Identity {
    own: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _authorities: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Relaxed, because no other memory depends on the flag.
        self.asked.store(true, Ordering::Relaxed);
        self.own.clone()
    }

    fn has_certs(&self) -> bool {
        self.own.is_some()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.own.is_some()).finish_non_exhaustive()
    }
}

const NEEDS_CERTIFICATE: &str = "the server asks for a client certificate: set tls.cert_file and tls.key_file";

const UNKNOWN_ISSUER: &str = "set tls.ca_file to the certificate of the authority that signed the server's; if another \
     one between them did, the server has to send that along, in its certificate file below its own, or tls.ca_file has to have it too";
const NAMELESS: &str = "the server's certificate has no subjectAltName, and a common name (CN) does not count: have it made anew \
     with the name that you connect by, as by `openssl … -addext subjectAltName=DNS:…`";
const AUTHORITY: &str = "the server shows an authority's certificate (CA:TRUE), as `openssl req -x509` makes one by itself: have it \
     made anew with `-addext basicConstraints=critical,CA:FALSE`, which may be in tls.ca_file all the same";
const OLD: &str = "the server's certificate is of version 1, as `openssl x509 -req` makes one without extensions: have it made anew \
     with `-extfile` and a subjectAltName";

/// Why TLS failed, with the remedy.
#[derive(Debug)]
pub(crate) struct TlsError {
    text: String,
    pub(crate) permanent: bool,
}

impl TlsError {
    fn new(error: &dyn fmt::Display, remedy: &str, permanent: bool) -> Self {
        TlsError { text: format!("TLS: {error}; {remedy}"), permanent }
    }

    /// The error in words, and whether it is permanent. A mistake in the configuration is permanent, on either side. An
    /// answer of a server that restarts, or has a certificate renewed, may pass.
    fn of(error: &rustls::Error, lacks_certificate: bool) -> Self {
        use CertificateError as Bad;
        use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, PeerIncompatible};
        let (remedy, permanent) = match error {
            InvalidCertificate(Bad::UnknownIssuer) => (UNKNOWN_ISSUER, true),
            InvalidCertificate(Bad::NotValidForNameContext { presented, .. }) if presented.is_empty() => {
                (NAMELESS, true)
            }
            InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
                ("the server's certificate has to be renewed, unless this machine's clock is wrong", false)
            }
            InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
                ("the server's certificate is not valid yet, unless this machine's clock is wrong", false)
            }
            InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
                ("connect by one of the certificate's names, or set tls.server_name to it", true)
            }
            // No dependency of this crate exports the type of these errors, so their text decides.
            InvalidCertificate(Bad::Other(why)) if why.to_string().contains("CaUsedAsEndEntity") => (AUTHORITY, true),
            InvalidCertificate(Bad::Other(why)) if why.to_string().contains("UnsupportedCertVersion") => (OLD, true),
            InvalidCertificate(_) => ("the server's certificate cannot be used", true),
            AlertReceived(
                AlertDescription::InternalError
                | AlertDescription::UserCanceled
                | AlertDescription::DecodeError
                | AlertDescription::DecryptError
                | AlertDescription::BadRecordMac
                | AlertDescription::RecordOverflow
                | AlertDescription::UnexpectedMessage,
            ) => ("the server could not go on with the handshake: its log says why", false),
            AlertReceived(AlertDescription::CertificateRequired) => (NEEDS_CERTIFICATE, true),
            AlertReceived(_) if lacks_certificate => (NEEDS_CERTIFICATE, true),
            AlertReceived(AlertDescription::ProtocolVersion) | PeerIncompatible(_) => {
                ("the server has to offer TLS 1.2 or 1.3", true)
            }
            AlertReceived(_) => ("the server refused the handshake, perhaps our certificate: its log says why", true),
            InvalidMessage(_) => (
                "a port that speaks no TLS answers like this: use the server's TLS port, or connect without TLS",
                false,
            ),
            _ => ("the handshake failed", false),
        };
        TlsError::new(error, remedy, permanent)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TlsError {}

/// Whether this error, or one that it was caused by, is one of TLS that no further attempt mends.
pub(crate) fn is_permanent(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref::<TlsError>()).any(|error| error.permanent)
}

/// Puts an error of a driver that has a client of its own into words. `None` if it is none of TLS.
pub(crate) fn explained(error: &io::Error) -> Option<TlsError> {
    use rustls::Error::InvalidCertificate;
    Some(match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(cause @ InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }))
            if !presented.is_empty() =>
        {
            TlsError::new(
                cause,
                "connect by one of the certificate's names; a replica set's members are reached by the names that its \
                 configuration has",
                true,
            )
        }
        Some(cause) => TlsError::of(cause, false),
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => TlsError::new(
            error,
            "a server answers like this that asks for a client certificate and gets none (set tls.cert_file), as does \
             a port that speaks no TLS",
            false,
        ),
        None => return None,
    })
}

/// Checks that the files can be read which a driver will read by itself.
pub(crate) fn check(key: &str, ca_file: Option<&Path>, cert_file: Option<&Path>) -> Result<(), Error> {
    let files = PemFiles::read(key, ca_file, cert_file, None)?;
    if files.ca.is_some() {
        roots(key, files.ca.as_ref())?;
    }
    own(key, &files, &ring::default_provider()).map(drop)
}

/// The authorities to trust.
fn roots(key: &str, ca: Option<&PemFile<'_>>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let Some(file) = ca else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        return match roots.is_empty() {
            true => Err(Error::config(key, "this machine trusts no authority; set ca_file")),
            false => Ok(roots),
        };
    };
    for certificate in file.certificates()? {
        roots.add(certificate).map_err(|error| file.unusable(format_args!("holds a bad certificate: {error}")))?;
    }
    Ok(roots)
}

/// The pool's certificate with its key, which may be in the same file.
fn own(key: &str, files: &PemFiles<'_>, provider: &CryptoProvider) -> Result<Option<Arc<CertifiedKey>>, Error> {
    let (cert, private) = match (&files.cert, &files.private) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(Error::config(format!("{key}.key_file"), "is of no use without cert_file")),
        (Some(cert), private) => (cert, private.as_ref().unwrap_or(cert)),
    };
    let own =
        CertifiedKey::from_der(cert.certificates()?, private.private_key()?, provider).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => private.unusable("holds the key of another certificate"),
                // The error's text about a key could tell the key, so it is left out.
                _ => private.unusable("holds a certificate or a private key that cannot be used"),
            },
        )?;
    Ok(Some(Arc::new(own)))
}
