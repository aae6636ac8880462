"""Public test sets: their files as they are downloaded, what is asked, and what counts as right."""
