//! CHAP by vectors: the fact sheet's, and captures of iPXE and libiscsi with
//! tgt.

use super::*;

const SECRET: &str = "secretsecret1";

/// Sent by tgt, answered by iPXE (identifier 1).
const TGT_TO_IPXE: &str = "0x289fdd9ba066ed9be92f81b54269dbaa0bf7eefe8163e348eb43a630cfc95595\
                           f0e67aba3d6605013a2e525b13bcc6ca7292";
/// Sent by tgt, answered by libiscsi (identifier 4).
const TGT_TO_LIBISCSI: &str = "0x149f67e62b7ac9bdc06ceedff551441502c081e10ffe85a468bfa779d932f6fb\
                               82be4811d25ca8fc136af9fcc0c6125327b4";

fn issue(algorithm: ChapAlgorithm, identifier: u8, text: &str) -> Challenge {
    let bytes = binary(text).unwrap();
    let challenge = Challenges::default().issue_these(algorithm, identifier, bytes);
    challenge.unwrap()
}

/// Identifier 17h, challenge 00..0F.
fn challenge(algorithm: ChapAlgorithm) -> Challenge {
    issue(algorithm, 0x17, "0x000102030405060708090a0b0c0d0e0f")
}

fn one_way(response: &str) -> Proof<'_> {
    Proof {
        response,
        identifier: None,
        challenge: None,
    }
}

fn mutual() -> ChapSecrets {
    ChapSecrets {
        initiator: Secret::new(SECRET),
        target: Some(("tuser".to_owned(), Secret::new("targetsecret2"))),
    }
}

fn check(challenge: &Challenge, response: &str) -> Result<Option<(String, String)>, Flaw> {
    challenge.check(&one_way(response), &Secret::new(SECRET).into())
}

// Section 12.1.3: algorithms.

#[test]
fn every_algorithm_has_its_own_response() {
    for (algorithm, response) in [
        (ChapAlgorithm::Md5, "0x340b0fd5bfcb7192f50ef966404d6f16"),
        (
            ChapAlgorithm::Sha1,
            "0x197ebc6c455ac03c59899d2e811525cee80fe9d8",
        ),
        (
            ChapAlgorithm::Sha256,
            "0xdead788d95087b92a21231c84b9b5b90217e49d0c56f1fb81a2200279981bcd7",
        ),
        (
            ChapAlgorithm::Sha3_256,
            "0x078fb4e40ed5d238379ce5b9596c0f430e5b4283a90f32748debe3c1f5ecc79b",
        ),
    ] {
        for issued in ChapAlgorithm::ALL {
            let passes = check(&challenge(issued), response).is_ok();
            assert_eq!(passes, issued == algorithm, "{algorithm:?}, {issued:?}");
        }
    }
}

#[test]
fn the_first_of_the_initiators_algorithms_that_the_site_allows_is_picked() {
    use ChapAlgorithm::{Md5, Sha1, Sha3_256, Sha256};
    for (list, allowed, picked) in [
        ("7,5", &ChapAlgorithm::ALL[..], Some(Sha256)),
        ("5,7", &ChapAlgorithm::ALL, Some(Md5)),
        ("5,8,6", &[Sha1, Sha3_256], Some(Sha3_256)),
        ("9,6", &ChapAlgorithm::ALL, Some(Sha1)),
        ("5", &[Sha256], None),
        ("56", &ChapAlgorithm::ALL, None),
        ("", &ChapAlgorithm::ALL, None),
        ("0x5", &ChapAlgorithm::ALL, None),
    ] {
        assert_eq!(ChapAlgorithm::pick(list, allowed), picked, "{list}");
    }
}

