"""LangChain's OpenAI package (ChatOpenAI, OpenAI, OpenAIEmbeddings). Usage: see check.py."""

import asyncio
from importlib.metadata import version
from typing import Literal

import openai
from check import DEMO, check, raised, ready, run, twice
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

SHARED = {"api_key": "unused", "max_retries": 0}


def chat(url=DEMO, **more):
    model = "hearth-demo" if url == DEMO else "scripted"
    return ChatOpenAI(**SHARED | {"base_url": url + "/v1", "model": model, "temperature": 0, "timeout": 60} | more)


@tool
def weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    """The weather of a city."""
    return f"{city} {unit}"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    rank: int = Field(ge=0, le=99)


@check("CHAT-02")
def an_answer_has_its_text_and_usage(url):
    answer = chat(max_tokens=16).invoke("Say hello.")
    assert answer.content and answer.response_metadata["finish_reason"] in ("stop", "length")
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] and usage["output_tokens"] <= 16
    nulls = chat(max_tokens=4, extra_body={"stop": None, "tools": None, "seed": None, "response_format": None, "n": None})
    assert nulls.invoke("Say hello.").content


@check()
def streamed_text_is_the_whole_text(url):
    whole = chat(max_tokens=16).invoke("Say hello.").content
    chunks = list(chat(max_tokens=16, stream_usage=True).stream("Say hello."))
    assert "".join(chunk.content for chunk in chunks) == whole
    total = sum(chunks[1:], chunks[0])
    assert total.usage_metadata["output_tokens"] > 0 and total.response_metadata["finish_reason"] in ("stop", "length")


@check("STRM-10", on="scripted")
def a_stop_string_of_an_agent(url):
    text = "Thought: x\nObservation: y"
    assert chat(url).invoke(text, stop=["\nObservation:"]).content == "Thought: x"
    assert "".join(chunk.content for chunk in chat(url).stream(text, stop=["\nObservation:"])) == "Thought: x"


@check("CHAT-18", on="scripted")
def a_batch_does_not_mix(url):
    texts = [f"number {i} of sixteen" for i in range(16)]
    assert [answer.content for answer in chat(url).batch(texts)] == texts
    several = asyncio.run(chat(url).abatch(texts))
    assert len({answer.response_metadata["id"] for answer in several}) == 16


@check("CHAT-05", "TOOL-12", on="scripted")
def histories_go_there_and_back(url):
    bound = chat(url).bind_tools([weather])
    asked = [SystemMessage("Be brief."), HumanMessage('/call weather {"city":"Rome","unit":"C"}')]
    answer = bound.invoke(asked)
    (call,) = answer.tool_calls
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert bound.invoke([*asked, answer, result, HumanMessage("and now?")]).content == "and now?"
    bare = AIMessage("", tool_calls=[{"name": "weather", "args": {}, "id": "call_1"}])
    assert bound.invoke([HumanMessage("x"), bare, ToolMessage("ok", tool_call_id="call_1"), SystemMessage("late"), HumanMessage("y")]).content == "y"


@check("TOOL-04", "TOOL-11", "FAULT-08")
def a_required_call_comes(url):
    for choice in ("any", "weather", "required"):
        answer = chat(max_tokens=300).bind_tools([weather], tool_choice=choice).invoke("Say hello.")
        assert answer.tool_calls and not answer.invalid_tool_calls, answer
        assert answer.tool_calls[0]["name"] == "weather" and isinstance(answer.tool_calls[0]["args"]["city"], str)
        assert answer.response_metadata["finish_reason"] == "tool_calls"


@check("TOOL-08", on="scripted")
def streamed_calls_add_up(url):
    text = '/call weather {"city":"Rome","unit":"C"}\n/call weather {"city":"Oslo","unit":"F"}'
    chunks = list(chat(url).bind_tools([weather]).stream(text))
    calls = sum(chunks[1:], chunks[0]).tool_calls
    assert [call["args"] for call in calls] == [{"city": "Rome", "unit": "C"}, {"city": "Oslo", "unit": "F"}]
    assert calls[0]["id"] != calls[1]["id"]


@check("JSON-02", "JSON-03")
def structured_output_is_parsed(url):
    for method in ("json_schema", "function_calling"):
        found = chat(max_tokens=300, reasoning_effort="none").with_structured_output(City, method=method).invoke("Say hello.")
        assert isinstance(found, City), (method, found)


