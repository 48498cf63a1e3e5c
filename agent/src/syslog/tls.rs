//! Whom sinks over TLS must prove to be (RFC 5425, 4.2.1 and 5.2).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{self, CertificateDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Why the file of authorities is none.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {} of --syslog-ca-file: {problem}", file.display())]
pub struct CaFileError {
    file: PathBuf,
    problem: CaFileProblem,
}

#[derive(Debug, thiserror::Error)]
enum CaFileProblem {
    #[error("{0}")]
    Unreadable(#[from] pki_types::pem::Error),
    #[error("a certificate in it is no authority's: {0}")]
    Unfit(#[from] rustls::Error),
    #[error("there is no certificate in it")]
    Empty,
}

/// The authorities that are believed: the system's and those of a file. The system's are read when they are first asked for.
pub(super) struct Authorities {
    own: RootCertStore,
    connector: OnceCell<TlsConnector>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Authorities").field("own", &self.own.len()).finish_non_exhaustive()
    }
}

impl Authorities {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// It cannot be read or has no certificates.
    pub(super) fn new(file: Option<&Path>) -> Result<Self, CaFileError> {
        let own = match file {
            Some(file) => read(file).map_err(|problem| CaFileError { file: file.to_owned(), problem })?,
            None => RootCertStore::empty(),
        };
        Ok(Self { own, connector: OnceCell::new() })
    }

    /// Connects under these authorities.
    ///
    /// # Errors
    /// The system's authorities could not be read, and there are no others.
    pub(super) async fn connector(&self) -> io::Result<&TlsConnector> {
        self.connector
            .get_or_try_init(async || {
                let mut roots = self.own.clone();
                let system = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await?;
                roots.add_parsable_certificates(system.certs);
                if roots.is_empty() {
                    return Err(io::Error::other("this system has no authorities; see --syslog-ca-file"));
                }
                let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .map_err(io::Error::other)?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                Ok(TlsConnector::from(Arc::new(config)))
            })
            .await
    }
}

fn read(file: &Path) -> Result<RootCertStore, CaFileProblem> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err(CaFileProblem::Empty) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let refused = |file: &Path| Authorities::new(Some(file)).expect_err("refused").to_string();
        assert!(refused(&file).contains("ca.pem of --syslog-ca-file"), "{}", refused(&file));
        std::fs::write(&file, "nothing").expect("written");
        assert!(refused(&file).ends_with("there is no certificate in it"), "{}", refused(&file));
    }
}
