//! Faults of outputs.

use std::io::Read;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use v6_runtime::{Error, ErrorKind, OutputKind, OutputName, Result, ResultStream, RunId, Runtime};

use super::Seed;
use super::runtime::Seeded;

const MIB: usize = 1 << 20;

pub(super) fn collect(it: &Seeded, id: &RunId, name: &OutputName) -> ResultStream<Bytes> {
    let pieces = it.inner.collect(id, name);
    let asked = it.world.notes().asked.get(&it.key(id)).cloned();
    let declared = asked.and_then(|asked| asked.spec.outputs.get(name).cloned());
    let kind = declared.as_ref().map(|output| output.kind);
    match it.seed {
        Some(Seed::OutputsEndAtAMebibyte) => {
            whole(pieces, |all| Ok(all.slice(..all.len().min(MIB))))
        }
        Some(Seed::OutputsAreText) if kind == Some(OutputKind::File) => whole(pieces, |all| {
            let text = String::from_utf8_lossy(&all);
            Ok(text.trim_end().to_owned().into())
        }),
        Some(Seed::LastPieceIsLost) => whole(pieces, |all| {
            let blocks = all.len() / 512 * 512;
            Ok(all.slice(..blocks))
        }),
        Some(Seed::OutputsAreGivenOnce) => {
            let first = (it.key(id), name.clone());
            match it.world.notes().collected.insert(first) {
                true => pieces,
                false => Box::pin(stream::empty()),
            }
        }
        Some(Seed::CutOutputLooksWhole) => without(pieces, ErrorKind::Unavailable),
        Some(Seed::NamesAreCleaned) if kind == Some(OutputKind::Folder) => {
            whole(pieces, with_clean_names)
        }
        Some(Seed::OutputsAreGivenEarly) => without(pieces, ErrorKind::NotReady),
        Some(Seed::UndeclaredOutputsAreEmpty) if kind.is_none() => {
            without(pieces, ErrorKind::NotFound)
        }
        Some(Seed::EmptyFilesAreNotPacked) if kind == Some(OutputKind::Folder) => {
            whole(pieces, without_empty_files)
        }
        Some(Seed::EmptyFoldersAreNotThere) if kind == Some(OutputKind::Folder) => {
            whole(pieces, |all| match all.iter().any(|byte| *byte != 0) {
                true => Ok(all),
                false => Err(Error::new(ErrorKind::NotFound, "there is no such output")),
            })
        }
        Some(Seed::SubfoldersAreNotPacked) if kind == Some(OutputKind::Folder) => {
            whole(pieces, without_subfolders)
        }
        Some(Seed::OutputsAreNotMade | Seed::OutputsCanBeReplaced)
            if kind == Some(OutputKind::File) =>
        {
            let path = declared.map(|output| output.path.as_str().to_owned());
            let file = path.as_deref().and_then(|path| path.rsplit('/').next());
            let file = file.unwrap_or_default().to_owned();
            whole(pieces, move |all| one_of(&all, &file))
        }
        _ => pieces,
    }
}

fn whole(
    pieces: ResultStream<Bytes>,
    change: impl FnOnce(Bytes) -> Result<Bytes> + Send + 'static,
) -> ResultStream<Bytes> {
    let all = async move {
        let all: Vec<Bytes> = pieces.try_collect().await?;
        change(all.concat().into())
    };
    Box::pin(stream::once(all))
}

/// An error of this kind is the end.
fn without(pieces: ResultStream<Bytes>, kind: ErrorKind) -> ResultStream<Bytes> {
    let known = move |piece: &Result<Bytes>| !matches!(piece, Err(error) if error.kind() == kind);
    Box::pin(pieces.filter(move |piece| future::ready(known(piece))))
}

fn damaged(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "an archive cannot be read").with_source(error)
}

/// The file of this name in a tar.
fn one_of(archive: &[u8], name: &str) -> Result<Bytes> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        if path.as_os_str() == name && entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(damaged)?;
            return Ok(content.into());
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!("there is no {name}"),
    ))
}

/// The archive with each entry under the name that is given for it, or without it.
fn repacked(archive: &[u8], name: impl Fn(&tar::Header, &str) -> Option<String>) -> Result<Bytes> {
    let mut made = tar::Builder::new(Vec::new());
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry
            .path()
            .map_err(damaged)?
            .to_string_lossy()
            .into_owned();
        let mut header = entry.header().clone();
        if let Some(path) = name(&header, &path) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(damaged)?;
            let added = made.append_data(&mut header, &path, content.as_slice());
            added.map_err(damaged)?;
        }
    }
    Ok(made.into_inner().map_err(damaged)?.into())
}

fn without_empty_files(archive: Bytes) -> Result<Bytes> {
    repacked(&archive, |header, path| {
        let empty = header.entry_type().is_file() && header.size().is_ok_and(|size| size == 0);
        (!empty).then(|| path.to_owned())
    })
}

fn without_subfolders(archive: Bytes) -> Result<Bytes> {
    repacked(&archive, |_, path| {
        let above = !path.trim_end_matches('/').contains('/');
        above.then(|| path.to_owned())
    })
}

fn with_clean_names(archive: Bytes) -> Result<Bytes> {
    repacked(&archive, |_, path| {
        Some(path.replace(char::is_control, "_"))
    })
}
