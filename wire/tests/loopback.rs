//! Nodes on loopback TCP: who may talk, who may not, and what a link does.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bytes::Bytes;
use model::{GenId, LfcId, Timestamp, WriteSeq};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use wire::{
    Accepted, ConnError, Connection, ConnectionOptions, Dialer, Expect, Fingerprint, Frame, Hello, Identity,
    Incoming, Message, NodeCard, NodeClient, Outgoing, PairingCode, PairingDesk, PairingError, Pins, Purpose,
    Request, Response, Tls, TlsError, pairing, serve_requests,
};

struct Node {
    tls: Tls,
    pins: Arc<Pins>,
    key: Fingerprint,
}

fn node() -> Node {
    let identity = Arc::new(Identity::ephemeral().unwrap());
    let (key, pins) = (identity.fingerprint(), Pins::new([]));
    Node {
        tls: Tls::new(identity, Arc::clone(&pins)).unwrap(),
        pins,
        key,
    }
}

/// A client and a server that know each other.
fn friends() -> (Node, Node) {
    let (a, b) = (node(), node());
    a.pins.add(b.key);
    b.pins.add(a.key);
    (a, b)
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

async fn accept(listener: &TcpListener, node: &Node) -> Result<Accepted<TcpStream>, TlsError> {
    node.tls.accept(listener.accept().await.unwrap().0).await
}

type Ends = (Incoming<TcpStream>, Outgoing);

async fn connected(options: ConnectionOptions) -> (Ends, Ends) {
    let (a, b) = friends();
    let (listener, at) = listen().await;
    let dialer = Dialer::new(vec![at.to_string()]);
    let (dialed, accepted) = tokio::join!(dialer.once(&a.tls, Expect::Key(b.key)), accept(&listener, &b));
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
    assert_eq!(
        (dialed.peer, accepted.peer, accepted.purpose),
        (b.key, a.key, Purpose::Peer)
    );
    let client = Connection::new(dialed.stream, dialed.peer, options.clone());
    let server = Connection::new(accepted.stream, accepted.peer, options);
    (client.split(), server.split())
}

fn frame(n: u64, bytes: impl Into<Bytes>) -> Message {
    Message::Frame(Frame {
        generation: GenId(1),
        lfc: LfcId::FIRST,
        after: WriteSeq(n - 1),
        first: WriteSeq(n),
        last: WriteSeq(n),
        durable: WriteSeq(n),
        digest: [0; 32],
        bytes: bytes.into(),
    })
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes
}

#[tokio::test]
async fn pinned_peers_talk() {
    let ((mut ain, aout), (mut bin, bout)) = connected(ConnectionOptions::default()).await;
    let hello = Message::Hello(Hello::node("prod1"));
    aout.send(hello.clone()).await.unwrap();
    assert_eq!(bin.next().await.unwrap(), Some(hello));
    bout.send(Message::Durable { seq: WriteSeq(7) }).await.unwrap();
    assert_eq!(
        ain.next().await.unwrap(),
        Some(Message::Durable { seq: WriteSeq(7) })
    );
    let ((), bye) = tokio::join!(aout.shutdown("done"), bin.next());
    assert_eq!(bye.unwrap(), Some(Message::Bye { text: "done".into() }));
    assert_eq!(bin.next().await.unwrap(), None);
    assert!(matches!(
        aout.send(Message::Durable { seq: WriteSeq(8) }).await,
        Err(ConnError::Closed)
    ));
}

/// Whether anything of the server's reaches the client. In TLS 1.3 the client's handshake ends first: it hears of the
/// refusal when it reads.
async fn client_is_heard(client: &Node, server: &Node, expect: Expect) -> (bool, Result<Purpose, TlsError>) {
    let (listener, at) = listen().await;
    let connect = async {
        let tcp = TcpStream::connect(at).await.unwrap();
        match client.tls.connect(tcp, expect).await {
            Ok((mut stream, _)) => stream.read(&mut [0; 1]).await.is_ok_and(|n| n == 1),
            Err(_) => false,
        }
    };
    let serve = async {
        let mut accepted = accept(&listener, server).await?;
        // The client may be gone already.
        let _ = accepted.stream.write_all(b"x").await;
        let _ = accepted.stream.shutdown().await;
        Ok(accepted.purpose)
    };
    tokio::join!(connect, serve)
}

#[tokio::test]
async fn an_unpinned_client_is_refused() {
    let (a, b) = friends();
    b.pins.remove(&a.key);
    let (heard, served) = client_is_heard(&a, &b, Expect::Key(b.key)).await;
    assert!(!heard);
    assert!(matches!(served, Err(TlsError::Handshake(_))));
    b.pins.add(a.key);
    assert!(
        client_is_heard(&a, &b, Expect::Key(b.key)).await.0,
        "and only for want of the pin"
    );
}

#[tokio::test]
async fn another_server_is_refused_even_when_it_is_pinned() {
    let ((a, b), c) = (friends(), node());
    a.pins.add(c.key);
    let (heard, served) = client_is_heard(&a, &b, Expect::Key(c.key)).await;
    assert!(!heard && served.is_err());
}

#[tokio::test]
async fn a_stranger_may_only_pair_while_a_pairing_is_open() {
    let (a, b) = (node(), node());
    let desk = PairingDesk::new(Arc::clone(&b.pins));
    for open in [false, true, false] {
        if open {
            desk.open(Timestamp::now(), &b.key, "rec1:7400").unwrap();
        } else {
            desk.close();
        }
        let (heard, served) = client_is_heard(&a, &b, Expect::Key(b.key)).await;
        assert!(!heard);
        match served {
            // It got through the handshake and no further.
            Err(TlsError::NotPinned(key)) => assert!(open && key == a.key),
            Err(TlsError::Handshake(_)) => assert!(!open),
            other => panic!("{other:?}"),
        }
        let (heard, served) = client_is_heard(&a, &b, Expect::Prefix(b.key.prefix())).await;
        assert_eq!(heard, open);
        assert_eq!(served.is_ok_and(|p| p == Purpose::Pairing), open);
    }
}

/// A greeting of TLS 1.2 as any client of that time sends it: no supported_versions extension.
fn tls12_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let extensions = [
        vec![0, 10, 0, 4, 0, 2, 0, 29],
        vec![0, 11, 0, 2, 1, 0],
        vec![0, 13, 0, 6, 0, 4, 4, 3, 8, 7],
    ]
    .concat();
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&extensions);
    let len = u16::try_from(body.len()).unwrap();
    let mut out = vec![22, 3, 1];
    out.extend_from_slice(&(len + 4).to_be_bytes());
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&body);
    out
}

