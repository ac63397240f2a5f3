#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::panic, reason = "a test says what went wrong by panicking")]

use super::ignore::Ignore;
use super::*;

fn stage(text: &str) -> Vec<Instruction> {
    parse(&format!("FROM x\n{text}")).unwrap().stages.remove(0).instructions
}

fn only(text: &str) -> Kind {
    let mut all = stage(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0).kind
}

#[test]
fn lines_are_joined_and_placed() {
    let file = parse("# syntax=docker/dockerfile:1\n# escape=\\\n\nARG V=1\nFROM a AS B\n\n# a comment\nRUN one \\\n  # in between\n\n  two \\  \n\tthree\nrun x\\\\\nCMD y\n").unwrap();
    assert_eq!(file.directives.syntax.as_deref(), Some("docker/dockerfile:1"));
    assert_eq!(file.arguments.len(), 1);
    let stage = &file.stages[0];
    assert_eq!((stage.base.as_str(), stage.name.as_deref(), stage.place.first), ("a", Some("b"), 5));
    let texts: Vec<_> =
        stage.instructions.iter().map(|one| (one.text.as_str(), one.place.first, one.place.last)).collect();
    assert_eq!(texts, [("RUN one   two \tthree", 8, 12), ("run x\\\\", 13, 13), ("CMD y", 14, 14)]);
}

#[test]
fn another_escape_continues_lines() {
    let file = parse("# escape=`\nFROM a\nRUN dir C:\\ `\n x\n").unwrap();
    assert_eq!(file.stages[0].instructions[0].text, "RUN dir C:\\  x");
}

#[test]
fn windows_lines_are_lines() {
    let file = parse("FROM a\r\nRUN b \\\r\n c\r\n").unwrap();
    assert_eq!(file.stages[0].instructions[0].text, "RUN b  c");
}

#[test]
fn run_has_its_forms() {
    let table: [(&str, Command); 6] = [
        ("RUN echo $A  \"b\"", Command::Shell("echo $A  \"b\"".into())),
        ("RUN [\"a\", \"b c\"]", Command::Exec(vec!["a".into(), "b c".into()])),
        ("RUN [ a ]", Command::Shell("[ a ]".into())),
        ("RUN ['a']", Command::Shell("['a']".into())),
        ("run --network=none -- --x", Command::Shell("--x".into())),
        ("RUN \\\n  a", Command::Shell("a".into())),
    ];
    for (text, command) in table {
        let Kind::Run(run) = only(text) else { panic!("{text}") };
        assert_eq!(run.command, command, "{text}");
    }
}

#[test]
fn here_documents_are_read() {
    let Kind::Run(run) = only("RUN <<EOF cat <<-'B'\na $x\nEOF\n\tb\n\tB\n") else { panic!() };
    let [first, second] = run.documents.as_slice() else { panic!("{run:?}") };
    assert_eq!((first.name.as_str(), first.content.as_str(), first.expand), ("EOF", "a $x\n", true));
    assert_eq!((second.name.as_str(), second.content.as_str(), second.expand), ("B", "b\n", false));
    let Kind::Copy(copy) = only("COPY <<a <<\"b\" c /d/\n1\na\n2\nb") else { panic!() };
    assert_eq!(copy.documents.len(), 2);
    assert_eq!((copy.sources, copy.destination.as_str()), (vec!["c".to_owned()], "/d/"));
    let Kind::Run(run) = only("RUN cat <<<word") else { panic!() };
    assert!(run.documents.is_empty());
    let Kind::Config { rest, .. } = only("ONBUILD RUN <<EOF\nx\nEOF") else { panic!() };
    assert_eq!(rest, "RUN <<EOF\nx\nEOF");
    let Kind::Run(run) = instruction(&rest, Place::NONE).unwrap().kind else { panic!() };
    assert_eq!(run.documents[0].content, "x\n");
}

