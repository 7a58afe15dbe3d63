//! The entry that GRUB boots, by its configuration.
//!
//! `grub.cfg` is a program: what it would choose is found by running the part
//! of its language that distributions write (variables, `if`, `test`, menus,
//! `load_env`, `blscfg`, `source`), with all that talks to a screen or a device
//! left out, and with a limit on everything.

use std::collections::HashMap;

use self::script::{Statement, Word};
use super::bls::LoaderEntry;
use super::entries::{Boot, Configuration, Entry, arguments, title};
use super::{MAX_TEXT_BYTES, Source, environment, text};
use crate::{Error, ReadableFile, Tree};

mod script;

/// Statements that are run for one configuration.
const MAX_STEPS: u32 = 100_000;
/// Configurations that read one another.
const MAX_SOURCES: u32 = 8;
/// Menus within menus.
const MAX_MENUS: u32 = 8;
/// Files that are asked for, `if [ -f FILE ]` counted too.
const MAX_FILES: u32 = 256;
/// Bytes that values of variables have, each time one is used.
const MAX_EXPANDED_BYTES: usize = 16 << 20;
/// Bytes of all variables.
const MAX_VARIABLE_BYTES: usize = 1 << 20;
/// Items of one menu.
const MAX_ITEMS: usize = 4096;

/// What a configuration boots unless somebody at the machine chooses otherwise.
pub(super) fn chosen(
    boot: &Boot<'_>,
    esp: Option<&Tree>,
    configuration: &Configuration,
) -> Result<Entry, Error> {
    let path = &configuration.path;
    let script = match (configuration.is_on_esp, esp) {
        (true, Some(esp)) => text(esp, path),
        _ => boot
            .open(path)
            .and_then(|file| file.read_all(MAX_TEXT_BYTES))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    };
    let script = script.ok_or_else(|| Error::Foreign(format!("{path} cannot be read")))?;
    let mut grub = Grub::new(boot, esp, path);
    let statements = script::parse(&script);
    grub.run(&statements)?;
    // One without a menu loads a kernel itself.
    if grub.items.is_empty()
        && let Some(entry) = grub.loaded(None)
    {
        return Ok(entry);
    }
    let default = grub.variable("default");
    let items = std::mem::take(&mut grub.items);
    let chosen = grub.boot(&items, &default, 0)?;
    // One that boots another system, or the firmware's settings: the first
    // Linux is what remains.
    let chosen = match chosen {
        Some(entry) => Some(entry),
        None => grub.first(&items, 0)?,
    };
    chosen.ok_or_else(|| Error::Foreign(format!("{path} has no entry that boots a Linux")))
}

/// An item of a menu.
#[derive(Clone)]
struct Item {
    title: String,
    id: String,
    what: What,
}

#[derive(Clone)]
enum What {
    Entry(std::rc::Rc<[Statement]>),
    Menu(std::rc::Rc<[Statement]>),
    Loader(Box<LoaderEntry>),
}

/// GRUB, as far as it decides what to boot.
struct Grub<'a> {
    boot: &'a Boot<'a>,
    esp: Option<&'a Tree>,
    path: String,
    variables: HashMap<String, String>,
    variable_bytes: usize,
    items: Vec<Item>,
    /// What `linux` and `initrd` said.
    kernel: Option<(String, Vec<String>)>,
    initrds: Vec<String>,
    steps: u32,
    sources: u32,
    files: u32,
    left_bytes: usize,
    has_loader_entries: bool,
}

