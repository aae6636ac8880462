"""A TimeViper run as a model of VLMEvalKit, which knows no entry points: `python -m timeviper_vlmevalkit` adds it."""
