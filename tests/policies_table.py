"""Every policy with settings; generic tests run over this table, so a new policy adds a row."""

POLICIES = {
    "divprune": {},
    "random": {"seed": 3},
    "grid": {},
}
