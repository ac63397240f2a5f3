//! Template text to a tree: the cut into text and actions, the words of an action, the grammar.

use serde_json::{Number, Value};

use super::functions::Function;
use super::template::TemplateError;

/// Blocks and parentheses inside each other; deeper is no format but an attack on the stack.
const MAX_DEPTH: usize = 64;

/// A piece of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    If { condition: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
    Range { over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    Break,
    Continue,
}

/// `$a, $b := command | command`.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// Variables set, at most two (two only in `range`).
    pub(super) variables: Vec<String>,
    /// `:=` rather than `=`.
    pub(super) declares: bool,
    pub(super) commands: Vec<Command>,
}

/// What stands between two `|`.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// A value, or a field with arguments (`.Label "x"`).
    Value {
        value: Operand,
        arguments: Vec<Operand>,
    },
    Call {
        function: Function,
        arguments: Vec<Operand>,
    },
}

/// A value with the fields taken of it.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Literal(Value),
    Call(Function),
    Group(Box<Pipeline>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Field(String),
    Variable(String),
    Word(String),
    Literal(Value),
    Dot,
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Action { at: usize, tokens: Vec<(usize, Token)> },
}

pub(super) fn parse(source: &str) -> Result<Vec<Node>, TemplateError> {
    let mut parser =
        Parser { pieces: cut(source)?.into_iter(), variables: vec!["$".to_owned()], depth: 0, ranges: 0 };
    let (nodes, end) = parser.block()?;
    match end {
        BlockEnd::Source => Ok(nodes),
        BlockEnd::End { at } => Err(error(at, "end without if, range or with")),
        BlockEnd::Else { at, .. } => Err(error(at, "else without if, range or with")),
    }
}

fn error(at: usize, reason: impl Into<String>) -> TemplateError {
    TemplateError::Parse { at, reason: reason.into() }
}

/// Cuts the source at `{{` and `}}`, honouring trim markers and comments.
fn cut(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut at, mut trim_left) = (0, false);
    while let Some(open) = source[at..].find("{{").map(|found| at + found) {
        let mut text = &source[at..open];
        let mut inside = open + 2;
        if source[inside..].starts_with('-') && source[inside + 1..].starts_with(char::is_whitespace) {
            text = text.trim_end();
            inside += 1;
        }
        push_text(&mut pieces, text, trim_left);
        let start = inside + (source[inside..].len() - source[inside..].trim_start().len());
        let tokens;
        if source[start..].starts_with("/*") {
            let end = source[start..].find("*/").ok_or_else(|| error(open, "unclosed comment"))?;
            inside = start + end + 2;
            tokens = None;
        } else {
            let (words, end) = tokenize(source, inside)?;
            inside = end;
            tokens = Some(words);
        }
        let rest = source[inside..].trim_start();
        let at_close = source.len() - rest.len();
        (trim_left, at) = if rest.starts_with("}}") {
            (false, at_close + 2)
        } else if rest.starts_with("-}}") {
            (true, at_close + 3)
        } else {
            return Err(error(open, "unclosed action"));
        };
        match tokens {
            Some(tokens) if tokens.is_empty() => return Err(error(open, "an action is empty")),
            Some(tokens) => pieces.push(Piece::Action { at: open, tokens }),
            None => {}
        }
    }
    push_text(&mut pieces, &source[at..], trim_left);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_left: bool) {
    let text = if trim_left { text.trim_start() } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// The words of an action, up to its `}}` or `-}}`, and where that begins.
fn tokenize(source: &str, start: usize) -> Result<(Vec<(usize, Token)>, usize), TemplateError> {
    let mut tokens = Vec::new();
    let mut at = start;
    loop {
        let rest = &source[at..];
        let Some(first) = rest.chars().next() else {
            return Err(error(start.saturating_sub(2), "unclosed action"));
        };
        if rest.starts_with("}}") || rest.starts_with("-}}") {
            return Ok((tokens, at));
        }
        let (token, length) = match first {
            _ if first.is_whitespace() => {
                at += first.len_utf8();
                continue;
            }
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Assign, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '"' => string(rest).ok_or_else(|| error(at, "unterminated string"))?,
            '\'' => character(rest).ok_or_else(|| error(at, "malformed character constant"))?,
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| error(at, "unterminated string"))?;
                (Token::Literal(rest[1..=end].into()), end + 2)
            }
            '.' => match word_length(&rest[1..]) {
                0 => (Token::Dot, 1),
                length => (Token::Field(rest[1..=length].to_owned()), length + 1),
            },
            '$' => {
                let length = 1 + word_length(&rest[1..]);
                (Token::Variable(rest[..length].to_owned()), length)
            }
            '0'..='9' | '-' | '+' => number(rest).ok_or_else(|| error(at, "malformed number"))?,
            _ if first.is_alphabetic() || first == '_' => {
                let length = word_length(rest);
                (Token::Word(rest[..length].to_owned()), length)
            }
            _ => return Err(error(at, format!("unexpected {:?}", first.to_string()))),
        };
        tokens.push((at, token));
        at += length;
    }
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// A quoted string and its length in the source. Go's escapes that JSON has too are understood.
fn string(text: &str) -> Option<(Token, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((Token::Literal(value.into()), at + 1)),
            '\\' => value.push(unescape(chars.next()?.1)?),
            '\n' => return None,
            _ => value.push(c),
        }
    }
    None
}

