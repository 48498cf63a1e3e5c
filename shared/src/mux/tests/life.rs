//! How connections and streams end.

use super::*;

/// Counts when it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn reached(counter: &AtomicUsize, count: usize) {
    soon(async {
        while counter.load(Ordering::Relaxed) < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Never answers; counts the calls that began, and those that were dropped.
fn never() -> (Arc<Scripted>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (begun, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, ended) = (Arc::clone(&begun), Arc::clone(&dropped));
    let service = scripted(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        let dropped = Dropped(Arc::clone(&ended));
        async move {
            std::future::pending::<()>().await;
            drop(dropped);
            unreachable!("nothing ends the wait")
        }
    });
    (service, begun, dropped)
}

#[tokio::test]
async fn giving_a_request_up_drops_its_call_and_frees_its_place() {
    let (service, begun, dropped) = never();
    let pair = pair(service, 64 << 10);
    for round in 1..=3 {
        let calls: Vec<_> = (0..STREAMS_MAX).map(|_| start(&pair.client, Body::Empty)).collect();
        reached(&begun, round * STREAMS_MAX).await;
        drop(calls);
        reached(&dropped, round * STREAMS_MAX).await;
    }
    assert!(pair.client.is_open());
}

#[tokio::test]
async fn giving_an_answer_up_stops_its_source() {
    let stopped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&stopped);
    let pair = pair(
        scripted(move |_| {
            let ended = Dropped(Arc::clone(&counted));
            async move {
                let (sender, body) = fed(None);
                tokio::spawn(async move {
                    while sender.send(Ok(Bytes::from_static(b"more"))).await.is_ok() {}
                    drop(ended);
                });
                ok(body)
            }
        }),
        64 << 10,
    );
    let mut exchange = start(&pair.client, Body::Empty);
    soon(exchange.answer(&HeadLimits::default())).await.expect("a head");
    drop(exchange);
    reached(&stopped, 1).await;
}

#[tokio::test]
async fn a_source_that_waits_is_dropped_when_the_reader_goes() {
    let (sender, body) = fed(None);
    let bodies = std::sync::Mutex::new(Some(body));
    let pair = pair(
        scripted(move |_| {
            let body = bodies.lock().expect("not poisoned").take().expect("one call");
            async move { ok(body) }
        }),
        64 << 10,
    );
    let mut exchange = start(&pair.client, Body::Empty);
    soon(exchange.answer(&HeadLimits::default())).await.expect("a head");
    drop(exchange);
    soon(sender.closed()).await;
}

