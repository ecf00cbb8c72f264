"""OpenAI's Python client: models, completions, embeddings, errors and what a connection must do. Usage: see check.py."""

import base64
import json
import struct
import threading
import time

import openai
from asking import HELLO, MODEL, NO_RETRIES, at, chat, client, refused, user
from check import check, fetch, raised, ready, run, twice


@check("MOD-01", "MOD-02", "MOD-03", "MOD-04", "CHAT-08")
def models_are_listed_and_found(url):
    page = client.models.list()
    assert page.object == "list" and len(page.data) >= 1
    found = client.models.retrieve(MODEL)
    assert found.id == MODEL and found.object == "model" and found.created >= 0
    assert found.max_model_len == found.meta["n_ctx"] == 2048
    for name in (MODEL + ":latest", MODEL.upper(), "gpt-4o-mini", "default"):
        assert client.models.retrieve(name).id == MODEL, name
        assert chat(model=name, max_tokens=1).model == MODEL, name
    assert chat(model="", max_tokens=1).model == MODEL
    refused(openai.NotFoundError, 404, "model", lambda: client.models.retrieve("no-such/model"), "model_not_found")


@check("COMP-01", "COMP-04", "COMP-05")
def completions_are_whole_streamed_and_bounded(url):
    ask = {"model": MODEL, "max_tokens": 4, "temperature": 0}
    answer = client.completions.create(prompt=["One", "Two"], **ask)
    assert answer.object == "text_completion" and [choice.index for choice in answer.choices] == [0, 1]
    chunks = list(client.completions.create(prompt="One", stream=True, **ask))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == answer.choices[0].text and chunks[-1].choices[0].finish_reason
    stop = text[1:3]
    if len(stop) == 2:
        assert client.completions.create(prompt="One", stop=stop, **ask).choices[0].text == text[: text.index(stop)]
    seeded = [client.completions.create(model=MODEL, prompt="One", max_tokens=8, seed=5).choices[0].text for _ in range(2)]
    assert seeded[0] == seeded[1]
    client.completions.create(model=MODEL, prompt="", max_tokens=1)
    long = lambda: client.completions.create(model=MODEL, prompt="word " * 10_000)
    error = refused(openai.BadRequestError, 400, "prompt", long, "context_length_exceeded")
    assert "maximum context length is" in error.body["message"]


@check("COMP-02")
def a_suffix_is_filled_in(url):
    filled = client.completions.create(model=MODEL, prompt="def f():\n", suffix="    return x\n", max_tokens=8, temperature=0)
    plain = client.completions.create(model=MODEL, prompt="def f():\n", max_tokens=8, temperature=0)
    assert isinstance(filled.choices[0].text, str) and filled.usage.prompt_tokens > plain.usage.prompt_tokens + 2


@check("COMP-07", on="scripted")
def tokens_that_are_no_text_keep_keys_of_their_own(url):
    answer = at(url).completions.create(model="scripted", prompt="/bytes 226 130 172", logprobs=1, max_tokens=8)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "€"
    assert logprobs.tokens[:3] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"], logprobs.tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)


