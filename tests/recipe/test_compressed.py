from __future__ import annotations

import pytest

from qn_deploy.recipe import Table, compressed_conv_net, compressed_transformer


@pytest.mark.parametrize("block_size", [2, 4])
def test_linear_layers_and_one_pixel_kernels_get_codebooks_that_fill_a_register(block_size: int) -> None:
    for recipe in (compressed_transformer(block_size), compressed_conv_net(block_size)):
        tables = [rule.method for rule in recipe.rules if rule.module == "Linear" or rule.kernel == (1, 1)]
        assert tables and set(tables) == {Table(block_size, 16)}


def test_codebooks_are_local() -> None:
    (linear, *_) = (rule.method for rule in compressed_transformer().rules)
    assert linear.books(384, 192) > 1
