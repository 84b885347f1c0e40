// Follows /stream: reads server-sent events with fetch, because EventSource cannot send an API key.
import { ReadError, read } from "./http.js";

const FIRST_WAIT_S = 1;
const LONGEST_WAIT_S = 30;
// Heartbeats come every 15 s. A stream that is silent for longer is dead.
const SILENCE_MS = 40_000;

// `on`: filter() of the stream, state(name), event(name, data) and missed(), called after a time without a stream.
export class Stream {
  #on;
  #last = null;
  #abort = null;
  #wake = null;
  // The loop that runs; another one may still be ending.
  #running = null;

  constructor(on) {
    this.#on = on;
  }

  start() {
    if (this.#running) return;
    this.#running = {};
    this.#run(this.#running);
  }

  stop() {
    this.#running = null;
    this.#abort?.abort();
    this.#wake?.();
  }

  // Do not wait any longer before the next attempt.
  retry() {
    this.#wake?.();
  }

  async #run(mine) {
    let wait = FIRST_WAIT_S;
    while (this.#running === mine) {
      let began = false;
      try {
        await this.#follow(() => {
          began = true;
          wait = FIRST_WAIT_S;
        });
      } catch (error) {
        if (this.#running !== mine) return;
        if (error instanceof ReadError && error.kind === "key") {
          this.#running = null;
          this.#on.state("off");
          return;
        }
      }
      if (this.#running !== mine) return;
      this.#on.state(navigator.onLine ? "waiting" : "offline");
      // By chance shorter, so that the clients of a restarted service do not come at once.
      await this.#pause(wait * (0.5 + Math.random() / 2) * 1000);
      wait = Math.min(2 * wait, LONGEST_WAIT_S);
      if (this.#running === mine && !began) await this.#on.missed();
    }
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async #follow(began) {
    const abort = (this.#abort = new AbortController());
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    alive();
    try {
      const headers = this.#last === null ? {} : { "Last-Event-ID": this.#last };
      const query = new URLSearchParams(this.#on.filter()).toString();
      const response = await read(query ? `stream?${query}` : "stream", { signal: abort.signal, headers, cache: "no-store" });
      began();
      this.#on.state("live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        alive();
        const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) this.#event(block);
      }
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  #event(block) {
    let name = "message";
    const data = [];
    for (const line of block.split("\n")) {
      const [, field, value] = /^([a-z]+): ?(.*)$/s.exec(line) ?? [];
      if (field === "event") name = value;
      else if (field === "data") data.push(value);
      else if (field === "id") this.#last = value;
    }
    if (data.length || name === "reset") this.#on.event(name, data.length ? JSON.parse(data.join("\n")) : null);
  }
}
