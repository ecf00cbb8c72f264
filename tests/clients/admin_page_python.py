"""The administrators' page in a real browser (Chromium over its DevTools protocol): who types in the key sees and does what
the admin API can, nothing is stored, and nothing but the page's own server is asked.

    python admin_page_python.py CHROMIUM DATA_URL ADMIN_URL MASTER_KEY [FOLDER_FOR_PICTURES]
"""

import base64
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import httpx
from websockets.sync.client import connect

chromium, url, admin, master = sys.argv[1:5]
shots = pathlib.Path(sys.argv[5]) if len(sys.argv) > 5 else None
passed = failed = 0


def check(name, is_true):
    global passed, failed
    passed, failed = passed + bool(is_true), failed + (not is_true)
    if not is_true:
        print("failed:", name)


class Browser:
    """One tab of a browser with a profile of its own."""

    def __init__(self, folder):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0",
                 "--window-size=1200,900", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen([chromium, *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        address = next(line.split()[-1] for line in self.process.stderr if line.startswith("DevTools listening on"))
        self.socket = connect(address, max_size=None, proxy=None, legacy=True)
        self.ids, self.events, self.session = itertools.count(1), [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            got = json.loads(self.socket.recv(timeout=30))
            if got.get("id") == number:
                assert "error" not in got, (method, got)
                return got["result"]
            self.events.append(got)

    def run(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found)
        return found["result"].get("value")

    def until(self, script):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.run(script):
                return True
            time.sleep(0.05)
        return False

    def open(self, address):
        self.call("Page.navigate", url=address)
        return self.until("document.readyState === 'complete' && !!document.getElementById('tabs')?.children.length")

    def type(self, selector, text):
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press(self, selector):
        """A click of the mouse in the middle of it."""
        place = self.run(f"(() => {{ const it = document.querySelector({json.dumps(selector)}); it.scrollIntoView({{block: 'center'}});"
                         " const box = it.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def tab(self, name):
        self.run(f"[...document.querySelectorAll('#tabs button')].find((it) => it.textContent === '{name}').click()")
        return self.until(f"document.getElementById('main').dataset.section === '{name}'")

    def shoot(self, name):
        if shots:
            picture = self.call("Page.captureScreenshot", format="png")["data"]
            (shots / f"{name}.png").write_bytes(base64.b64decode(picture))

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()


def act(path, body):
    answer = httpx.post(admin + path, json=body, headers={"Authorization": f"Bearer {master}"}, trust_env=False)
    answer.raise_for_status()
    return answer.json()


def chat(key):
    body = {"model": "hearth-demo", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"},
                      trust_env=False, timeout=60).status_code


nasty = "<img src=x onerror=document.title='gone'>"
act("/key/generate", {"key_alias": nasty})
act("/team/new", {"team_id": "core", "max_budget": 5})
act("/budget/new", {"budget_id": "shared", "max_budget": 1})
head = httpx.get(f"{admin}/ui", trust_env=False).headers
policy = head["content-security-policy"]
check("a strict policy", "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy)
check("the page is not on the data plane", httpx.get(f"{url}/ui", trust_env=False).status_code in (401, 404))

# Helpers of the browser may write into it a moment longer than it lives.
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    browser = Browser(folder)
    try:
        check("the page opens", browser.open(f"{admin}/"))
        browser.shoot("door")
        browser.type("#key", "sk-wrong")
        browser.press("#door button")
        check("a wrong key is told", browser.until("!document.getElementById('fault').hidden"))
        check("and opens nothing", browser.run("document.getElementById('tabs').hidden"))
        browser.type("#key", master)
        browser.press("#door button")
        check("the right key opens", browser.until("document.getElementById('main').dataset.section === 'Keys'"))
        check("what others wrote is text", browser.run(f"document.body.innerText.includes({json.dumps(nasty)})")
              and browser.run("document.title") == "hearth admin" and browser.run("document.images.length") == 0)
        browser.type("#main input[name=key_alias]", "from-the-page")
        browser.type("#main input[name=models]", "hearth-demo, other")
        browser.type("#main input[name=max_budget]", "2.5")
        browser.press("#main form button")
        check("a key is made", browser.until("!!document.querySelector('#once output')"))
        made = browser.run("document.querySelector('#once output').textContent")
        check("and works", made.startswith("sk-hearth-") and chat(made) == 200)
        browser.shoot("keys")
        info = httpx.get(f"{admin}/key/info", params={"key": made}, headers={"Authorization": f"Bearer {master}"}, trust_env=False)
        info = info.json()["info"]
        check("as it was typed", info["models"] == ["hearth-demo", "other"] and info["max_budget"] == 2.5)
        browser.press("#once button")
        check("it is shown once", browser.until(f"!document.documentElement.innerHTML.includes({json.dumps(made)})"))
        row = ("[...document.querySelectorAll('#main tbody tr')].find((it) => it.textContent.includes('from-the-page'))"
               "?.querySelectorAll('button')")
        browser.run(f"{row}[0].click()")
        check("it is blocked", browser.until(f"{row}?.[0].textContent === 'unblock'") and chat(made) == 401)
        browser.run(f"{row}[0].click()")
        check("and open again", browser.until(f"{row}?.[0].textContent === 'block'") and chat(made) == 200)
        # In one go each: the question is withdrawn after a few seconds.
        asked = browser.run(f"(() => {{ const it = {row}[1]; it.click(); return it.textContent; }})()")
        check("revoking asks once more", asked == "revoke: sure?" and chat(made) == 200)
        browser.run(f"(() => {{ const it = {row}[1]; if (it.textContent === 'revoke') it.click(); it.click(); }})()")
        check("it is revoked", browser.until(f"!{row}") and chat(made) == 401)
        expected = {"Teams": "core", "Spend": "hearth-demo", "Limits": "data_dir", "Models": "hearth-demo",
                    "Upstreams": "No other server is asked", "Audit": "The chain is whole"}
        for name, words in expected.items():
            check(f"{name} opens", browser.tab(name) and browser.run("document.getElementById('fault').hidden"))
            check(f"{name} tells", browser.until(f"document.getElementById('main').innerText.includes({json.dumps(words)})"))
            browser.shoot(name.lower())
        stored = browser.run("[localStorage.length, sessionStorage.length, document.cookie.length]")
        check("nothing is stored", stored == [0, 0, 0])
        check("the key is in no part of the page", not browser.run(f"document.documentElement.outerHTML.includes({json.dumps(master)})"))
        browser.open(f"{admin}/ui")
        check("a reload forgets the key", browser.run("document.getElementById('main').hidden && !document.getElementById('door').hidden"))
        browser.call("Runtime.evaluate", expression="0")
        asked = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
        check("only its own server is asked", asked and all(address.startswith(admin) for address in asked))
        faults = [event["params"]["entry"]["text"] for event in browser.events if event.get("method") == "Log.entryAdded"
                  and event["params"]["entry"]["level"] == "error"]
        # The wrong key's 401, and the icon that nobody has.
        faults = [fault for fault in faults if "401" not in fault]
        thrown = [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
        check(f"no faults {faults} {thrown}", not faults and not thrown)
    finally:
        browser.close()
print(passed, "passed,", failed, "failed")
sys.exit(failed > 0)
