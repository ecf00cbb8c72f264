//! A light load generator: blocking sockets, one thread a client, so that it takes little of the cores under test.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server under test; killed on drop.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts `command` (which listens on `port`) and waits until it answers `/health` with 200.
    pub fn start(name: &'static str, mut command: Command, port: u16) -> io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn()?;
        let mut server = Self { name, address, child };
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.get("/health", Duration::from_secs(1)).is_none_or(|(status, _)| status != 200) {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("{name} left with {status}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{name} is not healthy after 60 s")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// (status, time to the first byte) of a GET; `None` when there is no answer in time.
    pub fn get(&self, path: &str, patience: Duration) -> Option<(u16, Duration)> {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&self.address, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).ok()?;
        let mut head = [0u8; 12];
        stream.read_exact(&mut head).ok()?;
        let status = std::str::from_utf8(&head[9..]).ok()?.parse().ok()?;
        Some((status, start.elapsed()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a completion and returns the open answer.
    pub fn complete(&self, request: &Request) -> io::Result<Answer> {
        let body = request.json();
        let start = Instant::now();
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(180)))?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        Ok(Answer { reader: BufReader::with_capacity(16 << 10, stream), start, line: String::new(), headers: None })
    }

    /// Streams a completion to its end.
    pub fn measure(&self, request: &Request) -> io::Result<Measured> {
        let mut answer = self.complete(request)?;
        let mut measured = Measured::default();
        while let Some(event) = answer.next_event()? {
            match event {
                StreamEvent::Text => {
                    let now = answer.start.elapsed();
                    measured.first.get_or_insert(now);
                    if let Some(last) = measured.last {
                        measured.gaps.push(now - last);
                    }
                    measured.last = Some(now);
                }
                StreamEvent::Usage { prompt, cached, completion } => {
                    (measured.n_prompt, measured.n_cached, measured.n_completion) = (prompt, cached, completion);
                }
                StreamEvent::Error(text) => return Err(io::Error::other(text)),
                StreamEvent::Other => {}
            }
        }
        measured.total = answer.start.elapsed();
        measured.headers = answer.headers.unwrap_or(measured.total);
        Ok(measured)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politely first: hearth ends its engine, llama-server its threads.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A completion request with a prompt of its own.
#[derive(Clone)]
pub struct Request {
    pub prompt: String,
    pub max_tokens: u32,
    pub stream: bool,
    /// A JSON schema that the answer must fit.
    pub schema: Option<String>,
    /// What the server has computed of the prompt before may be used.
    pub is_cached: bool,
}

impl Request {
    /// `n_words` words that no other request has in this order, so that no cache helps.
    pub fn new(n_words: usize, max_tokens: u32, seed: u64) -> Self {
        const WORDS: [&str; 16] = [
            "time", "river", "house", "garden", "letter", "island", "window", "morning", "people", "answer", "story",
            "summer", "machine", "paper", "forest", "music",
        ];
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            WORDS[(state >> 33) as usize % WORDS.len()]
        };
        let words: Vec<&str> = (0..n_words).map(|_| next()).collect();
        Self { prompt: words.join(" "), max_tokens, stream: true, schema: None, is_cached: false }
    }

    fn json(&self) -> String {
        // A constrained answer must be able to end.
        let schema = self
            .schema
            .as_ref()
            .map_or(r#""ignore_eos":true"#.to_owned(), |schema| format!(r#""json_schema":{schema}"#));
        format!(
            r#"{{"prompt":"{}","max_tokens":{},"stream":{},{schema},"temperature":0.8,"seed":7,"cache_prompt":{}{}}}"#,
            self.prompt,
            self.max_tokens,
            self.stream,
            self.is_cached,
            if self.stream { r#","stream_options":{"include_usage":true}"# } else { "" }
        )
    }
}

/// What one streamed answer took.
#[derive(Debug, Default, Clone)]
pub struct Measured {
    pub headers: Duration,
    pub first: Option<Duration>,
    pub last: Option<Duration>,
    pub gaps: Vec<Duration>,
    pub total: Duration,
    pub n_prompt: u64,
    /// Of them, those that were not computed for this request.
    pub n_cached: u64,
    pub n_completion: u64,
}

impl Measured {
    pub fn worst_gap(&self) -> Duration {
        self.gaps.iter().copied().max().unwrap_or_default()
    }

    /// Tokens per second between the first token and the last.
    pub fn decode_rate(&self) -> f64 {
        match (self.first, self.last) {
            (Some(first), Some(last)) if last > first => {
                (self.n_completion as f64 - 1.0) / (last - first).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

pub enum StreamEvent {
    Text,
    Usage { prompt: u64, cached: u64, completion: u64 },
    Error(String),
    Other,
}

/// An answer being read. Dropping it closes the connection.
pub struct Answer {
    reader: BufReader<TcpStream>,
    pub start: Instant,
    line: String,
    /// When the response's head was complete.
    pub headers: Option<Duration>,
}

impl Answer {
    /// The next server-sent event; `None` at the end.
    pub fn next_event(&mut self) -> io::Result<Option<StreamEvent>> {
        loop {
            self.line.clear();
            if self.reader.read_line(&mut self.line)? == 0 {
                return Ok(None);
            }
            let line = self.line.trim_end();
            if self.headers.is_none() {
                if line.is_empty() {
                    self.headers = Some(self.start.elapsed());
                } else if line.starts_with("HTTP/1.1 ") && !line.starts_with("HTTP/1.1 200") {
                    return Ok(Some(StreamEvent::Error(line.to_owned())));
                }
                continue;
            }
            if line.starts_with(':') {
                return Ok(Some(StreamEvent::Other));
            }
            // Chunk sizes and blank lines lie between the events.
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                return Ok(None);
            }
            return Ok(Some(read_event(data)));
        }
    }

    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(patience))
    }
}

fn read_event(data: &str) -> StreamEvent {
    if data.contains(r#""error""#) {
        return StreamEvent::Error(data.to_owned());
    }
    if let Some(at) = data.find(r#""usage":{"#) {
        let number = |key: &str| {
            let rest = &data[at..];
            let from = rest.find(key)? + key.len();
            rest[from..].split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let prompt = number(r#""prompt_tokens":"#).unwrap_or(0);
        let completion = number(r#""completion_tokens":"#).unwrap_or(0);
        let cached = number(r#""cached_tokens":"#).unwrap_or(0);
        return StreamEvent::Usage { prompt, cached, completion };
    }
    // A token may have no text of its own (half a character); it is not an arrival a reader would see.
    let has_text = data.contains(r#""text":""#) && !data.contains(r#""text":"""#);
    if has_text { StreamEvent::Text } else { StreamEvent::Other }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(values[n / 2 - 1], values[n / 2]),
        n => values[n / 2],
    }
}
