//! One turn for all requests that ask for the same thing at the same time.
//!
//! Requests that are equal byte for byte have one answer, so only the first of them waits for its
//! turn and is worked on. If its own client gives up, the others get no answer from it: one of them
//! goes next. Requests that only mean the same thing, such as a directory spelled in two ways, meet
//! in [`crate::apply`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    apply,
    call::Namespace,
    error::{Error, Kind, Result},
};

/// Key of equal requests: the namespace, because another one may not have the blob, and the whole
/// request.
pub type Key = (Namespace, apply::Request);

/// Requests that others may join, by key.
pub struct Joins<T> {
    leading: Mutex<HashMap<Key, watch::Receiver<Option<Answer<T>>>>>,
}

#[derive(Clone)]
enum Answer<T> {
    Done(T),
    Failed(Kind, &'static str, String),
}

/// Role of a request among its equals.
pub(super) enum Role<T> {
    /// First request of its key, which is worked on.
    Leader(Leader<T>),
    /// Further request, which waits for the first one's answer.
    Follower(Follower<T>),
}

/// Request that is worked on. When it is dropped without an answer, one of its followers takes
/// over.
pub(super) struct Leader<T> {
    joins: Arc<Joins<T>>,
    key: Key,
    answer: watch::Sender<Option<Answer<T>>>,
}

/// Request that waits for the answer of another.
pub(super) struct Follower<T>(watch::Receiver<Option<Answer<T>>>);

impl<T> Default for Joins<T> {
    fn default() -> Self {
        Self { leading: Mutex::default() }
    }
}

impl<T: Clone> Joins<T> {
    /// Joins the request with this key, or becomes the first.
    pub(super) fn join(self: &Arc<Self>, key: &Key) -> Role<T> {
        let mut leading = self.lock();
        if let Some(answer) = leading.get(key) {
            return Role::Follower(Follower(answer.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        leading.insert(key.clone(), receiver);
        Role::Leader(Leader { joins: Arc::clone(self), key: key.clone(), answer: sender })
    }
}

impl<T> Joins<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Option<Answer<T>>>>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Leader<T> {
    /// Sends the answer to all followers.
    pub(super) fn answer(self, outcome: &Result<T>) {
        let answer = match outcome {
            Ok(done) => Answer::Done(done.clone()),
            Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::DeadlineExceeded) => return,
            Err(error) => Answer::Failed(error.kind(), error.reason(), error.to_string()),
        };
        self.answer.send_replace(Some(answer));
    }
}

impl<T> Drop for Leader<T> {
    fn drop(&mut self) {
        // Removed before the sender is dropped: a follower that then joins again must not find this
        // leader.
        self.joins.lock().remove(&self.key);
    }
}

impl<T: Clone> Follower<T> {
    /// Waits for the answer; `None` when the leader was dropped without one.
    pub(super) async fn answer(mut self) -> Option<Result<T>> {
        let answer = self.0.wait_for(Option::is_some).await.ok()?.clone();
        answer.map(|answer| match answer {
            Answer::Done(done) => Ok(done),
            Answer::Failed(kind, reason, message) => Err(Error::new(kind, reason, message)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Cancelled, descriptor::Descriptor, digest::Digest};

    fn key(namespace: &str, layer: &[u8], sync_fs: bool) -> Key {
        let diff = Descriptor::new("a/b", Digest::sha256(layer), 1).unwrap();
        (
            namespace.parse().unwrap(),
            apply::Request { diff, mounts: Vec::new(), payloads: Default::default(), sync_fs },
        )
    }

    fn leader(role: Role<u32>) -> Leader<u32> {
        match role {
            Role::Leader(leader) => leader,
            Role::Follower(_) => panic!("somebody else leads"),
        }
    }

    fn follower(role: Role<u32>) -> Follower<u32> {
        match role {
            Role::Follower(follower) => follower,
            Role::Leader(_) => panic!("nobody leads"),
        }
    }

    #[tokio::test]
    async fn equal_requests_get_one_answer_and_others_their_own() {
        let joins = Arc::new(Joins::default());
        let first = leader(joins.join(&key("a", b"x", false)));
        let second = follower(joins.join(&key("a", b"x", false)));
        for other in [key("b", b"x", false), key("a", b"y", false), key("a", b"x", true)] {
            drop(leader(joins.join(&other)));
        }
        first.answer(&Ok(7));
        assert_eq!(second.answer().await.unwrap().unwrap(), 7);
        let first = leader(joins.join(&key("a", b"x", false)));
        let second = follower(joins.join(&key("a", b"x", false)));
        first.answer(&Err(Error::new(Kind::Malformed, "tar.x", "bad")));
        assert_eq!(second.answer().await.unwrap().unwrap_err().reason(), "tar.x");
        assert!(joins.lock().is_empty());
    }

    #[tokio::test]
    async fn a_leader_that_gives_up_leaves_the_work_to_another() {
        let joins = Arc::new(Joins::default());
        let key = key("a", b"x", false);
        let first = leader(joins.join(&key));
        let second = follower(joins.join(&key));
        first.answer(&Err(Cancelled::ByCaller.into()));
        assert!(second.answer().await.is_none());
        let first = leader(joins.join(&key));
        let second = follower(joins.join(&key));
        drop(first);
        assert!(second.answer().await.is_none());
        drop(leader(joins.join(&key)));
    }
}
