// EventSource over a WebSocket, for platforms that have only the latter, such as React Native. The stock PocketBase SDK
// works with it unmodified:
//
//   import { SatchelEventSource } from "./eventsource.mjs";
//   globalThis.EventSource = SatchelEventSource;
//
// It knows the one stream that the SDK opens, /api/realtime, and has no dependencies. See docs/live.md.

const subprotocol = "satchel.sse.v1";
const route = /\/api\/(?:v1\/)?realtime(?=$|[?#])/;
const firstRetry = 1000;
const lastRetry = 30_000;

export class SatchelEventSource {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;

  readyState = SatchelEventSource.CONNECTING;
  onopen = null;
  onmessage = null;
  onerror = null;

  #listeners = new Map();
  #socket;
  #timer;
  #retry = firstRetry;

  constructor(url) {
    this.url = String(url);
    this.#connect();
  }

  addEventListener(name, listener) {
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener));
  }

  removeEventListener(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  close() {
    this.readyState = SatchelEventSource.CLOSED;
    clearTimeout(this.#timer);
    this.#socket?.close();
    this.#socket = undefined;
  }

  #connect() {
    const address = this.url.replace(/^http/, "ws").replace(route, "/api/v1/live");
    const socket = (this.#socket = new WebSocket(address, subprotocol));
    const current = () => this.#socket === socket;
    socket.onopen = () => {
      if (!current()) {
        return;
      }
      this.readyState = SatchelEventSource.OPEN;
      this.#retry = firstRetry;
      this.#emit("open", { type: "open", target: this });
    };
    socket.onmessage = (message) => {
      if (current()) {
        const { event, id, data } = JSON.parse(message.data);
        this.#emit(event, { type: event, lastEventId: id, data, target: this });
      }
    };
    // Some platforms report a connection that was refused by an error alone.
    socket.onclose = socket.onerror = () => {
      if (!current()) {
        return;
      }
      this.#socket = undefined;
      this.readyState = SatchelEventSource.CONNECTING;
      this.#timer = setTimeout(() => this.#connect(), this.#retry * (0.5 + Math.random() / 2));
      this.#retry = Math.min(this.#retry * 2, lastRetry);
      this.#emit("error", { type: "error", target: this });
    };
  }

  #emit(name, event) {
    this[`on${name}`]?.(event);
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      listener(event);
    }
  }
}
