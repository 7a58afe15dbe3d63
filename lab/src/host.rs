//! The LAN and what stands on it: network namespaces, one bridge, pairs of cables.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::state::{Lab, Process, run};

/// Network mask of the LAN, in bits.
const PREFIX_BITS: u8 = 24;

/// One LAN: a bridge in a namespace of its own. The PCs' cables end there.
#[derive(Debug)]
pub struct Lan<'a> {
    lab: &'a Lab,
    namespace: String,
}

impl<'a> Lan<'a> {
    /// Makes a LAN with nothing on it.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses.
    pub fn new(lab: &'a Lab) -> Result<Lan<'a>> {
        let namespace = lab.add_namespace("lan")?;
        let lan = Lan { lab, namespace };
        // Forwards from the first moment: a PXE ROM gives up before STP's 30 s are over.
        lan.ip(&[
            "link",
            "add",
            "lan",
            "type",
            "bridge",
            "forward_delay",
            "0",
            "stp_state",
            "0",
        ])?;
        lan.ip(&["link", "set", "lan", "up"])?;
        Ok(lan)
    }

    /// The lab it is in.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// The namespace the PCs run in.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Puts a computer with one interface, `eth0`, on the LAN.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses.
    pub fn add_host(&self, name: &str, address: Ipv4Addr) -> Result<Host<'a>> {
        let namespace = self.lab.add_namespace(name)?;
        self.ip(&[
            "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
        ])?;
        self.ip(&["link", "set", name, "master", "lan", "up"])?;
        let host = Host {
            lab: self.lab,
            namespace,
            address,
        };
        let with_prefix = format!("{address}/{PREFIX_BITS}");
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &["link", "set", "eth0", "up"],
            &["address", "add", &with_prefix, "dev", "eth0"],
        ] {
            run("ip", &[&["-n", &host.namespace], arguments].concat())?;
        }
        Ok(host)
    }

    /// A network card's cable: the name of a tap interface on the bridge.
    pub(crate) fn add_tap(&self, name: &str) -> Result<()> {
        self.ip(&["tuntap", "add", name, "mode", "tap"])?;
        self.ip(&["link", "set", name, "master", "lan", "up"])
    }

    pub(crate) fn remove_tap(&self, name: &str) {
        let _ = self.ip(&["link", "del", name]);
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run("ip", &[&["-n", &self.namespace], arguments].concat())?;
        Ok(())
    }
}

/// A computer on the LAN: a namespace with the interface `eth0`.
#[derive(Clone, Debug)]
pub struct Host<'a> {
    lab: &'a Lab,
    namespace: String,
    address: Ipv4Addr,
}

impl<'a> Host<'a> {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its namespace, for `ip netns exec`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Starts a program on it.
    pub(crate) fn spawn(&self, name: &str, program: &[&str]) -> Result<Process> {
        self.lab.spawn(&self.namespace, name, program)
    }

    /// Runs a program on it to its end; its standard output.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn run(&self, program: &[&str]) -> Result<String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace])
            .args(program)
            .output()
            .context("starting ip")?;
        if !output.status.success() {
            bail!(
                "{}: {}",
                program.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
