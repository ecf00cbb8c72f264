// A request's sampler: llama.cpp's chain, and its grammar where there is one, on a row of logits instead of a context.
//
// common_sampler does the same, but looks at a row a second time when the grammar refuses what the chain chose, and does so in
// the context, which belongs to one thread. So the grammar is held here, and common_sampler has the chain alone.
#include "guard.h"
#include "sampling_params.h"
#include "top_k.h"

#include "llama-cpp.h"
#include "reasoning-budget.h"
#include "sampling.h"

#include <algorithm>
#include <cctype>
#include <climits>
#include <cmath>
#include <memory>
#include <unordered_map>
#include <vector>

using namespace hearth;

namespace {

// From what the chain can choose at all: of the best candidates only so many, once biases and penalties moved theirs.
struct reach {
    size_t n_best = 0; // 0: from any
    bool is_penalised = false; // penalties act before it is cut down to these
};

// The tokens that penalties change, counted as llama_sampler_penalties does.
struct window {
    std::vector<llama_token> last; // a ring
    size_t n = 0, next = 0; // n: most that it holds
    std::unordered_map<llama_token, uint32_t> counts; // of those in it

    void push(llama_token token) {
        if (n == 0) {
            return;
        }
        ++counts[token];
        if (last.size() < n) {
            last.push_back(token);
            return;
        }
        const auto old = counts.find(last[next]);
        if (--old->second == 0) {
            counts.erase(old);
        }
        last[next] = token;
        next = (next + 1) % n;
    }
};

} // namespace

struct hearth_sampler {
    const llama_vocab * vocab = nullptr;
    common_params_sampling params;
    common_sampler_ptr ptr; // the chain
    size_t n_best = 0; // it chooses from so many of the best candidates; 0: from any
    std::vector<llama_token> biased; // after these have got their bias
    window penalised; // and these their penalties; nothing where penalties come later or n_best is 0
    llama_sampler_ptr grammar;
    // The grammar holds behind the first of these texts; empty: it knows itself when it does.
    std::vector<std::string> awaited;
    std::string tail; // of what was said: less than the longest of them
    llama_sampler_ptr thinking; // follows where the model thinks, and forces nothing: a lazy grammar holds outside of it only

    // Shows the chain a token of the prompt or the answer.
    void accept(llama_token token, bool is_generated) {
        common_sampler_accept(ptr.get(), token, is_generated);
        penalised.push(token);
    }

    bool grammar_holds() const {
        if (!grammar || !awaited.empty()) {
            return false;
        }
        if (!thinking) {
            return true;
        }
        const auto state = common_reasoning_budget_get_state(thinking.get());
        return state == REASONING_BUDGET_IDLE || state == REASONING_BUDGET_DONE;
    }
};

