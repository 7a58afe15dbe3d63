//! What the tool's words mean.

use crate::Test;

/// What one test said of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All that was asked was answered rightly.
    Passed,
    /// The same, but parts of the test were left out: why.
    PassedInPart(String),
    /// Nothing was judged: why.
    Skipped(String),
    /// It failed, hung or crashed: its output.
    Failed(String),
    /// It failed by a fault of its own.
    Excused(&'static Fault),
}

/// A fault of a test: it fails whatever a target does that obeys the standard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    suite: &'static str,
    name: &'static str,
    /// The only assertion that may fail.
    assertion: &'static str,
    /// Why no target is at fault.
    pub(crate) proof: &'static str,
}

/// All that is excused (libiscsi 1.19). Another assertion of the same test is not.
const FAULTS: [Fault; 3] = [
    Fault {
        suite: "iSCSITMF",
        name: "LUNResetSimpleAsync",
        assertion: "test_async_lu_reset_simple.c:157",
        proof: "asserts that its callback was called before the loop that calls callbacks has \
                run; libiscsi's commit 5553d6b (after 1.19) moves the assertion into the callback",
    },
    Fault {
        suite: "WriteSame10",
        name: "UnmapUntilEnd",
        assertion: "test_writesame10_unmap_until_end.c:71",
        proof: "writes blocks of FF with UNMAP and wants zeros, though SBC-3 has blocks written \
                so read back as written; its twin WriteSame16.UnmapUntilEnd writes zeros",
    },
    Fault {
        suite: "GetLBAStatus",
        name: "UnmapSingle",
        assertion: "test_get_lba_status_unmap_single.c:135",
        proof: "asks for block i + 1 and wants an answer that begins with block i + (blocks per \
                physical block): can pass only where that is 1, as on thin-4k",
    },
];

/// The verdict on a process that ended by itself.
pub(crate) fn of(test: &Test, is_success: bool, said: &str) -> Verdict {
    // tests TOTAL RAN PASSED FAILED INACTIVE
    let summary = said
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("tests "))
        .unwrap_or_default();
    let numbers: Vec<&str> = summary.split_whitespace().collect();
    match numbers.get(..4) {
        Some(["1", "1", "1", "0"]) if is_success => skips(test, said),
        Some(["1", "1", "0", "1"]) => fault(test, said),
        _ => None,
    }
    .unwrap_or_else(|| Verdict::Failed(said.to_owned()))
}

/// Passed or skipped. A test that is skipped says so last, and its command was
/// not answered before; else what is skipped is a part left out.
fn skips(test: &Test, said: &str) -> Option<Verdict> {
    let start = said.find(&format!("  Test: {} ...", test.name))?;
    let own: Vec<&str> = said[start..]
        .lines()
        .take_while(|line| !line.starts_with("passed"))
        .collect();
    let is_skip = |line: &&&str| line.contains("[SKIPPED]");
    let reason = |line: &&str| {
        let (_, reason) = line.split_once("[SKIPPED]").unwrap_or_default();
        reason.trim().trim_end_matches('.').to_owned()
    };
    let answered = format!("[OK] {} returned", test.suite.to_uppercase());
    let is_answered = own.iter().any(|line| line.contains(&answered));
    if let Some(last) = own.last().filter(is_skip)
        && !is_answered
    {
        return Some(Verdict::Skipped(reason(last)));
    }
    let mut parts: Vec<String> = own.iter().filter(is_skip).map(reason).collect();
    parts.dedup();
    Some(match parts.is_empty() {
        true => Verdict::Passed,
        false => Verdict::PassedInPart(parts.join("; ")),
    })
}

/// Excused, if nothing failed but the known assertion.
fn fault(test: &Test, said: &str) -> Option<Verdict> {
    let fault = FAULTS
        .iter()
        .find(|fault| (fault.suite, fault.name) == (test.suite.as_str(), test.name.as_str()))?;
    // "    1. test_file.c:157  - CU_ASSERT_EQUAL(...)"
    let mut failed = said.lines().filter_map(|line| {
        let (number, assertion) = line.trim_start().split_once(". ")?;
        let is_one = number.parse::<u32>().is_ok() && assertion.contains(".c:");
        is_one.then_some(assertion)
    });
    let is_known = failed.next()?.starts_with(fault.assertion) && failed.next().is_none();
    is_known.then_some(Verdict::Excused(fault))
}

/// A claim: each kind of output has its verdict.
pub(crate) fn the_tools_words_are_read() -> bool {
    let verdict = |name: &str, own: &str, summary: &str| {
        let (suite, name) = name.split_once('.').unwrap();
        let test = Test {
            suite: suite.to_owned(),
            name: name.to_owned(),
        };
        let said = format!(
            "    [SKIPPED] said by the tool itself.\nSuite: {suite}\n  Test: {name} ...{own}    \
             [SKIPPED] said by the tool itself.\n\nRun Summary:\n   asserts 9 9 9 0 n/a\n     \
             tests   {summary}      0\n"
        );
        (of(&test, true, &said), of(&test, false, &said))
    };
    let passes = "1 1 1 0";
    let fails = "1 1 0 1";
    let failed = |verdict: &Verdict| matches!(verdict, Verdict::Failed(_));

    let (passed, crashed) = verdict(
        "Read10.Simple",
        "\n    Send READ10\n    [OK]\npassed",
        passes,
    );
    assert_eq!(passed, Verdict::Passed);
    assert!(failed(&crashed));
    let skip = "\n    Send ORWRITE\n    [SKIPPED] ORWRITE is not implemented.\npassed";
    let skipped = Verdict::Skipped("ORWRITE is not implemented".to_owned());
    assert_eq!(verdict("OrWrite.Simple", skip, passes).0, skipped);
    let part = "\n    [SKIPPED] no OVERWRITE\n    Send SANITIZE\npassed";
    let in_part = Verdict::PassedInPart("no OVERWRITE".to_owned());
    assert_eq!(verdict("Sanitize.Readonly", part, passes).0, in_part);
    let last = "\n    [OK] SANITIZE returned\n    [SKIPPED] no CRYPTO\npassed";
    let in_part = Verdict::PassedInPart("no CRYPTO".to_owned());
    assert_eq!(verdict("Sanitize.Reservations", last, passes).0, in_part);
    // Crashed before the summary; nothing ran; the test is not there.
    assert!(failed(&verdict("Read10.Simple", "", "").0));
    assert!(failed(&verdict("Read10.Simple", "", "1 0 0 0").0));
    assert!(failed(&verdict("Read10.Simple", "", "0 0 0 0").0));

    let own = "FAILED\n    1. test_async_lu_reset_simple.c:157  - CU_ASSERT_EQUAL(r,1)";
    let excused = verdict("iSCSITMF.LUNResetSimpleAsync", own, fails).0;
    assert!(matches!(excused, Verdict::Excused(_)));
    assert!(failed(
        &verdict("iSCSITMF.AbortTaskSimpleAsync", own, fails).0
    ));
    let more = format!("{own}\n    2. test_async_lu_reset_simple.c:200  - CU_FAIL(x)\n");
    assert!(failed(
        &verdict("iSCSITMF.LUNResetSimpleAsync", &more, fails).0
    ));
    true
}
