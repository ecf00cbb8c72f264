// The best candidates of a row of logits, without a copy of the vocabulary.
#pragma once

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace hearth {

// Values looked at together: few enough to go through again where one of them counts, many enough for vector compares. One
// word of a mask.
constexpr size_t TOP_K_BLOCK = 32;

// Calls `take(id)` for each allowed value of the row that is at least `bound()`, which may change, or, with `above`, that is
// not at most so much: then NaN counts too. Without a mask all are allowed.
template <bool above, typename Bound, typename Take>
inline void each_from(const float * row, size_t n, const uint32_t * mask, Bound bound, Take take) {
    const auto counts = [](float value, float bound) { return above ? !(value <= bound) : value >= bound; };
    for (size_t first = 0; first < n; first += TOP_K_BLOCK) {
        uint32_t word = mask ? mask[first / TOP_K_BLOCK] : ~0u;
        if (word == 0) {
            continue;
        }
        const size_t n_block = std::min(TOP_K_BLOCK, n - first);
        int any = 1;
        if (n_block == TOP_K_BLOCK) {
            any = 0;
            const float limit = bound();
            for (size_t i = 0; i < TOP_K_BLOCK; ++i) {
                any |= counts(row[first + i], limit);
            }
        }
        for (size_t i = 0; any && i < n_block; ++i, word >>= 1) {
            if ((word & 1) && counts(row[first + i], bound())) {
                take(first + i);
            }
        }
    }
}

// Writes the k greatest of the row's n values that the mask allows (NULL: all) to `out`, by rising id; of equal ones at the
// border those of lower ids. Returns false, with nothing of use written, where one that is allowed can't be compared (NaN) or
// fewer than k are allowed and above minus infinity.
inline bool top_k(const float * row, size_t n, const uint32_t * mask, size_t k, llama_token_data * out) {
    if (k == 0 || n <= k) {
        return false;
    }
    // The k greatest so far, the least of them on top. One for all samplers of a thread.
    static thread_local std::vector<float> kept;
    std::vector<float> & best = kept;
    best.clear();
    bool is_comparable = true;
    each_from<true>(row, n, mask, [&] { return best.size() < k ? -INFINITY : best.front(); }, [&](size_t id) {
        if (std::isnan(row[id])) {
            is_comparable = false;
            return;
        }
        if (best.size() == k) {
            std::pop_heap(best.begin(), best.end(), std::greater<>());
            best.pop_back();
        }
        best.push_back(row[id]);
        std::push_heap(best.begin(), best.end(), std::greater<>());
    });
    if (!is_comparable || best.size() < k) {
        return false;
    }
    const float least = best.front();
    const size_t n_least = std::count(best.begin(), best.end(), least);
    size_t n_out = 0, n_equal = 0;
    each_from<false>(row, n, mask, [least] { return least; }, [&](size_t id) {
        if (row[id] == least && ++n_equal > n_least) {
            return;
        }
        out[n_out++] = { static_cast<llama_token>(id), row[id], 0.0f };
    });
    return n_out == k;
}

}  // namespace hearth
