//! The servers that the clients' checks talk to, each the real binary.

use crate::support::served::Served;

/// Name in the scripts, and what `hearth serve` is told.
const SERVERS: [(&str, &[&str]); 8] = [
    // A small real model with a chat template, tools, thinking and tokens to fill in the middle.
    ("demo", &["models/hearth-demo.gguf", "--alias", "hearth-demo,gpt-4o-mini"]),
    // It says what it is told to.
    ("scripted", &["scripted:step_us=100", "--parallel", "4"]),
    ("vectors", &["models/tiny/tiny-bert.gguf"]),
    ("ranker", &["models/tiny/tiny-rank.gguf", "--rerank"]),
    ("keyed", &["scripted:", "--api-key", "sk-test", "--body-limit", "1MiB"]),
    // Its engine may be crashed.
    ("crashing", &["scripted:step_us=100"]),
    // One request of an address, and then one more after each 100 s.
    ("limited", &["scripted:", "--ip-rps", "0.01", "--ip-burst", "1"]),
    // One request at a time, and one that waits.
    ("full", &["scripted:step_us=2000", "--parallel", "1", "--queue", "1", "--ctx-size", "1000000"]),
];

pub struct Servers(Vec<(&'static str, Served)>);

impl Servers {
    pub fn start() -> Self {
        Self(SERVERS.iter().map(|(name, arguments)| (*name, Served::of(arguments))).collect())
    }

    /// A script's arguments: the address of the first, and the others by name.
    pub fn arguments(&self) -> Vec<String> {
        let named = |(name, served): &(&str, Served)| format!("{name}={}", served.url);
        let first = self.0.first().map(|(_, served)| served.url.clone());
        first.into_iter().chain(self.0.iter().skip(1).map(named)).collect()
    }
}
