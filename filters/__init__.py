"""The policy: what is kept. One filter a file, loaded by entry point; files that begin with _ are shared."""
