//! What a recurrent or hybrid memory of llama.cpp can be taken back by.
//!
//! # Design
//! llama.cpp keeps states for the last rows of a sequence and takes back as many rows as it has places for states, whatever
//! is in them (llama-memory-recurrent.cpp, `seq_rm`). What is in them is right only
//!
//! - of the last decode: a pass writes a state for each of its own rows, and leaves the other places as they were. The state
//!   before its first row is not among them;
//! - if nothing else was in that decode: a later pass of it may move a sequence's newest state elsewhere, without the others;
//! - if it was not aborted: the rows of a failed pass are taken back in the same way, to states that it never wrote.
//!
//! A sequence that was taken back goes on from a place of its own until its next decode. Until then nothing else can go on
//! from it (`seq_cp` copies the newest state), though it can be saved. An aborted decode of others may have been about to
//! settle that, so its state is lost too.

/// What is known of each sequence of a context.
pub(super) struct Rollback {
    /// States that are kept behind each sequence; 0: it is no such memory, and nothing here matters.
    n_kept: u32,
    seqs: Vec<Past>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Past {
    /// None of its rows can be taken back.
    #[default]
    None,
    /// So many of its last rows can be.
    Rows(u32),
    /// It was taken back, and nothing was decoded since.
    Taken,
    /// Nobody knows what its state is.
    Lost,
}

impl Rollback {
    pub fn new(n_kept: u32) -> Self {
        Self { n_kept, seqs: Vec::new() }
    }

    /// Most rows.
    pub fn n_kept(&self) -> u32 {
        self.n_kept
    }

    fn set(&mut self, seq: u32, past: Past) {
        if self.n_kept == 0 {
            return;
        }
        let at = seq as usize;
        if at >= self.seqs.len() {
            self.seqs.resize(at + 1, Past::None);
        }
        self.seqs[at] = past;
    }

    fn past(&self, seq: u32) -> Past {
        self.seqs.get(seq as usize).copied().unwrap_or_default()
    }

    /// A decode of these sequences' rows is done.
    pub fn decoded(&mut self, seqs: impl Iterator<Item = u32> + Clone) {
        let others = self.seqs.iter_mut().filter(|past| matches!(past, Past::Rows(_)));
        others.for_each(|past| *past = Past::None);
        let mut only = seqs.clone();
        let first = only.next();
        let n_rows = 1 + only.take_while(|seq| Some(*seq) == first).count();
        let n_all = seqs.clone().count();
        for seq in seqs {
            let n = if n_rows == n_all { (n_rows - 1).min(self.n_kept as usize) } else { 0 };
            self.set(seq, Past::Rows(n as u32));
        }
    }

    /// A decode of these sequences' rows was aborted.
    pub fn aborted(&mut self, seqs: impl Iterator<Item = u32>) {
        let taken = self.seqs.iter_mut().filter(|past| **past == Past::Taken);
        taken.for_each(|past| *past = Past::Lost);
        seqs.for_each(|seq| self.set(seq, Past::Lost));
    }

    /// Whether the last `n` rows of a sequence can be taken back; if so, they are.
    pub fn take(&mut self, seq: u32, n: u32) -> bool {
        let can = matches!(self.past(seq), Past::Rows(most) if n <= most);
        if can {
            self.set(seq, Past::Taken);
        }
        can
    }

    /// The sequence holds nothing, or what was saved.
    pub fn renewed(&mut self, seq: u32) {
        self.set(seq, Past::None);
    }

    pub fn is_lost(&self, seq: u32) -> bool {
        self.past(seq) == Past::Lost
    }

    /// Whether another sequence can hold what `from` does; if so, neither can be taken back before its next decode.
    pub fn share(&mut self, from: u32, to: u32) -> bool {
        if matches!(self.past(from), Past::Taken | Past::Lost) {
            return false;
        }
        self.renewed(from);
        self.renewed(to);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(rollback: &mut Rollback, seqs: &[u32]) {
        rollback.decoded(seqs.iter().copied());
    }

    #[test]
    fn rows_of_a_decode_of_its_own_can_be_taken_back_once() {
        let mut rollback = Rollback::new(4);
        assert!(!rollback.take(0, 1), "nothing was decoded");
        decode(&mut rollback, &[0; 4]);
        assert!(!rollback.take(0, 4), "there is no state before the first row");
        assert!(rollback.take(0, 3));
        assert!(!rollback.take(0, 1), "once");
        decode(&mut rollback, &[0; 30]);
        assert!(!rollback.take(0, 5) && rollback.take(0, 4), "as many as are kept");
        decode(&mut rollback, &[0]);
        assert!(!rollback.take(0, 1), "of one row there is nothing behind");
    }

    #[test]
    fn a_decode_in_company_or_of_others_leaves_nothing_to_take_back() {
        let mut rollback = Rollback::new(4);
        decode(&mut rollback, &[1, 1, 1, 2]);
        assert!(!rollback.take(1, 1) && !rollback.take(2, 1));
        decode(&mut rollback, &[1; 3]);
        decode(&mut rollback, &[2; 3]);
        assert!(!rollback.take(1, 1) && rollback.take(2, 2));
    }

    #[test]
    fn what_was_taken_back_is_not_shared_before_its_next_decode() {
        let mut rollback = Rollback::new(4);
        decode(&mut rollback, &[0; 3]);
        assert!(rollback.take(0, 1));
        decode(&mut rollback, &[1]);
        assert!(!rollback.share(0, 2), "others change nothing about it");
        decode(&mut rollback, &[0; 3]);
        assert!(rollback.share(0, 2));
        assert!(!rollback.take(0, 1), "the state is another's too");
    }

    #[test]
    fn an_aborted_decode_loses_its_sequences_and_those_that_were_taken_back() {
        let mut rollback = Rollback::new(4);
        decode(&mut rollback, &[0; 3]);
        rollback.take(0, 2);
        decode(&mut rollback, &[3; 3]);
        rollback.aborted([1, 2].into_iter());
        assert_eq!([0, 1, 2, 3].map(|seq| rollback.is_lost(seq)), [true, true, true, false]);
        assert!(!rollback.take(1, 1) && !rollback.share(0, 3));
        rollback.renewed(1);
        assert!(!rollback.is_lost(1));
        let mut other = Rollback::new(0);
        other.aborted([1].into_iter());
        assert!(!other.is_lost(1), "another kind of memory says itself what it can do");
    }
}
