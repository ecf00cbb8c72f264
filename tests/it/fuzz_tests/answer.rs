//! HTTP/1 read as strictly as its standard (RFC 9112) has it: what a connection's requests are, and what its answers.

/// One request as it is framed. What is not clear ends the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// HTTP/1.0, whose connections end with the answer unless they say otherwise.
    pub is_old: bool,
}

/// The requests in `bytes`, up to the first that is not clear or not whole, which is the last one here: a server may answer as
/// many, and no more.
pub fn requests(mut bytes: &[u8]) -> Vec<Asked> {
    let mut asked = Vec::new();
    loop {
        // Empty lines before a request are nothing.
        while let Some(rest) = bytes.strip_prefix(b"\r\n").or(bytes.strip_prefix(b"\n")) {
            bytes = rest;
        }
        if bytes.is_empty() {
            return asked;
        }
        let Some((request, framing, rest)) = head(bytes) else {
            // Whatever it is, one answer says so.
            let method = bytes.split(|byte| !byte.is_ascii_uppercase()).next().unwrap_or_default();
            asked.push(Asked { method: String::from_utf8_lossy(method).into_owned(), is_old: false });
            return asked;
        };
        asked.push(request);
        bytes = match framing {
            Framing::Bytes(n) if n <= rest.len() => &rest[n..],
            // The end of the connection: a body that is cut, chunks (after which ours closes), or what nobody can tell.
            Framing::Bytes(_) | Framing::Last => return asked,
        };
    }
}

enum Framing {
    Bytes(usize),
    /// Nothing behind it is a request.
    Last,
}

/// A request's head, the frame of its body, and what comes behind the head.
fn head(bytes: &[u8]) -> Option<(Asked, Framing, &[u8])> {
    let mut rest = bytes;
    let mut line = || {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        Some(line)
    };
    let first = std::str::from_utf8(line()?).ok()?;
    let mut words = first.split(' ');
    let (method, _, version) = (words.next()?, words.next()?, words.next()?);
    let is_old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return None,
    };
    let (mut lengths, mut is_chunked) = (Vec::new(), false);
    loop {
        let line = line()?;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths.push(std::str::from_utf8(value).ok()?.parse::<usize>().ok()?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            is_chunked = true;
        }
    }
    lengths.dedup();
    let framing = match (is_chunked, &lengths[..]) {
        (true, _) | (_, [_, _, ..]) => Framing::Last,
        (false, []) => Framing::Bytes(0),
        (false, [n]) => Framing::Bytes(*n),
    };
    Some((Asked { method: method.to_owned(), is_old }, framing, rest))
}

/// One answer.
#[derive(Debug)]
pub struct Told {
    pub status: u16,
    pub says_close: bool,
    pub body: Vec<u8>,
    pub kind: String,
}

/// The answers in `bytes` to these requests. Errors: what is wrong with them; `may_be_cut`: the last may lack its end.
pub fn answers(mut bytes: &[u8], asked: &[Asked], may_be_cut: bool) -> Result<Vec<Told>, String> {
    let mut told: Vec<Told> = Vec::new();
    while !bytes.is_empty() {
        if told.last().is_some_and(|told| told.says_close) {
            return Err("something comes behind an answer that says it is the last".to_owned());
        }
        let Some(asked) = asked.get(told.len()) else {
            return Err(format!("{} requests, and a further answer", told.len()));
        };
        match answer(bytes, &asked.method) {
            Ok(Some((answer, rest))) => {
                bytes = rest;
                // An interim answer is none of its own.
                if answer.status >= 200 {
                    told.push(answer);
                }
            }
            Ok(None) if may_be_cut => break,
            Ok(None) => return Err("an answer is cut".to_owned()),
            Err(fault) => return Err(fault),
        }
    }
    Ok(told)
}

type Rest<'b> = (Vec<u8>, &'b [u8]);

