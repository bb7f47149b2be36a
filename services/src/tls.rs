//! What a server speaks TLS with.

use std::path::{Path, PathBuf};

/// A folder with `ca.pem`, which clients' certificates are checked against, and `server.pem`, the server's certificate and its key.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The folder.
    pub folder: PathBuf,
    /// Whether a client without a certificate is turned away.
    pub asks_for_certificate: bool,
}

/// The same, once the port is known. For MongoDB it is the only one.
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
