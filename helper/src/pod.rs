//! The command lines of the modes for a pod, and what their exit codes mean.

use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the program in a pod listens for the other end of the tunnel, on 127.0.0.1.
pub const TUNNEL_PORT: u16 = 61_653;
/// Where mode `sidecar` listens on all of the pod's addresses for as long as the run's program may
/// run: a probe of that program's container looks there.
pub const ALIVE_PORT: u16 = 61_654;

/// The exit code of `receive` when the pod's network was not denied in time.
pub const EXIT_NOT_ISOLATED: i32 = 81;
/// The exit code of `receive` when the deadline was over before the start.
pub const EXIT_LATE: i32 = 82;
/// The exit code of `receive` when nobody brought the input.
pub const EXIT_NO_INPUT: i32 = 83;
/// The exit code of `receive` when a volume lacks what is to be mounted of it.
pub const EXIT_NO_PART: i32 = 84;

/// Input that is brought through the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamedInput {
    /// `in/NAME` or `out/PATH`.
    pub place: String,
    /// Its length in bytes.
    pub len: u64,
}

impl StreamedInput {
    /// So many bytes that go there.
    #[must_use]
    pub fn new(place: impl Into<String>, len: u64) -> Self {
        Self {
            place: place.into(),
            len,
        }
    }
}

/// What the program is asked to do in a pod, before the run's program ([`receive`](Self::receive))
/// and beside it ([`sidecar`](Self::sidecar)). Paths are those inside its container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodOptions {
    key: String,
    out: String,
    input: Option<String>,
    deadline: Option<SystemTime>,
    control: Option<String>,
    denial: Option<(Duration, Duration)>,
    files: Vec<usize>,
    folders: Vec<usize>,
    copies: Vec<(String, String)>,
    parts: Vec<(String, String)>,
    streams: Vec<StreamedInput>,
    listeners: Vec<SocketAddrV4>,
    idle: Option<Duration>,
}

impl PodOptions {
    /// The tunnel's key is in the file `key`, the outputs are in the folder `out`.
    #[must_use]
    pub fn new(key: impl Into<String>, out: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            out: out.into(),
            ..Self::default()
        }
    }

    /// The folder for input that comes through the tunnel.
    #[must_use]
    pub fn with_input(mut self, folder: impl Into<String>) -> Self {
        self.input = Some(folder.into());
        self
    }

    /// When the run is to end, by the wall clock: one whose time is over is not started.
    #[must_use]
    pub fn with_deadline(mut self, deadline: SystemTime) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// `receive` waits for `limit` at most until the address `control`, or else the cluster's own
    /// API, has been out of reach for `settle`. `none` as the address waits for nothing.
    #[must_use]
    pub fn with_denial(
        mut self,
        control: Option<String>,
        settle: Duration,
        limit: Duration,
    ) -> Self {
        self.control = control;
        self.denial = Some((settle, limit));
        self
    }

    /// `receive` makes the file `out/INDEX`, empty.
    #[must_use]
    pub fn with_file(mut self, index: usize) -> Self {
        self.files.push(index);
        self
    }

    /// `receive` makes the folder `out/INDEX`.
    #[must_use]
    pub fn with_folder(mut self, index: usize) -> Self {
        self.folders.push(index);
        self
    }

    /// `receive` copies a file into an output: `out/PATH`.
    #[must_use]
    pub fn with_copy(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.copies.push((from.into(), to.into()));
        self
    }

    /// `receive` sees that the folder of a volume, whose last name is the volume's, has this path.
    #[must_use]
    pub fn with_part(mut self, folder: impl Into<String>, path: impl Into<String>) -> Self {
        self.parts.push((folder.into(), path.into()));
        self
    }

    /// `receive` waits for this input.
    #[must_use]
    pub fn with_stream(mut self, input: StreamedInput) -> Self {
        self.streams.push(input);
        self
    }

    /// `sidecar` listens on this loopback address for the next grant.
    #[must_use]
    pub fn with_listener(mut self, address: SocketAddrV4) -> Self {
        self.listeners.push(address);
        self
    }

    /// `sidecar` ends by itself when nothing was asked of it for so long.
    #[must_use]
    pub fn with_idle(mut self, limit: Duration) -> Self {
        self.idle = Some(limit);
        self
    }

    /// The arguments of mode `receive`.
    #[must_use]
    pub fn receive(&self) -> Vec<String> {
        let mut line = self.common("receive");
        let mut option = |name: &str, value: String| line.extend([name.to_owned(), value]);
        if let Some(folder) = &self.input {
            option("--in", folder.clone());
        }
        if let Some(control) = &self.control {
            option("--control", control.clone());
        }
        if let Some((settle, limit)) = self.denial {
            option("--settle", seconds(settle));
            option("--wait", seconds(limit));
        }
        for index in &self.folders {
            option("--folder", index.to_string());
        }
        for index in &self.files {
            option("--file", index.to_string());
        }
        for (from, to) in &self.copies {
            option("--copy", format!("{from}={to}"));
        }
        for (folder, path) in &self.parts {
            option("--part", format!("{folder}={path}"));
        }
        for StreamedInput { place, len } in &self.streams {
            option("--stream", format!("{len}={place}"));
        }
        line
    }

    /// The arguments of mode `sidecar`.
    #[must_use]
    pub fn sidecar(&self) -> Vec<String> {
        let mut line = self.common("sidecar");
        for address in &self.listeners {
            line.extend(["--listen".to_owned(), address.to_string()]);
        }
        if let Some(limit) = self.idle {
            line.extend(["--idle".to_owned(), seconds(limit)]);
        }
        line
    }

    fn common(&self, mode: &str) -> Vec<String> {
        let mut line = vec![mode.to_owned()];
        let mut option = |name: &str, value: String| line.extend([name.to_owned(), value]);
        option("--key", self.key.clone());
        option("--out", self.out.clone());
        if let Some(deadline) = self.deadline {
            let since = deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
            option("--deadline", seconds(since));
        }
        line
    }
}

fn seconds(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_spelt() {
        let options = PodOptions::new("/k", "/o")
            .with_input("/i")
            .with_deadline(UNIX_EPOCH + Duration::from_millis(1_700_000_000_250))
            .with_denial(
                Some("10.0.0.1:443".into()),
                Duration::from_millis(1500),
                Duration::from_secs(60),
            )
            .with_file(0)
            .with_folder(1)
            .with_copy("/g/2", "out/1/a=b")
            .with_part("/v/4/data", "a=b/c")
            .with_stream(StreamedInput::new("in/3", 7))
            .with_listener(SocketAddrV4::new([127, 0, 1, 1].into(), 443))
            .with_idle(Duration::from_secs(120));
        assert_eq!(
            options.receive().join(" "),
            "receive --key /k --out /o --deadline 1700000000.250000000 --in /i \
             --control 10.0.0.1:443 --settle 1.500000000 --wait 60.000000000 --folder 1 --file 0 \
             --copy /g/2=out/1/a=b --part /v/4/data=a=b/c --stream 7=in/3"
        );
        assert_eq!(
            options.sidecar().join(" "),
            "sidecar --key /k --out /o --deadline 1700000000.250000000 --listen 127.0.1.1:443 \
             --idle 120.000000000"
        );
    }
}
