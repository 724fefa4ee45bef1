import type { Fetch } from "./index.js";

/** Where the daemon serves HTTP by default. */
export function defaultSocket(env?: Record<string, string | undefined>): string;
/** A `fetch` over this Unix socket. */
export function unixFetch(socket?: string): Fetch;
