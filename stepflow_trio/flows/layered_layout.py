"""Where the boxes of a directed graph go, so that all of its arrows point downwards and few of them cross.

The method is Sugiyama's. Boxes are put into layers, by the longest way that leads to each. An arrow that
spans layers passes through a point in each between. Within the layers boxes and points are ordered by the
mean position of their neighbours (the barycenter), then moved sideways towards their neighbours. Arrows of
one box share their points for as long as they go the same way, so that a box that everybody reads does not
drown the drawing in lines. Of a graph with more long arrows than anyone could follow, some are cut: only
their end is drawn, below a label that names their source. All of it is deterministic.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, pairwise

from msgspec import Struct

__all__ = ["Arrow", "Knot", "Layout", "Size", "lay_out"]

_BOX_GAP = 32.0
_LABEL_GAP = 14.0
_LINE_GAP = 20.0
_LAYER_GAP = 18.0
_MAX_SLANT_GAP = 40.0
"""What is added at most between layers where arrows go far sideways, so that they are not too flat."""
_MAX_LAYER_WIDTH = 3000.0
"""Of the boxes in a layer. More that could be side by side go below them."""
_PORT_GAP = 16.0
_CORNER = 14.0
"""No arrow meets a box closer to its corner than this."""

_SAME = 0.1
"""What is closer than this is at one place."""

_MAX_ORDERINGS = 24
_ORDERING_BUDGET = 300_000
"""Items and lines that are looked at in all orderings together, which bounds the time for a huge graph."""
_PLACINGS = 24
_STACK = 8
"""Labels of cut arrows that are put above one another."""
_FREE_SPANS = 150
_SPANS_PER_BOX = 2
"""So many layers may arrows span in all, shared ones counted once, before the longest are cut."""

_LINE_WEIGHTS = (1.0, 2.0, 8.0)
"""How much a line wants to be straight, by how many of its two ends are points: long arrows first."""
_LABEL_WEIGHT = 3.0
"""How much a label wants to be above the box that it belongs to."""


_ANYWHERE = (float("-inf"), float("inf"))


class Size(Struct, frozen=True):
    """Of a box, or of a label."""

    width: float
    height: float


class Arrow(Struct, frozen=True):
    """From one box to a later one, by their positions, with or without a label."""

    source: int
    target: int
    label: Size | None
    cut_label: Size
    """The label that the arrow has where it is cut."""


class Knot(Struct, frozen=True):
    """A place that an arrow passes through, and its direction there: how far sideways for each unit down."""

    x: float
    y: float
    slope: float = 0.0


class Layout(Struct, frozen=True):
    """Where everything is; all coordinates are positive, and ``y`` grows downwards."""

    width: float
    height: float
    boxes: list[tuple[float, float]]
    """The centres of the boxes."""
    lines: list[list[Knot]]
    """Of each arrow, from its source, or if it is cut from its label, to its target."""
    cut: frozenset[int]
    """The arrows that are cut."""
    labels: list[tuple[float, float] | None]
    """Of each arrow, the centre of its label, which its line passes through or begins at."""


def lay_out(boxes: Sequence[Size], arrows: Sequence[Arrow]) -> Layout:
    """Place boxes and arrows.

    Args:
        boxes: every arrow leads from one of them to a later one. The last goes to the bottom.
        arrows: at most one for each pair of boxes.
    """
    return _Drawing(boxes, arrows).layout()


class _Drawing:
    """Items are the boxes and, behind them, the labels and the points that arrows pass through.

    Boxes are in the even layers. A label is in the odd one above the box that its arrow leads to.
    """

    def __init__(self, boxes: Sequence[Size], arrows: Sequence[Arrow]) -> None:
        self._box_count = len(boxes)
        self._sizes = list(boxes)
        self._gaps = [_BOX_GAP] * len(boxes)
        ranks = _ranks(boxes, arrows)
        self._cut = _too_long(arrows, ranks)
        self._layer_of = [2 * rank for rank in ranks]
        self._above: list[list[tuple[int, float]]] = [[] for _ in boxes]
        self._below: list[list[tuple[int, float]]] = [[] for _ in boxes]
        """Of each item the neighbours in the next layer, each with the weight of the line to it."""
        self._trunks: dict[int, dict[int, int]] = {}
        """Of each box the points that its arrows share, by layer."""
        self._stacks: dict[int, tuple[int, int]] = {}
        """By target, the labels of cut arrows that are above one another, and how many they are."""
        self._labels: list[tuple[int, float] | None] = []
        """Of each arrow the item that its label is in, and how far from that item's top its middle is."""
        self._joined: set[tuple[int, int]] = set()
        self._ways = [self._way(arrow, is_cut=i in self._cut) for i, arrow in enumerate(arrows)]
        self._layers: list[list[int]] = [[] for _ in range(max(self._layer_of, default=-1) + 1)]
        for item, layer in enumerate(self._layer_of):
            self._layers[layer].append(item)
        self._x = [0.0] * len(self._sizes)
        self._heights = [
            max((self._sizes[item].height for item in layer), default=0.0) for layer in self._layers
        ]
        self._tops: list[float] = []

    def layout(self) -> Layout:
        self._order()
        self._place()
        self._straighten()
        left = min((x - size.width / 2 for x, size in zip(self._x, self._sizes, strict=True)), default=0.0)
        self._x = [x - left for x in self._x]
        self._find_tops()
        lines = [self._line(way, *ports) for way, ports in zip(self._ways, self._ports(), strict=True)]
        labels = [
            (self._x[label[0]], self._middle(label[0]) - self._sizes[label[0]].height / 2 + label[1])
            if label is not None
            else None
            for label in self._labels
        ]
        centres = [(self._x[box], self._middle(box)) for box in range(self._box_count)]
        right = max((x + size.width / 2 for x, size in zip(self._x, self._sizes, strict=True)), default=0.0)
        height = self._tops[-1] + self._heights[-1] if self._tops else 0.0
        return Layout(right, height, centres, lines, self._cut, labels)

    # From boxes and arrows to items in layers

    def _way(self, arrow: Arrow, *, is_cut: bool) -> list[int]:
        """The items that an arrow passes through, from its source, or if it is cut its label, on."""
        last = self._layer_of[arrow.target] - 1
        label = arrow.cut_label if is_cut else arrow.label
        way: list[int] = []
        if not is_cut:
            way.append(arrow.source)
            trunk = self._trunks.setdefault(arrow.source, {})
            for layer in range(self._layer_of[arrow.source] + 1, last + (label is None)):
                if layer not in trunk:
                    trunk[layer] = self._add(layer, _LINE_GAP)
                way.append(trunk[layer])
        self._labels.append(None)
        if label is not None:
            item, stacked = self._stacks.get(arrow.target, (0, _STACK)) if is_cut else (0, _STACK)
            if stacked == _STACK:
                item, stacked = self._add(last, _LABEL_GAP), 0
            if is_cut:
                self._stacks[arrow.target] = item, stacked + 1
            size = self._sizes[item]
            self._labels[-1] = item, size.height + label.height / 2
            self._sizes[item] = Size(max(size.width, label.width), size.height + label.height)
            way.append(item)
        way.append(arrow.target)
        for upper, lower in pairwise(way):
            if (upper, lower) not in self._joined:
                self._joined.add((upper, lower))
                weight = _LINE_WEIGHTS[self._is_point(upper) + self._is_point(lower)]
                if label is not None and lower == arrow.target:
                    weight = _LABEL_WEIGHT
                self._above[lower].append((upper, weight))
                self._below[upper].append((lower, weight))
        return way

    def _add(self, layer: int, gap: float) -> int:
        self._sizes.append(Size(0.0, 0.0))
        self._gaps.append(gap)
        self._layer_of.append(layer)
        self._above.append([])
        self._below.append([])
        return len(self._sizes) - 1

    def _is_point(self, item: int) -> bool:
        return self._sizes[item].width == 0.0

    # The order within the layers

    def _order(self) -> None:
        best, fewest = [list(layer) for layer in self._layers], self._crossings()
        cost = len(self._sizes) + len(self._joined) + 1
        for turn in range(min(_MAX_ORDERINGS, _ORDERING_BUDGET // cost + 2)):
            if fewest == 0:
                break
            neighbours = self._below if turn % 2 else self._above
            position = self._positions()
            for layer in reversed(self._layers) if turn % 2 else self._layers:
                mean = {
                    item: sum(position[near] for near, _ in neighbours[item]) / len(neighbours[item])
                    if neighbours[item]
                    else position[item]
                    for item in layer
                }
                layer.sort(key=mean.__getitem__)
                for index, item in enumerate(layer):
                    position[item] = index
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(layer) for layer in self._layers], crossings
        self._layers = best

    def _positions(self) -> list[int]:
        position = [0] * len(self._sizes)
        for layer in self._layers:
            for index, item in enumerate(layer):
                position[item] = index
        return position

    def _crossings(self) -> int:
        position = self._positions()
        crossings = 0
        for layer in self._layers:
            ends: list[int] = []
            for item in layer:
                reached = sorted(position[lower] for lower, _ in self._below[item])
                crossings += sum(len(ends) - bisect.bisect_right(ends, end) for end in reached)
                for end in reached:
                    bisect.insort(ends, end)
        return crossings

    # The places

    def _place(self) -> None:
        for layer in self._layers:
            x = 0.0
            for index, item in enumerate(layer):
                x += self._distance(layer[index - 1], item) if index else 0.0
                self._x[item] = x
            for item in layer:
                self._x[item] -= x / 2
        near = [above + below for above, below in zip(self._above, self._below, strict=True)]
        weights = [sum(weight for _, weight in its) for its in near]
        distances = [
            [self._distance(left, right) for left, right in pairwise(layer)] for layer in self._layers
        ]
        for turn in range(_PLACINGS):
            for number in range(len(self._layers))[:: -1 if turn % 2 else 1]:
                layer = self._layers[number]
                wanted = [
                    sum(self._x[other] * weight for other, weight in near[item]) / weights[item]
                    if near[item]
                    else self._x[item]
                    for item in layer
                ]
                places = _apart(wanted, [weights[item] or 0.1 for item in layer], distances[number])
                for item, x in zip(layer, places, strict=True):
                    self._x[item] = x

    def _straighten(self) -> None:
        """Make vertical, as far as their neighbours let them be, the lines that arrows share."""
        beside = {
            item: (left, right)
            for layer in self._layers
            for left, item, right in zip([None, *layer], layer, [*layer[1:], None], strict=False)
        }
        for trunk in self._trunks.values():
            run: list[int] = []
            room = _ANYWHERE
            for _, point in sorted(trunk.items()):
                left, right = beside[point]
                lowest = self._x[left] + self._distance(left, point) if left is not None else _ANYWHERE[0]
                highest = self._x[right] - self._distance(point, right) if right is not None else _ANYWHERE[1]
                if max(room[0], lowest) > min(room[1], highest):
                    self._align(run, room)
                    run, room = [], _ANYWHERE
                run.append(point)
                room = max(room[0], lowest), min(room[1], highest)
            self._align(run, room)

    def _align(self, points: list[int], room: tuple[float, float]) -> None:
        if points:
            x = sorted(self._x[point] for point in points)[len(points) // 2]
            for point in points:
                self._x[point] = min(max(x, room[0]), room[1])

    def _distance(self, left: int, right: int) -> float:
        gap = (self._gaps[left] + self._gaps[right]) / 2
        return (self._sizes[left].width + self._sizes[right].width) / 2 + gap

    def _find_tops(self) -> None:
        y = 0.0
        for layer, height in zip(self._layers, self._heights, strict=True):
            self._tops.append(y)
            sideways = (
                abs(self._x[item] - self._x[lower]) for item in layer for lower, _ in self._below[item]
            )
            y += height + _LAYER_GAP + min(_MAX_SLANT_GAP, 0.08 * max(sideways, default=0.0))

    def _middle(self, item: int) -> float:
        layer = self._layer_of[item]
        return self._tops[layer] + self._heights[layer] / 2

    # The lines

    def _line(self, way: list[int], leaves_at: float, meets_at: float) -> list[Knot]:
        source, *between, target = way
        # Within a layer lines are vertical: between its boxes there is no room for anything else.
        knots = [
            Knot(leaves_at, self._middle(source) + self._sizes[source].height / 2),
            Knot(leaves_at, self._band(source)[1]),
        ]
        for item, following in pairwise([*between, target]):
            x = self._x[item]
            top, bottom = self._band(item)
            if self._is_point(item) and self._layer_of[item] % 2:
                middle = (top + bottom) / 2
                after = Knot(
                    meets_at if following == target else self._x[following], self._band(following)[0]
                )
                knots.append(Knot(x, middle, _slope(knots[-1], x, middle, after)))
            else:
                knots += [Knot(x, top), Knot(x, bottom)]
        knots.append(Knot(meets_at, self._band(target)[0]))
        knots.append(Knot(meets_at, self._middle(target) - self._sizes[target].height / 2))
        # Where a box is as high as its layer two knots are one, save for rounding.
        return [knots[0], *(knot for before, knot in pairwise(knots) if knot.y - before.y > _SAME)]

    def _band(self, item: int) -> tuple[float, float]:
        """The upper and lower edge of an item's layer."""
        layer = self._layer_of[item]
        return self._tops[layer], self._tops[layer] + self._heights[layer]

    def _ports(self) -> list[tuple[float, float]]:
        """Where each arrow leaves its source and where it meets its target: straight, where there is room."""
        leaving: dict[int, dict[int, float]] = {}
        meeting: dict[int, dict[int, float]] = {}
        for way in self._ways:
            leaving.setdefault(way[0], {})[way[1]] = 0.0
            meeting.setdefault(way[-1], {})[way[-2]] = 0.0
        for box, others in [*leaving.items(), *meeting.items()]:
            self._spread(box, others)
        return [(leaving[way[0]][way[1]], meeting[way[-1]][way[-2]]) for way in self._ways]

    def _spread(self, box: int, others: dict[int, float]) -> None:
        """Give each of the others the place at the box's edge where its line is."""
        ordered = sorted(others, key=lambda other: (self._x[other], other))
        half = max(0.0, self._sizes[box].width / 2 - _CORNER)
        left, right = self._x[box] - half, self._x[box] + half
        gap = min(_PORT_GAP, 2 * half / max(1, len(ordered) - 1))
        wanted = [min(max(self._x[other], left), right) for other in ordered]
        places = _apart(wanted, [1.0] * len(wanted), [gap] * (len(wanted) - 1))
        for index, other in enumerate(ordered):
            lowest, highest = left + index * gap, right - (len(ordered) - 1 - index) * gap
            others[other] = min(max(places[index], lowest), highest)


def _ranks(boxes: Sequence[Size], arrows: Iterable[Arrow]) -> list[int]:
    """The longest way that leads to each box, and further down where there is no room.

    What nothing leads to is moved down to where it is needed.
    """
    into: list[list[int]] = [[] for _ in boxes]
    out: list[list[int]] = [[] for _ in boxes]
    widths = [box.width + _BOX_GAP for box in boxes]
    labels = [0.0] * len(boxes)
    for arrow in arrows:
        into[arrow.target].append(arrow.source)
        out[arrow.source].append(arrow.target)
        labels[arrow.target] += arrow.label.width + _LABEL_GAP if arrow.label is not None else 0.0
    ranks: list[int] = []
    taken: dict[int, float] = {}
    for box, width in enumerate(map(max, widths, labels)):
        rank = max((ranks[source] + 1 for source in into[box]), default=0)
        if box == len(boxes) - 1:
            rank = max([rank, *(earlier + 1 for earlier in ranks)])
        while rank in taken and taken[rank] + width > _MAX_LAYER_WIDTH:
            rank += 1
        taken[rank] = taken.get(rank, 0.0) + width
        ranks.append(rank)
    for box, targets in enumerate(out):
        if targets and not into[box]:
            ranks[box] = max(ranks[box], min(ranks[target] for target in targets) - 1)
    return ranks


def _too_long(arrows: Sequence[Arrow], ranks: Sequence[int]) -> frozenset[int]:
    """The arrows to cut, so that all together pass through no more points than there is room for."""
    by_source: dict[int, list[tuple[int, int]]] = {}
    for number, arrow in enumerate(arrows):
        span = ranks[arrow.target] - ranks[arrow.source]
        by_source.setdefault(arrow.source, []).append((span, number))
    # Of each source the lengths of its arrows, the longest last: what they share is as long as the longest.
    lengths = {
        source: [
            (span, [number for _, number in group]) for span, group in groupby(sorted(its), lambda a: a[0])
        ]
        for source, its in by_source.items()
    }

    def gain(source: int) -> float:
        """What cutting the longest arrows of a source saves for each of them."""
        groups = lengths[source]
        return (groups[-1][0] - (groups[-2][0] if len(groups) > 1 else 1)) / len(groups[-1][1])

    excess = sum(groups[-1][0] for groups in lengths.values()) - len(ranks) * _SPANS_PER_BOX - _FREE_SPANS
    best = [(-gain(source), source) for source in lengths]
    heapq.heapify(best)
    cut: list[int] = []
    while excess > 0 and best:
        source = heapq.heappop(best)[1]
        span, numbers = lengths[source].pop()
        if span > 1:
            cut += numbers
            excess -= span - (lengths[source][-1][0] if lengths[source] else 0)
            if lengths[source]:
                heapq.heappush(best, (-gain(source), source))
    return frozenset(cut)


def _slope(before: Knot, x: float, y: float, after: Knot) -> float:
    """Of a smooth curve through three places: none where it turns back."""
    first, second = (x - before.x) / (y - before.y), (after.x - x) / (after.y - y)
    return 2 * first * second / (first + second) if first * second > 0 else 0.0


def _apart(wanted: list[float], weights: list[float], distances: list[float]) -> list[float]:
    """Places in the given order, at least ``distances`` apart, as near to the wanted ones as can be.

    The sum of the squares of what they are off, by weight, is the least there is: this is isotonic
    regression, by pooling adjacent violators.
    """
    offsets = list(accumulate(distances, initial=0.0))[: len(wanted)]
    pools: list[tuple[float, float, int]] = []
    """Runs of neighbours that touch: where the run begins, its weight, how many they are."""
    for place, offset, weight in zip(wanted, offsets, weights, strict=True):
        start, total, size = place - offset, weight, 1
        while pools and pools[-1][0] >= start:
            before, its_weight, its_size = pools.pop()
            start = (start * total + before * its_weight) / (total + its_weight)
            total += its_weight
            size += its_size
        pools.append((start, total, size))
    starts = [start for start, _, size in pools for _ in range(size)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]
