"""Recipes: which weight is compressed how, in training and after it."""

from qn_deploy.recipe.compressed import compressed_conv_net, compressed_transformer
from qn_deploy.recipe.methods import Float, Int4, Int8, Method, Table
from qn_deploy.recipe.paper import conv_net, efficientnet, resnet, roberta, transformer, transformer_lm
from qn_deploy.recipe.rules import Recipe, Rule, Site

__all__ = [
    "Float",
    "Int4",
    "Int8",
    "Method",
    "Recipe",
    "Rule",
    "Site",
    "Table",
    "compressed_conv_net",
    "compressed_transformer",
    "conv_net",
    "efficientnet",
    "resnet",
    "roberta",
    "transformer",
    "transformer_lm",
]
