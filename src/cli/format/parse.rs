//! Template text to a tree: Go's grammar, with Go's words for what is wrong (text/template/parse).

use serde_json::Value;

use super::functions::Function;
use super::lex::{Lexer, Token, Word, number, unquoted};
use super::template::TemplateError;
use super::tree::{Command, Invocation, Kind, Node, Operand, Pipeline, Tree};

/// Blocks and parentheses inside each other; deeper is no format but an attack on the stack.
const MAX_DEPTH: usize = 64;

type Result<T> = std::result::Result<T, TemplateError>;

pub(super) fn parse(source: &str) -> Result<Tree> {
    let mut parser = Parser {
        source,
        lexer: Lexer::new(source),
        ahead: Vec::new(),
        action: 0,
        variables: vec!["$".to_owned()],
        depth: 0,
        ranges: 0,
        last: 0,
        tree: Tree::default(),
    };
    loop {
        match parser.peek().token {
            Token::End => return Ok(parser.tree),
            Token::LeftDelimiter => {
                let delimiter = parser.next();
                if parser.peek().token == Token::Keyword("define") {
                    parser.next();
                    parser.definition()?;
                    continue;
                }
                parser.ahead.push(delimiter);
            }
            _ => {}
        }
        match parser.piece()? {
            Piece::Node(node) => parser.tree.nodes.push(node),
            Piece::End => return Err(parser.error("unexpected {{end}}")),
            Piece::Else { .. } => return Err(parser.error("unexpected {{else}}")),
        }
    }
}

/// What stands between two delimiters, or text.
enum Piece {
    Node(Node),
    End,
    /// Whether an `if` or `with` follows, whose word is read next.
    Else {
        goes_on: bool,
    },
}

struct Parser<'s> {
    source: &'s str,
    lexer: Lexer<'s>,
    /// Words that were read and given back, the next one last.
    ahead: Vec<Word>,
    /// Where the current action began.
    action: usize,
    /// Variables in scope, innermost last.
    variables: Vec<String>,
    depth: usize,
    /// Ranges around the current place.
    ranges: usize,
    /// Where the word stood that was read last.
    last: usize,
    tree: Tree,
}

