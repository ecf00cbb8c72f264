//! Server-sent events as a client reads them. Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>,
//! without `event`, `id` and `retry`: the data says itself what it is.

use super::Fault;

/// Bytes of one line: a delta has hundreds, a whole call in one piece some thousand.
pub(super) const LINE_BYTES_MAX: usize = 512 << 10;
/// Bytes of one event's data, of all its lines.
const EVENT_BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Sse {
    /// **Bound:** `LINE_BYTES_MAX`.
    line: Vec<u8>,
    /// **Bound:** `EVENT_BYTES_MAX`.
    data: String,
    has_data: bool,
    /// The last byte was CR: an LF after it belongs to it.
    after_cr: bool,
    has_begun: bool,
}

impl Sse {
    /// Calls `take` with the data of each event that `bytes` complete.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        take: &mut impl FnMut(&str) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(at) = memchr::memchr2(b'\n', b'\r', bytes) {
            self.grow(&bytes[..at])?;
            let (is_cr, rest) = (bytes[at] == b'\r', &bytes[at + 1..]);
            bytes = match rest.strip_prefix(b"\n") {
                Some(rest) if is_cr => rest,
                _ => rest,
            };
            self.after_cr = is_cr && rest.is_empty();
            let line = std::mem::take(&mut self.line);
            self.end_line(&line, take)?;
            // Its room is used again.
            self.line = line;
            self.line.clear();
        }
        self.grow(bytes)
    }

    fn grow(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.line.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(Fault::Broken("line_too_long"));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, line: &[u8], take: &mut impl FnMut(&str) -> Result<(), Fault>) -> Result<(), Fault> {
        let line = if self.has_begun { line } else { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) };
        self.has_begun = true;
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if std::mem::take(&mut self.has_data) { take(&data) } else { Ok(()) };
        }
        let line = std::str::from_utf8(line).map_err(|_| Fault::Broken("not_utf8"))?;
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        // The rest is comments (no name), and fields without a use.
        if name == "data" {
            if self.data.len() + value.len() + 1 > EVENT_BYTES_MAX {
                return Err(Fault::Broken("event_too_long"));
            }
            if self.has_data {
                self.data.push('\n');
            }
            self.has_data = true;
            self.data.push_str(value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All events of `bytes`, handed over in pieces of `n`.
    fn events(bytes: &[u8], n: usize) -> Result<Vec<String>, Fault> {
        let (mut sse, mut all) = (Sse::default(), Vec::new());
        for piece in bytes.chunks(n) {
            sse.push(piece, &mut |data| {
                all.push(data.to_owned());
                Ok(())
            })?;
        }
        Ok(all)
    }

    #[test]
    fn however_lines_end_and_wherever_they_are_cut() {
        let stream = "\u{feff}: hi\r\nevent: a\r\ndata: x\u{e9}\r\ndata:\ty\r\n\r\ndata:1\rdata\r\rid: 7\n\ndata:  z\n\nevent: b\n\ndata: cut";
        let expected = ["x\u{e9}\n\ty", "1\n", " z"];
        for n in 1..=stream.len() {
            assert_eq!(events(stream.as_bytes(), n).expect("a good stream"), expected, "in pieces of {n}");
        }
    }

    #[test]
    fn lines_and_events_have_an_end() {
        let long = format!("data: {}\n\n", "x".repeat(1 << 20));
        assert_eq!(events(long.as_bytes(), 8192), Err(Fault::Broken("line_too_long")));
        assert_eq!(events(&vec![b'x'; 1 << 20], 8192), Err(Fault::Broken("line_too_long")), "without any end");
        let many = format!("data: {}\n", "x".repeat(100_000)).repeat(12);
        assert_eq!(events(many.as_bytes(), 8192), Err(Fault::Broken("event_too_long")));
        assert_eq!(events(b"data: \xff\n\n", 3), Err(Fault::Broken("not_utf8")));
    }
}
