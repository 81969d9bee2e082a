//! Accelerators: which kind the machines have, and who may have how many.

use std::path::Path;

use v6_runtime::{Error as Public, Gpu, Result as PublicResult};

use crate::error::{Error, Result};

/// Where Apptainer and SingularityCE put the driver's libraries in a container.
pub(crate) const LIBRARIES: &str = "/.singularity.d/libs";

/// The kind of accelerators that the machine, or all compute nodes, have. Runs that ask for some get
/// the machine's driver with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuKind {
    /// `--nv`
    Nvidia,
    /// `--rocm`
    Rocm,
}

impl GpuKind {
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Nvidia => "--nv",
            Self::Rocm => "--rocm",
        }
    }

    /// What the driver makes when it is there.
    const fn device(self) -> &'static str {
        match self {
            Self::Nvidia => "/dev/nvidiactl",
            Self::Rocm => "/dev/kfd",
        }
    }

    /// Whether this machine has some.
    pub(crate) fn find(self) -> Result<()> {
        let device = self.device();
        if Path::new(device).exists() {
            return Ok(());
        }
        let why =
            format!("this machine has no accelerators of the kind {self:?}: there is no {device}");
        Err(Error::Config(why))
    }
}

/// Whether a run can have what it asks for: here there is nobody who shares them out, and Slurm gives
/// numbers of them.
pub(crate) fn admit(asked: Option<Gpu>, is_job: bool) -> PublicResult<()> {
    let unsupported = |what| Err(Public::unsupported("resources.gpu", what));
    match asked {
        Some(Gpu::Count(_)) if !is_job => {
            unsupported("a number of accelerators (all of this machine's, or none)")
        }
        Some(Gpu::All) if is_job => unsupported("all accelerators (Slurm wants a number)"),
        _ => Ok(()),
    }
}

/// What a job asks for as `--gres` besides what the operator says, whose type of accelerator holds.
pub(crate) fn gres(own: Option<&str>, count: u32) -> String {
    let mut kind = String::new();
    let mut items = Vec::new();
    for item in own.unwrap_or_default().split(',') {
        let mut parts = item.split(':');
        match parts.next() {
            Some("") => {}
            Some("gpu") => {
                // `gpu`, `gpu:2`, `gpu:a100`, `gpu:a100:2`
                if let Some(name) = parts.next().filter(|name| name.parse::<u32>().is_err()) {
                    kind = format!("{name}:");
                }
            }
            _ => items.push(item.to_owned()),
        }
    }
    items.push(format!("gpu:{kind}{count}"));
    items.join(",")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn the_operators_type_and_the_runs_number_hold() {
        for (own, asked) in [
            (None, "gpu:2"),
            (Some("gpu"), "gpu:2"),
            (Some("gpu:4"), "gpu:2"),
            (Some("gpu:a100"), "gpu:a100:2"),
            (Some("license:1,gpu:a100:8"), "license:1,gpu:a100:2"),
        ] {
            assert_eq!(gres(own, 2), asked, "{own:?}");
        }
    }

    #[test]
    fn who_shares_them_out_decides() {
        let some = NonZeroU32::new(1).map(Gpu::Count);
        let results = [some, Some(Gpu::All), None]
            .map(|asked| [true, false].map(|is_job| admit(asked, is_job).is_ok()));
        assert_eq!(results, [[true, false], [false, true], [true, true]]);
    }
}
