"""Which fields an entry has, and which of them were used: none that could change what a sample means is lost unread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MEDIA = {  # plain names by which the files of an entry are known, beside "video" and "image"
    "video": ("videos", "videopath", "videopaths", "videofile", "videofilename", "clippath"),
    "image": ("images", "imagepath", "imagepaths", "imagefile", "imagefilename", "img", "imgpath"),
}

# Fields that nothing here reads, though they may have been meant to change what is learned: by their plain names, why.
FRAMES = "which frames are read is for data.frames of the recipe to say"
PIXELS = "the size of frames is that of the model's tower"
WEIGHT = "every conversation counts the same; data.sources.NAME.weight weighs a source"
TEXTS = "what is said in the video is not shown to the model; put it into the question if it should be"
OTHER = "it is neither shown nor learned"
NOTED = {
    **dict.fromkeys(("fps", "samplefps", "samplingfps", "nframes", "numframes", "maxframes", "minframes"), FRAMES),
    **dict.fromkeys(("frameindices", "frameidx", "frameids", "sampledframes", "startframe", "endframe"), FRAMES),
    **dict.fromkeys(("maxpixels", "minpixels", "totalpixels", "resizedheight", "resizedwidth", "detail"), PIXELS),
    **dict.fromkeys(("bbox", "bboxes", "box", "boxes", "crop", "roi", "mask"), "the whole picture is shown"),
    **dict.fromkeys(("weight", "weights", "sampleweight", "lossweight", "score", "reward"), WEIGHT),
    **dict.fromkeys(("subtitle", "subtitles", "subtitlepath", "asr", "transcript", "speech", "audio", "audios"), TEXTS),
    **dict.fromkeys(("chosen", "rejected", "rejectedresponse", "history", "tools", "functions", "context"), OTHER),
    **dict.fromkeys(("objects", "ktotag", "solution", "saliencyscores"), OTHER),
    **dict.fromkeys(("answers", "candidates", "options", "choices", "captions"), OTHER),
    **dict.fromkeys(("start", "end", "starttime", "endtime", "timestamp", "timestamps"), OTHER),
}
OF_THE_SAMPLE = ("id", "key", "type", "media", "messages", "conversations", "segments")


def plain(name: str) -> str:
    """A name without case, spaces, "-" and "_": Start_Time is start time is startTime."""
    return "".join(c for c in name.lower() if c not in " -_")


def present(value: Any) -> Any:
    """The same without fields that are null (or NaN): where every entry has every field, that says "not there"."""
    if isinstance(value, dict):
        return {name: present(v) for name, v in value.items() if v is not None and v == v}
    return [present(v) for v in value] if isinstance(value, list) else value


class Usage:
    """Counts, over the entries of a source, in how many each field was used and in how many it was only kept."""

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.entries = 0

    def add(self, names: Iterable[str], record: Mapping[str, Any]) -> None:
        """An entry had fields of these `names`, and became `record`: what stands there under its own name is kept."""
        talks = record["conversations"]
        kept = {name for part in (record, *talks) for name in part if name not in OF_THE_SAMPLE}
        turns = {
            name for talk in talks for turn in talk["messages"] for name in turn if name not in ("role", "content")
        }
        self.entries += 1
        names = dict.fromkeys(names)
        names |= {name: None for name in kept if name in record and plain(name) in NOTED}  # of the pieces of a turn
        for name in names:
            (self.kept if name in kept else self.used)[name] += 1
        self.kept.update(f"{name} of turns" for name in turns)

    def lines(self) -> list[str]:
        """ "fields used: ..." and, if there are any, "fields kept, but not used: ..."."""
        found = [f"fields used: {self._listed(self.used)}"]
        return found + ([f"fields kept, but not used: {self._listed(self.kept)}"] if self.kept else [])

    def _listed(self, names: Counter[str]) -> str:
        parts = [name if n == self.entries else f"{name} ({n:,} of {self.entries:,})" for name, n in names.items()]
        return ", ".join(parts) or "none"

    def notes(self) -> list[str]:
        """What a person may have meant with a field that is not used."""
        return [
            f"{name} is not used ({n:,} of {self.entries:,} entries): {NOTED[plain(name)]}"
            for name, n in self.kept.items()
            if plain(name) in NOTED
        ]
