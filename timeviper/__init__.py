"""TimeViper recipes: training for a hybrid Mamba-2 / attention video language model.

What a notebook or a script needs is here: `train` a stage, `load` and `ask` it, `evaluate` it. Each name is imported
when it is first used, so that `import timeviper` takes no time.
"""

from typing import TYPE_CHECKING

from timeviper.package import VERSION as __version__
from timeviper.package import check_links, fill_when_used

if TYPE_CHECKING:
    from timeviper.config import Recipe
    from timeviper.config.load import load_recipe
    from timeviper.datamodules.frames.video import Frames, read_video
    from timeviper.inference.answer import Answer
    from timeviper.inference.ask import LoadedModel, ask, load, load_state
    from timeviper.inference.eval_report import Report
    from timeviper.inference.evaluate import evaluate
    from timeviper.inference.video_state import VideoState
    from timeviper.trainer import train

__all__ = ["Answer", "Frames", "LoadedModel", "Recipe", "Report", "VideoState", "__version__"]
__all__ += ["ask", "evaluate", "load", "load_recipe", "load_state", "read_video", "train"]

check_links()
fill_when_used(globals())
