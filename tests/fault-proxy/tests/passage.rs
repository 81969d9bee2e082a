//! What a proxy must not change: streams, sizes, switched protocols, ends of connections.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::upgrade;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use v6_fault_proxy::{Fault, Requests, Rule};

use common::{
    AnyBody, Bench, BoxStream, KINDS, Kind, all, data, next, piped, reply, request, text, whole,
};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_reply_arrives_while_it_is_made() {
    for kind in KINDS {
        let seen = Arc::<Notify>::default();
        let acknowledged = seen.clone();
        let bench = Bench::new(kind, move |_| {
            let acknowledged = acknowledged.clone();
            async move {
                let (sender, body) = piped();
                tokio::spawn(async move {
                    for _ in 0..50 {
                        sender.send(data("{}\n")).await.expect("somebody reads");
                        acknowledged.notified().await;
                    }
                });
                reply(body)
            }
        })
        .await;
        let mut client = bench.client().await;
        let mut body = client.get("/events").await.expect("a reply").into_body();
        for _ in 0..50 {
            assert_eq!(
                next(&mut body).await.expect("a piece").expect("no error"),
                "{}\n"
            );
            seen.notify_one();
        }
        assert!(next(&mut body).await.is_none());
    }
}

#[tokio::test]
async fn a_request_arrives_while_it_is_made() {
    for kind in KINDS {
        let (acknowledge, mut acknowledged) = mpsc::channel(1);
        let bench = Bench::new(kind, move |request| {
            let acknowledge = acknowledge.clone();
            async move {
                let mut body = request.into_body();
                while let Some(piece) = next(&mut body).await {
                    let piece = piece.expect("no error");
                    acknowledge.send(piece).await.expect("the test");
                }
                reply(whole("all"))
            }
        })
        .await;
        let mut client = bench.client().await;
        let (sender, body) = piped();
        let upload = async move {
            for _ in 0..50 {
                sender.send(data("piece")).await.expect("somebody reads");
                assert_eq!(acknowledged.recv().await.expect("a piece"), "piece");
            }
        };
        let (reply, ()) = tokio::join!(client.send(request("PUT", "/archive", body)), upload);
        assert_eq!(text(reply.expect("a reply")).await, "all");
    }
}