@check("EMB-01", "FAULT-15", on="vectors")
def vectors_are_the_same_in_base64_and_in_any_batch(url):
    vectors = at(url)
    texts = [f"text number {i}" for i in range(300)]
    batch = vectors.embeddings.create(model="tiny-bert", input=texts)
    assert [one.index for one in batch.data] == list(range(300)) and batch.usage.prompt_tokens > 300
    for i in (0, 7, 299):
        alone = vectors.embeddings.create(model="tiny-bert", input=texts[i], encoding_format="float").data[0].embedding
        assert max(abs(a - b) for a, b in zip(alone, batch.data[i].embedding, strict=True)) < 1e-4
        assert abs(sum(x * x for x in alone) - 1) < 1e-3
    # What the client decoded for us: little-endian.
    _, raw = fetch(url + "/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == batch.data[0].embedding or len(data) == 4 * 64
    assert len(vectors.embeddings.create(model="tiny-bert", input="x", dimensions=8).data[0].embedding) == 8


@check("EMB-04", "EMB-05", on="vectors")
def inputs_that_can_not_be_embedded_are_refused(url):
    embed = lambda text: at(url).embeddings.create(model="tiny-bert", input=text)
    refused(openai.BadRequestError, 400, "input", lambda: embed([100_257]))
    refused(openai.BadRequestError, 400, "input", lambda: embed(["a"] * 2049))
    many = lambda: embed(["a"] * 9 + ["word " * 2_000])
    refused(openai.BadRequestError, 400, "input", many, "context_length_exceeded")


@check("EMB-03")
def a_chat_model_says_that_it_does_not_embed(url):
    embed = lambda: client.embeddings.create(model=MODEL, input="a")
    refused(openai.BadRequestError, 400, "model", embed, "unsupported_operation")


@check("CHAT-07", "STRM-05", "FAULT-09")
def errors_are_typed(url):
    refused(openai.NotFoundError, 404, "model", lambda: chat(model="no-such-model"), "model_not_found")
    refused(openai.BadRequestError, 400, "temperature", lambda: chat(temperature=-1))
    refused(openai.BadRequestError, 400, "messages", lambda: chat(messages=[]), "empty_array")
    refused(openai.BadRequestError, 400, "temperature", lambda: chat(extra_body={"temperature": "hot"}, stream=True), "invalid_type")
    refused(openai.BadRequestError, 400, "max_tokens", lambda: chat(max_tokens=0))
    long = user("word " * 200_000)
    error = refused(openai.BadRequestError, 400, "messages", lambda: chat(messages=long), "context_length_exceeded")
    assert "maximum context length is" in error.body["message"]
    for limit in (1_000_000, -1):
        assert chat(max_tokens=limit, stop=["e"]).choices[0].finish_reason == "stop"


@check("ERR-06", "ERR-16", on="keyed")
def each_fault_of_the_client_is_one_request(url):
    """With retries on: what a retry cannot cure is asked once. The server's own counters tell how often."""
    eager = openai.OpenAI(base_url=url + "/v1", api_key="sk-test", max_retries=2, timeout=60)
    create = eager.chat.completions.create

    def n_requests():
        page = eager.get("/../metrics", cast_to=str)
        lines = [line for line in page.splitlines() if line.startswith("hearth_http_requests_total{") and "/metrics" not in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    faults = [
        (400, lambda: create(model="scripted", messages=[])),
        (401, lambda: eager.with_options(api_key="wrong").models.list()),
        (403, lambda: create(model="scripted", messages=HELLO, extra_headers={"origin": "http://evil.example"})),
        (404, lambda: create(model="none", messages=HELLO)),
        (404, lambda: eager.get("/nowhere", cast_to=object)),
        (405, lambda: eager.get("/chat/completions", cast_to=object)),
        (413, lambda: create(model="scripted", messages=user("x" * 1_200_000))),
        (415, lambda: create(model="scripted", messages=HELLO, extra_headers={"Content-Type": "text/plain"})),
    ]
    for status, call in faults:
        before = n_requests()
        error = raised(openai.APIStatusError, call)
        assert error.status_code == status and error.type == "invalid_request_error", (status, error)
        assert n_requests() - before == 1, f"{status} was tried again"
    # The header of the other family carries a key as well.
    headers = {"x-api-key": "sk-test", "Authorization": openai.Omit()}
    assert eager.models.list(extra_headers=headers).data[0].id == "scripted"


@check("ERR-01", on="full")
def a_full_server_says_when_to_come_again(url):
    full = at(url)
    ask = {"model": "scripted", "messages": user("/forever"), "stream": True}
    with full.chat.completions.create(**ask) as first:
        next(iter(first))
        waiting = full.chat.completions.create(**ask)  # has its 200 before its turn
        error = refused(openai.InternalServerError, 503, None, lambda: full.chat.completions.create(**ask), "server_is_overloaded")
        assert int(error.response.headers["retry-after"]) >= 1
        waiting.close()


@check("ERR-01", on="limited")
def a_caller_over_its_own_limit_is_told(url):
    ask = lambda: at(url).chat.completions.create(model="scripted", messages=user("x"))
    error = refused(openai.RateLimitError, 429, None, lambda: twice(ask), "rate_limit_exceeded")
    assert error.type == "requests" and int(error.response.headers["retry-after"]) >= 1


@check("ERR-05", "STRM-09", on="crashing")
def a_crash_is_an_error_and_the_server_lives(url):
    crashing = at(url)
    for stream in (True, False):
        ready(url)
        ask = {"model": "scripted", "messages": user(f"/crash openai-python {openai.__version__} {stream}")}
        if stream:
            chunks = []

            def read():
                for chunk in crashing.chat.completions.create(**ask, stream=True):
                    chunks.append(chunk)

            error = raised(openai.APIError, read)
            assert error.body["code"] == "internal_error" and error.body["type"] == "server_error", error.body
            assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) == 1
        else:
            error = refused(openai.InternalServerError, 500, None, lambda: crashing.chat.completions.create(**ask), "internal_error")
    ready(url)
    answer = crashing.chat.completions.create(model="scripted", messages=user("alive"))
    assert answer.choices[0].message.content == "alive"


@check("ERR-15")
def paths_without_a_prefix_and_with_a_slash(url):
    bare = openai.OpenAI(base_url=url, **NO_RETRIES)
    slash = openai.OpenAI(base_url=url + "/v1/", **NO_RETRIES)
    want = chat().choices[0].message.content
    for other in (bare, slash):
        ask = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0}
        assert other.chat.completions.create(**ask).choices[0].message.content == want
    assert fetch(url + "/v1/models/")[0] == 200


