//! Tests of the command line, up to a running API.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use uuid::Uuid;

mod images;
mod models;
mod overlays;

use super::*;
use crate::api::images::Image;
use crate::api::jobs::Job;
use crate::api::{Api, Door, Listeners, Live, LiveSession, LiveStatus, Server, targets};
use crate::config::Config;
use crate::inventory::Inventory;
use crate::inventory::tests::Site;
use crate::server::LiveTargets;
use crate::services::iscsi::plain::KeptTargets;
use crate::timeline::Timeline;

fn parsed(line: &str) -> anyhow::Result<Command> {
    let words = std::iter::once("diskless").chain(line.split_whitespace());
    command(Arguments::try_parse_from(words)?)
}

/// A server on which no machine runs.
struct Nothing {
    targets: LiveTargets,
}

impl Live for Nothing {
    fn status(&self) -> LiveStatus {
        LiveStatus {
            uptime: Duration::from_secs(5),
            interface: "eth1".into(),
            dhcp_mode: "observe".into(),
            doors: vec![Door {
                service: "http".into(),
                address: "10.0.0.1:80".into(),
            }],
            foreign_dhcp_servers: Vec::new(),
            malformed: Vec::new(),
        }
    }

    fn sessions(&self) -> Vec<LiveSession> {
        Vec::new()
    }

    fn targets(&self) -> &dyn targets::Targets {
        &self.targets
    }

    fn machine_in_use(&self, _machine: Uuid) -> bool {
        false
    }

    fn machine_disk(
        &self,
        machine: &crate::inventory::Machine,
    ) -> Result<::disk::SharedDisk, String> {
        Err(format!("nothing is assigned to {}", machine.name))
    }

    fn release_own_disk(&self, _: Uuid) -> Result<(), String> {
        Ok(())
    }

    fn is_nobody_waiting(&self) -> bool {
        true
    }

    fn with_overlay(
        &self,
        _overlay: &crate::inventory::Overlay,
        work: &mut dyn FnMut(Option<&::disk::Overlay>),
    ) {
        work(None);
    }

    fn while_closed(&self, _machine: Uuid, work: &mut dyn FnMut()) {
        work();
    }
}

