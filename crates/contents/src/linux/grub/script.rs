//! GRUB's script language, parsed (GRUB manual, "Writing full configuration
//! files directly").
//!
//! Nothing here fails: what cannot be understood is passed over, as a person
//! would who only wants to know what is booted. Functions and loops are not
//! run.

use std::rc::Rc;

/// A statement.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    Command(Vec<Word>),
    If {
        branches: Vec<(Vec<Statement>, Vec<Statement>)>,
        rest: Vec<Statement>,
    },
    /// `menuentry` or `submenu`.
    Menu {
        words: Vec<Word>,
        body: Rc<[Statement]>,
        is_menu: bool,
    },
}

/// A word, made of pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pieces: Vec<Piece>,
    /// Whether quotes were in it: then it is a word, even empty.
    is_quoted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable { name: String, is_quoted: bool },
}

/// Blocks within blocks.
const MAX_DEPTH: u32 = 32;

impl Word {
    /// What it is where variables have values: a value that is not quoted is
    /// split at its spaces. `None` where the values have more bytes than are
    /// `left`.
    pub(super) fn expand<'v>(
        &self,
        value: &dyn Fn(&str) -> Option<&'v str>,
        left: &mut usize,
    ) -> Option<Vec<String>> {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut is_word = self.is_quoted;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => {
                    word.push_str(text);
                    is_word = true;
                }
                Piece::Variable { name, is_quoted } => {
                    let value = value(name).unwrap_or_default();
                    *left = left.checked_sub(value.len())?;
                    if *is_quoted {
                        word.push_str(value);
                        continue;
                    }
                    for (index, part) in value.split(' ').enumerate() {
                        if index > 0 && (is_word || !word.is_empty()) {
                            words.push(std::mem::take(&mut word));
                            is_word = false;
                        }
                        word.push_str(part);
                    }
                }
            }
        }
        if is_word || !word.is_empty() {
            words.push(word);
        }
        Some(words)
    }

    /// Its text, where it is a plain one that may be a keyword.
    fn plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.is_quoted => Some(text),
            _ => None,
        }
    }
}

/// Parses a script.
pub(super) fn parse(text: &str) -> Vec<Statement> {
    let mut parser = Parser {
        tokens: lex(text),
        at: 0,
    };
    let mut all = Vec::new();
    loop {
        all.extend(parser.block(&[], 0));
        // A word that ends a block nobody began.
        if parser.at >= parser.tokens.len() {
            return all;
        }
        parser.at += 1;
    }
}

