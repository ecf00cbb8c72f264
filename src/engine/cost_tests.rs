//! What pays, by steps whose times are known.

use super::*;

fn even(odds: f64) -> Chances {
    Chances { first: odds, next: odds }
}

fn cost(of: impl Fn(u32) -> f64) -> StepCost {
    let mut cost = StepCost::default();
    for n in StepCost::PROBES {
        cost.measure(n, Duration::from_secs_f64(of(n)));
    }
    cost
}

#[test]
fn nothing_is_drafted_before_anything_was_measured() {
    assert_eq!(StepCost::default().worth((1, 0.0), 1.0, even(0.9), 16).0, 0);
}

#[test]
fn free_rows_are_filled_and_dear_ones_are_not() {
    assert_eq!(cost(|_| 0.01).worth((1, 0.0), 1.0, even(0.9), 12).0, 12, "as on a GPU");
    assert_eq!(cost(f64::from).worth((1, 0.0), 1.0, even(0.9), 12).0, 0, "each row costs as much as a step");
    let (n, expected) = cost(|n| 1.0 + 0.3 * f64::from(n)).worth((1, 0.0), 1.0, even(0.9), 12);
    assert!((3..12).contains(&n) && expected > 2.0, "{n}, {expected}");
}

#[test]
fn a_first_token_that_is_in_doubt_makes_a_draft_longer_or_none() {
    let cost = cost(|n| 1.0 + 0.3 * f64::from(n));
    let doubt = |first| cost.worth((1, 0.0), 1.0, Chances { first, next: 0.99 }, 12).0;
    assert_eq!((doubt(0.1), doubt(0.7)), (0, 12), "of what follows all is right, or nothing");
    assert!(cost.worth((1, 0.0), 1.0, even(0.7), 12).0 < 5);
}

#[test]
fn a_draft_costs_no_more_than_what_may_be_lost() {
    let cost = cost(|n| 1.0 + 0.5 * f64::from(n));
    let n = |n_rows, odds, most, stake| cost.affordable((n_rows, 1.0), odds, most, stake);
    assert_eq!((n(1, 0.0, 12, 2.2), n(1, 0.0, 3, 2.2), n(1, 0.0, 12, 0.4)), (4, 3, 0));
    assert_eq!(n(0, 0.0, 12, 2.2), 2, "a pass of its own");
    assert!((5..20).contains(&n(1, 0.95, 20, 2.2)) && n(1, 0.99, 20, 2.2) > 15, "most of it is right");
    assert_eq!(StepCost::default().affordable((1, 1.0), 0.9, 12, 9.0), 0);
}

#[test]
fn behind_a_long_prompt_rows_are_dearer() {
    let mut cost = cost(|n| 1.0 + 0.2 * f64::from(n));
    cost.measure_depth(4, 500, 4.0 * 500.0 * 0.002);
    let n = |cost: &StepCost| cost.worth((1, 0.0), 1.0, even(0.8), 12).0;
    let near = n(&cost);
    cost.stand(1, 2000.0);
    assert!(near > 1 && n(&cost) == 0, "{near}: each row takes 4 s more, where a plain step takes 5.2");
    assert!((cost.time(3).unwrap() - 13.6).abs() < 1e-9 && (cost.price(1, 2) - 8.4).abs() < 1e-9);
    // What steps there take is told apart from what they take anyway.
    (0..50).for_each(|_| cost.observe(1, Duration::from_secs_f64(5.2)));
    cost.stand(1, 0.0);
    assert!((cost.time(1).unwrap() - 1.2).abs() < 0.01);
}

#[test]
fn a_step_of_another_number_of_rows_pays_for_following_others() {
    let secs = Duration::from_secs_f64;
    let mut cost = cost(|n| 1.0 + 0.1 * f64::from(n));
    cost.stand(1, 0.0);
    cost.observe(1, secs(1.1));
    let n = |cost: &StepCost| cost.worth((1, 0.0), 1.0, even(0.6), 3).0;
    assert!(n(&cost) > 0);
    cost.measure_switch(secs(1.0));
    assert_eq!(n(&cost), 0, "for itself and for the step behind it");
    assert!((cost.price(1, 3) - 2.3).abs() < 1e-9);
    assert_eq!(cost.worth((1, 0.0), 1.0, even(0.99), 3).0, 3);
    // That of the next one is less behind one like it.
    cost.observe(4, secs(2.4));
    assert!((cost.time(4).unwrap() - 1.4).abs() < 1e-9 && (cost.price(1, 3) - 0.3).abs() < 1e-9);
    assert!((cost.price(1, 2) - 1.2).abs() < 1e-9);
    // What it takes is learnt from plain steps.
    for _ in 0..100 {
        cost.observe(4, secs(1.6));
        cost.observe(1, secs(1.3));
        (0..6).for_each(|_| cost.observe(1, secs(1.1)));
    }
    assert!((cost.switch - 0.2).abs() < 0.02 && (cost.time(1).unwrap() - 1.1).abs() < 0.02, "{}", cost.switch);
}

