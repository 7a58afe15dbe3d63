//! Tests of the API, through its router.

use std::path::Path;
use std::sync::Mutex;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use dhcp::LeaseStore;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::inventory::tests::{Site, mac};
use crate::inventory::{ImageRef, ImportRequest, Name, Origin, OverlayMode};
use crate::server::LiveTargets;
use crate::services::iscsi::plain::KeptTargets;
use crate::timeline::Stage;

/// Live facts as a test sets them.
struct Fake {
    targets: LiveTargets,
    running: Mutex<Vec<Uuid>>,
    closed: Mutex<Vec<Uuid>>,
}

impl Live for Fake {
    fn status(&self) -> LiveStatus {
        LiveStatus {
            uptime: Duration::from_secs(61),
            interface: "eth1".into(),
            dhcp_mode: "proxy".into(),
            doors: vec![Door {
                service: "iscsi".into(),
                address: "10.0.0.1:3260".into(),
            }],
            foreign_dhcp_servers: vec![[10, 0, 0, 254].into()],
            malformed: vec![("dhcp", 7)],
        }
    }

    fn sessions(&self) -> Vec<LiveSession> {
        let running = self.running.lock().unwrap();
        let session = |machine: &Uuid| LiveSession {
            machine: Some(*machine),
            generation: Some(3),
            plain: None,
            initiator: "iqn.2026-11.net.diskless:pc07.initiator".into(),
            target: "iqn.2026-11.net.diskless:pc07".into(),
            peer: "10.0.0.7:1024".into(),
            since: Timestamp::UNIX_EPOCH,
            commands: 5,
            read_bytes: 6,
            written_bytes: 7,
        };
        running.iter().map(session).collect()
    }

    fn targets(&self) -> &dyn targets::Targets {
        &self.targets
    }

    fn machine_in_use(&self, machine: Uuid) -> bool {
        self.running.lock().unwrap().contains(&machine)
    }

    fn machine_disk(
        &self,
        machine: &crate::inventory::Machine,
    ) -> Result<disk::SharedDisk, String> {
        match machine.name.as_str() {
            "pc07" => Ok(Arc::new(disk::Ram::new(1 << 20))),
            name => Err(format!("nothing is assigned to {name}")),
        }
    }

    fn release_own_disk(&self, _disk: Uuid) -> Result<(), String> {
        Ok(())
    }

    fn is_nobody_waiting(&self) -> bool {
        true
    }

    fn with_overlay(
        &self,
        _overlay: &crate::inventory::Overlay,
        work: &mut dyn FnMut(Option<&disk::Overlay>),
    ) {
        work(None);
    }

    fn while_closed(&self, machine: Uuid, work: &mut dyn FnMut()) {
        self.closed.lock().unwrap().push(machine);
        self.running
            .lock()
            .unwrap()
            .retain(|running| *running != machine);
        work();
    }
}

struct Test {
    api: Api,
    live: Arc<Fake>,
    directory: tempfile::TempDir,
}

impl Test {
    fn new() -> Test {
        let (inventory, directory) = Site::new().shared();
        let timeline = Arc::new(Timeline::open(Arc::clone(&inventory)).unwrap());
        let kept = KeptTargets::restore(Arc::clone(&inventory), Arc::default(), "iqn.2026-01.lab");
        let live = Arc::new(Fake {
            targets: LiveTargets(Arc::new(kept.unwrap())),
            running: Mutex::default(),
            closed: Mutex::default(),
        });
        let api = Api {
            inventory,
            timeline,
            live: Arc::<Fake>::clone(&live),
        };
        Test {
            api,
            live,
            directory,
        }
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let response = self.api.clone().router().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, body)
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::POST, path, &body.to_string()).await
    }

    async fn patch(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::PATCH, path, &body.to_string()).await
    }

    async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.ask(Method::DELETE, path, "").await
    }

    async fn add(&self, name: &str, last: u8) -> Uuid {
        let body = json!({ "name": name, "mac": format!("52:54:00:00:00:{last:02x}") });
        let (status, body) = self.post("/machines", body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().parse().unwrap()
    }

    fn import(&self, name: &str) {
        let source = self.directory.path().join("source.raw");
        std::fs::write(&source, vec![1; 4096]).unwrap();
        let request = ImportRequest {
            name: Name::parse(name).unwrap(),
            origin: Origin::File(source),
            comment: String::new(),
        };
        let started = self.api.inventory.start_import(request).unwrap();
        self.api.inventory.ended(started.id).unwrap();
    }

    fn runs(&self, machine: Uuid) {
        self.live.running.lock().unwrap().push(machine);
    }
}

