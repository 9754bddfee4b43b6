"""Search of one's own videos: a library of moments, a page, and what both stand on."""
