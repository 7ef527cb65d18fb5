/** The conversation. */

import { byId, element } from "./dom.js";
import { facts, progress } from "./facts.js";
import { generate } from "./generate.js";
import { Answer } from "./tokens.js";

export class Chat {
  /** @param server `{api, model, layers}`, filled in once connected. */
  constructor(server, dial, fail) {
    this.server = server;
    this.dial = dial;
    this.fail = fail;
    this.messages = [];
    this.running = null;
    this.prompt = byId("prompt");
    byId("chat-form").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("clear").addEventListener("click", () => this.clear());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    byId("messages").replaceChildren();
    this.prompt.focus();
  }

  async send() {
    const text = this.prompt.value.trim();
    if (!text || this.running || !this.server.model) return;
    this.prompt.value = "";
    const asked = element("div", { className: "message user" }, text);
    const answer = new Answer(this.server.layers, "Answer");
    const line = element("p", { className: "facts" }, "…");
    const answered = element("div", { className: "message" }, answer.node, line);
    byId("messages").append(asked, answered);
    const messages = [...this.messages, { role: "user", content: text }];
    this.#run(true);
    this.fail(null);
    let said = "";
    try {
      const result = await generate(this.server.api, {
        model: this.server.model, messages, river: this.dial.river(), maxTokens: this.dial.maxTokens,
        temperature: this.dial.temperature, signal: this.running.signal,
      }, (piece, result) => {
        answer.add(piece);
        said += piece.content;
        line.textContent = progress(result);
      });
      line.textContent = facts(result);
      byId("chat-status").textContent = `Answer: ${answer.text}. ${facts(result)}`;
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error);
      line.textContent = error.name === "AbortError" ? "stopped" : "failed";
      if (!answer.text) {
        if (asked.isConnected) this.prompt.value ||= text;
        asked.remove();
        answered.remove();
      }
    } finally {
      this.#run(false);
    }
    // A question without an answer is not part of what the model is asked next, nor are its thoughts.
    if (said && asked.isConnected) {
      this.messages = [...messages, { role: "assistant", content: said }];
    }
  }

  #run(on) {
    this.running = on ? new AbortController() : null;
    byId("send").disabled = on;
    byId("stop").disabled = !on;
  }
}
