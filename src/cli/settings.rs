//! Settings on the command line of `serve` and `check`, above those of the file
//! and the environment.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::Overrides;

/// Where the configuration is, and what goes before it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Settings {
    /// Configuration file [default: /etc/diskless/diskless.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Directory that everything is kept in
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<String>,

    /// Network interface the machines' LAN is at
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,

    /// observe, proxy or full
    #[arg(long, value_name = "MODE")]
    dhcp_mode: Option<String>,

    /// Addresses to lend in full mode, as in 192.168.1.100-192.168.1.200
    #[arg(long, value_name = "FIRST-LAST")]
    dhcp_pool: Option<String>,

    /// Level of the log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Any key of the configuration file, as in --set dhcp.lease=2h
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,

    /// The API's socket, from the flag every command has.
    #[arg(skip)]
    socket: Option<PathBuf>,
}

impl Settings {
    /// The configuration file, where one was named.
    pub(crate) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// What goes before file and environment.
    pub(crate) fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        let flags = [
            ("--data", "data", &self.data),
            ("--interface", "network.interface", &self.interface),
            ("--dhcp-mode", "dhcp.mode", &self.dhcp_mode),
            ("--dhcp-pool", "dhcp.pool", &self.dhcp_pool),
            ("--log-level", "log.level", &self.log_level),
        ];
        for (flag, key, value) in flags {
            if let Some(value) = value {
                overrides.set(flag, key, value);
            }
        }
        if let Some(socket) = &self.socket {
            overrides.set("--api", "api.socket", socket.to_string_lossy());
        }
        for (key, value) in &self.set {
            overrides.set("--set", key, value);
        }
        overrides
    }

    pub(super) fn with_socket(mut self, socket: Option<PathBuf>) -> Settings {
        self.socket = socket;
        self
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write it as KEY=VALUE, as in dhcp.lease=2h")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}
