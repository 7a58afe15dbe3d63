//! Doors for the fuzz targets of `fuzz/`: each takes bytes a peer could send,
//! in memory, without sockets. Compiled for them, and for the tests, which
//! replay the corpus. A door panics when what must always hold does not.

// What an outbox points at is read as a kernel would.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use scsi::disk::{Access, Disk, DiskError, Durability, Geometry, Ram, Segment};
use scsi::{Device, Identity, Medium, Provisioning, Shape};

use crate::chap::Challenges;
use crate::keys::{self, Parameters};
use crate::login::{Entrance, LoginStatus, Negotiation, Progress, Site};
use crate::outbox::{Gone, Outbox, Part, Sink};
use crate::server::Stats;
use crate::session::{Data, Next, Session, Start};
use crate::target::Units;
use crate::task::Job;
use crate::wire::{BHS_BYTES, Bhs, Lengths, NO_TAG, Request, padding};
use crate::{
    Attachment, Authentication, ChapSecrets, Iqn, LogicalUnit, Login, LoginRefusal, Secret, Target,
    Targets, chap,
};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 5] = [
    ("header", header),
    ("keys", keys),
    ("chap", chap_values),
    ("login", login),
    ("session", session),
];

/// A basic header segment.
pub fn header(bytes: &[u8]) {
    let Some(bhs) = bytes.first_chunk::<BHS_BYTES>() else {
        return;
    };
    let lengths = Lengths::parse(bhs);
    assert!(lengths.pdu_bytes() >= BHS_BYTES + lengths.data_bytes);
    let _ = Request::parse(bhs);
}

/// Text keys, a name, and the answers to all of them.
pub fn keys(bytes: &[u8]) {
    if let Ok(name) = str::from_utf8(bytes)
        && let Ok(iqn) = Iqn::parse(name)
    {
        assert_eq!(Iqn::parse(iqn.as_str()).as_ref(), Ok(&iqn));
    }
    let Ok(pairs) = keys::parse(bytes) else {
        return;
    };
    let mut parameters = Parameters::default();
    let mut text = Vec::new();
    for (key, value) in &pairs {
        let _ = parameters.answer(key, value);
        keys::emit(&mut text, key, value);
    }
    assert_eq!(keys::parse(&text), Ok(pairs), "keys keep their values");
    assert!((512..1 << 24).contains(&parameters.max_send_data_segment_length));
    assert!(parameters.first_burst_length <= parameters.max_burst_length);
}

/// A binary value.
pub fn chap_values(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    if let Some(value) = chap::binary(text) {
        assert!(value.len() <= 1024);
    }
}

/// Login PDUs: a byte says what the site asks for, the rest is [`Pdus`].
pub fn login(bytes: &[u8]) {
    let Some((control, rest)) = bytes.split_first() else {
        return;
    };
    let fuzzed = Fuzzed::new(match control & 1 {
        0 => Authentication::None,
        _ => Authentication::Chap,
    });
    let mut negotiation = Some(Negotiation::new(ADDRESS, ADDRESS));
    let mut pdus = Pdus(rest);
    while let (Some(running), Some((_, bhs, data))) = (negotiation.take(), pdus.next()) {
        let Ok(Request::Login(request)) = Request::parse(&bhs) else {
            return;
        };
        let (next, progress) = running.receive(&request, data, &site(&fuzzed));
        negotiation = next;
        match progress {
            Progress::Reply(bytes) | Progress::Refuse(bytes, _) => {
                assert_eq!(Heard::all(&bytes, 8192).len(), 1);
            }
            Progress::Enter(entrance) => {
                let (answer, _) = entrance.accept(1, 8);
                assert_eq!(Heard::all(&answer, 8192).len(), 1);
            }
        }
    }
}

/// Two sessions of one target (or one of a discovery), whatever they send: a
/// byte says how they have logged in, the rest is [`Pdus`].
pub fn session(bytes: &[u8]) {
    let Some((control, rest)) = bytes.split_first() else {
        return;
    };
    let entrances = [1, 2].map(|initiator| enter(*control, initiator));
    let target = Arc::new(target());
    let units = match entrances[0].login.target {
        Some(_) => target.snapshot(),
        None => Arc::new(Units::none()),
    };
    let fuzzed = Fuzzed::new(Authentication::None);
    let stats = Stats::default();
    let mut pairs = entrances
        .each_ref()
        .map(|entrance| Pair::new(entrance, (&target, &units), &fuzzed, &stats));
    for (control, bhs, data) in Pdus(rest) {
        let pair = &mut pairs[usize::from(control & SECOND != 0)];
        if !pair.receive(control, bhs, data) {
            break;
        }
    }
    for pair in &mut pairs {
        pair.run_jobs();
        pair.session.call_off();
        assert_eq!(pair.session.running(), 0, "every job has come back");
    }
}

