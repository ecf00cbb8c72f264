"""What the scripts of OpenAI's Python client share: a client that never tries again, a chat, and refusals told in full."""

import openai
from check import DEMO, raised

NO_RETRIES = {"api_key": "unused", "max_retries": 0, "timeout": 60}


def at(url, **more):
    return openai.OpenAI(base_url=url + "/v1", **NO_RETRIES | more)


client = at(DEMO)
MODEL = client.models.list().data[0].id
HELLO = [{"role": "user", "content": "Say hello."}]


def user(text):
    return [{"role": "user", "content": text}]


def chat(**extra):
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0} | extra)


def refused(kind, status, param, call, code=...):
    """The error of this kind and status that `call` raises, whose param begins with `param`."""
    error = raised(kind, call)
    assert error.status_code == status, error.status_code
    assert (error.param or "").startswith(param or ""), error.param
    assert isinstance(error.code, (str, type(None))), error.code
    assert error.body["message"] and error.request_id.startswith("req_"), error.body
    assert code is ... or error.code == code, error.code
    return error
