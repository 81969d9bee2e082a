//! Images: what a name stands for, and the unpacked form of it that runs use.

mod archive;
mod cache;
mod describe;
mod registry;
mod words;

pub(crate) use cache::{Fault, Images, Ready};
#[cfg(test)]
pub(crate) use describe::Description;
pub(crate) use words::last_lines;
