"""OpenAI's Python client: chats, whole and streamed, with tools and with schemas. Usage: see check.py."""

import enum
import json
import time
from typing import Annotated

import openai
from asking import HELLO, MODEL, at, chat, client, refused, user
from check import check, raised, run
from pydantic import BaseModel, Field

PARAMETERS = {
    "type": "object",
    "$schema": "http://json-schema.org/draft-07/schema#",
    "properties": {
        "city": {"type": "string", "maxLength": 12, "default": "Rome"},
        "unit": {"anyOf": [{"enum": ["C", "F"]}, {"type": "null"}]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


class Color(enum.Enum):
    red = "red"
    blue = "blue"


# Bounded, so that whatever a model says ends.
Text = Annotated[str, Field(max_length=8)]


class Part(BaseModel):
    name: Text | None
    count: Annotated[int, Field(ge=0, le=99)]


class Thing(BaseModel):
    color: Color
    parts: Annotated[list[Part], Field(max_length=3)]
    note: Text | None


def scripted(url, text, **more):
    return at(url).chat.completions.create(**{"model": "scripted", "messages": user(text)} | more)


@check()
def a_chat_has_every_field(url):
    answer = chat()
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    (choice,) = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant"
    assert isinstance(choice.message.content, str) and choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 16 and usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    one, two = (chat(seed=7, temperature=1).choices[0].message.content for _ in range(2))
    assert one == two


@check("CHAT-02")
def null_is_not_given(url):
    fields = ["max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "tools", "tool_choice"]
    fields += ["response_format", "logprobs", "top_logprobs", "logit_bias", "user", "metadata", "reasoning_effort"]
    nulls = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=4, extra_body=dict.fromkeys(fields))
    assert nulls.usage.completion_tokens <= 4


@check("FAULT-01", "FAULT-02", "FAULT-05")
def streamed_text_is_the_whole_text(url):
    whole = chat().choices[0].message.content
    chunks = list(chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finishes[-1] in ("stop", "length") and finishes[:-1] == [None] * (len(chunks) - 1)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    asked = list(chat(stream=True, stream_options={"include_usage": True}))
    assert asked[-1].choices == [] and asked[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in asked[:-1])


@check("STRM-03", "CHAT-20", on="scripted")
def a_code_point_in_pieces_comes_whole(url):
    stream = scripted(url, "/bytes 240 159 152 128 33", stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "😀!"
    for text in ("😀", "e\u0301a\u0308", "👩‍👩‍👧 \u202e ﷽"):
        assert scripted(url, text).choices[0].message.content == text


@check("STRM-10", on="scripted")
def no_part_of_a_stop_string_leaks(url):
    chunks = list(scripted(url, "Thought: x\nObservation: y", stop=["\nObservation:"], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Thought: x"
    assert chunks[-1].choices[0].finish_reason == "stop"


@check("STRM-11")
def log_probabilities_spell_the_content(url):
    answer = chat(logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert bytes(b for entry in entries for b in entry.bytes).decode() == answer.choices[0].message.content
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    for chunk in chat(logprobs=True, top_logprobs=2, stream=True):
        choice = chunk.choices[0]
        if choice.delta.content:
            told = bytes(b for entry in choice.logprobs.content for b in entry.bytes).decode()
            assert told == choice.delta.content
    refused(openai.BadRequestError, 400, "top_logprobs", lambda: chat(top_logprobs=2))


@check("STRM-12", on="scripted")
def thinking_comes_first_and_apart(url):
    kinds = []
    for chunk in scripted(url, "/think hard", stream=True):
        delta = chunk.choices[0].delta.to_dict()
        kinds += [key for key in ("reasoning_content", "content") if delta.get(key)]
        assert not (delta.get("reasoning_content") and delta.get("content"))
    assert "reasoning_content" in kinds and kinds == sorted(kinds, reverse=True), kinds
    message = scripted(url, "/think hard").choices[0].message
    assert (message.reasoning_content, message.content) == ("hard", "ok")


@check("STRM-13", "FAULT-03")
def the_helper_reads_four_choices_of_a_schema(url):
    ask = {"model": MODEL, "messages": HELLO, "n": 4, "seed": 3, "reasoning_effort": "none", "response_format": Thing}
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2, 3]
    assert all(isinstance(choice.message.parsed, Thing) for choice in final.choices), final


@check("STRM-15")
def obfuscation_is_ignored(url):
    chunks = list(chat(stream=True, stream_options={"include_obfuscation": True}))
    assert all("obfuscation" not in chunk.to_dict() for chunk in chunks)


@check("CHAT-04", "CHAT-05", "CHAT-06")
def messages_in_every_form(url):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]}]
    assert chat(messages=parts).usage.prompt_tokens == chat().usage.prompt_tokens
    answer = chat().choices[0].message.to_dict()
    chat(messages=HELLO + [answer | {"audio": None, "reasoning_content": "hm"}, {"role": "user", "content": "Again."}])
    developer = {"role": "developer", "content": "Be brief."}
    system = developer | {"role": "system"}
    for messages in ([developer, *HELLO], [*HELLO, system], HELLO * 2, [{"role": "assistant", "content": "Hi."}, *HELLO], [system]):
        assert chat(messages=messages, max_tokens=2).choices[0].message.role == "assistant"


@check("CHAT-12")
def each_reasoning_effort(url):
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        assert chat(reasoning_effort=effort, max_tokens=2).choices
    refused(openai.BadRequestError, 400, "reasoning_effort", lambda: chat(reasoning_effort="hugely"))


@check("CHAT-14", "CHAT-16")
def what_is_no_text_is_refused_by_name(url):
    image = lambda where: {"type": "image_url", "image_url": {"url": where}}
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    file = {"type": "file", "file": {"file_id": "file-1"}}
    for part in (image("data:image/png;base64,iVBORw0KGgo="), image("http://127.0.0.1:9/x.png"), sound, file):
        messages = [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]
        refused(openai.BadRequestError, 400, "messages[0].content[1]", lambda: chat(messages=messages))
    refused(openai.BadRequestError, 400, "modalities", lambda: chat(modalities=["text", "audio"], audio={"voice": "a", "format": "wav"}))
    refused(openai.BadRequestError, 400, "web_search_options", lambda: chat(web_search_options={}))


@check("CHAT-19", on="scripted")
def a_prompt_seen_before_is_cached(url):
    text = f"{time.time()} " + "once more " * 100
    first, second = (scripted(url, text, max_tokens=8) for _ in range(2))
    assert second.usage.prompt_tokens_details.cached_tokens > 500 > first.usage.prompt_tokens_details.cached_tokens
    assert first.choices[0].message.content == second.choices[0].message.content


@check()
def the_streaming_helper_puts_it_together(url):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=16, temperature=0) as stream:
        final = None
        for event in stream:
            if event.type == "content.done":
                final = event.content
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == (final or "")


@check("FAULT-03")
def several_choices_in_order(url):
    assert [choice.index for choice in chat(n=3, seed=1).choices] == [0, 1, 2]
    seen = [chunk.choices[0].index for chunk in chat(n=2, seed=1, stream=True)]
    assert set(seen) == {0, 1} and seen[:2] == [0, 1]


@check("TOOL-02", "TOOL-11")
def an_offered_tool_is_a_call_or_text(url):
    for seed in range(8):
        choice = chat(tools=[WEATHER], temperature=1, seed=seed, max_tokens=60).choices[0]
        assert "<tool_call>" not in (choice.message.content or "")
        for call in choice.message.tool_calls or []:
            assert choice.finish_reason in ("tool_calls", "length")
            if choice.finish_reason == "tool_calls":
                assert set(json.loads(call.function.arguments)) == {"city", "unit"}


@check("TOOL-04", "FAULT-08")
def a_strict_call_validates(url):
    tool = openai.pydantic_function_tool(Thing, name="keep")
    answer = client.chat.completions.parse(
        model=MODEL, messages=HELLO, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=1, max_tokens=800
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.id.startswith("call_") and isinstance(call.function.parsed_arguments, Thing)
    named = chat(tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "now"}}, max_tokens=60).choices[0]
    assert named.finish_reason == "tool_calls" and {call.function.name for call in named.message.tool_calls} == {"now"}


@check("TOOL-05", on="scripted")
def forty_tools_are_cached(url):
    described = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "x" * 40} for i in range(4)}}
    tools = [{"type": "function", "function": {"name": f"tool{i}", "parameters": described}} for i in range(40)]
    first, second = (scripted(url, "words " * 50, tools=tools) for _ in range(2))
    assert second.usage.prompt_tokens_details.cached_tokens > 0 and first.choices[0].finish_reason == "stop"