fn unescape(c: char) -> Option<char> {
    Some(match c {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'v' => '\x0b',
        '\\' | '"' | '\'' => c,
        _ => return None,
    })
}

/// `'c'` is its code point, as in Go.
fn character(text: &str) -> Option<(Token, usize)> {
    let mut chars = text.char_indices().skip(1);
    let value = match chars.next()?.1 {
        '\'' => return None,
        '\\' => unescape(chars.next()?.1)?,
        c => c,
    };
    let (at, quote) = chars.next()?;
    (quote == '\'').then(|| (Token::Literal(u32::from(value).into()), at + 1))
}

fn number(text: &str) -> Option<(Token, usize)> {
    let sign = usize::from(text.starts_with(['-', '+']));
    let length = sign
        + text[sign..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(text.len() - sign);
    let digits = text[..length].trim_start_matches('+');
    let number = match digits.parse::<i64>() {
        Ok(number) => number.into(),
        Err(_) => Number::from_f64(digits.parse().ok()?)?,
    };
    Some((Token::Literal(Value::Number(number)), length))
}

enum BlockEnd {
    Source,
    End { at: usize },
    Else { at: usize, tokens: Vec<(usize, Token)> },
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// Variables in scope, innermost last.
    variables: Vec<String>,
    depth: usize,
    /// Ranges around the current place.
    ranges: usize,
}

impl Parser {
    /// Nodes up to the end of the block they are in.
    fn block(&mut self) -> Result<(Vec<Node>, BlockEnd), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (at, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action { at, tokens } => (at, tokens),
            };
            let keyword = match &tokens[0].1 {
                Token::Word(word) => word.clone(),
                _ => String::new(),
            };
            let mut rest = Words { at, tokens: tokens.into_iter().peekable() };
            if is_keyword(&keyword) {
                rest.tokens.next();
            }
            match keyword.as_str() {
                "if" | "with" | "range" => nodes.push(self.branch(&keyword, at, &mut rest)?),
                "end" => {
                    rest.finish()?;
                    return Ok((nodes, BlockEnd::End { at }));
                }
                "else" => return Ok((nodes, BlockEnd::Else { at, tokens: rest.tokens.collect() })),
                "break" | "continue" if self.ranges == 0 => {
                    return Err(error(at, format!("{keyword} outside range")));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" | "template" | "block" | "call" => {
                    return Err(error(at, format!("{keyword} is not supported in a format")));
                }
                _ => {
                    let pipeline = self.pipeline(&mut rest, 1)?;
                    rest.finish()?;
                    nodes.push(Node::Print(pipeline));
                }
            }
        }
        Ok((nodes, BlockEnd::Source))
    }

    /// The rest of an `if`, `with` or `range` whose keyword has been read, to its `end`.
    fn branch(&mut self, keyword: &str, at: usize, words: &mut Words) -> Result<Node, TemplateError> {
        self.deeper(at)?;
        let scope = self.variables.len();
        let head = self.pipeline(words, if keyword == "range" { 2 } else { 1 })?;
        words.finish()?;
        self.ranges += usize::from(keyword == "range");
        let (body, end) = self.block()?;
        self.ranges -= usize::from(keyword == "range");
        let otherwise = match end {
            BlockEnd::End { .. } => Vec::new(),
            BlockEnd::Source => return Err(error(at, format!("{keyword} without its end"))),
            BlockEnd::Else { at: else_at, tokens } if tokens.is_empty() => match self.block()? {
                (nodes, BlockEnd::End { .. }) => nodes,
                (_, BlockEnd::Source) => return Err(error(at, format!("{keyword} without its end"))),
                (_, BlockEnd::Else { .. }) => return Err(error(else_at, "a second else")),
            },
            BlockEnd::Else { at: else_at, tokens } => {
                let mut words = Words { at: else_at, tokens: tokens.into_iter().peekable() };
                match words.tokens.next() {
                    Some((_, Token::Word(word))) if word == keyword && keyword != "range" => {
                        vec![self.branch(keyword, else_at, &mut words)?]
                    }
                    _ => {
                        return Err(error(
                            else_at,
                            format!("else is followed by something other than {keyword}"),
                        ));
                    }
                }
            }
        };
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(match keyword {
            "if" => Node::If { condition: head, then: body, otherwise },
            "with" => Node::With { value: head, then: body, otherwise },
            _ => Node::Range { over: head, body, otherwise },
        })
    }

    fn pipeline(&mut self, words: &mut Words, max_variables: usize) -> Result<Pipeline, TemplateError> {
        let (variables, declares) = self.assignment(words, max_variables)?;
        let mut commands = Vec::new();
        loop {
            commands.push(self.command(words)?);
            if words.next_if(&Token::Pipe).is_none() {
                break;
            }
        }
        if declares {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline { variables, declares, commands })
    }

    fn assignment(&self, words: &mut Words, max: usize) -> Result<(Vec<String>, bool), TemplateError> {
        let mut ahead = words.tokens.clone();
        let mut names = Vec::new();
        while let Some((at, Token::Variable(name))) = ahead.next() {
            names.push(name);
            match ahead.next() {
                Some((_, Token::Comma)) if names.len() < max => {}
                Some((_, end @ (Token::Declare | Token::Assign))) => {
                    let declares = end == Token::Declare;
                    if let Some(unset) = names.iter().find(|name| !declares && !self.variables.contains(name))
                    {
                        return Err(error(at, format!("variable {unset:?} is not set")));
                    }
                    words.tokens = ahead;
                    return Ok((names, declares));
                }
                _ => break,
            }
        }
        Ok((Vec::new(), false))
    }

    fn command(&mut self, words: &mut Words) -> Result<Command, TemplateError> {
        let first = self.operand(words)?;
        let mut arguments = Vec::new();
        while words.tokens.peek().is_some_and(|(_, token)| !matches!(token, Token::Pipe | Token::Close)) {
            arguments.push(self.operand(words)?);
        }
        match first {
            Operand { base: Base::Call(function), fields } if fields.is_empty() => {
                Ok(Command::Call { function, arguments })
            }
            value => Ok(Command::Value { value, arguments }),
        }
    }

    fn operand(&mut self, words: &mut Words) -> Result<Operand, TemplateError> {
        let Some((at, token)) = words.tokens.next() else {
            return Err(error(words.at, "a value is missing"));
        };
        let mut end = at;
        let mut fields = Vec::new();
        let base = match token {
            Token::Dot => Base::Dot,
            Token::Field(name) => {
                end = at + 1 + name.len();
                fields.push(name);
                Base::Dot
            }
            Token::Variable(name) if self.variables.contains(&name) => {
                end = at + name.len();
                Base::Variable(name)
            }
            Token::Variable(name) => return Err(error(at, format!("variable {name:?} is not set"))),
            Token::Literal(value) => Base::Literal(value),
            Token::Word(word) => {
                named(&word).ok_or_else(|| error(at, format!("function {word:?} is not known")))?
            }
            Token::Open => {
                self.deeper(at)?;
                let inner = self.pipeline(words, 0)?;
                end = words.expect_close()?;
                self.depth -= 1;
                Base::Group(Box::new(inner))
            }
            Token::Close => return Err(error(at, "unexpected \")\"")),
            Token::Pipe => return Err(error(at, "a value is missing")),
            Token::Comma | Token::Declare | Token::Assign => return Err(error(at, "unexpected punctuation")),
        };
        // `.A.B` is one operand, `.A .B` are two.
        while let Some((next_at, Token::Field(_))) = words.tokens.peek() {
            if *next_at != end {
                break;
            }
            let Some((at, Token::Field(name))) = words.tokens.next() else { break };
            end = at + 1 + name.len();
            fields.push(name);
        }
        Ok(Operand { base, fields })
    }

    fn deeper(&mut self, at: usize) -> Result<(), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            Err(error(at, format!("nested deeper than {MAX_DEPTH}")))
        } else {
            Ok(())
        }
    }
}

