"""VTW: all visual tokens leave at one layer."""

from tokenprune.policies import VTW

from .inputs import decoder_view, kept_places


def test_vtw_lets_all_leave_at_one_layer():
    assert VTW().decoder_layers(32, 1) == [16] and VTW(depth=0.1).decoder_layers(4, 2) == [2]
    assert kept_places(VTW().decoder_select(decoder_view([[0, 1], [3]], [1, 1]))) == [[], []]