@check("CHAT-03")
def what_is_not_known_is_listed(url):
    ignored = {
        "user": "u", "store": False, "metadata": {"k": "v"}, "service_tier": "flex", "safety_identifier": "s", "verbosity": "low",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "hello"},
    }  # fmt: skip
    ask = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0}
    raw = client.chat.completions.with_raw_response.create(**ask, extra_body=ignored | {"no_such_field": 1})
    assert raw.headers["x-hearth-ignored"] == "no_such_field", dict(raw.headers)
    assert raw.headers["x-request-id"] == raw.headers["request-id"] and int(raw.headers["openai-processing-ms"]) >= 0
    answer = raw.parse()
    assert answer.choices[0].message.content == chat().choices[0].message.content and answer.service_tier == "flex"


@check("STRM-06", "OPS-06", "STRM-14")
def a_stream_can_be_left(url):
    for _ in range(50):
        with chat(stream=True, max_tokens=500) as stream:
            next(iter(stream))
            assert "content-encoding" not in stream.response.headers
    started = time.monotonic()
    chat(max_tokens=1)
    assert time.monotonic() - started < 15, "the slots of streams that were left are still in use"


@check("CHAT-18", "CHAT-21", on="scripted")
def many_at_once_do_not_mix(url):
    many = at(url)
    answers = [None] * 16

    def ask(i):
        text = f"number {i} of sixteen"
        answers[i] = many.chat.completions.create(model="scripted", messages=user(text), temperature=0)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [answer.choices[0].message.content for answer in answers] == [f"number {i} of sixteen" for i in range(16)]
    assert len({answer.id for answer in answers}) == 16


@check()
def a_connection_serves_again_after_a_stream(url):
    """Every answer over one connection: a silent close would be an APIConnectionError, for there is no retry."""
    for _ in range(3):
        list(chat(stream=True, max_tokens=2))
        assert json.loads(chat(max_tokens=1).to_json())["object"] == "chat.completion"
        raised(openai.BadRequestError, lambda: chat(temperature=-1))


run("openai-python", openai.__version__)
