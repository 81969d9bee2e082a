//! What `examine` tries in a pod: it has an interface, and the cluster has to deny what lies behind it.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::examine::{Seen, result};
use crate::pod::{ALIVE_PORT, TUNNEL_PORT};

/// A denied packet may be dropped without a word.
const PATIENCE: Duration = Duration::from_secs(3);
/// Ports of the machine that has the pod: its kubelet's.
const KUBELET: [u16; 2] = [10_250, 10_255];

/// What the sidecar listens on, as the kernel writes it: the tunnel's port on 127.0.0.1, and the one that
/// the machine probes on all addresses.
pub fn sidecar() -> Vec<String> {
    vec![
        format!("0100007F:{TUNNEL_PORT:04X}"),
        format!("00000000:{ALIVE_PORT:04X}"),
    ]
}

/// Tries each way out, all at once.
pub fn ways_out(networks: &[(&str, &str)]) -> Vec<Seen> {
    let mut ways: Vec<(String, Result<Vec<SocketAddr>, String>)> = networks
        .iter()
        .map(|(name, address)| {
            let address = address
                .parse()
                .map_err(|_| format!("{address} is no address"));
            ((*name).to_owned(), address.map(|address| vec![address]))
        })
        .collect();
    ways.push((
        "no way to the cluster's API".to_owned(),
        api().map(|it| vec![it]),
    ));
    let machine = gateway().map(|gateway| {
        let ports = KUBELET.iter();
        ports
            .map(|port| SocketAddr::from((gateway, *port)))
            .collect()
    });
    ways.push(("no way to the machine's kubelet".to_owned(), machine));
    std::thread::scope(|scope| {
        let tries: Vec<_> = ways
            .iter()
            .map(|(name, addresses)| scope.spawn(move || try_way(name, addresses)))
            .collect();
        let seen = tries.into_iter().map(|one| one.join());
        seen.map(|seen| seen.unwrap_or_else(|_| result("ways out", Err("a try broke off".into()))))
            .collect()
    })
}

fn try_way(name: &str, addresses: &Result<Vec<SocketAddr>, String>) -> Seen {
    let tried = |addresses: &Vec<SocketAddr>| {
        let mut seen = Vec::new();
        for address in addresses {
            match TcpStream::connect_timeout(address, PATIENCE) {
                Ok(_) => return Err(format!("{address} answers")),
                Err(error) => seen.push(format!("{address}: {error}")),
            }
        }
        Ok(seen.join(", "))
    };
    result(
        name,
        addresses.as_ref().map_err(Clone::clone).and_then(tried),
    )
}

/// Where the cluster's own API is, which every pod is told.
fn api() -> Result<SocketAddr, String> {
    let told = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let (host, port) = (
        told("KUBERNETES_SERVICE_HOST")?,
        told("KUBERNETES_SERVICE_PORT")?,
    );
    let address = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    address
        .parse()
        .map_err(|_| format!("{address} is no address"))
}

/// The first router on the way out: on most networks of clusters the machine itself.
fn gateway() -> Result<Ipv4Addr, String> {
    let table =
        std::fs::read_to_string("/proc/self/net/route").map_err(|error| error.to_string())?;
    let default = table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        // Little-endian hexadecimal.
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.swap_bytes()))
    });
    default.ok_or_else(|| "there is no way out".to_owned())
}
