// Vercel's AI SDK with its OpenAI-compatible provider (chats) and its OpenAI provider (responses). Usage: see check.mjs.
import assert from 'node:assert/strict';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, embedMany, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';
import { check, collect, ready, run, servers, spy, versionOf } from './check.mjs';

const compatible = (url, more = {}) =>
  createOpenAICompatible({ name: 'hearth', baseURL: `${url}/v1`, apiKey: 'unused', includeUsage: true, supportsStructuredOutputs: true, ...more });
const openai = (url, more = {}) => createOpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', ...more });
const demo = compatible(servers.demo)('hearth-demo');
const silent = { maxRetries: 0, onError() {} };
const hello = { ...silent, prompt: 'Say hello.', temperature: 0, maxOutputTokens: 16 };
const inputSchema = z.object({ city: z.string().max(8) });
const weather = tool({ description: 'The weather.', inputSchema, execute: async ({ city }) => `sunny in ${city}` });
const thing = z.object({
  color: z.enum(['red', 'blue']),
  parts: z.array(z.object({ name: z.string().max(8).nullable(), count: z.number().int().min(3).max(17) })).min(1).max(2),
});
const plain = { hearth: { reasoningEffort: 'none' } };

check('a text and its usage', ['CHAT-02', 'CHAT-04'], async () => {
  const parts = [{ role: 'user', content: [{ type: 'text', text: 'Say ' }, { type: 'text', text: 'hello.' }] }];
  const answer = await generateText({ model: demo, ...hello });
  const joined = await generateText({ model: demo, ...hello, prompt: undefined, messages: parts });
  assert.ok(answer.text && ['stop', 'length'].includes(answer.finishReason));
  assert.equal(answer.usage.totalTokens, answer.usage.inputTokens + answer.usage.outputTokens);
  assert.equal(joined.usage.inputTokens, answer.usage.inputTokens);
});

check('streamText ends, with the whole text and usage', ['FAULT-04', 'FAULT-06', 'STRM-15'], async () => {
  const whole = await generateText({ model: demo, ...hello });
  const seen = spy();
  const stream = streamText({ model: compatible(servers.demo, { fetch: seen.fetch })('hearth-demo'), ...hello });
  const parts = await collect(stream.fullStream);
  assert.equal(parts.filter((part) => part.type === 'text-delta').map((part) => part.text).join(''), whole.text);
  assert.equal(parts.some((part) => part.type === 'error'), false);
  assert.equal((await stream.totalUsage).outputTokens, whole.usage.outputTokens);
  assert.ok(['stop', 'length'].includes(await stream.finishReason));
  const [text] = await Promise.all(seen.texts);
  assert.ok(text.endsWith('data: [DONE]\n\n') && !text.includes('"error"'));
});

check('reasoning is apart and first', ['STRM-12', 'CHAT-12'], async (url) => {
  const stream = streamText({ ...silent, model: compatible(url)('scripted'), prompt: '/think hard', providerOptions: { hearth: { reasoningEffort: 'high' } } });
  const parts = await collect(stream.fullStream);
  const kinds = parts.map((part) => part.type).filter((type) => ['reasoning-delta', 'text-delta'].includes(type));
  assert.deepEqual([...new Set(kinds)], ['reasoning-delta', 'text-delta']);
  assert.deepEqual([await stream.reasoningText, await stream.text], ['hard', 'ok']);
}, 'scripted');

check('streamed calls are executed and answered', ['TOOL-08', 'TOOL-12', 'FAULT-04', 'FAULT-06', 'FAULT-08'], async (url) => {
  const stream = streamText({
    ...silent,
    model: compatible(url)('scripted'),
    prompt: '/call weather {"city":"Rome"}\n/call weather {"city":"Oslo"}',
    tools: { weather },
    stopWhen: stepCountIs(2),
  });
  await stream.consumeStream();
  const [first, second] = await stream.steps;
  assert.equal(first.finishReason, 'tool-calls');
  assert.deepEqual(first.toolCalls.map((call) => call.input), [{ city: 'Rome' }, { city: 'Oslo' }]);
  assert.deepEqual(first.toolResults.map((result) => result.output), ['sunny in Rome', 'sunny in Oslo']);
  assert.ok(second.response.id && second.response.id !== first.response.id);
}, 'scripted');

