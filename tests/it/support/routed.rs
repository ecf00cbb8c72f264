//! A gateway with a scripted model and upstreams, asked without HTTP in front.

use super::{Setup, ready};
use hearth::chat::{ChatPrompt, ChatRequest, Finish, Message, Output, Role, Usage};
use hearth::dialect::remote::{Kind, Wire};
use hearth::engine::{Engine, Event, Failure};
use hearth::gateway::{BaseUrl, Caller, Error, Gateway, RouteConfig, Running, Told, UpstreamConfig};
use hearth::telemetry::Metrics;
use std::sync::Arc;
use std::time::Duration;

pub fn upstream(name: &str, base_url: &str) -> UpstreamConfig {
    let mut config = UpstreamConfig {
        name: name.to_owned(),
        base_url: BaseUrl::new(base_url).expect("an address"),
        api_key: None,
        wire: Wire { kind: Kind::OpenAi, model: "there".into(), newer_limit: false },
        timeouts: Default::default(),
        retry: Default::default(),
        breaker: Default::default(),
        max_concurrency: 256,
        price: Default::default(),
        ca: None,
        guardrails: Vec::new(),
        health: None,
        drains: false,
    };
    // Nothing is asked twice unless a test is about that.
    config.retry.attempts = 1;
    config.retry.base = Duration::from_millis(1);
    config
}

pub fn route(name: &str, targets: &[&str]) -> RouteConfig {
    RouteConfig {
        name: name.to_owned(),
        target: targets[0].to_owned(),
        equals: Vec::new(),
        fallbacks: targets[1..].iter().map(|name| (*name).to_owned()).collect(),
        rules: Vec::new(),
        never_leaves: false,
        min_logprob: None,
        burst_after: None,
        reports_alias: false,
        guardrails: Vec::new(),
    }
}

pub struct Routed {
    pub gateway: Arc<Gateway>,
    pub engine: Engine,
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Came {
    pub text: String,
    pub end: End,
    pub usage: Usage,
    pub model: String,
    pub told: Told,
}

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Done(Finish),
    /// Before anything was handed on.
    Refused(Error),
    /// After it.
    Failed(Failure),
}

impl Came {
    pub fn is_done(&self) -> bool {
        matches!(self.end, End::Done(_))
    }

    /// `target:class` of each attempt.
    pub fn attempts(&self) -> Vec<String> {
        self.told.attempts.iter().map(|it| format!("{}:{}", it.target, it.class.as_str())).collect()
    }

    pub fn served_by(&self) -> &str {
        self.told.served_by.as_deref().unwrap_or_default()
    }
}

impl Routed {
    pub async fn of(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new();
        setup.gateway.routing.may_leave = true;
        change(&mut setup);
        let engine = Engine::start(setup.engine, setup.mode);
        if !setup.while_loading {
            ready(&engine).await;
        }
        let gateway = Arc::new(Gateway::new(setup.gateway, engine.clone(), Arc::new(Metrics::new())));
        Self { gateway, engine }
    }

    pub async fn ask(&self, request: ChatRequest) -> Came {
        self.ask_as(Caller::default(), request).await
    }

    /// Asks and reads to the end.
    pub async fn ask_as(&self, caller: Caller, request: ChatRequest) -> Came {
        let trace = caller.trace.clone();
        let (text, end, usage, model) = match self.gateway.chat(&caller, request).await {
            Err(error) => (String::new(), End::Refused(error), Usage::default(), String::new()),
            Ok(running) => drain(running).await,
        };
        Came { text, end, usage, model, told: trace.told() }
    }
}

async fn drain(mut running: Running) -> (String, End, Usage, String) {
    let (mut text, mut end) = (String::new(), None);
    while let Some((_, event)) = running.next().await {
        assert_eq!(end, None, "an event behind the end");
        match event {
            Event::Delta(delta) => text.push_str(&delta.content),
            Event::Done(done) => end = Some(End::Done(done.finish)),
            Event::Failed(failure) => end = Some(End::Failed(failure)),
            _ => {}
        }
    }
    let (usage, model) = (running.usage(), running.model().to_owned());
    (text, end.expect("every request ends"), usage, model)
}

pub fn chat(model: &str, text: &str) -> ChatRequest {
    ChatRequest {
        model: Some(model.to_owned()),
        prompt: ChatPrompt::new(vec![Message::new(Role::User, text)]),
        sampling: Default::default(),
        output: Output::default(),
        n: 1,
        stream: true,
        include_usage: true,
        cache_prompt: true,
        lora: None,
        end_user: None,
        cache: Default::default(),
        class: Default::default(),
    }
}
