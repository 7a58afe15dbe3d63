//! The login phase of one connection (RFC 7143 section 6).
//!
//! Negotiates keys and authenticates; owns no socket and no clock. Ends with
//! [`Progress::Enter`], which carries the negotiated [`Parameters`].
//!
//! Invariant: nothing about a target is revealed before the initiator has
//! proved what [`Targets::authentication`] asked for, but for what
//! [`Targets::redirect`] says to everybody.

use std::collections::HashSet;
use std::net::SocketAddr;

use crate::chap::{self, Challenge, Challenges, Proof};
use crate::keys::{self, Answer, Parameters};
use crate::wire::{LoginRequest, LoginResponse, Numbers};
use crate::{Authentication, ChapAlgorithm, Iqn, Login, Refused, Targets};

mod status;

pub use status::LoginStatus;
pub(crate) use status::Refusal;

/// Longest data segment of a login PDU, either way (RFC 7143 section 13.12).
pub(crate) const MAX_LOGIN_DATA_BYTES: usize = 8192;
/// Most text one login sends, over all its PDUs.
const MAX_LOGIN_TEXT_BYTES: usize = 64 * 1024;
/// Most keys of one login; there are 30 that mean anything.
const MAX_LOGIN_KEYS: usize = 256;
/// Most PDUs of one login.
const MAX_LOGIN_PDUS: u32 = 16;
/// The portal group every portal belongs to.
pub(crate) const PORTAL_GROUP_TAG: u16 = 1;
/// StatSN of the first login response.
const FIRST_STAT_SN: u32 = 1;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// What a login needs from outside.
pub(crate) struct Site<'a> {
    pub(crate) targets: &'a dyn Targets,
    /// The challenges of all logins.
    pub(crate) challenges: &'a Challenges,
    /// What the session with this handle (TSIH) has agreed on, when a
    /// connection (CID) of this nexus may take the place of its own.
    pub(crate) rejoin: &'a dyn Fn(&Login, u16, u16) -> Result<Parameters, LoginStatus>,
    /// Fresh random bytes for a challenge.
    pub(crate) random: &'a dyn Fn() -> Option<[u8; chap::CHALLENGE_BYTES + 1]>,
}

/// What to do after a login PDU.
pub(crate) enum Progress {
    /// Send this and go on.
    Reply(Vec<u8>),
    /// Send this and close.
    Refuse(Vec<u8>, Refusal),
    /// Everything is agreed: open the target, then [`Entrance::accept`] or
    /// [`Entrance::refuse`].
    Enter(Box<Entrance>),
}

/// A login in progress.
pub(crate) struct Negotiation {
    peer: SocketAddr,
    portal: SocketAddr,
    /// Known after the first text.
    login: Option<Login>,
    /// The fields every PDU of a login repeats.
    first: Option<LoginRequest>,
    stage: u8,
    security: Security,
    /// CHAP_N, as claimed.
    claimed_name: Option<String>,
    /// Our challenge, kept to know it again to the end.
    challenge: Option<Challenge>,
    parameters: Parameters,
    declared: bool,
    /// Keys seen, so that none is negotiated twice.
    seen: HashSet<String>,
    /// Operational keys that came before the proof.
    deferred: Vec<(String, String)>,
    /// Text that has come and goes on.
    text: Vec<u8>,
    /// Our text that did not fit into the last response.
    unsent: Vec<u8>,
    text_bytes: usize,
    pdus: u32,
    stat_sn: u32,
}

/// How far authentication has come.
enum Security {
    /// The initiator has not offered a method yet.
    Open,
    /// CHAP was agreed on; CHAP_A is next.
    Agreed,
    /// A challenge is out.
    Challenged,
    /// Proved, or nothing to prove.
    Done,
}

/// The pairs of one text.
type Pairs<'a> = [(&'a str, &'a str)];

fn value<'a>(pairs: &Pairs<'a>, wanted: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| *key == wanted).map(|p| p.1)
}

