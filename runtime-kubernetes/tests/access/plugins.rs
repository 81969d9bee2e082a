//! Plugins that get the login.

use serde_json::json;
use v6_runtime::{ErrorKind, Runtime};
use v6_runtime_kubernetes::KubernetesRuntime;

use crate::common::{Bench, in_time};
use crate::given::{Given, Login, until};

/// Prints what the file `token` has, with what its argument says of the time.
const CREDENTIAL: &str = r#"
cd "${0%/*}" || exit
echo >>calls
[ ! -e broken ] || { echo "no session" >&2; exit 3; }
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"' "$(cat token)"
[ -z "$1" ] || printf ',"expirationTimestamp":"%s"' "$(date -u -d "$1 seconds" +%Y-%m-%dT%H:%M:%SZ)"
echo '}}'
"#;

/// Has a script get the login of the node's account.
fn by(script: &str, argument: &str) -> Given {
    let mut given = Given::node();
    let token = given.user()["token"].as_str().unwrap().to_owned();
    given.put("token", token);
    given.put("script", script);
    // Not the script itself: while another test starts a program, a file that was just written cannot be run.
    let program = given.folder().join("login");
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    let script = given.folder().join("script");
    *given.user() = json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "./login",
        "args": [script, argument],
        "env": [{ "name": "SECRET", "value": "hunter2" }],
    }});
    given
}

fn calls(given: &Given) -> usize {
    let calls = std::fs::read_to_string(given.folder().join("calls"));
    calls.unwrap_or_default().lines().count()
}

#[tokio::test]
async fn one_is_asked_once() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let given = by(CREDENTIAL, "");
    let cluster = given.connect(&bench).await.unwrap();
    cluster.ping().await.unwrap();
    assert_eq!(calls(&given), 1);
}

#[tokio::test]
async fn what_is_wrong_with_one_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let nothing = r#"echo '{"kind": "ExecCredential", "status": {}}'"#;
    let lines =
        r#"printf %s '{"kind": "ExecCredential", "status": {"token": "hunter2\nhunter2"}}'"#;
    for (script, said) in [
        (
            "echo oh; echo no session >&2; echo $SECRET; exit 3",
            "no session",
        ),
        ("echo hunter2 is what I know", "no ExecCredential"),
        ("echo '{}'", "neither a token nor a certificate"),
        (nothing, "neither a token nor a certificate"),
        (lines, "is it one word"),
    ] {
        let error = by(script, "").error(&bench).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.message().contains(said), "{said}: {error}");
        assert!(
            error.message().contains("/login") || script == lines,
            "{error}"
        );
        let all = format!("{error} {error:?}");
        assert!(!all.contains("hunter2"), "{all}");
    }
    let mut given = by("", "");
    given.user()["exec"]["command"] = json!("./gone");
    let error = given.error(&bench).await;
    assert!(error.message().contains("/gone cannot be run"), "{error}");
    given.user()["exec"]["interactiveMode"] = json!("Always");
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    assert!(error.message().contains("ask a human"), "{error}");
}

#[tokio::test]
async fn one_that_hangs_is_given_up() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // Until the folder is removed, with the test's end.
    let given = by("while [ -e \"$0\" ]; do sleep 0.1; done", "");
    let limit = std::time::Duration::from_secs(1);
    let config = given.config(&bench).with_call_timeout(limit);
    let error = in_time(30, KubernetesRuntime::connect(config)).await;
    let error = error.unwrap_err();
    assert!(error.message().contains("does not answer"), "{error}");
}

#[tokio::test]
async fn a_token_that_expires_is_fetched_anew() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // The library takes another a minute before the end of one.
    let given = by(CREDENTIAL, "66");
    let cluster = given.connect(&bench).await.unwrap();
    let before = calls(&given);
    let mut asked = 0;
    let renewed = until(async || {
        cluster.ping().await.unwrap();
        asked += 1;
        calls(&given) > before
    });
    in_time(30, renewed).await;
    assert!(asked > 2 && before <= 2, "{asked} {before}");
}

#[tokio::test]
async fn one_that_fails_later_is_told_and_asked_again() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // It is over so soon that each request needs another.
    let given = by(CREDENTIAL, "30");
    let cluster = given.connect(&bench).await.unwrap();
    given.put("broken", "");
    let error = cluster.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.is_retryable(), "{error}");
    for wanted in ["/login has failed", "no session"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
    std::fs::remove_file(given.folder().join("broken")).unwrap();
    cluster.ping().await.unwrap();
}

#[tokio::test]
async fn one_is_asked_again_when_its_token_is_withdrawn() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let given = by(CREDENTIAL, "");
    let (old, new) = (Login::new(&bench).await, Login::new(&bench).await);
    given.put("token", &old.token);
    let cluster = given.connect(&bench).await.unwrap();
    given.put("token", &new.token);
    old.withdraw().await;
    cluster.ping().await.unwrap();
    assert_eq!(calls(&given), 2);
    drop(cluster);
    new.withdraw().await;
}
