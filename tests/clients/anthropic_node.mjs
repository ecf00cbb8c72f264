// Anthropic's official Node client against a running hearth: node anthropic_node.mjs BASE_URL
//
// What the model says does not matter. Exits 1 when a check fails.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';

const baseURL = process.argv[2].replace(/\/$/, '');
const client = new Anthropic({ baseURL, apiKey: 'unused', maxRetries: 0, timeout: 60_000 });
const messages = [{ role: 'user', content: 'Say hello.' }];
const ask = { model: 'claude-any', max_tokens: 16, messages };

const checks = {
  async 'a message has every field and is counted'() {
    const message = await client.messages.create(ask);
    assert.equal(message.type, 'message');
    assert.ok(['end_turn', 'max_tokens'].includes(message.stop_reason));
    const counted = await client.messages.countTokens({ model: ask.model, messages });
    assert.equal(message.usage.input_tokens + message.usage.cache_read_input_tokens, counted.input_tokens);
  },
  async 'the streaming helper puts it together'() {
    const stream = client.messages.stream(ask);
    let text = '';
    stream.on('text', (delta) => (text += delta));
    const final = await stream.finalMessage();
    assert.equal(final.content.map((block) => block.text ?? '').join(''), text);
    assert.ok(final.usage.output_tokens > 0);
  },
  async 'errors are typed'() {
    await assert.rejects(client.messages.create({ ...ask, max_tokens: 0 }), Anthropic.BadRequestError);
    await assert.rejects(client.messages.create({ ...ask, model: 'nope', stream: true }), Anthropic.NotFoundError);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}:`, error);
  }
}
console.log(`${Object.keys(checks).length - failed} passed, ${failed} failed (@anthropic-ai/sdk)`);
process.exit(failed ? 1 : 0);
