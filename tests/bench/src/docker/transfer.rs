//! Large files in and out.

use bollard::query_parameters::UploadToContainerOptionsBuilder;
use bytes::Bytes;
use v6_runtime::{ContainerPath, InputReader, InputStream, Mount, MountSource, Runtime};

use super::raw::{self, Raw};
use crate::ours::{Ours, check, timed};
use crate::report::Row;
use crate::{Plan, Result};

const LENGTH: u64 = 64 << 20;

pub(crate) async fn measure(
    plan: &Plan,
    ours: &Ours,
    raw: &Raw,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let row = "docker: 64 MiB of output through collect";
    if plan.wants(row) {
        let id = ours.id()?;
        let script = format!("head -c {LENGTH} /dev/urandom > /data/result");
        let spec = ours.spec.clone().with_command(["sh", "-c", &script]);
        ours.finish(&id, &spec).await?;
        let container = format!("v6-{}.{id}", ours.runtime.owner());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..plan.times(15) {
            let collect = async {
                check(
                    ours.collect(&id).await? == LENGTH,
                    "the output is not whole",
                )
            };
            a.push(timed(collect).await?);
            let get = async { raw.download(&container, "/.v6/out/0").await };
            b.push(timed(get).await?);
        }
        rows.push(Row::of_times(row, &a, &b));
        ours.cleanup(&id).await?;
    }
    let row = "docker: 64 MiB of input, accepted";
    if plan.wants(row) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let archive = archive()?;
        for _ in 0..plan.times(10) {
            let id = ours.id()?;
            let stream = InputStream::reopenable(LENGTH, || async {
                Ok(Box::pin(tokio::io::AsyncReadExt::take(
                    tokio::io::repeat(b'v'),
                    LENGTH,
                )) as InputReader)
            });
            let input = Mount::new(
                MountSource::Stream(stream),
                ContainerPath::new("/data/large")?,
            );
            let spec = ours.spec.clone().with_mount(input);
            let run = async { Ok(ours.runtime.run(&id, &spec).await?) };
            a.push(timed(run).await?);
            ours.cleanup(&id).await?;

            let name = raw::name(0);
            let store = async {
                let files = raw.store(&name).await?;
                let options = UploadToContainerOptionsBuilder::default()
                    .path("/v6/in")
                    .build();
                let body = bollard::body_full(archive.clone());
                raw.docker
                    .upload_to_container(&files, Some(options), body)
                    .await?;
                Ok(())
            };
            b.push(timed(store).await?);
            raw.sweep().await?;
        }
        rows.push(Row::of_times(row, &a, &b));
    }
    Ok(())
}

fn archive() -> Result<Bytes> {
    let content = vec![b'v'; usize::try_from(LENGTH)?];
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o444);
    header.set_size(LENGTH);
    archive.append_data(&mut header, "large", content.as_slice())?;
    Ok(archive.into_inner()?.into())
}
