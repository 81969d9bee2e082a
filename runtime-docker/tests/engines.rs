//! Where engines differ: each difference is looked for at a real engine.
//!
//! `V6_RECORD=1` writes what it says to `tests/data/engines`, a folder for each engine, for the unit
//! tests. Without it, what was recorded of this engine has to be what it still says.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use common::raw::{self, Answer};
use common::{Bench, state};
use serde_json::{Value, json};

const IMAGE: &str = "localhost/v6-busybox:test";

/// An engine, and containers at it whose names nobody else has.
struct Engine<'a> {
    bench: &'a Bench,
    prefix: String,
}

impl Engine<'_> {
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        raw::call(&self.bench.config.host, method, path, body).await
    }

    fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    /// Makes a container that has no network.
    async fn create(&self, what: &str, command: &[&str], host: Value) -> Answer {
        self.create_in(what, command, host, "").await
    }

    async fn create_in(&self, what: &str, command: &[&str], mut host: Value, at: &str) -> Answer {
        host["NetworkMode"] = "none".into();
        let body = json!({"Image": IMAGE, "Cmd": command, "WorkingDir": at, "HostConfig": host});
        let path = format!("/containers/create?name={}", self.name(what));
        self.call("POST", &path, Some(&body)).await
    }

    async fn inspect(&self, what: &str) -> Value {
        let path = format!("/containers/{}/json", self.name(what));
        self.call("GET", &path, None).await.body
    }

    async fn start(&self, what: &str) -> Answer {
        let path = format!("/containers/{}/start", self.name(what));
        self.call("POST", &path, None).await
    }

    /// What a program prints, which is run to its end.
    async fn printed(&self, what: &str, command: &[&str], host: Value, at: &str) -> String {
        let made = self.create_in(what, command, host, at).await;
        assert_eq!(made.status, 201, "{made:?}");
        let started = self.start(what).await;
        assert_eq!(started.status, 204, "{started:?}");
        let path = format!("/containers/{}/wait", self.name(what));
        assert_eq!(self.call("POST", &path, None).await.status, 200);
        let options = bollard::query_parameters::LogsOptionsBuilder::new()
            .stdout(true)
            .build();
        use futures_util::TryStreamExt;
        let lines: Vec<_> = self
            .bench
            .docker
            .logs(&self.name(what), Some(options))
            .try_collect()
            .await
            .unwrap();
        lines.iter().map(ToString::to_string).collect()
    }

    async fn remove(&self, what: &str) {
        let path = format!("/containers/{}?force=true&v=true", self.name(what));
        self.call("DELETE", &path, None).await;
    }

    /// Its words, without the names that are of this test alone.
    fn words(&self, answer: &Answer) -> Value {
        let message = answer.message().replace(&self.prefix, "NAME");
        json!({"status": answer.status, "message": message})
    }
}

/// A volume that is made together with a container.
async fn volume(engine: &Engine<'_>) -> Value {
    let volume = engine.name("volume");
    let labels = json!({"a.label": "its value"});
    let mount = json!({
        "Type": "volume", "Source": volume, "Target": "/srv",
        "VolumeOptions": {"Labels": labels},
    });
    let made = engine
        .create("labels", &["true"], json!({"Mounts": [mount]}))
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    let seen = engine
        .call("GET", &format!("/volumes/{volume}"), None)
        .await;
    engine.remove("labels").await;
    engine
        .call("DELETE", &format!("/volumes/{volume}"), None)
        .await;
    seen.body["Labels"].clone()
}

