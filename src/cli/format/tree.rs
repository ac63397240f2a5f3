//! What a template is after it has been read. Every piece knows where it stood and how it is written, as an
//! error that comes later quotes both.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;

use super::functions::Function;

/// A template with those that it defines.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    /// By `define` and `block`.
    pub(super) defined: HashMap<String, Vec<Node>>,
}

/// A piece of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    If { condition: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
    Range { over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    Template(Invocation),
    Break,
    Continue,
}

/// `template "name" pipeline`, also where a `block` stands.
#[derive(Clone, Debug)]
pub(super) struct Invocation {
    pub(super) at: usize,
    pub(super) name: String,
    pub(super) argument: Option<Pipeline>,
}

/// `$a, $b := command | command`.
#[derive(Clone, Debug, Default)]
pub(super) struct Pipeline {
    pub(super) at: usize,
    /// Variables set, at most two (two only in `range`).
    pub(super) variables: Vec<String>,
    /// `:=` rather than `=`.
    pub(super) declares: bool,
    pub(super) commands: Vec<Command>,
}

/// What stands between two `|`: a value, or what takes arguments and those. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) at: usize,
    pub(super) operands: Vec<Operand>,
}

/// A value as it is written.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) at: usize,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Dot,
    Nil,
    /// `.A.B`
    Fields(Vec<String>),
    /// `$x.A.B`, the variable's name with its `$` first.
    Variable(Vec<String>),
    Function(Function),
    /// A literal and how it is written.
    Literal(Value, String),
    Group(Box<Pipeline>),
    /// A group or a function's result with fields.
    Chain(Box<Operand>, Vec<String>),
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{{template {}", super::printf::quoted(&self.name))?;
        if let Some(argument) = &self.argument {
            write!(f, " {argument}")?;
        }
        write!(f, "}}}}")
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.variables.is_empty() {
            let sign = if self.declares { ":=" } else { "=" };
            write!(f, "{} {sign} ", self.variables.join(", "))?;
        }
        for (place, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if place > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, operand) in self.operands.iter().enumerate() {
            write!(f, "{}{operand}", if place > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dotted = |f: &mut fmt::Formatter<'_>, fields: &[String]| {
            fields.iter().try_for_each(|field| write!(f, ".{field}"))
        };
        match &self.kind {
            Kind::Dot => f.write_str("."),
            Kind::Nil => f.write_str("nil"),
            Kind::Fields(fields) => dotted(f, fields),
            Kind::Variable(names) => f.write_str(&names.join(".")),
            Kind::Function(function) => f.write_str(function.name()),
            Kind::Literal(_, text) => f.write_str(text),
            Kind::Group(pipeline) => write!(f, "({pipeline})"),
            Kind::Chain(operand, fields) => {
                write!(f, "{operand}")?;
                dotted(f, fields)
            }
        }
    }
}
