"""A decoder family of one's own: Llama with an MLP that has no gate. In the package the class would be
`timeviper/weights/hub/ungated.py`, its last line `FAMILY = Ungated()`, and the facts an entry (and the name) in
`timeviper/config/model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.config import DecoderConfig
from timeviper.config.model import FamilyFacts
from timeviper.weights.hub.llama import Llama

# Positions and the layout are as FamilyFacts has them anyway, and there are no biases.
FACTS = FamilyFacts(mlp="relu2")


class Ungated(Llama):
    blocks: Mapping[str, Mapping[str, str]] = {
        **Llama.blocks,
        "-": {
            "norm.weight": "post_attention_layernorm.weight",
            "mixer.up_proj.weight": "mlp.fc1.weight",
            "mixer.down_proj.weight": "mlp.fc2.weight",
        },
    }
    architecture = "UngatedForCausalLM"

    def read(self, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        if raw.get("hidden_act") != "relu2":
            problems.append(f"hidden_act is {raw.get('hidden_act')!r}; only 'relu2' is computed")
        return super().read({**raw, "hidden_act": "silu"}, problems)

    def write(self, cfg: DecoderConfig) -> dict[str, Any]:
        return super().write(cfg) | {"hidden_act": "relu2"}
