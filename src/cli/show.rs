//! How answers are shown.

use std::io::Write;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanBytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// An answer, both ways.
pub(super) struct Answer {
    text: String,
    json: String,
}

impl Answer {
    /// None: what was asked for has been written already.
    pub(super) fn nothing() -> Answer {
        Answer {
            text: String::new(),
            json: String::new(),
        }
    }

    /// What is shown as text, and what with `--json`.
    pub(super) fn new(text: impl Into<String>, json: &impl Serialize) -> anyhow::Result<Answer> {
        Ok(Answer {
            text: text.into(),
            json: serde_json::to_string_pretty(json)?,
        })
    }

    /// What is printed.
    pub(super) fn shown(&self, json: bool) -> &str {
        if json {
            &self.json
        } else {
            self.text.trim_end()
        }
    }

    /// Prints it. A reader that has seen enough (`| head`) is no error.
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = self.shown(json);
        if text.is_empty() {
            return Ok(());
        }
        match writeln!(std::io::stdout(), "{text}") {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            printed => printed.context("cannot print the answer"),
        }
    }
}

/// A table without lines: a header, and columns two spaces apart. `right` names
/// the columns of numbers.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Facts below each other, their names in a column.
pub(super) fn details(facts: Vec<(&'static str, String)>) -> String {
    let width = facts.iter().map(|(fact, _)| fact.len()).max().unwrap_or(0);
    facts
        .iter()
        .map(|(fact, value)| format!("{fact:<width$}  {value}\n"))
        .collect()
}

/// A size as people read it: `1.50 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// A time as people here read it, to the minute.
pub(super) fn time(at: Timestamp) -> String {
    let local = at.to_zoned(TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M").to_string()
}

/// A time as people here read it, to the second.
pub(super) fn exact_time(at: Timestamp) -> String {
    let local = at.to_zoned(TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long ago something was: `3 min ago`.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.duration_since(at).as_secs() {
        ..10 => "now".to_owned(),
        seconds => format!("{} ago", length(seconds.unsigned_abs())),
    }
}

/// A length of time in its largest unit: `3 min`.
pub(super) fn length(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

/// Something, or a dash.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}
