"""What lmms-eval finds by the entry point `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest

manifest = ModelManifest(
    model_id="timeviper",
    simple_class_path="timeviper_lmms_eval.model.TimeViper",
    chat_class_path="timeviper_lmms_eval.model.TimeViperChat",
)
