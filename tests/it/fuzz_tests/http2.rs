//! Frames on connections to a live front, fuzzed (F3): an input is a batch of connections, each a list of frames.
//!
//! ```text
//! S 4=65535,5=16384             SETTINGS; `SA`: their acknowledgement
//! H 1 eh :method=GET|:path=/    HEADERS of stream 1, with flags by letter (e: end of stream, h: of headers, p: padded)
//! C 1 h x=y                     CONTINUATION
//! D 1 e text                    DATA
//! R 1 8                         RST_STREAM; W 1 1000: WINDOW_UPDATE; G 0 0: GOAWAY; P text: PING; Y 1 3: PRIORITY
//! F 250 0 1 00ff                any type with any flags
//! L 5                           the next frame says that it is so long
//! X 00ff                        bytes
//! bare                          no preface before them
//! ```

use super::{Sending, impatient_server, is_well, runtime, talk};
use crate::fuzz::{Shape, Target, fuzz_few, outcome};
use std::collections::{BTreeMap, BTreeSet};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CONNECTIONS_MAX: usize = 24;
/// Frames of one connection, and bytes of it.
const FRAMES_MAX: usize = 3000;
const BYTES_MAX: usize = 1 << 20;
/// Windows begin with these; frames are at most so long unless we say more.
const WINDOW: u64 = 65_535;
const FRAME_BYTES: usize = 16_384;

const WORDS: &str = "H 1 eh ¦H 3 eh ¦H 5 h ¦H 2 eh ¦H 0 eh ¦C 1 h ¦D 1 e ¦D 3 e ¦D 0 e ¦S ¦SA¦SA 1¦R 1 8¦R 0 0¦R 7 0¦W 0 1¦W 1 0¦W 0 2147483647¦\
    P 12345678¦P x¦G 0 0¦Y 1 1¦Y 1 3¦F 5 0 1 00¦F 250 255 1 ¦L 16385¦L 16777215¦L 0¦X ¦bare¦====¦:method=GET¦:method=POST¦\
    :method=CONNECT¦:method=HEAD¦:path=/livez¦:path=/v1/completions¦:path=*¦:path=¦:scheme=http¦:scheme=x¦:authority=localhost¦\
    :authority=evil.example¦host=localhost¦content-length=1¦content-length=29¦transfer-encoding=chunked¦connection=close¦\
    te=trailers¦expect=100-continue¦Upper=x¦:status=200¦:x=y¦=¦cookie=a¦|¦1=0¦1=4294967295¦3=0¦4=0¦4=2147483648¦5=16777215¦5=1¦6=1¦\
    2=1¦8=1¦ehp¦ep¦{\"prompt\":\"a\",\"max_tokens\":1}¦{\"prompt\":\"/forever\",\"stream\":true}";

