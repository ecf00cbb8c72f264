// OpenAI's Node client: chats, completions, embeddings, and what a connection must do. Usage: see check.mjs.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { check, collect, ready, run, servers, spy, versionOf } from './check.mjs';

const at = (url, more = {}) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0, timeout: 60_000, ...more });
const client = at(servers.demo);
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'Say hello.' }];
const ask = { model, messages, max_tokens: 16, temperature: 0 };
const user = (content) => ({ model: 'scripted', messages: [{ role: 'user', content }] });
const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const weather = { type: 'function', function: { name: 'weather', parameters } };
const now = { type: 'function', function: { name: 'now' } };

check('models are listed and found', ['MOD-01', 'MOD-02', 'MOD-04'], async () => {
  assert.equal((await client.models.retrieve(model)).id, model);
  assert.equal((await client.models.retrieve(`${model}:latest`)).id, model);
  await assert.rejects(client.models.retrieve('no-such/model'), OpenAI.NotFoundError);
});

check('a chat has every field', [], async () => {
  const answer = await client.chat.completions.create(ask);
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices.length, 1);
  assert.equal(typeof answer.choices[0].message.content, 'string');
  assert.ok(['stop', 'length'].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

check('streamed text is the whole text, and the stream ends', ['FAULT-02', 'FAULT-05', 'FAULT-06'], async () => {
  const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
  const chunks = await collect(await client.chat.completions.create({ ...ask, stream: true }));
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''), whole);
  assert.ok(chunks.at(-1).choices[0].finish_reason);
  assert.equal(chunks.filter((chunk) => chunk.choices[0].finish_reason).length, 1);
  const asked = { ...ask, stream: true, stream_options: { include_usage: true } };
  const counted = await collect(await client.chat.completions.create(asked));
  assert.deepEqual(counted.at(-1).choices, []);
  assert.ok(counted.at(-1).usage.completion_tokens > 0);
});

check('the streaming helper puts it together', ['FAULT-02', 'FAULT-06'], async () => {
  const stream = client.chat.completions.stream(ask);
  let text = '';
  stream.on('content', (delta) => (text += delta));
  assert.equal((await stream.finalChatCompletion()).choices[0].message.content, text);
});

check('a connection serves again after a stream', [], async () => {
  for (let i = 0; i < 3; i++) {
    await collect(await client.chat.completions.create({ ...ask, max_tokens: 2, stream: true }));
    assert.ok(await client.chat.completions.create({ ...ask, max_tokens: 1 }));
    await assert.rejects(client.chat.completions.create({ ...ask, temperature: -1 }), OpenAI.BadRequestError);
  }
});

check('half a code point first', ['STRM-03'], async (url) => {
  const chunks = await collect(await at(url).chat.completions.create({ ...user('/bytes 240 159 152 128'), stream: true }));
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''), '😀');
}, 'scripted');

check('thinking comes first and apart', ['STRM-12'], async (url) => {
  const chunks = await collect(await at(url).chat.completions.create({ ...user('/think hard'), stream: true }));
  const kinds = chunks.flatMap(({ choices: [{ delta }] }) => ['reasoning_content', 'content'].filter((key) => delta[key]));
  assert.deepEqual([...new Set(kinds)], ['reasoning_content', 'content']);
  assert.deepEqual(kinds, [...kinds].sort().reverse());
}, 'scripted');

check('two calls through the helper', ['TOOL-08', 'FAULT-06', 'FAULT-08'], async (url) => {
  const asked = { ...user('/call weather {"city":"Rome"}\n/call now {}'), tools: [weather, now] };
  const final = await at(url).chat.completions.stream(asked).finalChatCompletion();
  const [{ finish_reason, message }] = final.choices;
  assert.equal(finish_reason, 'tool_calls');
  assert.deepEqual(message.tool_calls.map((call) => [call.function.name, call.function.arguments]), [
    ['weather', '{"city":"Rome"}'],
    ['now', '{}'],
  ]);
  assert.notEqual(message.tool_calls[0].id, message.tool_calls[1].id);
}, 'scripted');

check('a forced call and its result', ['TOOL-04', 'TOOL-11', 'TOOL-12'], async () => {
  const tool = zodFunction({ name: 'weather', parameters: z.object({ city: z.string().max(8), unit: z.enum(['C', 'F']) }) });
  const answer = await client.chat.completions.parse({ ...ask, max_tokens: 200, tools: [tool], tool_choice: 'required' });
  const [{ finish_reason, message }] = answer.choices;
  assert.equal(finish_reason, 'tool_calls');
  assert.ok(['C', 'F'].includes(message.tool_calls[0].function.parsed_arguments.unit));
  const call = { ...message.tool_calls[0], function: { name: 'weather', arguments: '' } };
  const result = { role: 'tool', tool_call_id: call.id, content: 'sunny' };
  const history = [...messages, { role: 'assistant', content: null, tool_calls: [call] }, result];
  assert.ok((await client.chat.completions.create({ ...ask, messages: history, tools: [weather] })).choices);
});

