/** Reads Prometheus' text format; the result gives a metric's sum over its labels, or null. */
export function samples(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)$/.exec(line);
    if (found) sums.set(found[1], (sums.get(found[1]) ?? 0) + Number(found[2]));
  }
  return (name) => sums.get(name) ?? null;
}
