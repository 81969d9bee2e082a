//! Mode `receive`: before the program of a pod starts, sees that the pod's network is denied, and
//! puts everything in its place.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::pod::{
    self, EXIT_LATE, EXIT_NO_INPUT, EXIT_NO_PART, EXIT_NOT_ISOLATED, Failure, Options,
};
use crate::pod_handshake as handshake;
use crate::pod_tunnel::{self as tunnel, Stream};

/// 128 and the number of SIGTERM.
const EXIT_TERMINATED: i32 = 143;
/// Between two tries to get out.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one try may take. A denied packet may be dropped without a word.
const TRY: Duration = Duration::from_millis(400);
/// How many tries in a row must fail, at least.
const TRIES: u32 = 5;

/// Runs the mode; its exit code says what was wrong.
pub fn run(options: Options) -> i32 {
    pod::run(receive(options))
}

async fn receive(options: Options) -> Result<(), Failure> {
    in_time(&options)?;
    look_for_parts(&options)?;
    lay_out(&options)?;
    // The first process of a container is not ended by a signal that it does not take.
    let mut terminated = signal(SignalKind::terminate())?;
    let ready = async {
        tokio::try_join!(denial(&options), input(&options))?;
        in_time(&options)
    };
    tokio::select! {
        ready = ready => ready,
        _ = terminated.recv() => Err(Failure::with_code(EXIT_TERMINATED, "it was told to end")),
    }
}

fn in_time(options: &Options) -> Result<(), Failure> {
    match options.left() {
        Some(left) if left.is_zero() => {
            let words = "the deadline was over before the program could start";
            Err(Failure::with_code(EXIT_LATE, words))
        }
        _ => Ok(()),
    }
}

/// Whoever mounts the parts of volumes would make what is not there.
fn look_for_parts(options: &Options) -> Result<(), Failure> {
    for (folder, path) in &options.parts {
        let folder = Path::new(folder);
        let volume = folder.file_name().unwrap_or_default().display();
        if let Err(error) = fs::metadata(folder.join(path)) {
            let words = format!("{path} of the volume {volume}: {error}");
            return Err(Failure::with_code(EXIT_NO_PART, words));
        }
    }
    Ok(())
}

/// Makes the outputs and what is to be in them.
fn lay_out(options: &Options) -> Result<(), Failure> {
    let out = Path::new(&options.out);
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| Failure::new(format!("{path}: {error}"))
    };
    for index in &options.folders {
        let path = out.join(index.to_string());
        fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    for index in &options.files {
        let path = out.join(index.to_string());
        // Not truncated: a machine that restarts this container has it already.
        let made = fs::OpenOptions::new().append(true).create(true).open(&path);
        made.map_err(failed(&path))?;
    }
    for (from, to) in &options.copies {
        let to = place(options, to)?;
        let copied = make_parents(&to).and_then(|()| {
            let mut from = fs::File::open(from)?;
            let mut file = fs::File::create(&to)?;
            io::copy(&mut from, &mut file)
        });
        copied.map_err(failed(&to))?;
    }
    for (to, _) in &options.streams {
        let to = place(options, to)?;
        make_parents(&to).map_err(failed(&to))?;
    }
    Ok(())
}

/// Where `in/NAME` or `out/NAME` is.
fn place(options: &Options, name: &str) -> Result<PathBuf, Failure> {
    let (base, rest) = match name.split_once('/') {
        Some(("in", rest)) => (&options.input, rest),
        Some(("out", rest)) => (&options.out, rest),
        _ => return Err(Failure::new(format!("{name} is neither in/ nor out/"))),
    };
    let plain = Path::new(rest)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        return Err(Failure::new(format!("{name} is no plain path")));
    }
    Ok(Path::new(base).join(rest))
}

