//! The way to the API server and who we are there, as the operator says or the surroundings do.

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use kube::Config;
use kube::config::{
    Context, ExecConfig, ExecInteractiveMode, KubeConfigOptions, Kubeconfig, KubeconfigError,
};

use crate::config::KubernetesConfig;
use crate::error::{Error, Result, chain};

/// So many names are told of those that there are.
const TOLD: usize = 20;

pub(crate) struct Access {
    pub(crate) config: Config,
    /// Through which all connections go.
    pub(crate) proxy: Option<Intercept>,
}

/// Reads how a cluster is reached.
pub(crate) async fn find(ours: &KubernetesConfig) -> Result<Access> {
    let read = match &ours.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    if ours.kubeconfig.is_none() && ours.context.is_none() && is_none(&read) {
        return inside();
    }
    let file = read.map_err(|error| unread(&error))?;
    let (name, context) = choose(&file, ours.context.as_deref())?;
    if let Some(user) = context.user.as_deref().filter(|user| !user.is_empty())
        && !file.auth_infos.iter().any(|known| known.name == user)
    {
        // The library would go there as nobody.
        let why = format!("the context {name:?} names a user that is not there: {user:?}");
        return Err(Error::Config(why));
    }
    let named = file.clusters.iter().find(|it| it.name == context.cluster);
    let said = named.and_then(|it| it.cluster.as_ref()?.proxy_url.clone());
    let options = KubeConfigOptions {
        context: Some(name.to_owned()),
        ..KubeConfigOptions::default()
    };
    let cluster = context.cluster.clone();
    let config = Config::from_custom_kubeconfig(file.clone(), &options).await;
    let mut config = config.map_err(|error| Error::Config(chain(&error)))?;
    if config.accept_invalid_certs {
        let why = format!(
            "the cluster {cluster:?} has `insecure-skip-tls-verify`, by which whoever answers gets our \
             login and the runs' data: name its `certificate-authority`"
        );
        return Err(Error::Config(why));
    }
    if let Some(exec) = &mut config.auth_info.exec {
        unattended(exec)?;
    }
    let said = said.filter(|said| !said.is_empty());
    let proxy = proxy(said.as_deref(), &Matcher::from_env(), &config.cluster_url)?;
    // What the library thinks is not it: it asks whether NO_PROXY has the proxy, not the server.
    config.proxy_url = None;
    Ok(Access { config, proxy })
}

/// What is wrong with a kubeconfig, without what it says there, as the library tells it: it may be a token.
fn unread(error: &KubeconfigError) -> Error {
    let KubeconfigError::Parse(error) = error else {
        return Error::Config(chain(error));
    };
    let place = error.location();
    let place = place.map(|it| format!(", line {}, column {}", it.line(), it.column()));
    let place = place.unwrap_or_default();
    Error::Config(format!("the kubeconfig cannot be understood{place}"))
}

/// Whether there is no kubeconfig, other than one that is wrong.
fn is_none(read: &Result<Kubeconfig, KubeconfigError>) -> bool {
    match read {
        Ok(file) => file.contexts.is_empty(),
        Err(KubeconfigError::FindPath) => true,
        Err(KubeconfigError::ReadConfig(error, _)) => error.kind() == std::io::ErrorKind::NotFound,
        Err(_) => false,
    }
}

/// As a pod of the cluster: no proxy is on that way, whatever the pod's environment says.
fn inside() -> Result<Access> {
    let config = Config::incluster().map_err(|error| {
        let why = chain(&error);
        Error::Config(format!("there is no kubeconfig, and this is no pod: {why}"))
    })?;
    Ok(Access {
        config,
        proxy: None,
    })
}

fn choose<'a>(file: &'a Kubeconfig, wanted: Option<&'a str>) -> Result<(&'a str, &'a Context)> {
    let known = || {
        let names = file.contexts.iter().take(TOLD).map(|it| it.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let wanted = wanted.or(file.current_context.as_deref());
    let Some(name) = wanted.filter(|name| !name.is_empty()) else {
        let why = format!(
            "the kubeconfig has no current context: name one of {}",
            known()
        );
        return Err(Error::Config(why));
    };
    let found = file.contexts.iter().find(|it| it.name == name);
    let context = found.and_then(|it| it.context.as_ref());
    let context = context.ok_or_else(|| {
        let why = format!(
            "the kubeconfig has no context {name:?}, but these: {}",
            known()
        );
        Error::Config(why)
    })?;
    Ok((name, context))
}

/// Nobody sits before a node: a plugin that could ask would wait for ever.
fn unattended(exec: &mut ExecConfig) -> Result<()> {
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        let command = exec.command.as_deref().unwrap_or_default();
        let why =
            format!("the plugin {command:?} wants to ask a human (`interactiveMode: Always`)");
        return Err(Error::Config(why));
    }
    exec.interactive_mode = Some(ExecInteractiveMode::Never);
    Ok(())
}