fn seeds() -> Vec<Vec<u8>> {
    const GET: &str = ":method=GET|:scheme=http|:authority=localhost|:path=/livez";
    const POST: &str =
        ":method=POST|:scheme=http|:authority=localhost|:path=/v1/completions|content-type=application/json";
    const BODY: &str = r#"{"prompt":"a","max_tokens":1}"#;
    const COUNT: &str = r#"{"prompt":"/count 40","stream":true}"#;
    let plain = [
        format!("S \nH 1 eh {GET}"),
        format!("S 4=65535,5=16384\nSA\nH 1 h {POST}\nD 1 e {BODY}\nH 3 h {POST}\nD 3 e {COUNT}\nW 0 1000\nP 12345678"),
        format!("S 1=0,4=10\nH 1 h {POST}\nD 1 e {COUNT}\nW 1 5\nW 1 50\nW 0 1"),
        format!("S \nH 1 h {POST}|content-length=29\nD 1  {{\"prompt\":\nD 1 e \"a\",\"max_tokens\":1}}"),
        format!("S \nH 1 h {POST}|content-length=5\nD 1 e {BODY}"),
        format!("S \nH 1 h {POST}|expect=100-continue\nD 1 e {BODY}\nH 1 eh x=y"),
        format!("S \nH 1 h {POST}\nD 1  {BODY}\nH 1 eh trailer=x\nH 3 eh {GET}|x-a=b\nR 3 8"),
        (0..40).fold("S ".to_owned(), |all, n| format!("{all}\nH {} eh {GET}\nR {} 8", 2 * n + 1, 2 * n + 1)),
        (0..140).fold("S ".to_owned(), |all, n| format!("{all}\nH {} h {POST}", 2 * n + 1)),
        format!("S \nH 1  {GET}\n{}C 1 h x=y", "C 1  a=b\n".repeat(100)),
        format!("S \n{}", "P 12345678\n".repeat(200)),
        "S \n".repeat(100),
        format!("S \nH 1 h {POST}\n{}D 1 e {BODY}", "D 1  \n".repeat(200)),
        format!("S \nH 1 ehp {GET}\nY 1 3\nF 4 0 0 00\nG 0 0"),
    ];
    let broken = [
        format!("H 1 eh {GET}"),
        format!("bare\nS \nH 1 eh {GET}"),
        format!("S \nL 16385\nD 1  x\nH 1 eh {GET}"),
        format!("S 4=2147483648\nH 1 eh {GET}"),
        format!("S \nH 2 eh {GET}\nH 1 eh {GET}"),
        format!("S \nH 3 eh {GET}\nH 1 eh {GET}"),
        "S \nD 1 e x".to_owned(),
        "S \nR 1 0\nW 5 1".to_owned(),
        format!("S \nW 0 2147483647\nW 0 2147483647\nH 1 eh {GET}"),
        format!("S \nH 1  {GET}\nP 12345678"),
        "S \nF 1 5 1 ff ff ff ff ff ff ff".to_owned(),
        "S \nF 1 5 1 3fe1ffffffff0f828684".to_owned(),
        "S \nH 1 eh :method=GET|:path=/livez|:path=/|Upper=x|connection=close".to_owned(),
        "S \nH 1 eh x=y|:method=GET|:scheme=http|:path=/livez".to_owned(),
        format!("S \nH 1 eh {GET}|transfer-encoding=chunked|host=evil.example"),
        "S \nH 1 eh :method=CONNECT|:authority=localhost:1".to_owned(),
        "S \nF 5 4 1 00000002828684".to_owned(),
        "X 00ffffff\nX 5052 49".to_owned(),
    ];
    [&plain[..6], &plain[6..10], &plain[10..], &broken[..9], &broken[9..]]
        .map(|group| group.join("\n====\n").into_bytes())
        .to_vec()
}

/// What an input has one connection send, and what that gives the server leave for.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    /// Streams that a request may have begun on.
    begun: BTreeSet<u32>,
    /// What may come back at most, by stream, and on all together at 0.
    windows: BTreeMap<u32, u64>,
    window: u64,
    frame_bytes: usize,
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect()
}

