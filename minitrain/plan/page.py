"""A prediction as a page: sections of one table each. Every number stands under a title, and every title has
its formula, which `--explain` prints.
"""

from collections import Counter

from minitrain.observe.flops import flops_per_token
from minitrain.plan.activations import KEPT
from minitrain.plan.held import group_sizes, layout_of, piece
from minitrain.plan.prediction import Holding, Prediction
from minitrain.plan.section import Formulas, Rows, Section, seconds, size
from minitrain.plan.step_time import ASSUMPTIONS, OPERATIONS, group, ids_held
from minitrain.plan.textbook_page import activations_of_the_textbook, states_of_the_textbook


def page(p: Prediction, explain: bool) -> str:
    found = [facts(p), *(section.text(explain) for section in sections(p))]
    if explain and p.time:
        found.append("assumed\n" + "\n".join(f"  - {text}" for text in ASSUMPTIONS))
    if not explain:
        found.append("--explain prints the formula of each of these numbers, and what is assumed")
    return "\n\n".join(found)


def sections(p: Prediction) -> list[Section]:
    found = [
        _held(p),
        _memory(p),
        states_of_the_textbook(p),
        activations_of_the_textbook(p),
        _traffic(p),
        _flops(p),
    ]
    found.append(_bubbles(p))
    return [*found, _time(p)] if p.time else found


def facts(p: Prediction) -> str:
    """What this is about, and the answer in short."""
    c, at = p.config, layout_of(p.config)
    m = c.model
    kv = "" if m.kv_heads == m.heads else f" ({m.kv_heads} kv)"
    zero = f", ZeRO-{at.zero} over {at.shard}" if at.zero else ""
    form = ", sequence parallel" if at.sequence else ""
    form += "" if c.parallel.recompute == "none" else f", {c.parallel.recompute} recomputation"
    lines = {
        "model": f"{m.arch}, {m.layers} layers x {m.width}, {m.heads} heads{kv}, ffn {m.ffn}, "
        f"vocab {m.vocab}, {m.seq_len} positions: {p.parameters:,} parameters",
        "layout": f"{at.ranks:,} ranks = dp {at.dp} x pp {at.pp} x tp {at.tp}{zero}, "
        f"{c.parallel.schedule}{form}",
        "batch": f"{c.train.global_batch:,} sequences = {at.dp * at.micro * at.tokens:,} tokens a step, "
        f"on every replica {at.micro:,} micro-batches of {c.train.micro_batch}",
        "types": f"{c.precision}, {c.optim.name}",
        "hardware": "none named (--hardware NAME), so no times; activations as on "
        + ("a GPU" if p.gpu else "the host"),
    }
    if p.machine and p.time:
        fits = f"{'fits' if p.fits else 'does not fit'}: {size(p.most)} of {p.machine.memory_gb:g} GB"
        lines["hardware"] = f"{p.machine.cards} cards a node; {p.machine.source}"
        lines["so"] = (
            f"{fits}; {seconds(p.time.seconds)} a step, {p.time.tokens_per_second:,.0f} tokens/s, "
            f"MFU {p.time.mfu:.1%} (6N + 6LCT)"
        )
    return "\n".join(["minitrain plan", *(f"  {name:<10}{text}" for name, text in lines.items())])


