// Server-sent events out of a stream of bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html).
//
// Law: however the bytes are cut, the events are the same; a line that never ends is refused, not kept.

export const MOST_LINE = 4 * 1024 * 1024;

/**
 * The data of each event. Throws a RangeError for a line of more than `most` characters, and a TypeError for bytes that
 * are no UTF-8.
 */
export async function* eventsOf(chunks, most = MOST_LINE) {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let begun = "";
  let data = [];
  for await (const chunk of chunks) {
    const lines = decoder.decode(chunk, { stream: true }).split("\n");
    lines[0] = begun + lines[0];
    begun = lines.pop();
    if (begun.length > most) throw new RangeError(`a line has more than ${most} characters`);
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line === "" && data.length > 0) {
        yield data.join("\n");
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  }
  decoder.decode(); // throws if the last character is cut
}
