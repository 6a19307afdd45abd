"""Each contender in a file: the same work, in the best way its own documentation offers."""
