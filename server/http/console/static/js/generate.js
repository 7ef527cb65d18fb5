/** One streamed answer, with the exit layers and the times of its tokens. */

/**
 * @param api the server.
 * @param request `{model, messages, river, maxTokens, temperature, signal}`.
 * @param onPiece called with `{text, content, ids, depths}` and the result so far as tokens arrive; `content`
 *   is `text` without a model's thoughts.
 * @returns `{tokens, report, finish, milliseconds, first, unsaid}`: the time per token after the first one,
 *   and the time to the first one, as this browser saw them; the last tokens where they have no text, as the end.
 */
export async function generate(api, request, onPiece) {
  const { model, messages, river, maxTokens, temperature, signal } = request;
  const body = {
    model, messages, temperature, max_tokens: maxTokens, stream: true, return_token_ids: true,
    river,
  };
  const result = { tokens: 0, report: null, finish: null, milliseconds: null, first: null };
  const started = performance.now();
  let firstAt = null;
  let firstTokens = 0;
  let unsaid = { ids: [], depths: [] };
  for await (const chunk of api.stream("v1/chat/completions", body, signal)) {
    if (chunk.river) result.report = chunk.river;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const content = choice.delta.content ?? "";
    const text = (choice.delta.reasoning ?? "") + content;
    const depths = choice.river_trace_delta ?? [];
    const ids = choice.token_ids ?? [];
    if (ids.length) {
      const now = performance.now();
      if (firstAt === null) {
        firstAt = now;
        firstTokens = ids.length;
        result.first = firstAt - started;
      }
      result.tokens += ids.length;
      const timed = result.tokens - firstTokens;
      if (timed > 0) result.milliseconds = (now - firstAt) / timed;
    }
    // A token without text is part of a character that the next one completes, or ends the answer.
    unsaid.ids.push(...ids);
    unsaid.depths.push(...depths);
    if (text) {
      onPiece({ text, content, ...unsaid }, result);
      unsaid = { ids: [], depths: [] };
    }
    if (choice.finish_reason) result.finish = choice.finish_reason;
  }
  result.unsaid = unsaid.ids;
  return result;
}
