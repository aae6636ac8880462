"""The config of a TimeViper folder for transformers: the recipe, with the sizes that other programs look for."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from timeviper.config.model import ModelConfig
from timeviper.serving.hub.remote.form import FORM, MODEL_TYPE, check_config, model_of, sizes


class TimeViperConfig(PretrainedConfig):
    """`recipe` says all of the model; what stands beside it is read from it."""

    model_type = MODEL_TYPE
    has_no_defaults_at_init = True

    def __init__(
        self,
        recipe: dict[str, Any] | None = None,
        form: int = FORM,
        lineage: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """recipe: all settings of the stage, as plain values; None: an empty config, of no model.

        Raises ValueError for one of a later form, or whose sizes are not those of the recipe.
        """
        self.recipe, self.form, self.lineage = recipe, form, lineage
        if recipe is not None:
            check_config({"recipe": recipe, "form": form, "lineage": lineage, **others})
            others |= sizes(model_of(recipe))
        others.setdefault("use_cache", True)
        super().__init__(**others)

    @property
    def model_settings(self) -> ModelConfig:
        if self.recipe is None:
            raise ValueError("this config has no recipe: load that of a folder which `timeviper export` wrote")
        return model_of(self.recipe)


TimeViperConfig.register_for_auto_class()
# Where `transformers serve` looks up what a model takes; it has no other way for the code of a folder.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault(MODEL_TYPE, "TimeViperForConditionalGeneration")  # pyright: ignore[reportArgumentType]
