//! Go templates, the part of them that `--format` strings use.
//!
//! Supported: fields and variables, literals, pipelines, parentheses, `if`/`else if`/`else`,
//! `range` (with variables, `else`, `break`, `continue`), `with`, comments, trim markers, and the
//! functions in `functions.rs` (Go's own and Docker's). Left out: `define`, `template`, `block`
//! and `call`, which a one-line format has no use for; they are refused by name.
//!
//! Data are [`Value`]s, which have no Go types. Where Go tells a struct (a field it lacks is an
//! error) from a map (a key it lacks prints `<no value>`), an object counts as a struct if every
//! key begins with a capital letter, as those of Docker's API do.

use serde_json::Value;
use thiserror::Error;

use super::eval::{self, Missing};
use super::parse::{self, Node};

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
}

/// Why a template cannot be read or rendered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// It is not a template.
    #[error(
        "template parsing error: at character {at}: {reason}; the format is a Go template such as '{{{{.ID}}}}'"
    )]
    Parse {
        /// Offset in bytes, from 0.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// It names a field that the object does not have.
    #[error(
        "template error: no field {field:?} in the object (it has {known}); '{{{{json .}}}}' shows them all"
    )]
    NoField {
        /// The field's name.
        field: String,
        /// The fields there are.
        known: String,
    },
    /// A function or an action was given something it cannot work on.
    #[error("template error: {0}")]
    Execute(String),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError::Parse`] with the place.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(source)? })
    }

    /// Renders the template with `data` as its dot, without a final newline.
    ///
    /// # Errors
    /// A field that is not there, or a function's wrong arguments.
    pub fn render(&self, data: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, Missing::IsError)
    }

    /// Renders a table's heading: `data` maps fields to headings, functions leave them as they are.
    pub(super) fn render_heading(&self, data: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, Missing::IsHeading)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use serde_json::json;

    use super::*;

    fn render(source: &str, data: &Value) -> Result<String, TemplateError> {
        Template::parse(source)?.render(data)
    }

    #[test]
    fn templates_render_as_gos() {
        let data = json!({
            "ID": "abc", "Size": 12, "Running": true, "Names": ["a", "b"], "None": null, "Empty": [], "Ratio": 1.5,
            "Config": {"Labels": {"k": "v", "a.b": "c"}, "Env": ["A=1", "B=2"], "Cmd": null},
            "Ports": {"80/tcp": [{"HostPort": "8080"}], "81/tcp": null}, "Labels": "x=1,y=2",
        });
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("{{.ID}} {{.Size}} {{.Running}} {{.Ratio}}", "abc 12 true 1.5"),
            ("{{ .Config.Labels.k }}", "v"),
            ("{{.Config.Labels.nope}}", "<no value>"),
            ("{{.None}} {{.None.Field}}", "<no value> <no value>"),
            ("{{.Names}} {{.Empty}}", "[a b] []"),
            ("{{.Config.Labels}}", "map[a.b:c k:v]"),
            ("{{json .Names}} {{json .None}}", "[\"a\",\"b\"] null"),
            ("{{.Names | json}}", "[\"a\",\"b\"]"),
            ("{{join .Names \", \"}}", "a, b"),
            ("{{index .Config.Labels \"a.b\"}}", "c"),
            ("{{index .Names 1}}", "b"),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{index (split \"a:b\" \":\") 1}}", "b"),
            ("{{upper .ID}} {{lower \"ABC\"}} {{title \"hello world\"}}", "ABC abc Hello World"),
            ("{{len .Names}} {{len .ID}}", "2 3"),
            ("{{range .Names}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range $i, $n := .Names}}{{$i}}={{$n}};{{end}}", "0=a;1=b;"),
            ("{{range $k, $v := .Config.Labels}}{{$k}}:{{$v}} {{end}}", "a.b:c k:v "),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{range .Names}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}", "a"),
            ("{{range .Names}}{{if eq . \"a\"}}{{continue}}{{end}}{{.}}{{end}}", "b"),
            ("{{range 3}}{{.}}{{end}}", "012"),
            ("{{if .Running}}up{{else}}down{{end}}", "up"),
            ("{{if .None}}a{{else if .Empty}}b{{else}}c{{end}}", "c"),
            ("{{if and .Running (gt .Size 10)}}big{{end}}", "big"),
            ("{{or .None .ID}} {{not .Running}}", "abc false"),
            (
                "{{eq .Size 12}} {{eq .ID \"x\" \"abc\"}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{ge 1 2}}",
                "true true true true true false",
            ),
            ("{{with .Config}}{{.Env}}{{end}}", "[A=1 B=2]"),
            ("{{with .None}}x{{else}}y{{end}}", "y"),
            ("{{with $x := .ID}}{{$x}}{{$.Size}}{{end}}", "abc12"),
            ("{{$x := 1}}{{$x = 2}}{{$x}}", "2"),
            ("{{range .Names}}{{println .}}{{end}}", "a\nb\n"),
            (
                "{{printf \"%-5s|%3d|%q|%v|%.2f|%x|%%\" .ID .Size .ID .Names .Ratio 255}}",
                "abc  | 12|\"abc\"|[a b]|1.50|ff|%",
            ),
            ("{{print .ID 1 2 .ID}}", "abc1 2abc"),
            ("{{truncate .ID 2}}|{{pad .ID 1 2}}|", "ab| abc  |"),
            ("{{slice .ID 1}} {{slice .ID 0 1}}", "bc a"),
            ("{{`raw`}} {{\"a\\tb\"}} {{'c'}}", "raw a\tb 99"),
            ("a {{- .ID -}} b", "aabcb"),
            ("{{/* note */}}x{{- /* note */ -}} y", "xy"),
            ("{{.Label \"y\"}}", "2"),
            ("{{.Config.Label \"k\"}}", "v"),
            ("{{true}} {{nil | printf \"%v\"}}", "true <nil>"),
        ];
        for (source, text) in table {
            assert_eq!(render(source, &data).as_deref(), Ok(text), "{source}");
        }
        assert_eq!(render("{{.}}", &json!("x")).unwrap(), "x");
        assert_eq!(render("{{.}}", &json!({"A": 1, "B": "c"})).unwrap(), "{1 c}");
    }

    #[test]
    fn wrong_templates_are_refused_with_the_place() {
        let table = [
            ("{{.ID", "unclosed action"),
            ("{{", "unclosed action"),
            ("x{{}}", "an action is empty"),
            ("{{if .A}}x", "if without its end"),
            ("{{end}}", "end without if, range or with"),
            ("{{else}}", "else without if, range or with"),
            ("{{nope .A}}", "function \"nope\" is not known"),
            ("{{\"abc}}", "unterminated string"),
            ("{{.A | }}", "a value is missing"),
            ("{{(.A}}", "a closing parenthesis is missing"),
            ("{{.A)}}", "unexpected \")\""),
            ("{{$x}}", "variable \"$x\" is not set"),
            ("{{define \"x\"}}{{end}}", "define is not supported in a format"),
            ("{{break}}", "break outside range"),
            ("{{/* x}}", "unclosed comment"),
        ];
        for (source, wanted) in table {
            let reason = match Template::parse(source) {
                Err(TemplateError::Parse { reason, .. }) => reason,
                other => format!("{other:?}"),
            };
            assert_eq!(reason, wanted, "{source}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_overflowed() {
        let parentheses = format!("{{{{{}1{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(Template::parse(&parentheses).is_err());
        let blocks = format!("{}{}", "{{if 1}}".repeat(100_000), "{{end}}".repeat(100_000));
        assert!(Template::parse(&blocks).is_err());
    }

    #[test]
    fn a_missing_field_names_those_there_are() {
        let data = json!({"ID": "x", "Config": {"Env": []}});
        let error = render("{{.Nope}}", &data).unwrap_err();
        assert_eq!(
            error,
            TemplateError::NoField { field: "Nope".to_owned(), known: "ID, Config".to_owned() }
        );
        for source in [
            "{{.Config.Nope}}",
            "{{.ID.Nope}}",
            "{{index .ID \"a\"}}",
            "{{len 3}}",
            "{{lt 1 \"a\"}}",
            "{{join .ID \",\"}}",
            "{{index .Config.Env 3}}",
        ] {
            assert!(render(source, &data).is_err(), "{source}");
        }
    }

    proptest::proptest! {
        /// Whatever is typed gives text or an error.
        #[test]
        fn no_template_panics(source in "([{}|().$:=,'\"`\\\\ \n-]|\\{\\{|\\}\\}|if|range|end|else|with|index|printf|%[-0-9]?[sdvqx]|slice|[.]A|[.]B|[0-9]|ä){0,40}") {
            let data = json!({"A": ["x", "ä"], "B": {"k": 1}});
            if let Ok(template) = Template::parse(&source) {
                let _ = template.render(&data);
                let _ = template.render_heading(&data);
            }
        }
    }
}
