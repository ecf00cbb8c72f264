//! Frames of a peer that was taken over, in both directions, fuzzed (F11).

use super::Notice;
use super::frame::{FromEngine, ToEngine, decode, encode};
use crate::chat::{ChatPrompt, Class, Delta, Finish, Message, Prompt, Role, TokenLogprob, Usage};
use crate::engine::config::{EngineConfig, ModelSource, ScriptedConfig};
use crate::engine::request::{Command, GenerateRequest, RequestId};
use crate::engine::router::{Place, Router};
use crate::engine::{Done, Event, Failure, Stats, Vectors};
use crate::fuzz::{Shape, Target, fuzz};
use serde::Serialize;

fn body<T: Serialize>(message: &T) -> Vec<u8> {
    encode(message, Vec::new()).expect("it is encoded").split_off(4)
}

/// What is read of a frame is what is written again.
fn same_again<T: Serialize + serde::de::DeserializeOwned>(message: &T) {
    let first = body(message);
    let again: T = decode(&first).expect("our own frame");
    assert_eq!(body(&again), first);
}

#[test]
fn frames_to_the_engine() {
    let config = EngineConfig::new(ModelSource::Scripted(ScriptedConfig::default()));
    let chat = Prompt::Chat(ChatPrompt::new(vec![Message::new(Role::User, "hi")]));
    let requests = [Prompt::Text("a".into()), Prompt::Tokens(vec![1, 2]), chat].map(GenerateRequest::new);
    let mut seeds = vec![body(&ToEngine::Configure(Box::new(config)))];
    seeds.extend(requests.map(|request| body(&ToEngine::Request(RequestId(7), Command::Generate(Box::new(request))))));
    seeds.push(body(&ToEngine::Request(RequestId(8), Command::Cancel)));
    let target = Target { name: "frames_to_the_engine", seeds, shape: Shape::Bytes, words: &[] };
    fuzz(&target, |input| match decode::<ToEngine>(input) {
        Ok(message) => {
            same_again(&message);
            match message {
                ToEngine::Configure(_) => 1,
                ToEngine::Request(_, command) => 2 + u64::from(body(&command)[0]),
            }
        }
        Err(_) => 0,
    });
}

/// The front takes whatever an engine says of requests that it has, and of others.
#[test]
fn frames_from_the_engine() {
    let delta = Delta {
        content: "a".into(),
        logprobs: vec![TokenLogprob { id: 1, bytes: b"a".to_vec(), logprob: -0.5, top: Vec::new() }],
        n_tokens: 1,
        ..Delta::default()
    };
    let done = Done { finish: Finish::EndOfTurn, usage: Usage::default(), timings: Default::default() };
    let events = vec![
        (RequestId(1), Event::Accepted { n_prompt: 3 }),
        (RequestId(1), Event::Progress { n_prompt: 3, n_computed: 2, n_cached: 1 }),
        (RequestId(1), Event::Delta(delta.clone())),
        (RequestId(1), Event::Delta(Delta { n_tokens: u32::MAX, ..delta })),
        (RequestId(2), Event::Text("t".into())),
        (RequestId(1), Event::Done(done)),
        (RequestId(3), Event::Failed(Failure::Cancelled)),
    ];
    let others = vec![
        (RequestId(2), Event::Tokens { tokens: vec![1], pieces: vec![b"x".to_vec()] }),
        (RequestId(2), Event::Stats(Stats::default())),
        (RequestId(2), Event::Vectors(Vectors::default())),
    ];
    let ready = Notice::Ready(Box::default());
    let seeds = [
        FromEngine::Events(events),
        FromEngine::Events(others),
        FromEngine::Notice(ready),
        FromEngine::Notice(Notice::Loading { progress: 0.5 }),
        FromEngine::Notice(Notice::LoadFailed { reason: "r".into() }),
        FromEngine::Pulse { n_steps: 1, is_busy: true },
    ];
    let seeds = seeds.iter().map(body).collect();
    let target = Target { name: "frames_from_the_engine", seeds, shape: Shape::Bytes, words: &[] };
    fuzz(&target, |input| {
        let Ok(message) = decode::<FromEngine>(input) else { return 0 };
        same_again(&message);
        let FromEngine::Events(events) = message else { return u64::from(input[0]) + 1 };
        let router = Router::new(4, 2);
        let place = Place::Generate { fingerprint: 1, owner: 1, class: Class::default(), comes_back: false };
        let admitted = [place, Place::Short(None), place].map(|place| router.admit(place).expect("a place"));
        let n = events.len() as u64;
        router.dispatch(events);
        let ended = admitted.iter().fold(0, |ended, (_, mailbox)| ended << 1 | u64::from(mailbox.has_ended()));
        n.min(255) << 8 | ended << 4 | 1
    });
}