#[test]
fn copy_takes_flags() {
    let Kind::Copy(copy) = only(
        "COPY --from=b --chown=1:2 --chmod=0755 --link --parents --exclude=*.a --exclude=b [\"a b\", \"c\"]",
    ) else {
        panic!()
    };
    let expected = Copy {
        from: Some("b".into()),
        chown: Some("1:2".into()),
        chmod: Some("0755".into()),
        link: true,
        parents: true,
        exclude: vec!["*.a".into(), "b".into()],
        sources: vec!["a b".into()],
        destination: "c".into(),
        ..Copy::default()
    };
    assert_eq!(copy, expected);
}

#[test]
fn mounts_are_read() {
    let bind = |target: &str| RunMount {
        kind: MountKind::Bind,
        target: Some(target.into()),
        from: None,
        source: None,
        writable: false,
        mode: None,
        uid: 0,
        gid: 0,
    };
    let cache = |id: Option<&str>, sharing| RunMount {
        kind: MountKind::Cache { id: id.map(str::to_owned), sharing },
        writable: true,
        ..bind("/c")
    };
    let table = [
        ("target=/x", bind("/x")),
        ("type=bind,dst=/x,rw", RunMount { writable: true, ..bind("/x") }),
        (
            "type=bind,dst=/x,from=a,src=/b",
            RunMount { from: Some("a".into()), source: Some("/b".into()), ..bind("/x") },
        ),
        ("type=cache,target=/c", cache(None, Sharing::Shared)),
        ("type=cache,target=/c,id=n,sharing=locked,ro=false", cache(Some("n"), Sharing::Locked)),
        (
            "type=cache,target=/c,mode=0700,uid=5",
            RunMount { mode: Some(0o700), uid: 5, ..cache(None, Sharing::Shared) },
        ),
        (
            "type=tmpfs,\"target=/x\",size=64m",
            RunMount { kind: MountKind::Tmpfs { size: Some(64 << 20) }, writable: true, ..bind("/x") },
        ),
        (
            "type=secret,id=s",
            RunMount {
                kind: MountKind::Secret { id: "s".into(), required: false, env: None },
                ..bind("/run/secrets/s")
            },
        ),
        (
            "type=secret,id=s,env=S,required",
            RunMount {
                kind: MountKind::Secret { id: "s".into(), required: true, env: Some("S".into()) },
                target: None,
                ..bind("")
            },
        ),
        (
            "type=ssh",
            RunMount {
                kind: MountKind::Ssh { id: "default".into(), required: false },
                target: None,
                ..bind("")
            },
        ),
    ];
    for (text, expected) in table {
        assert_eq!(RunMount::parse(text), Ok(expected), "{text}");
    }
    for (text, error) in [
        ("type=bind", "target is required"),
        ("type=what,target=/x", "unsupported mount type \"what\""),
        ("type=tmpfs,target=/x,from=a", "unexpected key 'from' in 'type=tmpfs,target=/x,from=a'"),
        ("type=cache,target=/x,sharing=y", "unsupported sharing value \"y\""),
    ] {
        assert_eq!(RunMount::parse(text), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn errors_name_their_line() {
    let table = [
        ("", "the Dockerfile cannot be empty: file with no instructions"),
        ("# only\n", "the Dockerfile cannot be empty: file with no instructions"),
        ("RUN x", "dockerfile parse error on line 1: no build stage in current context"),
        ("ARG x\n", "dockerfile contains no stages to build"),
        ("FROM", "dockerfile parse error on line 1: FROM requires either one or three arguments"),
        ("FROM a b", "dockerfile parse error on line 1: FROM requires either one or three arguments"),
        (
            "FROM a AS 1x",
            "dockerfile parse error on line 1: invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
        ),
        (
            "FROM a\n\nRUNN x",
            "dockerfile parse error on line 3: unknown instruction: RUNN (did you mean RUN?)",
        ),
        ("FROM a\nXYZZY x", "dockerfile parse error on line 2: unknown instruction: XYZZY"),
        ("FROM a\nRUN", "dockerfile parse error on line 2: RUN requires at least one argument"),
        (
            "FROM a\nCOPY x",
            "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "FROM a\nCOPY --chonw=1 x y",
            "dockerfile parse error on line 2: unknown flag: --chonw (did you mean chown?)",
        ),
        (
            "FROM a\nCOPY --from=a --from=b x y",
            "dockerfile parse error on line 2: duplicate flag specified: from",
        ),
        ("FROM a\nCOPY --from x y", "dockerfile parse error on line 2: missing a value on flag: --from"),
        (
            "FROM a\nRUN --mount=type=x,target=/y z",
            "dockerfile parse error on line 2: unsupported mount type \"x\"",
        ),
        ("FROM a\nRUN <<EOF\nx", "dockerfile parse error on line 2: unterminated heredoc"),
        (
            "FROM a\nENV A",
            "dockerfile parse error on line 2: Syntax error - can't find = in \"A\". Must be of the form: name=value",
        ),
        (
            "FROM a\nENV A=\"x",
            "dockerfile parse error on line 2: unexpected end of statement while looking for matching quote in \"A=\\\"x\"",
        ),
        (
            "FROM a\nSHELL x",
            "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON form",
        ),
        (
            "FROM a\nONBUILD FROM x",
            "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
        ),
        ("FROM a\nEXPOSE x", "dockerfile parse error on line 2: Invalid containerPort: x"),
        (
            "# escape=x\nFROM a",
            "dockerfile parse error on line 1: invalid escape token 'x' does not match ` or \\",
        ),
        (
            "# escape=`\n# escape=`\nFROM a",
            "dockerfile parse error on line 2: only one escape parser directive can be used",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(parse(text).expect_err(text).to_string(), expected, "{text:?}");
    }
}

#[test]
fn a_value_that_only_a_variable_knows_is_no_error_yet() {
    for text in ["EXPOSE $PORT", "STOPSIGNAL ${SIG}", "USER $U", "WORKDIR $W"] {
        let Kind::Config { .. } = only(text) else { panic!("{text}") };
    }
}

#[test]
fn a_picture_shows_the_lines() {
    let text = "FROM a\nRUN b\nRUN c \\\n  d\nRUN e\nRUN f\n";
    let expected = "Dockerfile:2\n--------------------\n   1 |     FROM a\n   2 | >>> RUN b\n   3 |     RUN c \\\n   4 |       d\n--------------------\n";
    assert_eq!(picture("Dockerfile", text, Place { first: 2, last: 2 }), expected);
    let expected = "Dockerfile:3\n--------------------\n   2 |     RUN b\n   3 | >>> RUN c \\\n   4 | >>>   d\n   5 |     RUN e\n--------------------\n";
    assert_eq!(picture("Dockerfile", text, Place { first: 3, last: 4 }), expected);
    assert_eq!(picture("Dockerfile", text, Place::NONE), "");
}

#[test]
fn checks_tell_what_buildkits_do() {
    let text = "FROM --platform=linux/amd64 a as Build\nfrom b AS build\nWORKDIR x\nENV K v\nARG DB_PASSWORD\nCMD a\nCMD [\"b\"]\nMAINTAINER me\nRUN a \\\n\n b\n";
    let found: Vec<_> = check::warnings(&parse(text).unwrap(), &Ignore::default())
        .into_iter()
        .map(|warning| (warning.rule, warning.place.first))
        .collect();
    let expected = [
        ("FromAsCasing", 1),
        ("StageNameCasing", 1),
        ("FromPlatformFlagConstDisallowed", 1),
        ("ConsistentInstructionCasing", 2),
        ("FromAsCasing", 2),
        ("DuplicateStageName", 2),
        ("WorkdirRelativePath", 3),
        ("LegacyKeyValueFormat", 4),
        ("SecretsUsedInArgOrEnv", 5),
        ("JSONArgsRecommended", 6),
        ("MultipleInstructionsDisallowed", 7),
        ("MaintainerDeprecated", 8),
        ("NoEmptyContinuation", 9),
    ];
    let mut expected = expected.to_vec();
    let mut sorted = found;
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    let skipped = format!("# check=skip=all\n{text}");
    assert!(check::warnings(&parse(&skipped).unwrap(), &Ignore::default()).is_empty());
}