/// An API on a socket in a temporary directory.
struct Running {
    _server: Server,
    inventory: Arc<Inventory>,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Running {
    async fn start() -> Running {
        let (inventory, directory) = Site::new().shared();
        let timeline = Arc::new(Timeline::open(Arc::clone(&inventory)).unwrap());
        let socket = directory.path().join("run/api.sock");
        let kept = KeptTargets::restore(Arc::clone(&inventory), Arc::default(), "iqn.2026-01.lab");
        let targets = LiveTargets(Arc::new(kept.unwrap()));
        let api = Api {
            inventory: Arc::clone(&inventory),
            timeline,
            live: Arc::new(Nothing { targets }),
        };
        let listeners = Listeners::bind(Some(&socket), None).await.unwrap();
        Running {
            _server: listeners.serve(api),
            inventory,
            socket,
            directory,
        }
    }

    /// What a command line prints.
    async fn answer(&self, line: &str) -> Result<String, String> {
        answer(&self.socket, line).await
    }
}

async fn answer(socket: &Path, line: &str) -> Result<String, String> {
    let line = format!("--api {} {line}", socket.display());
    let Ok(Command::Ask(ask)) = parsed(&line) else {
        panic!("{line} is no question");
    };
    let json = ask.json;
    let answer = ask.answer().await.map_err(|e| format!("{e:#}"))?;
    Ok(answer.shown(json).to_owned())
}

#[test]
fn the_command_line_holds_together() {
    Arguments::command().debug_assert();
}

#[test]
fn settings_of_serve_become_keys_of_the_configuration() {
    let line = "serve --data /srv/x --interface eth1 --dhcp-mode full \
                --dhcp-pool 10.0.0.10-10.0.0.20 --set http.port=81 --api /tmp/a.sock";
    let Ok(Command::Serve(settings)) = parsed(line) else {
        panic!("not understood");
    };
    let loaded = Config::from_sources(None, [], &settings.overrides()).unwrap();
    let config = loaded.config;
    assert_eq!(config.data, Path::new("/srv/x"));
    assert_eq!(config.network.interface.as_deref(), Some("eth1"));
    assert_eq!(config.http.port, 81);
    assert_eq!(config.api.socket.as_deref(), Some(Path::new("/tmp/a.sock")));
    assert_eq!(config.dhcp.pool.len(), 1);
}

#[test]
fn serve_listens_where_the_other_commands_ask() {
    let default = Config::default().api.socket;
    assert_eq!(default.as_deref(), Some(Path::new(DEFAULT_SOCKET)));
}

#[test]
fn flags_every_command_has_stand_before_or_after_it() {
    for line in ["--json machine list", "machine list --json"] {
        let Ok(Command::Ask(ask)) = parsed(line) else {
            panic!("{line}");
        };
        assert!(ask.json);
    }
}

#[test]
fn a_change_that_changes_nothing_is_not_understood() {
    assert!(parsed("machine set pc07").is_err());
    assert!(parsed("machine set pc07 --address none").is_ok());
    assert!(parsed("machine add pc07").is_err(), "no MAC");
    assert!(
        parsed("machine add pc07 --mac 0 --mode keep").is_err(),
        "no image"
    );
}

#[test]
fn what_is_no_id_is_refused_with_where_to_find_one() {
    for (line, words) in [
        ("job cancel abc", "`diskless job list` shows them"),
        ("machine set pc07 --uuid abc", "dmidecode"),
        (
            "machine add pc07 --mac 52:54:00:00:00:07 --uuid abc",
            "dmidecode",
        ),
    ] {
        let refusal = parsed(line).unwrap_err().to_string();
        assert!(refusal.contains(words), "{line}: {refusal}");
        assert!(!refusal.contains("invalid length"), "{line}: {refusal}");
    }
    assert!(parsed("machine set pc07 --uuid none").is_ok());
}

#[tokio::test]
async fn without_a_server_one_sentence_says_so() {
    let refusal = answer(Path::new("/nowhere/api.sock"), "status")
        .await
        .unwrap_err();
    assert_eq!(
        refusal,
        "the server is not running here (no answer on /nowhere/api.sock); \
         start it with `diskless serve`"
    );
}

#[tokio::test]
async fn an_image_is_imported_assigned_and_not_removed_under_its_machine() {
    let running = Running::start().await;
    let source = running.directory.path().join("a.raw");
    fs::write(&source, vec![7; 2 << 20]).unwrap();
    let said = running
        .answer(&format!(
            "image import debian {} --comment first",
            source.display()
        ))
        .await
        .unwrap();
    assert!(said.starts_with("debian@1: 2.00 MiB imported"), "{said}");
    let said = running
        .answer("machine add pc07 --mac 52:54:00:00:00:07 --image debian --mode reset")
        .await
        .unwrap();
    assert_eq!(said, "added pc07 (52:54:00:00:00:07): boots debian, reset");
    let refusal = running.answer("image remove debian").await.unwrap_err();
    assert!(refusal.contains("machine pc07 boots it"), "{refusal}");
    let said = running
        .answer("machine set pc07 --image none")
        .await
        .unwrap();
    assert!(said.contains("no image yet"), "{said}");
    let said = running.answer("image remove debian").await.unwrap();
    assert_eq!(said, "removed debian@1");
    assert!(
        running
            .answer("image list")
            .await
            .unwrap()
            .contains("no images yet")
    );
}

#[tokio::test]
async fn a_failed_import_is_one_sentence_and_changes_nothing() {
    let running = Running::start().await;
    let source = running.directory.path().join("a.vmdk");
    fs::write(&source, b"KDMV and more of it").unwrap();
    let refusal = running
        .answer(&format!("image import debian {}", source.display()))
        .await
        .unwrap_err();
    assert!(refusal.contains("qemu-img convert"), "{refusal}");
    assert_eq!(running.answer("--json image list").await.unwrap(), "[]");
}

#[tokio::test]
async fn an_image_goes_out_as_a_file_that_says_what_it_is() {
    let running = Running::start().await;
    let source = running.directory.path().join("a.raw");
    fs::write(&source, vec![7; 2 << 20]).unwrap();
    let import = format!("image import debian {} --comment first", source.display());
    running.answer(&import).await.unwrap();
    let target = running.directory.path().join("a.vhd");
    let export = format!("image export debian@1 {}", target.display());
    let said = running.answer(&export).await.unwrap();
    assert!(said.starts_with("debian@1: 2.00 MiB exported to"), "{said}");
    let refusal = running.answer(&export).await.unwrap_err();
    assert!(refusal.contains("--force"), "{refusal}");
    running.answer(&format!("{export} --force")).await.unwrap();

    let said = running
        .answer(&format!("image info {}", target.display()))
        .await
        .unwrap();
    assert!(
        said.contains("VHD") && said.contains("(2097152 bytes)"),
        "{said}"
    );
    let said = running.answer("image info debian").await.unwrap();
    assert!(
        said.contains("debian@1 current") && said.contains("first"),
        "{said}"
    );
}

#[tokio::test]
async fn an_image_can_be_had_byte_by_byte() {
    let running = Running::start().await;
    let mut bytes = vec![0; 5 << 20];
    bytes[(2 << 20) + 5..(3 << 20) + 9].fill(9);
    send(&running, std::io::Cursor::new(bytes.clone()))
        .await
        .unwrap();
    let client = Client::new(running.socket.clone());
    let mut seen = Vec::new();
    let received = client.receive("/images/debian/content", |total, piece| {
        assert_eq!(total, Some(5 << 20));
        seen.extend_from_slice(piece);
        Ok(())
    });
    received.await.unwrap();
    assert!(seen == bytes);
    let refused = client.receive("/images/win11/content", |_, _| Ok(())).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("there is no image")
    );
}

