//! The login phase of one connection (RFC 7143 section 6).
//!
//! Negotiates keys and authenticates; owns no socket and no clock. Ends with
//! [`Progress::Enter`], which carries the negotiated [`Parameters`].
//!
//! Invariant: nothing about a target is revealed before the initiator has
//! proved what [`Targets::authentication`] asked for.

use std::collections::HashSet;
use std::net::SocketAddr;

use crate::chap::{self, Challenge};
use crate::keys::{self, Answer, Parameters};
use crate::wire::{LoginRequest, LoginResponse, Numbers};
use crate::{Authentication, Iqn, Login, LoginRefusal, Targets};

/// Most text one login sends, over all its PDUs.
const MAX_LOGIN_TEXT_BYTES: usize = 64 * 1024;
/// Most PDUs of one login.
const MAX_LOGIN_PDUS: u32 = 16;
/// The portal group every portal belongs to.
pub(crate) const PORTAL_GROUP_TAG: u16 = 1;
/// StatSN of the first login response.
const FIRST_STAT_SN: u32 = 1;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// Status class and detail (RFC 7143 section 11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoginStatus(pub(crate) [u8; 2]);

impl LoginStatus {
    pub(crate) const SUCCESS: LoginStatus = LoginStatus([0, 0]);
    pub(crate) const INITIATOR_ERROR: LoginStatus = LoginStatus([2, 0]);
    pub(crate) const AUTHENTICATION_FAILURE: LoginStatus = LoginStatus([2, 1]);
    pub(crate) const UNSUPPORTED_VERSION: LoginStatus = LoginStatus([2, 5]);
    pub(crate) const MISSING_PARAMETER: LoginStatus = LoginStatus([2, 7]);
    pub(crate) const CANNOT_INCLUDE: LoginStatus = LoginStatus([2, 8]);
    pub(crate) const SESSION_TYPE: LoginStatus = LoginStatus([2, 9]);
    pub(crate) const NO_SUCH_SESSION: LoginStatus = LoginStatus([2, 0x0a]);
    pub(crate) const INVALID_DURING_LOGIN: LoginStatus = LoginStatus([2, 0x0b]);
    pub(crate) const SERVICE_UNAVAILABLE: LoginStatus = LoginStatus([3, 1]);
    pub(crate) const OUT_OF_RESOURCES: LoginStatus = LoginStatus([3, 2]);
}

/// The site's words, on the wire.
impl From<&LoginRefusal> for LoginStatus {
    fn from(refusal: &LoginRefusal) -> LoginStatus {
        match refusal {
            LoginRefusal::AuthenticationFailure => LoginStatus([2, 1]),
            LoginRefusal::AuthorizationFailure => LoginStatus([2, 2]),
            LoginRefusal::NotFound => LoginStatus([2, 3]),
            LoginRefusal::ServiceUnavailable => LoginStatus([3, 1]),
            LoginRefusal::TargetError(_) => LoginStatus([3, 0]),
        }
    }
}

/// What a login needs from outside.
pub(crate) struct Site<'a> {
    pub(crate) targets: &'a dyn Targets,
    /// Whether this nexus has a session with this handle.
    pub(crate) has_session: &'a dyn Fn(&Login, u16) -> bool,
    /// Fresh random bytes for a challenge.
    pub(crate) random: &'a dyn Fn() -> Option<[u8; chap::CHALLENGE_BYTES + 1]>,
}

/// What to do after a login PDU.
pub(crate) enum Progress {
    /// Send this and go on.
    Reply(Vec<u8>),
    /// Send this and close.
    Refuse(Vec<u8>, LoginStatus),
    /// Everything is agreed: open the target, then [`Entrance::accept`] or
    /// [`Entrance::refuse`].
    Enter(Box<Entrance>),
}

