"""LiteLLM, through its providers for OpenAI's API, Anthropic's, Ollama's, Cohere's and Jina's. Usage: see check.py."""

import asyncio
import json
import os
from importlib.metadata import version

# Its list of prices comes with the package: nothing is fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import openai
from check import DEMO, check, raised, ready, run, twice
from pydantic import BaseModel, Field

litellm.telemetry = False
litellm.suppress_debug_info = True
HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]},
    },
}


class City(BaseModel):
    name: str = Field(max_length=8)


def user(text):
    return [{"role": "user", "content": text}]


def ask(url=DEMO, provider="openai", **more):
    model = "hearth-demo" if url == DEMO else "scripted"
    base = url + "/v1" if provider in ("openai", "hosted_vllm", "text-completion-openai") else url
    known = {"model": f"{provider}/{model}", "messages": HELLO, "api_base": base, "api_key": "unused", "num_retries": 0, "max_retries": 0}
    return litellm.completion(**known | {"timeout": 60} | more)


@check("CHAT-02", "CHAT-03")
def a_chat_has_its_text_and_usage(url):
    for provider in ("openai", "hosted_vllm"):
        answer = ask(provider=provider, max_tokens=16, temperature=0, user="u", metadata={"k": "v"})
        assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 16


@check()
def streamed_text_is_the_whole_text(url):
    whole = ask(max_tokens=16, temperature=0).choices[0].message.content
    chunks = list(ask(max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens > 0

    async def asynchronous():
        stream = await litellm.acompletion(
            model="openai/hearth-demo", messages=HELLO, api_base=url + "/v1", api_key="k", max_tokens=16, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(asynchronous()) == whole


@check("STRM-12", on="scripted")
def thinking_is_apart(url):
    message = ask(url, messages=user("/think hard")).choices[0].message
    assert (message.reasoning_content, message.content) == ("hard", "ok")
    deltas = [chunk.choices[0].delta for chunk in ask(url, messages=user("/think hard"), stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hard"
    assert "".join(delta.content or "" for delta in deltas) == "ok"


@check("TOOL-08", "TOOL-12", on="scripted")
def calls_are_streamed_and_answered(url):
    text = '/call weather {"city":"Rome"}\n/call weather {"city":"Oslo"}'
    chunks = list(ask(url, messages=user(text), tools=[TOOL], stream=True))
    whole = litellm.stream_chunk_builder(chunks)
    calls = whole.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert whole.choices[0].finish_reason == "tool_calls" and calls[0].id != calls[1].id
    history = [*user(text), whole.choices[0].message]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    assert ask(url, messages=history, tools=[TOOL]).choices[0].message.role == "assistant"
    empty = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}}
    history = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [empty]}, {"role": "tool", "tool_call_id": "c", "content": ""}]
    assert ask(url, messages=history, tools=[TOOL]).choices


@check("TOOL-04")
def a_required_call_comes(url):
    choice = ask(tools=[TOOL], tool_choice="required", max_tokens=200).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert isinstance(json.loads(choice.message.tool_calls[0].function.arguments)["city"], str)
    assert ask(tools=[], max_tokens=2).choices


@check("JSON-02", "JSON-04")
def a_schema_is_honoured(url):
    answer = ask(response_format=City, max_tokens=200, reasoning_effort="none", allowed_openai_params=["reasoning_effort"])
    assert City.model_validate_json(answer.choices[0].message.content)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = ask(response_format=form, max_tokens=200, extra_body={"reasoning_effort": "none"})
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)


@check("COMP-05", "CHAT-08")
def errors_are_typed(url):
    error = raised(litellm.ContextWindowExceededError, lambda: ask(messages=user("word " * 10_000)))
    assert "maximum context length is" in str(error)
    raised(litellm.BadRequestError, lambda: ask(temperature=-1))
    raised(litellm.NotFoundError, lambda: ask(model="openai/no-such-model"))
    prompt = lambda: litellm.text_completion(
        model="text-completion-openai/hearth-demo", prompt="word " * 10_000, api_base=url + "/v1", api_key="k", max_retries=0
    )
    raised(litellm.ContextWindowExceededError, prompt)


@check("ERR-06", on="keyed")
def a_wrong_key_is_told(url):
    raised(litellm.AuthenticationError, lambda: ask(url, api_key="wrong"))
    for provider in ("openai", "anthropic"):
        answer = ask(url, provider, api_key="sk-test", messages=user("keyed"))
        assert answer.choices[0].message.content == "keyed", provider


@check("COMP-01")
def completions(url):
    known = {"model": "text-completion-openai/hearth-demo", "api_base": url + "/v1", "api_key": "k", "temperature": 0, "max_tokens": 6}
    whole = litellm.text_completion(prompt="One", **known).choices[0].text
    assert "".join(chunk.choices[0].text or "" for chunk in litellm.text_completion(prompt="One", stream=True, **known)) == whole


@check("EMB-01", on="vectors")
def vectors(url):
    known = {"model": "openai/tiny-bert", "api_base": url + "/v1", "api_key": "k"}
    found = litellm.embedding(input=["a", "b", "c"], **known).data
    alone = litellm.embedding(input=["b"], encoding_format="float", **known).data[0]["embedding"]
    assert [one["index"] for one in found] == [0, 1, 2] and max(abs(a - b) for a, b in zip(alone, found[1]["embedding"], strict=True)) < 1e-4