namespace hearth {

common_params_sampling sampling_params(const hearth_sampler_params * params, const llama_vocab * vocab) {
    common_params_sampling p;
    p.seed = params->seed;
    p.min_keep = params->min_keep;
    p.top_k = params->top_k;
    p.top_p = params->top_p;
    p.min_p = params->min_p;
    p.typ_p = params->typical_p;
    p.top_n_sigma = params->top_n_sigma;
    p.xtc_probability = params->xtc_probability;
    p.xtc_threshold = params->xtc_threshold;
    p.temp = params->temperature;
    p.dynatemp_range = params->dynatemp_range;
    p.dynatemp_exponent = params->dynatemp_exponent;
    p.penalty_last_n = params->penalty_last_n;
    p.penalty_repeat = params->penalty_repeat;
    p.penalty_freq = params->penalty_frequency;
    p.penalty_present = params->penalty_presence;
    p.dry_multiplier = params->dry_multiplier;
    p.dry_base = params->dry_base;
    p.dry_allowed_length = params->dry_allowed_length;
    p.dry_penalty_last_n = params->dry_penalty_last_n;
    p.mirostat = params->mirostat;
    p.mirostat_tau = params->mirostat_tau;
    p.mirostat_eta = params->mirostat_eta;
    p.ignore_eos = params->ignore_eos;
    p.no_perf = true;
    p.dry_sequence_breakers.assign(params->dry_breakers, params->dry_breakers + params->n_dry_breakers);
    p.samplers = common_sampler_types_from_names(
        std::vector<std::string>(params->samplers, params->samplers + params->n_samplers));
    p.logit_bias.assign(params->logit_bias, params->logit_bias + params->n_logit_bias);
    if (p.ignore_eos) {
        for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
            if (llama_vocab_is_eog(vocab, id)) {
                p.logit_bias.push_back({ id, -INFINITY });
            }
        }
    }
    if (!params->grammar) {
        return p;
    }
    p.grammar = { COMMON_GRAMMAR_TYPE_TOOL_CALLS, params->grammar };
    p.preserved_tokens.insert(params->preserved, params->preserved + params->n_preserved);
    for (size_t i = 0; i < params->n_triggers; ++i) {
        if (params->triggers[i].kind == HEARTH_TRIGGER_BEHIND) {
            continue; // hearth's own
        }
        common_grammar_trigger trigger;
        trigger.type = static_cast<common_grammar_trigger_type>(params->triggers[i].kind);
        trigger.value = params->triggers[i].value;
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
            // A word that is one token of the format triggers as that token.
            const auto tokens = common_tokenize(vocab, trigger.value, false, true);
            if (tokens.size() == 1 && p.preserved_tokens.count(tokens[0])) {
                trigger.type = COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN;
                trigger.token = tokens[0];
            }
        }
        p.grammar_triggers.push_back(trigger);
    }
    p.grammar_lazy = !p.grammar_triggers.empty();
    if (p.grammar_lazy) {
        // What looks like a call while the model thinks is none.
        p.generation_prompt = params->generation_prompt;
        p.reasoning_budget_start = common_tokenize(vocab, params->thinking_start, false, true);
        for (size_t i = 0; i < params->n_thinking_ends; ++i) {
            p.reasoning_budget_end.push_back(common_tokenize(vocab, params->thinking_ends[i], false, true));
        }
    }
    return p;
}

} // namespace hearth

