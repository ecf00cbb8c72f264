"""The official Python client's Responses API against a running hearth: python responses_python.py BASE_URL

What the model says does not matter. Exits 1 when a check fails. Rows of the wire contract are named where a check holds one.
"""

import json
import sys
import traceback

import openai

BASE_URL = sys.argv[1].rstrip("/")
client = openai.OpenAI(base_url=BASE_URL + "/v1", api_key="unused", max_retries=0, timeout=60)
MODEL = client.models.list().data[0].id
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def ask(**extra):
    return client.responses.create(**{"model": MODEL, "input": "Say hello.", "max_output_tokens": 16, "temperature": 0} | extra)


def raises(kind, status, param, call):
    try:
        call()
    except kind as error:
        assert (error.status_code, error.param) == (status, param), (error.status_code, error.param)
        return error
    raise AssertionError(f"{kind.__name__} expected")


@check
def a_response_has_every_field():
    answer = ask(metadata={"k": "v"})
    assert answer.object == "response" and answer.model == MODEL and answer.id.startswith("resp_")
    assert answer.status in ("completed", "incomplete") and answer.metadata == {"k": "v"}
    assert isinstance(answer.output_text, str)
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens <= 16
    assert usage.input_tokens_details.cached_tokens <= usage.input_tokens


@check
def streamed_text_is_the_whole_text():
    events = list(ask(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text == ask().output_text


@check
def the_streaming_helper_puts_it_together():
    with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert "response.output_text.delta" in kinds or kinds[-1] == "response.completed", kinds


@check
def what_is_stored_can_be_gone_on_from():
    """RESP-12, RESP-07"""
    first = ask(instructions="Be brief.")
    again = client.responses.retrieve(first.id)
    assert again == first, (again, first)
    second = ask(previous_response_id=first.id)
    assert second.previous_response_id == first.id and second.instructions is None
    items = client.responses.input_items.list(second.id)
    assert [item.role for item in items.data] == ["user"] and items.data[0].id
    ask(input=[{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "Again."}])
    ask(input=[{"role": "user", "content": "Say hello."}, *first.output, {"role": "user", "content": "Again."}])
    client.responses.delete(first.id)
    raises(openai.NotFoundError, 404, None, lambda: client.responses.retrieve(first.id))
    raises(openai.BadRequestError, 400, "previous_response_id", lambda: ask(previous_response_id=first.id))
    raises(openai.BadRequestError, 400, None, lambda: client.responses.cancel(second.id))


@check
def input_tokens_are_counted():
    counted = client.responses.input_tokens.count(model=MODEL, input="Say hello.")
    assert counted.input_tokens == ask().usage.input_tokens and counted.object == "response.input_tokens"


@check
def hosted_tools_do_no_harm():
    """RESP-04"""
    ask(tools=[{"type": "web_search_preview"}])
    raises(
        openai.BadRequestError,
        400,
        "tool_choice",
        lambda: ask(tools=[{"type": "web_search_preview"}], tool_choice={"type": "web_search_preview"}),
    )


@check
def errors_are_typed():
    """RESP-08"""
    raises(openai.BadRequestError, 400, "conversation", lambda: ask(conversation="conv_1"))
    raises(openai.BadRequestError, 400, "background", lambda: ask(background=True))
    raises(openai.BadRequestError, 400, "temperature", lambda: ask(temperature=-1, stream=True))
    raises(openai.NotFoundError, 404, "model", lambda: ask(model="no-such-model"))
    error = raises(openai.BadRequestError, 400, "input", lambda: ask(input="word " * 200_000))
    assert error.code == "context_length_exceeded", error.code


def scripted():
    """Checks that need to know what the model says: against `hearth serve scripted:`."""
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    tools = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}]
    custom = [{"type": "custom", "name": "apply_patch"}]
    parsed = client.responses.parse(model=MODEL, input='{"name":"Rome"}', text_format=City)
    assert parsed.output_parsed == City(name="Rome"), parsed
    with client.responses.stream(model=MODEL, input='{"name":"Rome"}', text_format=City) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == City(name="Rome")
    thought = ask(input="/think well", max_output_tokens=100)
    assert [item.type for item in thought.output] == ["reasoning", "message"]
    assert thought.output[0].content[0].text == "well"
    call = ask(input='/call f {"a":1}', tools=tools, max_output_tokens=500).output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "f", {"a": 1})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "1"}
    assert ask(input=[{"role": "user", "content": "x"}, call, result], tools=tools).status == "completed"
    with client.responses.stream(model=MODEL, input='/call f {"a":1}', tools=tools) as stream:
        final = stream.get_final_response()
    assert final.output[0].arguments == '{"a":1}'
    with client.responses.stream(model=MODEL, input='/call apply_patch {"input":"a\\nb"}', tools=custom) as stream:
        pieces = "".join(e.delta for e in stream if e.type == "response.custom_tool_call_input.delta")
    assert pieces == "a\nb"


def main():
    if MODEL == "scripted":
        CHECKS.append(scripted)
    failed = 0
    for function in CHECKS:
        try:
            function()
        except Exception:
            failed += 1
            print(f"FAILED {function.__name__}", file=sys.stderr)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
