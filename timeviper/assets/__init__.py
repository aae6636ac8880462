"""Files that ship with the package: the small tokenizer, made by `python -m timeviper.tokenizer train`."""