namespace {

// Most candidates that are looked for in the row. Of 32,000 values 256 take 22 us so, and 65 us as an array of all that
// llama.cpp puts into buckets; 1,024 take 245 and 72.
constexpr int32_t BEST_MAX = 256;
// Most tokens with a bias for which candidates are looked for in the row: llama.cpp looks for each bias at each candidate that
// isn't where it is in the whole vocabulary.
constexpr size_t BIASED_MAX = 256;
// Most tokens with penalties: all become candidates, which are sorted.
constexpr size_t PENALISED_MAX = 1024;

// The tokens that the chain gives a bias, by rising id: see common_sampler_init.
std::vector<llama_token> biased_tokens(const common_params_sampling & p, const llama_vocab * vocab) {
    int32_t n_suppressed = 0;
    const llama_token * suppressed = llama_vocab_get_suppress_tokens(vocab, &n_suppressed);
    std::vector<llama_token> tokens(suppressed, suppressed + n_suppressed);
    for (const llama_logit_bias & bias : p.logit_bias) {
        tokens.push_back(bias.token);
    }
    std::sort(tokens.begin(), tokens.end());
    return tokens;
}

// Steps that do nothing by their parameters: see their llama_sampler_init_* in llama-sampler.cpp.
bool penalties_rest(const common_params_sampling & p) {
    return p.penalty_last_n <= 0 || (p.penalty_repeat == 1 && p.penalty_freq == 0 && p.penalty_present == 0);
}

bool dry_rests(const common_params_sampling & p) {
    return p.dry_multiplier == 0 || p.dry_base < 1 || p.dry_penalty_last_n == 0;
}

// Whether the chain takes the greatest logit, biases and penalties added: one step keeps nothing else, and none drops it or
// moves another before it. Penalties move some, and so must come before what drops any.
bool is_greedy(const common_params_sampling & p) {
    bool is_tempered = false, may_drop = false;
    for (const common_sampler_type kind : p.samplers) {
        switch (kind) {
            case COMMON_SAMPLER_TYPE_TEMPERATURE:
                is_tempered = p.temp <= 0 && p.dynatemp_range <= 0;
                may_drop = true;
                break;
            case COMMON_SAMPLER_TYPE_TOP_K:
            case COMMON_SAMPLER_TYPE_TOP_P:
            case COMMON_SAMPLER_TYPE_MIN_P:
            case COMMON_SAMPLER_TYPE_TOP_N_SIGMA:
                may_drop = true;
                break;
            case COMMON_SAMPLER_TYPE_TYPICAL_P: // drops what is too likely
                if (p.typ_p < 1) {
                    return false;
                }
                break;
            case COMMON_SAMPLER_TYPE_XTC: // drops the likeliest now and then
                if (p.xtc_probability > 0) {
                    return false;
                }
                break;
            case COMMON_SAMPLER_TYPE_PENALTIES:
                if (!penalties_rest(p) && may_drop) {
                    return false;
                }
                break;
            case COMMON_SAMPLER_TYPE_DRY:
                if (!dry_rests(p)) {
                    return false;
                }
                break;
            default:
                return false;
        }
    }
    return is_tempered;
}

// How many of the best candidates are all that the chain can choose from: of a greedy one the best, else what its first step
// that does anything but bias and penalise keeps, where that is top-k.
reach best_first(const common_params_sampling & p) {
    const auto & kinds = p.samplers;
    if (p.mirostat != 0) {
        return {};
    }
    if (is_greedy(p)) {
        const bool has_penalties = std::find(kinds.begin(), kinds.end(), COMMON_SAMPLER_TYPE_PENALTIES) != kinds.end();
        return { 1, has_penalties && !penalties_rest(p) };
    }
    bool is_penalised = false;
    for (const common_sampler_type kind : kinds) {
        switch (kind) {
            case COMMON_SAMPLER_TYPE_TOP_K:
                if (p.top_k <= 0 || p.top_k > BEST_MAX) {
                    return {};
                }
                return { static_cast<size_t>(p.top_k), is_penalised };
            case COMMON_SAMPLER_TYPE_PENALTIES:
                is_penalised = !penalties_rest(p);
                break;
            case COMMON_SAMPLER_TYPE_DRY:
                if (!dry_rests(p)) {
                    return {};
                }
                break;
            case COMMON_SAMPLER_TYPE_TOP_N_SIGMA:
                if (p.top_n_sigma > 0) {
                    return {};
                }
                break;
            default:
                return {};
        }
    }
    return {};
}

// NULL where there is none.
llama_sampler * new_grammar(const common_params_sampling & p, const llama_vocab * vocab) {
    const std::string & text = common_grammar_value(p.grammar);
    if (text.empty()) {
        return nullptr;
    }
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    for (const auto & trigger : p.grammar_triggers) {
        switch (trigger.type) {
            case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
                tokens.push_back(trigger.token);
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:
                patterns.push_back(regex_escape(trigger.value));
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
                patterns.push_back(trigger.value);
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: {
                const std::string & whole = trigger.value;
                const bool begins = !whole.empty() && whole.front() == '^';
                const bool ends = !whole.empty() && whole.back() == '$';
                patterns.push_back((begins ? "" : "^") + whole + (ends ? "" : "$"));
                break;
            }
            default:
                throw std::invalid_argument("a trigger of a kind that doesn't exist");
        }
    }
    std::vector<const char *> texts;
    for (const auto & pattern : patterns) {
        texts.push_back(pattern.c_str());
    }
    llama_sampler * grammar = p.grammar_lazy
        ? llama_sampler_init_grammar_lazy_patterns(vocab, text.c_str(), "root", texts.data(), texts.size(), tokens.data(), tokens.size())
        : llama_sampler_init_grammar(vocab, text.c_str(), "root");
    if (!grammar) {
        throw std::runtime_error("failed to parse grammar");
    }
    return grammar;
}

// NULL where a grammar holds whether the model thinks or not.
llama_sampler * new_thinking(const common_params_sampling & p, const llama_vocab * vocab) {
    if (!p.grammar_lazy || p.reasoning_budget_start.empty() || p.reasoning_budget_end.empty()) {
        return nullptr;
    }
    llama_sampler_ptr thinking(common_reasoning_budget_init(vocab, { p.reasoning_budget_start }, p.reasoning_budget_end, {}, INT_MAX));
    if (!p.generation_prompt.empty()) {
        const auto tokens = common_tokenize(vocab, p.generation_prompt, false, true);
        for (size_t i = 0; i < tokens.size(); ++i) {
            const std::string piece = common_token_to_piece(vocab, tokens[i], true);
            // Some tokenizers put a space before the first special token.
            const bool is_added = i == 0 && !piece.empty() && std::isspace(static_cast<unsigned char>(piece[0]))
                && !std::isspace(static_cast<unsigned char>(p.generation_prompt[0]));
            if (!is_added) {
                llama_sampler_accept(thinking.get(), tokens[i]);
            }
        }
    }
    return thinking.release();
}

// Looks for what the grammar waits for. llama.cpp's patterns would read all that was said with each token, one call of a
// function deeper for each of its characters (a stack of 8 MB ends at some 50,000), and take the whole of it for the grammar's
// where nothing stands behind the text yet.
void await(hearth_sampler & s, llama_token token) {
    const std::string piece = common_token_to_piece(s.vocab, token, true);
    s.tail += piece;
    size_t end = std::string::npos, longest = 0;
    for (const std::string & text : s.awaited) {
        const size_t at = s.tail.find(text);
        end = std::min(end, at == std::string::npos ? at : at + text.size());
        longest = std::max(longest, text.size());
    }
    if (end == std::string::npos) {
        s.tail.erase(0, s.tail.size() - std::min(s.tail.size(), longest - 1));
        return;
    }
    const std::string rest = s.tail.substr(end);
    s.awaited.clear();
    s.tail.clear();
    // Formats have line breaks there.
    if (rest.find_first_not_of(" \t\r\n") == std::string::npos) {
        return;
    }
    // A grammar takes whole tokens but for the one that triggers it.
    const std::string pattern = "^[\\s\\S]{" + std::to_string(piece.size() - rest.size()) + "}([\\s\\S]+)$";
    const char * patterns[] = { pattern.c_str() };
    const std::string & text = common_grammar_value(s.params.grammar);
    s.grammar.reset(llama_sampler_init_grammar_lazy_patterns(s.vocab, text.c_str(), "root", patterns, 1, nullptr, 0));
    llama_sampler_accept(s.grammar.get(), token);
}

// What common_sampler_accept does with a token that was generated.
void accept_generated(hearth_sampler & s, llama_token token) {
    if (!s.awaited.empty()) {
        await(s, token);
        s.accept(token, true);
        return;
    }
    // Of the state before the token.
    const bool holds = s.grammar_holds();
    if (s.thinking) {
        llama_sampler_accept(s.thinking.get(), token);
        const bool is_done = common_reasoning_budget_get_state(s.thinking.get()) == REASONING_BUDGET_DONE;
        const llama_tokens * end = s.grammar && !holds && is_done ? common_reasoning_budget_get_end_match(s.thinking.get()) : nullptr;
        // The end of the thinking may be what the grammar waits for.
        for (size_t i = 0; end && i < end->size(); ++i) {
            llama_sampler_accept(s.grammar.get(), (*end)[i]);
        }
    }
    if (holds) {
        llama_sampler_accept(s.grammar.get(), token);
    }
    s.accept(token, true);
}

// A row, and which of its tokens may be chosen.
struct choices {
    const float * logits;
    size_t n;
    const uint32_t * mask; // NULL: all

