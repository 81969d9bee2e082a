//! The engine's answers as they are: what its client does not understand is what is looked for here.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// An answer's status and body; a body that is no JSON is text.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    pub fn message(&self) -> &str {
        let text = self.body.as_str().map(str::trim);
        text.or(self.body["message"].as_str()).unwrap_or_default()
    }
}

/// One call of the API at an engine's address.
pub async fn call(host: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let body = body.map(Value::to_string).unwrap_or_default();
    // An answer to HTTP/1.0 comes in one piece, and ends with the connection.
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = Vec::new();
    if let Some(socket) = host.strip_prefix("unix://") {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_end(&mut answer).await.unwrap();
    } else {
        let address = host.trim_start_matches("tcp://");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_end(&mut answer).await.unwrap();
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|_| body.into());
    Answer { status, body }
}

/// Of an object, these members, as far as it has them.
pub fn only(object: &Value, names: &[&str]) -> Value {
    let has = |name: &&str| Some(((*name).to_owned(), object.get(*name)?.clone()));
    Value::Object(names.iter().filter_map(has).collect::<Map<_, _>>())
}

/// What an engine says of itself, without what is this machine's own: its version, the part of
/// `/info` that matters here, and what Podman says beyond that.
pub async fn about(host: &str) -> Value {
    let get = async |path: &str| call(host, "GET", path, None).await;
    let version = get("/version").await.body;
    let components: Vec<Value> = version["Components"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|part| only(part, &["Name", "Version"]))
        .collect();
    let mut said = only(
        &version,
        &["Version", "ApiVersion", "MinAPIVersion", "Os", "Arch"],
    );
    said["Components"] = components.into();
    let info = get("/info").await.body;
    let mut told = only(
        &info,
        &[
            "Architecture",
            "CgroupDriver",
            "CgroupVersion",
            "CpuCfsQuota",
            "Driver",
            "LoggingDriver",
            "MemoryLimit",
            "NCPU",
            "OSType",
            "PidsLimit",
            "Rootless",
            "SecurityOptions",
            "SwapLimit",
        ],
    );
    told["Runtimes"] = info["Runtimes"]
        .as_object()
        .map(|all| {
            all.keys()
                .map(|name| (name.clone(), json!({})))
                .collect::<Map<_, _>>()
        })
        .into();
    let podman = get("/v4.0.0/libpod/info").await;
    let podman = (podman.status == 200).then(|| {
        let host = only(
            &podman.body["host"],
            &[
                "arch",
                "cgroupControllers",
                "cgroupManager",
                "cgroupVersion",
                "cpus",
                "idMappings",
                "os",
                "security",
            ],
        );
        let store = only(&podman.body["store"], &["graphDriverName"]);
        let version = only(&podman.body["version"], &["APIVersion", "Version"]);
        json!({"host": host, "store": store, "version": version})
    });
    json!({"version": said, "info": told, "libpod": podman})
}

/// Where what this engine says is recorded: `KIND-VERSION`, with `-rootless` if it is a user's.
pub async fn folder(host: &str) -> PathBuf {
    let about = about(host).await;
    let version = about["version"]["Version"].as_str().unwrap();
    let version = version.split('+').next().unwrap();
    let kind = if about["libpod"].is_null() {
        "docker"
    } else {
        "podman"
    };
    let options = about["info"]["SecurityOptions"].as_array();
    let says = |option: &Value| option.as_str().is_some_and(|it| it.contains("rootless"));
    let rootless = options.is_some_and(|options| options.iter().any(says))
        || about["libpod"]["host"]["security"]["rootless"] == true;
    let rootless = if rootless { "-rootless" } else { "" };
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/engines")
        .join(format!("{kind}-{version}{rootless}"))
}

/// Whether answers are to be recorded.
pub fn recording() -> bool {
    std::env::var_os("V6_RECORD").is_some_and(|set| set == "1")
}

/// Writes JSON to a file below the engine's folder.
pub async fn write(host: &str, name: &str, what: &Value) {
    let file = folder(host).await.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let text = serde_json::to_string_pretty(what).unwrap() + "\n";
    std::fs::write(file, text).unwrap();
}
