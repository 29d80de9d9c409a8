//! Rust source as tokens and comments, without what strings and comments say.
//!
//! Lexical structure: *The Rust Reference*, chapters "Comments" and "Tokens". Only what the lints
//! need is told apart: words (identifiers, keywords, numbers), single punctuation characters and
//! literals of text.

/// One token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Token<'a> {
    /// Line that it starts on, from 1.
    pub(crate) line: usize,
    /// What it is.
    pub(crate) kind: Kind<'a>,
}

/// What a token is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind<'a> {
    /// Identifier, keyword or number.
    Word(&'a str),
    /// One character of punctuation.
    Mark(char),
    /// String, byte string, character.
    Literal,
}

/// One comment, doc comments included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Comment<'a> {
    /// Line that it starts on, from 1.
    pub(crate) line: usize,
    /// Its text with the slashes.
    pub(crate) text: &'a str,
}

/// A Rust file taken apart.
#[derive(Debug, Default)]
pub(crate) struct Source<'a> {
    /// Tokens, in order.
    pub(crate) tokens: Vec<Token<'a>>,
    /// Comments, in order.
    pub(crate) comments: Vec<Comment<'a>>,
}

impl<'a> Source<'a> {
    /// Takes `text` apart. Text that is no Rust gives some tokens, never a failure.
    pub(crate) fn new(text: &'a str) -> Self {
        let mut lexer = Lexer {
            text,
            at: 0,
            line: 1,
            source: Self::default(),
        };
        while lexer.step() {}
        lexer.source
    }

    /// Returns the word at token `index`.
    pub(crate) fn word(&self, index: usize) -> Option<&'a str> {
        match self.tokens.get(index)?.kind {
            Kind::Word(word) => Some(word),
            Kind::Mark(_) | Kind::Literal => None,
        }
    }

    /// Returns whether the tokens from `index` on are the characters of `marks`.
    pub(crate) fn marks(&self, index: usize, marks: &str) -> bool {
        marks.chars().enumerate().all(|(offset, mark)| {
            self.tokens
                .get(index + offset)
                .is_some_and(|token| token.kind == Kind::Mark(mark))
        })
    }
}

struct Lexer<'a> {
    text: &'a str,
    /// Byte position of the next character.
    at: usize,
    line: usize,
    source: Source<'a>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Moves over `len` bytes, which end at a character, and returns them.
    fn take(&mut self, len: usize) -> &'a str {
        let taken = &self.rest()[..len];
        self.line += taken.matches('\n').count();
        self.at += len;
        taken
    }

    fn push(&mut self, line: usize, kind: Kind<'a>) {
        self.source.tokens.push(Token { line, kind });
    }

    /// Reads one token, comment or white space; returns `false` at the end.
    fn step(&mut self) -> bool {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return false;
        };
        let line = self.line;
        if rest.starts_with("//") {
            let text = self.take(rest.find('\n').unwrap_or(rest.len()));
            self.source.comments.push(Comment { line, text });
        } else if rest.starts_with("/*") {
            let text = self.take(block_comment_len(rest));
            self.source.comments.push(Comment { line, text });
        } else if let Some(len) = text_literal_len(rest) {
            self.take(len);
            self.push(line, Kind::Literal);
        } else if is_word(first) {
            let word = self.take(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
            self.push(line, Kind::Word(word));
        } else {
            self.take(first.len_utf8());
            if !first.is_whitespace() {
                self.push(line, Kind::Mark(first));
            }
        }
        true
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Block comments nest.
fn block_comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(found) = text[at..].find(['/', '*']) {
        at += found;
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth = depth.saturating_sub(1);
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Returns the length of the string or character literal that `text` starts with.
fn text_literal_len(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r"]
        .into_iter()
        .find(|prefix| {
            text.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(['"', '#', '\'']))
        })
        .unwrap_or("");
    let body = &text[prefix.len()..];
    let len = if prefix.ends_with('r') {
        raw_string_len(body)?
    } else if body.starts_with('"') {
        quoted_len(body, '"')
    } else if body.starts_with('\'') && is_character(body) {
        quoted_len(body, '\'')
    } else {
        return None;
    };
    Some(prefix.len() + len)
}

/// Returns whether the apostrophe that `text` starts with opens a character, not a lifetime.
fn is_character(text: &str) -> bool {
    let mut following = text.chars().skip(1);
    following.next() == Some('\\') || following.next() == Some('\'')
}

fn raw_string_len(text: &str) -> Option<usize> {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let body = text[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", &text[..hashes]);
    let len = body.find(&close).map_or(body.len(), |at| at + close.len());
    Some(hashes + 1 + len)
}

/// Returns the length of the literal up to the closing `quote`; a backslash hides one character.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut hidden = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if hidden => hidden = false,
            '\\' => hidden = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let source = Source::new(text);
        (0..source.tokens.len())
            .filter_map(|index| source.word(index))
            .collect()
    }

    #[test]
    fn comments_and_literals_hide_their_words() {
        assert_eq!(words("a // b\nc /* d /* e */ f */ g"), ["a", "c", "g"]);
        assert_eq!(words(r##"a "b \" c" r#"d " e"# f"##), ["a", "f"]);
        assert_eq!(words(r"x b'\'' y 'z' c"), ["x", "y", "c"]);
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_not_literals() {
        assert_eq!(words("&'a str, 'b: loop"), ["a", "str", "b", "loop"]);
        assert_eq!(words("r#type = b"), ["r", "type", "b"]);
    }

    #[test]
    fn lines_count_from_one_through_literals_of_many_lines() {
        let source = Source::new("a\n\"x\ny\"\nb // c");
        let lines: Vec<_> = source.tokens.iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 2, 4]);
        assert_eq!(
            source.comments,
            [Comment {
                line: 4,
                text: "// c"
            }]
        );
    }

    #[test]
    fn unfinished_text_ends_at_the_end() {
        for text in ["\"abc", "/* abc", "r#\"abc", "'\\", "'", "b", "r#"] {
            assert!(Source::new(text).tokens.len() < 3, "{text}");
        }
    }
}
