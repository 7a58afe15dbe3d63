//! What goes wrong around the target: disks that hang, files that shrink,
//! peers that vanish, sites that panic or take their time.

use std::sync::Condvar;

use disk::Raw;

use super::*;

/// A disk whose flush hangs until the gate is opened.
struct Gated {
    ram: Ram,
    gate: Arc<Gate>,
}

#[derive(Default)]
pub(super) struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
    /// Flushes that have come to it.
    comers: AtomicU32,
}

impl Gate {
    fn pass(&self) {
        self.comers.fetch_add(1, Ordering::SeqCst);
        let mut is_open = self.is_open.lock().unwrap();
        while !*is_open {
            is_open = self.changed.wait(is_open).unwrap();
        }
    }

    pub(super) fn has_comers(&self) -> bool {
        self.comers.load(Ordering::SeqCst) > 0
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// Opens the gate when a test ends, however it ends.
pub(super) struct OpenAtLast(pub(super) Arc<Gate>);

impl Drop for OpenAtLast {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Disk for Gated {
    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }
    fn access(&self) -> Access {
        Access::ReadWrite
    }
    fn durability(&self) -> Durability {
        Durability::WriteBack
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.ram.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.ram.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.gate.pass();
        Ok(())
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.ram.unmap(offset, bytes)
    }
}

pub(super) fn gated() -> (Arc<dyn Disk>, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let disk = Gated {
        ram: Ram::new(1 << 20),
        gate: gate.clone(),
    };
    (Arc::new(disk), gate)
}

const LOOPBACK: &str = "127.0.0.1:0";

// Disks.

#[test]
fn a_machine_gets_in_again_while_its_flush_hangs_and_close_waits_for_it() {
    let (disk, gate) = gated();
    let lab = Lab::over(vec![disk], LOOPBACK, Shape::default());
    let _open = OpenAtLast(gate.clone());
    // The loader's flush hangs, then the system's, which comes back thrice.
    let mut old = lab.initiator(1);
    old.start(&FLUSH, &[], 0);
    Lab::eventually("the flush has begun", || {
        gate.comers.load(Ordering::SeqCst) == 1
    });
    let start = Instant::now();
    let mut new = lab.initiator(1);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "it had not to wait"
    );
    assert!(old.is_closed());
    assert_eq!(new.command(&write10(0, 1), &[1; 512], 0).status, 0);
    assert_eq!(lab.server().sessions().list().len(), 1);
    // Who closes sessions waits for the flush as well.
    let sessions = lab.server().sessions();
    let closer = thread::spawn(move || sessions.close_where(|_| true));
    assert!(new.is_closed());
    thread::sleep(Duration::from_millis(100));
    assert!(!closer.is_finished(), "a flush is still on the disk");
    gate.open();
    assert_eq!(closer.join().unwrap(), 2);
    assert_eq!(lab.server().sessions().count(), 0);
}

#[test]
fn who_comes_back_has_a_place_while_its_old_flush_hangs() {
    for (sessions, sessions_per_target) in [(1, 9), (9, 1)] {
        let (disk, gate) = gated();
        let limits = Limits {
            sessions,
            sessions_per_target,
            ..Limits::default()
        };
        let shape = Shape {
            limits,
            ..Shape::default()
        };
        let lab = Lab::over(vec![disk], LOOPBACK, shape);
        let _open = OpenAtLast(gate.clone());
        let mut old = lab.initiator(1);
        old.start(&FLUSH, &[], 0);
        Lab::eventually("the flush has begun", || {
            gate.comers.load(Ordering::SeqCst) == 1
        });
        let _new = lab.initiator(1);
        assert_eq!(lab.server().sessions().count(), 2, "the flush still hangs");
        // Anybody else finds the place taken.
        assert_eq!(Initiator::connect(lab.portal, 2).login(), [3, 2]);
    }
}

#[test]
fn a_disk_that_hangs_keeps_only_some_of_the_workers() {
    let (hanging, gate) = gated();
    let (other, free) = gated();
    free.open();
    let lab = Lab::over(vec![hanging, other], LOOPBACK, Shape::default());
    let _open = OpenAtLast(gate);
    let mut a = lab.initiator(1);
    for _ in 0..50 {
        a.start(&FLUSH, &[], 0);
    }
    let mut b = lab.initiator(2);
    b.lun = 1;
    assert_eq!(b.command(&[0; 6], &[], 0).status, 2, "unit attention");
    assert_eq!(b.command(&FLUSH, &[], 0).status, 0);
}

#[test]
fn an_image_cut_off_under_us_closes_the_connection_and_is_a_medium_error_ever_after() {
    let bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_be_bytes).collect();
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), &bytes).unwrap();
    let disk = Raw::open(image.path(), Access::ReadOnly).unwrap();
    let mut mapped = Vec::new();
    assert!(
        disk.segments(0, 4096, &mut mapped).unwrap(),
        "a test of mappings"
    );
    drop(mapped);
    let lab = Lab::over(vec![Arc::new(disk)], LOOPBACK, Shape::default());
    let mut initiator = lab.initiator(1);
    let all = initiator.command(&read10(0, 512), &[], 512 * 512);
    assert_eq!(all.data, bytes[..512 * 512]);

    let half = 64 << 10;
    image.as_file().set_len(half as u64).unwrap();
    // It begins before the cut and ends behind it: no byte may be made up.
    initiator.start(&read10(100, 512), &[], 512 * 512);
    let mut came = Vec::new();
    let _ = initiator.stream.read_to_end(&mut came);
    let came = came.get(48..).unwrap_or(&[]);
    assert!(came.len() <= half - 100 * 512);
    assert_eq!(came, &bytes[100 * 512..][..came.len()]);

    let mut again = lab.initiator(1);
    let answer = again.command(&read10(100, 512), &[], 512 * 512);
    assert_eq!((answer.status, answer.data[4]), (2, 3), "medium error");
    let answer = again.command(&read10(0, 100), &[], 100 * 512);
    assert_eq!(answer.data, bytes[..100 * 512], "what is there is served");
}

