//! What makes two requests the same.
//!
//! A key is SHA-256 over postcard's form of everything that the answer depends on. SHA-256 rather than BLAKE3: the crate is
//! here already, processors have instructions for it, and a megabyte of prompt takes a millisecond; postcard writes fields
//! in the order of their declaration and lengths before contents, so two different requests never have one form.

use crate::chat::{Output, Prompt, SamplingParams};
use crate::engine::Description;
use crate::gateway::ModelConfig;
use crate::gateway::work::Work;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Raised whenever the meaning of a field changes.
const VERSION: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::gateway) struct Key([u8; 32]);

/// What a model is, down to the file and the template it was loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub(in crate::gateway) struct Identity([u8; 32]);

/// Whose the answer is.
#[derive(Serialize)]
pub(in crate::gateway) struct Tenant<'a> {
    pub partition: u64,
    /// With it, the partition doesn't count: the team is the tenant.
    pub team: Option<&'a str>,
    pub namespace: Option<&'a str>,
}

#[derive(Serialize)]
struct Local<'a> {
    version: u32,
    tenant: &'a Tenant<'a>,
    model: &'a str,
    identity: Identity,
    prompts: &'a [Prompt],
    sampling: &'a SamplingParams,
    output: &'a Output,
    n: u32,
    n_kept: u32,
    lora: Option<&'a [(u32, f32)]>,
}

#[derive(Serialize)]
struct Remote<'a> {
    version: u32,
    tenant: &'a Tenant<'a>,
    upstream: &'a str,
    path: &'a str,
    body: &'a [u8],
}

/// Of a request that a model here answers.
pub(in crate::gateway) fn local(tenant: &Tenant, model: &str, identity: Identity, work: &Work) -> Key {
    // Named one by one: a new field has to be thought of here.
    let Work { prompts, sampling, output, n, n_kept, cache_prompt: _, lora } = work;
    digest(&Local {
        version: VERSION,
        tenant,
        model,
        identity,
        prompts,
        sampling,
        output,
        n: *n,
        n_kept: *n_kept,
        lora: lora.as_deref(),
    })
}

/// Of a request that an upstream answers: what would be sent to it is all that the answer depends on.
pub(in crate::gateway) fn remote(tenant: &Tenant, upstream: &str, path: &str, body: &[u8]) -> Key {
    digest(&Remote { version: VERSION, tenant, upstream, path, body })
}

/// `scales`: of the adapters, where a request says nothing.
pub(in crate::gateway) fn identity(config: &ModelConfig, description: &Description, scales: &[f32]) -> Identity {
    let served = (&config.id, &config.file_name, config.n_created, config.thinks, config.n_predict);
    let Key(bytes) = digest(&(served, description, scales));
    Identity(bytes)
}

fn digest(value: &impl Serialize) -> Key {
    let bytes = postcard::to_stdvec(value).expect("these types have lengths and no maps; failing is a bug");
    Key(Sha256::digest(&bytes).into())
}
