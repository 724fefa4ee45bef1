// A client of the llmaas daemon for browsers and Node, over HTTP (docs/http.md of llmaas), without dependencies.
//
// Law: every failure is an LlmaasError, whose `code` is that of the wire protocol.

import { eventsOf } from "./events.js";

const MOST_BODY = 64 * 1024 * 1024;
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;

/** What HTTP calls otherwise than the wire protocol. */
const CODES = {
  context_length_exceeded: "context_too_long",
  insufficient_quota: "quota",
  rate_limit_exceeded: "busy",
  invalid_api_key: "bad_token",
};
const BY_STATUS = { 400: "bad_request", 401: "bad_token", 403: "forbidden", 404: "unknown_context", 429: "busy" };
const RETRYABLE = new Set(["busy", "shutting_down", "not_serving", "disk_full", "no_memory"]);

export class LlmaasError extends Error {
  /** `code` is for programs, `message` for people; `retryable`: the same request may succeed later. */
  constructor(code, message, { status = 0, param = null, hint = "", cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "LlmaasError";
    this.code = code;
    this.status = status;
    this.param = param;
    this.hint = hint;
    this.retryable = RETRYABLE.has(code);
  }
}

function lost(url, cause) {
  const why = cause?.cause?.message || cause?.message || "the response was cut short";
  const hint = "Start it with 'llmaas serve --http 127.0.0.1:11434', or give its url.";
  const error = new LlmaasError("not_serving", `no daemon answers at ${url}, or the connection was lost: ${why}`, { hint, cause });
  /** Whether nothing was sent; a browser does not say. */
  error.unsent = ["ECONNREFUSED", "ENOENT"].includes(cause?.cause?.code ?? cause?.code);
  return error;
}

function cancelled(cause) {
  const hint = "What was told of the answer is part of the context; ask again to go on.";
  return new LlmaasError("cancelled", "the request was cancelled", { hint, cause });
}

/** The error that the body of a response, or an event of a stream, tells of. */
function errorOf(body, status) {
  const told = body?.error && typeof body.error === "object" ? body.error : {};
  const code = CODES[told.code] ?? told.code ?? BY_STATUS[status] ?? (status >= 500 ? "internal" : "bad_request");
  const text = told.message ?? body?.error; // under /api/ an error is a text
  const message = typeof text === "string" ? text : `the server answered with status ${status}`;
  return new LlmaasError(String(code), message, { status, param: told.param ?? null });
}

/** An answer as it comes: `for await (const text of answer)`, then `await answer.done`. */
export class Answer {
  #abort;
  #events;
  #settle;
  #taken = false;

  constructor(abort, open) {
    this.#abort = abort;
    /** All text so far. */
    this.text = "";
    /**
     * How it ended: `reason`, `nTokens` of the context, `context`, its id. Rejects with the error that ended it. Settles
     * once the answer was iterated over, or `whole` was called.
     */
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.done.catch(() => {}); // who iterates is told there
    this.#events = open;
  }

  /** End the answer. What was told of it stays in the context. */
  cancel() {
    this.#abort.abort();
  }

  /** Wait for the end of an answer whose pieces do not matter. */
  async whole() {
    if (!this.#taken) for await (const _ of this);
    await this.done;
    return this.text;
  }

  async *[Symbol.asyncIterator]() {
    if (this.#taken) throw new TypeError("an answer can be iterated over once");
    this.#taken = true;
    try {
      let end = null;
      for await (const event of this.#events()) {
        end = this.#read(event, end);
        const text = event.choices?.[0]?.delta?.content;
        if (typeof text === "string" && text !== "") {
          this.text += text;
          yield text;
        }
      }
      this.#settle.resolve(end);
    } catch (error) {
      this.#settle.reject(error);
      throw error;
    } finally {
      this.#abort.abort(); // who leaves the loop wants no more
      this.#settle.reject(cancelled());
    }
  }

  #read(event, end) {
    const reason = event.choices?.[0]?.finish_reason ?? end?.reason ?? "";
    const served = event.llmaas ?? {};
    return { reason, nTokens: served.n_tokens ?? end?.nTokens ?? 0, context: served.context ?? end?.context ?? "" };
  }
}

export class Client {
  #url;
  #headers;
  #fetch;
  #retryMs;

  /**
   * `url`: where the daemon serves HTTP; `token`: the app's; `app`: its name, over a Unix socket; `retryMs`: how long to
   * try again while no daemon answers or it is busy; `fetch`: another one, such as `unixFetch` of "llmaas-client/node".
   */
  constructor({ url = "http://127.0.0.1:11434", token, app, retryMs = 0, fetch = globalThis.fetch } = {}) {
    if (token && !/^\w+$/.test(token)) throw new LlmaasError("bad_token", "this is no token");
    if (app && !/^[A-Za-z0-9._-]{1,64}$/.test(app)) throw new LlmaasError("bad_request", "an app's name has A-Z a-z 0-9 . _ -");
    this.#url = url.replace(/\/+$/, "");
    this.#headers = { ...(token ? { authorization: `Bearer ${token}` } : {}), ...(app ? { "x-llmaas-app": app } : {}) };
    this.#fetch = fetch === globalThis.fetch ? (...args) => globalThis.fetch(...args) : fetch;
    this.#retryMs = retryMs;
  }

