"""The closed forms of papers as tables: beside a prediction, and by themselves."""

from collections.abc import Sequence

from minitrain.plan.activations import KEPT, kept_of_a_block
from minitrain.plan.held import layout_of
from minitrain.plan.prediction import Prediction
from minitrain.plan.section import Formulas, Rows, Section, gb, size
from minitrain.plan.textbook import RECIPES, TEXTBOOK, Recipe, activations, model_states

ZERO_FORMS = ("(q + g + K) Psi", "(q + g + K/N_d) Psi", "(q + (g + K)/N_d) Psi", "(q + g + K)/N_d Psi")
"""Bytes of model states by the stage of ZeRO, with q, g, K those of a parameter, a gradient, and of what the
optimizer keeps of one; Psi parameters on N_d ranks.
"""


def states_of_the_textbook(p: Prediction) -> Section:
    at = layout_of(p.config)
    rows: Rows = [("bytes a parameter", "", *(f"ZeRO {zero}" for zero in range(4)))]
    psi = p.parameters
    for r in RECIPES:
        cells = (size(sum(model_states(r, psi, zero, at.dp))) for zero in range(4))
        constant = f"{r.param} + {r.grad} + {r.master + r.moments}"
        rows.append((f"{r.name}: {constant}", r.source, *cells))
    formulas = {
        f"ZeRO {zero}": f"{form}, Psi = {psi:,} parameters, N_d = {at.dp} data-parallel ranks"
        for zero, form in enumerate(ZERO_FORMS)
    }
    note = "ours differ by tp and pp, which cut Psi first, and by padding, of units to equal shards"
    title = f"model states by the textbook (of the whole model over dp {at.dp})"
    return Section(title, rows, formulas, (note,), left=2)


def activations_of_the_textbook(p: Prediction) -> Section:
    model, at = p.config.model, layout_of(p.config)
    rows: Rows = [("a layer and micro-batch", "", "bytes")]
    formulas: Formulas = {}
    for one in activations(model.seq_len, p.config.train.micro_batch, model.width, model.heads, at.tp):
        rows.append((one.case, one.formula, size(one.bytes)))
        formulas[one.case] = f"{one.formula}; Korthikanti et al. 2022, table 2"
    for name, gpu in (("ours on the host", False), ("ours on a GPU", True)):
        kept = kept_of_a_block(p.config, at.tp - 1, gpu)
        rows.append((name, KEPT[p.config.parallel.recompute], size(kept)))
        formulas[name] = "of the heaviest rank, in this precision; term by term in plan/activations.py"
    note = (
        "the table is of GPT in 16 bits, with dropout and whole squares of scores; ours have no dropout, and "
        "of the scores half, or none with flash attention"
    )
    return Section(f"activations by the textbook (16 bits, t = {at.tp})", rows, formulas, (note,), left=2)


def textbook_page(explain: bool) -> str:
    """The memory of 10 B parameters in pure bf16, and of the ZeRO paper's 7.5 B in mixed precision."""
    pure, mixed = RECIPES[-1], RECIPES[0]
    moment = pure.moments / 2 * TEXTBOOK
    whole: Rows = [("parameters", "gradients", "first moment", "second moment", "together")]
    cells = (pure.param * TEXTBOOK, pure.grad * TEXTBOOK, moment, moment)
    whole.append(tuple(gb(n) for n in (*cells, sum(cells))))
    titles = ("parameters", "gradients", "first moment", "second moment")
    states = Section(
        "10 B parameters in pure bf16, everything on every rank",
        whole,
        {**{name: "2 bytes x 10 x 10^9" for name in titles}, "together": "8 bytes x 10 x 10^9"},
        left=0,
    )
    one = _zero_rows("the same over N_d ranks", pure, TEXTBOOK, (2, 8, 64))
    other = _zero_rows(
        "7.5 B in mixed precision (Rajbhandari et al. 2020, figure 1)", mixed, 7_500_000_000, (64,)
    )
    return "\n\n".join(section.text(explain) for section in (states, one, other))


def _zero_rows(title: str, r: Recipe, psi: int, ranks: Sequence[int]) -> Section:
    rows: Rows = [("", *(f"N_d = {n}" for n in ranks))]
    formulas: Formulas = {}
    for zero, form in enumerate(ZERO_FORMS):
        rows.append((f"ZeRO {zero}", *(gb(sum(model_states(r, psi, zero, n))) for n in ranks)))
        formulas[f"ZeRO {zero}"] = f"{form} with q = {r.param}, g = {r.grad}, K = {r.master + r.moments}"
    return Section(title, rows, formulas)