/// Keys that say who wants what; in the first text only.
fn is_identity(key: &str) -> bool {
    matches!(key, "InitiatorName" | "TargetName" | "SessionType")
}

fn is_of_security(key: &str) -> bool {
    matches!(
        key,
        "AuthMethod" | "CHAP_A" | "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C"
    )
}

impl Negotiation {
    pub(crate) fn new(peer: SocketAddr, portal: SocketAddr) -> Negotiation {
        Negotiation {
            peer,
            portal,
            login: None,
            first: None,
            stage: SECURITY,
            security: Security::Open,
            claimed_name: None,
            challenge: None,
            parameters: Parameters::default(),
            declared: false,
            seen: HashSet::new(),
            deferred: Vec::new(),
            text: Vec::new(),
            unsent: Vec::new(),
            text_bytes: 0,
            pdus: 0,
            stat_sn: FIRST_STAT_SN,
        }
    }

    /// Who is logging in, once that is known.
    pub(crate) fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Takes one login PDU.
    pub(crate) fn receive(
        mut self,
        request: &LoginRequest,
        text: &[u8],
        site: &Site<'_>,
    ) -> (Option<Negotiation>, Progress) {
        let step = self.step(request, text, site).and_then(|step| match step {
            Step::Reply(response) => Ok(Progress::Reply(response)),
            Step::Enter(answer) => self.enter(request, answer).map(Progress::Enter),
        });
        match step {
            Ok(Progress::Reply(response)) => (Some(self), Progress::Reply(response)),
            Ok(end) => (None, end),
            Err(refusal) => {
                if let (Some(login), None) = (&self.login, &refusal.redirect) {
                    let refused = Refused {
                        status: refusal.status,
                        claimed_name: self.claimed_name.as_deref(),
                        reason: refusal.reason,
                    };
                    site.targets.refused(login, &refused);
                }
                let pdu = refuse(request, self.stat_sn, &refusal);
                (None, Progress::Refuse(pdu, refusal))
            }
        }
    }

    fn enter(&mut self, request: &LoginRequest, answer: Vec<u8>) -> Result<Box<Entrance>, Refusal> {
        let login = self.login.take();
        let login = login.ok_or(LoginStatus::INITIATOR_ERROR.because("nobody has logged in"))?;
        Ok(Box::new(Entrance {
            login,
            parameters: self.parameters.clone(),
            exp_cmd_sn: request.cmd_sn,
            stat_sn: self.stat_sn,
            request: request.clone(),
            answer,
        }))
    }

    fn step(
        &mut self,
        request: &LoginRequest,
        text: &[u8],
        site: &Site<'_>,
    ) -> Result<Step, Refusal> {
        self.check_header(request)?;
        self.check_limits(text)?;
        if !self.unsent.is_empty() {
            if request.continues || !text.is_empty() {
                let reason = "it sent text before it had heard all of ours";
                return Err(LoginStatus::INITIATOR_ERROR.because(reason));
            }
            return Ok(self.conclude(request));
        }
        self.text.extend_from_slice(text);
        if request.continues {
            return Ok(Step::Reply(self.reply(request, None, true, &[])));
        }
        let text = std::mem::take(&mut self.text);
        let pairs = keys::parse(&text)
            .map_err(|_| LoginStatus::INITIATOR_ERROR.because("it sent what are no text keys"))?;
        self.see(&pairs)?;
        let mut answer = Vec::new();
        if self.login.is_none() {
            self.identify(request, &pairs)?;
            self.follow_redirect(site)?;
            if self.is_normal() {
                let tag = PORTAL_GROUP_TAG.to_string();
                keys::emit(&mut answer, "TargetPortalGroupTag", &tag);
            }
        } else if pairs.iter().any(|(key, _)| is_identity(key)) {
            let reason = "it said who it is after its first text";
            return Err(LoginStatus::INITIATOR_ERROR.because(reason));
        }
        match self.stage {
            SECURITY => self.security(request, &pairs, &mut answer, site)?,
            _ => self.operational(request, &pairs, &mut answer, site)?,
        }
        self.unsent = answer;
        Ok(self.conclude(request))
    }

