//! Building images from Dockerfiles.
//!
//! ```text
//! text --plan::dockerfile::parse--> stages --solve--> per stage: state (configuration, layers)
//!                                                        |  instruction -> job -> key
//!                                         store: key known? its layer : worker (a process) -> layer
//!                                                        v
//!                                       image::make_image: configuration, history, layers, names
//! ```
//!
//! A stage is worked through instruction by instruction; stages that do not wait for each other, at
//! once, up to the number of CPUs. What changes the configuration alone is done on the spot; what makes
//! a layer is a *job*: it has a key, the digest of all that it depends on, and is looked up before it is
//! done. RUN is a container over the merged index of the layers so far (`run`), and its layer is the
//! overlay's change; COPY and ADD write their layer straight into the store (`copy`). Nothing ever
//! scans the image.
//!
//! What must stay true: this process has one thread whenever a job's process is forked; a job reads
//! nothing but what its key covers (secrets and sockets excepted, which are in no layer); the same
//! inputs give the same layers of COPY, ADD and WORKDIR, whatever the machine; and whatever is killed,
//! records and layers of steps that were done stay usable.

pub mod cache;
mod clamp;
mod context;
mod copy;
mod digests;
pub mod error;
mod export;
mod git;
pub mod progress;
mod remote;
mod request;
mod run;
mod scratch;
mod solve;
mod state;
mod tree;
mod unpack;
mod worker;

pub use context::{Asked, Context, Fetched};
pub use error::{BuildError, Problem};
pub use export::{write_files, write_tar};
pub use request::{Built, Fetch, NamedContext, Request, Secret, SecretSource, Ssh};
pub use run::RunOptions;
pub use scratch::sweep;
pub use solve::{build, keep_image, name_several};
