#!/usr/bin/env python3
"""Writes ids.json: test vectors of docs/formats/ids.md from an implementation of its own.

Needs the PyPI package xxhash (libxxhash's XXH3). Run by hand when the page changes:
  python3 tests/data/make_ids.py > tests/data/ids.json
"""
import hashlib
import json
import struct

import xxhash


def h(*fields):
    digest = hashlib.sha256()
    for field in fields:
        digest.update(struct.pack("<I", len(field)))
        digest.update(field)
    return digest.digest()[:16]


def root(namespace, salt, fingerprint, flush_number):
    return h(b"root", namespace, salt, fingerprint, struct.pack("<Q", flush_number),
             struct.pack("<Q", 0))


def block(previous, tokens, extras=()):
    fields = [b"block", previous, struct.pack("<256I", *tokens)]
    for kind, value in sorted(extras):
        fields += [kind, value]
    return h(*fields)


def segment(before, end, approx_tag=None):
    origin = b"\0" if approx_tag is None else b"\1" + struct.pack("<Q", approx_tag)
    return h(b"segment", before, end, origin)


def seed(segment_id, kind, layer, head, ordinal):
    low = struct.unpack("<Q", segment_id[:8])[0]
    return low ^ (kind << 56 | layer << 40 | head << 24 | ordinal)


def main():
    text = "model_name=example\nweight_revision=00ff\n"
    fingerprint = h(text.encode())
    h0 = root(b"tenant", b"salt", fingerprint, 7)
    first = [(i * 2654435761) % 2**32 for i in range(256)]
    second = [i + 1 for i in range(256)]
    h1 = block(h0, first)
    h2 = block(h1, second)
    extra = block(h1, second, [(b"image", b"\1\2\3"), (b"adapter", b"lora-7")])
    exact = segment(h0, h2)
    approx = segment(h0, h2, 0x0123456789ABCDEF)
    build = hashlib.sha256(b"manifest bytes").digest()[:16]
    key = exact + build + struct.pack(">BHHH", 5, 29, 2, 15)
    row = bytes((i * 37 + 11) % 256 for i in range(256))
    row_seed = seed(exact, 5, 29, 2, 4095)
    megabyte = bytes(i % 251 for i in range(1 << 20))
    print(json.dumps({
        "fingerprint_text": text,
        "fingerprint": fingerprint.hex(),
        "namespace": "tenant", "salt": "salt", "flush_number": 7,
        "h0": h0.hex(), "h1": h1.hex(), "h2": h2.hex(), "h2_with_extras": extra.hex(),
        "segment_exact": exact.hex(),
        "approx_tag": "0123456789abcdef", "segment_approx": approx.hex(),
        "build_of_text": "manifest bytes", "build": build.hex(),
        "object_key": key.hex(),
        "row_seed": f"{row_seed:016x}",
        "row_xxh3": f"{xxhash.xxh3_64_intdigest(row, row_seed):016x}",
        "row_check": f"{xxhash.xxh3_64_intdigest(row, row_seed) & 0xffffffff:08x}",
        "xxh3_empty_seed_1": f"{xxhash.xxh3_64_intdigest(b'', 1):016x}",
        "xxh3_1mb_seed_2": f"{xxhash.xxh3_64_intdigest(megabyte, 2):016x}",
    }, indent=1))


if __name__ == "__main__":
    main()
