//! `messages` and `system`: turns made of blocks.

use super::engine_id;
use crate::chat::{Media, MediaKind, Message, Role, ToolCall};
use crate::dialect::fields::{Object, empty_array, invalid_type, invalid_value, too_many};
use crate::dialect::media::{MediaPlaces, data_url, decode, is_elsewhere, unsupported};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;
use std::collections::HashMap;

/// Messages of one request. Each takes a few tokens at least, so no context holds more.
const MESSAGES_MAX: usize = 65_536;
/// Blocks that may stand in each other: a result of a document of blocks.
const NESTING_MAX: usize = 4;
/// Media types that Anthropic's API takes.
const IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// What reading finds beside the text.
pub(super) struct Found<'a> {
    pub ignored: &'a mut Ignored,
    pub media: MediaPlaces,
}

/// Neighbouring messages of one role, as one turn.
#[derive(Debug, Default)]
struct Turn {
    role: Option<Role>,
    text: String,
    media: Vec<Placed>,
    reasoning: String,
    calls: Vec<ToolCall>,
    /// Results of calls: (id, text, media).
    results: Vec<(String, String, Vec<Placed>)>,
}

/// An image, and the path of its block's type.
#[derive(Debug)]
struct Placed {
    media: Media,
    path: String,
}

impl Placed {
    /// `n` bytes of text more stand before it.
    fn behind(mut self, n: u32) -> Self {
        self.media.offset = self.media.offset.saturating_add(n);
        self
    }
}

impl Turn {
    /// Appends a later message of the same role, in a paragraph of its own.
    fn join(&mut self, next: Turn) {
        if !self.text.is_empty() && !next.text.is_empty() {
            self.text.push_str("\n\n");
        }
        let base = offset(&self.text);
        self.text.push_str(&next.text);
        self.media.extend(next.media.into_iter().map(|it| it.behind(base)));
        if !self.reasoning.is_empty() && !next.reasoning.is_empty() {
            self.reasoning.push('\n');
        }
        self.reasoning.push_str(&next.reasoning);
        self.calls.extend(next.calls);
        self.results.extend(next.results);
    }

    /// The turn as the template gets it; results come before what the user says to them. `names`: of the calls so far;
    /// `places`: of the images so far, in the order of the messages.
    fn into_messages(
        self,
        names: &mut HashMap<String, String>,
        places: &mut MediaPlaces,
        messages: &mut Vec<Message>,
    ) -> Result<(), Fault> {
        let has_results = !self.results.is_empty();
        for (id, text, media) in self.results {
            let mut result = Message::new(Role::Tool, text);
            (result.media, result.name) = (list(media, places)?, names.get(&id).cloned());
            result.tool_call_id = Some(id);
            messages.push(result);
        }
        if has_results && self.text.is_empty() && self.media.is_empty() {
            return Ok(());
        }
        names.extend(self.calls.iter().map(|call| (call.id.clone(), call.name.clone())));
        let mut message = Message::new(self.role.unwrap_or(Role::User), self.text);
        if !self.calls.is_empty() {
            message.content = message.content.filter(|text| !text.is_empty());
        }
        message.media = list(self.media, places)?;
        message.reasoning = Some(self.reasoning).filter(|text| !text.is_empty());
        message.tool_calls = self.calls;
        messages.push(message);
        Ok(())
    }
}

fn list(media: Vec<Placed>, places: &mut MediaPlaces) -> Result<Vec<Media>, Fault> {
    let add = |Placed { media, path }| places.add(MediaKind::Image, path).map(|()| media);
    media.into_iter().map(add).collect()
}

