"""What the Python clients' scripts share: the servers to talk to, the list of checks, and how their outcome is told.

    python SCRIPT.py DEMO_URL [NAME=URL ...]

DEMO_URL serves a model with a chat template; what it says does not matter. Checks that need another server (`scripted`,
`vectors`, `ranker`, `keyed`, `limited`, …: see tests/it/conformance/servers.rs) are left out where it isn't given. A check names the
rows of the conformance table that it holds. Each outcome is a line of JSON; the last line counts them.
"""

import json
import sys
import time
import traceback
import urllib.error
import urllib.request

DEMO = sys.argv[1].rstrip("/")
SERVERS = {"demo": DEMO} | dict(argument.rstrip("/").split("=", 1) for argument in sys.argv[2:])
CHECKS = []


def check(*rows, on="demo"):
    """Declares a check of `rows` against the server `on`; the function is given its address."""

    def declare(function):
        CHECKS.append((function, rows, on))
        return function

    return declare


def fetch(url, body=None):
    """(status, JSON or text) of a plain request, for what a client doesn't show."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def ready(url):
    """Waits until the server takes requests: after a crash of its engine it doesn't for a moment."""
    until = time.monotonic() + 60
    while fetch(url + "/readyz")[0] != 200:
        assert time.monotonic() < until, f"{url} is not ready after a minute"
        time.sleep(0.05)


def raised(kinds, call):
    """The error of one of these kinds that `call` raises."""
    try:
        found = call()
    except kinds as error:
        return error
    raise AssertionError(f"{kinds} expected, not {found!r}")


def twice(call):
    """Asks a second time, which is over the limit of the server `limited`."""
    call()
    return call()


def run(client, version):
    """Runs what was declared, tells it, and exits."""
    n_failed = n_run = 0
    for function, rows, on in CHECKS:
        if on not in SERVERS:
            continue
        n_run += 1
        fault = None
        try:
            function(SERVERS[on])
        except Exception:
            fault = traceback.format_exc()
            n_failed += 1
        outcome = {"client": client, "version": version, "check": function.__name__, "rows": rows, "fault": fault}
        print(json.dumps(outcome), flush=True)
    print(f"{n_run - n_failed} passed, {n_failed} failed")
    sys.exit(1 if n_failed else 0)
