//! Messages between the front and its child: a length (u32, little-endian) and that many bytes of postcard.

use super::Notice;
use crate::engine::config::EngineConfig;
use crate::engine::event::Event;
use crate::engine::request::{Command, RequestId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;

/// Largest frame either side accepts: the largest HTTP body with room for the rest. A longer one is a broken peer.
pub(super) const FRAME_BYTES_MAX: usize = 160 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub(super) enum ToEngine {
    /// The first frame, and only the first.
    Configure(Box<EngineConfig>),
    Request(RequestId, Command),
}

#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub(super) enum FromEngine {
    Notice(Notice),
    /// A sign of life: how far the workers are, and whether any of them has something to do.
    Pulse {
        n_steps: u64,
        is_busy: bool,
    },
    Events(Vec<(RequestId, Event)>),
}

/// Appends `message` with its length to `buffer`.
pub(super) fn encode<T: Serialize>(message: &T, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    let mut buffer = postcard::to_extend(message, buffer).map_err(io::Error::other)?;
    let length = buffer.len() - start - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX);
    let header = header.ok_or_else(|| io::Error::other(format!("a frame of {length} bytes is over the limit")))?;
    buffer[start..start + 4].copy_from_slice(&header.to_le_bytes());
    Ok(buffer)
}

/// The length in a frame's header, checked.
pub(super) fn length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is over the limit")));
    }
    Ok(length)
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Prompt, Sampling};
    use crate::engine::request::GenerateRequest;
    use crate::engine::{Description, Failure};

    #[test]
    fn frames_come_back_as_they_went() {
        let request = GenerateRequest::new(Prompt::Text("höhe".into()));
        let message = ToEngine::Request(RequestId(7), Command::Generate(Box::new(request)));
        let bytes = encode(&message, Vec::new()).expect("encodes");
        let header = bytes[..4].try_into().expect("four bytes");
        assert_eq!(length(header).expect("in bounds"), bytes.len() - 4);
        assert_eq!(decode::<ToEngine>(&bytes[4..]).expect("decodes"), message);

        let sampling = Sampling { temperature: Some(0.2), ..Default::default() };
        let description = Description { sampling, ..Default::default() };
        let ready = FromEngine::Notice(Notice::Ready(Box::new(description)));
        let bytes = encode(&ready, Vec::new()).expect("encodes");
        assert_eq!(decode::<FromEngine>(&bytes[4..]).expect("decodes"), ready);
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        assert!(length([0xff; 4]).is_err());
        let events = FromEngine::Events(vec![(RequestId(1), Event::Failed(Failure::Cancelled))]);
        let bytes = encode(&events, Vec::new()).expect("encodes");
        for cut in 4..bytes.len() - 1 {
            assert!(decode::<FromEngine>(&bytes[4..cut]).is_err());
        }
        assert!(decode::<ToEngine>(&[0xff; 64]).is_err());
    }
}
