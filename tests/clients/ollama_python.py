"""Ollama's official Python client against a running hearth: python ollama_python.py BASE_URL

What the model says does not matter. Exits 1 when a check fails. Rows of the wire contract are named (OLLA-).
"""

import sys
import traceback

import ollama

BASE_URL = sys.argv[1].rstrip("/")
client = ollama.Client(host=BASE_URL, timeout=60)
MODEL = client.list().models[0].model
HELLO = [{"role": "user", "content": "Say hello."}]
ASK = {"model": MODEL, "messages": HELLO, "options": {"num_predict": 16, "temperature": 0, "num_ctx": 2048}}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@check
def models_are_listed_shown_and_running():
    assert client.ps().models[0].model == MODEL
    shown = client.show(MODEL)
    assert "completion" in shown.capabilities and shown.modelinfo["general.architecture"]
    assert [row.status for row in client.pull(MODEL, stream=True)][-1] == "success"


@check
def a_streamed_chat_is_the_whole_one():
    """OLLA-07, OLLA-11"""
    whole = client.chat(**ASK, keep_alive="5m")
    rows = list(client.chat(**ASK, stream=True, keep_alive=-1))
    assert "".join(row.message.content or "" for row in rows) == whole.message.content
    assert rows[-1].done and rows[-1].done_reason in ("stop", "length") and rows[-1].eval_count == whole.eval_count
    assert whole.total_duration > 0 and whole.prompt_eval_count > 0 and not any(row.done for row in rows[:-1])


@check
def generate_and_its_raw_form():
    """OLLA-06"""
    options = ASK["options"]
    whole = client.generate(MODEL, "One", raw=True, options=options)
    rows = client.generate(MODEL, "One", raw=True, options=options, stream=True)
    assert "".join(row.response for row in rows) == whole.response
    assert client.generate(MODEL, "One", think=False, options=options).done
    assert client.generate(MODEL, "").done_reason == "load"


@check
def errors_are_texts():
    """OLLA-08"""
    for status, call in (
        (404, lambda: client.chat("no-such-model", HELLO)),
        (404, lambda: client.show("no-such-model")),
        (400, lambda: client.chat(MODEL, [{"role": "user", "content": "see", "images": [b"123"]}])),
        (400, lambda: client.chat(MODEL, [{"role": "user", "content": "word " * 100_000}])),
        (400, lambda: list(client.chat(MODEL, HELLO, keep_alive="soon", stream=True))),
        (403, lambda: client.delete(MODEL)),
        (403, lambda: client.pull("other")),
    ):
        try:
            call()
        except ollama.ResponseError as error:
            assert error.status_code == status and isinstance(error.error, str) and "{" not in error.error[:1], error
        else:
            raise AssertionError(f"{status} expected")


failed = 0
for function in CHECKS:
    try:
        function()
    except Exception:
        failed += 1
        print(f"FAILED {function.__name__}")
        traceback.print_exc(file=sys.stdout)
print(f"{len(CHECKS) - failed} passed, {failed} failed (ollama)")
sys.exit(failed > 0)
