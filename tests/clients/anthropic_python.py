"""Anthropic's Python client. Usage: see check.py."""

import asyncio
import json

import anthropic
from check import DEMO, check, raised, ready, run, twice


def at(url, **more):
    return anthropic.Anthropic(**{"base_url": url, "api_key": "unused", "max_retries": 0, "timeout": 60} | more)


client = at(DEMO)
HELLO = [{"role": "user", "content": "Say hello."}]
ASK = {"model": "claude-any", "max_tokens": 16, "messages": HELLO}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}


def scripted(url, text, **more):
    ask = {"model": "claude-any", "max_tokens": 200, "messages": [{"role": "user", "content": text}]}
    return at(url).messages.create(**ask | more)


def streamed(url, text, **more):
    """(events, final message) of the streaming helper."""
    ask = {"model": "claude-any", "max_tokens": 200, "messages": [{"role": "user", "content": text}]}
    with at(url).messages.stream(**ask | more) as stream:
        events = list(stream)
        return events, stream.get_final_message()


@check("MOD-01", "MOD-02")
def models_are_listed(url):
    first, *_ = client.models.list().data
    assert first.type == "model" and first.display_name and first.created_at.year > 2000
    assert client.models.retrieve(first.id).id == first.id


@check("ANTH-09")
def a_message_has_every_field_and_is_counted(url):
    message = client.messages.create(**ASK)
    assert message.type == "message" and message.role == "assistant" and message.id.startswith("msg_")
    assert message.stop_reason in ("end_turn", "max_tokens") and message._request_id.startswith("req_")
    usage = message.usage
    counted = client.messages.count_tokens(model="claude-x", messages=HELLO).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert 0 < usage.output_tokens <= 16


@check("ANTH-01", on="scripted")
def a_stop_sequence_is_told(url):
    message = scripted(url, "one two three", stop_sequences=["four", " two"])
    assert (message.stop_reason, message.stop_sequence, message.content[0].text) == ("stop_sequence", " two", "one")
    _, final = streamed(url, "one two three", stop_sequences=["four", " two"])
    assert (final.stop_reason, final.stop_sequence, final.content[0].text) == ("stop_sequence", " two", "one")


@check("ANTH-04", on="scripted")
def thinking_is_signed_and_taken_back(url):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    events, final = streamed(url, "/think deeply", thinking=thinking, max_tokens=2048)
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == "deeply" and final.content[0].signature and final.content[1].text == "ok"
    kinds = [event.type for event in events]
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")
    history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": final.content}, {"role": "user", "content": "y"}]
    assert scripted(url, "", messages=history).content[0].text == "y"


@check("ANTH-05", on="scripted")
def a_prefill_is_continued(url):
    prefill = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "Sure:"}]
    assert scripted(url, "", messages=prefill).content[0].text == "abc"


@check("ANTH-06", "FAULT-10", "FAULT-11")
def the_stream_helper_puts_it_together(url):
    with client.messages.stream(**ASK, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(block.text for block in final.content if block.type == "text") == text
    assert final.stop_reason in ("end_turn", "max_tokens") and final.usage.output_tokens > 0

    async def asynchronous():
        asked = anthropic.AsyncAnthropic(base_url=url, api_key="unused", max_retries=0)
        async with asked.messages.stream(**ASK, extra_body={"temperature": 0}) as stream:
            return await stream.get_final_text()

    assert asyncio.run(asynchronous()) == text


@check("STRM-03", "FAULT-11", on="scripted")
def the_message_starts_before_half_a_code_point(url):
    _, final = streamed(url, "/bytes 240 159 152 128")
    assert final.content[0].text == "😀"


@check("ANTH-07", "ANTH-11")
def errors_are_typed(url):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AQID"}}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AQID"}}
    for change, word in (
        ({"messages": [{"role": "user", "content": [image]}]}, "image"),
        ({"messages": [{"role": "user", "content": [pdf]}]}, "PDF"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 100_000}]}, "prompt is too long: "),
    ):
        for stream in (False, True):
            error = raised(anthropic.BadRequestError, lambda: client.messages.create(**ASK | change, stream=stream))
            assert error.body["error"]["type"] == "invalid_request_error" and error.request_id, error.body
            assert word.lower() in error.body["error"]["message"].lower(), error.body
    raised(anthropic.NotFoundError, lambda: client.messages.create(**ASK | {"model": "no-such-model"}))


