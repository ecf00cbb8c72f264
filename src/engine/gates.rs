//! What holds an answer to its form: from a request's constraint and the template's way of calling to a gate or a grammar.

use super::backend::{
    AnswerFrame, CallGrammar, Calls, Grammar, Level, Model, Reading, Tags, Token, Trigger, controls_in, tool_refusal,
};
use super::constraint::{Constraints, Gate, Opening, Rules, lark_literal};
use super::error::Failure;
use crate::chat::Constraint;
use llguidance::Matcher;

/// Longest grammar of a client, and its deepest nesting: llama.cpp's parser recurses.
const GBNF_BYTES_MAX: usize = 256 << 10;
const GBNF_DEPTH_MAX: usize = 256;

/// What is known of an answer before it begins.
pub(super) struct Terms<'a> {
    pub constraint: Option<&'a Constraint>,
    pub reading: &'a Reading,
    pub calls: Calls,
    pub thinking: &'a Tags,
    pub frame: Option<&'a AnswerFrame>,
    /// The model was not told to do without thinking.
    pub may_think: bool,
    /// Forced tokens need no forward pass of their own.
    pub forces: bool,
}

/// What holds an answer.
#[derive(Default)]
pub(super) struct Hold {
    pub gate: Option<Box<Gate>>,
    /// For the sampler.
    pub grammar: Option<Box<Grammar>>,
    /// Tokens that never come.
    pub banned: Vec<Token>,
}

/// Makes what holds answers.
pub(super) struct Gates<'a, M: Model> {
    pub model: &'a M,
    pub constraints: &'a Constraints<M>,
    /// Whose answers they hold: nobody else's compiled constraints are used.
    pub partition: u64,
}

