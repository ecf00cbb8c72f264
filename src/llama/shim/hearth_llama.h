// The C ABI between hearth and llama.cpp: what throws, asserts or exists in C++ only.
//
// Every function that returns int32_t answers HEARTH_OK or another status and then puts a text into *err (free it with
// hearth_string_free). No policy and no state but handles. Plain getters are called in llama.h directly.
#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEARTH_OK 0
#define HEARTH_INVALID (-1)   // the arguments are to blame
#define HEARTH_EXCEPTION (-2) // a C++ exception
#define HEARTH_ASSERT (-3)    // GGML_ASSERT or GGML_ABORT: the object must be thrown away

typedef struct hearth_templates hearth_templates;
typedef struct hearth_parser hearth_parser;
typedef struct hearth_sampler hearth_sampler;
typedef struct hearth_pool hearth_pool;

// Told of the assertion that ends the process, from the thread that it failed on; it must return.
typedef void (*hearth_last_words)(const char * message);

// Once per process, before anything else. `log` and `said` may be called from any thread. `backends` is the folder with ggml's
// backends where they are libraries of their own; NULL: they are linked in, and no library is looked for.
int32_t hearth_init(ggml_log_callback log, void * user, hearth_last_words said, const char * backends, char ** err);
// The file that the code for the CPU is in (a library of its own, or this executable), and what it was compiled to use
// ("AVX2 FMA"); both owned by the caller.
int32_t hearth_cpu(char ** file, char ** features, char ** err);
// A device that layers can be kept on.
typedef struct hearth_device {
    char * name;        // "CUDA0"; both owned by the caller
    char * description; // "NVIDIA H100"
    uint64_t free_bytes;
    uint64_t total_bytes;
    bool is_integrated; // its memory is the machine's
} hearth_device;
// Why this library can't be loaded, owned by the caller; NULL: it can.
int32_t hearth_library_fault(const char * path, char ** fault, char ** err);
// The GPU at this place among those that ggml knows; `found` is false behind the last one.
int32_t hearth_gpu(size_t index, hearth_device * gpu, bool * found, char ** err);
void hearth_string_free(char * text);
// malloc_trim, where the C library has it.
void hearth_trim_heap(void);

typedef struct hearth_model_params {
    int32_t n_gpu_layers; // negative: all
    bool use_mmap;
    bool use_mlock;
    bool vocab_only; // no weights: the model can only tokenise
    bool load_mtp; // the heads that draft (multi-token prediction), where the file has some
    llama_progress_callback progress;
    void * progress_user;
} hearth_model_params;

int32_t hearth_model_load(const char * path, const hearth_model_params * params, struct llama_model ** out, char ** err);
// The text of a metadata key, NULL when absent; `text` is owned by the caller.
int32_t hearth_model_meta(const struct llama_model * model, const char * key, char ** text, char ** err);

// Loads a LoRA adapter; it lives as long as the model. Before any context is made, since contexts size their graphs by it.
int32_t hearth_model_add_adapter(struct llama_model * model, const char * path, struct llama_adapter_lora ** out, char ** err);

// A product with a matrix of weights, all in F32: out[r][o] = sum over i of rows[r][i] * weights[o][i]. Strides are numbers from
// one row to the next.
typedef struct hearth_product {
    const float * weights; // n_out rows of n_in
    const float * rows;    // n_rows rows of n_in
    float * out;           // n_rows rows of n_out, overwritten
    size_t n_in;
    size_t n_out;
    size_t n_rows;
    size_t weights_stride;
    size_t rows_stride;
    size_t out_stride;
} hearth_product;