/// Of the byte before each PDU: it comes from the second session.
const SECOND: u8 = 0x01;
/// Its CmdSN is as it stands, not the next one.
const OWN_CMD_SN: u8 = 0x02;
/// Workers are done first.
const WORK: u8 = 0x04;
/// It answers the R2T heard last.
const ANSWERS: u8 = 0x08;

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3260);
/// Commands a session may have under way.
const WINDOW: u32 = 8;
/// Small: what goes over a whole disk is to be quick.
const DISK_BYTES: usize = 64 << 10;
const TARGET: &str = "iqn.2026-01.lab:fuzzed";

/// PDUs in a row, each after a byte that says how to take it. A length that
/// lies is the connection's to refuse: here the header gets the true one.
struct Pdus<'a>(&'a [u8]);

impl<'a> Iterator for Pdus<'a> {
    type Item = (u8, Bhs, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (control, rest) = self.0.split_first()?;
        let (bhs, rest) = rest.split_first_chunk::<BHS_BYTES>()?;
        let mut bhs = *bhs;
        let (data, rest) = rest.split_at(Lengths::parse(&bhs).data_bytes.min(rest.len()));
        self.0 = rest;
        bhs[4] = 0;
        let length = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
        bhs[5..8].copy_from_slice(&length[1..]);
        Some((*control, bhs, data))
    }
}

/// A site with one target.
struct Fuzzed {
    authentication: Authentication,
    challenges: Challenges,
}

impl Fuzzed {
    fn new(authentication: Authentication) -> Fuzzed {
        Fuzzed {
            authentication,
            challenges: Challenges::default(),
        }
    }
}

impl Targets for Fuzzed {
    fn authentication(&self, _: &Login) -> Authentication {
        self.authentication
    }
    fn chap_secret(&self, _: &Login, chap_name: &str) -> Option<ChapSecrets> {
        (chap_name == "pc1").then(|| ChapSecrets {
            initiator: Secret::new("secretsecret1"),
            target: Some(("tuser".to_owned(), Secret::new("targetsecret2"))),
        })
    }
    fn open(&self, _: &Login) -> Result<Attachment, LoginRefusal> {
        Err(LoginRefusal::NotFound)
    }
    fn discover(&self, _: &Login) -> Vec<String> {
        (0..300).map(|n| format!("{TARGET}-{n}")).collect()
    }
}

fn site(fuzzed: &Fuzzed) -> Site<'_> {
    Site {
        targets: fuzzed,
        challenges: &fuzzed.challenges,
        rejoin: &|_, tsih, _| match tsih {
            1 => Ok(Parameters::default().of_session()),
            _ => Err(LoginStatus::NO_SUCH_SESSION),
        },
        // The fact sheet's vector: id 17, challenge 00..0F.
        random: &|| {
            let mut bytes = [0x17; chap::CHALLENGE_BYTES + 1];
            for (at, byte) in (0u8..).zip(&mut bytes[1..]) {
                *byte = at;
            }
            Some(bytes)
        },
    }
}

