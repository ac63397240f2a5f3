//! The execution of a parsed template.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::functions::{self, Function};
use super::parse::{Base, Command, Node, Operand, Pipeline};
use super::template::TemplateError;

/// A value in flight: of the data where possible, made on the way otherwise. `None` is Go's zero
/// reflect.Value, a map's missing key, which prints `<no value>`.
pub(super) type Item<'a> = Option<Cow<'a, Value>>;

/// What a field that an object does not have means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// An error, if the object looks like a struct.
    IsError,
    /// Nothing: a table's headings are rendered.
    IsHeading,
}

/// Bytes that one rendering may print: a format of a few lines over an inspected object stays far
/// below; nested ranges could fill the memory.
const MAX_OUTPUT_BYTES: usize = 64 << 20;

pub(super) fn render(nodes: &[Node], data: &Value, missing: Missing) -> Result<String, TemplateError> {
    let root: Item<'_> = Some(Cow::Borrowed(data));
    let mut state = State { missing, variables: vec![("$".to_owned(), root.clone())], out: String::new() };
    state.nodes(nodes, &root)?;
    Ok(state.out)
}

struct State<'a> {
    missing: Missing,
    variables: Vec<(String, Item<'a>)>,
    out: String,
}

/// Whether a range goes on after its body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl<'a> State<'a> {
    fn nodes(&mut self, nodes: &[Node], dot: &Item<'a>) -> Result<Flow, TemplateError> {
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Item<'a>) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(text) => self.print(text)?,
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.print(&functions::text(&value))?;
                }
            }
            Node::If { condition, then, otherwise } => {
                let scope = self.variables.len();
                let value = self.pipeline(condition, dot)?;
                let flow = self.nodes(if functions::truth(&value) { then } else { otherwise }, dot);
                self.variables.truncate(scope);
                return flow;
            }
            Node::With { value, then, otherwise } => {
                let scope = self.variables.len();
                let value = self.pipeline(value, dot)?;
                let flow = if functions::truth(&value) {
                    self.nodes(then, &value)
                } else {
                    self.nodes(otherwise, dot)
                };
                self.variables.truncate(scope);
                return flow;
            }
            Node::Range { over, body, otherwise } => return self.range(over, body, otherwise, dot),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Item<'a>,
    ) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let value = self.commands(over, dot)?;
        let entries = entries(value)?;
        if entries.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, element) in entries {
            self.variables.truncate(scope);
            let values = match over.variables.len() {
                1 => vec![element.clone()],
                _ => vec![Some(Cow::Owned(key)), element.clone()],
            };
            for (name, value) in over.variables.iter().zip(values) {
                self.set(name, value, over.declares);
            }
            if self.nodes(body, &element)? == Flow::Break {
                break;
            }
        }
        self.variables.truncate(scope);
        Ok(Flow::On)
    }

    fn print(&mut self, text: &str) -> Result<(), TemplateError> {
        if self.out.len() + text.len() > MAX_OUTPUT_BYTES {
            return Err(TemplateError::Execute(format!(
                "the result is longer than {MAX_OUTPUT_BYTES} bytes"
            )));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn set(&mut self, name: &str, value: Item<'a>, declares: bool) {
        let known = self.variables.iter_mut().rev().find(|(known, _)| !declares && known == name);
        match known {
            Some((_, slot)) => *slot = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Item<'a>) -> Result<Item<'a>, TemplateError> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.declares);
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Item<'a>) -> Result<Item<'a>, TemplateError> {
        let mut piped: Option<Item<'a>> = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, dot, piped)?);
        }
        Ok(piped.flatten())
    }

    fn command(
        &mut self,
        command: &Command,
        dot: &Item<'a>,
        piped: Option<Item<'a>>,
    ) -> Result<Item<'a>, TemplateError> {
        match command {
            Command::Value { value, arguments } => match (value.fields.split_last(), &arguments[..], piped) {
                (_, [], None) => self.operand(value, dot),
                (Some((last, fields)), [argument], None) if last == "Label" => {
                    let object = self.fields(self.base(&value.base, dot)?, fields)?;
                    let name = self.evaluate(argument, dot)?;
                    Ok(Some(Cow::Owned(functions::label(&object, &functions::text(&name)))))
                }
                _ => Err(TemplateError::Execute(
                    "a value that is not a function was given arguments".to_owned(),
                )),
            },
            Command::Call { function, arguments } => {
                if let Function::And | Function::Or = function {
                    return self.and_or(*function == Function::And, arguments, dot, piped);
                }
                let mut values = Vec::with_capacity(arguments.len() + 1);
                for argument in arguments {
                    values.push(self.evaluate(argument, dot)?);
                }
                values.extend(piped);
                if self.missing == Missing::IsHeading && function.keeps_headings() {
                    let heading =
                        if *function == Function::Truncate { values.first() } else { values.last() };
                    return Ok(heading.cloned().flatten());
                }
                function.call(&values).map_err(TemplateError::Execute)
            }
        }
    }

    /// The first argument that decides, or the last; the others are not evaluated.
    fn and_or(
        &mut self,
        and: bool,
        arguments: &[Operand],
        dot: &Item<'a>,
        piped: Option<Item<'a>>,
    ) -> Result<Item<'a>, TemplateError> {
        let mut value = None;
        for argument in arguments {
            value = self.evaluate(argument, dot)?;
            if functions::truth(&value) != and {
                return Ok(value);
            }
        }
        Ok(piped.unwrap_or(value))
    }

    /// An argument: a function there is called without any of its own.
    fn evaluate(&mut self, operand: &Operand, dot: &Item<'a>) -> Result<Item<'a>, TemplateError> {
        match &operand.base {
            Base::Group(inner) => {
                let value = self.commands(inner, dot)?;
                self.fields(value, &operand.fields)
            }
            _ => self.operand(operand, dot),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Item<'a>) -> Result<Item<'a>, TemplateError> {
        if let Base::Group(_) = operand.base {
            return self.evaluate(operand, dot);
        }
        self.fields(self.base(&operand.base, dot)?, &operand.fields)
    }

    fn base(&self, base: &Base, dot: &Item<'a>) -> Result<Item<'a>, TemplateError> {
        Ok(match base {
            Base::Dot => dot.clone(),
            Base::Variable(name) => self
                .variables
                .iter()
                .rev()
                .find(|(known, _)| known == name)
                .and_then(|(_, value)| value.clone()),
            Base::Literal(value) => Some(Cow::Owned(value.clone())),
            Base::Call(function) => function.call(&[]).map_err(TemplateError::Execute)?,
            Base::Group(_) => {
                return Err(TemplateError::Execute("a label of a parenthesised value".to_owned()));
            }
        })
    }

    fn fields(&self, value: Item<'a>, fields: &[String]) -> Result<Item<'a>, TemplateError> {
        fields.iter().try_fold(value, |value, field| self.field(&value, field))
    }

    fn field(&self, value: &Item<'a>, field: &str) -> Result<Item<'a>, TemplateError> {
        let missing = |known: String| TemplateError::NoField { field: field.to_owned(), known };
        let found = match value {
            Some(Cow::Borrowed(Value::Object(map))) => map.get(field).map(Cow::Borrowed),
            Some(Cow::Owned(Value::Object(map))) => map.get(field).cloned().map(Cow::Owned),
            _ if self.missing == Missing::IsHeading => return Ok(None),
            // A map that is null, such as the labels of an image without any, has no keys.
            Some(Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null)) | None => return Ok(None),
            Some(_) => return Err(missing("none: it is not an object".to_owned())),
        };
        match (&found, value.as_deref()) {
            (None, Some(Value::Object(map))) if self.missing == Missing::IsError && is_struct(map) => {
                let known: Vec<&str> = map.keys().map(String::as_str).collect();
                Err(missing(known.join(", ")))
            }
            _ => Ok(found),
        }
    }
}

/// Whether an object stands for a Go struct: all its keys begin with a capital letter.
pub(super) fn is_struct(map: &Map<String, Value>) -> bool {
    !map.is_empty() && map.keys().all(|key| key.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// What a range goes through: index or key, and element; maps in the order of their keys.
fn entries(value: Item<'_>) -> Result<Vec<(Value, Item<'_>)>, TemplateError> {
    fn indexed<'a>(items: impl Iterator<Item = Cow<'a, Value>>) -> Vec<(Value, Item<'a>)> {
        items.enumerate().map(|(index, item)| (Value::from(index), Some(item))).collect()
    }
    let mut entries = match value {
        None | Some(Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null)) => Vec::new(),
        Some(Cow::Borrowed(Value::Array(items))) => return Ok(indexed(items.iter().map(Cow::Borrowed))),
        Some(Cow::Owned(Value::Array(items))) => return Ok(indexed(items.into_iter().map(Cow::Owned))),
        Some(Cow::Borrowed(Value::Object(map))) => {
            map.iter().map(|(key, item)| (Value::from(key.as_str()), Some(Cow::Borrowed(item)))).collect()
        }
        Some(Cow::Owned(Value::Object(map))) => {
            map.into_iter().map(|(key, item)| (Value::from(key), Some(Cow::Owned(item)))).collect()
        }
        Some(other) => match other.as_u64() {
            Some(count) if count <= MAX_RANGE => {
                return Ok(indexed((0..count).map(|number| Cow::Owned(Value::from(number)))));
            }
            _ => {
                return Err(TemplateError::Execute(format!(
                    "range cannot go over {}",
                    functions::kind(&other)
                )));
            }
        },
    };
    entries.sort_by(|a: &(Value, Item<'_>), b| a.0.as_str().cmp(&b.0.as_str()));
    Ok(entries)
}

/// The highest number that `range N` counts to.
const MAX_RANGE: u64 = 1_000_000;
