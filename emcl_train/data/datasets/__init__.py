"""One module for each data set's own annotation files: `read(config)` gives its lists."""
