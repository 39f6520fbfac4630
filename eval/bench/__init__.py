"""`tokenprune bench`: policies compared on tasks of the embedded models."""

#: Types of questions in each task. The questions of a task go through its types in turn.
TASKS: dict[str, tuple[str, ...]] = {
    "attribute": ("colour", "shape"),
    "existence": ("exists",),
    "counting": ("count",),
    "spatial": ("where", "relation"),
    "letter": ("letter",),
    "word": ("word",),
    "table": ("table",),
    "pair": ("pair",),
    "small": ("small",),
}
#: The same of easy-VQA, a data set of others with an embedded model of its own.
EASY_VQA: dict[str, tuple[str, ...]] = {
    "colour": ("colour",),
    "shape": ("shape",),
    "existence": ("existence",),
    "absence": ("absence",),
}
#: The same of the embedded model for pages, short videos and descriptions.
PAGES: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in ("heading", "table", "button", "counting", "panel", "spatial", "small", "motion", "frame", "caption")
}
_OWN = {"easy-vqa": EASY_VQA, "qwen-pages": PAGES}
#: Names of all tasks.
ALL_TASKS = tuple(dict.fromkeys((*TASKS, *EASY_VQA, *PAGES)))


def tasks_of(model: str) -> dict[str, tuple[str, ...]]:
    """The tasks of an embedded model."""
    return _OWN.get(model, TASKS)
