"""Captions, questions and exact answers about a scene, in a small and regular English.

Every answer is computed from the list of events. What a question says (its words, how long the video is)
tells nothing about the answer, so that a model without eyes stays at the share of the most frequent answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numpy.random import Generator

from timeviper.datamodules.when import bounds
from timeviper.datamodules.world.scene import Event, Scene

NUMBERS = ("one", "two", "three")

# Several ways to ask, drawn by seed. {} is what the question is about.
PROMPTS: dict[str, tuple[str, ...]] = {
    "caption_image": ("Describe the image.", "What is in the image?", "Write a caption for the image."),
    "caption": ("Describe the video.", "What happens in the video?", "Write a caption for the video."),
    "timeline": ("What happens when?", "Tell what happens and when.", "List what happens with the times."),
    "times": ("When is each object visible?", "Tell when each object is visible.", "List the objects with the times."),
    "describe": ("Describe the {}.", "Tell about the {}.", "Write a caption for the {}."),
    "colour": ("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}."),
    "size": ("What size is the {}?", "Which size does the {} have?", "Name the size of the {}."),
    "shape": (
        "What shape is the {} object?",
        "Which shape does the {} object have?",
        "Name the shape of the {} object.",
    ),
    "direction": ("Which way does the {} move?", "In which direction does the {} move?", "Where does the {} move?"),
    "first": ("What appears first?", "Which object appears first?", "Name the first object."),
    "last": ("What appears last?", "Which object appears last?", "Name the last object."),
    "after": (
        "What appears after the {}?",
        "Which object appears right after the {}?",
        "Name the object after the {}.",
    ),
    "before": (
        "What appears before the {}?",
        "Which object appears right before the {}?",
        "Name the object before the {}.",
    ),
    "count": ("How many objects appear?", "How many objects are in the video?", "Count the objects."),
    "when": (
        "When is the {} visible?",
        "From when to when is the {} visible?",
        "At what time is the {} in the video?",
    ),
    "when_any": (
        "When is an object visible?",
        "From when to when is an object visible?",
        "At what time is an object in the video?",
    ),
    "at": ("What appears at {}?", "Which object is visible at {}?", "Name the object at {}."),
    "moments": ("What is visible at which time?", "Name the object at each of some times.", "Tell times and objects."),
    "between": (
        "How many objects appear between {}?",
        "How many objects are there between {}?",
        "Count the objects between {}.",
    ),
    "where": ("Where is the {}?", "At which place is the {}?", "Name the place of the {}."),
    "seen": ("Does the {} appear?", "Is the {} in the video?", "Is there a {}?"),
    "needle": ("What object appears?", "What appears in the video?", "Name the object that appears."),
    "needle_colour": ("What colour is the object that appears?", "Which colour does the object have?"),
    "needle_shape": ("What shape is the object that appears?", "Which shape does the object have?"),
}


Question = Callable[[Scene, Generator], dict[str, Any] | None]


def ask(rng: Generator, kind: str, prompt: str, answer: str, about: str = "", mark: str = "<video>") -> dict[str, Any]:
    """One conversation of a question and its answer."""
    wordings = PROMPTS[prompt]
    question = wordings[rng.integers(len(wordings))].format(about)
    messages = [{"role": "user", "content": f"{mark}\n{question}"}, {"role": "assistant", "content": answer}]
    return {"type": kind, "messages": messages}


def _any(rng: Generator, events: tuple[Event, ...]) -> Event:
    return events[rng.integers(len(events))]


def span(event: Event) -> str:
    """When an event is visible, in the one form that answers have."""
    return bounds(event.start, event.end)


# Answers repeat what they are about, in the words that captions use: "the ring is red", as in "the ring is red and
# moves left ...". What captions teach, answers then need not learn anew; as single words most took far longer.
def moves(event: Event) -> str:
    """ "moves left", or "stays"."""
    return "stays" if event.motion == "stay" else f"moves {event.motion}"


def sentence(event: Event) -> str:
    """What one object does: "a red circle moves left"."""
    return f"a {event.pair} {moves(event)}"


def image_caption(scene: Scene) -> str:
    """ "a red circle at the top left and a blue ring at the bottom." """
    *others, last = [f"a {e.pair} at the {e.place}" for e in scene.events]
    return f"{', '.join(others)} and {last}." if others else f"{last}."


def clip_caption(scene: Scene) -> str:
    """ "a red circle moves left from the top right." """
    (event,) = scene.events
    return f"{sentence(event)} {'at' if event.motion == 'stay' else 'from'} the {event.place}."


def video_caption(scene: Scene) -> str:
    """ "a red circle moves left, then a blue ring stays." """
    return ", then ".join(sentence(e) for e in scene.events) + "."


def video_timeline(scene: Scene) -> str:
    """ "1.0 to 3.0 seconds a red circle moves left, then 4.0 to 6.0 seconds a blue ring stays." """
    return ", then ".join(f"{span(e)} {sentence(e)}" for e in scene.events) + "."


def _caption(scene: Scene, rng: Generator) -> dict[str, Any]:
    return ask(rng, "caption", "caption", video_caption(scene))


def _colour(scene: Scene, rng: Generator) -> dict[str, Any]:
    event = _any(rng, scene.events)
    return ask(rng, "colour", "colour", f"the {event.shape} is {event.colour}", event.shape)


def _shape(scene: Scene, rng: Generator) -> dict[str, Any]:
    event = _any(rng, scene.events)
    return ask(rng, "shape", "shape", f"the {event.colour} object is a {event.shape}", event.colour)


def _direction(scene: Scene, rng: Generator) -> dict[str, Any]:
    event = _any(rng, scene.events)
    return ask(rng, "direction", "direction", f"the {event.pair} {moves(event)}", event.pair)


def _order(scene: Scene, rng: Generator) -> dict[str, Any] | None:
    """First, last, or the neighbour of another; None for a single object, where there is no order."""
    events = scene.events
    if len(events) < 2:
        return None
    at = int(rng.integers(len(events) - 1))
    match ("first", "last", "after", "before")[rng.integers(4)]:
        case "after":
            return ask(rng, "order", "after", f"a {events[at + 1].pair}", events[at].pair)
        case "before":
            return ask(rng, "order", "before", f"a {events[at].pair}", events[at + 1].pair)
        case end:
            return ask(rng, "order", end, f"a {events[0 if end == 'first' else -1].pair}")


def _count(scene: Scene, rng: Generator) -> dict[str, Any]:
    number = NUMBERS[len(scene.events) - 1]
    return ask(rng, "count", "count", "one object" if number == "one" else f"{number} objects")


def when_question(scene: Scene, rng: Generator) -> dict[str, Any]:
    event = _any(rng, scene.events)
    return ask(rng, "when", "when", f"the {event.pair} {span(event)}", event.pair)


def _times(scene: Scene, rng: Generator) -> dict[str, Any]:
    """When each object is there, in any order: the way from an object to its time, where a timeline goes from times
    to objects. The name stands right before the digits."""
    order = rng.permutation(len(scene.events))
    told = (f"the {e.pair} {span(e)}" for e in (scene.events[i] for i in order))
    return ask(rng, "times", "times", ", ".join(told) + ".")


def _timeline(scene: Scene, rng: Generator) -> dict[str, Any]:
    return ask(rng, "timeline", "timeline", video_timeline(scene))


def _named(event: Event, by: str) -> tuple[str, str]:
    """An object named by its "shape" or "colour", and a sentence that begins so: captions alone, which name the
    colour first, never teach to find it by the shape."""
    if by == "shape":
        return event.shape, f"the {event.shape} is {event.colour} and"
    return f"{event.colour} object", f"the {event.colour} object is a {event.shape} and"


def _describe(scene: Scene, rng: Generator) -> dict[str, Any]:
    """All about one object, named in one of the ways in which questions name them: each answer teaches several."""
    at, events = int(rng.integers(len(scene.events))), scene.events
    event = events[at]
    ways = [_named(event, "shape"), _named(event, "colour"), (event.pair, f"the {event.pair}")]
    if at > 0:
        ways.append((f"object after the {events[at - 1].pair}", f"a {event.pair}"))
        if at == len(events) - 1:
            ways.append(("last object", f"a {event.pair}"))
    if at < len(events) - 1:
        ways.append((f"object before the {events[at + 1].pair}", f"a {event.pair}"))
        if at == 0:
            ways.append(("first object", f"a {event.pair}"))
    name, begin = ways[rng.integers(len(ways))]
    return ask(rng, "describe", "describe", f"{begin} {moves(event)}.", name)


QUESTIONS: dict[str, Question] = {
    "caption": _caption,
    "timeline": _timeline,
    "times": _times,
    "describe": _describe,
    "colour": _colour,
    "shape": _shape,
    "direction": _direction,
    "order": _order,
    "count": _count,
    "when": when_question,
}


def video_questions(scene: Scene, rng: Generator, types: Iterable[str] = QUESTIONS) -> list[dict[str, Any]]:
    """One conversation of each type that the scene allows."""
    asked = (QUESTIONS[kind](scene, rng) for kind in types)
    return [conversation for conversation in asked if conversation]


def image_questions(scene: Scene, rng: Generator) -> list[dict[str, Any]]:
    """The caption, the caption of one object, and the size of one (which captions do not tell)."""
    event, other = _any(rng, scene.events), _any(rng, scene.events)
    name, begin = _named(event, ("shape", "colour")[rng.integers(2)])
    return [
        ask(rng, "caption", "caption_image", image_caption(scene), mark="<image>"),
        ask(rng, "describe", "describe", f"{begin} at the {event.place}.", name, mark="<image>"),
        ask(rng, "size", "size", f"the {other.shape} is {other.size}", other.shape, mark="<image>"),
    ]


def clip_questions(scene: Scene, rng: Generator) -> list[dict[str, Any]]:
    """The caption, and when the one object is there: easy, but a first lesson in telling the time."""
    caption = ask(rng, "caption", "caption", clip_caption(scene))
    return [
        caption,
        _timeline(scene, rng),
        ask(rng, "when", "when_any", f"the object {span(scene.events[0])}"),
    ]


def needle_questions(scene: Scene, rng: Generator) -> list[dict[str, Any]]:
    """About the few objects of a long video: which, what it looks like, when."""
    events = scene.events
    if len(events) == 1:
        which = ask(rng, "needle", "needle", f"a {events[0].pair}")
        if rng.integers(2):
            detail = ask(rng, "needle", "needle_colour", f"the object is {events[0].colour}")
        else:
            detail = ask(rng, "needle", "needle_shape", f"the object is a {events[0].shape}")
    else:
        end = ("first", "last")[rng.integers(2)]
        which = ask(rng, "needle", end, f"a {events[0 if end == 'first' else -1].pair}")
        detail = {**(_colour, _shape)[rng.integers(2)](scene, rng), "type": "needle"}
    return [which, detail, when_question(scene, rng)]
