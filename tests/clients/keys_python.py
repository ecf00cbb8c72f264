"""A key that the admin API made, in OpenAI's Python client; then it is revoked."""

import sys

import httpx
import openai

url, admin, master = sys.argv[1:4]
passed = failed = 0


def check(name, is_true):
    global passed, failed
    passed, failed = passed + bool(is_true), failed + (not is_true)
    if not is_true:
        print("failed:", name)


def act(path, body):
    answer = httpx.post(admin + path, json=body, headers={"Authorization": f"Bearer {master}"}, trust_env=False)
    answer.raise_for_status()
    return answer.json()


act("/team/new", {"team_id": "core-infra"})
made = act("/key/generate", {
    "models": ["hearth-demo"],
    "max_budget": 10,
    "duration": "30d",
    "metadata": {"user_id": "user@example.com"},
    "team_id": "core-infra",
})
client = openai.OpenAI(base_url=f"{url}/v1", api_key=made["key"], max_retries=0,
                       http_client=httpx.Client(trust_env=False))
chat = dict(model="hearth-demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8)
answer = client.chat.completions.create(**chat)
check("a whole answer", answer.usage.completion_tokens >= 1)
parts = list(client.chat.completions.create(stream=True, **chat))
check("a streamed answer", parts[-1].choices[0].finish_reason in ("stop", "length"))
check("the model list", [model.id for model in client.models.list()] == ["hearth-demo"])
spent = httpx.get(f"{admin}/key/info", params={"key": made["key"]}, headers={"Authorization": f"Bearer {master}"},
                  trust_env=False).json()
check("tokens are counted", spent["info"]["spent_tokens"] > answer.usage.total_tokens)

act("/key/delete", {"keys": [made["key"]]})
# At once: not the next call after a while, but this one.
try:
    client.chat.completions.create(**chat)
    check("a revoked key is refused", False)
except openai.AuthenticationError as error:
    check("a revoked key is refused", error.status_code == 401 and error.code == "invalid_api_key")
print(passed, "passed,", failed, "failed")
sys.exit(failed > 0)
