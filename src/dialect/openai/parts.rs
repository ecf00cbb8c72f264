//! The parts of a message's `content`: text, images, sound and files.

use crate::chat::{Media, MediaKind, Role};
use crate::dialect::fields::{Object, invalid_type, invalid_value, too_many};
use crate::dialect::media::{MEDIA_MAX, decode, is_elsewhere};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;

/// What reading the messages of one request finds beside their text.
pub(in crate::dialect) struct Found<'a> {
    pub ignored: &'a mut Ignored,
    /// The path of each image's and sound's type, in order: what a model without a projector refuses.
    pub media: Vec<String>,
}

/// A message's content, its text parts joined as if the client had sent one string.
#[derive(Debug, Default)]
pub(in crate::dialect) struct Content {
    pub text: Option<String>,
    pub media: Vec<Media>,
}

pub(in crate::dialect) fn content(fields: &mut Object, role: Role, found: &mut Found) -> Result<Content, Fault> {
    let path = fields.path("content");
    let parts = match fields.take("content") {
        None => return Ok(Content::default()),
        Some(Value::String(text)) => return Ok(Content { text: Some(text), media: Vec::new() }),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(invalid_type(path, "a string or an array of parts", &other)),
    };
    let (mut text, mut media) = (String::new(), Vec::new());
    for (i, value) in parts.into_iter().enumerate() {
        let part = Object::at(format!("{path}[{i}]"), value)?;
        let type_path = part.path("type");
        match part_of(part, role, found.ignored)? {
            Part::Text(more) => text.push_str(&more),
            Part::Media(kind, data) => {
                if found.media.len() == MEDIA_MAX {
                    return Err(too_many("messages", MEDIA_MAX + 1, MEDIA_MAX));
                }
                found.media.push(type_path);
                let offset = u32::try_from(text.len()).unwrap_or(u32::MAX);
                media.push(Media { kind, offset, data });
            }
        }
    }
    Ok(Content { text: Some(text), media })
}

enum Part {
    Text(String),
    Media(MediaKind, Vec<u8>),
}

fn part_of(mut part: Object, role: Role, ignored: &mut Ignored) -> Result<Part, Fault> {
    let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
    let type_path = part.path("type");
    let read = match kind.as_str() {
        "text" => Part::Text(part.string("text")?.ok_or_else(|| part.missing("text"))?),
        "refusal" if role == Role::Assistant => {
            Part::Text(part.string("refusal")?.ok_or_else(|| part.missing("refusal"))?)
        }
        "image_url" => linked(&mut part, &kind, MediaKind::Image, ignored)?,
        "audio_url" => linked(&mut part, &kind, MediaKind::Audio, ignored)?,
        "input_audio" => sound(&mut part, ignored)?,
        "file" => file(&mut part, ignored)?,
        "input_image" | "image" | "audio" | "video_url" | "input_file" => {
            return Err(unsupported(type_path, &format!("{kind} is not taken here")));
        }
        other => return Err(invalid_value(type_path, other, "text, image_url, input_audio, file")),
    };
    part.accept(&["cache_control", "prompt_cache_breakpoint", "annotations"]);
    part.finish(ignored);
    Ok(read)
}

pub(super) fn unsupported(path: String, why: &str) -> Fault {
    let message = format!("{path}: {why}.");
    Fault::new(path, "unsupported_content", message)
}

/// `image_url` and `audio_url`: an object with a `url`, or the URL alone.
fn linked(part: &mut Object, key: &str, kind: MediaKind, ignored: &mut Ignored) -> Result<Part, Fault> {
    let (url_path, url) = match part.take(key) {
        None => return Err(part.missing(key)),
        Some(Value::String(url)) => (part.path(key), url),
        Some(value) => {
            let mut link = Object::at(part.path(key), value)?;
            let url = link.string("url")?.ok_or_else(|| link.missing("url"))?;
            // How closely to look is a hint; the projector decides.
            link.accept(&["detail", "format"]);
            let path = link.path("url");
            link.finish(ignored);
            (path, url)
        }
    };
    let type_path = part.path("type");
    let Some(file) = data_url(&url_path, &url)? else {
        if kind == MediaKind::Image && is_elsewhere(&url) {
            return Ok(Part::Media(MediaKind::RemoteImage, url.into_bytes()));
        }
        return Err(unsupported(type_path, "this server fetches nothing; send the file as a data: URL"));
    };
    match file.media_kind() {
        Some(found) if found == kind => Ok(Part::Media(kind, decode(&url_path, file.data)?)),
        _ => Err(unsupported(type_path, &format!("a data: URL of the type {:?} is not taken here", file.shown()))),
    }
}

