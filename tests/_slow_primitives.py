"""Every primitive once more, one grid at a time and in plain Python, from its definition alone.

A grid is a list of rows. A function returns the result, or None where the precondition does not hold.
"""

from __future__ import annotations

import itertools

FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]
EIGHT = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
STEP = [(1, 0), (-1, 0), (0, 1), (0, -1)]  # down, up, right, left


def sizes(g):
    return len(g), len(g[0])


def build(h, w, value):
    return [[value(i, j) for j in range(w)] for i in range(h)]


def coloured(g):
    return {(i, j): v for i, row in enumerate(g) for j, v in enumerate(row) if v}


def flood(cells, steps):
    """Components of a set of cells."""
    left, parts = set(cells), []
    while left:
        stack, part = [left.pop()], set()
        while stack:
            i, j = stack.pop()
            part.add((i, j))
            near = {(i + r, j + c) for r, c in steps} & left
            left -= near
            stack += near
        parts.append(part)
    return parts


def objects(g):
    return flood(coloured(g), EIGHT)


def box(part):
    rows, columns = zip(*part, strict=True)
    return min(rows), min(columns), max(rows), max(columns)


def enclosed(cells, h, w):
    """Cells of the canvas from -1 to h, w that are not in `cells` and have no way out."""
    free = {(i, j) for i in range(-1, h + 1) for j in range(-1, w + 1)} - set(cells)
    return [part for part in flood(free, FOUR) if (-1, -1) not in part]


def recoloured(g, chosen, colour):
    cells = set().union(*chosen)
    return build(*sizes(g), lambda i, j: colour if (i, j) in cells else g[i][j])


def the_extreme(parts, sign):
    ranked = sorted(parts, key=lambda part: -sign * len(part))
    if not ranked or (len(ranked) > 1 and len(ranked[0]) == len(ranked[1])):
        return None
    return ranked[0]


def transposed(g):
    return [list(column) for column in zip(*g, strict=True)]


def turn(g, d4):
    g = transposed(g) if d4 & 4 else g
    g = g[::-1] if d4 & 2 else g
    return [row[::-1] for row in g] if d4 & 1 else g


def translate(g, down, right):
    h, w = sizes(g)
    moved = {(i + down, j + right): v for (i, j), v in coloured(g).items()}
    if any(not (0 <= i < h and 0 <= j < w) for i, j in moved):
        return None
    return build(h, w, lambda i, j: moved[i, j] if (i, j) in moved else 0)


def wrap(g, down, right):
    h, w = sizes(g)
    return build(h, w, lambda i, j: g[(i - down) % h][(j - right) % w])