#[test]
fn the_description_is_the_one_in_openapi_json() {
    let (_, description) = described();
    let described = description.to_pretty_json().unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    if kept != described {
        std::fs::write(&path, described).unwrap();
        panic!("openapi.json did not describe this API; it does now: look at the difference");
    }
}

#[test]
fn every_operation_is_described_and_has_a_name_of_its_own() {
    let (_, description) = described();
    let description = serde_json::to_value(description).unwrap();
    let mut names = std::collections::BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(operation["summary"].is_string(), "{method} {path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                // OpenAPI 3.1 section 4.8.17: required.
                assert!(
                    response["description"].is_string(),
                    "{method} {path} {status}"
                );
            }
        }
    }
    assert!(names.len() > 15);
}

#[tokio::test]
async fn a_machine_is_added_shown_changed_and_removed() {
    let test = Test::new();
    test.import("debian");
    let body = json!({ "name": "pc07", "mac": "525400000007", "image": "debian", "mode": "reset",
        "address": "10.0.0.7" });
    let (status, added) = test.post("/machines", body).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(added["image"], "debian");
    assert_eq!(test.get("/machines/pc07").await, added);
    assert_eq!(test.get("/machines/52:54:00:00:00:07").await, added);
    let (_, changed) = test
        .patch("/machines/pc07", json!({ "mode": "keep" }))
        .await;
    assert_eq!(
        (&changed["image"], &changed["mode"]),
        (&json!("debian"), &json!("keep"))
    );
    assert_eq!(changed["address"], "10.0.0.7", "left out, so it stays");
    let (_, changed) = test
        .patch("/machines/pc07", json!({ "address": null }))
        .await;
    assert_eq!(changed["address"], Value::Null);
    let (status, _) = test.delete("/machines/pc07").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(test.get("/machines").await, json!([]));
}

#[tokio::test]
async fn what_lies_inside_a_disk_is_shown_or_why_it_cannot_be() {
    let test = Test::new();
    test.import("debian");
    let inside = test.get("/images/debian/contents").await;
    assert_eq!(inside["table"], "none");
    assert_eq!(inside["partitions"][0]["format"], "unknown");
    assert_eq!(inside["linux"], Value::Null);
    assert_eq!(inside["why_not"], "no partition of the disk holds a Linux");
    test.add("pc07", 7).await;
    test.add("pc08", 8).await;
    let inside = test.get("/machines/pc07/contents").await;
    assert_eq!(inside["partitions"][0]["size_bytes"], 1 << 20);
    let (status, refused) = test.ask(Method::GET, "/machines/pc08/contents", "").await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
}

