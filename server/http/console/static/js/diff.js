/**
 * Places of `a` and of `b` that are not part of their longest common subsequence.
 * Position by position would call everything different after the first inserted token.
 */
export function differences(a, b) {
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] = a[i] === b[j]
        ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const inA = new Set();
  const inB = new Set();
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      i += 1;
      j += 1;
    } else if (j >= b.length || (i < a.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) {
      inA.add(i);
      i += 1;
    } else {
      inB.add(j);
      j += 1;
    }
  }
  return [inA, inB];
}

/** How many entries `a` and `b` share from their start. */
export function commonStart(a, b) {
  let count = 0;
  while (count < a.length && count < b.length && a[count] === b[count]) count += 1;
  return count;
}

/** The tokens of an answer, each with the place of its piece: a chunk may bring several. */
export function tokens(pieces) {
  return pieces.flatMap(({ ids, text }, place) =>
    (ids.length || !text ? ids : [text]).map((token) => ({ token, place })));
}