@check("TOOL-07", "FAULT-18", on="scripted")
def a_call_that_was_cut_is_no_fault(url):
    for limit in (3, 12, 30, 45):
        choice = scripted(url, '/call weather {"city":"Rome","unit":"C"}', tools=[WEATHER], max_tokens=limit).choices[0]
        assert choice.finish_reason == "length", choice
    broken = scripted(url, '<tool_call>{"name": "weather", "argu', tools=[WEATHER]).choices[0]
    assert broken.finish_reason == "stop" and "weather" in broken.message.content


@check("TOOL-08", "FAULT-07", "FAULT-08", on="scripted")
def two_calls_are_streamed_one_after_the_other(url):
    text = '/call weather {"city":"Rome","unit":null}\n/call now {}'
    chunks = list(scripted(url, text, tools=[WEATHER, TIME], stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    indexes = [delta.index for delta in deltas]
    assert indexes == sorted(indexes) and set(indexes) == {0, 1}
    ids = [delta.id for delta in deltas if delta.id]
    assert len(ids) == len(set(ids)) == 2 and [d.function.name for d in deltas if d.function.name] == ["weather", "now"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    with at(url).chat.completions.stream(model="scripted", messages=user(text), tools=[WEATHER, TIME]) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Rome", "unit": None}),
        ("now", {}),
    ]


@check("TOOL-09", on="scripted")
def functions_of_old(url):
    old = [WEATHER["function"]]
    choice = scripted(url, '/call weather {"city":"Rome","unit":"C"}', functions=old, function_call="auto").choices[0]
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert json.loads(choice.message.function_call.arguments)["city"] == "Rome"


@check("TOOL-10")
def bad_tools_are_refused_by_place(url):
    function = lambda **fields: {"type": "function", "function": fields}
    for tool in (
        function(name="a", parameters={"type": "no-such-type"}),
        function(description="nameless"),
        {"type": "teleport", "teleport": {}},
    ):
        refused(openai.BadRequestError, 400, "tools[1]", lambda: chat(tools=[WEATHER, tool]))
    refused(openai.BadRequestError, 400, "tools[1]", lambda: chat(tools=[WEATHER, WEATHER]))


@check("TOOL-12")
def a_call_without_arguments_in_the_history(url):
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}
    history = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    history += [{"role": "tool", "tool_call_id": "call_1", "content": "noon"}]
    assert chat(messages=history, tools=[TIME]).choices


@check("JSON-02", "JSON-09")
def parse_reads_nested_models(url):
    for seed in range(4):
        ask = {"model": MODEL, "messages": HELLO, "seed": seed, "reasoning_effort": "none"}
        message = client.chat.completions.parse(**ask, response_format=Thing).choices[0].message
        assert isinstance(message.parsed, Thing)
        assert list(json.loads(message.content)) == ["color", "parts", "note"]


def shaped(schema, **more):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = chat(response_format=form, temperature=1, max_tokens=300, reasoning_effort="none", **more).choices[0]
    assert answer.finish_reason == "stop", answer
    return json.loads(answer.message.content)


@check("JSON-03")
def bounds_hold(url):
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 3, "maximum": 17},
            "list": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
            "kind": {"const": "fixed"},
            "code": {"type": "string", "pattern": "^[a-c]{2}[0-9]$"},
        },
        "required": ["n", "list", "kind", "code"],
        "additionalProperties": False,
    }
    for seed in range(6):
        found = shaped(schema, seed=seed)
        assert 3 <= found["n"] <= 17 and 2 <= len(found["list"]) <= 3 and set(found["list"]) <= {1, 2}
        code = found["code"]
        assert found["kind"] == "fixed" and len(code) == 3 and set(code[:2]) <= set("abc") and code[2].isdigit()