def _held(p: Prediction) -> Section:
    model, at = p.config.model, layout_of(p.config)
    assert model.kv_heads and model.ffn
    rows: Rows = [("stages", "blocks", "heads", "kv heads", "ffn", "embedding", "head", "parameters")]
    ids, ffn = ids_held(p.config, at.tp - 1), piece(model.ffn, at.tp - 1, at.tp)
    for h in p.holdings:
        first, last = h.kind.first == 0, h.kind.first == at.pp - 1
        heads = (str(model.heads // at.tp), str(max(1, model.kv_heads // at.tp)), str(ffn))
        ends = (str(ids) if first else "-", str(ids) if last else "-")
        rows.append((_stages(h), str(h.layers), *heads, *ends, f"{h.elements:,}"))
    formulas = {
        "blocks": "layers / pp, one more on the first layers mod pp stages",
        "heads": "heads / tp",
        "kv heads": "kv_heads / tp, or one that tp / kv_heads ranks hold alike",
        "ffn": "ffn / tp, as even as whole rows allow: here the last slice, none is larger",
        "embedding": "rows: vocab / tp, likewise; a tied matrix is held by the first stage and by the last",
        "head": "rows, likewise",
        "parameters": "elements of all of these, whole or cut over tp; before ZeRO, without padding",
    }
    return Section("who holds what (of each kind of stage a rank that holds most)", rows, formulas)


def _memory(p: Prediction) -> Section:
    recompute = p.config.parallel.recompute
    head = "stages,parameters,gradients,master,moments,activations,in flight,buffers,total,logits"
    again = recompute != "none"
    rows: Rows = [(*head.split(","), *(["again"] if again else []))]
    for h in p.holdings:
        kept = (size(h.activations), f"{h.in_flight} x {size(h.kept)}")
        states = tuple(size(n) for n in h.persistent)
        passing = (size(h.logits), *([size(h.again)] if again else []))
        rows.append((_stages(h), *states, *kept, size(h.buffers), size(h.stays), *passing))
    of_a_block = KEPT[recompute]
    by_schedule = "m" if p.config.parallel.schedule == "gpipe" else "min(m, p - s) on stage s"
    formulas = {
        "parameters": "q n, under ZeRO 3 q n / N_s: n elements of all units, each padded to N_s equal shards",
        "gradients": "g n, under ZeRO 2 and 3 (and run.exact) g n / N_s",
        "master": "k n / N_s; none where parameters are fp64, fp32 or pure bf16",
        "moments": "of adamw 2 k n / N_s (plan/memory.py has the other optimizers)",
        "activations": "in flight: micro-batches x what one keeps",
        "in flight": f"{by_schedule}; what a micro-batch keeps: blocks x ({of_a_block}), as "
        "plan/activations.py lists them",
        "buffers": "what ZeRO 2, ZeRO 3 and run.exact borrow at once (plan/buffers.py)",
        "total": "the sum: what metrics.jsonl says under memory_bytes, to the byte",
        "logits": "b s V/t (w + q): what comes and goes beside the total; other temporaries are not counted",
    }
    if p.machine:
        formulas["fits"] = "total + logits, or + what is made again if that is more"
    if again:
        formulas["again"] = "what recomputation makes of one block in its backward, when the logits have gone"
    return Section("memory of such a rank", rows, formulas)


def _traffic(p: Prediction) -> Section:
    sent = [sum(row.sent for row in rows) for rows in p.rows]
    index = max(range(len(sent)), key=lambda i: sent[i])
    rows: Rows = [("axis", "verb", "ranks", "calls", "sent", "largest")]
    calls, total, largest = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    formulas: Formulas = {
        "ranks": "of the group",
        "calls": "of this rank in one step",
        "sent": "bytes by this rank if each is a ring of n: 2 X (n-1)/n of an all-reduce, X (n-1)/n of a "
        "reduce-scatter or an all-gather, X of a message (Patarasuk & Yuan 2009)",
        "largest": "buffer X",
    }
    for row in p.rows[index]:
        key = row.axis, row.verb
        calls[key] += row.calls
        total[key] += row.sent
        largest[key] = max(largest[key], row.bytes)
        formulas[f"{row.axis} {row.verb}, {row.what}"] = (
            f"{row.calls:,} x {row.bytes:,} B: {row.sent:,} B sent"
        )
    for axis, verb in calls:
        key = axis, verb
        rows.append(
            (
                axis,
                verb,
                f"{group_sizes(p.config)[axis]:,}",
                f"{calls[key]:,}",
                size(total[key]),
                size(largest[key]),
            )
        )
    if not calls:
        rows.append(("none", "", "", "", "", ""))
    stage = _stages(p.holdings[index])
    title = f"collectives of a step, of a rank of stage {stage}: {size(sent[index])} sent"
    return Section(title, rows, formulas, left=2)


def _flops(p: Prediction) -> Section:
    model, at = p.config.model, layout_of(p.config)
    tokens = at.dp * at.micro * at.tokens
    head = ("convention", "a token", "a step", *(("MFU",) if p.time else ()))
    rows: Rows = [head]
    formulas: Formulas = {}
    for one in p.flops:
        cells = [f"{one.flops:.4g}", f"{one.flops * tokens:.4g}"]
        if p.time:
            mfu = p.time.mfu * one.flops / flops_per_token(model)
            cells.append(f"{mfu:.1%}" if one.of_the_model else "-")
        rows.append((one.name, *cells))
        formulas[one.name] = f"{one.formula}; {one.source}"
    formulas["a step"] = f"x {tokens:,} tokens"
    if p.time:
        formulas["MFU"] = "a token x tokens/s / (ranks x peak); - where it is not of the model"
    return Section("operations, forward and backward", rows, formulas)


def _bubbles(p: Prediction) -> Section:
    at = layout_of(p.config)
    rows: Rows = [("schedule", "idle", "idle / working", "idle / all", "micro-batches kept")]
    formulas: Formulas = {}
    for b in p.bubbles:
        here = " (this run)" if b.schedule == p.config.parallel.schedule else ""
        rows.append(
            (f"{b.schedule}{here}", f"{b.idle:g}", f"{b.ratio:.4f}", f"{b.fraction:.4f}", f"{b.kept:g}")
        )
        formulas[b.schedule] = f"{b.formula}; {b.source}"
    formulas["idle"] = f"in units of F, with B = 2 F and W = F; p = {at.pp} equal stages, m = {at.micro}"
    formulas["idle / working"] = "idle / (m (F + B))"
    formulas["idle / all"] = "idle / (m (F + B) + idle)"
    formulas["micro-batches kept"] = "at once, by the first stage, at most"
    return Section(f"bubble, p = {at.pp} stages, m = {at.micro} micro-batches", rows, formulas)


def _time(p: Prediction) -> Section:
    assert p.time and p.machine
    whole = p.time.seconds
    rows: Rows = [("part", "seconds", "share")]
    formulas: Formulas = {}
    for part in p.time.parts:
        rows.append((part.name, f"{part.seconds:.4g}", f"{part.seconds / whole:.1%}"))
        formulas[part.name] = part.formula
    rows.append(("step", f"{whole:.4g}", "100.0%"))
    formulas["step"] = "the sum: nothing overlaps"
    formulas["share"] = "of the step"
    used = sorted({row.axis for rows in p.rows for row in rows})
    for axis in used:
        n, alpha, beta = group(p.config, p.machine, axis)
        formulas[f"alpha, beta of {axis} ({n:,} ranks)"] = f"{alpha * 1e6:g} us, {beta / 1e9:g} GB/s"
    formulas["a collective"] = (
        "hops x alpha + S / beta, S what a rank sends; of n ranks 2 ceil(log2 n) hops for an all-reduce, "
        "ceil(log2 n) for a reduce-scatter or an all-gather, 1 for a message"
    )
    a, b = OPERATIONS[p.config.parallel.recompute]
    formulas["operations of a micro-batch"] = (
        f"blocks x ({a} b s P + {b} b s s h/t) + 6 b s h V/t, P elements of a block's matrices on a rank"
    )
    formulas["memory speed"] = f"{p.machine.memory_gb_s:g} GB/s"
    peak = p.machine.peak(p.config.precision)
    assert peak
    formulas["peak"] = (
        f"{peak / 1e12:g} TFLOP/s, of which products reach {p.machine.efficiency:.0%} (assumed)"
    )
    return Section("time of a step, by an alpha-beta model", rows, formulas)


def _stages(h: Holding) -> str:
    first, last = h.kind.first, h.kind.first + h.kind.number - 1
    return str(first) if first == last else f"{first}-{last}"
