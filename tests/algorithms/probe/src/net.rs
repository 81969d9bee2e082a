//! Steps on the network.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Failure, output};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

fn open(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Send a line and return the one that comes back, without its end.
pub(crate) fn ask(host: &str, port: u16, line: &str) -> io::Result<String> {
    let mut stream = open(host, port)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut answer)?;
    Ok(String::from_utf8_lossy(&answer)
        .trim_end_matches('\n')
        .to_owned())
}

pub(crate) fn ask_many(host: &str, port: u16, count: u64) -> Result<Value, Failure> {
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|i| scope.spawn(move || ask(host, port, &format!("line {i}"))))
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(Ok(answer)) => json!({"answer": answer}),
                Ok(Err(error)) => json!({"error": error.to_string()}),
                Err(_) => json!({"error": "a thread ended early"}),
            })
            .collect()
    });
    Ok(json!({"step": "connect-many", "answers": answers}))
}

/// Send the pattern from one thread while reading it back in another.
pub(crate) fn exchange(host: &str, port: u16, length: u64) -> Result<Value, Failure> {
    let began = Instant::now();
    let mut stream = open(host, port)?;
    let mut sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || {
        output::pattern(&mut sender, length).and_then(|()| sender.shutdown(Shutdown::Write))
    });
    let mut at = 0;
    let mut piece = vec![0; 64 * 1024];
    loop {
        let n = stream.read(&mut piece)?;
        if n == 0 {
            break;
        }
        if piece[..n] != output::pattern_bytes(at, at + n as u64) {
            return Err(Failure::Wrong(format!("not the pattern after byte {at}")));
        }
        at += n as u64;
    }
    sending
        .join()
        .map_err(|_| Failure::Wrong("the sending thread ended early".into()))??;
    if at != length {
        return Err(Failure::Wrong(format!("{at} of {length} bytes came back")));
    }
    Ok(json!({
        "step": "exchange", "bytes": length,
        "milliseconds": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Send back what comes, for some time, and say how many connections there were.
pub(crate) fn listen(address: &str, port: u16, time: Duration) -> io::Result<Value> {
    let listener = TcpListener::bind((address, port))?;
    listener.set_nonblocking(true)?;
    output::report(&json!({"step": "listen", "address": listener.local_addr()?.to_string()}))?;
    let began = Instant::now();
    let mut connections = 0;
    while began.elapsed() < time {
        match listener.accept() {
            Ok((stream, _)) => {
                connections += 1;
                stream.set_nonblocking(false)?;
                let mut reader = stream.try_clone()?;
                let mut writer = stream;
                std::thread::spawn(move || {
                    // The other side may go away at any time.
                    let _ = io::copy(&mut reader, &mut writer);
                    let _ = writer.shutdown(Shutdown::Write);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(json!({"step": "listen", "connections": connections}))
}

pub(crate) fn resolve(host: &str) -> io::Result<Value> {
    let mut addresses: Vec<String> = (host, 0)
        .to_socket_addrs()?
        .map(|address| address.ip().to_string())
        .collect();
    addresses.sort();
    addresses.dedup();
    Ok(json!({"step": "resolve", "host": host, "addresses": addresses}))
}
