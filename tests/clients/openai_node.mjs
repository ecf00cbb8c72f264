// The official Node client against a running hearth: node openai_node.mjs BASE_URL
//
// The model behind it must have a chat template; what it says does not matter. Exits 1 when a check fails.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const baseURL = process.argv[2].replace(/\/$/, '') + '/v1';
const client = new OpenAI({ baseURL, apiKey: 'unused', maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'Say hello.' }];
const ask = { model, messages, max_tokens: 16, temperature: 0 };

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const checks = {
  async 'models are listed and found'() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve('no-such-model'), OpenAI.NotFoundError);
  },
  async 'a chat has every field'() {
    const answer = await client.chat.completions.create(ask);
    assert.equal(answer.object, 'chat.completion');
    assert.equal(answer.choices.length, 1);
    assert.equal(typeof answer.choices[0].message.content, 'string');
    assert.ok(['stop', 'length'].includes(answer.choices[0].finish_reason));
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async 'streamed text is the whole text, and the stream ends'() {
    const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
    const chunks = await collect(await client.chat.completions.create({ ...ask, stream: true }));
    assert.equal(chunks[0].choices[0].delta.role, 'assistant');
    assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''), whole);
    assert.ok(chunks.at(-1).choices[0].finish_reason);
    assert.equal(chunks.filter((chunk) => chunk.choices[0].finish_reason).length, 1);
  },
  async 'usage comes last when asked for'() {
    const asked = { ...ask, stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client.chat.completions.create(asked));
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  },
  async 'the streaming helper puts it together'() {
    const stream = client.chat.completions.stream(ask);
    let text = '';
    stream.on('content', (delta) => (text += delta));
    assert.equal((await stream.finalChatCompletion()).choices[0].message.content, text);
  },
  async 'completions'() {
    const whole = await client.completions.create({ model, prompt: 'One', max_tokens: 4, temperature: 0 });
    const stream = await client.completions.create({ model, prompt: 'One', max_tokens: 4, temperature: 0, stream: true });
    assert.equal((await collect(stream)).map((chunk) => chunk.choices[0].text).join(''), whole.choices[0].text);
  },
  async 'errors are typed'() {
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
  },
  async 'a stream can be aborted'() {
    for (let i = 0; i < 20; i++) {
      const stream = await client.chat.completions.create({ ...ask, max_tokens: 500, stream: true });
      for await (const _ of stream) break;
      stream.controller.abort();
    }
    const started = Date.now();
    await client.chat.completions.create({ ...ask, max_tokens: 1 });
    assert.ok(Date.now() - started < 5000, 'the slots of streams that were aborted are still in use');
  },
  async 'many at once do not mix'() {
    const answers = await Promise.all(Array.from({ length: 16 }, () => client.chat.completions.create(ask)));
    assert.equal(new Set(answers.map((answer) => answer.id)).size, 16);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
  } catch (error) {
    failed += 1;
    console.error(`FAILED ${name}\n${error.stack}`);
  }
}
console.log(`${Object.keys(checks).length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
