//! Debian's docker-registry with token authentication, and a token server that signs real JSON Web Tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde_json::{Value, json};

use super::server::{DockerRegistry, PASSWORD, Reply, Seen, Server, certificates};
use crate::harness::{Hostel, output, skip};

const SERVICE: &str = "the-registry";
const ISSUER: &str = "the-issuer";
/// `me:hunter2`, as Basic authentication has it.
const ME: &str = "Basic bWU6aHVudGVyMg==";

/// A token server. Who has the password may do everything, everybody may pull what is below `public/`.
fn issuer(keys: PathBuf) -> Server {
    Server::start(move |seen| {
        let (_, query) = seen.path.split_once('?').unwrap_or_default();
        let decoded = query.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",").replace("%2A", "*");
        let values = |key: &str| -> Vec<String> {
            let pairs = decoded.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).collect()
        };
        let user = match seen.header("authorization") {
            Some(ME) => "me",
            Some(_) => return Reply::status(401),
            None => "",
        };
        if values("service") != [SERVICE] {
            return Reply::status(400);
        }
        let mut access = Vec::new();
        for scope in values("scope") {
            let parts: Vec<&str> = scope.split(':').collect();
            let [kind, name, actions] = parts[..] else { return Reply::status(400) };
            let is_allowed =
                |action: &&str| !user.is_empty() || (*action == "pull" && name.starts_with("public/"));
            let actions: Vec<_> = actions.split(',').filter(is_allowed).collect();
            access.push(json!({"type": kind, "name": name, "actions": actions}));
        }
        Reply::ok(json!({"token": signed(&keys, user, &access), "expires_in": 300}).to_string())
    })
}

/// A JSON Web Token (RFC 7519) with ES256 (RFC 7518, 3.4), its certificate in `x5c`.
fn signed(keys: &Path, user: &str, access: &[Value]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let certificate = fs::read_to_string(keys.join("ca.crt")).unwrap();
    let certificate: String = certificate.lines().filter(|line| !line.starts_with('-')).collect();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [certificate]});
    let claims = json!({"iss": ISSUER, "sub": user, "aud": SERVICE, "jti": now.as_nanos().to_string(),
                        "nbf": now.as_secs() - 10, "iat": now.as_secs(), "exp": now.as_secs() + 300,
                        "access": access});
    let [header, claims] = [header, claims].map(|part| BASE64URL.encode(part.to_string()));
    let text = format!("{header}.{claims}");
    let file = keys.join(format!("claims-{}", now.as_nanos()));
    fs::write(&file, &text).unwrap();
    let (key, claims) = (keys.join("ca.key"), file.to_string_lossy().into_owned());
    let mut command = Command::new("openssl");
    let done = output(command.args(["dgst", "-sha256", "-sign", &key.to_string_lossy(), &claims])).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    format!("{text}.{}", BASE64URL.encode(raw_signature(&done.stdout)))
}

/// Both numbers of an ECDSA signature, 32 bytes each, out of openssl's DER (RFC 3279, 2.2.3).
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    // A sequence of less than 128 bytes; in it the integers, each with its length, perhaps with a leading zero.
    let mut rest = &der[2..];
    for _ in 0..2 {
        assert_eq!(rest[0], 2, "an integer");
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        let number = &number[number.len().saturating_sub(32)..];
        raw.extend(vec![0; 32 - number.len()]);
        raw.extend(number);
        rest = after;
    }
    raw
}

fn scopes(seen: &[Seen]) -> Vec<String> {
    let queries = seen.iter().filter_map(|seen| seen.path.split_once('?'));
    let scopes =
        queries.flat_map(|(_, query)| query.split('&')).filter_map(|pair| pair.strip_prefix("scope="));
    scopes.map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")).collect()
}

#[test]
fn a_registry_takes_the_tokens_that_its_issuer_signed() {
    let Some(h) = Hostel::new() else { return };
    let Some(keys) = certificates(&h.scratch("keys")) else { return skip("openssl is not installed") };
    let bundle = keys.join("ca.crt");
    let issuer = issuer(keys);
    let auth = format!(
        "auth:\n  token: {{realm: 'http://{}/token', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}",
        issuer.host(),
        bundle.display()
    );
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), &auth) else { return };
    let host = registry.host();
    let (private, public) = (format!("{host}/private/app:1"), format!("{host}/public/app:1"));
    for name in [&private, &public] {
        h.run(&format!("tag busybox {name}")).ok();
    }
    // Without a password the issuer gives a token that allows nothing.
    h.run(&format!("push {private}")).code(1).stderr_has("denied").stderr_has("hostel login");
    let login = |password: &str| h.cmd(&format!("login -u me --password-stdin {host}")).stdin(password).run();
    login("wrong").code(1);
    login(PASSWORD).ok().stdout("Login Succeeded\n");
    h.run(&format!("push -q {private}")).ok();
    h.run(&format!("push {public}")).ok().has(": Mounted from private/app\n");
    let asked = scopes(&issuer.seen());
    for scope in
        ["repository:private/app:pull,push", "repository:public/app:pull,push", "repository:private/app:pull"]
    {
        assert!(asked.iter().any(|asked| asked == scope), "{scope}: {asked:?}");
    }
    // Somebody else may have the public one, and that only.
    let other = Hostel::empty();
    other.run(&format!("pull -q {public}")).ok().stdout(&format!("{public}\n"));
    other.run(&format!("run --rm {public} echo hi")).ok().stdout("hi\n");
    other.run(&format!("pull {private}")).code(1).stderr_has("pull access denied for private/app");
    other.run(&format!("tag {public} {private}")).ok();
    other.run(&format!("push {private}")).code(1).stderr_has("denied");
    other.run(&format!("search {host}/app")).code(1);
    h.run(&format!("search {host}/app")).ok().has("public/app").has("private/app");
    h.run(&format!("logout {host}")).ok();
    h.run(&format!("pull {private}")).code(1).stderr_has("denied");
    let secrets = [PASSWORD, "bWU6aHVudGVyMg"];
    assert!(issuer.seen().iter().all(|seen| !secrets.iter().any(|secret| seen.path.contains(secret))));
}
