// The official Node client's Responses API against a running hearth: node responses_node.mjs BASE_URL
//
// What the model says does not matter. Exits 1 when a check fails.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const baseURL = process.argv[2].replace(/\/$/, '') + '/v1';
const client = new OpenAI({ baseURL, apiKey: 'unused', maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const ask = { model, input: 'Say hello.', max_output_tokens: 16, temperature: 0 };

const checks = {
  async 'a response has its text'() {
    const answer = await client.responses.create(ask);
    assert.equal(answer.object, 'response');
    assert.equal(typeof answer.output_text, 'string');
    assert.equal(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens);
  },
  async 'streamed text is the whole text, and the stream ends'() {
    const whole = await client.responses.create(ask);
    let text = '';
    let last;
    for await (const event of await client.responses.create({ ...ask, stream: true })) {
      if (event.type === 'response.output_text.delta') text += event.delta;
      last = event;
    }
    assert.ok(['response.completed', 'response.incomplete'].includes(last.type));
    assert.equal(text, whole.output_text);
  },
  async 'the accumulator knows every event'() {
    const stream = client.responses.stream(ask);
    const final = await stream.finalResponse();
    const message = final.output.find((item) => item.type === 'message');
    assert.equal(message.content[0].text, (await client.responses.create(ask)).output_text);
  },
  async 'what is stored is found, listed, gone on from and deleted'() {
    const first = await client.responses.create(ask);
    assert.equal((await client.responses.retrieve(first.id)).id, first.id);
    const next = await client.responses.create({ ...ask, previous_response_id: first.id });
    const items = await client.responses.inputItems.list(next.id);
    assert.equal(items.data.length, 1);
    const counted = await client.responses.inputTokens.count({ ...{ model, input: ask.input } });
    assert.equal(counted.input_tokens, first.usage.input_tokens);
    await client.responses.delete(first.id);
    await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
  } catch (error) {
    failed += 1;
    console.error(`FAILED ${name}`, error);
  }
}
console.log(`${Object.keys(checks).length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
