//! A radix tree over token ids: who holds which prefix.
//!
//! **Invariant:** every node but a root has tokens and holders; whoever holds a node holds its parent; what a holder holds
//! ends at a node's end; children of one node begin with different tokens.

use super::super::backend::Token;
use rustc_hash::{FxHashMap, FxHashSet};

/// Something that holds a run of tokens from a prompt's start on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// A sequence of the context.
    Seq(u32),
    /// A state in the store.
    Saved(u32),
}

/// How many leading tokens a holder has in common with what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    pub holder: Holder,
    pub n: usize,
}

type NodeId = usize;

#[derive(Debug)]
struct Node {
    /// `None`: a root, whose tokens are empty.
    parent: Option<NodeId>,
    /// Tokens before this node's.
    from: usize,
    tokens: Vec<Token>,
    children: Vec<NodeId>,
    holders: Vec<Holder>,
}

/// One tree for each partition; nothing is found across them.
///
/// **Bound:** the holders' own: sequences of a context, states of a store.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    roots: FxHashMap<u64, NodeId>,
    /// Where what each holder holds ends, and its partition.
    tips: FxHashMap<Holder, (u64, NodeId)>,
}

impl Tree {
    /// How many tokens it holds.
    pub fn len(&self, holder: Holder) -> usize {
        self.tips.get(&holder).map_or(0, |(_, tip)| self.end(*tip))
    }

    /// Adds `tokens` behind what the holder holds; one that holds nothing begins in `partition`.
    pub fn extend(&mut self, holder: Holder, partition: u64, tokens: &[Token]) {
        let (partition, mut at) = match self.tips.get(&holder) {
            Some(tip) => *tip,
            None if tokens.is_empty() => return,
            None => (partition, self.root(partition)),
        };
        let mut rest = tokens;
        while let Some(first) = rest.first() {
            let next = self.nodes[at].children.iter().copied().find(|child| self.nodes[*child].tokens[0] == *first);
            let Some(child) = next else {
                at = self.append(at, holder, rest);
                break;
            };
            let n = common(&self.nodes[child].tokens, rest);
            at = if n < self.nodes[child].tokens.len() { self.split(child, n) } else { child };
            self.nodes[at].holders.push(holder);
            rest = &rest[n..];
        }
        self.tips.insert(holder, (partition, at));
    }

    /// The holder keeps its first `n` tokens only.
    pub fn truncate(&mut self, holder: Holder, n: usize) {
        let Some((partition, mut at)) = self.tips.get(&holder).copied() else { return };
        if n >= self.end(at) {
            return;
        }
        while let Some(parent) = self.nodes[at].parent.filter(|_| self.nodes[at].from >= n) {
            self.leave(at, holder);
            at = parent;
        }
        if n == 0 {
            self.tips.remove(&holder);
            if self.nodes[at].children.is_empty() {
                self.roots.remove(&partition);
                self.free.push(at);
            }
            return;
        }
        let keep = n - self.nodes[at].from;
        if keep < self.nodes[at].tokens.len() {
            if self.nodes[at].holders.len() == 1 {
                self.nodes[at].tokens.truncate(keep);
            } else {
                let lower = at;
                at = self.split(lower, keep);
                self.leave(lower, holder);
            }
        }
        self.tips.insert(holder, (partition, at));
    }

    /// The holder holds nothing any more.
    pub fn remove(&mut self, holder: Holder) {
        self.truncate(holder, 0);
    }