@check("JSON-04", on="scripted")
def json_mode_is_parsed(url):
    assert chat(url).with_structured_output(City, method="json_mode").invoke('{"name":"Rome","rank":1}') == City(name="Rome", rank=1)


@check("JSON-07")
def a_schema_that_was_cut_is_told(url):
    raised(openai.LengthFinishReasonError, lambda: chat(max_tokens=3).with_structured_output(City, method="json_schema").invoke("x"))


@check("STRM-11")
def log_probabilities(url):
    answer = chat(max_tokens=8, logprobs=True, top_logprobs=2).invoke("Say hello.")
    entries = answer.response_metadata["logprobs"]["content"]
    assert bytes(b for entry in entries for b in entry["bytes"]).decode() == answer.content


@check("COMP-05")
def errors_are_typed(url):
    raised(openai.NotFoundError, lambda: chat(model="no-such-model").invoke("x"))
    raised(openai.BadRequestError, lambda: chat(temperature=-1).invoke("x"))
    error = raised(ContextOverflowError, lambda: chat().invoke("word " * 10_000))
    assert "maximum context length is" in str(error)
    raised(ContextOverflowError, lambda: chat(use_responses_api=True).invoke("word " * 10_000))


@check("COMP-01")
def completions(url):
    llm = OpenAI(**SHARED, base_url=url + "/v1", model="hearth-demo", temperature=0, max_tokens=6)
    assert "".join(llm.stream("One")) == llm.invoke("One") and llm.generate(["One", "Two"]).llm_output["token_usage"]["total_tokens"] > 0


@check("EMB-01", on="vectors")
def vectors(url):
    embed = OpenAIEmbeddings(**SHARED, base_url=url + "/v1", model="tiny-bert", check_embedding_ctx_length=False)
    texts = [f"text {i}" for i in range(120)]
    found = embed.embed_documents(texts)
    alone = embed.embed_query(texts[77])
    assert len(found) == 120 and max(abs(a - b) for a, b in zip(alone, found[77], strict=True)) < 1e-4


@check("EMB-04", on="vectors")
def ids_of_another_vocabulary_are_refused(url):
    """LangChain's default sends tiktoken's ids. Its vocabulary is downloaded, so the ids are sent as it would send them."""
    embed = OpenAIEmbeddings(**SHARED, base_url=url + "/v1", model="tiny-bert", check_embedding_ctx_length=False)
    error = raised(openai.BadRequestError, lambda: embed.client.create(input=[[9906, 1917, 100_000]], model="tiny-bert"))
    assert error.param.startswith("input"), error.param


@check("RESP-03", "RESP-12", on="scripted")
def the_responses_api(url):
    llm = chat(url, use_responses_api=True)
    answer = llm.invoke("/think well")
    assert answer.text == "ok" and [block["type"] for block in answer.content_blocks] == ["reasoning", "text"], answer.content
    chunks = list(llm.bind_tools([weather]).stream('/call weather {"city":"Rome","unit":"C"}'))
    assert sum(chunks[1:], chunks[0]).tool_calls[0]["args"] == {"city": "Rome", "unit": "C"}
    more = llm.invoke("again", previous_response_id=answer.response_metadata["id"])
    assert more.text == "again" and more.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]


@check("STRM-09", on="crashing")
def a_crash_is_an_error(url):
    ready(url)
    raised(openai.APIError, lambda: list(chat(url).stream("/crash langchain")))
    ready(url)


@check("ERR-01", on="limited")
def a_caller_over_its_own_limit_is_told(url):
    error = raised(openai.RateLimitError, lambda: twice(lambda: chat(url).invoke("x")))
    assert error.code == "rate_limit_exceeded", error


@check("ERR-01", on="full")
def a_full_server_is_tried_again(url):
    """A retry after the pause that the server asked for finds a free slot."""
    hold = openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0)
    ask = {"model": "scripted", "messages": [{"role": "user", "content": "/forever"}], "stream": True}
    first, waiting = (hold.chat.completions.create(**ask) for _ in range(2))
    next(iter(first))
    error = raised(openai.InternalServerError, lambda: chat(url).invoke("x"))
    assert error.code == "server_is_overloaded"
    first.close(), waiting.close()
    assert chat(url, max_retries=4).invoke("after").content == "after"


run("langchain-openai", version("langchain-openai"))
