//! End to end over HTTP: hearth and, where `LLAMA_SERVER` names a binary, llama-server beside it, interleaved in one run
//! with the same model, flags and load. Prints medians and ratios.
//!
//! Environment: `LLAMA_SERVER` (path), `BENCH_MODEL` (GGUF; default
//! the demo model), `BENCH_THREADS` (both servers), `BENCH_ROUNDS` (default 5), `BENCH_LAYOUT` (`unified`
//! or `split` for both servers; default: each one's own choice), `BENCH_ONLY` (comma-separated names).

mod load;

use load::{Measured, Request, Server, StreamEvent, median};
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One figure: what it is, its unit and what each server made of it.
struct Figure {
    name: &'static str,
    unit: &'static str,
    /// Rounds of [hearth, peer].
    values: [Vec<f64>; 2],
}

/// How both servers are started.
struct Setup {
    model: PathBuf,
    peer: Option<PathBuf>,
    threads: u32,
    rounds: usize,
    /// Each slot has an equal share of the cells, or all share one pool; `None`: each server's own choice.
    is_split: Option<bool>,
}

/// Measures both servers turn by turn.
type Scenario = fn(&Setup) -> Outcome<Vec<Figure>>;

/// Server flags of one scenario.
#[derive(Clone, Copy)]
struct Shape {
    n_slots: u32,
    n_ctx: u32,
    /// One pool of cells for all slots, whatever the server would choose.
    is_pool: bool,
}

