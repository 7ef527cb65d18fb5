"""Prompts of a comparison: random words, or the rows of a file."""

from __future__ import annotations

import random
from typing import Any

from river_vllm.errors import RiverError
from server.bench.options import Requests
from server.cli.prompts import prompt_of, read_rows

WARM_UP = "warm-up"
WAKE = "wake"
"""The ``part`` of unmeasured prompts: before the first round, and before a turn."""


class RandomWords:
    """Random words, different for each part, so that no prefix cache holds a measured prompt.

    A seed gives the same prompts in any order of calls.
    """

    def __init__(self, words: int, seed: int) -> None:
        self._words = words
        self._seed = seed

    def __call__(self, index: int, part: str) -> str:
        """Prompt number ``index`` of ``part``."""
        chance = random.Random(f"{self._seed}/words/{part}/{index}")
        return " ".join(chance.choices(WORDS, k=self._words))

    def repeats(self, count: int) -> bool:
        """Whether the first ``count`` prompts have a duplicate."""
        return False


class Rows:
    """Rows of a file in order, from the top again after the last.

    Unmeasured prompts come from the bottom, waking above warm-up. No prefix cache holds a measured
    prompt, unless the file is short.

    Args:
        warm_up: number of rows for the warm-up.
    """

    def __init__(self, rows: list[str | list[Any]], warm_up: int) -> None:
        self._rows = rows
        self._from_below = {WARM_UP: 0, WAKE: warm_up}

    def __call__(self, index: int, part: str) -> str | list[Any]:
        if part in self._from_below:
            index = -1 - self._from_below[part] - index
        return self._rows[index % len(self._rows)]

    def repeats(self, count: int) -> bool:
        return count > len(self._rows)


def prompts_of(options: Requests, warm_up: int) -> RandomWords | Rows:
    """The prompts of ``options``, ``warm_up`` of them for the warm-up.

    Raises:
        RiverError: the file is not as expected; names the line.
    """
    if options.prompts is None:
        return RandomWords(options.prompt_words, options.seed)
    rows = []
    for line, row in read_rows(options.prompts, "--prompts")[1]:
        place = f"--prompts '{options.prompts}', line {line}"
        key, value = prompt_of(row, place, options.prompt_field)
        if key == "messages" and options.api != "chat":
            raise RiverError(f"{place}: 'messages' cannot be sent to completions; use --api chat")
        rows.append(value)
    return Rows(rows, warm_up)


_TEXT = """
apple arrow autumn bank basket beach bell bird blue board boat book bottle box branch bread
bridge bright brown brush butter button cable camp candle card carpet castle cause center
chain chair chance cheese child circle city clean clear clock cloud coat coffee cold color
copper corn corner cotton country cover cream crowd culture cup current dance danger dark
daughter desert desk dinner doctor dog door dream dress drink driver dust early earth east
edge effect empty engine evening event eye fabric face fact family farm father field figure
finger fire fish flag flat floor flower food foot forest fork fresh friend fruit garden
gate gift girl glass gold grain grass gray green ground group guest hair hammer hand harbor
heart heavy hill history home honey horse hospital hotel hour house ice idea industry
insect iron island journey judge juice jump keep kettle key kind king kitchen knife ladder
lake lamp land language large laugh leaf leather lemon letter level library light line lion
lip list long lunch machine map market master meal measure meat medical metal middle milk
mind minute mirror money month moon morning mother motion mountain mouth music name narrow
nation nature neck needle net new night noise north nose note number nut ocean office oil
open orange order oven page paint paper park part path pen pencil person picture piece pig
pipe place plant plate plow pocket point pool pot potato power price prison profit public
pump purple question quiet rail rain reason record red rice ring river road rock roof room
root round rule sail salt sand school science sea season second seed shade sharp sheep
shelf ship shirt shoe short side silk silver simple sister skin sky sleep slow small smile
smoke snow soap soft solid song sound south space spoon spring square stage star station
steel stem step stone store storm story street strong sugar summer sun table tail tall
taste teacher team test thick thin thread thunder ticket time tin toe town train travel
tree trouble truck turn valley value vessel view village voice walk wall warm wash watch
water wave weather week west wheel white wide wild wind window wine winter wire woman wood
word work world year yellow young
"""

WORDS = tuple(_TEXT.split())
