"""Search one's own videos: cut into moments, embedded once, kept in a library, and found by a sentence."""
