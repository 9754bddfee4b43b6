"""Corpora: many videos, wherever they lie, embedded into shards by as many processes as there are."""