#[test]
fn poor_odds_and_full_steps_get_no_draft() {
    let cost = cost(|n| 1.0 + 0.3 * f64::from(n));
    assert_eq!(cost.worth((1, 0.0), 1.0, even(0.15), 12).0, 0);
    assert_eq!(cost.worth((12, 0.0), 12.0, even(0.7), 4).0, 0, "twelve streams use the step already");
}

#[test]
fn a_draft_makes_no_step_longer_than_the_gap_between_tokens_may_be() {
    let steps = |max_gap: u64| {
        let mut cost = StepCost::within(Duration::from_secs(max_gap));
        StepCost::PROBES.iter().for_each(|n| cost.observe(*n, Duration::from_secs_f64(1.0 + 0.1 * f64::from(*n))));
        cost
    };
    assert_eq!(steps(60).worth((1, 0.0), 1.0, even(0.99), 30).0, 30);
    assert_eq!(steps(3).worth((1, 0.0), 1.0, even(0.99), 30).0, 19, "20 rows take 3 s");
    assert_eq!(steps(0).worth((1, 0.0), 1.0, even(0.99), 30).0, 11, "a step is longer by itself: twice its 1.1 s");
    let bid = [Bid { odds: 0.99, most: 30 }];
    assert!((1..20).contains(&draft_cost(0.01).choose(&steps(3), (1, false), &bid).len));
}

#[test]
fn a_draft_apart_pays_for_a_pass_of_its_own() {
    let cost = cost(|n| 1.0 + 0.1 * f64::from(n));
    assert_eq!(cost.worth((0, cost.pass(8)), 8.0, even(0.5), 4).0, 0);
    assert_eq!(cost.worth((0, cost.pass(2)), 2.0, even(0.97), 12).0, 12);
}

#[test]
fn a_part_of_a_group_is_filled_where_the_whole_is_faster() {
    let mut cost = StepCost::default();
    assert_eq!(cost.padded(15, &[4, 16]), 15, "it may be fast enough");
    cost.observe(15, Duration::from_millis(44));
    assert_eq!(cost.padded(15, &[4, 16]), 16, "unknown: tried");
    cost.observe(16, Duration::from_millis(30));
    assert_eq!(cost.padded(15, &[4, 16]), 16);
    for (n, ms) in [(9, 25), (12, 29), (13, 34)] {
        cost.observe(n, Duration::from_millis(ms));
    }
    assert_eq!((cost.padded(13, &[4, 16]), cost.padded(9, &[4, 16])), (16, 9));
    assert_eq!((cost.padded(ROWS_MAX, &[4, 16]), cost.padded(ROWS_MAX + 9, &[4, 16])), (ROWS_MAX, ROWS_MAX + 9));
}

/// Drafts whose every token takes `of` for one sequence and for sixteen.
fn draft_cost(of: f64) -> DraftCost {
    let mut cost = DraftCost::default();
    cost.round.observe(1, Duration::from_secs_f64(of));
    cost.round.observe(16, Duration::from_secs_f64(of * 1.5));
    cost
}

#[test]
fn cheap_drafts_that_are_right_are_long_and_dear_or_wrong_ones_are_not_made() {
    let step = cost(|n| 1.0 + 0.05 * f64::from(n));
    let bids = |odds: f64| [Bid { odds, most: 12 }; 4];
    let good = draft_cost(0.05).choose(&step, (1, false), &bids(0.9)[..1]);
    assert!(good.n_seqs == 1 && (4..=12).contains(&good.len) && good.saved > 0.3, "{good:?}");
    assert_eq!(draft_cost(0.05).choose(&step, (1, false), &bids(0.05)[..1]).n_seqs, 0, "always wrong");
    assert_eq!(draft_cost(1.0).choose(&step, (1, false), &bids(0.9)[..1]).n_seqs, 0, "as dear as the model itself");
    let shared = draft_cost(0.05).choose(&step, (4, false), &bids(0.9));
    assert!(shared.n_seqs == 4 && shared.len >= 3, "four share the cost of a draft: {shared:?}");
    let mut mixed = bids(0.9);
    (mixed[2].odds, mixed[3].odds) = (0.05, 0.02);
    assert_eq!(draft_cost(0.05).choose(&step, (4, false), &mixed).n_seqs, 2, "the poor ones are left out");
    let fixed = DraftCost { is_fixed: true, ..draft_cost(0.3) };
    assert_eq!(fixed.choose(&step, (1, false), &bids(0.9)[..1]).len, 12, "the rest of a draft costs rows only");
}

