//! Tokens chosen for the slots of a step.

use super::{Token, allows};

/// What may come next in a row.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// What the sampler chooses, of the tokens whose bits are set in the mask.
    Chosen(Option<&'a [u32]>),
    /// This token, whatever the row says.
    Forced(Token),
}

/// What holds a slot's answer to its form and hears its tokens, for one step.
pub trait Listener: Send {
    /// What may come in the row behind the first `at` tokens of the draft; `None`: the answer is complete there.
    fn place(&self, at: usize) -> Option<Place<'_>>;

    /// Takes what was chosen, beside those of the other slots; `show` shows the sampler a token that it did not choose.
    fn take(&mut self, chosen: &mut Vec<Result<Chosen, String>>, show: &mut dyn FnMut(Token) -> Result<(), String>);
}

/// What a slot chooses from: a row of the last decode, and those of the draft behind it.
pub struct Pick<'a, S> {
    pub row: usize,
    /// Tokens of the rows behind: as long as the one chosen is the draft's, the next row counts too.
    pub draft: &'a [Token],
    pub sampler: &'a mut S,
    /// `None`: any token may come, and whoever made this looks at what was chosen.
    pub listener: Option<&'a mut dyn Listener>,
    /// Log-probabilities of so many tokens are wanted too, with these biases.
    pub top: Option<(usize, &'a [(Token, f32)])>,
    pub chosen: Vec<Result<Chosen, String>>,
}

/// A token, and what is told of it: its log-probability, and the best ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub token: Token,
    pub told: Option<Told>,
    /// The sampler was shown it, and did not choose.
    pub is_forced: bool,
}

/// A token's log-probability, and the best tokens with theirs, best first.
pub type Told = (f32, Vec<(Token, f32)>);

/// A token that stands behind a row of the last decode, of which is to be told.
#[derive(Debug)]
pub struct Ask {
    pub row: usize,
    pub token: Token,
    /// So many of the best tokens are wanted too.
    pub k: usize,
    /// `None`: not yet, or the row has no logits.
    pub told: Option<Told>,
}

impl<S> Pick<'_, S> {
    /// Chooses from the row at the place it is told, under a mask, with `choose`, or shows the sampler what is forced there with
    /// `follow`; and on as long as the draft is right. Whoever listens takes what was chosen.
    pub fn run(
        &mut self,
        mut choose: impl FnMut(usize, Option<&[u32]>, &mut S) -> Result<Chosen, String>,
        mut follow: impl FnMut(&mut S, Token) -> Result<(), String>,
    ) {
        for at in 0..=self.draft.len() {
            let chosen = match self.listener.as_ref().map_or(Some(Place::Chosen(None)), |listener| listener.place(at)) {
                // The answer is complete, or was forced another way.
                None => break,
                Some(Place::Forced(token)) => {
                    follow(self.sampler, token).map(|()| Chosen { token, told: None, is_forced: true })
                }
                Some(Place::Chosen(mask)) => choose(at, mask, self.sampler).and_then(|chosen| match mask {
                    Some(mask) if !allows(mask, chosen.token) => Err("the sampler left the constraint".into()),
                    _ => Ok(chosen),
                }),
            };
            let is_right = chosen.as_ref().is_ok_and(|chosen| self.draft.get(at) == Some(&chosen.token));
            self.chosen.push(chosen);
            if !is_right {
                break;
            }
        }
        if let Some(listener) = &mut self.listener {
            listener.take(&mut self.chosen, &mut |token| follow(self.sampler, token));
        }
    }
}
