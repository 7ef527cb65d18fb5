/** The server's HTTP interface: one key, OpenAI's error object, server-sent events. */

import { events } from "./sse.js";
import { session } from "./storage.js";

const KEY = "river-key";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Api {
  /** Called when the server refuses the key. */
  onUnauthorized = () => {};

  /** @param base URL of the server; the console lies two levels below it. */
  constructor(base = new URL("../", new URL(".", document.baseURI))) {
    this.base = base;
  }

  get key() { return session.get(KEY) ?? ""; }

  set key(value) {
    if (value) session.set(KEY, value);
    else session.remove(KEY);
  }

  async request(path, { method = "GET", body, signal } = {}) {
    const headers = {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const options = { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) };
    let response;
    try {
      response = await fetch(new URL(path, this.base), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached.", 0);
    }
    if (response.ok) return response;
    if (response.status === 401) this.onUnauthorized();
    throw new ApiError(await message(response), response.status);
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  async text(path, options) {
    return (await this.request(path, options)).text();
  }

  /** The chunks of a streamed answer, as objects. */
  async *stream(path, body, signal) {
    const response = await this.request(path, { method: "POST", body, signal });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, chunk.error.code);
      yield chunk;
    }
  }

  /** Tell the server that this browser may load the console's files, or no longer. */
  openConsole() { return this.request("river/console", { method: "POST" }); }

  closeConsole() { return this.request("river/console", { method: "DELETE" }); }
}

async function message(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}
