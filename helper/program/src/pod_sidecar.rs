//! Mode `sidecar`: beside the program of a pod. Listens for its granted connections and carries
//! them to the other end of the tunnel; gives out what the program has left, until SIGTERM or, in a
//! pod that is there for nothing else, until nobody has asked for a while.

use std::cell::{Cell, RefCell};
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};

use crate::pod::{self, Failure, Options};
use crate::pod_handshake as handshake;
use crate::pod_outputs as outputs;
use crate::pod_tunnel::{self as tunnel, Stream, Tunnel};

/// Connections at once for each grant; further ones wait in the kernel.
const AT_ONCE: usize = 256;
/// How long a connection waits for the other end of the tunnel.
const WAIT: Duration = Duration::from_secs(600);
/// The clock is looked at so often, since it may be set.
const STEP: Duration = Duration::from_secs(30);

/// Runs the mode.
pub fn run(options: Options) -> i32 {
    pod::run(sidecar(options))
}

struct Beside {
    out: String,
    end: Notify,
    /// Requests that are being answered, and when the last one was.
    asked: Cell<usize>,
    last: Cell<Instant>,
}

impl Beside {
    /// Waits until nothing was asked for so long.
    async fn idle(&self, limit: Duration) {
        loop {
            let since = self.last.get().elapsed();
            let left = limit.saturating_sub(since);
            match (self.asked.get(), left.is_zero()) {
                (0, true) => return,
                (0, false) => tokio::time::sleep(left).await,
                _ => tokio::time::sleep(limit).await,
            }
        }
    }
}

async fn sidecar(options: Options) -> Result<(), Failure> {
    let key = options.read_key()?;
    let mut terminated = signal(SignalKind::terminate())?;
    let beside = Rc::new(Beside {
        out: options.out.clone(),
        end: Notify::new(),
        asked: Cell::new(0),
        last: Cell::new(Instant::now()),
    });
    let serving = beside.clone();
    let tunnel = tunnel::listen(options.tunnel_port, key, "sidecar", move |stream| {
        let beside = serving.clone();
        async move {
            beside.asked.set(beside.asked.get() + 1);
            // What breaks off is asked for again by the other end.
            let _ = serve(stream, &beside).await;
            beside.asked.set(beside.asked.get() - 1);
            beside.last.set(Instant::now());
        }
    })?;
    for (index, address) in options.listen.iter().enumerate() {
        let listener = listen(*address)?;
        tokio::task::spawn_local(grant(listener, index, tunnel.clone()));
    }
    // Last, so that whoever finds it open finds all of this ready.
    let alive = TcpListener::bind(("0.0.0.0", options.alive_port))
        .await
        .map_err(|error| Failure::new(format!("port {}: {error}", options.alive_port)))?;
    let (ending, idle) = (beside.clone(), options.idle);
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = stay(&alive) => {}
            () = until(&options) => {}
            () = ending.end.notified() => {}
        }
        // Nobody listens from here on: the machine ends the program's container.
        drop(alive);
    });
    let idle = async {
        match idle {
            Some(limit) => beside.idle(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // The whole pod ends, and the program's end is not told before this one's.
        _ = terminated.recv() => {}
        () = idle => {}
    }
    Ok(())
}

fn listen(address: SocketAddrV4) -> Result<TcpListener, Failure> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    listener.map_err(|error| Failure::new(format!("listening on {address}: {error}")))
}

/// Answers probes.
async fn stay(alive: &TcpListener) {
    loop {
        if alive.accept().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn until(options: &Options) {
    loop {
        match options.left() {
            Some(left) if left.is_zero() => return,
            Some(left) => tokio::time::sleep(left.min(STEP)).await,
            None => std::future::pending().await,
        }
    }
}

/// Takes the connections to one grant.
async fn grant(listener: TcpListener, index: usize, tunnel: Tunnel) {
    let room = std::sync::Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                let tunnel = tunnel.clone();
                tokio::task::spawn_local(async move {
                    let _ = carry(connection, index, tunnel).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn carry(mut connection: TcpStream, index: usize, mut tunnel: Tunnel) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let header = format!("CONN {index}\n");
    let opening = async {
        loop {
            let mut stream = tunnel.open().await?;
            // The other end answers: until it has, nothing of the connection is risked.
            let opened = async {
                stream.write_all(header.as_bytes()).await?;
                stream.flush().await?;
                handshake::line(&mut stream).await
            };
            match opened.await.as_deref() {
                Ok("OK") => return Ok::<_, std::io::Error>(stream),
                Ok(_) => return Err(std::io::ErrorKind::ConnectionRefused.into()),
                // That tunnel has ended: there will be another.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let opened = tokio::time::timeout(WAIT, opening).await;
    let mut stream = opened.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    tokio::io::copy_bidirectional(&mut connection, &mut stream).await?;
    Ok(())
}

thread_local! {
    /// Folders are packed one at a time.
    static PACKING: RefCell<Rc<Semaphore>> = RefCell::new(Rc::new(Semaphore::new(1)));
}

/// ```text
/// FILE N OFFSET LIMIT     the bytes of output N from there         pieces
/// FOLDER N LIMIT [SKIP…]  output N as tar, without what is named   pieces
/// END                     the program is to be ended               OK
/// PING                    nothing                                  OK
/// ```
async fn serve(mut stream: Stream, beside: &Beside) -> std::io::Result<()> {
    let request = outputs::request(&mut stream).await?;
    let (verb, rest) = request.split_once(' ').unwrap_or((&request, ""));
    match verb {
        "PING" => stream.write_all(b"OK\n").await?,
        "END" => {
            beside.end.notify_one();
            stream.write_all(b"OK\n").await?;
        }
        "FILE" => outputs::file(&mut stream, &beside.out, rest).await?,
        "FOLDER" => {
            let packing = PACKING.with_borrow(Rc::clone);
            let _turn = packing.acquire().await;
            outputs::folder(&mut stream, &beside.out, rest).await?;
        }
        _ => stream.write_all(b"NO\n").await?,
    }
    stream.shutdown().await
}
