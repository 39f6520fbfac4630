"""`tokenprune bench`: policies compared on tasks of the embedded models."""

#: Types of questions in each task. The questions of a task go through its types in turn.
TASKS = {
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
