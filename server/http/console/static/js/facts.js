/** One line about an answer, while it comes and when it is finished. */

import { number } from "./dom.js";

export function facts({ tokens, milliseconds, first, report, finish }) {
  const parts = [`${tokens} tokens`];
  if (milliseconds !== null) parts.push(`${number(milliseconds, 1)} ms per token`);
  if (first !== null) parts.push(`first after ${number(first)} ms`);
  if (report?.mode === "verified") {
    if (report.tokens_per_step !== null) parts.push(`${number(report.tokens_per_step, 2)} tokens per pass`);
    if (report.acceptance !== null) parts.push(`${number(100 * report.acceptance)} % of drafts accepted`);
  } else if (report && report.mean_exit_layer !== null) {
    parts.push(`mean depth ${number(report.mean_exit_layer, 1)} of ${report.num_layers}`);
  }
  if (finish === "length") parts.push("cut at the limit");
  return parts.join(" · ");
}

export function progress({ tokens, milliseconds }) {
  const rate = milliseconds === null ? [] : [`${number(1000 / milliseconds, 1)} tokens per second`];
  return [`${tokens} tokens so far`, ...rate].join(" · ");
}