fn offset(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// The system text first, then the turns.
pub(super) fn conversation(body: &mut Object, found: &mut Found) -> Result<Vec<Message>, Fault> {
    let mut messages = Vec::new();
    if body.has("system") {
        let mut system = Turn::default();
        blocks(body, "system", &mut system, Place::System, found)?;
        if !system.text.is_empty() {
            messages.push(Message::new(Role::System, system.text));
        }
    }
    let values = body.array("messages")?.ok_or_else(|| body.missing("messages"))?;
    if values.is_empty() {
        return Err(empty_array("messages"));
    }
    if values.len() > MESSAGES_MAX {
        return Err(too_many("messages", values.len(), MESSAGES_MAX));
    }
    let mut turns: Vec<Turn> = Vec::new();
    for (i, value) in values.into_iter().enumerate() {
        let turn = turn(format!("messages[{i}]"), value, found)?;
        match turns.last_mut() {
            Some(last) if last.role == turn.role => last.join(turn),
            _ => turns.push(turn),
        }
    }
    let mut names = HashMap::new();
    // So far in the order of the body; the engine counts them in the order of the messages.
    found.media = MediaPlaces::default();
    for turn in turns {
        turn.into_messages(&mut names, &mut found.media, &mut messages)?;
    }
    Ok(messages)
}

fn turn(path: String, value: Value, found: &mut Found) -> Result<Turn, Fault> {
    let mut fields = Object::at(path, value)?;
    let role = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let (role, place) = match role.as_str() {
        "user" => (Role::User, Place::User),
        "assistant" => (Role::Assistant, Place::Assistant),
        "system" => (Role::System, Place::System),
        other => return Err(invalid_value(fields.path("role"), other, "user, assistant, system")),
    };
    if !fields.has("content") {
        return Err(fields.missing("content"));
    }
    let mut turn = Turn { role: Some(role), ..Default::default() };
    blocks(&mut fields, "content", &mut turn, place, found)?;
    // What our own answers carry beside the content.
    fields.accept(&["id", "type", "model", "stop_reason", "stop_sequence", "usage", "container", "cache_control"]);
    fields.finish(found.ignored);
    Ok(turn)
}

/// Whose blocks are read: each kind of block has its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    System,
    User,
    Assistant,
    /// Inside a result or a document.
    Inner(usize),
}

impl Place {
    fn kinds(self) -> &'static str {
        match self {
            Place::System => "text",
            Place::User => "text, image, document, search_result, tool_result",
            Place::Assistant => "text, thinking, redacted_thinking, tool_use",
            Place::Inner(_) => "text, image, document, search_result",
        }
    }
}

/// A text, or blocks, appended to `turn`.
fn blocks(fields: &mut Object, key: &str, turn: &mut Turn, place: Place, found: &mut Found) -> Result<(), Fault> {
    let path = fields.path(key);
    let values = match fields.take(key) {
        None => return Ok(()),
        Some(Value::String(text)) => {
            turn.text.push_str(&text);
            return Ok(());
        }
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid_type(path, "a string or an array of blocks", &other)),
    };
    for (i, value) in values.into_iter().enumerate() {
        let mut block = Object::at(format!("{path}[{i}]"), value)?;
        read_block(&mut block, turn, place, found)?;
        block.accept(&["cache_control"]);
        block.finish(found.ignored);
    }
    Ok(())
}

fn read_block(block: &mut Object, turn: &mut Turn, place: Place, found: &mut Found) -> Result<(), Fault> {
    let kind = block.string("type")?.ok_or_else(|| block.missing("type"))?;
    let holds_media = matches!(place, Place::User | Place::Inner(_));
    match kind.as_str() {
        "text" => {
            turn.text.push_str(&required(block, "text")?);
            // Our own text blocks have none; others' point into documents that the model doesn't see.
            block.accept(&["citations"]);
        }
        "image" if holds_media => image(block, turn, found)?,
        "document" if holds_media => document(block, turn, place, found)?,
        "search_result" if holds_media => search_result(block, turn, place, found)?,
        "tool_result" if place == Place::User => tool_result(block, turn, found)?,
        "tool_use" if place == Place::Assistant => tool_use(block, turn)?,
        "thinking" if place == Place::Assistant => {
            if !turn.reasoning.is_empty() {
                turn.reasoning.push('\n');
            }
            turn.reasoning.push_str(&required(block, "thinking")?);
            block.string("signature")?;
        }
        "redacted_thinking" if place == Place::Assistant => block.accept(&["data"]),
        other => return Err(invalid_value(block.path("type"), other, place.kinds())),
    }
    Ok(())
}

fn required(fields: &mut Object, key: &str) -> Result<String, Fault> {
    fields.string(key)?.ok_or_else(|| fields.missing(key))
}

