"""The layout of any graph: nothing lies upon anything else, and every arrow points downwards."""

import itertools
import time
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.layered_layout import Arrow, Size, lay_out

CURVE = 0.45


@st.composite
def graphs(draw):
    """Boxes, and arrows that each lead to a later one; most to one of the next ``reach``."""
    count, reach = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    arrows_each = draw(st.integers(0, 4))
    random = Random(draw(st.integers(0, 2**32)))  # noqa: S311 — of no secret
    boxes = [Size(random.randint(30, 260) * 1.0, random.randint(20, 80) * 1.0) for _ in range(count)]
    pairs = {
        (max(0, target - random.randint(1, reach)), target)
        for target in range(1, count)
        for _ in range(random.randint(0, arrows_each))
    }
    labels = [None, Size(40.0, 16.0), Size(150.0, 58.0)]
    return boxes, [Arrow(*pair, random.choice(labels), Size(90.0, 16.0)) for pair in sorted(pairs)]


def area(place, size):
    (x, y), width, height = place, size.width, size.height
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def points_of(line):
    """Places on the curve that is drawn through the knots."""
    for start, end in itertools.pairwise(line):
        reach = (end.y - start.y) * CURVE
        xs = start.x, start.x + reach * start.slope, end.x - reach * end.slope, end.x
        ys = start.y, start.y + reach, end.y - reach, end.y
        for step in range(13):
            t = step / 12
            weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            yield sum(map(float.__mul__, weights, xs)), sum(map(float.__mul__, weights, ys))


def check(boxes, arrows):
    layout = lay_out(boxes, arrows)
    areas = [area(place, box) for place, box in zip(layout.boxes, boxes, strict=True)]
    labels = [
        area(place, arrow.cut_label if number in layout.cut else arrow.label)
        for number, (arrow, place) in enumerate(zip(arrows, layout.labels, strict=True))
        if place is not None
    ]
    assert not any(overlap(*pair) for pair in itertools.combinations([*areas, *labels], 2))
    for left, top, right, bottom in [*areas, *labels]:
        assert left >= -1e-6
        assert top >= 0
        assert right <= layout.width + 1e-6
        assert bottom <= layout.height + 1e-6
    for number, (arrow, line) in enumerate(zip(arrows, layout.lines, strict=True)):
        left, _, right, bottom = areas[arrow.source]
        if number not in layout.cut:
            assert line[0].y == bottom
            assert left <= line[0].x <= right
        left, top, right, _ = areas[arrow.target]
        assert abs(line[-1].y - top) < 0.1
        assert left <= line[-1].x <= right
        assert all(upper.y + 0.1 < lower.y for upper, lower in itertools.pairwise(line))
        others = [place for box, place in enumerate(areas) if box not in (arrow.source, arrow.target)]
        for x, y in points_of(line):
            assert not any(a[0] < x < a[2] and a[1] + 1e-6 < y < a[3] - 1e-6 for a in others)
    return layout


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_boxes_and_labels_are_apart_and_no_arrow_passes_through_a_box(graph):
    boxes, arrows = graph
    layout = check(boxes, arrows)
    bottom = max(y for _, y in layout.boxes)
    assert layout.boxes[-1][1] == bottom, "the last box is the lowest"
    assert lay_out(boxes, arrows) == layout, "the same graph is drawn the same"


def box(width=120.0):
    return Size(width, 50.0)


def arrow(source, target, label=None):
    return Arrow(source, target, label, Size(60.0, 16.0))


def crossings(layout):
    """Pairs of straight arrows that cross, in a layout without long ones."""
    ends = [(line[0].x, line[-1].x) for line in layout.lines]
    return sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))


def test_a_chain_is_drawn_straight():
    layout = lay_out([box()] * 30, [arrow(n, n + 1) for n in range(29)])
    assert len({round(x) for x, _ in layout.boxes}) == 1
    assert layout.width == 120


def test_what_can_be_drawn_without_crossings_is():
    upper, lower = range(6), range(6, 12)
    turned = [arrow(source, target) for source, target in zip(upper, reversed(lower), strict=True)]
    layout = lay_out([box()] * 13, turned)
    assert crossings(layout) == 0


def test_a_box_is_above_the_middle_of_those_below_it():
    layout = lay_out(
        [box()] * 5, [arrow(0, 1), arrow(0, 2), arrow(0, 3), arrow(1, 4), arrow(2, 4), arrow(3, 4)]
    )
    assert {round(layout.boxes[number][0]) for number in (0, 2, 4)} == {round(layout.width / 2)}


def test_what_nothing_leads_to_is_right_above_where_it_is_needed():
    layout = lay_out([box()] * 5, [arrow(0, 1), arrow(1, 2), arrow(2, 4), arrow(3, 4)])
    assert layout.boxes[3][1] == layout.boxes[2][1]


def test_arrows_of_one_box_share_their_way():
    layout = lay_out([box()] * 8, [arrow(n, n + 1) for n in range(7)] + [arrow(0, n) for n in range(2, 8)])
    ways = [line[1:-3] for line in layout.lines[7:]]
    longest = ways[-1]
    shared = [[knot for knot in way if knot in longest] for way in ways]
    assert [len(way) for way in shared] == sorted(len(way) for way in shared)
    assert len(shared[-2]) > 6


def test_boxes_for_which_there_is_no_room_go_below_the_others():
    count = 200
    layout = lay_out([box()] * (count + 2), [arrow(0, n) for n in range(1, count + 1)])
    rows = {round(y) for _, y in layout.boxes}
    assert 8 < len(rows) < 20
    assert layout.width < 6000


def test_too_many_long_arrows_are_cut_the_longest_first_and_named_at_their_ends():
    count = 80
    chain = [arrow(n, n + 1) for n in range(count - 1)]
    long = [arrow(n, count, Size(20.0, 16.0)) for n in range(count)]
    layout = check([box()] * (count + 1), [*chain, *long])
    assert layout.cut
    assert all(number >= len(chain) for number in layout.cut), "no short one is cut"
    spans = [count - long[number - len(chain)].source for number in layout.cut]
    assert min(spans) > 5
    assert layout.labels[min(layout.cut)] is not None
    kept = lay_out([box()] * 11, [arrow(n, 10) for n in range(10)] + [arrow(n, n + 1) for n in range(9)])
    assert kept.cut == frozenset()


def test_five_hundred_boxes_take_less_than_two_seconds():
    count = 500
    few = [arrow(n, n + 1, Size(50.0, 16.0)) for n in range(count - 1)]
    to_last = [arrow(n, count, Size(50.0, 16.0)) for n in range(count)]
    wide = [arrow(0, n) for n in range(1, count)] + [arrow(n, count) for n in range(count)]
    for arrows in (few + to_last, wide):
        began = time.process_time()
        lay_out([box()] * (count + 1), arrows)
        assert time.process_time() - began < 2


def test_nothing_is_laid_out_as_nothing():
    layout = lay_out([], [])
    assert (layout.width, layout.height, layout.boxes) == (0, 0, [])
    assert lay_out([box()], []).boxes == [(60, 25)]
