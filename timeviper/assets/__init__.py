"""Files that ship with the package: the small tokenizer, made by `datamodules/world/vocabulary.py`."""
