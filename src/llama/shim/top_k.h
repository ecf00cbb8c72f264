// The best candidates of a row of logits, without a copy of the vocabulary.
#pragma once

#include "llama.h"

#include <algorithm>
#include <functional>
#include <vector>

namespace hearth {

// Values looked at together: few enough to go through again where one of them counts, many enough for vector compares.
constexpr size_t TOP_K_BLOCK = 32;

// Calls `take(id)` for each value of the row that is at least (or, with `above`, more than) `bound()`, which may change.
template <bool above, typename Bound, typename Take>
inline void each_from(const float * row, size_t first, size_t n, Bound bound, Take take) {
    const auto counts = [](float value, float bound) { return above ? value > bound : value >= bound; };
    size_t at = first;
    for (; at + TOP_K_BLOCK <= n; at += TOP_K_BLOCK) {
        const float limit = bound();
        int any = 0;
        for (size_t i = 0; i < TOP_K_BLOCK; ++i) {
            any |= counts(row[at + i], limit);
        }
        for (size_t i = 0; any && i < TOP_K_BLOCK; ++i) {
            if (counts(row[at + i], bound())) {
                take(at + i);
            }
        }
    }
    for (; at < n; ++at) {
        if (counts(row[at], bound())) {
            take(at);
        }
    }
}

// Writes the k greatest of the row's n values to `out`, by rising id; of equal ones at the border those of lower ids. Returns
// false, with nothing of use written, where values can't be compared (NaN) or there are no more than k.
inline bool top_k(const float * row, size_t n, size_t k, llama_token_data * out) {
    if (k == 0 || n <= k) {
        return false;
    }
    // The k greatest so far, the least of them on top. One for all samplers of a thread.
    thread_local std::vector<float> best;
    best.assign(row, row + k);
    for (size_t i = 0; i < k; ++i) {
        if (!(row[i] == row[i])) {
            return false;
        }
    }
    std::make_heap(best.begin(), best.end(), std::greater<>());
    each_from<true>(row, k, n, [] { return best.front(); }, [row](size_t id) {
        std::pop_heap(best.begin(), best.end(), std::greater<>());
        best.back() = row[id];
        std::push_heap(best.begin(), best.end(), std::greater<>());
    });
    const float least = best.front();
    const size_t n_least = std::count(best.begin(), best.end(), least);
    size_t n_out = 0, n_equal = 0;
    each_from<false>(row, 0, n, [least] { return least; }, [&](size_t id) {
        if (row[id] == least && ++n_equal > n_least) {
            return;
        }
        out[n_out++] = { static_cast<llama_token>(id), row[id], 0.0f };
    });
    return n_out == k;
}

}  // namespace hearth