    /// Every holder that has leading tokens in common with `tokens`, the most first; of equals by their order.
    pub fn matches(&self, partition: u64, tokens: &[Token]) -> Vec<Match> {
        let Some(root) = self.roots.get(&partition) else { return Vec::new() };
        let (mut at, mut depth, mut path) = (*root, 0, Vec::new());
        while let Some(first) = tokens.get(depth) {
            let children = &self.nodes[at].children;
            let Some(child) = children.iter().find(|child| self.nodes[**child].tokens[0] == *first) else { break };
            let n = common(&self.nodes[*child].tokens, &tokens[depth..]);
            (at, depth) = (*child, depth + n);
            path.push((at, depth));
            if n < self.nodes[at].tokens.len() {
                break;
            }
        }
        let (mut seen, mut found) = (FxHashSet::default(), Vec::new());
        for (node, n) in path.into_iter().rev() {
            let from = found.len();
            let new = self.nodes[node].holders.iter().filter(|holder| seen.insert(**holder));
            found.extend(new.map(|holder| Match { holder: *holder, n }));
            found[from..].sort_by_key(|found| found.holder);
        }
        found
    }

    /// How many of its last tokens nobody else holds.
    pub fn n_unique(&self, holder: Holder) -> usize {
        let Some((_, tip)) = self.tips.get(&holder) else { return 0 };
        let (mut at, mut n) = (*tip, 0);
        while let (Some(parent), 1) = (self.nodes[at].parent, self.nodes[at].holders.len()) {
            n += self.nodes[at].tokens.len();
            at = parent;
        }
        n
    }

    fn end(&self, at: NodeId) -> usize {
        self.nodes[at].from + self.nodes[at].tokens.len()
    }

    fn root(&mut self, partition: u64) -> NodeId {
        if let Some(root) = self.roots.get(&partition) {
            return *root;
        }
        let root =
            self.place(Node { parent: None, from: 0, tokens: Vec::new(), children: Vec::new(), holders: Vec::new() });
        self.roots.insert(partition, root);
        root
    }

    fn place(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Puts tokens that nobody has behind node `at`: into it where it is the holder's alone.
    fn append(&mut self, at: NodeId, holder: Holder, tokens: &[Token]) -> NodeId {
        let node = &mut self.nodes[at];
        if node.parent.is_some() && node.holders.len() == 1 {
            node.tokens.extend_from_slice(tokens);
            return at;
        }
        let from = self.end(at);
        let child =
            Node { parent: Some(at), from, tokens: tokens.to_vec(), children: Vec::new(), holders: vec![holder] };
        let child = self.place(child);
        self.nodes[at].children.push(child);
        child
    }

    /// Cuts a node behind its first `n` tokens; returns the new upper part. The lower one keeps the id: tips stay right.
    fn split(&mut self, lower: NodeId, n: usize) -> NodeId {
        let node = &mut self.nodes[lower];
        let rest = node.tokens.split_off(n);
        let tokens = std::mem::replace(&mut node.tokens, rest);
        let (parent, from, holders) = (node.parent, node.from, node.holders.clone());
        node.from += n;
        let upper = self.place(Node { parent, from, tokens, children: vec![lower], holders });
        self.nodes[lower].parent = Some(upper);
        self.replace_child(parent, lower, upper);
        upper
    }

    fn replace_child(&mut self, parent: Option<NodeId>, old: NodeId, new: NodeId) {
        let children = parent.map(|parent| &mut self.nodes[parent].children);
        if let Some(child) = children.into_iter().flatten().find(|child| **child == old) {
            *child = new;
        }
    }

    /// Takes the holder from a node that has nothing of it behind.
    fn leave(&mut self, at: NodeId, holder: Holder) {
        let node = &mut self.nodes[at];
        node.holders.retain(|other| *other != holder);
        let Some(parent) = node.parent else { return };
        if node.holders.is_empty() {
            self.nodes[parent].children.retain(|child| *child != at);
            self.free.push(at);
            return;
        }
        // What is left may be one run of tokens again: whoever holds the node holds its only child.
        if let [child] = self.nodes[at].children[..]
            && self.nodes[child].holders.len() == self.nodes[at].holders.len()
        {
            let upper = std::mem::take(&mut self.nodes[at].tokens);
            self.nodes[child].from -= upper.len();
            self.nodes[child].tokens.splice(0..0, upper);
            self.nodes[child].parent = Some(parent);
            self.replace_child(Some(parent), at, child);
            self.free.push(at);
        }
    }
}

fn common(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