// Attention: for each row and head of queries, the values of the cells that it sees, weighted by the softmax of its products with
// their keys, times scale. Strides are numbers.
typedef struct hearth_attention {
    const float * queries; // n_in numbers of a row
    size_t queries_row, queries_head, queries_stream;
    const uint16_t * keys; // F16, n_in of a cell
    size_t keys_row, keys_head, keys_stream;
    const uint16_t * values; // F16, n_out of a cell
    size_t values_row, values_head, values_stream;
    const uint16_t * mask; // F16, n_cells of a row: 0 or negative infinity, or what is added to a score; NULL: all is seen
    size_t mask_row, mask_stream;
    float * out; // [n_streams][n_rows][n_heads][n_out], overwritten
    float scale;
    size_t n_in;
    size_t n_out;
    size_t n_rows;
    size_t n_cells;
    size_t n_heads;
    size_t n_kv_heads; // of which n_heads is a multiple
    size_t n_streams;
} hearth_attention;

// What computes operations in ggml's place: called by each of a context's threads, of which there are n_threads, with the same
// one.
typedef struct hearth_kernels {
    void (*multiply)(const hearth_product * product, int32_t n_threads, void * user); // NULL: ggml does
    void (*attend)(const hearth_attention * attention, int32_t n_threads, void * user); // NULL: ggml does
    void * user;
} hearth_kernels;

typedef struct hearth_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_outputs_max; // most output rows of one ubatch
    int32_t n_threads;
    int32_t n_threads_batch;
    int32_t flash_attn; // -1 auto, 0 off, 1 on
    int32_t type_k;     // enum ggml_type
    int32_t type_v;
    bool kv_unified;
    bool swa_full;
    bool offload_kqv;
    int32_t pooling; // enum llama_pooling_type: vectors instead of logits; negative: logits
    bool mtp;        // runs the model's heads for drafts, not the model itself
    uint32_t n_rs_seq;            // rows that a recurrent state can go back, where the architecture can
    bool rounds_kv; // where no cache keeps them, keys and values are rounded to F16 as flash attention rounds them
    const hearth_kernels * kernels; // on the CPU; they outlive the context; NULL: none
    struct llama_context * other; // the context that this one drafts for; NULL: none
    ggml_abort_callback abort; // asked during a decode; may be NULL
    void * abort_user;
} hearth_context_params;

int32_t hearth_context_new(struct llama_model * model, const hearth_context_params * params,
                           struct llama_context ** out, char ** err);
// Threads of their own for a context's graphs, attached to it; free the pool after the context.
int32_t hearth_pool_attach(struct llama_context * ctx, int32_t n_threads, int32_t n_threads_batch, uint32_t poll,
                           hearth_pool ** out, char ** err);
// Lets a further context use the pool; never two at once.
int32_t hearth_pool_share(hearth_pool * pool, struct llama_context * ctx, char ** err);
// Calls `body`, which throws nothing, on the caller's thread and on up to n_threads - 1 of those of the pool, none of whose
// contexts may compute meanwhile; returns when all calls have.
int32_t hearth_pool_run(hearth_pool * pool, int32_t n_threads, void (*body)(void *), void * user, char ** err);
void hearth_pool_free(hearth_pool * pool);

// The adapters of the decodes from here on, in place of those before; scales in their order.
int32_t hearth_set_adapters(struct llama_context * ctx, struct llama_adapter_lora ** adapters, float * scales, size_t n,
                            char ** err);
// llama_decode; *code is its result when the status is HEARTH_OK.
int32_t hearth_decode(struct llama_context * ctx, const struct llama_batch * batch, int32_t * code, char ** err);
// Lets the empty sequence `to` hold positions 0..n of `from`. With a cache split by sequence only whole sequences can be
// copied, so the rest is removed afterwards. *copied is false, and `to` empty, where the memory can't do that.
int32_t hearth_seq_cp(struct llama_context * ctx, int32_t from, int32_t to, int32_t n, bool unified, bool * copied,
                      char ** err);
