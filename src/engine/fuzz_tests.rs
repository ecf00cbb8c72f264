//! Schemas, expressions and grammars of clients, fuzzed (F6).

use super::backend::scripted::ScriptedModel;
use super::config::{EngineConfig, ModelSource, ScriptedConfig};
use super::constraint::Constraints;
use super::error::Failure;
use super::service::PREPARER_STACK_BYTES;
use crate::chat::Constraint;
use crate::fuzz::{Shape, Target, fuzz, headed, on_stack, outcome};
use std::sync::Arc;

const WORDS: &str = "type¦object¦array¦string¦integer¦number¦boolean¦null¦properties¦required¦items¦prefixItems¦\
    additionalProperties¦patternProperties¦enum¦const¦anyOf¦oneOf¦allOf¦not¦$ref¦$defs¦#¦#/$defs/a¦\
    #/properties/a¦minLength¦maxLength¦pattern¦format¦date-time¦uuid¦minimum¦maximum¦exclusiveMinimum¦\
    multipleOf¦minItems¦maxItems¦uniqueItems¦minProperties¦maxProperties¦x-guidance¦nullable¦(a+)+$¦[a-z]¦\
    {1,100}¦{2,}¦*¦+¦?¦|¦(?i)¦(?=x)¦\\p{L}¦\\b¦.¦^¦$¦start: ¦%json ¦%regex ¦%llguidance ¦%ignore ¦/[0-9]+/¦\
    \"a\"¦<[5]>¦~ 1..9¦[max_tokens=5]¦[capture]¦@answer¦@other";

fn constraint(kind: &str, text: &str) -> Option<Constraint> {
    match kind {
        "schema" => Some(Constraint::JsonSchema(text.to_owned())),
        "regex" => Some(Constraint::Regex(text.to_owned())),
        "lark" => Some(Constraint::Lark(text.to_owned())),
        "choice" => serde_json::from_str(text).ok().map(Constraint::Choice),
        _ => None,
    }
}

/// A constraint is refused in bounded words, or it can be followed.
#[test]
fn constraints() {
    on_stack(PREPARER_STACK_BYTES, constraints_on_it);
}

fn constraints_on_it() {
    let scripted = ScriptedConfig::default();
    let config = EngineConfig::new(ModelSource::Scripted(scripted.clone()));
    let constraints = Constraints::new(Arc::new(ScriptedModel::load(&scripted, &config, |_| {})));
    let target = Target {
        name: "constraints",
        seeds: Vec::new(),
        shape: Shape::Json,
        words: &WORDS.split('¦').collect::<Vec<_>>(),
    };
    fuzz(&target, |input| {
        let (kind, text) = headed(input);
        let Some(constraint) = std::str::from_utf8(text).ok().and_then(|text| constraint(kind, text.trim_end())) else {
            return 0;
        };
        let mut matcher = match constraints.compile(&constraint) {
            Ok(matcher) => matcher,
            Err(Failure::Invalid { message, .. }) => {
                assert!(message.len() < 2048, "{message:.200}");
                return outcome(&message);
            }
            Err(other) => panic!("{other:?}"),
        };
        let (mut n, mut turn) = (0, text.len());
        while n < 24 && !matcher.is_stopped() {
            let Ok(mask) = matcher.compute_mask_or_eos() else { break };
            let fitting: Vec<u32> = mask.iter().take(300).collect();
            turn = turn.wrapping_mul(31).wrapping_add(fitting.len());
            let Some(token) = fitting.get(turn % fitting.len().max(1)) else { break };
            if matcher.consume_token(*token).is_err() {
                break;
            }
            n += 1;
        }
        outcome(kind).wrapping_add(n)
    });
}
