"""Ollama's Python client. Usage: see check.py."""

from importlib.metadata import version

import ollama
from check import DEMO, check, raised, ready, run, twice
from pydantic import BaseModel

client = ollama.Client(host=DEMO, timeout=60)
MODEL = client.list().models[0].model
HELLO = [{"role": "user", "content": "Say hello."}]
ASK = {"model": MODEL, "messages": HELLO, "options": {"num_predict": 16, "temperature": 0, "num_ctx": 2048}}


def look(at: str) -> str:
    """Looks.

    Args:
        at: Where to look.
    """
    return at


def scripted(url, text, **more):
    return ollama.Client(host=url, timeout=60).chat("scripted", [{"role": "user", "content": text}], **more)


@check("MOD-01", "OLLA-12")
def models_are_listed_shown_and_running(url):
    assert client.ps().models[0].model == MODEL
    shown = client.show(MODEL)
    assert "completion" in shown.capabilities and shown.modelinfo["general.architecture"]
    assert "insert" in shown.capabilities and ".Suffix" in shown.template
    assert [row.status for row in client.pull(MODEL, stream=True)][-1] == "success"


@check("OLLA-07", "OLLA-11", "FAULT-14")
def a_streamed_chat_is_the_whole_one(url):
    options = ASK["options"] | {"num_gpu": 99, "num_thread": 2, "no_such_option": 1}
    whole = client.chat(**ASK | {"options": options}, keep_alive="5m")
    for keep_alive in (0, -1, "5m", 1800):
        rows = list(client.chat(**ASK, stream=True, keep_alive=keep_alive))
        assert "".join(row.message.content or "" for row in rows) == whole.message.content
        assert rows[-1].done and rows[-1].done_reason in ("stop", "length") and rows[-1].eval_count == whole.eval_count
        assert whole.total_duration > 0 and whole.prompt_eval_count > 0 and not any(row.done for row in rows[:-1])


@check("OLLA-12", "FAULT-14")
def generate_its_raw_form_and_a_suffix(url):
    options = ASK["options"]
    whole = client.generate(MODEL, "One", raw=True, options=options)
    rows = client.generate(MODEL, "One", raw=True, options=options, stream=True)
    assert "".join(row.response for row in rows) == whole.response
    assert client.generate(MODEL, "").done_reason == "load"
    filled = client.generate(MODEL, "def f():", suffix="  return x", options=options)
    assert filled.done and filled.prompt_eval_count > client.generate(MODEL, "def f():", raw=True, options=options).prompt_eval_count


@check("OLLA-06", on="scripted")
def thinking_is_apart(url):
    for think in (True, "low"):
        message = scripted(url, "/think hard", think=think).message
        assert (message.thinking, message.content) == ("hard", "ok"), message
    assert client.chat(**ASK, think=False).done and client.chat(**ASK, think=True).done


@check("OLLA-01", on="scripted")
def calls_are_objects(url):
    rows = list(scripted(url, '/call look {"at":"a"}', tools=[look], stream=True))
    calls = [row.message.tool_calls for row in rows if row.message.tool_calls]
    assert [[(call.function.name, call.function.arguments) for call in row] for row in calls] == [[("look", {"at": "a"})]]
    history = [{"role": "user", "content": "x"}, scripted(url, '/call look {"at":"a"}', tools=[look]).message]
    history += [{"role": "tool", "tool_name": "look", "content": "seen"}]
    assert ollama.Client(host=url).chat("scripted", history, tools=[look]).done


@check("OLLA-03", on="vectors")
def vectors_have_their_shapes(url):
    vectors = ollama.Client(host=url, timeout=60)
    (one,) = vectors.embed("tiny-bert", "a text").embeddings
    two = vectors.embed("tiny-bert", ["a text", "another"]).embeddings
    assert len(two) == 2 and max(abs(a - b) for a, b in zip(one, two[0], strict=True)) < 1e-4
    assert abs(sum(x * x for x in one) - 1) < 1e-3
    assert len(vectors.embed("tiny-bert", "a text", dimensions=8).embeddings[0]) == 8
    assert len(vectors.embeddings("tiny-bert", "a text").embedding) == len(one)
    assert list(vectors.embeddings("tiny-bert", "").embedding) == []


@check("OLLA-08", "FAULT-16")
def errors_are_texts(url):
    for status, call in (
        (404, lambda: client.chat("no-such-model", HELLO)),
        (404, lambda: client.show("no-such-model")),
        (400, lambda: client.chat(MODEL, [{"role": "user", "content": "see", "images": [b"123"]}])),
        (400, lambda: client.chat(MODEL, [{"role": "user", "content": "word " * 100_000}])),
        (400, lambda: list(client.chat(MODEL, HELLO, keep_alive="soon", stream=True))),
        (403, lambda: client.delete(MODEL)),
        (403, lambda: client.pull("other")),
    ):
        error = raised(ollama.ResponseError, call)
        assert error.status_code == status and isinstance(error.error, str) and "{" not in error.error[:1], error


@check("OLLA-09", "FAULT-16", on="crashing")
def a_crash_is_a_row(url):
    ready(url)
    error = raised(ollama.ResponseError, lambda: list(scripted(url, "/crash ollama-python", stream=True)))
    assert isinstance(error.error, str) and error.error and "{" not in error.error[:1], error
    ready(url)


@check("ERR-01", "FAULT-16", on="limited")
def a_caller_over_its_own_limit_is_told(url):
    error = raised(ollama.ResponseError, lambda: twice(lambda: scripted(url, "x")))
    assert error.status_code == 429 and error.error and "{" not in error.error[:1], error


@check("OLLA-13")
def rows_carry_logprobs(url):
    answer = client.chat(**ASK, logprobs=True, top_logprobs=2)
    assert "".join(entry.token for entry in answer.logprobs) == answer.message.content
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in answer.logprobs)
    assert any(row.logprobs for row in client.chat(**ASK, logprobs=True, stream=True))


class Pick(BaseModel):
    animal: str


@check("OLLA-14", "JSON-02")
def formats_beside_tools_and_loose_options(url):
    options = {"num_predict": -1, "stop": "\n\n", "temperature": 0, "num_ctx": 1}
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    answer = client.chat(MODEL, HELLO, format=schema, options=options, think=False)
    assert answer.message.content.startswith("{") and answer.done_reason == "stop"
    beside = client.chat(MODEL, HELLO, tools=[look], format=schema, options=options, think=False)
    assert beside.done and (beside.message.tool_calls or beside.message.content.startswith("{"))
    json_mode = client.chat(MODEL, HELLO, format="json", options={"num_predict": 64, "temperature": 0}, think=False)
    assert json_mode.message.content.lstrip().startswith("{")


@check("OLLA-14", on="scripted")
def a_schema_is_read_back(url):
    answer = scripted(url, '{"animal":"cat"}', format=Pick.model_json_schema())
    assert Pick.model_validate_json(answer.message.content) == Pick(animal="cat")


run("ollama-python", version("ollama"))
