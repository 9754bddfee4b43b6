"""Questions and passages, of which some answer each other, and a task of mteb over them."""

import random

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

# What a passage says, and what a question asks for in other words.
ANIMALS = {
    "cat": "kitten",
    "dog": "puppy",
    "horse": "pony",
    "owl": "bird",
    "whale": "fish",
    "bee": "insect",
    "goat": "herd",
}
PLACES = {
    "kitchen": "stove",
    "garden": "roses",
    "harbour": "ships",
    "library": "books",
    "market": "stalls",
    "forest": "trees",
}
DEEDS = {"sleeps": "tired", "eats": "hungry", "sings": "loud", "runs": "quick", "hides": "afraid", "waits": "patient"}
WORDS = [word for group in (ANIMALS, PLACES, DEEDS) for pair in group.items() for word in pair]
WORDS += ["the", "in", "a", "about", "where", "which", "is", "near", "story"]


def pairs(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Questions, and the passage that answers each: no two are the same."""
    stories = [(animal, place, deed) for animal in ANIMALS for place in PLACES for deed in DEEDS]
    chosen = random.Random(seed).sample(stories, count)
    questions = [f"which {DEEDS[deed]} {ANIMALS[animal]} is near the {PLACES[place]}" for animal, place, deed in chosen]
    passages = [f"a story about the {place} where a {animal} {deed}" for animal, place, deed in chosen]
    return questions, passages


QUESTIONS, PASSAGES = pairs(100, seed=1)
OTHER_QUESTIONS = [question for question in pairs(250, seed=2)[0] if question not in QUESTIONS][:120]


def split_of(questions: list[str], passages: list[str], prefix: str) -> dict:
    return {
        "queries": Dataset.from_dict({"id": [f"{prefix}{i}" for i in range(len(questions))], "text": questions}),
        "corpus": Dataset.from_dict({"id": [f"d{i}" for i in range(len(passages))], "text": passages}),
        "relevant_docs": {f"{prefix}{i}": {f"d{i % len(passages)}": 1} for i in range(len(questions))},
        "top_ranked": None,
    }


class Stories(AbsTaskRetrieval):
    """A task of one's own, on local data: a split to evaluate, and one of other queries."""

    metadata = TaskMetadata(
        name="Stories",
        description="Short questions, and stories that answer them.",
        reference=None,
        dataset={"path": "none", "revision": "none"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test", "dev"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
    )

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        others = [*OTHER_QUESTIONS, *QUESTIONS[:3]]  # three of them are evaluated as well
        self.dataset = {
            "default": {"test": split_of(QUESTIONS, PASSAGES, "q"), "dev": split_of(others, PASSAGES, "other")}
        }
        self.data_loaded = True
