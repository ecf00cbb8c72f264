#include "templates.h"

#include "chat-auto-parser.h"
#include "common.h"

#include <algorithm>
#include <cstring>
#include <ctime>

using namespace hearth;

struct hearth_parser {
    std::shared_ptr<const common_chat_parser_params> params;
};

namespace {

std::string token_text(const llama_vocab * vocab, llama_token token) {
    return token == LLAMA_TOKEN_NULL ? "" : common_token_to_piece(vocab, token, true);
}

constexpr size_t PLANS_MAX = 64;
constexpr size_t PLAN_BYTES_MAX = 64u << 20;

common_chat_templates_inputs inputs_of(const hearth_templates * t, const json & b) {
    common_chat_templates_inputs in;
    in.messages = common_chat_msgs_parse_oaicompat(b.at("messages"));
    in.use_jinja = !t->is_named;
    in.add_generation_prompt = b.at("add_generation_prompt").get<bool>();
    if (b.at("continue_final_message").get<bool>()) {
        if (t->is_named) {
            throw std::runtime_error("this built-in template can't continue a message");
        }
        in.continue_final_message = COMMON_CHAT_CONTINUATION_CONTENT;
    }
    in.reasoning_format = b.at("reasoning").get<bool>() ? COMMON_REASONING_FORMAT_AUTO : COMMON_REASONING_FORMAT_NONE;
    in.enable_thinking = b.at("enable_thinking").get<bool>();
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    for (auto e : b.at("kwargs").items()) {
        in.chat_template_kwargs[e.key()] = e.value().get<std::string>();
    }
    in.tools = tools_of(b.at("tools"));
    in.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
    in.parallel_tool_calls = b.at("parallel_tool_calls").get<bool>();
    return in;
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
    chat_plan plan;
    plan.stops = p.additional_stops;
    plan.preserved = p.preserved_tokens;
    plan.thinking_start = p.thinking_start_tag;
    plan.thinking_ends = p.thinking_end_tags;
    plan.thinking_opened = thinking_opened(p);
    plan.generation_prompt = p.generation_prompt;
    plan.grammar = p.grammar;
    plan.lazy = p.grammar_lazy;
    plan.triggers = p.grammar_triggers;
    return plan;
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
        if (!m.content_parts.empty()) {
            return false;
        }
    }
    return true;
}