impl<M: Model> Gates<'_, M> {
    /// Errors: `Invalid`, naming the constraint or the tool that can't be honoured.
    pub fn hold(&self, mut terms: Terms<'_>) -> Result<Hold, Failure> {
        let calls = std::mem::replace(&mut terms.calls, Calls::Never(Vec::new()));
        match (terms.constraint, calls) {
            (_, Calls::Forced(grammar)) => {
                let matcher = self.matchers(&grammar)?.into_iter().next();
                let ends = grammar.thinking_ends.clone();
                let rules = Rules {
                    answer: matcher,
                    is_thinking: !ends.is_empty(),
                    thinking_ends: ends,
                    ..self.rules(&terms)?
                };
                Ok(Hold { gate: Some(Box::new(Gate::new(rules))), ..Default::default() })
            }
            (None, Calls::Never(texts)) => self.without_calls(&terms, &texts),
            (None, Calls::Begun(grammar, banned)) => self.begun(&terms, &grammar, &banned),
            (None, Calls::Lazy { grammar, .. }) => Ok(Hold { grammar, ..Default::default() }),
            (Some(Constraint::Gbnf(text)), _) => self.gbnf(text, &terms),
            (Some(constraint), calls) => self.constrained(constraint, &terms, calls),
        }
    }

    fn compile_lark(&self, lark: String) -> Result<Matcher, String> {
        self.constraints.compile_lark(self.partition, lark)
    }

    /// Rules without an answer.
    fn rules(&self, terms: &Terms<'_>) -> Result<Rules, Failure> {
        Ok(Rules {
            answer: None,
            answer_after_thought: None,
            calls: Vec::new(),
            openings: Vec::new(),
            openings_after_thought: Vec::new(),
            watch: None,
            thinking_ends: terms.thinking.ends.clone(),
            is_thinking: false,
            thoughts: Some(self.constraints.endless()?),
            is_prologue: false,
            forces: terms.forces,
        })
    }

    /// Text in which nothing may begin a call.
    fn without_calls(&self, terms: &Terms<'_>, texts: &[String]) -> Result<Hold, Failure> {
        if texts.is_empty() {
            return Ok(Hold::default());
        }
        let mut watch = self.constraints.watch(&[], &mut [], texts, "")?;
        let banned = watch.take_never().into_iter().map(u32::cast_signed).collect();
        let rules = Rules { watch: Some(watch), thoughts: None, ..self.rules(terms)? };
        Ok(Hold { gate: Some(Box::new(Gate::new(rules))), grammar: None, banned })
    }

    /// Text in which a call may begin.
    fn begun(&self, terms: &Terms<'_>, grammar: &CallGrammar, banned: &[String]) -> Result<Hold, Failure> {
        let mut calls = self.matchers(grammar)?;
        let texts: Vec<&str> = grammar.starts.iter().map(|start| start.text.as_str()).collect();
        let Tags { start, opened, .. } = terms.thinking;
        let watch = self.constraints.watch(&texts, &mut calls, banned, start)?;
        let rules = Rules { calls, watch: Some(watch), is_thinking: *opened, thoughts: None, ..self.rules(terms)? };
        Ok(Hold { gate: Some(Box::new(Gate::new(rules))), ..Default::default() })
    }

    /// One matcher for each start. A tool that isn't strict is asked for as much of its schema as can be expressed.
    ///
    /// Errors: `Invalid`, naming the first strict tool whose schema can't be expressed.
    fn matchers(&self, grammar: &CallGrammar) -> Result<Vec<Matcher>, Failure> {
        let all = |levels: &[Level]| -> Result<Vec<Matcher>, String> {
            grammar.starts.iter().map(|start| self.compile_lark(grammar.lark(start, levels))).collect()
        };
        let n = grammar.tools.len();
        if let Ok(matchers) = all(&vec![Level::Closed; n]) {
            return Ok(matchers);
        }
        let mut levels = Vec::with_capacity(n);
        for tool in &grammar.tools {
            let mut refused = None;
            let fits = |level: &Level| {
                let alone = self.compile_lark(format!("start: %json {}", tool.schema(*level)));
                let reason = alone.err();
                let fits = reason.is_none();
                refused = refused.take().or(reason);
                fits
            };
            let level = Level::ALL.into_iter().find(fits).unwrap_or(Level::Any);
            match refused {
                Some(reason) if tool.is_strict && !level.is_exact() => return Err(tool_refusal(tool.index, &reason)),
                _ => levels.push(level),
            }
        }
        all(&levels).or_else(|reason| {
            // Each alone could be expressed: together they are too much.
            let loose: Vec<Level> = grammar
                .tools
                .iter()
                .zip(&levels)
                .map(|(tool, level)| if tool.is_strict { *level } else { Level::Any })
                .collect();
            all(&loose).map_err(|_| {
                let message = format!("the tools' schemas can't be used together: {reason}");
                Failure::invalid("tools", "invalid_json_schema", message)
            })
        })
    }

    /// Only what the constraint allows, or a call where one may come.
    fn constrained(&self, constraint: &Constraint, terms: &Terms<'_>, calls: Calls) -> Result<Hold, Failure> {
        let mut hold = Hold::default();
        let mut rules = self.rules(terms)?;
        let starts: Vec<String> = match calls {
            Calls::Lazy { grammar, starts } => {
                hold.grammar = grammar;
                starts
            }
            Calls::Begun(grammar, _) => {
                rules.calls = self.matchers(&grammar)?;
                grammar.starts.into_iter().map(|start| start.text).collect()
            }
            Calls::Never(_) | Calls::Forced(_) => Vec::new(),
        };
        let frame = terms.frame.cloned().unwrap_or_default();
        // Behind a thought a call is framed as the answer is.
        let head = frame.head.as_deref().unwrap_or_default();
        let between = frame.after_thought.as_deref().and_then(|after| after.strip_suffix(head)).unwrap_or_default();
        for (which, start) in starts.iter().enumerate() {
            let open = |text: &str| Ok(Opening::Call(which, self.model.tokenize(text, false, true)?));
            rules.openings.push(open(start)?);
            rules.openings_after_thought.push(open(&format!("{between}{start}"))?);
        }
        let literal = |text: &str| lark_literal(text, &controls_in(self.model, text));
        let framed = |head: &str| {
            let around = [literal(head), literal(&frame.tail)];
            self.constraints.compile_framed(self.partition, around, constraint)
        };
        rules.answer = Some(framed(head)?);
        if let Some(head) = &frame.after_thought {
            rules.answer_after_thought = Some(framed(head)?);
        }
        self.let_think(terms, &mut rules)?;
        hold.gate = Some(Box::new(Gate::new(rules)));
        Ok(hold)
    }

    /// A thought may come before the answer, where the reader takes it apart.
    fn let_think(&self, terms: &Terms<'_>, rules: &mut Rules) -> Result<(), Failure> {
        let Tags { start, ends, opened } = terms.thinking;
        let is_read = match terms.reading {
            Reading::Plain => false,
            Reading::Tags { .. } => true,
            Reading::Parser(_) => terms.frame.is_none_or(|frame| frame.after_thought.is_some()),
        };
        if !is_read || ends.is_empty() {
            return Ok(());
        }
        rules.is_thinking = *opened;
        if !opened && terms.may_think && !start.is_empty() {
            rules.openings.push(Opening::Thinking(self.model.tokenize(start, false, true)?));
        }
        Ok(())
    }

    /// A client's own grammar, which llama.cpp's sampler defines. Thinking that the prompt has opened comes before it, and
    /// what the format puts before an answer.
    fn gbnf(&self, text: &str, terms: &Terms<'_>) -> Result<Hold, Failure> {
        let head = terms.frame.and_then(|frame| frame.head.as_deref()).unwrap_or_default();
        let mut grammar = gbnf(text, terms.thinking)?;
        if head.is_empty() {
            return Ok(Hold { grammar: Some(Box::new(grammar)), ..Default::default() });
        }
        let controls = controls_in(self.model, head);
        let lark = format!("start: {}", lark_literal(head, &controls));
        let before = self.compile_lark(lark).map_err(|reason| Failure::invalid("grammar", "invalid_value", reason))?;
        let rules = Rules { answer: Some(before), is_prologue: true, ..self.rules(terms)? };
        grammar.triggers = vec![Trigger::behind(head)];
        grammar.preserved = controls.iter().map(|(_, token)| *token).collect();
        let (gate, grammar) = (Some(Box::new(Gate::new(rules))), Some(Box::new(grammar)));
        Ok(Hold { gate, grammar, ..Default::default() })
    }
}

/// Errors: it is too long or nested too deeply; whether it is a grammar at all is the sampler's to say.
fn gbnf(text: &str, thinking: &Tags) -> Result<Grammar, Failure> {
    let refuse = |message: String| Failure::invalid("grammar", "invalid_value", message);
    if text.trim().is_empty() {
        return Err(refuse("the grammar is empty".to_owned()));
    }
    if text.len() > GBNF_BYTES_MAX {
        return Err(refuse(format!("the grammar has {} bytes, and at most {GBNF_BYTES_MAX} are taken", text.len())));
    }
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > GBNF_DEPTH_MAX {
        return Err(refuse(format!(
            "the grammar is nested {deepest} levels deep, and at most {GBNF_DEPTH_MAX} are taken"
        )));
    }
    let ends = thinking.ends.iter().filter(|_| thinking.opened);
    let triggers = ends.map(|end| Trigger::behind(end)).collect();
    Ok(Grammar { gbnf: text.to_owned(), triggers, ..Default::default() })
}
