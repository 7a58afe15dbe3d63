//! Logins, PDU by PDU, filed by section of RFC 7143.

use std::sync::Mutex;

use super::*;
use crate::{Attachment, ChapSecrets, LoginRefusal, Redirect, Secret};

/// What the site asks for, and what it was told.
struct Site2 {
    authentication: Authentication,
    algorithms: Vec<ChapAlgorithm>,
    target_secret: Option<&'static str>,
    redirect: Option<Redirect>,
    refused: Mutex<Vec<String>>,
}

impl Targets for Site2 {
    fn redirect(&self, _: &Login) -> Option<Redirect> {
        self.redirect.clone()
    }
    fn authentication(&self, _: &Login) -> Authentication {
        self.authentication
    }
    fn chap_algorithms(&self, _: &Login) -> Vec<ChapAlgorithm> {
        self.algorithms.clone()
    }
    fn chap_secret(&self, _: &Login, chap_name: &str) -> Option<ChapSecrets> {
        let target = |secret| ("tuser".to_owned(), Secret::new(secret));
        (chap_name == "pc1").then(|| ChapSecrets {
            initiator: Secret::new("secretsecret1"),
            target: self.target_secret.map(target),
        })
    }
    fn open(&self, _: &Login) -> Result<Attachment, LoginRefusal> {
        Err(LoginRefusal::NotFound)
    }
    fn discover(&self, _: &Login) -> Vec<String> {
        vec![]
    }
    fn refused(&self, login: &Login, refused: &Refused<'_>) {
        let name = refused.claimed_name.unwrap_or("-");
        let words = format!(
            "{} as {name}: {}: {}",
            login.initiator, refused.status, refused.reason
        );
        self.refused.lock().unwrap().push(words);
    }
}

/// One initiator's login, stage by stage.
struct Lab {
    site: Site2,
    challenges: Challenges,
    negotiation: Option<Negotiation>,
    tsih: u16,
    cid: u16,
}

/// What came back.
#[derive(Debug, PartialEq)]
enum Heard {
    /// T, NSG and the text.
    Reply(bool, u8, String),
    /// The same, and C was set: there is more.
    Part(String),
    Refused([u8; 2]),
    Moved([u8; 2], String),
    /// The text of the last response.
    Entered(String),
}

const NAMES: &str = "InitiatorName=iqn.2010-04.org.ipxe:lab\0TargetName=iqn.2026-01.test.lab:d1\0";

impl Lab {
    fn new(authentication: Authentication) -> Lab {
        let address = "127.0.0.1:3260".parse().unwrap();
        Lab {
            site: Site2 {
                authentication,
                algorithms: ChapAlgorithm::ALL.to_vec(),
                target_secret: None,
                redirect: None,
                refused: Mutex::default(),
            },
            challenges: Challenges::default(),
            negotiation: Some(Negotiation::new(address, address)),
            tsih: 0,
            cid: 0,
        }
    }

    /// With a challenge out; these are the initiator's algorithms.
    fn challenged(target_secret: Option<&'static str>, list: &str) -> (Lab, Heard) {
        let mut lab = Lab::new(Authentication::Chap);
        lab.site.target_secret = target_secret;
        lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
        let heard = lab.send(0x81, &format!("CHAP_A={list}\0"));
        (lab, heard)
    }

    /// Sends a PDU with `flags` in byte 1.
    fn send(&mut self, flags: u8, text: &str) -> Heard {
        let (heard, _) = self.send_and_keep(flags, text);
        heard
    }

    fn request(&self, flags: u8) -> LoginRequest {
        LoginRequest {
            transit: flags & 0x80 != 0,
            continues: flags & 0x40 != 0,
            current_stage: (flags >> 2) & 3,
            next_stage: flags & 3,
            version_min: 0,
            isid: [0x40, 0, 0x27, 0x23, 0, 1],
            tsih: self.tsih,
            itt: 0,
            cid: self.cid,
            cmd_sn: 1496,
            exp_stat_sn: 0,
        }
    }

    fn send_and_keep(&mut self, flags: u8, text: &str) -> (Heard, Option<Box<Entrance>>) {
        self.send_request(&self.request(flags), text.as_bytes())
    }