/// As kubectl: what the kubeconfig says always holds, and what the environment says not for this
/// machine itself and not for what NO_PROXY names.
fn proxy(
    said: Option<&str>,
    surroundings: &Matcher,
    server: &hyper::Uri,
) -> Result<Option<Intercept>> {
    let Some(said) = said else {
        let here = server.host().is_some_and(is_loopback);
        let found = surroundings.intercept(server).filter(|_| !here);
        return found.map(usable).transpose();
    };
    let found = Matcher::builder().all(said).build().intercept(server);
    // Not what was said: there may be a password in it.
    let found = found.ok_or_else(|| Error::Config("`proxy-url` cannot be understood".into()))?;
    usable(found).map(Some)
}

fn usable(found: Intercept) -> Result<Intercept> {
    match found.uri().scheme_str() {
        Some("http" | "https") => Ok(found),
        _ => {
            let why = format!(
                "{}: only proxies for http and https can be used",
                found.uri()
            );
            Err(Error::Config(why))
        }
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "https://api.example.org:6443";

    fn of(said: Option<&str>, all: &str, no: &str, server: &str) -> Result<Option<String>> {
        let surroundings = Matcher::builder().all(all).no(no).build();
        let server = server.parse().expect("an address");
        let found = proxy(said, &surroundings, &server)?;
        Ok(found.map(|found| found.uri().to_string()))
    }

    #[test]
    fn a_proxy_is_taken_as_kubectl_does() {
        let other = Some("http://other:1".to_owned());
        let around = Some("http://around:2/".to_owned());
        let is = |said, no, server| of(said, "http://around:2", no, server).expect("a proxy");
        assert_eq!(is(None, "", SERVER), around);
        for no in ["api.example.org", "example.org", "*"] {
            assert_eq!(is(None, no, SERVER), None, "{no}");
        }
        // The library asks whether the proxy is meant.
        assert_eq!(is(None, "around", SERVER), around);
        assert_eq!(is(None, "10.0.0.0/8", "https://10.1.2.3"), None);
        for here in [
            "https://127.0.0.1:6443",
            "http://localhost:1",
            "https://[::1]:6443",
        ] {
            assert_eq!(is(None, "", here), None, "{here}");
        }
        for server in [SERVER, "https://127.0.0.1:6443", "http://api.example.org"] {
            let said = is(Some("http://other:1"), "*", server);
            assert_eq!(said, other.as_ref().map(|it| format!("{it}/")), "{server}");
        }
    }

    #[test]
    fn a_password_of_a_proxy_is_not_told() {
        let shown = of(Some("http://me:hunter2@other:1"), "", "", SERVER).expect("a proxy");
        assert_eq!(shown.as_deref(), Some("http://other:1/"));
        for wrong in [
            "socks5://me:hunter2@other:1",
            "ftp://me:hunter2@other",
            "http://me:hunter2@",
        ] {
            let error = of(Some(wrong), "", "", SERVER).expect_err(wrong);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_line_of_a_kubeconfig_is_not_told() {
        for wrong in [
            "users:\n- {name: u, user: {token: hunter2, ]}",
            "users:\n- {name: u, user: hunter2}",
            "contexts: hunter2",
        ] {
            let error = unread(&Kubeconfig::from_yaml(wrong).expect_err(wrong)).to_string();
            assert!(error.contains("understood, line "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn contexts_that_there_are_are_named() {
        let text = "contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: d}}]";
        let mut file = Kubeconfig::from_yaml(text).expect("a kubeconfig");
        let error = choose(&file, None).expect_err("no current one");
        assert!(error.to_string().ends_with("name one of a, b"), "{error}");
        file.current_context = Some("a".into());
        assert_eq!(choose(&file, None).expect("a").1.cluster, "c");
        assert_eq!(choose(&file, Some("b")).expect("b").1.cluster, "d");
        let error = choose(&file, Some("x")).expect_err("none").to_string();
        assert!(
            error.contains("\"x\"") && error.ends_with(": a, b"),
            "{error}"
        );
    }

    #[test]
    fn nobody_is_asked_by_a_plugin() {
        let exec = |mode: &str| -> ExecConfig {
            serde_json::from_str(&format!("{{\"command\": \"login\"{mode}}}")).expect("a plugin")
        };
        for mode in ["", ", \"interactiveMode\": \"IfAvailable\""] {
            let mut exec = exec(mode);
            unattended(&mut exec).expect("a plugin");
            assert_eq!(exec.interactive_mode, Some(ExecInteractiveMode::Never));
        }
        let error = unattended(&mut exec(", \"interactiveMode\": \"Always\""));
        assert!(error.expect_err("a human").to_string().contains("login"));
    }
}
