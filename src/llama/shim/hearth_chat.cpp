#include "guard.h"

#include "chat-auto-parser.h"
#include "chat.h"
#include "common.h"

#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

using namespace hearth;

// What a template answers besides the prompt: the same for all chats with the same options.
struct chat_plan {
    std::vector<std::string> stops;
    std::vector<std::string> preserved;
    std::string thinking_start;
    std::vector<std::string> thinking_ends;
    bool thinking_opened = false;
    std::string generation_prompt;
    // Rendering directly gave the same prompt as common/chat did, so the analysis needn't run again.
    bool direct = false;
};

struct hearth_templates {
    common_chat_templates_ptr ptr;
    // The same template, for rendering without analysing it anew.
    std::unique_ptr<common_chat_template> tmpl;
    std::mutex mutex;
    // Plans by the options that make them; emptied when PLANS_MAX are in.
    std::map<std::string, chat_plan> plans;
    // The format is "thinking between tags, then text" or plain text: no parser is needed to read an answer without tools.
    bool is_simple = false;
    bool supports_thinking = false;
    bool add_bos = false;
    bool add_eos = false;
};

struct hearth_parser {
    common_chat_parser_params params;
};

namespace {

std::string token_text(const llama_vocab * vocab, llama_token token) {
    return token == LLAMA_TOKEN_NULL ? "" : common_token_to_piece(vocab, token, true);
}

constexpr size_t PLANS_MAX = 64;

common_chat_templates_inputs inputs_of(const hearth_templates * t, const json & b) {
    common_chat_templates_inputs in;
    in.messages = common_chat_msgs_parse_oaicompat(b.at("messages"));
    in.add_generation_prompt = b.at("add_generation_prompt").get<bool>();
    if (b.at("continue_final_message").get<bool>()) {
        in.continue_final_message = COMMON_CHAT_CONTINUATION_CONTENT;
    }
    in.reasoning_format = b.at("reasoning").get<bool>() ? COMMON_REASONING_FORMAT_AUTO : COMMON_REASONING_FORMAT_NONE;
    in.enable_thinking = b.at("enable_thinking").get<bool>();
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    for (auto e : b.at("kwargs").items()) {
        in.chat_template_kwargs[e.key()] = e.value().get<std::string>();
    }
    return in;
}

std::unique_ptr<hearth_parser> parser_of(const common_chat_params & p, const common_chat_templates_inputs & in) {
    auto parser = std::make_unique<hearth_parser>();
    parser->params = common_chat_parser_params(p);
    parser->params.reasoning_format = in.reasoning_format;
    parser->params.parse_tool_calls = false;
    parser->params.is_continuation = in.continue_final_message != COMMON_CHAT_CONTINUATION_NONE;
    if (!p.parser.empty()) {
        parser->params.parser.load(p.parser);
    }
    return parser;
}

// Whether the prompt ends inside the thinking tags.
bool thinking_opened(const common_chat_params & p) {
    if (p.thinking_start_tag.empty()) {
        return false;
    }
    const size_t start = p.generation_prompt.rfind(p.thinking_start_tag);
    if (start == std::string::npos) {
        return false;
    }
    for (const auto & end : p.thinking_end_tags) {
        const size_t at = end.empty() ? std::string::npos : p.generation_prompt.rfind(end);
        if (at != std::string::npos && at > start) {
            return false;
        }
    }
    return true;
}

chat_plan plan_of(const common_chat_params & p) {
    return { p.additional_stops, p.preserved_tokens, p.thinking_start_tag, p.thinking_end_tags, thinking_opened(p),
             p.generation_prompt, false };
}

// Whether none of common/chat's repairs of messages (chat.cpp, "workaround") would touch these.
bool needs_no_repair(const hearth_templates * t, const common_chat_templates_inputs & in) {
    if (!t->tmpl || in.continue_final_message != COMMON_CHAT_CONTINUATION_NONE) {
        return false;
    }
    const chat_template_caps caps = t->tmpl->original_caps();
    if (!caps.supports_string_content || !caps.supports_system_role) {
        return false;
    }
    for (const auto & m : in.messages) {
        if (!m.tool_calls.empty() || !m.content_parts.empty() || !m.tool_call_id.empty()) {
            return false;
        }
    }
    return true;
}

std::string render_directly(const hearth_templates * t, const common_chat_templates_inputs & in) {
    autoparser::generation_params p;
    p.messages = json::array();
    for (const auto & m : in.messages) {
        p.messages.push_back(m.to_json_oaicompat(false));
    }
    p.add_generation_prompt = in.add_generation_prompt;
    p.enable_thinking = in.enable_thinking;
    p.add_bos = in.add_bos;
    p.add_eos = in.add_eos;
    // The same two variables as common_chat_extra_context.
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char text[64];
    p.extra_context = json::object();
    std::strftime(text, sizeof text, "%b %d %Y", &local);
    p.extra_context["datetime"] = std::string(text);
    std::strftime(text, sizeof text, "%d %b %Y", &local);
    p.extra_context["date_string"] = std::string(text);
    for (const auto & kv : in.chat_template_kwargs) {
        p.extra_context[kv.first] = json::parse(kv.second);
    }
    return common_chat_template_direct_apply(*t->tmpl, p);
}

std::string plan_key(const common_chat_templates_inputs & in) {
    json key = json::array();
    key.push_back(in.add_generation_prompt);
    key.push_back(in.enable_thinking);
    key.push_back(static_cast<int>(in.reasoning_format));
    for (const auto & kv : in.chat_template_kwargs) {
        key.push_back(kv.first);
        key.push_back(kv.second);
    }
    return key.dump_safe();
}

// The prompt and its plan. common/chat analyses the template again for every chat (milliseconds), although only the
// prompt depends on the messages: where rendering directly is known to give the same prompt, that is all that is done.
chat_plan render_simple(hearth_templates * t, const common_chat_templates_inputs & in, std::string & prompt) {
    const bool plain = needs_no_repair(t, in);
    const std::string key = plan_key(in);
    if (plain) {
        chat_plan known;
        {
            const std::lock_guard<std::mutex> lock(t->mutex);
            const auto found = t->plans.find(key);
            if (found != t->plans.end()) {
                known = found->second;
            }
        }
        if (known.direct) {
            prompt = render_directly(t, in);
            const std::string & tail = known.generation_prompt;
            if (!in.add_generation_prompt ||
                (prompt.size() >= tail.size() && prompt.compare(prompt.size() - tail.size(), tail.size(), tail) == 0)) {
                return known;
            }
        }
    }
    const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
    prompt = p.prompt;
    chat_plan plan = plan_of(p);
    if (plain) {
        plan.direct = render_directly(t, in) == p.prompt;
        const std::lock_guard<std::mutex> lock(t->mutex);
        if (t->plans.size() >= PLANS_MAX) {
            t->plans.clear();
        }
        t->plans[key] = plan;
    }
    return plan;
}

// Asks the template's own parser to read a plain answer: when it comes back as it is, tags are all there is to the format.
bool reads_plainly(const hearth_templates * t) {
    common_chat_templates_inputs in;
    common_chat_msg msg;
    msg.role = "user";
    msg.content = "hi";
    in.messages = { msg };
    in.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    try {
        const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
        if (p.thinking_start_tag.empty() && !p.thinking_end_tags.empty()) {
            return false; // thinking without a start: the parser knows where it begins
        }
        std::string probe = "probe\ntext";
        if (thinking_opened(p)) {
            if (p.thinking_end_tags.empty()) {
                return false;
            }
            probe = "thought" + p.thinking_end_tags[0] + probe;
        }
        const auto parser = parser_of(p, in);
        const common_chat_msg read = common_chat_parse(probe, false, parser->params);
        return read.content == "probe\ntext";
    } catch (const std::exception &) {
        return false;
    }
}

} // namespace

