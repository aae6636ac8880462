"""GPUs that a stage can be planned for, and everything that the plan assumes, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Figures of the vendor's data sheet; GB and TFLOP are decimal."""

    name: str
    bf16_tflops: float
    """Dense bfloat16 products with float32 sums, TFLOP/s."""
    fp32_tflops: float
    """float32 without tensor cores, TFLOP/s: the products of the torch form of the scan."""
    memory_gb: float
    bandwidth_gb_s: float
    """Of the GPU's memory."""
    link_gb_s: float
    """To another GPU of the node, in one direction: NVLink, or PCIe 4.0 x16."""
    source: str


GPUS = {
    "h200": Gpu("NVIDIA H200 SXM", 989, 67, 141, 4800, 450, "NVIDIA H200 data sheet"),
    "h100": Gpu("NVIDIA H100 SXM", 989, 67, 80, 3350, 450, "NVIDIA H100 data sheet"),
    "a100-80": Gpu("NVIDIA A100 SXM 80 GB", 312, 19.5, 80, 2039, 300, "NVIDIA A100 data sheet"),
    "l40s": Gpu("NVIDIA L40S", 362, 91.6, 48, 864, 32, "NVIDIA L40S data sheet"),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165, 82.6, 24, 1008, 32, "NVIDIA Ada GPU architecture white paper"),
}

# What a driver calls the GPUs whose figures these are; others of the same family have other clocks and memory.
_DRIVER_NAMES = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}


def gpu_of(driver_name: str) -> Gpu | None:
    """The GPU that a driver calls so (`torch.cuda.get_device_name`); None: not in the table."""
    return GPUS.get(_DRIVER_NAMES.get(driver_name, ""))


@dataclass(frozen=True)
class Assumptions:
    """What no recipe says. Every figure of a plan rests on these and on the data sheet alone."""

    efficiency: float = 0.4
    """Share of the peak arithmetic that large products reach."""
    bandwidth_efficiency: float = 0.7
    """Share of the peak bandwidth, of memory and of links."""
    gpus_per_node: int = 8
    network_gb_s: float = 50.0
    """Between nodes, for each GPU and direction: one 400 Gb/s adapter a GPU."""
    host_gb_s: float = 25.0
    """Between a GPU and its host, for offloading."""
    host_memory_gb_s: float = 40.0
    """Of the host's memory, for each GPU: the speed of AdamW there."""
    reserve_gb: float = 2.0
    """CUDA context, NCCL buffers and workspaces of libraries."""
    fragmentation: float = 0.05
    """Memory that the allocator holds and cannot use, as a share of the peak."""
    text_tokens: int = 192
    """Prompt and answer of a sample, where no shard index tells."""
    label_share: float = 0.5
    """Share of the text that is supervised."""
    index_steps: int = 4
    """Steps at the start of a phase whose packs are looked at, where there is a shard index."""

    def with_reserve(self, peak_bytes: float) -> float:
        """GB of a GPU that a peak of this many bytes takes, all in all."""
        return peak_bytes / 1e9 * (1 + self.fragmentation) + self.reserve_gb

    NOTES = (
        "the torch forms of all operations run; vendor kernels keep less and are faster",
        "a module takes the longer of its arithmetic and its memory traffic: what it would keep for a backward pass "
        "moves twice in a forward pass, four times in a backward pass",
        "communication overlaps with computation: a step takes the longer of the two",
        "weights are gathered for every forward and backward pass of every pack, gradients are reduced once a step",
        "not in the time: reading and decoding video, launching kernels, validation, checkpoints, restarts",
    )
