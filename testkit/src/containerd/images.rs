//! Image records.

use std::collections::BTreeMap;

use containerd_client::services::v1::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse, Image,
    ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use containerd_client::types::Descriptor;
use tonic::{Request, Response, Status};

use super::{FakeContainerd, Service, namespace};
use api::images_server::{self, ImagesServer};

#[allow(clippy::all, missing_docs, unused_qualifications, reason = "generated")]
mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.images.v1.rs"));
}

/// Images by namespace and name.
pub(super) type Images = BTreeMap<(String, String), Image>;

impl FakeContainerd {
    /// Records an image.
    pub fn record_image(&self, namespace: &str, name: &str, target: Descriptor) {
        let image = Image { name: name.to_owned(), target: Some(target), ..Image::default() };
        self.state.lock().unwrap().images.insert((namespace.to_owned(), name.to_owned()), image);
    }

    /// The names of all images.
    pub fn images(&self) -> Vec<String> {
        self.state.lock().unwrap().images.keys().map(|(_, name)| name.clone()).collect()
    }
}

pub(super) fn service(service: Service) -> ImagesServer<Service> {
    ImagesServer::new(service)
}

#[tonic::async_trait]
impl images_server::Images for Service {
    async fn get(&self, request: Request<GetImageRequest>) -> Result<Response<GetImageResponse>, Status> {
        let key = (namespace(&request)?, request.into_inner().name);
        let found = self.state.lock().unwrap().images.get(&key).cloned();
        let image = found.ok_or_else(|| Status::not_found(format!("image {:?}: not found", key.1)))?;
        Ok(Response::new(GetImageResponse { image: Some(image) }))
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let namespace = namespace(&request)?;
        let state = self.state.lock().unwrap();
        let of = state.images.iter().filter(|((of, _), _)| *of == namespace);
        Ok(Response::new(ListImagesResponse { images: of.map(|(_, image)| image.clone()).collect() }))
    }

    async fn create(
        &self,
        request: Request<CreateImageRequest>,
    ) -> Result<Response<CreateImageResponse>, Status> {
        self.record("create image", &request);
        let namespace = namespace(&request)?;
        let image = request.into_inner().image.unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        let key = (namespace, image.name.clone());
        if state.images.contains_key(&key) {
            return Err(Status::already_exists(format!("image {:?}: already exists", image.name)));
        }
        state.images.insert(key, image.clone());
        Ok(Response::new(CreateImageResponse { image: Some(image) }))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        self.record("update image", &request);
        let namespace = namespace(&request)?;
        let image = request.into_inner().image.unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        let found = state.images.get_mut(&(namespace, image.name.clone()));
        let found = found.ok_or_else(|| Status::not_found(format!("image {:?}: not found", image.name)))?;
        found.target.clone_from(&image.target);
        Ok(Response::new(UpdateImageResponse { image: Some(found.clone()) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        let key = (namespace(&request)?, request.into_inner().name);
        self.state.lock().unwrap().images.remove(&key);
        Ok(Response::new(()))
    }
}