async fn answer_to(bytes: &[u8]) -> (Vec<u8>, TlsError) {
    let (_, b) = friends();
    let (listener, at) = listen().await;
    let say = async {
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // The server may reset; what it said before counts.
        let _ = tcp.read_to_end(&mut answer).await;
        answer
    };
    let (answer, served) = tokio::join!(say, accept(&listener, &b));
    (answer, served.unwrap_err())
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (answer, e) = answer_to(&tls12_hello()).await;
    // A fatal alert: protocol_version.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "{e}");
}

#[tokio::test]
async fn plain_text_is_refused() {
    for bytes in [&b"GET / HTTP/1.1\r\nHost: rec1\r\n\r\n"[..], &[0; 64]] {
        let (answer, e) = answer_to(bytes).await;
        assert!(answer.len() <= 7, "nothing but an alert");
        assert!(
            matches!(&e, TlsError::Handshake(e) if e.kind() == io::ErrorKind::InvalidData),
            "{e}"
        );
    }
}

fn card(name: &str) -> NodeCard {
    NodeCard {
        name: name.into(),
        endpoints: vec![format!("{name}:7400")],
    }
}

async fn pair(
    a: &Node,
    b: &Node,
    desk: &PairingDesk,
    code: &PairingCode,
) -> [Result<(Fingerprint, NodeCard), PairingError>; 2] {
    let (listener, at) = listen().await;
    let join = async {
        let tcp = TcpStream::connect(at).await.unwrap();
        pairing::join(&a.tls, code, tcp, card("prod1")).await
    };
    let serve = async {
        let joining = desk
            .receive(Timestamp::now(), accept(&listener, b).await?)
            .await?;
        let peer = (joining.fingerprint(), joining.card().clone());
        b.pins.add(peer.0);
        joining.accept(card("rec1")).await?;
        Ok(peer)
    };
    let (a, b) = tokio::join!(join, serve);
    [a, b]
}