    /// Sends what there is to say, and goes where the initiator wants to go.
    fn conclude(&mut self, request: &LoginRequest) -> Step {
        let now = self.unsent.len().min(MAX_LOGIN_DATA_BYTES);
        let rest = self.unsent.split_off(now);
        let text = std::mem::replace(&mut self.unsent, rest);
        if !self.unsent.is_empty() {
            return Step::Reply(self.reply(request, None, false, &text));
        }
        let may_leave = matches!(self.security, Security::Done);
        if !request.transit || !may_leave {
            return Step::Reply(self.reply(request, None, true, &text));
        }
        if request.next_stage == FULL_FEATURE {
            return Step::Enter(text);
        }
        let response = self.reply(request, Some(OPERATIONAL), true, &text);
        self.stage = OPERATIONAL;
        Step::Reply(response)
    }

    /// Checks the fields that do not depend on the text.
    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        if request.version_min > 0 {
            return Err(LoginStatus::UNSUPPORTED_VERSION.because("it needs a later version"));
        }
        let stages = (request.current_stage, request.transit, request.next_stage);
        match stages {
            (SECURITY | OPERATIONAL, false, _) => {}
            (SECURITY, true, OPERATIONAL | FULL_FEATURE) | (OPERATIONAL, true, FULL_FEATURE) => {}
            _ => return Err(LoginStatus::INITIATOR_ERROR.because("it named no stage of a login")),
        }
        match &self.first {
            None => {
                self.stage = request.current_stage;
                self.first = Some(request.clone());
            }
            Some(first) => {
                let same = (first.isid, first.tsih, first.cid)
                    == (request.isid, request.tsih, request.cid);
                if !same {
                    let reason = "it became another one during its login";
                    return Err(LoginStatus::INVALID_DURING_LOGIN.because(reason));
                }
            }
        }
        if request.current_stage != self.stage {
            return Err(LoginStatus::INITIATOR_ERROR.because("it is in another stage than we are"));
        }
        Ok(())
    }

    fn check_limits(&mut self, text: &[u8]) -> Result<(), Refusal> {
        self.pdus += 1;
        self.text_bytes += text.len();
        if self.pdus > MAX_LOGIN_PDUS || self.text_bytes > MAX_LOGIN_TEXT_BYTES {
            return Err(LoginStatus::INITIATOR_ERROR.because("its login has no end"));
        }
        Ok(())
    }

    /// Notes the keys of one text; none may come twice.
    fn see(&mut self, pairs: &Pairs<'_>) -> Result<(), Refusal> {
        for (key, _) in pairs {
            if !self.seen.insert((*key).to_owned()) {
                return Err(LoginStatus::INITIATOR_ERROR.because("it sent a key twice"));
            }
            if self.seen.len() > MAX_LOGIN_KEYS {
                return Err(LoginStatus::INITIATOR_ERROR.because("it sent too many keys"));
            }
        }
        Ok(())
    }

    /// Reads who wants what from the first text.
    fn identify(&mut self, request: &LoginRequest, pairs: &Pairs<'_>) -> Result<(), Refusal> {
        let name = |key: &str| {
            let missing = LoginStatus::MISSING_PARAMETER.because("it named nobody");
            let name = value(pairs, key).ok_or(missing)?;
            Iqn::parse(name)
                .map(Iqn::into_string)
                .map_err(|_| LoginStatus::INITIATOR_ERROR.because("it sent what is no iSCSI name"))
        };
        let initiator = name("InitiatorName")?;
        let target = match value(pairs, "SessionType") {
            None | Some("Normal") => Some(name("TargetName")?),
            Some("Discovery") => None,
            Some(_) => {
                let reason = "it wants an unknown type of session";
                return Err(LoginStatus::SESSION_TYPE.because(reason));
            }
        };
        self.login = Some(Login {
            initiator,
            target,
            isid: request.isid,
            peer: self.peer,
            portal: self.portal,
            chap_name: None,
        });
        Ok(())
    }

    fn is_normal(&self) -> bool {
        self.login
            .as_ref()
            .is_some_and(|login| login.target.is_some())
    }

    fn follow_redirect(&self, site: &Site<'_>) -> Result<(), Refusal> {
        let login = self.login.as_ref();
        match login.and_then(|login| site.targets.redirect(login)) {
            Some(redirect) => Err(redirect.into()),
            None => Ok(()),
        }
    }

    fn authentication(&self, site: &Site<'_>) -> Authentication {
        match &self.login {
            Some(login) => site.targets.authentication(login),
            None => Authentication::Chap,
        }
    }

    /// Nothing is left to prove: what the login may know of its session.
    fn admit(&mut self, request: &LoginRequest, site: &Site<'_>) -> Result<(), Refusal> {
        self.security = Security::Done;
        if let (Some(login), 1..) = (&self.login, request.tsih) {
            let agreed = (site.rejoin)(login, request.tsih, request.cid);
            self.parameters = agreed.map_err(|status| status.because("it has no such session"))?;
        }
        Ok(())
    }

    /// One exchange of the security stage.
    fn security(
        &mut self,
        request: &LoginRequest,
        pairs: &Pairs<'_>,
        answer: &mut Vec<u8>,
        site: &Site<'_>,
    ) -> Result<(), Refusal> {
        let fail = |reason| LoginStatus::AUTHENTICATION_FAILURE.because(reason);
        match self.security {
            Security::Open => self.choose_method(request, pairs, answer, site)?,
            Security::Agreed => {
                let list = value(pairs, "CHAP_A").ok_or(fail("it named no CHAP algorithm"))?;
                let login = self.login.as_ref().ok_or(fail("nobody has logged in"))?;
                let allowed = site.targets.chap_algorithms(login);
                let algorithm = ChapAlgorithm::pick(list, &allowed)
                    .ok_or(fail("it knows no CHAP algorithm that is allowed"))?;
                let challenge = (site.random)()
                    .and_then(|random| site.challenges.issue(algorithm, random))
                    .ok_or(LoginStatus::OUT_OF_RESOURCES.because("no random bytes"))?;
                keys::emit(answer, "CHAP_A", algorithm.number());
                keys::emit(answer, "CHAP_I", &challenge.identifier());
                keys::emit(answer, "CHAP_C", &challenge.text());
                self.challenge = Some(challenge);
                self.security = Security::Challenged;
            }
            Security::Challenged => {
                self.prove(pairs, answer, site)?;
                self.admit(request, site)?;
            }
            Security::Done => {
                if let Some(offers) = value(pairs, "AuthMethod") {
                    let has_none = offers.split(',').any(|method| method == "None");
                    let none = if has_none { "None" } else { "Reject" };
                    keys::emit(answer, "AuthMethod", none);
                }
            }
        }
        // Operational keys have their own stage; some say one early. They are
        // answered once there is a proof.
        let early = pairs.iter().filter(|(key, _)| !is_of_security(key));
        let early = early.map(|(key, offered)| ((*key).to_owned(), (*offered).to_owned()));
        self.deferred.extend(early);
        if matches!(self.security, Security::Done) {
            for (key, offered) in std::mem::take(&mut self.deferred) {
                self.answer(&key, &offered, answer)?;
            }
        }
        Ok(())
    }

    /// Agrees on how the initiator proves itself.
    fn choose_method(
        &mut self,
        request: &LoginRequest,
        pairs: &Pairs<'_>,
        answer: &mut Vec<u8>,
        site: &Site<'_>,
    ) -> Result<(), Refusal> {
        let offers = value(pairs, "AuthMethod");
        let has = |method: &str| offers.is_some_and(|o| o.split(',').any(|m| m == method));
        let fail = |reason| Err(LoginStatus::AUTHENTICATION_FAILURE.because(reason));
        let wanted = match self.authentication(site) {
            // The first the initiator would rather have.
            Authentication::Offered => {
                let mut offered = offers.unwrap_or_default().split(',');
                match offered.find(|method| matches!(*method, "CHAP" | "None")) {
                    Some("CHAP") => Authentication::Chap,
                    _ => Authentication::None,
                }
            }
            other => other,
        };
        match wanted {
            Authentication::None | Authentication::Offered if offers.is_none() || has("None") => {
                if offers.is_some() {
                    keys::emit(answer, "AuthMethod", "None");
                }
                self.admit(request, site)
            }
            Authentication::None | Authentication::Offered => {
                fail("it insists on proving itself, and nobody knows it")
            }
            Authentication::Chap if has("CHAP") => {
                keys::emit(answer, "AuthMethod", "CHAP");
                self.security = Security::Agreed;
                Ok(())
            }
            Authentication::Chap if offers.is_none() && !request.transit => Ok(()),
            Authentication::Chap => fail("it did not offer CHAP"),
        }
    }

    /// Checks the answer to our challenge, and answers the initiator's.
    fn prove(
        &mut self,
        pairs: &Pairs<'_>,
        answer: &mut Vec<u8>,
        site: &Site<'_>,
    ) -> Result<(), Refusal> {
        let fail = |reason| LoginStatus::AUTHENTICATION_FAILURE.because(reason);
        // A name, whatever it looks like: no binary value.
        let name = value(pairs, "CHAP_N").ok_or(fail("it sent no CHAP name"))?;
        self.claimed_name = Some(name.to_owned());
        let proof = Proof {
            response: value(pairs, "CHAP_R").ok_or(fail("it sent no CHAP response"))?,
            identifier: value(pairs, "CHAP_I"),
            challenge: value(pairs, "CHAP_C"),
        };
        let (Some(login), Some(challenge)) = (self.login.as_mut(), &self.challenge) else {
            return Err(fail("there was no challenge"));
        };
        let secrets = site
            .targets
            .chap_secret(login, name)
            .ok_or(fail("there is no secret for its CHAP name"))?;
        if let Some((name, response)) = challenge.check(&proof, &secrets).map_err(fail)? {
            keys::emit(answer, "CHAP_N", &name);
            keys::emit(answer, "CHAP_R", &response);
        }
        login.chap_name = Some(name.to_owned());
        Ok(())
    }

    /// One exchange of the operational stage.
    fn operational(
        &mut self,
        request: &LoginRequest,
        pairs: &Pairs<'_>,
        answer: &mut Vec<u8>,
        site: &Site<'_>,
    ) -> Result<(), Refusal> {
        // Leaving out the security stage leaves out the proof as well.
        if !matches!(self.security, Security::Done) {
            if self.authentication(site) == Authentication::Chap {
                let reason = "it left out the proof it needs";
                return Err(LoginStatus::AUTHENTICATION_FAILURE.because(reason));
            }
            self.admit(request, site)?;
        }
        // First, because the first burst is no longer than any.
        if let Some(longest) = value(pairs, "MaxBurstLength") {
            self.answer("MaxBurstLength", longest, &mut Vec::new())?;
        }
        for (key, offered) in pairs {
            self.answer(key, offered, answer)?;
        }
        if !self.declared {
            self.declared = true;
            let ours = keys::OUR_MAX_RECV_DATA_SEGMENT_LENGTH.to_string();
            keys::emit(answer, "MaxRecvDataSegmentLength", &ours);
        }
        Ok(())
    }

    fn answer(&mut self, key: &str, offered: &str, answer: &mut Vec<u8>) -> Result<(), Refusal> {
        let joins = self.first.as_ref().is_some_and(|first| first.tsih != 0);
        if joins && keys::is_leading_only(key) {
            keys::emit(answer, key, "Reject");
            return Ok(());
        }
        match self.parameters.answer(key, offered) {
            Answer::Silence => Ok(()),
            Answer::Value(value) => {
                keys::emit(answer, key, &value);
                Ok(())
            }
            Answer::Fatal => Err(LoginStatus::INITIATOR_ERROR.because("no digest in common")),
        }
    }

    /// A response PDU; `next` is the stage that comes when this one is left.
    fn reply(
        &mut self,
        request: &LoginRequest,
        next: Option<u8>,
        is_whole: bool,
        text: &[u8],
    ) -> Vec<u8> {
        let response = LoginResponse {
            transit: next.is_some(),
            continues: !is_whole,
            current_stage: self.stage,
            next_stage: next.unwrap_or(0),
            isid: request.isid,
            tsih: request.tsih,
            itt: request.itt,
            numbers: Numbers {
                stat_sn: self.stat_sn,
                exp_cmd_sn: request.cmd_sn,
                max_cmd_sn: request.cmd_sn,
            },
            status: LoginStatus::SUCCESS.bytes(),
        };
        self.stat_sn = self.stat_sn.wrapping_add(1);
        pdu(&response, text)
    }
}

