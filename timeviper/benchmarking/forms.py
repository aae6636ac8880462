"""Forms of prompts that several sets share. What is said is said in our words; form and cue are the evaluators'."""

from __future__ import annotations

from timeviper.benchmarking.testset import Form

LETTER = "Answer with the letter of the right option alone."
LETTER_FORM = Form(f"{{question}}\n{{options}}\n{LETTER}")
"""Question, options `A. ...`, then the wish for a letter: lmms-eval's of most sets."""
PREFIXED = Form(
    "Question: {question}\nOptions:\n{options}\nGive only the best option.",
    option="({letter}) {text}",
    system="Watch the video with care, what happens in which order and how things look and move, and choose the best "
    "option for the question from what you see.",
    prefix="Best option: (",
    max_new_tokens=64,
)
"""MVBench's: the reply begins inside the bracket of a letter."""
PAIR = Form(
    'When in the video does this happen: "{question}"?\nGive start and end in seconds, in this form: '
    "<start> - <end> seconds.",
    max_new_tokens=64,
)
"""One sentence that asks for two numbers: TimeLens-Bench's."""
WORKED = Form(
    'Find the part of the video in which this happens: "{question}"\nReply with its start and its end in seconds, '
    "two numbers with a dash between them, and nothing else. For instance, what lasts from second 24.3 to second 30.4 "
    'is "24.3 - 30.4".',
    max_new_tokens=50,
)
"""With a worked example: lmms-eval's of Charades-STA."""
COUNTED = Form(
    "The video lasts {duration} seconds; {frames} frames of it are shown.\n"
    'When does this happen: "{question}"? Reply in the form: from x to y seconds.',
    max_new_tokens=64,
)
"""With duration and frames, and `x to y`: TimeViper's."""
BARE = Form("{question}", max_new_tokens=64)
"""The question alone: for models that were never shown options, whose words are compared with those of the options."""
