/** Where a depth lies on the colour scale, and how it is said. */

import { element } from "./dom.js";

/** 0 for a token that left after one layer, 1 for the last exit. Logarithmic: exits are shallow. */
export function position(layer, layers) {
  return layers <= 2 ? 0 : Math.min(1, Math.log(layer) / Math.log(layers - 1));
}

/** Colour `node` for `layer` of `layers`; the deepest never left the backbone and has no colour. */
export function paint(node, layer, layers, kind = "depth") {
  const backbone = layer >= layers;
  node.classList.toggle("backbone", backbone);
  node.classList.toggle(kind, kind !== "depth" || !backbone);
  node.style.setProperty("--t", position(layer, layers).toFixed(3));
}

export function say(layer, layers) {
  if (layer >= layers) return `all ${layers} layers on the backbone`;
  return `left after layer ${layer} of ${layers}; ${layers - layer} in 4 bit`;
}

/** The legend for a model of `layers` layers. */
export function legend(layers) {
  const bar = element("span", { className: "scale-bar", "aria-hidden": "true" });
  const steps = Math.min(24, layers - 1);
  for (let step = 0; step < steps; step += 1) {
    const cell = element("span", { className: "depth-bar" });
    cell.style.setProperty("--t", (steps === 1 ? 0 : step / (steps - 1)).toFixed(3));
    bar.append(cell);
  }
  return element("div", { className: "legend" },
    element("span", { className: "scale" },
      element("span", {}, "left after 1 layer"), bar, element("span", {}, `${layers - 1} layers`)),
    element("span", {}, element("span", { className: "token backbone" }, "underlined"), `: all ${layers} on the backbone`),
    element("span", {}, "Hover, tap, or focus and use the arrow keys for a token's depth."));
}
