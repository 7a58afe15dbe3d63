//! Logins, PDU by PDU, against a site of two targets.

use std::cell::Cell;

use super::*;
use crate::{Attachment, Secret};

/// What the site asks for.
struct Site2 {
    authentication: Authentication,
}

impl Targets for Site2 {
    fn authentication(&self, _: &Login) -> Authentication {
        self.authentication
    }
    fn chap_secret(&self, _: &Login, chap_name: &str) -> Option<Secret> {
        (chap_name == "pc1").then(|| Secret::new("secretsecret1"))
    }
    fn open(&self, _: &Login) -> Result<Attachment, LoginRefusal> {
        Err(LoginRefusal::NotFound)
    }
    fn discover(&self, _: &Login) -> Vec<String> {
        vec![]
    }
}

/// One initiator's login, stage by stage.
struct Lab {
    site: Site2,
    negotiation: Option<Negotiation>,
    tsih: u16,
    pdus: u32,
}

/// What came back.
#[derive(Debug, PartialEq)]
enum Heard {
    /// T, NSG and the text.
    Reply(bool, u8, String),
    Refused([u8; 2]),
    /// The text of the last response.
    Entered(String),
}

const NAMES: &str = "InitiatorName=iqn.2010-04.org.ipxe:lab\0TargetName=iqn.2026-01.test.lab:d1\0";

impl Lab {
    fn new(authentication: Authentication) -> Lab {
        let address = "127.0.0.1:3260".parse().unwrap();
        Lab {
            site: Site2 { authentication },
            negotiation: Some(Negotiation::new(address, address)),
            tsih: 0,
            pdus: 0,
        }
    }

    /// Sends a PDU with `flags` in byte 1.
    fn send(&mut self, flags: u8, text: &str) -> Heard {
        let (heard, _) = self.send_and_keep(flags, text);
        heard
    }

    fn send_and_keep(&mut self, flags: u8, text: &str) -> (Heard, Option<Box<Entrance>>) {
        self.pdus += 1;
        let request = LoginRequest {
            transit: flags & 0x80 != 0,
            continues: flags & 0x40 != 0,
            current_stage: (flags >> 2) & 3,
            next_stage: flags & 3,
            version_min: 0,
            isid: [0x40, 0, 0x27, 0x23, 0, 1],
            tsih: self.tsih,
            itt: 0,
            cid: 0,
            cmd_sn: 1496,
            exp_stat_sn: 0,
        };
        // The random bytes of the fact sheet's vector.
        let random = || {
            Some(std::array::from_fn(|i| {
                [0x17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][i]
            }))
        };
        let asked = Cell::new(0);
        let site = crate::login::Site {
            targets: &self.site,
            has_session: &|_, tsih| {
                asked.set(asked.get() + 1);
                tsih == 7
            },
            random: &random,
        };
        let negotiation = self.negotiation.take().expect("the login has ended");
        let (negotiation, progress) = negotiation.receive(&request, text.as_bytes(), &site);
        self.negotiation = negotiation;
        let text_of = |pdu: &[u8]| {
            let length = usize::from(u16::from_be_bytes([pdu[6], pdu[7]]));
            String::from_utf8(pdu[48..48 + length].to_vec()).unwrap()
        };
        match progress {
            Progress::Reply(pdu) => {
                assert_eq!(pdu[36..38], [0, 0]);
                let heard = Heard::Reply(pdu[1] & 0x80 != 0, pdu[1] & 3, text_of(&pdu));
                (heard, None)
            }
            Progress::Refuse(pdu, status) => {
                assert_eq!(pdu[36..38], status.0);
                assert_eq!(pdu[1] & 0x80, 0);
                assert_eq!(text_of(&pdu), "");
                (Heard::Refused(status.0), None)
            }
            Progress::Enter(entrance) => {
                let (pdu, _) = entrance.accept(9, 128);
                assert_eq!((pdu[1] & 0x83, pdu[14..16].to_vec()), (0x83, vec![0, 9]));
                (Heard::Entered(text_of(&pdu)), Some(entrance))
            }
        }
    }
}

fn reply(transit: bool, next: u8, text: &str) -> Heard {
    Heard::Reply(transit, next, text.to_owned())
}