fn image(block: &mut Object, turn: &mut Turn, found: &mut Found) -> Result<(), Fault> {
    let type_path = block.path("type");
    let mut source = block.object("source")?.ok_or_else(|| block.missing("source"))?;
    let kind = required(&mut source, "type")?;
    let mut media_kind = MediaKind::Image;
    let data = match kind.as_str() {
        "base64" => {
            let media_type = required(&mut source, "media_type")?;
            if !IMAGE_TYPES.contains(&media_type.to_ascii_lowercase().as_str()) {
                return Err(invalid_value(source.path("media_type"), &media_type, &IMAGE_TYPES.join(", ")));
            }
            let data = required(&mut source, "data")?;
            decode(&source.path("data"), &data)?
        }
        "url" => {
            let url = required(&mut source, "url")?;
            match data_url(&url) {
                Some((mime, data)) if IMAGE_TYPES.contains(&mime.as_str()) => decode(&source.path("url"), data)?,
                // The gateway decides whether it is fetched.
                _ if is_elsewhere(&url) => {
                    media_kind = MediaKind::RemoteImage;
                    url.into_bytes()
                }
                _ => return Err(unsupported(&type_path, "its address is no http(s), file or data: URL")),
            }
        }
        "file" => return Err(unsupported(&type_path, "no files are stored here; send the image as base64")),
        other => return Err(invalid_value(source.path("type"), other, "base64, url")),
    };
    source.finish(found.ignored);
    found.media.add(MediaKind::Image, type_path.clone())?;
    let media = Media { kind: media_kind, offset: offset(&turn.text), data };
    turn.media.push(Placed { media, path: type_path });
    Ok(())
}

/// A document's title, context and text become text of the turn.
fn document(block: &mut Object, turn: &mut Turn, place: Place, found: &mut Found) -> Result<(), Fault> {
    let type_path = block.path("type");
    for key in ["title", "context"] {
        if let Some(text) = block.string(key)?.filter(|text| !text.is_empty()) {
            turn.text.push_str(&text);
            turn.text.push('\n');
        }
    }
    refuse_citations(block)?;
    let mut source = block.object("source")?.ok_or_else(|| block.missing("source"))?;
    let kind = required(&mut source, "type")?;
    match kind.as_str() {
        "text" => {
            turn.text.push_str(&required(&mut source, "data")?);
            source.string("media_type")?;
        }
        "content" => {
            let inner = deeper(place, &source)?;
            if !source.has("content") {
                return Err(source.missing("content"));
            }
            blocks(&mut source, "content", turn, inner, found)?;
        }
        "base64" => return Err(unsupported(&type_path, "this server reads no PDF; send the document as text")),
        "url" => return Err(unsupported(&type_path, "this server fetches nothing; send the document as text")),
        "file" => return Err(unsupported(&type_path, "no files are stored here; send the document as text")),
        other => return Err(invalid_value(source.path("type"), other, "text, content")),
    }
    source.finish(found.ignored);
    Ok(())
}

fn search_result(block: &mut Object, turn: &mut Turn, place: Place, found: &mut Found) -> Result<(), Fault> {
    let inner = deeper(place, block)?;
    let (title, source) = (required(block, "title")?, required(block, "source")?);
    turn.text.push_str(&format!("{title} ({source})\n"));
    refuse_citations(block)?;
    blocks(block, "content", turn, inner, found)?;
    turn.text.push('\n');
    Ok(())
}

fn refuse_citations(block: &mut Object) -> Result<(), Fault> {
    let Some(mut citations) = block.object("citations")? else { return Ok(()) };
    if citations.bool("enabled")?.unwrap_or(false) {
        return Err(citations.unsupported("enabled", "this server writes no citations"));
    }
    Ok(())
}

fn deeper(place: Place, fields: &Object) -> Result<Place, Fault> {
    match place {
        Place::Inner(depth) if depth >= NESTING_MAX => {
            let path = fields.path("content");
            let message = format!("{path}: blocks may stand in each other at most {NESTING_MAX} deep.");
            Err(Fault::new(path, "invalid_value", message))
        }
        Place::Inner(depth) => Ok(Place::Inner(depth + 1)),
        _ => Ok(Place::Inner(1)),
    }
}

fn tool_result(block: &mut Object, turn: &mut Turn, found: &mut Found) -> Result<(), Fault> {
    let id = required(block, "tool_use_id")?;
    let mut result = Turn::default();
    blocks(block, "content", &mut result, Place::Inner(1), found)?;
    if block.bool("is_error")?.unwrap_or(false) {
        // Templates have no place for it, and the model should know.
        const MARK: &str = "Error: ";
        result.text.insert_str(0, MARK);
        result.media = result.media.into_iter().map(|it| it.behind(offset(MARK))).collect();
    }
    turn.results.push((engine_id(id), result.text, result.media));
    Ok(())
}

fn tool_use(block: &mut Object, turn: &mut Turn) -> Result<(), Fault> {
    let id = required(block, "id")?;
    let name = required(block, "name")?;
    let path = block.path("input");
    let arguments = match block.take("input") {
        None => "{}".to_owned(),
        Some(input @ Value::Object(_)) => input.to_string(),
        Some(other) => return Err(invalid_type(path, "an object", &other)),
    };
    block.accept(&["caller"]);
    turn.calls.push(ToolCall { id: engine_id(id), name, arguments });
    Ok(())
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
