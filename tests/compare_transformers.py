#!/usr/bin/env python3
"""Compares our engine with Hugging Face transformers on the same dequantised weights.

Run it with ./dev compare. It prints the page docs/engine_comparison.md; --record writes
tests/data/engine_reference.json, which tests/unit/engine/reference_test.cc holds the engine to.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.cache_utils import Cache, DynamicLayer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
DUMP = ROOT / "build/release/bin/dump_logits"

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  leading spaces, tabs\tand\n\nnewlines \n ends with space ",
    "Numbers 1234567890, 3.14159, 2026-11-24; it's we'll they've I'm can't",
    "Ünïcödé: 你好，世界 — Здравствуй мир 🙂 naïve café",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x**2}  # comment\n",
    "\"amber-amber-4821\" <|im_end|> is text here, not a control token.",
]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "To install a package on Debian, use the command",
]


class Bf16Layer(DynamicLayer):
    """Keys and values rounded to bf16, as our contexts keep them."""

    def update(self, keys, values, *args, **kwargs):
        rounded = [x.to(torch.bfloat16).to(x.dtype) for x in (keys, values)]
        return super().update(*rounded, *args, **kwargs)


def ours(mode, tokens, *args):
    with tempfile.TemporaryDirectory() as folder:
        inside, out = os.path.join(folder, "in"), os.path.join(folder, "out")
        with open(inside, "w") as file:
            file.write(tokens if isinstance(tokens, str) else "\n".join(map(str, tokens)))
        printed = subprocess.run([DUMP, mode, inside, out, *map(str, args)], check=True,
                                 capture_output=True, text=True).stdout
        if mode == "time":
            return float(printed)
        if mode in ("greedy", "encode"):
            return [int(line) for line in open(out)]
        return numpy.fromfile(out, dtype=numpy.float32)


def theirs(model, tokens, rows, layer):
    with torch.no_grad():
        cache = Cache(layer_class_to_replicate=layer)
        logits = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True,
                       logits_to_keep=rows).logits
    return logits[0].double().numpy()


def greedy(model, tokens, count):
    with torch.no_grad():
        cache = Cache(layer_class_to_replicate=Bf16Layer)
        ids, step = [], torch.tensor([tokens])
        for _ in range(count):
            logits = model(step, past_key_values=cache, use_cache=True).logits[0, -1]
            ids.append(int(logits.argmax()))
            step = torch.tensor([[ids[-1]]])
    return ids


def difference(a, b):
    return float(numpy.abs(a - b).max()), float(numpy.abs(a - b).mean())


def compare_logits(model, double, tokens, mode):
    rows = len(tokens) if mode == "steps" else 16
    vocabulary = model.config.vocab_size
    mine = ours(mode, tokens).reshape(rows, vocabulary).astype(numpy.float64)
    plain = theirs(model, tokens, rows, DynamicLayer)
    rounded = theirs(model, tokens, rows, Bf16Layer)
    exact = theirs(double, tokens, rows, Bf16Layer)
    return {
        "tokens": len(tokens), "mode": mode, "scale": float(numpy.abs(plain).max()),
        "ours_exact": difference(mine, exact), "theirs_exact": difference(rounded, exact),
        "ours_plain": difference(mine, plain),
        "top1": float((mine.argmax(1) == rounded.argmax(1)).mean()),
    }


def record(model, tokenizer):
    tokens = tokenizer(TEXTS[0] + " " + TEXTS[2])["input_ids"]
    logits = theirs(model, tokens, len(tokens), Bf16Layer)
    top = [[(int(i), round(float(row[i]), 4)) for i in row.argsort()[::-1][:5]] for row in logits]
    reference = {
        "texts": [{"text": text, "tokens": tokenizer(text, split_special_tokens=True)["input_ids"]}
                  for text in TEXTS],
        "logits": {"tokens": tokens, "top": top},
        "greedy": [{"prompt": prompt, "tokens": greedy(model, tokenizer(prompt)["input_ids"], 24)}
                   for prompt in PROMPTS],
    }
    path = ROOT / "tests/data/engine_reference.json"
    path.write_text(json.dumps(reference, ensure_ascii=False) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--runs", type=int, default=3, help="of the prefill timing")
    options = parser.parse_args()
    threads = os.cpu_count()
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    load = dict(gguf_file=MODEL, attn_implementation="sdpa")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS, gguf_file=MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS, dtype=torch.float32,
                                                              **load).eval()
    if options.record:
        record(model, tokenizer)
        return
    double = transformers.AutoModelForCausalLM.from_pretrained(MODELS, dtype=torch.float32,
                                                               **load).eval().double()
    prose = (MODELS / "debian-handbook.txt").read_text()

    print("# The engine against Hugging Face transformers\n")
    print(f"Printed by `./dev compare`: transformers {transformers.__version__}, torch "
          f"{torch.__version__}, {threads} threads, fp32, sdpa, the weights of {MODEL} dequantised "
          "by both.\n")
    same = [ours("encode", text) == tokenizer(text, split_special_tokens=True)["input_ids"]
            for text in TEXTS + [prose[:200000]]]
    print(f"**Tokens**: {sum(same)} of {len(same)} texts (200 KB of prose among them) give the "
          "same ids.\n")
    print("**Logits**, largest and mean absolute difference. Our contexts keep K and V in bf16, so "
          "the reference rounds them too, in fp64 arithmetic; how far transformers itself is from "
          "that in fp32 is the noise that rounding leaves (a value next to a rounding boundary "
          "falls on either side).\n")
    print("| tokens | computed as | logit scale | ours − reference | "
          "transformers fp32 − reference | ours − transformers with fp32 K/V | "
          "same most likely token |")
    print("|---|---|---|---|---|---|---|")
    tokens = tokenizer(prose[5000:60000])["input_ids"]
    for mode, count in (("steps", 64), ("prefill", 512), ("prefill", 4096)):
        result = compare_logits(model, double, tokens[:count], mode)
        pair = lambda x: f"{x[0]:.3f}, {x[1]:.4f}"  # noqa: E731
        print(f"| {count} | {mode} | {result['scale']:.1f} | {pair(result['ours_exact'])} | "
              f"{pair(result['theirs_exact'])} | {pair(result['ours_plain'])} | "
              f"{result['top1']:.3f} |")
    print()
    equal = [greedy(model, tokenizer(prompt)["input_ids"], 48) ==
             ours("greedy", tokenizer(prompt)["input_ids"], 48) for prompt in PROMPTS]
    print(f"**Greedy text**: {sum(equal)} of {len(equal)} prompts continue with the same 48 "
          "tokens.\n")
    times = {"ours": [], "theirs": []}
    for _ in range(options.runs):
        times["ours"].append(ours("time", tokens[:7168]))
        begin = time.perf_counter()
        with torch.no_grad():
            model(torch.tensor([tokens[:7168]]), use_cache=True, logits_to_keep=1)
        times["theirs"].append(time.perf_counter() - begin)
    mine, other = (statistics.median(times[key]) for key in ("ours", "theirs"))
    print(f"**Prefill** of 7168 tokens, median of {options.runs} alternating runs: ours {mine:.1f} "
          f"s, transformers {other:.1f} s: {mine / other:.2f} of its time.")


if __name__ == "__main__":
    main()
