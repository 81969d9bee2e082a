//! Mode `examine`: tries, from inside a container, what a run must not be able to do.
//!
//! No packet is sent to anywhere but loopback: whether there is a way to an address is asked of
//! the kernel's routing, by connecting a UDP socket, which sends nothing. In a pod there is a way to
//! everywhere, and it is for others to deny it: there it is tried (`examine_pod`).

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use crate::examine_pod;

const PATIENCE: Duration = Duration::from_secs(5);

/// Addresses that stand for whole networks: documentation addresses for the internet, one of
/// each private network, the clouds' metadata service, multicast.
const NETWORKS: [(&str, &str); 8] = [
    ("no way to the IPv4 internet", "192.0.2.1:443"),
    ("no way to an external name server", "198.51.100.53:53"),
    ("no way to the IPv6 internet", "[2001:db8::1]:443"),
    (
        "no way to private networks 10.0.0.0/8",
        "10.255.255.254:443",
    ),
    (
        "no way to private networks 172.16.0.0/12",
        "172.17.0.1:2375",
    ),
    (
        "no way to private networks 192.168.0.0/16",
        "192.168.0.1:443",
    ),
    ("no way to the metadata service", "169.254.169.254:80"),
    ("no way to multicast", "224.0.0.251:5353"),
];

/// Sockets and credentials that would be power over the machine or the cluster.
const POWER: [&str; 6] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "/run/crio/crio.sock",
];

pub struct Seen {
    pub name: String,
    pub holds: bool,
    pub seen: String,
}

/// Prints one JSON array of `{"name", "holds", "seen"}`. `control` is a host and port that must
/// be reachable and answer with a line, so that "nothing can be reached" proves something.
pub fn run(control: Option<&str>, in_pod: bool) -> i32 {
    let mut all = Vec::new();
    if let Some(control) = control {
        all.push(reach(control));
    }
    let mut beside = Vec::new();
    if in_pod {
        // Multicast is answered by nobody: whether it gets out cannot be seen from here.
        let networks = &NETWORKS[..NETWORKS.len() - 1];
        all.extend(examine_pod::ways_out(networks));
        beside = examine_pod::sidecar();
    } else {
        all.extend(NETWORKS.map(|(name, address)| no_route(name, address)));
        all.push(only_loopback());
    }
    all.extend([
        only_granted_listeners(control.is_some(), &beside),
        no_name_server(in_pod),
        no_abstract_sockets(),
    ]);
    all.extend(identity());
    all.extend([
        read_only_root(),
        no_power(),
        no_block_devices(),
        own_processes(),
        fixed_kernel(),
    ]);
    match std::io::stdout().write_all(json(&all).as_bytes()) {
        Ok(()) => 0,
        Err(_) => 125,
    }
}

pub fn result(name: &str, outcome: Result<String, String>) -> Seen {
    let holds = outcome.is_ok();
    let seen = outcome.unwrap_or_else(|seen| seen);
    Seen {
        name: name.into(),
        holds,
        seen,
    }
}

fn reach(control: &str) -> Seen {
    let tried = || -> std::io::Result<String> {
        let mut last = std::io::Error::other("its name leads to no address");
        for address in control.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.write_all(b"examine\n")?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    return Ok(format!("answered {:?}", answer.trim()));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let outcome = match tried() {
        Ok(seen) if seen == "answered \"examine\"" => Ok(seen),
        Ok(seen) => Err(seen),
        Err(error) => Err(error.to_string()),
    };
    result("a granted connection arrives", outcome)
}

fn no_route(name: &str, address: &str) -> Seen {
    let outcome = match address.parse::<SocketAddr>() {
        Err(error) => Err(error.to_string()),
        Ok(address) => {
            let any: SocketAddr = if address.is_ipv6() {
                (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
            } else {
                (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
            };
            match UdpSocket::bind(any).and_then(|socket| socket.connect(address)) {
                Ok(()) => Err(format!("there is a route to {address}")),
                Err(error) => Ok(error.to_string()),
            }
        }
    };
    result(name, outcome)
}

fn only_loopback() -> Seen {
    let outcome = read("/proc/self/net/dev").map(|text| {
        let names: Vec<&str> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split(':').next())
            .map(str::trim)
            .collect();
        names.join(" ")
    });
    let outcome = outcome.and_then(|names| if names == "lo" { Ok(names) } else { Err(names) });
    result("no network interface but loopback", outcome)
}

/// Every listening TCP socket is on 127.0.1.0/24, where grants are, or one of those that are known; none
/// if there are no grants.
fn only_granted_listeners(granted: bool, known: &[String]) -> Seen {
    const LISTENING: &str = "0A";
    let mut others = Vec::new();
    let mut grants = 0;
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let Ok(text) = read(table) else { continue };
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), Some(LISTENING)) = (fields.next(), fields.nth(1)) else {
                continue;
            };
            // Little-endian hexadecimal: 127.0.1.n is nn01007F.
            if local.get(2..8) == Some("01007F") && local.len() == 13 {
                grants += 1;
            } else if !known.iter().any(|known| known == local) {
                others.push(local.to_owned());
            }
        }
    }
    let seen = format!(
        "{grants} for grants, {} others {}",
        others.len(),
        others.join(" ")
    );
    let right = others.is_empty() && (granted == (grants > 0));
    result(
        "nothing listens but granted egress",
        if right { Ok(seen) } else { Err(seen) },
    )
}

