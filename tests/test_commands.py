"""Commands that list what there is."""

from tokenprune import cli, list_policies

from .families import FAMILIES


def test_models_command(capsys):
    cli.main(["models"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in FAMILIES)


def test_list_of_policies(capsys):
    cli.main(["policies"])
    printed = capsys.readouterr().out
    for words in (*list_policies(), "2503.02175", "encoder_attention", "decoder", "tau=0.1"):
        assert words in printed
