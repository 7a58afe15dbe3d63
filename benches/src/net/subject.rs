//! The servers that are compared, each told to do the same.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::lan::Lan;

/// Where things lie.
pub(super) struct Place {
    /// For what the servers write, and the files they serve.
    pub(super) home: PathBuf,
    /// The program of ours.
    pub(super) program: PathBuf,
    /// Where the others' packages were unpacked.
    pub(super) tools: PathBuf,
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// `diskless serve` in full mode, with everything it does at once.
    Ours,
    /// dnsmasq as DHCP server, without its ping before an offer.
    DnsmasqDhcp,
    /// dnsmasq as TFTP server.
    DnsmasqTftp,
    /// Kea with its leases in a file.
    Kea,
    /// in.tftpd.
    TftpdHpa,
    /// nginx with `sendfile`.
    Nginx,
}

impl Subject {
    pub(super) fn name(self) -> &'static str {
        match self {
            Subject::Ours => "diskless",
            Subject::DnsmasqDhcp | Subject::DnsmasqTftp => "dnsmasq",
            Subject::Kea => "Kea",
            Subject::TftpdHpa => "tftpd-hpa",
            Subject::Nginx => "nginx",
        }
    }
}

/// A running server with its LAN; ended when it is dropped.
pub(super) struct Running {
    child: Child,
    pub(super) pid: u32,
    pub(super) lan: Lan,
    log: PathBuf,
}

impl Running {
    /// Starts it on a LAN of this number, with nothing remembered. It serves
    /// the files of `place.home/files`.
    pub(super) fn start(subject: Subject, place: &Place, number: u8) -> io::Result<Running> {
        let lan = Lan::new(number)?;
        let own = place.home.join(subject.name());
        if own.exists() {
            fs::remove_dir_all(&own)?;
        }
        fs::create_dir_all(&own)?;
        let files = place.home.join("files");
        let mut command = match subject {
            Subject::Ours => ours(&lan, place, &own, &files)?,
            Subject::DnsmasqDhcp => dnsmasq_dhcp(&lan, &own),
            Subject::DnsmasqTftp => dnsmasq_tftp(&lan, &files),
            Subject::Kea => kea(&lan, place, &own)?,
            Subject::TftpdHpa => tftpd_hpa(&lan, place, &files),
            Subject::Nginx => nginx(&lan, place, &own, &files)?,
        };
        let log = own.join("log");
        let output = fs::File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0) // in.tftpd has a process per transfer
            .spawn()?;
        let pid = child.id();
        Ok(Running {
            child,
            pid,
            lan,
            log,
        })
    }

    /// What it said last, where it does not do what it should.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(group) = pid {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ours(lan: &Lan, place: &Place, own: &Path, files: &Path) -> io::Result<Command> {
    let data = own.join("data");
    fs::create_dir_all(&data)?;
    std::os::unix::fs::symlink(files, data.join("files"))?;
    let (first, last) = lan.pool();
    let text = format!(
        r#"data = "{data}"
[network]
interface = "eth0"
[dhcp]
mode = "full"
pool = ["{first}-{last}"]
[loaders]
directory = "{files}"
[api]
socket = "{own}/api"
[log]
level = "warn"
"#,
        data = data.display(),
        files = files.display(),
        own = own.display(),
    );
    let configuration = own.join("diskless.toml");
    fs::write(&configuration, text)?;
    let mut command = lan.command(&place.program.to_string_lossy());
    command.args(["serve", "--config"]).arg(configuration);
    Ok(command)
}

fn dnsmasq(lan: &Lan) -> Command {
    let mut command = lan.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--port=0",
        "--user=root",
        "--interface=eth0",
        "--log-facility=-",
    ]);
    command
}

fn dnsmasq_dhcp(lan: &Lan, own: &Path) -> Command {
    let (first, last) = lan.pool();
    let mut command = dnsmasq(lan);
    command
        .arg(format!("--dhcp-range={first},{last},255.255.0.0,12h"))
        .arg(format!("--dhcp-leasefile={}/leases", own.display()))
        .args([
            "--dhcp-lease-max=10000",
            "--no-ping",
            "--quiet-dhcp",
            "--dhcp-authoritative",
            "--dhcp-boot=snponly.efi",
        ]);
    command
}

fn dnsmasq_tftp(lan: &Lan, files: &Path) -> Command {
    let mut command = dnsmasq(lan);
    command
        .arg("--enable-tftp=eth0")
        .arg(format!("--tftp-root={}", files.display()));
    command
}

/// A command of a package that is unpacked, not installed.
fn unpacked(lan: &Lan, place: &Place, program: &str) -> Command {
    let program = place.tools.join("usr/sbin").join(program);
    let mut command = lan.command(&program.to_string_lossy());
    let libraries = place.tools.join("usr/lib/x86_64-linux-gnu");
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

fn kea(lan: &Lan, place: &Place, own: &Path) -> io::Result<Command> {
    let (first, last) = lan.pool();
    let server = lan.server();
    let subnet = format!("10.{}.0.0/16", server.octets()[1]);
    let text = serde_json::json!({"Dhcp4": {
        "interfaces-config": {"interfaces": ["eth0"]},
        "lease-database": {"type": "memfile", "persist": true, "name": own.join("leases.csv"), "lfc-interval": 0},
        "valid-lifetime": 43200,
        "next-server": server,
        "boot-file-name": "snponly.efi",
        "subnet4": [{"subnet": subnet, "pools": [{"pool": format!("{first} - {last}")}]}],
        "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stderr"}]}],
    }});
    let configuration = own.join("kea.json");
    fs::write(&configuration, text.to_string())?;
    let mut command = unpacked(lan, place, "kea-dhcp4");
    command
        .env("KEA_LOCKFILE_DIR", "none")
        .env("KEA_PIDFILE_DIR", own)
        .arg("-c")
        .arg(configuration);
    Ok(command)
}

fn tftpd_hpa(lan: &Lan, place: &Place, files: &Path) -> Command {
    let mut command = unpacked(lan, place, "in.tftpd");
    command
        .args(["--foreground", "--user", "root", "--secure", "--address"])
        .arg(format!("{}:69", lan.server()))
        .arg(files);
    command
}

fn nginx(lan: &Lan, place: &Place, own: &Path, files: &Path) -> io::Result<Command> {
    let text = format!(
        r#"daemon off;
master_process off;
user root;
pid {own}/pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    server {{
        listen {server}:80;
        location /files/ {{ alias {files}/; }}
    }}
}}
"#,
        own = own.display(),
        files = files.display(),
        server = lan.server(),
    );
    let configuration = own.join("nginx.conf");
    fs::write(&configuration, text)?;
    let mut command = unpacked(lan, place, "nginx");
    command
        .arg("-c")
        .arg(configuration)
        .arg("-e")
        .arg(own.join("errors"));
    Ok(command)
}
