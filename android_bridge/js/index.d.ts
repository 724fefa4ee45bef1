export interface Message {
  role: string;
  content: string;
}

export interface ContextInfo {
  id: string;
  name: string;
  app: string;
  n_tokens: number;
  n_messages: number;
  created: number;
  last_used: number;
  [more: string]: unknown;
}

export interface Done {
  /** "stop", "length", "tool_calls" */
  reason: string;
  /** Tokens of the context now. */
  nTokens: number;
  /** The context's id. */
  context: string;
}

export class LlmaasError extends Error {
  constructor(
    code: string,
    message: string,
    more?: { status?: number; param?: string | null; hint?: string; cause?: unknown },
  );
  /** The code of the wire protocol: "busy", "unknown_context", "not_serving", ... */
  code: string;
  /** HTTP's, or 0. */
  status: number;
  /** The field at fault. */
  param: string | null;
  hint: string;
  /** The same request may succeed later. */
  retryable: boolean;
}

export class Answer implements AsyncIterable<string> {
  private constructor();
  readonly text: string;
  readonly done: Promise<Done>;
  cancel(): void;
  whole(): Promise<string>;
  [Symbol.asyncIterator](): AsyncGenerator<string, void>;
}

/** As much of `fetch` as the client needs. */
export type Fetch = (
  url: string,
  options: { method: string; headers: Record<string, string>; body?: string; signal?: AbortSignal; redirect?: "error" },
) => Promise<{ status: number; body: ReadableStream<Uint8Array> | null }>;

export interface ClientOptions {
  /** "http://127.0.0.1:11434" by default. */
  url?: string;
  token?: string;
  /** The app's name, over a Unix socket without a token. */
  app?: string;
  /** Milliseconds. */
  retryMs?: number;
  fetch?: Fetch;
}

export interface GenerateOptions {
  signal?: AbortSignal;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  seed?: number;
  stop?: string | string[];
  response_format?: unknown;
  llmaas?: {
    priority?: number | "interactive" | "normal" | "background";
    deadline?: number;
    rate?: number;
    adapter?: string;
    top_k?: number;
    min_p?: number;
    grammar?: string;
    on_full?: "error" | "shift";
  };
  [more: string]: unknown;
}

export class Client {
  constructor(options?: ClientOptions);
  hello(): Promise<{ model: string }>;
  context(name: string, options?: { system?: string; adapter?: string; ttl?: number }): Promise<ContextInfo>;
  contexts(): Promise<ContextInfo[]>;
  show(name: string): Promise<{ info: ContextInfo; messages: Message[] }>;
  delete(name: string): Promise<void>;
  hint(name: string): Promise<void>;
  generate(name: string, messages: string | Message[], options?: GenerateOptions): Answer;
}
