//! Events of Anthropic's Messages API. There is one choice.

use super::{Fault, Reported, Said, count, reported};
use crate::chat::{Delta, Finish, ToolCallDelta, Usage};
use serde::Deserialize;

const CALLS_MAX: u32 = 128;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Wire {
    MessageStart {
        message: Message,
    },
    ContentBlockStart {
        index: u32,
        content_block: Block,
    },
    ContentBlockDelta {
        index: u32,
        delta: Piece,
    },
    ContentBlockStop {
        index: u32,
    },
    MessageDelta {
        delta: Stop,
        #[serde(default)]
        usage: Option<Counts>,
    },
    MessageStop,
    Error {
        error: ErrorWords,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking {
        #[serde(default)]
        thinking: String,
    },
    ToolUse {
        id: String,
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece {
    TextDelta {
        text: String,
    },
    ThinkingDelta {
        thinking: String,
    },
    InputJsonDelta {
        partial_json: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Stop {
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_sequence: Option<String>,
}

#[derive(Deserialize, Default)]
struct Counts {
    #[serde(default)]
    input_tokens: Option<f64>,
    #[serde(default)]
    cache_read_input_tokens: Option<f64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<f64>,
    #[serde(default)]
    output_tokens: Option<f64>,
}

#[derive(Deserialize)]
struct ErrorWords {
    #[serde(default, rename = "type")]
    kind: String,
}

/// What is known of the message so far.
#[derive(Default)]
pub(super) struct Events {
    /// The open block: its index, and whether it is a call.
    open: Option<(u32, Open)>,
    n_calls: u32,
    counts: Counts,
    has_ended: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Open {
    Text,
    /// Whether its arguments have begun.
    Call(bool),
    /// A kind that has no place here, such as what a server's own tool found.
    Other,
}

impl Events {
    pub(super) fn read(&mut self, data: &str, out: &mut Vec<Said>) -> Result<(), Fault> {
        let event: Wire = serde_json::from_str(data).map_err(|_| Fault::Broken("not_an_event"))?;
        match event {
            Wire::MessageStart { message } => {
                self.counts.take(message.usage);
                out.push(Said::Delta(0, Delta::default()));
            }
            Wire::ContentBlockStart { index, content_block } => self.start(index, content_block, out)?,
            Wire::ContentBlockDelta { index, delta } => self.delta(index, delta, out)?,
            Wire::ContentBlockStop { index } => self.stop(index, out)?,
            Wire::MessageDelta { delta, usage } => {
                self.counts.take(usage);
                if let Some(reason) = delta.stop_reason.filter(|_| !self.has_ended) {
                    self.has_ended = true;
                    out.push(Said::Finish(0, finish(&reason, delta.stop_sequence)?));
                }
                out.extend(self.counts.usage().map(Said::Usage));
            }
            Wire::MessageStop => out.push(Said::End),
            Wire::Error { error } => {
                return Err(Fault::Reported(match reported(&[&error.kind]) {
                    Reported::Server if error.kind == "request_too_large" => Reported::Invalid,
                    kind => kind,
                }));
            }
            Wire::Other => out.push(Said::Delta(0, Delta::default())),
        }
        Ok(())
    }

    fn start(&mut self, index: u32, block: Block, out: &mut Vec<Said>) -> Result<(), Fault> {
        if self.open.is_some() || self.has_ended {
            return Err(Fault::Broken("blocks_out_of_order"));
        }
        let (open, delta) = match block {
            Block::Text { text } => (Open::Text, text_delta(text)),
            Block::Thinking { thinking } => (Open::Text, thinking_delta(thinking)),
            Block::ToolUse { id, name } if self.n_calls < CALLS_MAX => {
                self.n_calls += 1;
                (Open::Call(false), self.call(Some((id, name)), String::new()))
            }
            Block::ToolUse { .. } => return Err(Fault::Broken("too_many_calls")),
            Block::Other => (Open::Other, Delta::default()),
        };
        self.open = Some((index, open));
        out.push(Said::Delta(0, delta));
        Ok(())
    }

    fn delta(&mut self, index: u32, piece: Piece, out: &mut Vec<Said>) -> Result<(), Fault> {
        let Some((_, open)) = self.open.filter(|(open, _)| *open == index) else {
            return Err(Fault::Broken("blocks_out_of_order"));
        };
        out.push(Said::Delta(
            0,
            match (piece, open) {
                (Piece::TextDelta { text }, Open::Text) => text_delta(text),
                (Piece::ThinkingDelta { thinking }, Open::Text) => thinking_delta(thinking),
                (Piece::InputJsonDelta { partial_json }, Open::Call(has_begun)) => {
                    self.open = Some((index, Open::Call(has_begun || !partial_json.is_empty())));
                    self.call(None, partial_json)
                }
                (Piece::Other, _) | (_, Open::Other) => Delta::default(),
                _ => return Err(Fault::Broken("wrong_piece")),
            },
        ));
        Ok(())
    }

    fn stop(&mut self, index: u32, out: &mut Vec<Said>) -> Result<(), Fault> {
        match self.open.take() {
            Some((open, Open::Call(false))) if open == index => out.push(Said::Delta(0, self.call(None, "{}".into()))),
            Some((open, _)) if open == index => {}
            _ => return Err(Fault::Broken("blocks_out_of_order")),
        }
        Ok(())
    }

    fn call(&self, opening: Option<(String, String)>, arguments: String) -> Delta {
        let piece = ToolCallDelta { index: self.n_calls.saturating_sub(1), opening, arguments };
        Delta { tool_calls: vec![piece], n_tokens: 1, ..Default::default() }
    }
}

impl Counts {
    /// Later counts replace earlier ones; those that are not said stay.
    fn take(&mut self, newer: Option<Counts>) {
        let Some(newer) = newer else { return };
        self.input_tokens = newer.input_tokens.or(self.input_tokens);
        self.cache_read_input_tokens = newer.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation_input_tokens = newer.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.output_tokens = newer.output_tokens.or(self.output_tokens);
    }

    /// Anthropic's input leaves out what was read from its cache or written to it.
    fn usage(&self) -> Option<Usage> {
        let cached = count(Some(self.cache_read_input_tokens.unwrap_or(0.0)))?;
        let written = count(Some(self.cache_creation_input_tokens.unwrap_or(0.0)))?;
        let prompt_tokens = count(self.input_tokens)?.checked_add(cached)?.checked_add(written)?;
        let completion_tokens = count(self.output_tokens)?;
        Some(Usage { prompt_tokens, cached_tokens: cached, completion_tokens, ..Default::default() })
    }
}

fn text_delta(text: String) -> Delta {
    Delta { n_tokens: u32::from(!text.is_empty()), content: text, ..Default::default() }
}

fn thinking_delta(text: String) -> Delta {
    Delta { n_tokens: u32::from(!text.is_empty()), reasoning: text, ..Default::default() }
}

fn finish(reason: &str, sequence: Option<String>) -> Result<Finish, Fault> {
    Ok(match (reason, sequence) {
        ("max_tokens" | "model_context_window_exceeded", _) => Finish::Length,
        ("stop_sequence", Some(sequence)) => Finish::StopString(sequence),
        ("refusal", _) => return Err(Fault::Reported(Reported::Filtered)),
        _ => Finish::EndOfTurn,
    })
}
