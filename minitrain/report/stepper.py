"""The collectives of one step as the page's script wants them (stepper.js), and the elements it works on."""

from collections.abc import Sequence
from typing import Any

from minitrain.report.holdings import Cell
from minitrain.report.html import for_script
from minitrain.report.trace import Collective

MOST = 5000  # collectives of a step that are on the page

CONTROLS = """\
<div id="stepper">
<div class="controls">
<button type="button" data-by="-1">previous</button>
<button type="button" data-by="1">next</button>
<input type="range" min="0" max="0" value="0" aria-label="which collective">
<label>axis <select name="axis"><option value="">all</option></select></label>
<label>phase <select name="phase"><option value="">all</option></select></label>
</div>
<p class="position" aria-live="polite"></p>
<div class="replay">
<div><dl></dl><svg class="map" role="img" aria-label="who takes part"></svg></div>
<div><svg class="slices" role="img" aria-label="which slice moved where"></svg>
<p class="note explanation"></p></div>
</div>
</div>"""


def stepper(made: Sequence[Collective], cells: Sequence[Cell], step: int) -> str:
    data = {
        "step": step,
        "ranks": [_rank(cell, cells) for cell in cells],
        "calls": [_call(collective) for collective in made[:MOST]],
    }
    return f"{CONTROLS}\n{for_script('collectives', data)}"


def _rank(cell: Cell, cells: Sequence[Cell]) -> dict[str, Any]:
    columns = sum((c.place.replica, c.place.shard) == (0, 0) for c in cells)
    row, column = divmod(cell.rank, columns)
    at = cell.place
    title = f"rank {cell.rank}: replica {at.replica}, shard {at.shard}, stage {at.pp}, tp {at.tp}"
    return {"row": row, "column": column, "title": title}


def _call(collective: Collective) -> dict[str, Any]:
    call = collective.first
    micro = None if call.micro is None else f"micro-batch {call.micro}"
    return {
        "verb": call.verb,
        "axis": call.axis,
        "ranks": call.ranks,
        "elements": call.elements,
        "dtype": call.dtype,
        "bytes": call.bytes,
        "sent": call.sent_bytes,
        "phase": call.phase,
        "what": ", ".join(filter(None, (call.phase, micro, call.part))),
        "site": call.site,
        "start": round(collective.start, 3),
        "waited": round(max(collective.complete_from - collective.start, 0.0), 4),
        "moved": round(collective.moving, 4),
    }