// Sites.

#[test]
fn a_site_that_panics_costs_its_login_and_no_other() {
    let limits = Limits {
        login_threads: 1,
        ..Limits::default()
    };
    let lab = Lab::shaped(Shape {
        limits,
        ..Shape::default()
    });
    let mut other = lab.initiator(1);
    for broken in [true, true, false] {
        lab.site.is_broken.store(broken, Ordering::SeqCst);
        let answer = Initiator::connect(lab.portal, 2).try_login();
        assert_eq!(answer, (!broken).then_some([0, 0]));
    }
    assert_eq!(other.command(&[0; 6], &[], 0).status, 0);
    Lab::eventually("the broken logins left nothing behind", || {
        lab.server().sessions().count() <= 2
    });
}

#[test]
fn logins_of_one_target_do_not_take_every_thread() {
    let limits = Limits {
        login_threads: 4,
        ..Limits::default()
    };
    let lab = Lab::shaped(Shape {
        limits,
        ..Shape::default()
    });
    // The site takes its time: two are inside `open`, or wait for it.
    let slow = lab.site.machine.lock().unwrap();
    let mut inside: Vec<_> = (1..=2).map(|n| Initiator::connect(lab.portal, n)).collect();
    for (n, initiator) in inside.iter_mut().enumerate() {
        initiator.start_login();
        Lab::eventually("it is inside", || lab.server().sessions().count() == n + 1);
    }
    assert_eq!(Initiator::connect(lab.portal, 3).login(), [3, 1]);
    drop(slow);
    for initiator in &mut inside {
        assert_eq!(initiator.login_answer(), Some([0, 0]));
    }
    assert_eq!(Initiator::connect(lab.portal, 3).login(), [0, 0]);
}

#[test]
fn many_logins_of_one_target_at_once_wait_for_each_other() {
    let lab = Lab::new();
    let mut logins: Vec<_> = (0..60)
        .map(|qualifier| Initiator::connect(lab.portal, qualifier))
        .collect();
    let opening = lab.site.machine.lock().unwrap();
    for login in &mut logins {
        login.start_login();
    }
    thread::sleep(Duration::from_millis(100));
    drop(opening);
    for login in &mut logins {
        assert_eq!(login.login_answer(), Some([0, 0]));
    }
}

#[test]
fn of_two_logins_of_one_nexus_that_wait_the_later_wins() {
    let lab = Lab::new();
    let slow = lab.site.machine.lock().unwrap();
    let mut logins: Vec<_> = (0..3).map(|_| Initiator::connect(lab.portal, 1)).collect();
    logins[0].start_login();
    Lab::eventually("the first is inside", || {
        lab.server().sessions().count() == 1
    });
    logins[1].start_login();
    // A moment, so that it is the second to arrive, and waits for the first.
    thread::sleep(Duration::from_millis(200));
    logins[2].start_login();
    let start = Instant::now();
    assert_eq!(logins[1].login_answer(), Some([3, 1]), "given up already");
    assert!(start.elapsed() < Duration::from_secs(8), "at once");
    drop(slow);
    assert_eq!(logins[0].login_answer(), Some([3, 1]));
    assert_eq!(logins[2].login_answer(), Some([0, 0]));
}

#[test]
fn one_target_does_not_take_every_session() {
    let limits = Limits {
        sessions_per_target: 2,
        ..Limits::default()
    };
    let lab = Lab::shaped(Shape {
        limits,
        ..Shape::default()
    });
    let _sessions = (lab.initiator(1), lab.initiator(2));
    assert_eq!(Initiator::connect(lab.portal, 3).login(), [3, 2]);
    lab.initiator(2);
}