impl<'a> Grub<'a> {
    fn new(boot: &'a Boot<'a>, esp: Option<&'a Tree>, path: &str) -> Grub<'a> {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let mut grub = Grub {
            boot,
            esp,
            path: path.to_owned(),
            variables: HashMap::new(),
            variable_bytes: 0,
            items: Vec::new(),
            kernel: None,
            initrds: Vec::new(),
            steps: 0,
            sources: 0,
            files: 0,
            left_bytes: MAX_EXPANDED_BYTES,
            has_loader_entries: false,
        };
        for (name, value) in [
            ("prefix", directory),
            ("config_directory", directory),
            ("config_file", path),
            ("grub_platform", "efi"),
            ("grub_cpu", "x86_64"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("feature_timeout_style", "y"),
        ] {
            grub.variables.insert(name.to_owned(), value.to_owned());
        }
        grub
    }

    fn variable(&self, name: &str) -> String {
        self.variables.get(name).cloned().unwrap_or_default()
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), Error> {
        self.variable_bytes += name.len() + value.len();
        if self.variable_bytes > MAX_VARIABLE_BYTES {
            return Err(self.too_much("bytes of variables", MAX_VARIABLE_BYTES as u64));
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    fn too_much(&self, what: &str, limit: u64) -> Error {
        Error::Foreign(format!(
            "{}: more than {limit} {what} are not gone through",
            self.path
        ))
    }

    /// Runs statements; gives whether the last of them succeeded.
    fn run(&mut self, statements: &[Statement]) -> Result<bool, Error> {
        let mut status = true;
        for statement in statements {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(self.too_much("statements", u64::from(MAX_STEPS)));
            }
            match statement {
                Statement::Command(words) => {
                    let words = self.expand(words)?;
                    status = self.command(&words)?;
                }
                Statement::If { branches, rest } => {
                    let mut taken = rest;
                    for (condition, body) in branches {
                        if self.run(condition)? {
                            taken = body;
                            break;
                        }
                    }
                    status = self.run(taken)?;
                }
                Statement::Menu {
                    words,
                    body,
                    is_menu,
                } => {
                    let words = self.expand(words)?;
                    if self.items.len() >= MAX_ITEMS {
                        return Err(self.too_much("entries", MAX_ITEMS as u64));
                    }
                    let what = match is_menu {
                        true => What::Menu(body.clone()),
                        false => What::Entry(body.clone()),
                    };
                    self.items.push(item(&words, what));
                    status = true;
                }
            }
        }
        Ok(status)
    }

    /// Words with the values of their variables; one that is not quoted and
    /// empty is none, and one with spaces is several.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, Error> {
        let mut left = self.left_bytes;
        let value = |name: &str| self.variables.get(name).map(String::as_str);
        let mut expanded = Vec::new();
        for word in words {
            match word.expand(&value, &mut left) {
                Some(words) => expanded.extend(words),
                None => return Err(self.too_much("bytes", MAX_EXPANDED_BYTES as u64)),
            }
        }
        self.left_bytes = left;
        Ok(expanded)
    }

    /// Asks for a file, which a configuration may do only so often.
    fn file(&mut self, path: &str) -> Result<Option<ReadableFile>, Error> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(self.too_much("files", u64::from(MAX_FILES)));
        }
        Ok(self.boot.open(path).ok())
    }

