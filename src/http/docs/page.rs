//! The document as a page of plain HTML: folded sections, no scripts, one style. Ids stand inside what is folded, because
//! browsers unfold what a link's target is in.

use serde_json::{Map, Value};
use std::fmt::Write as _;

pub(super) const STYLE: &str = include_str!("style.css");

pub(super) fn page(document: &Value) -> String {
    let info = &document["info"];
    let (title, version) = (text(&info["title"]), text(&info["version"]));
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title} API</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head><body>\
         <header><h1>{title} <small>{version}</small></h1>{}<p>For programs: <a href=\"openapi.json\">openapi.json</a>. \
         Where the server has API keys, send one as <code>Authorization: Bearer KEY</code> or <code>x-api-key: KEY</code>.\
         </p></header>",
        paragraphs(&info["description"]),
    );
    let tags = list(&document["tags"]).map(|tag| text(&tag["name"]));
    let tags: Vec<String> = tags.collect();
    out.push_str("<nav aria-label=\"Sections\"><ul>");
    for name in tags.iter().map(String::as_str).chain(["Shapes"]) {
        let _ = write!(out, "<li><a href=\"#{}\">{name}</a></li>", anchor(name));
    }
    out.push_str("</ul></nav><main>");
    for tag in &tags {
        let _ = write!(out, "<section id=\"{}\"><h2>{tag}</h2>", anchor(tag));
        for (path, item) in entries(&document["paths"]) {
            for (method, operation) in entries(item) {
                let is_here = text(&operation["tags"][0]) == *tag && operation.get("x-hearth-alias-of").is_none();
                if is_here {
                    write_operation(document, path, method, operation, &mut out);
                }
            }
        }
        out.push_str("</section>");
    }
    out.push_str("<section id=\"shapes\"><h2>Shapes</h2>");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let name = escape(name);
        let _ = write!(out, "<details><summary><code>{name}</code></summary><div class=\"body\" id=\"shape-{name}\">");
        write_shape(schema, &mut out);
        out.push_str("</div></details>");
    }
    out.push_str("</section></main></body></html>");
    out
}

fn write_operation(document: &Value, path: &str, method: &str, operation: &Value, out: &mut String) {
    let id = text(&operation["operationId"]);
    let _ = write!(
        out,
        "<details><summary><span class=\"method {0}\">{0}</span><code>{1}</code>\
         <span class=\"about\">{2}</span></summary><div class=\"body\" id=\"{id}\">{3}",
        escape(method),
        escape(path),
        text(&operation["summary"]),
        paragraphs(&operation["description"]),
    );
    let is_alias = |item: &Value| item[method]["x-hearth-alias-of"] == path;
    let aliases = entries(&document["paths"]).filter(|(_, item)| is_alias(item));
    let aliases: Vec<String> = aliases.map(|(alias, _)| format!("<code>{}</code>", escape(alias))).collect();
    if !aliases.is_empty() {
        let _ = write!(out, "<p>Also at {}.</p>", aliases.join(", "));
    }
    write_parameters(&operation["parameters"], out);
    let request = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !request.is_null() {
        out.push_str("<h3>Body</h3>");
        let schema = resolve(document, request);
        for example in list(&schema["examples"]) {
            let example = serde_json::to_string_pretty(example).unwrap_or_default();
            let _ = write!(out, "<pre tabindex=\"0\">{}</pre>", escape(&example));
        }
        write_shape(schema, out);
    }
    write_answers(document, operation, out);
    out.push_str("</div></details>");
}

fn write_parameters(parameters: &Value, out: &mut String) {
    if list(parameters).next().is_none() {
        return;
    }
    out.push_str("<h3>Parameters</h3><dl>");
    for parameter in list(parameters) {
        let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
        let _ = write!(out, "<dt><code>{name}</code><span class=\"type\">in the {place}</span></dt>");
        let _ = write!(out, "<dd>{}</dd>", text(&parameter["description"]));
    }
    out.push_str("</dl>");
}

fn write_answers(document: &Value, operation: &Value, out: &mut String) {
    let mut refusals = Vec::new();
    for (status, response) in entries(&operation["responses"]) {
        let response = resolve(document, response);
        if status != "200" {
            refusals.push(format!("<li><code>{}</code> {}</li>", escape(status), text(&response["description"])));
            continue;
        }
        out.push_str("<h3>Answer</h3>");
        for (kind, content) in entries(&response["content"]) {
            let schema = &content["schema"];
            let event = &schema["x-event"];
            let what = if event.is_null() { kind_of(schema) } else { format!("events of {}", kind_of(event)) };
            let _ = write!(out, "<p><code>{}</code>: {what}</p>", escape(kind));
        }
    }
    if !refusals.is_empty() {
        let _ = write!(out, "<h3>Refusals</h3><ul class=\"errors\">{}</ul>", refusals.concat());
    }
}