/// Whether a word begins an action other than a pipeline.
fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "if" | "with"
            | "range"
            | "else"
            | "end"
            | "break"
            | "continue"
            | "define"
            | "template"
            | "block"
            | "call"
    )
}

fn named(word: &str) -> Option<Base> {
    Some(match word {
        "true" => Base::Literal(true.into()),
        "false" => Base::Literal(false.into()),
        "nil" => Base::Literal(Value::Null),
        _ => Base::Call(Function::named(word)?),
    })
}

/// The words of one action that are still to be read.
struct Words {
    at: usize,
    tokens: std::iter::Peekable<std::vec::IntoIter<(usize, Token)>>,
}

impl Words {
    fn next_if(&mut self, token: &Token) -> Option<usize> {
        self.tokens.next_if(|(_, next)| next == token).map(|(at, _)| at)
    }

    /// Where the text after the closing parenthesis begins.
    fn expect_close(&mut self) -> Result<usize, TemplateError> {
        let close =
            self.next_if(&Token::Close).ok_or_else(|| error(self.at, "a closing parenthesis is missing"))?;
        Ok(close + 1)
    }

    fn finish(&mut self) -> Result<(), TemplateError> {
        match self.tokens.next() {
            None => Ok(()),
            Some((at, Token::Close)) => Err(error(at, "unexpected \")\"")),
            Some((at, _)) => Err(error(at, "unexpected words at the end of the action")),
        }
    }
}