    fn send_request(
        &mut self,
        request: &LoginRequest,
        text: &[u8],
    ) -> (Heard, Option<Box<Entrance>>) {
        // The random bytes of the fact sheet's vector.
        let random = || {
            Some(std::array::from_fn(|i| {
                [0x17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][i]
            }))
        };
        // There is session 7, with connection 0.
        let rejoin = |_: &Login, tsih, cid| match (tsih, cid) {
            (7, 0) => Ok(Parameters {
                max_burst_length: 4096,
                max_send_data_segment_length: 1024,
                initial_r2t: false,
                ..Parameters::default()
            }
            .of_session()),
            (7, _) => Err(LoginStatus::TOO_MANY_CONNECTIONS),
            _ => Err(LoginStatus::NO_SUCH_SESSION),
        };
        let site = crate::login::Site {
            targets: &self.site,
            challenges: &self.challenges,
            rejoin: &rejoin,
            random: &random,
        };
        let negotiation = self.negotiation.take().expect("the login has ended");
        let (negotiation, progress) = negotiation.receive(request, text, &site);
        self.negotiation = negotiation;
        let text_of = |pdu: &[u8]| {
            let length = usize::from(u16::from_be_bytes([pdu[6], pdu[7]]));
            String::from_utf8(pdu[48..48 + length].to_vec()).unwrap()
        };
        match progress {
            Progress::Reply(pdu) => {
                assert_eq!(pdu[36..38], [0, 0]);
                if pdu[1] & 0x40 != 0 {
                    assert_eq!(pdu[1] & 0x83, 0, "it goes on in this stage");
                    return (Heard::Part(text_of(&pdu)), None);
                }
                let heard = Heard::Reply(pdu[1] & 0x80 != 0, pdu[1] & 3, text_of(&pdu));
                (heard, None)
            }
            Progress::Refuse(pdu, refusal) => {
                assert_eq!(pdu[36..38], refusal.status.bytes());
                assert_eq!(pdu[1] & 0xc0, 0);
                if refusal.redirect.is_some() {
                    return (Heard::Moved(refusal.status.bytes(), text_of(&pdu)), None);
                }
                assert_eq!(text_of(&pdu), "");
                (Heard::Refused(refusal.status.bytes()), None)
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
fn section_12_1_who_may_stay_unknown_proves_itself_when_it_would_rather() {
    for (offers, answer) in [
        ("CHAP,None", "CHAP"),
        ("CHAP", "CHAP"),
        ("None,CHAP", "None"),
        ("None", "None"),
    ] {
        let mut lab = Lab::new(Authentication::Offered);
        let heard = lab.send(0x81, &format!("{NAMES}AuthMethod={offers}\0"));
        let Heard::Reply(_, _, text) = heard else {
            panic!("{offers}: {heard:?}");
        };
        assert!(
            text.contains(&format!("AuthMethod={answer}\0")),
            "{offers}: {text:?}"
        );
    }
    // A proof that was begun is not left out.
    let mut lab = Lab::new(Authentication::Offered);
    lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP,None\0"));
    let heard = lab.send(0x87, "InitialR2T=Yes\0");
    assert!(matches!(heard, Heard::Refused(_)), "{heard:?}");
    // Without a security stage there is nothing to prove.
    let mut lab = Lab::new(Authentication::Offered);
    let heard = lab.send(0x87, NAMES);
    assert!(matches!(heard, Heard::Entered(_)), "{heard:?}");
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
fn ipxe_asks_for_our_proof_and_gets_it() {
    let (mut lab, _) = Lab::challenged(Some("targetsecret2"), "5");
    let proof = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0\
                 CHAP_I=88\0CHAP_C=0xb8aa46649880034c522287f489106c66\0";
    let ours = "CHAP_N=tuser\0CHAP_R=0x3c02e85442c60c0d55faa567dc81c980\0";
    assert_eq!(lab.send(0x81, proof), reply(true, 1, ours));
    assert!(matches!(lab.send(0x87, ""), Heard::Entered(_)));
}

#[test]
fn who_asks_for_a_proof_we_do_not_have_is_refused() {
    let (mut lab, _) = Lab::challenged(None, "5");
    let mutual = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0CHAP_I=1\0CHAP_C=0x01\0";
    assert_eq!(lab.send(0x81, mutual), Heard::Refused([2, 1]));
}

#[test]
fn a_challenge_sent_back_is_refused() {
    let (mut lab, _) = Lab::challenged(Some("targetsecret2"), "5");
    let reflected = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0\
                     CHAP_I=23\0CHAP_C=0x000102030405060708090A0B0C0D0E0F\0";
    assert_eq!(lab.send(0x81, reflected), Heard::Refused([2, 1]));
    let refused = lab.site.refused.lock().unwrap();
    assert!(refused[0].contains("was sent back"), "{refused:?}");
}

#[test]
fn edk2_gets_the_algorithm_it_prefers_unless_the_site_forbids_it() {
    let challenge = CHALLENGE.replace("CHAP_A=5", "CHAP_A=7");
    let (mut lab, heard) = Lab::challenged(None, "7,5");
    assert_eq!(heard, reply(false, 0, &challenge));
    let proof =
        "CHAP_N=pc1\0CHAP_R=0xdead788d95087b92a21231c84b9b5b90217e49d0c56f1fb81a2200279981bcd7\0";
    assert_eq!(lab.send(0x81, proof), reply(true, 1, ""));

    for (allowed, heard) in [
        (vec![ChapAlgorithm::Md5], reply(false, 0, CHALLENGE)),
        (vec![ChapAlgorithm::Sha3_256], Heard::Refused([2, 1])),
    ] {
        let mut lab = Lab::new(Authentication::Chap);
        lab.site.algorithms = allowed;
        lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
        assert_eq!(lab.send(0x81, "CHAP_A=7,5\0"), heard);
    }
}

#[test]
fn the_site_hears_of_a_wrong_secret_and_who_claimed_what() {
    let (mut lab, _) = Lab::challenged(None, "5");
    lab.send(
        0x81,
        "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f17\0",
    );
    let refused = lab.site.refused.lock().unwrap();
    let words = "iqn.2010-04.org.ipxe:lab as pc1: authentication failure (0201): wrong CHAP secret";
    assert_eq!(refused[..], [words]);
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
    for algorithms in ["CHAP_A=56\0", "CHAP_A=\0", "CHAP_A=9\0"] {
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
fn a_stage_is_neither_left_early_nor_entered_again() {
    let mut lab = Lab::new(Authentication::None);
    lab.send(0x00, NAMES);
    assert_eq!(lab.send(0x87, ""), Heard::Refused([2, 0]));
    let mut lab = Lab::new(Authentication::None);
    assert!(matches!(lab.send(0x81, NAMES), Heard::Reply(true, 1, _)));
    assert_eq!(lab.send(0x81, "AuthMethod=None\0"), Heard::Refused([2, 0]));
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

// Section 6.3.4: connection reinstatement.

#[test]
fn a_connection_takes_the_place_of_its_old_one_and_no_other_joins() {
    let mut lab = Lab::new(Authentication::None);
    lab.tsih = 7;
    let offer = format!("{NAMES}MaxBurstLength=8192\0MaxRecvDataSegmentLength=2048\0");
    let (heard, entrance) = lab.send_and_keep(0x87, &offer);
    let answer = "TargetPortalGroupTag=1\0MaxBurstLength=Reject\0MaxRecvDataSegmentLength=262144\0";
    assert_eq!(heard, Heard::Entered(answer.to_owned()));
    let parameters = entrance.unwrap().parameters;
    assert_eq!(parameters.max_burst_length, 4096, "the session's");
    assert!(!parameters.initial_r2t, "the session's");
    assert_eq!(parameters.max_send_data_segment_length, 2048);

    for (tsih, cid, status) in [(7, 1, [2, 6]), (8, 0, [2, 0x0a])] {
        let mut lab = Lab::new(Authentication::None);
        (lab.tsih, lab.cid) = (tsih, cid);
        assert_eq!(lab.send(0x87, NAMES), Heard::Refused(status));
    }
}

#[test]
fn which_sessions_there_are_is_said_after_the_proof() {
    let mut lab = Lab::new(Authentication::Chap);
    lab.tsih = 8;
    lab.send(0x81, &format!("{NAMES}AuthMethod=CHAP\0"));
    assert_eq!(lab.send(0x81, "CHAP_A=5\0"), reply(false, 0, CHALLENGE));
    let proof = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0";
    assert_eq!(lab.send(0x81, proof), Heard::Refused([2, 0x0a]));
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

// Section 6.1: text over several PDUs, ours and theirs.

/// Keys that we do not know, and our answer to them.
fn strange_keys(count: usize) -> (String, String) {
    let keys = (0..count).map(|n| format!("X-{n:061}"));
    let (offers, answers): (Vec<_>, Vec<_>) = keys
        .map(|key| (format!("{key}=\0"), format!("{key}=NotUnderstood\0")))
        .unzip();
    (offers.concat(), answers.concat())
}

#[test]
fn an_answer_of_more_than_8192_bytes_comes_in_parts() {
    let (offers, answers) = strange_keys(120);
    for last in [0x87, 0x04] {
        let mut lab = Lab::new(Authentication::None);
        assert_eq!(lab.send(0x04, NAMES).clone_reply().unwrap().len(), 55);
        let Heard::Part(first) = lab.send(0x87, &offers) else {
            panic!("it fits into no PDU");
        };
        assert_eq!(first.len(), MAX_LOGIN_DATA_BYTES);
        let rest = answers[first.len()..].to_owned();
        assert_eq!(first, answers[..first.len()]);
        match last {
            0x87 => assert_eq!(lab.send(last, ""), Heard::Entered(rest)),
            _ => assert_eq!(lab.send(last, ""), reply(false, 0, &rest)),
        }
    }
    // Nothing is said before everything is heard.
    for (flags, text) in [(0x87, "InitialR2T=No\0"), (0x44, "")] {
        let mut lab = Lab::new(Authentication::None);
        lab.send(0x04, NAMES);
        assert!(matches!(lab.send(0x87, &offers), Heard::Part(_)));
        assert_eq!(lab.send(flags, text), Heard::Refused([2, 0]));
    }
}

#[test]
fn every_response_has_the_next_stat_sn_and_the_commands_number() {
    let mut lab = Lab::new(Authentication::None);
    let (offers, _) = strange_keys(120);
    let (head, tail) = NAMES.split_at(10);
    for (flags, text) in [(0x40, head), (0x81, tail), (0x04, &offers)] {
        assert!(!matches!(lab.send(flags, text), Heard::Refused(_)));
    }
    let (_, entrance) = lab.send_and_keep(0x87, "");
    let (pdu, next) = entrance.unwrap().accept(9, 128);
    assert_eq!(pdu[24..28], [0, 0, 0, 4]);
    assert_eq!(next, 5);
    assert_eq!(pdu[28..32], 1496u32.to_be_bytes());
    assert_eq!(pdu[32..36], (1496u32 + 127).to_be_bytes());
}

#[test]
fn a_login_brings_so_many_keys_and_no_more() {
    let keys = |count: usize| (0..count).map(|n| format!("X-{n}=\0")).collect::<String>();
    let mut lab = Lab::new(Authentication::None);
    lab.send(0x04, NAMES);
    assert_eq!(
        lab.send(0x04, &keys(MAX_LOGIN_KEYS - 1)),
        Heard::Refused([2, 0])
    );
    let mut lab = Lab::new(Authentication::None);
    lab.send(0x04, NAMES);
    let heard = lab.send(0x04, &keys(MAX_LOGIN_KEYS - 2));
    assert!(matches!(heard, Heard::Reply(..)));
}

// Section 6.2: what is offered where it does not belong.

#[test]
fn operational_keys_before_the_proof_are_answered_after_it() {
    let mut lab = Lab::new(Authentication::Chap);
    let first = format!("{NAMES}AuthMethod=CHAP\0InitialR2T=No\0");
    assert_eq!(
        lab.send(0x81, &first),
        reply(false, 0, "TargetPortalGroupTag=1\0AuthMethod=CHAP\0")
    );
    lab.send(0x81, "CHAP_A=5\0MaxBurstLength=4096\0");
    let proof = "CHAP_N=pc1\0CHAP_R=0x340b0fd5bfcb7192f50ef966404d6f16\0";
    let answer = "InitialR2T=No\0MaxBurstLength=4096\0";
    assert_eq!(lab.send(0x81, proof), reply(true, 1, answer));
    let (_, entrance) = lab.send_and_keep(0x87, "");
    let parameters = entrance.unwrap().parameters;
    assert!(!parameters.initial_r2t && parameters.max_burst_length == 4096);
}

#[test]
fn who_it_is_is_said_in_the_first_text() {
    for late in ["SessionType=Discovery\0", "TargetAddress=x\0"] {
        let mut lab = Lab::new(Authentication::None);
        lab.send(0x04, NAMES);
        let heard = lab.send(0x87, late);
        let is_address = late.starts_with("TargetAddress");
        assert_eq!(heard == Heard::Refused([2, 0]), !is_address, "{heard:?}");
    }
}

#[test]
fn the_first_burst_is_held_to_a_shorter_burst_whatever_comes_first() {
    let mut lab = Lab::new(Authentication::None);
    let offer = format!("{NAMES}FirstBurstLength=65536\0MaxBurstLength=4096\0");
    let answer = "TargetPortalGroupTag=1\0FirstBurstLength=4096\0MaxBurstLength=4096\0\
                  MaxRecvDataSegmentLength=262144\0";
    assert_eq!(lab.send(0x87, &offer), Heard::Entered(answer.to_owned()));
}

#[test]
fn a_method_may_be_offered_late_but_not_never() {
    let mut lab = Lab::new(Authentication::Chap);
    let tag = "TargetPortalGroupTag=1\0";
    assert_eq!(lab.send(0x00, NAMES), reply(false, 0, tag));
    let heard = lab.send(0x81, "AuthMethod=None,CHAP\0");
    assert_eq!(heard, reply(false, 0, "AuthMethod=CHAP\0"));
    let mut lab = Lab::new(Authentication::Chap);
    lab.send(0x00, NAMES);
    assert_eq!(lab.send(0x81, ""), Heard::Refused([2, 1]));
    let mut lab = Lab::new(Authentication::None);
    lab.send(0x00, NAMES);
    let heard = lab.send(0x81, "AuthMethod=CHAP,None\0");
    assert_eq!(heard, reply(true, 1, "AuthMethod=None\0"));
}

// Section 11.12: the header.

#[test]
fn nobody_becomes_another_during_a_login() {
    let become_another: [fn(&mut LoginRequest); 3] = [
        |request| request.cid = 1,
        |request| request.tsih = 1,
        |request| request.isid[5] = 2,
    ];
    for change in become_another {
        let mut lab = Lab::new(Authentication::None);
        lab.send(0x04, NAMES);
        let mut request = lab.request(0x87);
        change(&mut request);
        let (heard, _) = lab.send_request(&request, b"");
        assert_eq!(heard, Heard::Refused([2, 0x0b]));
    }
    let mut lab = Lab::new(Authentication::None);
    let mut request = lab.request(0x87);
    request.version_min = 1;
    let (heard, _) = lab.send_request(&request, NAMES.as_bytes());
    assert_eq!(heard, Heard::Refused([2, 5]));
}

// Section 11.13: the response, byte by byte.

#[test]
fn a_discovery_login_of_libiscsis_is_accepted_in_one_exchange() {
    // Captured; tgt's answer differs in its text, its handle and its window.
    let mut lab = Lab::new(Authentication::None);
    let request = LoginRequest {
        transit: true,
        continues: false,
        current_stage: 1,
        next_stage: 3,
        version_min: 0,
        isid: [0x80, 0x2c, 0xe5, 0x09, 0, 0],
        tsih: 0,
        itt: 0x3628_d412,
        cid: 0,
        cmd_sn: 0x43e6_7fae,
        exp_stat_sn: 1,
    };
    let text = "InitiatorName=iqn.2007-10.com.github:sahlberg:libiscsi\0SessionType=Discovery\0\
                HeaderDigest=None\0";
    let (_, entrance) = lab.send_request(&request, text.as_bytes());
    let (pdu, _) = entrance.unwrap().accept(1, 2);
    let mut expected = vec![
        0x23, 0x87, 0, 0, 0, 0, 0, 0x32, 0x80, 0x2c, 0xe5, 0x09, 0, 0, 0, 1, 0x36, 0x28, 0xd4,
        0x12, 0, 0, 0, 0, 0, 0, 0, 1, 0x43, 0xe6, 0x7f, 0xae, 0x43, 0xe6, 0x7f, 0xaf, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    expected.extend_from_slice(b"HeaderDigest=None\0MaxRecvDataSegmentLength=262144\0\0\0");
    assert_eq!(pdu, expected);
}

#[test]
fn a_target_that_has_moved_says_where_to_and_nothing_else() {
    for (permanently, status) in [(false, [1, 1]), (true, [1, 2])] {
        let redirect = Redirect {
            to: "192.0.2.7:3260".to_owned(),
            permanently,
        };
        let address = "TargetAddress=192.0.2.7:3260\0".to_owned();
        // Before any proof, and of the site's opening.
        let mut early = Lab::new(Authentication::Chap);
        early.site.redirect = Some(redirect.clone());
        let moved = Heard::Moved(status, address.clone());
        assert_eq!(early.send(0x81, NAMES), moved);
        assert!(early.site.refused.lock().unwrap().is_empty());
        let mut late = Lab::new(Authentication::None);
        let (_, entrance) = late.send_and_keep(0x87, NAMES);
        let pdu = entrance
            .unwrap()
            .refuse(&LoginRefusal::Moved(redirect).into());
        assert_eq!((pdu[1], &pdu[36..38]), (0x04, &status[..]));
        assert_eq!(&pdu[48..48 + address.len()], address.as_bytes());
    }
}

#[test]
fn what_the_site_says_has_its_status() {
    for (refusal, status) in [
        (LoginRefusal::AuthenticationFailure, [2, 1]),
        (LoginRefusal::AuthorizationFailure, [2, 2]),
        (LoginRefusal::NotFound, [2, 3]),
        (LoginRefusal::Removed, [2, 4]),
        (LoginRefusal::TargetError("x".to_owned()), [3, 0]),
        (LoginRefusal::ServiceUnavailable, [3, 1]),
    ] {
        assert_eq!(Refusal::from(refusal).status.bytes(), status);
    }
    let removed = LoginStatus::REMOVED.to_string();
    assert_eq!(removed, "target removed (0204)");
}

// Section 6 as a whole: whatever comes.

mod any {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{BHS_BYTES, Request};

    fn pair() -> impl Strategy<Value = Vec<u8>> {
        let key = prop_oneof![
            "(AuthMethod|CHAP_[ANRIC]|SessionType|TargetName|InitiatorName|HeaderDigest)",
            "(MaxBurstLength|FirstBurstLength|InitialR2T|OFMarkInt|iSCSIProtocolLevel)",
            "[ -~]{0,70}",
        ];
        let value = prop_oneof![
            "(None|CHAP|CHAP,None|5|7,5|Yes|No|Discovery|pc1|0x17|0bAAAA|4294967296|512)",
            "[ -~]{0,300}",
        ];
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            6 => (key, value).prop_map(|(key, value)| format!("{key}={value}\0").into_bytes()),
            1 => Just(NAMES.as_bytes().to_vec()),
            1 => bytes,
        ]
    }

    proptest! {
        #[test]
        fn no_login_panics_or_gathers_memory(
            pdus in prop::collection::vec(
                (any::<[u8; BHS_BYTES]>(), 0..8u8, prop::collection::vec(pair(), 0..20)), 1..20
            ),
            chap in any::<bool>(),
        ) {
            let authentication = match chap {
                true => Authentication::Chap,
                false => Authentication::None,
            };
            let mut lab = Lab::new(authentication);
            lab.site.target_secret = Some("targetsecret2");
            lab.send(0x00, NAMES);
            for (mut bhs, mend, pairs) in pdus {
                bhs[0] = 0x43;
                if mend > 0 {
                    // A header that fits, so that what follows is reached.
                    bhs = Request::Login(lab.request([0, 0x81, 0x40, 0x04, 0x87, 0x44, 0x83][usize::from(mend - 1)]))
                        .emit(0);
                }
                let Ok(Request::Login(request)) = Request::parse(&bhs) else {
                    continue;
                };
                let mut text = pairs.concat();
                text.truncate(MAX_LOGIN_DATA_BYTES);
                lab.send_request(&request, &text);
                let Some(negotiation) = &lab.negotiation else {
                    return Ok(());
                };
                prop_assert!(negotiation.text.len() <= MAX_LOGIN_TEXT_BYTES);
                prop_assert!(negotiation.unsent.len() <= MAX_LOGIN_KEYS * 128);
                prop_assert!(negotiation.seen.len() <= MAX_LOGIN_KEYS);
                prop_assert!(negotiation.deferred.len() <= MAX_LOGIN_KEYS);
            }
        }
    }
}
