"""Instructor: structured answers, with retries off, so that the server has to get them right. Usage: see check.py."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Annotated, Literal

import instructor
import openai
from check import DEMO, check, raised, run
from instructor.v2.core.errors import IncompleteOutputException
from pydantic import BaseModel, Field

HELLO = [{"role": "user", "content": "Say hello."}]
Text = Annotated[str, Field(min_length=1, max_length=8)]


class Weather(BaseModel):
    """The weather of a city."""

    city: Text


class Part(BaseModel):
    name: Text
    count: Annotated[int, Field(ge=3, le=17)]


class Thing(BaseModel):
    """A thing."""

    color: Literal["red", "blue"]
    parts: Annotated[list[Part], Field(min_length=1, max_length=2)]
    code: Annotated[str, Field(pattern="^[a-c]{2}[0-9]$")]
    kind: Literal["fixed"]
    note: Text | None


def of(mode, url=DEMO):
    return instructor.from_openai(openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0), mode=mode)


def ask(mode, form=Thing, url=DEMO, **more):
    known = {"model": "hearth-demo" if url == DEMO else "scripted", "messages": HELLO, "max_retries": 1, "response_model": form}
    return of(mode, url).create(**known | {"max_tokens": 800, "reasoning_effort": "none"} | more)


@check("JSON-02", "JSON-03", "JSON-09")
def a_schema_is_kept_at_the_first_try(url):
    for seed in range(5):
        thing = ask(instructor.Mode.JSON_SCHEMA, temperature=1, seed=seed)
        assert isinstance(thing, Thing) and list(thing.model_dump()) == ["color", "parts", "code", "kind", "note"]


@check("TOOL-04", "TOOL-11", "JSON-03")
def a_call_is_kept_at_the_first_try(url):
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
        for seed in range(3):
            assert isinstance(ask(mode, temperature=1, seed=seed), Thing), mode


@check("TOOL-08")
def several_calls_are_several_things(url):
    found = list(ask(instructor.Mode.PARALLEL_TOOLS, Iterable[Weather]))
    assert found and all(isinstance(one, Weather) for one in found)


@check("STRM-13")
def a_stream_of_partial_answers(url):
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = of(mode)
        pieces = client.create_partial(
            model="hearth-demo", messages=HELLO, response_model=Thing, max_retries=1, max_tokens=800, reasoning_effort="none"
        )
        assert isinstance(Thing.model_validate(list(pieces)[-1].model_dump()), Thing), mode


@check("JSON-04", on="scripted")
def json_mode_reads_what_was_said(url):
    class City(BaseModel):
        name: str

    said = [{"role": "user", "content": '{"name":"Rome"}'}]
    raw = openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0)
    client = instructor.from_openai(raw, mode=instructor.Mode.JSON)
    # It puts the schema into the messages: the model, which repeats the last one, repeats it.
    answer, whole = client.create_with_completion(model="scripted", messages=said, response_model=City, max_retries=1)
    assert answer.name == "Rome" and whole.usage.completion_tokens == 16


@check("JSON-07")
def an_answer_that_was_cut_is_told(url):
    raised(IncompleteOutputException, lambda: ask(instructor.Mode.JSON_SCHEMA, max_tokens=3))


@check("ERR-16")
def a_refusal_is_not_tried_again(url):
    error = raised(Exception, lambda: ask(instructor.Mode.TOOLS, temperature=-1))
    cause = error
    while cause is not None and not isinstance(cause, openai.BadRequestError):
        cause = cause.__cause__
    assert cause is not None and cause.param == "temperature", repr(error)


run("instructor", version("instructor"))