#[tokio::test]
async fn pairing_introduces_two_nodes_once() {
    let (a, b) = (node(), node());
    let desk = PairingDesk::new(Arc::clone(&b.pins));
    let code = desk.open(Timestamp::now(), &b.key, "rec1:7400").unwrap();
    let code: PairingCode = code.to_string().parse().unwrap();
    let [joined, served] = pair(&a, &b, &desk, &code).await;
    assert_eq!(joined.unwrap(), (b.key, card("rec1")));
    assert_eq!(served.unwrap(), (a.key, card("prod1")));
    a.pins.add(b.key);
    assert!(
        client_is_heard(&a, &b, Expect::Key(b.key)).await.0,
        "they talk now"
    );

    // The same string again, from a stranger and from the node that is known by now.
    let [joined, served] = pair(&node(), &b, &desk, &code).await;
    assert!(joined.is_err() && matches!(served, Err(PairingError::Tls(_))));
    let [joined, served] = pair(&a, &b, &desk, &code).await;
    assert!(matches!(joined, Err(PairingError::Refused(_))), "{joined:?}");
    assert!(matches!(served, Err(PairingError::Closed)));
}

#[tokio::test]
async fn pairing_needs_the_right_secret_and_the_right_server() {
    let (a, b, c) = (node(), node(), node());
    let desk = PairingDesk::new(Arc::clone(&b.pins));
    let stale = desk.open(Timestamp::now(), &b.key, "rec1:7400").unwrap();
    let code = desk.open(Timestamp::now(), &b.key, "rec1:7400").unwrap();
    for left in (0..5).rev() {
        let [joined, served] = pair(&a, &b, &desk, &stale).await;
        assert!(
            matches!(&joined, Err(PairingError::Refused(t)) if t.contains(&format!("{left} attempts"))),
            "{joined:?}"
        );
        assert!(matches!(served, Err(PairingError::Secret { left: l }) if l == left));
    }
    let [joined, served] = pair(&a, &b, &desk, &code).await;
    assert!(
        joined.is_err() && served.is_err(),
        "five wrong answers closed the desk"
    );
    assert!(!b.pins.contains(&a.key));

    // Another server in its place is not even told the secret.
    let code = desk.open(Timestamp::now(), &b.key, "rec1:7400").unwrap();
    let other = PairingDesk::new(Arc::clone(&c.pins));
    other.open(Timestamp::now(), &c.key, "rec1:7400").unwrap();
    let [joined, served] = pair(&a, &c, &other, &code).await;
    assert!(matches!(joined, Err(PairingError::Tls(_))), "{joined:?}");
    assert!(served.is_err());
    assert!(desk.is_open(Timestamp::now()));
    assert!(matches!(
        pair(&b, &b, &desk, &code).await,
        [Err(PairingError::Itself), Err(_)]
    ));
}