// A copy of what a sequence holds: its size in bytes (0: it can't be copied), and the copy, of which *n says how much was
// written. `load` puts one into the empty sequence `seq`; *loaded is false, and `seq` empty, where there is no room.
int32_t hearth_seq_size(struct llama_context * ctx, int32_t seq, size_t * n, char ** err);
int32_t hearth_seq_save(struct llama_context * ctx, int32_t seq, uint8_t * out, size_t cap, size_t * n, char ** err);
int32_t hearth_seq_load(struct llama_context * ctx, int32_t seq, const uint8_t * data, size_t n, bool * loaded, char ** err);
// llama_memory_seq_rm; *removed tells whether the memory could do it.
int32_t hearth_seq_rm(struct llama_context * ctx, int32_t seq, int32_t p0, int32_t p1, bool * removed, char ** err);

// Drafts of the next tokens by a context beside another (common/speculative), for many sequences at once. The two have the
// same sequence ids and positions.
typedef struct hearth_speculator hearth_speculator;

#define HEARTH_DRAFT_SIMPLE 0 // a smaller model; it reads tokens only
#define HEARTH_DRAFT_EAGLE3 1 // the others read what the target's decodes left in its buffers
#define HEARTH_DRAFT_MTP 2
#define HEARTH_DRAFT_DFLASH 3
#define HEARTH_DRAFT_DSPARK 4

typedef struct hearth_speculator_params {
    int32_t kind; // HEARTH_DRAFT_*
    uint32_t n_seq;
    int32_t n_max;
    int32_t n_min; // shorter drafts come back empty
    float p_min;   // a draft ends before a token that is less probable
} hearth_speculator_params;

typedef struct hearth_draft_ask {
    int32_t seq;
    int32_t pos; // of `last`
    int32_t n_max;
    llama_token last; // the newest token, which neither context has computed
} hearth_draft_ask;

// Why `draft` can't make drafts of that kind for `target`, as a clause; NULL where it can. To be asked before a context is
// made, which ends the process where widths differ. Makes a small context of the target, to see what its graphs hand out.
int32_t hearth_draft_mismatch(struct llama_model * target, const struct llama_model * draft, int32_t kind, char ** text, char ** err);
// The kind of drafts that a file's metadata names: one of HEARTH_DRAFT_*.
int32_t hearth_draft_kind(const char * path, int32_t * kind, char ** err);
// Heads for drafts that a model has, 0 without.
int32_t hearth_model_n_mtp(const struct llama_model * model, int32_t * n, char ** err);
// Both contexts outlive it. HEARTH_INVALID: the two don't go together.
int32_t hearth_speculator_new(struct llama_context * target, struct llama_context * draft,
                              const hearth_speculator_params * params, hearth_speculator ** out, char ** err);
void hearth_speculator_free(hearth_speculator * speculator);
// Most tokens of one draft, which the kind may have lowered.
int32_t hearth_speculator_n_max(const hearth_speculator * speculator, int32_t * n, char ** err);
// The draft context takes in rows: tokens of its own choice for SIMPLE, else exactly the target's last decode. A sequence
// whose draft side ends elsewhere is cut to the first row's position, or starts there anew. *done is false where that
// failed; the draft side of these sequences is empty then.
int32_t hearth_speculator_process(hearth_speculator * speculator, const llama_batch * batch, bool * done, char ** err);
// Drafts for all of `asks` in one go: `cap` places for each in `out`, and in `n_out` how many were filled; -1: the draft
// side could not take in the newest token.
// None where what the heads keep of the sequence is not of the position before: a step later it is.
int32_t hearth_speculator_draft(hearth_speculator * speculator, const hearth_draft_ask * asks, size_t n, llama_token * out,
                                size_t cap, int32_t * n_out, char ** err);
// The draft side of a sequence is emptied; *held: it was not empty.
int32_t hearth_speculator_clear(hearth_speculator * speculator, int32_t seq, bool * held, char ** err);
// The draft side of `to` becomes the first `n` positions of that of `from`, or empty: !*copied. See hearth_seq_cp.
int32_t hearth_speculator_share(hearth_speculator * speculator, int32_t from, int32_t to, int32_t n, bool unified, bool * copied,
                                char ** err);