def scale(g, factor):
    h, w = sizes(g)
    if max(h, w) * factor > 30:
        return None
    return build(h * factor, w * factor, lambda i, j: g[i // factor][j // factor])


def shrink(g, factor):
    h, w = sizes(g)
    if h % factor or w % factor:
        return None
    if any(g[i][j] != g[i - i % factor][j - j % factor] for i in range(h) for j in range(w)):
        return None
    return [row[::factor] for row in g[::factor]]


def tile(g, down, right):
    h, w = sizes(g)
    return None if h * down > 30 or w * right > 30 else [row * right for row in g] * down


def mirror(g, side):
    h, w = sizes(g)
    if 2 * (h if side < 2 else w) > 30:
        return None
    if side < 2:
        return g + g[::-1] if side == 0 else g[::-1] + g
    return [row + row[::-1] if side == 2 else row[::-1] + row for row in g]


def half(g, side):
    h, w = sizes(g)
    if (h if side < 2 else w) < 2:
        return None
    if side < 2:
        return g[-(h // 2) :] if side == 0 else g[: h // 2]
    return [row[-(w // 2) :] if side == 2 else row[: w // 2] for row in g]


def frame(g, colour):
    h, w = sizes(g)
    if max(h, w) > 28:
        return None
    line = [[colour] * (w + 2)]
    return line + [[colour, *row, colour] for row in g] + line


def trim(g):
    h, w = sizes(g)
    ring = {g[i][j] for i in range(h) for j in range(w) if i in (0, h - 1) or j in (0, w - 1)}
    if min(h, w) < 3 or len(ring) > 1 or ring == {0}:
        return None
    return [row[1:-1] for row in g[1:-1]]


def symmetrise(g, axis):
    image = turn(g, axis + 1)
    if any(a and b and a != b for x, y in zip(g, image, strict=True) for a, b in zip(x, y, strict=True)):
        return None
    return build(*sizes(g), lambda i, j: g[i][j] or image[i][j])


def lines(g, direction):
    """The rows or columns, in the order in which a direction meets them."""
    g = g if direction < 2 else transposed(g)
    return g if direction in (0, 2) else g[::-1]


def from_lines(rows, direction):
    rows = rows if direction in (0, 2) else rows[::-1]
    return rows if direction < 2 else transposed(rows)


def continue_(g, direction, period):
    rows = lines(g, direction)
    motif = rows[:period]
    if len(rows) <= period or not any(map(any, motif)):
        return None
    if any(v and v != motif[i % period][j] for i, row in enumerate(rows) for j, v in enumerate(row)):
        return None
    return from_lines([motif[i % period] for i in range(len(rows))], direction)


def gravity(g, direction):
    columns = transposed(lines(g, direction))
    fallen = [[0] * column.count(0) + [v for v in column if v] for column in columns]
    return from_lines(transposed(fallen), direction)


def fall(g, direction):
    columns = transposed(lines(g, direction))
    for column in columns:
        for i in range(len(column) - 2, -1, -1):  # from below, so that every cell moves by one at most
            if column[i] and not column[i + 1]:
                column[i + 1], column[i] = column[i], 0
    return from_lines(transposed(columns), direction)


def recolour(g, old, new):
    values = {v for row in g for v in row}
    return [[new if v == old else v for v in row] for row in g] if old in values and new not in values else None


def palette(g, *colours):
    return [[colours[v] for v in row] for row in g]


def keep_colour(g, colour):
    return [[v if v == colour else 0 for v in row] for row in g] if any(colour in row for row in g) else None


def outline(g, colour):
    cells = coloured(g)
    return build(*sizes(g), lambda i, j: g[i][j] or (colour if any((i + r, j + c) in cells for r, c in EIGHT) else 0))


def grow(g):
    cells = coloured(g)

    def value(i, j):
        near = {cells[i + r, j + c] for r, c in FOUR if (i + r, j + c) in cells}
        return g[i][j] or (near.pop() if len(near) == 1 else 0)

    return build(*sizes(g), value)


def interior(g):
    cells = coloured(g)
    return {(i, j) for i, j in cells if all((i + r, j + c) in cells for r, c in FOUR)}


def erode(g):
    inner = interior(g)
    return build(*sizes(g), lambda i, j: g[i][j] if (i, j) in inner else 0) if inner else None


def hollow(g):
    inner = interior(g)
    return build(*sizes(g), lambda i, j: 0 if (i, j) in inner else g[i][j])


def fill_holes(g, colour):
    return recoloured(g, enclosed(coloured(g), *sizes(g)), colour)


def denoise(g):
    large = [part for part in objects(g) if len(part) > 1]
    return recoloured(g, [part for part in objects(g) if len(part) == 1], 0) if large else None


def extend(g, direction):
    out = [list(row) for row in lines(g, direction)]
    for i in range(1, len(out)):
        out[i] = [v or above for v, above in zip(out[i], out[i - 1], strict=True)]
    return from_lines(out, direction)


def connect(g, axis):
    columns = [list(line) for line in (g if axis else transposed(g))]
    for column in columns:
        places = [i for i, v in enumerate(column) if v]
        for a, b in itertools.pairwise(places):
            if column[a] == column[b]:
                column[a:b] = [column[a]] * (b - a)
    return columns if axis else transposed(columns)


def combine(g, operation, colour, axis):
    g = transposed(g) if axis else g
    middle = {row[len(row) // 2] for row in g}
    if len(g[0]) % 2 == 0 or len(g[0]) < 3 or len(middle) > 1 or middle == {0}:
        return None
    rules = [
        lambda a, b: a and b,
        lambda a, b: a or b,
        lambda a, b: a != b,
        lambda a, b: a and not b,
        lambda a, b: not a and not b,
    ]
    n = len(g[0]) // 2
    out = build(len(g), n, lambda i, j: colour * bool(rules[operation](g[i][j] > 0, g[i][j + n + 1] > 0)))
    return transposed(out) if axis else out


def crop(g, which):
    part = the_extreme(objects(g), -1 if which else 1)
    if part is None:
        return None
    top, left, bottom, right = box(part)
    return [row[left : right + 1] for row in g[top : bottom + 1]]


def keep_largest(g):
    part = the_extreme(objects(g), 1)
    return part and build(*sizes(g), lambda i, j: g[i][j] if (i, j) in part else 0)


def recolour_largest(g, colour):
    part = the_extreme(objects(g), 1)
    return part and recoloured(g, [part], colour)


def move(g, colour, direction):
    h, w = sizes(g)
    cells = coloured(g)
    moving = {cell for cell, v in cells.items() if v == colour}
    others = {cell: v for cell, v in cells.items() if v != colour}
    if not moving:
        return None
    r, c = STEP[direction]
    while all(0 <= i + r < h and 0 <= j + c < w and (i + r, j + c) not in others for i, j in moving):
        moving = {(i + r, j + c) for i, j in moving}
    return build(h, w, lambda i, j: colour if (i, j) in moving else (others[i, j] if (i, j) in others else 0))


def copy(g):
    h, w = sizes(g)
    parts = objects(g)
    key = the_extreme(parts, 1)
    if key is None or len(key) == 1:
        return None
    top, left, bottom, right = box(key)
    middle = (top + bottom) // 2, (left + right) // 2
    out, taken = [list(row) for row in g], set(coloured(g))
    for part in parts:
        if len(part) > 1:
            continue
        ((row, column),) = part
        for i, j in key:
            cell = i - middle[0] + row, j - middle[1] + column
            if cell == (row, column):
                continue
            if cell in taken or not (0 <= cell[0] < h and 0 <= cell[1] < w):
                return None
            taken.add(cell)
            out[cell[0]][cell[1]] = g[row][column]
    return out


def sort(g, direction):
    rows = lines(g, direction)
    number = [sum(map(bool, row)) for row in rows]
    return None if len(set(number)) == 1 else from_lines(sorted(rows, key=lambda row: sum(map(bool, row))), direction)


def rank(g, which):
    parts = sorted(objects(g), key=len, reverse=which == 0)
    colours = [{g[i][j] for i, j in part} for part in parts]
    if len({len(part) for part in parts}) < len(parts) or not 2 <= len(parts) <= 30 or max(map(len, colours)) > 1:
        return None
    return [[colour.pop() for colour in colours]]


def count(g, colour):
    number = sum({g[i][j] for i, j in part} == {colour} for part in objects(g))
    return [[colour] * number] if 1 <= number <= 30 else None


def holds(g, part, attribute):
    h, w = sizes(g)
    top, left, bottom, right = box(part)
    tall, wide = bottom - top + 1, right - left + 1
    return [
        top == 0 or left == 0 or bottom == h - 1 or right == w - 1,
        bool(enclosed(part, h, w)),
        wide > tall,
        tall > wide,
        len(part) == tall * wide,
    ][attribute]


def conditional(g, attribute, colour):
    chosen = [part for part in objects(g) if holds(g, part, attribute)]
    return recoloured(g, chosen, colour) if 0 < len(chosen) < len(objects(g)) else None


def filter_(g, attribute):
    dropped = [part for part in objects(g) if not holds(g, part, attribute)]
    return recoloured(g, dropped, 0) if 0 < len(dropped) < len(objects(g)) else None


SLOW = {
    **dict(rotate=turn, reflect=turn, translate=translate, wrap=wrap, scale=scale, shrink=shrink, tile=tile),
    **dict(mirror=mirror, half=half, frame=frame, trim=trim, symmetrise=symmetrise, gravity=gravity, fall=fall),
    **dict(recolour=recolour, palette=palette, keep_colour=keep_colour, outline=outline, grow=grow, erode=erode),
    **dict(hollow=hollow, fill_holes=fill_holes, denoise=denoise, extend=extend, connect=connect, combine=combine),
    **dict(crop=crop, keep_largest=keep_largest, recolour_largest=recolour_largest, move=move, copy=copy, sort=sort),
    **dict(rank=rank, count=count, conditional=conditional, filter=filter_),
    "continue": continue_,
}
