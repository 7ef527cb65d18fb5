/** The two charts, drawn without a library: a line and a row of bars. */

import { paint } from "./depth.js";
import { element, number } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

/** Tokens per second over time; `from` and `to` are the ends of the time axis in ms. */
export function rateChart(host, rates, from, to) {
  const top = Math.max(1, ...rates.map(({ rate }) => rate));
  const points = rates.map(({ at, rate }) => `${(at - from) / (to - from) * 100},${38 - rate / top * 36}`);
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("viewBox", "0 0 100 40");
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("class", "rate-line");
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", `Tokens per second in the last two minutes, at most ${number(top, 1)}`);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  chart.append(line);
  const axis = element("div", { className: "axis", "aria-hidden": "true" },
    element("span", {}, "2 min ago"), element("span", {}, `peak ${number(top, 1)} tok/s`), element("span", {}, "now"));
  host.replaceChildren(chart, axis);
}

/** Tokens by exit layer; `counts[l]` for layer l. */
export function histogram(host, counts, layers) {
  const most = Math.max(1, ...counts);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const peak = counts.indexOf(Math.max(...counts));
  const label = total ? `Exit depth of ${total} tokens, most often ${peak} of ${layers} layers` : "No tokens yet";
  const bars = element("div", { className: "bars", role: "img", "aria-label": label });
  for (let layer = 1; layer <= layers; layer += 1) {
    const count = counts[layer] ?? 0;
    const bar = element("div", { title: `${layer} layers: ${number(count)} tokens` });
    bar.style.height = count ? `${Math.max(2, 100 * count / most)}%` : "0";
    paint(bar, layer, layers, "depth-bar");
    bars.append(bar);
  }
  const axis = element("div", { className: "axis", "aria-hidden": "true" },
    element("span", {}, "1 layer"), element("span", {}, total ? `${number(total)} tokens` : "no tokens yet"),
    element("span", {}, `${layers}: backbone`));
  host.replaceChildren(bars, axis);
}
