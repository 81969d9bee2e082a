//! What goes wrong, and for which requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use serde_json::Value;

/// Some of all requests: those to which all that was said here applies.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    method: Option<String>,
    tests: Vec<(Part, Test, String)>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Path,
    Query,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    Is,
    Starts,
    Contains,
    Ends,
}

impl Requests {
    /// All requests.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Those with this method, in capitals.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Those to this path; no path has a query.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        self.and(Part::Path, Test::Is, path)
    }

    /// Those whose path starts so.
    #[must_use]
    pub fn path_starts_with(self, start: &str) -> Self {
        self.and(Part::Path, Test::Starts, start)
    }

    /// Those whose path has this somewhere.
    #[must_use]
    pub fn path_contains(self, part: &str) -> Self {
        self.and(Part::Path, Test::Contains, part)
    }

    /// Those whose path ends so, whatever version of the API it starts with.
    #[must_use]
    pub fn path_ends_with(self, end: &str) -> Self {
        self.and(Part::Path, Test::Ends, end)
    }

    /// Those whose query, percent-encoded as it is, has this somewhere.
    #[must_use]
    pub fn query_contains(self, part: &str) -> Self {
        self.and(Part::Query, Test::Contains, part)
    }

    fn and(mut self, part: Part, test: Test, text: &str) -> Self {
        self.tests.push((part, test, text.to_owned()));
        self
    }

    pub(crate) fn include(&self, request: &Seen) -> bool {
        let method = self.method.as_ref();
        let passes = |(part, test, text): &(Part, Test, String)| {
            let part = match part {
                Part::Path => &request.path,
                Part::Query => request.query.as_deref().unwrap_or_default(),
            };
            match test {
                Test::Is => part == text,
                Test::Starts => part.starts_with(text),
                Test::Contains => part.contains(text),
                Test::Ends => part.ends_with(text),
            }
        };
        method.is_none_or(|method| *method == request.method) && self.tests.iter().all(passes)
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// In capitals.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// What comes after the question mark.
    pub query: Option<String>,
}

impl Seen {
    pub(crate) fn new<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().as_str().to_owned(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().map(str::to_owned),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

/// A fault, and the requests that it befalls.
#[derive(Debug, Clone)]
pub struct Rule {
    pub(crate) requests: Requests,
    pub(crate) fault: Fault,
    pub(crate) skip: u32,
    pub(crate) times: Option<u32>,
}

impl Rule {
    /// This fault for each of these requests.
    #[must_use]
    pub fn new(requests: Requests, fault: Fault) -> Self {
        Self {
            requests,
            fault,
            skip: 0,
            times: None,
        }
    }

    /// Spares the first `skip` of the requests.
    #[must_use]
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// Is over after so many faults.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// What goes wrong with a request.
///
/// What is said of a reply's body is also true of what an engine sends after it has switched
/// protocols. A reply without a body is not touched.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: the request is only counted.
    Nothing,
    /// The request is passed on after this time, even if the client does not wait so long.
    Delay(Duration),
    /// The request is passed on when the rule's guard is dropped.
    Hold,
    /// The connection is closed without a reply, and the engine hears nothing of the request. For
    /// an engine that cannot even be connected to see [`FaultProxy::away`](crate::FaultProxy::away).
    Refuse,
    /// The request is read to its end and answered here; the engine hears nothing of it.
    Answer(Answer),
    /// The engine gets another request body.
    Rewrite(Rewrite),
    /// The engine does what is asked, and the connection is closed instead of its reply. The
    /// reply is read to its end first, because some work lasts as long as its reply.
    LoseReply,
    /// The connection is closed after so many bytes of the reply's body; a shorter body comes to
    /// its end. With 0 only the head arrives.
    CutReplyAfter(u64),
    /// The reply's body ends after so many bytes as if it were complete, as when a watch expires.
    EndReplyAfter(u64),
    /// The reply's body ends, as if it were complete, when the rule's guard is dropped.
    EndReplyAtRelease,
    /// The reply's body comes in pieces of at most so many bytes, each one HTTP chunk and written
    /// by itself. The sizes are taken in turn, again and again; 0 is taken for 1.
    Split(Vec<usize>),
}

impl Fault {
    /// [`Fault::Rewrite`] by this function, which is called in the proxy's thread: it must not
    /// wait, nor call the proxy.
    ///
    /// A body that is not JSON, or has more than 16 MiB, is answered with 502 and not passed on: a
    /// fault that could not be made must not look like one that does no harm.
    #[must_use]
    pub fn rewrite(function: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Rewrite(Rewrite(Arc::new(function)))
    }
}

/// How a request's JSON is changed; made by [`Fault::rewrite`].
#[derive(Clone)]
pub struct Rewrite(Arc<dyn Fn(&mut Value) + Send + Sync>);

impl Rewrite {
    pub(crate) fn apply(&self, body: &mut Value) {
        (self.0)(body);
    }
}

impl fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rewrite")
    }
}

/// A reply that is not the engine's.
#[derive(Debug, Clone)]
pub struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// An empty one.
    ///
    /// # Panics
    /// If the status is not from 200 to 999.
    #[must_use]
    pub fn new(status: u16) -> Self {
        assert!(status >= 200, "{status} ends no request");
        Self {
            status: StatusCode::from_u16(status).expect("a status has three digits"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// With one more header, as `Retry-After`.
    ///
    /// # Panics
    /// If it cannot be one.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header's name");
        let value = HeaderValue::try_from(value).expect("a header's value");
        self.headers.append(name, value);
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With this body, and its `Content-Type`.
    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        let json = HeaderValue::from_static("application/json");
        self.headers.insert(CONTENT_TYPE, json);
        self.body(body.to_string())
    }
}
