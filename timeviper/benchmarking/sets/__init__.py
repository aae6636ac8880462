"""Readers of public test sets, one a file, from their files as they are downloaded; `registry` knows all of them."""
