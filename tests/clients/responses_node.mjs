// OpenAI's Node client: the Responses API. Usage: see check.mjs.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { check, collect, ready, run, servers, versionOf } from './check.mjs';

const at = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0, timeout: 60_000 });
const client = at(servers.demo);
const model = (await client.models.list()).data[0].id;
const ask = { model, input: 'Say hello.', max_output_tokens: 16, temperature: 0 };
const f = { type: 'function', name: 'f', parameters: { type: 'object', properties: {} }, strict: false };

check('a response has its text', [], async () => {
  const answer = await client.responses.create(ask);
  assert.equal(answer.object, 'response');
  assert.equal(typeof answer.output_text, 'string');
  assert.equal(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens);
});

check('streamed text is the whole text, and the stream ends', ['FAULT-06'], async () => {
  const whole = await client.responses.create(ask);
  let text = '';
  let last;
  for await (const event of await client.responses.create({ ...ask, stream: true })) {
    if (event.type === 'response.output_text.delta') text += event.delta;
    last = event;
  }
  assert.ok(['response.completed', 'response.incomplete'].includes(last.type));
  assert.equal(text, whole.output_text);
});

check('the accumulator knows every event', ['FAULT-12', 'FAULT-13'], async () => {
  const stream = client.responses.stream(ask);
  const final = await stream.finalResponse();
  const message = final.output.find((item) => item.type === 'message');
  assert.equal(message.content[0].text, (await client.responses.create(ask)).output_text);
});

check('the accumulator knows reasoning, calls and custom tools', ['RESP-03', 'RESP-10', 'FAULT-12'], async (url) => {
  const final = (input, tools) => at(url).responses.stream({ model: 'scripted', input, tools }).finalResponse();
  const thought = await final('/think well');
  assert.deepEqual(thought.output.map((item) => item.type), ['reasoning', 'message']);
  const called = await final('/call f {"a":1}', [f]);
  assert.deepEqual([called.output[0].name, called.output[0].arguments], ['f', '{"a":1}']);
  const custom = await final('/call patch {"input":"a"}', [{ type: 'custom', name: 'patch' }]);
  assert.deepEqual([custom.output[0].type, custom.output[0].input], ['custom_tool_call', 'a']);
}, 'scripted');

check('what is stored is found, listed, gone on from and deleted', ['RESP-07', 'RESP-12'], async () => {
  const first = await client.responses.create({ ...ask, instructions: 'Be brief.' });
  assert.equal((await client.responses.retrieve(first.id)).id, first.id);
  const next = await client.responses.create({ ...ask, previous_response_id: first.id });
  assert.equal(next.instructions, null);
  const items = await client.responses.inputItems.list(next.id);
  assert.equal(items.data.length, 1);
  const reference = { type: 'item_reference', id: first.output[0].id };
  assert.ok(await client.responses.create({ ...ask, input: [reference, { role: 'user', content: 'Again.' }] }));
  const lost = { ...ask, input: [{ type: 'item_reference', id: 'msg_none' }] };
  await assert.rejects(client.responses.create(lost), OpenAI.NotFoundError);
  const counted = await client.responses.inputTokens.count({ model, input: ask.input, instructions: 'Be brief.' });
  assert.equal(counted.input_tokens, first.usage.input_tokens);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
});

check('hosted tools, refused fields and lost ids', ['RESP-04', 'RESP-08', 'RESP-14'], async () => {
  const tools = [{ type: 'web_search_preview' }];
  assert.ok(await client.responses.create({ ...ask, tools }));
  for (const [change, param] of [
    [{ tools, tool_choice: { type: 'web_search_preview' } }, 'tool_choice'],
    [{ conversation: 'conv_1' }, 'conversation'],
    [{ prompt: { id: 'pmpt_1' } }, 'prompt'],
    [{ previous_response_id: 'resp_of_another_life' }, 'previous_response_id'],
  ]) {
    await assert.rejects(client.responses.create({ ...ask, ...change }), (error) => error.status === 400 && error.param === param);
  }
});

check('a failure is the last event', ['RESP-11'], async (url) => {
  await ready(url);
  const events = await collect(await at(url).responses.create({ model: 'scripted', input: '/crash responses-node', stream: true }));
  assert.equal(events.at(-1).type, 'response.failed');
  await ready(url);
}, 'crashing');

await run('openai-node', versionOf('openai'));