#[tokio::test]
async fn nothing_but_a_pairing_can_be_said_while_pairing() {
    let (a, b) = (node(), node());
    let desk = PairingDesk::new(Arc::clone(&b.pins));
    let code = desk.open(Timestamp::now(), &b.key, "rec1:7400").unwrap();
    let (listener, at) = listen().await;
    let intrude = async {
        let tcp = TcpStream::connect(at).await.unwrap();
        let (mut stream, _) = a.tls.connect(tcp, code.expect()).await.unwrap();
        let (head, _) = wire::codec::encode(&Message::Hello(Hello::node("a")))
            .unwrap()
            .into_parts();
        stream.write_all(&head).await.unwrap();
        stream.read(&mut [0; 1]).await.unwrap_or(0)
    };
    let serve = async {
        desk.receive(Timestamp::now(), accept(&listener, &b).await.unwrap())
            .await
    };
    let (read, served) = tokio::join!(intrude, serve);
    assert_eq!(read, 0);
    assert!(matches!(
        served,
        Err(PairingError::Connection(ConnError::Codec(_)))
    ));
}

/// Carries bytes between `listener` and `to`; once `tamper` is set, flips a bit of what the client says.
async fn proxy(listener: TcpListener, to: SocketAddr, tamper: Arc<AtomicBool>) {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(to).await.unwrap();
    let (mut cr, mut cw) = client.into_split();
    let (mut sr, mut sw) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut sr, &mut cw).await });
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = cr.read(&mut buf).await {
        if tamper.load(Ordering::SeqCst) {
            buf[n / 2] ^= 1;
        }
        if sw.write_all(&buf[..n]).await.is_err() {
            break;
        }
    }
    drop(sw);
    let _ = back.await;
}

#[tokio::test]
async fn tampered_bytes_are_refused() {
    let (a, b) = friends();
    let (listener, at) = listen().await;
    let (front, front_at) = listen().await;
    let tamper = Arc::new(AtomicBool::new(false));
    let carried = tokio::spawn(proxy(front, at, Arc::clone(&tamper)));
    let dialer = Dialer::new(vec![front_at.to_string()]);
    let (dialed, accepted) = tokio::join!(dialer.once(&a.tls, Expect::Key(b.key)), accept(&listener, &b));
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
    let (_ain, aout) = Connection::new(dialed.stream, dialed.peer, ConnectionOptions::default()).split();
    let (mut bin, bout) =
        Connection::new(accepted.stream, accepted.peer, ConnectionOptions::default()).split();
    aout.send(frame(1, "good")).await.unwrap();
    assert_eq!(bin.next().await.unwrap(), Some(frame(1, "good")));
    tamper.store(true, Ordering::SeqCst);
    aout.send(frame(2, "bad")).await.unwrap();
    assert!(matches!(bin.next().await, Err(ConnError::Io(_))));
    drop((aout, bin, bout));
    carried.abort();
}

#[tokio::test]
async fn frames_arrive_in_order_packed_or_not() {
    let options = ConnectionOptions {
        queue_bytes_max: 1 << 20,
        ..ConnectionOptions::default()
    };
    let ((_ain, aout), (mut bin, _bout)) = connected(options).await;
    let frames: Vec<Message> = (1..60_u64)
        .map(|n| match n % 3 {
            0 => frame(n, vec![n as u8; 300_000]),
            1 => frame(n, noise(200_000)),
            _ => frame(n, noise(100)),
        })
        .collect();
    let send = async {
        for f in &frames {
            aout.send(f.clone()).await.unwrap();
        }
    };
    let receive = async {
        for f in &frames {
            assert!(bin.next().await.unwrap().as_ref() == Some(f), "frames differ");
        }
    };
    tokio::join!(send, receive);
    let raw: u64 = frames.iter().map(|f| f.weight() as u64).sum();
    let stats = aout.stats();
    assert!(stats.saved_bytes() > 300_000 && stats.sent_bytes() + stats.saved_bytes() > raw - 64 * 60);
    assert_eq!(bin.stats().received_bytes(), stats.sent_bytes());
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let options = ConnectionOptions {
        queue_bytes_max: 100_000,
        compress: false,
        ..ConnectionOptions::default()
    };
    let ((_ain, aout), (mut bin, _bout)) = connected(options).await;
    let mut sent = 0_u64;
    // Nobody reads: the sockets fill, then the queue, then sending waits.
    loop {
        let next = frame(sent + 1, vec![0; 90_000]);
        if tokio::time::timeout(Duration::from_millis(500), aout.send(next))
            .await
            .is_err()
        {
            break;
        }
        sent += 1;
        assert!(sent < 1000, "the queue has no end");
    }
    for n in 1..=sent {
        assert!(matches!(bin.next().await.unwrap(), Some(Message::Frame(f)) if f.last == WriteSeq(n)));
    }
}

