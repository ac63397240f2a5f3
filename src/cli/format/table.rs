//! Aligned columns and listings.
//!
//! [`align`] is the algorithm of Go's text/tabwriter with Docker's settings: a cell ends with a
//! tab, a column is a run of neighbouring lines that have that cell, its width is its longest
//! cell and three blanks, ten at least; text after a line's last tab belongs to no column.

use serde_json::{Map, Value};

use super::template::{Template, TemplateError};
use crate::cli::harmless::value_on_terminal;
use crate::cli::{CliError, Exit};

const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Aligns tab-terminated cells.
#[must_use]
pub fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut out = String::with_capacity(text.len() * 2);
    let mut widths = Vec::new();
    align_block(&lines, 0, lines.len(), &mut widths, &mut out);
    out
}

/// Lays out `lines[start..end]`, whose first `widths.len()` columns have their widths.
fn align_block(lines: &[Vec<&str>], start: usize, end: usize, widths: &mut Vec<usize>, out: &mut String) {
    let column = widths.len();
    let mut line = start;
    while line < end {
        if column + 1 >= lines[line].len() {
            write_line(&lines[line], widths, out);
            line += 1;
            continue;
        }
        let run = lines[line..end].iter().take_while(|cells| column + 1 < cells.len()).count();
        let widest = lines[line..line + run].iter().map(|cells| cells[column].chars().count()).max();
        widths.push((widest.unwrap_or(0) + PADDING).max(MIN_WIDTH));
        align_block(lines, line, line + run, widths, out);
        widths.pop();
        line += run;
    }
}

fn write_line(cells: &[&str], widths: &[usize], out: &mut String) {
    for (cell, width) in cells.iter().zip(widths.iter().map(Some).chain(std::iter::repeat(None))) {
        out.push_str(cell);
        if let Some(width) = width {
            out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
        }
    }
    out.push('\n');
}

/// A verb's listing: its fields with their headings, and the table it prints by default.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Every field of a row that a template may name, with its heading.
    pub headings: &'a [(&'a str, &'a str)],
    /// The template printed where `--format` is empty or `table`, without the word `table`.
    pub default: &'a str,
}

impl Table<'_> {
    /// Renders rows (objects) as `--format` says: empty or `table` for the default, `json` for one
    /// object a line, `table TEMPLATE` for an aligned one with headings, else a template a row.
    ///
    /// # Errors
    /// The template is wrong or names a field that a row does not have.
    pub fn render(&self, format: &str, rows: &[Value]) -> Result<String, CliError> {
        self.try_render(format, rows).map_err(|error| error.told())
    }

    /// The same for a verb that has words of its own for what is wrong.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn try_render(&self, format: &str, rows: &[Value]) -> Result<String, TemplateError> {
        let rows: Vec<Value> = rows.iter().map(sorted).collect();
        let (aligned, source) = match format {
            "" | "table" => (true, self.default),
            "json" | "{{json .}}" => return Ok(rows.iter().map(json_line).collect()),
            _ => match format.strip_prefix("table") {
                Some(source) => (true, source),
                None => (false, format),
            },
        };
        let source = source.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n");
        let template = Template::parse(&source)?;
        let mut text = String::new();
        if aligned {
            text.push_str(&template.render_heading(&self.heading_row()));
            text.push('\n');
        }
        for row in &rows {
            text.push_str(&template.render(&value_on_terminal(row))?);
            text.push('\n');
        }
        Ok(if aligned { align(&text) } else { text })
    }

    fn heading_row(&self) -> Value {
        let headings = self.headings.iter();
        Value::Object(
            headings.map(|(field, text)| ((*field).to_owned(), Value::from(*text))).collect::<Map<_, _>>(),
        )
    }
}

/// Docker's `--format raw` as a template: a line a field, with the word before it.
#[must_use]
pub fn raw(format: &str, fields: &[(&str, &str)]) -> Option<String> {
    let line = |(word, field): &(&str, &str)| format!("{word}: {{{{.{field}}}}}\n");
    (format == "raw").then(|| fields.iter().map(line).collect())
}