@check("JSON-04")
def json_object_with_a_schema_beside_it(url):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_object", "schema": schema}
    answer = chat(extra_body={"response_format": form}, max_tokens=100).choices[0]
    assert answer.finish_reason == "stop" and json.loads(answer.message.content)["a"] in (1, 2)


@check("JSON-06")
def a_schema_beside_tools_gives_one_of_the_two(url):
    for seed in range(4):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
        choice = chat(response_format=form, tools=[TIME], temperature=1, seed=seed, max_tokens=200).choices[0]
        if choice.message.tool_calls:
            assert all(json.loads(call.function.arguments) == {} for call in choice.message.tool_calls)
        elif choice.finish_reason == "stop":
            assert json.loads(choice.message.content) in ("yes", "no")


@check("JSON-07")
def a_schema_that_was_cut_is_told_by_the_client(url):
    parse = lambda: client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Thing, max_tokens=5)
    error = raised(openai.LengthFinishReasonError, parse)
    assert error.completion.usage.completion_tokens == 5


@check("JSON-08")
def a_large_schema_is_soon_compiled_or_refused(url):
    words = {"enum": [f"value {i}" for i in range(3_000)]}
    schema = {"type": "object", "properties": {f"p{i}": words if i == 0 else {"type": "integer"} for i in range(200)}}
    form = {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}
    started = time.monotonic()
    try:
        assert chat(response_format=form, max_tokens=1).choices
    except openai.BadRequestError as error:
        assert error.param.startswith("response_format")
    assert time.monotonic() - started < 20


run("openai-python", openai.__version__)
