#!/usr/bin/env python3
"""Writes metrics.jsonl: worked examples of every metric, computed here from the definitions and not
by headkv. Python's own text functions stand for what LongBench (2308.14508) does with them.
usage: python3 tests/eval/data/make_metrics.py      (same bytes on every run)"""

import json
import pathlib
import random
import re
import string
from collections import Counter
from functools import lru_cache

PER_METRIC = 60
rng = random.Random(20240607)


# --- definitions ------------------------------------------------------------------------------

def lcs(a, b):
    @lru_cache(maxsize=None)
    def length(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))
    return length(0, 0)


def harmonic(common, n, m):
    if common == 0:
        return 0.0
    p, r = common / n, common / m
    return 2 * p * r / (p + r)


def qa_words(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer, reference, **_):
    a, b = qa_words(answer), qa_words(reference)
    return harmonic(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


def plain_words(text):  # bytes beyond ASCII count as letters
    return re.findall(rb"[0-9a-z\x80-\xff]+", text.encode().lower())


def rouge_1(answer, reference, **_):
    a, b = plain_words(answer), plain_words(reference)
    return harmonic(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


def rouge_l(answer, reference, **_):
    a, b = plain_words(answer), plain_words(reference)
    return 2 * lcs(a, b) / (len(a) + len(b)) if a and b else 0.0


def edit(answer, reference, **_):
    a, b = answer.encode(), reference.encode()
    return 2 * lcs(a, b) / (len(a) + len(b)) if a and b else 0.0


def squeezed(text):
    return re.sub(r"[ \t\n\v\f\r]+", " ", text.lower()).strip(" ")


def contains(answer, reference, **_):
    return float(squeezed(reference) != "" and squeezed(reference) in squeezed(answer))


def exact(answer, reference, **_):
    return float(squeezed(answer) == squeezed(reference))


def sentences(text):
    return [part.split() or [""] for part in text.split(".") if part]


def common_words(ref, hyp):
    """Words of one longest common subsequence: from the ends of both, a common last word is taken,
    else the reference's last word goes if that alone keeps the length, else the answer's."""
    size = {}
    for i in range(len(ref) + 1):
        for j in range(len(hyp) + 1):
            if not i or not j:
                size[i, j] = 0
            elif ref[i - 1] == hyp[j - 1]:
                size[i, j] = size[i - 1, j - 1] + 1
            else:
                size[i, j] = max(size[i - 1, j], size[i, j - 1])
    i, j, words = len(ref), len(hyp), set()
    while size[i, j]:
        if ref[i - 1] == hyp[j - 1]:
            words.add(ref[i - 1])
            i, j = i - 1, j - 1
        elif size[i - 1, j] > size[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def rouge_l_sets(answer, reference, **_):
    hyp, ref = sentences(answer), sentences(reference)
    if not hyp or not ref:
        return 0.0
    union = set().union(*(common_words(r, h) for r in ref for h in hyp))
    p = len(union) / len({w for s in hyp for w in s})
    r = len(union) / len({w for s in ref for w in s})
    return 2.0 * (p * r / (p + r + 1e-8))


def classification(answer, reference, labels, **_):
    found = [label for label in labels if label in answer]
    for label in found:  # changes the list that it walks over, as the benchmark does
        if label in reference and label != reference:
            found.remove(label)
    return 1 / len(found) if reference in found else 0.0


def share(answer, number):
    numbers = re.findall(r"\d+", answer)
    return sum(n == number for n in numbers) / len(numbers) if numbers else 0.0


def count(answer, reference, **_):
    return share(answer, reference)


def retrieval(answer, reference, **_):
    gold = re.search(r"(?:Paragraph |段落)(\d+)", reference)
    return share(answer, gold.group(1)) if gold else 0.0


def code(answer, reference, **_):
    lines = answer.lstrip("\n").split("\n")
    line = next((x for x in lines if not any(m in x for m in ("`", "#", "//"))), "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return int(round(100 * (2 * lcs(line, reference) / (len(line) + len(reference))))) / 100


def labels_metric(answer, reference, labels, question):
    said = squeezed(answer)
    for mark in (".", "<context>", "<example>"):
        said = said.split(mark)[0]
    wanted = {squeezed(x) for x in reference.split(",")} - {""}
    asked = {squeezed(x) for x in labels if squeezed(x) in squeezed(question)}
    found = {squeezed(x) for x in labels if squeezed(x) in said} - asked
    return float(bool(wanted) and found == wanted)


# --- examples ---------------------------------------------------------------------------------

WORDS = """the a an owl barn river Élan naïve École Straße owl's don't night--watch 1,024 3.5 x_y
old Maren keeper lamp lamp Lamp “quoted” the—end of in and saw counted seven Αθήνα МОСКВА 東京 e.g.
theory another Canada U.S. rock-n-roll ½ vii""".split()
BLANKS = [" "] * 12 + ["  ", "\n", "\t", "\u00a0", "\u3000", "\u2009", "\r\n", "\x1c"]


def joined(words, blanks=BLANKS):
    return "".join(w + rng.choice(blanks) for w in words).rstrip(" ")


def prose(least, most, stop=0.15, vocabulary=WORDS):
    words = [rng.choice(vocabulary) for _ in range(rng.randint(least, most))]
    return [w + ("." if rng.random() < stop else rng.choice(["", "", "", ",", "?"])) for w in words]


def changed(words, vocabulary=WORDS):
    out = []
    for word in words:
        roll = rng.random()
        if roll < 0.15:
            continue
        out.append(rng.choice(vocabulary) if roll < 0.3 else word.upper() if roll < 0.35 else word)
        if rng.random() < 0.1:
            out.append(rng.choice(vocabulary))
    if rng.random() < 0.3 and len(out) > 3:
        i = rng.randrange(1, len(out))
        out = out[i:] + out[:i]
    return out


def prose_pair(least, most, blanks=BLANKS):
    reference = prose(least, most)
    return {"answer": joined(changed(reference), blanks), "reference": joined(reference, blanks)}


def edges(*pairs):
    return [{"answer": a, "reference": r} for a, r in pairs]


def phrase_pair():
    ascii_words = [w for w in WORDS if w.isascii()]
    reference = [rng.choice(ascii_words) for _ in range(rng.randint(1, 3))]
    blanks = [" ", " ", "\n", "\t ", "  "]
    answer = [w.upper() if rng.random() < 0.3 else w for w in reference]
    if rng.random() < 0.4:
        answer[rng.randrange(len(answer))] = rng.choice(ascii_words)
    if rng.random() < 0.4:
        answer = [rng.choice(ascii_words)] + answer + [rng.choice(ascii_words)]
    return {"answer": joined(answer, blanks) + rng.choice(["", " ", "\n"]),
            "reference": joined(reference, [" "])}


CLASSES = ["Food", "Food and drink", "Date", "Individual", "Individual animal", "animal", "Other",
           "Other entity", "entity", "Speed", "Abbreviation", "Expression abbreviated", "体育", "传媒业"]


def class_example():
    reference = rng.choice(CLASSES)
    said = [rng.choice(CLASSES) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.75:
        said.append(reference)
    rng.shuffle(said)
    labels = CLASSES[:]
    rng.shuffle(labels)
    return {"answer": rng.choice(["", "Type: ", "It is "]) + rng.choice([", ", " or "]).join(said),
            "reference": reference, "labels": labels}


def number_answer(gold):
    said = [rng.choice([gold, gold, gold + "0", "0" + gold, "7", "１２", "3.14"])
            for _ in range(rng.randint(0, 4))]
    return rng.choice(["", "Paragraph ", "段落", "x"]) + rng.choice([" and ", ", ", "、", "."]).join(said)


def count_example():
    gold = str(rng.randint(1, 30))
    return {"answer": number_answer(gold), "reference": gold}


def retrieval_example():
    gold = str(rng.randint(1, 30))
    reference = rng.choice(["Paragraph ", "段落", "The Paragraph ", "Paragraph x, Paragraph "]) + gold
    return {"answer": number_answer(gold), "reference": reference}


CODE = ["return self.value", "    if x == None:", "for (int i = 0; i < n; ++i) {", "}", "x = x + 1",
        "naïve = 'Straße'", "raise ValueError(\"bad\")", "public void run() {", "a, b = b, a % b"]


def mutated(text, share_of=0.2):
    out = []
    for c in text:
        roll = rng.random()
        if roll < share_of / 2:
            continue
        out.append(rng.choice("abxyz_()é=") if roll < share_of else c)
    return "".join(out)


def code_example():
    reference = rng.choice(CODE)
    lines = [rng.choice(["# note", "```python", "// note", "x // y", "`"])
             for _ in range(rng.randint(0, 2))]
    lines.append(mutated(reference, rng.choice([0, 0.2, 0.5])))
    lines += rng.sample(CODE, rng.randint(0, 2))
    return {"answer": "\n" * rng.randint(0, 2) + "\n".join(lines), "reference": reference}


def edit_example():
    reference = rng.choice(CODE)
    return {"answer": mutated(reference, rng.choice([0.1, 0.3, 0.6])), "reference": reference}


ROOMS = ["bathroom", "bedroom", "garden", "hallway", "kitchen", "office"]


def labels_example():
    target = rng.sample(ROOMS, rng.choice([1, 1, 1, 2]))
    said = target + rng.sample(ROOMS, rng.choice([0, 0, 0, 1])) if rng.random() < 0.8 else ["nowhere"]
    rng.shuffle(said)
    answer = rng.choice(["In the ", "the ", ""]) + " and ".join(said)
    answer += rng.choice(["", ".", ". Not the " + rng.choice(ROOMS), "<example> " + rng.choice(ROOMS),
                          "\n<CONTEXT> " + rng.choice(ROOMS), " or " + rng.choice(ROOMS)])
    asked = rng.choice(["Where is Mary?", "Where was Mary before the " + rng.choice(ROOMS) + "?"])
    return {"answer": answer if rng.random() < 0.7 else answer.upper(), "question": asked,
            "reference": ",".join(target), "labels": ROOMS}


METRICS = {
    "f1": (f1, lambda: prose_pair(1, 9), edges(
        ("", "x"), ("the", "the"), ("The owl.", "owl"), ("don't", "dont"), ("the–end", "end"),
        ("a’s lamp", "s lamp"), ("ÉCOLE", "école"), ("red red", "red"), ("x_a_y", "xay"), ("½ the", "½"))),
    "contains": (contains, phrase_pair, edges(("x", ""), ("", "x"), ("ab", "b"), ("old\n Maren", "OLD maren"))),
    "exact": (exact, phrase_pair, edges(("", ""), (" x\n", "X"), ("x.", "x"))),
    "rouge-l": (rouge_l, lambda: prose_pair(3, 25), edges(("", "y"), ("a b c d", "a c d"), ("A, b!", "a b"))),
    "edit": (edit, edit_example, edges(("", "a"), ("ab", "ba"), ("é", "è"), ("abc", "xyz"))),
    "labels": (labels_metric, labels_example, []),
    "rouge-1": (rouge_1, lambda: prose_pair(3, 25), edges(("", "y"), ("b a", "a b"), ("x x", "x"), ("!", "!"))),
    "rouge-l-sets": (rouge_l_sets, lambda: prose_pair(4, 40), edges(
        ("", "y"), ("...", "y"), (" ", "y. "), ("x. ", "x. "), ("x", "x"), ("x x x", "x"), ("a b. c d", "c d. a b"),
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"), ("X", "x"), ("b a c", "c a b"), ("a c b", "b c a"))),
    "classification": (classification, class_example, []),
    "retrieval": (retrieval, retrieval_example, edges(("3", "Paragraph"), ("3", "paragraph 3"), ("4", "段落4"))),
    "count": (count, count_example, edges(("", "3"), ("none", "3"), ("3.3", "3"), ("１２", "12"), ("03", "3"))),
    "code": (code, code_example, edges(("", ""), ("", "x"), ("# x", ""), ("# x\n", "x"), ("\n\nx\ny", "x"),
                                       ("`a`\nb", "b"), ("é", "è"), ("http://x\ny = 1", "y = 1"))),
}


def main():
    lines = []
    for name, (score, example, first) in METRICS.items():
        rows, seen = [], set()
        made = iter(first)
        while len(rows) < PER_METRIC:
            row = next(made, None) or example()
            key = json.dumps(row, sort_keys=True)
            if key in seen:
                continue
            seen.add(key)
            row["score"] = score(**{"labels": [], **row})
            rows.append({"metric": name, **row})
        # A fixture of equal scores would prove nothing.
        spread = Counter(row["score"] for row in rows)
        assert max(spread.values()) <= 0.75 * len(rows), (name, spread)
        lines += [json.dumps(row, ensure_ascii=True) for row in rows]
    file = pathlib.Path(__file__).with_name("metrics.jsonl")
    file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
