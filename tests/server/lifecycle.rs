//! The end of a server: who is waited for, and for how long.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use plywood::{config, server::Capacity};

use super::harness::{SOON, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_and_waiting_requests_finish_before_the_server_ends() {
    let server = Server::with(&config::Server::default(), Capacity { running: 1, waiting: 4 });
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let waiting = ttrpc.clone();
    let calls = [
        tokio::spawn(async move { grpc.apply("short").await }),
        tokio::spawn(async move { waiting.apply("short").await }),
    ];
    server.until_started(1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let path = server.path();
    let Server { daemon, work, scratch, .. } = server;
    tokio::time::timeout(SOON, daemon.stop(SOON)).await.unwrap();
    for call in calls {
        assert!(call.await.unwrap().is_applied());
    }
    assert_eq!(work.ended.load(Ordering::SeqCst), 2);
    assert!(tokio::net::UnixStream::connect(path).await.is_err(), "nobody listens any more");
    drop(scratch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_during_the_drain_are_unavailable() {
    let server = Server::start();
    let ttrpc = server.ttrpc().await;
    let running = ttrpc.clone();
    let running = tokio::spawn(async move { running.apply("short").await });
    server.until_started(1).await;
    let Server { daemon, scratch, .. } = server;
    let stop = tokio::spawn(daemon.stop(SOON));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = ttrpc.apply("tar").await;
    assert_eq!(refused.code_and_reason(), (14, "server.stopping"), "{refused:?}");
    assert!(running.await.unwrap().is_applied());
    stop.await.unwrap();
    drop(scratch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_outlast_the_grace_are_cancelled_within_a_second() {
    let server = Server::start();
    let (mut grpc, ttrpc) = (server.grpc().await, server.ttrpc().await);
    let calls = [
        tokio::spawn(async move { grpc.apply("wait").await }),
        tokio::spawn(async move { ttrpc.apply("wait").await }),
    ];
    server.until_started(2).await;
    let Server { daemon, work, scratch, .. } = server;
    let start = Instant::now();
    daemon.stop(Duration::from_millis(100)).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for call in calls {
        assert_eq!(call.await.unwrap().code_and_reason(), (1, "call.cancelled"));
    }
    assert_eq!(work.cancelled.load(Ordering::SeqCst), 2);
    drop(scratch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_does_not_look_at_its_flag_does_not_hold_up_the_end() {
    let server = Server::start();
    let mut grpc = server.grpc().await;
    let _call = tokio::spawn(async move { grpc.apply("stuck").await });
    server.until_started(1).await;
    let Server { daemon, scratch, .. } = server;
    let start = Instant::now();
    daemon.stop(Duration::ZERO).await;
    // Two seconds for the work, one for the connections; the process then ends with the thread.
    assert!(start.elapsed() < Duration::from_millis(3700), "{:?}", start.elapsed());
    drop(scratch);
}