/// A login in progress.
pub(crate) struct Negotiation {
    peer: SocketAddr,
    portal: SocketAddr,
    /// Known after the first PDU.
    login: Option<Login>,
    /// The fields every PDU of a login repeats.
    first: Option<LoginRequest>,
    stage: u8,
    security: Security,
    parameters: Parameters,
    declared: bool,
    /// Keys seen, so that none is negotiated twice.
    seen: HashSet<String>,
    text: Vec<u8>,
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
    Challenged(Challenge),
    /// Proved, or nothing to prove.
    Done,
}

/// A refusal that ends the login.
type Refused = LoginStatus;

impl Negotiation {
    pub(crate) fn new(peer: SocketAddr, portal: SocketAddr) -> Negotiation {
        Negotiation {
            peer,
            portal,
            login: None,
            first: None,
            stage: SECURITY,
            security: Security::Open,
            parameters: Parameters::default(),
            declared: false,
            seen: HashSet::new(),
            text: Vec::new(),
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
        match self.step(request, text, site) {
            Ok(Step::Reply(response)) => (Some(self), Progress::Reply(response)),
            Ok(Step::Enter(answer)) => {
                let Some(login) = self.login.take() else {
                    let status = LoginStatus::INITIATOR_ERROR;
                    let pdu = self.refusal(request, status);
                    return (None, Progress::Refuse(pdu, status));
                };
                let entrance = Entrance {
                    login,
                    parameters: self.parameters,
                    exp_cmd_sn: request.cmd_sn,
                    stat_sn: self.stat_sn,
                    request: request.clone(),
                    answer,
                };
                (None, Progress::Enter(Box::new(entrance)))
            }
            Err(status) => {
                let pdu = self.refusal(request, status);
                (None, Progress::Refuse(pdu, status))
            }
        }
    }

    fn step(
        &mut self,
        request: &LoginRequest,
        text: &[u8],
        site: &Site<'_>,
    ) -> Result<Step, Refused> {
        self.check_header(request)?;
        self.pdus += 1;
        self.text_bytes += text.len();
        if self.pdus > MAX_LOGIN_PDUS || self.text_bytes > MAX_LOGIN_TEXT_BYTES {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        self.text.extend_from_slice(text);
        if request.continues {
            let stage = (request.current_stage, None);
            return Ok(Step::Reply(self.reply(request, stage, &[])));
        }
        let text = std::mem::take(&mut self.text);
        let pairs = keys::parse(&text).map_err(|_| LoginStatus::INITIATOR_ERROR)?;
        for (key, _) in &pairs {
            if !self.seen.insert((*key).to_owned()) {
                return Err(LoginStatus::INITIATOR_ERROR);
            }
        }
        let mut answer = Vec::new();
        if self.login.is_none() {
            self.identify(request, &pairs, site)?;
            let is_normal = self.login.as_ref().is_some_and(|l| l.target.is_some());
            if is_normal {
                let tag = PORTAL_GROUP_TAG.to_string();
                keys::emit(&mut answer, "TargetPortalGroupTag", &tag);
            }
            if request.current_stage == OPERATIONAL {
                self.stage = OPERATIONAL;
            }
        }
        // Leaving out the security stage leaves out the proof as well.
        if request.current_stage != self.stage {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let may_leave = match self.stage {
            SECURITY => self.security(&pairs, &mut answer, site)?,
            _ => {
                self.require_proof(site)?;
                self.operational(&pairs, &mut answer)?;
                true
            }
        };
        if !request.transit || !may_leave {
            let stage = (self.stage, None);
            return Ok(Step::Reply(self.reply(request, stage, &answer)));
        }
        if request.next_stage == FULL_FEATURE {
            return Ok(Step::Enter(answer));
        }
        let left = self.stage;
        self.stage = OPERATIONAL;
        let stage = (left, Some(OPERATIONAL));
        Ok(Step::Reply(self.reply(request, stage, &answer)))
    }

    /// Checks the fields that do not depend on the text.
    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refused> {
        if request.version_min > 0 {
            return Err(LoginStatus::UNSUPPORTED_VERSION);
        }
        let stages = (request.current_stage, request.transit, request.next_stage);
        match stages {
            (SECURITY | OPERATIONAL, false, _) => {}
            (SECURITY, true, OPERATIONAL | FULL_FEATURE) | (OPERATIONAL, true, FULL_FEATURE) => {}
            _ => return Err(LoginStatus::INITIATOR_ERROR),
        }
        match &self.first {
            None => self.first = Some(request.clone()),
            Some(first) => {
                let same = (first.isid, first.tsih, first.cid)
                    == (request.isid, request.tsih, request.cid);
                if !same {
                    return Err(LoginStatus::INVALID_DURING_LOGIN);
                }
            }
        }
        Ok(())
    }

    /// Reads who wants what from the first PDU.
    fn identify(
        &mut self,
        request: &LoginRequest,
        pairs: &[(&str, &str)],
        site: &Site<'_>,
    ) -> Result<(), Refused> {
        let value = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|p| p.1);
        let name = |value: &str| {
            Iqn::parse(value)
                .map(Iqn::into_string)
                .map_err(|_| LoginStatus::INITIATOR_ERROR)
        };
        let initiator = name(value("InitiatorName").ok_or(LoginStatus::MISSING_PARAMETER)?)?;
        let target = match value("SessionType") {
            None | Some("Normal") => Some(name(
                value("TargetName").ok_or(LoginStatus::MISSING_PARAMETER)?,
            )?),
            Some("Discovery") => None,
            Some(_) => return Err(LoginStatus::SESSION_TYPE),
        };
        let login = Login {
            initiator,
            target,
            isid: request.isid,
            peer: self.peer,
            portal: self.portal,
            chap_name: None,
        };
        if request.tsih != 0 {
            // One connection a session: nobody joins one that is there.
            return Err(match (site.has_session)(&login, request.tsih) {
                true => LoginStatus::CANNOT_INCLUDE,
                false => LoginStatus::NO_SUCH_SESSION,
            });
        }
        self.login = Some(login);
        Ok(())
    }

    fn authentication(&self, site: &Site<'_>) -> Authentication {
        match &self.login {
            Some(login) => site.targets.authentication(login),
            None => Authentication::Chap,
        }
    }

    /// Refuses who came past the security stage without a proof it needs.
    fn require_proof(&mut self, site: &Site<'_>) -> Result<(), Refused> {
        if matches!(self.security, Security::Done) {
            return Ok(());
        }
        match self.authentication(site) {
            Authentication::None => {
                self.security = Security::Done;
                Ok(())
            }
            Authentication::Chap => Err(LoginStatus::AUTHENTICATION_FAILURE),
        }
    }

    /// One exchange of the security stage; whether it may be left.
    fn security(
        &mut self,
        pairs: &[(&str, &str)],
        answer: &mut Vec<u8>,
        site: &Site<'_>,
    ) -> Result<bool, Refused> {
        let failure = LoginStatus::AUTHENTICATION_FAILURE;
        let value = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|p| p.1);
        match std::mem::replace(&mut self.security, Security::Open) {
            Security::Open => {
                let wanted = self.authentication(site);
                let offers = value("AuthMethod");
                let has = |method: &str| offers.is_some_and(|o| o.split(',').any(|m| m == method));
                match wanted {
                    Authentication::None if offers.is_none() || has("None") => {
                        if offers.is_some() {
                            keys::emit(answer, "AuthMethod", "None");
                        }
                        self.security = Security::Done;
                    }
                    // Whoever insists on proving itself has no proof for us.
                    Authentication::None => return Err(failure),
                    Authentication::Chap if has("CHAP") => {
                        keys::emit(answer, "AuthMethod", "CHAP");
                        self.security = Security::Agreed;
                    }
                    Authentication::Chap => return Err(failure),
                }
            }
            Security::Agreed => {
                let algorithms = value("CHAP_A").ok_or(failure)?;
                if !algorithms
                    .split(',')
                    .any(|algorithm| algorithm == chap::MD5)
                {
                    return Err(failure);
                }
                let random = (site.random)().ok_or(LoginStatus::OUT_OF_RESOURCES)?;
                let challenge = Challenge::new(random);
                keys::emit(answer, "CHAP_A", chap::MD5);
                keys::emit(answer, "CHAP_I", &challenge.identifier());
                keys::emit(answer, "CHAP_C", &challenge.text());
                self.security = Security::Challenged(challenge);
            }
            Security::Challenged(challenge) => {
                // A challenge of theirs wants our proof: we have none to give.
                if value("CHAP_I").is_some() || value("CHAP_C").is_some() {
                    return Err(failure);
                }
                let name = value("CHAP_N").ok_or(failure)?;
                let response = value("CHAP_R").ok_or(failure)?;
                let login = self.login.as_mut().ok_or(failure)?;
                let secret = site.targets.chap_secret(login, name).ok_or(failure)?;
                if !challenge.is_answered(&secret, response) {
                    return Err(failure);
                }
                login.chap_name = Some(name.to_owned());
                self.security = Security::Done;
            }
            Security::Done => self.security = Security::Done,
        }
        let is_done = matches!(self.security, Security::Done);
        for (key, offered) in pairs {
            let known = matches!(
                *key,
                "AuthMethod" | "CHAP_A" | "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C"
            );
            // Operational keys have their own stage; some say one early.
            if !known && is_done {
                self.answer(key, offered, answer)?;
            }
        }
        Ok(is_done)
    }

    /// One exchange of the operational stage.
    fn operational(&mut self, pairs: &[(&str, &str)], answer: &mut Vec<u8>) -> Result<(), Refused> {
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

    fn answer(&mut self, key: &str, offered: &str, answer: &mut Vec<u8>) -> Result<(), Refused> {
        match self.parameters.answer(key, offered) {
            Answer::Silence => Ok(()),
            Answer::Value(value) => {
                keys::emit(answer, key, &value);
                Ok(())
            }
            Answer::Fatal => Err(LoginStatus::INITIATOR_ERROR),
        }
    }

    /// A response PDU; `stage` is the current one and, when it is left, the
    /// next.
    fn reply(&mut self, request: &LoginRequest, stage: (u8, Option<u8>), text: &[u8]) -> Vec<u8> {
        let response = LoginResponse {
            transit: stage.1.is_some(),
            continues: false,
            current_stage: stage.0,
            next_stage: stage.1.unwrap_or(0),
            isid: request.isid,
            tsih: request.tsih,
            itt: request.itt,
            numbers: Numbers {
                stat_sn: self.stat_sn,
                exp_cmd_sn: request.cmd_sn,
                max_cmd_sn: request.cmd_sn,
            },
            status: LoginStatus::SUCCESS.0,
        };
        self.stat_sn = self.stat_sn.wrapping_add(1);
        pdu(&response, text)
    }

    fn refusal(&self, request: &LoginRequest, status: LoginStatus) -> Vec<u8> {
        refusal(request, self.stat_sn, status)
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
            status: LoginStatus::SUCCESS.0,
        };
        (pdu(&response, &self.answer), self.stat_sn.wrapping_add(1))
    }

    /// The response that ends the login.
    pub(crate) fn refuse(&self, status: LoginStatus) -> Vec<u8> {
        refusal(&self.request, self.stat_sn, status)
    }
}

fn refusal(request: &LoginRequest, stat_sn: u32, status: LoginStatus) -> Vec<u8> {
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
        status: status.0,
    };
    pdu(&response, &[])
}

fn pdu(response: &LoginResponse, text: &[u8]) -> Vec<u8> {
    let mut pdu = response.emit(text.len()).to_vec();
    pdu.extend_from_slice(text);
    pdu.resize(pdu.len() + crate::wire::padding(text.len()), 0);
    pdu
}

#[cfg(test)]
mod tests;