    fn command(&mut self, words: &[String]) -> Result<bool, Error> {
        let Some((name, rest)) = words.split_first() else {
            return Ok(true);
        };
        match name.as_str() {
            // One is enough, and no chain of them goes deep.
            "!" if rest.first().is_some_and(|next| next != "!") => {
                return Ok(!self.command(rest)?);
            }
            "set" => {
                if let Some((name, value)) = rest.first().and_then(|word| word.split_once('=')) {
                    self.set(name, value.to_owned())?;
                }
            }
            "unset" => {
                for name in rest {
                    self.variables.remove(name);
                }
            }
            "[" => {
                let rest = rest.split_last().map_or(rest, |(_, rest)| rest);
                return self.test(rest);
            }
            "test" => return self.test(rest),
            "load_env" => self.load_environment(rest)?,
            "linux" | "linux16" | "linuxefi" => {
                if let Some((kernel, arguments)) = rest.split_first() {
                    self.kernel = Some((kernel.clone(), arguments.to_vec()));
                }
            }
            "initrd" | "initrd16" | "initrdefi" => {
                let files = rest.iter().filter(|word| !word.starts_with("--"));
                self.initrds = files.cloned().collect();
            }
            "blscfg" if !self.has_loader_entries => {
                self.has_loader_entries = true;
                for entry in self.boot.loader_entries() {
                    self.items.push(Item {
                        title: entry.title.clone(),
                        id: entry.id.clone(),
                        what: What::Loader(Box::new(entry)),
                    });
                }
            }
            "source" | "configfile" | "." => {
                return match rest.first() {
                    Some(path) => self.source(path),
                    None => Ok(false),
                };
            }
            "true" | "export" | "insmod" | "search" | "echo" | "save_env" => {}
            assignment if is_assignment(assignment) => {
                if let Some((name, value)) = assignment.split_once('=') {
                    self.set(name, value.to_owned())?;
                }
            }
            // Fonts, terminals, keys: what is not there fails.
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn source(&mut self, path: &str) -> Result<bool, Error> {
        self.sources += 1;
        if self.sources > MAX_SOURCES {
            return Ok(false);
        }
        let Some(file) = self.file(path)? else {
            return Ok(false);
        };
        let script = file.read_all(MAX_TEXT_BYTES)?;
        let statements = script::parse(&String::from_utf8_lossy(&script));
        self.run(&statements)
    }

    fn load_environment(&mut self, words: &[String]) -> Result<(), Error> {
        let named = words
            .iter()
            .position(|word| word == "-f" || word == "--file");
        let path = named.and_then(|at| words.get(at + 1)).cloned().or_else(|| {
            let mut words = words.iter();
            words.find_map(|word| word.strip_prefix("--file=").map(str::to_owned))
        });
        let path = path.unwrap_or_else(|| format!("{}/grubenv", self.variable("prefix")));
        let file = self.file(&path)?;
        let values = file.map(|file| environment::of(&file)).unwrap_or_default();
        let values = match (values.is_empty(), self.esp) {
            // RHEL 8 keeps it beside the configuration, which may be the ESP's.
            (true, Some(esp)) => environment::read(esp, &path),
            _ => values,
        };
        for (name, value) in values {
            self.set(&name, value)?;
        }
        Ok(())
    }

    /// `[ ... ]`
    fn test(&mut self, words: &[String]) -> Result<bool, Error> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for words in words.split(|word| *word == "-o") {
            let mut is_all = true;
            for words in words.split(|word| *word == "-a") {
                is_all &= self.term(words)?;
            }
            if is_all {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn term(&mut self, words: &[&str]) -> Result<bool, Error> {
        Ok(match words {
            ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-z"] => true,
            ["-e" | "-f" | "-s", path] => {
                let is_here = self.file(path)?.is_some();
                let on_esp = |esp: &Tree| matches!(esp.kind(path), Ok(Some(_)));
                is_here || self.esp.is_some_and(on_esp)
            }
            ["!", text] => text.is_empty(),
            ["!", rest @ ..] if !rest.is_empty() && rest[0] != "!" => !self.term(rest)?,
            [text] => !text.is_empty() && *text != "-n",
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, compare, b] => {
                let (Ok(a), Ok(b)) = (a.parse::<i64>(), b.parse::<i64>()) else {
                    return Ok(false);
                };
                match *compare {
                    "-eq" => a == b,
                    "-ne" => a != b,
                    "-lt" => a < b,
                    "-le" => a <= b,
                    "-gt" => a > b,
                    "-ge" => a >= b,
                    _ => false,
                }
            }
            _ => false,
        })
    }

    /// Boots the item that `default` names: a number, a title or an id, and
    /// after `>` one of the menu within; `None` where that boots no Linux.
    fn boot(&mut self, items: &[Item], default: &str, depth: u32) -> Result<Option<Entry>, Error> {
        let (name, within) = path(default);
        let number = name.trim().parse::<usize>().ok();
        let by_number = number.and_then(|number| items.get(number));
        let is_named = |item: &&Item| item.title == name || (item.id == name && !name.is_empty());
        let item = by_number
            .or_else(|| items.iter().find(is_named))
            .or_else(|| items.first());
        match item {
            Some(item) => self.boot_item(item, &within, depth),
            None => Ok(None),
        }
    }

    fn boot_item(&mut self, item: &Item, within: &str, depth: u32) -> Result<Option<Entry>, Error> {
        let body = match &item.what {
            What::Loader(entry) => return self.loader_entry(entry).map(Some),
            What::Entry(body) => body.clone(),
            What::Menu(_) if depth >= MAX_MENUS => return Ok(None),
            What::Menu(body) => {
                self.items.clear();
                self.run(body)?;
                let items = std::mem::take(&mut self.items);
                return self.boot(&items, within, depth + 1);
            }
        };
        (self.kernel, self.initrds) = (None, Vec::new());
        self.set("chosen", item.title.clone())?;
        self.run(&body)?;
        Ok(self.loaded(Some(title(&item.title))))
    }

    /// What `linux` and `initrd` have loaded.
    fn loaded(&mut self, title: Option<String>) -> Option<Entry> {
        let (kernel, words) = self.kernel.take()?;
        // As GRUB hands it on: a word with spaces in quotes.
        let quoted = words.into_iter().map(|word| match word.contains(' ') {
            true => format!("\"{word}\""),
            false => word,
        });
        let quoted: Vec<String> = quoted.collect();
        Some(Entry {
            title,
            source: Source::Grub(self.path.clone()),
            kernel,
            initrds: std::mem::take(&mut self.initrds),
            arguments: arguments(quoted.iter().map(String::as_str)),
        })
    }

    /// The first item that boots a Linux.
    fn first(&mut self, items: &[Item], depth: u32) -> Result<Option<Entry>, Error> {
        for item in items {
            let found = match &item.what {
                What::Menu(_) if depth >= MAX_MENUS => None,
                What::Menu(body) => {
                    self.items.clear();
                    let body = body.clone();
                    self.run(&body)?;
                    let items = std::mem::take(&mut self.items);
                    self.first(&items, depth + 1)?
                }
                _ => self.boot_item(item, "", depth)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// An entry of a file of its own, in which GRUB's variables stand too.
    fn loader_entry(&mut self, entry: &LoaderEntry) -> Result<Entry, Error> {
        let options = self.expand(&script::words(&entry.options))?;
        let initrds = script::words(&entry.initrds.join(" "));
        Ok(Entry {
            title: Some(title(&entry.title)).filter(|title| !title.is_empty()),
            source: Source::LoaderEntry(entry.path.clone()),
            kernel: entry.linux.clone(),
            initrds: self.expand(&initrds)?,
            arguments: arguments(options.iter().map(String::as_str)),
        })
    }
}

/// An item by the words of `menuentry` or `submenu`.
fn item(words: &[String], what: What) -> Item {
    let mut title = None;
    let mut id = String::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--id" => id = words.next().cloned().unwrap_or_default(),
            "--class" | "--users" | "--hotkey" | "--source" => {
                words.next();
            }
            option if option.starts_with("--id=") => id = option[5..].to_owned(),
            option if option.starts_with("--") => {}
            _ if title.is_none() => title = Some(word.clone()),
            _ => {}
        }
    }
    Item {
        title: title.unwrap_or_default(),
        id,
        what,
    }
}

/// The first name of a path of menus, and the rest: `>` stands between them,
/// `>>` for one in a name.
fn path(default: &str) -> (String, String) {
    let mut name = String::new();
    let mut chars = default.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '>' if chars.peek() == Some(&'>') => {
                chars.next();
                name.push('>');
            }
            '>' => return (name, chars.collect()),
            other => name.push(other),
        }
    }
    (name, String::new())
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name);
    name.is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}
