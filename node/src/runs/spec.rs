//! From a run of HQ to what the engine is to run: pure but for a look at data files' modes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use bytes::Bytes;
use v6_runtime::{
    Access, Capabilities, ContainerPath, Digest, EgressGrant, EnvValue, Error, GrantName, ImageRef,
    InputStream, Mount, MountSource, Output, OutputName, ResolvedImage, Resources, RunSpec, Secret,
    Trust,
};

use super::context::{Destination, RunContext, Target};
use super::verdict::Verdict;
use crate::config::{Config, Database, Endpoint, Located, VolumeData};
use crate::gateway::{PROXY_HOST, PROXY_PORT, proxy_grant};
use crate::hq::{Action, Identity, OpenRun, RunStatus};
use crate::wire_env::{
    ContainerEnvironment, DATABASE_FOLDER, INPUT_FILE, OUTPUT_FILE, RunData, RunVariables,
    SESSION_FOLDER, variables,
};

/// The output that holds an algorithm's result.
pub const RESULT: &str = "result";
/// The output that holds what an algorithm left in its session folder.
pub const SESSION: &str = "session";

/// What the node has gathered before a run can be described to the engine.
#[derive(Debug)]
pub struct Gathered<'a> {
    /// HQ's run.
    pub run: &'a OpenRun,
    /// The step type, known.
    pub action: Action,
    /// The image, settled and allowed.
    pub image: ResolvedImage,
    /// The decoded arguments.
    pub arguments: Bytes,
    /// What a central algorithm shows to the gateway.
    pub token: Option<Secret>,
    /// Names of the dataframes asked for, by argument of the function.
    pub dataframes: Vec<Vec<String>>,
    /// Files of the session, by path within its folder.
    pub session_files: Vec<SessionFile>,
}

/// A file that is put into the run's session folder.
#[derive(Debug)]
pub struct SessionFile {
    /// Its path within the folder.
    pub path: String,
    /// Its content.
    pub content: InputStream,
    /// A dataframe or the log of steps is only read; other files are the algorithms' own, of
    /// which the run gets a copy that it may change.
    pub access: Access,
}

/// A spec and the context that goes with it.
#[derive(Debug)]
pub struct Prepared {
    /// For the engine.
    pub spec: RunSpec,
    /// For the node, also within `spec`.
    pub context: RunContext,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Why a run cannot be described.
#[derive(Debug)]
pub enum Unfit {
    /// The run is to be reported so.
    Verdict(Verdict),
    /// The contract refuses it.
    Spec(Error),
}

impl Unfit {
    /// What HQ is told.
    #[must_use]
    pub fn into_verdict(self) -> Verdict {
        match self {
            Self::Verdict(verdict) => verdict,
            Self::Spec(error) => Verdict::new(RunStatus::Failed, error.to_string()),
        }
    }
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Spec(error)
    }
}

