//! Somebody else's DHCP server on the same LAN: dnsmasq, which gives addresses
//! and knows nothing of booting.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};

use crate::state::Process;
use crate::{Deadline, Host};

/// The home router of the story: a DHCP server that is not ours.
#[derive(Debug)]
pub struct Neighbour {
    process: Process,
    log: std::path::PathBuf,
}

impl Neighbour {
    /// Starts it on a host, lending addresses between these two.
    ///
    /// # Errors
    /// When dnsmasq does not start.
    pub fn start(host: &Host<'_>, first: Ipv4Addr, last: Ipv4Addr) -> Result<Neighbour> {
        let work = host.lab().work();
        let log = work.join("neighbour.dnsmasq.log");
        let configuration = work.join("neighbour.conf");
        let text = format!(
            "port=0\ninterface=eth0\nbind-interfaces\ndhcp-authoritative\ndhcp-range={first},{last},1h\nlog-dhcp\n\
             user=root\ndhcp-leasefile={}\nlog-facility={}\npid-file={}\n",
            work.join("neighbour.leases").display(),
            log.display(),
            work.join("neighbour.pid").display(),
        );
        fs::write(&configuration, text)?;
        let option = format!("--conf-file={}", configuration.display());
        let process = host.spawn("neighbour", &["dnsmasq", "--keep-in-foreground", &option])?;
        let mut neighbour = Neighbour { process, log };
        Deadline::seconds(20)
            .wait(|| {
                if neighbour.process.ended()?.is_some() {
                    bail!(
                        "dnsmasq ended:\n{}\n{}",
                        neighbour.process.last_words(),
                        neighbour.log()
                    );
                }
                Ok(neighbour.log().contains("DHCP, IP range").then_some(()))
            })
            .context("starting dnsmasq (package dnsmasq-base)")?;
        Ok(neighbour)
    }

    /// What it logged: every exchange with its options.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
