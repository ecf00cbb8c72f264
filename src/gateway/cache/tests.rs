//! The cache by itself: bounds, time, waiting for each other.

use super::*;
use crate::chat::{Delta, Finish};
use crate::engine::{Done, Event, Failure, Timings};

fn cache(change: impl FnOnce(&mut CacheConfig)) -> Arc<Cache> {
    let mut config = CacheConfig { enabled: true, ..Default::default() };
    change(&mut config);
    Cache::new(config)
}

fn key(n: u32) -> Key {
    let tenant = Tenant { owner: Owner::Fixed(0), partition: 0, team: None, namespace: None, border: [0; 32] };
    remote(&tenant, "u", "/", &n.to_le_bytes())
}

fn delta(text: &str) -> Event {
    Event::Delta(Delta { content: text.into(), n_tokens: 1, ..Default::default() })
}

fn done() -> Event {
    let timings = Timings { queue_us: 1, prompt_us: 2, predicted_us: 3 };
    Event::Done(Done { finish: Finish::EndOfTurn, usage: Default::default(), timings })
}

async fn lead(cache: &Arc<Cache>, n: u32) -> Recorder {
    match cache.enter(key(n), &CacheAsk::default()).await {
        Entered::Miss(Some(recorder)) => recorder,
        _ => unreachable!("the first of its key"),
    }
}

async fn hit(cache: &Arc<Cache>, n: u32, ask: &CacheAsk) -> Option<Arc<Entry>> {
    match cache.enter(key(n), ask).await {
        Entered::Hit(entry) => Some(entry),
        Entered::Miss(_) => None,
    }
}

fn fill(mut recorder: Recorder, text: &str) {
    assert!(!recorder.observe(0, &Event::Accepted { n_prompt: 3 }, 1));
    assert!(!recorder.observe(0, &delta(text), 1));
    assert!(recorder.observe(0, &done(), 1));
    recorder.keep(vec![3], "m", "fp");
}

#[tokio::test]
async fn an_answer_comes_again_event_by_event_and_without_times() {
    let cache = cache(|_| {});
    fill(lead(&cache, 1).await, "hi");
    let entry = hit(&cache, 1, &CacheAsk::default()).await.expect("a hit");
    let mut replay = Replay::new(Arc::clone(&entry));
    assert_eq!(replay.next(), Some((0, delta("hi"))));
    let Some((0, Event::Done(end))) = replay.next() else { unreachable!("the end") };
    assert_eq!((end.timings, replay.next()), (Timings::default(), None));
    assert_eq!((entry.accepted.as_slice(), entry.model.as_str(), cache.n_bytes()), (&[3][..], "m", entry.n_bytes));
    assert_eq!((cache.flush().await, cache.n_bytes()), (1, 0));
    assert!(hit(&cache, 1, &CacheAsk::default()).await.is_none());
}

#[tokio::test]
async fn what_failed_was_cut_or_calls_tools_is_not_kept() {
    let cache = cache(|_| {});
    let mut failed = lead(&cache, 1).await;
    failed.observe(0, &delta("a"), 1);
    assert!(!failed.observe(0, &Event::Failed(Failure::Cancelled), 1));
    assert!(!failed.observe(0, &done(), 1));
    drop(failed);
    let mut cut = lead(&cache, 2).await;
    cut.observe(0, &delta("a"), 1);
    drop(cut);
    let mut calls = lead(&cache, 3).await;
    let piece = crate::chat::ToolCallDelta { opening: Some(("c".into(), "f".into())), ..Default::default() };
    calls.observe(0, &Event::Delta(Delta { tool_calls: vec![piece], ..Default::default() }), 1);
    assert!(!calls.observe(0, &done(), 1));
    drop(calls);
    for n in 1..4 {
        assert!(hit(&cache, n, &CacheAsk::default()).await.is_none(), "{n}");
    }
    assert_eq!((cache.n_bytes(), cache.n_recording.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test]
async fn bytes_are_bounded_and_the_least_used_go_first() {
    let cache = cache(|config| config.bytes_max = 16 << 10);
    let text = "x".repeat(1024);
    for n in 0..32 {
        fill(lead(&cache, n).await, &text);
        assert!(cache.n_bytes() <= 16 << 10);
        assert!(hit(&cache, 0, &CacheAsk::default()).await.is_some(), "in use");
    }
    assert!(
        hit(&cache, 31, &CacheAsk::default()).await.is_some() && hit(&cache, 1, &CacheAsk::default()).await.is_none()
    );
    let mut large = lead(&cache, 99).await;
    assert!(!large.observe(0, &delta(&"x".repeat(4096)), 1), "more than one answer may take");
    assert!(!large.observe(0, &done(), 1));
    let many: Vec<Recorder> = futures_util::future::join_all((100..200).map(|n| lead(&cache, n))).await;
    let mut many = many;
    many.iter_mut().for_each(|recorder| assert!(!recorder.observe(0, &delta(&"x".repeat(1500)), 1)));
    assert!(cache.n_recording.load(Ordering::Relaxed) <= 16 << 10);
    drop(many);
    assert_eq!(cache.n_recording.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn age_and_time_to_live_are_kept() {
    let cache = cache(|config| config.ttl = Duration::from_millis(50));
    fill(lead(&cache, 1).await, "a");
    let strict = CacheAsk { max_age_s: Some(0), ..Default::default() };
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(hit(&cache, 1, &strict).await.is_none(), "too old for this one");
    assert!(hit(&cache, 1, &CacheAsk::default()).await.is_some());
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(hit(&cache, 1, &CacheAsk::default()).await.is_none(), "too old for all");
    let ask = CacheAsk { ttl_s: Some(0), ..Default::default() };
    let Entered::Miss(Some(recorder)) = cache.enter(key(2), &ask).await else { unreachable!("a miss") };
    fill(recorder, "b");
    assert!(hit(&cache, 2, &CacheAsk::default()).await.is_none());
}

#[tokio::test]
async fn a_client_may_keep_away() {
    let cache = cache(|_| {});
    fill(lead(&cache, 1).await, "a");
    let anew = CacheAsk { no_cache: true, ..Default::default() };
    let Entered::Miss(Some(recorder)) = cache.enter(key(1), &anew).await else { unreachable!("made anew") };
    fill(recorder, "b");
    let entry = hit(&cache, 1, &CacheAsk::default()).await.expect("the newer one");
    assert_eq!(entry.events[0], (0, delta("b")));
    let unkept = CacheAsk { no_store: true, ..Default::default() };
    assert!(hit(&cache, 1, &unkept).await.is_some(), "what is there may be had");
    assert!(matches!(cache.enter(key(2), &unkept).await, Entered::Miss(None)));
    drop(lead(&cache, 2).await);
}

#[tokio::test]
async fn many_wait_for_one_and_the_next_takes_over_from_one_that_left() {
    let cache = cache(|_| {});
    let first = lead(&cache, 1).await;
    let others: Vec<_> = (0..20)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                match cache.enter(key(1), &CacheAsk::default()).await {
                    Entered::Hit(_) => 0,
                    Entered::Miss(recorder) => {
                        fill(recorder.expect("the right to make it"), "a");
                        1
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(others.iter().all(|other| !other.is_finished()));
    drop(first);
    let mut n_made = 0;
    for other in others {
        n_made += other.await.expect("no panic");
    }
    assert_eq!((n_made, cache.lock().flights.len()), (1, 0));
}
