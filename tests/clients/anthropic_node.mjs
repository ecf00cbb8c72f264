// Anthropic's Node client. Usage: see check.mjs.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import { check, collect, ready, run, servers, versionOf } from './check.mjs';

const at = (baseURL, more = {}) => new Anthropic({ baseURL, apiKey: 'unused', maxRetries: 0, timeout: 60_000, ...more });
const client = at(servers.demo);
const messages = [{ role: 'user', content: 'Say hello.' }];
const ask = { model: 'claude-any', max_tokens: 16, messages };
const user = (content, more = {}) => ({ model: 'claude-any', max_tokens: 2048, messages: [{ role: 'user', content }], ...more });
const look = { name: 'look', input_schema: { type: 'object', properties: { at: { type: 'string' } } } };

check('models are listed', ['MOD-01'], async () => {
  const [first] = (await client.models.list()).data;
  assert.deepEqual([first.type, typeof first.display_name], ['model', 'string']);
});

check('a message has every field and is counted', ['ANTH-09'], async () => {
  const message = await client.messages.create(ask);
  assert.equal(message.type, 'message');
  assert.ok(['end_turn', 'max_tokens'].includes(message.stop_reason));
  const counted = await client.messages.countTokens({ model: ask.model, messages });
  assert.equal(message.usage.input_tokens + message.usage.cache_read_input_tokens, counted.input_tokens);
});

check('the streaming helper puts it together', ['ANTH-06', 'FAULT-06', 'FAULT-10', 'FAULT-11'], async () => {
  const stream = client.messages.stream(ask);
  let text = '';
  stream.on('text', (delta) => (text += delta));
  const final = await stream.finalMessage();
  assert.equal(final.content.map((block) => block.text ?? '').join(''), text);
  assert.ok(final.usage.output_tokens > 0);
});

check('half a code point first', ['STRM-03', 'FAULT-11'], async (url) => {
  assert.equal((await at(url).messages.stream(user('/bytes 240 159 152 128')).finalMessage()).content[0].text, '😀');
}, 'scripted');

check('stop sequences and prefill', ['ANTH-01', 'ANTH-05'], async (url) => {
  const stopped = await at(url).messages.stream(user('one two three', { stop_sequences: [' two'] })).finalMessage();
  assert.deepEqual([stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text], ['stop_sequence', ' two', 'one']);
  const prefilled = user('abc');
  prefilled.messages.push({ role: 'assistant', content: 'Sure:' });
  assert.equal((await at(url).messages.create(prefilled)).content[0].text, 'abc');
}, 'scripted');

check('thinking is signed and taken back', ['ANTH-04'], async (url) => {
  const asked = user('/think deeply', { thinking: { type: 'enabled', budget_tokens: 1024 } });
  const { content } = await at(url).messages.stream(asked).finalMessage();
  assert.deepEqual(content.map((block) => block.type), ['thinking', 'text']);
  assert.equal(content[0].thinking, 'deeply');
  assert.ok(content[0].signature);
  const back = [...asked.messages, { role: 'assistant', content }, { role: 'user', content: 'y' }];
  assert.equal((await at(url).messages.create({ ...asked, messages: back })).content[0].text, 'y');
}, 'scripted');

check('two calls and their results', ['ANTH-13', 'TOOL-08', 'FAULT-10'], async (url) => {
  const asked = user('/call look {"at":"a"}\n/call look {"at":"b"}', { tools: [look] });
  const { content, stop_reason } = await at(url).messages.stream(asked).finalMessage();
  const calls = content.filter((block) => block.type === 'tool_use');
  assert.equal(stop_reason, 'tool_use');
  assert.deepEqual(calls.map((call) => call.input), [{ at: 'a' }, { at: 'b' }]);
  const results = calls.map(({ id }) => ({ type: 'tool_result', tool_use_id: id, content: 'seen' }));
  const history = [...asked.messages, { role: 'assistant', content }, { role: 'user', content: results }];
  assert.equal((await at(url).messages.create({ ...asked, messages: history })).type, 'message');
}, 'scripted');

check('errors are typed', ['ANTH-07', 'ANTH-11'], async () => {
  const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'AQID' } };
  for (const change of [
    { max_tokens: 0 },
    { tools: [{ type: 'web_search_20250305', name: 'web_search' }] },
    { messages: [{ role: 'user', content: [image] }] },
  ]) {
    await assert.rejects(client.messages.create({ ...ask, ...change }), (error) => {
      assert.ok(error instanceof Anthropic.BadRequestError, `${error}`);
      return error.error.error.type === 'invalid_request_error' && error.requestID.startsWith('req_');
    });
  }
  await assert.rejects(client.messages.create({ ...ask, model: 'nope', stream: true }), Anthropic.NotFoundError);
});

check('a full server is overloaded', ['ANTH-14', 'ERR-01'], async (url) => {
  const forever = user('/forever', { max_tokens: 100_000, stream: true });
  const first = await at(url).messages.create(forever);
  await first[Symbol.asyncIterator]().next();
  const waiting = await at(url).messages.create(forever);
  await assert.rejects(at(url).messages.create(forever), (error) => error.status === 529);
  first.controller.abort();
  waiting.controller.abort();
}, 'full');

check('a caller over its own limit is told', ['ANTH-14', 'ERR-01'], async (url) => {
  const ask = () => at(url).messages.create(user('x'));
  await assert.rejects(ask().then(ask), (error) => error instanceof Anthropic.RateLimitError && error.error.error.type === 'rate_limit_error');
}, 'limited');

check('a crash is an error in the stream', ['STRM-09'], async (url) => {
  await ready(url);
  const stream = await at(url).messages.create(user('/crash anthropic-node', { stream: true }));
  await assert.rejects(collect(stream), (error) => error instanceof Anthropic.APIError && error.error.error.type === 'api_error');
  await ready(url);
}, 'crashing');

check('either header carries the key', ['ERR-06'], async (url) => {
  for (const key of [{ apiKey: 'sk-test' }, { apiKey: null, authToken: 'sk-test' }]) {
    assert.ok((await at(url, key).models.list()).data.length);
  }
  await assert.rejects(at(url, { apiKey: 'wrong' }).models.list(), Anthropic.AuthenticationError);
}, 'keyed');

await run('anthropic-node', versionOf('@anthropic-ai/sdk'));
