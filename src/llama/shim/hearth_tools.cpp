// Tools: how a template writes calls, and the grammars of calls.
#include "templates.h"

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
        msg.tool_calls.push_back({ PROBE_NAMES[i], PROBE_ARGS[i], "call00001" });
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

// Where the arguments of call `i` stand behind `from`, however they are laid out.
size_t find_args(const std::string & text, size_t from, size_t i, size_t & len) {
    const std::string wanted = json::parse(PROBE_ARGS[i]).dump();
    for (size_t at = text.find('{', from); at != std::string::npos; at = text.find('{', at + 1)) {
        const size_t end = text.find('}', at);
        if (end == std::string::npos) {
            break;
        }
        try {
            len = end + 1 - at;
            if (json::parse(text.substr(at, len)).dump() == wanted) {
                return at;
            }
        } catch (const std::exception &) {
            // Another brace.
        }
    }
    return std::string::npos;
}

const char * const SPACE = " \n\t\r";

std::string without_space_behind(const std::string & text) {
    const size_t last = text.find_last_not_of(SPACE);
    return text.substr(0, last == std::string::npos ? 0 : last + 1);
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
    return without_space_behind(rest);
}

bool parse_into(common_chat_msg & msg, const std::string & text, const common_chat_parser_params & parser) {
    try {
        msg = common_chat_parse(text, false, parser);
        return true;
    } catch (const std::exception &) {
        return false; // not of the format
    }
}