@check("OLLA-03", on="vectors")
def vectors_by_ollama(url):
    found = litellm.embedding(model="ollama/tiny-bert", input=["a", "b"], api_base=url).data
    assert len(found) == 2 and len(found[0]["embedding"]) == 64


@check("RANK-01", "RANK-04", on="ranker")
def documents_are_ranked(url):
    documents = ["a red fox", "the sea", "foxes and hens"]
    plain = litellm.rerank(model="cohere/tiny-rank", query="fox", documents=documents, top_n=2, api_base=url + "/v1/rerank", api_key="k", return_documents=True)
    assert len(plain.results) == 2 and plain.results[0]["relevance_score"] >= plain.results[1]["relevance_score"]
    for one in plain.results:
        assert one["document"]["text"] == documents[one["index"]], one
    assert plain.meta["billed_units"]["search_units"] == 1 and plain.id
    for model, base in (("jina_ai/tiny-rank", url + "/v1/rerank"), ("hosted_vllm/tiny-rank", url)):
        other = litellm.rerank(model=model, query="fox", documents=documents, top_n=2, api_base=base, api_key="k")
        assert [one["index"] for one in other.results] == [one["index"] for one in plain.results], model


@check("RANK-03")
def a_chat_model_does_not_rank(url):
    rank = lambda: litellm.rerank(model="cohere/hearth-demo", query="x", documents=["a"], api_base=url + "/v1/rerank", api_key="k", max_retries=0)
    error = raised(litellm.BadRequestError, rank)
    assert error.status_code == 400 and "rank" in str(error), error


@check("RANK-02", on="ranker")
def documents_as_objects(url):
    rank = lambda documents: litellm.rerank(model="cohere/tiny-rank", query="fox", documents=documents, api_base=url + "/v1/rerank", api_key="k")
    texts = ["a red fox", "the sea"]
    scores = [[one["relevance_score"] for one in rank(form).results] for form in (texts, [{"text": text} for text in texts])]
    assert scores[0] == scores[1]


@check("ANTH-09", "ANTH-01")
def its_anthropic_provider(url):
    known = {"model": "anthropic/claude-any", "messages": HELLO, "api_base": url, "api_key": "k", "max_tokens": 16, "temperature": 0, "num_retries": 0}
    whole = litellm.completion(**known)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
    chunks = list(litellm.completion(**known, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    tools = litellm.completion(**known | {"max_tokens": 200}, tools=[TOOL], tool_choice="required")
    assert tools.choices[0].finish_reason == "tool_calls" and tools.choices[0].message.tool_calls[0].function.name == "weather"


@check("ANTH-04", "ANTH-13", on="scripted")
def thinking_and_calls_by_anthropic(url):
    claude = "anthropic/claude-sonnet-4-5"  # of a name that it knows to think
    thought = ask(url, model=claude, api_base=url, messages=user("/think hard"), thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2048)
    assert (thought.choices[0].message.reasoning_content, thought.choices[0].message.content) == ("hard", "ok")
    text = '/call weather {"city":"Rome"}'
    called = litellm.stream_chunk_builder(list(ask(url, "anthropic", messages=user(text), tools=[TOOL], stream=True)))
    (call,) = called.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    history = [*user(text), called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert ask(url, "anthropic", messages=history, tools=[TOOL]).choices


@check("OLLA-07", "OLLA-14")
def its_ollama_providers(url):
    for provider in ("ollama", "ollama_chat"):
        known = {"max_tokens": 16, "temperature": 0, "stop": ["zzz"], "num_ctx": 512}
        whole = ask(provider=provider, **known).choices[0].message.content
        chunks = list(ask(provider=provider, stream=True, **known))
        assert whole and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole, provider
        raised(litellm.BadRequestError, lambda: ask(provider=provider, messages=user("word " * 10_000)))


@check("OLLA-01", "OLLA-06", on="scripted")
def calls_and_thinking_by_ollama(url):
    called = ask(url, "ollama_chat", messages=user('/call weather {"city":"Rome"}'), tools=[TOOL]).choices[0].message
    assert json.loads(called.tool_calls[0].function.arguments) == {"city": "Rome"}
    streamed = litellm.stream_chunk_builder(list(ask(url, "ollama_chat", messages=user('/call weather {"city":"Rome"}'), tools=[TOOL], stream=True)))
    assert streamed.choices[0].message.tool_calls[0].function.name == "weather"
    thought = ask(url, "ollama_chat", messages=user("/think hard"), reasoning_effort="low").choices[0].message
    assert (thought.reasoning_content, thought.content) == ("hard", "ok")


@check("RESP-03", on="scripted")
def the_responses_api(url):
    answer = litellm.responses(model="openai/scripted", input="/think well", api_base=url + "/v1", api_key="k")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    events = list(litellm.responses(model="openai/scripted", input="hello", api_base=url + "/v1", api_key="k", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"


@check("ERR-01", "ANTH-14", on="limited")
def a_caller_over_its_own_limit_is_told(url):
    for provider in ("openai", "anthropic"):
        raised(litellm.RateLimitError, lambda: twice(lambda: ask(url, provider, messages=user("x"))))


@check("STRM-09", on="crashing")
def a_crash_is_an_error(url):
    ready(url)
    raised(openai.APIError, lambda: list(ask(url, messages=user("/crash litellm"), stream=True)))
    ready(url)


run("litellm", version("litellm"))