#[test]
fn what_real_initiators_answered_passes() {
    let ipxe = issue(ChapAlgorithm::Md5, 1, TGT_TO_IPXE);
    assert_eq!(check(&ipxe, "0xc6905074b4a9169c6394fe820645702a"), Ok(None));
    let libiscsi = issue(ChapAlgorithm::Md5, 4, TGT_TO_LIBISCSI);
    let response = "0x240709148C71571A26812EF9699798A2";
    assert_eq!(check(&libiscsi, response), Ok(None));
    // And not the one for the other.
    assert_eq!(check(&ipxe, response), Err("wrong CHAP secret"));
}

// Section 12.1.3: mutual authentication.

#[test]
fn an_initiator_that_asks_gets_our_proof() {
    let challenge = issue(ChapAlgorithm::Md5, 1, TGT_TO_IPXE);
    for identifier in ["88", "0x58", "0X58"] {
        let proof = Proof {
            response: "0xc6905074b4a9169c6394fe820645702a",
            identifier: Some(identifier),
            challenge: Some("0xb8aa46649880034c522287f489106c66"),
        };
        let (name, response) = challenge.check(&proof, &mutual()).unwrap().unwrap();
        assert_eq!(name, "tuser");
        assert_eq!(response, "0x3c02e85442c60c0d55faa567dc81c980");
    }
    // Who does not ask gets none.
    let proof = one_way("0xc6905074b4a9169c6394fe820645702a");
    assert_eq!(challenge.check(&proof, &mutual()), Ok(None));
}

#[test]
fn a_challenge_that_cannot_be_answered_ends_the_login() {
    let issued = challenge(ChapAlgorithm::Md5);
    let check = |identifier, challenge, secrets: &ChapSecrets| {
        let proof = Proof {
            response: "0x340b0fd5bfcb7192f50ef966404d6f16",
            identifier,
            challenge,
        };
        issued.check(&proof, secrets).map(|_| ())
    };
    let theirs = Some("0xb8aa46649880034c522287f489106c66");
    assert_eq!(check(Some("88"), theirs, &mutual()), Ok(()));
    for (identifier, challenge) in [
        (None, theirs),
        (Some("88"), None),
        (Some("256"), theirs),
        (Some("-1"), theirs),
        (Some(""), theirs),
        (Some("88"), Some("")),
        (Some("88"), Some("0x")),
        (Some("88"), Some("b8aa46649880034c522287f489106c66")),
    ] {
        let result = check(identifier, challenge, &mutual());
        assert!(result.is_err(), "{identifier:?} {challenge:?}");
    }
    let no_reverse = Secret::new(SECRET).into();
    assert_eq!(
        check(Some("88"), theirs, &no_reverse),
        Err("no secret for mutual CHAP")
    );
}

// Section 9.2.1: secrets, reuse and reflection.

#[test]
fn our_own_challenges_are_not_answered_while_their_login_is_under_way() {
    let all = Challenges::default();
    let issue = |identifier: u8| {
        let random = [identifier; CHALLENGE_BYTES + 1];
        all.issue(ChapAlgorithm::Md5, random).unwrap()
    };
    let (here, elsewhere) = (issue(1), issue(2));
    let response = ChapAlgorithm::Md5.response(1, &Secret::new(SECRET), &here.bytes);
    let response = hexadecimal_text(&response);
    let reflect = |text: &str| {
        let proof = Proof {
            response: &response,
            identifier: Some("9"),
            challenge: Some(text),
        };
        here.check(&proof, &mutual()).map(|_| ())
    };
    let refusal = Err("a CHAP challenge of our own was sent back");
    assert_eq!(reflect(&here.text()), refusal);
    assert_eq!(reflect(&here.text().to_uppercase()), refusal);
    assert_eq!(reflect(&elsewhere.text()), refusal);
    let over = elsewhere.text();
    drop(elsewhere);
    assert_eq!(reflect(&over), Ok(()));
    // Nor is one challenge issued twice.
    assert!(
        all.issue(ChapAlgorithm::Md5, [1; CHALLENGE_BYTES + 1])
            .is_none()
    );
}

