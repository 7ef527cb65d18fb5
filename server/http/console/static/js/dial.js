/** τ and the other settings of a request. */

import { byId } from "./dom.js";

export class Dial {
  constructor() {
    this.slider = byId("threshold");
    this.field = byId("threshold-number");
    this.slider.addEventListener("input", () => this.set(this.slider.valueAsNumber));
    this.field.addEventListener("change", () => this.set(this.field.valueAsNumber));
    byId("mode").addEventListener("change", () => this.#show());
  }

  /** Take the server's defaults; where it drafts, a request chooses how it is answered. */
  start({ threshold, min_layers: minLayers, num_layers: layers, mode, verify }) {
    byId("mode-row").hidden = !verify;
    byId("mode").value = mode;
    this.#show();
    this.slider.min = Math.min(Number(this.slider.min), Math.floor(threshold * 20) / 20);
    byId("min-layers").max = layers;
    byId("min-layers").value = minLayers;
    this.set(threshold);
  }

  /** Only what the chosen answers have a use for. */
  #show() {
    for (const part of document.querySelectorAll(".exits-only")) part.hidden = this.verifies;
    byId("verified-says").hidden = !this.verifies;
  }

  get verifies() { return byId("mode").value === "verified"; }

  get threshold() { return this.field.valueAsNumber; }

  set(value) {
    const threshold = Number.isFinite(value) ? Math.max(-1, Math.min(1, value)) : 1;
    const shown = String(Number(threshold.toFixed(6)));
    this.field.value = shown;
    this.slider.value = String(threshold);
    byId("threshold-says").textContent = threshold >= 1
      ? "No token leaves: the answers are the backbone's own."
      : `A token leaves the backbone once a layer changes its state so little that the similarity is above ${shown}.`;
  }

  /** The request's `river` field. */
  river() {
    return this.verifies
      ? { mode: "verified" }
      : { threshold: this.threshold, min_layers: whole("min-layers"), trace: true };
  }

  /** The same for the backbone alone. */
  backbone() {
    return this.verifies ? { enabled: false } : { enabled: false, trace: true };
  }

  get maxTokens() { return whole("max-tokens"); }

  get temperature() { return byId("temperature").valueAsNumber || 0; }
}

function whole(id) {
  const field = byId(id);
  const value = Math.round(field.valueAsNumber);
  return Number.isFinite(value) ? value : Number(field.defaultValue || field.min);
}
