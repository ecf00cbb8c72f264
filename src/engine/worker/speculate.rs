//! Drafts by a model or heads beside the model, for all slots at once.

use super::super::backend::{DraftAsk, DraftTraits};
use super::super::cost::{Bid, DraftCost};
use super::super::drafter::Lately;
use super::super::speculation::{Speculation, Whose};
use super::*;

/// Tokens that may be taken in without asking whether it pays.
const FEW: usize = 8;
/// Longest that taking tokens in holds up a step, which others wait for too.
const FEED_TIME: f64 = 0.04;
/// Rows that are taken in at least.
const FEED_MIN: usize = 64;
/// Tokens that a beginning must pay for itself within.
const HORIZON: u32 = 256;
/// Tokens that another sequence's side must have beyond its own for a copy.
const SHARE_MIN: usize = 32;
/// Of the time since drafts were last tried, what trying them again may cost.
const TRIAL_PART: f64 = 0.02;
/// Tokens of a draft on trial.
const TRIAL_LEN: usize = 2;
/// Steps of several sequences in a row that heads take in where only steps of one have drafts.
const COMPANY: u64 = 256;

/// A slot that could be drafted for in this step.
struct Candidate {
    /// Its share's place in the plan.
    at: usize,
    slot: usize,
    bid: Bid,
    /// Tokens that the draft's side lacks.
    missing: usize,
    is_trial: bool,
    /// Tokens that the run may still make.
    left: u32,
}

impl<M: Model> Worker<M> {
    /// Drafts behind the shares of running streams, in the order of `shares`, as far as they pay in a step of `beside.0` rows
    /// (`beside.1`: drafts are verified in a pass of their own); at most `n_extra` tokens in all.
    pub(super) fn model_drafts(&mut self, shares: &[Share], beside: (usize, bool), n_extra: usize) -> Vec<Vec<Token>> {
        let Some(mut speculation) = self.speculation.take() else { return Vec::new() };
        let mut drafts = Vec::new();
        if self.context.drafts().is_some() {
            if n_extra > 0 {
                drafts = self.drafted(&mut speculation, shares, beside, n_extra);
            }
            self.speculation = Some(speculation);
        }
        drafts
    }

    fn drafted(
        &mut self,
        speculation: &mut Speculation,
        shares: &[Share],
        beside: (usize, bool),
        n_extra: usize,
    ) -> Vec<Vec<Token>> {
        let mut found = self.candidates(speculation, shares, n_extra);
        if found.is_empty() {
            return Vec::new();
        }
        if !speculation.traits.follows {
            self.decline_dear(speculation, &mut found, beside);
            self.catch_up(speculation, &mut found);
        }
        found.retain(|one| one.missing == 0);
        found.sort_by(|a, b| a.is_trial.cmp(&b.is_trial).then(b.bid.odds.total_cmp(&a.bid.odds)));
        let n_sure = found.iter().take_while(|one| !one.is_trial).count();
        let bids: Vec<Bid> = found[..n_sure].iter().map(|one| one.bid).collect();
        let choice = speculation.cost.choose(&self.cost, beside, &bids);
        let mut asks = Vec::new();
        let mut n_left = n_extra;
        let least = speculation.cost.least.max(1);
        for (i, one) in found.iter().enumerate() {
            let len = if one.is_trial { TRIAL_LEN.max(least) } else { choice.len }.min(one.bid.most).min(n_left);
            if i < choice.n_seqs || one.is_trial {
                if len >= least {
                    n_left -= len;
                    asks.push((one.at, one.slot, len));
                    self.with_trust(one.slot, |trust| if one.is_trial { trust.try_once() } else { trust.praise() });
                }
            } else {
                self.decline(one.slot);
            }
        }
        for one in &found[..choice.n_seqs] {
            self.with_lately(one.slot, |lately| lately.model.praise());
        }
        let mut drafts = vec![Vec::new(); shares.len()];
        for ((at, ..), draft) in asks.iter().zip(self.ask(speculation, &asks)) {
            drafts[*at] = draft;
        }
        drafts
    }

    fn with_trust<T>(&mut self, slot: usize, body: impl FnOnce(&mut Trust) -> T) -> Option<T> {
        let run = self.slots[slot].run.as_mut()?;
        run.drafter.as_mut()?.model.as_mut().map(body)
    }

    /// What the next requests of the slot's partition begin with, if it shares.
    fn with_lately(&mut self, slot: usize, body: impl FnOnce(&mut Lately)) {
        let run = self.slots[slot].run.as_ref().filter(|run| run.cache_prompt);
        if let Some(lately) = run.and_then(|run| self.tenants.lately(run.partition)) {
            body(lately);
        }
    }

