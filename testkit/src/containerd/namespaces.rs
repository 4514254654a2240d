//! Namespaces: those in which there is something.
//!
//! Source: containerd `plugins/services/namespaces/local.go`.

use std::collections::BTreeSet;

use containerd_client::services::v1::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Namespace, UpdateNamespaceRequest,
    UpdateNamespaceResponse,
};
use tonic::{Request, Response, Status};

use super::Service;
use api::namespaces_server::{self, NamespacesServer};

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.namespaces.v1.rs"));
}

pub(super) fn service(service: Service) -> NamespacesServer<Service> {
    NamespacesServer::new(service)
}

#[tonic::async_trait]
impl namespaces_server::Namespaces for Service {
    async fn list(
        &self,
        _: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let state = self.state.lock().unwrap();
        let blobs = state.blobs.keys().map(|(namespace, _)| namespace.as_str());
        let names: BTreeSet<_> =
            blobs.chain(state.writes.namespaces()).chain(state.leases.namespaces()).collect();
        let namespace = |name: &str| Namespace { name: name.to_owned(), ..Namespace::default() };
        Ok(Response::new(ListNamespacesResponse { namespaces: names.into_iter().map(namespace).collect() }))
    }

    async fn get(&self, _: Request<GetNamespaceRequest>) -> Result<Response<GetNamespaceResponse>, Status> {
        Err(Status::unimplemented("get"))
    }

    async fn create(
        &self,
        _: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        Err(Status::unimplemented("create"))
    }

    async fn update(
        &self,
        _: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        Err(Status::unimplemented("update"))
    }

    async fn delete(&self, _: Request<DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }
}