/// A row with its fields in the order in which Docker's JSON has them.
fn sorted(row: &Value) -> Value {
    let Value::Object(map) = row else { return row.clone() };
    let mut fields: Vec<(&String, &Value)> = map.iter().collect();
    fields.sort_by_key(|(name, _)| *name);
    Value::Object(fields.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// A row as one line of JSON. Docker's go through an encoder that escapes what HTML would not like;
/// its `inspect` does not.
fn json_line(row: &Value) -> String {
    let json = super::json_compact(row);
    // Outside of strings JSON has none of these.
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e") + "\n"
}

/// Whether an `inspect` verb's `-f` can be read, which it has to be before anything is looked for.
///
/// # Errors
/// It cannot (64, as Docker's).
pub fn check_inspect(format: Option<&str>) -> Result<(), CliError> {
    match format.unwrap_or_default() {
        "" | "json" => Ok(()),
        source => read_inspect(source).map(drop),
    }
}

fn read_inspect(source: &str) -> Result<Template, CliError> {
    Template::parse(source).map_err(|error| error.told().with_exit(Exit::Usage))
}

/// Renders what an `inspect` verb found as `-f` says: nothing for an indented array, `json` for a
/// compact one, else the template once an object.
///
/// # Errors
/// The template is wrong or names a field that an object does not have.
pub fn render_inspect(format: Option<&str>, objects: &[Value]) -> Result<String, CliError> {
    let mut text = String::new();
    match format.unwrap_or_default() {
        "" => text = super::json_indented(objects),
        "json" => text = super::json_compact(&objects),
        source => {
            let template = read_inspect(source)?;
            for object in objects {
                text.push_str(&template.render(&value_on_terminal(object)).map_err(|error| error.told())?);
                text.push('\n');
            }
            return Ok(text);
        }
    }
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_dockers() {
        assert_eq!(
            align("A\tB\tC\nlonger than ten\tx\ty\n"),
            "A                 B         C\nlonger than ten   x         y\n"
        );
        assert_eq!(align("ä\tb\nä\tb\n"), "ä         b\nä         b\n");
        assert_eq!(
            align("a\tb\nno cells\nlong enough here\tc\n"),
            "a         b\nno cells\nlong enough here   c\n"
        );
        assert_eq!(align("a\t\tc\n"), "a                   c\n");
        assert_eq!(align(""), "");
    }

    #[test]
    fn a_listing_follows_its_format() {
        let table =
            Table { headings: &[("ID", "IMAGE ID"), ("Size", "SIZE")], default: "{{.ID}}\t{{.Size}}" };
        let rows = [json!({"ID": "abc", "Size": "1kB"}), json!({"ID": "def", "Size": "2kB"})];
        let cases = [
            ("", "IMAGE ID   SIZE\nabc        1kB\ndef        2kB\n"),
            ("table", "IMAGE ID   SIZE\nabc        1kB\ndef        2kB\n"),
            ("table {{.Size}}\\t{{lower .ID}}", "SIZE      IMAGE ID\n1kB       abc\n2kB       def\n"),
            ("json", "{\"ID\":\"abc\",\"Size\":\"1kB\"}\n{\"ID\":\"def\",\"Size\":\"2kB\"}\n"),
            ("{{json .}}", "{\"ID\":\"abc\",\"Size\":\"1kB\"}\n{\"ID\":\"def\",\"Size\":\"2kB\"}\n"),
            ("{{.ID}}: {{.Size}}", "abc: 1kB\ndef: 2kB\n"),
        ];
        for (format, text) in cases {
            assert_eq!(table.render(format, &rows).unwrap(), text, "{format}");
        }
        let escaped = table.render("json", &[json!({"Tag": "<none>"})]).unwrap();
        assert_eq!(escaped, "{\"Tag\":\"\\u003cnone\\u003e\"}\n");
        assert_eq!(table.render("", &[]).unwrap(), "IMAGE ID   SIZE\n");
        assert!(table.render("{{.Nope}}", &rows).is_err());
        assert_eq!(table.render("table{{.Nope}}", &[]).unwrap(), "<no value>\n");
        let labels = Table { headings: &[("Labels", "LABELS"), ("Names", "NAMES")], default: "" };
        let rows = [json!({"Names": "web", "Labels": "com.x-y=1"})];
        let cases = [
            ("table {{.Label \"com.x-y\"}}\\t{{.Names}}", "x y       NAMES\n1         web\n"),
            ("table {{join (split .Names \"e\") \"-\"}}", "NAMES\nw-b\n"),
            ("table {{range split .Labels \"=\"}}<{{.}}>{{end}}", "\n<com.x-y><1>\n"),
            ("json", "{\"Labels\":\"com.x-y=1\",\"Names\":\"web\"}\n"),
        ];
        for (format, text) in cases {
            assert_eq!(labels.render(format, &rows).unwrap(), text, "{format}");
        }
    }

    #[test]
    fn inspect_prints_an_array_or_a_line_each() {
        let objects = [json!({"A": {"B": 1}}), json!({"A": {"B": 2}})];
        assert_eq!(render_inspect(Some("{{.A.B}}"), &objects).unwrap(), "1\n2\n");
        assert_eq!(
            render_inspect(Some("json"), &objects).unwrap(),
            "[{\"A\":{\"B\":1}},{\"A\":{\"B\":2}}]\n"
        );
        assert_eq!(
            render_inspect(None, &objects[..1]).unwrap(),
            "[\n    {\n        \"A\": {\n            \"B\": 1\n        }\n    }\n]\n"
        );
        assert_eq!(render_inspect(None, &[]).unwrap(), "[]\n");
    }
}