fn make_parents(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Waits until nothing gets out of the pod any more.
async fn denial(options: &Options) -> Result<(), Failure> {
    let control = match options.control.as_deref() {
        Some("none") => return Ok(()),
        Some(address) => address.to_owned(),
        // Every pod is told where the cluster's own API is: an address that answers wherever the
        // network is open.
        None => {
            let told = |name: &str| std::env::var(name).ok();
            match (
                told("KUBERNETES_SERVICE_HOST"),
                told("KUBERNETES_SERVICE_PORT"),
            ) {
                (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
                (Some(host), Some(port)) => format!("{host}:{port}"),
                _ => {
                    let words = "there is no address by which the denial could be seen";
                    return Err(Failure::with_code(EXIT_NOT_ISOLATED, words));
                }
            }
        }
    };
    let address: SocketAddr = control
        .parse()
        .map_err(|_| Failure::with_code(EXIT_NOT_ISOLATED, format!("{control} is no address")))?;
    let began = Instant::now();
    let (mut failing, mut failures, mut seen_open) = (None, 0, false);
    loop {
        let open = matches!(
            tokio::time::timeout(TRY, TcpStream::connect(address)).await,
            Ok(Ok(_))
        );
        if open {
            (failing, failures, seen_open) = (None, 0, true);
            if began.elapsed() >= options.wait {
                let words = format!(
                    "the pod can still reach {address} after {} s: no NetworkPolicy denies it, or the \
                     cluster does not enforce policies",
                    began.elapsed().as_secs()
                );
                return Err(Failure::with_code(EXIT_NOT_ISOLATED, words));
            }
        } else {
            let since: Instant = *failing.get_or_insert_with(Instant::now);
            failures += 1;
            // A change from open to closed is the denial. What was closed from the start may
            // also be a network that is not there yet.
            let enough = if seen_open {
                options.settle / 3
            } else {
                options.settle
            };
            if failures >= TRIES && since.elapsed() >= enough {
                return Ok(());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What has come so far.
struct Inbox {
    options: Options,
    have: RefCell<Vec<u64>>,
    go: Notify,
}

impl Inbox {
    fn is_whole(&self) -> bool {
        let have = self.have.borrow();
        let mut all = self.options.streams.iter().zip(have.iter());
        all.all(|((_, len), have)| len == have)
    }
}

/// Takes in what is streamed, until the other end says that it was all.
async fn input(options: &Options) -> Result<(), Failure> {
    if options.streams.is_empty() {
        return Ok(());
    }
    let key = options.read_key()?;
    let inbox = Rc::new(Inbox {
        have: RefCell::new(vec![0; options.streams.len()]),
        options: Options {
            input: options.input.clone(),
            out: options.out.clone(),
            streams: options.streams.clone(),
            ..Options::default()
        },
        go: Notify::new(),
    });
    let serving = inbox.clone();
    let _tunnel = tunnel::listen(options.tunnel_port, key, "receive", move |stream| {
        let inbox = serving.clone();
        async move {
            // A stream that breaks off is begun again by the other end.
            let _ = serve(stream, &inbox).await;
        }
    })?;
    let wait = options.left().unwrap_or(Duration::MAX).min(INPUT);
    match tokio::time::timeout(wait, inbox.go.notified()).await {
        Ok(()) => {
            // Its answer to the other end has a moment to leave.
            tokio::time::sleep(LAST_WORDS).await;
            Ok(())
        }
        Err(_) => {
            let words = "nobody brought the input in time";
            Err(Failure::with_code(EXIT_NO_INPUT, words))
        }
    }
}

/// How long input may take to come.
const INPUT: Duration = Duration::from_secs(24 * 3600);
const LAST_WORDS: Duration = Duration::from_millis(20);

/// ```text
/// HAVE N            how many bytes of input N are there       OK BYTES
/// PUT N OFFSET      what follows up to its end, from there    OK BYTES
/// GO                everything is there                       OK 0
/// ```
async fn serve(mut stream: Stream, inbox: &Inbox) -> io::Result<()> {
    let request = handshake::line(&mut stream).await?;
    let mut words = request.split(' ');
    let verb = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let index = number().and_then(|index| usize::try_from(index).ok());
    let known = index.and_then(|index| Some((index, inbox.options.streams.get(index)?)));
    let answer = match (verb, known) {
        ("GO", _) if inbox.is_whole() => {
            inbox.go.notify_one();
            "OK 0".to_owned()
        }
        ("HAVE", Some((index, _))) => format!("OK {}", inbox.have.borrow()[index]),
        ("PUT", Some((index, (to, len)))) => {
            let offset = number().unwrap_or(0);
            match put(&mut stream, inbox, index, to, *len, offset).await {
                Ok(have) => format!("OK {have}"),
                Err(error) => format!("NO {error}"),
            }
        }
        ("GO", _) => "NO there is input to come".to_owned(),
        _ => "NO such request".to_owned(),
    };
    stream.write_all(format!("{answer}\n").as_bytes()).await?;
    stream.shutdown().await
}

async fn put(
    stream: &mut Stream,
    inbox: &Inbox,
    index: usize,
    to: &str,
    len: u64,
    offset: u64,
) -> io::Result<u64> {
    let path = place(&inbox.options, to).map_err(|failure| io::Error::other(failure.words))?;
    if offset > inbox.have.borrow()[index] {
        return Err(io::Error::other("there is less than that"));
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.set_len(offset)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
    inbox.have.borrow_mut()[index] = offset;
    let mut piece = vec![0; 64 << 10];
    let mut have = offset;
    loop {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Ok(have);
        }
        have += read as u64;
        if have > len {
            return Err(io::Error::other("there is more than was announced"));
        }
        file.write_all(&piece[..read])?;
        inbox.have.borrow_mut()[index] = have;
    }
}
