//! Go templates, as far as data without Go's types allow.
//!
//! All of text/template's actions and functions are there, and those that Docker adds. Errors have Go's words,
//! with the line, and where something was executed the column, the template and the piece.
//!
//! Data are [`Value`]s, which have no Go types. Where Go tells a struct (a field it lacks is an
//! error) from a map (a key it lacks prints `<no value>`), an object counts as a struct if every
//! key begins with a capital letter, as those of Docker's API do.

use serde_json::Value;
use thiserror::Error;

use super::eval::{self, Missing};
use super::parse;
use super::tree::Tree;
use crate::cli::{CliError, Exit};

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    tree: Tree,
}

/// Why a template cannot be read or rendered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// It is not a template.
    #[error("template: :{line}: {reason}")]
    Parse {
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A field is not there, or a function or an action was given something it cannot work on.
    #[error("template: :{line}:{column}: executing {template:?} at <{piece}>: {reason}")]
    Execute {
        /// From 1.
        line: usize,
        /// In bytes, from 0.
        column: usize,
        /// The name of the template, empty for the one that is not defined in another.
        template: String,
        /// How the piece that failed is written.
        piece: String,
        /// What is wrong.
        reason: String,
        /// The fields that there are, if one was asked for that is not.
        known: Vec<String>,
    },
}

impl TemplateError {
    /// What a verb ends with, Docker's words before it.
    #[must_use]
    pub fn told(&self) -> CliError {
        self.told_as("template parsing error")
    }

    /// The same with other words before it.
    #[must_use]
    pub fn told_as(&self, what: &str) -> CliError {
        let error = CliError::new(format!("{what}: {self}"));
        match self {
            Self::Execute { known, .. } if !known.is_empty() => {
                error.with_hint(format!("there are {}; '{{{{json .}}}}' shows them all", known.join(", ")))
            }
            _ => error,
        }
    }
}

