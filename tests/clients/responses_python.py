"""OpenAI's Python client: the Responses API. Usage: see check.py."""

import json

import openai
from asking import MODEL, at, client, refused
from check import check, ready, run
from pydantic import BaseModel


def ask(**extra):
    return client.responses.create(**{"model": MODEL, "input": "Say hello.", "max_output_tokens": 16, "temperature": 0} | extra)


@check()
def a_response_has_every_field(url):
    answer = ask(metadata={"k": "v"})
    assert answer.object == "response" and answer.model == MODEL and answer.id.startswith("resp_")
    assert answer.status in ("completed", "incomplete") and answer.metadata == {"k": "v"}
    assert isinstance(answer.output_text, str)
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens <= 16
    assert usage.input_tokens_details.cached_tokens <= usage.input_tokens


@check("FAULT-12", "FAULT-13")
def streamed_text_is_the_whole_text(url):
    events = list(ask(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0].response.output == [] and events[0].response.status == "in_progress"
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text == ask().output_text


@check()
def the_streaming_helper_puts_it_together(url):
    with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert "response.output_text.delta" in kinds or kinds[-1] == "response.completed", kinds


@check("RESP-07", "RESP-12")
def what_is_stored_can_be_gone_on_from(url):
    first = ask(instructions="Be brief.")
    again = client.responses.retrieve(first.id)
    assert again == first, (again, first)
    second = ask(previous_response_id=first.id)
    assert second.previous_response_id == first.id and second.instructions is None
    items = client.responses.input_items.list(second.id)
    assert [item.role for item in items.data] == ["user"] and items.data[0].id
    lost = [{"type": "item_reference", "id": "msg_none"}, {"role": "user", "content": "Again."}]
    refused(openai.NotFoundError, 404, "input", lambda: ask(input=lost))
    ask(input=[{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "Again."}])
    ask(input=[{"role": "user", "content": "Say hello."}, *first.output, {"role": "user", "content": "Again."}])
    client.responses.delete(first.id)
    refused(openai.NotFoundError, 404, None, lambda: client.responses.retrieve(first.id))
    refused(openai.BadRequestError, 400, "previous_response_id", lambda: ask(previous_response_id=first.id))
    refused(openai.BadRequestError, 400, None, lambda: client.responses.cancel(second.id))


@check()
def input_tokens_are_counted(url):
    counted = client.responses.input_tokens.count(model=MODEL, input="Say hello.")
    assert counted.input_tokens == ask().usage.input_tokens and counted.object == "response.input_tokens"


@check("RESP-04")
def hosted_tools_do_no_harm(url):
    ask(tools=[{"type": "web_search_preview"}])
    refused(
        openai.BadRequestError,
        400,
        "tool_choice",
        lambda: ask(tools=[{"type": "web_search_preview"}], tool_choice={"type": "web_search_preview"}),
    )


@check("RESP-08", "RESP-14")
def errors_are_typed(url):
    refused(openai.BadRequestError, 400, "conversation", lambda: ask(conversation="conv_1"))
    refused(openai.BadRequestError, 400, "prompt", lambda: ask(prompt={"id": "pmpt_1"}))
    unknown = lambda: ask(previous_response_id="resp_of_another_life")
    refused(openai.BadRequestError, 400, "previous_response_id", unknown, "previous_response_not_found")
    refused(openai.BadRequestError, 400, "background", lambda: ask(background=True))
    refused(openai.BadRequestError, 400, "temperature", lambda: ask(temperature=-1, stream=True))
    refused(openai.NotFoundError, 404, "model", lambda: ask(model="no-such-model"))
    error = refused(openai.BadRequestError, 400, "input", lambda: ask(input="word " * 200_000))
    assert error.code == "context_length_exceeded", error.code


class City(BaseModel):
    name: str


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
CUSTOM = {"type": "custom", "name": "apply_patch"}


def scripted(url, text, **extra):
    return at(url).responses.create(**{"model": "scripted", "input": text} | extra)


@check("JSON-02", on="scripted")
def parse_reads_a_schema(url):
    ask = {"model": "scripted", "input": '{"name":"Rome"}', "text_format": City}
    assert at(url).responses.parse(**ask).output_parsed == City(name="Rome")
    with at(url).responses.stream(**ask) as stream:
        assert stream.get_final_response().output_parsed == City(name="Rome")


@check("RESP-03", on="scripted")
def reasoning_comes_before_the_message(url):
    thought = scripted(url, "/think well")
    assert [item.type for item in thought.output] == ["reasoning", "message"]
    assert thought.output[0].content[0].text == "well" and thought.output_text == "ok"
    kinds = [event.type for event in scripted(url, "/think well", stream=True)]
    first = kinds.index("response.reasoning_text.delta")
    assert first < kinds.index("response.output_text.delta")


@check("TOOL-08", "RESP-07", on="scripted")
def functions_are_called_and_answered(url):
    call = scripted(url, '/call f {"a":1}', tools=[FUNCTION]).output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "f", {"a": 1})
    assert call.id != call.call_id and call.status == "completed"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "1"}
    assert scripted(url, [{"role": "user", "content": "x"}, call, result], tools=[FUNCTION]).status == "completed"
    with at(url).responses.stream(model="scripted", input='/call f {"a":1}\n/call f {"a":2}', tools=[FUNCTION]) as stream:
        final = stream.get_final_response()
    assert [item.arguments for item in final.output if item.type == "function_call"] == ['{"a":1}', '{"a":2}']


@check("RESP-10", on="scripted")
def a_custom_tool_gets_its_text(url):
    text = '/call apply_patch {"input":"a\\nb"}'
    with at(url).responses.stream(model="scripted", input=text, tools=[CUSTOM]) as stream:
        pieces = "".join(e.delta for e in stream if e.type == "response.custom_tool_call_input.delta")
        (call,) = stream.get_final_response().output
    assert pieces == call.input == "a\nb" and call.type == "custom_tool_call"


@check("RESP-11", on="crashing")
def a_failure_is_the_last_event(url):
    ready(url)
    events = list(scripted(url, f"/crash responses-python {openai.__version__}", stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.failed", events
    assert events[-1].response.status == "failed" and events[-1].response.error.code == "server_error"
    ready(url)


@check("RESP-13", on="scripted")
def three_hundred_responses_push_out_the_oldest(url):
    ids = [scripted(url, f"{i}").id for i in range(300)]
    stored = at(url)
    refused(openai.NotFoundError, 404, None, lambda: stored.responses.retrieve(ids[0]))
    assert stored.responses.retrieve(ids[-1]).output_text == "299"
    go_on = lambda: scripted(url, "more", previous_response_id=ids[0])
    refused(openai.BadRequestError, 400, "previous_response_id", go_on, "previous_response_not_found")


run("openai-python", openai.__version__)
