// The stream of one answer, which outlives its connection: the server keeps it under a name that the page chooses, and
// tells from any byte on what was missed. Losing the connection stops nothing; `stop` does.

import { call, json, Refusal } from "./api.js";

const SILENT_MS = 30_000; // where the connection works, the server says something every ten seconds
const PAUSES_MS = [0, 1000, 2000, 4000, 8000];
const TRIES = 40; // five minutes: unless told otherwise, the server keeps no longer what nobody reads
const BACK_S = 10; // in which a page that is loaded again is there
const LATER = [429, 502, 503, 504];

export class AnswerStream {
  #begun = false; // the server is known to have it
  #asking = null; // the request on its way, or what became of it
  #heard = 0; // bytes
  #control = new AbortController();
  #stopping = null;
  #halt;
  #halted = new Promise((resolve) => (this.#halt = resolve));

  constructor(name = newName()) {
    this.name = name;
  }

  get stopped() {
    return this.#stopping !== null;
  }

  // Its events, each once and in order, until [DONE] or `stop`. `body` asks for the answer; without one, it was asked
  // for before. `say` is called with words for the user where the connection is lost, and where it is back.
  async *events(body, say) {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const piece of this.#pieces(body, say)) {
      const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.filter((one) => one.startsWith("data: "))) {
        if (line === "data: [DONE]") return;
        yield JSON.parse(line.slice(6));
      }
    }
  }

  // Ends the answer on the server. Here it has ended at once.
  stop() {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  // For a page that is left: it may be loaded again at once, and otherwise nobody waits for the answer any more.
  leave() {
    this.#delete(`?unless_read_s=${BACK_S}`, { keepalive: true }).catch(() => {});
  }

  async *#pieces(body, say) {
    for (let lost = 0; ; ) {
      try {
        const response = await Promise.race([this.#connect(body), this.#halted]);
        if (this.stopped) return;
        if (lost) say("Reconnected.");
        for await (const piece of this.#read(response)) {
          lost = 0;
          this.#heard += piece.length;
          yield piece;
        }
      } catch (error) {
        if (error instanceof Refusal && !(this.#begun && LATER.includes(error.status))) throw error;
      }
      if (this.stopped) return;
      if (lost >= TRIES) throw new Error("The server cannot be reached.");
      say("The connection is lost: trying again …");
      const pause = new Promise((resolve) => setTimeout(resolve, PAUSES_MS[Math.min(lost, PAUSES_MS.length - 1)]));
      await Promise.race([pause, this.#halted]);
      if (this.stopped) return;
      lost += 1;
    }
  }

  async #connect(body) {
    if (this.#asking || !body) {
      try {
        const rest = await call(`v1/stream/${this.name}?from=${this.#heard}`, { signal: this.#control.signal });
        this.#begun = true;
        return rest;
      } catch (error) {
        if (![400, 404].includes(error.status)) throw error;
        if (!body || this.#heard) throw new Refusal(error.status, "The server no longer has the rest of this answer.");
        // the question has never arrived
      }
    }
    if (this.stopped) return undefined;
    this.#asking = call("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", "x-conversation-id": this.name },
      body: JSON.stringify(body),
      signal: this.#control.signal,
    });
    const response = await this.#asking;
    this.#begun = true;
    return response;
  }

  async *#read(response) {
    const reader = response.body.getReader();
    const leave = () => reader.cancel().catch(() => {});
    this.#halted.then(leave);
    try {
      for (;;) {
        const silent = setTimeout(leave, SILENT_MS);
        const { value, done } = await reader.read().finally(() => clearTimeout(silent));
        if (done) return;
        yield value;
      }
    } finally {
      leave();
    }
  }

  async #stop() {
    this.#halt();
    // a question that the server still reads would begin an answer behind a DELETE
    const known = this.#begun || (await json(`v1/streams?conversation_id=${this.name}`)).length > 0;
    if (!known) await this.#asking?.catch(() => {});
    this.#control.abort();
    await this.#delete();
  }

  #delete(query = "", options = {}) {
    return call(`v1/stream/${this.name}${query}`, { method: "DELETE", quiet: true, ...options });
  }
}

// One that nobody can guess. crypto.randomUUID is there only on pages that come by https or from this machine.
function newName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
