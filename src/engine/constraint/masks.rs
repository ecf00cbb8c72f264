//! Masks beside the forward pass: a thread of its own computes them while the worker decodes.

use super::Gate;
use crossbeam_channel::{Receiver, Sender};

/// Gates on their way to the thread or back, with the slot they belong to and, on the way back, what went wrong.
type Gates = Vec<(usize, Box<Gate>, Result<(), String>)>;

/// A worker's mask thread. It ends when this is dropped.
pub(in crate::engine) struct Masks {
    /// **Bound:** one batch is out at a time.
    jobs: Sender<Gates>,
    done: Receiver<Gates>,
    n_out: usize,
}

impl Masks {
    pub fn start() -> Result<Self, String> {
        let (jobs, job_queue) = crossbeam_channel::bounded::<Gates>(1);
        let (results, done) = crossbeam_channel::bounded(1);
        let run = move || {
            while let Ok(mut gates) = job_queue.recv() {
                for (_, gate, result) in &mut gates {
                    *result = gate.prepare();
                }
                if results.send(gates).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("masks".into()).stack_size(16 << 20).spawn(run);
        thread.map_err(|error| format!("no thread can be started: {error}"))?;
        Ok(Self { jobs, done, n_out: 0 })
    }

    /// Begins to compute. `collect` must come before the next batch.
    pub fn begin(&mut self, gates: Vec<(usize, Box<Gate>)>) {
        let gates: Gates = gates.into_iter().map(|(slot, gate)| (slot, gate, Ok(()))).collect();
        if !gates.is_empty() && self.jobs.send(gates).is_ok() {
            self.n_out += 1;
        }
    }

    /// What `begin` was given, with masks.
    pub fn collect(&mut self) -> Gates {
        if self.n_out == 0 {
            return Vec::new();
        }
        self.n_out -= 1;
        // The thread only leaves when this is dropped; llguidance's panics are caught by its matcher.
        self.done.recv().unwrap_or_default()
    }
}