// Of the rows behind a sequence's newest token the target kept the first `n`.
int32_t hearth_speculator_accept(hearth_speculator * speculator, int32_t seq, uint16_t n, char ** err);

// llama_tokenize; *n is the number of tokens, also when it exceeds `cap` (then nothing useful is in `out`).
int32_t hearth_tokenize(const struct llama_vocab * vocab, const char * text, size_t len, llama_token * out, size_t cap,
                        bool add_special, bool parse_special, size_t * n, char ** err);

// The model's chat templates, or `override` in their place. NULL and HEARTH_OK never go together.
int32_t hearth_templates_new(const struct llama_model * model, const char * override, hearth_templates ** out, char ** err);
void hearth_templates_free(hearth_templates * templates);
// JSON: {"source", "supports_thinking", "is_explicit"}.
int32_t hearth_templates_info(const hearth_templates * templates, char ** json, char ** err);
// JSON: {"is_native", "shape": {"head", "mid", "sep", "tail", "is_read"} or null, "starts": [text]}: whether the template shows
// tools and writes calls, the texts around the names and the arguments of a call ("sep" is null where several calls aren't
// written alike) with whether the template's parser reads them, and the texts that begin a call.
int32_t hearth_templates_tool_format(hearth_templates * templates, char ** json, char ** err);
// `request`: {"messages" (OpenAI's shape), "add_generation_prompt", "continue_final_message", "reasoning", "enable_thinking",
// "kwargs": {name: JSON text}, "tools", "callable": [{"name", "description", "parameters": JSON text}],
// "parallel_tool_calls"}. The prompt shows `tools`; the grammar and the parser are for calls of `callable` (empty: none may come).
// `json`: {"prompt", "stops", "preserved", "thinking_start", "thinking_ends", "thinking_opened", "generation_prompt", "grammar"
// (lazy), "triggers": [{"kind", "value"}]}. *parser reads the answer; it is NULL where tags are all there is to read.
// Any thread.
int32_t hearth_chat_render(hearth_templates * templates, const char * request, char ** json, hearth_parser ** parser,
                           char ** err);
// How a plain answer is written: `json` is null where it is plain text, or where that can't be told, else {"head",
// "after_thought", "tail"}; see frame_of. Renders a few probes; milliseconds. Any thread.
int32_t hearth_templates_answer_frame(hearth_templates * templates, char ** json, char ** err);
void hearth_parser_free(hearth_parser * parser);
// JSON: {"content", "reasoning", "calls": [{"id", "name", "arguments"}]}.
int32_t hearth_parser_parse(const hearth_parser * parser, const char * text, size_t len, bool is_partial, char ** json,
                            char ** err);

// A grammar that waits for a text, and holds behind it; not together with llama.cpp's own kinds.
#define HEARTH_TRIGGER_BEHIND 4

// HEARTH_TRIGGER_BEHIND or enum common_grammar_trigger_type (1 word, 2 pattern, 3 pattern of the whole text), and its text.
typedef struct hearth_trigger {
    int32_t kind;
    const char * value;
} hearth_trigger;

typedef struct hearth_sampler_params {
    uint32_t seed;
    int32_t min_keep;
    int32_t top_k;
    float top_p;
    float min_p;
    float typical_p;
    float top_n_sigma;
    float xtc_probability;
    float xtc_threshold;
    float temperature;
    float dynatemp_range;
    float dynatemp_exponent;
    int32_t penalty_last_n;
    float penalty_repeat;
    float penalty_frequency;
    float penalty_presence;
    float dry_multiplier;
    float dry_base;
    int32_t dry_allowed_length;
    int32_t dry_penalty_last_n;
    int32_t mirostat;
    float mirostat_tau;
    float mirostat_eta;
    bool ignore_eos;
    const char * const * dry_breakers;
    size_t n_dry_breakers;
    const llama_logit_bias * logit_bias;
    size_t n_logit_bias;
    const char * const * samplers; // names in order
    size_t n_samplers;
    // GBNF, or NULL. With triggers it is lazy: nothing is constrained until one of them is met outside of the thinking.
    const char * grammar;
    const hearth_trigger * triggers;
    size_t n_triggers;
    const llama_token * preserved; // tokens that are part of the format
    size_t n_preserved;
    const char * generation_prompt; // the prompt's end, which tells whether thinking is open
    const char * thinking_start;    // "" where there is none
    const char * const * thinking_ends;
    size_t n_thinking_ends;
} hearth_sampler_params;

