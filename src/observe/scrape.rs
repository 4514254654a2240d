//! Metrics and health over plain HTTP/1.1 on a unix socket of their own.
//!
//! `GET /metrics` returns the OpenMetrics text format, `GET /health` 200 or 503. One request per connection. Every
//! user who can open the socket can read.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixListener, sync::Semaphore, time::timeout};

/// Most connections at a time. A scraper needs one.
const CONNECTIONS: usize = 4;
/// Time after which a connection is closed.
const CONNECTION: Duration = Duration::from_secs(10);
/// Largest request head, in bytes: the smallest buffer that hyper accepts.
const HEAD_BYTES: usize = 8 << 10;

/// Source of the answers.
pub trait Report: Send + Sync + 'static {
    /// Returns the metrics as OpenMetrics text.
    fn metrics(&self) -> String;

    /// Errors: the reason, in words, for which no request would be served.
    fn health(&self) -> Result<(), String>;
}

/// Serves HTTP on `listener` until the future is dropped.
pub async fn serve(listener: UnixListener, report: Arc<dyn Report>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _address)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let report = Arc::clone(&report);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = respond(&request, report.as_ref());
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), answer);
            match timeout(CONNECTION, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "metrics connection failed"),
                Err(_elapsed) => tracing::debug!("metrics connection closed: too slow"),
            }
            drop(slot);
        });
    }
}

fn respond(request: &Request<Incoming>, report: &dyn Report) -> Response<String> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const PLAIN: &str = "text/plain; charset=utf-8";
    let response = |status, kind, body| {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    if request.method() != Method::GET {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET only\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => response(StatusCode::OK, OPEN_METRICS, report.metrics()),
        "/health" => match report.health() {
            Ok(()) => response(StatusCode::OK, PLAIN, "ok\n".to_owned()),
            Err(reason) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{reason}\n")),
        },
        _ => response(StatusCode::NOT_FOUND, PLAIN, "/metrics or /health\n".to_owned()),
    }
}