/// Describes a run to the engine.
///
/// # Errors
/// [`Unfit`], with the sentence for HQ.
pub fn prepare(config: &Config, us: &Identity, gathered: Gathered<'_>) -> Result<Prepared, Unfit> {
    let Gathered {
        run,
        action,
        image,
        arguments,
        token,
        dataframes,
        session_files,
    } = gathered;
    let limits = config.runtime.limits(Some(action), &run.task.image);
    let mut context = RunContext::of(run, config.share_algorithm_logs, limits.output_bytes.get())
        .map_err(|word| refuse(RunStatus::Failed, word.to_string()))?;
    let mut resources = Resources::default().with_scratch_bytes(limits.scratch_bytes);
    resources.pids = limits.pids;
    resources.cpu_milli = limits.cpu_milli;
    resources.memory_bytes = limits.memory_bytes;
    resources.gpu = limits.gpus;
    let mut spec = RunSpec::new(image)
        .with_resources(resources)
        .with_grace(limits.grace);
    spec.trust = trust(config, &run.task.image, &spec.image);
    if let Some(length) = limits.deadline {
        spec = spec.with_deadline(SystemTime::now() + length);
    }

    let mut egress = Egress::default();
    if action == Action::CentralCompute {
        egress.grants.push(proxy_grant());
        egress.destinations.push(Destination {
            grant: proxy_grant().name,
            to: Target::Proxy,
        });
    }
    for endpoint in config.runtime.egress.get(&action).into_iter().flatten() {
        egress.add(endpoint)?;
    }

    spec = spec
        .with_mount(file(MountSource::Inline(arguments), INPUT_FILE)?)
        .with_output(
            OutputName::new(RESULT)?,
            Output::file(path(OUTPUT_FILE)?, limits.output_bytes),
        )
        .with_output(
            OutputName::new(SESSION)?,
            Output::folder(path(SESSION_FOLDER)?, limits.output_bytes),
        );
    for SessionFile {
        path: name,
        content,
        access,
    } in session_files
    {
        let target = path(SESSION_FOLDER)?.join(&name)?;
        spec =
            spec.with_mount(Mount::new(MountSource::Stream(content), target).with_access(access));
    }

    let uri;
    let data = if action == Action::DataExtraction {
        let database = source(config, run)?;
        uri = offer(database, &mut spec, &mut egress)?;
        RunData::Source {
            uri: &uri,
            kind: &database.kind,
            parameters: &database.parameters,
        }
    } else {
        RunData::Dataframes(&dataframes)
    };
    let host = format!("http://{PROXY_HOST}");
    let environment = variables(&RunVariables {
        action,
        method: &run.task.method,
        task: run.task.id,
        node: us.node,
        organization: us.organization,
        collaboration: us.collaboration,
        proxy_host: &host,
        proxy_port: PROXY_PORT,
        data,
        token: token.as_ref(),
        algorithm_env: &config.algorithm_env,
    })
    .map_err(|error| refuse(RunStatus::Failed, error.to_string()))?;
    let ContainerEnvironment {
        plain,
        secret,
        warnings,
    } = environment;
    spec.env.extend(
        plain
            .into_iter()
            .map(|(name, value)| (name, EnvValue::Plain(value))),
    );
    spec.env.extend(
        secret
            .into_iter()
            .map(|(name, value)| (name, EnvValue::Secret(value))),
    );

    let Egress {
        grants,
        destinations,
        ..
    } = egress;
    spec.egress = grants;
    context.destinations = destinations;
    spec.annotations = context.to_annotations()?;
    let warnings = warnings
        .into_iter()
        .map(|warning| warning.to_string())
        .collect();
    Ok(Prepared {
        spec,
        context,
        warnings,
    })
}

fn refuse(status: RunStatus, reason: impl Into<String>) -> Unfit {
    Unfit::Verdict(Verdict::new(status, reason))
}

fn path(text: &str) -> Result<ContainerPath, Error> {
    ContainerPath::new(text)
}

fn file(source: MountSource, target: &str) -> Result<Mount, Error> {
    Ok(Mount::new(source, path(target)?))
}

/// The exceptions that the operator made for an image.
fn trust(config: &Config, written: &str, resolved: &ResolvedImage) -> Trust {
    let unresolved = |_: &ImageRef| -> Option<Digest> { None };
    let matching = config
        .runtime
        .images
        .iter()
        .filter(|e| e.pattern.matches(written, resolved, unresolved));
    matching.fold(Trust::default(), |trust, exception| {
        trust
            .with_image_user(trust.image_user || exception.run_as_image)
            .with_writable_root(trust.writable_root || exception.writable_root)
    })
}