#[test]
fn discovery_does_not_take_every_session() {
    let limits = Limits {
        sessions: 8,
        ..Limits::default()
    };
    let lab = Lab::shaped(Shape {
        limits,
        ..Shape::default()
    });
    let mut answers = vec![];
    let mut kept = vec![];
    for qualifier in 0..8 {
        let mut initiator = Initiator::connect(lab.portal, qualifier);
        let mut bhs = [0; 48];
        (bhs[0], bhs[1], bhs[13]) = (0x43, 0x87, qualifier);
        let text = b"InitiatorName=iqn.2026-01.lab:i\0SessionType=Discovery\0";
        initiator.send(bhs, text);
        answers.push(initiator.login_answer().unwrap());
        kept.push(initiator);
    }
    let entered = answers.iter().filter(|answer| **answer == [0, 0]).count();
    assert_eq!(entered, 2, "{answers:?}");
    lab.initiator(1);
}

// Peers.

#[test]
fn a_peer_that_goes_on_after_its_logout_is_not_heard_for_ever() {
    let lab = Lab::new();
    let mut initiator = lab.initiator(1);
    let mut logout = [0; 48];
    (logout[0], logout[1]) = (0x46, 0x80);
    logout[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    initiator.send(logout, &[]);
    assert_eq!(initiator.receive().unwrap().bhs[0], 0x26);
    // Its session is over, whatever it does.
    Lab::eventually("the session has ended", || {
        lab.server().sessions().count() == 0
    });
    let start = Instant::now();
    while initiator.stream.write_all(&[0; 48]).is_ok() {
        thread::sleep(Duration::from_millis(20));
        assert!(start.elapsed() < Duration::from_secs(20), "still heard");
    }
}

/// Set for the copy of this test that runs in a network of its own.
const IN_OWN_NETWORK: &str = "ISCSI_JUDGES_IN_OWN_NETWORK";

/// Runs a step of a test that needs to be root; whether it could.
fn may(tool: &str, arguments: &[&str]) -> bool {
    match run(tool, arguments) {
        Some((true, _)) => true,
        Some((false, said)) => {
            let sentence = format!("{tool} {arguments:?} failed: {said}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{sentence}");
            eprintln!("{sentence}");
            false
        }
        None => false,
    }
}

/// The far end of a cable, in a network namespace; the near end is ours.
struct FarEnd(String);

impl FarEnd {
    fn plug() -> Option<FarEnd> {
        let far = FarEnd(format!("iscsi-{}", std::process::id()));
        let name = far.0.as_str();
        let steps: [&[&str]; 6] = [
            &["netns", "add", name],
            &[
                "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", name,
            ],
            &["addr", "add", "192.0.2.1/30", "dev", "near"],
            &["link", "set", "near", "up"],
            &["-n", name, "addr", "add", "192.0.2.2/30", "dev", "far"],
            &["-n", name, "link", "set", "far", "up"],
        ];
        steps.iter().all(|step| may("ip", step)).then_some(far)
    }

    fn cut(&self) {
        run("ip", &["-n", &self.0, "link", "set", "far", "down"]).unwrap();
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.0]);
    }
}

#[test]
fn a_peer_whose_cable_is_cut_is_given_up() {
    if std::env::var_os(IN_OWN_NETWORK).is_none() {
        if !may("unshare", &["--net", "true"]) {
            return;
        }
        let copy = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "trouble::a_peer_whose_cable_is_cut_is_given_up"])
            .env(IN_OWN_NETWORK, "yes")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&copy.stdout);
        assert!(copy.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let Some(cable) = FarEnd::plug() else { return };
    let disk = Arc::new(Ram::new(1 << 20));
    let limits = Limits {
        silence: Duration::from_secs(2),
        ..Limits::default()
    };
    let shape = Shape {
        limits,
        ..Shape::default()
    };
    let lab = Lab::over(vec![disk], "192.0.2.1:0", shape);
    // It logs in, and then has nothing more to say.
    let login = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(login.path(), Initiator::login_bytes(1, 0)).unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/192.0.2.1/{}; cat {} >&3; exec sleep 60",
        lab.portal.port(),
        login.path().display()
    );
    let mut peer = Command::new("ip")
        .args(["netns", "exec", &cable.0, "bash", "-c", &script])
        .spawn()
        .unwrap();
    Lab::eventually("it has logged in", || {
        lab.server().sessions().list().len() == 1
    });
    thread::sleep(Duration::from_secs(3));
    let lives = lab.server().sessions().list().len();
    cable.cut();
    let start = Instant::now();
    let mut ended = false;
    while start.elapsed() < Duration::from_secs(20) && !ended {
        thread::sleep(Duration::from_millis(50));
        ended = lab.server().sessions().count() == 0;
    }
    let _ = peer.kill();
    let _ = peer.wait();
    assert_eq!(lives, 1, "who only says nothing is no dead peer");
    assert!(ended, "a dead peer keeps its session");
}
