"""Six optimizers on three functions of two variables: what momentum and adaptive rates are good for.

The rates are fair in this sense. SGD, momentum and Nesterov's momentum share one: their momentum is the
average of gradients, so on a slope that stays the same all three become equally fast. Adagrad, RMSProp and
Adam divide by the size of the gradients, so that their rates have another unit: they are such that the first
step is as long as SGD's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.observe.console import say, show
from minitrain.optim.adagrad import adagrad
from minitrain.optim.adamw import adamw
from minitrain.optim.apply import apply
from minitrain.optim.momentum import momentum, nesterov
from minitrain.optim.optimizer import Elementwise, Hyper
from minitrain.optim.rmsprop import rmsprop
from minitrain.optim.sgd import sgd
from minitrain.study.figures import BLACK, BLUE, GREEN, ORANGE, PALE, RED, SKY, draw, make_directory
from minitrain.tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN: dict[str, Elementwise] = {
    "SGD": sgd(),
    "momentum": momentum(0.9, classical=False),
    "Nesterov": nesterov(0.9, classical=False),
}
ADAPTIVE: dict[str, Elementwise] = {
    "Adagrad": adagrad(1e-10),
    "RMSProp": rmsprop(0.99, 1e-8),
    "Adam": adamw((0.9, 0.999), 1e-8),
}
COLOURS = dict(zip(PLAIN | ADAPTIVE, (BLACK, BLUE, SKY, ORANGE, RED, GREEN), strict=True))


class Surface(NamedTuple):
    """A function of w = (x, y), where its paths start, and what is measured of a path."""

    name: str
    f: Callable[[Array], Array]  # of one w or many
    gradient: Callable[[Array], Array]  # of one w
    start: tuple[float, float]
    lr: float  # SGD's
    steps: int
    measures: Mapping[str, Callable[[Array], float]]  # of a path [steps + 1, 2]
    window: tuple[tuple[float, float], tuple[float, float]]  # of the figure, along x and y
    levels: tuple[float, ...]  # its lines of equal f


def bowl(w: Array) -> Array:
    """f = (x^2 + 20 y^2) / 2: a valley, 20 times as steep across as along."""
    x, y = w[..., 0], w[..., 1]
    return np.asarray((x**2 + 20 * y**2) / 2)


def bowl_gradient(w: Array) -> Array:
    return np.array([1, 20]) * w


def bump(w: Array) -> Array:
    """f = x^2 / 4 + y^2 / 2 + exp(-(x + 1.5)^2 / 0.32): a bowl with a ridge across. There is a minimum before
    it, and a better one behind.
    """
    x, y = w[..., 0], w[..., 1]
    return np.asarray(x**2 / 4 + y**2 / 2 + np.exp(-((x + 1.5) ** 2) / 0.32))


def bump_gradient(w: Array) -> Array:
    x, y = w
    return np.array([x / 2 - (x + 1.5) / 0.16 * np.exp(-((x + 1.5) ** 2) / 0.32), y])


def saddle(w: Array) -> Array:
    """f = x^2 / 2 + (y^4 - 2 y^2) / 20: flat along y at (0, 0), between minima at (0, -1) and (0, 1)."""
    x, y = w[..., 0], w[..., 1]
    return np.asarray(x**2 / 2 + (y**4 - 2 * y**2) / 20)


def saddle_gradient(w: Array) -> Array:
    x, y = w
    return np.array([x, (y**3 - y) / 5])


def turns(path: Array) -> float:
    """How often y changes its sign."""
    return float(np.count_nonzero(np.diff(np.sign(path[:, 1]))))


def way_across(path: Array) -> float:
    """The length of all steps along y together."""
    return float(np.abs(np.diff(path[:, 1])).sum())


def steps_to_leave(path: Array) -> float:
    """The first step after which |y| > 1/2; infinite if there is none."""
    far = np.flatnonzero(np.abs(path[:, 1]) > 0.5)
    return float(far[0]) if far.size else np.inf


def _end(f: Callable[[Array], Array], path: Array) -> float:
    return float(f(path[-1]))


SURFACES = (
    Surface(
        "bowl", bowl, bowl_gradient, (-10.0, 1.0),
        lr=0.09,  # 0.1 is the limit: at 2 / curvature SGD no longer converges
        steps=60,
        measures={"turns": turns, "way across": way_across, "f at the end": partial(_end, bowl)},
        window=((-10.8, 4.5), (-2.2, 2.2)),
        levels=(1, 4, 9, 16, 25, 36, 49, 64),
    ),
    Surface(
        "bump", bump, bump_gradient, (-5.0, 1.5),
        lr=0.15,  # up to 1 / curvature = 0.17 x - lr df/dx grows with x: SGD passes no minimum
        steps=300,
        measures={"x at the end": lambda path: float(path[-1, 0]), "f at the end": partial(_end, bump)},
        window=((-5.4, 2.4), (-1.2, 1.8)),
        levels=(0.05, 0.25, 0.6, 1, 1.45, 1.52, 1.8, 2.4, 3.3, 4.6, 6.4),
    ),
    Surface(
        "saddle", saddle, saddle_gradient, (1.0, 0.01),
        lr=0.1,
        steps=300,
        measures={"steps to leave": steps_to_leave, "f at the end": partial(_end, saddle)},
        window=((-0.5, 1.1), (-0.3, 1.4)),
        levels=(-0.045, -0.03, -0.015, 0, 0.03, 0.09, 0.18, 0.3, 0.45),
    ),
)  # fmt: skip


def walk(surface: Surface, optimizer: Elementwise, lr: float, steps: int) -> Array:
    """The path w_0, w_1 ... w_steps."""
    w = np.array(surface.start)
    state, path = optimizer.init(w), [w.copy()]
    for count in range(1, steps + 1):
        apply(optimizer, w, surface.gradient(w), state, slice(0, 2), Hyper(lr, 0.0, count), 1.0)
        path.append(w.copy())
    return np.array(path)


def rates(surface: Surface) -> dict[str, float]:
    """A learning rate for each optimizer: see the top. Every first step is proportional to it."""

    def first_step(optimizer: Elementwise) -> float:
        before, after = walk(surface, optimizer, surface.lr, 1)
        return float(np.linalg.norm(after - before))

    wanted = first_step(PLAIN["SGD"])
    adaptive = {name: surface.lr * wanted / first_step(optimizer) for name, optimizer in ADAPTIVE.items()}
    return dict.fromkeys(PLAIN, surface.lr) | adaptive


def study_optimizers(out: str) -> None:
    """A table and a figure for each surface."""
    directory, written = make_directory(out), []
    for surface in SURFACES:
        lrs = rates(surface)
        paths = {
            name: walk(surface, optimizer, lrs[name], surface.steps)
            for name, optimizer in (PLAIN | ADAPTIVE).items()
        }
        rows = [[surface.name, "lr", *surface.measures]]
        for name, path in paths.items():
            measured = (f"{measure(path):.4g}" for measure in surface.measures.values())
            rows.append([name, f"{lrs[name]:.3g}", *measured])
        show(f"{table(rows)}\n")
        written += draw(directory / surface.name, (7.2, 3.9), partial(_paint, surface, paths))
    say("wrote " + ", ".join(map(str, written)))


def _paint(surface: Surface, paths: dict[str, Array], figure: "Figure") -> None:
    """A panel for each path, over lines of equal height."""
    (left, right), (bottom, top) = surface.window
    x, y = np.linspace(left, right, 61), np.linspace(bottom, top, 25)
    heights = surface.f(np.stack(np.meshgrid(x, y), axis=-1))
    name_of, measure = next(iter(surface.measures.items()))
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for panel, (name, path) in zip(panels.flat, paths.items(), strict=True):
        panel.contour(x, y, heights, surface.levels, colors=PALE, linewidths=0.6, linestyles="solid")
        every, colour = surface.steps // 60, COLOURS[name]
        panel.plot(*path.T, color=colour, marker=".", markersize=4, markeredgewidth=0, markevery=every)
        panel.plot(*path[0], "o", color=colour, markersize=4.5, markerfacecolor="white")
        panel.plot(*path[-1], "o", color=colour, markersize=5)
        panel.set_title(f"{name}: {name_of} {measure(path):.3g}")
        panel.set(xlim=(left, right), ylim=(bottom, top))
    for panel in panels[-1]:
        panel.set_xlabel("x")
    for panel in panels[:, 0]:
        panel.set_ylabel("y")
