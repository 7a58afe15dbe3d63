//! `diskless serve` on a host of the LAN, and its command line.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::state::Process;
use crate::{Deadline, Host};

/// Time to start on a busy machine.
const START_SECONDS: u64 = 60;
/// Time to drain after SIGTERM.
const DRAIN_SECONDS: u64 = 60;

/// What it does about DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// It is the LAN's DHCP server.
    Full,
    /// It stands beside another.
    Proxy,
    /// It only looks.
    Observe,
}

/// What differs from test to test.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DHCP mode.
    pub dhcp: Dhcp,
    /// Lease time as the configuration file spells it.
    pub lease: String,
    /// First and last address it lends.
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// The version of GRUB in the signed chain it serves (`lab/images/chain.sh`).
    pub signed_grub: Option<&'static str>,
    /// A directory of the user's own loaders.
    pub loaders: Option<PathBuf>,
}

impl Settings {
    /// Settings for a DHCP mode; the rest as the tests usually want it.
    pub fn new(dhcp: Dhcp) -> Settings {
        Settings {
            dhcp,
            lease: "10m".to_owned(),
            pool: (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)),
            signed_grub: None,
            loaders: None,
        }
    }
}

/// A `diskless serve` with a data directory of its own; dropped, it is killed.
#[derive(Debug)]
pub struct Server<'a> {
    host: Host<'a>,
    program: PathBuf,
    configuration: PathBuf,
    data: PathBuf,
    socket: PathBuf,
    process: Option<Process>,
}

impl<'a> Server<'a> {
    /// Starts `program serve` on a host and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer; with its last words.
    pub fn start(host: &Host<'a>, program: &Path, settings: &Settings) -> Result<Server<'a>> {
        let lab = host.lab();
        let data = lab.work().join("data");
        let socket = lab.sockets().join("api");
        let configuration = lab.work().join("diskless.toml");
        let Settings {
            dhcp,
            lease,
            pool: (first, last),
            signed_grub,
            loaders,
        } = settings;
        let mode = match dhcp {
            Dhcp::Full => "full",
            Dhcp::Proxy => "proxy",
            Dhcp::Observe => "observe",
        };
        let mut text = format!(
            "data = \"{}\"\n\n[network]\ninterface = \"eth0\"\n\n[dhcp]\nmode = \"{mode}\"\n",
            data.display()
        );
        if *dhcp == Dhcp::Full {
            text.push_str(&format!(
                "pool = [\"{first}-{last}\"]\nlease = \"{lease}\"\n"
            ));
        }
        let directory = match signed_grub {
            Some(version) => Some(crate::chain()?.join(version)),
            None => loaders.clone(),
        };
        if let Some(directory) = directory {
            let directory = directory.display();
            text.push_str(&format!("\n[loaders]\ndirectory = \"{directory}\"\n"));
        }
        text.push_str(&format!("\n[api]\nsocket = \"{}\"\n", socket.display()));
        fs::create_dir_all(&data)?;
        fs::write(&configuration, text)?;
        let mut server = Server {
            host: host.clone(),
            program: program.to_owned(),
            configuration,
            data,
            socket,
            process: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again on the same data, after [`Server::kill`] or [`Server::stop`].
    ///
    /// # Errors
    /// When it ends or does not answer; with its last words.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let program = self.program.to_string_lossy();
        let configuration = self.configuration.to_string_lossy();
        let process = self
            .host
            .spawn("diskless", &[&program, "serve", "--config", &configuration])?;
        let process = self.process.insert(process);
        let deadline = Deadline::seconds(START_SECONDS);
        loop {
            if let Some(status) = process.ended()? {
                bail!("diskless serve ended ({status}):\n{}", process.last_words());
            }
            let status =
                self.host
                    .run(&[&program, "--api", &self.socket.to_string_lossy(), "status"]);
            let Err(error) = status else { return Ok(()) };
            if deadline.pause().is_err() {
                bail!(
                    "diskless serve does not answer: {error}\n{}",
                    process.last_words()
                );
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits until it has drained.
    ///
    /// # Errors
    /// When it does not end, or not with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let status = process.terminate(Deadline::seconds(DRAIN_SECONDS))?;
        if !status.success() {
            bail!(
                "diskless serve ended with {status}:\n{}",
                process.last_words()
            );
        }
        Ok(())
    }

    /// Runs `diskless ARGUMENTS` against it; its standard output.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let program = self.program.to_string_lossy();
        let socket = self.socket.to_string_lossy();
        self.host
            .run(&[&[&*program, "--api", &*socket], arguments].concat())
    }

    /// Runs `diskless --json ARGUMENTS` against it.
    ///
    /// # Errors
    /// When it fails, or says something that is not JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.cli(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`diskless --json {}` said: {text}", arguments.join(" ")))
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host<'a> {
        &self.host
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its API's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        self.process
            .as_ref()
            .map(Process::last_words)
            .unwrap_or_default()
    }

    /// Leaves it running when this is dropped.
    pub fn release(mut self) {
        if let Some(process) = self.process.take() {
            process.release();
        }
    }
}