fn sound(part: &mut Object, ignored: &mut Ignored) -> Result<Part, Fault> {
    let mut audio = part.object("input_audio")?.ok_or_else(|| part.missing("input_audio"))?;
    let data = audio.string("data")?.ok_or_else(|| audio.missing("data"))?;
    // The sound's own header says what it is; the name must be one that can be read.
    match audio.string("format")?.as_deref() {
        None | Some("wav" | "mp3" | "flac") => {}
        Some(other) => return Err(invalid_value(audio.path("format"), other, "wav, mp3")),
    }
    let path = audio.path("data");
    audio.finish(ignored);
    let data = data_url(&path, &data)?.map_or(data.as_str(), |file| file.data);
    Ok(Part::Media(MediaKind::Audio, decode(&path, data)?))
}

/// A file whose text becomes part of the message. A PDF would need a reader that this server doesn't have.
fn file(part: &mut Object, ignored: &mut Ignored) -> Result<Part, Fault> {
    let mut file = part.object("file")?.ok_or_else(|| part.missing("file"))?;
    let type_path = part.path("type");
    if file.take("file_id").is_some() {
        return Err(unsupported(type_path, "no files are stored here; send file_data"));
    }
    let name = file.string("filename")?;
    let data = file.string("file_data")?.ok_or_else(|| file.missing("file_data"))?;
    let path = file.path("file_data");
    file.accept(&["format"]);
    file.finish(ignored);
    let found = data_url(&path, &data)?;
    if let Some(kind) = found.as_ref().and_then(DataUrl::media_kind) {
        return Ok(Part::Media(kind, decode(&path, found.map_or("", |file| file.data))?));
    }
    let bytes = decode(&path, found.as_ref().map_or(data.as_str(), |file| file.data))?;
    let is_pdf = bytes.starts_with(b"%PDF");
    match String::from_utf8(bytes) {
        Ok(text) if !is_pdf => Ok(Part::Text(match name {
            Some(name) => format!("{name}:\n{text}\n"),
            None => text,
        })),
        _ => Err(unsupported(type_path, "a file must be text in UTF-8, an image or a sound")),
    }
}

struct DataUrl<'a> {
    /// In lower case, without parameters.
    mime: String,
    data: &'a str,
}

impl DataUrl<'_> {
    fn media_kind(&self) -> Option<MediaKind> {
        match self.mime.as_str() {
            "image/png" | "image/jpeg" | "image/jpg" | "image/webp" | "image/gif" | "image/bmp" => {
                Some(MediaKind::Image)
            }
            "audio/wav" | "audio/x-wav" | "audio/wave" | "audio/mp3" | "audio/mpeg" | "audio/flac" => {
                Some(MediaKind::Audio)
            }
            _ => None,
        }
    }

    /// The type as far as it is worth repeating to its author.
    fn shown(&self) -> String {
        self.mime.chars().take(64).collect()
    }
}

