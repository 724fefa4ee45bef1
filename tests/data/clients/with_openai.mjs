// OpenAI's package for JavaScript. The argument is the server's address.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `http://${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const models = (await client.models.list()).data;
assert(models.length >= 1);
const messages = [{ role: "user", content: "hello" }];
const whole = await client.chat.completions.create({ model: models[0].id, messages, max_tokens: 20 });
assert(whole.choices[0].message.content && whole.usage.completion_tokens > 0);
let text = "";
const stream = await client.chat.completions.create({ model: "default", messages, max_tokens: 20, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert(text);
const tools = [{ type: "function", function: { name: "now", parameters: { type: "object",
  properties: { zone: { enum: ["UTC", "CET"] } }, required: ["zone"], additionalProperties: false } } }];
const called = await client.chat.completions.create({ model: "default", messages, tools, max_tokens: 200,
  tool_choice: { type: "function", function: { name: "now" } } });
const call = called.choices[0].message.tool_calls[0];
assert(call.function.name === "now" && ["UTC", "CET"].includes(JSON.parse(call.function.arguments).zone));
const response = await client.responses.create({ model: "default", input: "hello", max_output_tokens: 20 });
assert(response.output_text);
const next = await client.responses.create({ model: "default", input: "and?", max_output_tokens: 20,
  previous_response_id: response.id });
assert(next.output_text);
let streamed = "";
for await (const event of await client.responses.create({ model: "default", input: "hello", max_output_tokens: 20, stream: true }))
  if (event.type === "response.output_text.delta") streamed += event.delta;
assert(streamed);
await assert.rejects(client.chat.completions.create({ model: "nothing", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: "default", messages: "x" }), OpenAI.BadRequestError);
console.log("fine");