/// The database that an extraction asks for.
///
/// # Errors
/// [`Unfit::Verdict`], naming what the node has instead.
pub fn source<'a>(config: &'a Config, run: &OpenRun) -> Result<&'a Database, Unfit> {
    let label = run.task.source_label().ok_or_else(|| {
        refuse(
            RunStatus::Failed,
            "an extraction needs exactly one source database, and the task does not name one",
        )
    })?;
    config
        .databases
        .iter()
        .find(|database| database.label == label)
        .ok_or_else(|| {
            let labels: Vec<&str> = config
                .databases
                .iter()
                .map(|database| database.label.as_str())
                .collect();
            let has = if labels.is_empty() {
                "none".to_owned()
            } else {
                labels.join(", ")
            };
            refuse(
                RunStatus::Failed,
                format!("this node has no database \"{label}\"; it has {has}"),
            )
        })
}

/// Mounts a database or grants the way to it, and says how the algorithm finds it.
fn offer(database: &Database, spec: &mut RunSpec, egress: &mut Egress) -> Result<Secret, Unfit> {
    let target = format!("{DATABASE_FOLDER}/{}", database.file_name());
    let access = if database.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let source = match database.locate() {
        Located::File(path) | Located::Folder(path) => {
            let group = database.group.or_else(|| needed_group(&path));
            spec.supplementary_groups.extend(group);
            MountSource::HostPath(path)
        }
        Located::Volume(VolumeData { name, path }) => {
            spec.supplementary_groups.extend(database.group);
            match path {
                Some(path) => MountSource::VolumePart(name, path),
                None => MountSource::Volume(name),
            }
        }
        Located::Service(uri) => {
            let mut text = uri.expose().to_owned();
            for endpoint in &database.egress {
                let host = egress.add(endpoint)?;
                if host != endpoint.host {
                    text = with_host(&text, &endpoint.host, &host);
                }
            }
            return Ok(Secret::new(text));
        }
        Located::Missing(_) => {
            return Err(refuse(
                RunStatus::Failed,
                format!(
                    "the data of database \"{}\" is not there at the node",
                    database.label
                ),
            ));
        }
    };
    spec.mounts
        .push(Mount::new(source, path(&target)?).with_access(access));
    Ok(Secret::new(target))
}

/// Lets the contents of files go along with a run where the engine does not have this machine's disk: of
/// those that it only reads. What cannot go along stays as it is, for the engine to refuse.
///
/// # Errors
/// A file that is not there any more.
pub async fn take_along(spec: &mut RunSpec, can: &Capabilities) -> Result<(), Error> {
    if can.mounts.host_path || !can.mounts.stream {
        return Ok(());
    }
    for mount in &mut spec.mounts {
        let MountSource::HostPath(path) = &mount.source else {
            continue;
        };
        let is_file = tokio::fs::metadata(path)
            .await
            .is_ok_and(|about| about.is_file());
        if mount.access == Access::ReadOnly && is_file {
            mount.source = MountSource::Stream(InputStream::file(path.clone()).await?);
        }
    }
    Ok(())
}

/// The group through which a file can be read that others cannot read; root's own is never given.
#[must_use]
pub fn needed_group(path: &std::path::Path) -> Option<u32> {
    let about = std::fs::metadata(path).ok()?;
    (about.mode() & 0o044 == 0o040 && about.gid() != 0).then(|| about.gid())
}

/// The same address with another host; only its first mention, which is the host.
fn with_host(uri: &str, host: &str, new: &str) -> String {
    let bracketed = format!("[{host}]");
    let host = if host.contains(':') {
        bracketed.as_str()
    } else {
        host
    };
    // After the credentials, which may hold the same text.
    let start = uri.find("://").map_or(0, |at| at + 3);
    let end = uri[start..]
        .find(['/', '?'])
        .map_or(uri.len(), |at| start + at);
    let start = uri[start..end]
        .rfind('@')
        .map_or(start, |at| start + at + 1);
    match uri[start..].find(host) {
        Some(at) => format!(
            "{}{new}{}",
            &uri[..start + at],
            &uri[start + at + host.len()..]
        ),
        None => uri.to_owned(),
    }
}

#[derive(Default)]
struct Egress {
    grants: Vec<EgressGrant>,
    destinations: Vec<Destination>,
    names: BTreeMap<Endpoint, String>,
}