extern "C" {

int32_t hearth_templates_new(const llama_model * model, const char * override, hearth_templates ** out, char ** err) {
    return guard(err, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        const char * own = llama_model_chat_template(model, nullptr);
        const char * source = override ? override : own;
        auto t = std::make_unique<hearth_templates>();
        if (source && std::strcmp(source, "chatml") != 0) {
            // common_chat_templates_init reports a bad template without its reason; compiling it first tells.
            t->tmpl = std::make_unique<common_chat_template>(source, token_text(vocab, llama_vocab_bos(vocab)),
                                                             token_text(vocab, llama_vocab_eos(vocab)));
        }
        t->ptr = common_chat_templates_init(model, override ? override : "");
        t->add_bos = llama_vocab_get_add_bos(vocab);
        t->add_eos = llama_vocab_get_add_eos(vocab);
        t->supports_thinking = common_chat_templates_support_enable_thinking(t->ptr.get());
        t->is_simple = reads_plainly(t.get());
        *out = t.release();
    });
}

void hearth_templates_free(hearth_templates * templates) {
    delete templates;
}

int32_t hearth_templates_info(const hearth_templates * t, char ** out, char ** err) {
    return guard(err, [&] {
        json j = json::object();
        j["source"] = common_chat_templates_source(t->ptr.get());
        j["supports_thinking"] = t->supports_thinking;
        j["is_explicit"] = common_chat_templates_was_explicit(t->ptr.get());
        *out = dup(j.dump_safe());
    });
}

int32_t hearth_chat_render(hearth_templates * t, const char * request, char ** out, hearth_parser ** parser, char ** err) {
    return guard(err, [&] {
        *parser = nullptr;
        const json b = json::parse(request);
        const common_chat_templates_inputs in = inputs_of(t, b);
        json j = json::object();
        chat_plan plan;
        std::unique_ptr<hearth_parser> owned;
        if (t->is_simple) {
            std::string prompt;
            plan = render_simple(t, in, prompt);
            j["prompt"] = prompt;
        } else {
            const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
            plan = plan_of(p);
            owned = parser_of(p, in);
            j["prompt"] = p.prompt;
        }
        j["stops"] = plan.stops;
        j["preserved"] = plan.preserved;
        j["thinking_start"] = plan.thinking_start;
        j["thinking_ends"] = plan.thinking_ends;
        j["thinking_opened"] = plan.thinking_opened;
        *out = dup(j.dump_safe());
        *parser = owned.release();
    });
}

void hearth_parser_free(hearth_parser * parser) {
    delete parser;
}

int32_t hearth_parser_parse(const hearth_parser * parser, const char * text, size_t len, bool is_partial, char ** out,
                            char ** err) {
    return guard(err, [&] {
        const common_chat_msg msg = common_chat_parse(std::string(text, len), is_partial, parser->params);
        json j = json::object();
        j["content"] = msg.content;
        j["reasoning"] = msg.reasoning_content;
        *out = dup(j.dump_safe());
    });
}

} // extern "C"