/// Properties, or the forms that a value may have.
fn write_shape(schema: &Value, out: &mut String) {
    out.push_str(&paragraphs(&schema["description"]));
    let forms: Vec<&Value> = ["anyOf", "oneOf"].iter().flat_map(|key| list(&schema[*key])).collect();
    if !forms.is_empty() {
        out.push_str("<p>One of:</p>");
        for form in forms {
            let is_plain = form.get("properties").is_none();
            if is_plain {
                let _ =
                    write!(out, "<p>{} <span class=\"about\">{}</span></p>", kind_of(form), text(&form["description"]));
            } else {
                write_shape(form, out);
            }
        }
    }
    if let Some(target) = schema["$ref"].as_str() {
        let _ = write!(out, "<p>With everything of {}.</p>", link(target));
    }
    match schema["properties"].as_object() {
        Some(properties) => write_properties(schema, properties, out),
        None if schema.get("anyOf").is_none() && schema.get("oneOf").is_none() => {
            let _ = write!(out, "<p>{}</p>", kind_of(schema));
        }
        None => {}
    }
}

/// Those that work; what has no effect or is refused is folded.
fn write_properties(schema: &Value, properties: &Map<String, Value>, out: &mut String) {
    let required: Vec<&str> = list(&schema["required"]).filter_map(Value::as_str).collect();
    let marked = |mark: Option<&str>| {
        let these = properties.iter().filter(move |(_, property)| property["x-hearth"].as_str() == mark);
        these.collect::<Vec<_>>()
    };
    let write_all = |these: &[(&String, &Value)], out: &mut String| {
        out.push_str("<dl>");
        for (name, property) in these {
            let mark = if required.contains(&name.as_str()) { "<span class=\"mark\">required</span>" } else { "" };
            let (name, kind) = (escape(name), kind_of(property));
            let _ = write!(out, "<dt><code>{name}</code><span class=\"type\">{kind}</span>{mark}</dt>");
            let _ = write!(out, "<dd>{}</dd>", text(&property["description"]));
        }
        out.push_str("</dl>");
    };
    write_all(&marked(None), out);
    for (mark, about) in [("no effect", "Accepted without effect"), ("refused", "Refused by name, unless empty")] {
        let these = marked(Some(mark));
        if !these.is_empty() {
            let _ = write!(out, "<details><summary>{about}: {}</summary><div class=\"body\">", these.len());
            write_all(&these, out);
            out.push_str("</div></details>");
        }
    }
}

/// A schema in a few words.
fn kind_of(schema: &Value) -> String {
    if let Some(target) = schema["$ref"].as_str() {
        return link(target);
    }
    if let Some(only) = schema.get("const") {
        return format!("<code>{}</code>", escape(&only.to_string()));
    }
    let values: Vec<&Value> = list(&schema["enum"]).filter(|value| !value.is_null()).collect();
    if !values.is_empty() {
        let values: Vec<String> =
            values.iter().map(|value| format!("<code>{}</code>", escape(&value.to_string()))).collect();
        return values.join(" | ");
    }
    let forms = ["anyOf", "oneOf"].iter().flat_map(|key| list(&schema[*key])).filter(|form| form["type"] != "null");
    let forms: Vec<String> = forms.map(kind_of).collect();
    if !forms.is_empty() {
        return forms.join(" or ");
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect(),
        name => name.as_str().into_iter().collect(),
    };
    match names.first() {
        None => "anything".to_owned(),
        Some(&"array") => format!("array of {}{}", kind_of(&schema["items"]), range(schema, "minItems", "maxItems")),
        Some(name) => {
            format!("{name}{}{}", range(schema, "minimum", "maximum"), range(schema, "minLength", "maxLength"))
        }
    }
}

/// `, 1 to 128`, or with one end open.
fn range(schema: &Value, min: &str, max: &str) -> String {
    // The limits of the integer's own type say nothing.
    let shown = |key: &str| schema.get(key).filter(|limit| limit.as_f64().is_some_and(|n| n.abs() < 2e9));
    match (shown(min), shown(max)) {
        (None, None) => String::new(),
        (Some(min), None) if min.as_f64() == Some(0.0) => String::new(),
        (Some(min), None) => format!(", at least {min}"),
        (None, Some(max)) => format!(", at most {max}"),
        (Some(min), Some(max)) => format!(", {min} to {max}"),
    }
}

fn link(target: &str) -> String {
    let name = escape(target.rsplit('/').next().unwrap_or_default());
    format!("<a href=\"#shape-{name}\">{name}</a>")
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema["$ref"].as_str().and_then(|target| document.pointer(target.trim_start_matches('#')));
    target.unwrap_or(schema)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn paragraphs(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    text.split("\n\n").filter(|part| !part.is_empty()).map(|part| format!("<p>{}</p>", marked_up(part))).collect()
}

fn text(value: &Value) -> String {
    marked_up(value.as_str().unwrap_or_default())
}

/// Escaped, with what stands in backticks as code.
fn marked_up(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in escape(text).split('`').enumerate() {
        match i % 2 {
            0 => out.push_str(part),
            _ => {
                let _ = write!(out, "<code>{part}</code>");
            }
        }
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn anchor(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_loaded_and_every_link_leads_somewhere() {
        let page = page(&super::super::document::document(true));
        for foreign in ["<script", "http://", "https://", "src=", "url(", "@import", "style=\"", "onclick"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        for (at, _) in page.match_indices("href=\"#") {
            let target: String = page[at + 7..].chars().take_while(|c| *c != '"').collect();
            assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
        }
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(marked_up("a `<b>` & \"c\""), "a <code>&lt;b&gt;</code> &amp; &quot;c&quot;");
    }
}