    /// It doesn't pay for this slot now.
    fn decline(&mut self, slot: usize) {
        if let Some(trust) = self.with_trust(slot, |trust| {
            trust.sleep();
            *trust
        }) {
            self.with_lately(slot, |lately| lately.model.rest_like(&trust));
        }
    }

    fn candidates(&mut self, speculation: &mut Speculation, shares: &[Share], n_extra: usize) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (at, share) in shares.iter().enumerate() {
            let slot = &self.slots[share.slot];
            let Some(run) = &slot.run else { continue };
            let ends = slot.kept.len() + share.n_rows as usize == run.tokens.len();
            let Some(trust) = run.drafter.as_ref().and_then(|drafter| drafter.model) else { continue };
            let is_held = run.gate.as_ref().is_some_and(|gate| !gate.may_draft());
            if !run.is_decoded(share) || !ends || is_held || !run.media.is_empty() || !trust.is_awake() {
                continue;
            }
            // A text that was right for a while costs nothing to draft from.
            let of_text = run.drafter.as_ref().and_then(|drafter| drafter.propose(&run.tokens));
            if of_text.is_some_and(|text| text.chances.first >= trust.odds()) {
                continue;
            }
            let left = run.n_generate_max.saturating_sub(run.n_generated()).saturating_sub(1);
            let room = self.context.n_ctx_seq().saturating_sub(run.tokens.len() as u32 + 1);
            let most = left.min(room).min(self.n_draft_max).min(speculation.traits.n_max);
            let most = (most as usize).min(n_extra);
            let Some((last, before)) = run.tokens.split_last() else { continue };
            if most < speculation.cost.least.max(1) || !is_known(&speculation.traits, *last) {
                continue;
            }
            let whose = Whose { slot: share.slot, partition: run.partition, serial: run.serial, tokens: before };
            let missing = speculation.missing(whose);
            let bid = Bid { odds: trust.odds(), most };
            let is_trial = trust.is_on_trial();
            found.push(Candidate { at, slot: share.slot, bid, missing, is_trial, left });
        }
        found
    }

    /// Drops candidates whose side lacks so much that taking it in doesn't pay.
    fn decline_dear(&mut self, speculation: &mut Speculation, found: &mut Vec<Candidate>, beside: (usize, bool)) {
        let mut dear = Vec::new();
        found.retain_mut(|one| {
            if one.missing <= FEW && !one.is_trial {
                return true;
            }
            self.borrow(speculation, one);
            let Some(feeding) = speculation.cost.feeding(one.missing) else { return false };
            let is_worth = if one.is_trial {
                let trial = speculation.cost.round.time(1).unwrap_or(f64::MAX) * TRIAL_LEN as f64;
                let slept = self.with_trust(one.slot, |trust| trust.slept()).unwrap_or(0);
                feeding + trial <= self.cost.time(1).unwrap_or(0.0) * f64::from(slept) * TRIAL_PART
            } else {
                let alone = speculation.cost.choose(&self.cost, beside, &[one.bid]);
                alone.saved * beside.0 as f64 * f64::from(one.left.min(HORIZON)) > feeding
            };
            if !is_worth {
                dear.push(one.slot);
            }
            is_worth
        });
        for slot in dear {
            self.decline(slot);
        }
    }

    /// Takes over what another sequence's side has of the tokens, where that is much.
    fn borrow(&mut self, speculation: &mut Speculation, one: &mut Candidate) {
        if one.missing < SHARE_MIN {
            return;
        }
        let Some(run) = &self.slots[one.slot].run else { return };
        let before = &run.tokens[..run.tokens.len() - 1];
        let whose = Whose { slot: one.slot, partition: run.partition, serial: run.serial, tokens: before };
        let Some((donor, n)) = speculation.donor(whose, SHARE_MIN) else { return };
        if self.context.draft_share(donor as u32, one.slot as u32, n as u32) {
            speculation.copied(donor, one.slot, n);
            one.missing = before.len() - n;
        } else {
            speculation.cleared(one.slot);
            one.missing = before.len();
        }
    }

    /// Takes in what is missing, the least first, as far as a step may be held up for it.
    fn catch_up(&mut self, speculation: &mut Speculation, found: &mut [Candidate]) {
        let per_row = speculation.cost.feeding(FEED_MIN).unwrap_or(f64::MAX) / FEED_MIN as f64;
        #[expect(clippy::cast_sign_loss, reason = "times are positive")]
        let in_time = (FEED_TIME / per_row.max(1e-9)) as usize;
        let mut room = in_time.max(FEED_MIN).min(self.context.n_batch() as usize);
        found.sort_by_key(|one| one.missing);
        let (mut rows, mut fed) = (Vec::new(), Vec::new());
        for one in found.iter_mut().filter(|one| one.missing > 0) {
            let Some(run) = &self.slots[one.slot].run else { continue };
            let n = one.missing.min(room);
            let from = run.tokens.len() - 1 - one.missing;
            let tokens = &run.tokens[from..from + n];
            // What it doesn't know it can't take in.
            if n == 0 || !tokens.iter().all(|token| is_known(&speculation.traits, *token)) {
                continue;
            }
            let seq = one.slot as u32;
            let row = |(i, token): (usize, &Token)| Row { token: *token, pos: (from + i) as u32, seq, output: false };
            rows.extend(tokens.iter().enumerate().map(row));
            fed.push((one.slot, from, tokens.to_vec()));
            room -= n;
            one.missing -= n;
        }
        if rows.is_empty() {
            return;
        }
        let start = Instant::now();
        let is_fed = self.context.draft_feed(&rows);
        if is_fed {
            speculation.cost.feed.observe(rows.len() as u32, start.elapsed());
        }
        let lacked: Vec<usize> = fed.iter().map(|(slot, ..)| *slot).collect();
        for (slot, from, tokens) in fed {
            if is_fed {
                speculation.took(slot, from, &tokens);
            } else {
                speculation.cleared(slot);
            }
        }
        if !is_fed {
            let wanted: Vec<usize> = found.iter().map(|one| one.slot).collect();
            self.make_draft_room(speculation, &wanted, &lacked);
            found.iter_mut().for_each(|one| one.missing = usize::MAX);
        }
    }

    /// The draft's context is full: its side of sequences that are not among the wanted is emptied. Where those held
    /// nothing, it is too small for all that are wanted, and those that it failed for rest.
    fn make_draft_room(&mut self, speculation: &mut Speculation, wanted: &[usize], failed: &[usize]) {
        let mut is_room = false;
        for slot in (0..self.slots.len()).filter(|slot| !wanted.contains(slot)) {
            is_room |= self.context.draft_clear(slot as u32);
            speculation.cleared(slot);
        }
        for slot in failed.iter().filter(|_| !is_room) {
            self.decline(*slot);
        }
    }

    /// Asks for drafts of so many tokens for the slots at these shares, and measures what it takes.
    fn ask(&mut self, speculation: &mut Speculation, asks: &[(usize, usize, usize)]) -> Vec<Vec<Token>> {
        let mut wanted = Vec::new();
        for (_, slot, len) in asks {
            let Some(run) = &self.slots[*slot].run else { continue };
            let pos = run.tokens.len() - 1;
            wanted.push(DraftAsk { seq: *slot as u32, pos: pos as u32, last: run.tokens[pos], n_max: *len as u32 });
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let start = Instant::now();
        let found = self.context.draft(&wanted);
        speculation.cost.observe(&wanted, &found, start.elapsed());
        let n_vocab = self.model.n_vocab();
        let (mut drafts, mut failed) = (Vec::new(), Vec::new());
        for (ask, draft) in wanted.iter().zip(found) {
            let slot = ask.seq as usize;
            let Some(mut draft) = draft else {
                self.context.draft_clear(ask.seq);
                speculation.cleared(slot);
                failed.push(slot);
                drafts.push(Vec::new());
                continue;
            };
            if !speculation.traits.follows {
                // The last one it chose is not among what it holds.
                let mut held = vec![ask.last];
                held.extend(draft.iter().copied().take(draft.len().saturating_sub(1)));
                speculation.took(slot, ask.pos as usize, &held);
            }
            let n_known = draft.iter().take_while(|token| u32::try_from(**token).is_ok_and(|id| id < n_vocab)).count();
            draft.truncate(n_known);
            if draft.is_empty() {
                self.with_trust(slot, |trust| trust.take(0, 0));
                self.with_lately(slot, |lately| lately.model.take(0, 0));
            }
            let n_ahead = self.slots[slot].run.as_ref().map_or(0, |run| self.n_ahead(run, &draft));
            draft.truncate(n_ahead);
            drafts.push(draft);
        }
        if !failed.is_empty() {
            let wanted: Vec<usize> = wanted.iter().map(|ask| ask.seq as usize).collect();
            self.make_draft_room(speculation, &wanted, &failed);
        }
        drafts
    }

    /// The decode of `rows` is done: heads that follow take it in, while anybody in it believes them.
    pub(super) fn follow(&mut self, shares: &[Share]) {
        let Some(mut speculation) = self.speculation.take_if(|speculation| speculation.traits.follows) else { return };
        let believes = |share: &Share| {
            let run = self.slots[share.slot].run.as_ref();
            run.and_then(|run| run.drafter.as_ref()?.model).is_some_and(|trust| trust.is_awake())
        };
        if shares.len() == 1 || self.context.can_cut() {
            speculation.drafting_at = self.step;
        }
        // Where requests never run by themselves it would be for nothing; where they do again, heads that were there all along
        // know more.
        let is_of_use = self.step - speculation.drafting_at <= COMPANY;
        if self.context.drafts().is_some() && is_of_use && shares.iter().any(believes) {
            for share in shares {
                self.rejoin(&mut speculation, share);
            }
            let start = Instant::now();
            let is_fed = self.context.draft_feed(&self.rows);
            if is_fed {
                speculation.cost.feed.observe(self.rows.len() as u32, start.elapsed());
            }
            for rows in self.rows.chunk_by(|a, b| a.seq == b.seq) {
                let tokens: Vec<Token> = rows.iter().map(|row| row.token).collect();
                let slot = rows[0].seq as usize;
                if is_fed && self.slots[slot].run.is_some() {
                    speculation.took(slot, rows[0].pos as usize, &tokens);
                } else {
                    // Of a run that ended beside the decode nothing is kept.
                    self.context.draft_clear(rows[0].seq);
                    speculation.cleared(slot);
                }
            }
            if !is_fed {
                let fed: Vec<usize> = shares.iter().map(|share| share.slot).collect();
                self.make_draft_room(&mut speculation, &fed, &fed);
            }
        }
        self.speculation = Some(speculation);
    }

    /// Before heads take in a share's rows: their side ends where these begin, or is empty.
    fn rejoin(&mut self, speculation: &mut Speculation, share: &Share) {
        let slot = &self.slots[share.slot];
        let Some(run) = &slot.run else {
            self.context.draft_clear(share.slot as u32);
            return speculation.cleared(share.slot);
        };
        let tokens = &run.tokens[..slot.kept.len()];
        let whose = Whose { slot: share.slot, partition: run.partition, serial: run.serial, tokens };
        if speculation.missing(whose) == 0 || tokens.is_empty() {
            return;
        }
        let donor = speculation.donor(whose, 1).filter(|(_, n)| *n == tokens.len());
        match donor {
            Some((donor, n)) if self.context.draft_share(donor as u32, share.slot as u32, n as u32) => {
                speculation.copied(donor, share.slot, n);
            }
            _ => {
                self.context.draft_clear(share.slot as u32);
                speculation.cleared(share.slot);
            }
        }
    }

    /// Of a share's rows with a draft behind them, the first `n_right` of the draft were right.
    pub(super) fn settle(&mut self, index: usize, draft: &Draft, n_before: u32, n_right: usize) {
        let (source, n) = (draft.source, draft.tokens.len());
        tracing::trace!(?source, n, n_right, price = draft.price, is_trial = draft.is_trial, "draft");
        if draft.is_trial {
            self.cost.refund(draft.price.min(n_right as f64));
        }
        if let Some(drafter) = self.slots[index].run.as_mut().and_then(|run| run.drafter.as_mut()) {
            drafter.count(source, (n, n_right), if draft.is_trial { 0.0 } else { draft.price });
        }
        if source == Source::Model {
            self.count_drafted(n, n_right);
            self.with_lately(index, |lately| lately.model.take(n, n_right));
        }
        if self.speculation.as_ref().is_some_and(|speculation| speculation.traits.follows) {
            self.context.draft_accept(index as u32, n_before - 1 + n_right as u32);
        }
    }

    fn count_drafted(&self, n: usize, n_right: usize) {
        let mut stats = self.lock_stats();
        stats.n_drafted += n as u64;
        stats.n_drafted_right += n_right as u64;
    }
}

