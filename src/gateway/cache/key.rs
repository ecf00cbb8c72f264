//! What makes two requests the same.
//!
//! A key is SHA-256 over postcard's form of everything that the answer depends on. SHA-256 rather than BLAKE3: the crate is
//! here already, processors have instructions for it, and a megabyte of prompt takes a millisecond; postcard writes fields
//! in the order of their declaration and lengths before contents, so two different requests never have one form.

use crate::chat::{Output, Prompt, SamplingParams};
use crate::engine::Description;
use crate::gateway::ModelConfig;
use crate::gateway::work::Work;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Raised whenever the meaning of a field changes.
const VERSION: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::gateway) struct Key {
    pub(super) owner: Owner,
    pub(super) digest: [u8; 32],
}

/// With whom an answer goes: what is kept of a key or a team is dropped when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::gateway) enum Owner {
    /// A key of the books, or the keys of a team that shares, by their partition.
    Key(u64),
    /// The keys of a team, where the team is the scope.
    Team(u64),
    /// A static key, or everybody where there are no keys.
    Fixed(u64),
}

impl Owner {
    pub(in crate::gateway) fn team(id: &str) -> Self {
        Owner::Team(crate::gateway::keys::tenant(&[b"team\0", id.as_bytes()]))
    }

    /// A static key, or everybody: those are not deleted while a server runs.
    pub(super) fn is_fixed(self) -> bool {
        matches!(self, Owner::Fixed(_))
    }

    /// A letter for its kind, and its number.
    pub(super) fn parts(self) -> (u8, u64) {
        match self {
            Owner::Key(n) => (b'k', n),
            Owner::Team(n) => (b't', n),
            Owner::Fixed(n) => (b'f', n),
        }
    }
}

/// What a model is, down to the file and the template it was loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub(in crate::gateway) struct Identity([u8; 32]);

/// Whose the answer is, and what the operator lets out.
#[derive(Serialize)]
pub(in crate::gateway) struct Tenant<'a> {
    /// Follows from the others.
    #[serde(skip)]
    pub owner: Owner,
    pub partition: u64,
    /// With it, the partition doesn't count: the team is the tenant.
    pub team: Option<&'a str>,
    pub namespace: Option<&'a str>,
    /// Of the operator's rules: an answer that other rules let through is another answer.
    pub border: [u8; 32],
}

#[derive(Serialize)]
struct Local<'a> {
    version: u32,
    tenant: &'a Tenant<'a>,
    model: &'a str,
    identity: Identity,
    prompts: &'a [Prompt],
    sampling: &'a SamplingParams,
    output: &'a Output,
    n: u32,
    n_kept: u32,
    lora: Option<&'a [(u32, f32)]>,
}

#[derive(Serialize)]
struct Remote<'a> {
    version: u32,
    tenant: &'a Tenant<'a>,
    upstream: &'a str,
    url: &'a str,
    body: &'a [u8],
}

/// Of a request that a model here answers.
pub(in crate::gateway) fn local(tenant: &Tenant, model: &str, identity: Identity, work: &Work) -> Key {
    // Named one by one: a new field has to be thought of here.
    let Work { prompts, sampling, output, n, n_kept, cache_prompt: _, lora, is_length_said: _, class: _ } = work;
    let digest = digest(&Local {
        version: VERSION,
        tenant,
        model,
        identity,
        prompts,
        sampling,
        output,
        n: *n,
        n_kept: *n_kept,
        lora: lora.as_deref(),
    });
    Key { owner: tenant.owner, digest }
}

/// Of a request that an upstream answers: what would be sent, and to where, is all that the answer depends on.
pub(in crate::gateway) fn remote(tenant: &Tenant, upstream: &str, url: &str, body: &[u8]) -> Key {
    Key { owner: tenant.owner, digest: digest(&Remote { version: VERSION, tenant, upstream, url, body }) }
}

/// `scales`: of the adapters, where a request says nothing.
pub(in crate::gateway) fn identity(config: &ModelConfig, description: &Description, scales: &[f32]) -> Identity {
    let served = (&config.id, &config.file_name, config.n_created, config.thinks, config.n_predict);
    Identity(digest(&(served, description, scales)))
}