#[tokio::test]
async fn idle_peers_stay_and_silent_ones_go() {
    let options = ConnectionOptions {
        ping_every: Duration::from_millis(20),
        peer_timeout: Duration::from_millis(1500),
        ..ConnectionOptions::default()
    };
    let ((mut ain, aout), (mut bin, bout)) = connected(options.clone()).await;
    let both = async { tokio::join!(ain.next(), bin.next()) };
    assert!(
        tokio::time::timeout(Duration::from_millis(2500), both)
            .await
            .is_err(),
        "pings keep the link"
    );
    assert!(aout.stats().rtt().is_some() && bout.stats().rtt().is_some());

    // A peer that finished its handshake and then says nothing at all.
    let (a, b) = friends();
    let (listener, at) = listen().await;
    let dialer = Dialer::new(vec![at.to_string()]);
    let (dialed, accepted) = tokio::join!(dialer.once(&a.tls, Expect::Key(b.key)), accept(&listener, &b));
    let (_mute, accepted) = (dialed.unwrap(), accepted.unwrap());
    let (mut bin, bout) = Connection::new(accepted.stream, accepted.peer, options).split();
    assert!(matches!(bin.next().await, Err(ConnError::Silent(_))));
    // The writer ended with it.
    while bout.send(Message::Durable { seq: WriteSeq(1) }).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nodes_ask_and_answer() {
    let (client, (mut bin, bout)) = {
        let (a, b) = friends();
        let (listener, at) = listen().await;
        let dialer = Dialer::new(vec!["127.0.0.1:1".into(), at.to_string()]);
        let (dialed, accepted) = tokio::join!(dialer.once(&a.tls, Expect::Key(b.key)), accept(&listener, &b));
        let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
        assert_eq!(
            dialed.endpoint,
            at.to_string(),
            "the first endpoint is dead, the second answers"
        );
        (
            Connection::new(dialed.stream, dialed.peer, ConnectionOptions::default()),
            Connection::new(accepted.stream, accepted.peer, ConnectionOptions::default()).split(),
        )
    };
    let server = tokio::spawn(async move {
        assert!(matches!(bin.next().await.unwrap(), Some(Message::Hello(h)) if h.context.0 == 0));
        let echo = |r: Request| async move {
            Response {
                id: 0,
                code: r.kind,
                body: r.body,
            }
        };
        serve_requests(&mut bin, &bout, "rec1", echo).await
    });
    let mut client = NodeClient::greet(client, "prod1", Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(client.peer_name(), "rec1");
    for n in 0..3 {
        let body = Bytes::from(vec![n as u8; 1 << 20]);
        let answer = client.call(n, body.clone()).await.unwrap();
        assert_eq!((answer.code, answer.body), (n, body));
    }
    client.close().await;
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_of_no_common_version_is_told_so() {
    let ((mut ain, aout), (mut bin, _bout)) = connected(ConnectionOptions::default()).await;
    let hello = Hello {
        oldest: 8,
        newest: 9,
        ..Hello::node("future")
    };
    aout.send(Message::Hello(hello)).await.unwrap();
    assert!(matches!(
        bin.next().await,
        Err(ConnError::Codec(wire::CodecError::Version {
            oldest: 8,
            newest: 9
        }))
    ));
    assert!(matches!(ain.next().await, Ok(Some(Message::Refuse(r))) if r.code == wire::RefuseCode::Version));
}
