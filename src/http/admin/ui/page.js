// The admin plane as a page. The key lives in one variable; nothing is stored, and every text is set as text.
"use strict";

let key = "";
const at = (id) => document.getElementById(id);

/** An element with attributes, handlers and children; texts are never read as HTML. */
function make(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(given)) {
    if (attribute.startsWith("on")) element.addEventListener(attribute.slice(2), value);
    else if (attribute in element) element[attribute] = value;
    else element.setAttribute(attribute, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

async function ask(path, body) {
  const given = { headers: { Authorization: `Bearer ${key}` }, cache: "no-store" };
  if (body !== undefined) {
    given.method = "POST";
    given.body = JSON.stringify(body);
    given.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, given);
  const text = await answer.text();
  let value;
  try { value = JSON.parse(text); } catch { value = text; }
  if (!answer.ok) throw new Error(value?.error?.message ?? `${answer.status} ${answer.statusText}`);
  return value;
}

function complain(error) {
  at("fault").textContent = error ? error.message : "";
  at("fault").hidden = !error;
}

/** Does something, and shows what goes wrong. */
async function doing(work) {
  complain(null);
  try { await work(); } catch (error) { complain(error); }
}

const shown = (value) => {
  if (value === null || value === undefined || value === "") return "–";
  if (Array.isArray(value)) return value.length ? value.join(", ") : "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
};
const dollars = (n) => (n === null || n === undefined ? "–" : `$${Number(n).toFixed(6).replace(/0{1,4}$/, "")}`);

/** Columns: [title, row => text or element, "number"?]. */
function table(columns, rows, empty) {
  if (!rows.length) return make("p", { className: "empty" }, empty);
  const head = make("tr", {}, ...columns.map(([title, , kind]) => make("th", { scope: "col", className: kind ?? "" }, title)));
  const cell = (row) => ([, pick, kind]) => {
    const value = pick(row);
    return make("td", { className: kind ?? "" }, value instanceof Node ? value : shown(value));
  };
  const body = rows.map((row) => make("tr", {}, ...columns.map(cell(row))));
  return make("div", { className: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

/** A button that is pressed twice. */
function sure(title, work) {
  const button = make("button", { type: "button" }, title);
  button.addEventListener("click", () => {
    if (!button.classList.contains("sure")) {
      button.classList.add("sure");
      button.textContent = `${title}: sure?`;
      setTimeout(() => { button.classList.remove("sure"); button.textContent = title; }, 4000);
    } else doing(work);
  });
  return button;
}

/** Fields: [name, title, type, an example]. What is left empty is not sent. */
function form(fields, title, work) {
  const input = ([name, , type, example]) => make("input", { name, type: type === "list" ? "text" : type, autocomplete: "off", step: "any", placeholder: example ?? "" });
  const inputs = fields.map(input);
  const labels = fields.map(([, title], i) => make("label", {}, title, inputs[i]));
  const submit = (event) => {
    event.preventDefault();
    const body = {};
    fields.forEach(([name, , type], i) => {
      const text = inputs[i].value.trim();
      if (!text) return;
      body[name] = type === "number" ? Number(text) : type === "list" ? text.split(",").map((part) => part.trim()).filter(Boolean) : text;
    });
    doing(() => work(body));
  };
  return make("form", { onsubmit: submit, autocomplete: "off" }, ...labels, make("button", {}, title));
}

const spans = (...parts) => make("span", {}, ...parts);

const sections = {
  async Keys(show) {
    const { keys, total_count: n } = await ask("/key/list?size=1000");
    const once = make("div", { id: "once" });
    const again = () => show("Keys");
    const fields = [["key_alias", "Name", "text"], ["models", "Models, by commas", "list"], ["team_id", "Team", "text"], ["max_budget", "Budget, $", "number"],
      ["budget_duration", "every", "text", "30d"], ["rpm_limit", "Requests a minute", "number"], ["duration", "Expires in", "text", "90d"]];
    const acts = (row) => {
      if (!row.created_at) return "";
      const shut = row.blocked ? "unblock" : "block";
      const turn = make("button", { type: "button", onclick: () => doing(async () => { await ask(`/key/${shut}`, { key: row.key_id }); again(); }) }, shut);
      return spans(turn, sure("revoke", async () => { await ask("/key/delete", { keys: [row.key_id] }); again(); }));
    };
    return [
      make("h2", {}, "A new key"),
      form(fields, "Make it", async (body) => { const made = await ask("/key/generate", body); await again(); reveal(made); }),
      once,
      make("h2", {}, n > keys.length ? `Keys (the newest ${keys.length} of ${n})` : `Keys (${n})`),
      table([["Name", (row) => row.key_alias], ["Id", (row) => make("code", {}, row.key_id)], ["Team", (row) => row.team_id], ["Models", (row) => row.models],
        ["Budget", (row) => dollars(row.max_budget), "number"], ["Roles", (row) => row.roles], ["Expires", (row) => row.expires], ["Blocked", (row) => row.blocked], ["", acts]], keys, "There are no keys yet."),
    ];
    /** On the list that is shown now, which is another than the one that the form was on. */
    function reveal(made) {
      const hide = make("button", { type: "button", onclick: again }, "Hide it");
      at("once").replaceChildren(make("p", {}, `The key ${made.key_alias ?? made.key_id}, shown this once:`), make("output", { className: "secret" }, made.key), hide);
    }
  },

  async Teams(show) {
    const [teams, budgets] = await Promise.all([ask("/team/list"), ask("/budget/list").catch(() => [])]);
    const again = () => show("Teams");
    const fields = [["team_id", "Id", "text"], ["team_alias", "Name", "text"], ["models", "Models, by commas", "list"], ["max_budget", "Budget, $", "number"], ["budget_duration", "every", "text", "1mo"], ["budget_id", "Shared budget", "text"]];
    const acts = (row) => {
      const shut = row.blocked ? "unblock" : "block";
      return make("button", { type: "button", onclick: () => doing(async () => { await ask(`/team/${shut}`, { team_id: row.team_id }); again(); }) }, shut);
    };
    return [
      make("h2", {}, "A new team"),
      form(fields, "Make it", async (body) => { await ask("/team/new", body); again(); }),
      make("h2", {}, `Teams (${teams.length})`),
      table([["Id", (row) => make("code", {}, row.team_id)], ["Name", (row) => row.team_alias], ["Models", (row) => row.models], ["Budget", (row) => dollars(row.max_budget), "number"],
        ["Shared budget", (row) => row.budget_id], ["Limits", (row) => row.limits], ["Blocked", (row) => row.blocked], ["", acts]], teams, "There are no teams yet."),
      make("h2", {}, `Shared budgets (${budgets.length})`),
      table([["Id", (row) => make("code", {}, row.budget_id)], ["Budget", (row) => dollars(row.max_budget), "number"], ["Tokens", (row) => row.max_tokens_budget, "number"],
        ["every", (row) => row.budget_duration], ["Requests a minute", (row) => row.rpm_limit, "number"]], budgets, "There are no shared budgets."),
    ];
  },

  async Spend() {
    const parts = [];
    for (const [group, title] of [["day", "By day"], ["model", "By model"], ["api_key", "By key"], ["team", "By team"]]) {
      const rows = await ask(`/global/spend/report?group_by=${group}`);
      const most = Math.max(...rows.map((row) => row.spend), 0);
      const name = (row) => Object.entries(row)[0][1];
      const bar = (row) => make("meter", { min: 0, max: most || 1, value: row.spend, title: dollars(row.spend) });
      parts.push(make("h2", {}, title), table([[group.replace("api_", ""), name], ["Requests", (row) => row.requests, "number"], ["Failed", (row) => row.failed, "number"], ["Prompt tokens", (row) => row.prompt_tokens, "number"],
        ["Cached", (row) => row.cached_tokens, "number"], ["Answer tokens", (row) => row.completion_tokens, "number"], ["Spend", (row) => dollars(row.spend), "number"], ["", bar]], rows, "Nothing was asked yet."));
    }
    return parts;
  },

  async Limits(show) {
    const config = await ask("/config");
    const sets = (all) => Object.entries(all).map(([name, set]) => ({ name, ...set }));
    const limits = sets(config.limits ?? {});
    const names = ["rpm", "tpm", "max_parallel", "max_queue", "max_output_tokens", "class"];
    const reload = make("button", { type: "button", onclick: () => doing(async () => { await ask("/config/reload", {}); show("Limits"); }) }, "Read the settings anew");
    const said = Object.entries(config.settings ?? {}).filter(([, setting]) => setting.from !== "default");
    return [
      make("h2", {}, "Sets of limits"),
      table([["Set", (row) => make("code", {}, row.name)], ...names.map((name) => [name, (row) => row[name], "number"])], limits, "hearth.toml has no sets of limits."),
      make("h2", {}, "Guardrails"),
      table([["Set", (row) => make("code", {}, row.name)], ["Instruction", (row) => row.system], ["Input", (row) => row.input], ["Output", (row) => row.output]], sets(config.guardrails ?? {}), "hearth.toml has no guardrails."),
      make("h2", {}, "Settings that were said"),
      table([["Setting", ([name]) => make("code", {}, name)], ["Value", ([, setting]) => setting.value], ["From", ([, setting]) => setting.from]], said, "All settings are the defaults."),
      make("p", {}, reload),
    ];
  },

  async Models(show) {
    const { data } = await ask("/model/info");
    const act = (row) => {
      const verb = row.model_info.loaded ? "unload" : "load";
      return make("button", { type: "button", onclick: () => doing(async () => { await ask(`/model/${verb}`, { model: row.model_name }); show("Models"); }) }, verb);
    };
    return [
      make("h2", {}, `Models (${data.length})`),
      table([["Model", (row) => make("code", {}, row.model_name)], ["Other names", (row) => row.model_info.aliases], ["Loaded", (row) => row.model_info.loaded], ["$ / M prompt", (row) => row.model_info.usd_per_million_input, "number"],
        ["$ / M cached", (row) => row.model_info.usd_per_million_cached_input, "number"], ["$ / M answer", (row) => row.model_info.usd_per_million_output, "number"], ["", act]], data, "There are no models."),
    ];
  },

  async Upstreams() {
    const { data } = await ask("/upstreams");
    const breaker = (row) => make("span", { className: row.breaker === "closed" ? "good" : "bad" }, row.breaker);
    return [
      make("h2", {}, `Upstreams (${data.length})`),
      table([["Upstream", (row) => make("code", {}, row.name)], ["Breaker", breaker], ["In flight", (row) => row.in_flight, "number"], ["Last", (row) => row.last_class]], data, "No other server is asked."),
    ];
  },

  async Audit() {
    const found = await ask("/audit/verify");
    const since = Math.max(1, found.head_seq - 49);
    const links = (await ask(`/audit/events?since=${since}&limit=50`)).reverse();
    const word = found.ok ? make("p", { className: "good", id: "verified" }, `The chain is whole: ${found.links} links, ${found.rows} rows, ${found.checkpoints} checkpoints.`)
      : make("p", { className: "bad", id: "verified" }, `The chain is broken at link ${found.first_bad_seq}: ${found.reason}`);
    return [
      make("h2", {}, "The audit chain"), word, make("p", {}, "Head: ", make("code", {}, shown(found.head))),
      make("h2", {}, "The latest links"),
      table([["#", (row) => row.seq, "number"], ["When", (row) => row.time], ["Who", (row) => make("code", {}, row.actor)], ["What", (row) => row.action], ["To", (row) => make("code", {}, row.object)]], links, "There are no links."),
    ];
  },
};

async function show(name) {
  for (const tab of at("tabs").children) tab.setAttribute("aria-selected", String(tab.textContent === name));
  await doing(async () => {
    const parts = await sections[name](show);
    at("main").replaceChildren(...parts);
    at("main").dataset.section = name;
  });
}

function opened(is) {
  at("door").hidden = is;
  for (const id of ["leave", "tabs", "main"]) at(id).hidden = !is;
}

at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  doing(async () => {
    key = at("key").value.trim();
    at("key").value = "";
    try { await ask("/key/list?size=1"); } catch (error) { key = ""; throw error; }
    opened(true);
    await show("Keys");
  });
});
at("leave").addEventListener("click", () => {
  key = "";
  at("main").replaceChildren();
  opened(false);
  complain(null);
});
at("tabs").append(...Object.keys(sections).map((name) => make("button", { type: "button", role: "tab", onclick: () => show(name) }, name)));
