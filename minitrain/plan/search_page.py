"""What a search has found, as a page."""

from minitrain.plan.held import layout_of
from minitrain.plan.search import Search
from minitrain.plan.section import Rows, Section, seconds, size


def search_page(found: Search, most: int = 10) -> str:
    rows: Rows = [
        tuple(",dp,pp,tp,ZeRO,sequence,recompute,micro-batch,m,step,tokens/s,MFU,most held".split(","))
    ]
    for place, one in enumerate(found.fitting[:most], 1):
        at = layout_of(one.config)
        rows.append(
            (
                str(place), str(at.dp), str(at.pp), str(at.tp), str(at.zero), "yes" if at.sequence else "no",
                one.config.parallel.recompute, str(one.config.train.micro_batch), str(at.micro),
                seconds(one.seconds), f"{one.tokens_per_second:,.0f}", f"{one.mfu:.1%}", size(one.bytes),
            )
        )  # fmt: skip
    title = f"{found.legal:,} legal layouts, of which {len(found.fitting):,} fit; the fastest by this model"
    if found.fitting:
        return Section(title, rows, {}).text(explain=False)
    if found.smallest is None:
        return f"{title}: none"
    at = layout_of(found.smallest.config)
    nearest = f"dp {at.dp} x pp {at.pp} x tp {at.tp}, ZeRO {at.zero}, micro-batch of "
    nearest += f"{found.smallest.config.train.micro_batch}: {size(found.smallest.bytes)} on its fullest rank"
    return f"{title}: none. Nearest comes {nearest}"
