//! Clients of the daemon for both wires, and what they are to see.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    process::{Command, Stdio},
};

use containerd_client::services::v1::diff_client::DiffClient;
use plywood::{
    apply::Request,
    descriptor::Descriptor,
    digest::Digest,
    rpc::{convert, proto::ttrpc::diff_ttrpc, status},
    snapshot::Mount,
};
pub use testkit::{
    archive::{archive, gzip},
    daemon::{Daemon, until},
    node::{GZIP, NAMESPACE, Node, SOON},
    tree::names,
};
use tonic::transport::Channel;

/// One of the functions in a table of tests.
pub type Test = (&'static str, fn());

/// Requests to the daemon of a node, in the library's own types.
pub trait Requests {
    /// A request to apply a blob of the store to a fresh snapshot.
    fn request(&self, id: u32, media_type: &str, digest: &Digest, size: usize) -> Request;

    /// Puts `blob` into the store and asks for it.
    fn request_for(&self, id: u32, blob: &[u8]) -> Request;

    fn grpc(&self) -> Grpc;

    fn ttrpc(&self) -> Ttrpc;

    /// Applies over gRPC and waits.
    fn apply(&self, request: &Request) -> Reply;
}

impl Requests for Node {
    fn request(&self, id: u32, media_type: &str, digest: &Digest, size: usize) -> Request {
        let directory = self.snapshot(id);
        Request {
            diff: Descriptor::new(media_type, digest.clone(), i64::try_from(size).unwrap()).unwrap(),
            mounts: vec![Mount {
                kind: "bind".to_owned(),
                source: directory.join("fs").display().to_string(),
                target: String::new(),
                options: vec!["rw".to_owned(), "rbind".to_owned()],
            }],
            payloads: BTreeMap::new(),
            sync_fs: false,
        }
    }

    fn request_for(&self, id: u32, blob: &[u8]) -> Request {
        let digest = self.store.add(NAMESPACE, blob);
        self.request(id, GZIP, &digest, blob.len())
    }

    fn grpc(&self) -> Grpc {
        Grpc { client: self.diff_client(), namespace: NAMESPACE.into() }
    }

    fn ttrpc(&self) -> Ttrpc {
        let address = format!("unix://{}", self.socket().display());
        let client = self.runtime.block_on(ttrpc::r#async::Client::connect(&address)).unwrap();
        Ttrpc(diff_ttrpc::DiffClient::new(client))
    }

    fn apply(&self, request: &Request) -> Reply {
        self.runtime.block_on(self.grpc().apply(request))
    }
}

/// The outcome of a call, the same for both wires.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Applied { media_type: String, digest: String, size: i64 },
    Refused { code: i32, reason: String, message: String },
}

impl Reply {
    pub fn of_tar(tar: &[u8]) -> Self {
        Self::Applied {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: Digest::sha256(tar).to_string(),
            size: i64::try_from(tar.len()).unwrap(),
        }
    }

    pub fn refused(status: &tonic::Status) -> Self {
        Self::Refused {
            code: status.code() as i32,
            reason: status::reason_of(status).unwrap_or_default(),
            message: status.message().to_owned(),
        }
    }

    pub fn refused_by_ttrpc(error: ttrpc::Error) -> Self {
        use protobuf::Enum as _;
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Refused {
                code: status.code().value(),
                reason: status::reason_of_ttrpc(&status).unwrap_or_default(),
                message: status.message,
            },
            other => panic!("{other:?}"),
        }
    }

    pub fn is_applied(&self) -> bool {
        matches!(self, Self::Applied { .. })
    }

    pub fn code_and_reason(&self) -> (i32, &str) {
        match self {
            Self::Applied { .. } => (0, ""),
            Self::Refused { code, reason, .. } => (*code, reason),
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Self::Applied { .. } => "",
            Self::Refused { message, .. } => message,
        }
    }
}

#[derive(Clone)]
pub struct Grpc {
    pub client: DiffClient<Channel>,
    pub namespace: String,
}

impl Grpc {
    pub async fn apply(&mut self, request: &Request) -> Reply {
        let mut message = tonic::Request::new(convert::apply::request_to_grpc(request));
        message.metadata_mut().insert("containerd-namespace", self.namespace.parse().unwrap());
        match self.client.apply(message).await {
            Ok(reply) => {
                let applied = reply.into_inner().applied.unwrap();
                Reply::Applied { media_type: applied.media_type, digest: applied.digest, size: applied.size }
            }
            Err(status) => Reply::refused(&status),
        }
    }
}

#[derive(Clone)]
pub struct Ttrpc(diff_ttrpc::DiffClient);

impl Ttrpc {
    pub fn client(&self) -> &diff_ttrpc::DiffClient {
        &self.0
    }

    pub fn context() -> ttrpc::context::Context {
        let namespace = ("containerd-namespace-ttrpc".to_owned(), vec![NAMESPACE.to_owned()]);
        ttrpc::context::with_metadata(HashMap::from([namespace]))
    }

    pub async fn apply(&self, request: &Request) -> Reply {
        match self.0.apply(Self::context(), &convert::apply::request_to_ttrpc(request)).await {
            Ok(reply) => {
                let applied = reply.applied.unwrap();
                Reply::Applied { media_type: applied.media_type, digest: applied.digest, size: applied.size }
            }
            Err(error) => Reply::refused_by_ttrpc(error),
        }
    }
}

/// A snapshot directory before any layer is in it.
pub const EMPTY: [&str; 3] = [".erofslayer", "fs", "work"];

/// Expects one published layer and nothing beside it.
pub fn assert_published(directory: &Path) {
    assert_eq!(names(directory), [".erofslayer", "fs", "layer.erofs", "work"]);
    let found = fs::symlink_metadata(directory.join("layer.erofs")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.len() % 4096), (0o644, 0, 0));
    let image = fs::read(directory.join("layer.erofs")).unwrap();
    assert_eq!(image[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes(), "the EROFS magic");
}

/// Lets `command` inherit `listener` as a service manager would hand it over, under `name`.
pub fn with_inherited(command: &Command, listener: OwnedFd, name: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    // The descriptor comes in as standard input, and the process keeps its id through exec.
    shell
        .arg("-c")
        .arg("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"")
        .arg("sh")
        .arg(command.get_program())
        .args(command.get_args())
        .env("LISTEN_FDNAMES", name)
        .stdin(Stdio::from(listener));
    shell
}
