//! The probe in a pretended kernel, and faults in what it sees.

use std::io;
use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use v6_runtime::memory::ProgramContext;

use super::Seed;
use super::specs::{GPU, GROUPS};
use super::world::World;
use crate::probe::pattern;
use crate::probe_memory::Instead;

const USER: u32 = 65_532;
const NO_CAPABILITY: &str = "0000000000000000";
const SOME_CAPABILITY: &str = "00000000a80425fb";

pub(super) struct Pretended {
    pub seed: Option<Seed>,
    pub world: Weak<World>,
}

#[async_trait]
impl Instead for Pretended {
    async fn step(&self, ctx: &ProgramContext, step: &[&str]) -> Option<io::Result<()>> {
        if let Some(done) = self.faulty(ctx, step).await {
            return Some(done);
        }
        match step {
            ["identity"] => report(ctx, &self.identity(ctx)),
            ["attempt", what] => {
                let allowed = self.allows(what);
                report(
                    ctx,
                    &json!({"step": "attempt", "what": what, "allowed": allowed}),
                );
            }
            ["processes"] if self.seed == Some(Seed::ProcessesAreSeen) => {
                let seen = |pid| json!({"pid": pid, "ppid": 1, "name": "somebody else's"});
                let all: Vec<Value> = (1..30).map(seen).collect();
                report(ctx, &json!({"step": "processes", "processes": all}));
            }
            ["list", "/dev"] => {
                let mut entries = json!({"null": {"kind": "device"}});
                if ctx.var(GPU).is_some() {
                    entries["gpu0"] = json!({"kind": "device"});
                }
                report(
                    ctx,
                    &json!({"step": "list", "path": "/dev", "entries": entries}),
                );
            }
            ["spin", time] => {
                let time = time.parse().ok()?;
                tokio::time::sleep(Duration::from_millis(time)).await;
            }
            _ => return None,
        }
        Some(Ok(()))
    }
}

fn report(ctx: &ProgramContext, value: &Value) {
    ctx.print(format!("{value}\n"));
}

impl Pretended {
    /// What a program is told of itself where the floor holds.
    fn identity(&self, ctx: &ProgramContext) -> Value {
        let has = |seed| self.seed == Some(seed);
        let ids = |root: bool| vec![if root { 0 } else { USER }; 4];
        let mut groups: Vec<u32> = ctx
            .var(GROUPS)
            .map(|text| text.split(',').filter_map(|id| id.parse().ok()).collect())
            .unwrap_or_default();
        let further = !groups.is_empty();
        if has(Seed::GroupsIncludeRoots) && further || has(Seed::RootIsAGroup) && !further {
            groups.push(0);
        }
        let mut env = ctx.env().clone();
        env.remove(GROUPS);
        env.remove(GPU);
        let set = |seed| {
            if has(seed) {
                SOME_CAPABILITY
            } else {
                NO_CAPABILITY
            }
        };
        json!({
            "step": "identity",
            "uid": ids(has(Seed::RunsAsRoot)),
            "gid": ids(has(Seed::RunsInRootsGroup)),
            "groups": groups,
            "capabilities": {
                "inheritable": NO_CAPABILITY, "permitted": NO_CAPABILITY,
                "effective": set(Seed::CapabilitiesAreEffective),
                "bounding": set(Seed::CapabilitiesAreBounded),
                "ambient": NO_CAPABILITY,
            },
            "no_new_privs": !has(Seed::PrivilegesCanBeGained),
            "seccomp": if has(Seed::SystemCallsAreNotFiltered) { 0 } else { 2 },
            "cwd": ctx.workdir(),
            "env": env,
            "mounts": self.mounts(ctx),
            "network": {
                "interfaces": if has(Seed::ThereIsAnotherInterface) { json!(["lo", "eth0"]) } else { json!(["lo"]) },
                "routes": if has(Seed::ThereIsARoute) { json!(["eth0 00000000 010011AC"]) } else { json!([]) },
                "ipv6_addresses": if has(Seed::ThereIsAnAddress) {
                    json!(["fe80000000000000000000000000beef 02 40 20 80 eth0"])
                } else {
                    json!([])
                },
            },
        })
    }

