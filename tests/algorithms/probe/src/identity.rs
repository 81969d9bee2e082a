//! Who the program is and what surrounds it, read from `/proc` (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde_json::{Value, json};

/// The fields of a file of `Name:\tvalue` lines.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(k, v)| (k, v.trim()))
        .collect()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn read(path: &str) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The same, of a file that a kernel may lack.
fn read_if_there(path: &str) -> String {
    read(path).unwrap_or_default()
}

pub(crate) fn identity() -> io::Result<Value> {
    let text = read("/proc/self/status")?;
    let status = fields(&text);
    let field = |name: &str| status.get(name).copied().unwrap_or("");
    Ok(json!({
        "step": "identity",
        "pid": std::process::id(),
        "ppid": field("PPid").parse::<u32>().ok(),
        // real, effective, saved, file system
        "uid": numbers(field("Uid")),
        "gid": numbers(field("Gid")),
        "groups": numbers(field("Groups")),
        "capabilities": {
            "inheritable": field("CapInh"), "permitted": field("CapPrm"),
            "effective": field("CapEff"), "bounding": field("CapBnd"), "ambient": field("CapAmb"),
        },
        "no_new_privs": field("NoNewPrivs") == "1",
        // 0 none, 1 strict, 2 filter
        "seccomp": field("Seccomp").parse::<u32>().ok(),
        "hostname": read("/proc/sys/kernel/hostname")?.trim(),
        "cwd": std::env::current_dir().ok(),
        "args": std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "env": std::env::vars_os()
            .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
            .collect::<BTreeMap<_, _>>(),
        "limits": limits(&read("/proc/self/limits")?),
        "oom_score_adj": read("/proc/self/oom_score_adj")?.trim().parse::<i32>().ok(),
        "cgroup": read_if_there("/proc/self/cgroup").lines().collect::<Vec<_>>(),
        "namespaces": namespaces()?,
        "mounts": read("/proc/self/mountinfo")?.lines().filter_map(mount).collect::<Vec<_>>(),
        "open_files": open_files()?,
        "network": network(),
    }))
}

/// `Max open files   1024   4096   files`: names and units are of a fixed width.
fn limits(text: &str) -> BTreeMap<String, Value> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let (name, rest) = line.split_at_checked(26)?;
            let mut words = rest.split_whitespace();
            let soft = words.next()?;
            let hard = words.next()?;
            Some((name.trim().to_owned(), json!({"soft": soft, "hard": hard})))
        })
        .collect()
}

fn namespaces() -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/ns")? {
        let entry = entry?;
        let target = fs::read_link(entry.path())?;
        found.insert(
            entry.file_name().to_string_lossy().into_owned(),
            target.to_string_lossy().into_owned(),
        );
    }
    Ok(found)
}

/// What each open descriptor leads to, the one that lists them left out.
fn open_files() -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if let Ok(target) = fs::read_link(entry.path()) {
            let target = target.to_string_lossy().into_owned();
            if !target.ends_with("/fd") {
                found.insert(entry.file_name().to_string_lossy().into_owned(), target);
            }
        }
    }
    Ok(found)
}

/// A line of mountinfo: `id parent major:minor root point options [optional...] - type source super`.
fn mount(line: &str) -> Option<Value> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let after: Vec<&str> = after.split(' ').collect();
    Some(json!({
        "root": before.get(3)?, "point": before.get(4)?,
        "options": before.get(5)?.split(',').collect::<Vec<_>>(),
        "type": after.first()?, "source": after.get(1)?,
        "super_options": after.get(2)?.split(',').collect::<Vec<_>>(),
    }))
}

fn network() -> Value {
    json!({
        "interfaces": read_if_there("/proc/net/dev").lines().skip(2)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.trim().to_owned()).collect::<Vec<_>>(),
        "routes": read_if_there("/proc/net/route").lines().skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        "ipv6_addresses": read_if_there("/proc/net/if_inet6").lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        "listening": read_if_there("/proc/net/tcp").lines().skip(1)
            .filter_map(listener).collect::<Vec<_>>(),
        "hosts": read_if_there("/etc/hosts").lines().collect::<Vec<_>>(),
        "resolv_conf": read_if_there("/etc/resolv.conf").lines().collect::<Vec<_>>(),
    })
}

/// `  0: 0100007F:1F90 00000000:0000 0A ...`, addresses as the machine keeps them; 0A is LISTEN.
fn listener(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if *words.get(3)? != "0A" {
        return None;
    }
    let (address, port) = words.get(1)?.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(format!("{}:{port}", std::net::Ipv4Addr::from(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let limit = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max open files            1024                 1048576              files     \n";
        assert_eq!(
            limits(limit)["Max open files"],
            json!({"soft": "1024", "hard": "1048576"})
        );
        let line = "36 35 98:0 /mnt1 /mnt2 ro,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let found = mount(line).unwrap_or_default();
        assert_eq!(found["point"], "/mnt2");
        assert_eq!(found["options"], json!(["ro", "noatime"]));
        assert_eq!(found["type"], "ext3");
        if cfg!(target_endian = "little") {
            let line =
                "   0: 0101007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
            assert_eq!(listener(line).as_deref(), Some("127.0.1.1:80"));
        }
    }
}
