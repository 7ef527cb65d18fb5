"""What exits cost, measured in the engine, and settings that are chosen and tested for a target.

The measurement is teacher-forced: a text that the backbone has written is fed as one prompt whose
tail counts as generated (``TeacherForced``). The rows of a forward pass run layer by layer, and
each writes its K/V on its own path before later rows attend to it. So one pass gives what decoding
with the same settings would have given along that text: exit layers, K/V and logits.
"""