/// A golden image, as far as a session can tell: mapped, never written.
struct Mapped(Ram, &'static [u8]);

impl Disk for Mapped {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn access(&self) -> Access {
        Access::ReadOnly
    }
    fn durability(&self) -> Durability {
        self.0.durability()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(offset, buffer)
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }
    fn unmap(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.0.read(offset, &mut [])?;
        self.0.read(offset + bytes, &mut [])?;
        // Pieces of 12 KiB, as an overlay has them.
        let mut left = usize::try_from(bytes).unwrap_or(0);
        while left > 0 {
            let now = left.min(self.1.len());
            segments.push(Segment::new(self.1.as_ptr(), now));
            left -= now;
        }
        Ok(true)
    }
}

/// A target with a unit of every kind.
fn target() -> Target {
    let disk = || Ram::new(DISK_BYTES).with_block_bytes(512, 4096);
    let shape = Shape::default();
    let drive = Ram::new(DISK_BYTES).with_block_bytes(2048, 2048);
    let removable = Shape {
        medium: Medium::Removable,
        provisioning: Provisioning::Full,
        ..shape
    };
    let optical = Shape {
        device: Device::Optical,
        medium: Medium::Removable,
        access: Access::ReadOnly,
        ..shape
    };
    static ZEROS: [u8; 12 << 10] = [0; 12 << 10];
    let units: [(Arc<dyn Disk>, Shape); 4] = [
        (Arc::new(disk()), shape),
        (Arc::new(Mapped(Ram::new(DISK_BYTES), &ZEROS)), shape),
        (Arc::new(disk()), removable),
        (Arc::new(drive), optical),
    ];
    let unit = |(disk, shape)| {
        let identity = Identity::new([7; 16], "FUZZED");
        Arc::new(LogicalUnit::shaped(disk, identity, shape))
    };
    match Target::new(TARGET, (0..).zip(units.map(unit))) {
        Ok(target) => target,
        Err(error) => panic!("{error}"),
    }
}

/// Logs in; how, says `control`.
fn enter(control: u8, initiator: u8) -> Box<Entrance> {
    let is = |bit: u8, yes: &'static str, no: &'static str| match control & bit {
        0 => no,
        _ => yes,
    };
    let text = format!(
        "InitiatorName=iqn.2026-01.lab:i{initiator}\0{}InitialR2T={}\0ImmediateData={}\0\
         FirstBurstLength={}\0MaxBurstLength={}\0MaxRecvDataSegmentLength={}\0\
         iSCSIProtocolLevel={}\0",
        is(
            0x01,
            "SessionType=Discovery\0",
            "TargetName=iqn.2026-01.lab:fuzzed\0"
        ),
        is(0x02, "Yes", "No"),
        is(0x04, "No", "Yes"),
        is(0x08, "512", "65536"),
        is(0x10, "1024", "262144"),
        is(0x20, "512", "65536"),
        is(0x40, "2", "1"),
    );
    let mut bhs: Bhs = [0; BHS_BYTES];
    bhs[..2].copy_from_slice(&[0x43, 0x87]); // from the operational stage on
    bhs[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, initiator]);
    let fuzzed = Fuzzed::new(Authentication::None);
    let Ok(Request::Login(request)) = Request::parse(&bhs) else {
        unreachable!("it is a login request");
    };
    let negotiation = Negotiation::new(ADDRESS, ADDRESS);
    match negotiation
        .receive(&request, text.as_bytes(), &site(&fuzzed))
        .1
    {
        Progress::Enter(entrance) => entrance,
        _ => panic!("this login is right"),
    }
}

/// Where an outbox empties itself to.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Vec<u8>>>);