/// A body of so many MiB, whose progress can be seen.
fn large(mib: usize, sent: Arc<AtomicUsize>) -> AnyBody {
    let (sender, body) = piped();
    tokio::spawn(async move {
        let piece = Bytes::from(vec![b'x'; MIB / 16]);
        for _ in 0..mib * 16 {
            if sender.send(Frame::data(piece.clone())).await.is_err() {
                return;
            }
            sent.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    body
}

/// Reads a body to its end; returns its size, and how far the writer was ahead at most.
async fn read_slowly(mut body: hyper::body::Incoming, sent: &AtomicUsize) -> (usize, usize) {
    let (mut read, mut ahead) = (0, 0);
    while let Some(piece) = next(&mut body).await {
        read += piece.expect("no error").len();
        // Whoever could write more has every chance to.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        ahead = ahead.max(sent.load(Ordering::SeqCst).saturating_sub(read));
    }
    (read, ahead)
}

/// More than all unix sockets, and all buffers of hyper, of both connections. Those of TCP grow
/// as the kernel likes, to some 10 MiB each.
fn check_bound(kind: Kind, ahead: usize) {
    if let Kind::Unix = kind {
        assert!(ahead < 4 * MIB, "{ahead} bytes are somewhere");
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_writer_down() {
    for kind in KINDS {
        let sent = Arc::<AtomicUsize>::default();
        let made = sent.clone();
        let bench = Bench::new(kind, move |_| {
            let made = made.clone();
            async move { reply(large(64, made)) }
        })
        .await;
        let mut client = bench.client().await;
        let body = client.get("/archive").await.expect("a reply").into_body();
        let (read, ahead) = read_slowly(body, &sent).await;
        assert_eq!(read, 64 * MIB);
        check_bound(kind, ahead);
    }
}

#[tokio::test]
async fn a_slow_engine_slows_the_client_down() {
    for kind in KINDS {
        let sent = Arc::<AtomicUsize>::default();
        let made = sent.clone();
        let bench = Bench::new(kind, move |request| {
            let made = made.clone();
            async move {
                let (read, ahead) = read_slowly(request.into_body(), &made).await;
                reply(whole(format!("{read} {ahead}")))
            }
        })
        .await;
        let mut client = bench.client().await;
        let reply = client
            .send(request("PUT", "/archive", large(64, sent)))
            .await;
        let reply = text(reply.expect("a reply")).await;
        let (read, ahead) = reply.split_once(' ').expect("two numbers");
        assert_eq!(read, (64 * MIB).to_string());
        check_bound(kind, ahead.parse().expect("a number"));
    }
}

#[tokio::test]
async fn heads_and_trailers_are_kept() {
    for kind in KINDS {
        let bench = Bench::new(kind, |request| async move {
            assert_eq!(
                request.method(),
                Method::from_bytes(b"ODD").expect("a method")
            );
            assert_eq!(request.headers()["x-asked"], "a");
            let (sender, body) = piped();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("well"));
            tokio::spawn(async move {
                let _ = sender.send(data("body")).await;
                let _ = sender.send(Frame::trailers(trailers)).await;
            });
            let mut response = Response::builder().status(207);
            for value in ["1", "2"] {
                response = response.header("X-Twice", value);
            }
            response
                .header("Trailer", "x-end")
                .body(body)
                .expect("a response")
        })
        .await;
        // Trailers are not lost by a split either.
        let split = Rule::new(
            Requests::any().query_contains("split"),
            Fault::Split(vec![1]),
        );
        let _split = bench.proxy.add(split);
        let mut client = bench.client().await;
        for target in ["/", "/?split"] {
            let mut odd = request("ODD", target, whole(""));
            let headers = odd.headers_mut();
            headers.insert("X-Asked", HeaderValue::from_static("a"));
            headers.insert("TE", HeaderValue::from_static("trailers"));
            let reply = client.send(odd).await.expect("a reply");
            assert_eq!(reply.status(), 207);
            assert_eq!(reply.headers().get_all("x-twice").iter().count(), 2);
            let body = reply.into_body().collect().await.expect("a body");
            assert_eq!(body.trailers().expect("trailers")["x-end"], "well");
            assert_eq!(body.to_bytes(), "body");
        }
    }
}

#[tokio::test]
async fn a_head_alone_keeps_its_length() {
    let bench = Bench::new(Kind::Unix, |_| async { reply(whole("twelve bytes")) }).await;
    let _split = bench
        .proxy
        .add(Rule::new(Requests::any(), Fault::Split(vec![1])));
    let mut client = bench.client().await;
    for _ in 0..2 {
        let reply = client
            .send(request("HEAD", "/", whole("")))
            .await
            .expect("a reply");
        assert_eq!(reply.headers()["content-length"], "12");
        assert_eq!(text(reply).await, "");
    }
}

#[tokio::test]
async fn who_waits_for_100_continue_gets_it() {
    for kind in KINDS {
        let bench = Bench::new(kind, |request| async move {
            let body = request.into_body().collect().await.expect("a body");
            reply(whole(body.to_bytes()))
        })
        .await;
        let mut stream = bench.stream().await;
        let head =
            "PUT /x HTTP/1.1\r\nHost: e\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
        stream
            .write_all(head.as_bytes())
            .await
            .expect("a connection");
        let go_on = until(&mut stream, "\r\n\r\n").await;
        assert!(go_on.starts_with("HTTP/1.1 100 "), "{go_on}");
        stream.write_all(b"body").await.expect("a connection");
        let reply = until(&mut stream, "body").await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    }
}

/// Reads until the text ends so.
async fn until(stream: &mut BoxStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(stream.read_u8().await.expect("more"));
    }
    String::from_utf8(text).expect("text")
}

/// An engine whose connections become something else: a greeting, and then an echo until the
/// client's half is closed, and a farewell.
async fn switching(kind: Kind) -> Bench {
    Bench::new(kind, |mut request| async move {
        if request.uri().path() != "/attach" {
            return Response::builder()
                .status(404)
                .body(whole("no"))
                .expect("a response");
        }
        let switched = upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(switched.await.expect("a switch"));
            stream.write_all(b"hello\n").await?;
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::io::copy(&mut read, &mut write).await?;
            write.write_all(b"bye\n").await?;
            write.shutdown().await
        });
        let response = Response::builder().status(101);
        let response = response
            .header("Connection", "Upgrade")
            .header("Upgrade", "tcp");
        response.body(whole("")).expect("a response")
    })
    .await
}

fn attach(target: &str) -> hyper::Request<AnyBody> {
    let mut attach = request("POST", target, whole(""));
    let headers = attach.headers_mut();
    headers.insert("Connection", HeaderValue::from_static("Upgrade"));
    headers.insert("Upgrade", HeaderValue::from_static("tcp"));
    attach
}

#[tokio::test]
async fn a_switched_connection_is_a_pair_of_pipes() {
    for kind in KINDS {
        let bench = switching(kind).await;
        let mut client = bench.client().await;
        let reply = client.send(attach("/elsewhere")).await.expect("a reply");
        assert_eq!(reply.status(), 404);
        assert_eq!(text(reply).await, "no");

        let reply = client.send(attach("/attach")).await.expect("a reply");
        assert_eq!(reply.status(), 101);
        assert_eq!(reply.headers()["upgrade"], "tcp");
        let mut stream = TokioIo::new(upgrade::on(reply).await.expect("a switch"));
        let mut greeting = [0; 6];
        stream.read_exact(&mut greeting).await.expect("a greeting");
        assert_eq!(&greeting, b"hello\n");
        let (mut read, mut write) = tokio::io::split(stream);
        let sent = vec![0xa5; 3 * MIB];
        let writing = async {
            write.write_all(&sent).await.expect("a connection");
            write.shutdown().await.expect("a connection");
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
        read.expect("a good end");
        assert!(got.strip_suffix(b"bye\n").expect("a farewell") == sent);
        assert_eq!(bench.proxy.requests(), 2);
    }
}

#[tokio::test]
async fn faults_of_a_body_are_faults_of_a_switched_connection() {
    for kind in KINDS {
        let bench = switching(kind).await;
        let open = async |fault| {
            let guard = bench.proxy.add(Rule::new(Requests::any(), fault));
            let mut client = bench.client().await;
            let reply = client.send(attach("/attach")).await?;
            let stream = TokioIo::new(upgrade::on(reply).await?);
            Ok::<_, hyper::Error>((guard, stream))
        };

        let (guard, mut stream) = open(Fault::Split(vec![1, 2])).await.expect("a switch");
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < 6 {
            sizes.push(stream.read(&mut [0; 6]).await.expect("bytes"));
        }
        // The kernel can have joined some of them.
        assert!(sizes[0] <= 6, "{sizes:?}");
        drop(guard);

        let (guard, mut stream) = open(Fault::EndReplyAfter(2)).await.expect("a switch");
        let mut got = String::new();
        stream.read_to_string(&mut got).await.expect("a good end");
        assert_eq!(got, "he");
        drop(guard);

        let (guard, mut stream) = open(Fault::CutReplyAfter(3)).await.expect("a switch");
        let mut got = String::new();
        let _ = stream.read_to_string(&mut got).await;
        assert_eq!(got, "hel");
        // Not half of it: nothing can be sent either.
        while stream.write_all(b"x").await.is_ok() {}
        drop(guard);

        let (guard, mut stream) = open(Fault::EndReplyAtRelease).await.expect("a switch");
        stream.read_exact(&mut [0; 6]).await.expect("a greeting");
        drop(guard);
        let mut got = String::new();
        stream.read_to_string(&mut got).await.expect("a good end");
        assert_eq!(got, "");

        open(Fault::LoseReply)
            .await
            .map(drop)
            .expect_err("no reply");
    }
}

#[tokio::test]
async fn a_client_that_says_no_more_is_answered() {
    for kind in KINDS {
        let bench = Bench::raw(kind, |mut stream| async move {
            let mut request = Vec::new();
            // To the client's end, which has to come through.
            stream.read_to_end(&mut request).await.expect("a request");
            assert!(request.ends_with(b"\r\n\r\nbody"));
            let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
            stream.write_all(reply).await.expect("a client");
        })
        .await;
        let mut stream = bench.stream().await;
        let asked = b"POST / HTTP/1.1\r\nHost: e\r\nContent-Length: 4\r\n\r\nbody";
        stream.write_all(asked).await.expect("a connection");
        stream.shutdown().await.expect("a connection");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("a reply");
        assert!(reply.ends_with("\r\n\r\ndone"), "{reply}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_missed_by_the_engine() {
    for kind in KINDS {
        let (asked, mut streams) = mpsc::channel(1);
        let bench = Bench::new(kind, move |_| {
            let asked = asked.clone();
            async move {
                let (sender, body) = piped();
                asked.send(sender).await.expect("the test");
                reply(body)
            }
        })
        .await;
        let mut client = bench.client().await;
        let reply = client.get("/events").await.expect("a reply");
        let stream = streams.recv().await.expect("a request");
        drop((client, reply));
        // Without a byte being sent.
        stream.closed().await;
    }
}

#[tokio::test]
async fn an_engine_that_ends_an_idle_connection_ends_the_clients() {
    for kind in KINDS {
        let idle = Arc::<Notify>::default();
        let end = idle.clone();
        let bench = Bench::raw(kind, move |mut stream| {
            let end = end.clone();
            async move {
                until(&mut stream, "\r\n\r\n").await;
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
                stream.write_all(reply).await.expect("a client");
                end.notified().await;
            }
        })
        .await;
        let mut client = bench.client().await;
        assert_eq!(text(client.get("/").await.expect("a reply")).await, "done");
        idle.notify_one();
        client.closed().await;
    }
}

#[tokio::test]
async fn a_reply_can_end_with_its_connection_or_break_with_it() {
    for kind in KINDS {
        let bench = Bench::raw(kind, |mut stream| async move {
            let head = until(&mut stream, "\r\n\r\n").await;
            let length = if head.starts_with("GET /short") {
                "Content-Length: 9\r\n"
            } else {
                ""
            };
            let reply = format!("HTTP/1.1 200 OK\r\n{length}\r\nall");
            stream.write_all(reply.as_bytes()).await.expect("a client");
        })
        .await;
        for (target, good) in [("/until-the-end", true), ("/short", false)] {
            let mut client = bench.client().await;
            let reply = client.get(target).await.expect("a reply");
            assert_eq!(all(reply.into_body()).await, (b"all".to_vec(), good));
            client.closed().await;
        }
    }
}
