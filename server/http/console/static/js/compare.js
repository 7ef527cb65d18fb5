/** The same prompt by the backbone and by the river. */

import { commonStart, differences, tokens } from "./diff.js";
import { byId, number } from "./dom.js";
import { facts, progress } from "./facts.js";
import { generate } from "./generate.js";
import { Answer } from "./tokens.js";

export class Compare {
  constructor(server, dial, fail) {
    this.server = server;
    this.dial = dial;
    this.fail = fail;
    this.running = null;
    byId("compare-form").addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    byId("compare-stop").addEventListener("click", () => this.running?.abort());
  }

  async run() {
    const question = byId("question").value.trim();
    if (!question || this.running || !this.server.model) return;
    this.#run(true);
    this.fail(null);
    for (const side of ["backbone", "river"]) {
      byId(`${side}-answer`).replaceChildren();
      byId(`${side}-facts`).textContent = "";
    }
    const status = byId("compare-status");
    try {
      const messages = [{ role: "user", content: question }];
      status.textContent = "The backbone answers …";
      const backbone = await this.#side("backbone", messages, this.dial.backbone());
      status.textContent = "The river answers …";
      const river = await this.#side("river", messages, this.dial.river());
      status.textContent = this.#compare(backbone, river);
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "Stopped." : "";
      if (error.name !== "AbortError") this.fail(error);
    } finally {
      this.#run(false);
    }
  }

  async #side(name, messages, river) {
    const answer = new Answer(this.server.layers, `Answer of the ${name}`);
    const line = byId(`${name}-facts`);
    byId(`${name}-answer`).replaceChildren(answer.node);
    const result = await generate(this.server.api, {
      model: this.server.model, messages, river, maxTokens: this.dial.maxTokens, temperature: 0,
      signal: this.running.signal,
    }, (piece, result) => {
      answer.add(piece);
      line.textContent = progress(result);
    });
    line.textContent = facts(result);
    return { answer, result };
  }

  #compare(backbone, river) {
    const [own, other] = [backbone, river].map(({ answer, result }) =>
      tokens([...answer.pieces, { ids: result.unsaid, text: "" }]));
    const [a, b] = [own, other].map((all) => all.map(({ token }) => token));
    const [inA, inB] = differences(a, b);
    backbone.answer.mark(new Set([...inA].map((index) => own[index].place)));
    river.answer.mark(new Set([...inB].map((index) => other[index].place)));
    const same = inB.size === 0 && inA.size === 0
      ? "All tokens are equal."
      : `${number(100 * (1 - inB.size / b.length))} % of the river's tokens are the backbone's; the first ${commonStart(a, b)} are equal.${cause(river.result.report)}`;
    const times = [backbone.result.milliseconds, river.result.milliseconds];
    if (times.includes(null)) return same;
    return `${same} ${number(times[0], 1)} ms per token on the backbone, ${number(times[1], 1)} on the river: ${number(times[0] / times[1], 2)} ×.`;
  }

  #run(on) {
    this.running = on ? new AbortController() : null;
    byId("compare-run").disabled = on;
    byId("compare-stop").disabled = !on;
  }
}

/** Why answers differ although the backbone checked every token. */
function cause(report) {
  return report?.mode === "verified"
    ? " Both answers are the backbone's: one token a pass is rounded otherwise than several, and two likely tokens were nearly tied."
    : "";
}