    fn mounts(&self, ctx: &ProgramContext) -> Vec<Value> {
        let mut mounts = ctx.mounts();
        if self.seed == Some(Seed::TheHostIsMounted) {
            mounts.push(("/var/run/docker.sock".to_owned(), true));
        }
        let mount = |(point, writable): (String, bool)| {
            let options = [if writable { "rw" } else { "ro" }];
            json!({"point": point, "options": options, "type": "memory"})
        };
        mounts.into_iter().map(mount).collect()
    }

    fn allows(&self, what: &str) -> bool {
        match self.seed {
            Some(Seed::UserCanBeChanged) => matches!(what, "setuid" | "setgid" | "setgroups"),
            Some(Seed::FileSystemsCanBeMounted) => what == "mount",
            Some(Seed::DevicesCanBeMade) => what == "mknod",
            Some(Seed::RootCanBeChanged) => what == "chroot",
            Some(Seed::HostNameCanBeChanged) => what == "hostname",
            Some(Seed::RawSocketsCanBeOpened) => what == "raw-socket",
            _ => false,
        }
    }

    /// Steps that come out otherwise than they should.
    async fn faulty(&self, ctx: &ProgramContext, step: &[&str]) -> Option<io::Result<()>> {
        let world = self.world.upgrade()?;
        match (self.seed?, step) {
            (Seed::StandardInputStaysOpen, ["cat", "/dev/stdin"]) => std::future::pending().await,
            // A folder for all runs: what one has written there another can read.
            (Seed::FilesAreShared, ["write", path, size]) => {
                let size = size.parse().ok()?;
                world.notes().written.insert((*path).to_owned(), size);
                None
            }
            (Seed::FilesAreShared, ["cat", path]) if ctx.read(path).is_err() => {
                let size = *world.notes().written.get(*path)?;
                ctx.print(pattern(size));
                Some(Ok(()))
            }
            (Seed::LinksAreFollowed, ["symlink", _, path]) => {
                Some(ctx.write(path, "root:x:0:0:root:/root:/bin/sh\n"))
            }
            (Seed::HomeIsReadOnly, ["write", path, _]) if path.starts_with("/tmp/x") => {
                Some(Err(io::ErrorKind::ReadOnlyFilesystem.into()))
            }
            (Seed::AddressesCanBeReached, ["connect", host, ..])
                if host.parse::<std::net::IpAddr>().is_ok() =>
            {
                Some(Ok(()))
            }
            (Seed::NamesAreResolved, ["resolve", _]) => Some(Ok(())),
            (Seed::EveryPortIsGranted, ["connect", host, port, ..]) => {
                let port: u16 = port.parse().ok()?;
                let known = ctx.addresses(host).is_ok() && *host != "localhost";
                let notes = world.notes();
                let mut grants = notes.asked.values().flat_map(|asked| &asked.spec.egress);
                let granted = grants.any(|grant| grant.host == *host && grant.port == port);
                (known && !granted).then_some(Ok(()))
            }
            (Seed::EveryHostIsGranted, ["connect", host, ..]) => {
                let name = host.parse::<std::net::IpAddr>().is_err();
                (name && ctx.addresses(host).is_err()).then_some(Ok(()))
            }
            (Seed::ConnectionsNeedAReader, ["connect", ..]) => {
                let read = world.notes().connections_read;
                (!read).then(|| Err(io::ErrorKind::ConnectionRefused.into()))
            }
            (Seed::ReaderHoldsTheProgram, ["stdout", size]) => {
                for piece in pattern(size.parse().ok()?).chunks(64 << 10) {
                    while world.notes().readers > 0 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    ctx.print(piece);
                    tokio::task::yield_now().await;
                }
                Some(Ok(()))
            }
            _ => None,
        }
    }
}
