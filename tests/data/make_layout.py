#!/usr/bin/env python3
"""Writes layout_1.json: test vectors of docs/formats/part.md from an implementation of its own.

Each part is filled by simple rules (below and in tests/unit/proto/layout_test.cc) and described by
its length, its first 64 bytes and the XXH3 of all of it. Needs the PyPI package xxhash.
  python3 tests/data/make_layout.py > tests/data/layout_1.json
"""
import json
import struct

import xxhash

LAYER, FIRST_HEAD, HEADS, DK, DV, FIRST_ROW = 5, 2, 2, 80, 48, 16
LISTS, CLUSTERS, CODES, ORDER = 1, 2, 3, 4


def align(data):
    return data + bytes(-len(data) % 64)


def int8(value):
    return struct.pack("<b", value % 255 - 127)


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def halves(values):
    return struct.pack(f"<{len(values)}e", *values)


def words(values):
    return struct.pack(f"<{len(values)}I", *values)


def shorts(values):
    return struct.pack(f"<{len(values)}H", *values)


def frame(kind, rows, counts, shared, blocks):
    """Header, head table, what heads share, blocks."""
    head_table = 64 + 16 * HEADS
    at = len(align(bytes(head_table)) + shared)
    table = b""
    for count, block in zip(counts, blocks):
        table += struct.pack("<QII", at, count, 0)
        at += len(block)
    header = struct.pack("<4sHBB6HIQ32x", b"ICEP", 1, kind, 0, LAYER, FIRST_HEAD, HEADS, DK, DV,
                         FIRST_ROW, rows, at)
    return align(header + table) + shared + b"".join(blocks)


def level_block(head, rows, count):
    padded = count + -count % 4
    panels = b""
    for first in range(0, count, 32):
        width = min(32, count - first)
        width += -width % 4
        for quad in range(DK // 4):
            for c in range(first, first + width):
                for j in range(4 * quad, 4 * quad + 4):
                    panels += int8(7 * c + 3 * j + head) if c < count else b"\0"
    means = b"".join(int8(5 * c + j) for c in range(count) for j in range(DV))
    size = (rows - FIRST_ROW) // count
    pad = padded - count
    block = align(panels) + align(means)
    block += align(floats([0.5 + c for c in range(count)] + [0.0] * pad))
    block += align(floats([0.25 + c for c in range(count)] + [0.0] * pad))
    block += align(floats([c / 4 for c in range(count)] + [float("-inf")] * pad))
    block += align(halves([c / 8 for c in range(count)] + [0.0] * pad))
    block += align(shorts([size] * count + [0] * pad))
    return block + align(shorts([FIRST_ROW + size * c for c in range(count)] + [0] * pad))


def level_part(kind, rows, count):
    shared = align(floats([h + j / 2 for h in range(HEADS) for j in range(DK)]))
    if kind == CLUSTERS and rows == 4096:
        shared += align(floats([h + j / 4 for h in range(HEADS) for j in range(DK)]))
        shared += align(b"".join(int8(h + 11 * j + i) for h in range(HEADS) for j in range(DK)
                                 for i in range(DV)))
    return frame(kind, rows, [count] * HEADS, shared,
                 [level_block(h, rows, count) for h in range(HEADS)])


def codes_part(rows):
    blocks = []
    for head in range(HEADS):
        codes = []
        for panel in range(rows // 16):
            for group in range(DK // 16):
                for row in range(16 * panel, 16 * panel + 16):
                    word = 0
                    for k in range(4):
                        for b in range(4):
                            dim = 16 * group + 4 * k + b
                            word |= ((row + dim + head) % 4) << (8 * b + 2 * k)
                    codes.append(word)
        blocks.append(align(words(codes)) + align(halves([row / 8 for row in range(rows)])) +
                      align(words([7 * row + head for row in range(rows)])))
    return frame(CODES, rows, [rows] * HEADS, b"", blocks)


def order_part(rows):
    return frame(ORDER, rows, [rows] * HEADS, b"",
                 [align(shorts([rows - 1 - row for row in range(rows)])) for _ in range(HEADS)])


def describe(part):
    return {"bytes": len(part), "first_64": part[:64].hex(),
            "xxh3": f"{xxhash.xxh3_64_intdigest(part, 0):016x}"}


def main():
    print(json.dumps({
        "lists_256": describe(level_part(LISTS, 256, 5)),
        "clusters_256": describe(level_part(CLUSTERS, 256, 15)),
        "clusters_4096": describe(level_part(CLUSTERS, 4096, 255)),
        "codes_256": describe(codes_part(256)),
        "order_256": describe(order_part(256)),
    }, indent=1))


if __name__ == "__main__":
    main()
