//! Listeners of mode `init`: connections that go to a unix socket.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use support::{Running, Stage, until};
use v6_helper::{End, InitOptions, Listener, NotStarted};

/// A loopback address with a port that nobody else in this process uses.
fn free_address() -> SocketAddrV4 {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    let wanted = SocketAddrV4::new([127, 91, 0, last].into(), 0);
    match TcpListener::bind(wanted).unwrap().local_addr().unwrap() {
        std::net::SocketAddr::V4(address) => address,
        std::net::SocketAddr::V6(address) => panic!("{address}"),
    }
}

struct Egress {
    stage: Stage,
    address: SocketAddrV4,
}

impl Egress {
    fn new(change: impl FnOnce(InitOptions) -> InitOptions) -> Self {
        let address = free_address();
        let stage = Stage::new();
        let socket = stage.path("socket");
        let stage =
            stage.with(|options| change(options.with_listener(Listener::new(address, socket))));
        Self { stage, address }
    }

    fn plain() -> Self {
        Self::new(|options| options)
    }

    fn gateway(&self) -> UnixListener {
        UnixListener::bind(self.stage.path("socket")).unwrap()
    }

    /// Starts a command that stays; its listeners are there when this returns.
    fn start(&self) -> Running<'_> {
        let mut running = self
            .stage
            .start(&["sh", "-c", "echo ready; exec sleep 300"]);
        assert_eq!(running.line(), "ready");
        running
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }
}

fn finish(running: Running<'_>) {
    running.signal(libc::SIGKILL);
    drop(running);
}

fn accept(gateway: &UnixListener) -> UnixStream {
    let stream = gateway.accept().unwrap().0;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Reads all, says it again and an end mark.
fn say_again(mut stream: UnixStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    stream.write_all(&all).unwrap();
    stream.write_all(b"end").unwrap();
}

fn assert_said_again(mut client: TcpStream, sent: &[u8]) {
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent.len() + 3);
    assert!(got.strip_suffix(b"end") == Some(sent));
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let running = egress.start();
    let sent = noise(3_000_000, 0);
    let mut client = egress.connect();
    thread::scope(|scope| {
        scope.spawn(|| say_again(accept(&gateway)));
        client.write_all(&sent).unwrap();
        // The gateway answers only when it has seen this end.
        client.shutdown(Shutdown::Write).unwrap();
        assert_said_again(client, &sent);
    });
    // The other way round: the gateway ends first, the client still sends.
    let mut client = egress.connect();
    let mut upstream = accept(&gateway);
    upstream.write_all(b"bye").unwrap();
    upstream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "bye");
    client.write_all(b"still here").unwrap();
    drop(client);
    got.clear();
    upstream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "still here");
    finish(running);
}

#[test]
fn the_command_finds_its_listeners_ready() {
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} && echo question >&3 && read -r answer <&3 && echo \"$answer\"",
        egress.address.ip(),
        egress.address.port()
    );
    let mut running = egress.stage.start(&["bash", "-c", &script]);
    let mut upstream = accept(&gateway);
    let mut question = [0; 9];
    upstream.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question\n");
    upstream.write_all(b"answer\n").unwrap();
    assert_eq!(running.line(), "answer");
    assert_eq!(running.end().claim.end, End::Exited(0));
}

#[test]
fn many_connections_at_once() {
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let running = egress.start();
    thread::scope(|scope| {
        for seed in 0..64 {
            let egress = &egress;
            scope.spawn(move || {
                let sent = noise(200_000, seed);
                let mut client = egress.connect();
                client.write_all(&sent).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                assert_said_again(client, &sent);
            });
        }
        for _ in 0..64 {
            let stream = accept(&gateway);
            scope.spawn(move || say_again(stream));
        }
    });
    finish(running);
}

#[test]
fn two_listeners_lead_to_two_sockets() {
    let second = free_address();
    let egress = Egress::plain();
    let other = egress.stage.path("other");
    let gateways = [egress.gateway(), UnixListener::bind(&other).unwrap()];
    let Egress { stage, address } = egress;
    let stage = stage.with(|options| options.with_listener(Listener::new(second, other)));
    let egress = Egress { stage, address };
    let running = egress.start();
    for (address, gateway, text) in [
        (address, &gateways[0], b"first"),
        (second, &gateways[1], b"other"),
    ] {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(text).unwrap();
        let mut got = [0; 5];
        accept(gateway).read_exact(&mut got).unwrap();
        assert_eq!(&got, text);
    }
    finish(running);
}

#[test]
fn connections_wait_for_a_gateway_that_is_away() {
    let egress = Egress::plain();
    let running = egress.start();
    let mut clients: Vec<TcpStream> = (0..3).map(|_| egress.connect()).collect();
    for client in &mut clients {
        client.write_all(b"early").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    }
    // Also a socket that is there while nobody listens on it, as after a killed gateway.
    drop(egress.gateway());
    clients.push(egress.connect());
    clients[3].write_all(b"early").unwrap();
    clients[3].shutdown(Shutdown::Write).unwrap();
    fs::remove_file(egress.stage.path("socket")).unwrap();
    let gateway = egress.gateway();
    for _ in 0..clients.len() {
        say_again(accept(&gateway));
    }
    for client in clients {
        assert_said_again(client, b"early");
    }
    finish(running);
}