/// Limits that the kernel keeps for each process.
async fn ulimits(engine: &Engine<'_>) -> Value {
    let asked = json!({"Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}]});
    let made = engine.create("ulimits", &["true"], asked).await;
    assert_eq!(made.status, 201, "{made:?}");
    let seen = engine.inspect("ulimits").await;
    engine.remove("ulimits").await;
    let given = seen["HostConfig"]["Ulimits"].as_array();
    let names = given.into_iter().flatten().map(|it| it["Name"].clone());
    let names: BTreeSet<String> = names
        .map(|it| it.as_str().unwrap().to_lowercase())
        .collect();
    json!({"asked": ["core"], "given": names})
}

/// Devices that nobody has.
async fn devices(engine: &Engine<'_>) -> Value {
    let request = json!({"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]});
    let made = engine
        .create("devices", &["true"], json!({"DeviceRequests": [request]}))
        .await;
    // Docker looks for them at the start only.
    let started = engine.start("devices").await;
    engine.remove("devices").await;
    json!({"create": engine.words(&made), "start": engine.words(&started)})
}

/// Limits that a control group keeps.
async fn limits(engine: &Engine<'_>) -> Value {
    let asked = json!({"Memory": 67_108_864, "PidsLimit": 64, "NanoCpus": 500_000_000});
    let made = engine.create("limits", &["true"], asked.clone()).await;
    assert_eq!(made.status, 201, "{made:?}");
    let seen = engine.inspect("limits").await;
    engine.remove("limits").await;
    let given = raw::only(&seen["HostConfig"], &["Memory", "PidsLimit", "NanoCpus"]);
    json!({"asked": asked, "given": given, "warnings": made.body["Warnings"]})
}

/// A folder of the machine that is not there.
async fn missing_path(engine: &Engine<'_>) -> Value {
    let path = engine.bench.folder().join("missing");
    // An engine of somebody else's may make it, too.
    let mount = json!({"Type": "bind", "Source": path, "Target": "/srv"});
    let made = engine
        .create("missing", &["true"], json!({"Mounts": [mount]}))
        .await;
    if made.status == 201 {
        engine.start("missing").await;
    }
    engine.remove("missing").await;
    let message = made.message().replace(path.to_str().unwrap(), "PATH");
    let answer = json!({"status": made.status, "message": message});
    json!({"answer": answer, "is_made": path.exists()})
}

/// Where something is mounted whose target has a comma in it.
async fn comma(engine: &Engine<'_>) -> Value {
    let mount = json!({"Type": "bind", "Source": "/usr", "Target": "/srv,ro"});
    let made = engine
        .create("comma", &["true"], json!({"Mounts": [mount]}))
        .await;
    let seen = engine.inspect("comma").await;
    engine.remove("comma").await;
    json!({"status": made.status, "at": seen["Mounts"][0]["Destination"]})
}

/// How much comes of the log of a container that has ended.
async fn ended_log(engine: &Engine<'_>) -> Value {
    let program = "yes 0123456789012345678901234567890123456789 | head -c 2097152";
    engine
        .printed("log", &["sh", "-c", program], json!({}), "")
        .await;
    let length = async |follow: bool| {
        use futures_util::TryStreamExt;
        let options = bollard::query_parameters::LogsOptionsBuilder::new()
            .stdout(true)
            .follow(follow)
            .build();
        let all: Vec<_> = engine
            .bench
            .docker
            .logs(&engine.name("log"), Some(options))
            .try_collect()
            .await
            .unwrap();
        let lengths = all.into_iter().map(|piece| piece.into_bytes().len());
        lengths.sum::<usize>()
    };
    let seen = json!({"followed": length(true).await, "not followed": length(false).await});
    engine.remove("log").await;
    seen
}

/// What is writable below a read-only root, beside devices and the kernel's own folders.
async fn writable(engine: &Engine<'_>) -> Value {
    let host = json!({"ReadonlyRootfs": true});
    let mounts = engine
        .printed("writable", &["cat", "/proc/mounts"], host, "")
        .await;
    engine.remove("writable").await;
    let is_kernels = |at: &str| {
        ["/proc", "/dev", "/sys"]
            .iter()
            .any(|it| at.starts_with(it))
    };
    let found = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (at, kind, options) = (words.next()?, words.next()?, words.next()?);
        let is_open = options.split(',').any(|option| option == "rw");
        (kind == "tmpfs" && is_open && !is_kernels(at)).then(|| at.to_owned())
    });
    json!(found.collect::<BTreeSet<_>>())
}

/// The names that a program without a network finds, beside that of its container.
async fn hosts(engine: &Engine<'_>) -> Value {
    let command = ["sh", "-c", "grep -v \"$(hostname)\" /etc/hosts"];
    let lines = engine.printed("hosts", &command, json!({}), "").await;
    engine.remove("hosts").await;
    let names = lines
        .lines()
        .flat_map(|line| line.split_whitespace().skip(1));
    let is_known = |name: &str| {
        let everywhere = name.starts_with("localhost") || name.starts_with("ip6-");
        everywhere || name.ends_with(".internal")
    };
    // What the machine's own file names is its own.
    let told = names.map(|name| match is_known(name) {
        true => name,
        false => "NAME OF THE MACHINE'S",
    });
    json!(told.collect::<BTreeSet<_>>())
}

/// The mode of a folder in memory that the program works in.
async fn working_folder(engine: &Engine<'_>) -> Value {
    let host = json!({"Tmpfs": {"/work": "mode=1777,size=1m"}});
    let said = engine
        .printed("work", &["stat", "-c", "%a", "/work"], host, "/work")
        .await;
    engine.remove("work").await;
    said.trim().into()
}

/// What it tells of a program's end, by each name for it.
async fn events(engine: &Engine<'_>) -> Value {
    let since = seconds();
    let made = engine.create("events", &["sleep", "600"], json!({})).await;
    assert_eq!(made.status, 201, "{made:?}");
    engine.start("events").await;
    let kill = format!("/containers/{}/kill", engine.name("events"));
    engine.call("POST", &kill, None).await;
    let wait = format!("/containers/{}/wait", engine.name("events"));
    engine.call("POST", &wait, None).await;
    engine.remove("events").await;
    let mut told = serde_json::Map::new();
    for name in [
        "start", "die", "died", "oom", "kill", "cleanup", "destroy", "remove",
    ] {
        let filters = encoded(&json!({"type": ["container"], "event": [name]}));
        // Podman gives nothing at all of a time that is over when it begins to read.
        let until = seconds() + 2;
        let path = format!("/events?since={since}&until={until}&filters={filters}");
        let answer = engine.call("GET", &path, None).await;
        let lines = match &answer.body {
            Value::String(lines) => lines.clone(),
            one => one.to_string(),
        };
        let found = lines.lines().filter_map(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            let named = event["Actor"]["Attributes"]["name"] == engine.name("events").as_str();
            named.then(|| event["Action"].as_str().unwrap_or_default().to_owned())
        });
        told.insert(name.to_owned(), json!(found.collect::<BTreeSet<_>>()));
    }
    Value::Object(told)
}

fn seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// JSON as a value in the query of an address.
fn encoded(value: &Value) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let encode = |byte: u8| match byte {
        byte if plain(byte) => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    value.to_string().bytes().map(encode).collect()
}

/// The states that a container is in, by inspection and in listings, to its end.
async fn states(engine: &Engine<'_>) -> Value {
    let (mut inspected, mut listed) = (BTreeSet::new(), BTreeSet::new());
    let name = engine.name("states");
    let filters = encoded(&json!({"name": [name]}));
    let list = format!("/containers/json?all=true&filters={filters}");
    let look = async |inspected: &mut BTreeSet<String>, listed: &mut BTreeSet<String>| {
        let seen = state(engine.bench, &name).await["Status"].clone();
        let seen = seen.as_str().unwrap_or_default().to_owned();
        let all = engine.call("GET", &list, None).await.body;
        let in_list = all[0]["State"].as_str().unwrap_or_default().to_owned();
        let last = seen == "exited" && in_list == "exited";
        inspected.insert(seen);
        listed.insert(in_list);
        last
    };
    // The state between a program's end and the engine's tidying up is short, and does not show if
    // the engine ends the program itself.
    for _ in 0..5 {
        let made = engine.create("states", &["sleep", "0.5"], json!({})).await;
        assert_eq!(made.status, 201, "{made:?}");
        look(&mut inspected, &mut listed).await;
        // Only Podman has this call.
        let init = format!("/v4.0.0/libpod/containers/{name}/init");
        if engine.call("POST", &init, None).await.status == 204 {
            look(&mut inspected, &mut listed).await;
        }
        engine.start("states").await;
        look(&mut inspected, &mut listed).await;
        let last = async { while !look(&mut inspected, &mut listed).await {} };
        let last = tokio::time::timeout(Duration::from_secs(60), last).await;
        last.unwrap();
        engine.remove("states").await;
    }
    json!({"inspected": inspected, "listed": listed})
}

/// What is said of a container that is removed during the call: one answer of each kind.
async fn just_gone(engine: &Engine<'_>) -> Value {
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let made = engine.create("gone", &["true"], json!({})).await;
        let id = made.body["Id"].as_str().unwrap_or_default().to_owned();
        let looking = async {
            loop {
                let path = format!("/containers/{}/json", engine.name("gone"));
                let answer = engine.call("GET", &path, None).await;
                if answer.status != 200 {
                    let words = answer.message().replace(&id, "ID");
                    return (answer.status, words.replace(&engine.prefix, "NAME"));
                }
            }
        };
        let (a, b, ()) = tokio::join!(
            looking,
            async {
                loop {
                    let path = format!("/containers/{id}/json");
                    let answer = engine.call("GET", &path, None).await;
                    if answer.status != 200 {
                        return (answer.status, answer.message().replace(&id, "ID"));
                    }
                }
            },
            engine.remove("gone")
        );
        seen.extend([a, b]);
    }
    let all = seen.into_iter();
    all.map(|(status, message)| json!({"status": status, "message": message}))
        .collect()
}

