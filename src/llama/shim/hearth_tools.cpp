// Tools: how a template writes calls, and the grammars of calls.
#include "templates.h"

#include "common.h"
#include "json-schema-to-grammar.h"

#include <algorithm>

namespace hearth {

std::vector<common_chat_tool> tools_of(const json & list) {
    std::vector<common_chat_tool> tools;
    for (const auto & tool : list) {
        tools.push_back({ tool.at("name").get<std::string>(), tool.at("description").get<std::string>(),
                          tool.at("parameters").get<std::string>() });
    }
    return tools;
}

std::string convertible(const std::string & schema) {
    const json given = json::parse(schema);
    try {
        json_schema_to_grammar(given, true);
        return schema;
    } catch (const std::exception &) {
        json loose = json::object();
        loose["type"] = "object";
        if (given.is_object() && given.contains("properties") && given.at("properties").is_object()) {
            json properties = json::object();
            for (auto e : given.at("properties").items()) {
                properties[e.key()] = json::object();
            }
            loose["properties"] = properties;
        }
        return loose.dump_safe();
    }
}

std::shared_ptr<const common_chat_parser_params> parser_of(const common_chat_params & p,
                                                           const common_chat_templates_inputs & in) {
    auto parser = std::make_shared<common_chat_parser_params>(p);
    parser->reasoning_format = in.reasoning_format;
    parser->parse_tool_calls = in.tool_choice != COMMON_CHAT_TOOL_CHOICE_NONE;
    parser->is_continuation = in.continue_final_message != COMMON_CHAT_CONTINUATION_NONE;
    if (!p.parser.empty()) {
        parser->parser.load(p.parser);
    }
    return parser;
}

} // namespace hearth

using namespace hearth;