/// The first answer and what comes behind it; `None`: it lacks its end.
fn answer<'b>(bytes: &'b [u8], method: &str) -> Result<Option<(Told, &'b [u8])>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > 64 << 10 { Err("a head without an end".to_owned()) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text".to_owned())?;
    let rest = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").or(first.strip_prefix("HTTP/1.0 "));
    let status =
        status.and_then(|text| text.get(..3)?.parse::<u16>().ok()).filter(|status| (100..600).contains(status));
    let status = status.ok_or_else(|| format!("no status line: {first:?}"))?;
    let (mut length, mut is_chunked, mut says_close, mut kind) = (None, false, false, String::new());
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or_else(|| format!("no field: {line:?}"))?;
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) || value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(format!("no field: {line:?}"));
        }
        match name.to_ascii_lowercase().as_str() {
            "content-length" if length.is_some() => return Err("two lengths".to_owned()),
            "content-length" => length = Some(value.parse::<usize>().map_err(|_| format!("no length: {value:?}"))?),
            "transfer-encoding" if value == "chunked" && !is_chunked => is_chunked = true,
            "transfer-encoding" => return Err(format!("a coding of {value:?}")),
            "connection" => says_close |= value.eq_ignore_ascii_case("close"),
            "content-type" => kind = value.to_owned(),
            _ => {}
        }
    }
    let mut told = Told { status, says_close, body: Vec::new(), kind };
    if is_chunked && length.is_some() {
        return Err("a length and chunks".to_owned());
    }
    if method == "HEAD" || status < 200 || matches!(status, 204 | 304) {
        return Ok(Some((told, rest)));
    }
    if is_chunked {
        let Some((body, rest)) = chunks(rest)? else { return Ok(None) };
        told.body = body;
        return Ok(Some((told, rest)));
    }
    // Without either it goes on to the end of the connection.
    let n = length.unwrap_or(rest.len());
    told.says_close |= length.is_none();
    if rest.len() < n {
        return Ok(None);
    }
    told.body = rest[..n].to_vec();
    Ok(Some((told, &rest[n..])))
}

/// A body in chunks, and what comes behind it; `None`: it lacks its end.
fn chunks(mut bytes: &[u8]) -> Result<Option<Rest<'_>>, String> {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or_else(|| format!("no size of a chunk: {:?}", &bytes[..end.min(20)]))?;
        bytes = &bytes[end + 2..];
        if bytes.len() < size + 2 {
            return Ok(None);
        }
        body.extend_from_slice(&bytes[..size]);
        if &bytes[size..size + 2] != b"\r\n" {
            return Err("a chunk is not as long as it says".to_owned());
        }
        bytes = &bytes[size + 2..];
        if size == 0 {
            return Ok(Some((body, bytes)));
        }
    }
}

#[test]
fn requests_are_counted_as_they_are_framed() {
    let count = |text: &str| requests(text.as_bytes()).len();
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!((count(""), count("\r\n"), count("x"), count(get), count(&get.repeat(3))), (0, 0, 1, 1, 3));
    let post = |n: usize| format!("POST / HTTP/1.1\r\ncontent-length: {n}\r\n\r\nab{get}");
    assert_eq!((count(&post(2)), count(&post(0)), count(&post(2 + get.len())), count(&post(4000))), (2, 2, 1, 1));
    let chunked = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{get}");
    assert_eq!(count(&chunked), 1);
}

#[test]
fn answers_are_read_strictly() {
    let asked = requests(b"GET / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n");
    let one = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    let two = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n";
    let read = |text: String| answers(text.as_bytes(), &asked, false).map(|told| told.len());
    assert_eq!(read(format!("{one}{two}")), Ok(2));
    assert_eq!(read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n".into()), Ok(1));
    for bad in [
        format!("{one}{two}{two}"),
        format!("{one}x"),
        one[..one.len() - 1].to_owned(),
        "HTTP/1.1 200 OK\r\nx\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_owned(),
    ] {
        assert!(read(bad.clone()).is_err(), "{bad:?}");
    }
}
