"""Every policy with settings; generic tests run over this table, so a new policy adds a row."""

#: by label: name and options
POLICIES = {
    "divprune": ("divprune", {}),
    "random": ("random", {"seed": 3}),
    "grid": ("grid", {}),
    "fopru-rank": ("fopru", {}),
    "fopru-row": ("fopru", {"strategy": "row"}),
}
