//! The certificates that a server speaks TLS with.

use std::path::{Path, PathBuf};

/// A folder with two files. `ca.pem` checks the clients' certificates, and `server.pem` is the server's certificate
/// with its key.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The folder.
    pub folder: PathBuf,
    /// Whether the server rejects a client without a certificate.
    pub asks_for_certificate: bool,
}

/// The certificates and the port that speaks TLS. MongoDB has no other port.
#[derive(Clone, Debug)]
pub(crate) struct TlsPort {
    pub(crate) tls: Tls,
    pub(crate) port: u16,
}

impl TlsPort {
    pub(crate) fn authority(&self) -> PathBuf {
        absolute(&self.tls.folder).join("ca.pem")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        absolute(&self.tls.folder).join("server.pem")
    }
}

fn absolute(folder: &Path) -> PathBuf {
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf())
}