    // Those of which the chain can keep any, by rising id, as it resolves equal ones by their order: all that a bias or a
    // penalty moves in or out, and the best of the others. `out` has n places. False: nothing of use is written, as they can't
    // be compared, or are nearly all.
    bool best(const hearth_sampler & s, llama_token_data * out, llama_token_data_array & found) const {
        const auto & penalised = s.penalised.counts;
        if (s.n_best == 0 || s.biased.size() > BIASED_MAX || penalised.size() > PENALISED_MAX) {
            return false;
        }
        // The mask of the others. One for all samplers of a thread.
        static thread_local std::vector<uint32_t> kept;
        std::vector<uint32_t> & others = kept;
        size_t n_moved = 0;
        bool is_comparable = true;
        const auto move = [&](llama_token id) {
            if (id < 0 || static_cast<size_t>(id) >= n) {
                return;
            }
            uint32_t & word = others[id / 32];
            const uint32_t bit = 1u << (id % 32);
            if (word & bit) {
                word &= ~bit;
                is_comparable = is_comparable && !std::isnan(logits[id]);
                out[n_moved++] = { id, logits[id], 0.0f };
            }
        };
        const bool moves = !s.biased.empty() || !penalised.empty();
        if (moves) {
            const size_t n_words = (n + 31) / 32;
            if (mask) {
                others.assign(mask, mask + n_words);
            } else {
                others.assign(n_words, ~0u);
            }
            std::for_each(s.biased.begin(), s.biased.end(), move);
            for (const auto & of_token : penalised) {
                move(of_token.first);
            }
        }
        const uint32_t * rest = moves ? others.data() : mask;
        if (!is_comparable || n_moved + s.n_best > n || !top_k(logits, n, rest, s.n_best, out + n_moved)) {
            return false;
        }
        const size_t count = n_moved + s.n_best;
        if (n_moved > 0) {
            std::sort(out, out + count, [](const llama_token_data & a, const llama_token_data & b) { return a.id < b.id; });
        }
        found = { out, count, -1, false };
        return true;
    }