#[test]
fn a_new_gateway_gets_the_next_connection() {
    let egress = Egress::plain();
    let running = egress.start();
    let mut last = Vec::new();
    for round in 0..3 {
        let gateway = egress.gateway();
        let mut client = egress.connect();
        client.write_all(&[round]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        last.push(accept(&gateway));
        say_again(last.pop().unwrap());
        assert_said_again(client, &[round]);
        drop(gateway);
        fs::remove_file(egress.stage.path("socket")).unwrap();
    }
    finish(running);
}

#[test]
fn waiting_has_an_end() {
    let egress = Egress::new(|options| options.with_wait(Duration::from_millis(200)));
    let running = egress.start();
    let mut client = egress.connect();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    finish(running);
}

#[test]
fn further_connections_wait_their_turn() {
    let egress = Egress::new(|options| options.with_connections(1));
    let gateway = egress.gateway();
    let running = egress.start();
    let mut first = egress.connect();
    let mut upstream = accept(&gateway);
    let mut second = egress.connect();
    second.write_all(b"second").unwrap();
    let mut byte = [0];
    for _ in 0..3 {
        // The program has had its turn after the second connection was there.
        first.write_all(b"x").unwrap();
        upstream.read_exact(&mut byte).unwrap();
    }
    gateway.set_nonblocking(true).unwrap();
    assert_eq!(
        gateway.accept().unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    gateway.set_nonblocking(false).unwrap();
    drop((first, upstream));
    let mut got = [0; 6];
    accept(&gateway).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"second");
    finish(running);
}

#[test]
fn an_answer_arrives_although_the_question_was_not_read() {
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let running = egress.start();
    let mut client = egress.connect();
    let mut upstream = accept(&gateway);
    upstream.write_all(b"no").unwrap();
    drop(upstream);
    let mut got = [0; 2];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"no");
    finish(running);
}

#[test]
fn a_gateway_that_breaks_off_is_seen_as_a_reset() {
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let running = egress.start();
    let mut client = egress.connect();
    client.write_all(b"question").unwrap();
    let upstream = accept(&gateway);
    let mut first = [0];
    (&upstream).read_exact(&mut first).unwrap();
    drop(upstream);
    assert_eq!(
        client.read(&mut first).unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    finish(running);
}

#[test]
fn a_reader_that_does_not_read_costs_no_memory() {
    const TOTAL: usize = 48 << 20;
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let running = egress.start();
    let mut client = egress.connect();
    let mut upstream = accept(&gateway);
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim()
            .strip_suffix(" kB")
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    thread::scope(|scope| {
        let (send, sent) = std::sync::mpsc::sync_channel(TOTAL >> 20);
        let writer = scope.spawn(move || {
            let piece = noise(1 << 20, 1);
            for _ in 0..TOTAL >> 20 {
                upstream.write_all(&piece).unwrap();
                // Nobody listens any more once all has been read.
                _ = send.send(());
            }
        });
        // Writing goes on until the kernel's buffers are full, and then stops.
        while sent.recv_timeout(Duration::from_millis(500)).is_ok() {}
        assert!(!writer.is_finished());
        assert!(memory() < 1024, "{} KiB", memory());
        let mut left = TOTAL;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            left -= client.read(&mut buffer).unwrap();
        }
    });
    assert!(memory() < 1024, "{} KiB", memory());
    finish(running);
}

#[test]
fn an_idle_program_does_not_spin() {
    let egress = Egress::plain();
    let gateway = egress.gateway();
    let running = egress.start();
    // One connection in each state that a peer can leave it in.
    let open = (egress.connect(), accept(&gateway));
    let half = (egress.connect(), accept(&gateway));
    half.0.shutdown(Shutdown::Write).unwrap();
    let other_half = (egress.connect(), accept(&gateway));
    other_half.1.shutdown(Shutdown::Write).unwrap();
    drop(gateway);
    let waiting = egress.connect();
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .filter_map(|field| field.parse().ok())
            .collect();
        // utime and stime; the state is no number and so is not counted.
        fields[10] + fields[11]
    };
    let before = ticks();
    let end = std::time::Instant::now() + Duration::from_millis(500);
    until("half a second has passed", || {
        (std::time::Instant::now() > end).then_some(())
    });
    assert!(ticks() - before < 10, "{} ticks", ticks() - before);
    drop((open, half, other_half, waiting));
    finish(running);
}

#[test]
fn an_address_that_is_taken_stops_the_start() {
    let taken = TcpListener::bind("127.91.1.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listener = Listener::new(address.parse().unwrap(), "/no/such/socket");
    let ended = Stage::new()
        .with(|options| options.with_listener(listener))
        .sh("echo started");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
    let End::NotStarted {
        cause: NotStarted::Other,
        error,
    } = ended.claim.end
    else {
        panic!("{:?}", ended.claim)
    };
    assert!(error.contains(&address), "{error}");
}
