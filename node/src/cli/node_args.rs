//! What each command that reads the node's configuration takes.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use super::logging::LogFormat;
use crate::config::{self, Config, Environment, Problems, RuntimeKind, Weight};

/// The configuration and the engine.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// The node's configuration file, as of vantage6 5.x
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "V6_NODE_CONFIG",
        hide_env_values = true
    )]
    pub config: PathBuf,

    /// The container engine, instead of the one in the configuration
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<RuntimeKind>,
}

impl NodeArgs {
    /// Reads the configuration; `--runtime` wins over its `runtime.kind`.
    ///
    /// # Errors
    ///
    /// All mistakes in the configuration.
    pub fn load(&self, environment: &Environment) -> Result<Config, Problems> {
        let mut config = config::load(&self.config, environment)?;
        if let Some(kind) = self.runtime {
            config.runtime.kind = kind;
        }
        Ok(config)
    }
}

/// Tells what the operator should hear of a configuration before the node starts:
/// warnings in red on a terminal, all else in the log, which has to be started.
pub fn announce(config: &Config, format: LogFormat) {
    let stderr = std::io::stderr();
    let red = format == LogFormat::Human
        && stderr.is_terminal()
        && std::env::var_os("NO_COLOR").is_none();
    for notice in &config.notices {
        match notice.weight {
            Weight::Info => tracing::info!("{notice}"),
            Weight::Warning if red => eprintln!("\x1b[31mwarning: {notice}\x1b[0m"),
            Weight::Warning => tracing::warn!("{notice}"),
        }
    }
    for image in &config.runtime.images {
        let pattern = image.pattern.as_str();
        let accepted = &image.risk_accepted;
        tracing::warn!(pattern, accepted, "these images get more than the floor");
    }
}
