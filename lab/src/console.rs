//! A PC's serial console: a Unix socket of QEMU's, read by a thread.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::Deadline;

/// Lines shown when a wait fails.
const SHOWN_LINES: usize = 40;

/// A PC's serial console. What was read is kept as plain text (no escape
/// sequences) for the life of the console.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    text: Arc<Mutex<Text>>,
    /// Where the next wait starts to look.
    seen: usize,
}

#[derive(Debug, Default)]
struct Text {
    plain: String,
    escape: Escape,
    /// The PC went off.
    closed: bool,
}

impl Console {
    /// Connects to QEMU's socket as soon as it is there.
    pub(crate) fn open(socket: &Path, deadline: Deadline) -> Result<Console> {
        let stream = deadline
            .wait(|| Ok(UnixStream::connect(socket).ok()))
            .with_context(|| format!("connecting to the console {}", socket.display()))?;
        let text = Arc::new(Mutex::new(Text::default()));
        let mut reader = stream.try_clone()?;
        let into = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = reader.read(&mut buffer).unwrap_or(0);
                let mut text = lock(&into);
                if count == 0 {
                    text.closed = true;
                    return;
                }
                let Text { plain, escape, .. } = &mut *text;
                escape.strip(&buffer[..count], plain);
            }
        });
        Ok(Console {
            stream,
            text,
            seen: 0,
        })
    }

    /// Types.
    ///
    /// # Errors
    /// When the PC is off.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        self.stream
            .write_all(keys.as_bytes())
            .context("typing on the console: the PC is off")
    }

    /// All it has shown so far.
    pub fn text(&self) -> String {
        lock(&self.text).plain.clone()
    }

    /// What it showed beyond the first `from` bytes, and how many there are now.
    pub fn text_from(&self, from: usize) -> (String, usize) {
        let text = lock(&self.text);
        (
            text.plain.get(from..).unwrap_or_default().to_owned(),
            text.plain.len(),
        )
    }

    /// The last lines it showed.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Waits until one of these is shown after what was waited for before, and
    /// returns its index. A screen 80 columns wide breaks lines anywhere, so
    /// line breaks inside a match do not count.
    ///
    /// # Errors
    /// When the deadline passes or the PC goes off; with the console's tail.
    pub fn wait_for_any(&mut self, patterns: &[&str], deadline: Deadline) -> Result<usize> {
        let waited = deadline.wait(|| {
            let text = lock(&self.text);
            let unseen = text.plain.get(self.seen..).unwrap_or_default().as_bytes();
            let first = patterns
                .iter()
                .enumerate()
                .filter_map(|(index, pattern)| {
                    find(unseen, pattern.as_bytes()).map(|end| (end, index))
                })
                .min();
            if let Some((end, index)) = first {
                self.seen += end;
                return Ok(Some(index));
            }
            if text.closed {
                bail!("the PC went off");
            }
            Ok(None)
        });
        waited.with_context(|| {
            format!(
                "waiting for {patterns:?} on a console that ends:\n{}\n",
                self.tail()
            )
        })
    }

    /// Waits until this is shown; see [`Console::wait_for_any`].
    ///
    /// # Errors
    /// When the deadline passes or the PC goes off; with the console's tail.
    pub fn wait_for(&mut self, pattern: &str, deadline: Deadline) -> Result<()> {
        self.wait_for_any(&[pattern], deadline).map(|_| ())
    }

    /// The rest of the line that the last wait ended in, once it is whole.
    ///
    /// # Errors
    /// When the deadline passes or the PC goes off.
    pub fn rest_of_line(&mut self, deadline: Deadline) -> Result<String> {
        let line = deadline.wait(|| {
            let text = lock(&self.text);
            let unseen = text.plain.get(self.seen..).unwrap_or_default();
            let line = unseen
                .split_once('\n')
                .map(|(line, _)| line.trim_end_matches('\r').to_owned());
            if line.is_none() && text.closed {
                bail!("the PC went off");
            }
            Ok(line)
        })?;
        self.seen += line.len();
        Ok(line)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Ends the reading thread.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn lock(text: &Mutex<Text>) -> MutexGuard<'_, Text> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of the first `needle` in `hay`, line breaks in `hay` ignored inside
/// a match.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    (0..hay.len()).find_map(|start| {
        let mut wanted = needle.iter();
        let mut next = wanted.next()?;
        for (offset, byte) in hay[start..].iter().enumerate() {
            if byte == next {
                match wanted.next() {
                    Some(byte) => next = byte,
                    None => return Some(start + offset + 1),
                }
            } else if offset == 0 || !matches!(byte, b'\r' | b'\n') {
                return None;
            }
        }
        None
    })
}

/// Text without escape sequences.
pub fn plain(bytes: &[u8]) -> String {
    let mut text = String::new();
    Escape::default().strip(bytes, &mut text);
    text
}

/// Where in an escape sequence (ECMA-48) the stream is.
#[derive(Clone, Copy, Debug, Default)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Started,
    /// In a control sequence, `ESC [ ... letter`.
    Control,
}

impl Escape {
    fn strip(&mut self, bytes: &[u8], into: &mut String) {
        for &byte in bytes {
            *self = match (*self, byte) {
                (_, 0x1b) => Escape::Started,
                (Escape::Started, b'[') => Escape::Control,
                (Escape::Started, _) => Escape::None,
                (Escape::Control, 0x40..=0x7e) => {
                    // "Cursor to row;column" begins a new line as far as a reader is concerned.
                    if byte == b'H' && !into.is_empty() && !into.ends_with('\n') {
                        into.push('\n');
                    }
                    Escape::None
                }
                (Escape::Control, _) => Escape::Control,
                (Escape::None, b'\r') | (Escape::None, 0..=8) => Escape::None,
                (Escape::None, b'\n' | b'\t' | 0x20..=0x7e) => {
                    into.push(char::from(byte));
                    Escape::None
                }
                // One mark for a character beyond ASCII, whatever its length in UTF-8.
                (Escape::None, 0x80..=0xbf) => Escape::None,
                (Escape::None, _) => {
                    into.push('?');
                    Escape::None
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_over_a_broken_line() {
        assert_eq!(find(b"see http\r\n://x", b"http://"), Some(13));
        assert_eq!(find(b"abab", b"bab"), Some(4));
        assert_eq!(find(b"ab", b"abc"), None);
        assert_eq!(find(b"", b"a"), None);
    }

    #[test]
    fn escape_sequences_are_not_shown() {
        assert_eq!(
            plain(b"\x1b[0;1miPXE\x1b[0m\r\nok\x07"),
            "iPXE\nok?".replace('?', "")
        );
        assert_eq!(plain(b"a\x1b[2;1Hb"), "a\nb");
        assert_eq!(plain("a\u{2026}b".as_bytes()), "a?b");
    }
}