std::string render_directly(const hearth_templates * t, const common_chat_templates_inputs & in) {
    autoparser::generation_params p;
    p.messages = json::array();
    const chat_template_caps caps = t->tmpl->original_caps();
    for (const auto & m : in.messages) {
        json message = m.to_json_oaicompat(false);
        if (!m.tool_calls.empty() && caps.supports_tool_calls && !message.contains("content")) {
            message["content"] = "";
        }
        if (!m.tool_calls.empty() && caps.supports_object_arguments) {
            for (auto & call : message["tool_calls"]) {
                auto & args = call["function"]["arguments"];
                if (args.is_string()) {
                    args = json::parse(args.get<std::string>());
                }
            }
        }
        p.messages.push_back(message);
    }
    if (!in.tools.empty()) {
        p.tools = common_chat_tools_to_json_oaicompat(in.tools);
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

// Everything but the messages that a plan depends on, and of them the kinds that common/chat may treat in a way of its own.
std::string plan_key(const common_chat_templates_inputs & in, const std::vector<common_chat_tool> & callable, bool plain) {
    json key = json::array();
    bool calls = false;
    bool results = false;
    bool reasons = false;
    for (const auto & m : in.messages) {
        calls = calls || !m.tool_calls.empty();
        results = results || m.role == "tool";
        reasons = reasons || !m.reasoning_content.empty();
    }
    for (const bool flag : { in.add_generation_prompt, in.enable_thinking, in.parallel_tool_calls, plain, calls, results, reasons }) {
        key.push_back(flag);
    }
    key.push_back(static_cast<int>(in.reasoning_format));
    for (const auto & kv : in.chat_template_kwargs) {
        key.push_back(kv.first);
        key.push_back(kv.second);
    }
    for (const auto * tools : { &in.tools, &callable }) {
        key.push_back(tools->size());
        for (const auto & tool : *tools) {
            key.push_back(tool.name);
            key.push_back(tool.description);
            key.push_back(tool.parameters);
        }
    }
    return key.dump_safe();
}

std::shared_ptr<const chat_plan> known_plan(hearth_templates * t, const std::string & key) {
    const std::lock_guard<std::mutex> lock(t->mutex);
    const auto found = t->plans.find(key);
    if (found == t->plans.end()) {
        return nullptr;
    }
    t->uses[key] = ++t->clock;
    return found->second;
}

void keep_plan(hearth_templates * t, const std::string & key, const std::shared_ptr<const chat_plan> & plan) {
    const std::lock_guard<std::mutex> lock(t->mutex);
    if (plan->bytes > PLAN_BYTES_MAX || !t->plans.emplace(key, plan).second) {
        return;
    }
    t->uses[key] = ++t->clock;
    t->plan_bytes += plan->bytes;
    while (t->plans.size() > PLANS_MAX || t->plan_bytes > PLAN_BYTES_MAX) {
        auto oldest = t->uses.begin();
        for (auto it = t->uses.begin(); it != t->uses.end(); ++it) {
            if (it->second < oldest->second) {
                oldest = it;
            }
        }
        const auto gone = t->plans.find(oldest->first);
        t->plan_bytes -= gone->second->bytes;
        t->plans.erase(gone);
        t->uses.erase(oldest);
    }
}

// The prompt and its plan. common/chat analyses the template again for every chat (milliseconds) and makes the grammar and
// the parser of the tools anew, although only the prompt depends on the messages: plans are kept, and where rendering
// directly is known to give the same prompt, that is all that is done. `callable`: the tools of the grammar and the parser,
// when a call may come; the prompt shows those of `in`.
std::shared_ptr<const chat_plan> render(hearth_templates * t, const common_chat_templates_inputs & in,
                                        const std::vector<common_chat_tool> & callable, std::string & prompt) {
    const bool plain = needs_no_repair(t, in);
    const bool cacheable = in.continue_final_message == COMMON_CHAT_CONTINUATION_NONE;
    const std::string key = plan_key(in, callable, plain);
    const auto known = cacheable ? known_plan(t, key) : nullptr;
    if (known) {
        prompt = known->direct ? render_directly(t, in) : common_chat_templates_apply(t->ptr.get(), in).prompt;
        const std::string & tail = known->generation_prompt;
        if (!in.add_generation_prompt ||
            (prompt.size() >= tail.size() && prompt.compare(prompt.size() - tail.size(), tail.size(), tail) == 0)) {
            return known;
        }
    }
    common_chat_templates_inputs plan_in = in;
    if (!callable.empty()) {
        plan_in.tools = callable;
        for (auto & tool : plan_in.tools) {
            tool.parameters = convertible(tool.parameters);
        }
        plan_in.tool_choice = COMMON_CHAT_TOOL_CHOICE_AUTO;
    }
    const common_chat_params p = common_chat_templates_apply(t->ptr.get(), plan_in);
    prompt = callable.empty() ? p.prompt : common_chat_templates_apply(t->ptr.get(), in).prompt;
    auto plan = std::make_shared<chat_plan>(plan_of(p));
    if (!t->is_simple || !callable.empty()) {
        plan->parser = parser_of(p, plan_in);
    }
    // The parser's objects take some times their text.
    plan->bytes = key.size() * 2 + p.grammar.size() + p.parser.size() * 8;
    if (plain) {
        plan->direct = render_directly(t, in) == prompt;
    }
    if (cacheable && !known) {
        keep_plan(t, key, plan);
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
    in.use_jinja = !t->is_named;
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
        const common_chat_msg read = common_chat_parse(probe, false, *parser);
        return read.content == "probe\ntext";
    } catch (const std::exception &) {
        return false;
    }
}

bool is_name_of_template(const char * text) {
    const int32_t n = llama_chat_builtin_templates(nullptr, 0);
    std::vector<const char *> names(n > 0 ? n : 0);
    llama_chat_builtin_templates(names.data(), names.size());
    return std::any_of(names.begin(), names.end(), [&](const char * name) { return std::strcmp(name, text) == 0; });
}

} // namespace

extern "C" {

int32_t hearth_templates_new(const llama_model * model, const char * override, hearth_templates ** out, char ** err) {
    return guard(err, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        const char * own = llama_model_chat_template(model, nullptr);
        const char * source = override ? override : own;
        auto t = std::make_unique<hearth_templates>();
        t->is_named = override && std::strcmp(override, "chatml") != 0 && is_name_of_template(override);
        if (source && !t->is_named && std::strcmp(source, "chatml") != 0) {
            // common_chat_templates_init reports a bad template without its reason; compiling it first tells.
            t->tmpl = std::make_unique<common_chat_template>(source, token_text(vocab, llama_vocab_bos(vocab)),
                                                             token_text(vocab, llama_vocab_eos(vocab)));
        }
        t->ptr = common_chat_templates_init(model, override ? override : "");
        t->add_bos = llama_vocab_get_add_bos(vocab);
        t->add_eos = llama_vocab_get_add_eos(vocab);
        t->supports_thinking = !t->is_named && common_chat_templates_support_enable_thinking(t->ptr.get());
        t->is_simple = reads_plainly(t.get());
        for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
            if (llama_vocab_is_eog(vocab, id)) {
                t->ends.push_back(token_text(vocab, id));
            }
        }
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
        std::string prompt;
        const auto plan = render(t, in, tools_of(b.at("callable")), prompt);
        json j = json::object();
        j["prompt"] = prompt;
        j["stops"] = plan->stops;
        j["preserved"] = plan->preserved;
        j["thinking_start"] = plan->thinking_start;
        j["thinking_ends"] = plan->thinking_ends;
        j["thinking_opened"] = plan->thinking_opened;
        j["generation_prompt"] = plan->generation_prompt;
        j["grammar"] = plan->grammar;
        json triggers = json::array();
        for (const auto & trigger : plan->triggers) {
            json entry = json::object();
            entry["kind"] = static_cast<int>(trigger.type);
            entry["value"] = trigger.value;
            triggers.push_back(entry);
        }
        j["triggers"] = triggers;
        *out = dup(j.dump_safe());
        if (plan->parser) {
            *parser = new hearth_parser{ plan->parser };
        }
    });
}

void hearth_parser_free(hearth_parser * parser) {
    delete parser;
}

int32_t hearth_parser_parse(const hearth_parser * parser, const char * text, size_t len, bool is_partial, char ** out,
                            char ** err) {
    return guard(err, [&] {
        const common_chat_msg msg = common_chat_parse(std::string(text, len), is_partial, *parser->params);
        json j = json::object();
        j["content"] = msg.content;
        j["reasoning"] = msg.reasoning_content;
        json calls = json::array();
        for (const auto & call : msg.tool_calls) {
            json entry = json::object();
            entry["id"] = call.id;
            entry["name"] = call.name;
            entry["arguments"] = call.arguments;
            calls.push_back(entry);
        }
        j["calls"] = calls;
        *out = dup(j.dump_safe());
    });
}

} // extern "C"