@check("ANTH-13")
def our_own_message_is_taken_back(url):
    first = client.messages.create(**ASK)
    turns = HELLO + [{"role": "assistant", "content": first.content or "x"}, {"role": "user", "content": "And now?"}]
    results = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat"}]},
    ]
    for messages in (turns, HELLO + results):
        assert client.messages.create(**ASK | {"messages": messages}, tools=[TOOL]).type == "message"


@check("ANTH-13", "TOOL-08", "FAULT-10", on="scripted")
def two_calls_and_their_results(url):
    text = '/call look {"at":"a"}\n/call look {"at":"b"}'
    events, final = streamed(url, text, tools=[TOOL])
    calls = [block for block in final.content if block.type == "tool_use"]
    assert final.stop_reason == "tool_use" and [call.input for call in calls] == [{"at": "a"}, {"at": "b"}]
    starts = [event.index for event in events if event.type == "content_block_start"]
    assert starts == list(range(len(final.content))) and len({call.id for call in calls}) == 2
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "seen"} for call in calls]
    history = [{"role": "user", "content": "go"}, {"role": "assistant", "content": final.content}, {"role": "user", "content": results}]
    assert scripted(url, "", messages=history, tools=[TOOL]).type == "message"
    forced = scripted(url, "hm", tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert forced.stop_reason == "tool_use" and len(forced.content) == 1


@check("ANTH-14", "ERR-01", on="full")
def a_full_server_is_overloaded(url):
    ask = {"model": "claude-any", "max_tokens": 100_000, "messages": [{"role": "user", "content": "/forever"}], "stream": True}
    full = at(url)
    with full.messages.create(**ask) as first:
        next(iter(first))
        waiting = full.messages.create(**ask)
        error = raised(anthropic.APIStatusError, lambda: full.messages.create(**ask))
        assert error.status_code == 529 and error.body["error"]["type"] == "overloaded_error", error.body
        assert int(error.response.headers["retry-after"]) >= 1
        waiting.close()


@check("ANTH-14", "ERR-01", on="limited")
def a_caller_over_its_own_limit_is_told(url):
    error = raised(anthropic.RateLimitError, lambda: twice(lambda: scripted(url, "x")))
    assert error.body["error"]["type"] == "rate_limit_error" and int(error.response.headers["retry-after"]) >= 1


@check("STRM-09", on="crashing")
def a_crash_is_an_error(url):
    ready(url)
    error = raised(anthropic.APIStatusError, lambda: streamed(url, "/crash anthropic-python"))
    assert error.body["error"]["type"] == "api_error", error.body
    ready(url)


@check("ERR-06", on="keyed")
def either_header_carries_the_key(url):
    for key in ({"api_key": "sk-test"}, {"api_key": None, "auth_token": "sk-test"}):
        assert at(url, **key).models.list().data
    wrong = raised(anthropic.AuthenticationError, lambda: at(url, api_key="wrong").models.list())
    assert wrong.body["error"]["message"] and "wrong" not in json.dumps(wrong.body)


@check("CHAT-19", on="scripted")
def the_cached_part_is_told(url):
    text = "anthropic " * 80
    first, second = (scripted(url, text, max_tokens=4).usage for _ in range(2))
    total = lambda usage: usage.input_tokens + usage.cache_read_input_tokens
    assert second.cache_read_input_tokens > 500 and total(first) == total(second)


run("anthropic-python", anthropic.__version__)