/// A number as HPACK has it, with seven bits in the first byte.
fn integer(out: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        return out.push(n as u8);
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

/// Fields as HPACK's literals without an index.
fn fields(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for field in text.split('|').filter(|field| !field.is_empty()) {
        // The first sign may be a pseudo field's.
        let at = field.char_indices().skip(1).find(|(_, c)| *c == '=').map_or(field.len(), |(at, _)| at);
        let (name, value) = (&field[..at], field.get(at + 1..).unwrap_or_default());
        out.push(0);
        for part in [name, value] {
            integer(&mut out, part.len());
            out.extend_from_slice(part.as_bytes());
        }
    }
    out
}

impl Sent {
    fn of(text: &str) -> Self {
        let mut sent = Self { window: WINDOW, frame_bytes: FRAME_BYTES, ..Self::default() };
        if text.lines().next() != Some("bare") {
            sent.bytes.extend_from_slice(PREFACE);
        }
        let mut length = None;
        for line in text.lines().take(FRAMES_MAX) {
            if sent.bytes.len() > BYTES_MAX {
                break;
            }
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "L" => length = rest.trim().parse().ok(),
                "X" => sent.bytes.extend(hex(rest)),
                _ => sent.frame(word, rest, &mut length),
            }
        }
        sent
    }

    fn frame(&mut self, word: &str, rest: &str, length: &mut Option<u32>) {
        let mut words = rest.splitn(3, ' ');
        let mut next = || words.next().unwrap_or_default();
        let number = |text: &str| text.trim().parse::<u32>().unwrap_or(0);
        let by_letter = |letters: &str| {
            let flag = |c| if letters.contains(c) { 1u8 } else { 0 };
            flag('e') | flag('h') << 2 | flag('p') << 3
        };
        let padded = |flags: u8, payload: Vec<u8>| {
            if flags & 8 == 0 { payload } else { [vec![3], payload, vec![0; 3]].concat() }
        };
        let (kind, flags, stream, payload) = match word {
            "H" | "C" | "D" => {
                let (stream, flags) = (number(next()), by_letter(next()));
                let text = next();
                let payload = if word == "D" { text.as_bytes().to_vec() } else { fields(text) };
                let kind = match word {
                    "H" => 1,
                    "C" => 9,
                    _ => 0,
                };
                (kind, flags, stream, if kind == 9 { payload } else { padded(flags, payload) })
            }
            "SA" => (4, 1, 0, rest.as_bytes().to_vec()),
            "S" => (4, 0, 0, self.settings(rest)),
            "R" => (3, 0, number(next()), number(next()).to_be_bytes().to_vec()),
            "W" => {
                let (stream, more) = (number(next()), number(next()));
                *self.windows.entry(stream).or_default() += u64::from(more & 0x7fff_ffff);
                (8, 0, stream, more.to_be_bytes().to_vec())
            }
            "G" => (7, 0, 0, [number(next()).to_be_bytes(), number(next()).to_be_bytes()].concat()),
            "P" => (6, 0, 0, rest.as_bytes().to_vec()),
            "Y" => (2, 0, number(next()), [&number(next()).to_be_bytes()[..], &[7]].concat()),
            "F" => {
                let (kind, flags) = (number(next()) as u8, number(next()) as u8);
                let (stream, digits) = next().split_once(' ').unwrap_or_default();
                let payload = hex(digits);
                self.raw(kind, number(stream), &payload);
                (kind, flags, number(stream), payload)
            }
            _ => return,
        };
        if kind == 1 {
            self.begun.insert(stream & 0x7fff_ffff);
        }
        let n = length.take().unwrap_or(u32::try_from(payload.len()).unwrap_or(0));
        self.bytes.extend_from_slice(&n.to_be_bytes()[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&stream.to_be_bytes());
        self.bytes.extend_from_slice(&payload);
    }

    fn settings(&mut self, text: &str) -> Vec<u8> {
        let mut payload = Vec::new();
        for (id, value) in text.split(',').filter_map(|pair| pair.split_once('=')) {
            let (id, value) = (id.trim().parse::<u16>().unwrap_or(0), value.trim().parse::<u32>().unwrap_or(0));
            self.setting(id, value);
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        payload
    }

    fn setting(&mut self, id: u16, value: u32) {
        match id {
            4 => self.window = self.window.max(u64::from(value)),
            5 => self.frame_bytes = self.frame_bytes.max(value as usize),
            _ => {}
        }
    }

    /// What a frame by numbers gives leave for.
    fn raw(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        match (kind, payload) {
            (8, &[a, b, c, d, ..]) => {
                *self.windows.entry(stream).or_default() += u64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
            }
            (4, payload) => payload.chunks_exact(6).for_each(|pair| {
                let value = u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]);
                self.setting(u16::from_be_bytes([pair[0], pair[1]]), value);
            }),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Stream {
    n_heads: u32,
    n_bytes: u64,
    is_ended: bool,
}

/// What frames came, in a number. Errors: they are not such as may come. `is_known`: every request of the connection can be told,
/// since it has no false lengths and no frames by numbers alone.
fn judge(sent: &Sent, is_known: bool, mut bytes: &[u8]) -> Result<u64, String> {
    let (mut streams, mut n_bytes, mut came_out) = (BTreeMap::<u32, Stream>::new(), 0, String::new());
    let mut continues = None;
    let mut is_first = true;
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if length > sent.frame_bytes || stream >> 31 != 0 {
            return Err(format!("a frame of {length} bytes on {stream}"));
        }
        // The connection may end at any byte.
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        bytes = rest;
        if is_first && kind != 4 {
            return Err(format!("the first frame is of type {kind}"));
        }
        is_first = false;
        if let Some(open) = continues
            && (kind, stream) != (9, open)
        {
            return Err("headers without an end".to_owned());
        }
        let shape = match kind {
            3 | 8 => (length == 4).then_some(kind),
            4 => (length.is_multiple_of(6) && stream == 0).then_some(kind),
            6 => (length == 8 && stream == 0).then_some(kind),
            7 => (length >= 8 && stream == 0).then_some(kind),
            0 | 1 | 9 => (stream % 2 == 1).then_some(kind),
            _ => None,
        };
        shape.ok_or_else(|| format!("a frame of type {kind}, {length} bytes, on {stream}"))?;
        came_out.push(char::from(b'a' + kind));
        if kind == 7 {
            came_out.extend(payload[4..8].iter().map(|byte| char::from(b'a' + byte % 26)));
        }
        if !matches!(kind, 0 | 1 | 3 | 9) {
            continue;
        }
        if is_known && !sent.begun.contains(&stream) && kind != 3 {
            return Err(format!("an answer to {stream}, which nobody asked for"));
        }
        let state = streams.entry(stream).or_default();
        if state.is_ended && kind != 3 {
            return Err(format!("a frame of type {kind} behind the end of {stream}"));
        }
        match kind {
            0 => {
                if state.n_heads == 0 {
                    return Err(format!("a body without a head on {stream}"));
                }
                (state.n_bytes, n_bytes) = (state.n_bytes + length as u64, n_bytes + length as u64);
                let window = |of: u32, first: u64| first + sent.windows.get(&of).copied().unwrap_or(0);
                if is_known && (state.n_bytes > window(stream, sent.window) || n_bytes > window(0, WINDOW)) {
                    return Err(format!("{n_bytes} bytes, more than there is leave for"));
                }
            }
            1 => {
                state.n_heads += 1;
                // An interim answer, and trailers: three.
                if state.n_heads > 3 {
                    return Err(format!("{} answers to {stream}", state.n_heads));
                }
                let status = payload.iter().find(|byte| **byte >> 5 != 1);
                if status == Some(&0x8e) {
                    return Err(format!("a fault of ours on {stream}"));
                }
            }
            _ => {}
        }
        if matches!(kind, 1 | 9) {
            continues = (flags & 4 == 0).then_some(stream);
        }
        state.is_ended |= kind == 3 || kind < 2 && flags & 1 != 0;
    }
    Ok(outcome(&came_out.chars().take(40).collect::<String>()))
}

#[test]
fn connections_of_http_2() {
    let runtime = runtime();
    let server = runtime.block_on(impatient_server());
    let words: Vec<&str> = WORDS.split('¦').collect();
    let target = Target { name: "http2", seeds: seeds(), shape: Shape::Text, words: &words };
    fuzz_few(&target, 10, |input| {
        let text = String::from_utf8_lossy(input);
        let batch: Vec<&str> = text.split("\n====\n").take(CONNECTIONS_MAX).collect();
        let sent: Vec<Sent> = batch.iter().map(|text| Sent::of(text)).collect();
        runtime.block_on(async {
            let talks = sent.iter().enumerate().map(|(index, sent)| {
                let way = match (sent.bytes.len() + index) % 7 {
                    0 => Sending::HalfClosed,
                    1 => Sending::Gone,
                    2 => Sending::Pieces(12),
                    _ => Sending::Whole,
                };
                talk(&server, &sent.bytes, way)
            });
            let answers = futures_util::future::join_all(talks).await;
            let mut sum = 0u64;
            for ((text, sent), answer) in batch.iter().zip(&sent).zip(&answers) {
                let is_http1 = !sent.bytes.starts_with(PREFACE);
                let is_known = !text.lines().any(|line| line.starts_with(['X', 'L', 'F']));
                if !is_http1 {
                    let shown = || text.chars().take(2000).collect::<String>();
                    sum ^= judge(sent, is_known, answer).unwrap_or_else(|fault| unreachable!("{fault}: {:?}", shown()));
                }
            }
            is_well(&server).await;
            sum
        })
    });
}
