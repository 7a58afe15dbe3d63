//! A LAN of one server: a network namespace, and a cable from it to the
//! clients.

use std::io::{self, BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

/// The clients' addresses are in 10.N.2.0/24.
pub(super) struct Lan {
    /// Keeps the namespace while it lives; it has no name, so nothing is left.
    holder: Child,
    number: u8,
}

impl Lan {
    /// The LAN 10.`number`.0.0/16; the server's end of the cable is `eth0`.
    pub(super) fn new(number: u8) -> io::Result<Lan> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = holder.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let lan = Lan { holder, number };
        let (near, pid) = (lan.cable(), lan.holder.id().to_string());
        let address = |end| format!("10.{number}.0.{end}/16");
        ip(&[
            "link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ])?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["addr", "add", &address(2), "dev", &near])?;
        ip(&["link", "set", &near, "up"])?;
        // Every address of it is one of this end.
        let clients = format!("10.{number}.2.0/24");
        ip(&["route", "replace", "local", &clients, "dev", "lo"])?;
        for words in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &address(1), "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            done(lan.command("ip").args(words))?;
        }
        Ok(lan)
    }

    /// Name of the clients' end of the cable.
    pub(super) fn cable(&self) -> String {
        format!("near{}", self.number)
    }

    /// Where the server is.
    pub(super) fn server(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 1)
    }

    /// One of the clients' addresses.
    pub(super) fn client(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 2, number)
    }

    /// First and last address for machines: 8,192 of them.
    pub(super) fn pool(&self) -> (Ipv4Addr, Ipv4Addr) {
        let address = |third, fourth| Ipv4Addr::new(10, self.number, third, fourth);
        (address(32, 0), address(63, 255))
    }

    /// A command that runs at the server's end, as the process started.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .args(["--", program]);
        command
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = ip(&["link", "del", &self.cable()]);
    }
}

fn ip(words: &[&str]) -> io::Result<()> {
    done(Command::new("ip").args(words))
}

fn done(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}
