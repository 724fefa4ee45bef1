// Events are the same however their bytes are cut, and what is wrong with them is refused. Ends with code 0 if so.
import assert from "node:assert/strict";
import { eventsOf } from "../events.js";

async function read(chunks, most) {
  const found = [];
  for await (const data of eventsOf(chunks, most)) found.push(data);
  return found;
}

const bytes = new TextEncoder().encode(': hi\ndata: Grüße 😀\r\n\r\nevent: x\ndata:{"a":1}\n\ndata: one\ndata: two\n\n\n\ndata: cut');
const expected = ["Grüße 😀", '{"a":1}', "one\ntwo"];
for (let cut = 0; cut <= bytes.length; cut++)
  assert.deepEqual(await read([bytes.slice(0, cut), bytes.slice(cut)]), expected);
assert.deepEqual(await read([...bytes].map((byte) => Uint8Array.of(byte))), expected);
assert.deepEqual(await read([]), []);
await assert.rejects(read([new Uint8Array([100, 0xff, 10])]), TypeError);
await assert.rejects(read([new TextEncoder().encode("data: 😀").slice(0, 8)]), TypeError);
await assert.rejects(read(Array(11).fill(new TextEncoder().encode("0123456789")), 100), RangeError);