/// `data:TYPE;base64,…`; `None` for any other kind of URL.
fn data_url<'a>(path: &str, url: &'a str) -> Result<Option<DataUrl<'a>>, Fault> {
    let Some(rest) = url.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:")).map(|_| &url[5..]) else {
        return Ok(None);
    };
    let fault = || Fault::new(path, "invalid_value", format!("{path} is not a data: URL with base64 in it."));
    let (head, data) = rest.split_once(',').ok_or_else(fault)?;
    let (mime, last) = head.rsplit_once(';').ok_or_else(fault)?;
    if !last.eq_ignore_ascii_case("base64") {
        return Err(fault());
    }
    let mime = mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Ok(Some(DataUrl { mime, data }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    type Read = (Content, Vec<String>, Ignored);

    fn read(parts: Value) -> Result<Read, Fault> {
        let mut ignored = Ignored::default();
        let mut fields = Object::at("messages[0]", json!({ "content": parts }))?;
        let mut found = Found { ignored: &mut ignored, media: Vec::new() };
        let content = content(&mut fields, Role::User, &mut found)?;
        let media = found.media;
        Ok((content, media, ignored))
    }

    fn fault(part: Value) -> (String, &'static str) {
        let shown = part.to_string();
        let fault = read(json!([part])).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn media_stand_at_their_place_in_the_text() {
        let (content, media, ignored) = read(json!([
            {"type":"text","text":"ab"},
            {"type":"image_url","image_url":{"url":"DATA:image/PNG;charset=x;base64,AQID","detail":"high"}},
            {"type":"text","text":"c"},
            {"type":"image_url","image_url":"data:image/jpeg;base64,AQI"},
            {"type":"input_audio","input_audio":{"data":"AQ\nID","format":"wav"}},
        ]))
        .unwrap();
        assert_eq!((content.text.as_deref(), ignored.header()), (Some("abc"), None));
        let places: Vec<_> = content.media.iter().map(|media| (media.kind, media.offset, media.data.len())).collect();
        assert_eq!(places, [(MediaKind::Image, 2, 3), (MediaKind::Image, 3, 2), (MediaKind::Audio, 3, 3)]);
        assert_eq!(media[2], "messages[0].content[4].type");
    }

    #[test]
    fn text_files_become_text() {
        let file = |file: Value| read(json!([{"type":"file","file":file}])).unwrap().0;
        let plain = file(json!({"file_data":"data:text/plain;base64,aGk=","filename":"a.txt"}));
        assert_eq!(plain.text.as_deref(), Some("a.txt:\nhi\n"));
        assert_eq!(file(json!({"file_data":"aGk="})).text.as_deref(), Some("hi"));
        assert_eq!(file(json!({"file_data":"data:image/png;base64,AQID"})).media.len(), 1);
    }

    /// CHAT-14, CHAT-16.
    #[test]
    fn what_can_not_be_taken_is_named() {
        let image = |url: &str| json!({"type":"image_url","image_url":{"url":url}});
        let file = |file: Value| json!({"type":"file","file":file});
        let type_path = "messages[0].content[0].type";
        let url_path = "messages[0].content[0].image_url.url";
        for (part, param, code) in [
            (image("ftp://127.0.0.1/x.png"), type_path, "unsupported_content"),
            (image("/etc/passwd"), type_path, "unsupported_content"),
            (json!({"type":"audio_url","audio_url":"file:///a.wav"}), type_path, "unsupported_content"),
            (image("data:image/svg+xml;base64,AQID"), type_path, "unsupported_content"),
            (image("data:audio/wav;base64,AQID"), type_path, "unsupported_content"),
            (image("data:image/png;base64,"), url_path, "invalid_value"),
            (image("data:image/png;base64,*"), url_path, "invalid_value"),
            (image("data:image/png,abc"), url_path, "invalid_value"),
            (image("data:image/png"), url_path, "invalid_value"),
            (json!({"type":"image_url","image_url":{}}), url_path, "missing_required_parameter"),
            (json!({"type":"image_url"}), "messages[0].content[0].image_url", "missing_required_parameter"),
            (file(json!({"file_id":"file-1"})), type_path, "unsupported_content"),
            (file(json!({"file_data":"data:application/pdf;base64,JVBERi0="})), type_path, "unsupported_content"),
            (file(json!({"file_data":"/w=="})), type_path, "unsupported_content"),
            (file(json!({})), "messages[0].content[0].file.file_data", "missing_required_parameter"),
            (json!({"type":"video_url","video_url":{}}), type_path, "unsupported_content"),
            (json!({"type":"hologram"}), type_path, "invalid_value"),
            (
                json!({"type":"input_audio","input_audio":{"data":"AQID","format":"ogg"}}),
                "messages[0].content[0].input_audio.format",
                "invalid_value",
            ),
        ] {
            assert_eq!(fault(part), (param.to_owned(), code));
        }
        let large = format!("data:image/png;base64,{}", "A".repeat(40 << 20));
        assert_eq!(fault(image(&large)), (url_path.to_owned(), "string_above_max_length"));
        let many = vec![image("data:image/png;base64,AQID"); MEDIA_MAX + 1];
        assert_eq!(read(json!(many)).unwrap_err().code, Some("array_above_max_length"));
    }
}
