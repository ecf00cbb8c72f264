//! Every name that traces use, on one page.
//!
//! Source: OpenTelemetry's conventions for generative AI and for HTTP. Those for generative AI are still in development, so
//! a name that changes is changed here and nowhere else. What they have no name for begins with `hearth.`

pub mod operation {
    pub const CHAT: &str = "chat";
    pub const TEXT_COMPLETION: &str = "text_completion";
    pub const EMBEDDINGS: &str = "embeddings";
    // The conventions know none of these.
    pub const RERANK: &str = "rerank";
    pub const SCORE: &str = "score";
    pub const CLASSIFY: &str = "classify";
}