#[test]
fn equal_secrets_and_a_response_by_our_own_secret_are_refused() {
    let challenge = challenge(ChapAlgorithm::Md5);
    let equal = ChapSecrets {
        initiator: Secret::new(SECRET),
        target: Some(("tuser".to_owned(), Secret::new(SECRET))),
    };
    let proof = one_way("0x340b0fd5bfcb7192f50ef966404d6f16");
    assert!(challenge.check(&proof, &equal).is_err());
    let ours = Secret::new("targetsecret2");
    let reflected = ChapAlgorithm::Md5.response(0x17, &ours, &challenge.bytes);
    let reflected = hexadecimal_text(&reflected);
    assert!(challenge.check(&one_way(&reflected), &mutual()).is_err());
}

// Section 6.1: binary values.

#[test]
fn the_right_response_passes_in_hex_of_any_case_and_in_base64() {
    let challenge = challenge(ChapAlgorithm::Md5);
    assert_eq!(challenge.text(), "0x000102030405060708090a0b0c0d0e0f");
    for response in [
        "0x340b0fd5bfcb7192f50ef966404d6f16",
        "0X340B0FD5BFCB7192F50EF966404D6F16",
        "0x340b0fD5bfCB7192f50EF966404d6f16",
        "0bNAsP1b/LcZL1DvlmQE1vFg==",
        "0BNAsP1b/LcZL1DvlmQE1vFg==",
    ] {
        assert_eq!(check(&challenge, response), Ok(None), "{response}");
    }
    assert_eq!(
        binary("0bAAECAwQFBgcICQoLDA0ODw=="),
        Some((0..16).collect())
    );
}

#[test]
fn a_wrong_short_or_overlong_response_fails() {
    for response in [
        "0x340b0fd5bfcb7192f50ef966404d6f17",
        "0x340b0fd5bfcb7192f50ef966404d6f",
        "0x340b0fd5bfcb7192f50ef966404d6f1600",
        "0x00340b0fd5bfcb7192f50ef966404d6f16",
        "0bNAsP1b/LcZL1DvlmQE1vFgAA",
        "0bNAsP1b/LcZL1DvlmQE1vFgAAAAAAAAAAAAAAAAAAAAAA",
        "0bNAsP1b/LcZL1DvlmQE1vFh==",
        "0bNAsP1b/LcZL1DvlmQE1vFg=",
        "0bNAsP1b/LcZL1DvlmQE1vFg",
        "340b0fd5bfcb7192f50ef966404d6f16",
        "0x",
        "0b",
        "0b====",
        "é",
        "",
    ] {
        let result = check(&challenge(ChapAlgorithm::Md5), response);
        assert!(result.is_err(), "{response}");
    }
}

#[test]
fn an_odd_number_of_digits_starts_with_half_a_byte() {
    assert_eq!(binary("0x123"), Some(vec![0x01, 0x23]));
    assert_eq!(binary("0x1"), Some(vec![0x01]));
}

#[test]
fn base64_comes_in_whole_groups_with_nothing_left_over() {
    for (text, bytes) in [
        ("0bAQID", Some(vec![1, 2, 3])),
        ("0bAQI=", Some(vec![1, 2])),
        ("0bAQ==", Some(vec![1])),
        ("0bAR==", None),
        ("0bAQJ=", None),
        ("0bA===", None),
        ("0bA=ID", None),
        ("0bAQ I", None),
    ] {
        assert_eq!(binary(text), bytes, "{text}");
    }
}

#[test]
fn a_binary_value_has_1024_bytes_at_most() {
    assert!(binary(&format!("0x{}", "00".repeat(1024))).is_some());
    assert!(binary(&format!("0x{}", "00".repeat(1025))).is_none());
    assert!(binary(&format!("0b{}", "AAAA".repeat(341))).is_some());
    assert!(binary(&format!("0b{}", "AAAA".repeat(342))).is_none());
}
