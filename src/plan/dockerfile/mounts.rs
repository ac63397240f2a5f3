//! `RUN --mount=...` (Dockerfile reference, "RUN --mount").

/// One `--mount`, expanded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMount {
    /// What is mounted.
    pub kind: MountKind,
    /// Where; for a secret maybe nowhere.
    pub target: Option<String>,
    /// `from`: a stage, an image, a named context; none for the context itself, or nothing for a cache.
    pub from: Option<String>,
    /// `source`: a path in what it comes from.
    pub source: Option<String>,
    /// Whether it can be written.
    pub writable: bool,
    /// Of a new cache, a secret or a socket.
    pub mode: Option<u32>,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The kinds of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, of a stage or of an image.
    Bind,
    /// A directory that outlives the build.
    Cache {
        /// Its name; the target where none is given.
        id: Option<String>,
        /// What two builds at once do.
        sharing: Sharing,
    },
    /// Memory.
    Tmpfs {
        /// Its limit in bytes.
        size: Option<u64>,
    },
    /// A file that is in no layer.
    Secret {
        /// Which.
        id: String,
        /// Whether its absence is an error.
        required: bool,
        /// A variable that gets it.
        env: Option<String>,
    },
    /// An agent's socket.
    Ssh {
        /// Which; `default`.
        id: String,
        /// Whether its absence is an error.
        required: bool,
    },
}

/// What two builds that use one cache at once do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Both use it.
    Shared,
    /// Each has one of its own.
    Private,
    /// One waits for the other.
    Locked,
}

impl RunMount {
    /// Reads the option's value.
    ///
    /// # Errors
    /// BuildKit's words of what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields = fields(text)?;
        let value = |wanted: &[&str]| {
            let mut found = fields.iter().rev().filter(|(key, _)| wanted.contains(&key.as_str()));
            found.next().map(|(_, value)| value.clone())
        };
        let text_of = |wanted: &[&str]| value(wanted).flatten();
        let kind_name = text_of(&["type"]).unwrap_or_else(|| "bind".to_owned()).to_ascii_lowercase();
        let allowed: &[&str] = match kind_name.as_str() {
            "bind" => &[
                "type",
                "from",
                "source",
                "src",
                "target",
                "dst",
                "destination",
                "rw",
                "readwrite",
                "ro",
                "readonly",
            ],
            "cache" => &[
                "type",
                "id",
                "from",
                "source",
                "src",
                "target",
                "dst",
                "destination",
                "ro",
                "readonly",
                "rw",
                "readwrite",
                "sharing",
                "mode",
                "uid",
                "gid",
            ],
            "tmpfs" => &["type", "target", "dst", "destination", "size"],
            "secret" => &[
                "type",
                "id",
                "source",
                "src",
                "target",
                "dst",
                "destination",
                "required",
                "mode",
                "uid",
                "gid",
                "env",
            ],
            "ssh" => &[
                "type",
                "id",
                "source",
                "src",
                "target",
                "dst",
                "destination",
                "required",
                "mode",
                "uid",
                "gid",
            ],
            other => return Err(format!("unsupported mount type \"{other}\"")),
        };
        if let Some((key, _)) = fields.iter().find(|(key, _)| !allowed.contains(&key.as_str())) {
            return Err(format!("unexpected key '{key}' in '{text}'"));
        }
        let flag = |names: &[&str]| -> Result<Option<bool>, String> {
            match value(names) {
                None => Ok(None),
                Some(None) => Ok(Some(true)),
                Some(Some(text)) => match text.to_ascii_lowercase().as_str() {
                    "true" | "1" | "t" => Ok(Some(true)),
                    "false" | "0" | "f" => Ok(Some(false)),
                    _ => Err(format!("invalid value for {}: {text}", names[0])),
                },
            }
        };
        let number = |name: &'static str, radix| -> Result<Option<u32>, String> {
            let Some(text) = text_of(&[name]) else { return Ok(None) };
            u32::from_str_radix(&text, radix)
                .map(Some)
                .map_err(|_| format!("invalid value {text} for {name}"))
        };
        let mut target = text_of(&["target", "dst", "destination"]);
        let source = text_of(&["source", "src"]);
        let id = text_of(&["id"]);
        let writable = match (flag(&["rw", "readwrite"])?, flag(&["ro", "readonly"])?) {
            (Some(writable), None) => writable,
            (None, Some(read_only)) => !read_only,
            (Some(_), Some(read_only)) => !read_only,
            (None, None) => matches!(kind_name.as_str(), "cache" | "tmpfs"),
        };
        let required = flag(&["required"])?.unwrap_or(false);
        let kind = match kind_name.as_str() {
            "cache" => MountKind::Cache {
                id,
                sharing: match text_of(&["sharing"]).as_deref() {
                    None | Some("shared") => Sharing::Shared,
                    Some("private") => Sharing::Private,
                    Some("locked") => Sharing::Locked,
                    Some(other) => return Err(format!("unsupported sharing value \"{other}\"")),
                },
            },
            "tmpfs" => MountKind::Tmpfs {
                size: text_of(&["size"])
                    .map(|text| bytes(&text).ok_or_else(|| format!("invalid value for size: {text}")))
                    .transpose()?,
            },
            "secret" => {
                let env = text_of(&["env"]);
                let id = id
                    .or_else(|| source.clone())
                    .or_else(|| target.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned))
                    .filter(|id| !id.is_empty())
                    .ok_or("secret mount requires an id or a target")?;
                // Where only a variable is asked for there is no file.
                if target.is_none() && env.is_none() {
                    target = Some(format!("/run/secrets/{}", id.rsplit('/').next().unwrap_or(&id)));
                }
                MountKind::Secret { id, required, env }
            }
            "ssh" => MountKind::Ssh {
                id: id.or_else(|| source.clone()).unwrap_or_else(|| "default".to_owned()),
                required,
            },
            _ => MountKind::Bind,
        };
        let needs_target =
            matches!(kind, MountKind::Bind | MountKind::Cache { .. } | MountKind::Tmpfs { .. });
        if needs_target && target.is_none() {
            return Err("target is required".to_owned());
        }
        Ok(Self {
            kind,
            target,
            from: text_of(&["from"]),
            source,
            writable,
            mode: number("mode", 8)?,
            uid: number("uid", 10)?.unwrap_or(0),
            gid: number("gid", 10)?.unwrap_or(0),
        })
    }
}

/// Comma-separated fields, quoted as CSV has it.
fn fields(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let (mut found, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => found.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(format!("failed to parse csv mounts: a quote is not closed in '{text}'"));
    }
    found.push(field);
    Ok(found
        .into_iter()
        .filter(|field| !field.is_empty())
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.to_ascii_lowercase(), None),
        })
        .collect())
}

/// `64m`, as Docker counts: powers of 1024.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}
