//! The tree against a list of everybody's tokens.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn a_shared_prefix_is_one_node_and_parts_where_they_part() {
    let mut tree = Tree::default();
    tree.extend(Holder::Seq(0), 0, &[1, 2, 3, 4]);
    tree.extend(Holder::Seq(1), 0, &[1, 2, 9]);
    tree.extend(Holder::Saved(0), 7, &[1, 2, 3, 4]);
    let found = tree.matches(0, &[1, 2, 3, 5]);
    assert_eq!(found, [Match { holder: Holder::Seq(0), n: 3 }, Match { holder: Holder::Seq(1), n: 2 }]);
    assert_eq!((tree.n_unique(Holder::Seq(0)), tree.n_unique(Holder::Seq(1))), (2, 1));
    assert_eq!(tree.matches(8, &[1, 2]), []);
    tree.remove(Holder::Seq(1));
    assert_eq!(tree.n_unique(Holder::Seq(0)), 4);
}

/// What the tree says of itself holds.
fn check(tree: &Tree) {
    let mut stack: Vec<NodeId> = tree.roots.values().copied().collect();
    let mut n_live = 0;
    while let Some(at) = stack.pop() {
        n_live += 1;
        let node = &tree.nodes[at];
        let firsts: FxHashSet<Token> = node.children.iter().map(|child| tree.nodes[*child].tokens[0]).collect();
        assert_eq!(firsts.len(), node.children.len(), "children begin with different tokens");
        for child in &node.children {
            let child = &tree.nodes[*child];
            assert_eq!(child.parent, Some(at));
            assert_eq!(child.from, node.from + node.tokens.len());
            assert!(!child.tokens.is_empty() && !child.holders.is_empty());
            if node.parent.is_some() {
                assert!(child.holders.iter().all(|holder| node.holders.contains(holder)));
            }
        }
        stack.extend(&node.children);
    }
    assert_eq!(n_live + tree.free.len(), tree.nodes.len(), "no node is lost");
}

#[derive(Debug, Clone)]
enum Op {
    Extend(Holder, u64, Vec<Token>),
    Truncate(Holder, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let holder = prop_oneof![(0u32..4).prop_map(Holder::Seq), (0u32..4).prop_map(Holder::Saved)];
    let tokens = prop::collection::vec(0..3i32, 0..12);
    prop_oneof![
        3 => (holder.clone(), 0u64..2, tokens).prop_map(|(holder, partition, tokens)| Op::Extend(holder, partition, tokens)),
        2 => (holder, 0usize..20).prop_map(|(holder, n)| Op::Truncate(holder, n)),
    ]
}

proptest! {
    #[test]
    fn it_finds_what_a_list_of_everybodys_tokens_finds(
        ops in prop::collection::vec(op(), 0..60),
        asked in prop::collection::vec(0..3i32, 0..20),
    ) {
        let mut tree = Tree::default();
        let mut list: BTreeMap<Holder, (u64, Vec<Token>)> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Extend(holder, partition, tokens) => {
                    tree.extend(holder, partition, &tokens);
                    let (_, held) = list.entry(holder).or_insert((partition, Vec::new()));
                    held.extend(tokens);
                }
                Op::Truncate(holder, n) => {
                    tree.truncate(holder, n);
                    if let Some((_, held)) = list.get_mut(&holder) {
                        held.truncate(n);
                    }
                }
            }
            list.retain(|_, (_, held)| !held.is_empty());
            check(&tree);
        }
        for partition in 0..2 {
            let mut expected: Vec<Match> = list
                .iter()
                .filter(|(_, (of, _))| *of == partition)
                .map(|(holder, (_, held))| Match { holder: *holder, n: common(held, &asked) })
                .filter(|found| found.n > 0)
                .collect();
            expected.sort_by_key(|found| (std::cmp::Reverse(found.n), found.holder));
            prop_assert_eq!(tree.matches(partition, &asked), expected);
        }
        for holder in (0..4).flat_map(|id| [Holder::Seq(id), Holder::Saved(id)]) {
            let held = list.get(&holder).map_or(&[][..], |(_, held)| held);
            prop_assert_eq!(tree.len(holder), held.len());
            let of = list.get(&holder).map(|(of, _)| *of);
            let others = list.iter().filter(|(other, (partition, _))| **other != holder && Some(*partition) == of);
            let shared = others.map(|(_, (_, other))| common(other, held)).max().unwrap_or(0);
            prop_assert_eq!(tree.n_unique(holder), held.len() - shared);
        }
    }
}
