//! HTTPS, as it is configured.

use std::net::{Ipv4Addr, SocketAddr};

use crate::boot::script::Https;
use crate::config::{Config, TlsFor};
use crate::services::http::Tls;
use crate::services::tls::{Authority, Identity};

/// The encrypted doors, and what they are proven by.
#[derive(Default)]
pub(super) struct Encrypted {
    pub(super) doors: Option<Tls>,
    /// Our own authority's certificate, where it is our own.
    pub(super) authority: Option<String>,
}

impl Encrypted {
    /// Reads or makes the certificate for these addresses.
    pub(super) fn open(config: &Config, addresses: &[Ipv4Addr]) -> anyhow::Result<Encrypted> {
        let given = &config.http;
        let Some(port) = given.tls_port else {
            return Ok(Encrypted::default());
        };
        let (identity, authority) = match (&given.tls_certificate, &given.tls_key) {
            (Some(certificate), Some(key)) => (Identity::given(certificate, key)?, None),
            _ => {
                let authority = Authority::open(&config.data)?;
                let identity = authority.certify(addresses)?;
                (identity, Some(authority.certificate().to_owned()))
            }
        };
        let addresses = addresses
            .iter()
            .map(|&address| SocketAddr::from((address, port)));
        Ok(Encrypted {
            doors: Some(Tls {
                addresses: addresses.collect(),
                acceptor: identity.acceptor()?,
            }),
            authority,
        })
    }
}

/// Who is sent to them.
pub(super) fn https(config: &Config) -> Https {
    let port_for = |whom| {
        config
            .http
            .tls_port
            .filter(|_| config.http.tls_for.contains(&whom))
    };
    Https {
        firmware: port_for(TlsFor::Firmware),
        ipxe: port_for(TlsFor::Ipxe),
    }
}