/// A question to each name server that the container was given, and to loopback.
fn no_name_server(in_pod: bool) -> Seen {
    let mut servers = vec!["127.0.0.1:53".to_owned(), "127.0.0.11:53".to_owned()];
    for line in read("/etc/resolv.conf").unwrap_or_default().lines() {
        if let Some(server) = line.strip_prefix("nameserver ") {
            let server = server.trim();
            servers.push(if server.contains(':') {
                format!("[{server}]:53")
            } else {
                format!("{server}:53")
            });
        }
    }
    // One question, example.org, type A, as RFC 1035 writes it.
    let question =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";
    let answered = servers.iter().find(|server| {
        let Ok(address) = server.parse::<SocketAddr>() else {
            return false;
        };
        if !address.ip().is_loopback() {
            // Not asked for real: a route would be seen without sending anything.
            return in_pod || !no_route("", server).holds;
        }
        let asked = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            socket.connect(address)?;
            socket.send(question)?;
            let mut answer = [0; 512];
            socket.recv(&mut answer)
        });
        asked.is_ok()
    });
    let outcome = match answered {
        Some(server) => Err(format!("{server} answers or can be reached")),
        None => Ok(format!("none of {} answers", servers.join(", "))),
    };
    result("no name server", outcome)
}

fn no_abstract_sockets() -> Seen {
    let outcome = read("/proc/self/net/unix").map(|text| {
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().last())
            .filter(|name| name.starts_with('@'))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let outcome = outcome.and_then(|found| {
        if found.is_empty() {
            Ok("none".to_owned())
        } else {
            Err(found.join(" "))
        }
    });
    result("no abstract sockets of the machine", outcome)
}

fn identity() -> Vec<Seen> {
    let status = read("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
            .unwrap_or_default()
    };
    let check = |name: &str, value: String, right: bool| {
        result(name, if right { Ok(value) } else { Err(value) })
    };
    let uids = field("Uid");
    let not_root = !uids.is_empty() && uids.split(' ').all(|uid| uid != "0");
    let gids = field("Gid");
    let no_root_group = !gids.is_empty() && gids.split(' ').all(|gid| gid != "0");
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(field);
    let none = sets
        .iter()
        .all(|set| !set.is_empty() && set.bytes().all(|digit| digit == b'0'));
    let (privileges, filter) = (field("NoNewPrivs"), field("Seccomp"));
    vec![
        check("not root", format!("uid {uids}"), not_root),
        check("not root's group", format!("gid {gids}"), no_root_group),
        check("no capabilities", sets.join(" "), none),
        check("no new privileges", privileges.clone(), privileges == "1"),
        check(
            "a system call filter",
            format!("mode {filter}"),
            filter == "2",
        ),
    ]
}

fn read_only_root() -> Seen {
    let outcome = ["/examine", "/etc/examine", "/usr/examine", "/bin/examine"]
        .into_iter()
        .find(|path| fs::File::create(path).is_ok())
        .map_or_else(
            || Ok("not writable".to_owned()),
            |path| Err(format!("{path} was made")),
        );
    result("a read-only root file system", outcome)
}

fn no_power() -> Seen {
    let found: Vec<&str> = POWER
        .into_iter()
        .filter(|path| fs::symlink_metadata(path).is_ok())
        .collect();
    let outcome = if found.is_empty() {
        Ok("none".to_owned())
    } else {
        Err(found.join(" "))
    };
    result("no engine's socket and no cluster's token", outcome)
}

fn no_block_devices() -> Seen {
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev").into_iter().flatten().flatten() {
        let of_machine = matches!(
            entry.file_name().to_str(),
            Some("mem" | "kmem" | "port" | "kmsg" | "fuse")
        );
        if of_machine || entry.file_type().is_ok_and(|kind| kind.is_block_device()) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let outcome = if found.is_empty() {
        Ok("none".to_owned())
    } else {
        Err(found.join(" "))
    };
    result("no devices of the machine", outcome)
}

/// This process, and its parent as the first of the container, are all that there is.
fn own_processes() -> Seen {
    let mut ids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    let text = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let first = ids.first() == Some(&1);
    let right = first && ids.len() <= 2;
    result(
        "no processes of others",
        if right { Ok(text) } else { Err(text) },
    )
}

/// Settings of the kernel and of resource groups cannot be changed.
fn fixed_kernel() -> Seen {
    let writable = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/memory/cgroup.procs",
    ]
    .into_iter()
    .find(|path| fs::OpenOptions::new().write(true).open(path).is_ok());
    let outcome = match writable {
        Some(path) => Err(format!("{path} can be written")),
        None => Ok("none can be written".to_owned()),
    };
    result("no settings of the kernel", outcome)
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn json(all: &[Seen]) -> String {
    let mut text = String::from("[");
    for (at, Seen { name, holds, seen }) in all.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}\n {{\"name\":{},\"holds\":{holds},\"seen\":{}}}",
            quote(name),
            quote(seen)
        );
    }
    text.push_str("\n]\n");
    text
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(letter);
            }
            '\0'..='\u{1f}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
