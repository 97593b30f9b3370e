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


def value_hash(namespace, flush_number, key):
    return h(b"value", namespace, struct.pack("<Q", flush_number), key)


def value_chunk(key_hash, data, number, count):
    """Object key, checks of the pieces and checksum of chunk `number` of `count`."""
    key = key_hash + bytes(16) + struct.pack(">BHHH", 7, count - 1, 0xFFFF, number)
    chunk = data[number << 20:(number + 1) << 20]
    checks = [xxhash.xxh3_64_intdigest(chunk[at:at + (64 << 10)],
                                       seed(key_hash, 7, 0, 0, (number << 4) + at // (64 << 10)))
              for at in range(0, len(chunk), 64 << 10)]
    packed = struct.pack(f"<{len(checks)}Q", *checks)
    total = xxhash.xxh3_64_intdigest(packed, seed(key_hash, 7, count - 1, 0xFFFF, number))
    return key, checks, total


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
    named = value_hash(b"tenant", 7, b"block/42")
    value = bytes(i % 253 for i in range((1 << 20) + (64 << 10) + 5))
    chunk_key, chunk_checks, chunk_checksum = value_chunk(named, value, 1, 2)
    empty_key, _, empty_checksum = value_chunk(named, b"", 0, 1)
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
        "value_key": "block/42", "value_hash": named.hex(),
        "value_chunk_key": chunk_key.hex(),
        "value_piece_16": f"{chunk_checks[0]:016x}",
        "value_piece_17": f"{chunk_checks[1]:016x}",
        "value_chunk_checksum": f"{chunk_checksum:016x}",
        "value_empty_chunk_key": empty_key.hex(),
        "value_empty_checksum": f"{empty_checksum:016x}",
        "xxh3_empty_seed_1": f"{xxhash.xxh3_64_intdigest(b'', 1):016x}",
        "xxh3_1mb_seed_2": f"{xxhash.xxh3_64_intdigest(megabyte, 2):016x}",
    }, indent=1))


if __name__ == "__main__":
    main()
