//! The v6-runtime contract on Docker, through the engine's API.
