//! HTTPS: protocols, certificates, and their change while streams run.

use crate::support::tls::{Authority, shown};
use crate::support::{Events, PATIENCE, Server, chat_body};
use hearth::http::{Tls, TlsFiles};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::rustls::{ProtocolVersion, version};

async fn secured(authority: &Authority) -> Server {
    let tls = authority.server();
    Server::with(|setup| setup.http.tls = Some(tls)).await
}

/// One request and its answer; the connection is used up.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str, body: &str) -> std::io::Result<String> {
    let request = format!(
        "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end in time")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken() {
    let authority = Authority::new();
    let server = secured(&authority).await;
    for (versions, wanted) in [
        (vec![&version::TLS13], ProtocolVersion::TLSv1_3),
        (vec![&version::TLS12], ProtocolVersion::TLSv1_2),
        (vec![&version::TLS12, &version::TLS13], ProtocolVersion::TLSv1_3),
    ] {
        let mut client = authority.client();
        client.versions = versions;
        let stream = client.connect(server.address).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(wanted));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let answer = ask(stream, "GET /livez", "").await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let mut client = authority.client();
    client.alpn = "h2";
    let stream = client.connect(server.address).await.expect("a handshake");
    let (client, connection) = h2::client::handshake(stream).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a connection");
    let request = http::Request::post("https://localhost/v1/chat/completions").body(()).expect("a request");
    let (answer, mut sending) = client.send_request(request, false).expect("a stream");
    sending.send_data(chat_body("hello", json!({"stream": true})).to_string().into(), true).expect("sent");
    let mut body = answer.await.expect("an answer").into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("the stream lives");
        body.flow_control().release_capacity(data.len()).expect("within the window");
        bytes.extend_from_slice(&data);
    }
    assert_eq!(Events::parse(&bytes).text(0, "content"), "hello");
    driver.abort();
}

#[tokio::test]
async fn who_does_not_shake_hands_is_let_go() {
    let authority = Authority::new();
    let tls = authority.server();
    let server = Server::with(|setup| {
        setup.http.tls = Some(tls);
        // Short, and long enough for the one that does shake hands.
        setup.http.header_timeout = Duration::from_secs(1);
    })
    .await;
    // Plain HTTP on this port is answered with an alert, if at all.
    let answer = server.raw("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut socket = server.connect().await;
        socket.write_all(sent).await.expect("sent");
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{sent:?} is still open");
    }
    // Nor is one served that shakes hands and says no more.
    let mut stream = authority.client().connect(server.address).await.expect("a handshake");
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed in time");
    let page = server.metrics().await;
    assert!(page.contains("hearth_rejections_total{reason=\"tls_handshake\"}"), "{page}");
}

#[tokio::test]
async fn a_client_without_a_certificate_of_ours_stays_outside() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = TlsFiles { client_ca: Some(authority.path("ca.pem")), ..authority.issue("server", &["localhost"]) };
    let tls = Tls::load(&files).expect("good files");
    let server = Server::with(|setup| setup.http.tls = Some(tls)).await;
    for own in [None, Some(other.issue("client", &["someone"]))] {
        for versions in [vec![&version::TLS13], vec![&version::TLS12]] {
            let mut client = authority.client();
            (client.own, client.versions) = (own.clone(), versions);
            // With TLS 1.3 a client is done before the server has seen its certificate: the refusal comes at the first read.
            let refused = match client.connect(server.address).await {
                Ok(stream) => ask(stream, "GET /livez", "").await,
                Err(error) => Err(error),
            };
            assert!(refused.as_ref().map_or(true, String::is_empty), "{refused:?}");
        }
    }
    let mut client = authority.client();
    client.own = Some(authority.issue("client", &["someone"]));
    let stream = client.connect(server.address).await.expect("a handshake");
    assert!(ask(stream, "GET /livez", "").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
}

#[tokio::test]
async fn a_new_certificate_does_not_end_a_stream() {
    let authority = Authority::new();
    let server = secured(&authority).await;
    let mut running = authority.client().connect(server.address).await.expect("a handshake");
    let before = shown(&running);
    let body = chat_body("/count 200", json!({"stream": true})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    running.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
    let mut first = [0; 12];
    running.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");

    let mut http = (*server.live.now()).clone();
    http.tls = Some(authority.server());
    server.live.set(http);
    let fresh = authority.client().connect(server.address).await.expect("a handshake");
    assert_ne!(shown(&fresh), before);
    assert!(ask(fresh, "GET /livez", "").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")));

    let mut rest = String::new();
    tokio::time::timeout(PATIENCE, running.read_to_string(&mut rest))
        .await
        .expect("in time")
        .expect("the stream lives");
    assert!(rest.contains("data: [DONE]"), "{rest}");
}

#[tokio::test]
async fn the_end_of_the_certificate_is_a_metric() {
    let authority = Authority::new();
    let tls = authority.server();
    let expires = tls.expires().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let server = Server::with(|setup| setup.http.tls = Some(tls)).await;
    authority.client().connect(server.address).await.expect("a handshake");
    let page = server.metrics().await;
    let line = format!("hearth_tls_cert_expiry_timestamp_seconds {expires}");
    assert!(page.contains(&line), "{line} is missing in\n{page}");
}

/// What a scan would find: openssl is allowed everything, and still gets no old version and no CBC or RSA key exchange.
#[tokio::test]
async fn old_versions_and_weak_ciphers_are_refused() {
    let has_openssl = std::process::Command::new("openssl").arg("version").output().is_ok_and(|it| it.status.success());
    if !has_openssl {
        eprintln!("skipped: there is no openssl here");
        return;
    }
    let authority = Authority::new();
    let server = secured(&authority).await;
    // Level 0 lets openssl itself offer what it finds too weak.
    const ANY: &str = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    for (arguments, wanted) in [
        (&["-tls1_2", "-cipher", ANY][..], true),
        (&["-tls1_3"], true),
        (&["-tls1", "-cipher", ANY], false),
        (&["-tls1_1", "-cipher", ANY], false),
        (&["-tls1_2", "-cipher", "ECDHE+AESGCM"], true),
        (&["-tls1_2", "-cipher", "ECDHE+CHACHA20"], true),
        (&["-tls1_2", "-cipher", "AES128-SHA"], false),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA"], false),
        (&["-tls1_2", "-cipher", "AES256-GCM-SHA384"], false),
        (&["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"], false),
    ] {
        let output = tokio::process::Command::new("openssl")
            .args(["s_client", "-brief", "-connect", &server.address.to_string()])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output();
        let output = tokio::time::timeout(PATIENCE, output).await.expect("in time").expect("openssl runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.contains("CONNECTION ESTABLISHED"), wanted, "{arguments:?}: {text}");
    }
}