bool reads_calls(const std::string & text, const common_chat_parser_params & parser, size_t n) {
    common_chat_msg msg;
    if (!parse_into(msg, text, parser) || msg.tool_calls.size() != n ||
        msg.content.find_first_not_of(SPACE) != std::string::npos) {
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

// What may stand before an answer for the parser to read it: nothing, or a thought.
std::vector<std::string> leads(const common_chat_params & p) {
    std::vector<std::string> texts = { "" };
    for (const auto & end : p.thinking_end_tags) {
        texts.push_back("hearth thought" + end);
        texts.push_back(p.thinking_start_tag + "hearth thought" + end);
    }
    return texts;
}

// How the template writes calls: "head name mid arguments tail".
struct call_shape {
    std::string head, mid, tail;

    std::string write(size_t i) const { return head + PROBE_NAMES[i] + mid + PROBE_ARGS[i]; }
};

// The shape in `text`, where an answer begins behind `from`. False when the arguments don't stand there as JSON.
bool find_shape(const hearth_templates * t, const std::string & text, size_t from, const std::string & turn_end,
                const common_chat_params & p, call_shape & found) {
    const size_t name = text.find(PROBE_NAMES[0], from);
    size_t args_len = 0;
    const size_t args = name == std::string::npos ? name : find_args(text, name, 0, args_len);
    if (args == std::string::npos) {
        return false;
    }
    found.head = text.substr(from, name - from);
    for (const auto & end : p.thinking_end_tags) {
        const size_t at = end.empty() ? std::string::npos : found.head.rfind(end);
        if (at != std::string::npos) {
            found.head = found.head.substr(at + end.size());
        }
    }
    const size_t thought = p.thinking_start_tag.empty() ? std::string::npos : found.head.find(p.thinking_start_tag);
    if (thought != std::string::npos) {
        found.head = found.head.substr(thought + p.thinking_start_tag.size());
    }
    found.mid = text.substr(name + PROBE_NAMES[0].size(), args - name - PROBE_NAMES[0].size());
    found.tail = without_turn_end(t, text.substr(args + args_len), turn_end);
    return !found.mid.empty() && found.mid.find("hearth") == std::string::npos;
}

// Makes the shape one that the parser reads: white space before it is the template's, and marks behind it may be the
// turn's. `lead`: what has to stand before it.
bool settle_shape(call_shape & shape, const common_chat_params & p, const common_chat_parser_params & parser,
                  std::string & lead) {
    const size_t first = std::min(shape.head.find_first_not_of(SPACE), shape.head.size());
    for (const auto & head : { shape.head.substr(first), shape.head }) {
        std::string tail = shape.tail;
        while (true) {
            const call_shape tried = { head, shape.mid, tail };
            for (const auto & text : leads(p)) {
                if (reads_calls(text + tried.write(0) + tail, parser, 1)) {
                    shape = tried;
                    lead = text;
                    return true;
                }
            }
            const size_t cut = tail.rfind('<');
            if (cut == std::string::npos) {
                break;
            }
            tail = without_space_behind(tail.substr(0, cut));
        }
    }
    return false;
}

// gpt-oss writes calls in the commentary channel, and reads them there; its template puts them into the role.
const call_shape HARMONY = { "<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "" };

// The shape of calls, found by letting the template write some, with the text between calls ("sep", null where a second
// call is written otherwise), and whether the template's own parser reads it. Null when it can't be found.
json shape_of(const hearth_templates * t, const common_chat_templates_inputs & in, const common_chat_params & p) {
    const common_chat_msg plain = probe_message("assistant", "hearth plain text", 0);
    const common_chat_msg one = probe_message("assistant", "", 1);
    const common_chat_msg two = probe_message("assistant", "", 2);
    const std::string plain_text = render_probe(t, in, &plain);
    const size_t plain_at = std::min(plain_text.rfind(plain.content), plain_text.size());
    const std::string turn_end = plain_text.substr(std::min(plain_at + plain.content.size(), plain_text.size()));
    const std::string text = render_probe(t, in, &one);
    std::vector<std::string> bases = { render_probe(t, in, nullptr), plain_text.substr(0, plain_at) };
    const size_t thought = p.thinking_start_tag.empty() ? std::string::npos : bases[0].rfind(p.thinking_start_tag);
    if (thought != std::string::npos) {
        bases.push_back(bases[0].substr(0, thought)); // the history leaves out the thinking that the prompt begins
    }
    const auto parser = parser_of(p, in);
    call_shape shape = HARMONY;
    call_shape unread;
    std::string lead;
    size_t from = 0;
    bool is_read = settle_shape(shape, p, *parser, lead);
    for (size_t i = 0; i < bases.size() && !is_read; ++i) {
        if (text.compare(0, bases[i].size(), bases[i]) == 0 && find_shape(t, text, bases[i].size(), turn_end, p, shape)) {
            from = bases[i].size();
            unread = unread.mid.empty() ? shape : unread;
            is_read = settle_shape(shape, p, *parser, lead);
        }
    }
    if (!is_read) {
        shape = unread;
        shape.head.erase(0, std::min(shape.head.find_first_not_of(SPACE), shape.head.size()));
    }
    if (shape.mid.empty()) {
        return json();
    }
    json j = json::object();
    j["is_read"] = is_read;
    j["head"] = shape.head;
    j["mid"] = shape.mid;
    j["sep"] = json();
    j["tail"] = shape.tail;
    try {
        const std::string both = from == 0 ? "" : render_probe(t, in, &two);
        size_t args_len = 0;
        const size_t first = find_args(both, std::min(from, both.size()), 0, args_len);
        const size_t second = first == std::string::npos ? first : both.find(PROBE_NAMES[1], first);
        if (second != std::string::npos) {
            const std::string sep = both.substr(first + args_len, second - first - args_len);
            const call_shape next = { sep, shape.mid, shape.tail };
            if (!sep.empty() && is_read && reads_calls(lead + shape.write(0) + next.write(1) + shape.tail, *parser, 2)) {
                j["sep"] = sep;
            }
        }
    } catch (const std::exception &) {
        // A template for single calls.
    }
    return j;
}

common_chat_templates_inputs probe_inputs(const hearth_templates * t) {
    common_chat_templates_inputs in;
    in.messages = { probe_message("user", "hearth question", 0) };
    in.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    in.use_jinja = !t->is_named;
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    in.parallel_tool_calls = true;
    return in;
}

// {"is_native": the template shows tools and writes calls, "shape", "starts": texts that begin a call}.
json tool_format_of(const hearth_templates * t) {
    json j = json::object();
    j["is_native"] = false;
    j["shape"] = json();
    j["starts"] = json::array();
    common_chat_templates_inputs in = probe_inputs(t);
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
        for (const auto & trigger : p.grammar_triggers) {
            // Some name the tool: what comes before the name begins a call of any.
            const size_t n = std::min(trigger.value.find(PROBE_NAMES[0]), trigger.value.find(PROBE_NAMES[1]));
            if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
                j["starts"].push_back(trigger.value.substr(0, std::min(n, trigger.value.size())));
            }
        }
        j["shape"] = shape_of(t, in, p);
    } catch (const std::exception &) {
        // What it can't do in this simplest case it can't do.
    }
    return j;
}

// How a plain answer is written where it isn't plain text: the text before it ("head"), the same behind a thought
// ("after_thought", null where the template's parser reads no thought), and the text behind it ("tail"). Null when the
// template's own parser reads no answer so.
json frame_of(const hearth_templates * t) {
    const common_chat_templates_inputs in = probe_inputs(t);
    const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
    const auto parser = parser_of(p, in);
    common_chat_msg answer = probe_message("assistant", "hearth plain text", 0);
    std::vector<std::string> heads = { "" };
    std::vector<std::string> tails = { "" };
    const auto learn = [&](const std::string & text, size_t from) {
        const size_t at = text.rfind(answer.content);
        if (at == std::string::npos || at < from) {
            return;
        }
        heads.push_back(text.substr(from, at - from));
        std::string tail = text.substr(at + answer.content.size());
        for (size_t cut = tail.find('<'); cut != std::string::npos; cut = tail.find('<', cut + 1)) {
            tails.push_back(without_space_behind(tail.substr(0, cut)));
        }
    };
    const std::string text = render_probe(t, in, &answer);
    if (text.compare(0, p.prompt.size(), p.prompt) == 0) {
        learn(text, p.prompt.size());
    }
    answer.reasoning_content = "hearth thought";
    std::string thoughtful = render_probe(t, in, &answer);
    const size_t thought = thoughtful.rfind(answer.reasoning_content);
    for (const auto & end : p.thinking_end_tags) {
        const size_t at = thought == std::string::npos || end.empty() ? std::string::npos : thoughtful.find(end, thought);
        if (at != std::string::npos) {
            learn(thoughtful, at + end.size());
        }
    }
    const auto reads = [&](const std::string & before, const std::string & after, bool thinks) {
        common_chat_msg msg;
        return parse_into(msg, before + PROBE_ARGS[0] + after, *parser) && msg.content == PROBE_ARGS[0] &&
               msg.reasoning_content.empty() != thinks;
    };
    json j = json::object();
    j["head"] = json();
    j["after_thought"] = json();
    for (const auto & tail : tails) {
        for (const auto & head : heads) {
            if (j["head"].is_null() && reads(head, tail, false)) {
                j["head"] = head;
            }
            for (const auto & lead : leads(p)) {
                if (j["after_thought"].is_null() && !lead.empty() && reads(lead + head, tail, true)) {
                    j["after_thought"] = head;
                }
            }
        }
        if (!j["head"].is_null() || !j["after_thought"].is_null()) {
            j["tail"] = tail;
            return j;
        }
    }
    return json();
}

} // namespace

extern "C" {

int32_t hearth_templates_tool_format(hearth_templates * t, char ** out, char ** err) {
    return guard(err, [&] { *out = dup(tool_format_of(t).dump_safe()); });
}

int32_t hearth_templates_answer_frame(hearth_templates * t, char ** out, char ** err) {
    return guard(err, [&] { *out = dup(t->is_simple ? "null" : frame_of(t).dump_safe()); });
}

} // extern "C"
