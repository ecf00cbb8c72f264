//! The end of a server's life: new work is refused, running work finishes, what is left is cut.

use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) struct Drain {
    shutdown: CancellationToken,
    /// New connections wait for the next server; what comes on those that are open is answered.
    hands_over: bool,
    /// Cancelled when the deadline is over: streams send their error event and end.
    cut: CancellationToken,
    n_working: watch::Sender<usize>,
}

/// Time for the first request of a connection that was taken in just before the end began.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Time that cut streams have to send their last event.
const CUT_WAIT: Duration = Duration::from_secs(2);

impl Drain {
    pub(super) fn new(shutdown: CancellationToken, hands_over: bool) -> Self {
        Self { shutdown, hands_over, cut: CancellationToken::new(), n_working: watch::Sender::new(0) }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Whether new work is refused.
    pub(super) fn refuses(&self) -> bool {
        self.has_begun() && !self.hands_over
    }

    /// Cancelled when running work has to end.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Counts a request as running until the returned value is dropped, with its body.
    pub(super) fn working(&self) -> Working {
        self.n_working.send_modify(|n| *n += 1);
        Working(self.n_working.clone())
    }

    /// Returns after the shutdown, when all work has finished or was cut.
    pub(super) async fn finished(&self, deadline: Duration) {
        self.shutdown.cancelled().await;
        if self.hands_over {
            tokio::time::sleep(FIRST_WAIT.min(deadline)).await;
        }
        let mut n_working = self.n_working.subscribe();
        tracing::info!(n_running = *n_working.borrow(), "shutting down");
        if tokio::time::timeout(deadline, n_working.wait_for(|n| *n == 0)).await.is_err() {
            tracing::warn!(n_running = *n_working.borrow(), "the drain deadline is over; ending what still runs");
            self.cut.cancel();
            // Whoever has not ended by then is cut off with the connection.
            let _ = tokio::time::timeout(CUT_WAIT, n_working.wait_for(|n| *n == 0)).await;
        }
    }
}

pub(super) struct Working(watch::Sender<usize>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}