namespace {

// Names and arguments that stand for themselves in a rendered chat.
const std::string PROBE_NAMES[2] = { "hearth_probe_one", "hearth_probe_two" };
const std::string PROBE_ARGS[2] = { R"({"hearth_key": "first"})", R"({"hearth_key": "second"})" };

common_chat_msg probe_message(const std::string & role, const std::string & content, size_t n_calls) {
    common_chat_msg msg;
    msg.role = role;
    msg.content = content;
    for (size_t i = 0; i < n_calls; ++i) {
        // Nine letters and digits: what the strictest templates ask for.
        msg.tool_calls.push_back({ PROBE_NAMES[i], PROBE_ARGS[i], "call00000" });
    }
    return msg;
}

std::string render_probe(const hearth_templates * t, common_chat_templates_inputs in, const common_chat_msg * answer) {
    if (answer) {
        in.messages.push_back(*answer);
    }
    in.add_generation_prompt = !answer;
    return common_chat_templates_apply(t->ptr.get(), in).prompt;
}

size_t find_args(const std::string & text, size_t from, size_t i, size_t & len) {
    const std::string compact = json::parse(PROBE_ARGS[i]).dump();
    const size_t spaced = text.find(PROBE_ARGS[i], from);
    const size_t at = spaced != std::string::npos ? spaced : text.find(compact, from);
    len = spaced != std::string::npos ? PROBE_ARGS[i].size() : compact.size();
    return at;
}

// Text that ends a turn isn't part of a call.
std::string without_turn_end(const hearth_templates * t, const std::string & text, const std::string & turn_end) {
    std::string rest = text;
    if (rest.size() >= turn_end.size() && rest.compare(rest.size() - turn_end.size(), turn_end.size(), turn_end) == 0) {
        rest.resize(rest.size() - turn_end.size());
    }
    for (const auto & end : t->ends) {
        const size_t at = rest.find(end);
        if (at != std::string::npos) {
            rest.resize(at);
        }
    }
    const size_t last = rest.find_last_not_of(" \n\t\r");
    rest.resize(last == std::string::npos ? 0 : last + 1);
    return rest;
}

bool reads_calls(const std::string & text, const common_chat_parser_params & parser, size_t n) {
    const common_chat_msg msg = common_chat_parse(text, false, parser);
    if (msg.tool_calls.size() != n || msg.content.find_first_not_of(" \n\t\r") != std::string::npos) {
        return false;
    }
    for (size_t i = 0; i < n; ++i) {
        const auto & call = msg.tool_calls[i];
        if (call.name != PROBE_NAMES[i] || json::parse(call.arguments).dump() != json::parse(PROBE_ARGS[i]).dump()) {
            return false;
        }
    }
    return true;
}

// How the template writes calls, found by letting it write some: the texts before the first name ("head"), between name
// and arguments ("mid"), between calls ("sep", null where a second call is written otherwise) and after them ("tail").
// Null when the arguments don't stand there as JSON, or the template's own parser reads something else.
json shape_of(const hearth_templates * t, const common_chat_templates_inputs & in, const common_chat_params & p) {
    const common_chat_msg plain = probe_message("assistant", "hearth plain text", 0);
    const common_chat_msg one = probe_message("assistant", "", 1);
    const common_chat_msg two = probe_message("assistant", "", 2);
    std::string base = render_probe(t, in, nullptr);
    const std::string plain_text = render_probe(t, in, &plain);
    const size_t plain_at = plain_text.rfind(plain.content);
    const std::string turn_end = plain_at == std::string::npos ? "" : plain_text.substr(plain_at + plain.content.size());
    const std::string text = render_probe(t, in, &one);
    if (text.compare(0, base.size(), base) != 0 && !p.thinking_start_tag.empty()) {
        // The history leaves out the thinking that the prompt begins.
        const size_t at = base.rfind(p.thinking_start_tag);
        if (at != std::string::npos) {
            base.resize(at);
        }
    }
    if (text.compare(0, base.size(), base) != 0) {
        return json();
    }
    const size_t name = text.find(PROBE_NAMES[0], base.size());
    size_t args_len = 0;
    const size_t args = name == std::string::npos ? name : find_args(text, name, 0, args_len);
    if (args == std::string::npos) {
        return json();
    }
    std::string head = text.substr(base.size(), name - base.size());
    for (const auto & end : p.thinking_end_tags) {
        const size_t at = end.empty() ? std::string::npos : head.rfind(end);
        if (at != std::string::npos) {
            head = head.substr(at + end.size());
        }
    }
    head.erase(0, std::min(head.find_first_not_of(" \n\t\r"), head.size()));
    const std::string mid = text.substr(name + PROBE_NAMES[0].size(), args - name - PROBE_NAMES[0].size());
    const std::string tail = without_turn_end(t, text.substr(args + args_len), turn_end);
    const auto parser = parser_of(p, in);
    const std::string whole = head + PROBE_NAMES[0] + mid + PROBE_ARGS[0] + tail;
    if (mid.empty() || mid.find("hearth") != std::string::npos || !reads_calls(whole, *parser, 1)) {
        return json();
    }
    json shape = json::object();
    shape["head"] = head;
    shape["mid"] = mid;
    shape["sep"] = json();
    shape["tail"] = tail;
    try {
        const std::string both = render_probe(t, in, &two);
        const size_t first = find_args(both, base.size(), 0, args_len);
        const size_t second = first == std::string::npos ? first : both.find(PROBE_NAMES[1], first);
        if (second != std::string::npos) {
            const std::string sep = both.substr(first + args_len, second - first - args_len);
            if (!sep.empty() && reads_calls(head + PROBE_NAMES[0] + mid + PROBE_ARGS[0] + sep + PROBE_NAMES[1] + mid +
                                                PROBE_ARGS[1] + tail, *parser, 2)) {
                shape["sep"] = sep;
            }
        }
    } catch (const std::exception &) {
        // A template for single calls.
    }
    return shape;
}

// {"is_native": the template shows tools and writes calls, "shape"}.
json tool_format_of(const hearth_templates * t) {
    json j = json::object();
    j["is_native"] = false;
    j["shape"] = json();
    common_chat_templates_inputs in;
    in.messages = { probe_message("user", "hearth question", 0) };
    in.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    in.use_jinja = !t->is_named;
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    in.parallel_tool_calls = true;
    const std::string parameters = R"({"type":"object","properties":{"hearth_key":{"type":"string"}},"required":["hearth_key"]})";
    in.tools = { { PROBE_NAMES[0], "hearth", parameters }, { PROBE_NAMES[1], "hearth", parameters } };
    in.tool_choice = COMMON_CHAT_TOOL_CHOICE_AUTO;
    try {
        const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
        if (p.grammar.empty() || !p.grammar_lazy || p.grammar_triggers.empty() ||
            p.prompt.find(PROBE_NAMES[0]) == std::string::npos) {
            return j;
        }
        // Calls in the history must be shown too.
        const common_chat_msg one = probe_message("assistant", "", 1);
        j["is_native"] = render_probe(t, in, &one).rfind(PROBE_NAMES[0]) != p.prompt.rfind(PROBE_NAMES[0]);
        j["shape"] = shape_of(t, in, p);
    } catch (const std::exception &) {
        // What it can't do in this simplest case it can't do.
    }
    return j;
}

} // namespace

extern "C" {

int32_t hearth_templates_tool_format(hearth_templates * t, char ** out, char ** err) {
    return guard(err, [&] { *out = dup(tool_format_of(t).dump_safe()); });
}

int32_t hearth_tools_grammar(const char * request, char ** out, char ** err) {
    return guard(err, [&] {
        const json b = json::parse(request);
        const auto tools = tools_of(b.at("tools"));
        const auto literal = [&](const char * key) { return gbnf_format_literal(b.at(key).get<std::string>()); };
        *out = dup(build_grammar([&](const common_grammar_builder & builder) {
            std::string calls;
            for (const auto & tool : tools) {
                const auto schema = common_chat_schema_from_json(json::parse(convertible(tool.parameters)));
                const std::string args = builder.add_schema("tool-" + tool.name + "-schema", *schema.root);
                const std::string call = gbnf_format_literal(tool.name) + " " + literal("mid") + " " + args;
                calls += (calls.empty() ? "" : " | ") + builder.add_rule("tool-" + tool.name, call);
            }
            const std::string call = builder.add_rule("tool-call", calls);
            const bool more = b.at("parallel_tool_calls").get<bool>();
            builder.add_rule("root", literal("head") + " " + call + (more ? " (" + literal("sep") + " " + call + ")*" : "") +
                                         " " + literal("tail"));
        }));
    });
}

} // extern "C"
