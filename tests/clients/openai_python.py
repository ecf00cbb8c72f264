"""The official Python client against a running hearth: python openai_python.py BASE_URL

The model behind it must have a chat template; what it says does not matter. Exits 1 when a check fails.
Rows of the wire contract are named where a check holds one (CHAT-, STRM-, COMP-, MOD-, ERR-).
"""

import sys
import threading
import time
import traceback

import openai

BASE_URL = sys.argv[1].rstrip("/")
client = openai.OpenAI(base_url=BASE_URL + "/v1", api_key="unused", max_retries=0, timeout=60)
MODEL = client.models.list().data[0].id
HELLO = [{"role": "user", "content": "Say hello."}]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def chat(**extra):
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0} | extra)


def raises(kind, status, param, call):
    try:
        call()
    except kind as error:
        assert error.status_code == status, error.status_code
        assert error.param == param, error.param
        assert isinstance(error.code, (str, type(None))), error.code
        assert error.body["message"], error.body
        return error
    raise AssertionError(f"{kind.__name__} expected")


@check
def models_are_listed_and_found():
    """MOD-01 to MOD-04"""
    page = client.models.list()
    assert page.object == "list" and len(page.data) >= 1
    found = client.models.retrieve(MODEL)
    assert found.id == MODEL and found.object == "model" and found.created >= 0
    assert client.models.retrieve(MODEL + ":latest").id == MODEL
    raises(openai.NotFoundError, 404, "model", lambda: client.models.retrieve("no-such-model"))


@check
def a_chat_has_every_field():
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


@check
def streamed_text_is_the_whole_text():
    whole = chat().choices[0].message.content
    chunks = list(chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finishes[-1] in ("stop", "length") and finishes[:-1] == [None] * (len(chunks) - 1)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


@check
def usage_comes_last_when_asked_for():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


@check
def the_streaming_helper_puts_it_together():
    with client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=16, temperature=0) as stream:
        final = None
        for event in stream:
            if event.type == "content.done":
                final = event.content
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == (final or "")


@check
def several_choices_in_order():
    assert [choice.index for choice in chat(n=3, seed=1).choices] == [0, 1, 2]
    seen = [chunk.choices[0].index for chunk in chat(n=2, seed=1, stream=True)]
    assert set(seen) == {0, 1} and seen[:2] == [0, 1]


@check
def log_probabilities_spell_the_content():
    answer = chat(logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert bytes(b for entry in entries for b in entry.bytes).decode() == answer.choices[0].message.content
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)


@check
def the_same_seed_gives_the_same_text():
    one, two = (chat(seed=7, temperature=1).choices[0].message.content for _ in range(2))
    assert one == two


@check
def a_stop_string_ends_the_text():
    text = chat().choices[0].message.content
    if len(text) > 4:
        stop = text[2:4]
        cut = chat(stop=[stop]).choices[0]
        assert cut.message.content == text[: text.index(stop)] and cut.finish_reason == "stop"


@check
def text_parts_are_the_text():
    """CHAT-04"""
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]}]
    assert chat(messages=parts).usage.prompt_tokens == chat().usage.prompt_tokens


@check
def an_answer_can_be_sent_back():
    """CHAT-06"""
    answer = chat().choices[0].message.to_dict()
    chat(messages=HELLO + [answer, {"role": "user", "content": "Again."}])


@check
def completions():
    """COMP-01, COMP-04"""
    answer = client.completions.create(model=MODEL, prompt=["One", "Two"], max_tokens=4, temperature=0)
    assert answer.object == "text_completion" and [choice.index for choice in answer.choices] == [0, 1]
    chunks = list(client.completions.create(model=MODEL, prompt="One", max_tokens=4, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    client.completions.create(model=MODEL, prompt="", max_tokens=1)


@check
def errors_are_typed():
    """ERR-16 holds too: the client does not try again."""
    raises(openai.NotFoundError, 404, "model", lambda: chat(model="no-such-model"))
    raises(openai.BadRequestError, 400, "temperature", lambda: chat(temperature=-1))
    raises(openai.BadRequestError, 400, "messages", lambda: chat(messages=[]))
    raises(openai.BadRequestError, 400, "temperature", lambda: chat(extra_body={"temperature": "hot"}, stream=True))
    raises(openai.BadRequestError, 400, "max_tokens", lambda: chat(max_tokens=0))
    long = [{"role": "user", "content": "word " * 200_000}]
    error = raises(openai.BadRequestError, 400, "messages", lambda: chat(messages=long))
    assert error.code == "context_length_exceeded" and "maximum context length is" in error.body["message"]


@check
def what_is_not_known_is_listed():
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=1, user="u", store=False, extra_body={"no_such_field": 1}
    )
    assert "no_such_field" in raw.headers["x-hearth-ignored"], dict(raw.headers)
    assert raw.headers["x-request-id"]


@check
def a_stream_can_be_left():
    """STRM-06"""
    for _ in range(20):
        with chat(stream=True, max_tokens=500) as stream:
            next(iter(stream))
    started = time.monotonic()
    chat(max_tokens=1)
    assert time.monotonic() - started < 5, "the slots of streams that were left are still in use"


@check
def many_at_once_do_not_mix():
    """CHAT-18"""
    alone = chat().choices[0].message.content
    answers = [None] * 16

    def ask(i):
        answers[i] = chat()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(answers) and len({answer.id for answer in answers}) == 16
    assert all(isinstance(answer.choices[0].message.content, str) for answer in answers) and isinstance(alone, str)


def main():
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
