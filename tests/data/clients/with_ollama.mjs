// Ollama's package for JavaScript. The argument is the server's address.
import assert from "node:assert";
import { Ollama } from "ollama";

const client = new Ollama({ host: `http://${process.argv[2]}` });
const models = (await client.list()).models;
assert(models.length >= 1);
const messages = [{ role: "user", content: "hello" }];
const whole = await client.chat({ model: models[0].name, messages, options: { num_predict: 20 } });
assert(whole.message.content && whole.done);
let text = "";
for await (const part of await client.chat({ model: "default", messages, stream: true, options: { num_predict: 20 } }))
  text += part.message.content;
assert(text);
const made = await client.generate({ model: "default", prompt: "hello", options: { num_predict: 20 } });
assert(made.response);
assert((await client.show({ model: "default" })).details);
await assert.rejects(client.chat({ model: "nothing", messages }));
console.log("fine");
