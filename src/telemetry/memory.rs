//! Series of memory that runs short; part of the page that [`Metrics`](super::Metrics) writes.

use super::metrics::add;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};

pub(super) struct Memory {
    pressure: IntGauge,
    used: Gauge,
    shed: IntCounterVec,
}

impl Memory {
    pub(super) fn new(r: &Registry) -> Self {
        let shed = Opts::new("hearth_memory_shed_total", "What was given up because memory was short.");
        let shed = add(r, IntCounterVec::new(shed, &["what"]));
        // There from the start, so that a first one shows as an increase.
        ["caches", "batch", "new", "queue"].iter().for_each(|what| shed.with_label_values(&[what]).reset());
        Self {
            pressure: add(
                r,
                IntGauge::new(
                    "hearth_memory_pressure",
                    "What is given up for memory: 0 nothing, 1 caches, 2 batch, 3 what is new, 4 what waits.",
                ),
            ),
            used: add(
                r,
                Gauge::new("hearth_memory_used_ratio", "Part of the memory in use, of the tightest limit, 0 to 1."),
            ),
            shed,
        }
    }

    pub(super) fn found(&self, used: f64, pressure: u8) {
        self.used.set(used);
        self.pressure.set(pressure.into());
    }

    pub(super) fn shed(&self, what: &'static str, n: usize) {
        self.shed.with_label_values(&[what]).inc_by(n as u64);
    }
}
