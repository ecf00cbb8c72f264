//! What the house tells its operator: log lines, Prometheus series and traces.
//!
//! **Invariant:** prompts, answers and keys never pass through here; labels come from the router and the model file, never
//! from a client. This room uses no other room.

pub mod context;
mod log_file;
pub mod logging;
mod memory;
pub mod metrics;
pub mod otlp;
mod readings;
mod routing;
pub mod semconv;
pub mod spans;
mod usage;

pub use log_file::LogFileConfig;
pub use logging::{LogConfig, LogFormat};
pub use metrics::Metrics;
