//! The addresses of HQ's REST API and of its socket.

use url::Url;

use super::error::HqError;

/// Where HQ is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HqAddress {
    api: Url,
}

impl HqAddress {
    /// `api` is the base of the REST API: scheme, host, port and path.
    ///
    /// # Errors
    /// [`HqError::Address`] if it is not an `http` or `https` address of a host.
    pub fn new(mut api: Url) -> Result<Self, HqError> {
        if !matches!(api.scheme(), "http" | "https") || api.host_str().is_none() {
            return Err(HqError::Address {
                address: api.to_string(),
            });
        }
        let path = api.path().trim_end_matches('/').to_owned();
        api.set_path(&path);
        api.set_query(None);
        api.set_fragment(None);
        Ok(Self { api })
    }

    /// The base, without a slash at its end.
    pub fn api(&self) -> &Url {
        &self.api
    }

    /// The address of a call: `path` without a leading slash, perhaps with a query. Dots
    /// that would lead out of the API are an error.
    pub(super) fn join(&self, path: &str) -> Result<Url, HqError> {
        let wrong = || HqError::Address {
            address: path.to_owned(),
        };
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(p, q)| (p, Some(q)));
        let base = self.api.path().trim_end_matches('/');
        let full = format!("{base}/{path}");
        let mut url = self.api.clone();
        url.set_path(&full);
        url.set_query(query);
        let dots = full.split('/').any(|part| {
            let part = part.to_ascii_lowercase().replace("%2e", ".");
            part == "." || part == ".."
        });
        if dots || full.contains('\\') {
            Err(wrong())
        } else {
            Ok(url)
        }
    }

    /// Socket.IO lives at the root of the host, whatever the API's path.
    pub(super) fn socket(&self, transport: &str, sid: Option<&str>) -> Url {
        let mut url = self.api.clone();
        url.set_path("/socket.io/");
        {
            let mut query = url.query_pairs_mut();
            query
                .append_pair("transport", transport)
                .append_pair("EIO", "4");
            if let Some(sid) = sid {
                query.append_pair("sid", sid);
            }
        }
        url
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn address(api: &str) -> HqAddress {
        HqAddress::new(Url::parse(api).unwrap()).unwrap()
    }

    #[test]
    fn addresses_stay_below_the_api() {
        for base in ["http://h:1/hq", "http://h:1/hq/"] {
            let joined = |path: &str| address(base).join(path).map(|url| url.to_string());
            assert_eq!(
                joined("run/3?a=b%20c").unwrap(),
                "http://h:1/hq/run/3?a=b%20c"
            );
            assert_eq!(
                joined("http://evil/").unwrap(),
                "http://h:1/hq/http://evil/"
            );
            assert_eq!(joined("/evil").unwrap(), "http://h:1/hq//evil");
            for out in ["../x", "a/../../x", "a/%2e%2e/x", "a/.", "a\\..\\x"] {
                assert!(joined(out).is_err(), "{out}");
            }
        }
        assert_eq!(
            address("https://h").join("run").unwrap().as_str(),
            "https://h/run"
        );
        assert!(HqAddress::new(Url::parse("ftp://h/").unwrap()).is_err());
    }

    #[test]
    fn the_socket_is_at_the_root() {
        assert_eq!(
            address("https://h:7601/hq")
                .socket("polling", Some("a b"))
                .as_str(),
            "https://h:7601/socket.io/?transport=polling&EIO=4&sid=a+b"
        );
    }
}
