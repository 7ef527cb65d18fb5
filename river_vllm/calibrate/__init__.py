"""Measures exits in the engine, and chooses and tests settings for a target agreement.

The measurement is teacher-forced: a text that the backbone has written is one prompt whose tail
counts as generated (``ForcedRequests``). A forward pass runs its rows layer by layer. Each row
writes its K/V on its own path before later rows attend to it. So one pass gives the exit layers,
K/V and logits that decoding this text with the same settings would give.
"""