impl Sink for Wire {
    fn send(&mut self, parts: &mut [Part]) -> Result<(), Gone> {
        let mut sent = self.0.borrow_mut();
        for part in parts {
            // SAFETY: an outbox points at bytes that stay during the call;
            // the mapped ones here never change.
            let bytes = unsafe { std::slice::from_raw_parts(part.start(), part.len()) };
            sent.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// A session and what its initiator knows.
struct Pair<'t> {
    session: Session<'t>,
    units: &'t Units,
    out: Outbox<'t>,
    wire: Wire,
    jobs: Vec<Job>,
    longest: usize,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    /// The R2T heard last.
    r2t: Option<Heard>,
}

impl<'t> Pair<'t> {
    fn new(
        entrance: &'t Entrance,
        (target, units): (&'t Arc<Target>, &'t Units),
        targets: &'t dyn Targets,
        stats: &'t Stats,
    ) -> Pair<'t> {
        let (_, stat_sn) = entrance.accept(1, WINDOW);
        let wire = Wire::default();
        let mut pair = Pair {
            session: Session::new(Start {
                login: &entrance.login,
                parameters: entrance.parameters.clone(),
                target: entrance.login.target.is_some().then_some(target),
                targets,
                portals: &[],
                stats,
                cid: entrance.cid(),
                window: WINDOW,
                stat_sn,
                exp_cmd_sn: entrance.exp_cmd_sn,
            }),
            out: Outbox::new(wire.clone()),
            wire,
            jobs: Vec::new(),
            longest: usize::try_from(entrance.parameters.max_send_data_segment_length)
                .unwrap_or(usize::MAX),
            stat_sn,
            exp_cmd_sn: entrance.exp_cmd_sn,
            max_cmd_sn: entrance.exp_cmd_sn.wrapping_add(WINDOW - 1),
            r2t: None,
            units,
        };
        pair.session.move_on(&Units::none(), units, &mut pair.out);
        pair
    }

    /// Hands a PDU over; whether the session goes on.
    fn receive(&mut self, control: u8, mut bhs: Bhs, data: &[u8]) -> bool {
        if control & WORK != 0 {
            self.run_jobs();
        }
        if control & OWN_CMD_SN == 0 && bhs[0] & 0x3f != 0x05 {
            bhs[24..28].copy_from_slice(&self.exp_cmd_sn.to_be_bytes());
        }
        if control & ANSWERS != 0
            && let Some(r2t) = &self.r2t
        {
            bhs[8..24].copy_from_slice(&r2t.0[8..24]); // LUN and both tags
            bhs[40..44].copy_from_slice(&r2t.0[40..44]); // buffer offset
        }
        let data = Data::Intact(data);
        let next = self.session.receive(self.units, &bhs, data, &mut self.out);
        self.jobs.extend(self.session.jobs());
        self.hear();
        assert!(self.jobs.len() <= 64, "jobs are bounded by the window");
        next == Next::Continue
    }

    /// What workers do meanwhile.
    fn run_jobs(&mut self) {
        while !self.jobs.is_empty() {
            for job in std::mem::take(&mut self.jobs) {
                self.session.finish(self.units, job.run(), &mut self.out);
            }
            self.jobs.extend(self.session.jobs());
            self.hear();
        }
    }

    /// Looks at every answer as an initiator would.
    fn hear(&mut self) {
        let _ = self.out.flush();
        let bytes = self.wire.0.take();
        for heard in Heard::all(&bytes, self.longest) {
            if heard.takes_stat_sn() {
                assert_eq!(heard.word(24), self.stat_sn, "StatSN goes up one by one");
                self.stat_sn = self.stat_sn.wrapping_add(1);
            }
            let (exp_cmd_sn, max_cmd_sn) = (heard.word(28), heard.word(32));
            let went = |from: u32, to: u32| to.wrapping_sub(from) < 0x8000_0000;
            assert!(
                went(self.exp_cmd_sn, exp_cmd_sn),
                "ExpCmdSN never goes back"
            );
            assert!(
                went(self.max_cmd_sn, max_cmd_sn),
                "MaxCmdSN never goes back"
            );
            let window = max_cmd_sn.wrapping_sub(exp_cmd_sn).wrapping_add(1);
            assert!(window <= WINDOW, "a window of {window}");
            (self.exp_cmd_sn, self.max_cmd_sn) = (exp_cmd_sn, max_cmd_sn);
            if heard.opcode() == 0x31 {
                assert!(heard.word(44) > 0, "an R2T asks for something");
                self.r2t = Some(heard);
            }
        }
    }
}

/// The header of something heard.
struct Heard(Bhs);

impl Heard {
    /// Takes bytes apart that were sent; every PDU is whole.
    fn all(bytes: &[u8], longest: usize) -> Vec<Heard> {
        let mut rest = bytes;
        let mut all = Vec::new();
        while !rest.is_empty() {
            let Some(bhs) = rest.first_chunk::<BHS_BYTES>() else {
                panic!("{} bytes are no header", rest.len());
            };
            let heard = Heard(*bhs);
            let lengths = Lengths::parse(bhs);
            assert!(lengths.data_bytes <= longest, "{}", lengths.data_bytes);
            assert!(matches!(heard.opcode(), 0x20..=0x26 | 0x31 | 0x32 | 0x3f));
            let end = BHS_BYTES + lengths.data_bytes;
            let padding = &rest[end..end + padding(lengths.data_bytes)];
            assert!(padding.iter().all(|byte| *byte == 0));
            rest = &rest[lengths.pdu_bytes()..];
            all.push(heard);
        }
        all
    }

    fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    fn word(&self, at: usize) -> u32 {
        let Heard(bhs) = self;
        u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
    }

    /// Whether it carries status, and so a StatSN of its own (RFC 7143
    /// section 4.2.2.2).
    fn takes_stat_sn(&self) -> bool {
        match self.opcode() {
            0x20 => self.word(16) != NO_TAG,
            0x25 => self.0[1] & 1 != 0,
            0x31 => false,
            _ => true,
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_survived() {
        corpus::replay(&DOORS);
    }
}
