//! Text keys: reading them, and the answer to each (RFC 7143 sections 6.1,
//! 6.2 and 13).

/// What we declare: the longest data segment we take.
pub(crate) const OUR_MAX_RECV_DATA_SEGMENT_LENGTH: u32 = 262_144;
/// What holds until the initiator declares its own, and during login.
pub(crate) const DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH: u32 = 8192;
/// Longest burst we agree to.
const OUR_MAX_BURST_LENGTH: u32 = 1 << 20;
/// Most unsolicited data we agree to.
const OUR_FIRST_BURST_LENGTH: u32 = 262_144;
/// Seconds an initiator waits before it comes back.
const OUR_TIME2WAIT: u32 = 2;
/// We keep no tasks of a lost connection.
const OUR_TIME2RETAIN: u32 = 0;
/// Digests we agree to, in the full feature phase of a connection.
const OUR_DIGESTS: &[Digest] = &[Digest::None, Digest::Crc32c];
/// RFC 7144: the functions of SAM-5.
const OUR_PROTOCOL_LEVEL: u32 = 2;
/// Longest key name.
const MAX_KEY_BYTES: usize = 63;
/// Longest value; CHAP's binary values may be longer.
const MAX_VALUE_BYTES: usize = 255;
/// Longest binary value: 1024 bytes in hexadecimal.
const MAX_BINARY_VALUE_BYTES: usize = 2 + 2048;

/// What cannot be read as text keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadText;