#[test]
fn ipxe_without_chap_takes_two_steps() {
    let mut lab = Lab::new(Authentication::None);
    let first = format!("{NAMES}SessionType=Normal\0AuthMethod=None\0");
    assert_eq!(
        lab.send(0x81, &first),
        reply(true, 1, "TargetPortalGroupTag=1\0AuthMethod=None\0")
    );
    let offer = "HeaderDigest=None\0DataDigest=None\0MaxConnections=1\0InitialR2T=Yes\0\
                 ImmediateData=No\0MaxRecvDataSegmentLength=8192\0MaxBurstLength=262144\0\
                 FirstBurstLength=65536\0DefaultTime2Wait=0\0DefaultTime2Retain=0\0\
                 MaxOutstandingR2T=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
                 ErrorRecoveryLevel=0\0";
    let answer = "HeaderDigest=None\0DataDigest=None\0MaxConnections=1\0InitialR2T=Yes\0\
                  ImmediateData=No\0MaxBurstLength=262144\0FirstBurstLength=65536\0\
                  DefaultTime2Wait=2\0DefaultTime2Retain=0\0MaxOutstandingR2T=1\0\
                  DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0ErrorRecoveryLevel=0\0\
                  MaxRecvDataSegmentLength=262144\0";
    let (heard, entrance) = lab.send_and_keep(0x87, offer);
    assert_eq!(heard, Heard::Entered(answer.to_owned()));
    let entrance = entrance.unwrap();
    assert_eq!(entrance.exp_cmd_sn, 1496);
    assert!(entrance.parameters.initial_r2t && !entrance.parameters.immediate_data);
    assert_eq!(entrance.login.initiator, "iqn.2010-04.org.ipxe:lab");
}

#[test]
fn linux_without_chap_starts_in_the_operational_stage() {
    let mut lab = Lab::new(Authentication::None);
    let heard = lab.send(0x87, &format!("{NAMES}InitialR2T=No\0"));
    let answer = "TargetPortalGroupTag=1\0InitialR2T=No\0MaxRecvDataSegmentLength=262144\0";
    assert_eq!(heard, Heard::Entered(answer.to_owned()));
}

const CHALLENGE: &str = "CHAP_A=5\0CHAP_I=23\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0";

#[test]
fn ipxe_with_chap_is_let_in_after_its_proof_and_not_before() {
    let mut lab = Lab::new(Authentication::Chap);
    let first = format!("{NAMES}AuthMethod=CHAP,None\0");
    assert_eq!(
        lab.send(0x81, &first),
        reply(false, 0, "TargetPortalGroupTag=1\0AuthMethod=CHAP\0")
    );
    assert_eq!(lab.send(0x81, "CHAP_A=5\0"), reply(false, 0, CHALLENGE));
    let proof = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0";
    assert_eq!(lab.send(0x81, proof), reply(true, 1, ""));
    let (heard, entrance) = lab.send_and_keep(0x87, "");
    assert!(matches!(heard, Heard::Entered(_)));
    assert_eq!(entrance.unwrap().login.chap_name.as_deref(), Some("pc1"));
}

#[test]
fn a_wrong_secret_and_an_unknown_name_are_refused_alike() {
    for proof in [
        "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f17\0",
        "CHAP_N=pc2\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0",
        "CHAP_N=0x706331\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0",
        "CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0",
    ] {
        let mut lab = Lab::new(Authentication::Chap);
        lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
        lab.send(0x81, "CHAP_A=5\0");
        assert_eq!(lab.send(0x81, proof), Heard::Refused([2, 1]), "{proof:?}");
    }
}

#[test]
fn a_challenge_of_the_initiators_is_refused_for_we_have_no_proof() {
    let mut lab = Lab::new(Authentication::Chap);
    lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
    lab.send(0x81, "CHAP_A=5\0");
    let mutual = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0CHAP_I=1\0CHAP_C=0x01\0";
    assert_eq!(lab.send(0x81, mutual), Heard::Refused([2, 1]));
}

#[test]
fn no_way_leads_past_chap() {
    // No method, the wrong one, or a jump over the stage.
    let mut lab = Lab::new(Authentication::Chap);
    assert_eq!(lab.send(0x87, NAMES), Heard::Refused([2, 1]));
    let mut lab = Lab::new(Authentication::Chap);
    assert_eq!(lab.send(0x81, NAMES), Heard::Refused([2, 1]));
    let mut lab = Lab::new(Authentication::Chap);
    let none = format!("{NAMES}AuthMethod=None\0");
    assert_eq!(lab.send(0x83, &none), Heard::Refused([2, 1]));
    let mut lab = Lab::new(Authentication::Chap);
    lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
    assert!(matches!(lab.send(0x87, ""), Heard::Refused(_)));
    for algorithms in ["CHAP_A=56\0", "CHAP_A=\0", "CHAP_A=7\0"] {
        let mut lab = Lab::new(Authentication::Chap);
        lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
        assert_eq!(lab.send(0x81, algorithms), Heard::Refused([2, 1]));
    }
}

