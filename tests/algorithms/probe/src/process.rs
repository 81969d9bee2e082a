//! Steps on processes, signals, memory and processor time.

use std::fs;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::{Failure, output};

const PAGE: usize = 4096;

pub(crate) fn processes() -> io::Result<Value> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may be gone by now.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        // `pid (name) state ppid ...`, and a name may have brackets and blanks in it.
        let Some((before, after)) = stat.rsplit_once(')') else {
            continue;
        };
        let name = before.split_once('(').map_or("", |(_, name)| name);
        let mut words = after.split_whitespace();
        found.push(json!({
            "pid": pid, "name": name, "state": words.next(),
            "ppid": words.next().and_then(|word| word.parse::<u32>().ok()),
        }));
    }
    Ok(json!({"step": "processes", "processes": found}))
}

/// Burns a processor, and tells how much of it this process got.
pub(crate) fn spin(time: Duration) -> Result<Value, Failure> {
    let before = processor_ms()?;
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
    Ok(json!({"step": "spin", "cpu_ms": processor_ms()?.saturating_sub(before)}))
}

/// The processor time that this process has had.
fn processor_ms() -> Result<u64, Failure> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let time = Duration::try_from(time);
    let time =
        time.map_err(|_| Failure::Wrong("the process's clock is before its start".into()))?;
    Ok(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Memory that is really there: every page is written.
pub(crate) fn allocate(mib: u64) -> Result<Vec<u8>, Failure> {
    let too_large = || Failure::Usage(format!("{mib} MiB are too many"));
    let length = usize::try_from(mib)
        .ok()
        .and_then(|n| n.checked_mul(1 << 20))
        .ok_or_else(too_large)?;
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(length)
        .map_err(|error| Failure::Wrong(format!("no memory: {error}")))?;
    memory.resize(length, 0);
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    output::report(&json!({"step": "allocate", "mib": mib}))?;
    Ok(memory)
}

fn myself() -> Command {
    Command::new("/proc/self/exe")
}

/// Says how many could be started, for tests of limits.
pub(crate) fn children(count: u64, life: Duration) -> io::Result<()> {
    let mut started = 0;
    let mut error = None;
    for _ in 0..count {
        match myself()
            .arg("sleep")
            .arg(life.as_millis().to_string())
            .spawn()
        {
            Ok(_) => started += 1,
            Err(refused) => {
                error = Some(refused.to_string());
                break;
            }
        }
    }
    output::report(&json!({"step": "children", "started": started, "error": error}))
}

pub(crate) fn orphans(count: u64, life: Duration) -> Result<(), Failure> {
    let status = myself()
        .args([
            "children",
            &count.to_string(),
            &life.as_millis().to_string(),
        ])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::Wrong(format!("their parent: {status}")))
    }
}

/// From now on SIGTERM ends the program with this code after this time, or not at all.
pub(crate) fn trap_term(exit: Option<(u8, Duration)>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // Nobody may be reading any more; the signal counts all the same.
            let _ = output::report(&json!({"step": "trap-term", "signal": signal}));
            if let Some((code, wait)) = exit {
                std::thread::sleep(wait);
                std::process::exit(code.into());
            }
        }
    });
    Ok(())
}

pub(crate) fn kill_self(signal: u64) -> Result<(), Failure> {
    let signal = i32::try_from(signal)
        .ok()
        .and_then(Signal::from_named_raw)
        .ok_or_else(|| Failure::Usage(format!("there is no signal {signal}")))?;
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, signal)?;
    if matches!(signal, Signal::SEGV | Signal::BUS) {
        // Rust's own handler takes the first for a stack overflow that isn't one, and
        // leaves the second to the kernel.
        rustix::process::kill_process(own, signal)?;
    }
    Ok(())
}
