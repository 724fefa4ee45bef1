// The driver of the JavaScript client: see ../../conformance/README.md.
import { createInterface } from "node:readline";
import { Client, LlmaasError } from "../index.js";
import { unixFetch } from "../node.js";

const [first, app, token, retryS] = process.argv.slice(2);
const options = { token, retryMs: 1000 * Number(retryS) };
const connect = (place) =>
  place.startsWith("http+unix:")
  ? new Client({ ...options, app, url: "http://localhost", fetch: unixFetch(place.slice("http+unix:".length)) })
  : new Client({ ...options, url: place });
let client = connect(first);

const unescaped = (field) => field.replace(/\\(.)/g, (_, c) => ({ n: "\n", t: "\t" })[c] ?? c);
const escaped = (text) => String(text).replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t");
const say = (...fields) => process.stdout.write(fields.map(escaped).join("\t") + "\n");

async function ask(name, tokens, text, grammar) {
  const more = grammar === undefined ? {} : { llmaas: { grammar } };
  const answer = client.generate(name, text, { max_tokens: Number(tokens), temperature: 0, ...more });
  let pieces = 0;
  for await (const _ of answer) pieces++;
  const { reason, nTokens } = await answer.done;
  say("answer", reason, nTokens, pieces, answer.text);
}

async function cancel(name, text) {
  const answer = client.generate(name, text, { max_tokens: 600, temperature: 0 });
  try {
    for await (const _ of answer) answer.cancel();
    say("answer", (await answer.done).reason, 0, 1, answer.text);
  } catch (error) {
    if (error.code !== "cancelled") throw error;
    say("cancelled", answer.text);
  }
}

const COMMANDS = {
  to: (place) => ((client = connect(place)), say("ok")),
  hello: async () => say("hello", (await client.hello()).model),
  create: async (name, system) => (await client.context(name, system ? { system } : {}), say("ok")),
  ask,
  constrained: (name, tokens, grammar, text) => ask(name, tokens, text, grammar),
  cancel,
  show: async (name) =>
    say("messages", ...(await client.show(name)).messages.flatMap(({ role, content }) => [role, content])),
  list: async () => say("contexts", ...(await client.contexts()).map((context) => context.name)),
  hint: async (name) => (await client.hint(name), say("ok")),
  delete: async (name) => (await client.delete(name), say("ok")),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [what, ...fields] = line.split("\t").map(unescaped);
  try {
    await COMMANDS[what](...fields);
  } catch (error) {
    if (!(error instanceof LlmaasError)) throw error;
    say("failed", error.code, error.retryable ? "yes" : "no", error.message, error.hint);
  }
}