  /** The name of the model that is served. */
  async hello() {
    const models = await this.#json("GET", "/v1/models");
    return { model: String(models?.data?.[0]?.id ?? "") };
  }

  /** The context of this name; it is made, with this system message, if there is none. */
  async context(name, { system, adapter, ttl } = {}) {
    return await this.#json("PUT", `/llmaas/contexts/${encodeURIComponent(name)}`, { system, adapter, ttl });
  }

  /** The app's contexts, last used first: 100 at most. */
  async contexts() {
    return (await this.#json("GET", "/llmaas/state")).contexts;
  }

  /** A context with its conversation: `info` and `messages`. */
  async show(name) {
    return await this.#json("GET", `/llmaas/contexts/${encodeURIComponent(name)}`);
  }

  async delete(name) {
    await this.#json("DELETE", `/llmaas/contexts/${encodeURIComponent(name)}`);
  }

  /** Say that the context will be used soon. */
  async hint(name) {
    await this.#json("POST", "/api/generate", { model: "default", keep_alive: 60, llmaas: { context: name } });
  }

  /**
   * Add a message (a string: the user's) or messages to the context, and stream the answer. `options`: fields of
   * OpenAI's API (`max_tokens`, `temperature`, `stop`, `response_format`, ...); `llmaas`: what llmaas adds to them
   * (`grammar`, `priority`, ...); `signal`: an AbortSignal that ends the answer.
   */
  generate(name, messages, { signal, llmaas, ...options } = {}) {
    const abort = new AbortController();
    const given = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
    const body = {
      max_tokens: 256,
      ...options,
      model: options.model ?? "default",
      messages: given,
      stream: true,
      stream_options: { include_usage: true },
      llmaas: { ...llmaas, context: name },
    };
    if (signal?.aborted) abort.abort();
    else signal?.addEventListener("abort", () => abort.abort(), { once: true });
    return new Answer(abort, () => this.#events("/v1/chat/completions", body, abort.signal));
  }

  async *#events(path, body, signal) {
    const response = await this.#ask("POST", path, body, signal);
    let ended = false;
    try {
      for await (const data of eventsOf(chunksOf(response))) {
        if (data === "[DONE]") {
          ended = true;
          break;
        }
        const event = JSON.parse(data);
        if (event.error) throw errorOf(event, response.status);
        yield event;
      }
    } catch (error) {
      if (error instanceof LlmaasError) throw error;
      if (signal.aborted) throw cancelled(error);
      if (error instanceof SyntaxError || error instanceof RangeError || error?.code === "ERR_ENCODING_INVALID_ENCODED_DATA")
        throw new LlmaasError("malformed_frame", `the server sent what cannot be read: ${error.message}`, { cause: error });
      throw lost(this.#url, error);
    }
    if (!ended) throw signal.aborted ? cancelled() : lost(this.#url);
  }

  async #json(method, path, body) {
    const response = await this.#ask(method, path, body, undefined, method !== "DELETE");
    return await this.#read(response);
  }

  /** The body of a response as JSON. */
  async #read(response) {
    const decoder = new TextDecoder("utf-8", { fatal: true });
    let text = "";
    try {
      for await (const chunk of chunksOf(response)) {
        text += decoder.decode(chunk, { stream: true });
        if (text.length > MOST_BODY) throw new RangeError(`it has more than ${MOST_BODY} characters`);
      }
      return JSON.parse(text + decoder.decode());
    } catch (error) {
      if (error instanceof SyntaxError || error instanceof RangeError || error?.code === "ERR_ENCODING_INVALID_ENCODED_DATA")
        throw new LlmaasError("malformed_frame", `the server's response cannot be read: ${error.message}`, { cause: error });
      throw lost(this.#url, error);
    }
  }

  /**
   * A good response. Asks again while no daemon answers, or it is busy, for `retryMs`: what may be carried out twice also
   * if the connection was lost.
   */
  async #ask(method, path, body, signal, repeatable = false) {
    const late = Date.now() + this.#retryMs;
    for (let wait = FIRST_WAIT_MS; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        return await this.#once(method, path, body, signal);
      } catch (error) {
        const again = error.code === "busy" || error.status === 503 || error.unsent || (repeatable && error.code === "not_serving");
        if (!again || Date.now() + wait > late) throw error;
        await pause(wait * (0.5 + Math.random() / 2), signal);
      }
    }
  }

  async #once(method, path, body, signal) {
    const headers = { ...this.#headers, ...(body === undefined ? {} : { "content-type": "application/json" }) };
    const text = body === undefined ? undefined : JSON.stringify(body);
    let response;
    try {
      response = await this.#fetch(this.#url + path, { method, headers, body: text, signal, redirect: "error" });
    } catch (error) {
      if (error instanceof LlmaasError) throw error;
      throw signal?.aborted ? cancelled(error) : lost(this.#url, error);
    }
    if (response.status === 200) return response;
    let told = null;
    try {
      told = await this.#read(response);
    } catch (error) {
      if (error.code === "not_serving") throw error;
    }
    throw errorOf(told, response.status);
  }
}

/** The bytes of a response, piece by piece. */
async function* chunksOf(response) {
  const reader = response.body.getReader();
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield value;
    }
    ended = true;
  } finally {
    if (!ended) reader.cancel().catch(() => {});
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(cancelled())), { once: true });
  });
}