/// Reads `key=value` pairs, each ended by a NUL (the last one may lack it).
pub(crate) fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, BadText> {
    let mut pairs = Vec::new();
    for pair in text
        .split(|byte| *byte == 0)
        .filter(|pair| !pair.is_empty())
    {
        let pair = str::from_utf8(pair).map_err(|_| BadText)?;
        let (key, value) = pair.split_once('=').ok_or(BadText)?;
        let longest = match key {
            "CHAP_C" | "CHAP_R" => MAX_BINARY_VALUE_BYTES,
            _ => MAX_VALUE_BYTES,
        };
        // What is echoed, and may end in a log, is printable.
        let is_name = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name || key.len() > MAX_KEY_BYTES || value.len() > longest {
            return Err(BadText);
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Appends a pair.
pub(crate) fn emit(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// A number, decimal or hexadecimal.
pub(crate) fn number(value: &str) -> Option<u32> {
    let hexadecimal = value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        None if !value.starts_with('+') => value.parse().ok(),
        _ => None,
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// How a part of each PDU is protected in the full feature phase (RFC 7143
/// section 13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    None,
    Crc32c,
}

impl Digest {
    fn parse(name: &str) -> Option<Digest> {
        match name {
            "None" => Some(Digest::None),
            "CRC32C" => Some(Digest::Crc32c),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Digest::None => "None",
            Digest::Crc32c => "CRC32C",
        }
    }
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// Over the BHS and additional headers, both ways.
    pub(crate) header_digest: Digest,
    /// Over the data segment and its padding, both ways.
    pub(crate) data_digest: Digest,
    /// iSCSIProtocolLevel: from 2 on, RFC 7144 holds.
    pub(crate) protocol_level: u32,
    /// The longest data segment the initiator takes.
    pub(crate) max_send_data_segment_length: u32,
    pub(crate) max_burst_length: u32,
    pub(crate) first_burst_length: u32,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
}

impl Default for Parameters {
    /// The RFC's defaults.
    fn default() -> Parameters {
        Parameters {
            header_digest: Digest::None,
            data_digest: Digest::None,
            protocol_level: 1,
            max_send_data_segment_length: DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH,
            max_burst_length: 262_144,
            first_burst_length: 65_536,
            initial_r2t: true,
            immediate_data: true,
        }
    }
}

/// What an offered key is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing: the key declares.
    Silence,
    /// This value.
    Value(String),
    /// `Reject`, and without an agreement there is no session.
    Fatal,
}

impl Answer {
    fn text(value: &str) -> Answer {
        Answer::Value(value.to_owned())
    }

    fn reject() -> Answer {
        Answer::text("Reject")
    }

    fn yes_or_no(value: bool) -> Answer {
        Answer::text(if value { "Yes" } else { "No" })
    }
}

/// Keys of the session, which only its first connection negotiates (RFC 7143
/// section 13: "LO").
pub(crate) fn is_leading_only(key: &str) -> bool {
    matches!(
        key,
        "MaxConnections"
            | "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "ErrorRecoveryLevel"
            | "TaskReporting"
            | "iSCSIProtocolLevel"
            | "X#NodeArchitecture"
    )
}

impl Parameters {
    /// What a further connection of the session starts from: the session's
    /// own, and the defaults of what each connection negotiates.
    pub(crate) fn of_session(&self) -> Parameters {
        let Parameters {
            header_digest,
            data_digest,
            max_send_data_segment_length,
            ..
        } = Parameters::default();
        Parameters {
            header_digest,
            data_digest,
            max_send_data_segment_length,
            ..self.clone()
        }
    }

    /// Answers one offered operational key, and holds to the answer.
    pub(crate) fn answer(&mut self, key: &str, value: &str) -> Answer {
        match key {
            // Declarations; who is who has been read already.
            "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType"
            | "X#NodeArchitecture" => Answer::Silence,
            // Irrelevant ones (FirstBurstLength where nothing is unsolicited,
            // all of data transfer in a discovery session) are answered like
            // any other: initiators read a numeric `Irrelevant` as 0.
            "HeaderDigest" => digest(value, OUR_DIGESTS, &mut self.header_digest),
            "DataDigest" => digest(value, OUR_DIGESTS, &mut self.data_digest),
            "MaxConnections" => least(value, 1..=65_535, 1),
            "InitialR2T" => match boolean(value) {
                Some(theirs) => {
                    self.initial_r2t = theirs; // OR with our No
                    Answer::yes_or_no(theirs)
                }
                None => Answer::reject(),
            },
            "ImmediateData" => match boolean(value) {
                Some(theirs) => {
                    self.immediate_data = theirs; // AND with our Yes
                    Answer::yes_or_no(theirs)
                }
                None => Answer::reject(),
            },
            "MaxRecvDataSegmentLength" => match number(value) {
                Some(theirs @ 512..=0xff_ffff) => {
                    self.max_send_data_segment_length = theirs;
                    Answer::Silence // ours is declared by the login
                }
                _ => Answer::reject(),
            },
            "MaxBurstLength" => match number(value) {
                Some(theirs @ 512..=0xff_ffff) => {
                    self.max_burst_length = theirs.min(OUR_MAX_BURST_LENGTH);
                    self.first_burst_length = self.first_burst_length.min(self.max_burst_length);
                    Answer::Value(self.max_burst_length.to_string())
                }
                _ => Answer::reject(),
            },
            "FirstBurstLength" => match number(value) {
                Some(theirs @ 512..=0xff_ffff) => {
                    let ours = OUR_FIRST_BURST_LENGTH.min(self.max_burst_length);
                    self.first_burst_length = theirs.min(ours);
                    Answer::Value(self.first_burst_length.to_string())
                }
                _ => Answer::reject(),
            },
            "DefaultTime2Wait" => match number(value) {
                Some(theirs @ 0..=3600) => Answer::Value(theirs.max(OUR_TIME2WAIT).to_string()),
                _ => Answer::reject(),
            },
            "DefaultTime2Retain" => least(value, 0..=3600, OUR_TIME2RETAIN),
            "MaxOutstandingR2T" => least(value, 1..=65_535, 1),
            "DataPDUInOrder" | "DataSequenceInOrder" => match boolean(value) {
                Some(_) => Answer::text("Yes"), // OR with our Yes
                None => Answer::reject(),
            },
            "ErrorRecoveryLevel" => least(value, 0..=2, 0),
            "TaskReporting" => match value.split(',').any(|offer| offer == "RFC3720") {
                true => Answer::text("RFC3720"),
                false => Answer::reject(),
            },
            "iSCSIProtocolLevel" => match number(value) {
                Some(theirs @ 0..=31) => {
                    self.protocol_level = theirs.min(OUR_PROTOCOL_LEVEL);
                    Answer::Value(self.protocol_level.to_string())
                }
                _ => Answer::reject(),
            },
            // Obsolete; must not be "not understood" (RFC 7143 section 13.25).
            "IFMarker" | "OFMarker" => Answer::text("No"),
            "IFMarkInt" | "OFMarkInt" => Answer::reject(),
            // Only a target's, or not of this stage.
            "TargetAlias"
            | "TargetAddress"
            | "TargetPortalGroupTag"
            | "AuthMethod"
            | "SendTargets" => Answer::reject(),
            _ => Answer::text("NotUnderstood"),
        }
    }
}

impl Parameters {
    /// Answers one key of a Text Request, that is after the login (RFC 7143
    /// section 7.2.2): the initiator may declare anew how long a data segment
    /// it takes, and everything else stands.
    pub(crate) fn answer_later(&mut self, key: &str, value: &str) -> Answer {
        match key {
            "MaxRecvDataSegmentLength" | "InitiatorAlias" => self.answer(key, value),
            _ => match Parameters::default().answer(key, value) {
                Answer::Value(answer) if answer == "NotUnderstood" => Answer::Value(answer),
                _ => Answer::reject(),
            },
        }
    }
}

/// The first offer that is one of `ours`.
fn digest(offers: &str, ours: &[Digest], agreed: &mut Digest) -> Answer {
    let common = offers
        .split(',')
        .filter_map(Digest::parse)
        .find(|offer| ours.contains(offer));
    match common {
        Some(common) => {
            *agreed = common;
            Answer::text(common.name())
        }
        None => Answer::Fatal,
    }
}

/// The result function Minimum.
fn least(value: &str, range: std::ops::RangeInclusive<u32>, ours: u32) -> Answer {
    match number(value) {
        Some(theirs) if range.contains(&theirs) => Answer::Value(theirs.min(ours).to_string()),
        _ => Answer::reject(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(key: &str, value: &str) -> Answer {
        Parameters::default().answer(key, value)
    }

    fn says(value: &str) -> Answer {
        Answer::Value(value.to_owned())
    }

    #[test]
    fn pairs_are_read_with_or_without_the_last_nul() {
        assert_eq!(parse(b"A=1\0B=x=y\0"), Ok(vec![("A", "1"), ("B", "x=y")]));
        assert_eq!(parse(b"A=1\0B="), Ok(vec![("A", "1"), ("B", "")]));
        assert_eq!(parse(b"A\0"), Err(BadText));
        assert_eq!(parse(b"=1\0"), Err(BadText));
        assert_eq!(parse(b"A=\xff\0"), Err(BadText));
        assert_eq!(parse(b"A\n=1\0"), Err(BadText));
        assert_eq!(parse("Ä=1\0".as_bytes()), Err(BadText));
    }

    #[test]
    fn what_linux_offers_is_answered_key_by_key() {
        let mut parameters = Parameters::default();
        let mut answer = |key, value| parameters.answer(key, value);
        assert_eq!(answer("HeaderDigest", "None,CRC32C"), says("None"));
        assert_eq!(answer("DefaultTime2Wait", "2"), says("2"));
        assert_eq!(answer("DefaultTime2Retain", "0"), says("0"));
        assert_eq!(answer("IFMarker", "No"), says("No"));
        assert_eq!(answer("ErrorRecoveryLevel", "2"), says("0"));
        assert_eq!(answer("InitialR2T", "No"), says("No"));
        assert_eq!(answer("ImmediateData", "Yes"), says("Yes"));
        assert_eq!(answer("MaxBurstLength", "16776192"), says("1048576"));
        assert_eq!(answer("FirstBurstLength", "262144"), says("262144"));
        assert_eq!(answer("MaxOutstandingR2T", "16"), says("1"));
        assert_eq!(
            answer("MaxRecvDataSegmentLength", "262144"),
            Answer::Silence
        );
        assert_eq!(
            parameters,
            Parameters {
                max_send_data_segment_length: 262_144,
                max_burst_length: 1_048_576,
                first_burst_length: 262_144,
                initial_r2t: false,
                ..Parameters::default()
            }
        );
    }

    #[test]
    fn the_first_burst_is_never_longer_than_a_burst() {
        let mut parameters = Parameters::default();
        parameters.answer("FirstBurstLength", "262144");
        parameters.answer("MaxBurstLength", "4096");
        assert_eq!(parameters.first_burst_length, 4096);
    }

    #[test]
    fn numbers_out_of_range_and_broken_ones_are_rejected() {
        for (key, value) in [
            ("MaxBurstLength", "511"),
            ("MaxBurstLength", "16777216"),
            ("MaxConnections", "0"),
            ("ErrorRecoveryLevel", "3"),
            ("DefaultTime2Wait", "3601"),
            ("InitialR2T", "yes"),
            ("MaxRecvDataSegmentLength", "+512"),
            ("TaskReporting", "FastAbort"),
        ] {
            assert_eq!(answer(key, value), says("Reject"), "{key}={value}");
        }
        assert_eq!(answer("MaxBurstLength", "0x200"), says("512"));
    }

    #[test]
    fn the_first_digest_of_the_initiators_list_that_we_have_is_agreed_on() {
        let both = [Digest::None, Digest::Crc32c];
        let agree = |offers: &str, ours: &[Digest]| {
            let mut agreed = Digest::None;
            (digest(offers, ours, &mut agreed), agreed)
        };
        for (offers, name, agreed) in [
            ("None,CRC32C", "None", Digest::None),
            ("CRC32C,None", "CRC32C", Digest::Crc32c),
            ("X-md5,CRC32C", "CRC32C", Digest::Crc32c),
        ] {
            assert_eq!(agree(offers, &both), (says(name), agreed), "{offers}");
        }
        let without = agree("CRC32C,None", &[Digest::None]);
        assert_eq!(without, (says("None"), Digest::None));
        for offers in ["", "crc32c", "CRC32", "X-md5"] {
            assert_eq!(agree(offers, &both).0, Answer::Fatal, "{offers}");
        }
    }

    #[test]
    fn the_protocol_level_is_the_lower_one_and_1_if_nobody_says() {
        assert_eq!(Parameters::default().protocol_level, 1);
        for (offer, agreed) in [("0", 0), ("1", 1), ("2", 2), ("31", 2)] {
            let mut parameters = Parameters::default();
            let answer = parameters.answer("iSCSIProtocolLevel", offer);
            assert_eq!(answer, Answer::Value(agreed.to_string()));
            assert_eq!(parameters.protocol_level, agreed);
        }
        assert_eq!(answer("iSCSIProtocolLevel", "32"), says("Reject"));
    }

    #[test]
    fn after_the_login_only_the_length_of_data_segments_changes() {
        let mut parameters = Parameters::default();
        for (key, value, answer) in [
            ("MaxRecvDataSegmentLength", "65536", Answer::Silence),
            ("MaxRecvDataSegmentLength", "511", says("Reject")),
            ("InitiatorAlias", "pc1", Answer::Silence),
            ("MaxBurstLength", "4096", says("Reject")),
            ("HeaderDigest", "None", says("Reject")),
            ("InitiatorName", "iqn.a:b", says("Reject")),
            ("IFMarkInt", "1", says("Reject")),
            ("sendtargets", "All", says("NotUnderstood")),
            ("X-com.example.key", "1", says("NotUnderstood")),
        ] {
            assert_eq!(parameters.answer_later(key, value), answer, "{key}");
        }
        let expected = Parameters {
            max_send_data_segment_length: 65_536,
            ..Parameters::default()
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn obsolete_keys_are_known_and_strange_ones_are_not() {
        assert_eq!(answer("OFMarkInt", "2048"), says("Reject"));
        assert_eq!(answer("X-com.example.key", "1"), says("NotUnderstood"));
        assert_eq!(answer("headerdigest", "None"), says("NotUnderstood"));
        assert_eq!(answer("X#NodeArchitecture", "x"), Answer::Silence);
    }
}