int32_t hearth_sampler_new(const struct llama_model * model, const hearth_sampler_params * params, hearth_sampler ** out,
                           char ** err);
void hearth_sampler_free(hearth_sampler * sampler);
// Shows the sampler tokens that it did not choose: of the prompt, or of the answer, which the grammar is about.
int32_t hearth_sampler_accept(hearth_sampler * sampler, const llama_token * tokens, size_t n, bool is_answer, char ** err);
// Chooses from a row of `n` logits, of the tokens whose bits are set in `mask` (NULL: of all), and accepts the choice. Touches no
// context, so samplers may do so at once, each on a thread. HEARTH_INVALID: the mask allows nothing, or nothing that the grammar
// does.
int32_t hearth_sampler_choose(hearth_sampler * sampler, const float * logits, size_t n, const uint32_t * mask, llama_token * token,
                              char ** err);

// llama.cpp's own sampler of the same parameters, which reads its row in the context: what tests hold the other one to.
typedef struct hearth_reference hearth_reference;
int32_t hearth_reference_new(const struct llama_model * model, const hearth_sampler_params * params, hearth_reference ** out,
                             char ** err);
void hearth_reference_free(hearth_reference * reference);
int32_t hearth_reference_accept(hearth_reference * reference, const llama_token * tokens, size_t n, char ** err);
int32_t hearth_reference_sample(hearth_reference * reference, struct llama_context * ctx, int32_t row, llama_token * token,
                                char ** err);

// Images and sound: a projector turns them into rows of embeddings (mtmd). Chunks are mtmd's own; plain getters on them are
// called in mtmd.h directly.
struct mtmd_input_chunk;
struct mtmd_input_chunks;
typedef struct hearth_projector hearth_projector;

typedef struct hearth_projector_params {
    int32_t n_threads;
    bool use_gpu;
    bool warmup;
} hearth_projector_params;

typedef struct hearth_projector_facts {
    bool vision;
    bool audio;
    bool mrope;          // embeddings take four position numbers each
    int32_t sample_rate; // of sound, -1 without audio
    size_t n_embd;       // numbers of one row
} hearth_projector_facts;

int32_t hearth_projector_new(const char * path, const struct llama_model * model, const hearth_projector_params * params,
                             hearth_projector ** out, char ** err);
void hearth_projector_free(hearth_projector * projector);
void hearth_projector_info(const hearth_projector * projector, hearth_projector_facts * facts);
// Preprocesses an image (RGB, 3 * nx * ny bytes) or sound (mono) into text tokens and media chunks; free the result with
// mtmd_input_chunks_free. HEARTH_INVALID: the image or sound is to blame. Any thread.
int32_t hearth_projector_split_image(const hearth_projector * projector, uint32_t nx, uint32_t ny, const uint8_t * rgb,
                                     struct mtmd_input_chunks ** out, char ** err);
int32_t hearth_projector_split_audio(const hearth_projector * projector, const float * samples, size_t n,
                                     struct mtmd_input_chunks ** out, char ** err);
// Whether the text model must attend over the whole chunk at once.
bool hearth_chunk_is_non_causal(const hearth_projector * projector, const struct mtmd_input_chunk * chunk);
// n = n_embd * tokens of the chunk. One thread at a time.
int32_t hearth_projector_encode(hearth_projector * projector, const struct mtmd_input_chunk * chunk, float * out, size_t n,
                                char ** err);

#ifdef __cplusplus
}
#endif