fn is_known(traits: &DraftTraits, token: Token) -> bool {
    u32::try_from(token).is_ok_and(|token| token < traits.n_vocab)
}

impl DraftCost {
    /// What asking took, where there was room for it.
    fn observe(&mut self, asks: &[DraftAsk], drafts: &[Option<Vec<Token>>], time: Duration) {
        let Some(drafts) = drafts.iter().map(Option::as_ref).collect::<Option<Vec<_>>>() else { return };
        let longest = drafts.iter().map(|draft| draft.len()).max().unwrap_or(0) as u32;
        let is_cut = asks.iter().zip(&drafts).any(|(ask, draft)| draft.len() < ask.n_max as usize);
        let n_rounds = if self.is_fixed { 1 } else { (longest + u32::from(is_cut)).max(1) };
        self.round.observe(asks.len() as u32, time / n_rounds);
    }
}

/// Measures what drafts cost, if anything drafts and has room to. Errors: the context itself is broken.
pub(in super::super) fn warm_up_drafts<C: Context>(
    context: &mut C,
    token: Token,
    n_slots: u32,
    is_ignored: bool,
) -> Result<Option<Speculation>, String> {
    let Some(traits) = context.drafts() else { return Ok(None) };
    let (is_fixed, follows, least) = (traits.is_fixed, traits.follows, traits.n_min as usize);
    let mut cost = DraftCost { is_fixed, follows, is_ignored, least, ..DraftCost::default() };
    let token = token.min(i32::try_from(traits.n_vocab).unwrap_or(i32::MAX) - 1);
    let n_most = 64.min(context.n_batch()).min(context.n_ctx_seq().saturating_sub(1 + traits.n_max)).max(1);
    for n in warm::probes(n_most) {
        let rows: Vec<Row> = (0..n).map(|pos| Row { token, pos, seq: 0, output: false }).collect();
        let mut best = Duration::MAX;
        for _ in 0..2 {
            let Some(time) = fed(context, &rows)? else { return Ok(unused("there is no room for its rows")) };
            best = best.min(time);
        }
        cost.feed.observe(n, best);
    }
    context.forget(0, 0);
    let most = n_slots.min(64).min(n_most);
    let mut probes = vec![1, 4, 16, most];
    probes.retain(|n| *n <= most);
    probes.dedup();
    for n_seqs in probes {
        let rows: Vec<Row> = (0..n_seqs).map(|seq| Row { token, pos: 0, seq, output: false }).collect();
        let n_max = traits.n_max.min(4).max(traits.n_min);
        let asks: Vec<DraftAsk> = (0..n_seqs).map(|seq| DraftAsk { seq, pos: 1, last: token, n_max }).collect();
        let mut best: Option<(Duration, Vec<Option<Vec<Token>>>)> = None;
        for _ in 0..3 {
            if fed(context, &rows)?.is_none() {
                return Ok(unused("there is no room for a row of each slot"));
            }
            let start = Instant::now();
            let drafts = context.draft(&asks);
            let time = start.elapsed().max(Duration::from_micros(1));
            if best.as_ref().is_none_or(|(other, _)| time < *other) {
                best = Some((time, drafts));
            }
        }
        if let Some((time, drafts)) = best {
            cost.observe(&asks, &drafts, time);
        }
        for seq in 0..n_seqs {
            context.forget(seq, 0);
            context.draft_clear(seq);
        }
    }
    if context.drafts().is_none() {
        return Ok(None);
    }
    if cost.round.time(1).is_none() {
        return Ok(unused("there is no room for a draft"));
    }
    tracing::debug!(
        round_us = cost.round.time(1).map_or(0.0, |time| time * 1e6),
        feed_us = cost.feeding(1).map_or(0.0, |time| time * 1e6),
        "drafts were measured"
    );
    Ok(Some(Speculation::new(traits, cost, n_slots as usize)))
}

fn unused(why: &str) -> Option<Speculation> {
    tracing::warn!(why, "nothing is drafted by a model or heads");
    None
}

/// How long taking in these rows takes, which the context computes before and still holds then: heads may attend over its cells.
/// `None`: they have no room.
fn fed<C: Context>(context: &mut C, rows: &[Row]) -> Result<Option<Duration>, String> {
    let seqs = || rows.chunk_by(|a, b| a.seq == b.seq).map(|rows| rows[0].seq);
    let forget = |context: &mut C| {
        for seq in seqs() {
            context.forget(seq, 0);
        }
    };
    forget(context);
    match context.decode(rows) {
        Ok(()) => {}
        Err(DecodeError::NoKvSlot | DecodeError::Aborted) => return Ok(None),
        Err(DecodeError::Broken(reason)) => return Err(reason),
    }
    let start = Instant::now();
    let is_fed = context.draft_feed(rows);
    let time = start.elapsed().max(Duration::from_micros(1));
    if !is_fed {
        forget(context);
    }
    Ok(is_fed.then_some(time))
}
