"""Which option a reply means, by the rule of each evaluator: their numbers differ by this more than by the models.

An extractor returns what it found, as it was found: a letter, "" where it finds none, or anything else (the first
character of a sentence) that equals no letter and is therefore wrong. tests/benchmarking/test_extract.py holds the
replies that were tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Extractor = Callable[[str, Sequence[str]], str]
"""(reply, texts of the options) -> what was found."""


class ScorerCrash(ValueError):
    """A reply at which the evaluator whose rule this is ends with an error."""


# Words that the scorer of VideoMME v1 takes out of a reply. Two commas are missing in its list, which joins two pairs
# of them to words that no reply holds.
_VIDEOMME = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)
_VIDEOMME_V2 = (
    "Final Answer:",
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
    "Answer:",
    "Option:",
)
_REFUSALS = (  # of API models, which VLMEvalKit knows by these words
    "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BOLD = r"(?:\*\*[ \t]*)?"
_LAST_LINE = re.compile(rf"(?:^|\n)[ \t]*{_BOLD}([A-H])(?:[ \t]*\*\*)?[ \t]*[.)]?[ \t]*$", re.IGNORECASE)
_FIRST = re.compile(rf"^[ \t]*{_BOLD}([A-H])(?:[ \t]*\*\*)?[ \t]*(?:[.)]|\r?\n|$)", re.IGNORECASE)
_TOLD = re.compile(
    r"(?:the (?:best|correct) (?:answer|option) is|the answer(?: is)?|final answer:|best (?:answer|option):|answer:"
    r"|option:|\b(?:answer|option)(?:\s+(?:is|would\s+be)|\s*:))[\s:*]*([A-H])\b",
    re.IGNORECASE,
)
_IN_BOLD = re.compile(r"\*\*\s*([A-H])(?=\s*\*\*|[.)])", re.IGNORECASE)


def videomme(reply: str, options: Sequence[str] = ()) -> str:
    """VideoMME v1's own, which VLMEvalKit's readers of VideoMME and LongVideoBench repeat: the first capital A to D
    after some words are taken out, "Best answer:" not among them."""
    for words in _VIDEOMME:
        reply = reply.replace(words, "")
    found = re.search("[ABCD]", reply)
    return found[0] if found else ""


def lmms_eval(reply: str, options: Sequence[str] = ()) -> str:
    """`mcq_extract` of lmms-eval 0.7.2: of all capitals in any of nine forms the one in the most trusted, and of these
    the last. After "the answer is" it takes any later capital, so "The answer is B. Apple" is A."""
    text = reply.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    if not text:
        return ""
    alone, padded = text.strip(), f" {text} "
    found: list[tuple[int, int, str]] = []  # trust, place, letter
    for letter in _offered(options, 8):
        forms = ((6, f"({letter})"), (5, f"{letter}."), (4, f"{letter}:"), (3, f"{letter})"), (2, f"{letter} "))
        found += [(trust, place, letter) for trust, form in forms if (place := padded.rfind(form)) >= 0]
        found += [(7, at, letter) for end in _phrases(padded) if (at := padded.find(letter, end)) >= 0]
        if alone.startswith(letter) and not alone[1:2].isalpha():
            found.append((10, 0, letter))
        if alone.endswith(letter) and not alone[-2:-1].isalpha():
            found.append((9, len(padded) - 1, letter))
    if not found:
        found = [(0, place, letter) for letter in _offered(options, 8) if (place := padded.rfind(letter)) >= 0]
    return max(found, key=lambda one: one[:2])[2] if found else ""  # of equals the first, as a stable sort has it


_PHRASES = (
    *(
        f"{the}{words} is"
        for the in ("", "the ")
        for words in (
            "answer",
            "correct answer",
            "best answer",
            "correct option",
            "best option",
            "choice",
            "correct choice",
        )
    ),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def _phrases(text: str) -> list[int]:
    """Where the first of each phrase ends."""
    lower = text.lower()
    return [at + len(phrase) for phrase in _PHRASES if (at := lower.find(phrase)) >= 0]


def lmms_eval_v2(reply: str, options: Sequence[str] = ()) -> str:
    """lmms-eval 0.7.3 for Video-MME-v2: a last line or a beginning that is a letter, else the last "answer is" with
    one, else the only one in bold, else the only option whose text the reply holds."""
    text = reply.strip()
    if match := _LAST_LINE.search(text) or _FIRST.match(text):
        return match[1].upper()
    if told := _TOLD.findall(text):
        return told[-1].upper()
    bold = {letter.upper() for letter in _IN_BOLD.findall(text)}
    if len(bold) == 1:
        return bold.pop()
    held = [i for i, option in enumerate(options) if option.strip(". \n").lower() in text.lower()]
    return LETTERS[held[0]] if len(held) == 1 else ""


def vlmeval_v2(reply: str, options: Sequence[str] = ()) -> str:
    """VLMEvalKit's of Video-MME-v2: the first capital A to H after some words are taken out."""
    for words in _VIDEOMME_V2:
        reply = reply.replace(words, "")
    found = re.search("[A-H]", reply)
    return found[0] if found else ""