#[tokio::test]
async fn a_server_that_drains_answers_what_it_took_and_nothing_else_is_lost() {
    let gate = Arc::new(Semaphore::new(0));
    let (opened, begun) = (Arc::clone(&gate), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&begun);
    let pair = pair(
        scripted(move |request| {
            let gate = Arc::clone(&opened);
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                gate.acquire().await.expect("open").forget();
                ok(request.body)
            }
        }),
        64 << 10,
    );
    let taken: Vec<_> =
        (0..10).map(|_| start(&pair.client, Body::from(Bytes::from_static(b"kept")))).collect();
    reached(&begun, 10).await;
    pair.stop.cancel();
    // These cross the server's word on their way.
    let late: Vec<_> = (0..10).map(|_| start(&pair.client, Body::Empty)).collect();
    for mut exchange in late {
        let refused = soon(exchange.answer(&HeadLimits::default())).await.expect_err("is draining");
        assert!(matches!(refused, StartError::NotTaken(Closed::Draining)), "{refused:?}");
    }
    assert!(!pair.client.is_open());
    gate.add_permits(10);
    for exchange in taken {
        assert_eq!(soon(collect(exchange)).await.expect("answers"), b"kept");
    }
    assert_eq!(soon(pair.server).await.expect("ends"), Closed::Unused);
    soon(pair.driver).await.expect("ends");
    assert_eq!(begun.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn a_connection_that_breaks_loses_what_was_given_and_returns_what_was_not() {
    let (service, begun, dropped) = never();
    let pair = pair(service, 64 << 10);
    let mut given = start(&pair.client, Body::Empty);
    reached(&begun, 1).await;
    pair.server.abort();
    let lost = soon(given.answer(&HeadLimits::default())).await.expect_err("is lost");
    assert!(matches!(lost, StartError::Failed(ExchangeError::Connection(_))), "{lost:?}");
    reached(&dropped, 1).await;
    assert!(!pair.client.is_open());
    soon(pair.driver).await.expect("ends");
}

#[tokio::test]
async fn a_request_that_was_not_written_was_not_taken() {
    let (client, driver) = Client::new();
    let mut waiting = start(&client, Body::Empty);
    let error = io::Error::from(io::ErrorKind::ConnectionRefused);
    let how = driver.run(std::future::ready(Err::<tokio::io::DuplexStream, _>(error)), NEVER_IDLE).await;
    assert!(matches!(how, Closed::Unconnected(_)), "{how:?}");
    let refused = soon(waiting.answer(&HeadLimits::default())).await.expect_err("nobody took it");
    assert!(matches!(refused, StartError::NotTaken(Closed::Unconnected(_))), "{refused:?}");
    // A driver that is dropped with its runtime leaves nobody waiting.
    let (client, driver) = Client::new();
    let mut waiting = start(&client, Body::Empty);
    drop(driver.run(std::future::pending::<io::Result<tokio::io::DuplexStream>>(), NEVER_IDLE));
    let answered =
        tokio::time::timeout(Duration::from_millis(1), waiting.answer(&HeadLimits::default())).await;
    assert!(answered.is_err() || matches!(answered, Ok(Err(StartError::NotTaken(_)))), "{answered:?}");
}

#[tokio::test]
async fn a_client_that_is_dropped_lets_its_requests_end() {
    let pair = pair(echo(), 64 << 10);
    let running = start(&pair.client, Body::from(Bytes::from_static(b"last")));
    drop(pair.client);
    assert_eq!(soon(collect(running)).await.expect("answers"), b"last");
    assert_eq!(soon(pair.driver).await.expect("ends"), Closed::Unused);
    soon(pair.server).await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_closed_after_its_time() {
    let (near, far) = duplex(64 << 10);
    let (client, driver) = Client::new();
    let driver = tokio::spawn(driver.run(std::future::ready(Ok(near)), Duration::from_secs(30)));
    let limits = ConnectionLimits::default();
    let server = tokio::spawn(async move { serve(far, echo(), &limits, &CancellationToken::new()).await });
    let begun = tokio::time::Instant::now();
    assert_eq!(collect(start(&client, Body::Empty)).await.expect("answers"), b"");
    assert_eq!(driver.await.expect("ends"), Closed::Unused);
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert!(!client.is_open());
    assert_eq!(server.await.expect("ends"), Closed::ByPeer);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (near, _far) = duplex(16);
    let (client, driver) = Client::new();
    let driver = tokio::spawn(driver.run(std::future::ready(Ok(near)), NEVER_IDLE));
    let mut given = start(&client, Body::Empty);
    let lost = given.answer(&HeadLimits::default()).await.expect_err("is lost");
    assert!(matches!(lost, StartError::Failed(_)), "{lost:?}");
    assert_eq!(driver.await.expect("ends"), Closed::Stalled);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_reader_does_not_take_is_cut_after_its_time() {
    let pair = pair(scripted(|_| async { ok(Body::from(Bytes::from(vec![1; 2 << 20]))) }), 64 << 10);
    let mut unread = start(&pair.client, Body::Empty);
    unread.answer(&HeadLimits::default()).await.expect("a head");
    tokio::time::sleep(ConnectionLimits::default().write_timeout + Duration::from_secs(1)).await;
    let mut bytes = 0;
    let end = loop {
        match poll_fn(|context| unread.poll_chunk(context)).await {
            Some(Ok(piece)) => bytes += piece.len(),
            end => break end,
        }
    };
    assert!(matches!(end, Some(Err(ExchangeError::Connection(_)))), "{end:?} after {bytes}");
    assert!(bytes <= CREDIT_BYTES as usize);
    assert!(pair.client.is_open());
}

#[tokio::test]
async fn a_connection_may_be_encrypted() {
    use std::sync::Arc;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

    let made = rcgen::generate_simple_self_signed(["agent".to_owned()]).expect("a certificate");
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (near, far) = duplex(64 << 10);
    let name = "agent".try_into().expect("a name");
    let (near, far) = tokio::join!(
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, near),
        tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(far),
    );
    let pair = pair_over(
        echo(),
        tokio_rustls::TlsStream::Client(near.expect("connects")),
        tokio_rustls::TlsStream::Server(far.expect("accepts")),
    );
    for size in [0, 100, 20_000, 1_000_000] {
        let body = Body::from(Bytes::from(vec![9; size]));
        assert!(soon(collect(start(&pair.client, body))).await.expect("answers") == vec![9; size]);
    }
}
