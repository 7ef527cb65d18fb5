/** What the server is doing: polled while the page can be seen. */

import { histogram, rateChart } from "./charts.js";
import { byId, element, number } from "./dom.js";
import { samples } from "./metrics.js";

const EVERY = 2000;
const KEEP = 120_000;

export class Live {
  constructor(server, fail) {
    this.server = server;
    this.fail = fail;
    this.history = [];
    this.timer = null;
    this.lost = false;
    byId("window").addEventListener("change", () => this.#show());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#soon(0); });
  }

  start() {
    this.history = [];
    this.#soon(0);
  }

  stop() {
    clearTimeout(this.timer);
  }

  #soon(delay) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#poll(), delay);
  }

  async #poll() {
    if (document.hidden) return;
    try {
      const [stats, running] = await Promise.all([this.server.api.json("river/stats"), this.#running()]);
      const now = performance.now();
      // Only the totals of one server, since one start of it, can be taken from each other.
      this.history = this.history.filter(({ at, stats: { server } }) => now - at < KEEP && server === stats.server);
      this.history.push({ at: now, stats });
      byId("live-running").textContent = number(running);
      this.#show();
      if (this.lost) this.fail(null);
      this.lost = false;
    } catch (error) {
      this.lost = true;
      this.fail(error);
      if (error.status === 401) return; // goes on when there is another key
    }
    this.#soon(EVERY);
  }

  /** Requests in the engine; null where a proxy does not offer the metrics of one server. */
  async #running() {
    try {
      return samples(await this.server.api.text("metrics"))("vllm:num_requests_running");
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  #show() {
    const last = this.history.at(-1);
    if (!last) return;
    const rates = this.history.slice(1).map(({ at, stats }, place) => {
      const before = this.history[place];
      return { at, rate: Math.max(0, 1000 * (stats.tokens - before.stats.tokens) / (at - before.at)) };
    });
    rateChart(byId("rate-chart"), rates, last.at - KEEP, last.at);
    byId("live-rate").textContent = number(rates.at(-1)?.rate ?? null, 1);
    const seconds = Number(byId("window").value);
    const from = seconds ? this.history.find(({ at }) => last.at - at <= seconds * 1000).stats : null;
    const shown = since(last.stats, from);
    byId("live-depth").textContent = shown.tokens ? `${number(shown.run / shown.tokens, 1)} of ${last.stats.num_layers}` : "–";
    const all = shown.run + shown.skipped;
    const [part, whole] = last.stats.drafted ? [shown.accepted, shown.drafted] : [shown.skipped, all];
    byId("live-saved").textContent = whole ? `${number(100 * part / whole)} %` : "–";
    byId("live-saved-name").textContent = last.stats.drafted ? "drafts accepted" : "layers in 4 bit";
    histogram(byId("histogram"), shown.layers, last.stats.num_layers);
    byId("histogram-table").replaceChildren(...shown.layers.flatMap((count, layer) => count
      ? [element("tr", {}, element("td", {}, String(layer)), element("td", {}, number(count)))] : []));
  }
}

/** What was added to the totals since `before` (everything, where that is null). */
function since(stats, before) {
  const layers = Array.from({ length: stats.num_layers + 1 }, (_, layer) =>
    (stats.exit_layers[layer] ?? 0) - (before?.exit_layers[layer] ?? 0));
  return {
    layers,
    tokens: stats.tokens - (before?.tokens ?? 0),
    run: stats.backbone_layers - (before?.backbone_layers ?? 0),
    skipped: stats.skipped_layers - (before?.skipped_layers ?? 0),
    drafted: stats.drafted - (before?.drafted ?? 0),
    accepted: stats.accepted - (before?.accepted ?? 0),
  };
}
