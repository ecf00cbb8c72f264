// What the shim's files about chat templates share.
#pragma once

#include "guard.h"

#include "chat.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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
    // Of tools: the grammar of calls, what starts it, and the parser of the answer.
    std::string grammar;
    bool lazy = false;
    std::vector<common_grammar_trigger> triggers;
    std::shared_ptr<const common_chat_parser_params> parser;
    size_t bytes = 0;
};

struct hearth_templates {
    common_chat_templates_ptr ptr;
    // The same template, for rendering without analysing it anew.
    std::unique_ptr<common_chat_template> tmpl;
    std::mutex mutex;
    // Plans by the options that make them; the one unused for longest goes when there are too many.
    std::map<std::string, std::shared_ptr<const chat_plan>> plans;
    std::map<std::string, uint64_t> uses;
    uint64_t clock = 0;
    size_t plan_bytes = 0;
    // The format is "thinking between tags, then text" or plain text: no parser is needed to read an answer without tools.
    bool is_simple = false;
    bool supports_thinking = false;
    // The template is a name: one of those that are written in llama.cpp, and not in Jinja.
    bool is_named = false;
    bool add_bos = false;
    bool add_eos = false;
    // Texts of the tokens that end a turn.
    std::vector<std::string> ends;
};

namespace hearth {

// [{"name", "description", "parameters"}] of a request.
std::vector<common_chat_tool> tools_of(const json & list);
// What the schema says of the arguments' names only, where llama.cpp can't make a grammar of all of it.
std::string convertible(const std::string & schema);
std::shared_ptr<const common_chat_parser_params> parser_of(const common_chat_params & p,
                                                           const common_chat_templates_inputs & in);

} // namespace hearth