#[test]
fn what_is_missing_or_twice_is_refused() {
    let mut lab = Lab::new(Authentication::None);
    assert_eq!(
        lab.send(0x87, "InitiatorName=iqn.a:b\0"),
        Heard::Refused([2, 7])
    );
    let mut lab = Lab::new(Authentication::None);
    assert_eq!(
        lab.send(0x87, "TargetName=iqn.a:b\0"),
        Heard::Refused([2, 7])
    );
    let mut lab = Lab::new(Authentication::None);
    let twice = format!("{NAMES}InitialR2T=No\0InitialR2T=No\0");
    assert_eq!(lab.send(0x87, &twice), Heard::Refused([2, 0]));
    let mut lab = Lab::new(Authentication::None);
    lab.send(0x04, &format!("{NAMES}InitialR2T=No\0"));
    assert_eq!(lab.send(0x87, "InitialR2T=No\0"), Heard::Refused([2, 0]));
    let mut lab = Lab::new(Authentication::None);
    let digest = format!("{NAMES}HeaderDigest=X-md5\0");
    assert_eq!(lab.send(0x87, &digest), Heard::Refused([2, 0]));
}

#[test]
fn stages_that_do_not_exist_are_refused() {
    for flags in [0x82, 0x80, 0x84, 0x8b, 0x8f, 0x0c] {
        let mut lab = Lab::new(Authentication::None);
        assert_eq!(lab.send(flags, NAMES), Heard::Refused([2, 0]), "{flags:x}");
    }
}

#[test]
fn text_may_be_split_over_pdus() {
    let mut lab = Lab::new(Authentication::None);
    let (head, tail) = NAMES.split_at(30);
    assert_eq!(lab.send(0x44, head), reply(false, 0, ""));
    assert!(matches!(lab.send(0x87, tail), Heard::Entered(_)));
}

#[test]
fn a_login_without_end_is_ended() {
    let mut lab = Lab::new(Authentication::None);
    lab.send(0x04, NAMES);
    for _ in 0..MAX_LOGIN_PDUS - 1 {
        assert_eq!(lab.send(0x04, "").clone_reply(), Some(String::new()));
    }
    assert_eq!(lab.send(0x04, ""), Heard::Refused([2, 0]));
    let mut lab = Lab::new(Authentication::None);
    let much = "x".repeat(8192);
    for _ in 0..8 {
        assert!(matches!(lab.send(0x44, &much), Heard::Reply(..)));
    }
    assert_eq!(lab.send(0x44, &much), Heard::Refused([2, 0]));
}

impl Heard {
    /// The text of a reply, but for what we declare.
    fn clone_reply(&self) -> Option<String> {
        match self {
            Heard::Reply(_, _, text) => Some(text.clone()),
            _ => None,
        }
    }
}

#[test]
fn nobody_joins_a_session() {
    let mut lab = Lab::new(Authentication::None);
    lab.tsih = 7;
    assert_eq!(lab.send(0x87, NAMES), Heard::Refused([2, 8]));
    let mut lab = Lab::new(Authentication::None);
    lab.tsih = 8;
    assert_eq!(lab.send(0x87, NAMES), Heard::Refused([2, 0x0a]));
}

#[test]
fn a_discovery_session_needs_no_target() {
    let mut lab = Lab::new(Authentication::None);
    let text = "InitiatorName=iqn.a:b\0SessionType=Discovery\0";
    let (heard, entrance) = lab.send_and_keep(0x87, text);
    let answer = "MaxRecvDataSegmentLength=262144\0";
    assert_eq!(heard, Heard::Entered(answer.to_owned()));
    assert_eq!(entrance.unwrap().login.target, None);
    let mut lab = Lab::new(Authentication::None);
    let odd = "InitiatorName=iqn.a:b\0SessionType=Odd\0";
    assert_eq!(lab.send(0x87, odd), Heard::Refused([2, 9]));
}