check('a required call validates', ['TOOL-04', 'TOOL-11'], async () => {
  for (const toolChoice of ['required', { type: 'tool', toolName: 'weather' }]) {
    const answer = await generateText({ ...silent, model: demo, prompt: 'Say hello.', tools: { weather: { ...weather, execute: undefined } }, toolChoice });
    assert.equal(answer.finishReason, 'tool-calls');
    assert.ok(answer.toolCalls.length && typeof answer.toolCalls[0].input.city === 'string');
  }
});

check('objects, whole and streamed', ['JSON-02', 'JSON-03', 'JSON-09'], async () => {
  const asked = { ...silent, model: demo, prompt: 'Say hello.', schema: thing, temperature: 1, providerOptions: plain };
  for (let seed = 0; seed < 4; seed++) {
    const { object } = await generateObject({ ...asked, seed });
    assert.deepEqual(Object.keys(thing.parse(object)), ['color', 'parts']);
  }
  const stream = streamObject({ ...asked, seed: 1 });
  const partial = await collect(stream.partialObjectStream);
  assert.deepEqual(partial.at(-1), await stream.object);
});

check('a schema beside tools', ['JSON-06'], async (url) => {
  const answer = await generateText({
    ...silent,
    model: compatible(url)('scripted'),
    prompt: '{"color":"red","parts":[{"name":null,"count":3}]}',
    tools: { weather },
    output: Output.object({ schema: thing }),
  });
  assert.deepEqual(answer.output, { color: 'red', parts: [{ name: null, count: 3 }] });
}, 'scripted');

check('an object that was cut is told', ['JSON-07'], async () => {
  const asked = { ...silent, model: demo, prompt: 'Say hello.', schema: thing, maxOutputTokens: 3, providerOptions: plain };
  await assert.rejects(generateObject(asked), (error) => error.name === 'AI_NoObjectGeneratedError' && error.finishReason === 'length');
});

check('json mode with a schema in words', ['JSON-04'], async (url) => {
  const model = compatible(url, { supportsStructuredOutputs: false })('scripted');
  const { object } = await generateObject({ ...silent, model, prompt: '{"color":"red","parts":[{"name":null,"count":3}]}', schema: thing });
  assert.equal(object.color, 'red');
}, 'scripted');

check('errors are told before the stream', ['STRM-05'], async () => {
  const seen = [];
  const stream = streamText({ ...hello, model: demo, temperature: -1, onError: ({ error }) => seen.push(error) });
  await stream.consumeStream();
  const refusal = (error) => APICallError.isInstance(error) && error.statusCode === 400 && error.data.error.param === 'temperature';
  assert.ok(refusal(seen[0]), seen[0]);
  await assert.rejects(generateText({ ...hello, model: demo, temperature: -1 }), refusal);
});

check('a fault of the client is one request', ['ERR-16'], async (url) => {
  const seen = spy();
  const model = compatible(url, { fetch: seen.fetch, apiKey: 'sk-test' })('none');
  await assert.rejects(generateText({ model, prompt: 'x', maxRetries: 2 }), (error) => error.statusCode === 404 && !error.isRetryable);
  assert.equal(seen.requests, 1);
}, 'keyed');

check('a caller over its own limit is told', ['ERR-01'], async (url) => {
  const ask = () => generateText({ ...silent, model: compatible(url)('scripted'), prompt: 'x' });
  await assert.rejects(ask().then(ask), (error) => error.statusCode === 429 && error.isRetryable);
}, 'limited');

check('images and files are refused by name', ['CHAT-14', 'CHAT-16'], async () => {
  for (const part of [
    { type: 'image', image: new Uint8Array([137, 80, 78, 71]), mediaType: 'image/png' },
    { type: 'file', data: new Uint8Array([82, 73, 70, 70]), mediaType: 'audio/wav' },
  ]) {
    const messages = [{ role: 'user', content: [{ type: 'text', text: 'see' }, part] }];
    await assert.rejects(generateText({ ...hello, model: demo, prompt: undefined, messages }), (error) => error.data.error.param.startsWith('messages[0].content[1]'));
  }
});