/// Sends `input` as if it were standard input, as an import of `debian`.
async fn send(
    running: &Running,
    input: impl std::io::Read + Send + 'static,
) -> Result<Image, String> {
    let client = Client::new(running.socket.clone());
    let path = "/images/debian/stream?comment=by%20pipe";
    let job: anyhow::Result<Job> = stream::send_from(input, &client, path, "debian", true).await;
    let made = match job {
        Ok(job) => job::follow(&client, job, true).await,
        Err(e) => Err(e),
    };
    made.map_err(|e| format!("{e:#}"))
}

#[tokio::test]
async fn standard_input_becomes_an_image() {
    let running = Running::start().await;
    let bytes = vec![7; 3 << 20];
    let image = send(&running, std::io::Cursor::new(bytes)).await.unwrap();
    assert_eq!((image.version, image.size_bytes), (1, 3 << 20));
    assert_eq!(image.comment, "by pipe");
}

#[tokio::test]
async fn compressed_input_is_refused_long_before_its_end() {
    let running = Running::start().await;
    let endless = std::io::Cursor::new(b"\x1f\x8b\x08").chain(std::io::repeat(1));
    let refusal = send(&running, endless).await.unwrap_err();
    assert!(refusal.contains("`zcat FILE.gz |"), "{refusal}");
    assert_eq!(running.answer("--json image list").await.unwrap(), "[]");
}

#[tokio::test]
async fn what_has_no_place_is_not_taken_in_place() {
    let running = Running::start().await;
    for source in ["-", "https://example.org/a.raw"] {
        let line = format!("disk import win {source} --in-place");
        let refusal = running.answer(&line).await.unwrap_err();
        assert!(refusal.contains("leave --in-place out"), "{refusal}");
    }
}

