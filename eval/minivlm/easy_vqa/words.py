"""The words of easy-VQA's questions and answers."""

COLOURS = ("red", "green", "blue", "yellow", "black", "teal", "brown", "gray")
SHAPES = ("circle", "rectangle", "triangle")
WORDS = (
    *("?", "what", "is", "does", "there", "the", "a", "of", "in", "no", "not", "yes"),
    *("image", "shape", "color", "contain", "present"),
    *COLOURS,
    *SHAPES,
)
