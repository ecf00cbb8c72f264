//! Sockets that systemd holds: a restart drops nobody who is in the queue of the socket, and ends HTTP/2 in order.

use crate::support::served::root;
use crate::support::{PATIENCE, Server, chat_body};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The real binary on a socket that is passed on as systemd does it: as descriptor 3, with the process's own number.
fn start(socket: &TcpListener) -> Child {
    let passed: OwnedFd = socket.try_clone().expect("a descriptor").into();
    // The shell's number is the binary's: it becomes it.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_hearth"), "serve", "scripted:step_us=500", "--in-process"])
        .args(["--log-level", "warn"])
        .current_dir(root())
        .stdin(Stdio::from(passed))
        .stdout(Stdio::null())
        .spawn()
        .expect("a shell")
}

fn ended(mut child: Child) {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if let Ok(Some(status)) = child.try_wait() {
            assert!(status.success(), "{status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let was_there = child.kill().is_ok();
    assert!(!was_there, "it does not end");
}

/// Waits until the process that was started last answers: by then it hears signals.
async fn up(url: &str) {
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let live = client.get(format!("{url}/livez")).send().await.expect("nobody is dropped");
    assert_eq!(live.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_a_held_socket_fails_no_request() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", socket.local_addr().expect("bound"));
    let stopping = Arc::new(AtomicBool::new(false));
    let mut child = start(&socket);
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let (url, stopping) = (url.clone(), Arc::clone(&stopping));
            tokio::spawn(async move {
                let mut n_answers = 0;
                while !stopping.load(Ordering::Relaxed) {
                    // A connection of its own for each request, as clients behind a balancer have.
                    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
                    let body = json!({ "prompt": format!("/count {}", 3 + n), "model": "scripted" });
                    let sent = client.post(format!("{url}/v1/completions")).json(&body).send().await;
                    let answer = sent.expect("nobody is dropped");
                    let (status, text) = (answer.status().as_u16(), answer.text().await.expect("a whole body"));
                    assert!(status == 200 || text.contains("model_loading"), "{status} {text}");
                    n_answers += u32::from(status == 200);
                }
                n_answers
            })
        })
        .collect();
    for _ in 0..3 {
        up(&url).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it lives");
        let old = child;
        tokio::task::spawn_blocking(move || ended(old)).await.expect("it ended well");
        // For a while there is nobody; who comes waits in the queue.
        tokio::time::sleep(Duration::from_millis(300)).await;
        child = start(&socket);
    }
    up(&url).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stopping.store(true, Ordering::Relaxed);
    let mut n_answers = 0;
    for client in clients {
        n_answers += client.await.expect("no request failed");
    }
    assert!(n_answers >= 8, "{n_answers}");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it lives");
    tokio::task::spawn_blocking(move || ended(child)).await.expect("it ended well");
    println!("{n_answers} answers over three restarts, none failed");
}

#[tokio::test]
async fn http_2_hears_that_the_server_goes_and_keeps_its_stream_to_the_end() {
    let server = Server::with(|setup| setup.scripted().step_us = 500).await;
    let (client, connection) = h2::client::handshake(server.connect().await).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a connection");
    let request = http::Request::post("http://localhost/v1/chat/completions").body(()).expect("a request");
    let (response, mut sending) = client.send_request(request, false).expect("a stream");
    let body = chat_body("/count 150", json!({ "stream": true })).to_string();
    sending.send_data(body.into(), true).expect("sent");
    let mut body = response.await.expect("an answer").into_body();
    let mut bytes = body.data().await.expect("a first event").expect("it lives").to_vec();
    let stopping = tokio::spawn(server.stop());
    while let Some(data) = body.data().await {
        let data = data.expect("the stream lives to its end");
        body.flow_control().release_capacity(data.len()).expect("within the window");
        bytes.extend_from_slice(&data);
    }
    let events = crate::support::Events::parse(&bytes);
    assert!(events.is_done && events.text(0, "content").ends_with("149 150"));
    // GOAWAY without an error is an end in order; a connection that was only closed would be one, too, but not with a
    // stream's worth of state: the driver tells them apart.
    let ended = tokio::time::timeout(PATIENCE, driver).await.expect("in time").expect("no panic");
    assert!(ended.is_ok(), "{ended:?}");
    assert!(client.ready().await.is_err(), "nothing new goes over it");
    stopping.await.expect("it stops");
}
