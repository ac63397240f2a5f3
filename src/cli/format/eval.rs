//! The execution of a parsed template.

use std::borrow::Cow;
use std::fmt::Display;

use serde_json::{Map, Value};

use super::functions::{self, Function, Parameter};
use super::parse::{column, line};
use super::template::TemplateError;
use super::tree::{Command, Invocation, Kind, Node, Operand, Pipeline, Tree};

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
/// Templates inside each other. Go allows 100,000; a format has no use for ten, and each takes stack.
const MAX_TEMPLATE_DEPTH: usize = 100;
/// The highest number that `range N` counts to.
const MAX_RANGE: u64 = 1_000_000;

/// Renders; an error leaves in `out` what was printed before it.
pub(super) fn render(
    source: &str,
    tree: &Tree,
    data: &Value,
    missing: Missing,
    out: &mut String,
) -> Result<(), TemplateError> {
    let root: Item<'_> = Some(Cow::Borrowed(data));
    let mut state = State {
        source,
        tree,
        name: "",
        missing,
        variables: vec![("$".to_owned(), root.clone())],
        at: (0, &""),
        depth: 0,
        out,
    };
    state.nodes(&tree.nodes, &root)?;
    Ok(())
}

struct State<'t, 'a> {
    source: &'t str,
    tree: &'t Tree,
    /// The template that is executed; empty for the outermost.
    name: &'t str,
    missing: Missing,
    variables: Vec<(String, Item<'a>)>,
    /// Where an error is: the piece that was looked at last.
    at: (usize, &'t dyn Display),
    depth: usize,
    out: &'t mut String,
}

/// Whether a range goes on after its body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

type Outcome<'a> = Result<Item<'a>, TemplateError>;

impl<'t, 'a> State<'t, 'a> {
    fn error(&self, reason: impl Into<String>) -> TemplateError {
        let (at, piece) = self.at;
        TemplateError::Execute {
            line: line(self.source, at),
            column: column(self.source, at),
            template: self.name.to_owned(),
            piece: piece.to_string(),
            reason: reason.into(),
            known: Vec::new(),
        }
    }

    fn nodes(&mut self, nodes: &'t [Node], dot: &Item<'a>) -> Result<Flow, TemplateError> {
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &'t Node, dot: &Item<'a>) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(text) => self.print(text)?,
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    let text = match (value.as_deref(), last_field(pipeline)) {
                        (Some(Value::Null), Some(name)) => Cow::Borrowed(absent(name)),
                        _ => functions::text(&value),
                    };
                    self.print(&text)?;
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
            Node::Template(invocation) => self.template(invocation, dot)?,
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        over: &'t Pipeline,
        body: &'t [Node],
        otherwise: &'t [Node],
        dot: &Item<'a>,
    ) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let value = self.commands(over, dot)?;
        let entries = entries(value, over.variables.len()).map_err(|reason| self.error(reason))?;
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
                self.set(name, value, over.declares)?;
            }
            if self.nodes(body, &element)? == Flow::Break {
                break;
            }
        }
        self.variables.truncate(scope);
        Ok(Flow::On)
    }

    fn template(&mut self, invocation: &'t Invocation, dot: &Item<'a>) -> Result<(), TemplateError> {
        self.at = (invocation.at, invocation);
        let Some((name, nodes)) = self.tree.defined.get_key_value(&invocation.name) else {
            return Err(self.error(format!("template {:?} not defined", invocation.name)));
        };
        if self.depth == MAX_TEMPLATE_DEPTH {
            return Err(self.error(format!("exceeded maximum template depth ({MAX_TEMPLATE_DEPTH})")));
        }
        let dot = match &invocation.argument {
            Some(pipeline) => self.pipeline(pipeline, dot)?,
            None => None,
        };
        let outer = std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
        let outer_name = std::mem::replace(&mut self.name, name);
        self.depth += 1;
        self.nodes(nodes, &dot)?;
        self.depth -= 1;
        (self.variables, self.name) = (outer, outer_name);
        Ok(())
    }

    fn print(&mut self, text: &str) -> Result<(), TemplateError> {
        if self.out.len() + text.len() > MAX_OUTPUT_BYTES {
            return Err(self.error(format!("the result is longer than {MAX_OUTPUT_BYTES} bytes")));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn set(&mut self, name: &str, value: Item<'a>, declares: bool) -> Result<(), TemplateError> {
        if declares {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, slot)) => {
                *slot = value;
                Ok(())
            }
            None => Err(self.error(format!("undefined variable: {name}"))),
        }
    }

    fn pipeline(&mut self, pipeline: &'t Pipeline, dot: &Item<'a>) -> Outcome<'a> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.declares)?;
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &'t Pipeline, dot: &Item<'a>) -> Outcome<'a> {
        self.at = (pipeline.at, pipeline);
        let mut piped: Option<Item<'a>> = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, dot, piped)?);
        }
        Ok(piped.flatten())
    }

    fn command(&mut self, command: &'t Command, dot: &Item<'a>, piped: Option<Item<'a>>) -> Outcome<'a> {
        let Some((first, arguments)) = command.operands.split_first() else { return Ok(None) };
        if let Kind::Group(_) = first.kind {
            self.no_arguments(first, arguments, &piped)?;
            return self.operand(first, dot);
        }
        self.at = (first.at, first);
        match &first.kind {
            Kind::Function(function) => self.call(*function, command, arguments, dot, piped),
            Kind::Fields(fields) => self.chain(dot.clone(), fields, arguments, dot, piped),
            Kind::Variable(names) if names.len() > 1 => {
                self.chain(self.variable(&names[0]), &names[1..], arguments, dot, piped)
            }
            Kind::Chain(inner, fields) => {
                let value = self.operand(inner, dot)?;
                self.chain(value, fields, arguments, dot, piped)
            }
            Kind::Nil => {
                self.no_arguments(first, arguments, &piped)?;
                Err(self.error("nil is not a command"))
            }
            _ => {
                self.no_arguments(first, arguments, &piped)?;
                self.operand(first, dot)
            }
        }
    }

    fn no_arguments(
        &self,
        first: &Operand,
        arguments: &[Operand],
        piped: &Option<Item<'a>>,
    ) -> Result<(), TemplateError> {
        if arguments.is_empty() && piped.is_none() {
            return Ok(());
        }
        Err(self.error(format!("can't give argument to non-function {first}")))
    }

    /// Fields of a value, the last of which may be `Label`, the one that takes an argument.
    fn chain(
        &mut self,
        value: Item<'a>,
        fields: &'t [String],
        arguments: &'t [Operand],
        dot: &Item<'a>,
        piped: Option<Item<'a>>,
    ) -> Outcome<'a> {
        let Some((last, before)) = fields.split_last() else { return Ok(value) };
        let object = self.fields(value, before)?;
        let has = |name| object.as_deref().is_some_and(|object| object.get(name).is_some());
        if last == "Label" && has("Labels") && !has("Label") {
            let given = arguments.len() + usize::from(piped.is_some());
            if given != 1 {
                return Err(self.error(format!("wrong number of args for Label: want 1 got {given}")));
            }
            let name = match arguments.first() {
                Some(operand) => self.argument(operand, Parameter::Text, dot)?,
                None => piped.flatten(),
            };
            let name = functions::text(&name);
            let label = match self.missing {
                Missing::IsHeading => functions::label_heading(&name),
                Missing::IsError => functions::label(&object, &name),
            };
            return Ok(Some(Cow::Owned(label)));
        }
        if !(arguments.is_empty() && piped.is_none()) {
            // Go looks the field up first.
            self.fields(object, std::slice::from_ref(last))?;
            return Err(self.error(format!("{last} is not a method but has arguments")));
        }
        let parent = before.last().map(String::as_str);
        self.field(&object, last, parent)
    }

    fn call(
        &mut self,
        function: Function,
        command: &'t Command,
        arguments: &'t [Operand],
        dot: &Item<'a>,
        piped: Option<Item<'a>>,
    ) -> Outcome<'a> {
        let given = arguments.len() + usize::from(piped.is_some());
        if let Some(wanted) = function.wants_other_than(given) {
            let name = function.name();
            return Err(self.error(format!("wrong number of args for {name}: want {wanted} got {given}")));
        }
        if let Function::And | Function::Or = function {
            return self.and_or(function == Function::And, arguments, dot, piped);
        }
        let mut values = Vec::with_capacity(given);
        for (place, operand) in arguments.iter().enumerate() {
            values.push(self.argument(operand, function.parameter(place), dot)?);
        }
        if let Some(value) = piped {
            let parameter = function.parameter(values.len());
            if self.missing == Missing::IsError {
                parameter.check(&value).map_err(|reason| self.error(reason))?;
            }
            values.push(value);
        }
        if self.missing == Missing::IsHeading && function.keeps_headings() {
            let heading = if function.is_text_first() { values.first() } else { values.last() };
            return Ok(heading.cloned().flatten());
        }
        let written = arguments.first().map(ToString::to_string).unwrap_or_default();
        function.call(&values, &written).map_err(|reason| {
            self.at = (command.at, command);
            self.error(format!("error calling {}: {reason}", function.name()))
        })
    }

    /// The first argument that decides, or the last; the others are not evaluated.
    fn and_or(
        &mut self,
        and: bool,
        arguments: &'t [Operand],
        dot: &Item<'a>,
        piped: Option<Item<'a>>,
    ) -> Outcome<'a> {
        let mut value = None;
        for argument in arguments {
            value = self.argument(argument, Parameter::Any, dot)?;
            if functions::truth(&value) != and {
                return Ok(value);
            }
        }
        Ok(piped.unwrap_or(value))
    }

    /// An argument, which has to be of the kind that the function takes.
    fn argument(&mut self, operand: &'t Operand, wanted: Parameter, dot: &Item<'a>) -> Outcome<'a> {
        self.at = (operand.at, operand);
        if let Some(reason) = wanted.refuses_literal(operand) {
            return Err(self.error(reason));
        }
        let value = self.operand(operand, dot)?;
        // A heading is a text whatever the field is.
        if self.missing == Missing::IsError {
            wanted.check(&value).map_err(|reason| self.error(reason))?;
        }
        Ok(value)
    }

    /// A value that is given no arguments; a function there is called without any.
    fn operand(&mut self, operand: &'t Operand, dot: &Item<'a>) -> Outcome<'a> {
        match &operand.kind {
            Kind::Dot => Ok(dot.clone()),
            Kind::Nil => Ok(Some(Cow::Owned(Value::Null))),
            Kind::Literal(value, _) => Ok(Some(Cow::Owned(value.clone()))),
            Kind::Group(pipeline) => self.commands(pipeline, dot),
            Kind::Fields(fields) => self.chain(dot.clone(), fields, &[], dot, None),
            Kind::Variable(names) => self.chain(self.variable(&names[0]), &names[1..], &[], dot, None),
            Kind::Chain(inner, fields) => {
                let value = self.operand(inner, dot)?;
                self.chain(value, fields, &[], dot, None)
            }
            Kind::Function(function) => match function.wants_other_than(0) {
                None => function.call(&[], "").map_err(|reason| self.error(reason)),
                Some(wanted) => {
                    let name = function.name();
                    Err(self.error(format!("wrong number of args for {name}: want {wanted} got 0")))
                }
            },
        }
    }

    fn variable(&self, name: &str) -> Item<'a> {
        let found = self.variables.iter().rev().find(|(known, _)| known == name);
        found.and_then(|(_, value)| value.clone())
    }

    fn fields(&self, value: Item<'a>, fields: &[String]) -> Outcome<'a> {
        let mut parent = None;
        fields.iter().try_fold(value, |value, field| {
            let found = self.field(&value, field, parent);
            parent = Some(field.as_str());
            found
        })
    }

    /// A field of a value, which itself was the field `parent` of another.
    fn field(&self, value: &Item<'a>, field: &str, parent: Option<&str>) -> Outcome<'a> {
        let found = match value {
            Some(Cow::Borrowed(Value::Object(map))) => map.get(field).map(Cow::Borrowed),
            Some(Cow::Owned(Value::Object(map))) => map.get(field).cloned().map(Cow::Owned),
            _ if self.missing == Missing::IsHeading => return Ok(None),
            None => return Ok(None),
            Some(null) if null.is_null() => {
                // A map that is null, such as the labels of an image without any, has no keys.
                if parent.is_some_and(|parent| absent(parent) == NO_MAP) {
                    return Ok(None);
                }
                return Err(self.error(format!("nil pointer evaluating interface {{}}.{field}")));
            }
            Some(other) => {
                let kind = match other {
                    Cow::Borrowed(_) => "interface {}",
                    Cow::Owned(made) => functions::type_name(made),
                };
                return Err(self.error(format!("can't evaluate field {field} in type {kind}")));
            }
        };
        match (&found, value.as_deref()) {
            (None, Some(Value::Object(map))) if self.missing == Missing::IsError && is_struct(map) => {
                let mut error = self.error(format!("map has no entry for key {field:?}"));
                if let TemplateError::Execute { known, .. } = &mut error {
                    *known = map.keys().cloned().collect();
                }
                Err(error)
            }
            _ => Ok(found),
        }
    }
}

/// The last field of a pipeline that is nothing but fields.
fn last_field(pipeline: &Pipeline) -> Option<&str> {
    match &pipeline.commands[..] {
        [Command { operands, .. }] => match &operands[..] {
            [Operand { kind: Kind::Fields(names), .. }] => names.last().map(String::as_str),
            _ => None,
        },
        _ => None,
    }
}

const NO_LIST: &str = "[]";
const NO_MAP: &str = "map[]";

/// What a field of Docker's API prints where it is null, which depends on what it would be (Engine API, v1.50).
fn absent(field: &str) -> &'static str {
    match field {
        "Args"
        | "BindOptions"
        | "Binds"
        | "BlkioDeviceReadBps"
        | "BlkioDeviceReadIOps"
        | "BlkioDeviceWriteBps"
        | "BlkioDeviceWriteIOps"
        | "BlkioWeightDevice"
        | "CapAdd"
        | "CapDrop"
        | "Cmd"
        | "Config"
        | "DeviceCgroupRules"
        | "DeviceRequests"
        | "Devices"
        | "Dns"
        | "DnsOptions"
        | "DnsSearch"
        | "Entrypoint"
        | "Env"
        | "ExecIDs"
        | "ExtraHosts"
        | "GroupAdd"
        | "Links"
        | "MaskedPaths"
        | "Mounts"
        | "OnBuild"
        | "ReadonlyPaths"
        | "RepoDigests"
        | "RepoTags"
        | "SecurityOpt"
        | "Shell"
        | "Ulimits"
        | "VolumesFrom"
        | "Layers" => NO_LIST,
        "Annotations" | "ExposedPorts" | "Labels" | "Options" | "PortBindings" | "Ports" | "StorageOpt"
        | "Sysctls" | "Tmpfs" | "Volumes" | "Networks" => NO_MAP,
        "Healthcheck" | "Health" | "Init" | "OomKillDisable" | "PidsLimit" | "MemorySwappiness"
        | "Status" | "UsageData" | "IPAMConfig" => "<nil>",
        _ => "<no value>",
    }
}

/// Whether an object stands for a Go struct: all its keys begin with a capital letter.
pub(super) fn is_struct(map: &Map<String, Value>) -> bool {
    !map.is_empty() && map.keys().all(|key| key.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// What a range goes through: index or key, and element; maps in the order of their keys.
fn entries(value: Item<'_>, variables: usize) -> Result<Vec<(Value, Item<'_>)>, String> {
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
        Some(other) if other.is_i64() || other.is_u64() => {
            if variables > 1 {
                let shown = functions::go_text(&other);
                return Err(format!("can't use {shown} to iterate over more than one variable"));
            }
            match other.as_u64() {
                Some(count) if count > MAX_RANGE => {
                    return Err(format!("range goes to {MAX_RANGE} at most, not {count}"));
                }
                count => {
                    let numbers = 0..count.unwrap_or(0);
                    return Ok(indexed(numbers.map(|number| Cow::Owned(Value::from(number)))));
                }
            }
        }
        Some(other) => return Err(format!("range can't iterate over {}", functions::go_text(&other))),
    };
    entries.sort_by(|a: &(Value, Item<'_>), b| a.0.as_str().cmp(&b.0.as_str()));
    Ok(entries)
}
