//! Leases, and what they hold.
//!
//! Source: containerd `core/metadata/leases.go`, `docs/garbage-collection.md`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    time::SystemTime,
};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease,
    ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse, Resource,
};
use tonic::{Request, Response, Status};

use super::{FakeContainerd, Service, namespace};
use api::leases_server::{self, LeasesServer};

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.leases.v1.rs"));
}

/// A lease as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub namespace: String,
    pub id: String,
    pub labels: HashMap<String, String>,
    /// Type and id of what it holds.
    pub resources: BTreeSet<(String, String)>,
}

impl Held {
    fn new(labels: HashMap<String, String>) -> Self {
        Self { created: SystemTime::now(), labels, resources: BTreeSet::new() }
    }
}

/// Leases by namespace and id.
#[derive(Default)]
pub(super) struct Leases {
    leases: BTreeMap<(String, String), Held>,
}

#[derive(Clone)]
struct Held {
    created: SystemTime,
    labels: HashMap<String, String>,
    resources: BTreeSet<(String, String)>,
}

impl FakeContainerd {
    /// All leases.
    pub fn leases(&self) -> Vec<LeaseView> {
        let state = self.state.lock().unwrap();
        let view = |((namespace, id), held): (&(String, String), &Held)| LeaseView {
            namespace: namespace.clone(),
            id: id.clone(),
            labels: held.labels.clone(),
            resources: held.resources.clone(),
        };
        state.leases.leases.iter().map(view).collect()
    }

    /// Creates a lease without an end.
    pub fn add_lease(&self, namespace: &str, id: &str) {
        let key = (namespace.to_owned(), id.to_owned());
        self.state.lock().unwrap().leases.leases.insert(key, Held::new(HashMap::new()));
    }

    /// Puts a blob under a lease.
    pub fn hold(&self, namespace: &str, id: &str, digest: &impl Display) {
        let mut state = self.state.lock().unwrap();
        state.leases.add(namespace, Some(id), "content", &digest.to_string()).unwrap();
    }

    /// Deletes a lease.
    pub fn delete_lease(&self, namespace: &str, id: &str) {
        let key = (namespace.to_owned(), id.to_owned());
        self.state.lock().unwrap().leases.leases.remove(&key).unwrap();
    }
}

impl Leases {
    /// Puts something under a lease, if the call has one.
    pub(super) fn add(
        &mut self,
        namespace: &str,
        id: Option<&str>,
        kind: &str,
        name: &str,
    ) -> Result<(), Status> {
        let Some(id) = id else { return Ok(()) };
        self.find(namespace, id)?.resources.insert((kind.to_owned(), name.to_owned()));
        Ok(())
    }

    /// Takes something from every lease.
    pub(super) fn remove(&mut self, namespace: &str, kind: &str, name: &str) {
        let held = self.leases.iter_mut().filter(|((of, _), _)| of == namespace);
        held.for_each(|(_, held)| {
            held.resources.remove(&(kind.to_owned(), name.to_owned()));
        });
    }

    /// Whether a lease holds it.
    pub(super) fn hold(&self, namespace: &str, kind: &str, name: &str) -> bool {
        let resource = (kind.to_owned(), name.to_owned());
        self.leases.iter().any(|((of, _), held)| of == namespace && held.resources.contains(&resource))
    }

    /// Removes the leases that are over at `now`.
    pub(super) fn end(&mut self, now: SystemTime) {
        self.leases.retain(|_, held| {
            let end = held.labels.get("containerd.io/gc.expire");
            let end = end.and_then(|text| text.parse::<prost_types::Timestamp>().ok());
            end.is_none_or(|end| SystemTime::try_from(end).unwrap() >= now)
        });
    }

    /// The namespaces of all leases.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.leases.keys().map(|(namespace, _)| namespace.as_str())
    }

    fn find(&mut self, namespace: &str, id: &str) -> Result<&mut Held, Status> {
        let found = self.leases.get_mut(&(namespace.to_owned(), id.to_owned()));
        found.ok_or_else(|| Status::not_found(format!("lease {id:?}: not found")))
    }
}

pub(super) fn service(service: Service) -> LeasesServer<Service> {
    LeasesServer::new(service)
}

#[tonic::async_trait]
impl leases_server::Leases for Service {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        self.record("create lease", &request);
        let namespace = namespace(&request)?;
        let CreateRequest { id, labels } = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let key = (namespace, id.clone());
        if state.leases.leases.contains_key(&key) {
            return Err(Status::already_exists(format!("lease {id:?}: already exists")));
        }
        let held = Held::new(labels.clone());
        let created_at = Some(held.created.into());
        state.leases.leases.insert(key, held);
        Ok(Response::new(CreateResponse { lease: Some(Lease { id, labels, created_at }) }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        self.record("delete lease", &request);
        let key = (namespace(&request)?, request.into_inner().id);
        let removed = self.state.lock().unwrap().leases.leases.remove(&key);
        removed.ok_or_else(|| Status::not_found(format!("lease {:?}: not found", key.1)))?;
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = namespace(&request)?;
        let state = self.state.lock().unwrap();
        let of = state.leases.leases.iter().filter(|((of, _), _)| *of == namespace);
        let leases = of.map(|((_, id), held)| Lease {
            id: id.clone(),
            labels: held.labels.clone(),
            created_at: Some(held.created.into()),
        });
        Ok(Response::new(ListResponse { leases: leases.collect() }))
    }

    async fn add_resource(&self, request: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        self.record("add to lease", &request);
        let namespace = namespace(&request)?;
        let AddResourceRequest { id, resource } = request.into_inner();
        let Resource { id: name, r#type } = resource.unwrap_or_default();
        self.state.lock().unwrap().leases.add(&namespace, Some(&id), &r#type, &name)?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let DeleteResourceRequest { id, resource } = request.into_inner();
        let Resource { id: name, r#type } = resource.unwrap_or_default();
        self.state.lock().unwrap().leases.find(&namespace, &id)?.resources.remove(&(r#type, name));
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let namespace = namespace(&request)?;
        let mut state = self.state.lock().unwrap();
        let held = state.leases.find(&namespace, &request.into_inner().id)?;
        let resource = |(r#type, id): &(String, String)| Resource { r#type: r#type.clone(), id: id.clone() };
        Ok(Response::new(ListResourcesResponse { resources: held.resources.iter().map(resource).collect() }))
    }
}