fn digest(value: &impl Serialize) -> [u8; 32] {
    let bytes = postcard::to_stdvec(value).expect("these types have lengths and no maps; failing is a bug");
    Sha256::digest(&bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{
        ChatPrompt, Constraint, Infill, Media, MediaKind, Message, Mirostat, PromptPart, ReasoningFormat, Role,
        SamplerKind, Tool, ToolCall, ToolChoice,
    };
    use serde::de::DeserializeOwned;
    use serde_json::Value;
    use std::fmt::Debug;

    /// A prompt with something everywhere.
    fn chat() -> ChatPrompt {
        let call = ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() };
        let message = Message {
            media: vec![Media { kind: MediaKind::Image, offset: 1, data: vec![1, 2] }],
            reasoning: Some("r".into()),
            name: Some("n".into()),
            tool_calls: vec![call],
            tool_call_id: Some("c".into()),
            ..Message::new(Role::User, "hi")
        };
        ChatPrompt {
            messages: vec![message],
            template_kwargs: vec![("k".into(), "1".into())],
            enable_thinking: Some(true),
            reasoning_effort: Some("low".into()),
            reasoning_format: ReasoningFormat::Inline,
            add_generation_prompt: true,
            continue_final_message: false,
            tools: vec![Tool {
                name: "f".into(),
                description: Some("d".into()),
                parameters: "{}".into(),
                strict: true,
            }],
            tool_choice: ToolChoice::Required,
            callable: Some(vec!["f".into()]),
            parallel_tool_calls: true,
        }
    }

    fn work() -> Work {
        let sampling = SamplingParams {
            logit_bias: vec![(1, 0.5)],
            mirostat: Mirostat::V1,
            samplers: vec![SamplerKind::TopK, SamplerKind::MinP],
            ..Default::default()
        };
        let output = Output {
            max_tokens: Some(5),
            stop: vec!["s".into()],
            top_logprobs: Some(2),
            echo: true,
            with_tokens: true,
            constraint: Some(Constraint::Regex("a".into())),
            prediction: Some("p".into()),
        };
        let prompts = vec![Prompt::Chat(chat())];
        Work {
            prompts,
            sampling,
            output,
            is_length_said: true,
            n: 2,
            n_kept: 1,
            cache_prompt: true,
            lora: Some(vec![(0, 0.5)]),
            class: Default::default(),
        }
    }

    fn tenant() -> Tenant<'static> {
        Tenant { owner: Owner::Key(1), partition: 1, team: None, namespace: None, border: [0; 32] }
    }

    fn key(work: &Work) -> Key {
        local(&tenant(), "m", Identity([0; 32]), work)
    }

    /// Other values of the same place: what deserialises is what the type allows.
    fn others(value: &Value) -> Vec<Value> {
        match value {
            Value::Bool(is) => vec![Value::Bool(!is)],
            Value::Number(n) if n.is_f64() => vec![Value::from(n.as_f64().map_or(0.0, |n| n + 0.25))],
            Value::Number(n) => {
                vec![Value::from(n.as_i64().unwrap_or(0) + 1), Value::from(n.as_i64().unwrap_or(0) - 1)]
            }
            Value::String(text) => vec![Value::from(format!("{text}x"))],
            _ => Vec::new(),
        }
    }

    /// Each leaf of `whole`, changed by itself, must make another key.
    fn mutate<T: Serialize + DeserializeOwned + PartialEq + Debug>(whole: &T, key: impl Fn(T) -> Key) -> usize {
        let json = serde_json::to_value(whole).expect("a tree");
        let same = key(serde_json::from_value(json.clone()).expect("what was written"));
        let mut n = 0;
        for path in leaves(&json) {
            let old = json.pointer(&path).expect("a leaf").clone();
            assert!(!old.is_null(), "{path} says nothing, so nothing is tried of it");
            let mut candidates = others(&old);
            let try_one = |value: Value| {
                let mut changed = json.clone();
                *changed.pointer_mut(&path).expect("a leaf") = value;
                serde_json::from_value::<T>(changed)
            };
            // A word of an enumeration: the error names the others.
            if let (Value::String(_), Some(Err(error))) = (&old, candidates.first().cloned().map(try_one)) {
                let text = error.to_string();
                candidates = text.split('`').skip(3).step_by(2).map(Value::from).filter(|word| *word != old).collect();
            }
            let changed: Vec<T> = candidates.into_iter().filter_map(|value| try_one(value).ok()).collect();
            assert!(!changed.is_empty(), "{path} = {old} has no other value");
            for other in changed {
                assert!(key(other) != same, "{path} changes and the key does not");
                n += 1;
            }
        }
        n
    }

    fn leaves(value: &Value) -> Vec<String> {
        let under = |key: String, value: &Value| leaves(value).into_iter().map(move |rest| format!("/{key}{rest}"));
        match value {
            Value::Object(fields) => fields.iter().flat_map(|(key, value)| under(key.clone(), value)).collect(),
            Value::Array(items) => {
                items.iter().enumerate().flat_map(|(i, value)| under(i.to_string(), value)).collect()
            }
            _ => vec![String::new()],
        }
    }

    #[test]
    fn t_c2_every_leaf_of_a_request_is_in_the_key() {
        let base = work();
        let of_prompt = |prompt: Prompt| key(&Work { prompts: vec![prompt], ..base.clone() });
        let mut n = mutate(&Prompt::Chat(chat()), of_prompt);
        n += mutate(&Prompt::Text("t".into()), of_prompt);
        n += mutate(&Prompt::Tokens(vec![1, 2]), of_prompt);
        n += mutate(&Prompt::Mixed(vec![PromptPart::Text("t".into()), PromptPart::Token(1)]), of_prompt);
        let extra = vec![("f".into(), "x".into())];
        let infill = Infill { prefix: "a".into(), suffix: "b".into(), prompt: "c".into(), extra };
        n += mutate(&Prompt::Infill(infill), of_prompt);
        n += mutate(&base.sampling, |sampling| key(&Work { sampling, ..base.clone() }));
        n += mutate(&base.output, |output| key(&Work { output, ..base.clone() }));
        assert!(n > 90, "{n}");
    }

    #[test]
    fn t_c2_so_is_everything_around_it_but_what_has_no_effect() {
        let base = work();
        let same = key(&base);
        let identity = |n: u8| Identity([n; 32]);
        let tenants = [
            Tenant { partition: 2, ..tenant() },
            Tenant { border: [1; 32], ..tenant() },
            Tenant { team: Some("t"), ..tenant() },
            Tenant { namespace: Some("n"), ..tenant() },
            Tenant { team: Some("n"), ..tenant() },
        ];
        let mut keys: Vec<Key> = tenants.iter().map(|tenant| local(tenant, "m", identity(0), &base)).collect();
        keys.push(local(&tenant(), "m2", identity(0), &base));
        keys.push(local(&tenant(), "m", identity(1), &base));
        for change in [
            |work: &mut Work| work.n = 3,
            |work: &mut Work| work.n_kept = 2,
            |work: &mut Work| work.lora = None,
            |work: &mut Work| work.lora = Some(vec![(0, 0.25)]),
            |work: &mut Work| work.prompts.push(Prompt::Text(String::new())),
        ] {
            let mut other = base.clone();
            change(&mut other);
            keys.push(key(&other));
        }
        keys.push(remote(&tenant(), "m", "/", b""));
        keys.push(remote(&tenant(), "m", "/", b"x"));
        for (i, one) in keys.iter().enumerate() {
            assert!(*one != same && !keys[..i].contains(one), "{i}");
        }
        assert!(key(&Work { cache_prompt: false, ..base }) == same);
    }

    #[test]
    fn owners_are_told_apart_by_kind_and_number() {
        let owners = [Owner::Key(1), Owner::Team(1), Owner::Fixed(1), Owner::Key(2)];
        assert_eq!(owners.map(Owner::parts), [(b'k', 1), (b't', 1), (b'f', 1), (b'k', 2)]);
        assert_eq!(owners.map(Owner::is_fixed), [false, false, true, false]);
        assert_eq!(Owner::team("a"), Owner::team("a"));
        assert_ne!(Owner::team("a"), Owner::team("b"));
        // The number that the keys of a team have which shares.
        let spec = crate::gateway::TeamSpec { shares: true, ..Default::default() };
        let team = crate::gateway::TeamRecord { id: "a".into(), spec, created: 0, blocked: false };
        let key = crate::gateway::KeyRecord::new("k".into(), Default::default(), Some(team.into()), 0, false);
        let partition = crate::gateway::Principal::of(key.into()).partition();
        assert_eq!(Owner::team("a"), Owner::Team(partition));
    }

    #[test]
    fn a_model_that_was_loaded_from_another_file_or_in_another_way_is_another() {
        let description = Description { files_mark: 1, ..Default::default() };
        let other = Description { files_mark: 2, ..Default::default() };
        let arithmetic = Description { arithmetic_mark: 1, ..description.clone() };
        let template = Description { chat_template: Some("t".into()), ..description.clone() };
        let config = ModelConfig::new("m");
        let same = identity(&config, &description, &[1.0]);
        assert!(same == identity(&config, &description.clone(), &[1.0]));
        for other in [
            identity(&config, &other, &[1.0]),
            identity(&config, &template, &[1.0]),
            identity(&config, &arithmetic, &[1.0]),
            identity(&config, &description, &[0.5]),
        ] {
            assert!(same != other);
        }
    }
}