def vlmeval_inferred(reply: str, options: Sequence[str] = ()) -> str:
    """What VLMEvalKit infers before it would ask a judge: the only letter that stands alone among the last five words
    or marks, else the only option whose text the reply holds, if that is not much longer than all options."""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split()
    letters = _offered(options, 26)
    alone = [letter for letter in letters if letter in words]
    if any(refusal in reply for refusal in _REFUSALS) or (not alone and "Z" in words):
        return ""
    if len(alone) == 1 and words.index(alone[0]) > len(words) - 5:
        return alone[0]
    text = reply.lower()
    if len(text) > 2 * sum(map(len, options)):
        return ""
    held = [letter for letter, option in zip(letters, options) if option.lower() in text]
    return held[0] if len(held) == 1 else ""


def tempcompass(reply: str, options: Sequence[str] = ()) -> str:
    """TempCompass's rule before its judge: a letter A to D alone, or before a full stop or a bracket."""
    return reply[0] if re.match(r"[ABCD](?:[.)]|$)", reply) else ""


def vnbench(reply: str, options: Sequence[str] = ()) -> str:
    """VNBench's: of the capitals A, B, C, D in what stands before the first full stop the one that comes first in the
    alphabet, so that an "A" anywhere wins."""
    return next((letter for letter in "ABCD" if letter in reply.split(".")[0]), "")


def timeviper(reply: str, options: Sequence[str] = ()) -> str:
    """TimeViper's: the first capital before a full stop, else the first character, whatever it is.

    ScorerCrash for an empty reply, at which its scorer ends.
    """
    if found := re.search(r"([A-Z])\.", reply):
        return found[1]
    if not reply:
        raise ScorerCrash("an empty reply ends TimeViper's scorer with an IndexError")
    return reply[0]


def bracket(reply: str, options: Sequence[str] = ()) -> str:
    """MLVU's: the character before the first ")", of a reply that was made to begin with "Best Option: ("; of one
    without brackets its first character."""
    text = reply.strip()
    return text[: text.index(")")][-1:] if ")" in text else text[:1]


def lvbench(reply: str, options: Sequence[str] = ()) -> str:
    """LVBench's: what stands between "(" and ")", else the first character."""
    found = re.search(r"\(([^)]*)\)", reply)
    return found[1] if found else reply.strip()[:1]


_ALONE = re.compile(r"\W*([A-Z])(?:[\W_]*$|\W*[.):,](?:\s|$)|\*\*|\]|\s*\n)")
_DECLARED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|must be)\b|\s*[:=])?\W{0,4}([A-Za-z])\b(?!['’])"
)
_I_CHOOSE = re.compile(r"\bI\s+(?:choose|pick|select)\W{0,4}([A-Z])\b")


def careful(reply: str, options: Sequence[str] = ()) -> str:
    """Ours: what is told for certain, and nothing else. A letter by itself or before a mark; what follows "answer",
    "option" or "choice", the last time that they stand before a letter; a last line that is a letter; the text of
    exactly one option. An article ("A man ...") is no answer, and neither is a letter beyond the options."""
    text, offered = reply.strip(), _offered(options, 26)
    told = [m[1] for m in _DECLARED.finditer(text) if m[1].isupper() or not text[m.end() :].lstrip(" .*)")]
    last = text.splitlines()[-1] if text else ""
    for found in ([_ALONE.match(text)], [_I_CHOOSE.search(text)], [_ALONE.fullmatch(last)]):
        if found[0] and found[0][1] in offered:
            letters = [found[0][1]]
            break
    else:
        letters = [letter.upper() for letter in told[-1:] if letter.upper() in offered]
    if not letters:
        same = [i for i, option in enumerate(options) if _plain(option) == _plain(text)]
        letters = [LETTERS[i] for i in same] if len(same) == 1 else []
    if not letters and len(text) == 1 and text.upper() in offered:
        letters = [text.upper()]
    return letters[0] if letters else ""


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")


def _offered(options: Sequence[str], most: int) -> str:
    return LETTERS[: len(options) if options else most]


EXTRACTORS: dict[str, Extractor] = {
    "careful": careful,
    "videomme": videomme,
    "lmms-eval": lmms_eval,
    "lmms-eval-v2": lmms_eval_v2,
    "vlmeval-v2": vlmeval_v2,
    "tempcompass": tempcompass,
    "vnbench": vnbench,
    "timeviper": timeviper,
    "mlvu": bracket,
    "lvbench": lvbench,
}