check('parse reads a schema of zod', ['JSON-02', 'JSON-09'], async () => {
  const form = z.object({ b: z.array(z.enum(['x', 'y'])).max(3), a: z.number().int().min(0).max(9).nullable() });
  const asked = { model, messages, reasoning_effort: 'none', response_format: zodResponseFormat(form, 'form') };
  const { message } = (await client.chat.completions.parse(asked)).choices[0];
  assert.deepEqual(Object.keys(message.parsed), ['b', 'a']);
});

check('completions', ['COMP-01'], async () => {
  const whole = await client.completions.create({ model, prompt: 'One', max_tokens: 4, temperature: 0 });
  const stream = await client.completions.create({ model, prompt: 'One', max_tokens: 4, temperature: 0, stream: true });
  assert.equal((await collect(stream)).map((chunk) => chunk.choices[0].text).join(''), whole.choices[0].text);
});

check('vectors are the same in base64', ['EMB-01', 'FAULT-15'], async (url) => {
  const embed = (more) => at(url).embeddings.create({ model: 'tiny-bert', input: ['a', 'b'], ...more });
  const [decoded, floats] = [await embed({}), await embed({ encoding_format: 'float' })];
  assert.deepEqual(decoded.data.map((one) => one.index), [0, 1]);
  floats.data[1].embedding.forEach((x, i) => assert.ok(Math.abs(x - decoded.data[1].embedding[i]) < 1e-6));
  await assert.rejects(client.embeddings.create({ model, input: 'a' }), OpenAI.BadRequestError);
}, 'vectors');

check('errors are typed', ['STRM-05', 'FAULT-09'], async () => {
  const refused = async (change, kind, status, param) => {
    await assert.rejects(client.chat.completions.create({ ...ask, ...change }), (error) => {
      assert.ok(error instanceof kind, `${error}`);
      assert.equal(error.status, status);
      assert.equal(error.param, param);
      assert.ok(error.code === null || typeof error.code === 'string');
      return true;
    });
  };
  await refused({ model: 'no-such-model' }, OpenAI.NotFoundError, 404, 'model');
  await refused({ temperature: -1 }, OpenAI.BadRequestError, 400, 'temperature');
  await refused({ temperature: 'hot', stream: true }, OpenAI.BadRequestError, 400, 'temperature');
  await refused({ messages: [] }, OpenAI.BadRequestError, 400, 'messages');
});

check('each fault of the client is one request', ['ERR-06', 'ERR-16'], async (url) => {
  const seen = spy();
  const eager = at(url, { apiKey: 'sk-test', maxRetries: 2, fetch: seen.fetch });
  const wrong = at(url, { apiKey: 'wrong', maxRetries: 2, fetch: seen.fetch });
  const create = (more) => eager.chat.completions.create({ ...user('x'), ...more });
  for (const [status, call] of [
    [400, () => create({ messages: [] })],
    [401, () => wrong.models.list()],
    [404, () => create({ model: 'none' })],
    [405, () => eager.get('/chat/completions')],
    [413, () => create(user('x'.repeat(1_200_000)))],
  ]) {
    const before = seen.requests;
    await assert.rejects(call(), (error) => error.status === status && error.type === 'invalid_request_error');
    assert.equal(seen.requests - before, 1, `${status} was tried again`);
  }
}, 'keyed');

check('a crash is an error in the stream', ['STRM-09'], async (url) => {
  await ready(url);
  const stream = await at(url).chat.completions.create({ ...user('/crash openai-node'), stream: true });
  await assert.rejects(collect(stream), (error) => error instanceof OpenAI.APIError && error.code === 'internal_error');
  await ready(url);
}, 'crashing');

check('a full server says when to come again', ['ERR-01'], async (url) => {
  const forever = { ...user('/forever'), stream: true };
  const first = await at(url).chat.completions.create(forever);
  await first[Symbol.asyncIterator]().next();
  const waiting = await at(url).chat.completions.create(forever);
  await assert.rejects(at(url).chat.completions.create(forever), (error) => {
    assert.deepEqual([error.status, error.code], [503, 'server_is_overloaded']);
    return Number(error.headers.get('retry-after')) >= 1;
  });
  first.controller.abort();
  waiting.controller.abort();
}, 'full');

check('a caller over its own limit is told', ['ERR-01'], async (url) => {
  const ask = () => at(url).chat.completions.create(user('x'));
  await assert.rejects(ask().then(ask), (error) => error instanceof OpenAI.RateLimitError && error.code === 'rate_limit_exceeded');
}, 'limited');

check('a stream can be aborted', ['STRM-06'], async () => {
  for (let i = 0; i < 50; i++) {
    const stream = await client.chat.completions.create({ ...ask, max_tokens: 500, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
  }
  const started = Date.now();
  await client.chat.completions.create({ ...ask, max_tokens: 1 });
  assert.ok(Date.now() - started < 15000, 'the slots of streams that were aborted are still in use');
});

check('many at once do not mix', ['CHAT-18'], async (url) => {
  const texts = Array.from({ length: 16 }, (_, i) => `number ${i} of sixteen`);
  const answers = await Promise.all(texts.map((text) => at(url).chat.completions.create(user(text))));
  assert.equal(new Set(answers.map((answer) => answer.id)).size, 16);
  assert.deepEqual(answers.map((answer) => answer.choices[0].message.content), texts);
}, 'scripted');

await run('openai-node', versionOf('openai'));
