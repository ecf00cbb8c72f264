// What the Node clients' scripts share: the servers to talk to, the list of checks, and how their outcome is told.
//
//     node SCRIPT.mjs DEMO_URL [NAME=URL ...]
//
// See check.py, which this is the twin of.
import { readFileSync } from 'node:fs';

const [demo, ...named] = process.argv.slice(2).map((argument) => argument.replace(/\/$/, ''));
const pairs = named.map((argument) => [argument.slice(0, argument.indexOf('=')), argument.slice(argument.indexOf('=') + 1)]);
export const servers = { demo, ...Object.fromEntries(pairs) };
const checks = [];
/** Longest a check may take: a body that stays open would hold it up forever. */
const PATIENCE = 60_000;

/** Declares a check of `rows` against the server `on`; the function is given its address. */
export function check(name, rows, run, on = 'demo') {
  checks.push({ name, rows, run, on });
}

export async function collect(stream) {
  const all = [];
  for await (const one of stream) all.push(one);
  return all;
}

/** Waits until the server takes requests: after a crash of its engine it doesn't for a moment. */
export async function ready(url) {
  const until = Date.now() + 60_000;
  while ((await fetch(`${url}/readyz`)).status !== 200) {
    if (Date.now() > until) throw new Error(`${url} is not ready after a minute`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A `fetch` that counts requests and keeps the raw text of streams. */
export function spy() {
  const seen = { requests: 0, texts: [] };
  seen.fetch = async (url, init) => {
    seen.requests += 1;
    const answer = await fetch(url, init);
    const [one, other] = answer.body ? answer.body.tee() : [null, null];
    if (other) seen.texts.push(new Response(other).text().catch(() => ''));
    return new Response(one, answer);
  };
  return seen;
}

async function within(ms, work) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`not done after ${ms} ms`)), ms)));
  await Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** The installed version of a package. */
export function versionOf(name) {
  const file = new URL(`node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(file, 'utf8')).version;
}

/** Runs what was declared, tells it, and exits. */
export async function run(client, version) {
  let failed = 0;
  let passed = 0;
  for (const { name, rows, run, on } of checks) {
    if (!(on in servers)) continue;
    let fault = null;
    try {
      await within(PATIENCE, run(servers[on]));
      passed += 1;
    } catch (error) {
      failed += 1;
      fault = `${error?.stack ?? error}`;
    }
    console.log(JSON.stringify({ client, version, check: name, rows, fault }));
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}
