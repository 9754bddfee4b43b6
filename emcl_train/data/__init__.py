"""Real video files and their captions: reading annotations, decoding, batching, checking, and a set to render."""
