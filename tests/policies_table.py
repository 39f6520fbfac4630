"""Every policy with settings; generic tests run over this table, so a new policy adds a row."""

#: Vision-stage policies by label: name and options.
POLICIES = {
    "divprune": ("divprune", {}),
    "random": ("random", {"seed": 3}),
    "grid": ("grid", {}),
    "fopru-rank": ("fopru", {}),
    "fopru-row": ("fopru", {"strategy": "row"}),
    "todre": ("todre", {"removal": False}),
    "todre-k-center": ("todre", {"removal": False, "objective": "k-center", "pivot_without_cls": "farthest"}),
    "tokenflex": ("tokenflex", {}),
    "recoverable": ("recoverable", {}),
    "visionzip": ("visionzip", {}),
    "prumerge": ("prumerge", {}),
    "prumerge_plus": ("prumerge_plus", {}),
    "vispruner": ("vispruner", {"step": 2}),
    "cdpruner": ("cdpruner", {}),
    "holov": ("holov", {"parts": 5, "surplus": "shared"}),
    "scope": ("scope", {}),
    "mmtok": ("mmtok", {}),
    "eadp": ("eadp", {}),
    "auto": ("auto", {"depths": ()}),
    "evs": ("evs", {}),
    "vidcom2": ("vidcom2", {}),
    "fastvid": ("fastvid", {}),
    "flashvid": ("flashvid", {}),
    "holitom": ("holitom", {"clustered": 0.5}),
    "coverpruner": ("coverpruner", {}),
    "erase": ("erase", {}),
}

#: Policies that act inside the vision tower by label: policies and options.
TOWER = {
    "tome": ("tome", {}),
    "tome-equal": ("tome", {"proportional_attention": False}),
    "flowcut": ("flowcut", {"every": 1}),
    "tome+scope": (["tome", "scope"], {}),
    "downsample": ("downsample", {}),
    "downsample+divprune": (["downsample", "divprune"], {}),
    "flowcut+fastv": (["flowcut", "fastv"], {}),
    "tome+divprune+fastv": (["tome", "divprune", "fastv"], {}),
}

#: Policies before the vision tower by label: policies and options.
PIXELS = {
    "grid": ("grid@pixels", {}),
    "divprune": ("divprune@pixels", {}),
    "pixelprune": ("pixelprune", {"tau": 0.5}),
    "rlt": ("rlt", {}),
    "grid+divprune": (["grid@pixels", "divprune"], {}),
}

#: Those that feed the language model other features than it would have seen.
CHANGES_FEATURES = {
    "tokenflex",
    "recoverable",
    "visionzip",
    "prumerge",
    "prumerge_plus",
    "fastvid",
    "flashvid",
    "holitom",
}

#: Policies with a decoder stage by label: policies and options.
DEEP = {
    "fastv": ("fastv@final", {}),
    "divprune+fastv": (["divprune", "fastv"], {}),
    "todre": ("todre", {"tau": 2.0}),
    "pyramiddrop": ("pyramiddrop@final", {}),
    "cdpruner+pyramiddrop": (["cdpruner", "pyramiddrop"], {}),
    "sparsevlm": ("sparsevlm@final", {}),
    "vtw": ("vtw@final", {}),
    "dart": ("dart@final", {}),
    "priortr": ("priortr@final", {}),
    "sieve": ("sieve@final", {}),
    "coverpruner-decoder": ("coverpruner@final", {"weights": "decoder"}),
    "auto": ("auto", {}),
}