/// All of it, by what was asked.
async fn answers(bench: &Bench) -> Value {
    let engine = Engine {
        bench,
        prefix: format!("v6-engines-{}", std::process::id()),
    };
    let info = async || engine.call("GET", "/info", None).await.body["ID"].clone();
    let unknown = "/distribution/127.0.0.1:1/nothing/json";
    json!({
        "a registry asked for an image": engine.words(&engine.call("GET", unknown, None).await),
        "bytes of an ended log of 2 MiB, followed or not": ended_log(&engine).await,
        "devices for a container": devices(&engine).await,
        "events of a killed container, by filter": events(&engine).await,
        "its id stays": info().await == info().await,
        "labels of a volume made with its container": volume(&engine).await,
        "limits by control group": limits(&engine).await,
        "limits of a process": ulimits(&engine).await,
        "mode of a working folder in memory, asked to be 1777": working_folder(&engine).await,
        "mounting at a path with a comma": comma(&engine).await,
        "mounting a path that is missing": missing_path(&engine).await,
        "names in /etc/hosts without a network": hosts(&engine).await,
        "states of a container, to its end": states(&engine).await,
        "writable folders in memory of a read-only root": writable(&engine).await,
    })
}

#[tokio::test]
async fn what_was_recorded_of_the_engine_holds() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let host = &bench.config.host;
    let seen = answers(&bench).await;
    if raw::recording() {
        let engine = Engine {
            bench: &bench,
            prefix: format!("v6-engines-{}", std::process::id()),
        };
        raw::write(host, "about.json", &raw::about(host).await).await;
        raw::write(host, "answers.json", &seen).await;
        // Which of them come is chance.
        raw::write(host, "just-gone.json", &just_gone(&engine).await).await;
        return;
    }
    let file = raw::folder(host).await.join("answers.json");
    let Ok(recorded) = std::fs::read(&file) else {
        println!(
            "SKIP nothing is recorded of this engine in {}",
            file.display()
        );
        return;
    };
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    for (what, answer) in recorded.as_object().unwrap() {
        // How many bytes are lost is chance.
        if !what.starts_with("bytes of") {
            assert_eq!(seen[what], *answer, "{what}");
        }
    }
}