check('a crash is an error part', ['STRM-09'], async (url) => {
  await ready(url);
  const stream = streamText({ ...silent, model: compatible(url)('scripted'), prompt: '/crash ai' });
  const parts = await collect(stream.fullStream);
  assert.ok(parts.some((part) => part.type === 'error'));
  await ready(url);
}, 'crashing');

check('vectors', ['EMB-01'], async (url) => {
  const values = Array.from({ length: 40 }, (_, i) => `text ${i}`);
  const model = compatible(url).textEmbeddingModel('tiny-bert');
  const { embeddings } = await embedMany({ ...silent, model, values });
  const { embeddings: alone } = await embedMany({ ...silent, model, values: [values[33]] });
  alone[0].forEach((x, i) => assert.ok(Math.abs(x - embeddings[33][i]) < 1e-4));
}, 'vectors');

check('completions', ['COMP-01'], async () => {
  const model = compatible(servers.demo).completionModel('hearth-demo');
  const asked = { ...hello, model, prompt: 'One', maxOutputTokens: 6 };
  const parts = await collect(streamText(asked).textStream);
  assert.equal(parts.join(''), (await generateText(asked)).text);
});

check('responses: text, reasoning and the end', ['RESP-03', 'FAULT-06'], async (url) => {
  const model = openai(url).responses('scripted');
  const whole = await generateText({ ...silent, model, prompt: '/think hard' });
  assert.equal(whole.text, 'ok');
  const stream = streamText({ ...silent, model, prompt: '/think hard' });
  const parts = await collect(stream.fullStream);
  assert.equal(parts.some((part) => part.type === 'error'), false);
  assert.equal(await stream.text, 'ok');
  assert.equal(await stream.finishReason, 'stop');
  assert.ok((await stream.totalUsage).outputTokens > 0);
}, 'scripted');

check('responses: calls and references to what was stored', ['RESP-07', 'TOOL-08'], async (url) => {
  const stream = streamText({
    ...silent,
    model: openai(url)('scripted'),
    prompt: '/call weather {"city":"Rome"}',
    tools: { weather },
    stopWhen: stepCountIs(2),
    providerOptions: { openai: { store: true } },
  });
  await stream.consumeStream();
  const [first, second] = await stream.steps;
  assert.deepEqual(first.toolCalls.map((call) => call.input), [{ city: 'Rome' }]);
  assert.equal(first.finishReason, 'tool-calls');
  assert.ok(second.response.id && second.response.id !== first.response.id);
  // What was said is sent back as references to what the server has stored.
  const bodies = [];
  const model = openai(url, { fetch: (to, init) => (bodies.push(init.body), fetch(to, init)) })('scripted');
  const user = (content) => ({ role: 'user', content });
  const said = await generateText({ ...silent, model, messages: [user('/think hard')] });
  const more = await generateText({ ...silent, model, messages: [user('/think hard'), ...said.response.messages, user('again')] });
  assert.equal(more.text, 'again');
  assert.ok(bodies[1].includes('item_reference'), bodies[1]);
}, 'scripted');

check('responses: objects, hosted tools and lost ids', ['JSON-02', 'RESP-04', 'RESP-14'], async (url) => {
  const provider = openai(url);
  const { object } = await generateObject({ ...silent, model: provider('scripted'), prompt: '{"color":"red","parts":[{"name":null,"count":3}]}', schema: thing });
  assert.equal(object.parts[0].count, 3);
  const tools = { web_search: provider.tools.webSearch({}) };
  assert.equal((await generateText({ ...silent, model: provider('scripted'), prompt: 'hello', tools })).text, 'hello');
  const lost = { openai: { previousResponseId: 'resp_of_another_life' } };
  await assert.rejects(generateText({ ...silent, model: provider('scripted'), prompt: 'x', providerOptions: lost }), (error) => error.statusCode === 400);
}, 'scripted');

check('responses: a failure is an error part', ['RESP-11'], async (url) => {
  await ready(url);
  const stream = streamText({ ...silent, model: openai(url)('scripted'), prompt: '/crash ai responses' });
  const parts = await collect(stream.fullStream);
  assert.ok(parts.some((part) => part.type === 'error' || (part.type === 'finish' && part.finishReason !== 'stop')), JSON.stringify(parts));
  await ready(url);
}, 'crashing');

await run('ai', versionOf('ai'));