impl Template {
    /// Renders one object as `info` and `version` do, whose template is wrong with 64.
    ///
    /// # Errors
    /// As [`Self::parse`] and [`Self::render`].
    pub fn render_one(source: &str, data: &Value) -> Result<String, CliError> {
        let template = Self::parse(source).map_err(|error| error.told().with_exit(Exit::Usage))?;
        template.render(data).map_err(|error| error.told())
    }

    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError::Parse`] with the line.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        Ok(Self { source: source.to_owned(), tree: parse::parse(source)? })
    }

    /// Renders the template with `data` as its dot, without a final newline.
    ///
    /// # Errors
    /// A field that is not there, or a function's wrong arguments.
    pub fn render(&self, data: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        eval::render(&self.source, &self.tree, data, Missing::IsError, &mut out)?;
        Ok(out)
    }

    /// Renders a table's heading: `data` maps fields to headings, functions leave them as they are. What cannot be
    /// done with a heading ends it: the rows say what is wrong.
    pub(super) fn render_heading(&self, data: &Value) -> String {
        let mut out = String::new();
        let _ = eval::render(&self.source, &self.tree, data, Missing::IsHeading, &mut out);
        out
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
            ("{{.None}}", "<no value>"),
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
            ("{{true}} {{printf \"%v\" nil}}", "true <nil>"),
        ];
        for (source, text) in table {
            assert_eq!(render(source, &data).as_deref(), Ok(text), "{source}");
        }
        assert_eq!(render("{{.}}", &json!("x")).unwrap(), "x");
        assert_eq!(render("{{.}}", &json!({"A": 1, "B": "c"})).unwrap(), "{1 c}");
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
            error.told().render(),
            "Error: template parsing error: template: :1:2: executing \"\" at <.Nope>: map has no entry for key \"Nope\"\n\
             Hint: there are ID, Config; '{{json .}}' shows them all"
        );
    }

    #[test]
    fn a_place_is_of_its_line() {
        let table = [
            ("a\n{{.ID}}\n{{.Nope}}", "template: :3:2: executing"),
            ("a\n{{nope}}", "template: :2: function \"nope\" not defined"),
            ("a\n{{.ID\n", "template: :3: unclosed action started at :2"),
            (
                "{{define \"t\"}}\n{{.X.Y}}{{end}}{{template \"t\" .}}",
                "template: :2:4: executing \"t\" at <.X.Y>",
            ),
        ];
        for (source, wanted) in table {
            let error = render(source, &json!({"ID": "x"})).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{source}: {error}");
        }
    }

    #[test]
    fn what_is_null_prints_as_what_it_would_be() {
        let data = json!({"Config": {"Cmd": null, "Labels": null, "Healthcheck": null, "X": null}});
        let table = [
            (
                "{{.Config.Cmd}} {{.Config.Labels}} {{.Config.Healthcheck}} {{.Config.X}}",
                "[] map[] <nil> <no value>",
            ),
            ("{{json .Config.Cmd}} {{len .Config.Cmd}} {{join .Config.Cmd \" \"}}|", "null 0 |"),
            ("{{.Config.Labels.a}}", "<no value>"),
        ];
        for (source, text) in table {
            assert_eq!(render(source, &data).as_deref(), Ok(text), "{source}");
        }
        let error = render("{{.Config.Healthcheck.Test}}", &data).unwrap_err().to_string();
        assert!(error.ends_with("nil pointer evaluating interface {}.Test"), "{error}");
    }

    #[test]
    fn templates_inside_each_other_have_an_end() {
        let error =
            render("{{define \"r\"}}{{template \"r\"}}{{end}}{{template \"r\"}}", &json!({})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "template: :1:25: executing \"r\" at <{{template \"r\"}}>: exceeded maximum template depth (100)"
        );
    }

    /// Checked with Go 1.19's fmt.
    #[test]
    fn printf_is_gos() {
        let table = [
            (
                "\"%v|%g|%e|%f|%10v|%-10g|%+v|%08.3f|%.3g\" 1000000.0 1e6 1.5 0.1 1.5 100.0 1.5 1.5 1234567.0",
                "1e+06|1e+06|1.500000e+00|0.100000|       1.5|100       |+1.5|0001.500|1.23e+06",
            ),
            ("\"%x|% d|%+05d|%.3d|%8.3d|%#o|%O\" -255 42 42 7 7 8 8", "-ff| 42|+0042|007|     007|010|0o10"),
            ("\"%[3]d %[1]d %d %[5]d|\" 1 2 3", "3 1 2 %!d(BADINDEX)|"),
            ("\"%d\" 1 \"a\" 2.5 true", "1%!(EXTRA string=a, float64=2.5, bool=true)"),
            (
                "\"%v|%s|%q|%d\" .L .L .L .L",
                "[a 1 true <nil>]|[a %!s(int=1) %!s(bool=true) <nil>]|[\"a\" '\\x01' %!q(bool=true) <nil>]|[%!d(string=a) 1 %!d(bool=true) <nil>]",
            ),
            ("\"%v|%s|%t|%5t|%-7v|\" nil nil nil true true", "<nil>|%!s(<nil>)|%!t(<nil>)| true|true   |"),
            ("\"%.*d|%*s|%*d|\" 3 7 \"x\" \"y\" -5 4", "007|%!(BADWIDTH)y|4    |"),
            (
                "\"%10.3v|%-10q|%x|%X|%08b|%#b|%+q|%#U|%03s\" \"abcdef\" \"a\" \"é\" \"é\" 5 5 233 233 \"a\"",
                "       abc|\"a\"       |c3a9|C3A9|00000101|0b101|'\\u00e9'|U+00E9 'é'|00a",
            ),
            ("\"%5%|%-5d|%z\" 1 2", "%|1    |%!z(int=2)"),
            ("\"%03d|%-03d|%+03d|%06.2f|%3c|\" -5 5 5 -1.5 65", "-05|5  |+05|-01.50|  A|"),
        ];
        let data = json!({"L": ["a", 1, true, null]});
        for (arguments, text) in table {
            assert_eq!(
                render(&format!("{{{{printf {arguments}}}}}"), &data).as_deref(),
                Ok(text),
                "{arguments}"
            );
        }
        assert!(render("{{printf \"%99999d\" 1}}", &data).is_err());
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
