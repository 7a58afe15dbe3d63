//! The certificate of HTTPS: a given one, or one of an authority of our own
//! (RFC 5280).
//!
//! The authority is made once: `DATA/tls/ca.pem` is what firmware and people
//! enrol, `DATA/tls/ca.key` never leaves this machine. The certificate for our
//! addresses is made from it at every start and kept nowhere.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

/// A PC whose clock battery is empty lives in the year its firmware was made.
const FIRST_YEAR: i32 = 2000;
/// The last one that every reader of certificates takes for what it is.
const LAST_YEAR: i32 = 2049;

/// Where the authority's certificate lies.
pub(crate) fn authority_path(data: &Path) -> PathBuf {
    data.join("tls/ca.pem")
}

/// What we prove ourselves with.
pub(crate) struct Identity {
    /// Ours first.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads a certificate with those that vouch for it, and its key, both PEM.
    pub(crate) fn given(certificate: &Path, key: &Path) -> anyhow::Result<Identity> {
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("reading http.tls_certificate ({})", certificate.display()))?;
        if chain.is_empty() {
            bail!("{} holds no certificate in PEM", certificate.display());
        }
        let key = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("reading http.tls_key ({})", key.display()))?;
        Ok(Identity { chain, key })
    }

    /// What takes connections in with it: TLS 1.2 and 1.3, HTTP/1.1.
    pub(crate) fn acceptor(self) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("preparing TLS")?
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)
            .context("the certificate and the key for HTTPS do not belong together")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Our own certificate authority.
pub(crate) struct Authority {
    key: KeyPair,
    certificate: String,
}

impl Authority {
    /// Reads the authority below the data directory, or makes it.
    pub(crate) fn open(data: &Path) -> anyhow::Result<Authority> {
        let path = authority_path(data);
        let directory = path.parent().unwrap_or(data);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let key_path = directory.join("ca.key");
        let key = match std::fs::read_to_string(&key_path) {
            Ok(text) => KeyPair::from_pem(&text)
                .with_context(|| format!("{} is no key in PEM", key_path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.exists() {
                    bail!(
                        "{} is there without its key {}: bring the key back, or remove both and enrol a new authority",
                        path.display(),
                        key_path.display()
                    );
                }
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .context("making a key for HTTPS")?;
                publish(&key_path, 0o600, &key.serialize_pem())?;
                key
            }
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", key_path.display()));
            }
        };
        let certificate = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = description(&key)
                    .self_signed(&key)
                    .context("making a certificate authority")?;
                publish(&path, 0o644, &made.pem())?;
                made.pem()
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        CertificateDer::from_pem_slice(certificate.as_bytes())
            .with_context(|| format!("{} is no certificate in PEM", path.display()))?;
        Ok(Authority { key, certificate })
    }

    /// What is enrolled, as PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for these addresses of ours.
    pub(crate) fn certify(&self, addresses: &[Ipv4Addr]) -> anyhow::Result<Identity> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making a key")?;
        let names: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
        let mut ours = CertificateParams::new(names).context("naming our addresses")?;
        live_long(&mut ours);
        ours.distinguished_name = Default::default();
        ours.distinguished_name.push(DnType::CommonName, "diskless");
        ours.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        ours.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        ours.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(description(&self.key), &self.key);
        let signed = ours
            .signed_by(&key, &issuer)
            .context("signing our certificate")?;
        let authority = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .context("reading the authority's certificate")?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|error| anyhow::anyhow!("the key just made: {error}"))?;
        Ok(Identity {
            chain: vec![signed.der().clone(), authority],
            key,
        })
    }
}

/// What the authority says of itself: the same for one key, always. Two
/// sites' authorities have two names.
fn description(key: &KeyPair) -> CertificateParams {
    let mut authority = CertificateParams::default();
    live_long(&mut authority);
    let number = Sha256::digest(key.der_bytes());
    let number: String = number
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    authority.distinguished_name = Default::default();
    let name = format!("diskless CA {number}");
    authority.distinguished_name.push(DnType::CommonName, name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
}

fn live_long(certificate: &mut CertificateParams) {
    certificate.not_before = rcgen::date_time_ymd(FIRST_YEAR, 1, 1);
    certificate.not_after = rcgen::date_time_ymd(LAST_YEAR, 12, 31);
}

/// Writes a file that is whole or not there.
fn publish(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        path.parent()
            .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_authority_is_made_once_and_its_key_is_nobody_elses() {
        let data = tempfile::tempdir().unwrap();
        let first = Authority::open(data.path()).unwrap();
        let again = Authority::open(data.path()).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        let key = data.path().join("tls/ca.key");
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A certificate without its key is not quietly replaced by another.
        std::fs::remove_file(&key).unwrap();
        let error = Authority::open(data.path()).err().unwrap().to_string();
        assert!(error.contains("enrol a new authority"), "{error}");
    }

    #[test]
    fn two_authorities_have_two_names() {
        let name = || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            description(&key).distinguished_name
        };
        assert_ne!(name(), name());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let authority = Authority::open(data.path()).unwrap();
        let address = [Ipv4Addr::LOCALHOST];
        let (one, other) = (authority.certify(&address), authority.certify(&address));
        let mixed = Identity {
            chain: one.unwrap().chain,
            key: other.unwrap().key,
        };
        let error = mixed.acceptor().err().unwrap().to_string();
        assert!(error.contains("do not belong together"), "{error}");
    }

    #[test]
    fn files_that_are_not_what_they_should_be_are_named() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("x.pem");
        std::fs::write(&file, "rubbish").unwrap();
        let error = Identity::given(&file, &file).err().unwrap();
        assert!(format!("{error:#}").contains("x.pem"), "{error:#}");
    }
}
