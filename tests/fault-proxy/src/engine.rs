//! A connection to the engine, on behalf of one client's connection.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, watch};

use crate::address::Address;
use crate::body::RequestBody;
use crate::tasks::Tasks;
use crate::wire::{Line, Socket, Wire};

pub(crate) struct Engine {
    sender: SendRequest<RequestBody>,
    line: Arc<Line>,
    sending: watch::Sender<bool>,
    /// Its end is nothing that the client has to know.
    discreet: Arc<AtomicBool>,
}

/// The client on whose behalf it is.
pub(crate) struct Behalf {
    pub(crate) client: Arc<Line>,
    /// Is told when the engine ends the connection.
    pub(crate) lost: Arc<Notify>,
}

impl Engine {
    /// # Errors
    /// The engine is not there.
    pub(crate) async fn connect(
        address: &Address,
        behalf: Behalf,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let line = Line::new(Socket::connect(address).await?);
        let (sender, http) = Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(Wire(line.clone())))
            .await
            .map_err(io::Error::other)?;
        let engine = Self {
            sender,
            line: line.clone(),
            sending: watch::Sender::new(true),
            discreet: Arc::default(),
        };
        let (discreet, mut sending) = (engine.discreet.clone(), engine.sending.subscribe());
        tasks.spawn(async move {
            let mut http = pin!(http.with_upgrades());
            // A client that says no more, or is gone: the engine has to know, and decides.
            let client_ended = async {
                behalf.client.peer_closed().await;
                let _ = sending.wait_for(|sending| !sending).await;
            };
            tokio::select! {
                biased;
                _ = &mut http => {}
                () = client_ended => {
                    line.half_close_once_flushed();
                    let _ = http.await;
                }
            }
            if !discreet.load(Ordering::Acquire) {
                behalf.lost.notify_one();
            }
        });
        Ok(engine)
    }

    /// Whether it takes another request, now or when the last one is over.
    pub(crate) async fn is_usable(&mut self) -> bool {
        !self.line.is_half_closed() && self.sender.ready().await.is_ok()
    }

    /// From now on its end is not the client's business.
    pub(crate) fn be_discreet(&self, discreet: bool) {
        self.discreet.store(discreet, Ordering::Release);
    }

    /// What a request's body has to tell the progress to.
    pub(crate) fn sending(&self) -> watch::Sender<bool> {
        self.sending.clone()
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }
}
