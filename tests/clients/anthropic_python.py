"""Anthropic's official Python client against a running hearth: python anthropic_python.py BASE_URL

What the model says does not matter. Exits 1 when a check fails. Rows of the wire contract are named (ANTH-, MOD-).
"""

import sys
import traceback

import anthropic

BASE_URL = sys.argv[1].rstrip("/")
client = anthropic.Anthropic(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=60)
HELLO = [{"role": "user", "content": "Say hello."}]
ASK = {"model": "claude-any", "max_tokens": 16, "messages": HELLO}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@check
def models_are_listed():
    """MOD-01"""
    assert len(client.models.list().data) >= 1


@check
def a_message_has_every_field_and_is_counted():
    """ANTH-09"""
    message = client.messages.create(**ASK)
    assert message.type == "message" and message.role == "assistant" and message.id.startswith("msg_")
    assert message.stop_reason in ("end_turn", "max_tokens") and message._request_id.startswith("req_")
    usage = message.usage
    counted = client.messages.count_tokens(model="claude-x", messages=HELLO).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert 0 < usage.output_tokens <= 16


@check
def the_stream_helper_puts_it_together():
    """ANTH-06"""
    with client.messages.stream(**ASK, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(block.text for block in final.content if block.type == "text") == text
    assert final.stop_reason in ("end_turn", "max_tokens") and final.usage.output_tokens > 0


@check
def errors_are_typed():
    """ANTH-07, ANTH-11"""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AQID"}}
    for change in (
        {"messages": [{"role": "user", "content": [image]}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"max_tokens": 0},
        {"messages": [{"role": "user", "content": "word " * 100_000}]},
    ):
        for stream in (False, True):
            try:
                client.messages.create(**ASK | change, stream=stream)
            except anthropic.BadRequestError as error:
                assert error.body["error"]["type"] == "invalid_request_error" and error.request_id, error.body
            else:
                raise AssertionError(f"{change} should be refused")
    try:
        client.messages.create(**ASK | {"model": "no-such-model"})
    except anthropic.NotFoundError:
        return
    raise AssertionError("an unknown model should be refused")


@check
def our_own_message_is_taken_back():
    """ANTH-13"""
    first = client.messages.create(**ASK)
    turns = HELLO + [{"role": "assistant", "content": first.content or "x"}, {"role": "user", "content": "And now?"}]
    results = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat"}]},
    ]
    for messages in (turns, HELLO + results):
        assert client.messages.create(**ASK | {"messages": messages}, tools=[TOOL]).type == "message"


failed = 0
for function in CHECKS:
    try:
        function()
    except Exception:
        failed += 1
        print(f"FAILED {function.__name__}")
        traceback.print_exc(file=sys.stdout)
print(f"{len(CHECKS) - failed} passed, {failed} failed (anthropic {anthropic.__version__})")
sys.exit(failed > 0)