impl Egress {
    /// Grants an address, once, and returns the host name by which the run knows it: a run has no
    /// addresses but names, so an IP address gets one.
    fn add(&mut self, endpoint: &Endpoint) -> Result<String, Error> {
        if let Some(host) = self.names.get(endpoint) {
            return Ok(host.clone());
        }
        let host = match endpoint.host.parse::<std::net::IpAddr>() {
            Ok(_) => format!("ip-{}.internal", endpoint.host.replace(['.', ':'], "-")),
            Err(_) => endpoint.host.clone(),
        };
        let name = GrantName::new(format!("egress-{}", self.grants.len()))?;
        self.grants
            .push(EgressGrant::new(name.clone(), host.clone(), endpoint.port)?);
        let to = Target::Address {
            host: endpoint.host.clone(),
            port: endpoint.port,
        };
        self.destinations.push(Destination { grant: name, to });
        self.names.insert(endpoint.clone(), host.clone());
        Ok(host)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn an_address_without_a_name_gets_one() {
        let mut egress = Egress::default();
        let endpoint = Endpoint {
            host: "10.0.0.7".into(),
            port: 5432,
        };
        let host = egress.add(&endpoint).unwrap();
        assert_eq!(host, "ip-10-0-0-7.internal");
        assert_eq!(egress.add(&endpoint).unwrap(), host);
        assert_eq!(egress.grants.len(), 1);
        let to = Target::Address {
            host: "10.0.0.7".into(),
            port: 5432,
        };
        assert_eq!(egress.destinations[0].to, to);
        let six = egress
            .add(&Endpoint {
                host: "2001:db8::7".into(),
                port: 1,
            })
            .unwrap();
        assert_eq!(six, "ip-2001-db8--7.internal");
    }

    #[tokio::test]
    async fn a_file_goes_along_where_the_engine_has_another_disk() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data.csv");
        std::fs::write(&data, "a,b\n").unwrap();
        let digest = Digest::new(format!("sha256:{}", "0".repeat(64))).unwrap();
        let name = ImageRef::parse("localhost/average:1").unwrap();
        let identity = v6_runtime::ImageIdentity::Manifest(digest);
        let image = ResolvedImage::new(name, identity, "linux/amd64");
        let at = |path: &std::path::Path, target| {
            Mount::new(
                MountSource::HostPath(path.to_owned()),
                super::path(target).unwrap(),
            )
        };
        let whole = RunSpec::new(image)
            .with_mount(at(&data, "/mnt/data.csv"))
            .with_mount(at(&data, "/mnt/changed.csv").with_access(Access::ReadWrite))
            .with_mount(at(folder.path(), "/mnt/folder"));
        let mut can = Capabilities::none();
        can.mounts.stream = true;

        let mut elsewhere = whole.clone();
        take_along(&mut elsewhere, &can).await.unwrap();
        let goes =
            |mount: &Mount| matches!(&mount.source, MountSource::Stream(it) if it.len() == 4);
        let gone: Vec<bool> = elsewhere.mounts.iter().map(goes).collect();
        assert_eq!(gone, [true, false, false]);

        can.mounts.host_path = true;
        let mut here = whole.clone();
        take_along(&mut here, &can).await.unwrap();
        assert!(!here.mounts.iter().any(goes));
    }

    #[test]
    fn only_the_host_of_an_address_is_rewritten() {
        let uri = "postgresql://10.0.0.7:10.0.0.7@10.0.0.7:5432/10.0.0.7";
        assert_eq!(
            with_host(uri, "10.0.0.7", "db"),
            "postgresql://10.0.0.7:10.0.0.7@db:5432/10.0.0.7"
        );
        assert_eq!(with_host("mysql://[::1]/x", "::1", "db"), "mysql://db/x");
        assert_eq!(
            with_host("Server=10.0.0.7;x", "10.0.0.7", "db"),
            "Server=db;x"
        );
    }
}
