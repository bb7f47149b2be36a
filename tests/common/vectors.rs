//! Vectors from a seed, and their true neighbours, for the tests of vector stores.

#![allow(dead_code, missing_docs, reason = "each test file uses some of it")]

use std::collections::HashSet;

/// The dimensions of each vector.
pub(crate) const DIMENSIONS: usize = 128;
/// How many neighbours a query asks for.
pub(crate) const NEIGHBOURS: usize = 10;
/// How many queries are asked.
pub(crate) const QUERIES: usize = 100;
/// The share of the true neighbours that must be found.
pub(crate) const RECALL: f64 = 0.95;

/// How many vectors are stored. `cargo xtask vectors` asks for 100,000, and all other runs for fewer.
pub(crate) fn size() -> usize {
    match std::env::var("RESOURCE_POOL_TEST_VECTORS") {
        Ok(size) => size.parse().expect("a number"),
        Err(_) => 5_000,
    }
}

/// Vectors and queries of the same sort, always the same.
pub(crate) struct VectorSet {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) queries: Vec<Vec<f32>>,
}

/// How many centres the vectors of [`VectorSet::clustered`] have.
const CENTRES: usize = 500;

impl VectorSet {
    /// Vectors whose numbers are independent of each other, which is the hardest case for an index.
    pub(crate) fn independent() -> Self {
        let mut state = 0x5EED_u64;
        Self::of(|_| vector(&mut state))
    }

    /// Vectors that are near to one of some centres, as those of texts are.
    pub(crate) fn clustered() -> Self {
        let mut state = 0x5EED_u64;
        let centres: Vec<_> = (0..CENTRES).map(|_| vector(&mut state)).collect();
        Self::of(|place| {
            let near = |(centre, number): (&f32, f32)| centre + number / 4.0;
            centres[place % CENTRES].iter().zip(vector(&mut state)).map(near).collect()
        })
    }

    /// As many vectors as [`size`] says, and the queries after them.
    fn of(make: impl FnMut(usize) -> Vec<f32>) -> Self {
        let mut vectors: Vec<_> = (0..size() + QUERIES).map(make).collect();
        let queries = vectors.split_off(size());
        VectorSet { vectors, queries }
    }

    /// The places of the vectors that are nearest to this query, by looking at all of them.
    pub(crate) fn nearest(&self, query: &[f32]) -> HashSet<usize> {
        let mut distances: Vec<(f32, usize)> =
            self.vectors.iter().enumerate().map(|(place, vector)| (distance(vector, query), place)).collect();
        distances.select_nth_unstable_by(NEIGHBOURS - 1, |one, other| one.0.total_cmp(&other.0));
        distances[..NEIGHBOURS].iter().map(|(_, place)| *place).collect()
    }

    /// The share of the true neighbours of all queries that are among those found.
    pub(crate) fn recall(&self, found: &[Vec<usize>]) -> f64 {
        assert_eq!(found.len(), self.queries.len());
        let hits = |(query, found): (&Vec<f32>, &Vec<usize>)| {
            let nearest = self.nearest(query);
            assert!(found.len() == NEIGHBOURS && found.iter().collect::<HashSet<_>>().len() == NEIGHBOURS, "{found:?}");
            found.iter().filter(|place| nearest.contains(place)).count()
        };
        let hits: usize = self.queries.iter().zip(found).map(hits).sum();
        hits as f64 / (self.queries.len() * NEIGHBOURS) as f64
    }
}

/// The square of the Euclidean distance.
pub(crate) fn distance(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| (one - other) * (one - other)).sum()
}

fn vector(state: &mut u64) -> Vec<f32> {
    (0..DIMENSIONS).map(|_| number(state)).collect()
}

/// A number from -1 to 1, by SplitMix64.
fn number(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    // 24 bits are as many as the number keeps.
    (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
}
