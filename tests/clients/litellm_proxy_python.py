"""LiteLLM's own client for its proxy, against ours: keys and teams on the admin plane, models and chats on the data plane;
and the calls of its documentation as they stand there."""

import json
import os
import subprocess
import sys

# It would fetch a list of prices at its import.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["NO_PROXY"] = "127.0.0.1"

import requests  # noqa: E402
from litellm.proxy.client import Client  # noqa: E402
from litellm.proxy.client.exceptions import UnauthorizedError  # noqa: E402

url, admin, master = sys.argv[1:4]
passed = failed = 0


def check(name, is_true):
    global passed, failed
    passed, failed = passed + bool(is_true), failed + (not is_true)
    if not is_true:
        print("failed:", name)


def refused(kind, call, status=None):
    try:
        call()
    except kind as error:
        return status is None or error.response.status_code == status
    return False


def curl(path, body):
    """As the documentation has it."""
    command = ["curl", "--silent", f"{admin}{path}", "--header", f"Authorization: Bearer {master}",
               "--header", "Content-Type: application/json", "--data-raw", body]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)


keeper = Client(base_url=admin, api_key=master)
made = keeper.keys.generate(models=["hearth-demo"], duration="24h", key_alias="from-litellm", user_id="u1")
check("a key is made", made["key"].startswith("sk-") and made["key_alias"] == "from-litellm" and made["expires"])
listed = keeper.keys.list(page=1, size=10, key_alias="from-litellm", return_full_object=True)
check("it is listed", [key["key_id"] for key in listed["keys"]] == [made["key_id"]] and listed["total_count"] == 1)
ids = keeper.keys.list(user_id="u1", return_full_object=False)
check("or its name alone", ids["keys"] == [made["key_id"]])
info = keeper.keys.info(made["key"])
check("it is known by itself", info["info"]["user_id"] == "u1" and info["info"]["models"] == ["hearth-demo"])
changed = keeper.keys.update(key=made["key_id"], models=["hearth-demo", "other"])
check("it is changed", changed["models"] == ["hearth-demo", "other"])
check("what we don't have is refused", refused(requests.HTTPError, lambda: keeper.keys.generate(config={"a": 1}), 400))
check("models are told", [model["model_name"] for model in keeper.models.info()] == ["hearth-demo"])
curl("/team/new", '{"team_id": "core", "team_alias": "Core"}')
check("teams are listed", [team["team_id"] for team in keeper.teams.list()] == ["core"])
curl("/budget/new", '{"budget_id": "free-tier", "max_budget": 5, "budget_duration": "1mo"}')
shared = keeper.keys.generate(budget_id="free-tier", team_id="core")
check("a key shares a budget", shared["budget_id"] == "free-tier" and shared["team_id"] == "core")
told = curl("/budget/info", '{"budgets": ["free-tier"]}')
check("the budget is told", told[0]["max_budget"] == 5 and told[0]["spend"] == 0)

user = Client(base_url=url, api_key=made["key"])
chat = dict(model="hearth-demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8)
check("models are listed", [model["id"] for model in user.models.list()] == ["hearth-demo"])
answer = user.chat.completions(temperature=0, **chat)
check("a chat", answer["usage"]["completion_tokens"] >= 1 and answer["choices"][0]["message"]["role"] == "assistant")
chunks = list(user.chat.completions_stream(user="u1", **chat))
check("a stream", chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length"))
check("a key for requests is none for keys",
      refused(requests.HTTPError, lambda: Client(base_url=admin, api_key=made["key"]).keys.list(), 403))
check("a wrong key", refused(UnauthorizedError, lambda: Client(base_url=admin, api_key="sk-wrong").keys.list()))

deleted = keeper.keys.delete(keys=[made["key"]])
check("it is deleted", deleted["deleted_keys"] == [made["key_id"]])
check("and opens nothing", refused(UnauthorizedError, lambda: user.models.list()))
gone = keeper.keys.delete(key_aliases=["from-litellm"], return_request=True)
check("the request of a deletion by name", gone.json == {"keys": None, "key_aliases": ["from-litellm"]})

# The documentation's calls of /key/generate, word by word but for the names of models.
for body in [
    '{"models": ["gpt-3.5-turbo", "gpt-4", "claude-2"], "duration": "20m","metadata": {"user": "ishaan@berri.ai"}}',
    '{"models": ["gpt-4o"], "duration": "20m","metadata": {"user": "ishaan@berri.ai", "team": "core-infra"}}',
    '{"max_budget": 10, "budget_duration": "10s", "tags": ["red-team"], "models": []}',
    '{"max_parallel_requests": 10, "tpm_limit": 20, "rpm_limit": 4}',
    '{"models": ["gpt-4o-mini"], "max_budget": 10, "duration": "30d", "metadata": {"user_id": "user@example.com"}}',
]:
    made = curl("/key/generate", body)
    said = json.loads(body)
    check(body, made.get("key", "").startswith("sk-") and all(made[name] == said[name] for name in said if name != "duration"))
print(passed, "passed,", failed, "failed")
sys.exit(failed > 0)
