// For Node: HTTP over the daemon's Unix socket, in the form of `fetch`.
//
// Law: nothing is sent unless the socket lies in a folder that only this user or root can change. (Node cannot ask the
// kernel who serves a socket.)

import { existsSync, statSync } from "node:fs";
import { request } from "node:http";
import { dirname } from "node:path";
import { Readable } from "node:stream";
import { LlmaasError } from "./index.js";

/** Where the daemon serves HTTP by default: the first place that has a socket. */
export function defaultSocket(env = process.env) {
  const uid = process.getuid();
  if (env.LLMAAS_SOCKET) return env.LLMAAS_SOCKET.replace(/(\.[^./]*)?$/, "-http$1");
  const folders = [`/run/user/${uid}/llmaas`, `/tmp/llmaas-${uid}`, `${env.TMPDIR || "/tmp"}/llmaas-${uid}`];
  if (env.XDG_RUNTIME_DIR?.startsWith("/")) folders.unshift(`${env.XDG_RUNTIME_DIR}/llmaas`);
  const places = folders.map((folder) => `${folder}/llmaas-http.sock`);
  return places.find((place) => existsSync(place)) ?? places[0];
}

function refuseStranger(socket) {
  const folder = dirname(socket);
  const facts = statSync(folder, { throwIfNoEntry: false });
  if (!facts) return; // connecting says what is wrong
  const why = (facts.mode & 0o022) !== 0 ? "can be changed by others" : "is another user's";
  if ((facts.mode & 0o022) === 0 && [process.geteuid(), 0].includes(facts.uid)) return;
  const hint = "Give a socket in a folder of your own.";
  throw new LlmaasError("not_trusted", `the folder ${folder} ${why}; nothing was sent`, { hint });
}

/** A `fetch` that goes to this Unix socket, whatever the URL's host is: `new Client({ fetch: unixFetch(path) })`. */
export function unixFetch(socket = defaultSocket()) {
  return (url, { method = "GET", headers = {}, body, signal } = {}) =>
    new Promise((resolve, reject) => {
      refuseStranger(socket);
      const { pathname, search } = new URL(url);
      const path = pathname + search;
      const length = body === undefined ? {} : { "content-length": Buffer.byteLength(body) };
      const asked = request({ socketPath: socket, path, method, headers: { ...headers, ...length }, signal }, (response) =>
        resolve({ status: response.statusCode, body: Readable.toWeb(response) }),
      );
      asked.on("error", reject);
      asked.end(body);
    });
}