/// What one PDU led to.
enum Step {
    Reply(Vec<u8>),
    /// With the text of the last response.
    Enter(Vec<u8>),
}

/// A login that has agreed on everything and waits for its target.
pub(crate) struct Entrance {
    pub(crate) login: Login,
    pub(crate) parameters: Parameters,
    /// CmdSN of the first command.
    pub(crate) exp_cmd_sn: u32,
    stat_sn: u32,
    request: LoginRequest,
    answer: Vec<u8>,
}

impl Entrance {
    /// The session whose connection this one takes the place of; 0 for none.
    pub(crate) fn rejoins(&self) -> u16 {
        self.request.tsih
    }

    /// The connection's identifier.
    pub(crate) fn cid(&self) -> u16 {
        self.request.cid
    }

    /// The last login response, and the StatSN that comes after it.
    pub(crate) fn accept(&self, tsih: u16, window: u32) -> (Vec<u8>, u32) {
        let request = &self.request;
        let response = LoginResponse {
            transit: true,
            continues: false,
            current_stage: request.current_stage,
            next_stage: FULL_FEATURE,
            isid: request.isid,
            tsih,
            itt: request.itt,
            numbers: Numbers {
                stat_sn: self.stat_sn,
                exp_cmd_sn: self.exp_cmd_sn,
                max_cmd_sn: self.exp_cmd_sn.wrapping_add(window).wrapping_sub(1),
            },
            status: LoginStatus::SUCCESS.bytes(),
        };
        (pdu(&response, &self.answer), self.stat_sn.wrapping_add(1))
    }

    /// The response that ends the login.
    pub(crate) fn refuse(&self, refusal: &Refusal) -> Vec<u8> {
        refuse(&self.request, self.stat_sn, refusal)
    }
}

fn refuse(request: &LoginRequest, stat_sn: u32, refusal: &Refusal) -> Vec<u8> {
    let response = LoginResponse {
        transit: false,
        continues: false,
        current_stage: request.current_stage,
        next_stage: 0,
        isid: request.isid,
        tsih: request.tsih,
        itt: request.itt,
        numbers: Numbers {
            stat_sn,
            exp_cmd_sn: request.cmd_sn,
            max_cmd_sn: request.cmd_sn,
        },
        status: refusal.status.bytes(),
    };
    pdu(&response, &refusal.text())
}

fn pdu(response: &LoginResponse, text: &[u8]) -> Vec<u8> {
    let mut pdu = response.emit(text.len()).to_vec();
    pdu.extend_from_slice(text);
    pdu.resize(pdu.len() + crate::wire::padding(text.len()), 0);
    pdu
}

#[cfg(test)]
mod tests;
