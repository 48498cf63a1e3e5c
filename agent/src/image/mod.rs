//! Images: what their names mean, who may pull them, and having them on this node.

mod login;
mod present;
mod reference;
mod store;

pub use login::{LoginError, RegistryLogins};
pub(crate) use store::{ImageStore, ImageStoreConfig, ImageWait};
