//! Images and sounds in a client's body: their base64, and where each of them stands.

use super::Fault;
use super::fields::too_many;
use crate::chat::MediaKind;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Images and sounds of one request, and bytes of each once decoded.
pub(super) const MEDIA_MAX: usize = 64;
const MEDIA_BYTES_MAX: usize = 24 << 20;

/// Padding may be left out, as browsers and some SDKs do.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Each image and sound of a request in order, with its path: what a model without a projector refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MediaPlaces(Vec<(MediaKind, String)>);

impl MediaPlaces {
    pub(super) fn add(&mut self, kind: MediaKind, path: String) -> Result<(), Fault> {
        if self.0.len() == MEDIA_MAX {
            return Err(too_many(path, MEDIA_MAX + 1, MEDIA_MAX));
        }
        self.0.push((kind, path));
        Ok(())
    }

    /// Where the client wrote what the engine and the gateway call `media[k]`.
    pub fn name(&self, field: &str) -> Option<&str> {
        let index = field.strip_prefix("media[")?.strip_suffix(']')?;
        self.0.get(index.parse::<usize>().ok()?).map(|(_, path)| path.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses the first image or sound that a model with these projectors can't take.
    pub fn refuse(&self, taken: &[MediaKind]) -> Result<(), Fault> {
        match self.0.iter().find(|(kind, _)| !taken.contains(kind)) {
            None => Ok(()),
            Some((MediaKind::Image | MediaKind::RemoteImage, path)) => {
                Err(unsupported(path, "this model takes no images"))
            }
            Some((MediaKind::Audio, path)) => Err(unsupported(path, "this model takes no sound")),
        }
    }
}

/// The part at `path` can't be taken.
pub(super) fn unsupported(path: &str, why: &str) -> Fault {
    Fault::new(path, "unsupported_content", format!("{path}: {why}."))
}

/// Longest address of an image elsewhere.
const URL_BYTES_MAX: usize = 8 << 10;

/// Whether the text is an address that an image may be had from, where the operator allows that.
pub(super) fn is_elsewhere(url: &str) -> bool {
    let starts = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    url.len() <= URL_BYTES_MAX && ["http://", "https://", "file://"].into_iter().any(starts)
}

/// What stands behind `data:TYPE;base64,` (the type in lower case), or `None` where the text is no data URL.
pub(super) fn data_url(url: &str) -> Option<(String, &str)> {
    let rest = url.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:")).map(|_| &url[5..])?;
    let (head, data) = rest.split_once(',')?;
    let (mime, last) = head.rsplit_once(';')?;
    let mime = mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    last.eq_ignore_ascii_case("base64").then_some((mime, data))
}

/// The bytes of base64 text; white space between the letters is fine.
pub(super) fn decode(path: &str, data: &str) -> Result<Vec<u8>, Fault> {
    if data.len() / 4 * 3 > MEDIA_BYTES_MAX {
        let message = format!("{path} may have at most {MEDIA_BYTES_MAX} bytes once decoded.");
        return Err(Fault::new(path, "string_above_max_length", message));
    }
    let decoded = if data.bytes().any(|byte| byte.is_ascii_whitespace()) {
        BASE64.decode(data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>())
    } else {
        BASE64.decode(data)
    };
    match decoded {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        Ok(_) => Err(Fault::new(path, "invalid_value", format!("{path} is empty."))),
        Err(_) => Err(Fault::new(path, "invalid_value", format!("{path} is not valid base64."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_with_and_without_padding_and_breaks() {
        for text in ["aGk=", "aGk", "aG\nk="] {
            assert_eq!(decode("p", text), Ok(b"hi".to_vec()));
        }
        assert_eq!(decode("p", "").unwrap_err().code, Some("invalid_value"));
        assert_eq!(decode("p", "*").unwrap_err().param.as_deref(), Some("p"));
        assert_eq!(decode("p", &"A".repeat(40 << 20)).unwrap_err().code, Some("string_above_max_length"));
    }

    #[test]
    fn data_urls_are_taken_apart() {
        assert_eq!(data_url("DATA:image/PNG;x=y;base64,AQ"), Some(("image/png".to_owned(), "AQ")));
        for url in ["https://x/y.png", "data:image/png,AQ", "data:", "aGk=", "é"] {
            assert_eq!(data_url(url), None);
        }
    }

    #[test]
    fn the_first_part_that_can_not_be_taken_is_named() {
        let mut places = MediaPlaces::default();
        places.add(MediaKind::Image, "a".into()).unwrap();
        places.add(MediaKind::Audio, "b".into()).unwrap();
        assert_eq!(places.refuse(&[MediaKind::Image, MediaKind::Audio]), Ok(()));
        assert_eq!(places.refuse(&[MediaKind::Image]).unwrap_err().param.as_deref(), Some("b"));
        assert_eq!(places.refuse(&[]).unwrap_err().code, Some("unsupported_content"));
        let names = ["media[1]", "media[2]", "media[]", "messages"].map(|field| places.name(field));
        assert_eq!(names, [Some("b"), None, None, None]);
        (2..MEDIA_MAX).for_each(|_| places.add(MediaKind::Image, "c".into()).unwrap());
        assert!(places.add(MediaKind::Image, "d".into()).is_err());
    }
}
