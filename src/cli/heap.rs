//! Memory that a peak took goes back to the system.

use crate::llama;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often. What piled up while an engine came back, or while a thousand streams ran, is gone within this time.
const EVERY: Duration = Duration::from_secs(10);

/// Trims the heap now and then until the server stops; each time for about 0.2 ms.
pub(super) async fn keep_trimmed(shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        llama::trim_heap();
    }
}
