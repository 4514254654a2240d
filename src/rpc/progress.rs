//! The progress service: how far a request is, for the client that named it when it sent it.
//!
//! Source: protos/plywood/progress.proto.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::proto::progress::progress_server;
use crate::{
    call::{Phase, Progress},
    containerd::progress::{HEADER, ID_BYTES, Seen, WatchRequest},
};

/// Time between two looks.
const TICK: Duration = Duration::from_millis(200);
/// Time for which a request that has not come yet is waited for: the two calls may overtake each other.
const PATIENCE: Duration = Duration::from_secs(2);

/// The requests under way that have a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched(Arc<Mutex<HashMap<String, Progress>>>);

/// A request that can be watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    watched: Watched,
    id: String,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request be watched, if it was sent with a name that no other has.
    pub(super) fn begin(&self, metadata: &MetadataMap, progress: &Progress) -> Option<Watching> {
        let id = metadata.get(HEADER)?.to_str().ok().filter(|id| !id.is_empty() && id.len() <= ID_BYTES)?;
        let mut requests = self.lock();
        if requests.contains_key(id) {
            return None;
        }
        requests.insert(id.to_owned(), progress.clone());
        Some(Watching { watched: self.clone(), id: id.to_owned() })
    }

    fn look(&self, id: &str) -> Option<Progress> {
        self.lock().get(id).cloned()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watched.lock().remove(&self.id);
    }
}

#[tonic::async_trait]
impl progress_server::Progress for Watched {
    type WatchStream = ReceiverStream<Result<Seen, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let id = request.into_inner().id;
        let (send, receive) = mpsc::channel(1);
        let watched = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let mut sent = 0;
            while !send.is_closed() {
                let progress = watched.look(&id);
                match progress.map(|progress| progress.look()) {
                    Some(seen) if seen.phase == Phase::Transfer && seen.done_bytes > sent => {
                        sent = seen.done_bytes;
                        if send.send(Ok(Seen { done_bytes: sent })).await.is_err() {
                            return;
                        }
                    }
                    // The phases before and after it count nothing, or something else.
                    Some(_) => {}
                    None if sent > 0 || begun.elapsed() > PATIENCE => return,
                    None => {}
                }
                sleep(TICK).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(HEADER, id.parse().unwrap());
        metadata
    }

    #[test]
    fn a_request_can_be_watched_under_its_own_name_while_it_lasts() {
        let (watched, progress) = (Watched::default(), Progress::default());
        assert!(watched.begin(&MetadataMap::new(), &progress).is_none());
        assert!(watched.begin(&named(&"x".repeat(ID_BYTES + 1)), &progress).is_none());
        let watching = watched.begin(&named("one"), &progress).unwrap();
        assert!(watched.begin(&named("one"), &Progress::default()).is_none(), "the name is taken");
        progress.begin(Phase::Transfer, None);
        progress.set_done(7);
        assert_eq!(watched.look("one").unwrap().look().done_bytes, 7);
        drop(watching);
        assert!(watched.look("one").is_none());
    }
}
