//! A draft's way through a constraint: what may stand in each of its places, found out beside the pass that computes them.

use crate::engine::backend::{Place, Token};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

/// What may stand behind each token of a draft, as far as the draft keeps to the constraint.
pub(super) enum Hold {
    Mask(SimpleVob),
    /// One token, whatever the model says.
    Forced(Token),
}

impl Hold {
    pub fn place(&self) -> Place<'_> {
        match self {
            Hold::Mask(mask) => Place::Chosen(Some(mask.as_slice())),
            Hold::Forced(token) => Place::Forced(*token),
        }
    }
}

/// Goes through `draft` from where the matcher is, whose mask is `first`, and back again. Up to `n_forced_max` tokens are forced
/// at once, as when they are taken one by one; 0: none are.
pub(super) fn along(
    matcher: &mut Matcher,
    draft: &[Token],
    first: &SimpleVob,
    n_forced_max: usize,
) -> Result<Vec<Hold>, String> {
    let lost = |error: &dyn std::fmt::Display| super::first_line(&error.to_string());
    let (mut holds, mut n_taken) = (Vec::new(), 0);
    let mut mask = first.clone();
    let mut rest = draft.iter().copied();
    while let Some(token) = rest.next().filter(|token| mask.is_allowed(token.cast_unsigned())) {
        matcher.consume_token(token.cast_unsigned()).map_err(|error| lost(&error))?;
        n_taken += 1;
        if matcher.is_stopped() {
            break;
        }
        let mut forced = if n_forced_max > 0 { matcher.compute_ff_tokens() } else { Vec::new() };
        forced.truncate(n_forced_max);
        holds.extend(forced.iter().map(|token| Hold::Forced(token.cast_signed())));
        if !forced.iter().all(|token| rest.next() == Some(token.cast_signed())) {
            break;
        }
        matcher.consume_tokens(&forced).map_err(|error| lost(&error))?;
        n_taken += forced.len();
        if matcher.is_stopped() {
            break;
        }
        mask = matcher.compute_mask().map_err(|error| lost(&error))?;
        holds.push(Hold::Mask(mask.clone()));
    }
    matcher.rollback(n_taken).map_err(|error| lost(&error))?;
    Ok(holds)
}