    // Writes them all to `out`, which has n places.
    llama_token_data_array to(llama_token_data * out) const {
        size_t count = mask ? 0 : n;
        for (size_t id = 0; !mask && id < n; ++id) {
            out[id] = { static_cast<llama_token>(id), logits[id], 0.0f };
        }
        for (size_t first = 0; mask && first < n; first += 32) {
            for (uint32_t word = mask[first / 32], at = 0; word != 0; word >>= 1, ++at) {
                if ((word & 1) && first + at < n) {
                    out[count++] = { static_cast<llama_token>(first + at), logits[first + at], 0.0f };
                }
            }
        }
        return { out, count, -1, false };
    }
};

bool is_allowed(hearth_sampler & s, llama_token token) {
    llama_token_data one = { token, 1.0f, 0.0f };
    llama_token_data_array alone = { &one, 1, -1, false };
    llama_sampler_apply(s.grammar.get(), &alone);
    return one.logit != -INFINITY;
}

llama_token best_of(const llama_token_data_array & rest) {
    const auto worse = [](const llama_token_data & a, const llama_token_data & b) { return a.logit < b.logit; };
    return std::max_element(rest.data, rest.data + rest.size, worse)->id;
}

// What the chain chooses of them.
llama_token run_chain(hearth_sampler & s, llama_token_data_array & rest, bool is_masked) {
    // Chosen where the chain fails to choose: it may, when a bias forbids all that the mask allows.
    const llama_token best = is_masked ? best_of(rest) : LLAMA_TOKEN_NULL;
    llama_sampler_apply(common_sampler_get(s.ptr.get()), &rest);
    if (rest.selected < 0 && !is_masked) {
        throw std::runtime_error("the chain chose no token");
    }
    return rest.selected < 0 ? best : rest.data[rest.selected].id;
}

} // namespace

