//! What instructions make of an image's configuration: a table.

use serde_json::{Value, json};

use super::{build, build_text, config, context};
use crate::harness::Hostel;

#[test]
fn instructions_make_the_configuration() {
    let Some(h) = Hostel::new() else { return };
    let table: Vec<(&str, &str, Value)> = vec![
        ("CMD a b", "/Config/Cmd", json!(["/bin/sh", "-c", "a b"])),
        ("CMD [\"a\", \"b\"]", "/Config/Cmd", json!(["a", "b"])),
        ("SHELL [\"/bin/ash\", \"-c\"]\nCMD a", "/Config/Cmd", json!(["/bin/ash", "-c", "a"])),
        ("ENTRYPOINT [\"e\"]", "/Config/Entrypoint", json!(["e"])),
        ("ENTRYPOINT [\"e\"]", "/Config/Cmd", Value::Null),
        ("CMD [\"c\"]\nENTRYPOINT [\"e\"]", "/Config/Cmd", json!(["c"])),
        ("ENV A=1 B=\"x y\"\nENV C=$A-${B}", "/Config/Env/2", json!("B=x y")),
        ("ENV A=1 B=\"x y\"\nENV C=$A-${B}", "/Config/Env/3", json!("C=1-x y")),
        ("ENV A=1\nENV A=2 B=$A", "/Config/Env/2", json!("B=1")),
        ("ENV A b  c", "/Config/Env/1", json!("A=b  c")),
        ("ARG X=1\nENV Y=${X:-2}${Z:-3}", "/Config/Env/1", json!("Y=13")),
        ("ARG X=1\nENV X=2\nENV Y=$X", "/Config/Env/2", json!("Y=2")),
        ("ARG TARGETOS\nENV T=$TARGETOS", "/Config/Env/1", json!("T=linux")),
        ("ENV T=$TARGETOS", "/Config/Env/1", json!("T=")),
        ("WORKDIR /a\nWORKDIR b/../c", "/Config/WorkingDir", json!("/a/c")),
        ("ENV D=/x\nWORKDIR $D/y", "/Config/WorkingDir", json!("/x/y")),
        ("USER 5:6", "/Config/User", json!("5:6")),
        ("EXPOSE 80 53/udp", "/Config/ExposedPorts", json!({"80/tcp": {}, "53/udp": {}})),
        ("VOLUME /v", "/Config/Volumes", json!({"/v": {}})),
        ("LABEL a=1 \"b c\"=d", "/Config/Labels", json!({"a": "1", "b c": "d"})),
        ("STOPSIGNAL SIGQUIT", "/Config/StopSignal", json!("SIGQUIT")),
        ("HEALTHCHECK --interval=5s CMD x", "/Config/Healthcheck/Test", json!(["CMD-SHELL", "x"])),
        ("HEALTHCHECK NONE", "/Config/Healthcheck/Test", json!(["NONE"])),
        ("ONBUILD RUN a", "/Config/OnBuild", json!(["RUN a"])),
        ("MAINTAINER me", "/Author", json!("me")),
    ];
    for (number, (text, pointer, expected)) in table.iter().enumerate() {
        let tag = format!("t{number}");
        build_text(&h, &tag, &format!("FROM busybox\n{text}\n"));
        let image = config(&h, &tag);
        assert_eq!(image.pointer(pointer).unwrap_or(&Value::Null), expected, "{text}");
    }
}

#[test]
fn arguments_have_their_scopes() {
    let Some(h) = Hostel::new() else { return };
    let text = "ARG BASE=nosuch\nARG V=global\nFROM $BASE AS one\nARG V\nRUN echo 1$V > /o\n\
                FROM one\nRUN echo 2$V >> /o\nARG V=own\nRUN echo 3$V >> /o; env | grep -c ^V= >> /o\nARG HTTP_PROXY\n";
    let dir = context(&h, "c", &[("Dockerfile", text)]);
    build(&h, "x", &dir, "--build-arg BASE=busybox");
    h.run("run --rm x cat /o").ok().stdout("1global\n2global\n3own\n1\n");
    build(&h, "x", &dir, "--build-arg BASE=busybox --build-arg V=given");
    h.run("run --rm x cat /o").ok().stdout("1given\n2given\n3given\n1\n");
}

#[test]
fn triggers_run_in_the_next_build() {
    let Some(h) = Hostel::new() else { return };
    build_text(&h, "base", "FROM busybox\nONBUILD COPY f /f\nONBUILD RUN cat /f > /g\n");
    let dir = context(&h, "c", &[("Dockerfile", "FROM base\nRUN cat /g > /h\n"), ("f", "F")]);
    build(&h, "x", &dir, "");
    h.run("run --rm x cat /h").ok().stdout("F");
    assert_eq!(config(&h, "x")["Config"].get("OnBuild").unwrap_or(&Value::Null), &Value::Null);
}

#[test]
fn history_reads_as_buildkits() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox\nARG A=1\nENV B=2\nRUN echo a\nCOPY --chown=1:1 f /g\nWORKDIR /w\nEXPOSE 80\nCMD [\"a\", \"b\"]\n",
            ),
            ("f", ""),
        ],
    );
    build(&h, "x", &dir, "--label l=1");
    let lines = h.run("history --no-trunc --format {{.CreatedBy}} x").ok().out();
    let lines: Vec<&str> = lines.lines().take(7).collect();
    let expected = [
        "CMD [\"a\" \"b\"]",
        "EXPOSE [80/tcp]",
        "WORKDIR /w",
        "COPY --chown=1:1 f /g # buildkit",
        "RUN |1 A=1 /bin/sh -c echo a # buildkit",
        "ENV B=2",
        "ARG A=1",
    ];
    assert_eq!(lines, expected);
    assert_eq!(config(&h, "x")["Config"]["Labels"]["l"], "1");
}