/// The words of one line.
pub(super) fn words(text: &str) -> Vec<Word> {
    let tokens = lex(text).into_iter();
    tokens
        .filter_map(|token| match token {
            Token::Word(word) => Some(word),
            Token::End => None,
        })
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A line's or a command's.
    End,
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn keyword(&self) -> Option<&str> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => word.plain(),
            _ => None,
        }
    }

    /// Statements up to one of the keywords in `ends`, which is left; also up
    /// to any keyword that only ends things.
    fn block(&mut self, ends: &[&str], depth: u32) -> Vec<Statement> {
        const CLOSING: [&str; 6] = ["fi", "else", "elif", "then", "done", "}"];
        let mut statements = Vec::new();
        loop {
            while self.tokens.get(self.at) == Some(&Token::End) {
                self.at += 1;
            }
            if self.at >= self.tokens.len() {
                return statements;
            }
            let keyword = self.keyword().unwrap_or_default().to_owned();
            if ends.contains(&keyword.as_str()) || CLOSING.contains(&keyword.as_str()) {
                return statements;
            }
            match keyword.as_str() {
                _ if depth >= MAX_DEPTH => {
                    self.command();
                }
                "if" => statements.push(self.conditional(depth)),
                "menuentry" | "submenu" => {
                    self.at += 1;
                    let words = self.until_brace();
                    let body = self.braced(depth);
                    statements.push(Statement::Menu {
                        words,
                        body: body.into(),
                        is_menu: keyword == "submenu",
                    });
                }
                "function" => {
                    self.at += 1;
                    self.until_brace();
                    self.braced(depth);
                }
                "for" | "while" | "until" => {
                    self.at += 1;
                    self.command();
                    self.skip(&["do"]);
                    self.block(&["done"], depth + 1);
                    self.skip(&["done"]);
                }
                _ => {
                    let words = self.command();
                    if !words.is_empty() {
                        statements.push(Statement::Command(words));
                    }
                }
            }
        }
    }

    fn conditional(&mut self, depth: u32) -> Statement {
        let mut branches = Vec::new();
        let mut rest = Vec::new();
        loop {
            self.at += 1; // if, elif
            let condition = self.block(&["then"], depth + 1);
            self.skip(&["then"]);
            let body = self.block(&["elif", "else", "fi"], depth + 1);
            branches.push((condition, body));
            match self.keyword() {
                Some("elif") => {}
                Some("else") => {
                    self.at += 1;
                    rest = self.block(&["fi"], depth + 1);
                    self.skip(&["fi"]);
                    break;
                }
                _ => {
                    self.skip(&["fi"]);
                    break;
                }
            }
        }
        Statement::If { branches, rest }
    }

    /// Words up to an opening brace, which is left.
    fn until_brace(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            if word.plain() == Some("{") {
                break;
            }
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn braced(&mut self, depth: u32) -> Vec<Statement> {
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        if self.keyword() != Some("{") {
            return Vec::new();
        }
        self.at += 1;
        let body = self.block(&["}"], depth + 1);
        self.skip(&["}"]);
        body
    }

    fn skip(&mut self, keywords: &[&str]) {
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        if self
            .keyword()
            .is_some_and(|keyword| keywords.contains(&keyword))
        {
            self.at += 1;
        }
    }

    /// The words of a command, with the end of it passed.
    fn command(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            match token {
                Token::Word(word) => words.push(word.clone()),
                Token::End => break,
            }
        }
        words
    }
}

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<Word> = None;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '#' if word.is_none() => while chars.next_if(|char| *char != '\n').is_some() {},
            ' ' | '\t' | '\r' => tokens.extend(word.take().map(Token::Word)),
            '\n' | ';' | '&' | '|' => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::End);
            }
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(escaped) => push(word.get_or_insert_default(), escaped),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.is_quoted = true;
                for char in chars.by_ref().take_while(|char| *char != '\'') {
                    push(word, char);
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.is_quoted = true;
                while let Some(char) = chars.next() {
                    match char {
                        '"' => break,
                        '\\' => match chars.next() {
                            Some(escaped @ ('"' | '\\' | '$')) => push(word, escaped),
                            Some('\n') | None => {}
                            Some(other) => {
                                push(word, '\\');
                                push(word, other);
                            }
                        },
                        '$' => variable(word, &mut chars, true),
                        other => push(word, other),
                    }
                }
            }
            '$' => variable(word.get_or_insert_default(), &mut chars, false),
            other => push(word.get_or_insert_default(), other),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens.push(Token::End);
    tokens
}

fn push(word: &mut Word, char: char) {
    match word.pieces.last_mut() {
        Some(Piece::Text(text)) => text.push(char),
        _ => word.pieces.push(Piece::Text(char.to_string())),
    }
}

/// What follows a dollar.
fn variable(
    word: &mut Word,
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    is_quoted: bool,
) {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        name.extend(chars.by_ref().take_while(|char| *char != '}'));
    } else {
        let is_name = |char: &char| char.is_ascii_alphanumeric() || matches!(char, '_' | '?');
        while let Some(char) = chars.next_if(is_name) {
            name.push(char);
        }
    }
    match name.is_empty() {
        true => push(word, '$'),
        false => word.pieces.push(Piece::Variable { name, is_quoted }),
    }
}