fn main() -> Outcome<()> {
    let setup = Setup {
        model: env::var_os("BENCH_MODEL").map_or_else(|| "models/hearth-demo.gguf".into(), PathBuf::from),
        peer: env::var_os("LLAMA_SERVER").map(PathBuf::from),
        threads: env::var("BENCH_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2),
        rounds: env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5),
        is_split: env::var("BENCH_LAYOUT").ok().map(|layout| layout == "split"),
    };
    let only = env::var("BENCH_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|one| one == name);
    println!("model {}, {} threads, medians of {} rounds", setup.model.display(), setup.threads, setup.rounds);
    println!("{:<44} {:>12} {:>12} {:>8}", "", "hearth", "llama-server", "ratio");
    let scenarios: [(&str, Scenario); 12] = [
        ("single", single_stream),
        ("streams", eight_streams),
        ("schema", schemas),
        ("shared", shared_prefix),
        ("return", conversations_return),
        ("beside", prompt_beside_stream),
        ("leave-prefill", leave_in_prefill),
        ("leave-whole", leave_whole_answer),
        ("health", health_under_load),
        ("queued", queued_stream),
        ("outgrow", outgrow_context),
        ("memory", memory),
    ];
    for (name, scenario) in scenarios {
        if wanted(name) {
            scenario(&setup)?.iter().for_each(print);
        }
    }
    Ok(())
}

fn print(figure: &Figure) {
    let [hearth, peer] = figure.values.each_ref().map(|values| median(values.clone()));
    let label = format!("{} ({})", figure.name, figure.unit);
    if peer.is_nan() {
        println!("{label:<44} {hearth:>12.3}");
    } else {
        println!("{label:<44} {hearth:>12.3} {peer:>12.3} {:>8.2}", hearth / peer);
    }
}

impl Setup {
    fn n_servers(&self) -> usize {
        if self.peer.is_some() { 2 } else { 1 }
    }

    fn start(&self, which: usize, shape: Shape) -> Outcome<Server> {
        // Ports no other run uses and below those that connections get: two servers never listen at once, but the old
        // one may linger.
        static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let offset = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let port = 20_000 + (std::process::id() % 300) as u16 * 40 + offset % 40;
        let (name, binary) = match (which, &self.peer) {
            (1, Some(peer)) => ("llama-server", peer.clone()),
            _ => ("hearth", PathBuf::from(env!("CARGO_BIN_EXE_hearth"))),
        };
        let mut command = Command::new(&binary);
        if which == 0 {
            command.arg("serve").arg(&self.model);
        } else {
            command.arg("-m").arg(&self.model);
        }
        match self.is_split.or(shape.is_pool.then_some(false)) {
            Some(false) => command.arg("--kv-unified"),
            Some(true) => command.arg("--no-kv-unified"),
            None => &mut command,
        };
        command.args(["--port", &port.to_string(), "-c", &shape.n_ctx.to_string()]);
        command.args(["-np", &shape.n_slots.to_string(), "-t", &self.threads.to_string()]);
        Ok(Server::start(name, command, port)?)
    }

    /// Runs `body` against fresh servers, turn by turn, and collects its figures.
    fn rounds(
        &self,
        shape: Shape,
        names: &[(&'static str, &'static str)],
        mut body: impl FnMut(&Server, u64) -> Outcome<Vec<f64>>,
    ) -> Outcome<Vec<Figure>> {
        let mut figures: Vec<Figure> =
            names.iter().map(|(name, unit)| Figure { name, unit, values: [Vec::new(), Vec::new()] }).collect();
        for round in 0..self.rounds {
            for which in 0..self.n_servers() {
                let server = self.start(which, shape)?;
                // Weights, threads and caches warm.
                server.measure(&Request::new(20, 8, 1))?;
                let values = body(&server, round as u64 + 2).map_err(|error| format!("{}: {error}", server.name))?;
                for (figure, value) in figures.iter_mut().zip(values) {
                    figure.values[which].push(value);
                }
            }
        }
        Ok(figures)
    }
}

/// Runs requests at once and waits for all.
fn together(server: &Server, requests: &[Request]) -> Outcome<(Vec<Measured>, Duration)> {
    let start = Instant::now();
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = requests.iter().map(|request| scope.spawn(move || server.measure(request))).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let took = start.elapsed();
    let measured = results.into_iter().map(|result| result.map_err(|_| "a client panicked")?.map_err(Into::into));
    Ok((measured.collect::<Outcome<Vec<_>>>()?, took))
}

fn single_stream(setup: &Setup) -> Outcome<Vec<Figure>> {
    let names = [("1 stream: decode", "token/s"), ("1 stream: first token", "ms")];
    setup.rounds(Shape { n_slots: 1, n_ctx: 2048, is_pool: false }, &names, |server, seed| {
        let measured = server.measure(&Request::new(40, 128, seed))?;
        Ok(vec![measured.decode_rate(), millis(measured.first)])
    })
}

fn eight_streams(setup: &Setup) -> Outcome<Vec<Figure>> {
    let names = [
        ("8 streams: prompt + generated", "token/s"),
        ("8 streams: generated", "token/s"),
        ("8 streams: first token, median", "ms"),
    ];
    setup.rounds(Shape { n_slots: 8, n_ctx: 4096, is_pool: false }, &names, |server, seed| {
        let requests: Vec<Request> = (0..8).map(|client| Request::new(40, 64, seed * 100 + client)).collect();
        let repeats = if fs::metadata(&setup.model)?.len() < 50 << 20 { 8 } else { 1 };
        let (mut all, mut time) = (Vec::new(), Duration::ZERO);
        for _ in 0..repeats {
            let (measured, took) = together(server, &requests)?;
            all.extend(measured);
            time += took;
        }
        let generated: u64 = all.iter().map(|one| one.n_completion).sum();
        let prompts: u64 = all.iter().map(|one| one.n_prompt).sum();
        let first = median(all.iter().map(|one| millis(one.first)).collect());
        Ok(vec![(generated + prompts) as f64 / time.as_secs_f64(), generated as f64 / time.as_secs_f64(), first])
    })
}

/// What a JSON schema costs at 8 streams: none, a list of small objects, and one of 200 properties with enums.
fn schemas(setup: &Setup) -> Outcome<Vec<Figure>> {
    let names = [
        ("8 streams: no schema", "token/s"),
        ("8 streams: a list of objects", "token/s"),
        ("  of no schema", "×"),
        ("8 streams: 200 properties and enums", "token/s"),
    ];
    // Long enough that no answer ends before its limit.
    let list = r#"{"type":"array","minItems":200,"items":{"type":"object","properties":{"name":{"type":"string","maxLength":24},
        "age":{"type":"integer","minimum":0,"maximum":150},"kind":{"enum":["north","south","east"]},"tags":{"type":"array","maxItems":3,"items":{"type":"string","maxLength":12}}},
        "required":["name","age","kind","tags"],"additionalProperties":false}}"#;
    let property = |i: usize| {
        let kind = match i % 3 {
            // Bounded, or random weights would write one string to the end.
            0 => r#"{"type":"string","maxLength":12}"#.to_owned(),
            1 => r#"{"type":"integer","minimum":0,"maximum":999}"#.to_owned(),
            _ => format!(r#"{{"enum":["value {i}","other value {i}","{i} is the third"]}}"#),
        };
        format!(r#""property_{i}":{kind}"#)
    };
    let properties: Vec<String> = (0..200).map(property).collect();
    let required: Vec<String> = (0..200).map(|i| format!(r#""property_{i}""#)).collect();
    let large = format!(
        r#"{{"type":"object","properties":{{{}}},"required":[{}],"additionalProperties":false}}"#,
        properties.join(","),
        required.join(",")
    );
    setup.rounds(Shape { n_slots: 8, n_ctx: 4096, is_pool: false }, &names, |server, seed| {
        let rate = |schema: Option<&str>, salt: u64| -> Outcome<f64> {
            let schema = schema.map(|schema| schema.replace('\n', " "));
            let request =
                |client| Request { schema: schema.clone(), ..Request::new(20, 96, seed * 100 + client + salt) };
            let requests: Vec<Request> = (0..8).map(request).collect();
            // The first answers compile the schema.
            together(server, &requests[..1])?;
            let (measured, took) = together(server, &requests)?;
            Ok(measured.iter().map(|one| one.n_completion).sum::<u64>() as f64 / took.as_secs_f64())
        };
        let (plain, small, large) = (rate(None, 0)?, rate(Some(list), 50)?, rate(Some(&large), 70)?);
        Ok(vec![plain, small, small / plain, large])
    })
}

/// From cold, 16 clients at once with the same 1,500 tokens in front of 50 of their own.
fn shared_prefix(setup: &Setup) -> Outcome<Vec<Figure>> {
    const N_CLIENTS: u64 = 16;
    const N_SHARED: usize = 1450;
    const N_OWN: usize = 48;
    let names = [
        ("16 clients, one 1,500-token prefix: all", "request/s"),
        ("  first token, 95th percentile", "ms"),
        ("  prompt tokens computed, of the distinct", "×"),
        ("  generated", "token/s"),
    ];
    // Room for every client to have cells of its own.
    setup.rounds(Shape { n_slots: 16, n_ctx: 16 * 1792, is_pool: false }, &names, |server, seed| {
        let shared = Request::new(N_SHARED, 0, seed * 53).prompt;
        let request = |client| {
            let own = Request::new(N_OWN, 64, seed * 59 + client);
            Request { prompt: format!("{shared} {}", own.prompt), is_cached: true, ..own }
        };
        let requests: Vec<Request> = (0..N_CLIENTS).map(request).collect();
        let (measured, took) = together(server, &requests)?;
        let mut firsts: Vec<f64> = measured.iter().map(|one| millis(one.first)).collect();
        firsts.sort_by(f64::total_cmp);
        let p95 = firsts[(firsts.len() * 95).div_ceil(100) - 1];
        let total: u64 = measured.iter().map(|one| one.n_prompt).sum();
        let computed: u64 = measured.iter().map(|one| one.n_prompt - one.n_cached).sum();
        // Words are tokens, nearly.
        let each = total as f64 / N_CLIENTS as f64;
        let distinct = each + (N_CLIENTS - 1) as f64 * each * N_OWN as f64 / (N_SHARED + N_OWN) as f64;
        let generated: u64 = measured.iter().map(|one| one.n_completion).sum();
        let seconds = took.as_secs_f64();
        Ok(vec![N_CLIENTS as f64 / seconds, p95, computed as f64 / distinct, generated as f64 / seconds])
    })
}

/// Six conversations of about 700 tokens take turns on two slots, so that each has lost its slot when it comes back.
fn conversations_return(setup: &Setup) -> Outcome<Vec<Figure>> {
    let names =
        [("6 chats take turns on 2 slots: first token", "ms"), ("  prompt tokens computed, of the new ones", "×")];
    setup.rounds(Shape { n_slots: 2, n_ctx: 4096, is_pool: false }, &names, |server, seed| {
        let mut prompts: Vec<String> = (0..6).map(|chat| Request::new(680, 0, seed * 61 + chat).prompt).collect();
        let (mut firsts, mut computed, mut new) = (Vec::new(), 0, 0);
        for turn in 0..3 {
            for (chat, prompt) in (0..).zip(&mut prompts) {
                let request = Request::new(20, 8, seed * 67 + turn * 10 + chat);
                prompt.push(' ');
                prompt.push_str(&request.prompt);
                let measured = server.measure(&Request { prompt: prompt.clone(), is_cached: true, ..request })?;
                if turn > 0 {
                    firsts.push(millis(measured.first));
                    computed += measured.n_prompt - measured.n_cached;
                    new += 20;
                }
            }
        }
        Ok(vec![median(firsts), computed as f64 / f64::from(new)])
    })
}

/// A stream runs while a prompt of about 1,500 tokens is computed.
fn prompt_beside_stream(setup: &Setup) -> Outcome<Vec<Figure>> {
    let names = [
        ("beside a 1,500-token prompt: worst gap", "ms"),
        ("the prompt's first token, alone", "ms"),
        ("the prompt's first token, beside the stream", "ms"),
        ("  of alone", "×"),
    ];
    setup.rounds(Shape { n_slots: 2, n_ctx: 4096, is_pool: false }, &names, |server, seed| {
        let alone = millis(server.measure(&Request::new(1450, 1, seed * 7))?.first);
        let (stream, beside) = thread::scope(|scope| {
            let stream = scope.spawn(|| server.measure(&Request::new(20, 160, seed * 11)));
            thread::sleep(Duration::from_millis(400));
            let beside = server.measure(&Request::new(1450, 1, seed * 13));
            (stream.join(), beside)
        });
        let stream = stream.map_err(|_| "a client panicked")??;
        let beside = millis(beside?.first);
        Ok(vec![stream.worst_gap().as_secs_f64() * 1e3, alone, beside, beside / alone])
    })
}

/// A client leaves in the middle of its prefill; the next one wants the only slot.
fn leave_in_prefill(setup: &Setup) -> Outcome<Vec<Figure>> {
    setup.rounds(
        Shape { n_slots: 1, n_ctx: 4096, is_pool: false },
        &[("slot free after leaving a prefill", "ms")],
        |server, seed| {
            let victim = server.complete(&Request::new(1450, 64, seed * 17))?;
            thread::sleep(Duration::from_millis(600));
            let alone = server_free_time(server, seed, || drop(victim))?;
            Ok(vec![alone])
        },
    )
}

/// A client leaves a whole (not streamed) answer while another one streams.
fn leave_whole_answer(setup: &Setup) -> Outcome<Vec<Figure>> {
    setup.rounds(
        Shape { n_slots: 2, n_ctx: 8192, is_pool: false },
        &[("slot free after leaving a whole answer", "ms")],
        |server, seed| {
            let mut stream = server.complete(&Request::new(20, 3000, seed * 19))?;
            while !matches!(stream.next_event()?, Some(StreamEvent::Text) | None) {}
            let whole = Request { stream: false, ..Request::new(20, 3000, seed * 23) };
            let victim = server.complete(&whole)?;
            thread::sleep(Duration::from_millis(500));
            server_free_time(server, seed, || drop(victim)).map(|time| vec![time])
        },
    )
}

/// Milliseconds from `leave` until a short request has its first token, less what that takes on a free slot.
fn server_free_time(server: &Server, seed: u64, leave: impl FnOnce()) -> Outcome<f64> {
    leave();
    let busy = millis(server.measure(&Request::new(4, 1, seed * 29))?.first);
    let free = millis(server.measure(&Request::new(4, 1, seed * 31))?.first);
    Ok((busy - free).max(0.0))
}

/// `/health` while 100 requests hang on 2 slots.
fn health_under_load(setup: &Setup) -> Outcome<Vec<Figure>> {
    setup.rounds(
        Shape { n_slots: 2, n_ctx: 8192, is_pool: false },
        &[("/health under 100 requests (4 s: no answer)", "ms")],
        |server, seed| {
            let hanging: Vec<_> = (0..100)
                .map(|client| server.complete(&Request::new(20, 3000, seed * 37 + client)))
                .collect::<Result<_, _>>()?;
            thread::sleep(Duration::from_millis(300));
            let patience = Duration::from_secs(4);
            let worst = (0..5).map(|_| server.get("/health", patience).map_or(patience, |(_, time)| time)).max();
            drop(hanging);
            Ok(vec![worst.unwrap_or(patience).as_secs_f64() * 1e3])
        },
    )
}

/// A stream that has to wait for a slot: when does it hear anything?
fn queued_stream(setup: &Setup) -> Outcome<Vec<Figure>> {
    setup.rounds(
        Shape { n_slots: 1, n_ctx: 8192, is_pool: false },
        &[("headers of a queued stream (5 s: none)", "ms")],
        |server, seed| {
            let hog = server.complete(&Request::new(20, 3000, seed * 41))?;
            thread::sleep(Duration::from_millis(300));
            let mut queued = server.complete(&Request::new(20, 8, seed * 43))?;
            queued.set_patience(Duration::from_secs(5))?;
            let _ = queued.next_event();
            let headers = queued.headers.unwrap_or(Duration::from_secs(5));
            drop(hog);
            Ok(vec![headers.as_secs_f64() * 1e3])
        },
    )
}

/// Four streams that together need twice the context.
fn outgrow_context(setup: &Setup) -> Outcome<Vec<Figure>> {
    setup.rounds(
        Shape { n_slots: 4, n_ctx: 512, is_pool: true },
        &[("4 streams outgrow the context: finished", "of 4")],
        |server, seed| {
            let requests: Vec<Request> = (0..4).map(|client| Request::new(30, 200, seed * 47 + client)).collect();
            let finished = thread::scope(|scope| {
                let threads: Vec<_> = requests.iter().map(|request| scope.spawn(|| server.measure(request))).collect();
                let results = threads.into_iter().map(thread::ScopedJoinHandle::join);
                results.filter(|result| matches!(result, Ok(Ok(one)) if one.n_completion == 200)).count()
            });
            Ok(vec![finished as f64])
        },
    )
}

/// Resident memory of the server and its children after some requests.
fn memory(setup: &Setup) -> Outcome<Vec<Figure>> {
    setup.rounds(
        Shape { n_slots: 4, n_ctx: 2048, is_pool: false },
        &[("resident memory, all processes", "MiB")],
        |server, seed| {
            let requests: Vec<Request> = (0..4).map(|client| Request::new(40, 32, seed * 53 + client)).collect();
            together(server, &requests)?;
            Ok(vec![resident_kib(server.pid()) as f64 / 1024.0])
        },
    )
}

/// Proportional set size of a process and its children (shared pages counted once).
fn resident_kib(pid: u32) -> u64 {
    let own = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let own: u64 = own
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut seen: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // A child may have been started by another thread of the parent.
    if let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) {
        for task in tasks.flatten() {
            let more = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            seen.extend(more.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    seen.sort_unstable();
    seen.dedup();
    own + seen.into_iter().map(resident_kib).sum::<u64>()
}

fn millis(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
