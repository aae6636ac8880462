"""WebDataset shards: the one door to writing, reading, indexing and checking them.

A shard is a tar of samples, `<key>.json` next to `<key>.mp4` (mkv, webm, jpg, png, ...); the json is
described in `shard_schema.py`, the index beside the tar in `shard_index.py`, the writing of one shard in
`shard_writer.py` and of many in `shard_pool.py`.
"""

from __future__ import annotations

from timeviper.datamodules.shard_check import Problem, Report, check_shards
from timeviper.datamodules.shard_index import (
    Conversation,
    SampleRecord,
    ShardIndex,
    index_path,
    index_shards,
    load_index,
)
from timeviper.datamodules.shard_pool import Written, write_shards
from timeviper.datamodules.shard_schema import SchemaError, parse_record
from timeviper.datamodules.shard_tar import ShardError, Slice, SliceFile, read_member
from timeviper.datamodules.shard_writer import Sample, TarSlice, write_shard

__all__ = [
    "Conversation",
    "Problem",
    "Report",
    "Sample",
    "SampleRecord",
    "SchemaError",
    "ShardError",
    "ShardIndex",
    "Slice",
    "SliceFile",
    "TarSlice",
    "Written",
    "check_shards",
    "index_path",
    "index_shards",
    "load_index",
    "parse_record",
    "read_member",
    "write_shard",
    "write_shards",
]