#[test]
fn drafts_are_not_shorter_than_what_comes_back_and_feeding_beyond_a_small_batch_has_a_price() {
    let step = cost(|n| 1.0 + 0.2 * f64::from(n));
    let bid = [Bid { odds: 0.4, most: 12 }];
    let free = DraftCost { feed: cost(|_| 0.01), ..draft_cost(0.05) };
    assert_eq!(free.choose(&step, (1, false), &bid).len, 1);
    let long = DraftCost { least: 6, ..free.clone() };
    assert_eq!(long.choose(&step, (1, false), &bid).n_seqs, 0, "six at once don't pay");
    let sure = [Bid { odds: 0.98, most: 12 }];
    assert!(long.choose(&step, (1, false), &sure).len >= 6);
    let mut small = DraftCost::default();
    (1..=32).for_each(|n| small.feed.observe(n, Duration::from_millis(n.into())));
    assert!((small.feeding(320).unwrap() - 0.32).abs() < 1e-9 && (small.feeding(8).unwrap() - 0.008).abs() < 1e-9);
    assert_eq!(DraftCost::default().feeding(5), None);
}

#[test]
fn where_repeated_steps_are_faster_a_draft_pays_for_leaving_them() {
    let ms = |n: u32| 3.3 + 0.2 * f64::from(n - 1);
    let mut gpu = cost(|n| ms(n) / 1e3);
    assert!(gpu.worth((1, 0.0), 1.0, even(0.4), 8).0 > 0, "rows are nearly free");
    gpu.set_detour(Duration::from_millis(4));
    assert_eq!(gpu.worth((1, 0.0), 1.0, even(0.75), 3).0, 0, "wrong ones cost the steps around them");
    assert_eq!(gpu.worth((1, 0.0), 1.0, even(0.98), 8).0, 8, "right ones follow one another");
    let bid = [Bid { odds: 0.4, most: 8 }];
    assert_eq!(draft_cost(1e-4).choose(&gpu, (1, false), &bid).n_seqs, 1, "a model drafts in each step");
    // Only steps that repeat those before say what it is to repeat them.
    let before = gpu.time(1);
    for n in [4, 1, 1, 16, 1, 1] {
        gpu.observe(n, Duration::from_millis(9));
    }
    gpu.interrupt();
    for _ in 0..2 {
        gpu.observe(1, Duration::from_millis(9));
    }
    assert_eq!(gpu.time(1), before);
    gpu.observe(1, Duration::from_millis(9));
    assert!(gpu.time(1) > before);
}

#[test]
fn a_step_that_was_held_up_counts_little() {
    let mut cost = cost(|_| 0.01);
    cost.observe(1, Duration::from_secs(5));
    assert!(cost.time(1).unwrap() < 0.013);
    cost.observe(ROWS_MAX as u32 + 1, Duration::from_secs(1));
    assert!(cost.time(ROWS_MAX + 1).is_none());
}

#[test]
fn what_a_start_measured_too_dear_is_tried_again_at_little_cost() {
    let truth = |n: usize| 0.01 + 0.001 * n as f64;
    let of_few = cost(|n| truth(n as usize) * if n == 4 { 9.0 } else { 1.0 });
    assert!(of_few.time(4).unwrap() <= truth(16), "a step takes no longer than one with more rows");
    let mut cost = cost(|n| truth(n as usize) * if n > 1 { 8.0 } else { 1.0 });
    assert_eq!(cost.worth((1, 0.0), 1.0, even(0.95), 8).0, 0, "by what is known nothing pays");
    let (mut n_steps, mut time, mut n_trials) = (0, 0.0, 0);
    while cost.worth((1, 0.0), 1.0, even(0.95), 8).0 == 0 {
        let n = cost.trial(1, 1.0, even(0.95), 8).map_or(0, |(n, _)| n);
        cost.stand(1, 0.0);
        cost.refund(if n > 0 { 0.95 * n as f64 } else { 0.0 });
        n_trials += usize::from(n > 0);
        cost.observe(1 + n as u32, Duration::from_secs_f64(truth(1 + n)));
        (n_steps, time) = (n_steps + 1, time + truth(1 + n));
        assert!(n_steps < 10_000, "never found out");
    }
    assert!(n_trials <= 8 && time < 60.0, "{n_trials} trials in {time} s");
}

#[test]
fn trials_where_everything_is_known_cost_a_small_part() {
    // Rows are dear, and it is so.
    let truth = |n: usize| 0.01 * (n as f64).powf(0.8);
    let mut cost = cost(|n| truth(n as usize));
    let (mut time, mut right, n_steps) = (0.0, 0.0, 10_000);
    for _ in 0..n_steps {
        let known = cost.worth((1, 0.0), 1.0, even(0.5), 8).0;
        // All of them are wrong.
        let n = cost.trial(1, 1.0, even(0.5), 8).map_or(known, |(n, _)| n);
        cost.observe(1 + n as u32, Duration::from_secs_f64(truth(1 + n)));
        time += truth(1 + n);
        right += (1..=n).map(|at| 0.5f64.powf(at as f64)).sum::<f64>();
    }
    let rate = (f64::from(n_steps) + right) / time * truth(1);
    assert!(rate > 1.0 - 2.0 * TRIAL_PART, "{rate}");
}