impl Parser<'_> {
    fn next(&mut self) -> Word {
        let word = self.ahead.pop().unwrap_or_else(|| self.lexer.next());
        if word.token == Token::LeftDelimiter {
            self.action = word.at;
        }
        self.last = word.at;
        word
    }

    fn peek(&mut self) -> &Word {
        if self.ahead.is_empty() {
            self.ahead.push(self.lexer.next());
        }
        &self.ahead[self.ahead.len() - 1]
    }

    /// The error at the word that was read last.
    fn error(&self, reason: impl Into<String>) -> TemplateError {
        TemplateError::Parse { line: line(self.source, self.last), reason: reason.into() }
    }

    fn unexpected(&self, word: &Word, context: &str) -> TemplateError {
        let at = |reason| TemplateError::Parse { line: line(self.source, word.at), reason };
        let text = match &word.token {
            Token::Wrong(reason) => {
                let (began, found) = (line(self.source, self.action), line(self.source, word.at));
                let started = match reason.strip_suffix(" action") {
                    _ if began == found => String::new(),
                    Some(_) => format!(" started at :{began}"),
                    None => format!(" in action started at :{began}"),
                };
                return at(format!("{reason}{started}"));
            }
            Token::End => return at("unexpected EOF".to_owned()),
            Token::Keyword(word) => format!("<{word}>"),
            Token::Nil => "<nil>".to_owned(),
            Token::Dot => "<.>".to_owned(),
            _ if word.text.chars().count() > MAX_QUOTED => {
                let cut: String = word.text.chars().take(MAX_QUOTED).collect();
                format!("{}...", super::printf::quoted(&cut))
            }
            _ => super::printf::quoted(&word.text),
        };
        at(format!("unexpected {text} in {context}"))
    }

    fn expect(&mut self, token: &Token, context: &str) -> Result<()> {
        let word = self.next();
        if word.token == *token { Ok(()) } else { Err(self.unexpected(&word, context)) }
    }

    /// Nodes up to the `end` or `else` of the block they are in.
    fn list(&mut self) -> Result<(Vec<Node>, Piece)> {
        let mut nodes = Vec::new();
        loop {
            if self.peek().token == Token::End {
                let end = self.next();
                return Err(self.unexpected(&end, "input"));
            }
            match self.piece()? {
                Piece::Node(node) => nodes.push(node),
                end => return Ok((nodes, end)),
            }
        }
    }

    fn piece(&mut self) -> Result<Piece> {
        let word = self.next();
        match word.token {
            Token::Text(text) => Ok(Piece::Node(Node::Text(text))),
            Token::LeftDelimiter => self.action(),
            _ => Err(self.unexpected(&word, "input")),
        }
    }

    fn action(&mut self) -> Result<Piece> {
        let Token::Keyword(keyword) = self.peek().token else {
            return Ok(Piece::Node(Node::Print(self.pipeline("command", &Token::RightDelimiter)?)));
        };
        let word = self.next();
        match keyword {
            "if" | "with" | "range" => Ok(Piece::Node(self.branch(keyword)?)),
            "end" => {
                self.expect(&Token::RightDelimiter, "end")?;
                Ok(Piece::End)
            }
            "else" => {
                if matches!(self.peek().token, Token::Keyword("if" | "with")) {
                    return Ok(Piece::Else { goes_on: true });
                }
                self.expect(&Token::RightDelimiter, "else")?;
                Ok(Piece::Else { goes_on: false })
            }
            "break" | "continue" => {
                self.expect(&Token::RightDelimiter, &format!("{{{{{keyword}}}}}"))?;
                if self.ranges == 0 {
                    return Err(self.error(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                }
                Ok(Piece::Node(if keyword == "break" { Node::Break } else { Node::Continue }))
            }
            "template" => {
                let (at, name) = self.name("template clause")?;
                let argument = match self.peek().token {
                    Token::RightDelimiter => {
                        self.next();
                        None
                    }
                    _ => Some(self.pipeline("template clause", &Token::RightDelimiter)?),
                };
                Ok(Piece::Node(Node::Template(Invocation { at, name, argument })))
            }
            "block" => {
                let (at, name) = self.name("block clause")?;
                let argument = Some(self.pipeline("block clause", &Token::RightDelimiter)?);
                self.body(&name, "block clause")?;
                Ok(Piece::Node(Node::Template(Invocation { at, name, argument })))
            }
            _ => Err(self.unexpected(&word, "command")),
        }
    }

    /// `"name" }} ... {{end}}` of a `define`.
    fn definition(&mut self) -> Result<()> {
        let (_, name) = self.name("define clause")?;
        self.expect(&Token::RightDelimiter, "define clause")?;
        self.body(&name, "define clause")
    }

    /// The nodes of a template with a name, which knows no variable but `$`.
    fn body(&mut self, name: &str, context: &str) -> Result<()> {
        self.deeper()?;
        let outer = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let ranges = std::mem::take(&mut self.ranges);
        let (nodes, end) = self.list()?;
        if matches!(end, Piece::Else { .. }) {
            return Err(self.error(format!("unexpected {{{{else}}}} in {context}")));
        }
        (self.variables, self.ranges) = (outer, ranges);
        self.depth -= 1;
        let empty = |nodes: &[Node]| {
            nodes.iter().all(|node| matches!(node, Node::Text(text) if text.trim().is_empty()))
        };
        match self.tree.defined.get(name) {
            Some(known) if !empty(known) && !empty(&nodes) => {
                Err(self.error(format!("template: multiple definition of template {name:?}")))
            }
            Some(known) if !empty(known) => Ok(()),
            _ => {
                self.tree.defined.insert(name.to_owned(), nodes);
                Ok(())
            }
        }
    }

    /// The name that `define`, `template` and `block` are followed by.
    fn name(&mut self, context: &str) -> Result<(usize, String)> {
        let word = self.next();
        match word.token {
            Token::Quoted | Token::Raw => Ok((word.at, self.text_of(&word)?)),
            _ => Err(self.unexpected(&word, context)),
        }
    }

    fn text_of(&self, word: &Word) -> Result<String> {
        match word.token {
            Token::Raw => Ok(word.text[1..word.text.len() - 1].replace('\r', "")),
            _ => unquoted(&word.text, '"').ok_or_else(|| self.error("invalid syntax")),
        }
    }

    /// The rest of an `if`, `with` or `range` whose keyword has been read, to its `end`.
    fn branch(&mut self, keyword: &'static str) -> Result<Node> {
        self.deeper()?;
        let scope = self.variables.len();
        let head = self.pipeline(keyword, &Token::RightDelimiter)?;
        self.ranges += usize::from(keyword == "range");
        let (body, end) = self.list()?;
        self.ranges -= usize::from(keyword == "range");
        let otherwise = match end {
            Piece::Else { goes_on: true } if self.peek().token == Token::Keyword(keyword) => {
                self.next();
                vec![self.branch(keyword)?]
            }
            // Of another kind: `else` ends where it says what else it is.
            Piece::Else { goes_on: true } => {
                let word = self.next();
                return Err(self.unexpected(&word, "input"));
            }
            Piece::Else { goes_on: false } => match self.list()? {
                (nodes, Piece::End) => nodes,
                _ => return Err(self.error("expected end; found {{else}}")),
            },
            _ => Vec::new(),
        };
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(match keyword {
            "if" => Node::If { condition: head, then: body, otherwise },
            "with" => Node::With { value: head, then: body, otherwise },
            _ => Node::Range { over: head, body, otherwise },
        })
    }

    /// A pipeline and the word after it, which has to be `end`.
    fn pipeline(&mut self, context: &str, end: &Token) -> Result<Pipeline> {
        let at = self.peek().at;
        let mut pipeline = Pipeline { at, ..Pipeline::default() };
        self.assignment(context, &mut pipeline)?;
        loop {
            let word = self.peek();
            match word.token {
                _ if word.token == *end => {
                    self.next();
                    if pipeline.commands.is_empty() {
                        return Err(self.error(format!("missing value for {context}")));
                    }
                    let stages = pipeline.commands.iter().enumerate().skip(1);
                    for (place, command) in stages {
                        if let Kind::Dot | Kind::Nil | Kind::Literal(..) = command.operands[0].kind {
                            let stage = place + 1;
                            return Err(
                                self.error(format!("non executable command in pipeline stage {stage}"))
                            );
                        }
                    }
                    return Ok(pipeline);
                }
                Token::Boolean(_)
                | Token::Character
                | Token::Dot
                | Token::Field(_)
                | Token::Word(_)
                | Token::Number
                | Token::Nil
                | Token::Raw
                | Token::Quoted
                | Token::Variable(_)
                | Token::Open => {
                    let command = self.command()?;
                    pipeline.commands.push(command);
                }
                _ => {
                    let word = self.next();
                    return Err(self.unexpected(&word, context));
                }
            }
        }
    }

    /// `$a :=`, `$a =`, and in a range `$a, $b :=`.
    fn assignment(&mut self, context: &str, pipeline: &mut Pipeline) -> Result<()> {
        while let Token::Variable(name) = self.peek().token.clone() {
            let variable = self.next();
            let follows = self.peek().clone();
            match follows.token {
                Token::Declare | Token::Assign => {
                    pipeline.declares = self.next().token == Token::Declare;
                    pipeline.variables.push(name.clone());
                    self.variables.push(name);
                    return Ok(());
                }
                Token::Other if follows.text == "," => {
                    self.next();
                    pipeline.variables.push(name.clone());
                    self.variables.push(name);
                    if context != "range" || pipeline.variables.len() > 1 {
                        return Err(self.error(format!("too many declarations in {context}")));
                    }
                    match self.peek().token {
                        Token::Variable(_) | Token::RightDelimiter | Token::Close => {}
                        _ => return Err(self.error("range can only initialize variables")),
                    }
                }
                _ => {
                    self.ahead.push(variable);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn command(&mut self) -> Result<Command> {
        let at = self.peek().at;
        let mut operands = Vec::new();
        loop {
            if let Some(operand) = self.operand()? {
                operands.push(operand);
            }
            let word = self.peek();
            match word.token {
                Token::RightDelimiter | Token::Close => break,
                Token::Pipe => {
                    self.next();
                    break;
                }
                _ if word.spaced && begins_operand(&word.token) => {}
                _ => {
                    let word = self.next();
                    return Err(self.unexpected(&word, "operand"));
                }
            }
        }
        if operands.is_empty() {
            return Err(self.error("empty command"));
        }
        Ok(Command { at, operands })
    }

    fn operand(&mut self) -> Result<Option<Operand>> {
        let Some(mut operand) = self.term()? else { return Ok(None) };
        let mut chained = None;
        while let Word { token: Token::Field(field), spaced: false, at, .. } = self.peek() {
            let (field, at) = (field.clone(), *at);
            chained.get_or_insert((at, Vec::new())).1.push(field);
            self.next();
        }
        let Some((at, fields)) = chained else { return Ok(Some(operand)) };
        match &mut operand.kind {
            Kind::Fields(names) | Kind::Variable(names) => {
                names.extend(fields);
                operand.at = at;
            }
            Kind::Literal(..) | Kind::Nil | Kind::Dot => {
                let term = super::printf::quoted(&operand.to_string());
                return Err(self.error(format!("unexpected . after term {term}")));
            }
            _ => operand = Operand { at, kind: Kind::Chain(Box::new(operand), fields) },
        }
        Ok(Some(operand))
    }

    fn term(&mut self) -> Result<Option<Operand>> {
        if !begins_operand(&self.peek().token) {
            return Ok(None);
        }
        let word = self.next();
        let kind = match &word.token {
            Token::Word(name) => Kind::Function(
                Function::named(name)
                    .ok_or_else(|| self.error(format!("function {:?} not defined", name.as_str())))?,
            ),
            Token::Dot => Kind::Dot,
            Token::Nil => Kind::Nil,
            Token::Variable(name) if self.variables.contains(name) => Kind::Variable(vec![name.clone()]),
            Token::Variable(name) => {
                return Err(self.error(format!("undefined variable {:?}", name.as_str())));
            }
            Token::Field(name) => Kind::Fields(vec![name.clone()]),
            Token::Boolean(truth) => Kind::Literal((*truth).into(), word.text),
            Token::Number => match number(&word.text) {
                Some(value) => Kind::Literal(value, word.text),
                None => {
                    let text = super::printf::quoted(&word.text);
                    return Err(self.error(format!("illegal number syntax: {text}")));
                }
            },
            Token::Character => {
                let value = unquoted(&word.text, '\'');
                let mut chars = value.iter().flat_map(|value| value.chars());
                match (chars.next(), chars.next()) {
                    (Some(c), None) => Kind::Literal(u32::from(c).into(), word.text),
                    _ => return Err(self.error(format!("malformed character constant: {}", word.text))),
                }
            }
            Token::Open => {
                self.deeper()?;
                let inner = self.pipeline("parenthesized pipeline", &Token::Close)?;
                self.depth -= 1;
                Kind::Group(Box::new(inner))
            }
            _ => Kind::Literal(Value::from(self.text_of(&word)?), word.text),
        };
        Ok(Some(Operand { at: word.at, kind }))
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }
}

/// Characters of a word that an error quotes.
const MAX_QUOTED: usize = 10;

fn begins_operand(token: &Token) -> bool {
    matches!(
        token,
        Token::Word(_)
            | Token::Dot
            | Token::Nil
            | Token::Variable(_)
            | Token::Field(_)
            | Token::Boolean(_)
            | Token::Character
            | Token::Number
            | Token::Open
            | Token::Quoted
            | Token::Raw
    )
}

/// The line of a place, from 1.
pub(super) fn line(source: &str, at: usize) -> usize {
    1 + source.as_bytes()[..at.min(source.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// How far a place is from the beginning of its line, in bytes.
pub(super) fn column(source: &str, at: usize) -> usize {
    let before = &source.as_bytes()[..at.min(source.len())];
    at - before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}