#[tokio::test]
async fn input_that_breaks_off_is_not_taken_for_the_whole() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the tape tore"))
        }
    }
    let running = Running::start().await;
    let input = std::io::Cursor::new(vec![7; 2 << 20]).chain(Broken);
    let refusal = send(&running, input).await.unwrap_err();
    assert!(refusal.contains("broke off"), "{refusal}");
    assert_eq!(running.answer("--json image list").await.unwrap(), "[]");
    let images = running.directory.path().join("data/images");
    while fs::read_dir(&images).unwrap().count() > 0 {
        // The server has yet to hear of it.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_answer_is_there_as_json() {
    let running = Running::start().await;
    let added = running
        .answer("--json machine add pc07 --mac 525400000007")
        .await
        .unwrap();
    let added: serde_json::Value = serde_json::from_str(&added).unwrap();
    assert_eq!(added["mac"], "52:54:00:00:00:07");
    for line in [
        "machine list",
        "machine show pc07",
        "machine show 52:54:00:00:00:07",
        "machine timeline pc07",
        "machine set pc07 --address 10.0.0.7",
        "machine remove pc07",
        "overlay list",
        "target add data --chap-generate me",
        "target list",
        "target show data",
        "target remove data",
        "job list",
        "lease list",
        "session list",
        "status",
    ] {
        let said = running.answer(&format!("--json {line}")).await.unwrap();
        assert!(
            serde_json::from_str::<serde_json::Value>(&said).is_ok(),
            "{line}: {said}"
        );
    }
}

#[tokio::test]
async fn a_name_with_a_slash_stays_one_part_of_the_path() {
    let running = Running::start().await;
    let refusal = running.answer("machine show ../status").await.unwrap_err();
    assert!(
        refusal.contains("there is no machine \"../status\""),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_target_gets_disks_that_grow_and_go_while_their_files_stay() {
    let running = Running::start().await;
    let file = running.directory.path().join("a.img");
    fs::File::create(&file).unwrap().set_len(4 << 20).unwrap();
    let path = file.display();
    let said = running.answer("target add data").await.unwrap();
    assert!(said.contains("iqn.2026-01.lab:target.data"), "{said}");
    assert!(said.contains("whoever reaches"), "{said}");
    let add = format!("target lun add data {path} --thin --lun 3");
    let said = running.answer(&add).await.unwrap();
    assert!(said.contains("LUN 3 (thin, 4.00 MiB)"), "{said}");
    let said = running.answer("target lun resize data 3 8M").await.unwrap();
    assert!(said.contains("8.00 MiB"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().len(), 8 << 20);
    let refusal = running
        .answer("target lun resize data 3 4M")
        .await
        .unwrap_err();
    assert!(refusal.contains("not shrink"), "{refusal}");
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(12 << 20)
        .unwrap();
    let said = running.answer("target lun rescan data 3").await.unwrap();
    assert!(said.contains("12.00 MiB"), "{said}");
    let said = running.answer("target show data").await.unwrap();
    assert!(
        said.contains("12.00 MiB") && said.contains("a.img"),
        "{said}"
    );
    running.answer("target lun remove data 3").await.unwrap();
    running.answer("target remove data").await.unwrap();
    assert!(file.exists());
    let said = running.answer("target list").await.unwrap();
    assert!(said.contains("no targets"), "{said}");
}

#[tokio::test]
async fn a_made_secret_is_shown_once_and_a_given_one_never() {
    let running = Running::start().await;
    let said = running
        .answer("--json target add data --chap-generate me")
        .await
        .unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let secret = said["secret"].as_str().unwrap();
    assert_eq!(secret.len(), 16);
    let shown = running.answer("--json target show data").await.unwrap();
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains("\"chap\": \"me\""), "{shown}");
    let said = running
        .answer("--json target add other --chap me:another-secret")
        .await
        .unwrap();
    assert!(!said.contains("another-secret"), "{said}");
}