extern "C" {

int32_t hearth_sampler_new(const llama_model * model, const hearth_sampler_params * params, hearth_sampler ** out,
                           char ** err) {
    return guard(err, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        auto s = std::make_unique<hearth_sampler>();
        s->vocab = vocab;
        s->params = sampling_params(params, vocab);
        for (size_t i = 0; i < params->n_triggers; ++i) {
            if (params->triggers[i].kind == HEARTH_TRIGGER_BEHIND && *params->triggers[i].value) {
                s->awaited.emplace_back(params->triggers[i].value);
            }
        }
        if (!s->awaited.empty() && s->params.grammar_lazy) {
            throw std::invalid_argument("a grammar waits for a text and a pattern");
        }
        s->grammar.reset(new_grammar(s->params, vocab));
        s->thinking.reset(new_thinking(s->params, vocab));
        common_params_sampling chain = s->params;
        chain.grammar = {};
        chain.grammar_lazy = false;
        const reach best = best_first(chain);
        s->n_best = best.n_best;
        s->biased = biased_tokens(chain, vocab);
        if (std::adjacent_find(s->biased.begin(), s->biased.end()) != s->biased.end()) {
            // Of two biases of one token llama.cpp applies the first only where the candidates are not the whole vocabulary.
            s->n_best = 0;
        }
        s->penalised.n = s->n_best > 0 && best.is_penalised ? chain.penalty_last_n : 0;
        s->ptr.reset(common_sampler_init(model, chain));
        if (!s->ptr) {
            throw std::runtime_error("no sampler could be made");
        }
        *out = s.release();
    });
}

void hearth_sampler_free(hearth_sampler * sampler) {
    delete sampler;
}

int32_t hearth_sampler_accept(hearth_sampler * sampler, const llama_token * tokens, size_t n, bool is_answer, char ** err) {
    return guard(err, [&] {
        for (size_t i = 0; i < n; ++i) {
            if (is_answer) {
                accept_generated(*sampler, tokens[i]);
            } else {
                sampler->accept(tokens[i], false);
            }
        }
    });
}

int32_t hearth_sampler_choose(hearth_sampler * sampler, const float * logits, size_t n, const uint32_t * mask, llama_token * token,
                              char ** err) {
    return guard(err, [&] {
        // One for all samplers of a thread: it stays in the cache.
        static thread_local std::vector<llama_token_data> kept;
        kept.resize(std::max(n, kept.size()));
        const choices all = { logits, n, mask };
        llama_token_data_array rest;
        if (!all.best(*sampler, kept.data(), rest)) {
            rest = all.to(kept.data());
        }
        if (rest.size == 0) {
            throw std::invalid_argument("the constraint allows no token");
        }
        *token = run_chain(*sampler, rest, mask != nullptr);
        // As common_sampler_sample: most choices are right, and looking at one token is cheap.
        if (sampler->grammar_holds() && !is_allowed(*sampler, *token)) {
            rest = all.to(kept.data());
            llama_sampler_apply(sampler->grammar.get(), &rest);
            const auto is_left = [](const llama_token_data & data) { return data.logit != -INFINITY; };
            if (std::none_of(rest.data, rest.data + rest.size, is_left)) {
                throw std::invalid_argument("the constraint allows no token");
            }
            const llama_token best = best_of(rest);
            *token = run_chain(*sampler, rest, true);
            // A bias may forbid all that the grammar allows: an answer that may not end, and can only end.
            if (!is_allowed(*sampler, *token)) {
                *token = best;
            }
        }
        accept_generated(*sampler, *token);
    });
}

} // extern "C"