#[tokio::test]
async fn a_refusal_is_one_sentence_with_the_status_that_fits() {
    let test = Test::new();
    test.add("pc07", 7).await;
    let machine = |name, mac| json!({ "name": name, "mac": mac });
    let refused = [
        (
            StatusCode::CONFLICT,
            test.post("/machines", machine("pc08", "525400000007"))
                .await,
        ),
        (
            StatusCode::CONFLICT,
            test.post("/machines", machine("pc07", "525400000008"))
                .await,
        ),
        (
            StatusCode::BAD_REQUEST,
            test.post("/machines", machine("PC08", "525400000008"))
                .await,
        ),
        (
            StatusCode::BAD_REQUEST,
            test.post("/machines", machine("pc08", "5254")).await,
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            test.post("/machines", json!({ "nam": "pc08" })).await,
        ),
        (
            StatusCode::BAD_REQUEST,
            test.ask(Method::POST, "/machines", "{").await,
        ),
        (
            StatusCode::NOT_FOUND,
            test.ask(Method::GET, "/machines/pc99", "").await,
        ),
        (
            StatusCode::NOT_FOUND,
            test.ask(Method::GET, "/images/win11", "").await,
        ),
        (
            StatusCode::NOT_FOUND,
            test.ask(Method::GET, "/nonsense", "").await,
        ),
        (
            StatusCode::METHOD_NOT_ALLOWED,
            test.ask(Method::PUT, "/machines", "").await,
        ),
        (
            StatusCode::BAD_REQUEST,
            test.patch("/machines/pc07", json!({ "mode": "keep" }))
                .await,
        ),
        (
            StatusCode::NOT_FOUND,
            test.patch("/machines/pc07", json!({ "image": "win11" }))
                .await,
        ),
        (
            StatusCode::BAD_REQUEST,
            test.ask(Method::GET, "/jobs/7", "").await,
        ),
    ];
    for (number, (expected, (status, body))) in refused.into_iter().enumerate() {
        assert_eq!(status, expected, "{number}: {body}");
        let sentence = body["error"].as_str().unwrap();
        assert!(
            !sentence.is_empty() && !sentence.contains('\n'),
            "{sentence}"
        );
    }
    assert_eq!(test.get("/machines").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_uuid_is_written_as_dmidecode_prints_it_and_kept_as_option_97_carries_it() {
    let test = Test::new();
    let id = test.add("pc07", 7).await;
    let text = "11223344-5566-7788-99aa-bbccddeeff00";
    let (status, shown) = test.patch("/machines/pc07", json!({ "uuid": text })).await;
    assert_eq!((status, &shown["uuid"]), (StatusCode::OK, &json!(text)));
    let kept = test.api.inventory.machine(id).unwrap().uuid.unwrap();
    assert_eq!(kept[..8], [0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77]);
}

#[tokio::test]
async fn a_machine_that_runs_is_neither_removed_nor_renamed() {
    let test = Test::new();
    let id = test.add("pc07", 7).await;
    test.runs(id);
    let (status, body) = test.delete("/machines/pc07").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        body["error"]
            .as_str()
            .unwrap()
            .starts_with("pc07 is running"),
        "{body}"
    );
    let (status, _) = test
        .patch("/machines/pc07", json!({ "name": "pc08" }))
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(test.live.closed.lock().unwrap().is_empty());
    assert_eq!(test.get("/machines/pc07").await["running"], true);
    // Its fixed address is its own affair at the next boot.
    let (status, _) = test
        .patch("/machines/pc07", json!({ "address": "10.0.0.7" }))
        .await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn removing_by_force_closes_the_machine_first() {
    let test = Test::new();
    let id = test.add("pc07", 7).await;
    test.runs(id);
    let (status, _) = test.delete("/machines/pc07?force=true").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(*test.live.closed.lock().unwrap(), [id]);
}

#[tokio::test]
async fn an_overlay_of_a_machine_that_runs_is_not_removed() {
    let test = Test::new();
    let id = test.add("pc07", 7).await;
    test.import("debian");
    let image = test
        .api
        .inventory
        .image(&ImageRef::parse("debian").unwrap())
        .unwrap();
    let overlay = test
        .api
        .inventory
        .add_overlay(id, &image, OverlayMode::Keep)
        .unwrap();
    let listed = test.get("/overlays").await;
    assert_eq!(listed[0]["machine"], "pc07");
    assert_eq!(listed[0]["image"], "debian@1");
    test.runs(id);
    let path = format!("/overlays/{}", overlay.uuid);
    assert_eq!(test.delete(&path).await.0, StatusCode::CONFLICT);
    test.live.while_closed(id, &mut || {});
    assert_eq!(test.delete(&path).await.0, StatusCode::NO_CONTENT);
    assert_eq!(test.get("/overlays").await, json!([]));
}

#[tokio::test]
async fn an_import_runs_on_its_own_and_tells_how_it_stands() {
    let test = Test::new();
    let source = test.directory.path().join("a.raw");
    std::fs::write(&source, vec![1; 3 << 20]).unwrap();
    let body = json!({ "name": "debian", "source": source, "comment": "first" });
    let (status, job) = test.post("/images", body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    assert_eq!(
        (&job["kind"], &job["subject"]),
        (&json!("import"), &json!("debian"))
    );
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    let ended = loop {
        let job = test.get(&path).await;
        if job["state"] != "running" {
            break job;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(ended["state"], "done", "{ended}");
    assert_eq!(ended["total_bytes"], 3 << 20);
    assert_eq!(ended["done_bytes"], ended["total_bytes"]);
    assert_eq!(ended["result"]["comment"], "first");
    let images = test.get("/images").await;
    assert_eq!(images[0], ended["result"]);
    assert_eq!(images[0]["current"], true);
    assert_eq!(test.get("/images/debian@1").await, images[0]);
    let (status, removed) = test.delete("/images/debian@1").await;
    assert_eq!((status, &removed), (StatusCode::OK, &images));
}

#[tokio::test]
async fn a_timeline_is_told_by_boots() {
    let test = Test::new();
    test.add("pc07", 7).await;
    let timeline = &test.api.timeline;
    timeline.record(mac(7), Stage::FirmwareAsked, "BIOS PXE");
    timeline.record_boot(mac(7), 1, Stage::LoggedIn, "");
    timeline.record(mac(7), Stage::FirmwareAsked, "BIOS PXE");
    let boots = test.get("/machines/pc07/timeline").await;
    assert_eq!(boots.as_array().unwrap().len(), 2);
    assert_eq!(boots[0]["generation"], 1);
    let first = &boots[0]["events"][0];
    assert_eq!(first["stage"], "firmware-asked");
    assert_eq!(first["detail"], "BIOS PXE");
    assert_eq!(first["since_began_seconds"], 0.0);
    test.delete("/machines/pc07").await;
    assert!(test.api.timeline.events(mac(7)).is_empty());
}

#[tokio::test]
async fn leases_sessions_and_status_name_their_machine() {
    let test = Test::new();
    let id = test.add("pc07", 7).await;
    let lease = dhcp::Lease {
        mac: mac(7),
        address: [10, 0, 0, 7].into(),
        expires: std::time::SystemTime::UNIX_EPOCH,
        uuid: None,
        host_name: Some("debian".into()),
    };
    LeaseStore::save(&*test.api.inventory.store(), &lease).unwrap();
    test.runs(id);
    let leases = test.get("/leases").await;
    assert_eq!(
        (&leases[0]["machine"], &leases[0]["expired"]),
        (&json!("pc07"), &json!(true))
    );
    let sessions = test.get("/sessions").await;
    assert_eq!(sessions[0]["machine"], "pc07");
    let status = test.get("/status").await;
    assert_eq!(status["machines_running"], json!(["pc07"]));
    assert_eq!(status["listens"][0]["address"], "10.0.0.1:3260");
    assert_eq!(status["foreign_dhcp_servers"], json!(["10.0.0.254"]));
    assert_eq!(
        status["malformed"],
        json!([{ "service": "dhcp", "count": 7 }])
    );
}

#[tokio::test]
async fn on_a_loopback_address_web_pages_are_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let test = Test::new();
    let bound = Listeners::bind(None, Some("127.0.0.1:0".parse().unwrap()))
        .await
        .unwrap();
    let door = bound.doors().remove(0).address;
    let address = door.strip_prefix("http://").unwrap().to_owned();
    let server = bound.serve(test.api.clone());
    let ask = async |headers: &str| {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = format!("GET {PREFIX}/status HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ask(&format!("Host: {address}\r\n")).await, "200");
    assert_eq!(ask("Host: rebound.example.org\r\n").await, "403");
    let from_a_page = format!("Host: {address}\r\nOrigin: http://example.org\r\n");
    assert_eq!(ask(&from_a_page).await, "403");
    server.stop().await;
}

#[tokio::test]
async fn what_a_target_cannot_be_is_refused_with_the_status_that_fits() {
    let test = Test::new();
    let file = test.directory.path().join("a.img");
    std::fs::write(&file, vec![0; 4096]).unwrap();
    let (status, added) = test.post("/targets", json!({ "name": "data" })).await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    assert_eq!(added["target"]["iqn"], "iqn.2026-01.lab:target.data");
    assert_eq!(added["target"]["portals"], json!(["10.0.0.1:3260"]));
    let refused = [
        (json!({ "name": "data" }), StatusCode::CONFLICT),
        (json!({ "name": "No Name" }), StatusCode::BAD_REQUEST),
        (
            json!({ "name": "x", "iqn": "disk" }),
            StatusCode::BAD_REQUEST,
        ),
        // A machine may be called so one day.
        (
            json!({ "name": "x", "iqn": "iqn.2026-01.lab:pc7" }),
            StatusCode::BAD_REQUEST,
        ),
        (
            json!({ "name": "x", "chap": { "name": "me", "secret": "short" } }),
            StatusCode::BAD_REQUEST,
        ),
        (
            json!({ "name": "x", "mutual": { "name": "us" } }),
            StatusCode::BAD_REQUEST,
        ),
    ];
    for (body, expected) in refused {
        let (status, said) = test.post("/targets", body).await;
        assert_eq!(status, expected, "{said}");
    }
    let lun = |body: Value| async {
        let (status, said) = test.post("/targets/data/luns", body).await;
        (status, said.to_string())
    };
    let (status, said) = lun(json!({ "file": file })).await;
    assert_eq!(status, StatusCode::CREATED, "{said}");
    let state = test.directory.path().join("data/state.db");
    let refused = [
        (json!({ "file": "a.img" }), StatusCode::BAD_REQUEST, "root"),
        (
            json!({ "file": "/nowhere" }),
            StatusCode::CONFLICT,
            "does not exist",
        ),
        (
            json!({ "file": file, "kind": "read-only" }),
            StatusCode::CONFLICT,
            "LUN 0 of",
        ),
        (
            json!({ "file": state }),
            StatusCode::CONFLICT,
            "belongs to diskless",
        ),
        (
            json!({ "file": file, "block_bytes": 520 }),
            StatusCode::BAD_REQUEST,
            "512 or 4096",
        ),
    ];
    for (body, expected, words) in refused {
        let (status, said) = lun(body).await;
        assert_eq!(status, expected, "{said}");
        assert!(said.contains(words), "{said}");
    }
    for path in ["/targets/nobody", "/targets/data/luns/7"] {
        let (status, _) = test.delete(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(
        test.get("/targets/data").await["luns"][0]["size_bytes"],
        4096
    );
    assert_eq!(test.delete("/targets/data").await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_machine_boots_a_disk_in_place_of_an_image() {
    let test = Test::new();
    test.add("pc07", 7).await;
    let disk = json!({ "name": "win", "size_bytes": 1 << 30 });
    let (status, made) = test.post("/disks", disk).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["kind"], "raw");
    let (status, pc) = test.patch("/machines/pc07", json!({ "disk": "win" })).await;
    assert_eq!(status, StatusCode::OK, "{pc}");
    assert_eq!((&pc["disk"], &pc["image"]), (&json!("win"), &Value::Null));
    assert_eq!(
        test.get("/disks/win").await["users"],
        json!(["machine pc07"])
    );
    let (status, refusal) = test.delete("/disks/win").await;
    assert_eq!(status, StatusCode::CONFLICT, "{refusal}");
    let both = json!({ "disk": "win", "mode": "keep" });
    let (status, _) = test.patch("/machines/pc07", both).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    test.patch("/machines/pc07", json!({ "disk": null })).await;
    let (status, _) = test.delete("/disks/win").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(test.get("/disks").await, json!([]));
}

#[tokio::test]
async fn a_disk_needs_a_size_or_a_parent() {
    let test = Test::new();
    for body in [
        json!({ "name": "win" }),
        json!({ "name": "win", "size_bytes": 1 << 30, "parent": "other" }),
        json!({ "name": "Win", "size_bytes": 1 << 30 }),
    ] {
        let (status, refusal) = test.post("/disks", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{refusal}");
    }
}
