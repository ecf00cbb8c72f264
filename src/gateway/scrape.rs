//! The Prometheus page: what engines, books, cache and upstreams say of themselves at this moment.

use super::{Gateway, Listed, stats};
use crate::telemetry::metrics::{ModelLabels, Reading};

impl Gateway {
    /// The Prometheus page. An engine that can't be asked leaves its gauges at 0.
    pub async fn metrics_page(&self) -> String {
        let read = |(idx, listed): (usize, Listed)| async move {
            let mut reading = Reading { model: listed.config.id.clone(), ..Default::default() };
            reading.load_seconds = self.models.load_time(idx).as_secs_f64();
            let Some(engine) = self.models.engine(idx) else { return reading };
            reading.n_restarts = engine.load().n_restarts.into();
            if let Ok(stats) = stats(&engine).await {
                reading.n_queued = stats.n_queued.into();
                reading.n_queued_tokens = stats.n_queued_tokens;
                reading.tokens_generated = stats.tokens_generated;
                reading.n_decode_calls = stats.n_decode_calls;
                reading.n_slots = stats.slots.len() as u64;
                reading.n_slots_busy = stats.slots.iter().filter(|slot| slot.state != "idle").count() as u64;
                reading.prompt_tokens_computed = stats.prompt_tokens_computed;
                reading.prompt_tokens_loaded = stats.prompt_tokens_loaded;
                reading.n_prefix_waits = stats.n_awaited;
                reading.prefix_bytes = stats.saved_bytes;
                reading.kv_used_ratio = f64::from(stats.kv_cells_used) / f64::from(stats.kv_cells_total.max(1));
            }
            reading.loaded = engine.description().map(|description| ModelLabels {
                quant: description.desc.clone(),
                n_params: description.n_params,
                n_ctx: description.n_ctx,
                sha256: description.sha256.join(","),
            });
            reading
        };
        let readings = futures_util::future::join_all(self.models().into_iter().enumerate().map(read)).await;
        self.metrics.budgets(&self.budgets_left());
        if let Some(books) = &self.books {
            let (store, health) = (books.store(), books.store().health());
            self.metrics.ledger((store.n_pending() as u64, health.is_failed(), health.n_lost(), health.chain_head()));
            if let Some(shipper) = books.shipper()
                && let Ok(lag) = shipper.lag().await
            {
                self.metrics.shipping((lag.is_connected, lag.n_rows, lag.seconds, lag.n_failed));
            }
        }
        if let Some(cache) = &self.cache {
            self.metrics.cache_bytes(cache.n_bytes(), cache.disk_bytes().unwrap_or(0));
        }
        self.live.load().upstreams.iter().for_each(|upstream| upstream.tell_breaker());
        self.metrics.page(&readings)
    }
}
